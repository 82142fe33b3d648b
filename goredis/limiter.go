package goredis

import (
	"context"

	"github.com/holdfast-cache/holdfast"
	"github.com/redis/go-redis/v9"
)

// Limiter is for redis.Options.Limiter, where a client is to have the cache's breaker and
// nothing else: while Redis is away every command fails at once with
// holdfast.ErrUnavailable, and no connection is dialled. It serves nothing from the cache
// and invalidates nothing in it, and a command that is under way when Redis goes away
// waits for as long as the client's own timeouts say.
//
// It is safe for concurrent use and lives as long as the cache. In a cluster it allows
// nothing while one shard is away; use Attach there.
type Limiter struct{ cache *holdfast.Cache }

var _ redis.Limiter = (*Limiter)(nil)

// NewLimiter returns a Limiter with the breaker of the cache, which must go to the same
// Redis.
func NewLimiter(cache *holdfast.Cache) *Limiter { return &Limiter{cache} }

// Allow returns nil, holdfast.ErrUnavailable or, once the cache is closed,
// holdfast.ErrClosed; see Cache.Available, also for how long it waits.
func (l *Limiter) Allow() error { return l.cache.Available(context.Background()) }

// ReportResult does nothing: the cache has its own way of finding out.
func (l *Limiter) ReportResult(error) {}
