package holdfast

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redis/rueidis"
)

// Cache is a cache of two tiers. It is safe for concurrent use. Close stops
// every goroutine that it started and waits for them.
type Cache struct {
	opts  Options
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

	local   *local
	notify  *notifier
	journal *journal
	routes  *routes // nil where there is no Redis
	remote  *remote

	closed chan struct{} // Close is done
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
)

func (t Tier) String() string {
	switch t {
	case Local:
		return "local"
	case Remote:
		return "remote"
	case Journal:
		return "journal"
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
// it, for at most Options.Timeout; while Redis is away it waits for nothing. A
// miss and an outage look the same: ask the source of truth. Other errors are
// the context's own, ErrClosed, and what Redis says of this command.
//
// The bytes may be shared: read them, do not write to them.
func (c *Cache) Get(ctx context.Context, key string) ([]byte, error) {
	lane, open := c.fence.enter()
	if err := enterable(ctx, open); err != nil {
		lane.leave()
		return nil, err
	}
	h, now := c.local.hash(key), c.clock.now()
	e, fresh := c.look(h, key, now)
	if fresh {
		lane.hit()
		return e.bytes(), nil
	}
	defer lane.leave()
	answer, err := c.read(ctx, "get", h, key, now, e)
	return answer.Value, err
}

// Lookup is Get with the circumstances. The Entry's Degraded is told beside
// ErrMiss, too: the miss of an outage is none that Redis has confirmed.
func (c *Cache) Lookup(ctx context.Context, key string) (Entry, error) {
	lane, open := c.fence.enter()
	if err := enterable(ctx, open); err != nil {
		lane.leave()
		return Entry{}, err
	}
	h, now := c.local.hash(key), c.clock.now()
	e, fresh := c.look(h, key, now)
	if fresh {
		lane.hit()
		return Entry{Value: e.bytes(), Tier: Local, TTL: left(now, e.expires.Load())}, nil
	}
	defer lane.leave()
	return c.read(ctx, "lookup", h, key, now, e)
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
// served without asking anybody: an entry of an older epoch is in doubt.
func (c *Cache) look(h keyHash, key string, now int64) (e *entry, fresh bool) {
	if c.journal.keys.Load() != 0 && c.journal.holds(h, key) {
		return nil, false
	}
	if e = c.local.get(h); e == nil {
		return nil, false
	}
	// The epoch first: a confirmation stores it before the new freshness, and
	// takes the old one away before that.
	return e, e.vouched() && now < e.fresh.Load()
}

// read answers what the local tier could not: from the journal, from Redis, or
// with e, the copy in doubt, if the outage options allow it.
func (c *Cache) read(ctx context.Context, op string, h keyHash, key string, now int64, e *entry) (Entry, error) {
	if kept, ok := c.journaled(h, key, now); ok {
		if kept.Value == nil {
			c.stats.misses.Add(1)
			return Entry{Tier: Journal, Degraded: true}, ErrMiss
		}
		return kept, nil
	}
	if err := checkKey(key); err != nil {
		return Entry{}, &Error{Op: op, Tier: Remote, Err: err}
	}
	if c.routes == nil {
		return c.fallback(e, now)
	}
	place := c.routes.of(key)
	t := c.local.token(h, &place.domain)
	s := c.routes.link(place).reader()
	if s == nil {
		return c.fallback(e, now)
	}
	bounded, cancel := c.remote.bound(ctx, now)
	defer cancel()
	v, o := c.remote.get(bounded, s, key)
	return c.readOutcome(op, h, key, now, t, v, o)
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
		c.local.forget(h, t)
		c.stats.misses.Add(1)
		return Entry{Tier: Remote}, ErrMiss
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

// journaled answers for a fenced key: a value, or none where the key was
// deleted or has expired.
func (c *Cache) journaled(h keyHash, key string, now int64) (Entry, bool) {
	f, ok := c.journal.get(h, key, now)
	if !ok {
		return Entry{}, false
	}
	if !f.live {
		return Entry{}, true
	}
	c.stats.journalHits.Add(1)
	return Entry{Value: f.value, Tier: Journal, Degraded: true, TTL: left(now, f.deadline)}, true
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

// Set stores value under key for ttl; 0 means Options.DefaultTTL. The value is
// copied. While Redis is up it may wait for it, for at most Options.Timeout.
// While Redis is away it waits for nothing, and the write is kept in the
// journal; so it is where Redis did not answer in time. A nil value is an empty
// one.
//
// A value that cannot be sent within the budget ends in the journal, and where it
// does not fit there the key is deleted instead: give large values a larger
// Options.Timeout.
//
// Errors: ErrInvalidTTL, ErrClosed, ErrJournalFull, the context's own (the write
// may have happened then), and what Redis says of this command. After nil, no
// read through this Cache returns an older value.
func (c *Cache) Set(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	ttl, err := c.ttl(ttl)
	if err != nil {
		return &Error{Op: "set", Key: key, Err: err}
	}
	w := [1]change{{key: key, value: own(value)}}
	return c.write(ctx, "set", w[:], ttl)
}

// SetMany is Set for each item, in one pipeline; all have the one ttl. It may
// wait for at most Options.Timeout in all. The error joins one *Error for each
// key that was refused; the others are stored. A key or value over 512 MiB
// refuses the whole call.
func (c *Cache) SetMany(ctx context.Context, items map[string][]byte, ttl time.Duration) error {
	ttl, err := c.ttl(ttl)
	if err != nil {
		return &Error{Op: "setmany", Err: err}
	}
	ws := make([]change, 0, len(items))
	for key, value := range items {
		ws = append(ws, change{key: key, value: own(value)})
	}
	return c.write(ctx, "setmany", ws, ttl)
}

// Delete removes the keys, of which any may be absent. It may wait for at most
// Options.Timeout in all. While Redis is away the deletes are kept in the
// journal: the old values do not come back. The error joins one *Error for each
// key that was refused.
func (c *Cache) Delete(ctx context.Context, keys ...string) error {
	ws := make([]change, len(keys))
	for i, key := range keys {
		ws[i] = change{key: key, del: true}
	}
	return c.write(ctx, "delete", ws, 0)
}

// own copies what the caller may change later.
func own(value []byte) []byte {
	if len(value) == 0 {
		return []byte{}
	}
	value = bytes.Clone(value)
	return value[:len(value):len(value)]
}

// ttl gives 0 its meaning and rounds up to what Redis can express.
func (c *Cache) ttl(ttl time.Duration) (time.Duration, error) {
	if ttl < 0 {
		return 0, ErrInvalidTTL
	}
	if ttl == 0 {
		ttl = c.opts.DefaultTTL
	}
	if part := ttl % time.Millisecond; part != 0 {
		if ttl > 1<<63-1-time.Millisecond {
			return ttl - part, nil
		}
		ttl += time.Millisecond - part
	}
	return ttl, nil
}

// change is one key's write on its way through the tiers.
type change struct {
	key   string
	value []byte
	del   bool
	undo  []byte // see journal.write

	hash     keyHash
	place    *slot
	link     *link
	entry    *entry // what the local tier is to hold; nil for a delete
	deadline int64
	seq      uint64
	base     base
	old      *entry // what the local tier held
}

func (w *change) intent(sentOn uint64) write {
	return write{
		key: w.key, value: w.value, del: w.del, undo: w.undo, deadline: w.deadline,
		seq: w.seq, base: w.base, sentOn: sentOn,
	}
}

// write takes changes through the tiers: to the local one at once, then to Redis,
// or to the journal where Redis cannot take them. It is where law 4 and law 6
// are kept: whatever the outcome, the local tier is done first, and what is not
// known to have reached Redis is journaled before the call returns.
func (c *Cache) write(ctx context.Context, op string, ws []change, ttl time.Duration) error {
	lane, open := c.fence.enter()
	defer lane.leave()
	if err := enterable(ctx, open); err != nil {
		return err
	}
	now := c.clock.now()
	for i := range ws {
		w := &ws[i]
		if err := checkSize(w.key, w.value); err != nil {
			return &Error{Op: op, Key: w.key, Err: err}
		}
		w.hash, w.deadline = c.local.hash(w.key), never
		if !w.del {
			w.deadline = after(now, ttl)
		}
	}
	if c.routes == nil {
		for i := range ws {
			c.local.put(ws[i].hash, c.entryOf(&ws[i], now, &c.local.home, ws[i].deadline))
		}
		return nil
	}
	var errs errorList
	var send []item
	for i := range ws {
		w := &ws[i]
		w.place = c.routes.of(w.key)
		// While it is under way, a write may be served as long as its caller
		// waits for it; what it is worth afterwards, send decides.
		w.entry = c.entryOf(w, now, &w.place.domain, after(now, c.opts.Timeout))
		w.link = c.routes.link(w.place)
		s := w.link.writer(w.del)
		if s == nil || c.journal.holds(w.hash, w.key) {
			errs.add(op, w.key, c.keep(w))
			continue
		}
		send = append(send, item{key: w.key, session: s, change: w})
	}
	if len(send) > 0 {
		c.send(ctx, op, send, ttl, now, &errs)
	}
	return errs.join()
}

// entryOf is what the local tier is to hold of a change, nil for a delete.
func (c *Cache) entryOf(w *change, now int64, d *domain, fresh int64) *entry {
	if w.del {
		return nil
	}
	return newEntry(w.key, w.value, term{
		confirmed: now, expires: w.deadline, fresh: min(fresh, w.deadline), domain: d, epoch: d.epoch.Load(),
	})
}

// keep is a write that Redis is not told of now.
func (c *Cache) keep(w *change) error {
	if w.entry != nil {
		w.entry.fresh.Store(unread)
	}
	w.old, w.seq = c.local.put(w.hash, w.entry)
	w.base = w.baseOf()
	return c.remember(w, 0)
}

// remember puts the write in the journal. Where that is refused, the key leaves
// the local tier: what is there must not be taken for accepted.
func (c *Cache) remember(w *change, sentOn uint64) error {
	c.stats.journaled.Add(1)
	switch c.journal.put(w.hash, w.intent(sentOn)) {
	case downgraded:
		c.stats.downgraded.Add(1)
		c.notify.drop(w.key, DropDowngraded)
	case rejected:
		c.stats.refused.Add(1)
		c.notify.drop(w.key, DropRefused)
		c.local.put(w.hash, nil)
		return ErrJournalFull
	}
	c.routes.deliver(w.key)
	return nil
}

// baseOf is what Redis was last known to hold, going by the local copy.
func (w *change) baseOf() base {
	if w.old == nil || w.old.refuted() {
		return base{}
	}
	server := w.link.server()
	if w.old.ofEarlierServer() {
		server = earlierServer
	}
	return holding(w.old.bytes(), w.old.expires.Load(), server)
}

// earlierServer is no server's run id.
const earlierServer = "earlier"

// send writes to Redis what may go there.
func (c *Cache) send(ctx context.Context, op string, items []item, ttl time.Duration, now int64, errs *errorList) {
	for i := range items {
		w := items[i].change
		w.old, w.seq = c.local.begin(w.hash, w.entry)
	}
	bounded, cancel := c.remote.bound(ctx, now)
	defer cancel()
	build := func(b rueidis.Builder, it *item, cmds []rueidis.Completed) []rueidis.Completed {
		if w := it.change; !w.del {
			return append(cmds, setCommand(b, w.key, w.value, ttl))
		}
		return append(cmds, b.Del().Key(it.key).Build())
	}
	c.remote.batch(bounded, items, 1, build, func(i int, _ []rueidis.RedisResult, o outcome) {
		w := items[i].change
		switch o.class {
		case classOK:
			c.journal.overtaken(w.hash, w.intent(0), o.session.id, o.session.server)
			c.local.end(w.hash, true, c.worth(w, now, o))
		case classCommand:
			c.local.end(w.hash, false, unread)
			errs.add(op, w.key, o.err)
		default:
			// In the journal before the local tier is done with it: no reader
			// may find neither.
			w.base = w.baseOf()
			var sentOn uint64
			if o.unknown {
				sentOn = o.session.id
			}
			err := c.remember(w, sentOn)
			c.local.end(w.hash, err == nil, unread)
			if o.class == classCanceled {
				err = o.err
			}
			errs.add(op, w.key, err)
		}
	})
}

// worth is until when the copy of an acknowledged write is fresh; unread where it
// must be read before it is, because the server tells only of what was read.
func (c *Cache) worth(w *change, now int64, o outcome) int64 {
	told := o.session.tells(w.key)
	if w.del || o.asked || told && c.opts.Tracking.Mode == TrackReads {
		return unread
	}
	return c.freshUntil(now, w.deadline, told)
}

// errorList gathers one error a key.
type errorList struct{ errs []error }

func (l *errorList) add(op, key string, err error) {
	if err != nil {
		l.errs = append(l.errs, &Error{Op: op, Key: key, Tier: Remote, Err: err})
	}
}

func (l *errorList) join() error {
	if len(l.errs) == 1 {
		return l.errs[0]
	}
	return errors.Join(l.errs...)
}

func checkKey(key string) error {
	if len(key) > maxString {
		return errKeyTooLarge
	}
	return nil
}

func checkSize(key string, value []byte) error {
	if len(value) > maxString {
		return errValueTooLarge
	}
	return checkKey(key)
}
