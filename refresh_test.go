package holdfast_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

func TestARefreshThatFindsNothingTakesTheValueAway(t *testing.T) {
	for name, notFound := range map[string]time.Duration{"remembered": 0, "not remembered": -1} {
		backends(t, func(t *testing.T, ctx context.Context, b backend) {
			o := at(b.addr)
			o.Load.NotFoundTTL = notFound
			// A copy does not stand in for a source that has none.
			o.Load.StaleIfError = time.Hour
			c := open(t, o)
			ready(t, c)
			must(t, c.Set(ctx, "k", []byte("old"), 0))
			wantGet(t, c, "k", "old")
			s := newSource("")
			s.fail(holdfast.ErrNotFound)
			if _, err := c.Refresh(ctx, "k", time.Hour, s.load); !errors.Is(err, holdfast.ErrNotFound) {
				t.Errorf("%s: %v", name, err)
			}
			wantGet(t, c, "k", "")
			if got, there := b.get("k"); there {
				t.Errorf("%s: redis holds %q", name, got)
			}
		})
	}
}

func wantRefresh(t *testing.T, c *holdfast.Cache, key string, s *source, want string) {
	t.Helper()
	got, err := c.Refresh(t.Context(), key, time.Hour, s.load)
	if err != nil || string(got) != want {
		t.Errorf("refresh %s: %q, %v; want %q", key, got, err, want)
	}
}

func TestARefreshLoadsThoughThereIsAFreshValue(t *testing.T) {
	backends(t, func(t *testing.T, ctx context.Context, b backend) {
		c := open(t, at(b.addr))
		ready(t, c)
		s := newSource("v1")
		wantRefresh(t, c, "k", s, "v1") // of a key that nobody has
		wantLoad(t, c, "k", time.Hour, s, "v1")
		s.wasAsked(t, 1)
		s.value.Store("v2")
		wantRefresh(t, c, "k", s, "v2")
		wantGet(t, c, "k", "v2")
		if got, _ := b.get("k"); got != "v2" {
			t.Errorf("redis holds %q", got)
		}
		// Also of a value that another client wrote.
		b.set("k", "theirs")
		s.value.Store("v3")
		wantRefresh(t, c, "k", s, "v3")
		wantGet(t, c, "k", "v3")
		if got, _ := b.get("k"); got != "v3" {
			t.Errorf("redis holds %q", got)
		}
		s.wasAsked(t, 3)

		// The old value stays where the load fails.
		boom := errors.New("boom")
		s.fail(boom)
		if v, err := c.Refresh(ctx, "k", time.Hour, s.load); !errors.Is(err, boom) || v != nil {
			t.Errorf("a loader that fails: %q, %v", v, err)
		}
		wantGet(t, c, "k", "v3")
		if got, _ := b.get("k"); got != "v3" {
			t.Errorf("redis holds %q", got)
		}
		// It is removed where the source has none any more.
		s.fail(holdfast.ErrNotFound)
		if _, err := c.Refresh(ctx, "k", time.Hour, s.load); !errors.Is(err, holdfast.ErrNotFound) {
			t.Errorf("not found: %v", err)
		}
		wantGet(t, c, "k", "")
		if got, there := b.get("k"); there {
			t.Errorf("redis holds %q", got)
		}
		// That this is remembered is no answer to a Refresh.
		s.fail(nil)
		wantRefresh(t, c, "k", s, "v3")
		wantGet(t, c, "k", "v3")
	})
}

func TestWritesDuringARefreshWin(t *testing.T) {
	backends(t, func(t *testing.T, ctx context.Context, b backend) {
		c := open(t, at(b.addr))
		ready(t, c)
		for name, write := range map[string]func(){
			"ours":   func() { must(t, c.Set(ctx, "k", []byte("written"), 0)) },
			"theirs": func() { b.set("k", "written") },
		} {
			must(t, c.Set(ctx, "k", []byte("old"), 0))
			wantGet(t, c, "k", "old")
			v, err := c.Refresh(ctx, "k", time.Hour, func(context.Context) ([]byte, error) {
				write()
				return []byte("loaded"), nil
			})
			if err != nil || string(v) != "loaded" {
				t.Errorf("%s: %q, %v", name, v, err)
			}
			if got, _ := b.get("k"); got != "written" {
				t.Errorf("%s: redis holds %q", name, got)
			}
			must(t, c.Invalidate("k")) // miniredis tells of no changes
			wantGet(t, c, "k", "written")
		}
	})
}

func TestReadsDoNotWaitForARefresh(t *testing.T) {
	alone(t, holdfast.Options{}, func(t *testing.T, ctx context.Context, c *holdfast.Cache) {
		s := newSource("v1")
		wantLoad(t, c, "k", time.Hour, s, "v1")
		s.value.Store("v2")
		s.takes = time.Second
		var wg sync.WaitGroup
		wg.Go(func() { wantRefresh(t, c, "k", s, "v2") })
		synctest.Wait()
		began := time.Now()
		wantGet(t, c, "k", "v1")
		wantLoad(t, c, "k", time.Hour, s, "v1")
		if d := time.Since(began); d != 0 {
			t.Errorf("a read waited %v", d)
		}
		wg.Wait()
		wantGet(t, c, "k", "v2")
		s.wasAsked(t, 2)
	})
}

// The result of a load that began before the source changed is not the answer.
func TestARefreshTakesNothingOfALoadThatBeganBeforeIt(t *testing.T) {
	alone(t, holdfast.Options{}, func(t *testing.T, ctx context.Context, c *holdfast.Cache) {
		var wg sync.WaitGroup
		var asked, running, most int
		var mu sync.Mutex
		load := func(context.Context) ([]byte, error) {
			mu.Lock()
			asked++
			v := []byte{'v', byte('0' + asked)}
			running++
			most = max(most, running)
			mu.Unlock()
			time.Sleep(time.Second)
			mu.Lock()
			running--
			mu.Unlock()
			return v, nil
		}
		wg.Go(func() {
			if v, err := c.GetOrLoad(ctx, "k", time.Hour, load); err != nil || string(v) != "v1" {
				t.Errorf("the first load: %q, %v", v, err)
			}
		})
		synctest.Wait()
		began := time.Now()
		for range 20 {
			wg.Go(func() {
				if v, err := c.Refresh(ctx, "k", time.Hour, load); err != nil || string(v) != "v2" {
					t.Errorf("refresh: %q, %v; want what was loaded after it began", v, err)
				}
			})
		}
		wg.Wait()
		wantGet(t, c, "k", "v2")
		if asked != 2 || most != 1 || time.Since(began) != 2*time.Second {
			t.Errorf("asked %d times, %d at once, for %v", asked, most, time.Since(began))
		}
	})
}

func TestARefreshGoesOnWhenItsCallerLeaves(t *testing.T) {
	alone(t, holdfast.Options{}, func(t *testing.T, ctx context.Context, c *holdfast.Cache) {
		s := newSource("v1")
		wantLoad(t, c, "k", time.Hour, s, "v1")
		s.value.Store("v2")
		s.takes = time.Second
		short, cancel := context.WithTimeout(ctx, time.Millisecond)
		defer cancel()
		if _, err := c.Refresh(short, "k", time.Hour, s.load); err != context.DeadlineExceeded {
			t.Errorf("the caller got %v", err)
		}
		wantGet(t, c, "k", "v1")
		time.Sleep(2 * time.Second)
		wantGet(t, c, "k", "v2")
	})
}

func TestARefreshInAnOutageIsKeptLocally(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	c := open(t, at(s.Addr()))
	ready(t, c)
	must(t, c.Set(ctx, "k", []byte("old"), 0))
	wantGet(t, c, "k", "old")
	s.Kill()
	waitState(t, c, holdfast.Down)
	wantRefresh(t, c, "k", newSource("new"), "new")
	wantGet(t, c, "k", "new")
	if n := c.Health().JournalKeys; n != 0 {
		t.Errorf("%d keys are in the journal: what was loaded is nobody's write", n)
	}
}

func TestATypedIsRefreshed(t *testing.T) {
	ctx := begin(t)
	c := open(t, holdfast.Options{})
	users := holdfast.NewTyped(c, holdfast.JSON[user](), holdfast.WithPrefix("u:"))
	must(t, c.Set(ctx, "u:1", []byte("no json"), 0))
	for i, name := range []string{"Ada", "Bob"} {
		v, err := users.Refresh(ctx, "1", time.Hour, func(context.Context) (user, error) { return user{i, name}, nil })
		if err != nil || v != (user{i, name}) {
			t.Errorf("%+v, %v", v, err)
		}
		if v, err := users.Get(ctx, "1"); err != nil || v != (user{i, name}) {
			t.Errorf("get: %+v, %v", v, err)
		}
	}
	boom := errors.New("boom")
	if v, err := users.Refresh(ctx, "1", 0, func(context.Context) (user, error) { return user{}, boom }); !errors.Is(err, boom) {
		t.Errorf("%+v, %v", v, err)
	}
	if v, err := users.Get(ctx, "1"); err != nil || v != (user{1, "Bob"}) {
		t.Errorf("after a load that failed: %+v, %v", v, err)
	}
	if _, err := users.Refresh(ctx, "1", 0, nil); err == nil {
		t.Error("a nil loader: no error")
	}
}

func TestARefreshRefusesBadInput(t *testing.T) {
	ctx := begin(t)
	c := open(t, holdfast.Options{})
	s := newSource("v")
	if _, err := c.Refresh(ctx, "k", 0, nil); err == nil {
		t.Error("a nil loader: no error")
	}
	if _, err := c.Refresh(ctx, "k", -1, s.load); !errors.Is(err, holdfast.ErrInvalidTTL) {
		t.Errorf("a negative ttl: %v", err)
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := c.Refresh(gone, "k", 0, s.load); !errors.Is(err, context.Canceled) {
		t.Errorf("an ended context: %v", err)
	}
	var own error
	_, err := c.Refresh(ctx, "k", 0, func(ctx context.Context) ([]byte, error) {
		_, own = c.Refresh(ctx, "k", 0, s.load)
		return nil, own
	})
	if own == nil || err == nil {
		t.Errorf("a loader that refreshes its own key: %v, %v", own, err)
	}
	closed(t, c)
	if _, err := c.Refresh(ctx, "k", 0, s.load); !errors.Is(err, holdfast.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	s.wasAsked(t, 0)
}
