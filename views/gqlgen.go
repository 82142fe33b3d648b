package views

import (
	"context"
	"time"

	"github.com/holdfast-cache/holdfast"
)

// GQLGen is a graphql.Cache[string] of 99designs/gqlgen, for its
// extension.AutomaticPersistedQuery.
//
// While Redis is away, queries that this process has seen are known; for others the
// client is asked to send the query in full. Queries added meanwhile are in Redis
// afterwards.
type GQLGen struct {
	// OnError, if not nil, gets the errors that the interface cannot return, on the
	// goroutine of the caller: a query could not be read or stored. Neither a miss nor an
	// outage is an error. Set it before the first use.
	OnError func(error)

	view view
	ttl  time.Duration
}

// NewGQLGen returns a GQLGen whose keys in the Cache begin with prefix. The interface has
// no TTL, so queries are kept for ttl; 0 means Options.DefaultTTL. Any client of the
// server may add queries, so give them an expiry.
func NewGQLGen(c *holdfast.Cache, prefix string, ttl time.Duration) *GQLGen {
	return &GQLGen{view: view{c, prefix}, ttl: ttl}
}

// Get returns a query by its hash, or false on a miss or an error.
func (g *GQLGen) Get(ctx context.Context, key string) (string, bool) {
	value, found, err := g.view.get(ctx, key)
	told(g.OnError, err)
	return string(value), found
}

// Add stores a query. An error goes to OnError.
func (g *GQLGen) Add(ctx context.Context, key, value string) {
	told(g.OnError, g.view.cache.Set(ctx, g.view.prefix+key, []byte(value), g.ttl))
}
