package holdfast

import (
	"context"
	"time"
)

// request is what a caller wants loaded. Who leads a flight carries out its own.
type request struct {
	op    string
	ttl   time.Duration
	o     LoadOptions
	items []loadItem
	// call asks the loader, and gives each item a value or an error.
	call func(ctx context.Context, items []*loadItem)

	early bool // the present copy is still good
	batch bool // of GetOrLoadMany

	reload bool // of Refresh: the loader is asked in any case
	// mayShare: the load of another call that this request meets began after this call.
	mayShare bool

	usable usable
}

// usable says whether a value may be the answer. It is a codec, and so the caller's
// code: it is asked under no lock and outside of the fence.
type usable func(key string, value []byte) bool

// of is asked within the visit, which may have ended in vain then: see visit.outside.
func (u usable) of(key string, value []byte, v *visit) bool {
	return u == nil || v.outside(func() bool { return u(key, value) }) && v.open
}

// anew is the request for one of its keys, for a further try: who carried out the
// first may still be at it.
func (r *request) anew(it *loadItem) *request {
	again := *r
	again.mayShare = true
	again.items = []loadItem{{key: it.key, h: it.h}}
	return &again
}

// fail words what went wrong with an item.
func (r *request) fail(it *loadItem, err error) error {
	if r.batch {
		return loadError(r.op, "", err)
	}
	return loadError(r.op, it.key, err)
}

// blame words an error that the loader returned. A context of its own that has ended,
// or another Cache that is closed, is not the caller's.
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
	h   keyHash
	f   *flight

	// What the tiers said before the load.
	token    token
	answered bool   // Redis did, and has no such key; or it has had, if the load is early
	refused  bool   // Redis did, and does not let this key be read as a value
	base     string // digest of what it has all the same: what is not usable, or to be refreshed
	seen     *entry // what the local tier had

	had    Entry
	loaded Loaded
	err    error
}

func newRequest(op, key string, h keyHash, ttl time.Duration, o LoadOptions, load LoadFunc) *request {
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
