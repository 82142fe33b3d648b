package goredis

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"
)

// hook implements redis.Hook. It keeps no state of a command, because go-redis wraps it
// anew around each Conn and Tx.
type hook struct {
	cache   *holdfast.Cache
	client  rueidis.Client // the cache's own, which returns Redis' replies
	timeout time.Duration
	db      int
	noTTL   bool // the cache has no DefaultTTL
	nodes   bool // the client is one of a cluster, and sends by the clients of nodes
	cached  bool // CacheReads is set
	resp3   bool // of the client and of the cache
	started time.Time
}

var (
	errTransaction = errors.New("goredis: MULTI, EXEC and DISCARD by themselves are not supported: use TxPipelined or Watch")
	errReset       = errors.New("goredis: RESET is not supported: the connection would be one of database 0, and of the default user")
	errEmpty       = errors.New("goredis: the command is empty")
)

// ProcessHook implements redis.Hook.
func (h *hook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		switch cmd := cmd.(type) {
		case *redis.StringCmd:
			if key, ok := plainGet(cmd); ok {
				return h.get(ctx, cmd, key)
			}
		case *redis.StatusCmd:
			if s, ok := h.plainSet(cmd); ok {
				return h.set(ctx, cmd, s)
			}
		case *redis.SliceCmd:
			if keys, ok := plainMGet(cmd); ok && h.mget(ctx, cmd, keys) {
				return nil
			}
		}
		err := h.process(ctx, cmd, next)
		cmd.SetErr(err)
		return err
	}
}

func (h *hook) process(ctx context.Context, cmd redis.Cmder, next redis.ProcessHook) error {
	c, err := h.read(cmd, false)
	if err != nil {
		return err
	}
	switch c.class {
	case served:
		return c.shape.answer(cmd, h.client.Do(ctx, h.build(c)))
	case cached:
		res := h.client.DoCache(ctx, rueidis.Cacheable(h.build(c)), anyAge)
		if err := c.shape.answer(cmd, res); !errors.Is(err, errMisfit) {
			return err
		}
	}
	bounded, cancel := h.bound(ctx, c.class == waiting)
	defer cancel()
	if !h.reachesBusy(c) {
		if err := h.before(bounded, ctx, c.keys(), c.write); err != nil {
			return err
		}
	}
	err = next(h.sent(bounded), cmd)
	h.after(c)
	return verdict(ctx, err)
}

// command is a go-redis command with its spec and encoded arguments.
type command struct {
	spec
	args []string
}

func (c *command) keys() []string { return c.find(c.args) }

// byCache reports whether the cache answers the command.
func (c *command) byCache() bool { return c.class == served || c.class == cached }

// read returns the spec and the arguments of a command, or an error if it is refused. For
// a command that go-redis sends it encodes only the arguments up to the keys, because the
// rest may be large; unless all is set.
func (h *hook) read(cmd redis.Cmder, all bool) (command, error) {
	name, args := cmd.Name(), cmd.Args()
	c := command{spec: specOf(name)}
	if len(args) > 1 && (name == "script" || name == "function") {
		sub, _ := encodeArg(args[1])
		c.spec = ofSubcommand(c.spec, name, sub)
	}
	if c.class == cached && !h.cached {
		c.class = c.without
	}
	if c.class == served && !c.shape.fits(cmd) {
		c.class = through
	}
	if !c.byCache() && !all {
		args = args[:c.telling(len(args))]
	}
	var err error
	if c.args, err = encode(args); err != nil {
		return c, err
	}
	if c.class == cached {
		// In a pipeline it is too late to send a command whose reply does not fit.
		if c.shape = c.shapeOf(c.args); !h.fits(cmd, c.shape) || all && c.shape == document {
			c.class = through
		}
	}
	switch {
	case len(c.args) == 0:
		return c, errEmpty
	case c.class == refused && name == "reset":
		return c, errReset
	case c.class == refused:
		return c, errTransaction
	case name == "select" && (len(c.args) != 2 || c.args[1] != fmt.Sprint(h.db)):
		return c, fmt.Errorf("goredis: the cache is one of database %d: use another client for others", h.db)
	case (name == "xread" || name == "xreadgroup") && !blocks(c.args):
		c.class = through
	}
	return c, nil
}

// fits reports whether the cache can answer a cached command of this shape.
func (h *hook) fits(cmd redis.Cmder, s shape) bool {
	if _, raw := cmd.(*redis.Cmd); raw && s.versioned() && !h.resp3 {
		return false
	}
	return s.fits(cmd)
}

// blocks reports whether an XREAD has the option BLOCK.
func blocks(args []string) bool {
	for _, arg := range args[1:] {
		if strings.EqualFold(arg, "streams") {
			return false
		} else if strings.EqualFold(arg, "block") {
			return true
		}
	}
	return false
}

// anyAge is longer than the age of any copy.
const anyAge = time.Duration(math.MaxInt64)

func (h *hook) build(c command) rueidis.Completed {
	if c.class == cached {
		c.args[0] = c.upper
	}
	return h.client.B().Arbitrary(c.args...).Build()
}

// bound adds the budget to the context, unless Redis may block.
func (h *hook) bound(ctx context.Context, blocking bool) (context.Context, context.CancelFunc) {
	if blocking {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, h.timeout)
}

// before prepares a command that go-redis sends: it checks that Redis is there, replays
// the journaled writes of the keys, and invalidates the keys if the command may write.
func (h *hook) before(bounded, ctx context.Context, keys []string, write bool) error {
	err := h.there(bounded, keys)
	if err != nil {
		return verdict(ctx, err)
	}
	if write {
		return h.cache.Invalidate(keys...)
	}
	return nil
}

// reachesBusy reports whether a command is sent although the cache has closed its gate:
// it asks about the script with which Redis is busy, or is part of a handshake for that.
func (h *hook) reachesBusy(c command) bool {
	return (c.class == session || c.tells) && !up(h.cache.Health(), "") && busy(h.cache.Health())
}

// busy reports whether a server is known to be busy with a script.
func busy(health holdfast.Health) bool {
	for _, s := range health.Shards {
		if busyError(s.LastError) && !answers(s.State) {
			return true
		}
	}
	return len(health.Shards) == 0 && busyError(health.LastError) && !answers(health.State)
}

func busyError(err error) bool {
	var said *rueidis.RedisError
	return errors.As(err, &said) && strings.HasPrefix(said.Error(), "BUSY ")
}

// there returns nil if Redis is there for the keys. If the cache is still connecting for
// the first time, it waits for that until one Timeout after Attach.
func (h *hook) there(ctx context.Context, keys []string) error {
	err := h.delivered(ctx, keys)
	if err == nil || !errors.Is(err, holdfast.ErrUnavailable) {
		return err
	}
	health := h.cache.Health()
	if len(keys) == 0 && anyUp(health) {
		return nil // any node of the cluster will do
	}
	rest := h.timeout - time.Since(h.started)
	if health.State != holdfast.Connecting || rest <= 0 {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, rest)
	defer cancel()
	if h.cache.WaitReady(wait) != nil {
		return err
	}
	return h.delivered(ctx, keys)
}

// delivered returns nil where Redis is there and has what the cache wrote to the keys.
func (h *hook) delivered(ctx context.Context, keys []string) error {
	if len(keys) == 0 {
		return h.cache.Available(ctx)
	}
	return h.cache.Deliver(ctx, keys...)
}

// after invalidates the keys of a command that may have run.
func (h *hook) after(c command) {
	if c.write {
		_ = h.cache.Invalidate(c.keys()...) // a closed cache has no copies
	}
}

// DialHook implements redis.Hook.
func (h *hook) DialHook(next redis.DialHook) redis.DialHook { return dialGuard{h}.DialHook(next) }

// dialGuard keeps go-redis from dialling a server that the cache knows to be away.
type dialGuard struct{ hook *hook }

func (g dialGuard) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		// Not by Available, which would keep the cache looking for a Redis that nobody but a
		// pool asks for.
		// One that is busy is there; no command is sent to it that it would not run.
		if h := g.hook.cache.Health(); !up(h, addr) && !busy(h) {
			return nil, holdfast.ErrUnavailable
		}
		return next(ctx, network, addr)
	}
}

func (dialGuard) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }

func (dialGuard) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// nodeHook is the hook of a client of a cluster's node. The cluster's client sends its
// commands by it, after its own hook. A transaction with WATCH begins here, and so do the
// commands of ForEachMaster and its kin.
type nodeHook struct{ dialGuard }

func (n nodeHook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	own := n.hook.ProcessHook(next)
	return func(ctx context.Context, cmd redis.Cmder) error {
		if isSent(ctx) || !n.hook.hasKeys(cmd) {
			return next(ctx, cmd)
		}
		return own(ctx, cmd)
	}
}

func (n nodeHook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	own := n.hook.ProcessPipelineHook(next)
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if isSent(ctx) || !slices.ContainsFunc(cmds, n.hook.hasKeys) {
			return next(ctx, cmds)
		}
		return own(ctx, cmds)
	}
}

// hasKeys reports whether a command has keys. One that is refused counts as such.
func (h *hook) hasKeys(cmd redis.Cmder) bool {
	c, err := h.read(cmd, false)
	return err != nil || len(c.keys()) > 0
}

// sentKey is the key of a context in which a hook sends commands.
type sentKey struct{}

// sent marks a context for the hook of the node.
func (h *hook) sent(ctx context.Context) context.Context {
	if !h.nodes {
		return ctx
	}
	return context.WithValue(ctx, sentKey{}, true)
}

func isSent(ctx context.Context) bool { return ctx.Value(sentKey{}) != nil }

// up reports whether the server at addr is known to be there.
func up(h holdfast.Health, addr string) bool {
	for _, s := range h.Shards {
		if canonical(s.Addr) == canonical(addr) {
			return answers(s.State)
		}
	}
	return anyUp(h) // a replica, or the cluster under another name
}

func anyUp(h holdfast.Health) bool {
	for _, s := range h.Shards {
		if answers(s.State) {
			return true
		}
	}
	return len(h.Shards) == 0 && answers(h.State)
}

func answers(s holdfast.State) bool { return s == holdfast.Up || s == holdfast.ReadOnly }
