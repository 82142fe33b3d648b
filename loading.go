package holdfast

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime/debug"
	"time"
)

var (
	errHardLimit   = errors.New("holdfast: the load did not end within Load.HardLimit")
	errGoexit      = errors.New("holdfast: the loader called runtime.Goexit")
	errNotModified = errors.New("holdfast: the loader says that the copy is still right, and was given none")
)

// fly carries out a run: it asks the loader for the keys of the request, stores what
// that brings, and ends their flights. It is the life of a goroutine of its own.
func (c *Cache) fly(ctx context.Context, r *request) {
	run := r.items[0].f.run
	ctx, cancel := context.WithCancel(context.WithValue(context.WithoutCancel(ctx), loaderOf{c}, run))
	defer cancel()
	defer context.AfterFunc(c.life, cancel)()
	if !run.start(cancel) {
		return // nobody waits any more
	}
	if err := c.takePlace(ctx, r.o.HardLimit); err != nil {
		c.giveUp(r, refs(r.items), err)
		return
	}
	defer c.givePlace()
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
	limited, stop := context.WithTimeout(ctx, r.o.HardLimit)
	defer stop()
	defer context.AfterFunc(limited, func() {
		if limited.Err() == context.DeadlineExceeded {
			c.giveUp(r, items, errHardLimit)
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

// takePlace waits for a place among MaxLoads.
func (c *Cache) takePlace(ctx context.Context, limit time.Duration) error {
	if c.places == nil {
		return nil
	}
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case c.places <- struct{}{}:
		return nil
	case <-t.C:
		return errHardLimit
	case <-ctx.Done():
		return errAgain // nobody waits, or the Cache is closed
	}
}

func (c *Cache) givePlace() {
	if c.places != nil {
		<-c.places
	}
}

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
	lane, open := c.fence.enter()
	defer lane.leave()
	if !open {
		c.giveUp(r, items, errAgain)
		return nil
	}
	left := items[:0]
	for _, it := range items {
		switch {
		case it.token.domain != nil:
			left = append(left, it)
		case c.find(ctx, r, it):
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
	lane, open := c.fence.enter()
	defer lane.leave()
	if !open {
		for _, it := range items {
			c.flights.abort(it.f, ErrClosed)
		}
		return
	}
	for _, it := range items {
		switch {
		case it.err == nil:
			it.err = c.accept(r, it)
		case ctx.Err() == context.DeadlineExceeded:
			it.err = r.fail(it, errHardLimit)
		}
	}
	c.keepLoaded(r, items, l)
	c.giveBack(items[0].key, l)
	failed := false
	for _, it := range items {
		if it.err == nil {
			e := Entry{Value: it.loaded.Value, Tier: Loader, TTL: max(it.loaded.TTL, 0)}
			c.flights.end(it.f, e, nil, 0)
			continue
		}
		notFound := errors.Is(it.err, ErrNotFound)
		var rest time.Duration
		if !notFound {
			rest = c.pause(r, it)
		}
		failed = c.flights.end(it.f, Entry{}, r.fail(it, it.err), rest) && !notFound || failed
	}
	if failed {
		c.stats.loadErrors.Add(1)
	}
}

// restTime is how long a key is not loaded again after a load that failed, while a
// copy stands in for it.
const restTime = time.Second

func (c *Cache) pause(r *request, it *loadItem) time.Duration {
	if r.early {
		return restTime
	}
	if _, ok := c.standIn(r, it); ok {
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
			if (r.o.NotFoundTTL > 0 || r.early) && c.mayStore(it) {
				c.keepAbsence(r, it)
			}
			continue
		case it.err != nil, it.loaded.TTL < 0, !c.mayStore(it):
			continue
		}
		w := change{
			key: it.key, value: it.loaded.Value, ttl: it.loaded.TTL,
			flight: it.f, grace: graceOf(it.loaded.StaleIfError),
		}
		if d := c.destination(it); d == toTiers {
			if !l.outlived(c.clock.now()) {
				w.lease = l
			}
			ws = append(ws, w)
		} else if d != toNobody {
			c.keepLocally(it, &w, d == toLocal)
		}
	}
	if len(ws) == 0 {
		return
	}
	err := c.write(context.Background(), r.op, ws, 0)
	if l != nil && withoutScripts(err) {
		ws[0].lease = nil
		c.write(context.Background(), r.op, ws, 0)
	}
}

// mayStore begins the storing, unless a write of the key came since the flight began,
// or is under way: one that comes from now on waits.
func (c *Cache) mayStore(it *loadItem) bool {
	return c.flights.store(it.f) && !c.local.writing(it.h)
}

// destination is where what was loaded may go.
type destination uint8

const (
	toTiers  destination = iota // the way of a Set; if the key is fenced, to the journal
	toLocal                     // Redis has no such key and cannot be given it
	toDoubt                     // to the local tier, for as long as Redis cannot be asked
	toNobody                    // the server was emptied meanwhile
)

// whereTo decides it. Only over the stream that told of its absence, and of nothing
// since, a key may be written: else somebody may have written it, or deleted it,
// during the load. A loaded value is nobody's intent, so where it cannot be written
// it is not journaled; but a fenced key is answered from the journal, and would be
// loaded again and again.
func whereTo(remote, fenced, flushed, unbroken, writable bool) destination {
	switch {
	case !remote, fenced:
		return toTiers
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
	return whereTo(true, c.journal.holds(it.h, it.key), flushed, unbroken, writable)
}

// keepLocally is for what Redis is not told of. If Redis was seen to have nothing, and
// can be heard, the copy is fresh: whoever gives it the key is told of.
func (c *Cache) keepLocally(it *loadItem, w *change, fresh bool) {
	now := c.clock.now()
	t := term{confirmed: now, fresh: unread, expires: after(now, w.ttl), domain: it.token.domain, epoch: it.token.epoch}
	if s := c.routes.link(c.routes.of(it.key)).reader(); fresh && s != nil {
		t.fresh = c.freshUntil(now, t.expires, s.tells(it.key) && !s.replica.Load())
	}
	e := newEntry(it.key, w.value, t)
	e.setGrace(w.grace | ungiven)
	c.local.put(it.h, e)
	if c.flights.overrun(it.f) {
		c.local.put(it.h, nil)
	}
}

// keepAbsence remembers that there is no such thing. Redis is told only where it holds
// what was a good copy until now.
func (c *Cache) keepAbsence(r *request, it *loadItem) {
	if r.early && c.destination(it) == toTiers {
		w := [1]change{{key: it.key, del: true, flight: it.f}}
		c.write(context.Background(), r.op, w[:], 0)
	}
	if r.o.NotFoundTTL <= 0 {
		return
	}
	now := c.clock.now()
	c.local.put(it.h, newEntry(it.key, nil, term{
		confirmed: now, fresh: absence(after(now, r.o.NotFoundTTL)), expires: wrong,
		domain: it.token.domain, epoch: it.token.epoch,
	}))
	if c.flights.toldOf(it.f) || c.flights.overrun(it.f) {
		c.local.put(it.h, nil) // somebody gave it one just now
	}
}
