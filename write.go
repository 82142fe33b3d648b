package holdfast

import (
	"bytes"
	"context"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/flight"
	"github.com/holdfast-cache/holdfast/internal/journal"
	"github.com/holdfast-cache/holdfast/internal/keyhash"
	"github.com/holdfast-cache/holdfast/internal/link"
	"github.com/holdfast-cache/holdfast/internal/local"
	"github.com/holdfast-cache/holdfast/internal/rediserr"
	"github.com/redis/rueidis"
)

// Set stores value under key for ttl; 0 means Options.DefaultTTL. The value is copied; nil is
// stored as an empty value.
//
// While Redis is up, Set may wait for it, for at most Options.Timeout. While Redis is away,
// the write is journaled, and Set waits only as Get does. A write that Redis does not answer
// in time is journaled, too, and so is a large value that cannot be sent within the budget;
// if it does not fit into the journal, the key is deleted instead: give large values a larger
// Options.Timeout. With Journal.Dir, a journaled write also waits for the disk; see there. A
// write that is accepted while Redis is reached for the first time is sent as soon as the
// connection stands.
//
// After Set has returned nil, no read through this Cache returns an older value. The errors
// are ErrInvalidTTL, ErrClosed, ErrJournalFull, Redis' error about this command, and the
// context's error, after which the write may have happened; compare them with errors.Is. A
// key or value over 512 MiB is an error, too.
func (c *Cache) Set(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	ttl, err := c.ttl(ttl)
	if err != nil {
		return &Error{Op: "set", Key: key, Err: err}
	}
	_, err = c.writeOne(ctx, "set", &write{key: key, value: cloneBytes(value)}, ttl)
	return err
}

// SetMany is Set for each item, with one ttl for all. The items are sent in pipelines of at
// most 256 keys and about 256 KiB. SetMany may wait for at most Options.Timeout for each
// pipeline, as long as the one before was answered in time. The errors are those of Set: an
// *Error if one key was refused, a *BatchError if several were; the other items are stored. A
// key or value over 512 MiB refuses the whole call.
func (c *Cache) SetMany(ctx context.Context, items map[string][]byte, ttl time.Duration) error {
	ttl, err := c.ttl(ttl)
	if err != nil {
		return &Error{Op: "setmany", Err: err}
	}
	ws := c.writes.Get(len(items))
	for key, val := range items {
		ws = append(ws, write{key: key, value: cloneBytes(val)})
	}
	defer c.writes.Put(ws)
	return c.write(ctx, "setmany", ws, ttl)
}

// Delete removes the keys; keys that do not exist are no error. It may wait for at most
// Options.Timeout, or for many keys as SetMany does. While Redis is away the deletes are
// journaled, so that the old values do not come back. The errors are those of Set: an *Error
// if one key was refused, a *BatchError if several were.
func (c *Cache) Delete(ctx context.Context, keys ...string) error {
	ws := make([]write, len(keys))
	for i, key := range keys {
		ws[i] = write{key: key, del: true}
	}
	return c.write(ctx, "delete", ws, 0)
}

// cloneBytes returns a copy, because the caller may change val later. Its capacity is clipped.
func cloneBytes(val []byte) []byte {
	if len(val) == 0 {
		return []byte{}
	}
	val = bytes.Clone(val)
	return val[:len(val):len(val)]
}

// ttl replaces 0 by Options.DefaultTTL and rounds up to Redis' resolution, 1 ms.
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

// write is one key's write on its way through the tiers.
type write struct {
	key        string
	value      []byte
	del        bool
	compensate []byte // see journal.Write
	ttl        time.Duration

	plainUntil int64 // see journal.Write

	// verbatim is the command as a caller of the drop-in client gave it, if it is not the
	// one that Set or Delete sends.
	verbatim []string

	// For a loaded value: the flight that is storing it; the local tier's entry before the
	// load; the lease of the load, nil for none; the digest of Redis' value before the load,
	// "" for no value. blindly: the server cannot compare digests.
	flight  *flight.Flight[Entry]
	seen    *local.Entry
	lease   *lease
	expects string
	blindly bool
	again   bool // Redis answered TRYAGAIN
	grace   local.StaleIfError

	hash     keyhash.Hash
	place    *link.Slot
	link     *link.Link
	entry    *local.Entry // the new local entry; nil for a delete
	deadline int64
	seq      uint64
	expected journal.Expected
	old      *local.Entry // the previous local entry
}

func (w *write) intent(sentOn uint64) journal.Write {
	return journal.Write{
		Key: w.key, Value: w.value, Del: w.del, Compensate: w.compensate, Deadline: w.deadline,
		Seq: w.seq, Expected: w.expected, SentOn: sentOn, PlainUntil: w.plainUntil,
	}
}

// write takes writes through the tiers: to the local tier at once, then to Redis, or to the
// journal if Redis cannot take them. It keeps law 4 and law 6: for any outcome, the local
// tier is changed first, and a write that is not known to have reached Redis is journaled
// before the call returns.
func (c *Cache) write(ctx context.Context, op string, ws []write, ttl time.Duration) error {
	exit, open := c.inflight.Enter()
	defer exit.Leave()
	if err := enterable(ctx, open); err != nil {
		return err
	}
	now := c.clock.Now()
	for i := range ws {
		if err := c.prepare(op, &ws[i], now, ttl); err != nil {
			return err
		}
	}
	if c.routes == nil {
		for i := range ws {
			c.putLocal(ctx, &ws[i], now)
		}
		return nil
	}
	var errs errorList
	send := c.items.Get(len(ws))
	var toSave journal.Saving
	for i := range ws {
		w := &ws[i]
		s := c.aim(ctx, w, now)
		if s == nil && w.flight != nil {
			c.putUngiven(w, now)
			continue
		} else if s == nil {
			saved, err := c.keep(ctx, w, now)
			errs.add(op, w.key, err)
			toSave = toSave.Or(saved)
			continue
		}
		send = append(send, link.Item{Key: w.key, Session: s, Payload: w, Size: len(w.value)})
	}
	if len(send) > 0 {
		toSave = toSave.Or(c.send(ctx, op, send, now, &errs))
	}
	c.items.Put(send)
	for i := range ws {
		c.invalidateFlight(&ws[i])
	}
	errs.also(c.durable(ctx, now, toSave)) // after the last record is written, all are
	return errs.join()
}

// writeOne is write for one set that no load made. It is the way of most writes, and does without
// the slices of a batch. The reply is the one of Redis: OK or an error about this command. It is the
// zero value if there is none.
func (c *Cache) writeOne(ctx context.Context, op string, w *write, ttl time.Duration) (reply rueidis.RedisResult, err error) {
	exit, open := c.inflight.Enter()
	defer exit.Leave()
	if err = enterable(ctx, open); err != nil {
		return reply, err
	}
	now := c.clock.Now()
	if err = c.prepare(op, w, now, ttl); err != nil {
		return reply, err
	}
	if c.routes == nil {
		c.putLocal(ctx, w, now)
		return reply, nil
	}
	var errs errorList
	var saved journal.Saving
	if s := c.aim(ctx, w, now); s == nil {
		saved, err = c.keep(ctx, w, now)
	} else {
		reply, saved, err = c.sendOne(ctx, s, w, now)
	}
	errs.add(op, w.key, err)
	c.invalidateFlight(w)
	errs.also(c.durable(ctx, now, saved))
	return reply, errs.join()
}

// prepare checks the sizes of a write, and computes its hash and its deadline.
func (c *Cache) prepare(op string, w *write, now int64, ttl time.Duration) error {
	if err := checkSize(w.key, w.value); err != nil {
		return &Error{Op: op, Key: w.key, Err: err}
	}
	w.hash, w.deadline = c.local.Hash(w.key), clock.Never
	if !w.del {
		if w.flight == nil {
			w.ttl = ttl
		}
		w.deadline = clock.After(now, w.ttl)
	}
	return nil
}

// putLocal does a write where there is no Redis.
func (c *Cache) putLocal(ctx context.Context, w *write, now int64) {
	w.entry = c.entryOf(w, now, &c.local.StandaloneScope, local.FreshUntil(w.deadline))
	c.putSuperseding(ctx, w, now)
}

// durable waits for the journal's file on behalf of a call that began at began; see
// journal.Journal.Durable.
func (c *Cache) durable(ctx context.Context, began int64, p journal.Saving) error {
	if p == (journal.Saving{}) {
		return nil
	}
	err := c.journal.Durable(ctx, began, p)
	if p.Leaves {
		if again, _ := c.journal.Sweep(ctx, began); again {
			c.routes.Wake()
		}
	}
	return err
}

// aim gives the write its entry and returns the session that takes it, or nil if it belongs in
// the journal. During the link's first attempt it does not wait; for another attempt it waits
// as link.Moment says. If the attempt is not decided then, it sets plainUntil.
func (c *Cache) aim(ctx context.Context, w *write, now int64) *link.Session {
	for waited := false; ; {
		w.place = c.routes.Of(w.key)
		// While the write is in flight, its entry is fresh for as long as the caller waits.
		// The freshness after that is decided by written.
		w.entry = c.entryOf(w, now, &w.place.Scope, local.FreshUntil(clock.After(now, c.opts.Timeout)))
		w.link = c.routes.Link(w.place)
		if s := w.link.Writer(w.del); s != nil {
			if c.journal.Holds(w.hash, w.key) {
				return nil
			}
			return s
		}
		switch {
		case w.link.Awaited() && (waited || w.link.Undecided()):
			w.plainUntil = clock.After(now, c.opts.Timeout)
			return nil
		case !waited && c.remote.AwaitKey(ctx, now, false, w.key):
			waited = true
		case !c.moved(w):
			return nil
		}
	}
}

// moved reports whether a write without a session has one by now, or has another link: an
// attempt was decided between two looks.
func (c *Cache) moved(w *write) bool {
	s := w.link.Gate.Load()
	return c.routes.Link(c.routes.Of(w.key)) != w.link || s != nil && s.Takes(w.del)
}

// entryOf returns the local entry for a write, nil for a delete.
func (c *Cache) entryOf(w *write, now int64, d *local.EpochScope, fresh local.FreshUntil) *local.Entry {
	if w.del {
		return nil
	}
	e := local.NewEntry(w.key, w.value, local.Freshness{
		Confirmed: now, Expires: w.deadline, Fresh: min(fresh, local.FreshUntil(w.deadline)), Scope: d, Epoch: d.Epoch.Load(),
	})
	e.SetStaleIfError(w.grace)
	return e
}

// keep does a write without sending it now: to the local tier and the journal.
func (c *Cache) keep(ctx context.Context, w *write, now int64) (journal.Saving, error) {
	if w.entry != nil {
		w.entry.SetUnconfirmed()
	}
	if !c.putSuperseding(ctx, w, now) {
		return journal.Saving{}, nil
	}
	w.expected = w.baseOf()
	return c.remember(w, 0)
}

// remember journals the write; the caller must wait for the saving that it returns. If the
// journal refuses the write, the key's local entry is removed: it must not be taken for an
// accepted write.
func (c *Cache) remember(w *write, sentOn uint64) (journal.Saving, error) {
	c.stats.journaled.Add(1)
	if w.plainUntil != 0 {
		c.routes.Hurry(w.plainUntil)
	}
	decision, saved := c.journal.Put(w.hash, w.intent(sentOn))
	switch decision {
	case journal.Downgraded:
		c.downgraded(w.key)
	case journal.Rejected:
		c.stats.refused.Add(1)
		c.notify.drop(w.key, DropRefused)
		c.local.Put(w.hash, nil)
		if sentOn != 0 {
			c.routes.Deliver(w.key)
		}
		return saved, ErrJournalFull
	}
	c.routes.Deliver(w.key)
	return saved, nil
}

// downgraded counts and reports a set that became a delete.
func (c *Cache) downgraded(key string) {
	c.stats.downgraded.Add(1)
	c.notify.drop(key, DropDowngraded)
}

// baseOf returns the value that Redis was last known to hold, judged by the local copy. If
// that copy was invalidated since, Redis may still hold its value: the message may have been
// about the same key of another database, or the server may have dropped the key from its
// tracking table.
func (w *write) baseOf() journal.Expected {
	if w.old == nil || w.old.MarksAbsence() || w.old.StaleIfError()&local.NotInRedis != 0 {
		return journal.Expected{}
	}
	server := w.link.Server()
	if w.old.OfEarlierServer() {
		server = earlierServer
	}
	if w.old.Invalid() {
		return journal.PerhapsHolding(w.old.Bytes(), server)
	}
	b := journal.Holding(w.old.Bytes(), w.old.Expires.Load(), server)
	b.Echo = w.old.FreshUntil() == local.Unconfirmed
	return b
}

// earlierServer stands for the run id of a server before the present one. No server has it.
const earlierServer = "earlier"

// send writes the items to Redis. It returns the journal records that the caller must wait
// for.
func (c *Cache) send(ctx context.Context, op string, items []link.Item, now int64, errs *errorList) (toSave journal.Saving) {
	hash := func(i int) keyhash.Hash { return writeOf(&items[i]).hash }
	begun := 0
	for i := range items {
		c.local.Prefetch(i, len(items), hash)
		if !c.beginWrite(writeOf(&items[i])) {
			continue
		}
		if begun < i {
			items[begun] = items[i]
		}
		begun++
	}
	if items = items[:begun]; begun == 0 {
		return
	}
	bounded, cancel := c.remote.Bound(ctx, now)
	defer cancel()
	for i := range items {
		if w := writeOf(&items[i]); w.flight == nil {
			c.supersede(bounded.Context, w)
		}
	}
	stride := 1
	if writeOf(&items[0]).del && c.voids() {
		stride = 2
	}
	build := func(b rueidis.Builder, it *link.Item, cmds []rueidis.Completed) []rueidis.Completed {
		if w := writeOf(it); w.flight == nil || w.del || w.blindly {
			return c.writeCommands(b, w, cmds)
		}
		return append(cmds, writeOf(it).loadedCommand(b, it))
	}
	c.remote.Batch(bounded, items, stride, build, func(i int, replies []rueidis.RedisResult, o link.Outcome) {
		c.local.Prefetch(i, len(items), hash)
		w := writeOf(&items[i])
		saved, err := c.written(w, now, replies, o)
		toSave = toSave.Or(saved)
		errs.add(op, w.key, err)
	})
	return toSave
}

// beginWrite gives the local tier the entry of a write that is sent now. It returns false for a loaded
// value that another write has superseded.
func (c *Cache) beginWrite(w *write) (begun bool) {
	if w.flight != nil {
		w.old, w.seq, begun = c.local.BeginUnless(w.hash, w.entry, &w.flight.SupersededDuringStore)
		return begun
	}
	c.invalidateFlight(w)
	w.old, w.seq = c.local.Begin(w.hash, w.entry)
	return true
}

// sendOne is send for the write of writeOne. It also returns the reply, as writeOne does.
func (c *Cache) sendOne(ctx context.Context, s *link.Session, w *write, now int64) (reply rueidis.RedisResult, saved journal.Saving, err error) {
	c.beginWrite(w)
	bounded, cancel := c.remote.Bound(ctx, now)
	defer cancel()
	c.supersede(bounded.Context, w)
	reply, o := c.remote.Set(bounded, s, w.key, w.value, w.ttl)
	saved, err = c.written(w, now, nil, o)
	if o.Class != rediserr.OK && o.Class != rediserr.Command {
		reply = rueidis.RedisResult{}
	}
	return reply, saved, err
}

// writeOf returns the write that an item of send is for.
func writeOf(it *link.Item) *write { return it.Payload.(*write) }

// voids reports whether a delete also removes the key's lease: another process may be loading
// the previous value.
func (c *Cache) voids() bool { return c.opts.Load.Lease > 0 }

// writeCommands appends the commands for a write, SET or DEL first.
func (c *Cache) writeCommands(b rueidis.Builder, w *write, cmds []rueidis.Completed) []rueidis.Completed {
	switch {
	case w.verbatim != nil:
		cmds = append(cmds, link.Kept(b.Arbitrary(w.verbatim...).Build(), len(w.value)))
	case !w.del:
		return append(cmds, link.SetCommand(b, w.key, w.value, w.ttl))
	default:
		cmds = append(cmds, b.Del().Key(w.key).Build())
	}
	if w.del && c.voids() {
		// In a command of its own: a user without permission for leases may still delete.
		cmds = append(cmds, b.Del().Key(c.leaseName(w.key)).Build())
	}
	return cmds
}

// written handles the outcome of a write that was sent. The error is for the caller.
func (c *Cache) written(w *write, now int64, replies []rueidis.RedisResult, o link.Outcome) (journal.Saving, error) {
	if w.lease != nil {
		w.lease.spent = o.Class == rediserr.OK
	}
	if w.scripted() && (o.Class == rediserr.OK || rediserr.RefusesCommand(o.Err)) {
		o.Session.Lacks.Note(link.LackScripts, o.Class != rediserr.OK)
	}
	if w.flight != nil && !w.del && !w.blindly && o.Class == rediserr.OK && !wasStored(replies[0]) {
		c.local.End(w.hash, false, local.Unconfirmed) // the key has changed since the load began
		return journal.Saving{}, nil
	}
	switch o.Class {
	case rediserr.OK:
		// Before the local tier ends the write: a load that began beside it can store
		// nothing before that, nor afterwards.
		c.invalidateFlight(w)
		again, saved := c.journal.Superseded(w.hash, w.intent(0), o.Session.ID, o.Session.Server)
		if again {
			c.routes.Deliver(w.key)
		}
		c.local.End(w.hash, true, c.freshUntilAfterWrite(w, now, o))
		return saved, nil
	case rediserr.Command:
		if w.flight != nil && !w.del {
			// A loaded value that Redis refuses is kept locally all the same.
			w.grace |= local.NotInRedis
			fresh := c.freshUntil(now, w.deadline, false)
			c.local.EndAs(w.hash, c.entryOf(w, now, &w.place.Scope, fresh), fresh)
			return journal.Saving{}, o.Err
		}
		if w.flight != nil {
			c.local.End(w.hash, false, local.Unconfirmed)
		} else {
			c.local.EndRefused(w.hash, w.old)
		}
		return journal.Saving{}, o.Err
	}
	if w.flight != nil {
		w.again = o.TryAgain()
		return c.takeBack(w, now, o), nil
	}
	// Journaled before the local tier ends the write, so that every reader finds it in one
	// of the two.
	w.expected = w.baseOf()
	var sentOn uint64
	if o.Unknown {
		sentOn = o.Session.ID
	}
	saved, err := c.remember(w, sentOn)
	c.invalidateFlight(w)
	c.local.End(w.hash, err == nil, local.Unconfirmed)
	if o.Class == rediserr.Canceled {
		err = o.Err
	}
	return saved, err
}

// freshUntilAfterWrite returns the end of the freshness of an acknowledged write's copy. It is
// Unconfirmed if the copy must be read first, because the server announces only changes of keys
// that were read.
func (c *Cache) freshUntilAfterWrite(w *write, now int64, o link.Outcome) local.FreshUntil {
	tracked := o.Session.Tracks(w.key)
	if w.del || o.Asked || tracked && c.opts.Tracking.Mode == TrackReads {
		return local.Unconfirmed
	}
	return c.freshUntil(now, w.deadline, tracked)
}

func checkKey(key string) error {
	if len(key) > maxString {
		return errKeyTooLarge
	}
	return nil
}

func checkSize(key string, val []byte) error {
	if len(val) > maxString {
		return errValueTooLarge
	}
	return checkKey(key)
}
