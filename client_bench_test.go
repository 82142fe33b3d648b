package holdfast

import (
	"context"
	"strconv"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast/internal/redistest"
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

// BenchmarkClientReplyHit is a DoCache of HGETALL or ZRANGE that the first tier answers, beside one
// that the client-side cache of rueidis answers (target: at most 1.0), with the reply as it is and
// with its conversion to a map or a slice of strings. The commands are built each time, by both.
// Target: no allocation beside those of the conversion.
func BenchmarkClientReplyHit(b *testing.B) {
	ctx := context.Background()
	s := redistest.Start(b)
	c, err := New(Options{Redis: rueidis.ClientOption{InitAddress: []string{s.Addr()}}})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	if err := c.WaitReady(ctx); err != nil {
		b.Fatal(err)
	}
	plain, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{s.Addr()}})
	if err != nil {
		b.Fatal(err)
	}
	defer plain.Close()
	cl := c.Client()
	type read struct {
		name    string
		command func(rueidis.Client) rueidis.Cacheable
		convert func(rueidis.RedisResult)
	}
	var reads []read
	for _, n := range []int{2, 20, 200} {
		hash, set := []string{"HSET", "h" + strconv.Itoa(n)}, []string{"ZADD", "z" + strconv.Itoa(n)}
		for i := range n {
			hash = append(hash, "field"+strconv.Itoa(i), "value of some length "+strconv.Itoa(i))
			set = append(set, strconv.Itoa(i), "member"+strconv.Itoa(i))
		}
		s.MustDo(hash...)
		s.MustDo(set...)
		reads = append(reads,
			read{"HGETALL", func(cl rueidis.Client) rueidis.Cacheable { return cl.B().Hgetall().Key(hash[1]).Cache() },
				func(res rueidis.RedisResult) { _, _ = res.AsStrMap() }},
			read{"ZRANGE", func(cl rueidis.Client) rueidis.Cacheable {
				return cl.B().Zrange().Key(set[1]).Min("0").Max("-1").Cache()
			},
				func(res rueidis.RedisResult) { _, _ = res.AsStrSlice() }})
		for i := len(reads) - 2; i < len(reads); i++ {
			reads[i].name += "/elements=" + strconv.Itoa(n)
		}
	}
	for _, r := range reads {
		hit := func(cl rueidis.Client, convert bool) func(_, i int) {
			return func(_, _ int) {
				if res := cl.DoCache(ctx, r.command(cl), time.Hour); convert {
					r.convert(res)
				}
			}
		}
		for deadline := time.Now().Add(time.Minute); !cl.DoCache(ctx, r.command(cl), time.Hour).IsCacheHit() || !plain.DoCache(ctx, r.command(plain), time.Hour).IsCacheHit(); {
			if time.Now().After(deadline) {
				b.Fatal("there is no hit: there is nothing to compare")
			}
		}
		for _, g := range []int{1, 8} {
			for _, convert := range []bool{false, true} {
				b.Run(r.name+"/converted="+strconv.FormatBool(convert)+"/callers="+strconv.Itoa(g), func(b *testing.B) {
					versus(b, g, hit(cl, convert), hit(plain, convert))
				})
			}
		}
	}
}
