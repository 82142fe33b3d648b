package holdfast_test

import (
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

func (s *source) rich(ctx context.Context, _ *holdfast.Entry) (holdfast.Loaded, error) {
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
		e, err := c.GetOrLoadWith(ctx, "k", time.Hour, holdfast.LoadOptions{}, s.rich)
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
				synctest.Wait() // whoever waits is released before it is counted
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
			"nil rich":   second(c.GetOrLoadWith(ctx, "k", 0, holdfast.LoadOptions{}, nil)),
			"nil batch":  second(c.GetOrLoadMany(ctx, []string{"k"}, 0, nil)),
			"ttl":        second(c.GetOrLoad(ctx, "k", -1, s.load)),
			"jitter":     second(c.GetOrLoadWith(ctx, "k", 0, holdfast.LoadOptions{TTLJitter: 2}, s.rich)),
			"hard limit": second(c.GetOrLoadWith(ctx, "k", 0, holdfast.LoadOptions{HardTimeout: -1}, s.rich)),
			"lease":      second(c.GetOrLoadWith(ctx, "k", 0, holdfast.LoadOptions{Lease: time.Millisecond}, s.rich)),
			"nothing to be unmodified": second(c.GetOrLoadWith(ctx, "k", 0, holdfast.LoadOptions{}, func(context.Context, *holdfast.Entry) (holdfast.Loaded, error) {
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

func TestALoadIsGivenUpAtTheHardTimeout(t *testing.T) {
	o := holdfast.Options{Load: holdfast.LoadOptions{HardTimeout: 3 * time.Second}}
	alone(t, o, func(t *testing.T, ctx context.Context, c *holdfast.Cache) {
		let := make(chan struct{})
		stubborn := func(context.Context) ([]byte, error) { <-let; return []byte("late"), nil }
		start := time.Now()
		_, err := c.GetOrLoad(ctx, "k", 0, stubborn)
		if took := time.Since(start); took != 3*time.Second || err == nil || !strings.Contains(err.Error(), "HardTimeout") {
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
		if err == nil || !strings.Contains(err.Error(), "HardTimeout") {
			t.Errorf("%v", err)
		}
	})
}

func TestLoadsInFlightAreCapped(t *testing.T) {
	o := holdfast.Options{Load: holdfast.LoadOptions{MaxConcurrent: 3, HardTimeout: 10 * time.Second}}
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
		if _, err := c.GetOrLoad(ctx, "k", 0, slow); err == nil || !strings.Contains(err.Error(), "HardTimeout") || time.Since(start) != 10*time.Second {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		close(let)
		wg.Wait()
	})
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
		closedEmpty(t, c)
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
