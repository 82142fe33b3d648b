package holdfast

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"time"
)

var (
	errHardTimeout = errors.New("holdfast: the load did not end within Load.HardTimeout")
	errGoexit      = errors.New("holdfast: the loader, or the codec, called runtime.Goexit")
	errNotModified = errors.New("holdfast: the loader says that the copy is still right, and was given none")
)

// fly carries out a run: it asks the loader for the keys of the request, stores what
// that brings, and ends their flights. It is the life of a goroutine of its own.
func (c *Cache) fly(ctx context.Context, r *request) {
	run := r.items[0].f.run
	ctx, cancel := context.WithCancel(context.WithValue(context.WithoutCancel(ctx), loaderOf{}, run))
	defer cancel()
	defer context.AfterFunc(c.life, cancel)()
	if !run.start(cancel) {
		return // nobody waits any more
	}
	// Should a codec end the goroutine; else they have ended by then.
	defer c.giveUp(r, refs(r.items), errGoexit)
	taken, err := c.takePlace(ctx, run, r.o.HardTimeout)
	if err != nil {
		c.giveUp(r, refs(r.items), err)
		return
	}
	if taken {
		defer c.givePlace()
	}
	items := c.unfound(ctx, r)
	if len(items) == 0 {
		return
	}
	var l *lease
	if len(items) == 1 {
		var verdict leased
		if l, verdict = c.lease(ctx, r, items[0]); verdict == loadNot {
			return
		}
	}
	if ctx.Err() != nil { // nobody waits, or the Cache is closed: the source is not asked
		c.giveUp(r, items, errAgain)
		c.giveBack(items[0].key, l)
		return
	}
	limited, stop := context.WithTimeout(ctx, r.o.HardTimeout)
	defer stop()
	defer context.AfterFunc(limited, func() {
		if limited.Err() == context.DeadlineExceeded {
			c.giveUp(r, items, errHardTimeout)
		}
	})()
	// Deferred: a loader may end its goroutine.
	defer func() { c.land(limited, r, items, l) }()
	c.call(limited, r, items)
}

func refs(items []loadItem) []*loadItem {
	all := make([]*loadItem, len(items))
	for i := range items {
		all[i] = &items[i]
	}
	return all
}

// takePlace waits for a place among Load.MaxConcurrent, and says whether it has taken one. What a
// load waits for that has one needs none: it might wait for the place of that load.
func (c *Cache) takePlace(ctx context.Context, r *run, limit time.Duration) (taken bool, err error) {
	if c.places == nil {
		return false, nil
	}
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case c.places <- struct{}{}:
		return true, nil
	case <-r.urged():
		return false, nil
	case <-t.C:
		return false, errHardTimeout
	case <-ctx.Done():
		return false, errAgain // nobody waits, or the Cache is closed
	}
}

func (c *Cache) givePlace() { <-c.places }

// giveUp releases who waits for the items, with an error.
func (c *Cache) giveUp(r *request, items []*loadItem, err error) {
	n := 0
	for _, it := range items {
		e := err
		if e != errAgain {
			e = r.fail(it, err)
		}
		if c.flights.abort(it.f, e) {
			n++
		}
	}
	if n > 0 && err != errAgain {
		c.stats.loadErrors.Add(1)
	}
}

// unfound is the items that are to be loaded. Those that were not looked for, because
// who led them has left, are looked for first.
func (c *Cache) unfound(ctx context.Context, r *request) []*loadItem {
	items := refs(r.items)
	v := c.fence.visit()
	defer v.leave()
	left := items[:0]
	for _, it := range items {
		switch {
		case it.token.domain != nil:
			left = append(left, it)
		case c.find(ctx, r, it, v):
		case it.token.domain == nil:
			c.giveUp(r, []*loadItem{it}, errAgain) // nobody waits
		default:
			left = append(left, it)
		}
	}
	return left
}

// call asks the loader. What it panics with becomes an error; so does its silence,
// should it end the goroutine.
func (c *Cache) call(ctx context.Context, r *request, items []*loadItem) {
	for _, it := range items {
		if !r.early {
			it.had = c.copyOf(it.h)
		}
		it.err = r.fail(it, errGoexit)
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
	r.call(ctx, items)
	for _, it := range items {
		if it.err != nil {
			it.err = r.blame(it, it.err)
		}
	}
}

// copyOf is what the loader is shown of a copy that is there.
func (c *Cache) copyOf(h keyHash) Entry {
	lane, open := c.fence.enter()
	defer lane.leave()
	if !open {
		return Entry{}
	}
	e := c.local.get(h)
	if e == nil || e.refuted() {
		return Entry{}
	}
	return entryOfCopy(e, c.clock.now(), c.routes != nil)
}

// land stores what the loader brought, and ends the flights.
func (c *Cache) land(ctx context.Context, r *request, items []*loadItem, l *lease) {
	v := c.fence.visit()
	defer v.leave()
	// Before anything is stored: a write waits for the end of that, and pause may ask a
	// codec.
	rests := make([]time.Duration, len(items))
	for i, it := range items {
		switch {
		case it.err == nil:
			it.err = c.accept(r, it)
		case ctx.Err() == context.DeadlineExceeded:
			it.err = r.fail(it, errHardTimeout)
		}
		if it.err != nil && !errors.Is(it.err, ErrNotFound) && v.open {
			rests[i] = c.pause(r, it, v)
		}
	}
	if !v.open {
		for _, it := range items {
			c.flights.abort(it.f, ErrClosed)
		}
		return
	}
	c.keepLoaded(r, items, l)
	c.giveBack(items[0].key, l)
	failed := false
	for i, it := range items {
		if it.err == nil {
			e := Entry{Value: it.loaded.Value, Tier: Loader, TTL: max(it.loaded.TTL, 0)}
			c.flights.end(it.f, e, nil, 0)
			continue
		}
		notFound := errors.Is(it.err, ErrNotFound)
		failed = c.flights.end(it.f, Entry{}, r.fail(it, it.err), rests[i]) && !notFound || failed
	}
	if failed {
		c.stats.loadErrors.Add(1)
	}
}

// restTime is how long a key is not loaded again after a load that failed, while a
// copy stands in for it.
const restTime = time.Second

func (c *Cache) pause(r *request, it *loadItem, v *visit) time.Duration {
	if r.early {
		return restTime
	}
	if _, ok := c.standIn(r, it, v); ok {
		return min(restTime, r.o.StaleIfError)
	}
	return 0
}

// accept makes the value and the ttl final.
func (c *Cache) accept(r *request, it *loadItem) error {
	l := &it.loaded
	switch {
	case !l.NotModified:
		l.Value = own(l.Value)
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

// keepLoaded takes into the tiers what was loaded, or that there is nothing. What was
// overtaken is not kept. That something could not be stored is nobody's error.
func (c *Cache) keepLoaded(r *request, items []*loadItem, l *lease) {
	var ws []change
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
		w := change{
			key: it.key, value: it.loaded.Value, ttl: it.loaded.TTL,
			flight: it.f, seen: it.seen, expects: it.base, grace: graceOf(it.loaded.StaleIfError),
		}
		if d := c.destination(it); d == toTiers {
			if !l.outlived(c.clock.now()) {
				w.lease = l
			}
			ws = append(ws, w)
		} else if d == toFence {
			c.keepFenced(it, &w)
		} else if d != toNobody {
			c.keepLocally(it, &w, d)
		}
	}
	if len(ws) == 0 {
		return
	}
	if err := c.write(context.Background(), r.op, ws, 0); withoutScripts(err) {
		ws = slices.DeleteFunc(ws, func(w change) bool { return w.lease == nil && w.expects == "" })
		for i := range ws {
			ws[i].lease, ws[i].blindly = nil, ws[i].expects != ""
		}
		c.write(context.Background(), r.op, ws, 0)
	} else if ws[0].lease != nil && ws[0].again {
		ws[0].lease = nil
		c.write(context.Background(), r.op, ws, 0)
	}
}

// putUngiven keeps what was loaded, and Redis cannot be given, as a copy in doubt. It is
// nobody's intent and has no place in the journal: the replay of it might come over what
// others have written, or deleted, since. Where the journal has a delete of the key, it
// is told that there is a value all the same.
func (c *Cache) putUngiven(w *change, now int64) {
	w.grace |= ungiven
	w.entry = c.entryOf(w, now, &w.place.domain, unread)
	if c.putOver(context.Background(), w, now) && !w.del {
		c.journal.lend(w.hash, w.key, now)
	}
}

// takeBack ends a storing that Redis did not acknowledge. The copy stays, in doubt. What
// may have run, or run late, the journal takes back: others may have deleted the key
// since.
func (c *Cache) takeBack(w *change, now int64, o outcome) (saved saving) {
	if o.unknown {
		late := *w
		late.base = w.baseOf()
		if !w.del {
			late.value, late.del, late.undo = nil, true, w.value
		}
		saved, _ = c.remember(&late, o.session.id)
	}
	w.grace |= ungiven
	c.local.endAs(w.hash, c.entryOf(w, now, &w.place.domain, now), unread)
	if o.unknown && !w.del {
		c.journal.lend(w.hash, w.key, now)
	}
	return saved
}

// mayStore begins the storing, unless a write of the key came since the flight began,
// or is under way: one that comes from now on waits.
func (c *Cache) mayStore(it *loadItem) bool {
	return c.flights.store(it.f) && !c.local.writing(it.h)
}

// destination is where what was loaded may go.
type destination uint8

const (
	toTiers  destination = iota // the way of a Set
	toFence                     // to the local tier, for as long as the journal has the key
	toLocal                     // Redis has no such key and cannot be given it
	toDoubt                     // to the local tier, for as long as Redis cannot be asked
	toShort                     // to the local tier, for UntrackedTTL: Redis refuses the key
	toNobody                    // the server was emptied meanwhile
)

// whereTo decides it. Only over the stream that told of its absence, and of nothing
// since, a key may be written: else somebody may have written it, or deleted it,
// during the load. A loaded value is nobody's intent, so where it cannot be written
// it is not journaled.
func whereTo(remote, fenced, flushed, unbroken, writable bool) destination {
	switch {
	case !remote:
		return toTiers
	case fenced:
		return toFence
	case flushed:
		return toNobody
	case unbroken && writable:
		return toTiers
	case unbroken:
		return toLocal
	}
	return toDoubt
}

func (c *Cache) destination(it *loadItem) destination {
	if c.routes == nil {
		return whereTo(false, false, false, false, false)
	}
	d := it.token.domain
	unbroken := it.answered && d.epoch.Load() == it.token.epoch
	flushed := int32(it.token.epoch-d.floor.Load()) < 0
	writable := c.routes.link(c.routes.of(it.key)).writer(false) != nil
	where := whereTo(true, c.journal.holds(it.h, it.key), flushed, unbroken, writable)
	if it.refused && where == toDoubt {
		return toShort
	}
	return where
}

// keepLocally is for what Redis is not told of. If Redis was seen to have nothing, and
// can be heard, the copy is fresh: whoever gives it the key is told of.
func (c *Cache) keepLocally(it *loadItem, w *change, d destination) {
	now := c.clock.now()
	t := term{confirmed: now, fresh: unread, expires: after(now, w.ttl), domain: it.token.domain, epoch: it.token.epoch}
	if s := c.routes.link(c.routes.of(it.key)).reader(); s != nil && d != toDoubt {
		t.fresh = c.freshUntil(now, t.expires, d == toLocal && s.tells(it.key) && !s.replica.Load())
	}
	e := newEntry(it.key, w.value, t)
	e.setGrace(w.grace | ungiven)
	c.keepUntold(it, e, now)
}

// keepFenced is for a key that the journal answers for.
func (c *Cache) keepFenced(it *loadItem, w *change) {
	now := c.clock.now()
	w.hash, w.deadline, w.place = it.h, after(now, w.ttl), c.routes.of(it.key)
	c.putUngiven(w, now)
}

// keepUntold puts e in its place, unless a write of ours, or what the server told, came
// while it was being stored.
func (c *Cache) keepUntold(it *loadItem, e *entry, now int64) {
	if _, _, ok := c.local.putUnless(it.h, e, &it.f.late, it.seen); ok && c.flights.toldOf(it.f) {
		c.local.invalidate(it.h, now)
	}
}

// keepAbsence remembers that there is no such thing. Redis is told only where it holds
// what was a good copy until now.
func (c *Cache) keepAbsence(r *request, it *loadItem) {
	if (r.early || r.reload) && c.destination(it) == toTiers {
		w := [1]change{{key: it.key, del: true, flight: it.f, seen: it.seen}}
		c.write(context.Background(), r.op, w[:], 0)
	}
	if r.o.NotFoundTTL <= 0 {
		return
	}
	now := c.clock.now()
	until, confirmed := after(now, r.o.NotFoundTTL), int64(0)
	if c.routes != nil && it.answered { // it is a copy of what Redis said, too
		confirmed = now
		s := c.routes.link(c.routes.of(it.key)).reader()
		until = c.freshUntil(now, until, s != nil && s.tells(it.key) && !s.replica.Load())
	}
	c.keepUntold(it, newEntry(it.key, nil, term{
		confirmed: confirmed, fresh: absence(until), expires: wrong,
		domain: it.token.domain, epoch: it.token.epoch,
	}), now)
}
