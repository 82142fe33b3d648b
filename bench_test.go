package holdfast

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sort"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dgraph-io/ristretto/v2"
	"github.com/holdfast-cache/holdfast/internal/keyhash"
	"github.com/holdfast-cache/holdfast/internal/local"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/rueidis"
)

// Every figure stands beside its baseline from the same run: the two take turns,
// so that what disturbs one disturbs the other, and the ratio is the median of
// the turns' ratios.
//
//	go test -run '^$' -bench . -count 10 | tee bench.txt && benchstat bench.txt

// turns is how often the two sides take turns within one benchmark.
const turns = 10

// versus runs b.N operations of ours and of base on each of g goroutines, in
// turns. It reports ours as ns/op, the baseline as base-ns/op, and their ratio; and the CPU time of
// this process, without that of the server.
func versus(b *testing.B, g int, ours, base func(goroutine, i int)) {
	b.Helper()
	b.ReportAllocs()
	n := max(1, b.N/turns/g)
	run := func(op func(goroutine, i int), turn int) time.Duration {
		var wg sync.WaitGroup
		start := time.Now()
		for j := range g {
			wg.Go(func() {
				for i := range n {
					op(j, turn*n+i)
				}
			})
		}
		wg.Wait()
		return time.Since(start)
	}
	var mine, other, mineCPU, otherCPU time.Duration
	ratios := make([]float64, 0, turns)
	b.ResetTimer()
	for turn := range turns {
		b.StopTimer()
		cpu := cpuTime()
		o := run(base, turn)
		between := cpuTime()
		b.StartTimer()
		m := run(ours, turn)
		mine, other = mine+m, other+o
		mineCPU, otherCPU = mineCPU+cpuTime()-between, otherCPU+between-cpu
		ratios = append(ratios, float64(m)/float64(o))
	}
	b.StopTimer()
	sort.Float64s(ratios)
	ops := float64(turns * n * g)
	b.ReportMetric(float64(mine)/ops, "ns/op")
	b.ReportMetric(float64(other)/ops, "base-ns/op")
	b.ReportMetric((ratios[turns/2-1]+ratios[turns/2])/2, "ratio")
	if otherCPU > 0 {
		b.ReportMetric(float64(mineCPU)/ops, "cpu-ns/op")
		b.ReportMetric(float64(mineCPU)/float64(otherCPU), "cpu-ratio")
	}
}

func benchCache(b *testing.B, o Options) *Cache {
	b.Helper()
	c, err := New(o)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { c.Close() })
	return c
}

func benchKeys(n int) []string {
	keys := make([]string, n)
	for i := range keys {
		keys[i] = "bench:key:" + strconv.Itoa(i)
	}
	return keys
}

// BenchmarkLocalHit is a hit in the local tier beside a raw ristretto Get of an
// entry that was set with a TTL. Target: ratio at most 1.0, 0 allocs.
func BenchmarkLocalHit(b *testing.B) {
	const n = 1 << 9
	keys := benchKeys(n)
	value := make([]byte, 100)
	raw, err := ristretto.NewCache(&ristretto.Config[string, []byte]{
		NumCounters: 1 << 20, MaxCost: 64 << 20, BufferItems: 64, IgnoreInternalCost: true,
	})
	if err != nil {
		b.Fatal(err)
	}
	defer raw.Close()
	for _, k := range keys {
		raw.SetWithTTL(k, value, 100, time.Hour)
		raw.Wait()
	}
	ctx := context.Background()
	c := freshCopies(b, keys, value)
	b.Cleanup(func() {
		if h := c.Stats(); h.Misses > 0 {
			b.Errorf("%d misses among the hits", h.Misses)
		}
	})
	for _, g := range []int{1, 2, 8} {
		b.Run(fmt.Sprintf("goroutines=%d", g), func(b *testing.B) {
			before := c.Stats()
			versus(b, g,
				func(j, i int) { c.Get(ctx, keys[(i*7+j*1021)&(n-1)]) },
				func(j, i int) { raw.Get(keys[(i*7+j*1021)&(n-1)]) })
			if after := c.Stats(); after.RemoteHits != before.RemoteHits {
				b.Errorf("%d of the hits were not local", after.RemoteHits-before.RemoteHits)
			}
		})
	}
}

// BenchmarkEmptyJournal is what the journal costs a hit in the local tier while it
// is empty: a hit as it is, beside one that does not ask it. Target: ratio at most
// 1.02.
func BenchmarkEmptyJournal(b *testing.B) {
	const n = 1 << 9
	keys := benchKeys(n)
	c := freshCopies(b, keys, make([]byte, 100))
	ctx := context.Background()
	versus(b, 1,
		func(_, i int) { c.Get(ctx, keys[(i*7)&(n-1)]) },
		func(_, i int) { getUnfenced(c, ctx, keys[(i*7)&(n-1)]) })
}

// getUnfenced is Get without the look at the journal.
func getUnfenced(c *Cache, ctx context.Context, key string) ([]byte, error) {
	if err := enterable(ctx, !c.inflight.Closed.Load()); err != nil {
		return nil, err
	}
	h := c.local.Hash(key)
	e, fresh := lookUnfenced(c, h)
	if fresh {
		c.local.CountHit(h)
		return e.Bytes(), nil
	}
	answer, err := c.readCounted(ctx, "get", h, key, e)
	return answer.Value, err
}

func lookUnfenced(c *Cache, h keyhash.Hash) (e *local.Entry, fresh bool) {
	if e = c.local.Get(h); e == nil {
		return nil, false
	}
	end := e.FreshEnd()
	return e, c.coarse.Before(end) || c.clock.Now() < end
}

// freshCopies is a Cache with fresh copies of all keys in its local tier.
func freshCopies(b *testing.B, keys []string, value []byte) *Cache {
	b.Helper()
	server := redistest.Start(b)
	c := benchCache(b, Options{
		Redis: rueidis.ClientOption{InitAddress: []string{server.Addr()}},
		Local: LocalOptions{MaxTTL: time.Hour},
	})
	ctx := context.Background()
	if err := c.WaitReady(ctx); err != nil {
		b.Fatal(err)
	}
	for _, k := range keys {
		if err := c.Set(ctx, k, value, time.Hour); err != nil {
			b.Fatal(err)
		}
	}
	if err := c.Drain(ctx); err != nil {
		b.Fatal(err)
	}
	for _, k := range keys {
		if _, err := c.Get(ctx, k); err != nil {
			b.Fatal(err)
		}
	}
	return c
}

// withoutRedis is a Cache whose Redis is away, and ristretto alone.
func withoutRedis(b *testing.B) (*ristretto.Cache[string, []byte], *Cache) {
	raw, err := ristretto.NewCache(&ristretto.Config[string, []byte]{
		NumCounters: 1 << 20, MaxCost: 64 << 20, BufferItems: 64,
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(raw.Close)
	return raw, benchCache(b, Options{Redis: rueidis.ClientOption{InitAddress: []string{redistest.FreeAddr(b)}}})
}

// BenchmarkMissCircuitOpen: a Get of an absent key while Redis is away. Target:
// at most 300 ns and 0 allocs. The baseline is ristretto's own miss.
func BenchmarkMissCircuitOpen(b *testing.B) {
	raw, c := withoutRedis(b)
	ctx := context.Background()
	keys := benchKeys(1 << 14)
	versus(b, 1,
		func(_, i int) { c.Get(ctx, keys[i&(1<<14-1)]) },
		func(_, i int) { raw.Get(keys[i&(1<<14-1)]) })
}

// BenchmarkSetCircuitOpen: a Set of 100 B while Redis is away, into the local
// tier and the journal. Target: at most 3 us. The baseline is ristretto's Set.
func BenchmarkSetCircuitOpen(b *testing.B) {
	raw, c := withoutRedis(b)
	ctx := context.Background()
	keys := benchKeys(1 << 14)
	value := make([]byte, 100)
	versus(b, 1,
		func(_, i int) { c.Set(ctx, keys[i&(1<<14-1)], value, time.Hour) },
		func(_, i int) { raw.SetWithTTL(keys[i&(1<<14-1)], append([]byte(nil), value...), 400, time.Hour) })
}

// BenchmarkSetJournalDir: a Set of 100 B while Redis is away, with Journal.Dir,
// beside one without.
func BenchmarkSetJournalDir(b *testing.B) {
	for _, policy := range []FsyncPolicy{FsyncNo, FsyncEverySecond, FsyncAlways} {
		b.Run(policy.String(), func(b *testing.B) {
			away := Options{Redis: rueidis.ClientOption{InitAddress: []string{redistest.FreeAddr(b)}}}
			plain := benchCache(b, away)
			away.Journal.Dir, away.Journal.Fsync = b.TempDir(), policy
			c := benchCache(b, away)
			ctx := context.Background()
			keys := benchKeys(1 << 14)
			value := make([]byte, 100)
			versus(b, 1,
				func(_, i int) { c.Set(ctx, keys[i&(1<<14-1)], value, time.Hour) },
				func(_, i int) { plain.Set(ctx, keys[i&(1<<14-1)], value, time.Hour) })
		})
	}
}

// BenchmarkRemoteGet is a Get that goes to Redis and reads the TTL with the
// value, with tracking on, beside a raw rueidis GET on one wire. Targets: at 64
// callers at least 0.8x its throughput (ratio at most 1.25), at 1 caller at most
// 1.2x its latency.
func BenchmarkRemoteGet(b *testing.B) {
	const n = 1 << 16
	keys := benchKeys(n)
	ctx := context.Background()
	c, raw := besideRueidis(b, keys)
	for _, g := range []int{1, 64} {
		b.Run(fmt.Sprintf("callers=%d", g), func(b *testing.B) {
			before := c.Stats()
			versus(b, g,
				func(j, i int) { c.Get(ctx, keys[(i*64+j)&(n-1)]) },
				func(j, i int) {
					raw.Do(ctx, raw.B().Get().Key(keys[(i*64+j)&(n-1)]).Build()).AsBytes()
				})
			after := c.Stats()
			b.ReportMetric(100*float64(after.LocalHits-before.LocalHits)/float64(max(1, after.LocalHits+after.RemoteHits-before.LocalHits-before.RemoteHits)), "local-%")
		})
	}
}

// BenchmarkRemoteSet is a Set of 100 B that is read back, with tracking on, beside
// a raw rueidis SET on one wire.
func BenchmarkRemoteSet(b *testing.B) {
	const n = 1 << 16
	keys := benchKeys(n)
	ctx := context.Background()
	c, raw := besideRueidis(b, keys)
	value := make([]byte, 100)
	for _, g := range []int{1, 64} {
		b.Run(fmt.Sprintf("callers=%d", g), func(b *testing.B) {
			versus(b, g,
				func(j, i int) { c.Set(ctx, keys[(i*64+j)&(n-1)], value, 0) },
				func(j, i int) {
					raw.Do(ctx, raw.B().Set().Key(keys[(i*64+j)&(n-1)]).Value(rueidis.BinaryString(value)).Build())
				})
		})
	}
}

// BenchmarkMany is a batch of 1,000 and of 100,000 keys of 100 B, each of which goes to
// Redis, beside a raw rueidis pipeline of SETs and a raw rueidis MGET. An operation is a batch.
// Targets: ratio at most 1.5 and 1.3.
//
//	go test -run '^$' -bench Many -benchtime 20x
func BenchmarkMany(b *testing.B) {
	value := make([]byte, 100)
	for _, n := range []int{1_000, 100_000} {
		keys := benchKeys(n)
		items := make(map[string][]byte, n)
		for _, key := range keys {
			items[key] = value
		}
		ctx := context.Background()
		c, raw := besideRueidis(b, keys)
		pipeline := func(build func(key string) rueidis.Completed) {
			cmds := make([]rueidis.Completed, n)
			for i, key := range keys {
				cmds[i] = build(key)
			}
			for _, res := range raw.DoMulti(ctx, cmds...) {
				if err := res.Error(); err != nil {
					b.Fatal(err)
				}
			}
		}
		b.Run(fmt.Sprintf("SetMany/keys=%d", n), func(b *testing.B) {
			versus(b, 1,
				func(_, _ int) {
					if err := c.SetMany(ctx, items, 0); err != nil {
						b.Fatal(err)
					}
				},
				func(_, _ int) {
					pipeline(func(key string) rueidis.Completed {
						return raw.B().Set().Key(key).Value(rueidis.BinaryString(value)).Build()
					})
				})
		})
		b.Run(fmt.Sprintf("GetMany/keys=%d", n), func(b *testing.B) {
			versus(b, 1,
				func(_, _ int) {
					if found, err := c.GetMany(ctx, keys...); err != nil || len(found) != n {
						b.Fatal(len(found), err)
					}
				},
				func(_, _ int) {
					values, err := raw.Do(ctx, raw.B().Mget().Key(keys...).Build()).ToArray()
					if err != nil || len(values) != n {
						b.Fatal(len(values), err)
					}
				})
		})
	}
}

// BenchmarkInvalidated is what one key that the server tells of costs the goroutine
// that reads the connection, beside a ristretto Get. Targets: at most 1 us, 0 allocs.
func BenchmarkInvalidated(b *testing.B) {
	const n = 1 << 14
	keys := benchKeys(2 * n)
	raw, err := ristretto.NewCache(&ristretto.Config[string, []byte]{
		NumCounters: 1 << 20, MaxCost: 64 << 20, BufferItems: 64,
	})
	if err != nil {
		b.Fatal(err)
	}
	defer raw.Close()
	c, _ := besideRueidis(b, keys[:n])
	ctx := context.Background()
	for _, k := range keys[:n] {
		if _, err := c.Get(ctx, k); err != nil {
			b.Fatal(err)
		}
	}
	for name, from := range map[string]int{"known": 0, "unknown": n} {
		b.Run(name, func(b *testing.B) {
			versus(b, 1,
				func(_, i int) { c.routes.SeedLink.Watcher.Invalidated(keys[from+i&(n-1)], true) },
				func(_, i int) { raw.Get(keys[from+i&(n-1)]) })
		})
	}
}

// besideRueidis is a Cache of which every read goes to Redis, and a raw rueidis
// client of one wire, both to a server that has the keys.
func besideRueidis(b *testing.B, keys []string) (*Cache, rueidis.Client) {
	b.Helper()
	server := redistest.Start(b)
	ctx := context.Background()
	raw, err := rueidis.NewClient(rueidis.ClientOption{
		InitAddress: []string{server.Addr()}, ForceSingleClient: true, PipelineMultiplex: -1,
		AlwaysPipelining: true, DisableCache: true,
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(raw.Close)
	// Nothing stays local for longer than it takes to ask again.
	c := benchCache(b, Options{
		Redis:   rueidis.ClientOption{InitAddress: []string{server.Addr()}},
		Local:   LocalOptions{MaxTTL: time.Millisecond},
		Timeout: time.Second,
	})
	if err := c.WaitReady(ctx); err != nil {
		b.Fatal(err)
	}
	if !c.Health().Tracking {
		b.Fatal("no tracking")
	}
	items := map[string][]byte{}
	for _, k := range keys {
		items[k] = make([]byte, 100)
	}
	if err := c.SetMany(ctx, items, 0); err != nil {
		b.Fatal(err)
	}
	return c, raw
}

// BenchmarkHeapMillion is the heap of a million local entries of 100 B beside
// raw ristretto's with the same counters and room. Target: ratio at most 1.5.
func BenchmarkHeapMillion(b *testing.B) {
	const n = 1_000_000
	const room = 640 << 20
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	key := func(i int) string { return "bench:key:" + strconv.Itoa(i) }
	for b.Loop() {
		start := heap()
		raw, err := ristretto.NewCache(&ristretto.Config[string, []byte]{
			NumCounters: room / 64, MaxCost: room, BufferItems: 64, IgnoreInternalCost: true,
		})
		if err != nil {
			b.Fatal(err)
		}
		for i := range n {
			raw.SetWithTTL(key(i), make([]byte, 100), 400, time.Hour)
			if i%1000 == 999 {
				raw.Wait()
			}
		}
		raw.Wait()
		base := heap() - start
		runtime.KeepAlive(raw)
		raw.Close()
		raw = nil

		start = heap()
		c, err := New(Options{Local: LocalOptions{MaxBytes: room}})
		if err != nil {
			b.Fatal(err)
		}
		for i := range n {
			if err := c.Set(context.Background(), key(i), make([]byte, 100), time.Hour); err != nil {
				b.Fatal(err)
			}
			for i%1000 == 999 && c.local.Bytes() > room/8*7 {
				runtime.Gosched()
			}
		}
		for c.local.Queued() > 0 {
			time.Sleep(time.Millisecond)
		}
		ours := heap() - start
		if got := c.Stats().LocalEntries; got < n*99/100 {
			b.Fatalf("only %d of %d entries are there", got, n)
		}
		c.Close()
		b.ReportMetric(float64(ours)/n, "B/entry")
		b.ReportMetric(float64(base)/n, "base-B/entry")
		b.ReportMetric(float64(ours)/float64(base), "ratio")
	}
}

// BenchmarkDrain is the replay of 65,536 journaled sets of 100 B, from the moment
// at which the first probe has succeeded until Drain returns, beside as many SETs of
// a raw rueidis client in pipelines of 256. Target: at most a second.
//
// Where Redis was cut off, which takes a proxy, it still has the keys, and each value
// is compared with the one that it replaces; where it was restarted it is empty, and
// there is nothing between the two. At Journal.MaxRate's default the journal is paced
// to 0.66s; the unpaced drain shows what the replay could do.
func BenchmarkDrain(b *testing.B) {
	for _, unpaced := range []bool{false, true} {
		rate, name := 0, ""
		if unpaced {
			rate, name = 1<<30, ",unpaced"
		}
		b.Run("cutoff"+name, func(b *testing.B) {
			server := redistest.Start(b)
			proxy := redistest.NewProxy(b, server.Addr())
			benchDrain(b, server, proxy.Addr(), rate, func() {
				proxy.SetMode(redistest.Refuse)
				proxy.CutAll()
			}, func() { proxy.SetMode(redistest.Pass) })
		})
		b.Run("restarted"+name, func(b *testing.B) {
			server := redistest.Start(b)
			benchDrain(b, server, server.Addr(), rate, server.Kill, func() { server.RestartEmpty() })
		})
	}
}

func benchDrain(b *testing.B, server *redistest.Server, addr string, rate int, away, back func()) {
	const n = 65536
	ctx := context.Background()
	keys := benchKeys(n)
	up := make(chan time.Time, 16)
	c := benchCache(b, Options{
		Redis:   rueidis.ClientOption{InitAddress: []string{addr}},
		Journal: JournalOptions{MaxKeys: n, MaxRate: rate},
		// Room for every local copy, also where the machine is busy: without one a
		// key's base is unknown, and the value from before is a conflict.
		Local: LocalOptions{MaxBytes: 512 << 20},
		Hooks: Hooks{OnStateChange: func(s StateChange) {
			if s.To == Up {
				up <- s.At
			}
		}},
	})
	var ours, base time.Duration
	for i := 0; b.Loop(); i++ {
		away()
		redistest.WaitFor(b, time.Minute, "the outage", func() bool {
			c.routes.Use()
			return c.Health().State != Up
		})
		value := append(make([]byte, 96), fmt.Sprintf("%04d", i)...)
		for _, k := range keys {
			if err := c.Set(ctx, k, value, 0); err != nil {
				b.Fatal(err)
			}
		}
		for len(up) > 0 {
			<-up
		}
		before := c.Stats()
		back()
		start := <-up
		if err := c.Drain(ctx); err != nil {
			b.Fatal(err)
		}
		ours += time.Since(start)
		if st := c.Stats(); st.Replayed-before.Replayed != n || st.Superseded != 0 {
			b.Fatalf("%d of %d were replayed: %+v", st.Replayed-before.Replayed, n, st)
		}
		if got := server.MustDo("GET", keys[n-1]); got != string(value) {
			b.Fatalf("redis holds %q", got)
		}
		base += benchSets(b, server.Addr(), "base:", keys, value)
	}
	b.ReportMetric(0, "ns/op") // the outage's length says nothing
	b.ReportMetric(ours.Seconds()/float64(b.N), "s/drain")
	b.ReportMetric(base.Seconds()/float64(b.N), "base-s")
	b.ReportMetric(float64(ours)/float64(base), "ratio")
}

// benchSets is how long a raw rueidis client takes to set the keys, in pipelines, and
// all with a prefix.
func benchSets(b *testing.B, addr, prefix string, keys []string, value []byte) time.Duration {
	b.Helper()
	raw, err := rueidis.NewClient(rueidis.ClientOption{
		InitAddress: []string{addr}, ForceSingleClient: true, PipelineMultiplex: -1,
		AlwaysPipelining: true, DisableCache: true,
	})
	if err != nil {
		b.Fatal(err)
	}
	defer raw.Close()
	start := time.Now()
	for batch := range slices.Chunk(keys, 256) {
		cmds := make(rueidis.Commands, 0, len(batch))
		for _, k := range batch {
			cmds = append(cmds, raw.B().Set().Key(prefix+k).Value(rueidis.BinaryString(value)).Build())
		}
		for _, reply := range raw.DoMulti(context.Background(), cmds...) {
			if err := reply.Error(); err != nil {
				b.Fatal(err)
			}
		}
	}
	return time.Since(start)
}

// BenchmarkInvalidation is the time from before a SET of another client until the
// local copy is gone. The baseline is a bare rueidis client's callback.
func BenchmarkInvalidation(b *testing.B) {
	server := redistest.Start(b)
	ctx := context.Background()
	client := func(o rueidis.ClientOption) rueidis.Client {
		o.InitAddress = []string{server.Addr()}
		o.ForceSingleClient, o.AlwaysPipelining, o.PipelineMultiplex = true, true, -1
		raw, err := rueidis.NewClient(o)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(raw.Close)
		return raw
	}
	var told atomic.Int64
	base := client(rueidis.ClientOption{
		ClientTrackingOptions: []string{"NOLOOP"},
		OnInvalidations:       func([]rueidis.RedisMessage) { told.Add(1) },
	})
	foreign := client(rueidis.ClientOption{DisableCache: true})
	c := benchCache(b, Options{Redis: rueidis.ClientOption{InitAddress: []string{server.Addr()}}, Timeout: time.Second})
	if err := c.WaitReady(ctx); err != nil {
		b.Fatal(err)
	}
	set := func(key string, i int) time.Time {
		start := time.Now()
		if err := foreign.Do(ctx, foreign.B().Set().Key(key).Value(strconv.Itoa(i)).Build()).Error(); err != nil {
			b.Fatal(err)
		}
		return start
	}
	h := c.local.Hash("ours")
	set("ours", -1)
	var ours, bare []time.Duration
	for i := range max(b.N, 4000) {
		if _, err := c.Get(ctx, "ours"); err != nil {
			b.Fatal(err)
		}
		start := set("ours", i)
		for e := c.local.Get(h); e != nil && e.FreshUntil() != local.Suspect; e = c.local.Get(h) {
			time.Sleep(10 * time.Microsecond) // spinning would keep the runtime from the network
		}
		ours = append(ours, time.Since(start))

		base.Do(ctx, base.B().Get().Key("bare").Build())
		before := told.Load()
		start = set("bare", i)
		for told.Load() == before {
			time.Sleep(10 * time.Microsecond) // spinning would keep the runtime from the network
		}
		bare = append(bare, time.Since(start))
	}
	slices.Sort(ours)
	slices.Sort(bare)
	at := func(d []time.Duration, q float64) float64 { return float64(d[int(q*float64(len(d)))].Microseconds()) }
	b.ReportMetric(at(ours, 0.5), "p50-us")
	b.ReportMetric(at(ours, 0.99), "p99-us")
	b.ReportMetric(at(bare, 0.5), "base-p50-us")
	b.ReportMetric(at(bare, 0.99), "base-p99-us")
}
