package holdfast

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast/internal/flight"
	"github.com/holdfast-cache/holdfast/internal/link"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/rueidis"
)

func TestALeaseIsInTheSlotOfItsKey(t *testing.T) {
	seen := map[string]bool{}
	for _, key := range []string{"k", "user:7", "{a}b", "x{a}b", "{}", "a}b", "}", "", "{", "{a", "a{}b", "{}{a}", "b{a}{c}", "\xff}\x00"} {
		name := leaseName(key, true)
		if link.SlotOf(name) != link.SlotOf(key) {
			t.Errorf("%q: the lease %q is in slot %d, the key in %d", key, name, link.SlotOf(name), link.SlotOf(key))
		}
		if seen[name] {
			t.Errorf("%q shares its lease %q", key, name)
		}
		seen[name] = true
	}
}

// fleet is Caches on one server, as if they were of several processes.
func fleet(t *testing.T, n int, o Options) []*Cache {
	t.Helper()
	cs := make([]*Cache, n)
	for i := range cs {
		c, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := c.WaitReady(ctx); err != nil {
			t.Fatal(err, c.Health().LastError)
		}
		cs[i] = c
	}
	return cs
}

func fleetOptions(s *redistest.Server) Options {
	return Options{Redis: rueidis.ClientOption{InitAddress: []string{s.Addr()}}, Timeout: 5 * time.Second, Load: LoadOptions{Lease: time.Minute}}
}

func TestAFleetLoadsAColdKeyOnce(t *testing.T) {
	t.Parallel()
	for _, mode := range []TrackingMode{TrackReads, TrackOff} {
		t.Run(mode.String(), func(t *testing.T) {
			s := redistest.Start(t)
			o := fleetOptions(s)
			o.Tracking.Mode = mode
			if mode == TrackOff {
				o.Load.Lease = time.Second // polled ten times in it
			}
			cs := fleet(t, 3, o)
			for round := range 5 {
				var loads atomic.Int64
				var wg sync.WaitGroup
				key := fmt.Sprint("k", round)
				for i := range 300 {
					wg.Go(func() {
						v, err := cs[i%3].GetOrLoad(context.Background(), key, time.Hour, func(context.Context) ([]byte, error) {
							loads.Add(1)
							t := time.NewTimer(50 * time.Millisecond)
							<-t.C
							return []byte("v"), nil
						})
						if err != nil || string(v) != "v" {
							t.Errorf("%q, %v", v, err)
						}
					})
				}
				wg.Wait()
				if n := loads.Load(); n != 1 {
					t.Errorf("round %d: %d loads", round, n)
				}
				if got := s.MustDo("EXISTS", leaseName(key, false)); got != "0" {
					t.Errorf("the lease is still there")
				}
			}
		})
	}
}

func TestTheNextOneLoadsAtOnceWhereTheHolderFails(t *testing.T) {
	s := redistest.Start(t)
	cs := fleet(t, 2, fleetOptions(s))
	began, let := make(chan struct{}), make(chan struct{})
	boom := errors.New("boom")
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := cs[0].GetOrLoad(context.Background(), "k", 0, func(context.Context) ([]byte, error) {
			close(began)
			<-let
			return nil, boom
		})
		if !errors.Is(err, boom) {
			t.Errorf("%v", err)
		}
	})
	<-began
	wg.Go(func() {
		v, err := cs[1].GetOrLoad(context.Background(), "k", 0, func(context.Context) ([]byte, error) { return []byte("v"), nil })
		if err != nil || string(v) != "v" {
			t.Errorf("%q, %v", v, err)
		}
	})
	redistest.WaitFor(t, time.Minute, "the other to wait", func() bool { return cs[1].Stats().LeaseWaits == 1 })
	start := time.Now()
	close(let)
	wg.Wait()
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("the other waited %v for a lease that was given back", took)
	}
}

// The holder is gone, and nothing tells of it.
func TestALeaseWhoseHolderIsGoneHoldsNobodyUpBeyondItsEnd(t *testing.T) {
	s := redistest.Start(t)
	o := fleetOptions(s)
	o.Load.Lease = 300 * time.Millisecond
	c := fleet(t, 1, o)[0]
	load := func(context.Context) ([]byte, error) { return []byte("v"), nil }
	s.MustDo("SET", leaseName("a", false), "somebody", "PX", "300")
	s.MustDo("SET", leaseName("b", false), "somebody") // for ever: not of ours
	for _, key := range []string{"a", "b"} {
		start := time.Now()
		v, err := c.GetOrLoad(context.Background(), key, 0, load)
		if took := time.Since(start); err != nil || string(v) != "v" || took > 10*time.Second {
			t.Errorf("%s: %q, %v after %v", key, v, err, took)
		}
		if got := s.MustDo("GET", key); got != "v" {
			t.Errorf("%s: redis holds %q", key, got)
		}
	}
}

func TestADeleteAnywhereVoidsTheLease(t *testing.T) {
	s := redistest.Start(t)
	cs := fleet(t, 2, fleetOptions(s))
	for name, write := range map[string]func(key string) error{
		"delete": func(key string) error { return cs[1].Delete(context.Background(), key) },
		"set":    func(key string) error { return cs[1].Set(context.Background(), key, []byte("newer"), 0) },
		// Without any news of it: only the script can find out.
		"unheard": func(key string) error { s.MustDo("DEL", leaseName(key, false)); return nil },
	} {
		v, err := cs[0].GetOrLoad(context.Background(), name, time.Hour, func(context.Context) ([]byte, error) {
			return []byte("old"), write(name)
		})
		if err != nil || string(v) != "old" {
			t.Errorf("%s: %q, %v", name, v, err)
		}
		if got := s.MustDo("GET", name); got == "old" {
			t.Errorf("%s: what was loaded before came over it", name)
		}
		if v, err := cs[0].Get(context.Background(), name); string(v) == "old" {
			t.Errorf("%s: get: %q, %v", name, v, err)
		}
	}
}

func TestOnlyOneOfAFleetRefreshes(t *testing.T) {
	s := redistest.Start(t)
	o := fleetOptions(s)
	o.Load.EarlyRefresh = 0.01
	cs := fleet(t, 3, o)
	s.MustDo("SET", "k", "old", "PX", "1800000")
	var loads atomic.Int64
	let := make(chan struct{})
	load := func(context.Context) ([]byte, error) {
		loads.Add(1)
		<-let
		return []byte("new"), nil
	}
	ask := func(c *Cache) string {
		v, err := c.GetOrLoad(context.Background(), "k", time.Hour, load)
		if err != nil {
			t.Fatal(err)
		}
		return string(v)
	}
	for _, c := range cs {
		ask(c)
		h := c.local.Hash("k")
		// As if it had been read long ago.
		c.local.Get(h).Confirmed.Store(c.clock.Now() - int64(time.Hour))
	}
	for range 10 {
		for _, c := range cs {
			if got := ask(c); got != "old" {
				t.Errorf("a hit is %q", got)
			}
		}
	}
	redistest.WaitFor(t, time.Minute, "one to load and the others to give way", func() bool {
		gaveWay := 0
		for _, c := range cs {
			h := c.local.Hash("k")
			sh := c.flights.Shard(h)
			sh.Mu.Lock()
			if f := sh.Flights[h]; f != nil && f.Phase == flight.Resting {
				gaveWay++
			}
			sh.Mu.Unlock()
			ask(c)
		}
		return loads.Load() == 1 && gaveWay == 2
	})
	close(let)
	redistest.WaitFor(t, time.Minute, "the new value everywhere", func() bool {
		return ask(cs[0]) == "new" && ask(cs[1]) == "new" && ask(cs[2]) == "new"
	})
	if n := loads.Load(); n != 1 {
		t.Errorf("%d loads", n)
	}
}

// A user without the right to leases, or to scripts, loads and stores all the same.
func TestWithoutTheRightToALeaseEachLoadsForItself(t *testing.T) {
	s := redistest.Start(t)
	for name, acl := range map[string][]string{
		"no lease":   {"~holdfast:probe:*", "~user:*", "+@all"},
		"no scripts": {"~*", "+@all", "-@scripting"},
	} {
		s.MustDo(append([]string{"ACL", "SETUSER", "app", "reset", "on", ">secret"}, acl...)...)
		o := fleetOptions(s)
		o.Redis.Username, o.Redis.Password = "app", "secret"
		cs := fleet(t, 2, o)
		key := "user:" + name
		for _, c := range cs {
			v, err := c.GetOrLoad(context.Background(), key, time.Hour, func(context.Context) ([]byte, error) { return []byte("v"), nil })
			if err != nil || string(v) != "v" {
				t.Errorf("%s: %q, %v", name, v, err)
			}
		}
		if got := s.MustDo("GET", key); got != "v" {
			t.Errorf("%s: redis holds %q", name, got)
		}
		if got := s.MustDo("EXISTS", leaseName(key, false)); got != "0" {
			t.Errorf("%s: a lease was left", name)
		}
		if err := cs[0].Delete(context.Background(), key); err != nil {
			t.Errorf("%s: delete: %v", name, err)
		}
		if got := s.MustDo("EXISTS", key); got != "0" {
			t.Errorf("%s: it was not deleted", name)
		}
		if st := cs[0].Stats(); st.BreakerOpens != 0 || st.Loads != 1 {
			t.Errorf("%s: %d loads, the circuit opened %d times", name, st.Loads, st.BreakerOpens)
		}
	}
}

func TestALoadSlowerThanItsLeaseIsStored(t *testing.T) {
	s := redistest.Start(t)
	o := fleetOptions(s)
	o.Load.Lease = 10 * time.Millisecond
	c := fleet(t, 1, o)[0]
	_, err := c.GetOrLoad(context.Background(), "k", 0, func(context.Context) ([]byte, error) {
		redistest.WaitFor(t, time.Minute, "the lease to end", func() bool { return s.MustDo("EXISTS", leaseName("k", false)) == "0" })
		return []byte("v"), nil
	})
	if got := s.MustDo("GET", "k"); err != nil || got != "v" {
		t.Errorf("redis holds %q, %v", got, err)
	}
}
