package holdfast

import (
	"bytes"
	"context"
	"slices"
	"time"

	"github.com/redis/rueidis"
)

// Set stores value under key for ttl; 0 means Options.DefaultTTL. The value is
// copied. While Redis is up it may wait for it, for at most Options.Timeout.
// While Redis is away it waits for nothing, as Get does, and the write is kept in the
// journal; so it is where Redis did not answer in time. What is set while Redis is
// reached for the first time is sent as soon as it is there. A nil value is an empty one.
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

// SetMany is Set for each item; all have the one ttl. The items are sent in
// pipelines of at most 256 keys and about 256 KiB. SetMany may wait for at most
// Options.Timeout for each pipeline, as long as the one before was answered in
// time. The error is an *Error for one key that was refused and a *BatchError for
// several; the others are stored. A key or value over 512 MiB refuses the whole
// call.
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
// Options.Timeout, or as SetMany does for many keys. While Redis is away the deletes
// are kept in the journal: the old values do not come back. The error is an *Error
// for one key that was refused and a *BatchError for several.
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
	ttl   time.Duration

	plainUntil int64 // see journal.write

	// verbatim is the command where it is not the one that Set or Delete sends: as a
	// caller of the drop-in client gave it.
	verbatim []string

	// Of what a loader brought: the flight that is storing it, the lease under which it
	// was loaded, nil for none, what the local tier had before, and what Redis held
	// before: the digest of a value, "" for nothing. blindly: the server cannot compare.
	flight  *flight
	seen    *entry
	lease   *lease
	expects string
	blindly bool
	again   bool // Redis said so
	grace   grace

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
		seq: w.seq, base: w.base, sentOn: sentOn, plainUntil: w.plainUntil,
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
			if w.flight == nil {
				w.ttl = ttl
			}
			w.deadline = after(now, w.ttl)
		}
	}
	if c.routes == nil {
		for i := range ws {
			ws[i].entry = c.entryOf(&ws[i], now, &c.local.home, ws[i].deadline)
			c.putOver(ctx, &ws[i], now)
		}
		return nil
	}
	var errs errorList
	var send []item
	var kept saving
	for i := range ws {
		w := &ws[i]
		s := c.aim(ctx, w, now)
		if s == nil && w.flight != nil {
			c.putUngiven(w, now)
			continue
		} else if s == nil {
			saved, err := c.keep(ctx, w, now)
			errs.add(op, w.key, err)
			kept = kept.or(saved)
			continue
		}
		send = append(send, item{key: w.key, session: s, change: w})
	}
	if len(send) > 0 {
		kept = kept.or(c.send(ctx, op, send, now, &errs))
	}
	for i := range ws {
		c.outdate(&ws[i])
	}
	errs.also(c.durable(ctx, now, kept)) // the last of them is written when all are
	return errs.join()
}

// durable waits for the journal's file on behalf of a call that began then; see there.
func (c *Cache) durable(ctx context.Context, began int64, p saving) error {
	if p == (saving{}) {
		return nil
	}
	err := c.journal.durable(ctx, began, p)
	if p.leaves {
		if again, _ := c.journal.sweep(ctx, began); again {
			c.routes.wake()
		}
	}
	return err
}

// aim gives the change its entry and finds the session that takes it: nil where that
// is the journal. While the link's first attempt is under way it waits for nothing, and
// marks the change; it waits for another attempt as moment says.
func (c *Cache) aim(ctx context.Context, w *change, now int64) *session {
	for waited := false; ; {
		w.place = c.routes.of(w.key)
		// While it is under way, a write may be served as long as its caller waits for
		// it; what it is worth afterwards, written decides.
		w.entry = c.entryOf(w, now, &w.place.domain, after(now, c.opts.Timeout))
		w.link = c.routes.link(w.place)
		if s := w.link.writer(w.del); s != nil {
			if c.journal.holds(w.hash, w.key) {
				return nil
			}
			return s
		}
		switch {
		case w.link.moment.Load() != nil && (waited || w.link.undecided()):
			w.plainUntil = after(now, c.opts.Timeout)
			return nil
		case !waited && c.awaitKey(ctx, now, false, w.key):
			waited = true
		case !c.moved(w):
			return nil
		}
	}
}

// moved says that a change for which no session was found has one by now, or another
// link: an attempt was decided between two looks.
func (c *Cache) moved(w *change) bool {
	s := w.link.gate.Load()
	return c.routes.link(c.routes.of(w.key)) != w.link || s != nil && s.takes(w.del)
}

// entryOf is what the local tier is to hold of a change, nil for a delete.
func (c *Cache) entryOf(w *change, now int64, d *domain, fresh int64) *entry {
	if w.del {
		return nil
	}
	e := newEntry(w.key, w.value, term{
		confirmed: now, expires: w.deadline, fresh: min(fresh, w.deadline), domain: d, epoch: d.epoch.Load(),
	})
	e.setGrace(w.grace)
	return e
}

// keep is a write that Redis is not told of now.
func (c *Cache) keep(ctx context.Context, w *change, now int64) (saving, error) {
	if w.entry != nil {
		w.entry.fresh.Store(unread)
	}
	if !c.putOver(ctx, w, now) {
		return saving{}, nil
	}
	w.base = w.baseOf()
	return c.remember(w, 0)
}

// remember puts the write in the journal; the caller waits for what it returns.
// Where that is refused, the key leaves the local tier: what is there must not be
// taken for accepted.
func (c *Cache) remember(w *change, sentOn uint64) (saving, error) {
	c.stats.journaled.Add(1)
	if w.plainUntil != 0 {
		c.routes.hurry(w.plainUntil)
	}
	verdict, saved := c.journal.put(w.hash, w.intent(sentOn))
	switch verdict {
	case downgraded:
		c.downgraded(w.key)
	case rejected:
		c.stats.refused.Add(1)
		c.notify.drop(w.key, DropRefused)
		c.local.put(w.hash, nil)
		if sentOn != 0 {
			c.routes.deliver(w.key)
		}
		return saved, ErrJournalFull
	}
	c.routes.deliver(w.key)
	return saved, nil
}

// downgraded notes a set that became a delete.
func (c *Cache) downgraded(key string) {
	c.stats.downgraded.Add(1)
	c.notify.drop(key, DropDowngraded)
}

// baseOf is what Redis was last known to hold, going by the local copy. Of a copy that
// the server has told of since, the value is what Redis may still hold: what was told may
// be about a key of that name in another database, or the server may have dropped the key
// from its tracking table.
func (w *change) baseOf() base {
	if w.old == nil || w.old.fresh.Load() < asIs || w.old.grace()&ungiven != 0 {
		return base{}
	}
	server := w.link.server()
	if w.old.ofEarlierServer() {
		server = earlierServer
	}
	if w.old.refuted() {
		return perhapsHolding(w.old.bytes(), server)
	}
	b := holding(w.old.bytes(), w.old.expires.Load(), server)
	b.echo = w.old.fresh.Load() == unread
	return b
}

// earlierServer is no server's run id.
const earlierServer = "earlier"

// send writes to Redis what may go there. It returns the last change of the journal.
func (c *Cache) send(ctx context.Context, op string, items []item, now int64, errs *errorList) (kept saving) {
	items = slices.DeleteFunc(items, func(it item) bool {
		w := it.change
		if w.flight != nil {
			var begun bool
			w.old, w.seq, begun = c.local.beginUnless(w.hash, w.entry, &w.flight.late)
			return !begun
		}
		c.outdate(w)
		w.old, w.seq = c.local.begin(w.hash, w.entry)
		return false
	})
	if len(items) == 0 {
		return
	}
	bounded, cancel := c.remote.bound(ctx, now)
	defer cancel()
	for i := range items {
		if w := items[i].change; w.flight == nil {
			c.overtake(bounded, w)
		}
	}
	stride := 1
	if items[0].change.del && c.voids() {
		stride = 2
	}
	build := func(b rueidis.Builder, it *item, cmds []rueidis.Completed) []rueidis.Completed {
		return c.writeCommands(b, it.change, cmds)
	}
	c.remote.batch(bounded, items, stride, build, func(i int, replies []rueidis.RedisResult, o outcome) {
		w := items[i].change
		saved, err := c.written(w, now, replies, o)
		kept = kept.or(saved)
		errs.add(op, w.key, err)
	})
	return kept
}

// voids says whether a delete takes the key's lease away, too: another process may be
// loading what was there before.
func (c *Cache) voids() bool { return c.opts.Load.Lease > 0 }

// writeCommands appends what brings the change to Redis, the command itself first.
func (c *Cache) writeCommands(b rueidis.Builder, w *change, cmds []rueidis.Completed) []rueidis.Completed {
	switch {
	case w.flight != nil && !w.del && !w.blindly:
		return append(cmds, w.loadedCommand(b))
	case w.verbatim != nil:
		cmds = append(cmds, kept(b.Arbitrary(w.verbatim...).Build(), len(w.value)))
	case !w.del:
		return append(cmds, setCommand(b, w.key, w.value, w.ttl))
	default:
		cmds = append(cmds, b.Del().Key(w.key).Build())
	}
	if w.del && c.voids() {
		// In a command of its own: who may not touch leases may delete.
		cmds = append(cmds, b.Del().Key(c.leaseName(w.key)).Build())
	}
	return cmds
}

// written is told what became of a change that was sent. The error is the caller's.
func (c *Cache) written(w *change, now int64, replies []rueidis.RedisResult, o outcome) (saving, error) {
	if w.lease != nil {
		w.lease.spent = o.class == classOK
	}
	if w.scripted() && (o.class == classOK || refusesCommand(o.err)) {
		o.session.lacks.note(lackScripts, o.class != classOK)
	}
	if w.flight != nil && !w.del && !w.blindly && o.class == classOK && !wasStored(replies[0]) {
		c.local.end(w.hash, false, unread) // somebody has written the key
		return saving{}, nil
	}
	switch o.class {
	case classOK:
		// Before the local tier is done with it: a load that began beside the write
		// stores nothing until then, nor afterwards.
		c.outdate(w)
		again, saved := c.journal.overtaken(w.hash, w.intent(0), o.session.id, o.session.server)
		if again {
			c.routes.deliver(w.key)
		}
		c.local.end(w.hash, true, c.worth(w, now, o))
		return saved, nil
	case classCommand:
		if w.flight != nil && !w.del {
			// A value that Redis does not take was loaded all the same.
			w.grace |= ungiven
			until := c.freshUntil(now, w.deadline, false)
			c.local.endAs(w.hash, c.entryOf(w, now, &w.place.domain, until), until)
			return saving{}, o.err
		}
		if w.flight != nil {
			c.local.end(w.hash, false, unread)
		} else {
			c.local.endRefused(w.hash, w.old)
		}
		return saving{}, o.err
	}
	if w.flight != nil {
		w.again = o.tryAgain()
		return c.takeBack(w, now, o), nil
	}
	// In the journal before the local tier is done with it: no reader may find
	// neither.
	w.base = w.baseOf()
	var sentOn uint64
	if o.unknown {
		sentOn = o.session.id
	}
	saved, err := c.remember(w, sentOn)
	c.outdate(w)
	c.local.end(w.hash, err == nil, unread)
	if o.class == classCanceled {
		err = o.err
	}
	return saved, err
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
