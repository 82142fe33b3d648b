package holdfast

import (
	"context"
	"fmt"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/rueidis"
)

// newKeys numbers the keys of the benchmarks below, so that no key is used twice.
var newKeys atomic.Int64

// keysOfTurns returns a function that returns another key for each operation of versus.
func keysOfTurns(n, g int) func(goroutine, i int) string {
	base := int(newKeys.Add(int64(n)+turns*int64(g))) - n - turns*g
	keys := make([]string, n+turns*g)
	for i := range keys {
		keys[i] = "bench:new:" + strconv.Itoa(base+i)
	}
	return func(goroutine, i int) string { return keys[i*g+goroutine] }
}

// tracked is a Cache with tracking, and a raw rueidis client of one wire to the same server.
func trackedBesideRueidis(b *testing.B) (*Cache, rueidis.Client) {
	b.Helper()
	server := redistest.Start(b)
	raw, err := rueidis.NewClient(rueidis.ClientOption{
		InitAddress: []string{server.Addr()}, ForceSingleClient: true, PipelineMultiplex: -1,
		AlwaysPipelining: true, DisableCache: true,
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(raw.Close)
	c := benchCache(b, Options{Redis: rueidis.ClientOption{InitAddress: []string{server.Addr()}}, Timeout: time.Second})
	if err := c.WaitReady(context.Background()); err != nil {
		b.Fatal(err)
	}
	if !c.Health().Tracking {
		b.Fatal("no tracking")
	}
	return c, raw
}

// BenchmarkNewSet is a Set of 100 B under a new key beside a raw rueidis SET. Targets: ratio at
// most 1.2 at 1 caller and 1.4 at 64, CPU 1.6, 6 allocs.
func BenchmarkNewSet(b *testing.B) {
	ctx := context.Background()
	c, raw := trackedBesideRueidis(b)
	value := make([]byte, 100)
	for _, g := range []int{1, 64} {
		b.Run(fmt.Sprintf("callers=%d", g), func(b *testing.B) {
			ours, theirs := keysOfTurns(b.N, g), keysOfTurns(b.N, g)
			versus(b, g,
				func(j, i int) {
					if err := c.Set(ctx, ours(j, i), value, 0); err != nil {
						b.Error(err)
					}
				},
				func(j, i int) {
					raw.Do(ctx, raw.B().Set().Key(theirs(j, i)).Value(rueidis.BinaryString(value)).Build())
				})
		})
	}
}

// BenchmarkFirstRead is the first Get of a key that Redis has, with a value of 100 B, beside a raw
// rueidis GET. Targets: ratio at most 1.15 at 1 caller and 1.25 at 64, CPU 1.5.
func BenchmarkFirstRead(b *testing.B) {
	ctx := context.Background()
	c, raw := trackedBesideRueidis(b)
	value := rueidis.BinaryString(make([]byte, 100))
	for _, g := range []int{1, 64} {
		b.Run(fmt.Sprintf("callers=%d", g), func(b *testing.B) {
			keys := keysOfTurns(b.N, g)
			n := max(1, b.N/turns/g) * turns
			for i := range n {
				cmds := make(rueidis.Commands, 0, g)
				for j := range g {
					cmds = append(cmds, raw.B().Set().Key(keys(j, i)).Value(value).Build())
				}
				for _, reply := range raw.DoMulti(ctx, cmds...) {
					if err := reply.Error(); err != nil {
						b.Fatal(err)
					}
				}
			}
			before := c.Stats()
			versus(b, g,
				func(j, i int) {
					if _, err := c.Get(ctx, keys(j, i)); err != nil {
						b.Error(err)
					}
				},
				func(j, i int) { raw.Do(ctx, raw.B().Get().Key(keys(j, i)).Build()).AsBytes() })
			if got := c.Stats().RemoteHits - before.RemoteHits; got != uint64(n*g) {
				b.Errorf("%d of %d reads went to Redis", got, n*g)
			}
		})
	}
}
