package views

import (
	"context"
	"time"

	"github.com/holdfast-cache/holdfast"
)

// Watermill is an ExpiringKeyRepository of ThreeDotsLabs/watermill, for its Deduplicator,
// among all processes that share the Redis.
//
// Only Redis can decide whether a message is a duplicate. While it is away, every message
// is refused with holdfast.ErrUnavailable, to be delivered again: none is handled twice,
// and none is dropped as the duplicate of a message that was not handled.
type Watermill struct {
	view
	window time.Duration
}

// NewWatermill returns a Watermill whose keys in the Cache begin with prefix. It
// remembers each key for window, which must be positive.
func NewWatermill(c *holdfast.Cache, prefix string, window time.Duration) *Watermill {
	return &Watermill{view{c, prefix}, window}
}

// IsDuplicate reports whether the key was passed to it within the last window. It waits
// for at most Options.Timeout. Errors are those of Cache.Add, among them
// holdfast.ErrUnavailable, and holdfast.ErrInvalidTTL if the window is not positive: a
// key without an expiry would be a duplicate for ever.
func (w *Watermill) IsDuplicate(ctx context.Context, key string) (bool, error) {
	if w.window <= 0 {
		return false, &holdfast.Error{Op: "add", Key: w.prefix + key, Err: holdfast.ErrInvalidTTL}
	}
	added, err := w.cache.Add(ctx, w.prefix+key, []byte{'1'}, w.window)
	return err == nil && !added, err
}
