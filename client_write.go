package holdfast

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/keyhash"
	"github.com/holdfast-cache/holdfast/internal/link"
	"github.com/holdfast-cache/holdfast/internal/local"
	"github.com/holdfast-cache/holdfast/internal/rediserr"
	"github.com/redis/rueidis"
)

// SET, DEL, EXPIRE and their variants of the drop-in client. They take the same path as Set, Delete
// and Touch; the reply is the one that Redis gave.

// write sends one write through the tiers.
func (r *pipelineCall) write(st *commandState, w *write) {
	c := r.c
	if err := checkSize(w.key, w.value); err != nil {
		st.fail("", err)
		return
	}
	w.hash = c.local.Hash(w.key)
	e := r.newOp()
	*e = remoteOp{command: st, kind: opWrite, key: w.key, hash: w.hash, change: w}
	if w.del {
		e.prior, e.had = c.standing(w.hash, w.key, r.now)
	}
	r.writes = append(r.writes, w)
	if c.routes == nil {
		c.putLocal(r.ctx, w, r.now)
		r.accepted(e)
		return
	}
	s := c.aim(r.ctx, w, r.now)
	if s == nil {
		saved, err := c.keep(r.ctx, w, r.now)
		r.kept = r.kept.Or(saved)
		if err != nil {
			st.fail(w.key, err)
			return
		}
		r.accepted(e)
		return
	}
	c.invalidateFlight(w)
	w.old, w.seq = c.local.Begin(w.hash, w.entry)
	if c.flights.N.Load() != 0 {
		c.supersede(r.bounded(), w)
	}
	r.markDirty(w.key)
	r.add(e, s)
}

// standing returns the value that the tiers would serve for the key without Redis.
func (c *Cache) standing(h keyhash.Hash, key string, now int64) (data []byte, ok bool) {
	if f, journaled := c.journal.Get(h, key, now); journaled && !f.ValueInLocalTier {
		return f.Value, f.Live
	}
	e := c.local.Get(h)
	if e == nil || now >= e.Expires.Load() || !servable(e, now, c.routes != nil, c.opts.Outage) {
		return nil, false
	}
	return e.Bytes(), true
}

func (r *pipelineCall) hasWritten(e *remoteOp, replies []rueidis.RedisResult, o link.Outcome) {
	st := e.command
	saved, err := r.c.written(e.change, r.now, replies, o)
	r.kept = r.kept.Or(saved)
	switch {
	case o.Class == rediserr.OK && st.verb == verbDel:
		n, err := replies[0].AsInt64()
		if err != nil {
			st.decide(replies[0])
		}
		st.sum += n
	case o.Class == rediserr.OK && st.verb == verbMset:
	case o.Class == rediserr.OK, o.Class == rediserr.Command:
		st.decide(replies[0])
	case err != nil:
		st.fail(e.key, err)
	default:
		r.accepted(e)
	}
}

// accepted answers a write that is in the journal because Redis was not asked or did not answer.
// Without any Redis configured it answers the write to the local tier.
func (r *pipelineCall) accepted(e *remoteOp) {
	st, a := e.command, r.cl.answers
	var had int64
	if e.had {
		had = 1
	}
	switch st.verb {
	case verbDel:
		st.sum += had
	case verbGetdel:
		if !e.had {
			st.decide(replied(a.null))
			return
		}
		st.decide(replied(a.text(e.prior)))
	case verbExpire:
		st.decide(replied(a.number(had)))
	case verbMset:
	default:
		st.decide(replied(a.ok))
	}
}

// unitOf returns the time unit of a command or an option with this name.
func unitOf(name string) time.Duration {
	if name[0] == 'P' || name[0] == 'p' {
		return time.Millisecond
	}
	return time.Second
}

// number parses an integer in the only notation that Redis accepts.
func number(text string) (n int64, ok bool) {
	n, err := strconv.ParseInt(text, 10, 64)
	var canonical [20]byte
	return n, err == nil && string(strconv.AppendInt(canonical[:0], n, 10)) == text
}

// lifetime parses a positive number of units that fits a Duration. It returns false for any other
// text: such a command is passed to Redis, which judges it.
func lifetime(text string, unit time.Duration) (time.Duration, bool) {
	n, ok := number(text)
	if !ok || n <= 0 || n > int64(1<<62/unit) {
		return 0, false
	}
	return time.Duration(n) * unit, true
}

// until parses a Unix time and returns the time left until then, which may be negative.
func until(text string, unit time.Duration) (time.Duration, bool) {
	n, ok := number(text)
	if !ok || n < 0 || n > int64(1<<62/unit) {
		return 0, false
	}
	return time.Duration(n)*unit - time.Duration(time.Now().UnixMilli())*time.Millisecond, true
}

// plainSet parses SETEX, PSETEX, and SET without an option or with EX or PX. It returns the value
// and the lifetime, 0 for no expiry.
func plainSet(args []string) (text string, ttl time.Duration, ok bool) {
	switch isSet := strings.EqualFold(args[0], "SET"); {
	case isSet && len(args) == 3:
		return args[2], 0, true
	case isSet && len(args) == 5 && oneOf(args[3], "EX", "PX"):
		ttl, ok = lifetime(args[4], unitOf(args[3]))
		return args[2], ttl, ok
	case len(args) == 4 && oneOf(args[0], "SETEX", "PSETEX"):
		ttl, ok = lifetime(args[2], unitOf(args[0]))
		return args[3], ttl, ok
	}
	return "", 0, false
}

// plainSet is plainSet for a command by itself that goes through the tiers.
func (cl *client) plainSet(cmd rueidis.Completed) (text string, ttl time.Duration, ok bool) {
	if cmd.IsEmpty() || cmd.IsBlock() || cl.only != nil {
		return "", 0, false
	}
	args := cmd.Commands()
	if text, ttl, ok = plainSet(args); ok {
		ok = len(args[1]) <= maxString && len(text) <= maxString
	}
	return text, ttl, ok
}

// set sends a write of plainSet through the tiers, as Set does.
func (cl *client) set(ctx context.Context, cmd rueidis.Completed, text string, ttl time.Duration) (res rueidis.RedisResult) {
	if cl.closed.Load() {
		return rueidis.NewErrorResult(rueidis.ErrClosing)
	}
	args, op := cmd.Commands(), "set"
	if len(args) == 4 {
		op = strings.ToLower(args[0])
	}
	w := write{key: strings.Clone(args[1]), value: slices.Clip([]byte(text))}
	reply, err := cl.c.writeOne(ctx, op, &w, ttl)
	switch {
	case err == nil:
		res = replied(cl.answers.ok)
	case reply.Error() != nil:
		res = reply
	default:
		res = rueidis.NewErrorResult(ownOfContext(err))
	}
	cl.recycle.put(cmd, &res)
	return res
}

// ownOfContext returns the context's own error, if err wraps that, else err.
func ownOfContext(err error) error {
	for _, own := range []error{context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, own) {
			return own
		}
	}
	return err
}

// parseSet parses the commands of plainSet, and SET with another option that sets the expiry.
func (r *pipelineCall) parseSet(args []string) (*write, bool) {
	if text, ttl, ok := plainSet(args); ok {
		return r.setting(args[1], text, ttl), true
	}
	if len(args) < 4 || !strings.EqualFold(args[0], "SET") {
		return nil, false
	}
	key, text, option := args[1], args[2], upper(args[3])
	switch {
	case len(args) == 4 && option == "KEEPTTL":
		deadline, known := r.c.knownEnd(r.ctx, key, r.now)
		if !known || r.isDirty(key) {
			return nil, false
		}
		w := r.setting(key, text, 0)
		w.deadline = deadline
		w.verbatim = []string{"SET", w.key, link.ViewString(w.value), "KEEPTTL"}
		return w, true
	case len(args) == 5 && (option == "EXAT" || option == "PXAT"):
		ttl, ok := until(args[4], unitOf(option))
		if !ok {
			return nil, false
		}
		w := r.setting(key, text, ttl)
		w.verbatim = []string{"SET", w.key, link.ViewString(w.value), option, strings.Clone(args[4])}
		if ttl <= 0 {
			w.del, w.value, w.deadline = true, nil, clock.Never // Redis deletes a key whose expiry is past
		}
		return w, true
	}
	return nil, false
}

// knownEnd returns the time at which the key expires, as far as it is known without asking Redis.
// While Redis is away the copy that is served then decides.
func (c *Cache) knownEnd(ctx context.Context, key string, now int64) (deadline int64, known bool) {
	h := c.local.Hash(key)
	e, fresh := c.look(h, key, now)
	if fresh {
		return e.Expires.Load(), true
	}
	if f, journaled := c.journal.Get(h, key, now); journaled && !f.ValueInLocalTier {
		if !f.Live {
			return clock.Never, true
		}
		return f.Deadline, true
	}
	e = c.local.Get(h)
	down := c.routes == nil
	if !down {
		l, _ := c.remote.AwaitLink(ctx, now, true, func() *link.Link { return c.routes.Link(c.routes.Of(key)) })
		down = l.Reader() == nil
	}
	if !down || e == nil || now >= e.Expires.Load() || !servable(e, now, c.routes != nil, c.opts.Outage) {
		return clock.Never, c.routes == nil
	}
	return e.Expires.Load(), true
}

// expire handles EXPIRE and its variants, and PERSIST.
func (r *pipelineCall) expire(st *commandState) bool {
	args, deadline := st.args, int64(clock.Never)
	if st.verb == verbPersist {
		if len(args) != 2 {
			return false
		}
	} else {
		if len(args) != 3 {
			return false
		}
		ttl, ok := remaining(st.name, args[2])
		if !ok {
			return false
		}
		if ttl <= 0 {
			r.write(st, r.deleting(args)) // Redis deletes a key whose expiry is past
			return true
		}
		deadline = clock.After(r.now, ttl)
	}
	r.touch(st, strings.Clone(args[1]), deadline)
	return true
}

// remaining returns the lifetime that EXPIRE or a variant gives a key.
func remaining(name, text string) (time.Duration, bool) {
	if strings.HasSuffix(name, "AT") {
		return until(text, unitOf(name))
	}
	n, ok := number(text)
	if ok && n <= 0 && n > -1<<40 {
		return 0, true
	}
	return lifetime(text, unitOf(name))
}

// touch changes the expiry of the key.
func (r *pipelineCall) touch(st *commandState, key string, deadline int64) {
	c := r.c
	if err := checkKey(key); err != nil {
		st.fail("", err)
		return
	}
	h := c.local.Hash(key)
	if c.routes == nil {
		r.touchLocal(st, h, deadline)
		return
	}
	if r.touchJournal(st, h, key, deadline) {
		return
	}
	s, err := c.writerAfterReplay(r.bounded(), h, key)
	if err != nil {
		st.fail(key, err)
		return
	}
	// This comes before the command is sent: the invalidation that our own command causes must not
	// be taken for a change by another client.
	c.local.Suspect(h, local.SameEnd)
	w := &write{key: key, hash: h, verbatim: cloned(st.args), entry: c.local.Get(h)}
	if c.flights.N.Load() != 0 {
		c.supersede(r.bounded(), w)
	}
	r.writes = append(r.writes, w)
	r.markDirty(key)
	r.add(&remoteOp{command: st, kind: opTouch, key: key, hash: h, change: w, deadline: deadline}, s)
}

func (r *pipelineCall) touchLocal(st *commandState, h keyhash.Hash, deadline int64) {
	var n int64
	e := r.c.local.Get(h)
	had := e != nil && e.Expires.Load() != clock.Never
	r.c.invalidateFlight(&write{hash: h})
	if err := r.c.touchLocal(h, r.now, deadline); err == nil && (st.verb == verbExpire || had) {
		n = 1
	}
	st.decide(replied(r.cl.answers.number(n)))
}

// touchJournal answers for a journaled key. It returns false if the journal cannot answer.
func (r *pipelineCall) touchJournal(st *commandState, h keyhash.Hash, key string, deadline int64) bool {
	f, journaled := r.c.journal.Get(h, key, r.now)
	if !journaled {
		return false
	}
	var n int64
	if f.Live || f.ValueInLocalTier {
		saved, ok := r.c.journal.Touch(h, key, r.now, deadline)
		if !ok {
			return false
		}
		r.kept = r.kept.Or(saved)
		if st.verb == verbExpire || f.Deadline != clock.Never {
			n = 1
		}
	}
	st.decide(replied(r.cl.answers.number(n)))
	return true
}

func (r *pipelineCall) hasTouched(e *remoteOp, replies []rueidis.RedisResult, o link.Outcome) {
	st, tier := e.command, r.c.local
	if o.Class == rediserr.OK {
		tier.Retime(e.hash, e.change.entry, e.deadline)
		st.decide(replies[0])
		return
	}
	// The command may have run and changed the expiry.
	tier.Suspect(e.hash, func(old int64) int64 { return min(old, e.deadline) })
	switch {
	case o.Class == rediserr.Command:
		st.decide(replies[0])
	case o.Class != rediserr.Canceled && r.touchJournal(st, e.hash, e.key, e.deadline):
	default:
		st.fail(e.key, r.c.asError(strings.ToLower(st.name), e.key, o))
	}
}
