package holdfast_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-cache/holdfast"
)

// A load that has the only slot may wait for another load. That one needs no slot: else both
// would wait for the hard limit.
func TestALoaderMayAskForOtherKeysWhereLoadsAreCapped(t *testing.T) {
	alone(t, holdfast.Options{Load: holdfast.LoadOptions{MaxConcurrent: 1}}, func(t *testing.T, ctx context.Context, c *holdfast.Cache) {
		const takes = time.Second
		leaf := func(context.Context) ([]byte, error) { time.Sleep(takes); return []byte("v"), nil }
		asks := func(key string, load func(context.Context) ([]byte, error)) func(context.Context) ([]byte, error) {
			return func(ctx context.Context) ([]byte, error) {
				time.Sleep(takes)
				return c.GetOrLoad(ctx, key, 0, load)
			}
		}
		start := time.Now()
		v, err := c.GetOrLoad(ctx, "a", 0, asks("b", asks("c", leaf)))
		if took := time.Since(start); err != nil || string(v) != "v" || took != 3*takes {
			t.Errorf("%q, %v after %v", v, err, took)
		}

		// Also where another's load of that key waits for the place already.
		var wg sync.WaitGroup
		start = time.Now()
		wg.Go(func() {
			if _, err := c.GetOrLoad(ctx, "d", 0, asks("e", leaf)); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		wg.Go(func() {
			if _, err := c.GetOrLoad(ctx, "e", 0, leaf); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			if _, err := c.GetOrLoadMany(ctx, []string{"e"}, 0, nil); err == nil {
				t.Error("nil loader")
			}
		})
		wg.Wait()
		if took := time.Since(start); took != 2*takes {
			t.Errorf("it took %v", took)
		}

		// And all the places are there again.
		wantLoad(t, c, "z", 0, newSource("v"), "v")
	})
}

// The places of one Cache protect its source from the loaders of another.
func TestTheLoadersOfAnotherCacheAreCapped(t *testing.T) {
	alone(t, holdfast.Options{Load: holdfast.LoadOptions{MaxConcurrent: 1}}, func(t *testing.T, ctx context.Context, rows *holdfast.Cache) {
		pages := open(t, holdfast.Options{})
		start := time.Now()
		var wg sync.WaitGroup
		for _, key := range []string{"a", "b", "c"} {
			wg.Go(func() {
				_, err := pages.GetOrLoad(ctx, key, 0, func(ctx context.Context) ([]byte, error) {
					return rows.GetOrLoad(ctx, key, 0, func(context.Context) ([]byte, error) { time.Sleep(time.Second); return nil, nil })
				})
				if err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if took := time.Since(start); took != 3*time.Second {
			t.Errorf("three loads, one at a time, took %v", took)
		}
	})
}

func TestLoadersOfTwoCachesThatWaitForEachOtherGetAnError(t *testing.T) {
	alone(t, holdfast.Options{}, func(t *testing.T, ctx context.Context, a *holdfast.Cache) {
		b := open(t, holdfast.Options{})
		ask := func(c *holdfast.Cache, key string, load func(context.Context) ([]byte, error)) func(context.Context) ([]byte, error) {
			return func(ctx context.Context) ([]byte, error) {
				time.Sleep(time.Second) // others have begun
				return c.GetOrLoad(ctx, key, 0, load)
			}
		}
		leaf := newSource("v").load
		ownKey := func(name string, err error) {
			t.Helper()
			if err == nil || !strings.Contains(err.Error(), "own key") {
				t.Errorf("%s: %v", name, err)
			}
		}
		start := time.Now()
		_, err := a.GetOrLoad(ctx, "k", 0, ask(b, "k", ask(a, "k", leaf)))
		ownKey("one caller, there and back", err)
		errs := make(chan error, 2)
		go func() { errs <- second(a.GetOrLoad(ctx, "x", 0, ask(b, "y", leaf))) }()
		go func() { errs <- second(b.GetOrLoad(ctx, "y", 0, ask(a, "x", leaf))) }()
		ownKey("two callers", <-errs)
		ownKey("two callers", <-errs)
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("it took %v", took)
		}
		wantLoad(t, a, "k", 0, newSource("v"), "v")
		wantLoad(t, b, "k", 0, newSource("v"), "v")
	})
}
