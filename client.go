package holdfast

import (
	"context"
	"errors"
	"math"
	"sync/atomic"
	"time"

	"github.com/holdfast-cache/holdfast/internal/keyhash"
	"github.com/holdfast-cache/holdfast/internal/link"
	"github.com/holdfast-cache/holdfast/internal/local"
	"github.com/redis/rueidis"
)

// client is a view of a Cache as a rueidis.Client.
type client struct {
	*dropIn
	c      *Cache
	only   *link.Link // a view of Nodes: its commands go to this link, past the tiers; else nil
	closed atomic.Bool

	listener *listener // set by NewClient; nil for none
}

// dropIn is the state that all views of a Cache share.
type dropIn struct {
	builder rueidis.Builder
	answers *answers
	recycle *recycler
	unix    unixClock

	replyFlights replyFlights
}

// Client returns the Cache as a rueidis.Client: a program that is written for rueidis keeps its
// commands and gets both tiers. The call does not block. Each call returns a new view. Close of a
// view ends that view only: its calls then return rueidis.ErrClosing, and the Cache goes on.
//
// How Do, DoMulti, DoCache and DoMultiCache handle a command:
//
//   - GET, MGET, EXISTS, TTL, PTTL, EXPIRETIME, PEXPIRETIME, SET (plain, EX, PX, EXAT, PXAT,
//     KEEPTTL), SETEX, PSETEX, MSET, DEL, UNLINK, GETDEL, EXPIRE, PEXPIRE, EXPIREAT, PEXPIREAT and
//     PERSIST go through both tiers, with the guarantees of Get, Set, Delete, TTL and Touch. While
//     Redis is up the reply is Redis' own. While Redis is away, reads are answered from the local
//     tier and the journal, and a miss is Redis' nil; writes go to the journal, and their reply is
//     computed from the local state. A command that only Redis can answer then returns
//     ErrUnavailable: EXISTS or TTL of a key that is not held locally, EXPIRE of a key that the
//     journal does not hold, KEEPTTL of a key whose expiry is not known. MSET sets one key after
//     the other: other clients may see it half done.
//   - Every other command is passed to Redis unchanged and gets Redis' own reply. Before it is
//     sent, the journaled writes of its keys are replayed. Unless the command is known to be
//     read-only, copies of its keys are not served afterwards. While Redis is away the command
//     returns ErrUnavailable at once. It also returns ErrUnavailable when no answer came in time:
//     then the command may have run, or may run late. A Redis that is busy with a script counts as
//     away, except for SCRIPT KILL, FUNCTION KILL, FUNCTION STATS and SHUTDOWN, which are sent.
//     Keys that a script writes without naming them are read anew after the script if the server
//     reports changes, but journaled writes of such keys are not replayed first. Right after New
//     and after a quiet time, a command that only Redis can answer waits for the connection
//     attempt, as Add does.
//   - MULTI up to EXEC is passed to Redis in the same way if it is in one DoMulti. A MULTI or EXEC
//     without the other is refused. Commands that would change the connection, which all callers
//     share, are refused too: SELECT, AUTH, HELLO, QUIT, READONLY, WATCH, SUBSCRIBE, MONITOR,
//     CLIENT TRACKING, CLIENT SETNAME and the like. The error says which call to use instead:
//     Dedicate for most of them, Receive for subscriptions. SELECT of the client's own database is
//     answered with OK.
//   - Commands that block at the server, such as BLPOP, use dedicated connections, and so do
//     Dedicate, Receive and DoStream. A DoMulti that contains a blocking command goes to such a
//     connection as a whole, past the tiers. A connection is dialled when it is needed, and never
//     while Redis is away. A call waits for at most Redis.Dialer.Timeout until it may dial; the
//     dial and the handshake then take up to twice that, and Redis.AuthCredentialsFn up to ten
//     seconds. A blocking command waits for as long as its own timeout says, or until ctx ends.
//     When Redis goes away, or is silent for so long that the circuit opens, the command fails with
//     ErrUnavailable, and at Close with ErrClosed. Receive does not subscribe again by itself. In a
//     Dedicated every other command has Options.Timeout, and a command without an answer in time
//     ends its connection.
//
// All other commands wait for at most Options.Timeout. A DoMulti, or a command of many keys that
// goes through the tiers, is sent in pipelines of at most 256 keys or commands. Each pipeline has
// Options.Timeout, as long as the one before was answered in time. The commands of a DoMulti take
// effect in order, as in one pipeline. In a cluster, a command of several keys that goes through
// the tiers may name keys of different slots.
//
// The ttl of DoCache bounds the age of a reply that is served without asking Redis; with 0 none is
// served. While Redis is away Options.Outage applies instead. Beside GET and MGET, DoCache and
// DoMultiCache serve Redis' replies to read commands of one key from memory: reads of hashes, lists,
// sets, sorted sets, bitmaps, geo sets and streams, parts of strings, TYPE, and the reads of JSON,
// Bloom filters and their kin. So do Do and DoMulti with Options.Local.CacheDo. A reply is as fresh
// as a copy of a value: an invalidation of its key, any write of this client to the key, or a loss of
// the invalidation stream ends all replies of the key. The answer for an absent key is kept, too; an
// error is not. Equal reads that are under way share one command, except for those with a ttl of 0.
// While Redis is away, and when its answer does not come in time, a reply that was kept is served within
// Options.Outage; without one the command returns ErrUnavailable. Replies count in
// Options.Local.MaxBytes; those of one key take at most an eighth of it. Commands whose reply changes by
// itself or by chance, scripts, SORT, SCAN and its kin, and commands that may write are not kept. A reply
// that shows a field of a hash is not served past the end of the field (HEXPIRE); HLEN and HVALS are not
// kept by a server with such ends.
//
// A reply of more than a million elements, or 1 GiB, is treated as invalid and ends the connection,
// because a few bytes can announce that much: ask for the elements in parts.
//
// Redis' own errors are of type *rueidis.RedisError; all others are errors of this package. A value
// in a reply may be shared: read it, do not write to its bytes.
func (c *Cache) Client() rueidis.Client {
	d, _ := c.dropIn.Load().(*dropIn)
	if d == nil {
		// A Builder can only be taken from a client, and the zero Builder panics.
		r := newRecycler()
		c.dropIn.CompareAndSwap(nil, &dropIn{
			builder: r.closed.B(), answers: newAnswers(), recycle: r, unix: unixClock{clock: c.clock},
		})
		d = c.dropIn.Load().(*dropIn)
	}
	return &client{dropIn: d, c: c}
}

// B returns the builder of commands. In a cluster it does not reject keys of several slots; Redis
// does.
func (cl *client) B() rueidis.Builder { return cl.builder }

// Do writes the answer of a hit directly into its named result. A RedisResult that is passed from
// function to function is copied each time, which costs as much as the hash of the key.
func (cl *client) Do(ctx context.Context, cmd rueidis.Completed) (res rueidis.RedisResult) {
	key, ok := cl.plainGet(cmd)
	if !ok {
		if cl.cachedHit(ctx, givenCommand{cmd: cmd}, &res) {
			cl.recycle.put(cmd, &res)
			return res
		}
		if text, ttl, ok := cl.plainSet(cmd); ok {
			return cl.set(ctx, cmd, text, ttl)
		}
		return cl.do(ctx, []commandState{{givenCommand: givenCommand{cmd: cmd}}})[0]
	}
	if e := cl.hit(ctx, key); e != nil {
		cl.answers.answer(&res, e.Bytes())
	} else {
		res = cl.get(ctx, key, cl.c.clock.Now(), false, 0)
	}
	cl.recycle.put(cmd, &res)
	return res
}

func (cl *client) DoCache(ctx context.Context, cmd rueidis.Cacheable, ttl time.Duration) (res rueidis.RedisResult) {
	plain := rueidis.Completed(cmd)
	key, ok := cl.plainGet(plain)
	if !ok {
		given := givenCommand{cmd: plain, cache: true, cached: ttl}
		if cl.cachedHit(ctx, given, &res) {
			cl.recycle.put(plain, &res)
			return res
		}
		return cl.do(ctx, []commandState{{givenCommand: given}})[0]
	}
	if e, now := cl.youngHit(ctx, key, ttl); e != nil {
		cl.answers.answerHit(&res, e.Bytes(), cl.unix.millis(now, cachedUntil(e, ttl)))
	} else {
		res = cl.get(ctx, key, cl.c.clock.Now(), true, ttl)
	}
	cl.recycle.put(plain, &res)
	return res
}

// plainGet returns the key of a GET that goes through the tiers.
func (cl *client) plainGet(cmd rueidis.Completed) (key string, ok bool) {
	if cmd.IsEmpty() || cl.only != nil {
		return "", false
	}
	args := cmd.Commands()
	if len(args) != 2 || args[0] != "GET" {
		return "", false
	}
	return args[1], true
}

func (cl *client) DoMulti(ctx context.Context, multi ...rueidis.Completed) []rueidis.RedisResult {
	return cl.doMulti(ctx, len(multi), func(i int) givenCommand { return givenCommand{cmd: multi[i]} })
}

func (cl *client) DoMultiCache(ctx context.Context, multi ...rueidis.CacheableTTL) []rueidis.RedisResult {
	return cl.doMulti(ctx, len(multi), func(i int) givenCommand {
		return givenCommand{cmd: rueidis.Completed(multi[i].Cmd), cache: true, cached: multi[i].TTL}
	})
}

func (cl *client) doMulti(ctx context.Context, n int, given func(int) givenCommand) []rueidis.RedisResult {
	replies := cl.leadingHits(ctx, n, given)
	if len(replies) == n {
		return replies
	}
	turns := make([]commandState, n-len(replies))
	for i := range turns {
		turns[i].givenCommand = given(len(replies) + i)
	}
	rest := cl.do(ctx, turns)
	if replies == nil {
		return rest
	}
	return append(replies, rest...)
}

// leadingHits answers the first commands of a batch of reads, up to one that is no hit. It answers
// none of a batch that has another command, which may take the whole batch past the tiers.
func (cl *client) leadingHits(ctx context.Context, n int, given func(int) givenCommand) (replies []rueidis.RedisResult) {
	for i := range n {
		st := given(i)
		if _, ok := cl.plainGet(st.cmd); !ok && !cl.cachedRead(st) {
			return nil
		}
	}
	for i := range n {
		st := given(i)
		var res rueidis.RedisResult
		if !cl.answerHit(ctx, st, &res) {
			break
		}
		if replies == nil {
			replies = make([]rueidis.RedisResult, 0, n)
		}
		replies = append(replies, res)
		cl.recycle.put(st.cmd, &replies[i])
	}
	return replies
}

// answerHit answers one read if it is a hit.
func (cl *client) answerHit(ctx context.Context, st givenCommand, res *rueidis.RedisResult) bool {
	key, ok := cl.plainGet(st.cmd)
	if !ok {
		return cl.cachedHit(ctx, st, res)
	}
	ttl := anyAge
	if st.cache {
		ttl = st.cached
	}
	e, now := cl.youngHit(ctx, key, ttl)
	switch {
	case e == nil:
		return false
	case st.cache:
		cl.answers.answerHit(res, e.Bytes(), cl.unix.millis(now, cachedUntil(e, ttl)))
	default:
		cl.answers.answer(res, e.Bytes())
	}
	return true
}

// anyAge is longer than the age of any copy.
const anyAge = time.Duration(math.MaxInt64)

// hit returns the fresh copy of the key. It returns nil where there is none, or where the view or
// the Cache is closed or ctx has ended.
func (cl *client) hit(ctx context.Context, key string) *local.Entry {
	c := cl.c
	if cl.closed.Load() || enterable(ctx, !c.inflight.Closed.Load()) != nil {
		return nil
	}
	h := c.local.Hash(key)
	e, fresh := c.lookCoarse(h, key)
	if !fresh {
		return nil
	}
	c.local.CountHit(h)
	return e
}

// youngHit is hit for a copy that is younger than ttl. It returns the present time, too.
func (cl *client) youngHit(ctx context.Context, key string, ttl time.Duration) (e *local.Entry, now int64) {
	c := cl.c
	if cl.closed.Load() || enterable(ctx, !c.inflight.Closed.Load()) != nil {
		return nil, 0
	}
	h := c.local.Hash(key)
	if cl.journaledNow(h, key) {
		return nil, 0
	}
	if e = c.local.Get(h); e == nil {
		return nil, 0
	}
	now, fresh := c.before(min(e.FreshEnd(), youngUntil(e, ttl)))
	if !fresh {
		return nil, 0
	}
	c.local.CountHit(h)
	return e, now
}

// journaledNow reports whether the journal has the key. It reads the clock only if it has any.
func (cl *client) journaledNow(h keyhash.Hash, key string) bool {
	if cl.c.journal.Keys.Load() == 0 {
		return false
	}
	_, inJournal := cl.c.journal.Get(h, key, cl.c.clock.Now())
	return inJournal
}

// get answers a GET that is no hit.
func (cl *client) get(ctx context.Context, key string, now int64, cache bool, ttl time.Duration) rueidis.RedisResult {
	if cl.closed.Load() {
		return rueidis.NewErrorResult(rueidis.ErrClosing)
	}
	c := cl.c
	guard, open := c.inflight.Enter()
	defer guard.Leave()
	if err := enterable(ctx, open); err != nil {
		return rueidis.NewErrorResult(err)
	}
	h := c.local.Hash(key)
	c.local.CountRead(h)
	e, _ := c.look(h, key, now)
	got, err := c.read(ctx, "get", h, key, now, e)
	c.counted(got, err)
	switch {
	case err == nil:
		m := cl.answers.text(got.Value)
		if cache {
			cl.answers.cached(&m, got, nil, now, ttl)
		}
		return replied(m)
	case err == ErrMiss:
		return replied(cl.answers.null)
	}
	var redisErr *rueidis.RedisError
	if errors.As(err, &redisErr) {
		return refusal(redisErr)
	}
	return rueidis.NewErrorResult(err)
}

// do runs the commands of one call through the tiers.
func (cl *client) do(ctx context.Context, turns []commandState) []rueidis.RedisResult {
	if len(turns) == 0 {
		return nil
	}
	if cl.closed.Load() {
		return failed(turns, rueidis.ErrClosing)
	}
	blocking := false
	for i := range turns {
		st := &turns[i]
		if st.cmd.IsEmpty() || st.cmd.Commands()[0] == "" {
			return failed(turns, errNoCommand)
		}
		st.args = st.cmd.Commands()
		st.name = upper(st.args[0])
		st.command = commandOf(st.name, st.args)
		blocking = blocking || st.cmd.IsBlock() || st.verb == verbBlock
	}
	if blocking {
		cmds := make([]rueidis.Completed, len(turns))
		for i := range turns {
			cmds[i] = turns[i].plain(cl.builder)
		}
		return cl.ownDo(ctx, cmds...)
	}
	c := cl.c
	guard, open := c.inflight.Enter()
	defer guard.Leave()
	if err := enterable(ctx, open); err != nil {
		return failed(turns, err)
	}
	now := c.clock.Now()
	r := &pipelineCall{cl: cl, c: c, ctx: ctx, now: now, began: now, commands: turns}
	r.all()
	replies := make([]rueidis.RedisResult, len(turns))
	for i := range turns {
		st := &turns[i]
		replies[i] = st.reply
		if !st.sent {
			cl.recycle.put(st.cmd, &replies[i])
		}
	}
	return replies
}

// plain returns the command in a form that may be sent. A command built for DoCache could make
// rueidis use its own client-side cache, which does not exist here, on the goroutine that reads the
// connection.
func (st *commandState) plain(b rueidis.Builder) rueidis.Completed {
	if st.cache {
		return b.Arbitrary(st.args...).Build()
	}
	return st.cmd
}

func failed(turns []commandState, err error) []rueidis.RedisResult {
	replies := make([]rueidis.RedisResult, len(turns))
	for i := range replies {
		replies[i] = rueidis.NewErrorResult(err)
	}
	return replies
}

// before prepares the keys of commands that bypass the tiers: journaled writes of the keys are
// replayed, and where a command may write, the local copies of its keys are dropped. The caller has
// entered the call gate. before blocks for at most the rest of the call's budget. It returns
// ErrUnavailable or the error of the context; on an error nothing may be sent.
func (cl *client) before(ctx link.Bound, args [][]string) error {
	if cl.c.routes == nil {
		return ErrUnavailable
	}
	for _, a := range args {
		if err := cl.ready(ctx, passing(a)); err != nil {
			return err
		}
	}
	return nil
}

// after is called once the commands were sent, whether or not they were answered.
func (cl *client) after(args [][]string) {
	for _, a := range args {
		cl.over(passing(a), nil)
	}
}

// passing describes a command of which only the arguments are known.
func passing(args []string) *passed {
	if len(args) == 0 || args[0] == "" {
		return &passed{command: command{reads: true, where: keyless}}
	}
	p := &passed{command: commandOf(upper(args[0]), args), args: args}
	p.keys = p.command.keys(args)
	return p
}

// Nodes returns a view for each server. In a cluster the commands of a view go to its node, past
// the tiers, and a redirection is returned as their answer. Without a cluster the only view is
// equivalent to the client.
func (cl *client) Nodes() map[string]rueidis.Client {
	nodes := map[string]rueidis.Client{}
	switch router := cl.c.routes; {
	case router == nil:
	case router.Cluster.Load() != nil:
		for _, l := range router.Cluster.Load().Masters() {
			nodes[l.Addr] = &client{dropIn: cl.dropIn, c: cl.c, only: l}
		}
	default:
		addr := cl.c.opts.Redis.InitAddress[0]
		if s := router.SeedLink.Gate.Load(); s != nil {
			addr = s.Addr
		}
		nodes[addr] = &client{dropIn: cl.dropIn, c: cl.c}
	}
	return nodes
}

// Mode returns the topology of Redis as far as it is known. While the first connection attempt is
// under way it waits for the attempt, for at most Options.Timeout, because the one address of the
// options may be a node of a cluster. If Redis was not reached yet, the answer is standalone.
func (cl *client) Mode() rueidis.ClientMode {
	c := cl.c
	if c.opts.mode() == ModeAuto && c.routes != nil && c.routes.Cluster.Load() == nil {
		c.remote.AwaitLink(context.Background(), c.clock.Now(), true, func() *link.Link { return c.routes.SeedLink })
	}
	switch {
	case c.opts.mode() == ModeSentinel:
		return rueidis.ClientModeSentinel
	case c.opts.mode() == ModeCluster, c.routes != nil && c.routes.Cluster.Load() != nil:
		return rueidis.ClientModeCluster
	}
	return rueidis.ClientModeStandalone
}

// Close ends the view. The Cache goes on.
func (cl *client) Close() {
	cl.closed.Store(true)
	cl.listener.end()
}
