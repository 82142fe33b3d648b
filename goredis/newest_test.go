//go:build newest

package goredis_test

import (
	"fmt"
	"sync"
	"testing"

	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/go-redis/v9"
)

// This file tests what the go-redis of newest.mod has, and that of go.mod has not.

func TestGETIntoABufferWorks(t *testing.T) {
	ctx := begin(t)
	rdb, _ := attached(t, calm(redistest.Start(t).Addr()))
	must(t, rdb.Set(ctx, "k", "v", 0).Err())
	buf := make([]byte, 8)
	if n, err := rdb.GetToBuffer(ctx, "k", buf).Result(); n != 1 || err != nil || buf[0] != 'v' {
		t.Errorf("%d, %v, %q", n, err, buf)
	}
}

func TestAutoPipelinesWork(t *testing.T) {
	ctx := begin(t)
	rdb, _ := attached(t, calm(redistest.Start(t).Addr()))
	blocking, err := rdb.AutoPipeline()
	must(t, err)
	deferred, err := rdb.AsyncAutoPipeline()
	must(t, err)
	for _, ap := range []*redis.AutoPipeliner{blocking, deferred} {
		var wg sync.WaitGroup
		for g := range 8 {
			wg.Go(func() {
				key := fmt.Sprint("k", g)
				for i := range 50 {
					set, incr, get := ap.Set(ctx, key, i, 0), ap.Incr(ctx, key), ap.Get(ctx, key)
					if n, err := get.Int(); n != i+1 || err != nil || incr.Val() != int64(i+1) || set.Val() != "OK" {
						t.Errorf("%v, %v, %v", set, incr, get)
						return
					}
				}
			})
		}
		wg.Wait()
		must(t, ap.Close())
	}
}
