package holdfast

import (
	"context"
	"fmt"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/rueidis"
)

// BenchmarkGetOrLoadHit is a local hit of GetOrLoad beside one of Get. Target: ratio
// at most 1.1, 0 allocs.
func BenchmarkGetOrLoadHit(b *testing.B) {
	const n = 1 << 9
	keys, ctx := benchKeys(n), context.Background()
	c := freshCopies(b, keys, make([]byte, 100))
	load := func(context.Context) ([]byte, error) { return nil, ErrNotFound }
	for _, part := range []float64{0, 0.9} {
		b.Run(fmt.Sprintf("early=%v", part), func(b *testing.B) {
			c.opts.Load.EarlyRefresh = part
			versus(b, 1,
				func(_, i int) { c.GetOrLoad(ctx, keys[i%n], time.Hour, load) },
				func(_, i int) { c.Get(ctx, keys[i%n]) })
		})
	}
	if s := c.Stats(); s.Loads > 0 {
		b.Errorf("%d loads among the hits", s.Loads)
	}
}

// BenchmarkWaiters is what a thousand waiters on one load cost beside a thousand
// goroutines that wait for a channel and a context: bytes and goroutines a waiter.
// Target: at most 2 KiB, and none.
func BenchmarkWaiters(b *testing.B) {
	const n = 1000
	c := benchCache(b, Options{})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	measure := func(wait func(), all func() bool) (bytes, goroutines float64, done func()) {
		var before, after runtime.MemStats
		var wg sync.WaitGroup
		runtime.GC()
		runtime.ReadMemStats(&before)
		was := runtime.NumGoroutine()
		for range n {
			wg.Go(wait)
		}
		redistest.WaitFor(b, time.Minute, "all to wait", all)
		runtime.ReadMemStats(&after)
		bytes = float64(after.HeapInuse+after.StackInuse) - float64(before.HeapInuse+before.StackInuse)
		return bytes / n, float64(runtime.NumGoroutine()-was-n) / n, wg.Wait
	}
	var ours, base, more float64
	for i := range b.N {
		let := make(chan struct{})
		var waiting atomic.Int64
		plain, _, done := measure(func() {
			waiting.Add(1)
			select {
			case <-let:
			case <-ctx.Done():
			}
		}, func() bool { return waiting.Load() == n })
		close(let)
		done()
		let = make(chan struct{})
		shared := c.Stats().LoadsShared
		bytes, goroutines, done := measure(func() {
			c.GetOrLoad(ctx, strconv.Itoa(i), 0, func(context.Context) ([]byte, error) { <-let; return nil, nil })
		}, func() bool { return c.Stats().LoadsShared-shared == n-1 })
		close(let)
		done()
		ours, base, more = ours+bytes, base+plain, more+goroutines
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric((ours-base)/float64(b.N), "more-B/waiter")
	b.ReportMetric(base/float64(b.N), "base-B/waiter")
	b.ReportMetric(more/float64(b.N), "goroutines/waiter")
	if s := c.Stats(); s.Loads != uint64(b.N) {
		b.Errorf("%d loads of %d keys", s.Loads, b.N)
	}
}

// BenchmarkColdKey is a load with a lease beside one without, of a source that
// answers at once: the most that a lease can cost.
func BenchmarkColdKey(b *testing.B) {
	s := redistest.Start(b)
	o := Options{Redis: rueidis.ClientOption{InitAddress: []string{s.Addr()}}}
	leased := benchCache(b, o)
	o.Load.Lease = -1
	free := benchCache(b, o)
	ctx := context.Background()
	for _, c := range []*Cache{leased, free} {
		if err := c.WaitReady(ctx); err != nil {
			b.Fatal(err)
		}
	}
	value := make([]byte, 100)
	load := func(context.Context) ([]byte, error) { return value, nil }
	var fresh atomic.Int64 // each call has a key of its own, in every run
	cold := func() string { return fmt.Sprint("k", fresh.Add(1)) }
	for _, g := range []int{1, 64} {
		b.Run(fmt.Sprintf("callers=%d", g), func(b *testing.B) {
			versus(b, g,
				func(j, i int) { leased.GetOrLoad(ctx, cold(), time.Minute, load) },
				func(j, i int) { free.GetOrLoad(ctx, cold(), time.Minute, load) })
		})
	}
	if n := leased.Stats().Loads + free.Stats().Loads; n != uint64(fresh.Load()) {
		b.Errorf("%d loads of %d keys", n, fresh.Load())
	}
}

// BenchmarkDeleteVoids is a Delete that takes the key's lease away beside one that
// does not.
func BenchmarkDeleteVoids(b *testing.B) {
	s := redistest.Start(b)
	o := Options{Redis: rueidis.ClientOption{InitAddress: []string{s.Addr()}}}
	voids := benchCache(b, o)
	o.Load.Lease = -1
	plain := benchCache(b, o)
	ctx := context.Background()
	for _, c := range []*Cache{voids, plain} {
		if err := c.WaitReady(ctx); err != nil {
			b.Fatal(err)
		}
	}
	keys := benchKeys(512)
	for _, g := range []int{1, 64} {
		b.Run(fmt.Sprintf("callers=%d", g), func(b *testing.B) {
			versus(b, g,
				func(j, i int) { voids.Delete(ctx, keys[(i+j)%len(keys)]) },
				func(j, i int) { plain.Delete(ctx, keys[(i+j)%len(keys)]) })
		})
	}
}

// BenchmarkGetOrLoadRemote is a GetOrLoad that Redis answers beside such a Get.
func BenchmarkGetOrLoadRemote(b *testing.B) {
	s := redistest.Start(b)
	c := benchCache(b, Options{
		Redis: rueidis.ClientOption{InitAddress: []string{s.Addr()}}, Tracking: TrackingOptions{UntrackedTTL: time.Millisecond, Mode: TrackOff},
	})
	ctx := context.Background()
	if err := c.WaitReady(ctx); err != nil {
		b.Fatal(err)
	}
	keys := benchKeys(1 << 14)
	for _, k := range keys {
		s.MustDo("SET", k, "v")
	}
	load := func(context.Context) ([]byte, error) { return nil, ErrNotFound }
	versus(b, 1,
		func(_, i int) { c.GetOrLoad(ctx, keys[i%len(keys)], time.Hour, load) },
		func(_, i int) { c.Get(ctx, keys[(i+len(keys)/2)%len(keys)]) })
}

// BenchmarkLoadCircuitOpen is a load of an absent key while Redis is away, of a source that
// answers at once, beside a Set. With a deadline each call has a context of its own.
func BenchmarkLoadCircuitOpen(b *testing.B) {
	_, c := withoutRedis(b)
	keys := benchKeys(1 << 14)
	value := make([]byte, 100)
	load := func(context.Context) ([]byte, error) { return value, nil }
	var fresh atomic.Int64
	for _, deadline := range []bool{false, true} {
		bound := func() (context.Context, context.CancelFunc) {
			if deadline {
				return context.WithTimeout(context.Background(), time.Minute)
			}
			return context.Background(), func() {}
		}
		for _, g := range []int{1, 64} {
			b.Run(fmt.Sprintf("deadline=%v/callers=%d", deadline, g), func(b *testing.B) {
				versus(b, g,
					func(_, _ int) {
						ctx, cancel := bound()
						c.GetOrLoad(ctx, "load"+strconv.FormatInt(fresh.Add(1), 10), time.Hour, load)
						cancel()
					},
					func(j, i int) {
						ctx, cancel := bound()
						c.Set(ctx, keys[(i+j)&(1<<14-1)], value, time.Hour)
						cancel()
					})
			})
		}
	}
	if n := c.Stats().Loads; n != uint64(fresh.Load()) {
		b.Errorf("%d loads of %d keys", n, fresh.Load())
	}
}
