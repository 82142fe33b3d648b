package holdfast

import (
	"context"
	"time"

	"github.com/holdfast-cache/holdfast/internal/flight"
	"github.com/holdfast-cache/holdfast/internal/inflight"
	"github.com/holdfast-cache/holdfast/internal/keyhash"
	"github.com/holdfast-cache/holdfast/internal/local"
)

// request describes a load that a caller asks for. The leader of a flight carries out its own
// request.
type request struct {
	op    string
	ttl   time.Duration
	o     LoadOptions
	items []loadItem
	// call asks the loader, and sets the value or the error of each item.
	call func(ctx context.Context, items []*loadItem)

	early bool // the present copy is still fresh
	batch bool // of GetOrLoadMany

	reload bool // of Refresh: the loader is asked in any case
	// mayShare: the load of another call that this request meets began after this call.
	mayShare bool

	usable usable
}

// usable reports whether a value can be the answer. It calls a codec, which is user code: it
// is called without a lock and outside of the call gate.
type usable func(key string, val []byte) bool

// of calls u outside of the call gate. It returns false, too, if the gate was closed
// meanwhile; see inflight.Guard.Pause.
func (u usable) of(key string, val []byte, v *inflight.Guard) bool {
	return u == nil || v.Pause(func() bool { return u(key, val) }) && v.Open
}

// anew returns a request for one of the keys, for another try: the goroutine that carried out
// the first try may still be using the original.
func (r *request) anew(it *loadItem) *request {
	again := *r
	again.mayShare = true
	again.items = []loadItem{{key: it.key, h: it.h}}
	return &again
}

// fail wraps an item's error.
func (r *request) fail(it *loadItem, err error) error {
	if r.batch {
		return loadError(r.op, "", err)
	}
	return loadError(r.op, it.key, err)
}

// blame wraps an error that the loader returned. A bare context error or ErrClosed is put
// into an *Error: it comes from a context of the loader's own or from another Cache, not from
// the call.
func (r *request) blame(it *loadItem, err error) error {
	if err := r.fail(it, err); err != ErrClosed && err != context.Canceled && err != context.DeadlineExceeded {
		return err
	}
	e := &Error{Op: r.op, Tier: Loader, Err: err}
	if !r.batch {
		e.Key = it.key
	}
	return e
}

// loadItem is one key of a request.
type loadItem struct {
	key string
	h   keyhash.Hash
	f   *flight.Flight[Entry]

	// The state of the tiers before the load.
	token    local.Token
	answered bool         // Redis answered: no usable value; for an early load: the copy's value
	refused  bool         // Redis answered that this key cannot be read as a value
	base     string       // digest of Redis' value, unusable or to be refreshed; "" for none
	seen     *local.Entry // the local tier's entry

	had    Entry
	loaded Loaded
	err    error
	pause  time.Duration // how long the key is not loaded again
}

func newRequest(op, key string, h keyhash.Hash, ttl time.Duration, o LoadOptions, load LoadFunc) *request {
	return &request{
		op: op, ttl: ttl, o: o, items: []loadItem{{key: key, h: h}},
		call: func(ctx context.Context, items []*loadItem) {
			it := items[0]
			var had *Entry
			if it.had.Value != nil {
				e := it.had
				had = &e
			}
			it.loaded, it.err = load(ctx, had)
		},
	}
}
