package goredis_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/go-redis/v9"
)

// A SET that names a lifetime has that one, with any DefaultTTL.
func TestASetLivesAsLongAsItSays(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	o := calm(s.Addr())
	o.DefaultTTL = time.Minute
	rdb, _ := attached(t, o)
	plain := plain(t, &redis.Options{Addr: s.Addr()})
	for _, value := range []any{"text", []byte("bytes"), 7} {
		for ttl, want := range map[time.Duration]time.Duration{
			0: -1, time.Hour: time.Hour, 90 * time.Minute: 90 * time.Minute, 5_400_500 * time.Millisecond: 5_400_500 * time.Millisecond,
		} {
			if said, err := rdb.Set(ctx, "k", value, ttl).Result(); said != "OK" || err != nil {
				t.Fatalf("SET %v for %v: %q, %v", value, ttl, said, err)
			}
			got, err := plain.PTTL(ctx, "k").Result()
			if err != nil || got > want || got < want-time.Minute/2 {
				t.Errorf("SET %v for %v: Redis has it for %v, %v", value, ttl, got, err)
			}
		}
	}
}

func TestASetCopiesItsBytesAndReturnsTheErrorsOfGoRedis(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	rdb, _ := attached(t, calm(s.Addr()))
	value := []byte("bytes")
	must(t, rdb.Set(ctx, "k", value, 0).Err())
	value[0] = 'x'
	if v, err := rdb.Get(ctx, "k").Result(); v != "bytes" || err != nil {
		t.Errorf("%q, %v: the caller has changed its bytes", v, err)
	}
	over, cancel := context.WithCancel(ctx)
	cancel()
	if err := rdb.Set(over, "k", "v", 0).Err(); err != context.Canceled {
		t.Errorf("of a context that has ended: %v", err)
	}
	admin := plain(t, &redis.Options{Addr: s.Addr()})
	must(t, admin.Do(ctx, "ACL", "SETUSER", "default", "-set").Err())
	want := admin.Set(ctx, "k", "v", 0).Err()
	if want == nil {
		t.Fatal("SET is allowed")
	}
	err := rdb.Set(ctx, "k", "v", 0).Err()
	var said redis.Error
	if !errors.As(err, &said) || err.Error() != want.Error() {
		t.Errorf("%v; want %v", err, want)
	}
}

// The copies of the value and the allocations of go-redis itself are most of them; a command
// that is encoded, built and parsed has ten more.
func TestASetAllocatesLittle(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	rdb, _ := attached(t, calm(s.Addr()))
	const n = 1000
	keys := make([]string, n+1)
	for i := range keys {
		keys[i] = fmt.Sprint("k", i)
	}
	value := fmt.Sprintf("%0100d", 0)
	got := testing.AllocsPerRun(n, func() {
		if err := rdb.Set(ctx, keys[0], value, time.Hour).Err(); err != nil {
			t.Error(err)
		}
		keys = keys[1:]
	})
	if t.Logf("%v allocations", got); got > 14 {
		t.Errorf("%v allocations", got)
	}
}
