package holdfast

import (
	"context"
	"time"
)

// Refresh calls load now, whether or not the tiers have a value of the key, keeps the
// value that it returns for ttl (0: Options.DefaultTTL) as GetOrLoad does, and returns
// it. Use it when the source of truth has changed and the next reader must not wait for
// the load. Reads are answered with the old value until the new one is stored. A Set or
// Delete of the key during the load wins over it, as over any load.
//
// The load begins after the call: if the key is being loaded already, Refresh waits for
// the end of that load and then begins another one. Calls of Refresh for the key that
// come in the meantime share that load, so at most one load a key runs in this process.
// Among processes it takes the lease, and waits for the process that has it, for at most
// Load.Lease; then it loads in any case.
//
// If load fails, the old value stays, and the error is that of the load: Refresh answers
// with no old value, and Load.StaleIfError does not apply. ErrNotFound removes the old
// value from both tiers and is remembered for Load.NotFoundTTL. While Redis is away the
// value is kept locally, as GetOrLoad keeps it.
//
// Refresh waits as long as ctx allows. The load goes on when ctx ends, for at most
// Load.HardTimeout, so a caller that needs a refresh in the background can give it a
// short ctx, or a goroutine. Errors are those of GetOrLoad.
//
// The bytes may be shared: read them, do not write to them.
func (c *Cache) Refresh(ctx context.Context, key string, ttl time.Duration, load func(context.Context) ([]byte, error)) ([]byte, error) {
	var plain LoadFunc
	if load != nil {
		plain = plainly(load)
	}
	e, err := c.reload(ctx, "refresh", key, ttl, c.opts.Load, plain)
	return e.Value, err
}

// reload is Refresh with a loader of the form of GetOrLoadWith.
func (c *Cache) reload(ctx context.Context, op, key string, ttl time.Duration, o LoadOptions, load LoadFunc) (Entry, error) {
	r := newRequest(op, key, c.local.Hash(key), ttl, o, load)
	r.reload, r.usable = true, unusable
	for {
		v := c.inflight.Guard()
		if err := loadable(ctx, v.Open, ttl, load == nil); err != nil {
			v.Leave()
			return Entry{}, loadError(op, key, err)
		}
		e, err := c.loaded(ctx, r, v)
		if err != nil || e.Tier == Loader {
			return e, err
		}
		// The call shared a flight that a GetOrLoad led, and that found a value in the
		// tiers.
		r = r.anew(&r.items[0])
	}
}

// unusable is the usable of a reload: no value of the tiers is an answer.
func unusable(string, []byte) bool { return false }
