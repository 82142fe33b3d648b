package goredis_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/goredis"
	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"
)

// A program on go-redis goes on while there is no Redis.
func ExampleAttach() {
	rdb := redis.NewClient(&redis.Options{Addr: "localhost:1"}) // nothing listens there
	defer rdb.Close()

	cache, err := holdfast.New(holdfast.Options{
		Redis:  rueidis.ClientOption{InitAddress: []string{"localhost:1"}},
		Logger: slog.Default(),
	})
	if err != nil {
		panic(err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		if err := cache.Shutdown(ctx); err != nil {
			fmt.Println(err) // says how many writes did not reach Redis
		}
	}()
	if err := goredis.Attach(rdb, cache); err != nil { // the line that is added
		panic(err)
	}

	ctx := context.Background()
	fmt.Println(rdb.Set(ctx, "greeting", "hello", time.Minute).Result())
	fmt.Println(rdb.Get(ctx, "greeting").Result())
	fmt.Println(errors.Is(rdb.Get(ctx, "other").Err(), redis.Nil))
	fmt.Println(errors.Is(rdb.Incr(ctx, "visits").Err(), holdfast.ErrUnavailable))
	// Output:
	// OK <nil>
	// hello <nil>
	// true
	// true
	// holdfast: close: 1 writes did not reach redis: context deadline exceeded
}

// Of the cache only the breaker: commands fail at once while Redis is away.
func ExampleNewLimiter() {
	cache, err := holdfast.Open("redis://localhost:1")
	if err != nil {
		panic(err)
	}
	defer cache.Close()
	rdb := redis.NewClient(&redis.Options{Addr: "localhost:1", Limiter: goredis.NewLimiter(cache)})
	defer rdb.Close()

	fmt.Println(errors.Is(rdb.Get(context.Background(), "greeting").Err(), holdfast.ErrUnavailable))
	// Output:
	// true
}
