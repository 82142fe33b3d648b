package views

import (
	"context"
	"time"

	"github.com/holdfast-cache/holdfast"
)

// HTTPCache is a Cache of gregjones/httpcache, for its Transport, and of
// willnorris/imageproxy.
//
// While Redis is away, responses that this process has seen are served as ever, by
// the rules of HTTP; others are fetched. What is stored meanwhile is in Redis
// afterwards.
type HTTPCache struct {
	// OnError is told of what the interface has no place for, on the goroutine of the
	// caller: why a response could not be read, stored or removed. A miss is no error,
	// nor is an outage. Set it before the first use; nil: nobody is told.
	OnError func(error)

	view view
	ttl  time.Duration
}

// NewHTTPCache returns an HTTPCache whose keys in the Cache begin with prefix. The
// interface has no TTL, so everything is kept for ttl, also what is stale by the rules
// of HTTP and may be validated; 0 is Options.DefaultTTL.
func NewHTTPCache(c *holdfast.Cache, prefix string, ttl time.Duration) *HTTPCache {
	return &HTTPCache{view: view{c, prefix}, ttl: ttl}
}

// Get returns what is stored of a response.
func (h *HTTPCache) Get(key string) ([]byte, bool) {
	value, found, err := h.view.get(context.Background(), key)
	told(h.OnError, err)
	return value, found
}

// Set stores a response.
func (h *HTTPCache) Set(key string, response []byte) {
	told(h.OnError, h.view.cache.Set(context.Background(), h.view.prefix+key, response, h.ttl))
}

// Delete removes a response, which may be absent.
func (h *HTTPCache) Delete(key string) {
	told(h.OnError, h.view.cache.Delete(context.Background(), h.view.prefix+key))
}
