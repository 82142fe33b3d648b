package goredis

import (
	"context"
	"testing"

	"github.com/holdfast-cache/holdfast"
	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"
)

// Every name with every odd number of odd arguments, in every kind of command, where
// nobody listens: an error or an answer, and no panic.
func TestNoCommandPanics(t *testing.T) {
	t.Run("by default", func(t *testing.T) { noCommandPanics(t) })
	t.Run("CacheReads", func(t *testing.T) { noCommandPanics(t, CacheReads()) })
}

func noCommandPanics(t *testing.T, opts ...Option) {
	ctx := context.Background()
	const nowhere = "127.0.0.1:1"
	cache, err := holdfast.New(holdfast.Options{Redis: rueidis.ClientOption{InitAddress: []string{nowhere}}})
	if err != nil {
		t.Fatal(err)
	}
	defer cache.Close()
	rdb := redis.NewClient(&redis.Options{Addr: nowhere})
	defer rdb.Close()
	if err := Attach(rdb, cache, opts...); err != nil {
		t.Fatal(err)
	}
	kinds := []func(args ...any) redis.Cmder{
		func(args ...any) redis.Cmder { return redis.NewCmd(ctx, args...) },
		func(args ...any) redis.Cmder { return redis.NewStringCmd(ctx, args...) },
		func(args ...any) redis.Cmder { return redis.NewStatusCmd(ctx, args...) },
		func(args ...any) redis.Cmder { return redis.NewIntCmd(ctx, args...) },
		func(args ...any) redis.Cmder { return redis.NewBoolCmd(ctx, args...) },
		func(args ...any) redis.Cmder { return redis.NewDurationCmd(ctx, 1, args...) },
		func(args ...any) redis.Cmder { return redis.NewSliceCmd(ctx, args...) },
		func(args ...any) redis.Cmder { return redis.NewMapStringStringCmd(ctx, args...) },
		func(args ...any) redis.Cmder { return redis.NewScanCmd(ctx, nil, args...) },
		func(args ...any) redis.Cmder { return redis.NewStringSliceCmd(ctx, args...) },
		func(args ...any) redis.Cmder { return redis.NewZSliceCmd(ctx, args...) },
	}
	odd := []any{nil, "", "k", []byte("\xff\x00"), -1, 1e300, struct{}{}, "streams", "ex", "99999999999999999999", func() {}, []any{1}}
	names := []any{"nonesuch", []byte("GET"), 7, nil, ""}
	for name := range specs {
		names = append(names, name)
	}
	for i, name := range names {
		for n := range 5 {
			args := []any{name}
			for j := range n {
				args = append(args, odd[(i+n*5+j*7)%len(odd)])
			}
			for _, kind := range kinds {
				_ = rdb.Process(ctx, kind(args...))
				cmds, _ := rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
					_ = p.Process(ctx, kind("set", "k", "v"))
					_ = p.Process(ctx, kind(args...))
					return p.Process(ctx, kind("get", "k"))
				})
				if len(cmds) != 3 {
					t.Fatalf("%v: %d commands", args, len(cmds))
				}
			}
		}
	}
}
