package holdfast

import "context"

// A write of ours wins over a load of its key that began before it. There is no lock
// over the two, for a load takes as long as it likes:
//
//   - Before a write takes its place among the key's writes, what is being stored is
//     marked. What was loaded looks for the mark where it takes its own place, under
//     the same lock. So either it sees the mark and goes no further, or the write has
//     the later place. A load that began between the mark and the write's place finds
//     another entry in that than it saw before.
//   - With its place taken, the write ends whatever loads, and waits for what is being
//     stored: two commands under way at once have no order.
//   - When the write is done, whatever flight began beside it is not joined any more,
//     and what it loads not stored: it may have found what was there before.

// putOver is local.put, and has the write win over a load of the key. False means that
// it is what was loaded, and that a write won over it.
func (c *Cache) putOver(ctx context.Context, w *change, now int64) (done bool) {
	if w.flight != nil {
		w.old, w.seq, done = c.local.putUnless(w.hash, w.entry, &w.flight.late, w.seen)
		return done
	}
	c.outdate(w)
	w.old, w.seq = c.local.put(w.hash, w.entry)
	if c.routes == nil {
		return true // nothing else is under way: the order in the local tier is all
	}
	cancel := noCancel
	if c.flights.n.Load() != 0 {
		ctx, cancel = c.remote.budget.of(ctx, now)
	}
	defer cancel()
	if c.overtake(ctx, w) {
		w.old, w.seq = c.local.put(w.hash, w.entry)
		c.outdate(w)
	}
	return true
}

// overtake has the write win over a load of the key, once it has its place in the order
// of the key's writes: what was loaded is not kept, and where it is being stored, that
// ends first. It waits for that, for no longer than ctx allows, and says whether it did.
func (c *Cache) overtake(ctx context.Context, w *change) (waited bool) {
	stored := c.flights.overtake(w.hash)
	if stored == nil {
		return false
	}
	select {
	case <-stored:
	case <-ctx.Done():
	}
	return true
}

// outdate comes before a write takes its place, so that what is being stored learns of
// it, and when the write is done: a flight that began beside it may have found what
// was there before, and who asks from now on must not get that.
func (c *Cache) outdate(w *change) {
	if w.flight == nil {
		c.flights.overtake(w.hash)
	}
}
