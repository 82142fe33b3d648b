package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/bench/worker"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/rueidis"
)

const (
	hitKeys = 512
	// turns is how often the two sides take turns within one benchmark, so that what
	// disturbs one disturbs the other.
	turns = 10
	// leastReads is how many reads a turn has at least: fewer say nothing.
	leastReads = 2000
)

type user struct {
	ID    int64
	Name  string
	Email string
	Tags  []string
}

// hitValue is what all keys hold: JSON, for the Typed.
func hitValue() []byte {
	b, err := json.Marshal(user{7, "Ada", "ada@example.org", []string{"a", "b"}})
	if err != nil {
		panic(err)
	}
	return b
}

// hit is a read that is answered within the process.
type hit struct {
	name string
	get  func(key string) error
}

type hitOutcome struct {
	name              string
	goroutines        int
	ns, ratio, allocs float64
}

// BenchmarkHit is a read that is answered within the process, beside one of
// holdfast's Cache.Get (base-ns/op), in turns.
//
//	go test -run '^$' -bench Hit -benchtime 1s
func BenchmarkHit(b *testing.B) {
	keys := make([]string, hitKeys)
	for i := range keys {
		keys[i] = "hit:" + strconv.Itoa(i)
	}
	all, local := warmHits(b, keys)
	for _, g := range []int{1, 8} {
		for _, h := range all {
			b.Run(fmt.Sprintf("goroutines=%d/%s", g, h.name), func(b *testing.B) {
				o := beside(b, g, keys, h, all[0])
				keepHit(o)
				b.ReportMetric(o.allocs, "allocs/op")
			})
		}
	}
	local(b)
}

func keepHit(o hitOutcome) {
	same := func(k hitOutcome) bool { return k.name == o.name && k.goroutines == o.goroutines }
	if i := slices.IndexFunc(tables.hits, same); i >= 0 {
		tables.hits[i] = o
		return
	}
	tables.hits = append(tables.hits, o)
}

// beside runs b.N reads of h, and as many of base, on g goroutines.
func beside(b *testing.B, g int, keys []string, h, base hit) hitOutcome {
	b.Helper()
	n := max(leastReads, b.N/turns) / g
	run := func(h hit, turn int) time.Duration {
		var wg sync.WaitGroup
		start := time.Now()
		for j := range g {
			wg.Go(func() {
				for i := range n {
					if err := h.get(keys[((turn*n+i)*7+j*1021)%len(keys)]); err != nil {
						b.Errorf("%s: %v", h.name, err)
						return
					}
				}
			})
		}
		wg.Wait()
		return time.Since(start)
	}
	var mine, other time.Duration
	ratios := make([]float64, 0, turns)
	for turn := range turns {
		o := run(base, turn)
		m := run(h, turn)
		mine, other = mine+m, other+o
		ratios = append(ratios, float64(m)/float64(o))
	}
	slices.Sort(ratios)
	ops := float64(turns * n * g)
	o := hitOutcome{
		name: h.name, goroutines: g, ns: float64(mine) / ops, ratio: (ratios[turns/2-1] + ratios[turns/2]) / 2,
		allocs: testing.AllocsPerRun(100, func() { h.get(keys[0]) }),
	}
	b.ReportMetric(o.ns, "ns/op")
	b.ReportMetric(float64(other)/ops, "base-ns/op")
	b.ReportMetric(o.ratio, "ratio")
	return o
}

// warmHits opens every cache on one server and has it read the keys. The first hit is
// the base. local fails the test if a read of holdfast's was not answered locally since.
func warmHits(tb testing.TB, keys []string) (all []hit, local func(testing.TB)) {
	tb.Helper()
	ctx := context.Background()
	server := redistest.Start(tb)
	for _, k := range keys {
		server.MustDo("SET", k, string(hitValue()))
	}
	c, err := holdfast.New(holdfast.Options{
		Redis: rueidis.ClientOption{InitAddress: []string{server.Addr()}},
		Local: holdfast.LocalOptions{MaxTTL: time.Hour},
		// To warm up is not measured.
		Timeout: patient,
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close() })
	if err := c.WaitReady(ctx); err != nil {
		tb.Fatal(err)
	}
	setup := worker.Setup{Addr: server.Addr(), Budget: 10 * time.Second}
	s, err := newSturdyc(setup)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(s.Close)
	l, err := newLeasing(setup)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(l.Close)
	plain, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{server.Addr()}})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(plain.Close)

	load := func(context.Context) ([]byte, error) { return hitValue(), nil }
	typed := holdfast.NewTyped(c, holdfast.JSON[*user]())
	all = []hit{
		{"holdfast Cache.Get", func(key string) error { _, err := c.Get(ctx, key); return err }},
		{"holdfast Cache.GetOrLoad", func(key string) error { _, err := c.GetOrLoad(ctx, key, keptFor, load); return err }},
		{"holdfast Typed.Get", func(key string) error { _, err := typed.Get(ctx, key); return err }},
		{"sturdyc Get", func(key string) error {
			if _, ok := s.cache.Get(key); !ok {
				return fmt.Errorf("a miss")
			}
			return nil
		}},
		{"sturdyc GetOrFetch", func(key string) error { _, err := s.cache.GetOrFetch(ctx, key, load); return err }},
		{"rueidis DoCache", func(key string) error {
			_, err := plain.DoCache(ctx, plain.B().Get().Key(key).Cache(), keptFor).ToString()
			return err
		}},
		{leases, func(key string) error { _, err := l.get(ctx, key, load); return err }},
	}
	for _, key := range keys {
		s.cache.Set(key, hitValue())
		for _, h := range all {
			if err := h.get(key); err != nil {
				tb.Fatalf("%s: %v", h.name, err)
			}
		}
	}
	before := c.Stats()
	return all, func(tb testing.TB) {
		after := c.Stats()
		if n := after.RemoteHits - before.RemoteHits + after.Misses - before.Misses + after.Loads - before.Loads; n > 0 {
			tb.Errorf("%d of holdfast's reads were not answered locally", n)
		}
	}
}
