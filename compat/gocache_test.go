package compat

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	gocache "github.com/eko/gocache/lib/v4/cache"
	"github.com/eko/gocache/lib/v4/store"
	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/rueidis"
)

func TestGocacheAnswersAsOnAPlainClient(t *testing.T) {
	ours, theirs := redistest.Start(t), redistest.Start(t)
	got, want := &story{}, &story{}
	client, other := open(t, ours, budget).Client(), plain(t, theirs, false)
	for range 2 {
		gocacheProgram(context.Background(), got, client)
		gocacheProgram(context.Background(), want, other)
	}
	if len(want.lines) < 20 {
		t.Fatalf("the program told only %q", want.lines)
	}
	for i := range max(len(want.lines), len(got.lines)) {
		equal(t, "line", from(got.lines, i), from(want.lines, i))
	}
	equal(t, "the server's keys", contents(ours), contents(theirs))
}

func gocacheProgram(ctx context.Context, s *story, client rueidis.Client) {
	users := gocache.New[string](newStore(client, store.WithExpiration(time.Hour)))
	get := func(what, key string) {
		v, err := users.Get(ctx, key)
		s.note(what, v, err)
		s.note(what+", not found", errors.Is(err, store.NotFound{}), nil)
	}
	do := func(what string, err error) { s.note(what, nil, err) }

	get("get of nothing", "u:1")
	do("set", users.Set(ctx, "u:1", "Ada"))
	get("get", "u:1")
	get("get again", "u:1")
	v, _, err := users.GetWithTTL(ctx, "u:1")
	s.note("get with a ttl", v, err)
	_, _, err = users.GetWithTTL(ctx, "u:none")
	s.note("get of nothing with a ttl", nil, err)
	do("set with another ttl", users.Set(ctx, "u:2", "Bob", store.WithExpiration(time.Minute)))
	do("set without one", users.Set(ctx, "u:3", "Eve", store.WithExpiration(0)))
	get("get of what was refused", "u:3")

	do("set with tags", users.Set(ctx, "u:4", "Dan", store.WithTags([]string{"staff", "new"})))
	do("set with a tag", users.Set(ctx, "u:5", "Kim", store.WithTags([]string{"staff"})))
	get("get of the tagged", "u:4")
	do("invalidate what nobody has", users.Invalidate(ctx, store.WithInvalidateTags([]string{"none"})))
	get("get of the tagged", "u:4")
	do("invalidate", users.Invalidate(ctx, store.WithInvalidateTags([]string{"staff"})))
	get("get of the invalidated", "u:4")
	get("get of the invalidated", "u:5")
	get("get of the other", "u:1")

	do("delete", users.Delete(ctx, "u:1"))
	get("get of the deleted", "u:1")
	do("delete of nothing", users.Delete(ctx, "u:1"))
	do("set", users.Set(ctx, "u:1", "Ada"))
	do("clear", users.Clear(ctx))
	get("get of the cleared", "u:1")
	get("get of the cleared", "u:2")
	do("set", users.Set(ctx, "u:1", "Ada"))
}

func TestGocacheGoesOnWhileRedisIsAway(t *testing.T) {
	for _, o := range outages {
		t.Run(o.name, func(t *testing.T) {
			t.Parallel() // they mostly wait
			redis, ctx := redistest.Start(t), context.Background()
			cache := open(t, redis, time.Second)
			users := gocache.New[string](newStore(cache.Client(), store.WithExpiration(time.Hour)))
			is := func(key, want string) {
				t.Helper()
				v, err := users.Get(ctx, key)
				if want == "" && !errors.Is(err, store.NotFound{}) {
					t.Errorf("%s: %q, %v; want it not to be found", key, v, err)
				}
				equal(t, key, v, want)
			}
			must(t, users.Set(ctx, "known", "1"))
			must(t, users.Set(ctx, "dropped", "1"))
			must(t, users.Set(ctx, "tagged", "1", store.WithTags([]string{"tag"})))
			for _, key := range []string{"known", "dropped", "tagged"} {
				is(key, "1")
			}

			o.begin(redis)
			down(t, cache)
			bounded("the program", func() {
				is("known", "1")
				is("unknown", "")
				must(t, users.Set(ctx, "known", "2"))
				is("known", "2")
				must(t, users.Delete(ctx, "dropped"))
				is("dropped", "")
				must(t, users.Set(ctx, "late", "2", store.WithTags([]string{"tag"})))
				is("late", "2")
				must(t, users.Invalidate(ctx, store.WithInvalidateTags([]string{"tag"})))
				is("tagged", "1") // the store does not say that it could not
				unavailable(t, "clear", users.Clear(ctx))
				is("known", "2")
			})

			o.end(redis)
			up(t, cache)
			is("known", "2")
			is("dropped", "")
			is("late", "2")
			// Of what is cacheable for ten seconds, as a chain asks it.
			if _, ttl, err := users.GetWithTTL(ctx, "known"); err != nil || ttl <= 0 || ttl > 10*time.Second {
				t.Errorf("ttl: %v, %v; want some of ten seconds", ttl, err)
			}
			equal(t, "set meanwhile, at Redis", redis.MustDo("GET", "known"), "2")
			equal(t, "deleted meanwhile, at Redis", redis.MustDo("EXISTS", "dropped"), "0")
			must(t, users.Set(ctx, "again", "3", store.WithTags([]string{"again"})))
			is("again", "3")
			must(t, users.Invalidate(ctx, store.WithInvalidateTags([]string{"again"})))
			is("again", "")
			must(t, users.Clear(ctx))
			is("known", "")
		})
	}
}

func TestALoadableGocacheLoadsOnceWithAndWithoutRedis(t *testing.T) {
	redis, ctx := redistest.Start(t), context.Background()
	cache := open(t, redis, time.Second)
	var loads atomic.Int64
	load := func(_ context.Context, key any) (string, []store.Option, error) {
		loads.Add(1)
		return "the value of " + key.(string), []store.Option{store.WithExpiration(time.Hour)}, nil
	}
	users := gocache.NewLoadable[string](load, gocache.New[string](newStore(cache.Client())))
	t.Cleanup(func() { must(t, users.Close()) })
	loadsOnce := func(key string) {
		t.Helper()
		before := loads.Load()
		bounded("a load", func() {
			v, err := users.Get(ctx, key)
			must(t, err)
			equal(t, key, v, "the value of "+key)
			redistest.WaitFor(t, patience, "the value to be stored", func() bool {
				_, err := cache.Get(ctx, key)
				return err == nil
			})
			for range 3 {
				v, err = users.Get(ctx, key)
				must(t, err)
				equal(t, key, v, "the value of "+key)
			}
		})
		equal(t, "loads of "+key, loads.Load()-before, 1)
	}
	loadsOnce("a")
	redis.Kill()
	down(t, cache)
	loadsOnce("b")
	_, err := cache.Lookup(ctx, "nothing")
	equal(t, "a miss", errors.Is(err, holdfast.ErrMiss), true)
	redis.RestartEmpty()
	up(t, cache)
	equal(t, "loaded meanwhile, at Redis", redis.MustDo("GET", "b"), "the value of b")
	before := loads.Load()
	v, err := users.Get(ctx, "b")
	must(t, err)
	equal(t, "b", v, "the value of b")
	equal(t, "loads of b", loads.Load()-before, 0)
	loadsOnce("c")
}
