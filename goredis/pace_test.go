package goredis_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/goredis"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/go-redis/v9"
)

// paced is a client of a Redis that is away.
func paced(t *testing.T, after time.Duration) *redis.Client {
	s := redistest.Start(t)
	c := open(t, at(s.Addr()))
	rdb := plain(t, &redis.Options{Addr: s.Addr()})
	rdb.AddHook(goredis.Pace(after))
	must(t, goredis.Attach(rdb, c))
	ready(t, c)
	s.Kill()
	waitState(t, c, holdfast.Down)
	return rdb
}

var needRedis = map[string]func(context.Context, *redis.Client) error{
	"a command":  func(ctx context.Context, rdb *redis.Client) error { return rdb.Incr(ctx, "n").Err() },
	"a blocking": func(ctx context.Context, rdb *redis.Client) error { return rdb.BLPop(ctx, time.Second, "l").Err() },
	"a pipeline": func(ctx context.Context, rdb *redis.Client) error {
		_, err := rdb.Pipelined(ctx, func(p redis.Pipeliner) error { p.Incr(ctx, "n"); return nil })
		return err
	},
	"a transaction": func(ctx context.Context, rdb *redis.Client) error {
		_, err := rdb.TxPipelined(ctx, func(p redis.Pipeliner) error { p.Incr(ctx, "n"); return nil })
		return err
	},
	"a message": func(ctx context.Context, rdb *redis.Client) error {
		sub := rdb.Subscribe(ctx, "news")
		_, err := sub.ReceiveMessage(ctx)
		return errors.Join(err, sub.Close())
	},
}

func TestAPacedLoopIsSlowWhileRedisIsAway(t *testing.T) {
	const after = 20 * time.Millisecond
	ctx := begin(t)
	rdb := paced(t, after)
	for what, f := range needRedis {
		if took, err := timed(func() error { return f(ctx, rdb) }); !errors.Is(err, holdfast.ErrUnavailable) || took < after {
			t.Errorf("%s: %v after %v", what, err, took)
		}
	}
}

func TestAPaceEndsWithTheContextAndDelaysNothingThatIsAnswered(t *testing.T) {
	ctx := begin(t)
	rdb := paced(t, time.Hour)
	for what, f := range needRedis {
		short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		if err := f(short, rdb); !errors.Is(err, holdfast.ErrUnavailable) || short.Err() == nil {
			t.Errorf("%s: %v, and its context: %v", what, err, short.Err())
		}
		cancel()
	}
	must(t, rdb.Set(ctx, "k", "v", 0).Err())
	if v, err := rdb.Get(ctx, "k").Result(); v != "v" || err != nil {
		t.Errorf("%q, %v", v, err)
	}
}
