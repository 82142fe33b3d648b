package views

import (
	"context"
	"time"

	"github.com/holdfast-cache/holdfast"
)

// SCS is a Store and a CtxStore of alexedwards/scs. It is not iterable:
// SessionManager.Iterate panics.
//
// While Redis is away, sessions that this process has seen go on, and their changes are
// in Redis afterwards. Other sessions are not found, so their users are asked to log in
// again. If another process destroys a session, this process does not know that until
// Redis is back; Options.Outage.ServeFor bounds how long such a session is served.
type SCS struct{ view }

// NewSCS returns an SCS whose keys in the Cache begin with prefix. The token behind it
// comes with the request: see the package's documentation on keys.
func NewSCS(c *holdfast.Cache, prefix string) *SCS {
	return &SCS{view{c, prefix}}
}

// Find is FindCtx without a context.
func (s *SCS) Find(token string) ([]byte, bool, error) {
	return s.FindCtx(context.Background(), token)
}

// FindCtx returns a session's data, or false if there is none or, during an outage, if it
// is not known here. Errors are the context's own, holdfast.ErrClosed, and Redis' errors
// about this command.
func (s *SCS) FindCtx(ctx context.Context, token string) ([]byte, bool, error) {
	return s.get(ctx, token)
}

// Commit is CommitCtx without a context.
func (s *SCS) Commit(token string, b []byte, expiry time.Time) error {
	return s.CommitCtx(context.Background(), token, b, expiry)
}

// CommitCtx stores a session's data until expiry, rounded up to a millisecond. An expiry
// in the past deletes the session. Errors are those of Cache.Set.
func (s *SCS) CommitCtx(ctx context.Context, token string, b []byte, expiry time.Time) error {
	ttl := time.Until(expiry)
	if ttl <= 0 {
		return s.DeleteCtx(ctx, token)
	}
	return s.cache.Set(ctx, s.prefix+token, b, ttl)
}

// Delete is DeleteCtx without a context.
func (s *SCS) Delete(token string) error {
	return s.DeleteCtx(context.Background(), token)
}

// DeleteCtx removes a session, which may be absent. Errors are those of Cache.Delete;
// after any of them the session may still be there.
func (s *SCS) DeleteCtx(ctx context.Context, token string) error {
	return s.cache.Delete(ctx, s.prefix+token)
}
