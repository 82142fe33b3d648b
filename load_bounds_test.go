package holdfast_test

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

// A thousand waiters on one load cost one load, the goroutine that runs it, and little memory
// beside their own goroutines.
func TestAThousandWaitersCostLittleAndOneGoroutineInAll(t *testing.T) {
	ctx := undisturbed(t)
	const n = 1000
	c := open(t, holdfast.Options{})
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	let := make(chan struct{})
	load := func(context.Context) ([]byte, error) { <-let; return []byte("v"), nil }

	used := func() int64 {
		var m runtime.MemStats
		for range 50 { // what earlier tests left goes in steps
			last := m.HeapAlloc
			runtime.GC()
			runtime.ReadMemStats(&m)
			if m.HeapAlloc <= last && last-m.HeapAlloc < 16<<10 {
				break
			}
		}
		return int64(m.HeapAlloc) // stacks are the goroutines' own
	}
	var wg sync.WaitGroup
	measure := func(there func() bool, wait func()) int64 {
		before := used()
		for range n {
			wg.Go(wait)
		}
		redistest.WaitFor(t, patience, "all to wait", there)
		return used() - before
	}
	// Those who wait for a channel, first: what a waiter takes of its own.
	base := int64(-1)
	for tries := 0; base < 0 && tries < 10; tries++ { // again, where an earlier test gave back its memory just then
		var waiting atomic.Int32
		base = measure(func() bool { return waiting.Load() == n }, func() {
			waiting.Add(1)
			select {
			case <-let:
			case <-ctx.Done():
			}
		})
	}
	before := runtime.NumGoroutine()
	ours := measure(func() bool { return c.Stats().LoadsShared == n-1 }, func() {
		if v, err := c.GetOrLoad(ctx, "k", 0, load); err != nil || string(v) != "v" {
			t.Errorf("%q, %v", v, err)
		}
	})
	if more := runtime.NumGoroutine() - before - n; more > 1 {
		t.Errorf("%d goroutines beside those of the waiters", more)
	}
	each := (ours - base) / n
	t.Logf("%d bytes a waiter beside its own %d", each, base/n)
	// It was half a kilobyte.
	if each > 2048*raceFactor {
		t.Errorf("a waiter costs %d bytes", each)
	}
	close(let)
	wg.Wait()
	if s := c.Stats(); s.Loads != 1 {
		t.Errorf("%d loads", s.Loads)
	}
	if left := holdfast.FlightsOf(c); left != 0 {
		t.Errorf("%d keys are left in the flight table", left)
	}
}

// Callers who leave, loads that fail, hang, panic and are written over, hard limits and
// rests: nothing of them stays.
func TestLoadsLeaveNoGoroutineAndNoKeyBehind(t *testing.T) {
	ctx := undisturbed(t)
	srv := redistest.Start(t)
	for _, o := range []holdfast.Options{{}, at(srv.Addr()), at(unused())} {
		o.Timeout = 5 * time.Second
		o.Load.MaxConcurrent = 50
		o.Load = holdfast.LoadOptions{HardTimeout: 20 * time.Millisecond, StaleIfError: 5 * time.Millisecond, EarlyRefresh: 0.01, NotFoundTTL: time.Millisecond}
		c := open(t, o)
		if len(o.Redis.InitAddress) > 0 && o.Redis.InitAddress[0] == srv.Addr() {
			ready(t, c)
		}
		before := runtime.NumGoroutine()
		var wg sync.WaitGroup
		for g := range 16 {
			wg.Go(func() {
				for i := range 150 {
					key := fmt.Sprint("k", (g*7+i)%5)
					few, cancel := context.WithTimeout(ctx, time.Duration(i%4)*5*time.Millisecond+time.Microsecond)
					load := func(ctx context.Context) ([]byte, error) {
						switch i % 6 {
						case 0:
							<-ctx.Done()
							return nil, ctx.Err()
						case 1:
							return nil, holdfast.ErrNotFound
						case 2:
							panic("boom")
						case 3:
							runtime.Goexit()
						case 4:
							return c.GetOrLoad(ctx, key+"n", time.Millisecond, func(context.Context) ([]byte, error) { return nil, errLoadFailed })
						}
						return []byte("v"), nil
					}
					switch i % 5 {
					case 0:
						c.Delete(few, key)
					case 1:
						c.GetOrLoadMany(few, []string{key, key + "n"}, time.Millisecond, func(ctx context.Context, _ []string) (map[string][]byte, error) {
							v, err := load(ctx)
							return map[string][]byte{key: v}, err
						})
					case 2:
						c.Set(few, key, nil, time.Millisecond)
					}
					c.GetOrLoad(few, key, 20*time.Millisecond, load)
					cancel()
				}
			})
		}
		wg.Wait()
		redistest.WaitFor(t, patience, "the flight table to be empty", func() bool { return holdfast.FlightsOf(c) == 0 })
		redistest.WaitFor(t, patience, "the loads to end", func() bool { return runtime.NumGoroutine() <= before+5 })
		// All the places are free.
		var all sync.WaitGroup
		in, out := make(chan struct{}, o.Load.MaxConcurrent), make(chan struct{})
		for i := range o.Load.MaxConcurrent {
			all.Go(func() {
				c.GetOrLoadWith(ctx, fmt.Sprint("place", i), 0, holdfast.LoadOptions{HardTimeout: patience}, func(context.Context, *holdfast.Entry) (l holdfast.Loaded, err error) {
					in <- struct{}{}
					<-out
					return l, nil
				})
			})
		}
		for range o.Load.MaxConcurrent {
			select {
			case <-in:
			case <-time.After(patience):
				t.Fatal("a place among Load.MaxConcurrent was not given back")
			}
		}
		close(out)
		all.Wait()
		closed(t, c)
	}
}
