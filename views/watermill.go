package views

import (
	"context"
	"time"

	"github.com/holdfast-cache/holdfast"
)

// Watermill is an ExpiringKeyRepository of ThreeDotsLabs/watermill, for its
// Deduplicator, among all processes that share the Redis.
//
// Whether a message is a duplicate is for Redis alone to say. While it is away every
// message is refused with holdfast.ErrUnavailable, to be delivered again: none is
// handled twice, and none is dropped as the duplicate of one that was not handled.
type Watermill struct {
	view
	window time.Duration
}

// NewWatermill returns a Watermill whose keys in the Cache begin with prefix, and which
// remembers each for window.
func NewWatermill(c *holdfast.Cache, prefix string, window time.Duration) *Watermill {
	return &Watermill{view{c, prefix}, window}
}

// IsDuplicate says whether the key was asked about within the window before. It waits
// for at most Options.Timeout. Errors are those of Cache.Add, among them
// holdfast.ErrUnavailable, and holdfast.ErrInvalidTTL where the window is not positive:
// a key that is remembered without an end would be a duplicate for ever.
func (w *Watermill) IsDuplicate(ctx context.Context, key string) (bool, error) {
	if w.window <= 0 {
		return false, &holdfast.Error{Op: "add", Key: w.prefix + key, Err: holdfast.ErrInvalidTTL}
	}
	added, err := w.cache.Add(ctx, w.prefix+key, []byte{'1'}, w.window)
	return err == nil && !added, err
}
