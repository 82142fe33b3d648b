package holdfast

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/flight"
	"github.com/holdfast-cache/holdfast/internal/inflight"
	"github.com/holdfast-cache/holdfast/internal/journal"
	"github.com/holdfast-cache/holdfast/internal/keyhash"
	"github.com/holdfast-cache/holdfast/internal/link"
	"github.com/holdfast-cache/holdfast/internal/local"
)

var (
	errHardTimeout = errors.New("holdfast: the load did not end within Load.HardTimeout")
	errGoexit      = errors.New("holdfast: the loader, or the codec, called runtime.Goexit")
	errNotModified = errors.New("holdfast: the loader says that the copy is still right, and was given none")
)

// loadContext is the context of a load. It has the values of the first caller's context, and ends
// with the Cache.
type loadContext struct {
	context.Context // the Cache's life
	caller          context.Context
	run             *flight.Run[Entry]
}

func (l *loadContext) Value(key any) any {
	if key == (loaderOf{}) {
		return l.run
	}
	// The context package asks by a key of its own for the context whose end ends this one. That
	// is not the caller's.
	if v := l.Context.Value(key); v != nil {
		return v
	}
	return l.caller.Value(key)
}

// runLoad carries out a run: it asks the loader for the keys of the request, stores the result,
// and ends the flights. It runs on a goroutine of its own.
func (c *Cache) runLoad(ctx context.Context, r *request) {
	returned := false
	defer func() {
		if !returned { // a codec has ended the goroutine
			c.giveUp(r, refs(r.items), errGoexit)
		}
	}()
	c.loadItems(ctx, r)
	returned = true
}

// loadItems is runLoad, unless the goroutine ends meanwhile.
func (c *Cache) loadItems(ctx context.Context, r *request) {
	thisRun := r.items[0].f.Run
	ctx, cancel := context.WithCancel(&loadContext{c.life, ctx, thisRun})
	defer cancel()
	if !thisRun.Start(cancel) {
		return // abandoned by its callers
	}
	taken, err := c.acquireLoadSlot(ctx, thisRun, r.o.HardTimeout)
	if err != nil {
		c.giveUp(r, refs(r.items), err)
		return
	}
	if taken {
		defer c.releaseLoadSlot()
	}
	items := c.unfound(ctx, r)
	if len(items) == 0 {
		return
	}
	var l *lease
	if len(items) == 1 {
		var got leased
		if l, got = c.lease(ctx, r, items[0]); got == loadNot {
			return
		}
	}
	if ctx.Err() != nil { // abandoned, or the Cache is closed: the source is not asked
		c.giveUp(r, items, flight.ErrAgain)
		c.giveBack(items[0].key, l)
		return
	}
	limited, stop := context.WithTimeout(ctx, r.o.HardTimeout)
	defer stop()
	late := time.AfterFunc(r.o.HardTimeout, func() {
		if ctx.Err() == nil {
			c.giveUp(r, items, errHardTimeout)
		}
	})
	defer late.Stop()
	// Deferred: a loader may end its goroutine.
	defer func() { c.finishLoad(limited, r, items, l) }()
	c.call(limited, r, items)
}

func refs(items []loadItem) []*loadItem {
	all := make([]*loadItem, len(items))
	for i := range items {
		all[i] = &items[i]
	}
	return all
}

// acquireLoadSlot acquires a load slot (Load.MaxConcurrent) and reports whether it has one. It waits
// for at most limit, then fails with errHardTimeout. A run whose limit is bypassed goes on without a slot: it
// might wait for the slot of the very load that waits for it.
func (c *Cache) acquireLoadSlot(ctx context.Context, r *flight.Run[Entry], limit time.Duration) (taken bool, err error) {
	if c.loadSlots == nil {
		return false, nil
	}
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case c.loadSlots <- struct{}{}:
		return true, nil
	case <-r.LimitBypassed():
		return false, nil
	case <-t.C:
		return false, errHardTimeout
	case <-ctx.Done():
		return false, flight.ErrAgain // abandoned, or the Cache is closed
	}
}

func (c *Cache) releaseLoadSlot() { <-c.loadSlots }

// giveUp ends the items' flights with an error.
func (c *Cache) giveUp(r *request, items []*loadItem, err error) {
	n := 0
	for _, it := range items {
		e := err
		if e != flight.ErrAgain {
			e = r.fail(it, err)
		}
		if c.flights.Abort(it.f, e) {
			n++
		}
	}
	if n > 0 && err != flight.ErrAgain {
		c.stats.loadErrors.Add(1)
	}
}

// unfound returns the items that must be loaded. For items whose leader left before their
// look-up was done, it asks the tiers first.
func (c *Cache) unfound(ctx context.Context, r *request) []*loadItem {
	items := refs(r.items)
	v := c.inflight.Guard()
	defer v.Leave()
	missing := items[:0]
	for _, it := range items {
		switch {
		case it.token.Scope != nil:
			missing = append(missing, it)
		case c.find(ctx, r, it, v):
		case it.token.Scope == nil:
			c.giveUp(r, []*loadItem{it}, flight.ErrAgain) // abandoned
		default:
			missing = append(missing, it)
		}
	}
	return missing
}

// call asks the loader. A panic of the loader becomes an error, and so does the end of its
// goroutine.
func (c *Cache) call(ctx context.Context, r *request, items []*loadItem) {
	for _, it := range items {
		if !r.early {
			it.had = c.copyOf(it.h)
		}
		it.err = errGoexit
	}
	defer func() {
		if p := recover(); p != nil {
			stack := debug.Stack()
			for _, it := range items {
				it.err = r.fail(it, &PanicError{Value: p, Stack: stack})
			}
		}
	}()
	c.stats.loads.Add(1)
	if r.early {
		c.stats.earlyRefreshes.Add(1)
	}
	began := c.clock.Now()
	defer func() { c.stats.loadTook.Record(time.Duration(c.clock.Now() - began)) }()
	r.call(ctx, items)
	for _, it := range items {
		if it.err != nil {
			it.err = r.blame(it, it.err)
		}
	}
}

// copyOf returns the copy that is shown to the loader, or an empty Entry.
func (c *Cache) copyOf(h keyhash.Hash) Entry {
	exit, open := c.inflight.Enter()
	defer exit.Leave()
	if !open {
		return Entry{}
	}
	e := c.local.Get(h)
	if e == nil || e.Invalid() {
		return Entry{}
	}
	return entryOfCopy(e, c.clock.Now(), c.routes != nil)
}

// finishLoad stores the loader's results, and ends the flights.
func (c *Cache) finishLoad(ctx context.Context, r *request, items []*loadItem, l *lease) {
	v := c.inflight.Guard()
	defer v.Leave()
	// Before the storing begins: pause may call a codec, and a write waits for the end of
	// the storing.
	for _, it := range items {
		switch {
		case it.err == nil:
			it.err = c.accept(r, it)
		case ctx.Err() == context.DeadlineExceeded:
			it.err = r.fail(it, errHardTimeout)
		}
		if it.err != nil && !errors.Is(it.err, ErrNotFound) && v.Open {
			it.pause = c.pause(r, it, v)
		}
	}
	if !v.Open {
		for _, it := range items {
			c.flights.Abort(it.f, ErrClosed)
		}
		return
	}
	c.keepLoaded(r, items, l)
	c.giveBack(items[0].key, l)
	anyFailed := false
	for _, it := range items {
		if it.err == nil {
			e := Entry{Value: it.loaded.Value, Tier: Loader, TTL: max(it.loaded.TTL, 0)}
			c.flights.End(it.f, e, nil, 0)
			continue
		}
		notFound := errors.Is(it.err, ErrNotFound)
		anyFailed = c.flights.End(it.f, Entry{Tier: Loader}, r.fail(it, it.err), it.pause) && !notFound || anyFailed
	}
	if anyFailed {
		c.stats.loadErrors.Add(1)
	}
}

// restTime is how long a key is not loaded again after a failed load, while a copy stands in.
const restTime = time.Second

func (c *Cache) pause(r *request, it *loadItem, v *inflight.Guard) time.Duration {
	if r.early {
		return restTime
	}
	if _, ok := c.standIn(r, it, v); ok {
		return min(restTime, r.o.StaleIfError)
	}
	return 0
}

// accept makes the loaded value and its ttl final.
func (c *Cache) accept(r *request, it *loadItem) error {
	l := &it.loaded
	switch {
	case !l.NotModified:
		l.Value = cloneBytes(l.Value)
	case it.had.Value == nil:
		return errNotModified
	default:
		l.Value = it.had.Value
	}
	switch {
	case l.TTL < 0:
		return nil
	case l.TTL == 0:
		l.TTL = r.ttl
	}
	whole, err := c.ttl(l.TTL)
	if err != nil {
		return err
	}
	l.TTL, err = c.ttl(jittered(whole, r.o.TTLJitter, rand.Float64()))
	return err
}

// keepLoaded stores the loaded values and absences in the tiers. Superseded results are not
// stored. A failure to store is not an error of any call.
func (c *Cache) keepLoaded(r *request, items []*loadItem, l *lease) {
	var ws []write
	for _, it := range items {
		switch {
		case errors.Is(it.err, ErrNotFound):
			if (r.o.NotFoundTTL > 0 || r.early || r.reload) && c.mayStore(it) {
				c.keepAbsence(r, it)
			}
			continue
		case it.err != nil, it.loaded.TTL < 0, !c.mayStore(it):
			continue
		}
		w := write{
			key: it.key, value: it.loaded.Value, ttl: it.loaded.TTL,
			flight: it.f, seen: it.seen, expects: it.base, grace: local.StaleIfErrorOf(it.loaded.StaleIfError),
		}
		if d := c.destination(it); d == storeEverywhere {
			if !l.outlived(c.clock.Now()) {
				w.lease = l
			}
			ws = append(ws, w)
		} else if d == localUntilReplay {
			c.keepFenced(it, &w)
		} else if d != discardResult {
			c.keepLocally(it, &w, d)
		}
	}
	if len(ws) == 0 {
		return
	}
	if err := c.write(context.Background(), r.op, ws, 0); withoutScripts(err) {
		ws = slices.DeleteFunc(ws, func(w write) bool { return w.lease == nil && w.expects == "" })
		for i := range ws {
			ws[i].lease, ws[i].blindly = nil, ws[i].expects != ""
		}
		c.write(context.Background(), r.op, ws, 0)
	} else if ws[0].lease != nil && ws[0].again {
		ws[0].lease = nil
		c.write(context.Background(), r.op, ws, 0)
	}
}

// putUngiven stores a loaded value that cannot be written to Redis as a suspect copy. No
// caller asked for that write, so it is not journaled: its replay might overwrite a later
// write or delete by another client. If the journal has a delete of the key, it notes that
// the local tier has a value all the same.
func (c *Cache) putUngiven(w *write, now int64) {
	w.grace |= local.NotInRedis
	w.entry = c.entryOf(w, now, &w.place.Scope, local.Unconfirmed)
	if c.putSuperseding(context.Background(), w, now) && !w.del {
		c.journal.AllowLocalValue(w.hash, w.key, now)
	}
}

// takeBack ends a store that Redis did not acknowledge. The copy stays, suspect. If the
// command may have run, or may run late, the journal gets an intent that compensates for it:
// others may have deleted the key since.
func (c *Cache) takeBack(w *write, now int64, o link.Outcome) (saved journal.Saving) {
	if o.Unknown {
		compensation := *w
		compensation.expected = w.baseOf()
		if !w.del {
			compensation.value, compensation.del, compensation.compensate = nil, true, w.value
		}
		saved, _ = c.remember(&compensation, o.Session.ID)
	}
	w.grace |= local.NotInRedis
	c.local.EndAs(w.hash, c.entryOf(w, now, &w.place.Scope, local.FreshUntil(now)), local.Unconfirmed)
	if o.Unknown && !w.del {
		c.journal.AllowLocalValue(w.hash, w.key, now)
	}
	return saved
}

// mayStore begins the storing. It returns false if a write of the key came since the flight
// began, or is in flight. A write that comes from now on waits.
func (c *Cache) mayStore(it *loadItem) bool {
	return c.flights.Store(it.f) && !c.local.Writing(it.h)
}

// destination is where a loaded value may be stored.
type destination uint8

const (
	storeEverywhere  destination = iota // as by Set
	localUntilReplay                    // the local tier, while the key is journaled
	localOnly                           // the local tier: Redis has no such key and cannot be written
	localUnconfirmed                    // the local tier: a suspect copy while Redis cannot be asked
	localBriefly                        // the local tier, for UntrackedTTL: Redis refuses the key
	discardResult                       // discarded: the server was emptied meanwhile
)

// whereTo decides the destination. A key may be written to Redis only while the stream on
// which Redis' answer was read is unbroken and has brought no invalidation since: otherwise
// another client may have written or deleted the key during the load. A loaded value that
// cannot be written is not journaled, because no caller asked for that write.
func whereTo(withRedis, journaled, flushed, unbroken, writable bool) destination {
	switch {
	case !withRedis:
		return storeEverywhere
	case journaled:
		return localUntilReplay
	case flushed:
		return discardResult
	case unbroken && writable:
		return storeEverywhere
	case unbroken:
		return localOnly
	}
	return localUnconfirmed
}

func (c *Cache) destination(it *loadItem) destination {
	if c.routes == nil {
		return whereTo(false, false, false, false, false)
	}
	d := it.token.Scope
	unbroken := it.answered && d.Epoch.Load() == it.token.Epoch
	flushed := int32(it.token.Epoch-d.Floor.Load()) < 0
	writable := c.routes.Link(c.routes.Of(it.key)).Writer(false) != nil
	dest := whereTo(true, c.journal.Holds(it.h, it.key), flushed, unbroken, writable)
	if it.refused && dest == localUnconfirmed {
		return localBriefly
	}
	return dest
}

// keepLocally stores a value in the local tier only. If Redis answered that it has no such
// key, and invalidations of the key arrive, the copy is fresh: the server announces a client
// that creates the key.
func (c *Cache) keepLocally(it *loadItem, w *write, d destination) {
	now := c.clock.Now()
	t := local.Freshness{Confirmed: now, Fresh: local.Unconfirmed, Expires: clock.After(now, w.ttl), Scope: it.token.Scope, Epoch: it.token.Epoch}
	if s := c.routes.Link(c.routes.Of(it.key)).Reader(); s != nil && d != localUnconfirmed {
		t.Fresh = c.freshUntil(now, t.Expires, d == localOnly && s.Tracks(it.key) && s.OfMaster())
	}
	e := local.NewEntry(it.key, w.value, t)
	e.SetStaleIfError(w.grace | local.NotInRedis)
	c.storeIfNotInvalidated(it, e, now)
}

// keepFenced is keepLocally for a journaled key.
func (c *Cache) keepFenced(it *loadItem, w *write) {
	now := c.clock.Now()
	w.hash, w.deadline, w.place = it.h, clock.After(now, w.ttl), c.routes.Of(it.key)
	c.putUngiven(w, now)
}

// storeIfNotInvalidated stores e, unless a write of ours or an invalidation came while the result was
// being stored.
func (c *Cache) storeIfNotInvalidated(it *loadItem, e *local.Entry, now int64) {
	if _, _, ok := c.local.PutUnless(it.h, e, &it.f.SupersededDuringStore, it.seen); ok && c.flights.InvalidatedSince(it.f) {
		c.local.Invalidate(it.h, now)
	}
}

// keepAbsence remembers that the key has no value. It changes Redis only for an early
// refresh: Redis still has the copy, which was good until now, and the key is deleted.
func (c *Cache) keepAbsence(r *request, it *loadItem) {
	if (r.early || r.reload) && c.destination(it) == storeEverywhere {
		w := [1]write{{key: it.key, del: true, flight: it.f, seen: it.seen}}
		c.write(context.Background(), r.op, w[:], 0)
	}
	if r.o.NotFoundTTL <= 0 {
		return
	}
	now := c.clock.Now()
	end, confirmed := clock.After(now, r.o.NotFoundTTL), int64(0)
	fresh := local.FreshUntil(end)
	if c.routes != nil && it.answered { // then it is a copy of Redis' answer, too
		confirmed = now
		s := c.routes.Link(c.routes.Of(it.key)).Reader()
		fresh = c.freshUntil(now, end, s != nil && s.Tracks(it.key) && s.OfMaster())
	}
	c.storeIfNotInvalidated(it, local.NewEntry(it.key, nil, local.Freshness{
		Confirmed: confirmed, Fresh: local.Absence(fresh), Expires: local.Invalidated,
		Scope: it.token.Scope, Epoch: it.token.Epoch,
	}), now)
}
