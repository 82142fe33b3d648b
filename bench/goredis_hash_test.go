package bench

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/goredis"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
	"github.com/redis/rueidis"
)

// BenchmarkGoRedisHash is an HGETALL of 20 fields by a go-redis client: with holdfast's
// CacheReads, with go-redis' own client-side cache, and alone. The first two are answered
// within the process.
//
//	go test -run '^$' -bench GoRedisHash -count 6
func BenchmarkGoRedisHash(b *testing.B) {
	ctx := context.Background()
	s := redistest.Start(b)
	args := []string{"HSET", "hash"}
	for i := range 20 {
		args = append(args, fmt.Sprint("field", i), fmt.Sprintf("value %020d", i))
	}
	s.MustDo(args...)
	client := func(o redis.Options) *redis.Client {
		o.Addr = s.Addr()
		o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
		rdb := redis.NewClient(&o)
		b.Cleanup(func() { _ = rdb.Close() })
		return rdb
	}
	cache, err := holdfast.New(holdfast.Options{
		Redis: rueidis.ClientOption{InitAddress: []string{s.Addr()}}, Timeout: 10 * time.Second,
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = cache.Close() })
	attached := client(redis.Options{})
	if err := goredis.Attach(attached, cache, goredis.CacheReads()); err != nil {
		b.Fatal(err)
	}
	if err := cache.WaitReady(ctx); err != nil {
		b.Fatal(err)
	}
	for _, c := range []struct {
		name string
		rdb  *redis.Client
	}{
		{"holdfast", attached},
		{"client-side-cache", client(redis.Options{Protocol: 3, ClientSideCacheConfig: &redis.ClientSideCacheConfig{}})},
		{"alone", client(redis.Options{})},
	} {
		read := func(b *testing.B) {
			if all, err := c.rdb.HGetAll(ctx, "hash").Result(); err != nil || len(all) != 20 {
				b.Fatalf("%d fields, %v", len(all), err)
			}
		}
		b.Run(c.name, func(b *testing.B) {
			for range 1000 { // until it is a hit
				read(b)
			}
			b.ReportAllocs()
			for b.Loop() {
				read(b)
			}
		})
	}
}
