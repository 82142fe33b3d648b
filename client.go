package holdfast

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"
)

// client is a view of a Cache as a rueidis.Client.
type client struct {
	*dropIn
	c      *Cache
	only   *link // of Nodes: its commands go there, and past the tiers; nil for all
	closed atomic.Bool

	listener *listener // of NewClient; nil for none
}

// dropIn is what the views of a Cache share.
type dropIn struct {
	once    sync.Once
	builder rueidis.Builder
	answers *answers
}

// Client is the Cache as a rueidis.Client: a program that is written for one keeps its
// commands and gets both tiers. The call waits for nothing. Each returns a view of its
// own; Close of a view ends that view, whose calls then return rueidis.ErrClosing, and
// not the Cache.
//
// What becomes of a command in Do, DoMulti, DoCache and DoMultiCache:
//
//   - GET, MGET, EXISTS, TTL, PTTL, EXPIRETIME, PEXPIRETIME, SET (plain, EX, PX, EXAT,
//     PXAT, KEEPTTL), SETEX, PSETEX, MSET, DEL, UNLINK, GETDEL, EXPIRE, PEXPIRE, EXPIREAT,
//     PEXPIREAT and PERSIST go through both tiers, as Get, Set, Delete, TTL and Touch do,
//     and have what those promise. While Redis is up the reply is Redis' own. While it is
//     away, reads are answered by what is here, a miss being Redis' nil; writes go to the
//     journal, and their reply says what would have come of what is here. What only Redis
//     can tell, such as EXISTS or TTL of a key that is not here, EXPIRE of one that the
//     journal does not hold, KEEPTTL where the end is not known, is ErrUnavailable.
//     MSET sets one key after the other: others may see it half done.
//   - Every other command goes to Redis as it is, and gets Redis' own reply. Before it is
//     sent, what the journal holds of its keys is replayed; unless it is known to change
//     nothing, no copy of its keys is served afterwards. While Redis is away it returns
//     ErrUnavailable at once. So it does where no answer came in time: then the command
//     may have run, or run late. A Redis that is busy with a script is away, but for SCRIPT
//     KILL, FUNCTION KILL, FUNCTION STATS and SHUTDOWN, which are sent. What a script writes that it does not name is read after
//     it, too, where the server tells of changes, but the journal is not asked for it.
//     Right after New and after a quiet time what only Redis can tell waits for the attempt
//     to reach it, as Add does.
//   - MULTI up to EXEC goes to Redis so, too, in one DoMulti. Alone they are refused, and
//     so is what would change the connection, which all callers share: SELECT, AUTH,
//     HELLO, QUIT, READONLY, WATCH, SUBSCRIBE, MONITOR, CLIENT TRACKING, CLIENT SETNAME and
//     the like. The error says what to do instead: Dedicate has connections for most of
//     them, and Receive for subscriptions. SELECT of the client's own database is OK.
//   - Commands that wait at Redis, such as BLPOP, get connections of their own (a DoMulti
//     that has one goes there as a whole, past the tiers), as do
//     Dedicate, Receive and DoStream: each is dialled when it is needed, and never while
//     Redis is away; that may take up to twice Redis.Dialer.Timeout. They wait for as
//     long as they say, or until ctx ends. When Redis goes away, or is silent for so
//     long that the circuit opens, they fail with ErrUnavailable, and with ErrClosed at
//     Close; Receive is not repeated by itself. In a Dedicated every other command has
//     Options.Timeout, and one without an answer in time ends its connection.
//
// All but those wait for at most Options.Timeout. A DoMulti, or a command of many keys
// that goes through the tiers, is sent in pipelines of at most 256 keys or commands, each
// of which has Options.Timeout, as long as the one before was answered in time. Commands of
// a DoMulti have the effect of a pipeline. In a cluster, commands of several keys that go
// through the tiers may name keys of any slots.
//
// The ttl of DoCache bounds the age of a copy that is served without asking Redis; none
// is served where it is 0. While Redis is away Options.Outage counts instead. Commands
// other than GET, MGET and those above that are in the tiers are not cached.
//
// A reply of more than a million elements, or 1 GiB, is taken for nonsense and ends the
// connection, for a few bytes may claim as much: ask for the elements in parts.
//
// Errors that are not Redis' own are of this package; Redis' own are *rueidis.RedisError.
// A value in a reply may be shared: read it, do not write to its bytes.
func (c *Cache) Client() rueidis.Client {
	c.dropIn.once.Do(func() {
		c.dropIn.builder, c.dropIn.answers = newBuilder(), newAnswers()
	})
	return &client{dropIn: &c.dropIn, c: c}
}

// newBuilder takes a Builder from a rueidis client that has no connection and cannot get
// one: it cannot be had without, and the zero Builder panics.
func newBuilder() rueidis.Builder {
	never, _ := rueidis.NewClient(rueidis.ClientOption{
		InitAddress:       []string{"nowhere:0"},
		ForceSingleClient: true,
		DisableCache:      true,
		DialCtxFn: func(context.Context, string, *net.Dialer, *tls.Config) (net.Conn, error) {
			return nil, errNoPermit
		},
	})
	b := never.B()
	never.Close()
	return b
}

// B returns the builder of commands. In a cluster it does not object to keys of several
// slots: Redis does.
func (cl *client) B() rueidis.Builder { return cl.builder }

// Do writes a hit's answer where it is to be: a RedisResult that is handed from function
// to function is copied each time, which costs as much as finding the key's hash.
func (cl *client) Do(ctx context.Context, cmd rueidis.Completed) (res rueidis.RedisResult) {
	if key, ok := cl.plainGet(cmd); ok {
		if e := cl.hit(ctx, key); e != nil {
			cl.answers.answer(&res, e.bytes())
			return res
		}
		return cl.get(ctx, key, false, 0)
	}
	return cl.do(ctx, []turn{{cmd: cmd}})[0]
}

func (cl *client) DoCache(ctx context.Context, cmd rueidis.Cacheable, ttl time.Duration) rueidis.RedisResult {
	plain := rueidis.Completed(cmd)
	if key, ok := cl.plainGet(plain); ok {
		return cl.get(ctx, key, true, ttl)
	}
	return cl.do(ctx, []turn{{cmd: plain, cache: true, cached: ttl}})[0]
}

// plainGet is the key of a GET that goes through the tiers.
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
	turns := make([]turn, len(multi))
	for i, cmd := range multi {
		turns[i].cmd = cmd
	}
	return cl.do(ctx, turns)
}

func (cl *client) DoMultiCache(ctx context.Context, multi ...rueidis.CacheableTTL) []rueidis.RedisResult {
	turns := make([]turn, len(multi))
	for i, m := range multi {
		turns[i] = turn{cmd: rueidis.Completed(m.Cmd), cache: true, cached: m.TTL}
	}
	return cl.do(ctx, turns)
}

// hit is the key's fresh copy, nil where there is none, or there is anything else to say.
func (cl *client) hit(ctx context.Context, key string) *entry {
	c := cl.c
	lane, open := c.fence.enter()
	if cl.closed.Load() || enterable(ctx, open) != nil {
		lane.leave()
		return nil
	}
	e, fresh := c.look(c.local.hash(key), key, c.clock.now())
	if !fresh {
		lane.leave()
		return nil
	}
	lane.hit()
	return e
}

// get is Do and DoCache of the most frequent command.
func (cl *client) get(ctx context.Context, key string, cache bool, ttl time.Duration) rueidis.RedisResult {
	if cl.closed.Load() {
		return rueidis.NewErrorResult(rueidis.ErrClosing)
	}
	c := cl.c
	lane, open := c.fence.enter()
	if err := enterable(ctx, open); err != nil {
		lane.leave()
		return rueidis.NewErrorResult(err)
	}
	h, now := c.local.hash(key), c.clock.now()
	e, fresh := c.look(h, key, now)
	if fresh && (!cache || young(e, now, ttl)) {
		lane.hit()
		m := cl.answers.text(e.bytes())
		if cache {
			got := Entry{Tier: Local, TTL: left(now, e.expires.Load())}
			cl.answers.cached(&m, got, e, now, ttl)
		}
		return replied(m)
	}
	defer lane.leave()
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
	var own *rueidis.RedisError
	if errors.As(err, &own) {
		return refusal(own)
	}
	return rueidis.NewErrorResult(err)
}

// do takes the commands of one call through the tiers.
func (cl *client) do(ctx context.Context, turns []turn) []rueidis.RedisResult {
	if len(turns) == 0 {
		return nil
	}
	if cl.closed.Load() {
		return failed(turns, rueidis.ErrClosing)
	}
	waits := false
	for i := range turns {
		st := &turns[i]
		if st.cmd.IsEmpty() || st.cmd.Commands()[0] == "" {
			return failed(turns, errNoCommand)
		}
		st.args = st.cmd.Commands()
		st.name = upper(st.args[0])
		st.command = commandOf(st.name, st.args)
		waits = waits || st.cmd.IsBlock() || st.verb == verbBlock
	}
	if waits {
		cmds := make([]rueidis.Completed, len(turns))
		for i := range turns {
			cmds[i] = turns[i].plain(cl.builder)
		}
		return cl.ownDo(ctx, cmds...)
	}
	c := cl.c
	lane, open := c.fence.enter()
	defer lane.leave()
	if err := enterable(ctx, open); err != nil {
		return failed(turns, err)
	}
	now := c.clock.now()
	r := &call{cl: cl, c: c, ctx: ctx, now: now, began: now, turns: turns}
	r.all()
	replies := make([]rueidis.RedisResult, len(turns))
	for i := range turns {
		replies[i] = turns[i].reply
	}
	return replies
}

// plain is the command as it may be sent. One for DoCache may have rueidis look for a cache
// of its own, which is not there, on the goroutine that reads the connection.
func (st *turn) plain(b rueidis.Builder) rueidis.Completed {
	if st.cache {
		return b.Arbitrary(st.args...).Build()
	}
	return st.cmd
}

func failed(turns []turn, err error) []rueidis.RedisResult {
	replies := make([]rueidis.RedisResult, len(turns))
	for i := range replies {
		replies[i] = rueidis.NewErrorResult(err)
	}
	return replies
}

// before makes ready for commands that go to Redis beside the tiers, with these
// arguments: Redis gets what the journal has of their keys, and where they may write,
// nothing that is known of the keys is served any more. The caller is within the fence.
// It waits for at most what is left of the call's budget. The error is ErrUnavailable or
// the context's own; then nothing may be sent.
func (cl *client) before(ctx bound, args [][]string) error {
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

// after is told that the commands were sent, whatever became of them.
func (cl *client) after(args [][]string) {
	for _, a := range args {
		cl.over(passing(a), nil)
	}
}

// passing is a command of which there are only the arguments.
func passing(args []string) *passed {
	if len(args) == 0 || args[0] == "" {
		return &passed{command: command{reads: true, where: keyless}}
	}
	p := &passed{command: commandOf(upper(args[0]), args), args: args}
	p.keys = p.command.keys(args)
	return p
}

// Nodes returns a view of each server. In a cluster a view's commands go to its node and
// past the tiers, and a redirection is their answer; elsewhere it is like the client.
func (cl *client) Nodes() map[string]rueidis.Client {
	nodes := map[string]rueidis.Client{}
	switch routes := cl.c.routes; {
	case routes == nil:
	case routes.cluster.Load() != nil:
		for _, l := range routes.cluster.Load().masters() {
			nodes[l.addr] = &client{dropIn: cl.dropIn, c: cl.c, only: l}
		}
	default:
		addr := cl.c.opts.Redis.InitAddress[0]
		if s := routes.home.gate.Load(); s != nil {
			addr = s.addr
		}
		nodes[addr] = &client{dropIn: cl.dropIn, c: cl.c}
	}
	return nodes
}

// Mode says what Redis is, as far as that is known. While the first attempt to reach it is
// under way it waits for that, for at most Options.Timeout: the one address of the options
// may be a node of a cluster. Where Redis was not reached yet, it is taken for one server.
func (cl *client) Mode() rueidis.ClientMode {
	c := cl.c
	if c.opts.mode() == ModeAuto && c.routes != nil && c.routes.cluster.Load() == nil {
		c.awaitLink(context.Background(), c.clock.now(), true, func() *link { return c.routes.home })
	}
	switch {
	case c.opts.mode() == ModeSentinel:
		return rueidis.ClientModeSentinel
	case c.opts.mode() == ModeCluster, c.routes != nil && c.routes.cluster.Load() != nil:
		return rueidis.ClientModeCluster
	}
	return rueidis.ClientModeStandalone
}

// Close ends the view. The Cache goes on.
func (cl *client) Close() {
	cl.closed.Store(true)
	cl.listener.end()
}
