package conformance

import (
	"context"
	"errors"
	"strconv"
	"testing"
	"time"

	gocache "github.com/go-redis/cache/v9"
	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/holdfast-cache/holdfast/views"
)

type product struct {
	ID   int
	Name string
}

func TestGoRedisCacheWithAViewInThePlaceOfTinyLFU(t *testing.T) {
	ctx := context.Background()
	redis := redistest.Start(t)
	var asked counted
	start := func(c *holdfast.Cache) *gocache.Cache {
		local := views.NewLocalCache(c, "shop:", time.Hour)
		local.OnError = func(err error) { t.Error(err) }
		return gocache.New(&gocache.Options{LocalCache: local})
	}
	once := func(shop *gocache.Cache, id int, name string) {
		t.Helper()
		var got product
		must(t, shop.Once(&gocache.Item{Key: strconv.Itoa(id), Value: &got, Do: func(*gocache.Item) (any, error) {
			asked.ask()
			return product{id, name}, nil
		}}))
		equal(t, "product", got, product{id, name})
	}
	c := open(t, redis)
	here, there := start(c), start(open(t, redis))
	once(here, 1, "a chair long enough to be compressed by the library, which it is from 64 bytes on")
	once(here, 1, "a chair long enough to be compressed by the library, which it is from 64 bytes on")
	once(there, 1, "a chair long enough to be compressed by the library, which it is from 64 bytes on")
	equal(t, "requests", asked.n.Load(), 1)
	must(t, here.Set(&gocache.Item{Key: "bytes", Value: []byte("plain")}))
	var b []byte
	must(t, there.Get(ctx, "bytes", &b))
	equal(t, "bytes", string(b), "plain")
	if err := here.Get(ctx, "none", &b); !errors.Is(err, gocache.ErrCacheMiss) {
		t.Errorf("%v; want ErrCacheMiss", err)
	}

	kill(t, redis, c)
	once(here, 1, "a chair long enough to be compressed by the library, which it is from 64 bytes on")
	equal(t, "requests in the outage for what is known", asked.n.Load(), 1)
	once(here, 2, "table")
	once(here, 2, "table")
	equal(t, "requests in the outage", asked.n.Load(), 2)
	must(t, here.Delete(ctx, "bytes"))
	if here.Exists(ctx, "bytes") {
		t.Error("what was deleted in the outage is there")
	}

	restart(t, redis, c)
	third := start(open(t, redis))
	once(third, 2, "table")
	equal(t, "requests afterwards", asked.n.Load(), 2)
	if third.Exists(ctx, "bytes") {
		t.Error("what was deleted in the outage is back")
	}
}
