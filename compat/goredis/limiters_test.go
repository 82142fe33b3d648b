package programs

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/go-redis/redis_rate/v10"
	"github.com/redis/go-redis/v9"
	"github.com/throttled/throttled/v2"
	throttledstore "github.com/throttled/throttled/v2/store/goredisstore.v9"
	"github.com/ulule/limiter/v3"
	ululestore "github.com/ulule/limiter/v3/drivers/store/redis"
)

func ululeUsual(t *testing.T, rdb *redis.Client, r *record, run int) {
	ctx := within(t)
	store, err := ululestore.NewStoreWithOptions(rdb, limiter.StoreOptions{Prefix: fmt.Sprint("ulule", run)})
	must(t, err)
	five := limiter.New(store, limiter.Rate{Period: time.Minute, Limit: 5})
	note := func(what string, c limiter.Context, err error) {
		reset := about(time.Until(time.Unix(c.Reset, 0)))
		r.note(what, fmt.Sprint(c.Limit, c.Remaining, c.Reached, reset), err)
	}
	peek := func(key string) {
		c, err := five.Peek(ctx, key)
		note("peek "+key, c, err)
	}
	peek("ada")
	for range 7 {
		c, err := five.Get(ctx, "ada")
		note("get ada", c, err)
		peek("ada")
	}
	c, err := five.Increment(ctx, "bob", 4)
	note("increment bob", c, err)
	c, err = five.Increment(ctx, "bob", 4)
	note("increment bob", c, err)
	n, err := rdb.Get(ctx, fmt.Sprintf("ulule%d:bob", run)).Result()
	r.note("its key", n, err)
	c, err = five.Reset(ctx, "ada")
	note("reset ada", c, err)
	peek("ada")
	peek("bob")
	r.note("flush of the scripts", rdb.ScriptFlush(ctx).Val(), nil)
	c, err = five.Get(ctx, "ada")
	note("get ada without the script", c, err)

	short := limiter.New(store, limiter.Rate{Period: 100 * time.Millisecond, Limit: 1})
	c, err = short.Get(ctx, "eve")
	r.note("get eve", c.Remaining, err)
	time.Sleep(200 * time.Millisecond)
	c, err = short.Get(ctx, "eve")
	r.note("get eve in the next period", c.Remaining, err)
	time.Sleep(200 * time.Millisecond) // it is gone on both servers in the end
	r.note("its key after the period", nil, rdb.Get(ctx, fmt.Sprintf("ulule%d:eve", run)).Err())
}

func ululeInOutage(t *testing.T, open connect) []operation {
	rdb := open()
	var store limiter.Store
	prepared(t, func() (err error) { store, err = ululestore.NewStore(rdb); return err })
	hourly := limiter.New(store, limiter.Rate{Period: time.Hour, Limit: 1_000_000})
	return []operation{
		{name: "NewStore", alone: true, call: func(context.Context) error { _, err := ululestore.NewStore(rdb); return err }},
		{name: "Get", alone: true, call: func(ctx context.Context) error { _, err := hourly.Get(ctx, "ada"); return err }},
		{name: "Peek", alone: true, call: func(ctx context.Context) error { _, err := hourly.Peek(ctx, "ada"); return err }},
		{name: "Reset", call: func(ctx context.Context) error { _, err := hourly.Reset(ctx, "bob"); return err }},
	}
}

func throttledUsual(t *testing.T, rdb *redis.Client, r *record, run int) {
	ctx := within(t)
	prefix := fmt.Sprint("throttled", run, ":")
	store, err := throttledstore.NewCtx(rdb, prefix)
	must(t, err)
	rate, err := throttled.NewGCRARateLimiterCtx(store, throttled.RateQuota{MaxRate: throttled.PerHour(1), MaxBurst: 4})
	must(t, err)
	ask := func(key string, n int) {
		limited, res, err := rate.RateLimitCtx(ctx, key, n)
		reset, retry := res.ResetAfter.Round(time.Hour), res.RetryAfter.Round(time.Hour)
		r.note(fmt.Sprint(n, " for ", key), fmt.Sprint(limited, res.Limit, res.Remaining, reset, retry), err)
	}
	for _, n := range []int{0, 1, 1, 0, 2, 2, 1, 1, 0, 10} {
		ask("ada", n)
	}
	for _, n := range []int{5, 1, 0} {
		ask("bob", n)
	}
	for range 2 {
		ttl, err := rdb.TTL(ctx, prefix+"bob").Result()
		r.note("ttl", ttl.Round(time.Hour), err)
	}
	_, err = rdb.Del(ctx, prefix+"bob").Result()
	r.note("delete by the client", nil, err)
	ask("bob", 1)
	r.note("text by the client", rdb.Set(ctx, prefix+"eve", "text", time.Hour).Val(), nil)
	ask("eve", 1)

	value, _, err := store.GetWithTime(ctx, "none")
	r.note("nothing in the store", value, err)
	for range 2 {
		ok, err := store.SetIfNotExistsWithTTL(ctx, "direct", 7, time.Hour)
		r.note("set if absent", ok, err)
	}
	for _, old := range []int64{1, 7} {
		ok, err := store.CompareAndSwapWithTTL(ctx, "direct", old, 8, time.Hour)
		r.note("compare and swap", ok, err)
	}
	ok, err := store.CompareAndSwapWithTTL(ctx, "none", 1, 2, time.Hour)
	r.note("compare and swap of nothing", ok, err)
	value, _, err = store.GetWithTime(ctx, "direct")
	r.note("the value in the store", value, err)
}

func throttledInOutage(t *testing.T, open connect) []operation {
	rdb := open()
	store, err := throttledstore.NewCtx(rdb, "throttled:")
	must(t, err)
	rate, err := throttled.NewGCRARateLimiterCtx(store, throttled.RateQuota{MaxRate: throttled.PerSec(1000), MaxBurst: 100_000})
	must(t, err)
	return []operation{
		{name: "RateLimit", alone: true, call: func(ctx context.Context) error { _, _, err := rate.RateLimitCtx(ctx, "ada", 1); return err }},
	}
}

func redisRateUsual(t *testing.T, rdb *redis.Client, r *record, run int) {
	ctx := within(t)
	rate := redis_rate.NewLimiter(rdb)
	ask := func(what, key string, n int, f func(context.Context, string, redis_rate.Limit, int) (*redis_rate.Result, error)) {
		res, err := f(ctx, fmt.Sprint(key, run), redis_rate.PerHour(5), n)
		if err != nil {
			r.note(what, nil, err)
			return
		}
		round := 12 * time.Minute // a fifth of the hour
		r.note(fmt.Sprint(what, " ", n, " for ", key),
			fmt.Sprint(res.Allowed, res.Remaining, res.RetryAfter.Round(round), res.ResetAfter.Round(round)), err)
	}
	for _, n := range []int{1, 1, 0, 2, 2, 1, 1} {
		ask("allow", "ada", n, rate.AllowN)
	}
	for _, n := range []int{2, 10, 1} {
		ask("allow at most", "bob", n, rate.AllowAtMost)
	}
	r.note("reset", nil, rate.Reset(ctx, fmt.Sprint("ada", run)))
	ask("allow", "ada", 1, rate.AllowN)
	r.note("flush of the scripts", rdb.ScriptFlush(ctx).Val(), nil)
	ask("allow", "ada", 1, rate.AllowN)
	r.note("delete by the client", rdb.Del(ctx, fmt.Sprint("rate:bob", run)).Val(), nil)
	ask("allow", "bob", 1, rate.AllowN)
	r.note("text by the client", rdb.Set(ctx, fmt.Sprint("rate:eve", run), "text", time.Hour).Val(), nil)
	res, err := rate.Allow(ctx, fmt.Sprint("eve", run), redis_rate.PerMinute(1))
	r.note("allow with a text in its place", res == nil, nil)
	r.note("its error is one of Redis", isRedisError(err), nil)
}

func isRedisError(err error) bool {
	_, ok := err.(redis.Error)
	return ok
}

func redisRateInOutage(_ *testing.T, open connect) []operation {
	rdb := open()
	rate := redis_rate.NewLimiter(rdb)
	return []operation{
		{name: "Allow", alone: true, call: func(ctx context.Context) error {
			_, err := rate.Allow(ctx, "ada", redis_rate.PerSecond(1000))
			return err
		}},
		{name: "Reset", call: func(ctx context.Context) error { return rate.Reset(ctx, "bob") }},
	}
}
