package holdfast

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/flight"
	"github.com/holdfast-cache/holdfast/internal/inflight"
	"github.com/holdfast-cache/holdfast/internal/keyhash"
	"github.com/holdfast-cache/holdfast/internal/local"
)

// LoadFunc loads a value from the source of truth. had is the copy that this process
// has, expired or about to expire, and nil if it has none. A loader whose source can tell
// whether a value has changed (by an ETag or a version) may answer with NotModified.
//
// A LoadFunc runs on a goroutine of its own, for all callers that ask for the key in the
// meantime, also if there is only one. So a caller returns when its context ends, after
// Load.HardTimeout and when the Cache is closed, even if the LoadFunc does not return.
// The context of a LoadFunc has the values of the first caller's context. It ends after
// Load.HardTimeout, when the Cache is closed, and when no caller waits for the load any
// more. A LoadFunc may use the Cache for other keys; a call for its own key returns an
// error. A panic becomes a *PanicError.
type LoadFunc func(ctx context.Context, had *Entry) (Loaded, error)

// Loaded is the result of a LoadFunc.
type Loaded struct {
	// Value is copied. nil is an empty value; for a missing one return ErrNotFound.
	Value []byte
	// NotModified: the value of the copy that the loader was given is still right, and
	// gets a new TTL. Value is ignored.
	NotModified bool
	// TTL of this value; 0: the caller's. Negative: the callers that wait get the
	// value, and it is not kept.
	TTL time.Duration
	// StaleIfError of this value, as in LoadOptions; 0: the caller's. Negative: off.
	// Only this process knows it, for as long as it keeps the copy.
	StaleIfError time.Duration
}

// PanicError is the error of a call whose loader, codec or clone function panicked.
type PanicError struct {
	Value any    // the argument of panic
	Stack []byte // the stack of the goroutine that panicked
}

func (p *PanicError) Error() string { return fmt.Sprintf("holdfast: a panic: %v", p.Value) }

func (p *PanicError) Unwrap() error {
	err, _ := p.Value.(error)
	return err
}

// GetOrLoad is Get, and on a miss it calls load, returns the loaded value and keeps it for
// ttl, as Set does; 0 means Options.DefaultTTL. In this process one load of a key runs at
// a time, for all callers, and mostly one among all processes that share the Redis (see
// LoadOptions.Lease). A fresh local copy is returned at once. Otherwise the call waits for
// Redis, for at most Options.Timeout, and then for the load, as long as ctx allows. A load
// goes on as long as a caller waits for it.
//
// A Set or Delete of the key supersedes a load that is under way: the callers that wait
// get the loaded value, and it is not kept. A value that could not be kept is never an
// error of the call.
//
// Errors: the loader's own, in an *Error, with ErrNotFound among them, which is remembered
// for Load.NotFoundTTL; *PanicError; an error that says that Load.HardTimeout has passed,
// or that the loader asked for its own key; those of Get except ErrMiss. LoadOptions says
// when an old copy answers in place of an error.
//
// The bytes may be shared: read them, do not write to them.
func (c *Cache) GetOrLoad(ctx context.Context, key string, ttl time.Duration, load func(context.Context) ([]byte, error)) ([]byte, error) {
	if err := loadable(ctx, !c.inflight.Closed.Load(), ttl, load == nil); err != nil {
		return nil, loadError("getorload", key, err)
	}
	h := c.local.Hash(key)
	e, fresh := c.lookCoarse(h, key)
	if fresh && !c.refreshDue(e, ttl, c.opts.Load.EarlyRefresh) {
		c.local.CountHit(h)
		return e.Bytes(), nil
	}
	sh, open := c.inflight.Enter()
	v := inflight.Guard{Gate: &c.inflight, Shard: sh, Open: open}
	defer v.Leave()
	if !open {
		return nil, loadError("getorload", key, ErrClosed)
	}
	if fresh {
		c.refresh(ctx, newRequest("getorload", key, h, ttl, c.opts.Load, plainly(load)))
		c.local.CountHit(h)
		return e.Bytes(), nil
	}
	c.local.CountRead(h)
	got, err := c.loaded(ctx, newRequest("getorload", key, h, ttl, c.opts.Load, plainly(load)), &v)
	c.counted(got, err)
	return got.Value, err
}

// GetOrLoadWith is GetOrLoad with options of its own, a loader that is given the local
// copy, nil for none, and an Entry as the answer. The Entry's Tier is Loader if the value
// was loaded, for this call or for one that it shared the load with. Fields of o that are
// zero are those of Options.Load.
func (c *Cache) GetOrLoadWith(ctx context.Context, key string, ttl time.Duration, o LoadOptions, load LoadFunc) (Entry, error) {
	return c.load(ctx, "getorloadwith", key, ttl, o.over(c.opts.Load), nil, load, false)
}

// load is GetOrLoadWith for a caller that cannot use every value: a value that accepts
// refuses counts as missing and is written over. nil accepts every value. The zero fields
// of o have been replaced by the Cache's. again: an earlier try of the same read was counted.
func (c *Cache) load(ctx context.Context, op, key string, ttl time.Duration, o LoadOptions, accepts usable, load LoadFunc, again bool) (Entry, error) {
	sh, open := c.inflight.Enter()
	if err := loadable(ctx, open, ttl, load == nil); err != nil {
		sh.Leave()
		return Entry{}, loadError(op, key, err)
	}
	v := inflight.Guard{Gate: &c.inflight, Shard: sh, Open: true}
	defer v.Leave()
	h, now := c.local.Hash(key), c.clock.Now()
	e, fresh := c.look(h, key, now)
	fresh = fresh && accepts.of(key, e.Bytes(), &v)
	if !v.Open {
		if !again {
			c.counted(Entry{}, ErrClosed)
		}
		return Entry{}, ErrClosed
	}
	if fresh {
		if c.refreshDue(e, ttl, o.EarlyRefresh) {
			c.refresh(ctx, newRequest(op, key, h, ttl, o, load))
		}
		if !again {
			c.local.CountHit(h)
		}
		return Entry{Value: e.Bytes(), Tier: Local, TTL: clock.Left(now, e.Expires.Load())}, nil
	}
	if !again {
		c.local.CountRead(h)
	}
	if err := o.validateWithin(c.opts.Load); err != nil {
		return Entry{}, loadError(op, key, errors.Join(err...))
	}
	r := newRequest(op, key, h, ttl, o, load)
	r.usable = accepts
	got, err := c.loaded(ctx, r, &v)
	if !again {
		c.counted(got, err)
	}
	if err != nil {
		return Entry{}, err
	}
	return got, nil
}

var errNilLoader = errors.New("holdfast: nil loader: there is nothing to ask")

// loadable is the first check of every call with a loader.
func loadable(ctx context.Context, open bool, ttl time.Duration, nilLoader bool) error {
	switch {
	case nilLoader:
		return errNilLoader
	case ttl < 0:
		return ErrInvalidTTL
	}
	return enterable(ctx, open)
}

// loadError wraps err for a call with a loader. Errors of contexts, ErrClosed and an
// *Error are returned unchanged.
func loadError(op, key string, err error) error {
	if _, ok := err.(*Error); ok || err == ErrClosed || err == context.Canceled || err == context.DeadlineExceeded {
		return err
	}
	return &Error{Op: op, Key: key, Tier: Loader, Err: err}
}

// plainly turns a loader of GetOrLoad into a LoadFunc.
func plainly(load func(context.Context) ([]byte, error)) LoadFunc {
	return func(ctx context.Context, _ *Entry) (Loaded, error) {
		b, err := load(ctx)
		return Loaded{Value: b}, err
	}
}

// loaderOf is the key under which a loader's context has its run.
type loaderOf struct{}

// runOf returns the run whose loader has this context, of this Cache or another, or
// nil.
func runOf(ctx context.Context) *flight.Run[Entry] {
	r, _ := ctx.Value(loaderOf{}).(*flight.Run[Entry])
	return r
}

// loaded answers a call that found no fresh local copy. It leaves the call gate before it
// waits for a load, because a load may take long and Close must not wait for it.
func (c *Cache) loaded(ctx context.Context, r *request, v *inflight.Guard) (Entry, error) {
	defer v.Leave()
	it, parent := &r.items[0], runOf(ctx)
	for {
		if c.knownAbsent(it.h, r) {
			return Entry{}, loadError(r.op, it.key, ErrNotFound)
		}
		f, as, err := c.flights.Join(it.h, flight.NewRun[Entry](), parent)
		if err != nil {
			return Entry{}, loadError(r.op, it.key, err)
		}
		switch as {
		case flight.Leader:
			it.f = f
			if r.reload {
				f.Run.Want() // it goes on if the caller leaves
			}
			c.lead(ctx, r, it, parent, v)
			v.Leave()
			return c.await(ctx, r, it, f, parent)
		case flight.Follower:
			v.Leave()
			if r.reload && !r.mayShare { // the load began before this call
				err := c.over(ctx, f)
				c.flights.Leave(f, parent)
				if err != nil {
					return Entry{}, err
				}
				return c.again(ctx, r.anew(it))
			}
			c.stats.loadsShared.Add(1)
			return c.await(ctx, r, it, f, parent)
		case flight.RetryAfterWrite:
			v.Leave()
			if err := c.over(ctx, f); err != nil {
				return Entry{}, err
			}
			return c.again(ctx, r.anew(it))
		case flight.CoolingDown:
			e, ok := c.standIn(r, it, v)
			switch {
			case ok:
				return e, nil
			case !v.Open:
				return Entry{}, ErrClosed
			}
			c.flights.Remove(f)
		}
	}
}

// lead looks for the key of a new flight in the tiers, and starts the load if they do
// not have it. A codec may end the goroutine meanwhile (runtime.Goexit). Then the other
// callers of the flight begin again.
func (c *Cache) lead(ctx context.Context, r *request, it *loadItem, parent *flight.Run[Entry], v *inflight.Guard) {
	led := false
	defer func() {
		if !led {
			c.flights.Abort(it.f, flight.ErrAgain)
			c.flights.Leave(it.f, parent)
		}
	}()
	if !c.find(ctx, r, it, v) {
		c.begin(ctx, r)
	}
	led = true
}

// knownAbsent reports whether a loader has returned ErrNotFound for the key lately. A
// Refresh loads all the same.
func (c *Cache) knownAbsent(h keyhash.Hash, r *request) bool {
	if r.o.NotFoundTTL <= 0 || r.reload {
		return false
	}
	e := c.local.Get(h)
	if e == nil || !e.Absent(c.clock.Now()) {
		return false
	}
	return true
}

// findTries bounds how often a key is read again that is invalidated during the read.
const findTries = 3

// find looks for the key of a flight in the tiers, for the flight's leader. It returns
// true if the flight has ended, with a value, an error, or because the Cache is closed.
// If it returns false, the loader must be called, and the call is still inside the gate.
func (c *Cache) find(ctx context.Context, r *request, it *loadItem, v *inflight.Guard) bool {
	for try := 1; ; try++ {
		if !v.Open {
			c.flights.Abort(it.f, ErrClosed)
			return true
		}
		c.flights.Arm(it.f)
		it.base = ""
		if c.knownAbsent(it.h, r) {
			return c.flights.End(it.f, Entry{}, loadError(r.op, it.key, ErrNotFound), 0)
		}
		now := c.clock.Now()
		it.token = c.local.Token(it.h, c.scopeOf(it.key))
		it.seen = c.local.Get(it.h)
		e, fresh := c.look(it.h, it.key, now)
		if fresh && r.usable.of(it.key, e.Bytes(), v) {
			return c.flights.End(it.f, Entry{Value: e.Bytes(), Tier: Local, TTL: clock.Left(now, e.Expires.Load())}, nil, 0)
		} else if !v.Open {
			continue
		}
		got, err := c.read(ctx, r.op, it.h, it.key, now, e)
		switch {
		case err == nil && !got.Stale && r.usable.of(it.key, got.Value, v):
			return c.flights.End(it.f, got, nil, 0)
		case !v.Open:
			continue
		case err == nil && got.Tier == Remote:
			it.base, it.seen = digestOf(got.Value), c.local.Get(it.h)
		case err != nil && err == ctx.Err():
			// This caller leaves. Other callers may wait for the flight: begin
			// finds out, and reads again for them.
			it.token = local.Token{}
			return false
		case err != nil && err != ErrMiss && !refusesKey(err):
			return c.flights.End(it.f, Entry{}, err, 0)
		}
		// A key that Redis refuses is loaded all the same.
		it.refused = err != nil && err != ErrMiss
		it.answered = !it.refused && !got.Degraded
		if c.flights.Load(it.f, try == findTries) {
			return false
		}
	}
}

func (c *Cache) scopeOf(key string) *local.EpochScope {
	if c.routes == nil {
		return &c.local.StandaloneScope
	}
	return &c.routes.Of(key).Scope
}

// begin starts the load of the request on a goroutine of its own. The caller is counted
// in.
func (c *Cache) begin(ctx context.Context, r *request) {
	if !c.loaders.Spawn("loader", func() { c.runLoad(ctx, r) }) {
		c.giveUp(r, refs(r.items), ErrClosed)
	}
}

// await waits for the flight as long as the caller's context allows. If an old copy can
// stand in for the load, it waits for at most SoftTimeout.
func (c *Cache) await(ctx context.Context, r *request, it *loadItem, f *flight.Flight[Entry], parent *flight.Run[Entry]) (Entry, error) {
	defer c.flights.Leave(f, parent)
	var soft <-chan time.Time
	if r.o.SoftTimeout > 0 {
		if _, ok := c.standInNow(r, it); ok {
			t := time.NewTimer(r.o.SoftTimeout)
			defer t.Stop()
			soft = t.C
		}
	}
	for {
		select {
		case <-f.Done:
			return c.arrived(ctx, r, it, f)
		case <-ctx.Done():
			return Entry{}, ctx.Err()
		case <-c.life.Done():
			return Entry{}, ErrClosed
		case <-soft:
			if e, ok := c.standInNow(r, it); ok {
				f.Run.Want()
				return e, nil
			}
		}
	}
}

// over waits until the flight has ended.
func (c *Cache) over(ctx context.Context, f *flight.Flight[Entry]) error {
	select {
	case <-f.Done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-c.life.Done():
		return ErrClosed
	}
}

// again is loaded for a call that is no longer counted in.
func (c *Cache) again(ctx context.Context, r *request) (Entry, error) {
	v := c.inflight.Guard()
	if err := enterable(ctx, v.Open); err != nil {
		v.Leave()
		return Entry{}, err
	}
	return c.loaded(ctx, r, v)
}

// arrived returns a caller's answer from a flight that has ended.
func (c *Cache) arrived(ctx context.Context, r *request, it *loadItem, f *flight.Flight[Entry]) (Entry, error) {
	switch {
	case f.Err == nil:
		return f.Result, nil
	case f.Err == flight.ErrAgain:
		return c.again(ctx, r.anew(it))
	case errors.Is(f.Err, ErrNotFound):
		return Entry{Tier: f.Result.Tier}, f.Err // Loader, unless it was remembered
	}
	if e, ok := c.standInNow(r, it); ok {
		return e, nil
	}
	return Entry{}, f.Err
}

// standInNow is standIn for a call that is not counted in.
func (c *Cache) standInNow(r *request, it *loadItem) (Entry, bool) {
	v := c.inflight.Guard()
	defer v.Leave()
	if !v.Open {
		return Entry{}, false
	}
	return c.standIn(r, it, v)
}

// standIn returns the copy that answers in place of a load that failed or takes long.
func (c *Cache) standIn(r *request, it *loadItem, v *inflight.Guard) (Entry, bool) {
	e, now := c.local.Get(it.h), c.clock.Now()
	if e == nil || e.Invalid() || !maySubstitute(now, e.Expires.Load(), e.StaleIfError().Or(r.o.StaleIfError)) || !r.usable.of(it.key, e.Bytes(), v) {
		return Entry{}, false
	}
	return entryOfCopy(e, now, c.routes != nil), true
}

// entryOfCopy returns the Entry for a copy that is not confirmed.
func entryOfCopy(e *local.Entry, now int64, degraded bool) Entry {
	expires := e.Expires.Load()
	got := Entry{Value: e.Bytes(), Tier: Local, Degraded: degraded, Stale: now >= expires}
	if !got.Stale {
		got.TTL = clock.Left(now, expires)
	}
	return got
}

// maySubstitute decides whether a copy that expires at this time may stand in for a load.
func maySubstitute(now, expires int64, limit time.Duration) bool {
	return limit > 0 && (expires == clock.Never || now-expires < int64(limit))
}

// refreshDue decides whether a fresh copy is due for an early refresh; part 0 is never.
func (c *Cache) refreshDue(e *local.Entry, ttl time.Duration, part float64) bool {
	return part > 0 && refreshDue(c.clock.Now(), e.Confirmed.Load(), e.Expires.Load(), ttl, part)
}

// refreshDue decides whether a fresh copy is due for an early refresh: more than part of
// its TTL has passed. If the caller's ttl is shorter than the copy's, part is of the
// caller's, counted back from the end.
func refreshDue(now, confirmed, expires int64, ttl time.Duration, part float64) bool {
	if expires == clock.Never {
		return false
	}
	life := expires - confirmed
	if ttl > 0 {
		life = min(life, int64(ttl))
	}
	return float64(expires-now) < (1-part)*float64(life)
}

// jittered shortens a ttl by up to part of it; by is random, in [0, 1).
func jittered(ttl time.Duration, part, by float64) time.Duration {
	if ttl == 0 || part == 0 {
		return ttl
	}
	return max(ttl-time.Duration(float64(ttl)*part*by), time.Millisecond)
}

// refresh loads the key of a fresh copy in the background (EarlyRefresh), unless a load
// is under way or has failed a moment ago. The caller is counted in.
func (c *Cache) refresh(ctx context.Context, r *request) {
	it := &r.items[0]
	if !c.flights.Idle(it.h) {
		return
	}
	f, as, err := c.flights.Join(it.h, flight.NewRun[Entry](), nil)
	if err != nil || as == flight.CoolingDown || as == flight.RetryAfterWrite {
		return
	}
	defer c.flights.Leave(f, nil)
	if as == flight.Follower {
		return
	}
	it.f, r.early = f, true
	f.Run.Want()
	// Look again: a write before the flight existed could not supersede it.
	now := c.clock.Now()
	e, fresh := c.look(it.h, it.key, now)
	if !fresh || e.Absent(now) || !c.flights.Load(f, false) {
		c.flights.End(f, Entry{}, flight.ErrAgain, 0)
		return
	}
	it.token = local.Token{Scope: e.Scope, Epoch: e.Epoch.Load()}
	it.answered = true
	it.had = Entry{Value: e.Bytes(), Tier: Local, TTL: clock.Left(now, e.Expires.Load())}
	it.base, it.seen = digestOf(it.had.Value), e
	c.begin(ctx, r)
}
