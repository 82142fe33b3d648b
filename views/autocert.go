package views

import (
	"context"
	"errors"

	"github.com/holdfast-cache/holdfast"
)

// Autocert is a Cache of golang.org/x/crypto/acme/autocert.
//
// A miss has autocert order a certificate, or register an account and overwrite the
// key of the one there was; and authorities limit how often. So a miss that Redis has
// not confirmed is none: while Redis is away, Get of what this process does not know
// returns holdfast.ErrUnavailable, and the handshake fails. What is known is served,
// and what is stored meanwhile is in Redis afterwards.
//
// The values are private keys, in Redis and, should it be away, in Journal.Dir.
type Autocert struct {
	view
	miss error
}

// NewAutocert returns an Autocert whose keys in the Cache begin with prefix. The miss
// error is autocert.ErrCacheMiss: autocert compares with it, and this package does not
// import it.
func NewAutocert(c *holdfast.Cache, prefix string, miss error) *Autocert {
	return &Autocert{view{c, prefix}, miss}
}

// Get returns what is stored, or the miss error. Errors are also
// holdfast.ErrUnavailable, the context's own, holdfast.ErrClosed, and what Redis says
// of this command.
func (a *Autocert) Get(ctx context.Context, key string) ([]byte, error) {
	e, err := a.cache.Lookup(ctx, a.prefix+key)
	switch {
	case err == nil:
		return clone(e.Value), nil
	case !errors.Is(err, holdfast.ErrMiss):
		return nil, err
	case e.Degraded && e.Tier != holdfast.Journal:
		return nil, &holdfast.Error{Op: "get", Key: a.prefix + key, Tier: e.Tier, Err: holdfast.ErrUnavailable}
	default:
		return nil, a.miss // Redis has none, or it was deleted here
	}
}

// Put stores data without an end, also where Options.DefaultTTL is set: in Redis the
// key has a TTL of 292 years, or none. Errors are those of Cache.Set.
func (a *Autocert) Put(ctx context.Context, key string, data []byte) error {
	return a.cache.Set(ctx, a.prefix+key, data, forever)
}

// Delete removes a key, which may be absent. Errors are those of Cache.Delete.
func (a *Autocert) Delete(ctx context.Context, key string) error {
	return a.cache.Delete(ctx, a.prefix+key)
}
