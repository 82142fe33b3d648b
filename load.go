package holdfast

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// LoadFunc asks the source of truth. had is the copy that this process still has,
// past its end or about to be, or one without Value where it has none: a source that
// can tell whether it changed (an ETag, a version) may answer with NotModified.
//
// It runs on a goroutine of its own, for all who ask for the key meanwhile. Its
// context has the values of the first caller's and ends with Load.HardLimit, when
// the Cache is closed, or when nobody waits for the load any more. It may use the
// Cache for other keys; asking for its own is an error. A panic is one, too.
type LoadFunc func(ctx context.Context, had Entry) (Loaded, error)

// Loaded is what a LoadFunc returns.
type Loaded struct {
	// Value is copied. nil is an empty value: what there is not is ErrNotFound.
	Value []byte
	// NotModified: the value is that of the copy that the loader was given, which
	// gets a new life. Value is not looked at.
	NotModified bool
	// TTL of this value; 0: as the caller asked. Negative: who waits for it gets
	// it, and it is not kept.
	TTL time.Duration
	// StaleIfError of this value, as in LoadOptions, known to this process for as
	// long as it keeps the copy; 0: as the caller asked. Negative: not at all.
	StaleIfError time.Duration
}

// PanicError is what callers get whose loader panicked.
type PanicError struct {
	Value any    // what it panicked with
	Stack []byte // where
}

func (p *PanicError) Error() string { return fmt.Sprintf("holdfast: the loader panicked: %v", p.Value) }

func (p *PanicError) Unwrap() error {
	err, _ := p.Value.(error)
	return err
}

// GetOrLoad is Get, and where that is a miss, the value that load returns, which is
// kept for ttl as with Set; 0 means Options.DefaultTTL. However many ask for the key,
// load is called once at a time in this process, and mostly once among all that
// share the Redis (see LoadOptions.Lease). A fresh local copy is returned at once. Else the
// call waits for Redis, for at most Options.Timeout, and then for the load, as long
// as ctx allows; a load goes on as long as anybody waits for it.
//
// A Set or Delete of the key wins over a load that is under way: who waits gets what
// was loaded, and it is not kept. That it could not be kept is never an error of the
// call.
//
// Errors: load's own, in an *Error; ErrNotFound among them, which is remembered for
// Load.NotFoundTTL; *PanicError; one that says that Load.HardLimit has passed, or that
// the loader asked for its own key; those of Get but for ErrMiss. See LoadOptions for
// what may answer in place of an error.
//
// The bytes may be shared: read them, do not write to them.
func (c *Cache) GetOrLoad(ctx context.Context, key string, ttl time.Duration, load func(context.Context) ([]byte, error)) ([]byte, error) {
	return nil, errors.ErrUnsupported
}

// Load is GetOrLoad with options of its own, a loader that sees the copy there was,
// and the circumstances of the answer. The Entry's Tier is Loader for what this call
// waited for.
func (c *Cache) Load(ctx context.Context, key string, ttl time.Duration, o LoadOptions, load LoadFunc) (Entry, error) {
	return Entry{}, errors.ErrUnsupported
}

// GetOrLoadMany is GetMany, and one call of load for the keys that are missing and
// that nobody in this process loads already; for those it waits. A key that load does
// not return is not found: it is absent from the map, and that is remembered for
// Load.NotFoundTTL. What it returns beside the keys that it was asked for is not
// looked at.
//
// It waits as GetOrLoad does. The error is the one of GetMany, or of the load; what
// was found nevertheless is returned beside it. Batches are shared within the process
// and take no lease.
func (c *Cache) GetOrLoadMany(ctx context.Context, keys []string, ttl time.Duration, load func(context.Context, []string) (map[string][]byte, error)) (map[string][]byte, error) {
	return nil, errors.ErrUnsupported
}
