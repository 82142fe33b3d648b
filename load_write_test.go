package holdfast_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

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
	for name, tt := range map[string]struct {
		cmd  []string
		want string
	}{
		"set":      {[]string{"SET", "set", "theirs"}, "theirs"},
		"flushall": {[]string{"FLUSHALL"}, "(nil)"},
	} {
		srv.MustDo("SET", "witness", "v")
		wantGet(t, c, "witness", "v")
		v, err := c.GetOrLoad(ctx, name, time.Hour, func(context.Context) ([]byte, error) {
			srv.MustDo(tt.cmd...)
			srv.MustDo("DEL", "witness")
			// What is told comes in order.
			redistest.WaitFor(t, patience, "the news", func() bool {
				_, err := c.Get(ctx, "witness")
				return errors.Is(err, holdfast.ErrMiss)
			})
			return []byte("loaded"), nil
		})
		if err != nil || string(v) != "loaded" {
			t.Errorf("%s: %q, %v", name, v, err)
		}
		if got := srv.MustDo("GET", name); got != tt.want {
			t.Errorf("%s: redis holds %q, want %q", name, got, tt.want)
		}
	}
}

// Delete has returned: nothing that a load from before it brought is served any
// more, neither here nor from Redis.
func TestNoLoadFromBeforeADeleteIsServedAfterIt(t *testing.T) {
	beside(t)
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

// A value that was loaded in an outage was never sent to Redis: a Set that comes
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

// A loaded value is not a write. Where the journal has a delete of the key, the
// value is served until that is replayed, and goes with it: others may have written
// since it was loaded, and deleted again.
func TestWhatWasLoadedOnADeletedKeyIsNotReplayed(t *testing.T) {
	inBubble(t, nil, func(ctx context.Context, c *holdfast.Cache, v *virtual) {
		must(t, c.Set(ctx, "k", []byte("before"), time.Hour))
		v.set(true, false, true)
		time.Sleep(time.Second)
		must(t, c.Delete(ctx, "k"))
		s := newSource("loaded")
		for range 5 {
			wantLoad(t, c, "k", time.Hour, s, "loaded")
			wantGet(t, c, "k", "loaded")
		}
		s.wasAsked(t, 1)
		v.set(false, false, false)
		time.Sleep(5 * time.Second)
		drain(t, c)
		if got, err := v.redis.Get("k"); err == nil {
			t.Errorf("redis holds %q", got)
		}
		s.value.Store("later")
		wantLoad(t, c, "k", time.Hour, s, "later")
		s.wasAsked(t, 2)
		// A write of ours takes it away.
		v.set(true, false, true)
		time.Sleep(time.Second)
		must(t, c.Delete(ctx, "k"))
		wantLoad(t, c, "k", time.Hour, s, "later")
		must(t, c.Delete(ctx, "k"))
		wantGet(t, c, "k", "")
		v.set(false, false, false)
		time.Sleep(5 * time.Second)
	})
}

// A store that got no answer may have run. Somebody deletes the key: it stays deleted.
func TestAStoreThatGotNoAnswerIsNotRepeated(t *testing.T) {
	for _, lease := range []time.Duration{-1, 0} {
		o := func(o *holdfast.Options) { o.Load.Lease = lease }
		inBubble(t, o, func(ctx context.Context, c *holdfast.Cache, v *virtual) {
			asked := 0
			load := func(context.Context) ([]byte, error) {
				if asked++; asked == 1 {
					v.freeze()
				}
				return []byte("loaded"), nil
			}
			for range 3 {
				if got, err := c.GetOrLoad(ctx, "k", time.Hour, load); err != nil || string(got) != "loaded" {
					t.Fatalf("%q, %v", got, err)
				}
			}
			if asked != 1 {
				t.Errorf("%d loads", asked)
			}
			if got, _ := v.redis.Get("k"); got != "loaded" {
				t.Errorf("redis holds %q: the store was to run", got)
			}
			v.redis.Del("k")
			v.unfreeze()
			time.Sleep(10 * time.Second)
			drain(t, c)
			if got, err := v.redis.Get("k"); err == nil {
				t.Errorf("redis holds %q, which somebody had deleted", got)
			}
			if n := c.Health().JournalKeys; n != 0 {
				t.Errorf("%d keys in the journal", n)
			}
		})
	}
}

// The memory of not found is bounded like a copy, where nobody tells of changes.
func TestNotFoundIsForgottenWhereTheServerDoesNotTell(t *testing.T) {
	o := func(o *holdfast.Options) {
		o.Load.NotFoundTTL, o.Tracking.UntrackedTTL = time.Hour, 2*time.Second
	}
	inBubble(t, o, func(ctx context.Context, c *holdfast.Cache, v *virtual) {
		s := newSource("v")
		s.fail(holdfast.ErrNotFound)
		for range 3 {
			if _, err := c.GetOrLoad(ctx, "k", 0, s.load); !errors.Is(err, holdfast.ErrNotFound) {
				t.Fatal(err)
			}
		}
		s.wasAsked(t, 1)
		v.redis.Set("k", "theirs")
		time.Sleep(2100 * time.Millisecond)
		wantLoad(t, c, "k", 0, s, "theirs")
	})
}
