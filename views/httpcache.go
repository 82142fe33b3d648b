package views

import (
	"context"
	"time"

	"github.com/holdfast-cache/holdfast"
)

// HTTPCache is a Cache of gregjones/httpcache, for its Transport, and of
// willnorris/imageproxy.
//
// While Redis is away, responses that this process has seen are served as usual, by the
// rules of HTTP; others are fetched. Responses stored meanwhile are in Redis afterwards.
type HTTPCache struct {
	// OnError, if not nil, gets the errors that the interface cannot return, on the
	// goroutine of the caller: a response could not be read, stored or removed. Neither a
	// miss nor an outage is an error. Set it before the first use.
	OnError func(error)

	view view
	ttl  time.Duration
}

// NewHTTPCache returns an HTTPCache whose keys in the Cache begin with prefix. The
// interface has no TTL, so all responses are kept for ttl, including those that are stale
// by the rules of HTTP and may be validated; 0 means Options.DefaultTTL.
func NewHTTPCache(c *holdfast.Cache, prefix string, ttl time.Duration) *HTTPCache {
	return &HTTPCache{view: view{c, prefix}, ttl: ttl}
}

// Get returns a stored response, or false on a miss or an error.
func (h *HTTPCache) Get(key string) ([]byte, bool) {
	value, found, err := h.view.get(context.Background(), key)
	told(h.OnError, err)
	return value, found
}

// Set stores a response. An error goes to OnError.
func (h *HTTPCache) Set(key string, response []byte) {
	told(h.OnError, h.view.cache.Set(context.Background(), h.view.prefix+key, response, h.ttl))
}

// Delete removes a response, which may be absent. An error goes to OnError.
func (h *HTTPCache) Delete(key string) {
	told(h.OnError, h.view.cache.Delete(context.Background(), h.view.prefix+key))
}
