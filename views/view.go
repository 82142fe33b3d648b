package views

import (
	"context"
	"errors"
	"math"
	"time"

	"github.com/holdfast-cache/holdfast"
)

// forever is for what its library wants kept without an end. A ttl of 0 would be
// Options.DefaultTTL; this is 292 years.
const forever = time.Duration(math.MaxInt64)

// view is what all views are made of.
type view struct {
	cache  *holdfast.Cache
	prefix string
}

// get tells a miss apart from an error. The bytes are the caller's own: no library's
// interface says that they may not be written to, and a session codec that decrypts
// in place is no rarity. They are never nil if the key is there.
func (v view) get(ctx context.Context, key string) (value []byte, found bool, err error) {
	value, err = v.cache.Get(ctx, v.prefix+key)
	if errors.Is(err, holdfast.ErrMiss) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	return clone(value), true, nil
}

func clone(value []byte) []byte { return append(make([]byte, 0, len(value)), value...) }

// told is for the interfaces that have no place for an error.
func told(hear func(error), err error) {
	if err != nil && hear != nil {
		hear(err)
	}
}
