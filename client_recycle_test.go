package holdfast_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/rueidis"
)

// The recycler was written for rueidis v1.0.79, where DoMultiStream of a closed client returns
// commands to the pool of the builders. If another version does not, this test fails, and
// client_recycle.go needs another way.
func TestAHitOfTheDropInAllocatesNothing(t *testing.T) {
	ctx := undisturbed(t)
	if raceFactor > 1 {
		t.Skip("under the race detector a sync.Pool drops some of its contents")
	}
	c := open(t, holdfast.Options{})
	cl := c.Client()
	must(t, c.Set(ctx, "k", []byte("v"), time.Hour))
	get := func() rueidis.Completed { return cl.B().Get().Key("k").Build() }
	cached := func() rueidis.Cacheable { return cl.B().Get().Key("k").Cache() }
	multi, multiCache := make([]rueidis.Completed, 3), make([]rueidis.CacheableTTL, 3)
	for _, call := range []struct {
		name   string
		do     func() rueidis.RedisResult
		allocs float64
	}{
		{"Do", func() rueidis.RedisResult { return cl.Do(ctx, get()) }, 0},
		{"DoCache", func() rueidis.RedisResult { return cl.DoCache(ctx, cached(), time.Hour) }, 0},
		{"a miss", func() rueidis.RedisResult { return cl.Do(ctx, cl.B().Get().Key("none").Build()) }, 0},
		{"DoMulti", func() rueidis.RedisResult {
			for i := range multi {
				multi[i] = get()
			}
			return cl.DoMulti(ctx, multi...)[2]
		}, 1},
		{"DoMultiCache", func() rueidis.RedisResult {
			for i := range multiCache {
				multiCache[i] = rueidis.CT(cached(), time.Hour)
			}
			return cl.DoMultiCache(ctx, multiCache...)[2]
		}, 1},
	} {
		if s, err := textOf(call.do()); err != nil || s != "v" && call.name != "a miss" {
			t.Fatalf("%s: %q, %v", call.name, s, err)
		}
		if n := testing.AllocsPerRun(1000, func() { call.do() }); n > call.allocs {
			t.Errorf("%s: %v allocations, %v expected: rueidis does not get the command back", call.name, n, call.allocs)
		}
	}
}

// A command that is returned twice, or before its last use, becomes another command.
func TestARecycledCommandIsNeverMixedUpWithAnother(t *testing.T) {
	ctx := begin(t)
	for name, o := range map[string]holdfast.Options{
		"without Redis": {},
		"with Redis":    at(redistest.Start(t).Addr()),
	} {
		t.Run(name, func(t *testing.T) {
			o.Timeout = patience // a command that times out is not answered
			c := open(t, o)
			remote := len(o.Redis.InitAddress) > 0
			if remote {
				ready(t, c)
			}
			cl := c.Client()
			must(t, c.Set(ctx, "shared", []byte("shared"), time.Hour))
			shared := cl.B().Get().Key("shared").Build().Pin()
			var wg sync.WaitGroup
			for g := range 8 {
				wg.Go(func() {
					for i := range 300 {
						if err := exchange(ctx, cl, shared, fmt.Sprintf("%d:%d", g, i), remote); err != nil {
							t.Errorf("goroutine %d, round %d: %v", g, i, err)
							return
						}
					}
				})
			}
			wg.Wait()
			if args := strings.Join(shared.Commands(), " "); args != "GET shared" {
				t.Errorf("the pinned command is %q", args)
			}
		})
	}
}

// exchange writes and reads a key of its own in all ways in which a command is recycled.
func exchange(ctx context.Context, cl rueidis.Client, shared rueidis.Completed, key string, remote bool) error {
	b, none := cl.B(), "none:"+key
	get := func() rueidis.Completed { return b.Get().Key(key).Build() }
	cached := func() rueidis.CacheableTTL { return rueidis.CT(b.Get().Key(key).Cache(), time.Hour) }
	type step struct {
		want  string
		reply rueidis.RedisResult
	}
	steps := []step{
		{"OK", cl.Do(ctx, b.Set().Key(key).Value(key).Build())},
		{key, cl.Do(ctx, get())},
		{key, cl.DoCache(ctx, cached().Cmd, time.Hour)},
		{"shared", cl.Do(ctx, shared)},
		{"(nil)", cl.Do(ctx, b.Get().Key(none).Build())},
		{key + " shared", cl.Do(ctx, b.Mget().Key(key, "shared").Build())},
		{"1", cl.Do(ctx, b.Exists().Key(key).Build())},
	}
	multi := cl.DoMulti(ctx, get(), shared, b.Get().Key(none).Build(), get())
	for i, want := range []string{key, "shared", "(nil)", key} {
		steps = append(steps, step{want, multi[i]})
	}
	for _, reply := range cl.DoMultiCache(ctx, cached(), cached()) {
		steps = append(steps, step{key, reply})
	}
	if remote { // rueidis itself recycles what is sent as it is
		steps = append(steps, step{fmt.Sprint(len(key)), cl.Do(ctx, b.Strlen().Key(key).Build())},
			step{key, cl.Do(ctx, b.Getrange().Key(key).Start(0).End(-1).Build())},
			step{"1", cl.Do(ctx, b.Incr().Key("n:"+key).Build())},
			step{fmt.Sprint(len(key)), cl.DoCache(ctx, b.Strlen().Key(key).Cache(), time.Hour)})
		batch := cl.DoMulti(ctx, get(), b.Incr().Key("n:"+key).Build(), b.Strlen().Key(key).Build(), get())
		for i, want := range []string{key, "2", fmt.Sprint(len(key)), key} {
			steps = append(steps, step{want, batch[i]})
		}
		tx := cl.DoMulti(ctx, b.Multi().Build(), b.Get().Key(key).Build(), b.Exec().Build())
		for i, want := range []string{"OK", "QUEUED", key} {
			steps = append(steps, step{want, tx[i]})
		}
	}
	for i, s := range steps {
		if got, err := textOf(s.reply); err != nil || got != s.want {
			return fmt.Errorf("step %d: %q, %v; want %q", i, got, err, s.want)
		}
	}
	return nil
}

// rueidis leaves a command without a reply to its caller, who may try again.
func TestACommandWithoutAReplyIsStillItsCallers(t *testing.T) {
	ctx := begin(t)
	c := open(t, holdfast.Options{})
	cl := c.Client()
	must(t, c.Set(ctx, "k", []byte("v"), time.Hour))
	ended, cancel := context.WithCancel(ctx)
	cancel()
	failed := cl.B().Get().Key("k").Build()
	all := []rueidis.Completed{cl.B().Get().Key("k").Build(), cl.B().Exists().Key("k").Build()}
	for range 100 { // more than one batch of the recycler
		if err := cl.Do(ended, failed).Error(); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		if err := cl.DoCache(ended, rueidis.Cacheable(failed), time.Hour).Error(); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		for _, reply := range cl.DoMulti(ended, all...) {
			if err := reply.Error(); !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
		}
	}
	if s, err := textOf(cl.Do(ctx, failed)); err != nil || s != "v" {
		t.Errorf("the second attempt: %q, %v", s, err)
	}
	for i, reply := range cl.DoMulti(ctx, all...) {
		if s, err := textOf(reply); err != nil || s != []string{"v", "1"}[i] {
			t.Errorf("the second attempt of a batch: %q, %v", s, err)
		}
	}
}
