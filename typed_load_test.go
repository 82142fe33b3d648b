package holdfast_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

func TestWhatCannotBeDecodedIsLoadedOnceForAllWhoAsk(t *testing.T) {
	ctx := begin(t)
	c := open(t, holdfast.Options{})
	users := holdfast.NewTyped(c, holdfast.JSON[*user]())
	must(t, c.Set(ctx, "k", []byte("no json"), time.Hour))
	var loads atomic.Int64
	var got [100]*user
	var wg sync.WaitGroup
	for i := range got {
		wg.Go(func() {
			v, err := users.GetOrLoad(ctx, "k", time.Hour, func(context.Context) (*user, error) {
				loads.Add(1)
				redistest.WaitFor(t, patience, "the others", func() bool { return c.Stats().LoadsShared == uint64(len(got)-1) })
				return &user{7, "Ada"}, nil
			})
			if err != nil {
				t.Errorf("%v", err)
			}
			got[i] = v
		})
	}
	wg.Wait()
	if n := loads.Load(); n != 1 {
		t.Errorf("%d loads", n)
	}
	for _, v := range got {
		if v == nil || *v != (user{7, "Ada"}) {
			t.Fatalf("%+v", v)
		}
	}
}

// A load that another Typed leads brings what this one cannot read: it must lead one
// itself, and not give up.
func TestWhoWaitsForAnothersCodecLoadsForItself(t *testing.T) {
	ctx := begin(t)
	c := open(t, holdfast.Options{})
	a, b := holdfast.NewTyped(c, stamps("a")), holdfast.NewTyped(c, stamps("b"))
	first := make(chan error, 1)
	began := make(chan struct{})
	go func() {
		_, err := a.GetOrLoad(ctx, "k", time.Hour, func(context.Context) (stamped, error) {
			close(began)
			redistest.WaitFor(t, patience, "the other to wait", func() bool { return c.Stats().LoadsShared == 1 })
			return stamped{key: "k", version: 1}, nil
		})
		first <- err
	}()
	<-began
	v, err := b.GetOrLoad(ctx, "k", time.Hour, func(context.Context) (stamped, error) {
		return stamped{key: "k", version: 2}, nil
	})
	if err != nil || v.by != "b" || v.version != 2 {
		t.Errorf("%+v, %v", v, err)
	}
	must(t, <-first)
}

func TestALoaderSeesTheDecodedCopy(t *testing.T) {
	ctx := begin(t)
	c := open(t, holdfast.Options{})
	users := holdfast.NewTyped(c, holdfast.JSON[user](), holdfast.WithLoad(holdfast.LoadOptions{StaleIfError: time.Hour}))
	type loader = func(context.Context, *holdfast.TypedEntry[user]) (holdfast.TypedLoaded[user], error)
	load := func(key string, ttl time.Duration, l loader) (holdfast.TypedEntry[user], error) {
		return users.GetOrLoadWith(ctx, key, ttl, holdfast.LoadOptions{}, l)
	}
	notModified := func(want *user) loader {
		return func(_ context.Context, had *holdfast.TypedEntry[user]) (loaded holdfast.TypedLoaded[user], err error) {
			if (had == nil) != (want == nil) || had != nil && had.Value != *want {
				t.Errorf("the loader was given %+v, not %+v", had, want)
			}
			loaded.NotModified = true
			return loaded, nil
		}
	}
	ended := func(key string) {
		redistest.WaitFor(t, patience, "the copy's end", func() bool {
			_, err := users.Get(ctx, key)
			return errors.Is(err, holdfast.ErrMiss)
		})
	}
	if _, err := load("k", time.Hour, notModified(nil)); err == nil {
		t.Error("not modified, of nothing: no error")
	}
	must(t, users.Set(ctx, "k", user{7, "Ada"}, time.Millisecond))
	ended("k")
	e, err := load("k", time.Hour, notModified(&user{7, "Ada"}))
	if err != nil || e.Value != (user{7, "Ada"}) || e.Tier != holdfast.Loader {
		t.Errorf("%+v, %v", e, err)
	}
	if ttl, err := users.TTL(ctx, "k"); err != nil || ttl < time.Minute {
		t.Errorf("it has no new life: %v, %v", ttl, err)
	}

	// A copy that cannot be decoded is none, for the loader and in place of one.
	boom := errors.New("boom")
	fails := func(context.Context, *holdfast.TypedEntry[user]) (loaded holdfast.TypedLoaded[user], err error) {
		return loaded, boom
	}
	must(t, users.Set(ctx, "good", user{8, "Bob"}, time.Millisecond))
	must(t, c.Set(ctx, "bad", []byte("no json"), time.Millisecond))
	ended("good")
	ended("bad")
	if e, err := load("good", time.Hour, fails); err != nil || e.Value != (user{8, "Bob"}) || !e.Stale {
		t.Errorf("%+v, %v", e, err)
	}
	if e, err := load("bad", time.Hour, fails); !errors.Is(err, boom) || e.Value != (user{}) {
		t.Errorf("%+v, %v", e, err)
	}
	if _, err := load("bad", time.Hour, notModified(nil)); err == nil {
		t.Error("not modified, of what cannot be decoded: no error")
	}
}

func TestAKeptValueIsRefreshedEarly(t *testing.T) {
	ctx := begin(t)
	c := open(t, holdfast.Options{})
	early := holdfast.NewTyped(c, holdfast.String(), holdfast.WithLoad(holdfast.LoadOptions{EarlyRefresh: 1e-9}))
	var n atomic.Int64
	load := func(context.Context) (string, error) { return fmt.Sprint("v", n.Add(1)), nil }
	if v, err := early.GetOrLoad(ctx, "k", time.Hour, load); err != nil || v != "v1" {
		t.Fatalf("%q, %v", v, err)
	}
	redistest.WaitFor(t, patience, "a refresh", func() bool {
		v, err := early.GetOrLoad(ctx, "k", time.Hour, load)
		must(t, err)
		return v != "v1"
	})
	if c.Stats().EarlyRefreshes == 0 {
		t.Error("it was no refresh")
	}
}

func TestNotFoundIsTheTypedsToo(t *testing.T) {
	ctx := begin(t)
	c := open(t, holdfast.Options{})
	users := holdfast.NewTyped(c, holdfast.JSON[user](), holdfast.WithLoad(holdfast.LoadOptions{NotFoundTTL: time.Hour}))
	loads := 0
	for range 3 {
		_, err := users.GetOrLoad(ctx, "k", 0, func(context.Context) (user, error) {
			loads++
			return user{}, fmt.Errorf("row 7: %w", holdfast.ErrNotFound)
		})
		if !errors.Is(err, holdfast.ErrNotFound) {
			t.Errorf("%v", err)
		}
	}
	if loads != 1 {
		t.Errorf("%d loads", loads)
	}
	if _, err := users.Get(ctx, "k"); !errors.Is(err, holdfast.ErrMiss) {
		t.Errorf("get: %v", err)
	}
}

// Two versions of a program share keys and cannot read each other's values. Each takes
// a key from the other, again and again, but neither waits for what it could not read.
func TestTwoVersionsOfACodecDoNotWaitForEachOther(t *testing.T) {
	ctx := begin(t)
	server := redistest.Start(t)
	const lease = 5 * time.Minute
	var wg sync.WaitGroup
	began := time.Now()
	for _, mark := range []string{"a", "b"} {
		o := at(server.Addr())
		o.Load.Lease = lease
		o.Timeout = 10 * time.Second
		c := open(t, o)
		ready(t, c)
		typed := holdfast.NewTyped(c, stamps(mark))
		wg.Go(func() {
			for range 100 {
				v, err := typed.GetOrLoad(ctx, "k", time.Hour, func(context.Context) (stamped, error) {
					return stamped{key: "k", version: 1}, nil
				})
				if err != nil || v.by != mark {
					t.Errorf("%s: %+v, %v", mark, v, err)
				}
			}
		})
	}
	wg.Wait()
	if d := time.Since(began); d > lease {
		t.Errorf("it took %v: somebody waited for a lease to end", d)
	}
}
