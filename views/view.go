package views

import (
	"context"
	"errors"
	"math"
	"time"

	"github.com/holdfast-cache/holdfast"
)

// forever is the TTL of values without an expiry, 292 years. A ttl of 0 would mean
// Options.DefaultTTL.
const forever = time.Duration(math.MaxInt64)

// view is the common part of the views.
type view struct {
	cache  *holdfast.Cache
	prefix string
}

// get tells a miss from an error. The bytes are a copy: no library's interface forbids
// its callers to modify them, and some session codecs decrypt in place. They are never
// nil if the key is there.
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

// told passes an error to the OnError function of a view, if there is one.
func told(hear func(error), err error) {
	if err != nil && hear != nil {
		hear(err)
	}
}
