package holdfast

import (
	"context"
	"slices"
	"sort"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/rueidis"
)

// BenchmarkOtherShards is the 99th percentile of a Get that goes to Redis, on
// the shards that are there, while the third hangs and callers want its keys,
// too; beside the same with all three up, in turns. Target: ratio at most 1.2.
//
//	go test -run '^$' -bench OtherShards -benchtime 10x
func BenchmarkOtherShards(b *testing.B) {
	r := redistest.StartCluster(b, 3, 0)
	c := benchCache(b, Options{Redis: rueidis.ClientOption{InitAddress: r.Addrs()}})
	ctx := context.Background()
	if err := c.WaitReady(ctx); err != nil {
		b.Fatal(err)
	}
	// Misses are not remembered: each of these Gets goes to its node.
	var there, away []string
	for i := 0; len(there) < 4096 || len(away) < 4096; i++ {
		if key := "absent:" + strconv.Itoa(i); redistest.Slot(key) < 16384/3 {
			away = append(away, key)
		} else {
			there = append(there, key)
		}
	}
	const callers, each = 8, 2500
	p99 := func() time.Duration {
		took := make([][]time.Duration, callers)
		var wg sync.WaitGroup
		for g := range callers {
			wg.Go(func() {
				for i := range each {
					start := time.Now()
					c.Get(ctx, there[(i*callers+g)%len(there)])
					took[g] = append(took[g], time.Since(start))
					if i%3 == 0 {
						c.Get(ctx, away[(i*callers+g)%len(away)])
					}
				}
			})
		}
		wg.Wait()
		all := slices.Concat(took...)
		slices.Sort(all)
		return all[len(all)*99/100]
	}
	await := func(want State) {
		redistest.WaitFor(b, 30*time.Second, "state "+want.String(), func() bool {
			c.Get(ctx, away[0])
			return c.Health().State == want
		})
	}
	p99() // warm
	var before, during time.Duration
	var ratios []float64
	for b.Loop() {
		await(Up)
		up := p99()
		r.Nodes()[0].Pause()
		await(Down)
		down := p99()
		r.Nodes()[0].Resume()
		before, during = before+up, during+down
		ratios = append(ratios, float64(down)/float64(up))
	}
	sort.Float64s(ratios)
	b.ReportMetric(0, "ns/op") // the turns' length says nothing
	b.ReportMetric(float64(before.Microseconds())/float64(len(ratios)), "p99-before-us")
	b.ReportMetric(float64(during.Microseconds())/float64(len(ratios)), "p99-during-us")
	b.ReportMetric(ratios[len(ratios)/2], "ratio")
}
