package views

import (
	"context"
	"time"

	"github.com/holdfast-cache/holdfast"
)

// LocalCache is a LocalCache of go-redis/cache, in place of its TinyLFU, and the local
// tier of mgtv-tech/jetcache-go. Leave the library's own Redis nil, because the Cache has
// Redis behind it: values in the library's local tier are then in Redis, too, and
// disappear here when another process changes them.
//
// In this use go-redis/cache ignores or changes some fields of its Item. TTL: the view's
// applies. SetNX and SetXX: the value is set unconditionally. SkipLocalCache: every read
// misses and nothing is stored.
//
// While Redis is away, values that this process has seen are still there; others are
// misses, for which Once calls its function. Values stored and deleted meanwhile are so
// in Redis afterwards.
type LocalCache struct {
	// OnError, if not nil, gets the errors that the interface cannot return, on the
	// goroutine of the caller: a value could not be read, stored or removed. Neither a
	// miss nor an outage is an error. Set it before the first use.
	OnError func(error)

	view view
	ttl  time.Duration
}

// NewLocalCache returns a LocalCache whose keys in the Cache begin with prefix. The
// interface has no TTL, so values are kept for ttl; 0 means Options.DefaultTTL.
func NewLocalCache(c *holdfast.Cache, prefix string, ttl time.Duration) *LocalCache {
	return &LocalCache{view: view{c, prefix}, ttl: ttl}
}

// Get returns a value, or false on a miss or an error.
func (l *LocalCache) Get(key string) ([]byte, bool) {
	value, found, err := l.view.get(context.Background(), key)
	told(l.OnError, err)
	return value, found
}

// Set stores a value. An error goes to OnError.
func (l *LocalCache) Set(key string, data []byte) {
	told(l.OnError, l.view.cache.Set(context.Background(), l.view.prefix+key, data, l.ttl))
}

// Del removes a value, which may be absent. An error goes to OnError.
func (l *LocalCache) Del(key string) {
	told(l.OnError, l.view.cache.Delete(context.Background(), l.view.prefix+key))
}
