package holdfast

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"

	"github.com/redis/rueidis"
)

// What of a rueidis.Client needs a connection of its own. None of it waits for a Redis
// that is away: ErrUnavailable, at once, also for what is under way when Redis goes.

// Dedicated runs fn with a connection of its own; see Dedicate.
func (cl *client) Dedicated(fn func(rueidis.DedicatedClient) error) error {
	d := &dedicated{cl: cl}
	defer d.release()
	return fn(d)
}

// Dedicate returns a connection of its own. It is dialled by the first command, which
// in a cluster must have a key: the rest go where that is. A command waits for Redis for
// at most Options.Timeout, one that blocks for as long as it says, and Receive until its
// context ends. One that gets no answer ends the connection, for it cannot be told what
// of a transaction was done. What is written by it is invalidated in the local tier, in a
// transaction by its EXEC. Where Redis goes away, everything fails with ErrUnavailable,
// also what blocks.
func (cl *client) Dedicate() (rueidis.DedicatedClient, func()) {
	d := &dedicated{cl: cl}
	return d, d.release
}

// Receive subscribes, on a connection of its own, and calls fn with each message. It
// returns nil when the server ends the subscription, and otherwise when ctx ends, or
// Redis is away: then with ErrUnavailable, and is not repeated by itself. A server that does
// not speak RESP3 cannot be subscribed to: then the error is another one, and stays.
func (cl *client) Receive(ctx context.Context, subscribe rueidis.Completed, fn func(msg rueidis.PubSubMessage)) error {
	d := &dedicated{cl: cl, listens: true}
	defer d.release()
	return d.Receive(ctx, subscribe, fn)
}

// DoStream sends the command by a connection of its own, from which its reply is read
// by the caller: within the deadline of ctx, or ten seconds. To cancel ctx ends the
// sending, but not the reading. Local copies of what it writes are invalidated when it
// is sent.
func (cl *client) DoStream(ctx context.Context, cmd rueidis.Completed) rueidis.RedisResultStream {
	return cl.stream(ctx, []rueidis.Completed{cmd}, func(ctx context.Context, conn rueidis.Client) rueidis.RedisResultStream {
		return conn.DoStream(ctx, cmd)
	})
}

// DoMultiStream is DoStream for several commands; in a cluster their keys must be in
// one place.
func (cl *client) DoMultiStream(ctx context.Context, multi ...rueidis.Completed) rueidis.MultiRedisResultStream {
	if len(multi) == 0 {
		return rueidis.NewErrorResultStream(io.EOF)
	}
	return cl.stream(ctx, multi, func(ctx context.Context, conn rueidis.Client) rueidis.RedisResultStream {
		return conn.DoMultiStream(ctx, multi...)
	})
}

func (cl *client) stream(ctx context.Context, cmds []rueidis.Completed, send func(context.Context, rueidis.Client) rueidis.RedisResultStream) rueidis.RedisResultStream {
	guard, open := cl.c.fence.enter()
	defer guard.leave()
	if err := cl.usable(ctx, open); err != nil {
		return rueidis.NewErrorResultStream(err)
	}
	args, err := argsOf(cmds)
	for i := range args {
		if err == nil && stateful(upper(args[i][0]), args[i]) {
			err = notHere(args[i][0], "in a stream")
		}
	}
	if err == nil {
		err = cl.readyOwn(ctx, args)
	}
	if err != nil {
		return rueidis.NewErrorResultStream(err)
	}
	defer cl.after(args)
	return cl.awaitOwn(ctx, args).owned.stream(ctx, send)
}

// ownDo runs commands that block, on a connection of their own: for as long as they
// say, or until ctx ends. In a cluster they are run one after the other where they go to
// different nodes.
func (cl *client) ownDo(ctx context.Context, cmds ...rueidis.Completed) []rueidis.RedisResult {
	args, err := argsOf(cmds)
	if err != nil {
		return failures(len(cmds), err)
	}
	replies := make([]rueidis.RedisResult, 0, len(cmds))
	for len(cmds) > 0 {
		n := len(cmds)
		if cl.c.routes != nil && cl.c.routes.cluster.Load() != nil && cl.only == nil {
			first := cl.awaitOwn(ctx, args[:1])
			n = 1
			for n < len(cmds) && (cl.follows(args[n], first)) {
				n++
			}
		}
		replies = append(replies, cl.ownRun(ctx, cmds[:n], args[:n])...)
		cmds, args = cmds[n:], args[n:]
	}
	return replies
}

// follows says whether a command may go where the ones before it go.
func (cl *client) follows(args []string, l *link) bool {
	key, ok := ownKey(args)
	return !ok || cl.c.routes.link(cl.c.routes.of(key)) == l
}

// ownRun is ownDo for commands that go to one server. A redirection of the first is
// followed.
func (cl *client) ownRun(ctx context.Context, cmds []rueidis.Completed, args [][]string) []rueidis.RedisResult {
	d := &dedicated{cl: cl, patient: true}
	defer func() { d.release() }()
	hops := 0
	if cl.c.routes != nil && cl.c.routes.cluster.Load() != nil {
		hops = cl.c.remote.hops
	}
	for ; ; hops-- {
		replies := d.run(ctx, cmds, args)
		err := replies[0].Error()
		if classify(ctx, err) != classRedirect || hops <= 0 || d.at() == nil {
			return replies
		}
		next, asking := cl.c.routes.follow(d.at(), err)
		if next == nil {
			return replies
		}
		d.release()
		d = &dedicated{cl: cl, patient: true, link: next.link, asking: asking}
		cmds = cl.again(cmds, args)
	}
}

// again makes the commands anew: rueidis may have used theirs again since they were
// sent, and to pin those would be a race where the caller had done so, for several
// goroutines.
func (cl *client) again(cmds []rueidis.Completed, args [][]string) []rueidis.Completed {
	fresh := make([]rueidis.Completed, len(cmds))
	for i := range cmds {
		if cmd := cl.builder.Arbitrary(args[i]...); blocks(&cmds[i], args[i]) {
			fresh[i] = cmd.Blocking()
		} else {
			fresh[i] = cmd.Build()
		}
	}
	return fresh
}

// usable says whether a call may go on. The caller is within the fence.
func (cl *client) usable(ctx context.Context, open bool) error {
	if cl.closed.Load() {
		return rueidis.ErrClosing
	}
	if err := enterable(ctx, open); err != nil {
		return err
	}
	if cl.c.routes == nil {
		return ErrUnavailable
	}
	return nil
}

// readyOwn has the keys of the commands made ready, within the budget.
func (cl *client) readyOwn(ctx context.Context, args [][]string) error {
	bounded, cancel := cl.c.remote.bound(ctx, cl.c.clock.now())
	defer cancel()
	return cl.before(bounded, args)
}

// ownLink is where commands go: where the first key is, or, without one, to a server
// that is there.
func (cl *client) ownLink(args [][]string) *link {
	if cl.only != nil {
		return cl.only
	}
	r := cl.c.routes
	for _, a := range args {
		if key, ok := ownKey(a); ok {
			return r.link(r.of(key))
		}
	}
	return r.any()
}

// awaitOwn is ownLink for who may wait for an attempt to reach it; see moment.
func (cl *client) awaitOwn(ctx context.Context, args [][]string) *link {
	l, _ := cl.c.awaitLink(ctx, cl.c.clock.now(), true, func() *link { return cl.ownLink(args) })
	return l
}

// argsOf returns what the commands say. rueidis uses a command's slice again once it
// was sent, so it is a copy.
func argsOf(cmds []rueidis.Completed) ([][]string, error) {
	args := make([][]string, len(cmds))
	for i := range cmds {
		if cmds[i].IsEmpty() || cmds[i].Commands()[0] == "" {
			return nil, errNoCommand
		}
		args[i] = slices.Clone(cmds[i].Commands())
	}
	return args, nil
}

func notHere(name, why string) error {
	return &Error{Op: strings.ToLower(name), Tier: Remote, Err: errors.New("holdfast: not available " + why)}
}

func failures(n int, err error) []rueidis.RedisResult {
	replies := make([]rueidis.RedisResult, n)
	for i := range replies {
		replies[i] = rueidis.NewErrorResult(err)
	}
	return replies
}

// blocks says whether a command waits at the server for something to happen.
func blocks(cmd *rueidis.Completed, args []string) bool {
	return cmd.IsBlock() || commandOf(upper(args[0]), args).verb == verbBlock
}

// ownKey is the key by which a command finds its server, and whether there is one.
func ownKey(args []string) (string, bool) {
	if oneOf(args[0], "SSUBSCRIBE", "SUNSUBSCRIBE") && len(args) > 1 {
		return args[1], true
	}
	return commandOf(upper(args[0]), args).home(args)
}
