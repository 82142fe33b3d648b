package holdfast

import (
	"context"
	"strconv"
	"testing"
	"time"

	"github.com/redis/rueidis"
)

// BenchmarkClientHit is a GET through Client that the local tier answers: beside Get of the
// same Cache (target: at most 1.5) and beside DoCache of rueidis' own client, which has the
// key in its cache, too (target: at most 0.75). With "built" the command is built each time,
// as programs do, by both; without, it is pinned. A batch is a DoMulti or DoMultiCache of 16
// commands. Targets: no allocation; for a batch two, the slices of commands and of replies.
func BenchmarkClientHit(b *testing.B) {
	ctx := context.Background()
	const n, batch = 1 << 9, 16
	keys := benchKeys(n)
	for _, size := range []int{100, 10_000} {
		b.Run(strconv.Itoa(size), func(b *testing.B) {
			c := freshCopies(b, keys, make([]byte, size))
			for c.local.Queued() > 0 {
				time.Sleep(time.Millisecond)
			}
			cl := c.Client()
			plain, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{c.routes.SeedLink.Gate.Load().Addr}})
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(plain.Close)
			pinned, theirs := make([]rueidis.Completed, n), make([]rueidis.Cacheable, n)
			for i, key := range keys {
				pinned[i], theirs[i] = cl.B().Get().Key(key).Build().Pin(), plain.B().Get().Key(key).Cache().Pin()
				if err := plain.DoCache(ctx, theirs[i], time.Hour).Error(); err != nil {
					b.Fatal(err)
				}
				if !plain.DoCache(ctx, theirs[i], time.Hour).IsCacheHit() {
					b.Fatal("rueidis has no copy: there is nothing to compare with")
				}
			}
			at := func(i int) int { return (i * 7) & (n - 1) }
			get := func(_, i int) { c.Get(ctx, keys[at(i)]) }
			do := func(_, i int) { cl.Do(ctx, pinned[at(i)]) }
			doBuilt := func(_, i int) { cl.Do(ctx, cl.B().Get().Key(keys[at(i)]).Build()) }
			before := c.Stats()
			doCache := func(cl rueidis.Client) func(_, i int) {
				return func(_, i int) { cl.DoCache(ctx, cl.B().Get().Key(keys[at(i)]).Cache(), time.Hour) }
			}
			theirHit := func(_, i int) { plain.DoCache(ctx, theirs[at(i)], time.Hour) }
			doMulti := func(_, i int) {
				var cmds [batch]rueidis.Completed
				for j := range cmds {
					cmds[j] = cl.B().Get().Key(keys[at(i*batch+j)]).Build()
				}
				cl.DoMulti(ctx, cmds[:]...)
			}
			doMultiCache := func(cl rueidis.Client) func(_, i int) {
				return func(_, i int) {
					var cmds [batch]rueidis.CacheableTTL
					for j := range cmds {
						cmds[j] = rueidis.CT(cl.B().Get().Key(keys[at(i*batch+j)]).Cache(), time.Hour)
					}
					cl.DoMultiCache(ctx, cmds[:]...)
				}
			}
			for _, g := range []int{1, 2, 8} {
				for _, what := range []struct {
					name       string
					ours, base func(_, i int)
				}{
					{"pinned/beside=Get", do, get},
					{"built/beside=Get", doBuilt, get},
					{"pinned/beside=rueidis", do, theirHit},
					{"built/beside=rueidis", doBuilt, doCache(plain)},
					{"DoCache/beside=rueidis", doCache(cl), doCache(plain)},
					{"DoMulti/beside=rueidis", doMulti, doMultiCache(plain)},
					{"DoMultiCache/beside=rueidis", doMultiCache(cl), doMultiCache(plain)},
				} {
					b.Run(what.name+"/callers="+strconv.Itoa(g), func(b *testing.B) { versus(b, g, what.ours, what.base) })
				}
			}
			if after := c.Stats(); after.RemoteHits != before.RemoteHits || after.Misses != before.Misses {
				b.Errorf("not all were local hits: %+v", after)
			}
		})
	}
}

// BenchmarkClientRemote is what goes to Redis, beside the same command of rueidis' own
// client, with one caller and with 64: a loss is expected of INCR, whose key is looked for
// in the journal and taken from the local tier, and of a batch of both kinds.
func BenchmarkClientRemote(b *testing.B) {
	ctx := context.Background()
	const n = 1 << 9
	keys := benchKeys(n)
	c, plain := besideRueidis(b, keys)
	ours := c.Client()
	for _, g := range []int{1, 64} {
		for _, what := range []struct {
			name string
			f    func(cl rueidis.Client, key string)
		}{
			{"SET", func(cl rueidis.Client, key string) {
				cl.Do(ctx, cl.B().Set().Key(key).Value("17").Build())
			}},
			{"INCR", func(cl rueidis.Client, key string) { cl.Do(ctx, cl.B().Incr().Key("n:"+key).Build()) }},
			{"STRLEN", func(cl rueidis.Client, key string) { cl.Do(ctx, cl.B().Strlen().Key(key).Build()) }},
			{"batch", func(cl rueidis.Client, key string) {
				cl.DoMulti(ctx, cl.B().Set().Key(key).Value("17").Build(), cl.B().Expire().Key(key).Seconds(100).Build(),
					cl.B().Incr().Key("n:"+key).Build(), cl.B().Get().Key(key).Build())
			}},
		} {
			b.Run(what.name+"/callers="+strconv.Itoa(g), func(b *testing.B) {
				versus(b, g,
					func(_, i int) { what.f(ours, keys[i&(n-1)]) },
					func(_, i int) { what.f(plain, keys[i&(n-1)]) })
			})
		}
	}
}
