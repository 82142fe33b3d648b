package goredis_test

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast/goredis"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/go-redis/v9"
)

// turns is how often the two sides take turns within one benchmark, so that what
// disturbs one disturbs the other. The ratio is the median of the turns' ratios.
const turns = 10

// versus runs b.N calls with the cache, and a share of them without it, from g callers
// each. It reports how many times the throughput is that of go-redis alone.
func versus(b *testing.B, g int, with, without func(i int)) {
	b.Helper()
	b.ReportAllocs()
	n := max(1, b.N/turns/g)
	base := max(1, n/10)
	run := func(n int, op func(i int)) float64 {
		var wg sync.WaitGroup
		start := time.Now()
		for j := range g {
			wg.Go(func() {
				for i := range n {
					op(j*n + i)
				}
			})
		}
		wg.Wait()
		return float64(time.Since(start)) / float64(n*g)
	}
	run(base, without) // its connections are dialled
	var mine, other float64
	var times []float64
	b.ResetTimer()
	for range turns {
		b.StopTimer()
		o := run(base, without)
		b.StartTimer()
		m := run(n, with)
		mine, other = mine+m, other+o
		times = append(times, o/m)
	}
	b.StopTimer()
	sort.Float64s(times)
	b.ReportMetric(mine/turns, "ns/op")
	b.ReportMetric(other/turns, "base-ns/op")
	b.ReportMetric((times[turns/2-1]+times[turns/2])/2, "x")
}

// BenchmarkHook is go-redis with a cache before it beside go-redis alone, both on
// loopback. x is how many times the throughput is. Target of GET at 64 callers: 10. INCR
// goes to Redis either way: what it costs to ask whether Redis is there is a loss.
func BenchmarkHook(b *testing.B) {
	ctx := context.Background()
	s := redistest.Start(b)
	with, _ := attached(b, at(s.Addr()))
	without := plain(b, &redis.Options{Addr: s.Addr()})
	const n = 1 << 9
	keys := make([]string, n)
	for i := range keys {
		keys[i] = fmt.Sprint("key:", i)
		must(b, with.Set(ctx, keys[i], fmt.Sprintf("%0100d", i), time.Hour).Err())
	}
	key := func(i int) string { return keys[(i*7)&(n-1)] }
	for range 2 {
		for i := range keys {
			must(b, with.Get(ctx, keys[i]).Err())
		}
	}
	some := func(i int) []string { return keys[(i*7)&(n/2-1):][:10] }
	for _, op := range []struct {
		name string
		do   func(rdb *redis.Client, i int) error
	}{
		{"GET", func(rdb *redis.Client, i int) error { return rdb.Get(ctx, key(i)).Err() }},
		{"MGET10", func(rdb *redis.Client, i int) error { return rdb.MGet(ctx, some(i)...).Err() }},
		{"pipeline10", func(rdb *redis.Client, i int) error {
			_, err := rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
				for _, k := range some(i) {
					p.Get(ctx, k)
				}
				return nil
			})
			return err
		}},
		{"INCR", func(rdb *redis.Client, i int) error { return rdb.Incr(ctx, "counter").Err() }},
		{"SET", func(rdb *redis.Client, i int) error { return rdb.Set(ctx, "written", "v", time.Hour).Err() }},
	} {
		for _, g := range []int{1, 64} {
			b.Run(fmt.Sprintf("%s/%d", op.name, g), func(b *testing.B) {
				each := func(rdb *redis.Client) func(i int) {
					return func(i int) {
						if err := op.do(rdb, i); err != nil {
							b.Error(err)
						}
					}
				}
				versus(b, g, each(with), each(without))
			})
		}
	}
}

// BenchmarkOutage is what 64 callers meet when Redis is killed or stopped for two
// seconds: nine of ten calls are GET of a key that was read before, the others INCR. It
// takes as long as go-redis alone does, so run it with -benchtime 1x.
func BenchmarkOutage(b *testing.B) {
	for _, what := range []string{"killed", "stopped"} {
		for _, who := range []string{"attached", "limiter", "plain"} {
			b.Run(what+"/"+who, func(b *testing.B) {
				for range b.N {
					outage(b, what, who)
				}
			})
		}
	}
}

// counts are of one kind of call.
type counts struct {
	calls, failed int
	slowest       time.Duration
}

func (c *counts) add(took time.Duration, err error) {
	c.calls++
	if err != nil && !errors.Is(err, redis.Nil) {
		c.failed++
	}
	c.slowest = max(c.slowest, took)
}

func outage(b *testing.B, what, who string) {
	ctx := context.Background()
	s := redistest.Start(b)
	var rdb *redis.Client
	switch who {
	case "attached":
		rdb, _ = attached(b, at(s.Addr()))
	case "limiter":
		c := open(b, at(s.Addr()))
		ready(b, c)
		rdb = plain(b, &redis.Options{Addr: s.Addr(), Limiter: goredis.NewLimiter(c)})
	default:
		rdb = plain(b, &redis.Options{Addr: s.Addr()})
	}
	must(b, rdb.Set(ctx, "k", "v", 0).Err())
	must(b, rdb.Get(ctx, "k").Err())

	var reads, writes counts
	var mu sync.Mutex
	var wg sync.WaitGroup
	done := make(chan struct{})
	for range 64 {
		wg.Go(func() {
			pace := time.NewTicker(5 * time.Millisecond)
			defer pace.Stop()
			for i := 0; ; i++ {
				select {
				case <-done:
					return
				case <-pace.C:
				}
				kind, f := &reads, func() error { return rdb.Get(ctx, "k").Err() }
				if i%10 == 0 {
					kind, f = &writes, func() error { return rdb.Incr(ctx, "n").Err() }
				}
				took, err := timed(f)
				mu.Lock()
				kind.add(took, err)
				mu.Unlock()
			}
		})
	}
	<-time.After(300 * time.Millisecond)
	if what == "killed" {
		s.Kill()
		<-time.After(2 * time.Second)
	} else {
		s.Pause()
		<-time.After(2 * time.Second)
	}
	close(done)
	wg.Wait() // those of go-redis alone take longer than the two seconds
	if what == "stopped" {
		s.Resume()
	}
	report := func(name string, c counts) {
		b.ReportMetric(float64(c.calls), name+"s")
		b.ReportMetric(float64(c.failed), name+"s-failed")
		b.ReportMetric(float64(c.slowest)/1e6, name+"-slowest-ms")
	}
	report("GET", reads)
	report("INCR", writes)
}
