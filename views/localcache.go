package views

import (
	"context"
	"time"

	"github.com/holdfast-cache/holdfast"
)

// LocalCache is a LocalCache of go-redis/cache, in the place of its TinyLFU, and the
// local tier of mgtv-tech/jetcache-go. Since it has Redis behind it, leave the
// library's own Redis nil: what it keeps locally is then in Redis too, and gone from
// here when another process changes it.
//
// So used, go-redis/cache has no use for some fields of its Item. TTL: that of the
// view holds. SetNX and SetXX: it sets. SkipLocalCache: it always misses and stores
// nothing.
//
// While Redis is away, what this process has seen is still there; the rest is a miss,
// for which Once calls its function. What is stored and deleted meanwhile is so in
// Redis afterwards.
type LocalCache struct {
	// OnError is told of what the interface has no place for, on the goroutine of the
	// caller: why a value could not be read, stored or removed. A miss is no error, nor
	// is an outage. Set it before the first use; nil: nobody is told.
	OnError func(error)

	view view
	ttl  time.Duration
}

// NewLocalCache returns a LocalCache whose keys in the Cache begin with prefix. The
// interface has no TTL, so values are kept for ttl; 0 is Options.DefaultTTL.
func NewLocalCache(c *holdfast.Cache, prefix string, ttl time.Duration) *LocalCache {
	return &LocalCache{view: view{c, prefix}, ttl: ttl}
}

// Get returns a value.
func (l *LocalCache) Get(key string) ([]byte, bool) {
	value, found, err := l.view.get(context.Background(), key)
	told(l.OnError, err)
	return value, found
}

// Set stores a value.
func (l *LocalCache) Set(key string, data []byte) {
	told(l.OnError, l.view.cache.Set(context.Background(), l.view.prefix+key, data, l.ttl))
}

// Del removes a value, which may be absent.
func (l *LocalCache) Del(key string) {
	told(l.OnError, l.view.cache.Delete(context.Background(), l.view.prefix+key))
}
