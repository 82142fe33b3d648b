package holdfast

import (
	"context"
	"errors"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/flight"
	"github.com/holdfast-cache/holdfast/internal/inflight"
	"github.com/holdfast-cache/holdfast/internal/local"
)

// GetOrLoadMany is GetMany, and one call of load for the keys that are missing. A key that
// another call in this process is loading is not loaded again: GetOrLoadMany waits for
// that load. A key that load does not return is not found: it is absent from the map, and
// this is remembered for Load.NotFoundTTL. Other keys that load returns are ignored.
//
// It waits as GetOrLoad does. The error is that of GetMany, or of the load; the values
// that were found are returned beside it. Loads of batches are shared in the process and
// take no lease.
func (c *Cache) GetOrLoadMany(ctx context.Context, keys []string, ttl time.Duration, load func(context.Context, []string) (map[string][]byte, error)) (map[string][]byte, error) {
	return c.loadMany(ctx, keys, ttl, c.opts.Load, nil, load, false)
}

// loadMany is GetOrLoadMany for a caller that cannot use every value; see
// Cache.GetOrLoadWith.
func (c *Cache) loadMany(ctx context.Context, keys []string, ttl time.Duration, o LoadOptions, accepts usable, load func(context.Context, []string) (map[string][]byte, error), again bool) (map[string][]byte, error) {
	const op = "getorloadmany"
	v := c.inflight.Guard()
	if err := loadable(ctx, v.Open, ttl, load == nil); err != nil {
		v.Leave()
		return nil, loadError(op, "", err)
	}
	b := &batch{
		cache: c, again: again, parent: runOf(ctx), own: flight.NewRun[Entry](), found: make(map[string][]byte, len(keys)),
		request: request{op: op, ttl: ttl, o: o, batch: true, usable: accepts, call: together(op, load)},
	}
	defer b.leaveAll()
	b.begin(ctx, keys, v)
	err := b.await(ctx)
	b.counted()
	return b.found, err
}

// together returns the function that calls the loader once for all items.
func together(op string, load func(context.Context, []string) (map[string][]byte, error)) func(context.Context, []*loadItem) {
	return func(ctx context.Context, items []*loadItem) {
		keys := make([]string, len(items))
		for i, it := range items {
			keys[i] = it.key
		}
		values, err := load(ctx, keys)
		if err == nil {
			err = ErrNotFound
		}
		err = loadError(op, "", err)
		for _, it := range items {
			if b, ok := values[it.key]; ok {
				it.loaded, it.err = Loaded{Value: b}, nil
			} else {
				it.err = err
			}
		}
	}
}

// batch is one call of GetOrLoadMany. It leads a flight for each key that no other call is
// loading, all of one run, and follows the flights of the other keys.
type batch struct {
	cache   *Cache
	parent  *flight.Run[Entry]
	own     *flight.Run[Entry]
	request request // its items are of the flights that the batch leads
	seats   []loadItem
	later   []loadItem // keys of flights that must end first

	found map[string][]byte
	errs  []error
	said  map[string]bool // texts of the errors of loads
	begun bool            // the flights that it leads have ended or are being loaded

	again    bool   // an earlier try of the same reads was counted
	asked    uint64 // keys, each once
	answered uint64 // of them, those that are counted
}

// begin does the part of the call that is counted in.
func (b *batch) begin(ctx context.Context, keys []string, v *inflight.Guard) {
	defer v.Leave()
	b.joinAll(keys, v)
	b.read(ctx, v)
	if len(b.request.items) > 0 && v.Open {
		b.cache.begin(ctx, &b.request)
	}
	b.begun = v.Open
}

// leaveAll leaves the flights. If the batch did not start the load of the flights that it
// leads, because a codec has ended the goroutine or the Cache is closed, it aborts them.
func (b *batch) leaveAll() {
	t := b.cache.flights
	if !b.begun {
		for _, f := range b.own.Flights {
			t.Abort(f, flight.ErrAgain)
		}
	}
	for i := range b.seats {
		r := b.seats[i].f.Run
		t.Unlink(b.parent, r)
		if r != b.own {
			t.Drop(r)
		}
	}
	t.Drop(b.own)
}

// joinAll answers the keys that the local tier has, and joins or creates a flight for each
// other key.
func (b *batch) joinAll(keys []string, v *inflight.Guard) {
	c, now := b.cache, b.cache.clock.Now()
	seen := make(map[string]bool, len(keys))
	var hits uint64
	for _, key := range keys {
		if seen[key] {
			continue
		}
		seen[key] = true
		if !v.Open {
			continue
		}
		h := c.local.Hash(key)
		if !b.again {
			c.local.CountRead(h)
		}
		if e, fresh := c.look(h, key, now); fresh && b.request.usable.of(key, e.Bytes(), v) {
			b.found[key] = e.Bytes()
			hits++
			continue
		} else if !v.Open {
			continue
		}
		if err := checkKey(key); err != nil {
			b.answer(Entry{}, err)
			b.errs = append(b.errs, loadError(b.request.op, "", err))
			continue
		}
		b.joinOne(loadItem{key: key, h: h}, v)
	}
	b.asked, b.answered = uint64(len(seen)), b.answered+hits
	if !b.again {
		c.stats.batchHits.Add(hits)
	}
}

func (b *batch) joinOne(it loadItem, v *inflight.Guard) {
	c := b.cache
	for {
		if c.knownAbsent(it.h, &b.request) {
			b.answer(Entry{}, ErrNotFound)
			return
		}
		f, as, err := c.flights.Join(it.h, b.own, b.parent)
		it.f = f
		switch {
		case err != nil:
			b.answer(Entry{}, err)
			b.errs = append(b.errs, loadError(b.request.op, it.key, err))
			return
		case as == flight.Leader:
			b.request.items = append(b.request.items, it)
			b.seats = append(b.seats, it)
			return
		case as == flight.Follower:
			c.stats.loadsShared.Add(1)
			b.seats = append(b.seats, it)
			return
		case as == flight.RetryAfterWrite:
			b.later = append(b.later, it)
			return
		}
		e, ok := c.standIn(&b.request, &it, v)
		switch {
		case ok:
			b.answer(e, nil)
			b.found[it.key] = e.Value
			return
		case !v.Open:
			return
		}
		c.flights.Remove(f)
	}
}

// read looks for the keys that the batch leads in the tiers, in one pipeline, and keeps
// the keys that must be loaded. See Cache.find.
func (b *batch) read(ctx context.Context, v *inflight.Guard) {
	var missed []loadItem
	rest := b.request.items
	for try := 1; len(rest) > 0 && v.Open; try++ {
		var again []loadItem
		for _, it := range b.readOnce(ctx, rest, v) {
			switch {
			case it.token.Scope == nil: // this caller leaves; other callers may wait
				missed = append(missed, it)
			case b.cache.flights.Load(it.f, try == findTries):
				missed = append(missed, it)
			default:
				again = append(again, it)
			}
		}
		rest = again
	}
	b.request.items = missed
}

// readOnce returns the items that no tier has. An item that was not read, because ctx has
// ended, has no token.
func (b *batch) readOnce(ctx context.Context, items []loadItem, v *inflight.Guard) (missed []loadItem) {
	c, now := b.cache, b.cache.clock.Now()
	var asked []loadItem
	var reads []manyRead
	for _, it := range items {
		if !v.Open {
			return nil
		}
		c.flights.Arm(it.f)
		it.base = ""
		it.token = c.local.Token(it.h, c.scopeOf(it.key))
		it.seen = c.local.Get(it.h)
		if c.knownAbsent(it.h, &b.request) {
			c.flights.End(it.f, Entry{}, b.request.fail(&it, ErrNotFound), 0)
			continue
		}
		if e, fresh := c.look(it.h, it.key, now); fresh && b.request.usable.of(it.key, e.Bytes(), v) {
			c.flights.End(it.f, Entry{Value: e.Bytes(), Tier: Local, TTL: clock.Left(now, e.Expires.Load())}, nil, 0)
			continue
		} else if !v.Open {
			return nil
		}
		if e, answered, inJournal := c.journaled(it.h, it.key, now); answered && !e.Stale && b.request.usable.of(it.key, e.Value, v) {
			c.flights.End(it.f, e, nil, 0)
			continue
		} else if inJournal {
			it.answered = false
			missed = append(missed, it)
			continue
		}
		reads = append(reads, manyRead{key: it.key, at: len(asked), hash: it.h})
		asked = append(asked, it)
	}
	if len(asked) == 0 || !v.Open {
		return missed
	}
	type readResult struct {
		e   Entry
		err error
	}
	// The answers are judged below: usable is user code that may block, and readMany calls
	// its function between the pipelines of a batch.
	replies := make([]readResult, len(asked))
	c.readMany(ctx, b.request.op, reads, now, func(r *manyRead, e Entry, err error) { replies[r.at] = readResult{e, err} })
	for i, it := range asked {
		e, err := replies[i].e, replies[i].err
		switch {
		case err == nil && !e.Stale && b.request.usable.of(it.key, e.Value, v):
			c.flights.End(it.f, e, nil, 0)
			continue
		case err == nil && e.Tier == Remote:
			it.base, it.seen = digestOf(e.Value), c.local.Get(it.h)
		case err != nil && err == ctx.Err():
			it.token = local.Token{}
		case err != nil && err != ErrMiss && !refusesKey(err):
			c.flights.End(it.f, Entry{}, err, 0)
			continue
		}
		it.refused = err != nil && refusesKey(err) // see Cache.find
		it.answered = !it.refused && !e.Degraded
		missed = append(missed, it)
	}
	return missed
}

// await collects the results of the flights.
func (b *batch) await(ctx context.Context) error {
	c := b.cache
	if !b.begun {
		return ErrClosed
	}
	for i := range b.seats {
		it := &b.seats[i]
		if err := c.over(ctx, it.f); err != nil {
			return err
		}
		e, err := c.arrived(ctx, &b.request, it, it.f)
		b.note(it.key, e, err)
	}
	for i := range b.later {
		it := &b.later[i]
		if err := c.over(ctx, it.f); err != nil {
			return err
		}
		e, err := c.again(ctx, b.request.anew(it))
		b.note(it.key, e, err)
	}
	l := errorList{b.errs}
	return l.join()
}

// note adds the result of a key. The error of a load is the same for all its keys and is
// returned once.
func (b *batch) note(key string, e Entry, err error) {
	b.answer(e, err)
	switch {
	case err == nil:
		b.found[key] = e.Value
	case errors.Is(err, ErrNotFound):
	default:
		if text := err.Error(); !b.said[text] {
			if b.said == nil {
				b.said = map[string]bool{}
			}
			b.said[text] = true
			b.errs = append(b.errs, err)
		}
	}
}

// answer counts the result of one of the keys.
func (b *batch) answer(e Entry, err error) {
	b.answered++
	if !b.again {
		b.cache.counted(e, err)
	}
}

// counted counts the keys that got no answer: the call has ended with an error.
func (b *batch) counted() {
	if !b.again {
		b.cache.stats.readErrors.Add(b.asked - b.answered)
	}
}
