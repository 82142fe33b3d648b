package holdfast_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

// results are the results of reads that c has counted.
func results(c *holdfast.Cache) map[string]uint64 {
	all := map[string]uint64{}
	for st := range c.Stats().All() {
		if st.Unit == "reads" {
			all[st.Name] = st.Value
		}
	}
	return all
}

// wantResults does something and asserts which results that adds: names of Stats' fields,
// one for each read. The rest must stay as they are.
func wantResults(t *testing.T, c *holdfast.Cache, what string, do func(), want ...string) {
	t.Helper()
	diff := results(c)
	do()
	for name, n := range results(c) {
		diff[name] = n - diff[name]
	}
	for _, name := range want {
		diff[name]--
	}
	for name, n := range diff {
		if n != 0 {
			t.Errorf("%s: %s is off by %d; want %v", what, name, int64(n), want)
		}
	}
}

func TestEachReadIsCountedAsWhatItsCallerGot(t *testing.T) {
	o := func(o *holdfast.Options) {
		o.Outage.ServeStaleFor = time.Hour
		o.Load.StaleIfError = time.Hour
		o.Load.NotFoundTTL = time.Second
	}
	inBubble(t, o, func(ctx context.Context, c *holdfast.Cache, v *virtual) {
		counts := func(what string, do func(), want ...string) { t.Helper(); wantResults(t, c, what, do, want...) }
		get := func(key string) func() { return func() { c.Get(ctx, key) } }
		loads := func(value string, err error) func(context.Context) ([]byte, error) {
			return func(context.Context) ([]byte, error) { return []byte(value), err }
		}
		load := func(key string, f func(context.Context) ([]byte, error)) func() {
			return func() { c.GetOrLoad(ctx, key, time.Minute, f) }
		}
		loadMany := func(err error, keys ...string) func() {
			return func() {
				c.GetOrLoadMany(ctx, keys, time.Minute, func(_ context.Context, keys []string) (map[string][]byte, error) {
					values := map[string][]byte{}
					for _, key := range keys {
						if key[:2] == "lm" {
							values[key] = []byte("v")
						}
					}
					return values, err
				})
			}
		}
		boom := errors.New("boom")
		client := c.Client()
		b := client.B()
		over, cancel := context.WithCancel(ctx)
		cancel()

		v.redis.Set("k", "v")
		v.redis.Lpush("list", "x")
		counts("a miss", get("absent"), "Misses")
		counts("a get", get("k"), "RemoteHits")
		counts("a hit", get("k"), "LocalHits")
		counts("a lookup", func() { c.Lookup(ctx, "k"); c.Lookup(ctx, "absent") }, "LocalHits", "Misses")
		counts("another type", get("list"), "ReadErrors")
		counts("a context that has ended", func() { c.Get(over, "k"); c.GetMany(over, "k"); c.GetOrLoad(over, "k", 0, loads("", nil)) })
		counts("no read", func() { c.TTL(ctx, "k"); c.TTL(ctx, "absent"); c.Set(ctx, "set", nil, 0); c.Delete(ctx, "set") })
		v.redis.Set("m", "v")
		counts("many", func() { c.GetMany(ctx, "k", "absent", "m", "m", "list") }, "LocalHits", "Misses", "RemoteHits", "RemoteHits", "ReadErrors")

		counts("GET", func() { client.Do(ctx, b.Get().Key("k").Build()); client.Do(ctx, b.Get().Key("absent").Build()) }, "LocalHits", "Misses")
		counts("DoCache", func() { client.DoCache(ctx, b.Get().Key("k").Cache(), time.Minute) }, "LocalHits")
		time.Sleep(time.Second)
		counts("DoCache of a young copy", func() { client.DoCache(ctx, b.Get().Key("k").Cache(), 1) }, "RemoteHits")
		counts("MGET", func() { client.Do(ctx, b.Mget().Key("k", "absent", "list").Build()) }, "LocalHits", "Misses", "Misses")
		counts("GET among others", func() {
			client.DoMulti(ctx, b.Set().Key("s").Value("v").Build(), b.Get().Key("s").Build(), b.Get().Key("list").Build())
		}, "RemoteHits", "ReadErrors")
		counts("EXISTS and TTL", func() {
			client.DoMulti(ctx, b.Exists().Key("k", "absent", "list").Build(), b.Ttl().Key("k").Build(), b.Ttl().Key("list").Build())
		})

		counts("a load", load("l", loads("v", nil)), "LoaderHits")
		counts("a load of what is there", load("k", loads("", nil)), "LocalHits")
		v.redis.Set("n", "v")
		counts("a load of what Redis has", load("n", loads("", nil)), "RemoteHits")
		counts("a load that failed", load("f", loads("", boom)), "ReadErrors")
		counts("not found", load("nf", loads("", holdfast.ErrNotFound)), "Misses")
		counts("not found, again", load("nf", loads("", holdfast.ErrNotFound)), "NegativeHits")
		counts("no load", func() { load("x", nil)(); c.GetOrLoad(ctx, "k", -1, loads("", nil)) })
		counts("many loads", loadMany(nil, "k", "lm1", "lm2", "lm2", "nf2"), "LocalHits", "LoaderHits", "LoaderHits", "Misses")
		counts("many loads, again", loadMany(nil, "nf2", "k"), "NegativeHits", "LocalHits")
		counts("many loads that failed", loadMany(boom, "k", "f1", "f2"), "LocalHits", "ReadErrors", "ReadErrors")
		counts("the loader asks for its own key", func() {
			c.GetOrLoad(ctx, "own", time.Minute, func(ctx context.Context) ([]byte, error) {
				return c.GetOrLoad(ctx, "own", time.Minute, loads("", nil))
			})
		}, "ReadErrors", "ReadErrors")
		slow := func(ctx context.Context) ([]byte, error) { time.Sleep(time.Second); return []byte("v"), nil }
		counts("a shared load", func() {
			var all sync.WaitGroup
			for range 3 {
				all.Go(load("shared", slow))
			}
			all.Wait()
		}, "LoaderHits", "LoaderHits", "LoaderHits")
		counts("a caller who gave up", func() {
			short, cancel := context.WithTimeout(ctx, time.Millisecond)
			defer cancel()
			c.GetOrLoad(short, "given up", time.Minute, slow)
			time.Sleep(time.Minute)
		}, "ReadErrors")
		counts("a batch whose caller gave up", func() {
			short, cancel := context.WithTimeout(ctx, time.Millisecond)
			defer cancel()
			c.GetOrLoadMany(short, []string{"g1", "g2"}, time.Minute, func(ctx context.Context, _ []string) (map[string][]byte, error) {
				_, err := slow(ctx)
				return nil, err
			})
			time.Sleep(time.Minute)
		}, "ReadErrors", "ReadErrors")

		c.GetOrLoad(ctx, "stands in", time.Second, loads("v", nil))
		time.Sleep(2 * time.Second)
		counts("a copy that stands in", load("stands in", loads("", boom)), "StaleHits")
		counts("a copy that stands in, again", load("stands in", loads("", boom)), "StaleHits")

		v.redis.Set("doubt", "v")
		v.redis.Set("stale", "v")
		v.redis.SetTTL("stale", time.Minute)
		c.GetMany(ctx, "doubt", "stale")
		v.set(true, false, true)
		time.Sleep(2 * time.Minute)
		c.Set(ctx, "kept", []byte("v"), time.Hour)
		c.Delete(ctx, "gone")
		counts("in an outage", func() {
			for _, key := range []string{"doubt", "stale", "kept", "gone", "absent"} {
				c.Get(ctx, key)
			}
		}, "DoubtHits", "StaleHits", "JournalHits", "Misses", "Misses")
		counts("many in an outage", func() { c.GetMany(ctx, "doubt", "stale", "kept", "gone", "absent") },
			"DoubtHits", "StaleHits", "JournalHits", "Misses", "Misses")
		counts("MGET in an outage", func() { client.Do(ctx, b.Mget().Key("doubt", "stale", "kept", "gone", "absent").Build()) },
			"DoubtHits", "StaleHits", "JournalHits", "Misses", "Misses")
		counts("TTL in an outage", func() {
			c.TTL(ctx, "doubt")
			c.TTL(ctx, "kept")
			c.TTL(ctx, "gone")
			client.DoMulti(ctx, b.Exists().Key("doubt", "kept", "gone").Build(), b.Ttl().Key("kept").Build())
		})
		counts("loads in an outage", func() {
			load("doubt", loads("", nil))()
			load("kept", loads("", nil))()
			load("gone", loads("v", nil))()
		}, "DoubtHits", "JournalHits", "LoaderHits")
		must(t, ignoreUndelivered(c.Close()))
		counts("closed", func() { c.Get(ctx, "k"); client.Do(ctx, b.Get().Key("k").Build()); load("k", loads("", nil))() })
	})
}

func ignoreUndelivered(err error) error {
	var u *holdfast.UndeliveredError
	if asUndelivered(err, &u) {
		return nil
	}
	return err
}

func TestEachReadOfATypedIsCountedOnce(t *testing.T) {
	o := func(o *holdfast.Options) { o.Load.EarlyRefresh = 0.5 }
	inBubble(t, o, func(ctx context.Context, c *holdfast.Cache, v *virtual) {
		counts := func(what string, do func(), want ...string) { t.Helper(); wantResults(t, c, what, do, want...) }
		for _, typed := range []*holdfast.Typed[user]{
			holdfast.NewTyped(c, holdfast.JSON[user](), holdfast.WithPrefix("a:")),
			holdfast.NewTyped(c, holdfast.JSON[user](), holdfast.WithPrefix("b:"), holdfast.WithoutDecoded()),
		} {
			load := func(key string) func() {
				return func() {
					typed.GetOrLoad(ctx, key, 4*time.Second, func(context.Context) (user, error) { return user{1, "x"}, nil })
				}
			}
			get := func(key string) func() { return func() { typed.Get(ctx, key) } }
			counts("a load", load("k"), "LoaderHits")
			counts("a hit", get("k"), "LocalHits")
			counts("a hit of a load", load("k"), "LocalHits")
			counts("a lookup", func() { typed.Lookup(ctx, "k") }, "LocalHits")
			time.Sleep(3 * time.Second)
			counts("a hit that is refreshed", func() { load("k")(); synctest.Wait() }, "LocalHits")
			counts("many", func() { typed.GetMany(ctx, "k", "absent") }, "LocalHits", "Misses")
			counts("many loads", func() {
				typed.GetOrLoadMany(ctx, []string{"k", "l"}, time.Minute, func(context.Context, []string) (map[string]user, error) {
					return map[string]user{"l": {2, "y"}}, nil
				})
			}, "LocalHits", "LoaderHits")
			counts("no load", func() {
				typed.GetOrLoad(ctx, "k", -1, func(context.Context) (user, error) { return user{}, nil })
				typed.GetOrLoad(ctx, "k", 0, nil)
				typed.GetOrLoadMany(ctx, []string{"k"}, 0, nil)
			})
			c.Set(ctx, "a:odd", []byte("no json"), time.Hour)
			c.Set(ctx, "b:odd", []byte("no json"), time.Hour)
			counts("what cannot be decoded", func() { get("odd")(); get("odd")() }, "LocalHits", "LocalHits")
			counts("what cannot be decoded, loaded", load("odd"), "LoaderHits")
		}
		// A load that is shared with another codec is tried again, and is one read.
		numbers := holdfast.NewTyped(c, holdfast.JSON[int]())
		counts("two codecs", func() {
			var all sync.WaitGroup
			all.Go(func() {
				c.GetOrLoad(ctx, "mixed", time.Minute, func(context.Context) ([]byte, error) {
					time.Sleep(time.Second)
					return []byte("no number"), nil
				})
			})
			synctest.Wait()
			all.Go(func() {
				n, err := numbers.GetOrLoad(ctx, "mixed", time.Minute, func(context.Context) (int, error) { return 7, nil })
				if n != 7 || err != nil {
					t.Errorf("loaded %d, %v", n, err)
				}
			})
			all.Go(func() {
				numbers.GetOrLoadMany(ctx, []string{"mixed"}, time.Minute, func(context.Context, []string) (map[string]int, error) {
					return map[string]int{"mixed": 7}, nil
				})
			})
			all.Wait()
		}, "LoaderHits", "LoaderHits", "LoaderHits")
	})
}

// Callers of every kind, beside writes, outages and a server that hangs: the sum of the
// results is the number of reads that were asked for.
func TestTheResultsAddUpToTheReads(t *testing.T) {
	o := func(o *holdfast.Options) {
		o.Outage.ServeStaleFor, o.Load.StaleIfError, o.Load.SoftTimeout = time.Hour, time.Hour, 20*time.Millisecond
		o.Load.EarlyRefresh, o.Load.NotFoundTTL = 0.5, 100*time.Millisecond
		o.Tracking.UntrackedTTL = 200 * time.Millisecond
		o.Load.HardTimeout = 500 * time.Millisecond
	}
	inBubble(t, o, func(ctx context.Context, c *holdfast.Cache, v *virtual) {
		const keys, callers, turns = 40, 16, 400
		var asked atomic.Int64
		typed := holdfast.NewTyped(c, holdfast.JSON[int]())
		client := c.Client()
		b := client.B()
		boom := errors.New("boom")
		for i := range keys / 8 {
			v.redis.Lpush(fmt.Sprint("k", 8*i), "another type")
		}
		var all sync.WaitGroup
		for id := range callers {
			all.Go(func() {
				r := rand.New(rand.NewPCG(1, uint64(id)))
				key := func() string { return fmt.Sprint("k", r.IntN(keys)) }
				for range turns {
					time.Sleep(time.Duration(r.IntN(10)) * time.Millisecond)
					ctx, cancel := context.WithTimeout(ctx, time.Duration(1+r.IntN(60))*time.Millisecond)
					k, takes, ttl := key(), time.Duration(r.IntN(100))*time.Millisecond, time.Duration(1+r.IntN(1000))*time.Millisecond
					outcome := r.IntN(4)
					value := func(ctx context.Context) (int, error) {
						time.Sleep(takes)
						switch outcome {
						case 0:
							return 0, boom
						case 1:
							return 0, holdfast.ErrNotFound
						}
						return outcome, nil
					}
					raw := func(ctx context.Context) ([]byte, error) {
						n, err := value(ctx)
						return fmt.Append(nil, n), err
					}
					n := 1
					switch r.IntN(13) {
					case 0:
						c.Get(ctx, k)
					case 1:
						c.Lookup(ctx, k)
					case 2:
						c.GetMany(ctx, k, key(), key())
						n = 3
					case 3:
						c.GetOrLoad(ctx, k, ttl, raw)
					case 4:
						c.GetOrLoadWith(ctx, k, ttl, holdfast.LoadOptions{Lease: -1}, func(ctx context.Context, had *holdfast.Entry) (holdfast.Loaded, error) {
							value, err := raw(ctx)
							return holdfast.Loaded{Value: value, NotModified: had != nil && err == nil}, err
						})
					case 5:
						c.GetOrLoadMany(ctx, []string{k, k + "+", k}, ttl, func(ctx context.Context, keys []string) (map[string][]byte, error) {
							value, err := raw(ctx)
							return map[string][]byte{keys[0]: value}, err
						})
						n = 2
					case 6:
						typed.Get(ctx, k)
					case 7:
						typed.GetOrLoad(ctx, k, ttl, value)
					case 8:
						typed.GetOrLoadMany(ctx, []string{k, k + "+"}, ttl, func(ctx context.Context, keys []string) (map[string]int, error) {
							n, err := value(ctx)
							return map[string]int{keys[0]: n}, err
						})
						n = 2
					case 9:
						client.Do(ctx, b.Get().Key(k).Build())
					case 10:
						client.DoMulti(ctx, b.Mget().Key(k, key()).Build(), b.Set().Key(k).Value("1").PxMilliseconds(ttl.Milliseconds()).Build(),
							b.Get().Key(k).Build(), b.Exists().Key(k).Build(), b.Ttl().Key(key()).Build())
						n = 3
					case 11:
						c.Set(ctx, k, []byte("no number"), ttl)
						n = 0
					case 12:
						if c.TTL(ctx, k); outcome == 0 {
							c.Delete(ctx, k)
						}
						n = 0
					}
					cancel()
					asked.Add(int64(n))
				}
			})
		}
		for range 3 {
			time.Sleep(400 * time.Millisecond)
			v.set(true, false, true)
			time.Sleep(400 * time.Millisecond)
			v.set(false, false, false)
			time.Sleep(time.Second)
			v.freeze()
			time.Sleep(300 * time.Millisecond)
			v.unfreeze()
		}
		all.Wait()
		sum := int64(0)
		for name, n := range results(c) {
			if sum += int64(n); n == 0 {
				t.Errorf("no %s among the reads: the test is too tame", name)
			}
		}
		if sum != asked.Load() {
			t.Errorf("%d results of %d reads: %v", sum, asked.Load(), results(c))
		}
	})
}

// SWAPDB by this client makes all copies suspect, but breaks no stream.
func TestOnlyALossOfTheStreamCountsAsOne(t *testing.T) {
	begin(t)
	s := redistest.Start(t)
	c := open(t, at(s.Addr()))
	ready(t, c)
	for range 3 {
		wantSay(t, c.Client(), "OK", "SWAPDB", "0", "1")
	}
	if n := c.Stats().StreamLosses; n != 0 {
		t.Errorf("three SWAPDB count as %d losses", n)
	}
	s.MustDo("CLIENT", "KILL", "TYPE", "normal")
	redistest.WaitFor(t, patience, "the loss to be counted", func() bool { return c.Stats().StreamLosses == 1 })
}
