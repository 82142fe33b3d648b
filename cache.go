package holdfast

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/flight"
	"github.com/holdfast-cache/holdfast/internal/group"
	"github.com/holdfast-cache/holdfast/internal/inflight"
	"github.com/holdfast-cache/holdfast/internal/journal"
	"github.com/holdfast-cache/holdfast/internal/keyhash"
	"github.com/holdfast-cache/holdfast/internal/link"
	"github.com/holdfast-cache/holdfast/internal/local"
	"github.com/holdfast-cache/holdfast/internal/rediserr"
	"github.com/holdfast-cache/holdfast/internal/scratch"
)

// Cache is a cache with two tiers: memory of the process, and Redis. It is safe for
// concurrent use. Close stops every goroutine that it started and waits for them.
type Cache struct {
	opts     Options // without passwords
	clock    clock.Clock
	coarse   *clock.Coarse
	stats    counters
	inflight inflight.Gate

	// The workers use Redis and end with life. The notifier and the feeder of the local tier
	// finish the work that workers and calls have queued; they end with stop, after the workers.
	life     context.Context
	cancel   context.CancelFunc
	workers  group.Group
	stop     chan struct{}
	notifier group.Group
	feeder   group.Group // with the goroutine of the coarse clock
	keeper   group.Group // of the journal's file
	loaders  group.Group

	local     *local.Tier
	notify    *notifier
	journal   *journal.Journal
	flights   *flight.Table[Entry]
	loadSlots chan struct{} // one element per running load; nil: no bound
	holder    string        // prefix of the token of each lease of this Cache
	routes    *link.Routes  // nil without Redis
	remote    *link.Remote
	dropIn    atomic.Value // *dropIn, which the first call of Client makes

	listeners listeners

	// dialled has the options with the passwords. For some verbs fmt prints the targets of
	// pointers in a caller's struct without calling their methods, but follows no pointer
	// inside them; so the passwords are behind a second pointer.
	dialled *Options

	// The slices of batches: of SetMany, of all batches that go to Redis, and of GetMany.
	writes scratch.Slices[write]
	items  scratch.Slices[link.Item]
	reads  scratch.Slices[manyRead]

	userCode userCode      // user code that is running
	shutting atomic.Bool   // a Shutdown is draining
	closed   chan struct{} // closed at the end of Close
}

// Get returns the value of key, or ErrMiss. A fresh local copy is returned at once. While
// Redis is up, Get may wait for it, for at most Options.Timeout. While Redis is away, Get
// waits for nothing, except that the first call after a quiet time waits for the attempt
// that it causes; see the package's documentation. A miss and an outage look the same: ask
// the source of truth. Other errors are the context's own, ErrClosed, and errors of Redis
// about this command, in an *Error.
//
// The bytes may be shared: read them, do not write to them.
func (c *Cache) Get(ctx context.Context, key string) ([]byte, error) {
	if err := enterable(ctx, !c.inflight.Closed.Load()); err != nil {
		return nil, err
	}
	h := c.local.Hash(key)
	e, fresh := c.lookCoarse(h, key)
	if fresh {
		c.local.CountHit(h)
		return e.Bytes(), nil
	}
	got, err := c.readCounted(ctx, "get", h, key, e)
	return got.Value, err
}

// Lookup is Get with the origin of the value. Beside ErrMiss, too, the Entry's Degraded
// is set if the miss was not confirmed by Redis, as in an outage.
func (c *Cache) Lookup(ctx context.Context, key string) (Entry, error) {
	return c.lookup(ctx, "lookup", key)
}

func (c *Cache) lookup(ctx context.Context, op, key string) (Entry, error) {
	if err := enterable(ctx, !c.inflight.Closed.Load()); err != nil {
		return Entry{}, err
	}
	h, now := c.local.Hash(key), c.clock.Now()
	e, fresh := c.look(h, key, now)
	if fresh {
		c.local.CountHit(h)
		return Entry{Value: e.Bytes(), Tier: Local, TTL: clock.Left(now, e.Expires.Load())}, nil
	}
	return c.readCounted(ctx, op, h, key, e)
}

// enterable is the first check of every call. The caller's context always wins, even over
// a local hit.
func enterable(ctx context.Context, open bool) error {
	switch {
	case !open:
		return ErrClosed
	case ctx == nil:
		return errNilContext
	}
	return ctx.Err()
}

// look returns the key's local entry, or nil, and whether it may be served without Redis
// (law 5). An entry of an older epoch is suspect, and so is every entry if the server has
// been silent for too long. A journaled key has no entry: the journal answers.
func (c *Cache) look(h keyhash.Hash, key string, now int64) (e *local.Entry, fresh bool) {
	if c.journal.Keys.Load() != 0 {
		if _, inJournal := c.journal.Get(h, key, now); inJournal {
			return nil, false
		}
	}
	if e = c.local.Get(h); e == nil {
		return nil, false
	}
	return e, now < e.FreshEnd()
}

// lookCoarse is look for now, without a reading of the clock where that is not needed.
func (c *Cache) lookCoarse(h keyhash.Hash, key string) (e *local.Entry, fresh bool) {
	if c.journal.Keys.Load() != 0 {
		return c.look(h, key, c.clock.Now())
	}
	if e = c.local.Get(h); e == nil {
		return nil, false
	}
	end := e.FreshEnd()
	return e, c.coarse.Before(end) || c.clock.Now() < end // before would cost a call
}

// before reports whether the time t has not come, and the present time, of which it may be sure only
// as far as the coarse clock is. It reads the clock only if t is near.
func (c *Cache) before(t int64) (now int64, yes bool) {
	if c.coarse.Before(t) {
		return c.coarse.Last(), true
	}
	now = c.clock.Now()
	return now, now < t
}

// readCounted is read for a call that is not inside the call gate yet, and counts it.
func (c *Cache) readCounted(ctx context.Context, op string, h keyhash.Hash, key string, e *local.Entry) (Entry, error) {
	sh, open := c.inflight.Enter()
	defer sh.Leave()
	if !open {
		return Entry{}, ErrClosed
	}
	c.local.CountRead(h)
	got, err := c.read(ctx, op, h, key, c.clock.Now(), e)
	c.counted(got, err)
	return got, err
}

// read answers a call that found no fresh local copy: from the journal, from Redis, or
// with e, the suspect copy, if the outage options allow it.
func (c *Cache) read(ctx context.Context, op string, h keyhash.Hash, key string, now int64, e *local.Entry) (Entry, error) {
	if got, answered, inJournal := c.journaled(h, key, now); answered {
		return got, nil
	} else if inJournal {
		return got, ErrMiss
	}
	if err := checkKey(key); err != nil {
		return Entry{}, &Error{Op: op, Tier: Remote, Err: err}
	}
	if c.routes == nil {
		return c.fallback(e, now)
	}
	s, t := c.readerOf(h, key)
	if s == nil && c.remote.AwaitKey(ctx, now, false, key) {
		if s, t = c.readerOf(h, key); s == nil {
			e = c.local.Get(h) // our own write may have replaced it
		}
	}
	if s == nil {
		return c.fallback(e, now)
	}
	bounded, cancel := c.remote.Bound(ctx, now)
	defer cancel()
	v, o := c.remote.Get(bounded, s, key)
	return c.readOutcome(op, h, key, now, t, v, o)
}

// readerOf returns the session for reading the key, or nil, and the token with which its
// answer may fill the local tier.
func (c *Cache) readerOf(h keyhash.Hash, key string) (*link.Session, local.Token) {
	place := c.routes.Of(key)
	t := c.local.Token(h, &place.Scope)
	return c.routes.Link(place).Reader(), t
}

// readOutcome turns the outcome of a read, which may be no reply, into an answer.
func (c *Cache) readOutcome(op string, h keyhash.Hash, key string, now int64, t local.Token, v link.RemoteValue, o link.Outcome) (Entry, error) {
	switch o.Class {
	case rediserr.OK:
	case rediserr.Command:
		return Entry{}, &Error{Op: op, Key: key, Tier: Remote, Err: o.Err}
	case rediserr.Canceled:
		return Entry{}, o.Err
	default:
		// Get the copy again: our own write may have replaced it since the call began.
		return c.fallback(c.local.Get(h), c.clock.Now())
	}
	if !v.Found {
		c.local.Forget(h, t, now)
		return Entry{Tier: Remote}, ErrMiss
	}
	k := c.freshness(now, v.Life, t, o, key)
	if !c.local.Fill(h, key, v.Bytes, t, k) {
		c.stats.fillsDiscarded.Add(1)
	}
	return Entry{Value: v.Bytes, Tier: Remote, TTL: clock.Left(now, k.Expires)}, nil
}

// freshness returns the freshness of an answer of Redis that was asked for at now, under the token.
func (c *Cache) freshness(now int64, life link.Life, t local.Token, o link.Outcome, key string) local.Freshness {
	if life.Open {
		life.TTL = max(c.opts.Tracking.UntrackedTTL, time.Nanosecond)
	}
	k := local.Freshness{Confirmed: now, Expires: clock.After(now, life.TTL), Scope: t.Scope, Epoch: t.Epoch}
	// A replica's master may have a newer value. A server that imports a slot does not
	// report the changes that the slot's owner makes.
	if o.Session.OfMaster() && !o.Asked {
		k.Fresh = c.freshUntil(now, k.Expires, o.Session.Tracks(key))
	}
	return k
}

// freshUntil returns the time until which a copy is fresh; tracked says whether the
// server tracks the key.
func (c *Cache) freshUntil(now, expires int64, tracked bool) local.FreshUntil {
	if !tracked {
		expires = min(expires, clock.After(now, c.opts.Tracking.UntrackedTTL))
	}
	return local.FreshUntil(min(expires, clock.After(now, c.opts.Local.MaxTTL)))
}

// journaled answers for a journaled key: with its value, or with a miss if the key was
// deleted or has expired. inJournal is false for other keys; answered says whether there is
// a value.
func (c *Cache) journaled(h keyhash.Hash, key string, now int64) (e Entry, answered, inJournal bool) {
	f, ok := c.journal.Get(h, key, now)
	switch {
	case !ok:
		return Entry{}, false, false
	case f.Live:
		return Entry{Value: f.Value, Tier: Journal, Degraded: true, TTL: clock.Left(now, f.Deadline)}, true, true
	case f.ValueInLocalTier:
		// The journal has no value, the local tier may. Redis is not read.
		e, err := c.fallback(c.local.Get(h), now)
		return e, err == nil, true
	}
	return Entry{Tier: Journal, Degraded: true}, false, true
}

// fallback answers without Redis: with a suspect copy, if the outage options allow it, or
// with a miss. It waits for nothing.
func (c *Cache) fallback(e *local.Entry, now int64) (Entry, error) {
	degraded := c.routes != nil
	if e == nil || !servable(e, now, degraded, c.opts.Outage) {
		return Entry{Tier: Local, Degraded: degraded}, ErrMiss
	}
	expires := e.Expires.Load()
	if now >= expires {
		return Entry{Value: e.Bytes(), Tier: Local, Degraded: degraded, Stale: true}, nil
	}
	return Entry{Value: e.Bytes(), Tier: Local, Degraded: degraded, TTL: clock.Left(now, expires)}, nil
}

// servable decides whether a copy that Redis cannot confirm may be served.
func servable(e *local.Entry, now int64, outage bool, o OutageOptions) bool {
	expires := e.Expires.Load()
	if !outage {
		return now < expires
	}
	if e.Invalid() {
		return false
	}
	if o.ServeFor > 0 && now-e.Confirmed.Load() > int64(o.ServeFor) {
		return false
	}
	return now < expires || expires != clock.Never && now-expires < int64(o.ServeStaleFor)
}

// counted counts the result of a read that the local tier did not count as a hit. It is
// called once a read, where its caller's answer is known: a load asks the tiers, too, and
// several callers may wait for its result.
func (c *Cache) counted(e Entry, err error) {
	n := &c.stats
	switch {
	case err == ErrMiss:
		n.misses.Add(1)
	case err != nil && !errors.Is(err, ErrNotFound):
		n.readErrors.Add(1)
	case err != nil && e.Tier == Loader:
		n.misses.Add(1)
	case err != nil:
		n.negativeHits.Add(1)
	case e.Tier == Remote:
		n.remoteHits.Add(1)
	case e.Tier == Journal:
		n.journalHits.Add(1)
	case e.Tier == Loader:
		n.loaderHits.Add(1)
	case e.Stale:
		n.staleHits.Add(1)
	case e.Degraded:
		n.doubtHits.Add(1)
	default:
		n.batchHits.Add(1)
	}
}
