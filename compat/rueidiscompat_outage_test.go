package compat

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/rueidis/rueidiscompat"
)

func TestTheAdapterGoesOnWhileRedisIsAway(t *testing.T) {
	for _, o := range outages {
		t.Run(o.name, func(t *testing.T) {
			t.Parallel() // they mostly wait
			redis := redistest.Start(t)
			cache := open(t, redis, time.Second)
			ctx, c := context.Background(), rueidiscompat.NewAdapter(cache.Client())
			must(t, c.Set(ctx, "kept", "1", time.Hour).Err())
			must(t, c.MSet(ctx, "gone", "1", "expires", "1", "taken", "1").Err())
			must(t, c.HSet(ctx, "hash", "f", "v").Err())
			must(t, c.MGet(ctx, "kept", "gone", "expires", "taken").Err())

			o.begin(redis)
			down(t, cache)
			bounded("the program", func() { awayProgram(ctx, t, c) })

			o.end(redis)
			up(t, cache)
			backProgram(ctx, t, c, o.loses)
			equal(t, "set meanwhile, at Redis", redis.MustDo("GET", "new"), "2")
			equal(t, "set over what was there, at Redis", redis.MustDo("GET", "kept"), "3")
			equal(t, "deleted meanwhile, at Redis", redis.MustDo("EXISTS", "gone"), "0")
		})
	}
}

// awayProgram is run without Redis.
func awayProgram(ctx context.Context, t *testing.T, c rueidiscompat.Cmdable) {
	value := func(what string, cmd *rueidiscompat.StringCmd, want string) {
		t.Helper()
		v, err := cmd.Result()
		must(t, err)
		equal(t, what, v, want)
	}
	value("get", c.Get(ctx, "kept"), "1")
	value("get, cached", c.Cache(time.Minute).Get(ctx, "kept"), "1")
	equal(t, "get of nothing", c.Get(ctx, "none").Err(), error(rueidiscompat.Nil))
	equal(t, "get of nothing, cached", c.Cache(time.Minute).Get(ctx, "none").Err(), error(rueidiscompat.Nil))
	equal(t, "mget", fmt.Sprint(c.MGet(ctx, "kept", "none", "expires").Val()), "[1 <nil> 1]")
	equal(t, "exists", c.Exists(ctx, "kept", "gone").Val(), 2)
	if ttl := c.TTL(ctx, "kept").Val(); ttl <= 0 || ttl > time.Hour {
		t.Errorf("ttl: %v; want some of the hour", ttl)
	}

	must(t, c.Set(ctx, "new", "2", 0).Err())
	value("get of what was set", c.Get(ctx, "new"), "2")
	must(t, c.SetEX(ctx, "kept", "3", time.Hour).Err())
	value("get of what was set", c.Get(ctx, "kept"), "3")
	equal(t, "del", c.Del(ctx, "gone", "none").Val(), 1)
	equal(t, "get of the deleted", c.Get(ctx, "gone").Err(), error(rueidiscompat.Nil))
	value("getdel", c.GetDel(ctx, "expires"), "1")
	equal(t, "expire of what was set", c.Expire(ctx, "new", time.Hour).Val(), true)

	p := c.Pipeline()
	p.Set(ctx, "piped", "p", 0)
	get, incr := p.Get(ctx, "piped"), p.Incr(ctx, "taken")
	_, err := p.Exec(ctx)
	unavailable(t, "pipeline with incr", err)
	value("get in the pipeline", get, "p")
	unavailable(t, "incr in the pipeline", incr.Err())

	cas := rueidiscompat.NewScript(`return redis.call("INCR", KEYS[1])`)
	for what, err := range map[string]error{
		"incr":    c.Incr(ctx, "taken").Err(),
		"setnx":   c.SetNX(ctx, "free", "v", 0).Err(),
		"hgetall": c.HGetAll(ctx, "hash").Err(),
		"hset":    c.HSet(ctx, "hash", "f", "v").Err(),
		"cached":  c.Cache(time.Minute).HGetAll(ctx, "hash").Err(),
		"lpush":   c.LPush(ctx, "list", "v").Err(),
		"blpop":   c.BLPop(ctx, time.Minute, "list").Err(),
		"exists":  c.Exists(ctx, "unknown").Err(),
		"eval":    c.Eval(ctx, "return 1", nil).Err(),
		"script":  cas.Run(ctx, c, []string{"taken"}).Err(),
		"scan":    c.Scan(ctx, 0, "*", 10).Err(),
		"ping":    c.Ping(ctx).Err(),
		"publish": c.Publish(ctx, "news", "v").Err(),
		"flush":   c.FlushAll(ctx).Err(),
		"watch":   c.Watch(ctx, func(rueidiscompat.Tx) error { return nil }, "taken"),
		"tx": func() error {
			tx := c.TxPipeline()
			tx.Incr(ctx, "taken")
			_, err := tx.Exec(ctx)
			return err
		}(),
	} {
		unavailable(t, what, err)
	}
	value("get of what could not be changed", c.Get(ctx, "taken"), "1")
}

// backProgram is run with Redis again.
func backProgram(ctx context.Context, t *testing.T, c rueidiscompat.Cmdable, lost bool) {
	equal(t, "set meanwhile", c.Get(ctx, "new").Val(), "2")
	equal(t, "set over what was there", c.Get(ctx, "kept").Val(), "3")
	equal(t, "deleted meanwhile", c.Get(ctx, "gone").Err(), error(rueidiscompat.Nil))
	equal(t, "taken meanwhile", c.Get(ctx, "expires").Err(), error(rueidiscompat.Nil))
	equal(t, "set in a pipeline", c.Get(ctx, "piped").Val(), "p")
	if ttl := c.TTL(ctx, "new").Val(); ttl <= 0 || ttl > time.Hour {
		t.Errorf("ttl given meanwhile: %v; want some of the hour", ttl)
	}
	want := int64(2)
	if lost {
		want = 1
	}
	n, err := c.Incr(ctx, "taken").Result()
	must(t, err)
	equal(t, "incr", n, want)
	must(t, c.LPush(ctx, "list", "v").Err())
	equal(t, "blpop", fmt.Sprint(c.BLPop(ctx, time.Minute, "list").Val()), "[list v]")
	must(t, c.Eval(ctx, "return 1", nil).Err())
	must(t, c.Watch(ctx, func(rueidiscompat.Tx) error { return nil }, "taken"))
}

// What waits at Redis is told when Redis goes.
func TestWhatTheAdapterWaitsForEndsWithRedis(t *testing.T) {
	redis := redistest.Start(t)
	cache := open(t, redis, time.Second)
	ctx, c := context.Background(), rueidiscompat.NewAdapter(cache.Client())
	popped := make(chan error, 1)
	go func() { popped <- c.BLPop(ctx, 0, "list").Err() }()
	redistest.WaitFor(t, patience, "the pop to wait", func() bool {
		return redis.MustDo("EVAL", `return redis.call("INFO", "clients"):match("blocked_clients:(%d+)")`, "0") == "1"
	})
	redis.Kill()
	bounded("blpop", func() { unavailable(t, "blpop", <-popped) })
}

// A subscription finds its way back.
func TestASubscriptionOfTheAdapterOutlivesAnOutage(t *testing.T) {
	redis := redistest.Start(t)
	cache := open(t, redis, time.Second)
	ctx, c := context.Background(), rueidiscompat.NewAdapter(cache.Client())
	sub := c.Subscribe(ctx, "news")
	heard := sub.Channel(rueidiscompat.WithChannelSize(100))
	say := func(text string) {
		t.Helper()
		redistest.WaitFor(t, patience, "a message to be heard", func() bool {
			_ = c.Publish(ctx, "news", text)
			select {
			case m := <-heard:
				return m.Payload == text
			default:
				return false
			}
		})
	}
	say("before")
	redis.Kill()
	down(t, cache)
	redis.RestartEmpty()
	up(t, cache)
	say("after")
	bounded("close", func() { must(t, sub.Close()) })
}
