package holdfast

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// LoadFunc asks the source of truth. had is the copy that this process still has,
// past its end or about to be, or one without Value where it has none: a source that
// can tell whether it changed (an ETag, a version) may answer with NotModified.
//
// It runs on a goroutine of its own, for all who ask for the key meanwhile. Its
// context has the values of the first caller's and ends with Load.HardLimit, when
// the Cache is closed, or when nobody waits for the load any more. It may use the
// Cache for other keys; asking for its own is an error. A panic is one, too.
type LoadFunc func(ctx context.Context, had Entry) (Loaded, error)

// Loaded is what a LoadFunc returns.
type Loaded struct {
	// Value is copied. nil is an empty value: what there is not is ErrNotFound.
	Value []byte
	// NotModified: the value is that of the copy that the loader was given, which
	// gets a new life. Value is not looked at.
	NotModified bool
	// TTL of this value; 0: as the caller asked. Negative: who waits for it gets
	// it, and it is not kept.
	TTL time.Duration
	// StaleIfError of this value, as in LoadOptions, known to this process for as
	// long as it keeps the copy; 0: as the caller asked. Negative: not at all.
	StaleIfError time.Duration
}

// PanicError is what callers get whose loader panicked, or whose codec.
type PanicError struct {
	Value any    // what it panicked with
	Stack []byte // where
}

func (p *PanicError) Error() string { return fmt.Sprintf("holdfast: a panic: %v", p.Value) }

func (p *PanicError) Unwrap() error {
	err, _ := p.Value.(error)
	return err
}

// GetOrLoad is Get, and where that is a miss, the value that load returns, which is
// kept for ttl as with Set; 0 means Options.DefaultTTL. However many ask for the key,
// load is called once at a time in this process, and mostly once among all that
// share the Redis (see LoadOptions.Lease). A fresh local copy is returned at once. Else the
// call waits for Redis, for at most Options.Timeout, and then for the load, as long
// as ctx allows; a load goes on as long as anybody waits for it.
//
// A Set or Delete of the key wins over a load that is under way: who waits gets what
// was loaded, and it is not kept. That it could not be kept is never an error of the
// call.
//
// Errors: load's own, in an *Error; ErrNotFound among them, which is remembered for
// Load.NotFoundTTL; *PanicError; one that says that Load.HardLimit has passed, or that
// the loader asked for its own key; those of Get but for ErrMiss. See LoadOptions for
// what may answer in place of an error.
//
// The bytes may be shared: read them, do not write to them.
func (c *Cache) GetOrLoad(ctx context.Context, key string, ttl time.Duration, load func(context.Context) ([]byte, error)) ([]byte, error) {
	lane, open := c.fence.enter()
	if err := loadable(ctx, open, ttl, load == nil); err != nil {
		lane.leave()
		return nil, loadError("getorload", key, err)
	}
	h, now := c.local.hash(key), c.clock.now()
	e, fresh := c.look(h, key, now)
	if fresh {
		if part := c.opts.Load.EarlyRefresh; part > 0 && refreshDue(now, e.confirmed.Load(), e.expires.Load(), ttl, part) {
			c.refresh(ctx, newRequest("getorload", key, h, ttl, c.opts.Load, plainly(load)))
		}
		lane.hit()
		return e.bytes(), nil
	}
	got, err := c.loaded(ctx, newRequest("getorload", key, h, ttl, c.opts.Load, plainly(load)), lane)
	return got.Value, err
}

// Load is GetOrLoad with options of its own, a loader that sees the copy there was,
// and the circumstances of the answer. The Entry's Tier is Loader for what this call
// waited for.
func (c *Cache) Load(ctx context.Context, key string, ttl time.Duration, o LoadOptions, load LoadFunc) (Entry, error) {
	return c.load(ctx, "load", key, ttl, o, nil, load)
}

// load is Load for who cannot use every value: one of which usable says no is as if it
// were not there, and is written over. nil: all are usable.
func (c *Cache) load(ctx context.Context, op, key string, ttl time.Duration, o LoadOptions, usable usable, load LoadFunc) (Entry, error) {
	lane, open := c.fence.enter()
	if err := loadable(ctx, open, ttl, load == nil); err != nil {
		lane.leave()
		return Entry{}, loadError(op, key, err)
	}
	h, now := c.local.hash(key), c.clock.now()
	e, fresh := c.look(h, key, now)
	o = o.over(c.opts.Load)
	if fresh && usable.of(key, e.bytes()) {
		if part := o.EarlyRefresh; part > 0 && refreshDue(now, e.confirmed.Load(), e.expires.Load(), ttl, part) {
			c.refresh(ctx, newRequest(op, key, h, ttl, o, load))
		}
		lane.hit()
		return Entry{Value: e.bytes(), Tier: Local, TTL: left(now, e.expires.Load())}, nil
	}
	if err := o.validate(); err != nil {
		lane.leave()
		return Entry{}, loadError(op, key, errors.Join(err...))
	}
	r := newRequest(op, key, h, ttl, o, load)
	r.usable = usable
	return c.loaded(ctx, r, lane)
}

var errNilLoader = errors.New("holdfast: nil loader: there is nothing to ask")

// loadable is what every call with a loader checks first.
func loadable(ctx context.Context, open bool, ttl time.Duration, nilLoader bool) error {
	switch {
	case nilLoader:
		return errNilLoader
	case ttl < 0:
		return ErrInvalidTTL
	}
	return enterable(ctx, open)
}

// loadError is the error of a call with a loader; the context's own, ErrClosed and
// what is an *Error already stay as they are.
func loadError(op, key string, err error) error {
	if _, ok := err.(*Error); ok || err == ErrClosed || err == context.Canceled || err == context.DeadlineExceeded {
		return err
	}
	return &Error{Op: op, Key: key, Tier: Loader, Err: err}
}

// plainly makes a LoadFunc of a loader that knows nothing of copies.
func plainly(load func(context.Context) ([]byte, error)) LoadFunc {
	return func(ctx context.Context, _ Entry) (Loaded, error) {
		value, err := load(ctx)
		return Loaded{Value: value}, err
	}
}

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

	usable usable
}

// usable says whether a value may be the answer. It is a codec, and so the caller's
// code: it may take long, and must not be asked under a lock.
type usable func(key string, value []byte) bool

func (u usable) of(key string, value []byte) bool { return u == nil || u(key, value) }

// anew is the request for one of its keys, for a further try: who carried out the
// first may still be at it.
func (r *request) anew(it *loadItem) *request {
	again := *r
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

// loadItem is one key of a request.
type loadItem struct {
	key string
	h   keyHash
	f   *flight

	// What the tiers said before the load.
	token    token
	answered bool // Redis did, and has no such key; or it has had, if the load is early

	had    Entry
	loaded Loaded
	err    error
}

func newRequest(op, key string, h keyHash, ttl time.Duration, o LoadOptions, load LoadFunc) *request {
	return &request{
		op: op, ttl: ttl, o: o, items: []loadItem{{key: key, h: h}},
		call: func(ctx context.Context, items []*loadItem) {
			it := items[0]
			it.loaded, it.err = load(ctx, it.had)
		},
	}
}

// loaderOf is the key of a loader's context under which its run is found.
type loaderOf struct{ *Cache }

// runOf is the run whose loader has this context, nil for none.
func (c *Cache) runOf(ctx context.Context) *run {
	r, _ := ctx.Value(loaderOf{c}).(*run)
	return r
}

// loaded answers what the local tier could not. It leaves the lane: what it waits for
// then is not Redis, and may take long.
func (c *Cache) loaded(ctx context.Context, r *request, lane *fenceLane) (Entry, error) {
	it, parent := &r.items[0], c.runOf(ctx)
	for {
		if c.knownAbsent(it.h, r.o) {
			lane.leave()
			return Entry{}, loadError(r.op, it.key, ErrNotFound)
		}
		f, role, err := c.flights.join(it.h, newRun(), parent)
		if err != nil {
			lane.leave()
			return Entry{}, loadError(r.op, it.key, err)
		}
		switch role {
		case leads:
			it.f = f
			if !c.find(ctx, r, it) {
				c.begin(ctx, r)
			}
			lane.leave()
			return c.await(ctx, r, it, f, parent)
		case waits:
			lane.leave()
			c.stats.loadsShared.Add(1)
			return c.await(ctx, r, it, f, parent)
		case yields:
			lane.leave()
			if err := c.over(ctx, f); err != nil {
				return Entry{}, err
			}
			return c.again(ctx, r.anew(it))
		case rests:
			if e, ok := c.standIn(r, it); ok {
				lane.leave()
				c.stoodIn(e)
				return e, nil
			}
			c.flights.remove(f)
		}
	}
}

// knownAbsent says whether a loader said lately that there is no such thing.
func (c *Cache) knownAbsent(h keyHash, o LoadOptions) bool {
	if o.NotFoundTTL <= 0 {
		return false
	}
	e := c.local.get(h)
	if e == nil || !e.absent(c.clock.now()) {
		return false
	}
	c.stats.negativeHits.Add(1)
	return true
}

// findTries bounds how often a key is read of which the server tells meanwhile.
const findTries = 3

// find asks the tiers for the key of a flight that is led. It says whether the flight
// has ended with that; else its loader is to be asked. The caller is inside the
// fence.
func (c *Cache) find(ctx context.Context, r *request, it *loadItem) bool {
	for try := 1; ; try++ {
		c.flights.arm(it.f)
		if c.knownAbsent(it.h, r.o) {
			return c.flights.end(it.f, Entry{}, loadError(r.op, it.key, ErrNotFound), 0)
		}
		now := c.clock.now()
		it.token = c.local.token(it.h, c.domainOf(it.key))
		e, fresh := c.look(it.h, it.key, now)
		if fresh && r.usable.of(it.key, e.bytes()) {
			return c.flights.end(it.f, Entry{Value: e.bytes(), Tier: Local, TTL: left(now, e.expires.Load())}, nil, 0)
		}
		got, err := c.read(ctx, r.op, it.h, it.key, now, e)
		switch {
		case err == nil && !got.Stale && r.usable.of(it.key, got.Value):
			return c.flights.end(it.f, got, nil, 0)
		case err != nil && err == ctx.Err():
			// Others who wait do not leave with this caller: begin finds out
			// whether there are any, and reads anew.
			it.token = token{}
			return false
		case err != nil && err != ErrMiss:
			return c.flights.end(it.f, Entry{}, err, 0)
		}
		it.answered = !got.Degraded
		if c.flights.load(it.f, try == findTries) {
			return false
		}
	}
}

func (c *Cache) domainOf(key string) *domain {
	if c.routes == nil {
		return &c.local.home
	}
	return &c.routes.of(key).domain
}

// begin has the request's loader asked, on a goroutine of its own. The caller is
// inside the fence.
func (c *Cache) begin(ctx context.Context, r *request) {
	c.loaders.spawn("loader", func() { c.fly(ctx, r) })
}

// await waits for the flight, as long as the caller's context allows and no longer
// than SoftLimit, if a stale copy can stand in for it.
func (c *Cache) await(ctx context.Context, r *request, it *loadItem, f *flight, parent *run) (Entry, error) {
	defer c.flights.leave(f, parent)
	var soft <-chan time.Time
	if r.o.SoftLimit > 0 {
		if _, ok := c.standInNow(r, it); ok {
			t := time.NewTimer(r.o.SoftLimit)
			defer t.Stop()
			soft = t.C
		}
	}
	for {
		select {
		case <-f.done:
			return c.arrived(ctx, r, it, f)
		case <-ctx.Done():
			return Entry{}, ctx.Err()
		case <-c.life.Done():
			return Entry{}, ErrClosed
		case <-soft:
			if e, ok := c.standInNow(r, it); ok {
				f.run.want()
				c.stoodIn(e)
				return e, nil
			}
		}
	}
}

// over waits until the flight has ended.
func (c *Cache) over(ctx context.Context, f *flight) error {
	select {
	case <-f.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-c.life.Done():
		return ErrClosed
	}
}

// again is loaded for who has left the fence.
func (c *Cache) again(ctx context.Context, r *request) (Entry, error) {
	lane, open := c.fence.enter()
	if err := enterable(ctx, open); err != nil {
		lane.leave()
		return Entry{}, err
	}
	return c.loaded(ctx, r, lane)
}

// arrived is what a caller gets of a flight that has ended.
func (c *Cache) arrived(ctx context.Context, r *request, it *loadItem, f *flight) (Entry, error) {
	switch {
	case f.err == nil:
		return f.entry, nil
	case f.err == errAgain:
		return c.again(ctx, r.anew(it))
	case errors.Is(f.err, ErrNotFound):
		return Entry{}, f.err
	}
	if e, ok := c.standInNow(r, it); ok {
		c.stoodIn(e)
		return e, nil
	}
	return Entry{}, f.err
}

// stoodIn counts a copy that was served in place of a load.
func (c *Cache) stoodIn(e Entry) {
	c.stats.batchHits.Add(1)
	if e.Stale {
		c.stats.staleHits.Add(1)
	}
}

// standInNow is standIn for who is not inside the fence.
func (c *Cache) standInNow(r *request, it *loadItem) (Entry, bool) {
	lane, open := c.fence.enter()
	defer lane.leave()
	if !open {
		return Entry{}, false
	}
	return c.standIn(r, it)
}

// standIn is the copy that answers in place of a load that failed, or takes long.
func (c *Cache) standIn(r *request, it *loadItem) (Entry, bool) {
	e, now := c.local.get(it.h), c.clock.now()
	if e == nil || e.refuted() || !maySubstitute(now, e.expires.Load(), e.grace().or(r.o.StaleIfError)) || !r.usable.of(it.key, e.bytes()) {
		return Entry{}, false
	}
	return entryOfCopy(e, now, c.routes != nil), true
}

// entryOfCopy is a copy that nobody has confirmed.
func entryOfCopy(e *entry, now int64, degraded bool) Entry {
	expires := e.expires.Load()
	got := Entry{Value: e.bytes(), Tier: Local, Degraded: degraded, Stale: now >= expires}
	if !got.Stale {
		got.TTL = left(now, expires)
	}
	return got
}

// maySubstitute decides whether a copy with this end may stand in for a load.
func maySubstitute(now, expires int64, grace time.Duration) bool {
	return grace > 0 && (expires == never || now-expires < int64(grace))
}

// refreshDue decides whether a fresh copy is to be loaded anew: past that part of its
// life. Where the caller's ttl is shorter than the copy's, it counts from the end.
func refreshDue(now, confirmed, expires int64, ttl time.Duration, part float64) bool {
	if expires == never {
		return false
	}
	life := expires - confirmed
	if ttl > 0 {
		life = min(life, int64(ttl))
	}
	return float64(expires-now) < (1-part)*float64(life)
}

// jittered shortens a ttl by up to that part of it; by is random, in [0, 1).
func jittered(ttl time.Duration, part, by float64) time.Duration {
	if ttl == 0 || part == 0 {
		return ttl
	}
	return max(ttl-time.Duration(float64(ttl)*part*by), time.Millisecond)
}

// refresh loads the key of a fresh copy in the background, unless that is under way,
// or failed a moment ago. The caller is inside the fence.
func (c *Cache) refresh(ctx context.Context, r *request) {
	it := &r.items[0]
	if !c.flights.idle(it.h) {
		return
	}
	f, role, err := c.flights.join(it.h, newRun(), nil)
	if err != nil || role == rests || role == yields {
		return
	}
	defer c.flights.leave(f, nil)
	if role == waits {
		return
	}
	it.f, r.early = f, true
	f.run.want()
	// Once more: what came before the flight did not find it.
	now := c.clock.now()
	e, fresh := c.look(it.h, it.key, now)
	if !fresh || e.absent(now) || !c.flights.load(f, false) {
		c.flights.end(f, Entry{}, errAgain, 0)
		return
	}
	it.token = token{domain: e.domain, epoch: e.epoch.Load()}
	it.answered = true
	it.had = Entry{Value: e.bytes(), Tier: Local, TTL: left(now, e.expires.Load())}
	c.begin(ctx, r)
}
