package holdfast

import (
	"context"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/keyhash"
	"github.com/holdfast-cache/holdfast/internal/link"
	"github.com/holdfast-cache/holdfast/internal/local"
	"github.com/holdfast-cache/holdfast/internal/rediserr"
	"github.com/redis/rueidis"
)

// GetMany returns the values of the keys that are found. A key that is not found, or whose Redis is
// away, is absent from the map. The keys are read in pipelines of at most 256 keys. GetMany blocks
// for at most Options.Timeout for each pipeline, as long as the one before was answered in time;
// ctx bounds the whole call. The error is an *Error if reading one key failed, and a *BatchError if
// reading several failed; if ctx has ended it is the context's error. The values that were found
// are returned beside it. A key over 512 MiB fails the whole call.
//
// The bytes may be shared: read them, do not write to them.
func (c *Cache) GetMany(ctx context.Context, keys ...string) (map[string][]byte, error) {
	guard, open := c.inflight.Enter()
	defer guard.Leave()
	if err := enterable(ctx, open); err != nil {
		return nil, err
	}
	now := c.clock.Now()
	values := make(map[string][]byte, len(keys))
	reads := c.reads.Get(len(keys))
	for _, key := range keys {
		reads = append(reads, manyRead{key: key, hash: c.local.Hash(key)})
	}
	defer func(all []manyRead) { c.reads.Put(all) }(reads)
	var hits, journalReads uint64
	hash := func(i int) keyhash.Hash { return reads[i].hash }
	missing := reads[:0]
	for i, r := range reads {
		c.local.Prefetch(i, len(reads), hash)
		c.local.CountRead(r.hash)
		if e, fresh := c.look(r.hash, r.key, now); fresh {
			values[r.key] = e.Bytes()
			hits++
			continue
		}
		if e, ok, journaled := c.journaled(r.hash, r.key, now); journaled {
			err := ErrMiss
			if ok {
				values[r.key], err = e.Value, nil
			}
			c.counted(e, err)
			journalReads++
			continue
		}
		if err := checkKey(r.key); err != nil {
			c.stats.readErrors.Add(uint64(len(keys)) - journalReads)
			return nil, &Error{Op: "getmany", Tier: Remote, Err: err}
		}
		missing = append(missing, r)
	}
	c.stats.batchHits.Add(hits)
	if len(missing) == 0 {
		return values, nil
	}
	var errs errorList
	err := c.readMany(ctx, "getmany", missing, now, func(r *manyRead, e Entry, err error) {
		c.counted(e, err)
		switch {
		case err == nil:
			values[r.key] = e.Value
		case err != ErrMiss:
			errs.errs = append(errs.errs, err)
		}
	})
	if err != nil {
		return values, err
	}
	return values, errs.join()
}

// manyRead is the read of one key of a batch.
type manyRead struct {
	key   string
	at    int // the caller's
	hash  keyhash.Hash
	token local.Token
	value link.RemoteValue
}

// readMany is read for the keys of a batch that are not journaled.
func (c *Cache) readMany(ctx context.Context, op string, reads []manyRead, now int64, each func(r *manyRead, e Entry, err error)) error {
	items := c.items.Get(len(reads))
	defer func() { c.items.Put(items) }()
	for i := range reads {
		r := &reads[i]
		var s *link.Session
		if c.routes != nil {
			s, r.token = c.readerOf(r.hash, r.key)
			if s == nil && c.remote.AwaitKey(ctx, now, false, r.key) {
				s, r.token = c.readerOf(r.hash, r.key)
			}
		}
		if s == nil {
			e, err := c.fallback(c.local.Get(r.hash), now)
			each(r, e, err)
			continue
		}
		items = append(items, link.Item{Key: r.key, Session: s, Reads: true, Read: &r.value, Payload: r})
	}
	if len(items) == 0 {
		return nil
	}
	bounded, cancel := c.remote.Bound(ctx, now)
	defer cancel()
	readOf := func(i int) *manyRead { return items[i].Payload.(*manyRead) }
	hash := func(i int) keyhash.Hash { return readOf(i).hash }
	c.remote.Batch(bounded, items, 2, link.ReadCommands, func(i int, _ []rueidis.RedisResult, o link.Outcome) {
		c.local.Prefetch(i, len(items), hash)
		r := readOf(i)
		e, err := c.readOutcome(op, r.hash, r.key, now, r.token, r.value, o)
		each(r, e, err)
	})
	return ctx.Err()
}

// Add stores value under key if the key is absent, and reports whether it did. A ttl of 0 means
// Options.DefaultTTL. Only Redis can decide this, so Add returns ErrUnavailable while Redis is
// away, refuses writes, or does not answer in time. In the last case the value is removed again if
// it was stored. Add blocks for at most Options.Timeout. Right after New and after a quiet time
// this includes waiting for the connection attempt. Without any Redis configured the local tier
// decides.
func (c *Cache) Add(ctx context.Context, key string, value []byte, ttl time.Duration) (bool, error) {
	ttl, err := c.ttl(ttl)
	if err != nil {
		return false, &Error{Op: "add", Key: key, Err: err}
	}
	guard, open := c.inflight.Enter()
	defer guard.Leave()
	if err := enterable(ctx, open); err != nil {
		return false, err
	}
	if err := checkSize(key, value); err != nil {
		return false, &Error{Op: "add", Err: err}
	}
	now := c.clock.Now()
	h := c.local.Hash(key)
	w := write{key: key, value: cloneBytes(value), hash: h, deadline: clock.After(now, ttl)}
	if c.routes == nil {
		c.invalidateFlight(&w)
		defer c.invalidateFlight(&w)
		return c.local.Add(h, c.entryOf(&w, now, &c.local.StandaloneScope, local.FreshUntil(w.deadline)), now), nil
	}
	bounded, cancel := c.remote.Bound(ctx, now)
	defer cancel()
	s, err := c.writerAfterReplay(bounded, h, key)
	if err != nil {
		return false, err
	}
	w.entry = c.entryOf(&w, now, &c.routes.Of(key).Scope, 0)
	// Until Redis has decided, the present value of the key stands.
	c.invalidateFlight(&w)
	w.old, w.seq = c.local.Hold(h)
	c.supersede(bounded, &w)
	defer c.invalidateFlight(&w)
	replies, o := c.remote.One(bounded, s, key, 1, func(b rueidis.Builder, _ *link.Item, cmds []rueidis.Completed) []rueidis.Completed {
		set := b.Set().Key(key).Value(link.ViewString(w.value)).Nx()
		if ttl > 0 {
			return append(cmds, link.Kept(set.PxMilliseconds(ttl.Milliseconds()).Build(), len(value)))
		}
		return append(cmds, link.Kept(set.Build(), len(value)))
	})
	added := o.Class == rediserr.OK && !rueidis.IsRedisNil(replies[0].Error())
	if added {
		c.local.EndAs(h, w.entry, c.freshUntilAfterWrite(&w, now, o))
	} else {
		defer c.local.End(h, true, local.KeepFreshness) // after the write is journaled
	}
	if o.Unknown {
		// The command may run late, even after a Delete that was acknowledged. The caller is told
		// that the value was not stored, so a compensating delete is journaled.
		w.del, w.compensate, w.value, w.link = true, w.value, nil, s.Link
		w.expected = w.baseOf()
		saved, err := c.remember(&w, o.Session.ID)
		saveErr := c.durable(ctx, now, saved)
		if err != nil {
			return false, &Error{Op: "add", Key: key, Err: err}
		}
		if saveErr != nil {
			return false, saveErr
		}
	}
	return added, c.asError("add", key, o)
}

// writerAfterReplay returns the session that may decide on a key now. A journaled key is replayed first,
// within the budget. The error is ErrUnavailable or the context's own.
func (c *Cache) writerAfterReplay(ctx link.Bound, h keyhash.Hash, key string) (*link.Session, error) {
	l, _ := c.remote.AwaitLink(ctx.Caller, ctx.Began, true, func() *link.Link { return c.routes.Link(c.routes.Of(key)) })
	s := l.Writer(false)
	if s == nil {
		if err := ctx.Caller.Err(); err != nil {
			return nil, err
		}
		return nil, l.Why()
	}
	if !c.journal.Holds(h, key) {
		return s, nil
	}
	if l.Treat(key, false) != link.SendInCompany || l.Treat(key, true) != link.SendInCompany {
		return nil, ErrUnavailable // the replay sends it alone
	}
	// It takes a slot of the bulkhead, like all commands of callers.
	ticket, err := s.Acquire(ctx)
	if err != nil {
		return nil, c.asError("replay", key, link.Unsent(ctx))
	}
	for round := 0; round < 3 && ctx.Err() == nil; { // an expiry during the replay takes one more round, and so does a conflict
		if tasks := c.journal.TakeOne(h, key); tasks != nil {
			replayerOf(l).Replay(ctx, s, tasks)
			round++
			continue
		}
		if returned := c.journal.AwaitReturn(h, key); returned != nil { // the replay is sending it
			select {
			case <-returned:
			case <-ctx.Done():
			}
			continue
		}
		if again, _ := c.journal.Sweep(ctx, ctx.Began); again { // the replay may be done with it
			c.routes.Wake()
		}
		break
	}
	if ctx.Err() != nil {
		s.Abandon(ticket)
	} else {
		s.Release()
	}
	if err := ctx.Caller.Err(); err != nil {
		return nil, err
	}
	if c.journal.Holds(h, key) {
		l.Replayer.Wake()
		return nil, ErrUnavailable
	}
	return s, nil
}

// asError returns the error of a command that only Redis can answer.
func (c *Cache) asError(op, key string, o link.Outcome) error {
	switch o.Class {
	case rediserr.OK:
		return nil
	case rediserr.Command:
		return &Error{Op: op, Key: key, Tier: Remote, Err: o.Err}
	case rediserr.Canceled:
		return o.Err
	default:
		return &Error{Op: op, Key: key, Tier: Remote, Err: link.Unavailable{Cause: o.Err}}
	}
}

// TTL returns the remaining life of the key, 0 if it has no expiry, and ErrMiss if there is no such
// key. A fresh local copy answers at once. Otherwise TTL asks Redis and blocks for at most
// Options.Timeout, as Add does. While Redis is away it answers from the journal or from an
// unexpired copy that Outage allows to be served; without either it returns ErrUnavailable.
func (c *Cache) TTL(ctx context.Context, key string) (time.Duration, error) {
	guard, open := c.inflight.Enter()
	defer guard.Leave()
	if err := enterable(ctx, open); err != nil {
		return 0, err
	}
	now := c.clock.Now()
	h := c.local.Hash(key)
	e, fresh := c.look(h, key, now)
	if fresh {
		return clock.Left(now, e.Expires.Load()), nil
	}
	if fromJournal, live, journaled := c.journaled(h, key, now); live {
		return fromJournal.TTL, nil
	} else if journaled {
		return 0, ErrMiss
	}
	if err := checkKey(key); err != nil {
		return 0, &Error{Op: "ttl", Tier: Remote, Err: err}
	}
	if c.routes == nil {
		return c.knownTTL(e, now)
	}
	s := c.routes.Link(c.routes.Of(key)).Reader()
	if s == nil && c.remote.AwaitKey(ctx, now, true, key) {
		s, e = c.routes.Link(c.routes.Of(key)).Reader(), c.local.Get(h)
	}
	if s == nil {
		return c.knownTTL(e, now)
	}
	bounded, cancel := c.remote.Bound(ctx, now)
	defer cancel()
	replies, o := c.remote.One(bounded, s, key, 1, func(b rueidis.Builder, _ *link.Item, cmds []rueidis.Completed) []rueidis.Completed {
		return append(cmds, b.Pttl().Key(key).Build())
	})
	switch o.Class {
	case rediserr.OK:
	case rediserr.Down, rediserr.WriteRefused, rediserr.Busy, rediserr.Unknown:
		return c.knownTTL(e, now)
	default:
		return 0, c.asError("ttl", key, o)
	}
	switch ms, err := replies[0].AsInt64(); {
	case err != nil:
		return 0, &Error{Op: "ttl", Key: key, Tier: Remote, Err: err}
	case ms == -2:
		return 0, ErrMiss
	case ms == -1:
		return 0, nil
	default:
		return max(link.Millis(ms), time.Nanosecond), nil
	}
}

func (c *Cache) knownTTL(e *local.Entry, now int64) (time.Duration, error) {
	known, err := c.fallback(e, now)
	switch {
	case err == nil && !known.Stale:
		return known.TTL, nil
	case c.routes == nil:
		return 0, ErrMiss
	default:
		return 0, ErrUnavailable
	}
}

// Touch sets the remaining life of the key to ttl. A ttl of 0 means Options.DefaultTTL; if that is
// 0 too, the expiry is removed. Touch returns ErrMiss if there is no such key. It blocks for at
// most Options.Timeout, as Add does. While Redis is away only a key whose value is in the journal
// can be touched; for any other key it returns ErrUnavailable. A Touch without an answer may run
// late, and then changes the expiry of a value that was set since.
func (c *Cache) Touch(ctx context.Context, key string, ttl time.Duration) error {
	ttl, err := c.ttl(ttl)
	if err != nil {
		return &Error{Op: "touch", Key: key, Err: err}
	}
	guard, open := c.inflight.Enter()
	defer guard.Leave()
	if err := enterable(ctx, open); err != nil {
		return err
	}
	if err := checkKey(key); err != nil {
		return &Error{Op: "touch", Err: err}
	}
	now := c.clock.Now()
	h := c.local.Hash(key)
	deadline := clock.After(now, ttl)
	if c.routes == nil {
		c.invalidateFlight(&write{hash: h})
		return c.touchLocal(h, now, deadline)
	}
	if f, ok := c.journal.Get(h, key, now); ok {
		if !f.Live && !f.ValueInLocalTier {
			return ErrMiss
		}
		if saved, ok := c.journal.Touch(h, key, now, deadline); ok {
			return c.durable(ctx, now, saved)
		}
	}
	bounded, cancel := c.remote.Bound(ctx, now)
	defer cancel()
	s, err := c.writerAfterReplay(bounded, h, key)
	if err != nil {
		return err
	}
	// This comes before the command is sent: the invalidation that our own command causes must not
	// be taken for a change by another client.
	c.local.Suspect(h, local.SameEnd)
	was := c.local.Get(h)
	w := write{hash: h}
	c.supersede(bounded, &w)
	defer c.invalidateFlight(&w)
	replies, o := c.remote.One(bounded, s, key, 2, func(b rueidis.Builder, _ *link.Item, cmds []rueidis.Completed) []rueidis.Completed {
		if ttl > 0 {
			cmds = append(cmds, b.Pexpire().Key(key).Milliseconds(ttl.Milliseconds()).Build())
		} else {
			cmds = append(cmds, b.Persist().Key(key).Build())
		}
		return append(cmds, b.Exists().Key(key).Build())
	})
	if o.Class != rediserr.OK {
		// The command may have run and changed the expiry.
		c.local.Suspect(h, func(old int64) int64 { return min(old, deadline) })
		return c.asError("touch", key, o)
	}
	n, err := replies[1].AsInt64()
	s.Lacks.Note(link.LackExists, err != nil)
	if err != nil && ttl > 0 {
		n, err = replies[0].AsInt64() // PEXPIRE reports whether the key exists; PERSIST does not
	}
	if err == nil && n == 0 {
		c.local.Retime(h, was, now) // an expired copy must not become valid again
		return ErrMiss
	}
	c.local.Retime(h, was, deadline)
	return nil
}

func (c *Cache) touchLocal(h keyhash.Hash, now, deadline int64) error {
	e := c.local.Get(h)
	if e == nil || now >= e.Expires.Load() {
		return ErrMiss
	}
	// The domain is not set: it stays.
	e.Confirm(local.Freshness{Confirmed: now, Fresh: local.FreshUntil(deadline), Expires: deadline, Epoch: e.Epoch.Load()})
	return nil
}
