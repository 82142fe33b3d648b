package holdfast

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/journal"
	"github.com/holdfast-cache/holdfast/internal/keyhash"
	"github.com/holdfast-cache/holdfast/internal/link"
	"github.com/holdfast-cache/holdfast/internal/local"
	"github.com/redis/rueidis"
)

// pipelineCall is one call of the drop-in client. Its commands are examined in order. A command that the
// tiers can answer is answered at once. All others become remote operations, which go to Redis in
// one pipeline, in the order of the commands. A command must see the effects of the commands before
// it, as in any pipeline. So a command whose key may be changed by an earlier remote operation
// becomes a remote operation itself.
type pipelineCall struct {
	cl  *client
	c   *Cache
	ctx context.Context
	now int64

	began  int64      // start of the budget: now, or later in a large batch
	limit  link.Bound // of the call; made for its first remote operation
	cancel context.CancelFunc

	commands  []commandState
	items     []link.Item
	writes    []*write
	dirtyKeys map[string]bool // keys that a remote operation may change
	flight    *replyFlight    // that the call leads; nil for none
	unsettled []unsettledReply
	flushes   bool // one of the commands empties a database
	allDirty  bool
	kept      journal.Saving

	// Storage for a call of a single command, allocated together with the call.
	oneItem   [1]link.Item
	oneOp     remoteOp
	onePassed [1]passed
	oneChange [1]*write
}

// newOp returns a new remote operation.
func (r *pipelineCall) newOp() *remoteOp {
	if len(r.commands) == 1 && len(r.items) == 0 {
		return &r.oneOp
	}
	return new(remoteOp)
}

// givenCommand is a command of a call as the caller gave it.
type givenCommand struct {
	cmd    rueidis.Completed
	cache  bool          // of DoCache
	cached time.Duration // maximum age of a copy for DoCache
}

// commandState is the state of one command of a call.
type commandState struct {
	givenCommand
	command
	name string
	args []string
	sent bool // cmd itself may be sent; rueidis then recycles it
	span int  // of a transaction: number of commands, MULTI and EXEC included; else 1

	reply rueidis.RedisResult // valid once done is set
	done  bool
	sum   int64                  // of DEL and EXISTS
	parts []rueidis.RedisMessage // of MGET
}

// remoteOp is a remote operation: one key's part of a command, or a passed command.
type remoteOp struct {
	command *commandState
	kind    opKind
	key     string
	hash    keyhash.Hash
	at      int // index in MGET; of a passed command: number of earlier writes of the call

	token    local.Token
	stored   keyhash.Hash // of a command whose reply is stored
	flight   *replyFlight // nil for none
	change   *write
	deadline int64  // of EXPIRE
	prior    []byte // the value that the tiers held before a delete
	had      bool

	// Of passed commands: the index of the first turn, the commands, the link that they go to,
	// whether a redirection is returned instead of followed, and whether a command may change keys
	// that it does not name, as a script may.
	first         int
	passed        []passed
	link          *link.Link
	stays         bool
	unknownWrites bool
}

type opKind uint8

const (
	opRead opKind = iota
	opWrite
	opAsk // a read of which only the reply counts
	opTouch
	opPass
	opCached
)

// all produces the reply of every turn. The caller has entered the call gate.
func (r *pipelineCall) all() {
	r.items, r.writes = r.oneItem[:0], r.oneChange[:0]
	for i, bounded := 0, 0; i < len(r.commands); {
		if i-bounded >= link.KeysAtOnce {
			bounded = i
			r.unbound() // local processing time of many commands is not charged to Redis
		}
		st := &r.commands[i]
		st.span = 1
		r.begin(st, i)
		i += st.span
	}
	if r.flushes {
		r.c.journal.BeginFlush()
	}
	if len(r.items) > 0 {
		r.run()
	}
	if len(r.unsettled) > 0 {
		r.settle()
	}
	if r.flushes {
		r.c.journal.EndFlush()
	}
	if r.cancel != nil {
		r.cancel()
	}
	for _, w := range r.writes {
		r.c.invalidateFlight(w)
	}
	saveErr := r.c.durable(r.ctx, r.now, r.kept)
	for i := range r.commands {
		st := &r.commands[i]
		if r.compose(st); saveErr != nil {
			st.reply = rueidis.NewErrorResult(saveErr)
		}
	}
}

// run sends the remote operations and handles their outcomes. A flight lands also if the caller's
// context panics: else later callers would wait for it.
func (r *pipelineCall) run() {
	if r.flight != nil {
		defer r.cl.replyFlights.land(r.flight)
	}
	r.c.remote.Batch(r.bounded(), r.items, 0, r.build, r.ran)
}

func (r *pipelineCall) bounded() link.Bound {
	if r.cancel == nil {
		r.limit, r.cancel = r.c.remote.Bound(r.ctx, r.began)
	}
	return r.limit
}

// unbound ends the budget; the next remote operation begins another one.
func (r *pipelineCall) unbound() {
	if r.cancel != nil {
		r.cancel()
		r.cancel = nil
	}
	r.began = r.c.clock.Now()
}

// begin answers the turn with index i, or adds its remote operations.
func (r *pipelineCall) begin(st *commandState, i int) {
	switch st.verb {
	case verbSession, verbReceive, verbExec:
		if st.name == "SELECT" && len(st.args) == 2 && st.args[1] == strconv.Itoa(r.c.opts.Redis.SelectDB) {
			st.decide(replied(r.cl.answers.ok)) // this database is selected already
			return
		}
		st.refuse()
		return
	case verbMulti:
		r.transaction(i)
		return
	}
	if r.cl.only != nil || !r.modelled(st) {
		r.pass(i, 1)
	}
}

// modelled handles a command that goes through the tiers. It returns false if the command does not
// have a form that the tiers know.
func (r *pipelineCall) modelled(st *commandState) bool {
	args := st.args
	switch st.verb {
	case verbGet:
		if len(args) != 2 {
			return false
		}
		r.read(st, 0, args[1])
	case verbMget:
		if len(args) < 2 {
			return false
		}
		st.parts = make([]rueidis.RedisMessage, len(args)-1)
		for i, key := range args[1:] {
			r.read(st, i, key)
		}
	case verbExists:
		if len(args) < 2 {
			return false
		}
		for _, key := range args[1:] {
			r.exists(st, key)
		}
	case verbTTL:
		if len(args) != 2 {
			return false
		}
		r.ttl(st, args[1])
	case verbExpire, verbPersist:
		return r.expire(st)
	case verbCached:
		if !r.caches(st) {
			return false
		}
		r.cached(st)
	default:
		return r.store(st)
	}
	return true
}

// store handles a command that sets or deletes keys. It returns false if the command does not have
// a form that the tiers know.
func (r *pipelineCall) store(st *commandState) bool {
	args := st.args
	switch st.verb {
	case verbSet, verbSetex:
		w, ok := r.parseSet(args)
		if ok {
			r.write(st, w)
		}
		return ok
	case verbMset:
		if len(args) < 3 || len(args)%2 == 0 {
			return false
		}
		for i := 1; i < len(args); i += 2 {
			r.write(st, r.setting(args[i], args[i+1], 0))
		}
		return true
	case verbDel:
		if len(args) < 2 {
			return false
		}
		for _, key := range args[1:] {
			w := &write{key: strings.Clone(key), del: true, deadline: clock.Never}
			if st.name != "DEL" {
				w.verbatim = []string{st.name, w.key}
			}
			r.write(st, w)
		}
		return true
	case verbGetdel:
		if len(args) != 2 {
			return false
		}
		if r.c.routes != nil {
			// GETDEL returns the value that Redis holds and removes it. In the first moments it
			// waits for the connection attempt: otherwise a value that was just written, to be read
			// once, would be lost.
			r.c.remote.AwaitKey(r.ctx, r.now, true, args[1])
		}
		r.write(st, r.deleting(args))
		return true
	}
	return false
}

// setting returns a write that stores a copy of the value.
func (r *pipelineCall) setting(key, text string, ttl time.Duration) *write {
	v := make([]byte, len(text))
	copy(v, text)
	return &write{key: strings.Clone(key), value: v, ttl: ttl, deadline: clock.After(r.now, ttl)}
}

// deleting returns a write that removes the key by sending the command as it was given.
func (r *pipelineCall) deleting(args []string) *write {
	w := &write{key: strings.Clone(args[1]), del: true, deadline: clock.Never, verbatim: cloned(args)}
	w.verbatim[1] = w.key
	return w
}

// cloned copies the arguments. rueidis reuses their slice, and the caller may reuse the memory
// behind the strings.
func cloned(args []string) []string {
	all := make([]string, len(args))
	for i, arg := range args {
		all[i] = strings.Clone(arg)
	}
	return all
}

// decide sets the reply of a turn, unless an earlier part of it failed.
func (st *commandState) decide(reply rueidis.RedisResult) {
	if !st.done {
		st.reply, st.done = reply, true
	}
}

// fail answers the turn with an error that does not come from a server.
func (st *commandState) fail(key string, err error) {
	var known *Error
	if !errors.As(err, &known) && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		err = &Error{Op: strings.ToLower(st.name), Key: key, Tier: Remote, Err: err}
	}
	st.decide(rueidis.NewErrorResult(err))
}

// refuse rejects a command that may not be sent over a shared connection.
func (st *commandState) refuse() {
	var err error
	switch st.verb {
	case verbReceive:
		err = errReceive
	case verbMulti, verbExec:
		err = errTransaction
	default:
		err = whyShared(st.name, st.args)
	}
	st.decide(rueidis.NewErrorResult(&Error{Op: strings.ToLower(st.name), Tier: Remote, Err: err}))
}

// compose builds the reply of a turn whose parts have all succeeded.
func (r *pipelineCall) compose(st *commandState) {
	if st.done {
		return
	}
	switch st.verb {
	case verbMget:
		st.decide(replied(r.cl.answers.list(st.parts)))
	case verbDel, verbExists:
		st.decide(replied(r.cl.answers.number(st.sum)))
	default:
		st.decide(replied(r.cl.answers.ok))
	}
}

// isDirty reports whether a remote operation may change the key. The local state of such a key does
// not show the effects of the earlier commands.
func (r *pipelineCall) isDirty(key string) bool { return r.allDirty || r.dirtyKeys[key] }

func (r *pipelineCall) markDirty(key string) {
	if len(r.commands) == 1 {
		return
	}
	if r.dirtyKeys == nil {
		r.dirtyKeys = map[string]bool{}
	}
	r.dirtyKeys[key] = true
}

func (r *pipelineCall) add(e *remoteOp, s *link.Session) {
	r.items = append(r.items, link.Item{
		Key: e.key, Session: s, Payload: e, Size: e.size(), Stays: e.stays,
		Reads: e.kind == opRead || e.kind == opPass || e.kind == opCached, Transaction: len(e.passed) > 1,
	})
}

// size returns the approximate number of bytes that are sent beside the key.
func (e *remoteOp) size() (n int) {
	if e.change != nil {
		n = len(e.change.value)
	}
	for i := range e.passed {
		for _, arg := range e.passed[i].args {
			n += len(arg)
		}
	}
	return n
}

// build appends the commands of a remote operation.
func (r *pipelineCall) build(b rueidis.Builder, it *link.Item, cmds []rueidis.Completed) []rueidis.Completed {
	e := it.Payload.(*remoteOp)
	switch e.kind {
	case opRead:
		return link.ReadCommands(b, it, cmds)
	case opWrite:
		return r.c.writeCommands(b, e.change, cmds)
	case opAsk:
		if e.command.verb == verbExists {
			return append(cmds, b.Exists().Key(e.key).Build())
		}
		return append(cmds, b.Arbitrary(e.command.name).Keys(e.key).Build())
	case opCached:
		return e.cachedCommands(b, it, cmds)
	case opTouch:
		return append(cmds, b.Arbitrary(e.change.verbatim...).Build(), b.Exists().Key(e.key).Build())
	}
	return e.passCommands(b, cmds)
}

// ran handles the outcome of a remote operation.
func (r *pipelineCall) ran(i int, replies []rueidis.RedisResult, o link.Outcome) {
	e := r.items[i].Payload.(*remoteOp)
	switch e.kind {
	case opRead:
		r.hasRead(e, replies, o)
	case opWrite:
		r.hasWritten(e, replies, o)
	case opAsk:
		r.hasAsked(e, replies, o)
	case opCached:
		r.hasCached(e, replies, o)
	case opTouch:
		r.hasTouched(e, replies, o)
	default:
		r.hasPassed(e, replies, o)
	}
}
