package views

import (
	"context"
	"errors"

	"github.com/holdfast-cache/holdfast"
)

// Autocert is a Cache of golang.org/x/crypto/acme/autocert.
//
// A miss makes autocert order a certificate, or register an account and overwrite the key
// of the existing one, and authorities limit how often. So only a miss that Redis has
// confirmed is reported as one. While Redis is away, Get of a key that this process does
// not know returns holdfast.ErrUnavailable, and the handshake fails. Known keys are
// served, and keys stored meanwhile are in Redis afterwards.
//
// The values are private keys. They are in Redis and, during an outage, in Journal.Dir.
type Autocert struct {
	view
	miss error
}

// NewAutocert returns an Autocert whose keys in the Cache begin with prefix. The miss
// error must be autocert.ErrCacheMiss: autocert compares with it, and this package does
// not import it.
func NewAutocert(c *holdfast.Cache, prefix string, miss error) *Autocert {
	return &Autocert{view{c, prefix}, miss}
}

// Get returns the stored value, or the miss error. Other errors are
// holdfast.ErrUnavailable, the context's own, holdfast.ErrClosed, and Redis' errors about
// this command. It waits for at most Options.Timeout.
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
		return nil, a.miss // Redis has no value, or the key was deleted here
	}
}

// Put stores data without an expiry, even if Options.DefaultTTL is set: in Redis the key
// has a TTL of 292 years, or none. Errors and waiting are those of Cache.Set.
func (a *Autocert) Put(ctx context.Context, key string, data []byte) error {
	return a.cache.Set(ctx, a.prefix+key, data, forever)
}

// Delete removes a key, which may be absent. Errors and waiting are those of
// Cache.Delete.
func (a *Autocert) Delete(ctx context.Context, key string) error {
	return a.cache.Delete(ctx, a.prefix+key)
}
