package holdfast

import (
	"slices"
	"strconv"
	"strings"

	"github.com/redis/rueidis"
)

// What the tiers do not know goes to Redis as it is. It is not sent before Redis has what
// the journal holds of its keys, and where it may have changed them, nothing is served
// afterwards that was known before.

// passed is a command that Redis alone answers.
type passed struct {
	command
	args []string // copies: rueidis uses a command's own again once it is answered, see also copied
	keys []string
	cmd  rueidis.Completed
	used bool // cmd may not be sent, or not a second time
}

// pass makes one errand of n turns from the given one on: a command, or a transaction.
func (r *call) pass(first, n int) {
	turns := r.turns[first : first+n]
	e := r.errand()
	*e = errand{turn: &turns[0], job: jobPass, stays: r.cl.only != nil, first: first, at: len(r.writes), passed: r.onePassed[:]}
	if n > 1 || len(r.turns) > 1 {
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
		// The flags of a command that is not alone may have rueidis look for a cache, see
		// turn.plain, so its arguments are sent.
		*p = passed{command: st.command, cmd: st.cmd, used: st.cache || !st.reads || len(r.turns) > 1}
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
		e.hides = e.hides || p.where == keysAnywhere && !p.reads
	}
	killsScript := n == 1 && allowedBusy(turns[0].args)
	e.link, _ = r.c.awaitLink(r.ctx, r.now, true, func() *link { return r.link(e.key, homed, killsScript) })
	s := e.link.reader()
	if homed && !reads {
		s = e.link.writer(false)
	}
	if s == nil && n == 1 && allowedBusy(turns[0].args) {
		s = e.link.busy.Load()
	}
	if s == nil {
		fail(e.link.why())
		return
	}
	for i := range e.passed {
		if err := r.cl.ready(r.bounded(), &e.passed[i]); err != nil {
			fail(err)
			return
		}
	}
	for i := range e.passed {
		r.occupyAll(&e.passed[i])
	}
	r.add(e, s)
}

// copied is cloned in one piece. A write that got no answer in time may be sent later,
// when the caller has used again what rueidis.BinaryString took a command from: then it
// would change another key.
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

// link is where a command goes. One that ends a script goes where one runs.
func (r *call) link(home string, homed, killsScript bool) *link {
	router := r.c.routes
	switch {
	case r.cl.only != nil:
		return r.cl.only
	case homed:
		return router.link(router.of(home))
	}
	for _, l := range router.links() {
		if killsScript && l.busy.Load() != nil {
			return l
		}
	}
	return router.any()
}

func (r *call) occupyAll(p *passed) {
	if p.reads {
		return
	}
	// What a script does, or a flush, nobody can tell from its arguments.
	r.allBusy = r.allBusy || p.where == keysAnywhere || p.where == keyless
	for _, key := range p.keys {
		r.occupy(key)
	}
}

// transaction makes one errand of MULTI and what follows, up to EXEC or DISCARD. Without
// an end it would be one of the connection's other users, too, so it is refused.
func (r *call) transaction(first int) {
	rest := r.turns[first:]
	n := len(rest)
	end := slices.IndexFunc(rest, func(st turn) bool { return st.verb == verbExec && len(st.args) == 1 })
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

// ready makes a command ready to be sent: see client.before.
func (cl *client) ready(ctx bound, p *passed) error {
	c := cl.c
	if len(p.keys) > 0 {
		if err := c.settled(ctx, p.keys); err != nil {
			return err
		}
	}
	if p.reads {
		return nil
	}
	for _, key := range p.keys {
		h := c.local.hash(key)
		c.local.put(h, nil)
		if c.flights.n.Load() != 0 {
			c.overtake(ctx, &change{hash: h})
		}
	}
	return nil
}

// over is told that a command was sent, whatever became of it, and to which link, nil
// where that is not known.
func (cl *client) over(p *passed, l *link) {
	switch {
	case p.reads:
	case p.verb != verbFlush && p.verb != verbUnsettle:
		cl.c.invalidate(p.keys)
	case p.swapsOthers(cl.c.opts.Redis.SelectDB):
	case l != nil:
		l.doubt()
	default:
		for _, l := range cl.c.routes.links() {
			l.doubt()
		}
	}
}

// emptied is told that Redis did what the command says: whatever it held is gone, and
// so is what waits to be written there, but for what the call writes behind it.
func (r *call) emptied(e *errand) {
	e.link.domains((*domain).flush)
	spare := map[string]uint64{}
	for _, w := range r.writes[e.at:] {
		spare[w.key] = w.seq
	}
	keys, saved := r.c.journal.flushed(e.link.replayer.owns, spare)
	r.kept = r.kept.or(saved)
	for _, key := range keys {
		r.c.downgraded(key)
		r.c.routes.deliver(key)
	}
}

// swapsOthers says whether it is SWAPDB of databases of which none is this one.
func (p *passed) swapsOthers(db int) bool {
	return len(p.args) == 3 && upper(p.args[0]) == "SWAPDB" && !slices.ContainsFunc(p.args[1:], func(arg string) bool {
		n, err := strconv.Atoi(arg)
		return err != nil || n == db
	})
}

func (e *errand) passCommands(b rueidis.Builder, cmds []rueidis.Completed) []rueidis.Completed {
	for i := range e.passed {
		p := &e.passed[i]
		size := 0
		for _, arg := range p.args {
			size = max(size, len(arg))
		}
		cmd := p.cmd
		if p.used || size >= keptSize {
			cmd = kept(b.Arbitrary(p.args...).Build(), size)
		}
		p.used = true
		cmds = append(cmds, cmd)
	}
	if e.hides {
		// The server tells of the keys, but behind the reply.
		cmds = append(cmds, b.Ping().Build())
	}
	return cmds
}

func (r *call) hasPassed(e *errand, replies []rueidis.RedisResult, o outcome) {
	op := strings.ToLower(e.turn.name)
	if e.hides && r.c.opts.Tracking.Mode == TrackPrefixes {
		// It does not tell of them, see Tracking.command.
		e.link.domains((*domain).doubt)
		if o.session != nil && o.session.link != e.link {
			o.session.link.domains((*domain).doubt)
		}
	}
	for i := range e.passed {
		p, st := &e.passed[i], &r.turns[e.first+i]
		r.cl.over(p, e.link)
		switch {
		case replies == nil:
			st.fail(e.key, r.c.decided(op, e.key, o))
		case replies[i].NonRedisError() != nil:
			// The connection broke within a transaction.
			st.fail(e.key, unavailable{replies[i].NonRedisError()})
		default:
			if p.verb == verbFlush && len(e.passed) == 1 && replies[i].Error() == nil && !p.swapsOthers(r.c.opts.Redis.SelectDB) {
				r.emptied(e)
			}
			err := replies[i].Error()
			if len(e.passed) == 1 && classify(r.ctx, err) == classBusy && !allowedBusy(p.args) {
				st.fail(e.key, unavailable{err})
			}
			st.decide(replies[i])
		}
	}
}
