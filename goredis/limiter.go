package goredis

import (
	"context"

	"github.com/holdfast-cache/holdfast"
	"github.com/redis/go-redis/v9"
)

// Limiter is a redis.Options.Limiter for a client that uses only the cache's breaker.
// While Redis is away every command fails at once with holdfast.ErrUnavailable, and no
// connection is dialled. It serves nothing from the cache and invalidates nothing in it.
// A command that is under way when Redis goes away waits for as long as the client's own
// timeouts say.
//
// It is safe for concurrent use and needs no closing. In a cluster it allows nothing
// while one shard is away; use Attach there.
type Limiter struct{ cache *holdfast.Cache }

var _ redis.Limiter = (*Limiter)(nil)

// NewLimiter returns a Limiter with the breaker of the cache, which must use the same
// Redis.
func NewLimiter(cache *holdfast.Cache) *Limiter { return &Limiter{cache} }

// Allow returns nil, holdfast.ErrUnavailable or, once the cache is closed,
// holdfast.ErrClosed. While the cache connects for the first time, or after it lost an
// unused connection, Allow waits for that attempt, for at most Options.Timeout. Otherwise
// it does not block. See Cache.Available.
func (l *Limiter) Allow() error { return l.cache.Available(context.Background()) }

// ReportResult does nothing: the cache detects outages by itself.
func (l *Limiter) ReportResult(error) {}
