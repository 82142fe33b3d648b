package holdfast

import "context"

// A write of ours wins over a load of its key that began before it. There is no lock
// over the two, for a load takes as long as it likes:
//
//   - Before a write takes its place among the key's writes, what is being stored is
//     marked. What is loaded looks for the mark once it has its own place, and before
//     Redis or the journal hears of it. So either it sees the mark and goes no further,
//     or the write has the later place.
//   - With its place taken, the write ends whatever loads, and waits for what is being
//     stored: two commands under way at once have no order.
//   - When the write is done, whatever flight began beside it is not joined any more:
//     it may have found what was there before.

// putOver is local.put, and has the write win over a load of the key. False means that
// it is what was loaded, and that a write won over it.
func (c *Cache) putOver(ctx context.Context, w *change, now int64) bool {
	c.outdate(w)
	w.old, w.seq = c.local.put(w.hash, w.entry)
	cancel := noCancel
	if c.routes != nil && c.flights.n.Load() != 0 {
		ctx, cancel = c.remote.budget.of(ctx, now)
	}
	defer cancel()
	switch c.overtake(ctx, w) {
	case overrun:
		c.local.put(w.hash, nil)
		return false
	case waited:
		w.old, w.seq = c.local.put(w.hash, w.entry)
		c.outdate(w)
	}
	return true
}

// precedence is what came of a meeting of a write and a load.
type precedence uint8

const (
	unmet   precedence = iota
	waited             // the write waited for a loaded value to be stored
	overrun            // it is what was loaded, and a write came over it
)

// overtake has the write win over a load of the key, once it has its place in the order
// of the key's writes: what was loaded is not kept, and where it is being stored, that
// ends first. It waits for that, for no longer than ctx and Options.Timeout.
func (c *Cache) overtake(ctx context.Context, w *change) precedence {
	if w.flight != nil {
		if c.flights.overrun(w.flight) {
			return overrun
		}
		return unmet
	}
	stored := c.flights.overtake(w.hash)
	if stored == nil {
		return unmet
	}
	select {
	case <-stored:
	case <-ctx.Done():
	}
	return waited
}

// outdate comes before a write takes its place, so that what is being stored learns of
// it, and when the write is done: a flight that began beside it may have found what
// was there before, and who asks from now on must not get that.
func (c *Cache) outdate(w *change) {
	if w.flight == nil {
		c.flights.overtake(w.hash)
	}
}
