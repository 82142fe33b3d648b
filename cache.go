package holdfast

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"
)

// Cache is a cache of two tiers. It is safe for concurrent use. Close stops
// every goroutine that it started and waits for them.
type Cache struct {
	opts  Options // without passwords
	clock clock
	stats counters
	fence fence

	// The workers, who speak to Redis, end with life. The notifier and the
	// flusher, who carry what workers and calls leave behind, end with stop,
	// after them.
	life     context.Context
	cancel   context.CancelFunc
	workers  group
	stop     chan struct{}
	notifier group
	flusher  group
	keeper   group // of the journal's file
	loaders  group
	closer   group // waits for whom Close stopped waiting for; nobody waits for it

	local   *local
	notify  *notifier
	journal *journal
	flights *flights
	places  chan struct{} // taken by loads; nil for no bound
	holder  string        // begins the token of each lease of this Cache
	routes  *routes       // nil where there is no Redis
	remote  *remote
	dropIn  dropIn

	listeners listeners

	// dialled is the options with the passwords. fmt prints what the fields of a caller's
	// struct point to, for some verbs, and calls no methods there; but it goes no further.
	dialled *Options

	foreign  foreign       // the user's code that runs now
	shutting atomic.Bool   // a Shutdown drains
	closed   chan struct{} // Close is done
}

// Tier says where an Entry came from.
type Tier uint8

const (
	// Local is the in-process tier.
	Local Tier = iota
	// Remote is Redis.
	Remote
	// Journal holds what was written while Redis was away.
	Journal
	// Loader is the caller's own function, which asked the source of truth.
	Loader
)

func (t Tier) String() string {
	switch t {
	case Local:
		return "local"
	case Remote:
		return "remote"
	case Journal:
		return "journal"
	case Loader:
		return "loader"
	}
	return fmt.Sprintf("tier(%d)", uint8(t))
}

// Entry is a value and how it was come by.
type Entry struct {
	// Value may be shared with other callers: read it, do not write to it.
	Value []byte
	// Tier answered.
	Tier Tier
	// Stale: the value is past its TTL. It is served only while Redis is away,
	// within Outage.ServeStaleFor.
	Stale bool
	// Degraded: Redis was not there to confirm the answer, be it a value or a
	// miss.
	Degraded bool
	// TTL is what is left of the value's life; 0 where it has no expiry, and
	// where it is stale.
	TTL time.Duration
}

// Get returns the value of key, or ErrMiss. While Redis is up it may wait for
// it, for at most Options.Timeout; while Redis is away it waits for nothing, but for the
// attempt that the first call after a quiet time makes, see the package's documentation. A
// miss and an outage look the same: ask the source of truth. Other errors are
// the context's own, ErrClosed, and what Redis says of this command.
//
// The bytes may be shared: read them, do not write to them.
func (c *Cache) Get(ctx context.Context, key string) ([]byte, error) {
	sh, open := c.fence.enter()
	if err := enterable(ctx, open); err != nil {
		sh.leave()
		return nil, err
	}
	h, now := c.local.hash(key), c.clock.now()
	e, fresh := c.look(h, key, now)
	if fresh {
		sh.hit()
		return e.bytes(), nil
	}
	defer sh.leave()
	got, err := c.read(ctx, "get", h, key, now, e)
	return got.Value, err
}

// Lookup is Get with the circumstances. The Entry's Degraded is told beside
// ErrMiss, too: the miss of an outage is none that Redis has confirmed.
func (c *Cache) Lookup(ctx context.Context, key string) (Entry, error) {
	return c.lookup(ctx, "lookup", key)
}

func (c *Cache) lookup(ctx context.Context, op, key string) (Entry, error) {
	sh, open := c.fence.enter()
	if err := enterable(ctx, open); err != nil {
		sh.leave()
		return Entry{}, err
	}
	h, now := c.local.hash(key), c.clock.now()
	e, fresh := c.look(h, key, now)
	if fresh {
		sh.hit()
		return Entry{Value: e.bytes(), Tier: Local, TTL: left(now, e.expires.Load())}, nil
	}
	defer sh.leave()
	return c.read(ctx, op, h, key, now, e)
}

// enterable is what every call checks first. The caller's context always wins,
// also over a local hit.
func enterable(ctx context.Context, open bool) error {
	switch {
	case !open:
		return ErrClosed
	case ctx == nil:
		return errNilContext
	}
	return ctx.Err()
}

// look returns the key's local entry, if there is one, and whether it may be
// served without asking anybody: an entry of an older epoch is in doubt, and every
// entry is while the server is silent for too long.
func (c *Cache) look(h keyHash, key string, now int64) (e *entry, fresh bool) {
	if c.journal.keys.Load() != 0 {
		if _, inJournal := c.journal.get(h, key, now); inJournal {
			return nil, false
		}
	}
	if e = c.local.get(h); e == nil {
		return nil, false
	}
	// The epoch first: a confirmation stores it before the new freshness, and
	// takes the old one away before that.
	return e, e.vouched(now) && now < e.fresh.Load()
}

// read answers what the local tier could not: from the journal, from Redis, or
// with e, the copy in doubt, if the outage options allow it.
func (c *Cache) read(ctx context.Context, op string, h keyHash, key string, now int64, e *entry) (Entry, error) {
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
	if s == nil && c.awaitKey(ctx, now, false, key) {
		if s, t = c.readerOf(h, key); s == nil {
			e = c.local.get(h) // a write of our own may have come since
		}
	}
	if s == nil {
		return c.fallback(e, now)
	}
	bounded, cancel := c.remote.bound(ctx, now)
	defer cancel()
	v, o := c.remote.get(bounded, s, key)
	return c.readOutcome(op, h, key, now, t, v, o)
}

// readerOf returns the session that reads the key, nil where there is none, and the
// token that a fill with what it says needs.
func (c *Cache) readerOf(h keyHash, key string) (*session, token) {
	place := c.routes.of(key)
	t := c.local.token(h, &place.domain)
	return c.routes.link(place).reader(), t
}

// readOutcome turns what Redis said, or did not say, into an answer.
func (c *Cache) readOutcome(op string, h keyHash, key string, now int64, t token, v value, o outcome) (Entry, error) {
	switch o.class {
	case classOK:
	case classCommand:
		return Entry{}, &Error{Op: op, Key: key, Tier: Remote, Err: o.err}
	case classCanceled:
		return Entry{}, o.err
	default:
		// Not the copy that was there when the call began: a write of our own
		// may have come since.
		return c.fallback(c.local.get(h), c.clock.now())
	}
	if !v.found {
		c.local.forget(h, t, now)
		c.stats.misses.Add(1)
		return Entry{Tier: Remote}, ErrMiss
	}
	if v.open {
		v.ttl = max(c.opts.Tracking.UntrackedTTL, time.Nanosecond)
	}
	k := term{confirmed: now, expires: after(now, v.ttl), domain: t.domain, epoch: t.epoch}
	// A replica's master may hold something newer; and who imports a slot tells
	// of no changes to it that the owner makes.
	if !o.session.replica.Load() && !o.asked {
		k.fresh = c.freshUntil(now, k.expires, o.session.tells(key))
	}
	if !c.local.fill(h, key, v.bytes, t, k) {
		c.stats.fillsDiscarded.Add(1)
	}
	c.stats.remoteHits.Add(1)
	return Entry{Value: v.bytes, Tier: Remote, TTL: v.ttl}, nil
}

// freshUntil bounds how long a copy counts as fresh, if the server tells of
// changes to it, and if it does not.
func (c *Cache) freshUntil(now, expires int64, told bool) int64 {
	if !told {
		expires = min(expires, after(now, c.opts.Tracking.UntrackedTTL))
	}
	return min(expires, after(now, c.opts.Local.MaxTTL))
}

// journaled answers for a fenced key: with its value, or with a miss where the key
// was deleted or has expired.
func (c *Cache) journaled(h keyHash, key string, now int64) (e Entry, answered, inJournal bool) {
	f, ok := c.journal.get(h, key, now)
	switch {
	case !ok:
		return Entry{}, false, false
	case f.live:
		c.stats.journalHits.Add(1)
		return Entry{Value: f.value, Tier: Journal, Degraded: true, TTL: left(now, f.deadline)}, true, true
	case f.elsewhere:
		// Nothing but the last write can be there: the key is not read from Redis.
		e, err := c.fallback(c.local.get(h), now)
		return e, err == nil, true
	}
	c.stats.misses.Add(1)
	return Entry{Tier: Journal, Degraded: true}, false, true
}

// fallback answers without Redis: with a copy in doubt, if the outage options
// allow it, or with a miss. It waits for nothing.
func (c *Cache) fallback(e *entry, now int64) (Entry, error) {
	degraded := c.routes != nil
	if e == nil || !servable(e, now, degraded, c.opts.Outage) {
		c.stats.misses.Add(1)
		return Entry{Tier: Local, Degraded: degraded}, ErrMiss
	}
	c.stats.doubtHits.Add(1)
	expires := e.expires.Load()
	if now >= expires {
		c.stats.staleHits.Add(1)
		return Entry{Value: e.bytes(), Tier: Local, Degraded: degraded, Stale: true}, nil
	}
	return Entry{Value: e.bytes(), Tier: Local, Degraded: degraded, TTL: left(now, expires)}, nil
}

// servable decides whether a copy that cannot be confirmed may be served.
func servable(e *entry, now int64, outage bool, o OutageOptions) bool {
	expires := e.expires.Load()
	if !outage {
		return now < expires
	}
	if e.refuted() {
		return false
	}
	if o.ServeFor > 0 && now-e.confirmed.Load() > int64(o.ServeFor) {
		return false
	}
	return now < expires || expires != never && now-expires < int64(o.ServeStaleFor)
}
