package main

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/Yiling-J/theine-go"
	"github.com/dgraph-io/ristretto/v2"
	gocache "github.com/eko/gocache/lib/v4/cache"
	"github.com/eko/gocache/lib/v4/store"
	gocacheredis "github.com/eko/gocache/store/redis/v4"
	gocacheristretto "github.com/eko/gocache/store/ristretto/v4"
	rediscache "github.com/go-redis/cache/v9"
	"github.com/holdfast-cache/holdfast"
	"github.com/maypok86/otter/v2"
	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"
	"github.com/viccon/sturdyc"
)

// keptFor is the TTL of all values that have one.
const keptFor = time.Hour

// patience is holdfast's Timeout: here it is not measured how a call ends that takes long.
const patience = 10 * time.Second

// cache is a first tier.
type cache interface {
	get(key string) bool
	put(key string, value []byte)
	// settle waits for the work that puts have left behind.
	settle()
	close()
}

// local is a kind of cache whose size is given in a unit of its own.
type local struct {
	name  string
	open  func(size int) (cache, error)
	unit  int // units of an entry of valueSize, with room to spare
	least int // the size of a small cache
}

// locals are the caches without Redis.
func locals() []local {
	return []local{
		{"holdfast", openHoldfast, 640, 64 << 20}, // bytes; 64 MiB are the default
		{"otter", openOtter, 1, 1000},
		{"theine", openTheine, 1, 1000},
		{"ristretto", openRistretto(0), 1, 1000},
		{"ristretto with TTL", openRistretto(keptFor), 1, 1000},
		{"sturdyc", openSturdyc, 2, 2000}, // its shards are not of the same size
	}
}

// roomFor opens a cache that has no need to evict any of n entries.
func (l local) roomFor(n int) (cache, error) { return l.open(max(n*l.unit*11/10, l.least)) }

type holdfastCache struct {
	c    *holdfast.Cache
	puts *atomic.Uint64
}

func openHoldfast(size int) (cache, error) {
	c, err := holdfast.New(holdfast.Options{Local: holdfast.LocalOptions{MaxBytes: max(int64(size), 64<<10)}})
	return holdfastCache{c, new(atomic.Uint64)}, err
}

func (h holdfastCache) get(key string) bool {
	_, err := h.c.Get(context.Background(), key)
	return err == nil
}

func (h holdfastCache) put(key string, value []byte) {
	h.c.Set(context.Background(), key, value, 0)
	h.puts.Add(1)
}

// settle waits until each put has become an entry or been refused: for a second at most,
// because a key may have been put twice.
func (h holdfastCache) settle() {
	for end := time.Now().Add(time.Second); time.Now().Before(end); time.Sleep(100 * time.Microsecond) {
		s := h.c.Stats()
		if uint64(s.LocalEntries)+s.LocalEvicted+s.LocalDropped >= h.puts.Load() {
			return
		}
	}
}

func (h holdfastCache) close() { h.c.Close() }

type otterCache struct{ c *otter.Cache[string, []byte] }

func openOtter(size int) (cache, error) {
	c, err := otter.New(&otter.Options[string, []byte]{MaximumSize: size})
	return otterCache{c}, err
}

func (o otterCache) get(key string) bool {
	_, ok := o.c.GetIfPresent(key)
	return ok
}

func (o otterCache) put(key string, value []byte) { o.c.Set(key, value) }
func (o otterCache) settle()                      { o.c.CleanUp() }
func (o otterCache) close()                       { o.c.StopAllGoroutines() }

type theineCache struct{ c *theine.Cache[string, []byte] }

func openTheine(size int) (cache, error) {
	c, err := theine.NewBuilder[string, []byte](int64(size)).Build()
	return theineCache{c}, err
}

func (t theineCache) get(key string) bool {
	_, ok := t.c.Get(key)
	return ok
}

func (t theineCache) put(key string, value []byte) { t.c.Set(key, value, 1) }
func (t theineCache) settle()                      { t.c.Wait() }
func (t theineCache) close()                       { t.c.Close() }

type ristrettoCache struct {
	c   *ristretto.Cache[string, []byte]
	ttl time.Duration
}

func newRistretto[V any](size int) (*ristretto.Cache[string, V], error) {
	return ristretto.NewCache(&ristretto.Config[string, V]{
		NumCounters: int64(size) * 10, MaxCost: int64(size), BufferItems: 64, IgnoreInternalCost: true,
	})
}

func openRistretto(ttl time.Duration) func(size int) (cache, error) {
	return func(size int) (cache, error) {
		c, err := newRistretto[[]byte](size)
		return ristrettoCache{c, ttl}, err
	}
}

func (r ristrettoCache) get(key string) bool {
	_, ok := r.c.Get(key)
	return ok
}

func (r ristrettoCache) put(key string, value []byte) { r.c.SetWithTTL(key, value, 1, r.ttl) }
func (r ristrettoCache) settle()                      { r.c.Wait() }
func (r ristrettoCache) close()                       { r.c.Close() }

type sturdycCache struct{ c *sturdyc.Client[[]byte] }

// openSturdyc has the number of shards and the percentage of sturdyc's examples.
func openSturdyc(size int) (cache, error) {
	return sturdycCache{sturdyc.New[[]byte](size, 100, keptFor, 25)}, nil
}

func (s sturdycCache) get(key string) bool {
	_, ok := s.c.Get(key)
	return ok
}

func (s sturdycCache) put(key string, value []byte) { s.c.Set(key, value) }
func (s sturdycCache) settle()                      {}
func (s sturdycCache) close()                       {}

// twoTiers are caches whose second tier is Redis.
func twoTiers() []struct {
	name string
	open func(addr string, n int) (cache, error)
} {
	return []struct {
		name string
		open func(addr string, n int) (cache, error)
	}{
		{"holdfast", openTracked},
		{"rueidis DoCache", openDoCache},
		{"go-redis/cache", openRedisCache},
		{"gocache", openGocache},
	}
}

// trackedCache is holdfast with a Redis that reports changes.
type trackedCache struct{ holdfastCache }

// connect opens a Cache with default options but for Timeout.
func connect(addr string) (*holdfast.Cache, error) {
	c, err := holdfast.New(holdfast.Options{
		Redis: rueidis.ClientOption{InitAddress: []string{addr}}, Timeout: patience,
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := c.WaitReady(ctx); err != nil {
		c.Close()
		return nil, err
	}
	if !c.Health().Tracking {
		c.Close()
		return nil, errors.New("the server does not report changes")
	}
	return c, nil
}

func openTracked(addr string, _ int) (cache, error) {
	c, err := connect(addr)
	if err != nil {
		return nil, err
	}
	return trackedCache{holdfastCache{c, new(atomic.Uint64)}}, nil
}

// allLocal returns a function that reports reads which were not answered by a copy that
// Redis has confirmed.
func allLocal(c *holdfast.Cache) func() error {
	before := c.Stats()
	return func() error {
		d := c.Stats().Minus(before)
		if others := d.DoubtHits + d.StaleHits + d.JournalHits + d.RemoteHits + d.Misses + d.ReadErrors; others > 0 {
			return fmt.Errorf("%d of the reads were no hits of confirmed copies: %+v", others, d)
		}
		if !c.Health().Tracking {
			return errors.New("the server no longer reports changes")
		}
		return nil
	}
}

type doCache struct{ client rueidis.Client }

func openDoCache(addr string, _ int) (cache, error) {
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{addr}})
	return doCache{client}, err
}

func (d doCache) get(key string) bool {
	_, err := d.client.DoCache(context.Background(), d.client.B().Get().Key(key).Cache(), keptFor).AsBytes()
	return err == nil
}

func (d doCache) put(key string, value []byte) {
	d.client.Do(context.Background(), d.client.B().Set().Key(key).Value(rueidis.BinaryString(value)).Px(keptFor).Build())
}

func (d doCache) settle() {}
func (d doCache) close()  { d.client.Close() }

// redisCache is go-redis/cache with a TinyLFU before Redis. Its values are bytes, which it
// does not encode.
type redisCache struct {
	c      *rediscache.Cache
	client *redis.Client
}

func openRedisCache(addr string, n int) (cache, error) {
	client := redis.NewClient(&redis.Options{Addr: addr})
	return redisCache{rediscache.New(&rediscache.Options{
		Redis: client, LocalCache: rediscache.NewTinyLFU(n*11/10, keptFor),
	}), client}, nil
}

func (r redisCache) get(key string) bool {
	var b []byte
	return r.c.Get(context.Background(), key, &b) == nil
}

func (r redisCache) put(key string, value []byte) {
	r.c.Set(&rediscache.Item{Key: key, Value: value, TTL: keptFor})
}

func (r redisCache) settle() {}
func (r redisCache) close()  { r.client.Close() }

// chain is gocache's ChainCache: its ristretto store before its redis store.
type chain struct {
	c      *gocache.ChainCache[any]
	first  *ristretto.Cache[string, any]
	client *redis.Client
}

// anyKey is ristretto/v2 as gocache's store wants it.
type anyKey struct{ *ristretto.Cache[string, any] }

func (a anyKey) Get(key any) (any, bool) { return a.Cache.Get(key.(string)) }
func (a anyKey) Del(key any)             { a.Cache.Del(key.(string)) }
func (a anyKey) SetWithTTL(key, value any, cost int64, ttl time.Duration) bool {
	return a.Cache.SetWithTTL(key.(string), value, max(cost, 1), ttl)
}

func openGocache(addr string, n int) (cache, error) {
	first, err := newRistretto[any](n * 11 / 10)
	if err != nil {
		return nil, err
	}
	client := redis.NewClient(&redis.Options{Addr: addr})
	return chain{gocache.NewChain[any](
		gocache.New[any](gocacheristretto.NewRistretto(anyKey{first}, store.WithExpiration(keptFor))),
		gocache.New[any](gocacheredis.NewRedis(client, store.WithExpiration(keptFor))),
	), first, client}, nil
}

func (c chain) get(key string) bool {
	_, err := c.c.Get(context.Background(), key)
	return err == nil
}

func (c chain) put(key string, value []byte) { c.c.Set(context.Background(), key, value) }
func (c chain) settle()                      { c.first.Wait() }

func (c chain) close() {
	c.client.Close()
	c.first.Close()
}
