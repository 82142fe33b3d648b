package views

import (
	"context"
	"time"

	"github.com/holdfast-cache/holdfast"
)

// GQLGen is a graphql.Cache[string] of 99designs/gqlgen, for its
// extension.AutomaticPersistedQuery.
//
// While Redis is away, a query that this process has seen is known; for another the
// client is asked to send it in full. What is added meanwhile is in Redis afterwards.
type GQLGen struct {
	// OnError is told of what the interface has no place for, on the goroutine of the
	// caller: why a query could not be read or stored. A miss is no error, nor is an
	// outage. Set it before the first use; nil: nobody is told.
	OnError func(error)

	view view
	ttl  time.Duration
}

// NewGQLGen returns a GQLGen whose keys in the Cache begin with prefix. The interface
// has no TTL, so queries are kept for ttl; 0 is Options.DefaultTTL. Anybody may add
// one: do not keep them without an end.
func NewGQLGen(c *holdfast.Cache, prefix string, ttl time.Duration) *GQLGen {
	return &GQLGen{view: view{c, prefix}, ttl: ttl}
}

// Get returns a query by its hash.
func (g *GQLGen) Get(ctx context.Context, key string) (string, bool) {
	value, found, err := g.view.get(ctx, key)
	told(g.OnError, err)
	return string(value), found
}

// Add stores a query.
func (g *GQLGen) Add(ctx context.Context, key, value string) {
	told(g.OnError, g.view.cache.Set(ctx, g.view.prefix+key, []byte(value), g.ttl))
}
