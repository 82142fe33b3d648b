package views

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/holdfast-cache/holdfast"
)

// Fiber is a Storage of Fiber v2 and v3, for its middleware: session, cache, csrf,
// limiter, idempotency. Make one for each middleware, with a prefix of its own.
//
// While Redis is away, sessions and responses that this process has seen are still there.
// Others are not: their users are asked to log in again, and pages are made anew. Values
// stored meanwhile are in Redis afterwards. Until then the limiter counts in each process
// separately, and idempotency keys that another process has seen are not known. The
// limiter is never exact across processes, because Fiber reads the count and writes it
// back.
type Fiber struct{ view }

// NewFiber returns a Fiber whose keys in the Cache begin with prefix.
func NewFiber(c *holdfast.Cache, prefix string) *Fiber {
	return &Fiber{view{c, prefix}}
}

// own copies the key. Fiber's strings may point into a request's buffer, which the next
// request overwrites, and a command that timed out may be sent after the call.
func (f *Fiber) own(key string) string {
	if f.prefix == "" {
		return strings.Clone(key)
	}
	return key // adding the prefix makes a copy
}

// Get is GetWithContext without a context.
func (f *Fiber) Get(key string) ([]byte, error) {
	return f.GetWithContext(context.Background(), key)
}

// GetWithContext returns the value, or nil and no error on a miss. A miss is also the
// answer for an unknown key while Redis is away, and for an empty key. Errors are the
// context's own, holdfast.ErrClosed, and Redis' errors about this command.
func (f *Fiber) GetWithContext(ctx context.Context, key string) ([]byte, error) {
	if key == "" {
		return nil, nil
	}
	value, _, err := f.get(ctx, f.own(key))
	return value, err
}

// Set is SetWithContext without a context.
func (f *Fiber) Set(key string, val []byte, exp time.Duration) error {
	return f.SetWithContext(context.Background(), key, val, exp)
}

// SetWithContext stores the value for exp. As in Fiber, 0 means no expiration, even if
// Options.DefaultTTL is set (in Redis the key has a TTL of 292 years, or none), and an
// empty key or value is ignored. A negative exp deletes the key. A fraction of a
// millisecond is rounded up. Errors are those of Cache.Set.
func (f *Fiber) SetWithContext(ctx context.Context, key string, val []byte, exp time.Duration) error {
	switch {
	case key == "" || len(val) == 0:
		return nil
	case exp < 0:
		return f.DeleteWithContext(ctx, key)
	case exp == 0:
		exp = forever
	}
	return f.cache.Set(ctx, f.prefix+f.own(key), val, exp)
}

// Delete is DeleteWithContext without a context.
func (f *Fiber) Delete(key string) error {
	return f.DeleteWithContext(context.Background(), key)
}

// DeleteWithContext removes the key, which may be absent. Errors are those of
// Cache.Delete.
func (f *Fiber) DeleteWithContext(ctx context.Context, key string) error {
	if key == "" {
		return nil
	}
	return f.cache.Delete(ctx, f.prefix+f.own(key))
}

// Reset is ResetWithContext without a context.
func (f *Fiber) Reset() error { return f.ResetWithContext(context.Background()) }

var errReset = fmt.Errorf("holdfast: views: a Cache cannot be emptied by prefix, and flushing its redis would take what others have there: %w", errors.ErrUnsupported)

// ResetWithContext does nothing and returns an error that wraps errors.ErrUnsupported.
// Redis is not flushed, because others share it. The keys under a prefix cannot all be
// found: a scan misses keys that another process has not replayed yet. To end all
// sessions at once, change the prefix.
func (f *Fiber) ResetWithContext(context.Context) error { return errReset }

// Close does nothing: the Cache may be shared, and its owner closes it.
func (f *Fiber) Close() error { return nil }
