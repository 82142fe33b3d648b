package holdfast

import (
	"bytes"
	"context"
	"crypto/rand"
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

	local    *local
	notify   *notifier
	journal  *journal
	link     *link // nil where there is no Redis
	remote   *remote
	replayer *replayer

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

// New makes a Cache. It does no I/O, waits for nothing and cannot fail for a
// reason of the network: a Redis that is not there is a normal start. The error
// names every option that contradicts itself or another.
func New(opts Options) (*Cache, error) {
	opts = opts.withDefaults()
	if err := opts.validate(); err != nil {
		return nil, err
	}
	tier, err := newLocal(opts.Local.MaxBytes)
	if err != nil {
		return nil, fmt.Errorf("holdfast: local tier: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	c := &Cache{
		opts:    opts,
		clock:   newClock(),
		life:    ctx,
		cancel:  cancel,
		stop:    make(chan struct{}),
		local:   tier,
		journal: newJournal(opts.Journal.MaxKeys, opts.Journal.MaxBytes),
		closed:  make(chan struct{}),
	}
	c.notify = newNotifier(opts, &c.stats)
	c.flusher.spawn("flusher", func() { c.local.flush(c.stop) })
	c.notifier.spawn("notifier", func() { c.notify.run(c.stop) })
	if len(opts.Redis.InitAddress) == 0 {
		return c, nil
	}
	c.link = newLink(opts, rand.Text(), c.clock, &c.stats, c.notify)
	c.remote = &remote{link: c.link, budget: newBudget(opts.Timeout), clock: c.clock, stats: &c.stats}
	c.replayer = &replayer{
		journal: c.journal,
		link:    c.link,
		clock:   c.clock,
		stats:   &c.stats,
		notify:  c.notify,
		hash:    c.local.hash,
		doubt:   func(h keyHash) { c.local.doubt(h, never) },
		forget:  func(h keyHash) { c.local.put(h, nil) },
		timeout: max(opts.Timeout, time.Second),
		share:   opts.Timeout / 8,
		kick:    make(chan struct{}, 1),
	}
	c.link.pending = func() bool { return c.journal.keys.Load() > 0 }
	c.link.onUp = c.replayer.wake
	c.link.onLost = func() { c.local.epoch.Add(1) }
	c.workers.spawn("supervisor", func() { c.link.supervise(ctx) })
	c.workers.spawn("replayer", func() { c.replayer.run(ctx) })
	return c, nil
}

// Open is New with the Redis options of a URL, in the syntax of
// rueidis.ParseURL: redis://user:password@host:port/db, rediss:// for TLS,
// unix:///path/to/redis.sock. The error never shows the password.
func Open(url string) (*Cache, error) {
	redis, err := rueidis.ParseURL(url)
	if err != nil {
		return nil, urlError(url, err)
	}
	return New(Options{Redis: redis})
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
		return e.value, nil
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
		return Entry{Value: e.value, Tier: Local, TTL: left(now, e.expires.Load())}, nil
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
// served without asking anybody. It is where law 5 is kept: an entry of an older
// epoch is in doubt.
func (c *Cache) look(h keyHash, key string, now int64) (e *entry, fresh bool) {
	if c.journal.keys.Load() != 0 && c.journal.holds(h, key) {
		return nil, false
	}
	if e = c.local.get(h); e == nil {
		return nil, false
	}
	return e, now < e.fresh.Load() && e.epoch.Load() == c.local.epoch.Load()
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
	s := c.reader()
	if s == nil {
		return c.fallback(e, now)
	}
	t := c.local.token(h)
	bounded, cancel := c.remote.bound(ctx, now)
	defer cancel()
	v, o := c.remote.get(bounded, s, key)
	return c.readOutcome(op, h, key, now, t, s, v, o)
}

// readOutcome turns what Redis said, or did not say, into an answer.
func (c *Cache) readOutcome(op string, h keyHash, key string, now int64, t token, s *session, v value, o outcome) (Entry, error) {
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
	k := c.term(v.ttl, now, t.epoch)
	if s.replica.Load() {
		k.fresh = 0 // its master may hold something newer
	}
	if !c.local.fill(h, key, v.bytes, t, k) {
		c.stats.fillsDiscarded.Add(1)
	}
	c.stats.remoteHits.Add(1)
	return Entry{Value: v.bytes, Tier: Remote, TTL: v.ttl}, nil
}

// freshUntil bounds how long a copy counts as fresh. Without a Redis there is
// nothing that it could be a copy of.
func (c *Cache) freshUntil(now, expires int64) int64 {
	if c.link == nil {
		return expires
	}
	return min(expires, after(now, c.opts.Local.MaxTTL), after(now, c.opts.Tracking.UntrackedTTL))
}

// term is what is known of a value that Redis holds, or is told to hold, for ttl
// from now.
func (c *Cache) term(ttl time.Duration, now int64, epoch uint32) term {
	k := term{confirmed: now, expires: after(now, ttl), epoch: epoch}
	k.fresh = c.freshUntil(now, k.expires)
	return k
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
	degraded := c.link != nil
	if e == nil || !servable(e, now, degraded, c.opts.Outage) {
		c.stats.misses.Add(1)
		return Entry{Tier: Local, Degraded: degraded}, ErrMiss
	}
	c.stats.doubtHits.Add(1)
	expires := e.expires.Load()
	if now >= expires {
		c.stats.staleHits.Add(1)
		return Entry{Value: e.value, Tier: Local, Degraded: degraded, Stale: true}, nil
	}
	return Entry{Value: e.value, Tier: Local, Degraded: degraded, TTL: left(now, expires)}, nil
}

// servable decides whether a copy that cannot be confirmed may be served.
func servable(e *entry, now int64, outage bool, o OutageOptions) bool {
	expires := e.expires.Load()
	if !outage {
		return now < expires
	}
	if o.ServeFor > 0 && now-e.confirmed.Load() > int64(o.ServeFor) {
		return false
	}
	return now < expires || expires != never && now-expires < int64(o.ServeStaleFor)
}

func (c *Cache) reader() *session {
	if c.link == nil {
		return nil
	}
	return c.link.reader()
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

	hash  keyHash
	entry *entry // what the local tier is to hold; nil for a delete
	seq   uint64
	base  base
}

func (w *change) intent(now int64, sentOn uint64) write {
	i := write{key: w.key, value: w.value, del: w.del, undo: w.undo, deadline: never, seq: w.seq, base: w.base, sentOn: sentOn}
	if w.entry != nil {
		i.deadline = w.entry.expires.Load()
	}
	return i
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
		w.hash = c.local.hash(w.key)
		if !w.del {
			w.entry = newEntry(w.key, w.value, c.term(ttl, now, c.local.epoch.Load()))
		}
	}
	if c.link == nil {
		for i := range ws {
			c.local.put(ws[i].hash, ws[i].entry)
		}
		return nil
	}
	var errs errorList
	s := c.link.writer()
	send := ws[:0:0]
	if len(ws) == 1 {
		send = ws[:0]
	}
	for i := range ws {
		w := &ws[i]
		if s == nil || c.journal.holds(w.hash, w.key) {
			errs.add(op, w.key, c.keep(w, now))
			continue
		}
		send = append(send, *w)
	}
	if len(send) > 0 {
		c.send(ctx, op, s, send, ttl, now, &errs)
	}
	return errs.join()
}

// keep is a write that Redis is not told of now.
func (c *Cache) keep(w *change, now int64) error {
	old, seq := c.local.put(w.hash, w.entry)
	w.seq, w.base = seq, c.baseOf(old)
	return c.remember(w, now, 0)
}

// remember puts the write in the journal. Where that is refused, the key leaves
// the local tier: what is there must not be taken for accepted.
func (c *Cache) remember(w *change, now int64, sentOn uint64) error {
	c.stats.journaled.Add(1)
	switch c.journal.put(w.hash, w.intent(now, sentOn)) {
	case downgraded:
		c.stats.downgraded.Add(1)
		c.notify.drop(w.key, DropDowngraded)
	case rejected:
		c.stats.refused.Add(1)
		c.notify.drop(w.key, DropRefused)
		c.local.put(w.hash, nil)
		return ErrJournalFull
	}
	if c.link.gate.Load() != nil {
		c.replayer.wake()
	} else {
		c.link.use()
	}
	return nil
}

// baseOf is what Redis was last known to hold, going by the local copy.
func (c *Cache) baseOf(old *entry) base {
	if old == nil {
		return base{}
	}
	return holding(old.value, old.expires.Load(), c.link.server())
}

// send writes to Redis what may go there.
func (c *Cache) send(ctx context.Context, op string, s *session, ws []change, ttl time.Duration, now int64, errs *errorList) {
	olds := make([]*entry, len(ws))
	for i := range ws {
		olds[i], ws[i].seq = c.local.begin(ws[i].hash, ws[i].entry)
	}
	bounded, cancel := c.remote.bound(ctx, now)
	defer cancel()
	b := s.client.B()
	build := func(i int) rueidis.Completed {
		if ws[i].del {
			return b.Del().Key(ws[i].key).Build()
		}
		return setCommand(b, ws[i].key, ws[i].value, ttl)
	}
	c.remote.pipeline(bounded, s, len(ws), build, func(i int, _ rueidis.RedisResult, o outcome) {
		w := &ws[i]
		switch o.class {
		case classOK:
			c.journal.overtaken(w.hash, w.intent(now, 0), s.id, s.server)
			c.local.end(w.hash, true)
		case classCommand:
			c.local.end(w.hash, false)
			errs.add(op, w.key, o.err)
		default:
			// In the journal before the local tier is done with it: no reader
			// may find neither.
			w.base = c.baseOf(olds[i])
			var sentOn uint64
			if o.unknown {
				sentOn = s.id
			}
			err := c.remember(w, now, sentOn)
			c.local.end(w.hash, err == nil)
			if o.class == classCanceled {
				err = o.err
			}
			errs.add(op, w.key, err)
		}
	})
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
