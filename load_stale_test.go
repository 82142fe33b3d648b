package holdfast_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

func TestTheLoadersBytesAreCopied(t *testing.T) {
	alone(t, holdfast.Options{}, func(t *testing.T, ctx context.Context, c *holdfast.Cache) {
		buf := []byte("value")
		got, err := c.GetOrLoad(ctx, "k", 0, func(context.Context) ([]byte, error) { return buf, nil })
		must(t, err)
		copy(buf, "xxxxx")
		if string(got) != "value" || cap(got) != len(got) {
			t.Errorf("%q, capacity %d", got, cap(got))
		}
		wantGet(t, c, "k", "value")
	})
}

func TestAStaleCopyStandsInForALoadThatFails(t *testing.T) {
	boom := errors.New("boom")
	o := func(o *holdfast.Options) { o.Load.StaleIfError = time.Minute }
	inBubble(t, o, func(ctx context.Context, c *holdfast.Cache, v *virtual) {
		s := newSource("v")
		wantLoad(t, c, "k", 10*time.Second, s, "v")
		time.Sleep(15 * time.Second)
		s.fail(boom)
		wantGet(t, c, "k", "") // no Get is served it, and none takes it away
		for range 100 {
			wantLoad(t, c, "k", 10*time.Second, s, "v")
		}
		s.wasAsked(t, 2) // no storm
		e, err := c.GetOrLoadWith(ctx, "k", 0, holdfast.LoadOptions{}, s.rich)
		if err != nil || !e.Stale || e.Tier != holdfast.Local || e.TTL != 0 {
			t.Errorf("%+v, %v", e, err)
		}
		time.Sleep(1100 * time.Millisecond)
		wantLoad(t, c, "k", 10*time.Second, s, "v")
		s.wasAsked(t, 3)
		if _, err := c.GetOrLoadWith(ctx, "k", 0, holdfast.LoadOptions{StaleIfError: -1}, s.rich); !errors.Is(err, boom) {
			t.Errorf("with stale-if-error off: %v", err)
		}
		time.Sleep(time.Minute)
		if _, err := c.GetOrLoad(ctx, "k", 0, s.load); !errors.Is(err, boom) {
			t.Errorf("past the bound: %v", err)
		}
		s.fail(nil)
		s.value.Store("new")
		wantLoad(t, c, "k", 10*time.Second, s, "new")
		if st := c.Stats(); st.StaleHits < 100 {
			t.Errorf("%d stale hits", st.StaleHits)
		}
	})
}

func TestADeletedValueStandsInForNothing(t *testing.T) {
	boom := errors.New("boom")
	o := func(o *holdfast.Options) { o.Load.StaleIfError = time.Hour }
	inBubble(t, o, func(ctx context.Context, c *holdfast.Cache, v *virtual) {
		s := newSource("v")
		wantLoad(t, c, "ours", time.Minute, s, "v")
		wantLoad(t, c, "theirs", time.Hour, s, "v")
		must(t, c.Delete(ctx, "ours"))
		v.redis.Del("theirs")
		time.Sleep(10 * time.Second) // the copy is read again
		s.fail(boom)
		for _, key := range []string{"ours", "theirs"} {
			if got, err := c.GetOrLoad(ctx, key, 0, s.load); !errors.Is(err, boom) {
				t.Errorf("%s: %q, %v", key, got, err)
			}
		}
	})
}

func TestTheSoftTimeoutServesTheCopyAndTheLoadGoesOn(t *testing.T) {
	o := holdfast.Options{Load: holdfast.LoadOptions{StaleIfError: time.Minute, SoftTimeout: 100 * time.Millisecond}}
	alone(t, o, func(t *testing.T, ctx context.Context, c *holdfast.Cache) {
		s := newSource("old")
		s.takes = time.Second
		start := time.Now()
		wantLoad(t, c, "k", 10*time.Second, s, "old")
		if took := time.Since(start); took != time.Second {
			t.Errorf("without a copy it took %v, want the load's time", took)
		}
		time.Sleep(11 * time.Second)
		s.value.Store("new")
		start = time.Now()
		e, err := c.GetOrLoadWith(ctx, "k", 10*time.Second, holdfast.LoadOptions{}, s.rich)
		if took := time.Since(start); err != nil || string(e.Value) != "old" || !e.Stale || took != 100*time.Millisecond {
			t.Errorf("after %v: %+v, %v", took, e, err)
		}
		time.Sleep(time.Second) // nobody waits, and it ends all the same
		wantGet(t, c, "k", "new")
		s.wasAsked(t, 2)
	})
}

func TestNotFoundIsRememberedBriefly(t *testing.T) {
	for _, backed := range []bool{false, true} {
		t.Run(fmt.Sprintf("redis %v", backed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx := context.Background()
				var o holdfast.Options
				if backed {
					o = newVirtual(t).options()
				}
				c := open(t, o)
				ready(t, c)
				s := newSource("v")
				s.fail(fmt.Errorf("user 7: %w", holdfast.ErrNotFound))
				for range 10 {
					if _, err := c.GetOrLoad(ctx, "k", 0, s.load); !errors.Is(err, holdfast.ErrNotFound) {
						t.Fatalf("%v", err)
					}
					// To everybody else it is as if there were nothing.
					wantGet(t, c, "k", "")
					if _, err := c.Lookup(ctx, "k"); !errors.Is(err, holdfast.ErrMiss) {
						t.Errorf("lookup: %v", err)
					}
					if _, err := c.TTL(ctx, "k"); !errors.Is(err, holdfast.ErrMiss) {
						t.Errorf("ttl: %v", err)
					}
					if m, err := c.GetMany(ctx, "k"); err != nil || len(m) != 0 {
						t.Errorf("getmany: %v, %v", m, err)
					}
				}
				s.wasAsked(t, 1)
				if m, err := c.GetOrLoadMany(ctx, []string{"k"}, 0, func(context.Context, []string) (map[string][]byte, error) {
					t.Error("the batch was loaded")
					return nil, nil
				}); err != nil || len(m) != 0 {
					t.Errorf("batch: %v, %v", m, err)
				}
				if st := c.Stats(); st.NegativeHits != 10 || st.LoadErrors != 0 {
					t.Errorf("%d negative hits, %d errors", st.NegativeHits, st.LoadErrors)
				}
				if _, err := c.GetOrLoadWith(ctx, "k", 0, holdfast.LoadOptions{NotFoundTTL: -1}, s.rich); !errors.Is(err, holdfast.ErrNotFound) {
					t.Errorf("%v", err)
				}
				s.wasAsked(t, 2)
				time.Sleep(1100 * time.Millisecond)
				c.GetOrLoad(ctx, "k", 0, s.load)
				s.wasAsked(t, 3)
				// A write ends it.
				must(t, c.Set(ctx, "k", []byte("there"), 0))
				wantLoad(t, c, "k", 0, s, "there")
				must(t, c.Delete(ctx, "k"))
				c.GetOrLoad(ctx, "k", 0, s.load)
				s.wasAsked(t, 4)
				if added, err := c.Add(ctx, "k", []byte("added"), 0); err != nil || !added {
					t.Errorf("add: %v, %v", added, err)
				}
				wantLoad(t, c, "k", 0, s, "added")
			})
		})
	}
}

func TestAForeignWriteEndsTheMemoryOfNotFound(t *testing.T) {
	ctx := begin(t)
	srv := redistest.Start(t)
	o := at(srv.Addr())
	o.Load.NotFoundTTL = time.Hour
	c := open(t, o)
	ready(t, c)
	s := newSource("v")
	s.fail(holdfast.ErrNotFound)
	for range 3 {
		if _, err := c.GetOrLoad(ctx, "k", 0, s.load); !errors.Is(err, holdfast.ErrNotFound) {
			t.Fatal(err)
		}
	}
	s.wasAsked(t, 1)
	srv.MustDo("SET", "k", "theirs")
	redistest.WaitFor(t, patience, "the foreign value", func() bool {
		got, err := c.GetOrLoad(ctx, "k", 0, s.load)
		return err == nil && string(got) == "theirs"
	})
	s.wasAsked(t, 1)
}

func TestAHitPastAPartOfItsLifeIsLoadedAgainInTheBackground(t *testing.T) {
	o := func(o *holdfast.Options) { o.Load.EarlyRefresh = 0.8 }
	inBubble(t, o, func(ctx context.Context, c *holdfast.Cache, v *virtual) {
		s := newSource("one")
		wantLoad(t, c, "k", 4*time.Second, s, "one")
		s.value.Store("two")
		s.takes = 100 * time.Millisecond
		time.Sleep(3 * time.Second)
		wantLoad(t, c, "k", 4*time.Second, s, "one")
		synctest.Wait()
		s.wasAsked(t, 1)
		time.Sleep(300 * time.Millisecond) // past 80%
		start := time.Now()
		for range 100 {
			wantLoad(t, c, "k", 4*time.Second, s, "one")
		}
		if took := time.Since(start); took != 0 {
			t.Errorf("hits took %v: they must not wait", took)
		}
		time.Sleep(200 * time.Millisecond)
		wantLoad(t, c, "k", 4*time.Second, s, "two")
		s.wasAsked(t, 2)
		if got, _ := v.redis.Get("k"); got != "two" {
			t.Errorf("redis holds %q", got)
		}
		if st := c.Stats(); st.EarlyRefreshes != 1 {
			t.Errorf("%d early refreshes", st.EarlyRefreshes)
		}
		// One that fails is not repeated at once, and costs nobody anything.
		s.fail(errors.New("boom"))
		time.Sleep(3500 * time.Millisecond)
		for range 10 {
			wantLoad(t, c, "k", 4*time.Second, s, "two")
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(200 * time.Millisecond)
		s.wasAsked(t, 3)
	})
}

func TestAnEarlyRefreshThatFindsNothingTakesTheValueAway(t *testing.T) {
	o := func(o *holdfast.Options) { o.Load.EarlyRefresh = 0.5 }
	inBubble(t, o, func(ctx context.Context, c *holdfast.Cache, v *virtual) {
		s := newSource("one")
		wantLoad(t, c, "k", 4*time.Second, s, "one")
		s.fail(holdfast.ErrNotFound)
		time.Sleep(3 * time.Second)
		wantLoad(t, c, "k", 4*time.Second, s, "one")
		time.Sleep(time.Millisecond)
		if _, err := c.GetOrLoad(ctx, "k", 4*time.Second, s.load); !errors.Is(err, holdfast.ErrNotFound) {
			t.Errorf("%v", err)
		}
		if v.redis.Exists("k") {
			t.Error("redis still has it")
		}
		s.wasAsked(t, 2)
	})
}

func TestALoaderMaySetTTLAndKeepTheCopyItWasShown(t *testing.T) {
	o := func(o *holdfast.Options) { o.Load.StaleIfError = time.Minute }
	inBubble(t, o, func(ctx context.Context, c *holdfast.Cache, v *virtual) {
		var had []string
		ask := func(l holdfast.Loaded, err error) (holdfast.Entry, error) {
			return c.GetOrLoadWith(ctx, "k", time.Hour, holdfast.LoadOptions{}, func(_ context.Context, h *holdfast.Entry) (holdfast.Loaded, error) {
				if h == nil {
					had = append(had, "none")
				} else {
					had = append(had, fmt.Sprintf("%s %v", h.Value, h.Stale))
				}
				return l, err
			})
		}
		e, err := ask(holdfast.Loaded{Value: []byte("v1"), TTL: 10 * time.Second, StaleIfError: 5 * time.Second}, nil)
		if err != nil || e.Tier != holdfast.Loader || e.TTL != 10*time.Second {
			t.Errorf("%+v, %v", e, err)
		}
		if ttl := v.redis.TTL("k"); ttl != 10*time.Second {
			t.Errorf("ttl in redis %v", ttl)
		}
		time.Sleep(11 * time.Second)
		e, err = ask(holdfast.Loaded{NotModified: true}, nil)
		if err != nil || string(e.Value) != "v1" || e.TTL != time.Hour {
			t.Errorf("not modified: %+v, %v", e, err)
		}
		if got, _ := v.redis.Get("k"); got != "v1" || v.redis.TTL("k") != time.Hour {
			t.Errorf("redis holds %q for %v", got, v.redis.TTL("k"))
		}
		must(t, c.Delete(ctx, "k"))
		// Not to be kept.
		e, err = ask(holdfast.Loaded{Value: []byte("v2"), TTL: -1}, nil)
		if err != nil || string(e.Value) != "v2" {
			t.Errorf("%+v, %v", e, err)
		}
		wantGet(t, c, "k", "")
		if v.redis.Exists("k") {
			t.Error("redis was given what is not to be kept")
		}
		// The loader's own bound on staleness.
		_, err = ask(holdfast.Loaded{Value: []byte("v3"), TTL: 10 * time.Second, StaleIfError: 5 * time.Second}, nil)
		must(t, err)
		boom := errors.New("boom")
		time.Sleep(14 * time.Second)
		if e, err := ask(holdfast.Loaded{}, boom); err != nil || string(e.Value) != "v3" {
			t.Errorf("within the loader's bound: %+v, %v", e, err)
		}
		time.Sleep(2 * time.Second)
		if e, err := ask(holdfast.Loaded{}, boom); !errors.Is(err, boom) {
			t.Errorf("past the loader's bound: %+v, %v", e, err)
		}
		want := []string{"none", "v1 true", "none", "none", "v3 true", "v3 true"}
		if fmt.Sprint(had) != fmt.Sprint(want) {
			t.Errorf("the loader was shown %q, want %q", had, want)
		}
	})
}

// No copy is fresh of a server that is not heard. But Redis has no part in what a loader
// says while Redis is away: the source would be asked with each call.
func TestNotFoundIsRememberedThoughRedisIsAway(t *testing.T) {
	ctx := begin(t)
	var loads atomic.Int64
	load := func(context.Context) ([]byte, error) {
		loads.Add(1)
		return nil, holdfast.ErrNotFound
	}
	check := func(c *holdfast.Cache, what string) {
		t.Helper()
		loads.Store(0)
		for range 5 {
			if _, err := c.GetOrLoad(ctx, what, 0, load); !errors.Is(err, holdfast.ErrNotFound) {
				t.Fatalf("%s: %v", what, err)
			}
		}
		if n := loads.Load(); n != 1 {
			t.Errorf("%s: %d loads", what, n)
		}
	}
	o := at(unused())
	o.Load.NotFoundTTL = time.Hour
	check(open(t, o), "never there")

	s := redistest.Start(t)
	o = at(s.Addr())
	o.Load.NotFoundTTL = time.Hour
	c := open(t, o)
	ready(t, c)
	s.Pause()
	silent := time.Now()
	waitState(t, c, holdfast.Down)
	elapsed(t, "the server is silent", silent, 2*time.Second)
	check(c, "fallen silent")
	s.Resume()
	waitState(t, c, holdfast.Up)
}

// An answer of a loader in an outage is not Redis' answer: another client may have written the
// key meanwhile, and the server tells only of what was read.
func TestNotFoundOfAnOutageEndsWithTheOutage(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	p := redistest.NewProxy(t, s.Addr())
	o := at(p.Addr())
	o.Load.NotFoundTTL = time.Hour
	c := open(t, o)
	ready(t, c)
	p.SetMode(redistest.Cut)
	waitState(t, c, holdfast.Down)
	load := func(context.Context) ([]byte, error) { return nil, holdfast.ErrNotFound }
	if _, err := c.GetOrLoad(ctx, "k", 0, load); !errors.Is(err, holdfast.ErrNotFound) {
		t.Fatal(err)
	}
	s.MustDo("SET", "k", "theirs")
	p.SetMode(redistest.Pass)
	waitState(t, c, holdfast.Up)
	if v, err := c.GetOrLoad(ctx, "k", 0, load); err != nil || string(v) != "theirs" {
		t.Errorf("%q, %v", v, err)
	}
}
