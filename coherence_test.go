package holdfast_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

func TestWithoutTrackingCopiesLiveUntrackedTTL(t *testing.T) {
	backends(t, func(t *testing.T, ctx context.Context, b backend) {
		o := at(b.addr)
		o.Tracking = holdfast.TrackingOptions{Mode: holdfast.TrackOff, UntrackedTTL: 50 * time.Millisecond}
		c := open(t, o)
		ready(t, c)
		if c.Health().Tracking {
			t.Error("health claims that the server tells of changes")
		}
		b.set("k", "one")
		wantGet(t, c, "k", "one")
		b.set("k", "two")
		set := time.Now()
		redistest.WaitFor(t, patience, "the foreign write to be seen", func() bool {
			v, err := c.Get(ctx, "k")
			return err == nil && string(v) == "two"
		})
		if took := time.Since(set); took > 50*time.Millisecond+slack() {
			t.Errorf("seen after %v", took)
		}
		b.del("k")
		redistest.WaitFor(t, patience, "the foreign delete to be seen", func() bool {
			_, err := c.Get(ctx, "k")
			return errors.Is(err, holdfast.ErrMiss)
		})
	})
}

func TestOneConnectionWhateverTheNumberOfCallers(t *testing.T) {
	ctx := undisturbed(t) // its callers take all the time that there is
	s := redistest.Start(t)
	o := at(s.Addr())
	o.Timeout = 5 * time.Second // nothing is given up
	c := open(t, o)
	ready(t, c)
	most := 0
	stop := load(t, 300, func(g, i int) {
		c.Set(ctx, fmt.Sprint(g, i%100), []byte("v"), 0)
		c.GetMany(ctx, fmt.Sprint("absent", g, i), fmt.Sprint("absent too", g, i))
	})
	start := time.Now()
	redistest.WaitFor(t, patience, "a second of load", func() bool {
		most = max(most, len(s.Clients()))
		return time.Since(start) > time.Second
	})
	stop()
	if most != 1 {
		t.Errorf("%d connections at the server, want 1", most)
	}
}

// ristretto alone keeps the first of two quick Sets and fails this at once.
func TestReadYourOwnWritesOnHotKeys(t *testing.T) {
	for _, size := range []struct {
		name  string
		bytes int64
		value int
	}{{"room for all", 64 << 20, 16}, {"local tier full", 64 << 10, 7000}} {
		t.Run(size.name, func(t *testing.T) {
			backends(t, func(t *testing.T, ctx context.Context, b backend) {
				o := at(b.addr)
				o.Local.MaxBytes = size.bytes
				o.Timeout = time.Second // the law is tested, not the machine
				c := open(t, o)
				ready(t, c)
				rounds := 300
				if testing.Short() {
					rounds = 50
				}
				hotKeys(t, ctx, c, size.value, func(i int) bool { return i < rounds })
			})
		})
	}
}

func TestReadYourOwnWritesAcrossOutages(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	p := redistest.NewProxy(t, s.Addr())
	c := open(t, at(p.Addr()))
	ready(t, c)
	var over atomic.Bool
	var wg sync.WaitGroup
	stop := sync.OnceFunc(func() {
		over.Store(true)
		wg.Wait()
	})
	defer stop()
	wg.Go(func() { hotKeys(t, ctx, c, 16, func(int) bool { return !over.Load() }) })
	for i := range 12 {
		switch i % 4 {
		case 0:
			p.SetMode(redistest.Cut)
		case 1:
			p.SetMode(redistest.Hang)
		case 2:
			s.Kill()
		case 3:
			s.Pause()
		}
		start := time.Now()
		redistest.WaitFor(t, patience, "a part of an outage", func() bool { return time.Since(start) > 120*time.Millisecond })
		switch i % 4 {
		case 2:
			s.Restart()
		case 3:
			s.Resume()
		}
		p.SetMode(redistest.Pass)
		waitState(t, c, holdfast.Up)
	}
	stop()
}

// hotKeys has 8 goroutines write and read back few keys, one writer at a time
// for each key and readers beside it, while more says so of the round. A read
// must never return a value older than the last write that had returned.
func hotKeys(t *testing.T, ctx context.Context, c *holdfast.Cache, size int, more func(round int) bool) {
	t.Helper()
	const keys = 4
	type slot struct {
		mu      sync.Mutex
		version int64
		floor   atomic.Int64
	}
	var slots [keys]slot
	value := func(version int64) []byte {
		return append(fmt.Appendf(nil, "%08d", version), make([]byte, size)...)
	}
	read := func(k int) (int64, bool) {
		s := &slots[k]
		floor := s.floor.Load()
		v, err := c.Get(ctx, fmt.Sprint("hot", k))
		if errors.Is(err, holdfast.ErrMiss) {
			return 0, false
		}
		if err != nil {
			t.Errorf("get: %v", err)
			return 0, false
		}
		var version int64
		fmt.Sscanf(string(v[:8]), "%d", &version)
		if version < floor {
			t.Errorf("hot%d: read version %d after %d was written", k, version, floor)
		}
		return version, true
	}
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := 0; more(i); i++ {
				k := (g + i) % keys
				s, key := &slots[k], fmt.Sprint("hot", k)
				if g >= 5 {
					read(k)
					continue
				}
				s.mu.Lock()
				set := func() {
					s.version++
					if err := c.Set(ctx, key, value(s.version), time.Minute); err != nil {
						t.Errorf("set: %v", err)
					}
					s.floor.Store(s.version)
				}
				set()
				if i%3 == 1 {
					set()
				}
				if i%3 == 2 {
					s.version++
					if err := c.Delete(ctx, key); err != nil {
						t.Errorf("delete: %v", err)
					}
					s.floor.Store(s.version)
					if v, ok := read(k); ok {
						t.Errorf("%s: read version %d after it was deleted", key, v)
					}
				} else if v, ok := read(k); ok && v != s.version {
					t.Errorf("%s: read back version %d, wrote %d", key, v, s.version)
				}
				s.mu.Unlock()
			}
		})
	}
	wg.Wait()
}
