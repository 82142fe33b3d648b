package holdfast

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/keyhash"
	"github.com/holdfast-cache/holdfast/internal/link"
	"github.com/holdfast-cache/holdfast/internal/local"
	"github.com/holdfast-cache/holdfast/internal/rediserr"
	"github.com/redis/rueidis"
)

// Reads other than GET whose replies the first tier keeps: the commands of verbCached. A stored
// reply is the parsed reply of Redis. It is looked up by the key and the command, is as fresh as a
// copy of the key's value would be, and ends with the version of the key that it was read from: see
// replies.go in internal/local.

// caches reports whether the reply to the command may be answered from the first tier.
func (r *pipelineCall) caches(st *commandState) bool {
	return (st.cache || r.c.opts.Local.CacheDo) && r.c.routes != nil && keepable(st.command, st.args)
}

// keepable reports whether the first tier can keep the reply to a command.
func keepable(k command, args []string) bool {
	return k.verb == verbCached && len(args) > 1 &&
		!slices.ContainsFunc(args, func(arg string) bool { return len(arg) > maxString })
}

// replyHash returns the hashes of the key and of the reply to the command, which names the key first.
func (c *Cache) replyHash(args []string) (key, reply keyhash.Hash) {
	key = c.local.Hash(args[1])
	return key, c.local.CommandHash(key, args, 1)
}

// storedReply returns the reply to the command and its entry, or nil for both, and whether it may
// be served without Redis. A journaled key has no replies.
func (c *Cache) storedReply(h, stored keyhash.Hash, key string, now int64) (e *local.Entry, m *rueidis.RedisMessage, fresh bool) {
	if c.journal.Keys.Load() != 0 {
		if _, inJournal := c.journal.Get(h, key, now); inJournal {
			return nil, nil, false
		}
	}
	e, m = local.StoredReply[rueidis.RedisMessage](c.local, stored)
	return e, m, e != nil && now < e.FreshEnd()
}

// cachedRead reports whether cachedHit may answer the command.
func (cl *client) cachedRead(st givenCommand) bool {
	if !st.cache && !cl.c.opts.Local.CacheDo || st.cmd.IsEmpty() || cl.only != nil {
		return false
	}
	args := st.cmd.Commands()
	return len(args) > 1 && redisCommands[args[0]].verb == verbCached
}

// cachedHit answers a command by a fresh reply that is younger than the ttl of DoCache. It returns
// false if there is none, or if the view or the Cache is closed or ctx has ended.
func (cl *client) cachedHit(ctx context.Context, st givenCommand, res *rueidis.RedisResult) bool {
	c := cl.c
	// A command that has a stored reply needs no look at the table.
	if st.cmd.IsEmpty() || cl.only != nil || !st.cache && !cl.cachedRead(st) {
		return false
	}
	args := st.cmd.Commands()
	if len(args) < 2 || cl.closed.Load() || enterable(ctx, !c.inflight.Closed.Load()) != nil {
		return false
	}
	h, stored := c.replyHash(args)
	if cl.journaledNow(h, args[1]) {
		return false
	}
	e, m := local.StoredReply[rueidis.RedisMessage](c.local, stored)
	if e == nil {
		return false
	}
	ttl := anyAge
	if st.cache {
		ttl = st.cached
	}
	now, fresh := c.before(min(e.FreshEnd(), youngUntil(e, ttl)))
	if !fresh {
		return false
	}
	c.local.CountHit(stored)
	cl.answers.answerReply(res, m)
	if st.cache {
		cl.answers.markHit(res, cl.unix.millis(now, cachedUntil(e, ttl)))
	}
	return true
}

// cached answers a command from the first tier, or adds the remote operation that reads the reply.
func (r *pipelineCall) cached(st *commandState) {
	c, key := r.c, st.args[1]
	h, stored := c.replyHash(st.args)
	c.local.CountRead(stored)
	e, m, fresh := c.storedReply(h, stored, key, r.now)
	if fresh && st.takes(e, r.now) && !r.isDirty(key) {
		r.foundReply(st, *m, Entry{Tier: Local, TTL: clock.Left(r.now, e.Expires.Load())}, e)
		return
	}
	known := e != nil && servable(e, r.now, true, c.opts.Outage)
	for {
		s, t := c.readerOf(h, key)
		if s == nil && c.remote.AwaitKey(r.ctx, r.now, !known, key) {
			s, t = c.readerOf(h, key)
		}
		if s == nil {
			r.replyWithoutRedis(st, h, stored, c.routes.Link(c.routes.Of(key)).Why())
			return
		}
		if c.journal.Holds(h, key) {
			if err := c.deliverNow(r.bounded(), []string{key}); err != nil {
				r.failReply(st, key, err)
				return
			}
			continue // the replay has changed the key
		}
		op := r.newOp()
		*op = remoteOp{command: st, kind: opCached, key: key, hash: h, stored: stored, token: t}
		if len(r.commands) == 1 && st.shares() && !r.lead(op) {
			if r.follow(op) {
				return
			}
			continue
		}
		r.add(op, s)
		return
	}
}

// shares reports whether the command may get the reply of an equal one that is under way. With a ttl
// of 0 DoCache takes no reply that was asked for before.
func (st *commandState) shares() bool { return !st.cache || st.cached > 0 }

// lead makes the call the one that asks Redis for this reply. It returns false if another call
// already does, and sets the operation's flight in any case. Only a call of a single command leads
// or follows: a call that waited for another one with commands of its own unsent could wait for a
// call that waits for it.
func (r *pipelineCall) lead(op *remoteOp) (leads bool) {
	op.flight, leads = r.cl.replyFlights.join(op.stored, op.token)
	if leads {
		r.flight = op.flight
	}
	return leads
}

// follow waits for the flight of another call. It returns false if the flight gave no reply.
func (r *pipelineCall) follow(op *remoteOp) (answered bool) {
	f := op.flight
	select {
	case <-f.landed:
		if f.answered {
			r.answerCached(op.command, f.reply, f.left)
		}
		return f.answered
	case <-r.bounded().Done():
	}
	if err := r.ctx.Err(); err != nil {
		r.failReply(op.command, op.key, err)
	} else {
		r.replyWithoutRedis(op.command, op.hash, op.stored, link.Unavailable{Cause: link.ErrBudget})
	}
	return true
}

// cachedCommands appends the commands that read the reply and tell how long it may be kept.
func (e *remoteOp) cachedCommands(b rueidis.Builder, it *link.Item, cmds []rueidis.Completed) []rueidis.Completed {
	return link.ReplyCommands(b, it, e.command.args, namedFields(e.command.name, e.command.args), cmds)
}

func (r *pipelineCall) hasCached(e *remoteOp, replies []rueidis.RedisResult, o link.Outcome) {
	st := e.command
	var life link.Life
	switch o.Class {
	case rediserr.OK:
		if life = link.LifeOf(replies[1], o.Session); life.Absent {
			life.TTL = 0 // the absence has no end of its own
		}
		r.keepReply(e, replies, life, o)
		fallthrough
	case rediserr.Command:
		if e.flight != nil {
			e.flight.reply, e.flight.left, e.flight.answered = replies[0], life.TTL, true
		}
		r.answerCached(st, replies[0], life.TTL)
	case rediserr.Canceled:
		r.failReply(st, e.key, o.Err)
	default:
		r.replyWithoutRedis(st, e.hash, e.stored, link.Unavailable{Cause: o.Err})
	}
}

// answerCached answers the command with a reply of Redis. left is the remaining life of the key, 0 for
// no expiry.
func (r *pipelineCall) answerCached(st *commandState, reply rueidis.RedisResult, left time.Duration) {
	m, err := reply.ToMessage()
	if err != nil && !rueidis.IsRedisNil(err) {
		r.c.counted(Entry{}, err)
		st.decide(reply)
		return
	}
	r.foundReply(st, m, Entry{Tier: Remote, TTL: left}, nil)
}

// foundReply answers the command with a reply. e is the entry that it came from, nil for none.
func (r *pipelineCall) foundReply(st *commandState, m rueidis.RedisMessage, got Entry, e *local.Entry) {
	r.c.counted(got, nil)
	if st.cache {
		r.cl.answers.cached(&m, got, e, r.now, st.cached)
	}
	st.decide(replied(m))
}

// replyWithoutRedis answers the command by a suspect reply, if the outage options allow it, or with
// ErrUnavailable: an absent key has a reply of its own, so there is none for a miss.
func (r *pipelineCall) replyWithoutRedis(st *commandState, h, stored keyhash.Hash, why error) {
	now := r.c.clock.Now()
	e, m, _ := r.c.storedReply(h, stored, st.args[1], now)
	got, err := r.c.fallback(e, now)
	if err != nil {
		r.failReply(st, st.args[1], why)
		return
	}
	r.foundReply(st, *m, got, e)
}

func (r *pipelineCall) failReply(st *commandState, key string, err error) {
	r.c.counted(Entry{}, err)
	st.fail(key, err)
}

// keepReply stores the reply in the first tier, if it is known how long it may be kept.
func (r *pipelineCall) keepReply(e *remoteOp, replies []rueidis.RedisResult, life link.Life, o link.Outcome) {
	m, err := replies[0].ToMessage()
	if err != nil && !rueidis.IsRedisNil(err) {
		return
	}
	if life.Absent && !isEmptyReply(&m) {
		return // the key expired between the commands
	}
	stored := unsettledReply{op: e, message: m, life: life, outcome: o}
	switch fields := fieldsIn(e.command.name, &m); {
	case !readsHash(e.command.name) || !o.Session.FieldsExpire():
	case len(replies) > 2:
		if !stored.endWithFields(replies[2]) {
			return
		}
	case len(fields) > 0:
		stored.fields = fields
		r.unsettled = append(r.unsettled, stored)
		return
	case !isEmptyReply(&m):
		return // the fields are not known
	}
	stored.store(r)
}

// unsettledReply is a reply that may be stored when it is known when the fields of its hash expire.
type unsettledReply struct {
	op      *remoteOp
	message rueidis.RedisMessage
	life    link.Life
	outcome link.Outcome
	fields  []string
}

// settle asks when the fields of hashes expire, and stores the replies that show them.
func (r *pipelineCall) settle() {
	all := r.unsettled
	items := make([]link.Item, len(all))
	for i := range all {
		items[i] = link.Item{Key: all[i].op.key, Session: all[i].outcome.Session, Payload: &all[i]}
	}
	build := func(b rueidis.Builder, it *link.Item, cmds []rueidis.Completed) []rueidis.Completed {
		return append(cmds, link.FieldsCommand(b, it.Key, it.Payload.(*unsettledReply).fields))
	}
	r.c.remote.Batch(r.bounded(), items, 1, build, func(i int, replies []rueidis.RedisResult, o link.Outcome) {
		if len(replies) == 1 && o.Session == all[i].outcome.Session && all[i].endWithFields(replies[0]) {
			all[i].store(r)
		}
	})
}

// endWithFields shortens the life of the reply to that of its fields; see link.Life.EndWithFields.
func (u *unsettledReply) endWithFields(hpttl rueidis.RedisResult) bool {
	shown := func(i int) bool { return showsField(u.op.command.name, &u.message, i) }
	return u.life.EndWithFields(hpttl, shown, u.outcome.Session)
}

func (u *unsettledReply) store(r *pipelineCall) {
	c, e := r.c, u.op
	k := c.freshness(r.now, u.life, e.token, u.outcome, e.key)
	if !local.FillReply(c.local, e.hash, e.stored, u.message, r.cl.answers.heap(&u.message), e.token, k) {
		c.stats.fillsDiscarded.Add(1)
	}
}

// isEmptyReply reports whether the reply may be the one for an absent key.
func isEmptyReply(m *rueidis.RedisMessage) bool {
	if m.IsNil() {
		return true
	}
	if n, err := m.ToInt64(); err == nil {
		return n <= 0
	}
	if s, err := m.ToString(); err == nil {
		return s == "" || s == "none"
	}
	if all, err := m.ToMap(); err == nil {
		return len(all) == 0
	}
	all, err := m.ToArray()
	return err == nil && !slices.ContainsFunc(all, func(m rueidis.RedisMessage) bool { return !isEmptyReply(&m) })
}

// Fields of a hash can expire by themselves, since Redis 7.4. A reply that shows a field must end
// with it.

// readsHash reports whether a command reads a hash.
func readsHash(name string) bool { return name[0] == 'H' }

// namedFields returns the fields of a hash that a command names.
func namedFields(name string, args []string) []string {
	switch name {
	case "HGET", "HEXISTS", "HSTRLEN", "HMGET":
		return args[2:]
	}
	return nil
}

// fieldsIn returns the fields of a hash that a reply shows.
func fieldsIn(name string, m *rueidis.RedisMessage) (fields []string) {
	switch name {
	case "HKEYS":
		fields, _ = m.AsStrSlice()
	case "HGETALL":
		all, _ := m.AsStrMap()
		for field := range all {
			fields = append(fields, field)
		}
	}
	return fields
}

// showsField reports whether a reply shows the ith of the fields that HPTTL was asked for.
func showsField(name string, m *rueidis.RedisMessage, i int) bool {
	switch name {
	case "HGET":
		return !m.IsNil()
	case "HEXISTS", "HSTRLEN":
		return !isEmptyReply(m)
	case "HMGET":
		all, err := m.ToArray()
		return err != nil || i >= len(all) || !all[i].IsNil()
	}
	return true
}

// replyFlights has the reads under way, so that equal ones share one command.
type replyFlights struct {
	mu sync.Mutex
	m  map[keyhash.Hash]*replyFlight
}

// replyFlight is a read under way. Its other fields are valid once landed is closed.
type replyFlight struct {
	stored keyhash.Hash // of the reply
	token  local.Token
	landed chan struct{}

	reply    rueidis.RedisResult
	left     time.Duration // remaining life of the key, 0 for no expiry
	answered bool          // with a reply of Redis
}

// join returns the flight for a reply, and whether the caller leads it. A flight with another
// token began before a change of the key that the caller may know of: it is not joined.
func (f *replyFlights) join(stored keyhash.Hash, t local.Token) (flight *replyFlight, leads bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if flight = f.m[stored]; flight != nil && flight.token == t {
		return flight, false
	}
	if f.m == nil {
		f.m = map[keyhash.Hash]*replyFlight{}
	}
	flight = &replyFlight{stored: stored, token: t, landed: make(chan struct{})}
	f.m[stored] = flight
	return flight, true
}

// land ends a flight. Its leader calls it.
func (f *replyFlights) land(flight *replyFlight) {
	f.mu.Lock()
	if f.m[flight.stored] == flight {
		delete(f.m, flight.stored)
	}
	f.mu.Unlock()
	close(flight.landed)
}
