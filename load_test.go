package holdfast_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

// source is a source of truth that counts how often it is asked.
type source struct {
	asked atomic.Int64
	value atomic.Value          // string
	err   atomic.Pointer[error] // instead of the value
	takes time.Duration         // unless the context ends before
}

func newSource(value string) *source {
	s := new(source)
	s.value.Store(value)
	return s
}

func (s *source) fail(err error) {
	if err == nil {
		s.err.Store(nil)
	} else {
		s.err.Store(&err)
	}
}

func (s *source) load(ctx context.Context) ([]byte, error) {
	s.asked.Add(1)
	if s.takes > 0 {
		t := time.NewTimer(s.takes)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if err := s.err.Load(); err != nil {
		return nil, *err
	}
	return []byte(s.value.Load().(string)), nil
}

func (s *source) rich(ctx context.Context, _ holdfast.Entry) (holdfast.Loaded, error) {
	v, err := s.load(ctx)
	return holdfast.Loaded{Value: v}, err
}

func (s *source) wasAsked(t testing.TB, want int64) {
	t.Helper()
	if got := s.asked.Load(); got != want {
		t.Errorf("the source was asked %d times, want %d", got, want)
	}
}

// wantLoad asserts what a GetOrLoad returns.
func wantLoad(t testing.TB, c *holdfast.Cache, key string, ttl time.Duration, s *source, want string) {
	t.Helper()
	got, err := c.GetOrLoad(context.Background(), key, ttl, s.load)
	if err != nil || string(got) != want {
		t.Fatalf("load %s: %q, %v; want %q", key, got, err, want)
	}
}

// alone runs the test in virtual time, with a cache of the local tier only.
func alone(t *testing.T, o holdfast.Options, test func(t *testing.T, ctx context.Context, c *holdfast.Cache)) {
	synctest.Test(t, func(t *testing.T) {
		test(t, context.Background(), open(t, o))
	})
}

func TestAThousandCallersOfAColdKeyLoadItOnce(t *testing.T) {
	backends(t, func(t *testing.T, ctx context.Context, b backend) {
		o := at(b.addr)
		o.Timeout = 10 * time.Second // a thousand goroutines beside it may slow redis down
		c := open(t, o)
		ready(t, c)
		s := newSource("v")
		s.takes = 20 * time.Millisecond
		var wg sync.WaitGroup
		for range 1000 {
			wg.Go(func() {
				if got, err := c.GetOrLoad(ctx, "k", time.Hour, s.load); err != nil || string(got) != "v" {
					t.Errorf("%q, %v", got, err)
				}
			})
		}
		wg.Wait()
		s.wasAsked(t, 1)
		if got, _ := b.get("k"); got != "v" {
			t.Errorf("redis holds %q", got)
		}
		wantGet(t, c, "k", "v")
		wantLoad(t, c, "k", time.Hour, s, "v")
		s.wasAsked(t, 1)
		if st := c.Stats(); st.Loads != 1 || st.LoadsShared == 0 || st.LoadErrors != 0 {
			t.Errorf("stats: %d loads, %d shared, %d errors", st.Loads, st.LoadsShared, st.LoadErrors)
		}
	})
}

func TestWhatRedisHoldsIsNotLoaded(t *testing.T) {
	backends(t, func(t *testing.T, ctx context.Context, b backend) {
		c := open(t, at(b.addr))
		ready(t, c)
		b.set("k", "theirs")
		s := newSource("ours")
		wantLoad(t, c, "k", time.Hour, s, "theirs")
		e, err := c.Load(ctx, "k", time.Hour, holdfast.LoadOptions{}, s.rich)
		if err != nil || string(e.Value) != "theirs" || e.Tier != holdfast.Local {
			t.Errorf("load: %+v, %v", e, err)
		}
		s.wasAsked(t, 0)
	})
}

// The load is bound to none of its callers.
func TestTheFirstCallerLeavesAndTheOthersGetTheirValue(t *testing.T) {
	alone(t, holdfast.Options{}, func(t *testing.T, ctx context.Context, c *holdfast.Cache) {
		s := newSource("v")
		s.takes = time.Second
		first, cancel := context.WithCancel(ctx)
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := c.GetOrLoad(first, "k", 0, s.load); err != context.Canceled {
				t.Errorf("who left got %v", err)
			}
		})
		synctest.Wait()
		for range 10 {
			wg.Go(func() { wantLoad(t, c, "k", 0, s, "v") })
		}
		synctest.Wait()
		cancel()
		wg.Wait()
		s.wasAsked(t, 1)
	})
}

func TestALoadThatNobodyWaitsForEnds(t *testing.T) {
	alone(t, holdfast.Options{}, func(t *testing.T, ctx context.Context, c *holdfast.Cache) {
		ended := make(chan error, 1)
		for range 3 {
			few, cancel := context.WithTimeout(ctx, time.Second)
			_, err := c.GetOrLoad(few, "k", 0, func(ctx context.Context) ([]byte, error) {
				<-ctx.Done()
				ended <- ctx.Err()
				return []byte("late"), nil
			})
			cancel()
			if err != context.DeadlineExceeded {
				t.Errorf("the caller got %v", err)
			}
			if err := <-ended; err != context.Canceled {
				t.Errorf("the loader's context ended with %v", err)
			}
			synctest.Wait()
			wantGet(t, c, "k", "")
		}
		if st := c.Stats(); st.Loads != 3 {
			t.Errorf("%d loads, want one for each caller", st.Loads)
		}
	})
}

func TestTheLoadersContextHasTheCallersValues(t *testing.T) {
	alone(t, holdfast.Options{}, func(t *testing.T, ctx context.Context, c *holdfast.Cache) {
		type key struct{}
		ctx, cancel := context.WithTimeout(context.WithValue(ctx, key{}, "trace"), time.Second)
		defer cancel()
		_, err := c.GetOrLoad(ctx, "k", 0, func(ctx context.Context) ([]byte, error) {
			if ctx.Value(key{}) != "trace" {
				t.Error("the values are lost")
			}
			if d, ok := ctx.Deadline(); !ok || time.Until(d) != time.Minute {
				t.Errorf("deadline in %v, want the hard limit", time.Until(d))
			}
			return nil, nil
		})
		must(t, err)
	})
}

func TestEveryFailureOfALoaderIsAnErrorForAllWhoWait(t *testing.T) {
	boom := errors.New("boom")
	for _, tt := range []struct {
		name  string
		load  func(context.Context) ([]byte, error)
		check func(err error) bool
	}{
		{"error", func(context.Context) ([]byte, error) { return nil, boom }, func(err error) bool { return errors.Is(err, boom) }},
		{"panic", func(context.Context) ([]byte, error) { panic("boom") }, func(err error) bool {
			var p *holdfast.PanicError
			return errors.As(err, &p) && p.Value == "boom" && strings.Contains(string(p.Stack), "load_test.go")
		}},
		{"panic with an error", func(context.Context) ([]byte, error) { panic(boom) }, func(err error) bool { return errors.Is(err, boom) }},
		{"panic with nil", func(context.Context) ([]byte, error) { panic(nil) }, func(err error) bool {
			var p *holdfast.PanicError
			return errors.As(err, &p)
		}},
		{"goexit", func(context.Context) ([]byte, error) { runtime.Goexit(); return nil, nil }, func(err error) bool {
			return strings.Contains(err.Error(), "Goexit")
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			alone(t, holdfast.Options{}, func(t *testing.T, ctx context.Context, c *holdfast.Cache) {
				var loads atomic.Int64
				var wg sync.WaitGroup
				for range 20 {
					wg.Go(func() {
						_, err := c.GetOrLoad(ctx, "k", 0, func(ctx context.Context) ([]byte, error) {
							loads.Add(1)
							time.Sleep(time.Second)
							return tt.load(ctx)
						})
						var e *holdfast.Error
						if !errors.As(err, &e) || e.Op != "getorload" || e.Key != "k" || e.Tier != holdfast.Loader || !tt.check(err) {
							t.Errorf("%T %v", err, err)
						}
					})
				}
				wg.Wait()
				if n := loads.Load(); n != 1 {
					t.Errorf("%d loads", n)
				}
				// It is not remembered: the next call loads again.
				wantLoad(t, c, "k", 0, newSource("v"), "v")
				if st := c.Stats(); st.LoadErrors != 1 || st.Loads != 2 {
					t.Errorf("stats: %d loads, %d errors", st.Loads, st.LoadErrors)
				}
			})
		})
	}
}

func TestALoaderThatWaitsForItsOwnKeyGetsAnError(t *testing.T) {
	alone(t, holdfast.Options{}, func(t *testing.T, ctx context.Context, c *holdfast.Cache) {
		var ask func(path ...string) func(context.Context) ([]byte, error)
		ask = func(path ...string) func(context.Context) ([]byte, error) {
			return func(ctx context.Context) ([]byte, error) {
				if len(path) == 0 {
					return []byte("end"), nil
				}
				return c.GetOrLoad(ctx, path[0], 0, ask(path[1:]...))
			}
		}
		for _, tt := range []struct {
			path  []string
			cycle bool
		}{
			{[]string{"a"}, false},
			{[]string{"b", "c", "d"}, false},
			{[]string{"e", "e"}, true},
			{[]string{"f", "g", "f"}, true},
			{[]string{"h", "i", "j", "i"}, true},
		} {
			_, err := c.GetOrLoad(ctx, tt.path[0], 0, ask(tt.path[1:]...))
			if got := err != nil && strings.Contains(err.Error(), "own key"); got != tt.cycle || !got && err != nil {
				t.Errorf("%v: %v", tt.path, err)
			}
		}
	})
}

// Two callers, each of whose loaders asks for the other's key.
func TestTwoLoadersThatWaitForEachOtherGetAnError(t *testing.T) {
	alone(t, holdfast.Options{}, func(t *testing.T, ctx context.Context, c *holdfast.Cache) {
		cross := func(key string) func(context.Context) ([]byte, error) {
			return func(ctx context.Context) ([]byte, error) {
				time.Sleep(time.Second) // both have begun
				return c.GetOrLoad(ctx, key, 0, func(context.Context) ([]byte, error) { return []byte("v"), nil })
			}
		}
		errs := make(chan error, 2)
		go func() { _, err := c.GetOrLoad(ctx, "a", 0, cross("b")); errs <- err }()
		go func() { _, err := c.GetOrLoad(ctx, "b", 0, cross("a")); errs <- err }()
		for range 2 {
			if err := <-errs; err == nil || !strings.Contains(err.Error(), "own key") {
				t.Errorf("%v", err)
			}
		}
		// And through a batch.
		_, err := c.GetOrLoadMany(ctx, []string{"c", "d"}, 0, func(ctx context.Context, _ []string) (map[string][]byte, error) {
			_, err := c.GetOrLoad(ctx, "d", 0, newSource("v").load)
			return nil, err
		})
		if err == nil || !strings.Contains(err.Error(), "own key") {
			t.Errorf("a batch that waits for itself: %v", err)
		}
		wantLoad(t, c, "a", 0, newSource("v"), "v")
	})
}

func TestBadInputIsRefused(t *testing.T) {
	alone(t, holdfast.Options{}, func(t *testing.T, ctx context.Context, c *holdfast.Cache) {
		s := newSource("v")
		for name, err := range map[string]error{
			"nil loader": second(c.GetOrLoad(ctx, "k", 0, nil)),
			"nil rich":   second(c.Load(ctx, "k", 0, holdfast.LoadOptions{}, nil)),
			"nil batch":  second(c.GetOrLoadMany(ctx, []string{"k"}, 0, nil)),
			"ttl":        second(c.GetOrLoad(ctx, "k", -1, s.load)),
			"jitter":     second(c.Load(ctx, "k", 0, holdfast.LoadOptions{TTLJitter: 2}, s.rich)),
			"hard limit": second(c.Load(ctx, "k", 0, holdfast.LoadOptions{HardLimit: -1}, s.rich)),
			"lease":      second(c.Load(ctx, "k", 0, holdfast.LoadOptions{Lease: time.Millisecond}, s.rich)),
			"nothing to be unmodified": second(c.Load(ctx, "k", 0, holdfast.LoadOptions{}, func(context.Context, holdfast.Entry) (holdfast.Loaded, error) {
				return holdfast.Loaded{NotModified: true}, nil
			})),
		} {
			var e *holdfast.Error
			if !errors.As(err, &e) || e.Tier != holdfast.Loader {
				t.Errorf("%s: %v", name, err)
			}
		}
		var none context.Context
		if _, err := c.GetOrLoad(none, "k", 0, s.load); err == nil {
			t.Error("nil context")
		}
		ended, cancel := context.WithCancel(ctx)
		cancel()
		if _, err := c.GetOrLoad(ended, "k", 0, s.load); err != context.Canceled {
			t.Errorf("ended context: %v", err)
		}
		s.wasAsked(t, 0)
		// nil bytes are an empty value.
		got, err := c.GetOrLoad(ctx, "nil", 0, func(context.Context) ([]byte, error) { return nil, nil })
		if err != nil || got == nil || len(got) != 0 {
			t.Errorf("nil bytes: %v, %v", got, err)
		}
		wantLoad(t, c, "nil", 0, s, "")
		s.wasAsked(t, 0)
	})
}

func second[T any](_ T, err error) error { return err }

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

func TestALoadIsGivenUpAtTheHardLimit(t *testing.T) {
	o := holdfast.Options{Load: holdfast.LoadOptions{HardLimit: 3 * time.Second}}
	alone(t, o, func(t *testing.T, ctx context.Context, c *holdfast.Cache) {
		let := make(chan struct{})
		stubborn := func(context.Context) ([]byte, error) { <-let; return []byte("late"), nil }
		start := time.Now()
		_, err := c.GetOrLoad(ctx, "k", 0, stubborn)
		if took := time.Since(start); took != 3*time.Second || err == nil || !strings.Contains(err.Error(), "HardLimit") {
			t.Errorf("after %v: %v", took, err)
		}
		// The next one does not wait for it, and what it brings late is not kept.
		wantLoad(t, c, "k", 0, newSource("v"), "v")
		close(let)
		synctest.Wait()
		wantGet(t, c, "k", "v")
		if st := c.Stats(); st.LoadErrors != 1 {
			t.Errorf("%d errors", st.LoadErrors)
		}
		// One that heeds its context.
		_, err = c.GetOrLoad(ctx, "l", 0, func(ctx context.Context) ([]byte, error) { <-ctx.Done(); return nil, ctx.Err() })
		if err == nil || !strings.Contains(err.Error(), "HardLimit") {
			t.Errorf("%v", err)
		}
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
		e, err := c.Load(ctx, "k", 0, holdfast.LoadOptions{}, s.rich)
		if err != nil || !e.Stale || e.Tier != holdfast.Local || e.TTL != 0 {
			t.Errorf("%+v, %v", e, err)
		}
		time.Sleep(1100 * time.Millisecond)
		wantLoad(t, c, "k", 10*time.Second, s, "v")
		s.wasAsked(t, 3)
		if _, err := c.Load(ctx, "k", 0, holdfast.LoadOptions{StaleIfError: -1}, s.rich); !errors.Is(err, boom) {
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

func TestTheSoftLimitServesTheCopyAndTheLoadGoesOn(t *testing.T) {
	o := holdfast.Options{Load: holdfast.LoadOptions{StaleIfError: time.Minute, SoftLimit: 100 * time.Millisecond}}
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
		e, err := c.Load(ctx, "k", 10*time.Second, holdfast.LoadOptions{}, s.rich)
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
				if _, err := c.Load(ctx, "k", 0, holdfast.LoadOptions{NotFoundTTL: -1}, s.rich); !errors.Is(err, holdfast.ErrNotFound) {
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
			return c.Load(ctx, "k", time.Hour, holdfast.LoadOptions{}, func(_ context.Context, h holdfast.Entry) (holdfast.Loaded, error) {
				had = append(had, fmt.Sprintf("%s %v", h.Value, h.Stale))
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
		want := []string{" false", "v1 true", " false", " false", "v3 true", "v3 true"}
		if fmt.Sprint(had) != fmt.Sprint(want) {
			t.Errorf("the loader was shown %q, want %q", had, want)
		}
	})
}

func TestLoadsInFlightAreCapped(t *testing.T) {
	o := holdfast.Options{MaxLoads: 3, Load: holdfast.LoadOptions{HardLimit: 10 * time.Second}}
	alone(t, o, func(t *testing.T, ctx context.Context, c *holdfast.Cache) {
		var now, most atomic.Int64
		slow := func(context.Context) ([]byte, error) {
			for n := now.Add(1); ; {
				if m := most.Load(); n <= m || most.CompareAndSwap(m, n) {
					break
				}
			}
			time.Sleep(time.Second)
			now.Add(-1)
			return []byte("v"), nil
		}
		start := time.Now()
		var wg sync.WaitGroup
		for i := range 12 {
			wg.Go(func() {
				if _, err := c.GetOrLoad(ctx, fmt.Sprint(i), 0, slow); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		few, cancel := context.WithTimeout(ctx, time.Millisecond)
		defer cancel()
		if _, err := c.GetOrLoad(few, "impatient", 0, slow); err != context.DeadlineExceeded {
			t.Errorf("who waits for a place: %v", err)
		}
		wg.Wait()
		if took := time.Since(start); most.Load() != 3 || took != 4*time.Second {
			t.Errorf("%d at a time, %v in all", most.Load(), took)
		}
		// Who gets no place within the hard limit gets an error.
		let := make(chan struct{})
		for i := range 3 {
			wg.Go(func() {
				c.GetOrLoad(ctx, fmt.Sprint("stuck", i), 0, func(context.Context) ([]byte, error) { <-let; return nil, nil })
			})
		}
		synctest.Wait()
		start = time.Now()
		if _, err := c.GetOrLoad(ctx, "k", 0, slow); err == nil || !strings.Contains(err.Error(), "HardLimit") || time.Since(start) != 10*time.Second {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		close(let)
		wg.Wait()
	})
}

func TestAWriteDuringALoadWins(t *testing.T) {
	backends(t, func(t *testing.T, ctx context.Context, b backend) {
		c := open(t, at(b.addr))
		ready(t, c)
		for _, tt := range []struct {
			name  string
			write func(key string) error
			want  string
		}{
			{"delete", func(key string) error { return c.Delete(ctx, key) }, ""},
			{"set", func(key string) error { return c.Set(ctx, key, []byte("set"), 0) }, "set"},
			{"setmany", func(key string) error { return c.SetMany(ctx, map[string][]byte{key: []byte("set")}, 0) }, "set"},
			{"add", func(key string) error { return second(c.Add(ctx, key, []byte("set"), 0)) }, "set"},
		} {
			began, let := make(chan struct{}), make(chan struct{})
			done := make(chan string, 1)
			go func() {
				v, err := c.GetOrLoad(ctx, tt.name, time.Hour, func(context.Context) ([]byte, error) {
					close(began)
					<-let
					return []byte("loaded"), nil
				})
				done <- fmt.Sprintf("%s %v", v, err)
			}()
			<-began
			must(t, tt.write(tt.name))
			if tt.want == "" {
				// Who comes after the write does not wait for the load from before.
				wantLoad(t, c, tt.name, time.Hour, newSource("later"), "later")
				tt.want = "later"
			}
			close(let)
			if got := <-done; got != "loaded <nil>" {
				t.Errorf("%s: who waited got %s", tt.name, got)
			}
			wantGet(t, c, tt.name, tt.want)
			if got, _ := b.get(tt.name); got != tt.want {
				t.Errorf("%s: redis holds %q, want %q", tt.name, got, tt.want)
			}
		}
	})
}

func TestAForeignWriteDuringALoadWins(t *testing.T) {
	ctx := begin(t)
	srv := redistest.Start(t)
	c := open(t, at(srv.Addr()))
	ready(t, c)
	for name, write := range map[string]func(){
		"set":      func() { srv.MustDo("SET", "set", "theirs") },
		"flushall": func() { srv.MustDo("FLUSHALL") },
	} {
		told := c.Stats()
		v, err := c.GetOrLoad(ctx, name, time.Hour, func(context.Context) ([]byte, error) {
			write()
			redistest.WaitFor(t, patience, "the news", func() bool {
				s := c.Stats()
				return name == "flushall" || s.Invalidations > told.Invalidations
			})
			srv.MustDo("PING")
			return []byte("loaded"), nil
		})
		if err != nil || string(v) != "loaded" {
			t.Errorf("%s: %q, %v", name, v, err)
		}
		want := "(nil)"
		if name == "set" {
			want = "theirs"
		}
		if name == "flushall" {
			continue // it comes without a count; TestWhereALoadedValueMayGo has the rule
		}
		if got := srv.MustDo("GET", name); got != want {
			t.Errorf("%s: redis holds %q, want %q", name, got, want)
		}
	}
}

// Delete has returned: nothing that a load from before it brought is served any
// more, neither here nor from Redis.
func TestNoLoadFromBeforeADeleteIsServedAfterIt(t *testing.T) {
	backends(t, func(t *testing.T, ctx context.Context, b backend) {
		c := open(t, at(b.addr))
		ready(t, c)
		stressDeletes(t, ctx, c)
	})
	t.Run("local", func(t *testing.T) {
		ctx := begin(t)
		stressDeletes(t, ctx, open(t, holdfast.Options{}))
	})
	t.Run("outage", func(t *testing.T) {
		ctx := begin(t)
		stressDeletes(t, ctx, open(t, at(unused())))
	})
}

func stressDeletes(t *testing.T, ctx context.Context, c *holdfast.Cache) {
	const keys, goroutines = 3, 8
	rounds := 1250 * roundsFactor(t)
	var versions, floors [keys]atomic.Int64 // the source's; what a read begun now must reach
	var mu [keys]sync.Mutex
	read := func(k int, get func(key string) ([]byte, error)) {
		floor := floors[k].Load()
		got, err := get(fmt.Sprint("k", k))
		if errors.Is(err, holdfast.ErrMiss) {
			return
		}
		var v int64
		if _, scan := fmt.Sscan(string(got), &v); err != nil || scan != nil {
			t.Errorf("%q, %v, %v", got, err, scan)
		} else if v < floor {
			t.Errorf("k%d: version %d was served after %d was deleted", k, v, floor-1)
		}
	}
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			for i := range rounds {
				if t.Failed() {
					return
				}
				k := (g + i) % keys
				switch (g*7 + i) % 5 {
				case 0:
					mu[k].Lock()
					v := versions[k].Add(1)
					if err := c.Delete(ctx, fmt.Sprint("k", k)); err != nil {
						t.Error(err)
					}
					floors[k].Store(v)
					mu[k].Unlock()
				case 1:
					read(k, func(key string) ([]byte, error) { return c.Get(ctx, key) })
				case 2:
					read(k, func(key string) ([]byte, error) {
						m, err := c.GetOrLoadMany(ctx, []string{key}, time.Hour, func(_ context.Context, keys []string) (map[string][]byte, error) {
							v := versions[k].Load()
							runtime.Gosched()
							return map[string][]byte{keys[0]: fmt.Append(nil, v)}, nil
						})
						return m[key], err
					})
				default:
					read(k, func(key string) ([]byte, error) {
						return c.GetOrLoad(ctx, key, time.Hour, func(context.Context) ([]byte, error) {
							v := versions[k].Load()
							runtime.Gosched()
							return fmt.Append(nil, v), nil
						})
					})
				}
			}
		})
	}
	wg.Wait()
}

func TestWithoutRedisEachKeyIsLoadedOnceAndNotJournaled(t *testing.T) {
	ctx := begin(t)
	c := open(t, at(unused()))
	s := newSource("v")
	for range 10 {
		wantLoad(t, c, "k", time.Hour, s, "v")
	}
	s.wasAsked(t, 1)
	if h := c.Health(); h.JournalKeys != 0 {
		t.Errorf("%d keys in the journal", h.JournalKeys)
	}
	// A fenced key is answered from the journal, so that is where its value goes.
	must(t, c.Delete(ctx, "deleted"))
	for range 10 {
		wantLoad(t, c, "deleted", time.Hour, s, "v")
	}
	s.wasAsked(t, 2)
	if h := c.Health(); h.JournalKeys != 1 {
		t.Errorf("%d keys in the journal", h.JournalKeys)
	}
}

// A Redis that answers reads and takes no writes says of each loaded key that there
// is none.
func TestWhereRedisTakesNoWritesAKeyIsNotLoadedWithEachCall(t *testing.T) {
	ctx := begin(t)
	srv := redistest.Start(t)
	c := open(t, at(srv.Addr()))
	ready(t, c)
	srv.MustDo("CONFIG", "SET", "maxmemory", "1")
	c.Set(ctx, "full", []byte("v"), 0)
	redistest.WaitFor(t, patience, "readonly", func() bool { return c.Health().State == holdfast.ReadOnly })
	s := newSource("v")
	for range 10 {
		wantLoad(t, c, "k", time.Hour, s, "v")
	}
	s.wasAsked(t, 1)
	s.fail(holdfast.ErrNotFound)
	for range 10 {
		c.GetOrLoad(ctx, "none", time.Hour, s.load)
	}
	s.wasAsked(t, 2)
	srv.MustDo("CONFIG", "SET", "maxmemory", "0")
	waitState(t, c, holdfast.Up)
}

func TestCloseReleasesWhoWaitsForALoad(t *testing.T) {
	ctx := begin(t)
	for _, o := range []holdfast.Options{{}, at(unused())} {
		c, err := holdfast.New(o)
		must(t, err)
		began, errs := make(chan struct{}), make(chan error, 2)
		go func() {
			_, err := c.GetOrLoad(ctx, "k", 0, func(ctx context.Context) ([]byte, error) {
				close(began)
				<-ctx.Done()
				return nil, ctx.Err()
			})
			errs <- err
		}()
		go func() {
			<-began
			_, err := c.GetOrLoadMany(ctx, []string{"k"}, 0, func(context.Context, []string) (map[string][]byte, error) { return nil, nil })
			errs <- err
		}()
		<-began
		redistest.WaitFor(t, patience, "both to wait", func() bool { return c.Stats().LoadsShared == 1 })
		must(t, c.Close())
		for range 2 {
			if err := <-errs; err != holdfast.ErrClosed {
				t.Errorf("who waited got %v", err)
			}
		}
		if _, err := c.GetOrLoad(ctx, "k", 0, newSource("v").load); err != holdfast.ErrClosed {
			t.Errorf("after close: %v", err)
		}
	}
}

func TestALoaderThatNeverReturnsDoesNotHangClose(t *testing.T) {
	ctx := begin(t)
	c, err := holdfast.New(holdfast.Options{})
	must(t, err)
	began, let, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		_, err := c.GetOrLoad(ctx, "k", 0, func(context.Context) ([]byte, error) { close(began); <-let; return []byte("v"), nil })
		done <- err
	}()
	<-began
	if err := c.Close(); err == nil || !strings.Contains(err.Error(), "loader") {
		t.Errorf("close: %v", err)
	}
	if err := <-done; err != holdfast.ErrClosed {
		t.Errorf("who waited got %v", err)
	}
	close(let)
}

func TestShutdownDoesNotWaitForLoads(t *testing.T) {
	alone(t, holdfast.Options{}, func(t *testing.T, ctx context.Context, _ *holdfast.Cache) {
		c, err := holdfast.New(holdfast.Options{})
		must(t, err)
		done := make(chan error, 1)
		go func() {
			_, err := c.GetOrLoad(ctx, "k", 0, func(ctx context.Context) ([]byte, error) { <-ctx.Done(); return nil, ctx.Err() })
			done <- err
		}()
		synctest.Wait()
		must(t, c.Shutdown(ctx))
		if err := <-done; err != holdfast.ErrClosed {
			t.Errorf("who waited got %v", err)
		}
	})
}

func TestABatchLoadsWhatIsMissingInOneCall(t *testing.T) {
	backends(t, func(t *testing.T, ctx context.Context, b backend) {
		c := open(t, at(b.addr))
		ready(t, c)
		must(t, c.Set(ctx, "local", []byte("l"), 0))
		b.set("remote", "r")
		var calls [][]string
		load := func(_ context.Context, keys []string) (map[string][]byte, error) {
			calls = append(calls, keys)
			m := map[string][]byte{"unasked": []byte("u"), "nil": nil}
			for _, k := range keys {
				if strings.HasPrefix(k, "m") {
					m[k] = []byte("v" + k)
				}
			}
			return m, nil
		}
		keys := []string{"m1", "local", "m2", "remote", "m1", "none", "nil", "m2"}
		for range 3 {
			got, err := c.GetOrLoadMany(ctx, keys, time.Hour, load)
			if err != nil || len(got) != 5 || string(got["m1"]) != "vm1" || string(got["local"]) != "l" || string(got["remote"]) != "r" || got["nil"] == nil {
				t.Errorf("%q, %v", got, err)
			}
		}
		if fmt.Sprint(calls) != "[[m1 m2 none nil]]" {
			t.Errorf("calls for %v", calls)
		}
		wantGet(t, c, "unasked", "")
		wantGet(t, c, "m2", "vm2")
		if got, _ := b.get("m1"); got != "vm1" {
			t.Errorf("redis holds %q", got)
		}
		if got, err := c.GetOrLoadMany(ctx, nil, 0, load); err != nil || len(got) != 0 {
			t.Errorf("no keys: %v, %v", got, err)
		}
	})
}

func TestBatchesAndSingleLoadsShareTheirKeys(t *testing.T) {
	alone(t, holdfast.Options{}, func(t *testing.T, ctx context.Context, c *holdfast.Cache) {
		var mu sync.Mutex
		asked := map[string]int{}
		many := func(_ context.Context, keys []string) (map[string][]byte, error) {
			mu.Lock()
			for _, k := range keys {
				asked[k]++
			}
			mu.Unlock()
			time.Sleep(time.Second)
			m := map[string][]byte{}
			for _, k := range keys {
				m[k] = []byte(k)
			}
			return m, nil
		}
		one := func(key string) func(context.Context) ([]byte, error) {
			return func(ctx context.Context) ([]byte, error) {
				m, err := many(ctx, []string{key})
				return m[key], err
			}
		}
		var wg sync.WaitGroup
		wg.Go(func() { c.GetOrLoad(ctx, "b", 0, one("b")) })
		synctest.Wait()
		for _, keys := range [][]string{{"a", "b"}, {"b", "c", "a"}, {"c", "d"}} {
			wg.Go(func() {
				got, err := c.GetOrLoadMany(ctx, keys, 0, many)
				if err != nil || len(got) != len(keys) {
					t.Errorf("%v: %q, %v", keys, got, err)
				}
				for k, v := range got {
					if string(v) != k {
						t.Errorf("%s is %q", k, v)
					}
				}
			})
		}
		synctest.Wait()
		wg.Go(func() {
			if got, err := c.GetOrLoad(ctx, "d", 0, one("d")); err != nil || string(got) != "d" {
				t.Errorf("d: %q, %v", got, err)
			}
		})
		wg.Wait()
		for k, n := range asked {
			if n != 1 {
				t.Errorf("%s was asked for %d times", k, n)
			}
		}
		if st := c.Stats(); len(asked) != 4 || st.LoadsShared == 0 {
			t.Errorf("asked %v, shared %d", asked, st.LoadsShared)
		}
	})
}

func TestABatchThatFailsReturnsWhatWasFound(t *testing.T) {
	o := holdfast.Options{Load: holdfast.LoadOptions{StaleIfError: time.Hour}}
	alone(t, o, func(t *testing.T, ctx context.Context, c *holdfast.Cache) {
		boom := errors.New("boom")
		must(t, c.Set(ctx, "there", []byte("t"), 0))
		must(t, c.Set(ctx, "stale", []byte("s"), time.Second))
		time.Sleep(2 * time.Second)
		fail := func(context.Context, []string) (map[string][]byte, error) {
			return map[string][]byte{"half": []byte("h")}, boom
		}
		got, err := c.GetOrLoadMany(ctx, []string{"there", "stale", "half", "x", "y"}, 0, fail)
		if !errors.Is(err, boom) || fmt.Sprintf("%s", got) != "map[half:h stale:s there:t]" || strings.Count(err.Error(), "boom") != 1 {
			t.Errorf("%s, %v", got, err)
		}
		got, err = c.GetOrLoadMany(ctx, []string{"there", "p"}, 0, func(context.Context, []string) (map[string][]byte, error) { panic(boom) })
		if !errors.Is(err, boom) || len(got) != 1 {
			t.Errorf("%s, %v", got, err)
		}
		wantGet(t, c, "half", "h")
		// The caller leaves.
		few, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		got, err = c.GetOrLoadMany(few, []string{"there", "z"}, 0, func(ctx context.Context, _ []string) (map[string][]byte, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		})
		if err != context.DeadlineExceeded || !bytes.Equal(got["there"], []byte("t")) {
			t.Errorf("%s, %v", got, err)
		}
		wantLoad(t, c, "z", 0, newSource("v"), "v")
	})
}

// What was loaded in an outage is nothing that Redis was ever given: a Set that comes
// over it must not be taken for one that replaces what somebody deleted there.
func TestASetOverWhatWasLoadedInAnOutageIsReplayed(t *testing.T) {
	inBubble(t, nil, func(ctx context.Context, c *holdfast.Cache, v *virtual) {
		v.set(true, false, true)
		time.Sleep(time.Second)
		wantLoad(t, c, "k", time.Hour, newSource("loaded"), "loaded")
		must(t, c.Set(ctx, "k", []byte("set"), time.Hour))
		v.set(false, false, false)
		time.Sleep(5 * time.Second)
		drain(t, c)
		wantGet(t, c, "k", "set")
		if got, _ := v.redis.Get("k"); got != "set" {
			t.Errorf("redis holds %q; superseded %d", got, c.Stats().Superseded)
		}
	})
}
