package holdfast_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

// behind is a real server behind a proxy that counts connections: a listener
// that is always there sees every dial, also those to a server that is not.
func behind(t *testing.T) (*redistest.Server, *redistest.Proxy) {
	t.Helper()
	s := redistest.Start(t)
	return s, redistest.NewProxy(t, s.Addr())
}

// mixed is a load of reads and writes on a few hundred keys; it reports every
// error that is not a miss.
func mixed(t *testing.T, ctx context.Context, c *holdfast.Cache, callers int, calls *latencies) (stop func()) {
	return load(t, callers, func(g, i int) {
		key := fmt.Sprint("k", (i*31+g)%500)
		calls.time(func() {
			var err error
			switch i % 10 {
			case 0, 1:
				err = c.Set(ctx, key, []byte(key), time.Minute)
			case 2:
				err = c.Delete(ctx, key)
			default:
				var v []byte
				if v, err = c.Get(ctx, key); err == nil && string(v) != key {
					t.Errorf("get %s: %q", key, v)
				}
			}
			if err != nil && !errors.Is(err, holdfast.ErrMiss) {
				t.Errorf("%s: %v", key, err)
			}
		})
		time.Sleep(500 * time.Microsecond) // callers do something else, too
	})
}

func TestRedisIsKilledUnderLoadAndNoCallerNotices(t *testing.T) {
	ctx := begin(t)
	s, p := behind(t)
	c := open(t, at(p.Addr()))
	ready(t, c)
	for i := range 500 {
		must(t, c.Set(ctx, fmt.Sprint("warm", i), []byte("w"), time.Hour))
	}
	drain(t, c)
	var calls latencies
	stop := mixed(t, ctx, c, 64, &calls)
	redistest.WaitFor(t, patience, "some load", func() bool { return calls.quantile(1) > 0 })
	if n := p.Active(); n != 1 {
		t.Errorf("%d connections while up, want 1", n)
	}
	s.Kill()
	killed := time.Now()
	waitState(t, c, holdfast.Down)
	for i := range 500 {
		wantGet(t, c, fmt.Sprint("warm", i), "w")
	}
	redistest.WaitFor(t, patience, "four seconds of outage", func() bool { return time.Since(killed) > 4*time.Second })
	must(t, redistest.RateOKUntil(p.AcceptTimes(), killed, time.Now()))
	dials := p.Accepted()
	s.Restart()
	waitState(t, c, holdfast.Up)
	stop()
	drain(t, c)
	calls.within(t, 1, 50*time.Millisecond+slack())
	if dials < 4 {
		t.Errorf("%d connections in all: nobody looked for redis", dials)
	}
	st := c.Stats()
	if st.BreakerOpens == 0 || st.Replayed == 0 || st.LocalHits+st.DoubtHits == 0 {
		t.Errorf("stats %+v", st)
	}
}

// A server that hangs is worse than one that is gone: its sockets stay open.
func TestRedisIsStoppedUnderALoadOfTwoThousandAndComesBack(t *testing.T) {
	redistest.Long(t)
	ctx := undisturbed(t)
	s, p := behind(t)
	c := open(t, at(p.Addr()))
	ready(t, c)
	base := runtime.NumGoroutine()
	var calls latencies
	stop := mixed(t, ctx, c, 2000, &calls)
	redistest.WaitFor(t, patience, "some load", func() bool { return calls.quantile(0.5) > 0 })
	waitState(t, c, holdfast.Up) // so many on so few cores can make Redis look slow
	s.Pause()
	paused := time.Now()
	waitState(t, c, holdfast.Down)
	opened := time.Since(paused)
	calls.reset()
	peak := 0
	redistest.WaitFor(t, patience, "five seconds of outage", func() bool {
		peak = max(peak, runtime.NumGoroutine())
		return time.Since(paused) > 5*time.Second
	})
	must(t, redistest.RateOKUntil(p.AcceptTimes(), paused, time.Now()))
	// 2,000 goroutines share the cores of whatever machine this is: the bound on
	// most says that nothing is waited for, the one on all that the law holds.
	calls.within(t, 0.5, 10*time.Millisecond)
	calls.within(t, 0.999, 50*time.Millisecond+slack())
	if limit := base + 2000 + 600; peak > limit {
		t.Errorf("%d goroutines, over %d: callers 2000, abandoned calls at most 512", peak, limit)
	}
	s.Resume()
	waitState(t, c, holdfast.Up)
	stop()
	drain(t, c)
	redistest.GoroutinesBackTo(t, base, 5)
	t.Logf("circuit opened after %v; peak %d goroutines", opened, peak)
}

func TestAHundredRestartsLoseNoDelete(t *testing.T) {
	redistest.Long(t)
	ctx := undisturbed(t)
	s, p := behind(t)
	c := open(t, at(p.Addr()))
	ready(t, c)
	base := runtime.NumGoroutine()

	// One writer a key, so that the last acknowledged write is known.
	const writers, each = 8, 20
	last := make([]map[string]string, writers)
	var wg sync.WaitGroup
	done := make(chan struct{})
	stop := sync.OnceFunc(func() {
		close(done)
		wg.Wait()
	})
	defer stop()
	for g := range writers {
		last[g] = map[string]string{}
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(g), 1))
			for i := 0; ; i++ {
				select {
				case <-done:
					return
				default:
				}
				key := fmt.Sprintf("w%d:%d", g, rnd.IntN(each))
				switch rnd.IntN(4) {
				case 0:
					if err := c.Delete(ctx, key); err != nil {
						t.Errorf("delete: %v", err)
					}
					last[g][key] = ""
				case 1:
					v := fmt.Sprintf("%d", i)
					if err := c.Set(ctx, key, []byte(v), 0); err != nil {
						t.Errorf("set: %v", err)
					}
					last[g][key] = v
				default:
					v, err := c.Get(ctx, key)
					want, wrote := last[g][key]
					if err == nil && wrote && string(v) != want {
						t.Errorf("get %s: %q after %q was written", key, v, want)
					}
				}
				time.Sleep(200 * time.Microsecond)
			}
		})
	}
	for i := range 100 {
		// The data is lost each time: every key is ours to bring back or to
		// leave absent, and what was deleted must not come back.
		s.Kill()
		s.Restart()
		if i%10 == 0 {
			waitState(t, c, holdfast.Up)
		}
	}
	waitState(t, c, holdfast.Up)
	stop()
	drain(t, c)
	for g := range last {
		for key, want := range last[g] {
			got := s.MustDo("GET", key)
			if want == "" && got != "(nil)" {
				t.Errorf("%s was deleted and is %q", key, got)
			}
			if want != "" && got != want && got != "(nil)" {
				t.Errorf("%s is %q, last written %q", key, got, want)
			}
			v, err := c.Get(ctx, key)
			if err == nil && string(v) != want {
				t.Errorf("get %s: %q, last written %q", key, v, want)
			}
		}
	}
	redistest.WaitFor(t, patience, "the second checks", func() bool { return c.Health().JournalKeys == 0 })
	redistest.GoroutinesBackTo(t, base, 5)
	redistest.WaitFor(t, patience, "one connection", func() bool { return p.Active() == 1 })
}

func TestSlowRedisOpensTheCircuitAndKeepsTheConnection(t *testing.T) {
	ctx := begin(t)
	_, p := behind(t)
	o := at(p.Addr())
	o.Timeout = 50 * time.Millisecond
	c := open(t, o)
	ready(t, c)
	must(t, c.Set(ctx, "k", []byte("v"), 0))
	p.SetLatency(80 * time.Millisecond)
	slow := time.Now()
	var calls latencies
	stop := load(t, 16, func(g, i int) {
		key := fmt.Sprint("k", g, i%50)
		calls.time(func() {
			if err := c.Set(ctx, key, []byte("v"), 0); err != nil {
				t.Error(err)
			}
		})
		time.Sleep(time.Millisecond)
	})
	waitState(t, c, holdfast.Down)
	redistest.WaitFor(t, patience, "three slow seconds", func() bool { return time.Since(slow) > 3*time.Second })
	stop()
	calls.within(t, 1, 50*time.Millisecond+slack())
	if n := p.Accepted(); n != 1 {
		t.Errorf("%d connections: the slow one was churned", n)
	}
	if c.Stats().Timeouts == 0 || c.Stats().BreakerOpens == 0 {
		t.Errorf("stats %+v", c.Stats())
	}
	p.SetLatency(0)
	waitState(t, c, holdfast.Up)
	drain(t, c)
	if n := p.Accepted(); n != 1 {
		t.Errorf("%d connections after it was fast again", n)
	}
}

func TestACallerWhoCancelsGetsItsErrorAndTripsNothing(t *testing.T) {
	ctx := begin(t)
	s, p := behind(t)
	o := at(p.Addr())
	o.Timeout = 5 * time.Second
	c := open(t, o)
	ready(t, c)
	p.SetLatency(300 * time.Millisecond) // far more than a busy machine adds to 5 ms
	var canceled, deadline atomic.Int64
	var wg sync.WaitGroup
	for g := range 50 {
		wg.Go(func() {
			for i := range 5 {
				key := fmt.Sprint("absent", g, i)
				if i%2 == 0 {
					cctx, cancel := context.WithCancel(ctx)
					time.AfterFunc(5*time.Millisecond, cancel)
					if _, err := c.Get(cctx, key); errors.Is(err, context.Canceled) {
						canceled.Add(1)
					}
					cancel()
					continue
				}
				dctx, cancel := context.WithTimeout(ctx, 5*time.Millisecond)
				if _, err := c.Get(dctx, key); errors.Is(err, context.DeadlineExceeded) {
					deadline.Add(1)
				}
				cancel()
			}
		})
	}
	wg.Wait()
	if canceled.Load() != 150 || deadline.Load() != 100 {
		t.Errorf("%d of 150 cancelled, %d of 100 past their deadline", canceled.Load(), deadline.Load())
	}
	if st := c.Stats(); st.BreakerOpens != 0 || c.Health().State != holdfast.Up {
		t.Errorf("impatient callers opened the circuit: %+v, %v", st, c.Health())
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	p.SetLatency(0)
	for _, err := range []error{
		c.Set(gone, "k", []byte("v"), 0), c.Delete(gone, "k"), c.Touch(gone, "k", 0), c.Check(gone),
		func() error { _, err := c.GetMany(gone, "k"); return err }(),
		func() error { _, err := c.Add(gone, "k", nil, 0); return err }(),
		func() error { _, err := c.TTL(gone, "k"); return err }(),
	} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("a cancelled context got %v", err)
		}
	}
	if got := s.MustDo("EXISTS", "k"); got != "0" {
		t.Error("a cancelled Set was executed")
	}
}

func TestACallersOwnDeadlineUsedUpByAHungServerCounts(t *testing.T) {
	ctx := begin(t)
	s, p := behind(t)
	o := at(p.Addr())
	o.Timeout = 50 * time.Millisecond
	c := open(t, o)
	ready(t, c)
	s.Pause()
	for i := 0; c.Health().State == holdfast.Up; i++ {
		dctx, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
		c.Get(dctx, fmt.Sprint("absent", i))
		cancel()
		if i > 20 {
			t.Fatal("20 deadlines passed on a hung server and the circuit is closed")
		}
	}
	s.Resume()
	waitState(t, c, holdfast.Up)
}
