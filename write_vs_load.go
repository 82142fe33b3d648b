package holdfast

import (
	"context"

	"github.com/holdfast-cache/holdfast/internal/link"
)

// A write of ours supersedes a load of its key that began before it. No lock covers both, for
// a load may take any time:
//
//   - Before a write gets its sequence number, it marks the load that is being stored. The
//     store checks the mark under the stripe lock in which it gets its own number. So either
//     it sees the mark and stops, or the write has the later number. A load that began
//     between the mark and the write's number finds, when it stores, another entry than it
//     saw before, and stops.
//   - After it has its number, the write supersedes a load in progress, and waits for one
//     that is being stored: two commands in flight at once have no order.
//   - After the write, no caller joins a flight that began beside it, and its result is not
//     stored: it may have read the previous value.

// putSuperseding is local.Tier.Put, and makes the write supersede a load of the key. It
// returns false if w is itself the result of a load, and a write has superseded that.
func (c *Cache) putSuperseding(ctx context.Context, w *write, now int64) (done bool) {
	if w.flight != nil {
		w.old, w.seq, done = c.local.PutUnless(w.hash, w.entry, &w.flight.SupersededDuringStore, w.seen)
		return done
	}
	c.invalidateFlight(w)
	w.old, w.seq = c.local.Put(w.hash, w.entry)
	if c.routes == nil {
		return true // local only: there is no other order than the local tier's
	}
	cancel := link.NoCancel
	if c.flights.N.Load() != 0 {
		ctx, cancel = c.remote.Budget.Of(ctx, now)
	}
	defer cancel()
	if c.supersede(ctx, w) {
		w.old, w.seq = c.local.Put(w.hash, w.entry)
		c.invalidateFlight(w)
	}
	return true
}

// supersede makes the write supersede a load of the key, once the write has its sequence
// number. It waits for a result that is being stored, no longer than ctx allows, and reports
// whether it waited.
func (c *Cache) supersede(ctx context.Context, w *write) (waited bool) {
	stored := c.flights.Supersede(w.hash)
	if stored == nil {
		return false
	}
	select {
	case <-stored:
	case <-ctx.Done():
	}
	return true
}

// invalidateFlight is called twice for a write. Before the write gets its sequence number, it marks a
// result that is being stored. After the write, it frees the key's place from a flight that
// began meanwhile: that may have read the previous value, and later callers must not get it.
func (c *Cache) invalidateFlight(w *write) {
	if w.flight == nil {
		c.flights.Supersede(w.hash)
	}
}
