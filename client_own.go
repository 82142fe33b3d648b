package holdfast

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"

	"github.com/holdfast-cache/holdfast/internal/link"
	"github.com/holdfast-cache/holdfast/internal/rediserr"
	"github.com/redis/rueidis"
)

// The calls of a rueidis.Client that need a dedicated connection. None of them waits for a Redis
// that is away: they return ErrUnavailable at once. Calls in progress when Redis goes away return
// it too.

// Dedicated runs fn with a dedicated connection; see Dedicate.
func (cl *client) Dedicated(fn func(rueidis.DedicatedClient) error) error {
	d := &dedicated{cl: cl}
	defer d.release()
	return fn(d)
}

// Dedicate returns a client with a dedicated connection, and the function that releases it. The
// first command dials the connection. In a cluster the first command must name a key; all later
// commands go to the node of that key. A command waits for Redis for at most Options.Timeout, a
// blocking command for as long as its own timeout says, and Receive until its context ends. A
// command without an answer ends the connection, because it is then not known which commands of a
// transaction ran. Keys that a command may write are invalidated in the local tier, those of a
// transaction by its EXEC. When Redis goes away, all commands return ErrUnavailable, also those
// that block.
func (cl *client) Dedicate() (rueidis.DedicatedClient, func()) {
	d := &dedicated{cl: cl}
	return d, d.release
}

// Receive subscribes on a dedicated connection and calls fn with each message. It blocks until the
// server ends the subscription, and then returns nil, or until ctx ends or Redis goes away. When
// Redis goes away it returns ErrUnavailable and does not subscribe again by itself. A server that
// does not speak RESP3 cannot be subscribed to: the error then says so, and does not change later,
// unless the server only hung up at HELLO.
func (cl *client) Receive(ctx context.Context, subscribe rueidis.Completed, fn func(msg rueidis.PubSubMessage)) error {
	d := &dedicated{cl: cl, listens: true}
	defer d.release()
	return d.Receive(ctx, subscribe, fn)
}

// DoStream sends the command over a dedicated connection. The caller reads the reply from the
// connection, within the deadline of ctx, or within ten seconds if there is none. Cancelling ctx
// ends the sending, but not the reading. Local copies of the keys that the command may write are
// invalidated when it is sent.
func (cl *client) DoStream(ctx context.Context, cmd rueidis.Completed) rueidis.RedisResultStream {
	return cl.stream(ctx, []rueidis.Completed{cmd}, func(ctx context.Context, conn rueidis.Client) rueidis.RedisResultStream {
		return conn.DoStream(ctx, cmd)
	})
}

// DoMultiStream is DoStream for several commands. In a cluster their keys must be on one node.
func (cl *client) DoMultiStream(ctx context.Context, multi ...rueidis.Completed) rueidis.MultiRedisResultStream {
	if len(multi) == 0 {
		return rueidis.NewErrorResultStream(io.EOF)
	}
	return cl.stream(ctx, multi, func(ctx context.Context, conn rueidis.Client) rueidis.RedisResultStream {
		return conn.DoMultiStream(ctx, multi...)
	})
}

func (cl *client) stream(ctx context.Context, cmds []rueidis.Completed, send func(context.Context, rueidis.Client) rueidis.RedisResultStream) rueidis.RedisResultStream {
	guard, open := cl.c.inflight.Enter()
	defer guard.Leave()
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
	return cl.awaitOwn(ctx, args).Dedicated.Stream(ctx, send)
}

// ownDo runs commands that block on a dedicated connection, for as long as their own timeouts say,
// or until ctx ends. In a cluster, commands for different nodes run one after the other.
func (cl *client) ownDo(ctx context.Context, cmds ...rueidis.Completed) []rueidis.RedisResult {
	args, err := argsOf(cmds)
	if err != nil {
		return link.Failures(len(cmds), err)
	}
	replies := make([]rueidis.RedisResult, 0, len(cmds))
	for len(cmds) > 0 {
		n := len(cmds)
		if cl.c.routes != nil && cl.c.routes.Cluster.Load() != nil && cl.only == nil {
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

// follows reports whether a command may go to the same link as the commands before it.
func (cl *client) follows(args []string, l *link.Link) bool {
	key, ok := ownKey(args)
	return !ok || cl.c.routes.Link(cl.c.routes.Of(key)) == l
}

// ownRun is ownDo for commands of one server. It follows a redirection of the first command.
func (cl *client) ownRun(ctx context.Context, cmds []rueidis.Completed, args [][]string) []rueidis.RedisResult {
	d := &dedicated{cl: cl, patient: true}
	defer func() { d.release() }()
	hops := 0
	if cl.c.routes != nil && cl.c.routes.Cluster.Load() != nil {
		hops = cl.c.remote.Hops
	}
	for ; ; hops-- {
		replies := d.run(ctx, cmds, args)
		err := replies[0].Error()
		if rediserr.Classify(ctx, err) != rediserr.Redirect || hops <= 0 || d.at() == nil {
			return replies
		}
		next, asking := cl.c.routes.Follow(d.at(), err)
		if next == nil {
			return replies
		}
		d.release()
		d = &dedicated{cl: cl, patient: true, link: next.Link, asking: asking}
		cmds = cl.again(cmds, args)
	}
}

// again builds the commands anew, because rueidis may have reused the old ones since they were
// sent. Pinning the old ones instead would be a data race if the caller has pinned them, to use
// them from several goroutines.
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

// usable returns an error if a call may not go on. The caller has entered the call gate.
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

// readyOwn is client.before with a budget of its own.
func (cl *client) readyOwn(ctx context.Context, args [][]string) error {
	bounded, cancel := cl.c.remote.Bound(ctx, cl.c.clock.Now())
	defer cancel()
	return cl.before(bounded, args)
}

// ownLink returns the link for the commands: the one of the first key, or, without a key, one that
// serves.
func (cl *client) ownLink(args [][]string) *link.Link {
	if cl.only != nil {
		return cl.only
	}
	r := cl.c.routes
	for _, a := range args {
		if key, ok := ownKey(a); ok {
			return r.Link(r.Of(key))
		}
	}
	return r.Any()
}

// awaitOwn is ownLink for calls that may wait for a connection attempt; see link.Moment.
func (cl *client) awaitOwn(ctx context.Context, args [][]string) *link.Link {
	l, _ := cl.c.remote.AwaitLink(ctx, cl.c.clock.Now(), true, func() *link.Link { return cl.ownLink(args) })
	return l
}

// argsOf returns copies of the commands' arguments: rueidis reuses the slice of a command once it
// was sent.
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

// blocks reports whether a command waits at the server for an event.
func blocks(cmd *rueidis.Completed, args []string) bool {
	return cmd.IsBlock() || commandOf(upper(args[0]), args).verb == verbBlock
}

// ownKey returns the key that determines the server of a command, and whether there is one.
func ownKey(args []string) (string, bool) {
	if oneOf(args[0], "SSUBSCRIBE", "SUNSUBSCRIBE") && len(args) > 1 {
		return args[1], true
	}
	return commandOf(upper(args[0]), args).home(args)
}
