package link

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/dial"
	"github.com/holdfast-cache/holdfast/internal/group"
	"github.com/holdfast-cache/holdfast/internal/rediserr"
	"github.com/redis/rueidis"
)

// Remote is the second tier. It sends commands on sessions, within the budget and the bulkhead. It
// classifies their outcomes and reports them to the session's link.
type Remote struct {
	routes  *Routes
	Hops    int // most redirections that a call follows
	Budget  *budget
	clock   clock.Clock
	stats   *Counters
	callers group.Group // goroutines of batches that go to several servers
}

func NewRemote(r *Routes) *Remote {
	c := r.cfg
	return &Remote{
		routes: r, Hops: c.Redis.ClusterOption.MaxMovedRedirections,
		Budget: newBudget(c.Timeout, c.Clock), clock: c.Clock, stats: c.Stats,
	}
}

// Outcome is the result of one command, apart from its replies.
type Outcome struct {
	Class rediserr.Class
	Err   error

	// Unknown: Redis may have run the command, may still run it, or never got it. It is false for a
	// command that got a reply of any kind, and for a command that was not sent.
	Unknown bool

	// lost: the connection was lost while the command was under way. tooLate: the connection was
	// lost before, so the command was not sent.
	lost    bool
	tooLate bool

	// Session is the session that answered, or failed to. Asked: the command was sent with ASKING,
	// to a server that imports the slot and does not own it. Its reply is an answer, but is not
	// kept as fresh.
	Session *Session
	Asked   bool
}

// TryAgain reports the error TRYAGAIN: while a slot moves, its keys may be on two nodes.
func (o *Outcome) TryAgain() bool {
	var re *rueidis.RedisError
	return errors.As(o.Err, &re) && strings.HasPrefix(re.Error(), "TRYAGAIN")
}

// hungAfter is a divisor of the budget. A caller whose own deadline ended counts as a failure of
// Redis only if it waited for at least this fraction of the budget and the session answered nothing
// meanwhile.
const hungAfter = 10

// Bound is the context of one call of the user to Redis. All commands of the call share one budget,
// except in a batch; see Remote.Batch.
type Bound struct {
	context.Context                 // ends with the budget or with Caller
	Caller          context.Context // the caller's own context
	Began           int64
}

// Bound begins the budget of a call. The caller must call cancel at the end of the call.
func (r *Remote) Bound(ctx context.Context, now int64) (b Bound, cancel context.CancelFunc) {
	b = Bound{Caller: ctx, Began: now}
	b.Context, cancel = r.Budget.Of(ctx, now)
	return b, cancel
}

// do sends a request and waits for its replies until the call's budget or the caller's context ends.
// With alone set it waits until no other command is under way. There may be no replies if the outcome
// is not OK. If the session had ended before anything was sent and its link has another one by now,
// the request is sent there, once.
func (r *Remote) do(ctx Bound, s *Session, alone bool, q request) (response, Outcome) {
	a, o := r.doOn(ctx, s, alone, q)
	if o.tooLate {
		if next := r.successor(ctx, s); next != nil && r.mayFollow(q) {
			return r.doOn(ctx, next, alone, q)
		}
		s.Link.Report(s, o.Class, o.Err)
	}
	return a, o
}

// mayFollow reports whether a request that was not sent may be sent to the session that serves now
// instead. Writes may not if the journal holds keys: a later write of the same key may be in the
// journal, and the older command must not run after it.
func (r *Remote) mayFollow(q request) bool {
	return !r.routes.demand.Journaling() || q.isReadOnly()
}

// successor returns the session that serves in place of one that was replaced or lost after a call
// had chosen it, nil if there is none. If the link was unused, successor waits for the connection
// attempt; see Moment.
func (r *Remote) successor(ctx Bound, s *Session) *Session {
	next := s.Link.Gate.Load()
	if next == nil {
		m := s.Link.window(false)
		if m == nil {
			return nil
		}
		select {
		case <-m.over:
		case <-ctx.Done():
			return nil
		}
		next = s.Link.Gate.Load()
	}
	if next == s || ctx.Err() != nil {
		return nil
	}
	return next
}

// request is what a call sends: one command, or several in one pipeline.
type request struct {
	one  rueidis.Completed   // if many is empty
	many []rueidis.Completed // must not be changed before the replies have come
}

// response has the reply or the replies to a request.
type response struct {
	one  rueidis.RedisResult
	many []rueidis.RedisResult
}

// send sends the request and waits for its replies. The error says why there is no last reply. A
// command by itself costs rueidis no allocation, a pipeline three.
func (q request) send(ctx context.Context, s *Session) (a response, err error) {
	switch len(q.many) {
	case 0:
		a.one = s.Client.Do(ctx, q.one)
		return a, a.one.NonRedisError()
	case 1:
		reply := s.Client.Do(ctx, q.many[0])
		a.many = []rueidis.RedisResult{reply}
		return a, reply.NonRedisError()
	}
	a.many = s.Client.DoMulti(ctx, q.many...)
	return a, a.many[len(a.many)-1].NonRedisError()
}

func (q request) kind() Kind {
	if len(q.many) == 0 {
		return kindOf(q.one)
	}
	return kindOf(q.many[0])
}

func (q request) isReadOnly() bool {
	if len(q.many) == 0 {
		return q.one.IsReadOnly()
	}
	return !slices.ContainsFunc(q.many, func(cmd rueidis.Completed) bool { return !cmd.IsReadOnly() })
}

// doOn is do on the given session.
func (r *Remote) doOn(ctx Bound, s *Session, alone bool, q request) (response, Outcome) {
	if ctx.Err() != nil {
		return response{}, Unsent(ctx) // says nothing about Redis: it was not asked
	}
	var ticket uint64
	var err error
	if alone {
		ticket, err = s.EnterAlone(ctx.Context)
	} else {
		ticket, err = s.Acquire(ctx.Context)
	}
	if err != nil {
		if ctx.Caller.Err() != nil {
			return response{}, Outcome{Class: rediserr.Canceled, Err: ctx.Caller.Err()}
		}
		r.stats.BulkheadRefused.Add(1)
		// Nothing was sent, and the calls that hold the slots report their own outcomes.
		return response{}, Outcome{Class: rediserr.Down, Err: err}
	}
	completed, dead := s.Completed.Load(), s.Lost.Load()
	kind, sent := q.kind(), r.clock.Now() // before rueidis reuses the commands
	a, err := q.send(ctx.Context, s)
	r.stats.Took[kind].Record(time.Duration(r.clock.Now() - sent))
	keep := int64(0)
	if err != nil && rediserr.GaveUp(err) {
		s.Abandon(ticket)
		keep = 1
	}
	if alone {
		s.LeaveAlone(keep)
	} else if keep == 0 {
		s.Release()
	}
	if err == nil {
		s.Answered(ticket)
		return a, Outcome{Session: s}
	}
	if !rediserr.GaveUp(err) && (dead || errors.Is(err, dial.ErrNoPermit)) {
		// The connection is closed before the session is marked as lost. A closed connection takes
		// no more commands.
		return a, Outcome{Class: rediserr.Down, Err: err, Session: s, tooLate: true}
	}
	o := r.reportUnanswered(ctx, s, completed, err)
	o.lost = o.Unknown && !rediserr.GaveUp(err) && !dead && !s.Ended.Load()
	return a, o
}

// Unsent returns the outcome of commands that were not sent because the time of the call was over.
func Unsent(ctx Bound) Outcome {
	if err := ctx.Caller.Err(); err != nil {
		return Outcome{Class: rediserr.Canceled, Err: err}
	}
	return Outcome{Class: rediserr.Down, Err: ErrBudget}
}

// reportUnanswered returns and reports the outcome of commands that got no reply.
func (r *Remote) reportUnanswered(ctx Bound, s *Session, completed uint64, err error) Outcome {
	o := Outcome{Class: rediserr.Classify(ctx.Caller, err), Err: err, Unknown: !errors.Is(err, dial.ErrNoPermit), Session: s}
	switch {
	case o.Class == rediserr.Canceled:
		o.Err = ctx.Caller.Err()
		// A caller that leaves says nothing about Redis. But if the caller's own deadline ended and
		// nothing at all came back meanwhile, the server hangs.
		mute := s.Completed.Load() == completed
		waited := time.Duration(r.clock.Now() - ctx.Began)
		if mute && errors.Is(o.Err, context.DeadlineExceeded) && waited >= r.Budget.timeout/hungAfter {
			s.Link.Report(s, rediserr.Down, ErrBudget)
		}
	case rediserr.GaveUp(err):
		r.stats.Timeouts.Add(1)
		o.Err = ErrBudget
		s.Link.Report(s, rediserr.Down, ErrBudget)
	default:
		s.Link.Report(s, o.Class, err)
	}
	return o
}

// reply classifies and reports one of the replies that came.
func (r *Remote) reply(s *Session, res rueidis.RedisResult) Outcome {
	err := res.Error()
	c := rediserr.Classify(context.Background(), err)
	s.Link.Report(s, c, err)
	if c == rediserr.OK {
		err = nil
	}
	return Outcome{Class: c, Err: err, Session: s}
}

// RemoteValue is the value that Redis holds for a key.
type RemoteValue struct {
	Found bool
	Bytes []byte
	Life
}

// Get reads a value with its remaining life, so that a local copy does not outlive it.
func (r *Remote) Get(ctx Bound, s *Session, key string) (RemoteValue, Outcome) {
	b := s.Client.B()
	cmds := []rueidis.Completed{getCommand(b, key), pttlCommand(b, key)}
	a, o := r.ask(ctx, s, subject{name: readName, key: key}, request{many: cmds})
	if o.Class != rediserr.OK {
		return RemoteValue{}, o
	}
	replies := a.many
	o = r.reply(o.Session, replies[0])
	if o.Class == rediserr.Redirect {
		replies, o = r.redirectOne(ctx, Item{Key: key, Session: s, outcome: o}, 2, ReadCommands)
	}
	return ReadValue(replies, o)
}

// redirectOne is redirect for one item.
func (r *Remote) redirectOne(ctx Bound, it Item, stride int, build commands) (replies []rueidis.RedisResult, o Outcome) {
	r.redirect(ctx, []Item{it}, stride, build, func(_ int, got []rueidis.RedisResult, last Outcome) {
		replies, o = got, last
	})
	return replies, o
}

// One is Batch for a call on one key.
func (r *Remote) One(ctx Bound, s *Session, key string, stride int, build commands) ([]rueidis.RedisResult, Outcome) {
	it := Item{Key: key, Session: s}
	a, o := r.ask(ctx, s, subject{it: &it, build: build}, request{many: build(s.Client.B(), &it, nil)})
	if o.Class == rediserr.OK {
		o = r.reply(o.Session, a.many[0])
	}
	if it.conclude(o) {
		return a.many, o
	}
	return r.redirectOne(ctx, it, stride, build)
}

// Set is One for the SET of a plain value.
func (r *Remote) Set(ctx Bound, s *Session, key string, data []byte, ttl time.Duration) (rueidis.RedisResult, Outcome) {
	a, o := r.ask(ctx, s, subject{name: setName, key: key}, request{one: SetCommand(s.Client.B(), key, data, ttl)})
	if o.Class == rediserr.OK {
		o = r.reply(o.Session, a.one)
	}
	if o.Class == rediserr.Redirect {
		again := func(b rueidis.Builder, _ *Item, cmds []rueidis.Completed) []rueidis.Completed {
			return append(cmds, SetCommand(b, key, data, ttl))
		}
		var replies []rueidis.RedisResult
		replies, o = r.redirectOne(ctx, Item{Key: key, Session: s, Size: len(data), outcome: o}, 1, again)
		if len(replies) > 0 {
			a.one = replies[0]
		}
	}
	return a.one, o
}

func ReadCommands(b rueidis.Builder, it *Item, cmds []rueidis.Completed) []rueidis.Completed {
	return append(cmds, getCommand(b, it.Key), pttlCommand(b, it.Key))
}

// ReadValue decodes the replies of GET and PTTL.
func ReadValue(replies []rueidis.RedisResult, o Outcome) (RemoteValue, Outcome) {
	if o.Class != rediserr.OK || rueidis.IsRedisNil(replies[0].Error()) {
		return RemoteValue{}, o
	}
	bytes, err := replies[0].AsBytes()
	if err != nil {
		return RemoteValue{}, Outcome{Class: rediserr.Command, Err: err, Session: o.Session}
	}
	return found(bytes, replies[1], o.Session), o
}

// found returns a value that was read, with the life that the reply to PTTL tells.
func found(bytes []byte, pttl rueidis.RedisResult, s *Session) RemoteValue {
	return RemoteValue{Found: true, Bytes: bytes[:len(bytes):len(bytes)], Life: LifeOf(pttl, s)}
}

// Millis converts milliseconds to a Duration and limits values that do not fit.
func Millis(ms int64) time.Duration {
	if ms > int64(1<<63-1)/int64(time.Millisecond) {
		return 1<<63 - 1
	}
	return time.Duration(ms) * time.Millisecond
}

// recordUnanswered records that commands with these ids got no answer on the session. If they were
// sent alone, key is their key.
func (s *Session) recordUnanswered(ids []uint64, alone bool, key string, o Outcome) {
	switch {
	case o.lost:
		s.Link.Blame(s, ids, alone, key)
	case o.Unknown:
		s.left.add(ids, alone, key)
		if s.Lost.Load() {
			s.Link.blameAbandoned(s)
		}
	}
}

// subject identifies the commands of a call to ask: either by name and key, or by the item and the
// function that builds its commands.
type subject struct {
	name  string
	key   string
	it    *Item
	build commands
}

func (w *subject) id(s *Session) uint64 {
	if w.build == nil {
		return s.Link.Suspects.named(w.key, w.name)
	}
	return s.Link.Suspects.id(w.it.Key, w.build(s.Client.B(), w.it, nil))
}

func (w *subject) named() string {
	if w.build == nil {
		return w.key
	}
	return w.it.Key
}

// ask is do for the commands of one key.
func (r *Remote) ask(ctx Bound, s *Session, who subject, q request) (response, Outcome) {
	var id [1]uint64
	how := SendInCompany
	if s.Link.Suspects.Any() {
		id[0] = who.id(s)
		if how = s.Link.Suspects.judge(id[0]); how == SendNot {
			return response{}, Outcome{Class: rediserr.Down, Err: errIsolated, Session: s}
		}
	}
	a, o := r.do(ctx, s, how == sendAlone, q)
	if o.Session != nil {
		s = o.Session // do may have used another session
	}
	switch {
	case o.Class == rediserr.OK && id[0] != 0:
		s.Link.Suspects.Clear(id[:]...)
	case o.Unknown:
		if id[0] == 0 {
			id[0] = who.id(s)
		}
		s.recordUnanswered(id[:], how == sendAlone, who.named(), o)
	}
	return a, o
}
