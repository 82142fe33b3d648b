package holdfast

import (
	"slices"
	"strconv"
	"strings"

	"github.com/holdfast-cache/holdfast/internal/link"
	"github.com/holdfast-cache/holdfast/internal/local"
	"github.com/holdfast-cache/holdfast/internal/rediserr"
	"github.com/redis/rueidis"
)

// Commands that the tiers do not know are passed to Redis unchanged. Before such a command is sent,
// the journaled writes of its keys are replayed. If the command may have changed the keys, no value
// from before it is served afterwards.

// passed is a command that only Redis can answer.
type passed struct {
	command
	args []string // copies: rueidis reuses the slice of an answered command
	keys []string
	cmd  rueidis.Completed
	used bool // cmd may not be sent, or was sent already
}

// pass makes one remote operation of n turns, beginning with turn first: one command, or a
// transaction.
func (r *pipelineCall) pass(first, n int) {
	turns := r.commands[first : first+n]
	e := r.newOp()
	*e = remoteOp{command: &turns[0], kind: opPass, stays: r.cl.only != nil, first: first, at: len(r.writes), passed: r.onePassed[:]}
	if n > 1 || len(r.commands) > 1 {
		e.passed = make([]passed, n)
	}
	fail := func(err error) {
		for i := range turns {
			turns[i].fail(e.key, err)
		}
	}
	if r.c.routes == nil {
		fail(ErrUnavailable)
		return
	}
	homed, reads := false, true
	for i := range turns {
		st, p := &turns[i], &e.passed[i]
		if slices.ContainsFunc(st.args, func(arg string) bool { return len(arg) > maxString }) {
			fail(errValueTooLarge)
			return
		}
		// In a batch the flags of a command may make rueidis look for a client-side cache, see
		// turn.Plain. So only its arguments are used, in a new command.
		*p = passed{command: st.command, cmd: st.cmd, used: st.cache || !st.reads || len(r.commands) > 1}
		st.sent = !p.used
		if st.reads {
			p.args = slices.Clone(st.args)
		} else {
			p.args = copied(st.args)
		}
		p.keys = st.keys(p.args)
		if key, ok := st.home(p.args); ok && !homed {
			e.key, homed = key, true
		}
		reads = reads && (st.reads || st.cmd.IsReadOnly())
		e.unknownWrites = e.unknownWrites || p.where == keysAnywhere && !p.reads
	}
	killsScript := n == 1 && allowedBusy(turns[0].args)
	e.link, _ = r.c.remote.AwaitLink(r.ctx, r.now, true, func() *link.Link { return r.link(e.key, homed, killsScript) })
	s := e.link.Reader()
	if homed && !reads {
		s = e.link.Writer(false)
	}
	if s == nil && n == 1 && allowedBusy(turns[0].args) {
		s = e.link.Busy.Load()
	}
	if s == nil {
		fail(e.link.Why())
		return
	}
	for i := range e.passed {
		if err := r.cl.ready(r.bounded(), &e.passed[i]); err != nil {
			fail(err)
			return
		}
	}
	for i := range e.passed {
		r.markAllDirty(&e.passed[i])
		r.flushes = r.flushes || e.passed[i].verb == verbFlush
	}
	r.add(e, s)
}

// copied is cloned with one allocation for all strings. A write without an answer in time may be
// sent later. By then the caller may have reused the memory that rueidis.BinaryString built the
// command from, and the command would change another key.
func copied(args []string) []string {
	size := 0
	for _, arg := range args {
		size += len(arg)
	}
	var b strings.Builder
	b.Grow(size)
	all := make([]string, len(args))
	for i, arg := range args {
		from := b.Len()
		b.WriteString(arg)
		all[i] = b.String()[from:]
	}
	return all
}

// link returns the link that a command is sent to. A command that ends a script goes to a server
// that runs one.
func (r *pipelineCall) link(home string, homed, killsScript bool) *link.Link {
	router := r.c.routes
	switch {
	case r.cl.only != nil:
		return r.cl.only
	case homed:
		return router.Link(router.Of(home))
	}
	for _, l := range router.Links() {
		if killsScript && l.Busy.Load() != nil {
			return l
		}
	}
	return router.Any()
}

func (r *pipelineCall) markAllDirty(p *passed) {
	if p.reads {
		return
	}
	// The arguments of a script or a flush do not name all keys that it may change.
	r.allDirty = r.allDirty || p.where == keysAnywhere || p.where == keyless
	for _, key := range p.keys {
		r.markDirty(key)
	}
}

// transaction makes one remote operation of MULTI up to EXEC or DISCARD. A transaction without an
// end is refused, because the commands of the connection's other users would become part of it.
func (r *pipelineCall) transaction(first int) {
	rest := r.commands[first:]
	n := len(rest)
	end := slices.IndexFunc(rest, func(st commandState) bool { return st.verb == verbExec && len(st.args) == 1 })
	whole := end > 0 && len(rest[0].args) == 1
	if whole {
		n = end + 1
	}
	rest[0].span = n
	for i := 1; i < n-1; i++ {
		whole = whole && rest[i].verb != verbSession && rest[i].verb != verbReceive
	}
	if whole {
		r.pass(first, n)
		return
	}
	for i := range rest[:n] {
		rest[i].refuse()
	}
}

// ready prepares a command for sending; see client.before.
func (cl *client) ready(ctx link.Bound, p *passed) error {
	c := cl.c
	if len(p.keys) > 0 {
		if err := c.deliverNow(ctx, p.keys); err != nil {
			return err
		}
	}
	if p.reads {
		return nil
	}
	for _, key := range p.keys {
		h := c.local.Hash(key)
		c.local.Put(h, nil)
		if c.flights.N.Load() != 0 {
			c.supersede(ctx, &write{hash: h})
		}
	}
	return nil
}

// over is called once a command was sent, answered or not. l is the link that it was sent to, nil
// if it is not known.
func (cl *client) over(p *passed, l *link.Link) {
	switch {
	case p.reads:
	case p.verb != verbFlush && p.verb != verbUnsettle:
		cl.c.invalidate(p.keys)
	case p.swapsOthers(cl.c.opts.Redis.SelectDB):
	case l != nil:
		l.SuspectCopies()
	default:
		for _, l := range cl.c.routes.Links() {
			l.SuspectCopies()
		}
	}
}

// emptied is called when Redis has acknowledged a flush. All copies of its keys are invalid, and
// the journaled sets of its keys become deletes, except for later writes of the same call.
func (r *pipelineCall) emptied(e *remoteOp) {
	e.link.Keys.Scopes((*local.EpochScope).Flush)
	spare := map[string]uint64{}
	for _, w := range r.writes[e.at:] {
		spare[w.key] = w.seq
	}
	keys, saved := r.c.journal.Flushed(e.link.Keys.Owns, spare)
	r.kept = r.kept.Or(saved)
	for _, key := range keys {
		r.c.downgraded(key)
		r.c.routes.Deliver(key)
	}
}

// swapsOthers reports whether the command is SWAPDB of two databases other than db.
func (p *passed) swapsOthers(db int) bool {
	return len(p.args) == 3 && upper(p.args[0]) == "SWAPDB" && !slices.ContainsFunc(p.args[1:], func(arg string) bool {
		n, err := strconv.Atoi(arg)
		return err != nil || n == db
	})
}

func (e *remoteOp) passCommands(b rueidis.Builder, cmds []rueidis.Completed) []rueidis.Completed {
	for i := range e.passed {
		p := &e.passed[i]
		size := 0
		for _, arg := range p.args {
			size = max(size, len(arg))
		}
		cmd := p.cmd
		if p.used || size >= link.KeptSize {
			cmd = link.Kept(b.Arbitrary(p.args...).Build(), size)
		}
		p.used = true
		cmds = append(cmds, cmd)
	}
	if e.unknownWrites {
		// The server reports the keys that a script changed, but after the script's reply.
		cmds = append(cmds, b.Ping().Build())
	}
	return cmds
}

func (r *pipelineCall) hasPassed(e *remoteOp, replies []rueidis.RedisResult, o link.Outcome) {
	op := strings.ToLower(e.command.name)
	if e.unknownWrites && r.c.opts.Tracking.Mode == TrackPrefixes {
		// With NOLOOP the server does not report them, see TrackedKeys.command.
		e.link.Keys.Scopes((*local.EpochScope).Suspect)
		if o.Session != nil && o.Session.Link != e.link {
			o.Session.Link.Keys.Scopes((*local.EpochScope).Suspect)
		}
	}
	for i := range e.passed {
		p, st := &e.passed[i], &r.commands[e.first+i]
		r.cl.over(p, e.link)
		switch {
		case replies == nil:
			st.fail(e.key, r.c.asError(op, e.key, o))
		case replies[i].NonRedisError() != nil:
			// The connection was lost within a transaction.
			st.fail(e.key, link.Unavailable{Cause: replies[i].NonRedisError()})
		default:
			if p.verb == verbFlush && len(e.passed) == 1 && replies[i].Error() == nil && !p.swapsOthers(r.c.opts.Redis.SelectDB) {
				r.emptied(e)
			}
			err := replies[i].Error()
			if len(e.passed) == 1 && rediserr.Classify(r.ctx, err) == rediserr.Busy && !allowedBusy(p.args) {
				st.fail(e.key, link.Unavailable{Cause: err})
			}
			st.decide(replies[i])
		}
	}
}
