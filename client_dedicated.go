package holdfast

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"

	"github.com/redis/rueidis"
)

// dedicated is a rueidis.DedicatedClient. It may be used from several goroutines.
type dedicated struct {
	cl      *client
	listens bool // it will subscribe: rueidis is to ping
	patient bool // its commands are not bounded by the budget
	link    *link
	asking  bool

	mu struct {
		sync.Mutex
		conn     *ownConn
		dialling chan struct{} // closed when a dial has ended; nil where none is under way
		released bool
		running  int
		state    connState
		hooks    *pendingHooks
	}
}

// connState is what a connection remembers from one command to the next. What has none
// may serve another caller.
type connState struct {
	multi   bool // MULTI was sent, and neither EXEC nor DISCARD
	watches bool
	marked  bool       // by something that no command takes back
	queued  [][]string // since MULTI; EXEC writes to their keys
}

// stateful says whether a command changes the connection's state, or uses it.
func stateful(name string, args []string) bool {
	switch commandOf(name, args).verb {
	case verbSession, verbMulti, verbExec, verbReceive:
		return true
	}
	return name == "CLIENT" && len(args) < 2
}

// deadly says whether a connection of rueidis' does not survive the command: what answers
// it is no reply, or nothing, or comes in another protocol.
func deadly(name string, args []string) bool {
	switch name {
	case "MONITOR", "SYNC", "PSYNC", "RESET", "HELLO", "REPLCONF":
		return true
	case "CLIENT":
		return len(args) > 1 && oneOf(args[1], "REPLY")
	case "SCRIPT":
		return len(args) > 1 && oneOf(args[1], "DEBUG")
	case "DEBUG":
		return len(args) > 1 && oneOf(args[1], "PROTOCOL")
	}
	return false
}

// step takes a command, and says why it may not be sent. listening: it was made by the
// Builder's method for a subscription, and rueidis knows that it has no reply. keep its
// keys, should it be queued.
func (s *connState) step(args []string, listening, keep bool) error {
	name := upper(args[0])
	switch {
	case deadly(name, args):
		if oneOf(name, "CLIENT", "SCRIPT", "DEBUG") {
			name += " " + args[1]
		}
		return notHere(name, "on a dedicated connection")
	case strings.HasSuffix(name, "SUBSCRIBE"):
		if s.multi {
			return notHere(name, "within MULTI")
		}
		if !listening {
			return notHere(name, "but by the Builder's own method")
		}
		s.marked = true
		return nil
	}
	switch name {
	case "MULTI":
		s.multi = true
		return nil
	case "EXEC", "DISCARD":
		if len(args) == 1 && s.multi { // without MULTI they end nothing
			s.multi, s.watches, s.queued = false, false, nil
		}
		return nil
	}
	if s.multi && keep {
		copies := make([]string, len(args))
		for i, a := range args {
			copies[i] = strings.Clone(a) // it is looked at after the call
		}
		s.queued = append(s.queued, copies)
	}
	switch {
	case name == "WATCH":
		s.watches = true
	case name == "UNWATCH":
		s.watches = s.multi && s.watches
	case stateful(name, args):
		s.marked = true
	}
	return nil
}

// harmless says whether a subcommand of CLIENT leaves no trace on its connection.
func harmless(name string) bool {
	switch name {
	case "ID", "INFO", "LIST", "GETNAME", "GETREDIR", "KILL", "UNBLOCK", "PAUSE", "UNPAUSE", "TRACKINGINFO",
		"HELP":
		return true
	}
	return false
}

func (s *connState) clean() bool { return !s.multi && !s.watches && !s.marked }

// B is the builder of commands.
func (d *dedicated) B() rueidis.Builder { return d.cl.B() }

// Do is rueidis.DedicatedClient's.
func (d *dedicated) Do(ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	return d.DoMulti(ctx, cmd)[0]
}

// DoMulti is rueidis.DedicatedClient's.
func (d *dedicated) DoMulti(ctx context.Context, multi ...rueidis.Completed) []rueidis.RedisResult {
	if len(multi) == 0 {
		return nil
	}
	args, err := argsOf(multi)
	if err != nil {
		return failures(len(multi), err)
	}
	if d.toBusy(ctx, args) {
		return d.cl.DoMulti(ctx, multi...)
	}
	return d.run(ctx, multi, args)
}

// toBusy says whether the commands are to end a script, or to tell of it, where one runs and
// no connection was dialled for them yet. They go by that of the link then, for a server
// that is busy shakes no hands; and they need no state of a connection.
func (d *dedicated) toBusy(ctx context.Context, args [][]string) bool {
	for _, a := range args {
		if !allowedBusy(a) {
			return false
		}
	}
	d.mu.Lock()
	mayDial := d.mu.conn == nil && d.mu.dialling == nil && !d.mu.released
	d.mu.Unlock()
	guard, open := d.cl.c.fence.enter()
	defer guard.leave()
	if !mayDial || d.cl.usable(ctx, open) != nil {
		return false
	}
	d.cl.awaitOwn(ctx, args)
	return slices.ContainsFunc(d.cl.c.routes.links(), func(l *link) bool { return l.busy.Load() != nil })
}

// run sends the commands in one pipeline.
func (d *dedicated) run(ctx context.Context, cmds []rueidis.Completed, args [][]string) []rueidis.RedisResult {
	conn, keys, err := d.begin(ctx, cmds, args)
	if err != nil {
		return failures(len(cmds), err)
	}
	ok := false
	defer func() { d.end(conn, keys, ok) }()
	waiting, cancel := ctx, context.CancelFunc(noCancel)
	bounded := !d.patient
	for i := range cmds {
		bounded = bounded && !blocks(&cmds[i], args[i])
	}
	if bounded {
		waiting, cancel = d.cl.c.remote.budget.of(ctx, d.cl.c.clock.now())
	}
	defer cancel()
	replies := conn.do(waiting, d.asking, cmds)
	ok = true
	for i := range replies {
		if err := replies[i].NonRedisError(); err != nil {
			replies[i] = rueidis.NewErrorResult(conn.worded(ctx, args[i][0], err))
			ok = ok && misuse(err)
		} else if err := replies[i].Error(); err != nil {
			conn.learn(err)
			d.refused(args[i], err)
		}
	}
	return replies
}

// begin makes ready for the commands: the connection, the keys, the state. keys are the
// arguments of all that the commands may change.
func (d *dedicated) begin(ctx context.Context, cmds []rueidis.Completed, args [][]string) (conn *ownConn, keys [][]string, err error) {
	guard, open := d.cl.c.fence.enter()
	defer guard.leave()
	if err := d.cl.usable(ctx, open); err != nil {
		return nil, nil, err
	}
	if keys, err = d.step(cmds, args, false); err != nil { // before anybody dials for it
		return nil, nil, err
	}
	if conn, err = d.connection(ctx, args); err != nil {
		return nil, nil, err
	}
	if err = d.cl.readyOwn(ctx, keys); err != nil {
		return nil, nil, err
	}
	keys, err = d.step(cmds, args, true)
	return conn, keys, err
}

// step takes the commands into the state, where that is final, and returns what they may
// change. A subscription is refused from the moment on in which MULTI is to be sent.
func (d *dedicated) step(cmds []rueidis.Completed, args [][]string, final bool) (keys [][]string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.mu.released {
		return nil, rueidis.ErrDedicatedClientRecycled
	}
	next := d.mu.state
	lastEnd := 0 // what is queued before is looked at in this call only
	for i := range cmds {
		if ends(args[i]) {
			lastEnd = i
		}
	}
	for i := range cmds {
		if ends(args[i]) {
			keys = append(keys, next.queued...)
		}
		if err := next.step(args[i], cmds[i].NoReply(), final && i >= lastEnd); err != nil {
			return nil, err
		}
	}
	if final {
		d.mu.state = next
		d.mu.running++
	}
	return append(keys, args...), nil
}

// ends says whether a command ends a transaction.
func ends(args []string) bool {
	return len(args) == 1 && oneOf(args[0], "EXEC", "DISCARD")
}

// end is called when commands have their replies, or will have none.
func (d *dedicated) end(conn *ownConn, keys [][]string, ok bool) {
	if !ok {
		conn.close(unavailable{errUnanswered})
	}
	guard, open := d.cl.c.fence.enter()
	if open {
		d.cl.after(keys)
	}
	guard.leave()
	d.mu.Lock()
	d.mu.running--
	d.mu.Unlock()
}

// errUnanswered is why a connection was given up.
var errUnanswered = errors.New("holdfast: a command before this one got no answer: the connection was given up")

// refused takes note of what Redis did not do: the state is not what it was taken for.
func (d *dedicated) refused(args []string, err error) {
	if oneOf(args[0], "MULTI", "EXEC", "DISCARD", "UNWATCH") && !rueidis.IsRedisNil(err) && !strings.HasPrefix(err.Error(), "EXECABORT") {
		d.mu.Lock()
		d.mu.state.marked = true
		d.mu.Unlock()
	}
}

// at is the session beside which the connection was dialled.
func (d *dedicated) at() *session {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.mu.conn == nil {
		return nil
	}
	return d.mu.conn.session
}

// connection is the one there is, or is dialled. The caller is within the fence.
func (d *dedicated) connection(ctx context.Context, args [][]string) (*ownConn, error) {
	for {
		d.mu.Lock()
		switch {
		case d.mu.released:
			d.mu.Unlock()
			return nil, rueidis.ErrDedicatedClientRecycled
		case d.mu.conn != nil:
			conn := d.mu.conn
			d.mu.Unlock()
			return conn, nil
		case d.mu.dialling == nil:
			return d.dialLocked(ctx, args)
		}
		dialling := d.mu.dialling
		d.mu.Unlock()
		select {
		case <-dialling:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// dialLocked is called with the lock held, and returns without it.
func (d *dedicated) dialLocked(ctx context.Context, args [][]string) (*ownConn, error) {
	done := make(chan struct{})
	d.mu.dialling = done
	fresh := d.listens || d.mu.hooks != nil || strings.HasSuffix(upper(args[0][0]), "SUBSCRIBE")
	d.mu.Unlock()
	l := d.link
	if l == nil {
		l = d.cl.awaitOwn(ctx, args)
	}
	conn, err := l.owned.take(ctx, fresh)
	d.mu.Lock()
	d.mu.dialling = nil
	hooks := d.mu.hooks
	d.mu.hooks = nil
	released := d.mu.released
	if err == nil && !released {
		d.mu.conn = conn
		d.mu.state.marked = fresh || hooks != nil
		hooks.install(conn)
	}
	d.mu.Unlock()
	defer close(done)
	switch {
	case err == nil && released:
		l.owned.give(conn, !fresh)
		return nil, rueidis.ErrDedicatedClientRecycled
	case err == nil:
		return conn, nil
	}
	hooks.fail(err)
	if errors.Is(err, ErrUnavailable) {
		err = &Error{Op: strings.ToLower(args[0][0]), Tier: Remote, Err: err}
	}
	return nil, err
}

func subscribes(name string) bool {
	switch name {
	case "SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE":
		return true
	}
	return false
}

// Receive is rueidis.DedicatedClient's.
func (d *dedicated) Receive(ctx context.Context, subscribe rueidis.Completed, fn func(msg rueidis.PubSubMessage)) error {
	cmds := []rueidis.Completed{subscribe}
	args, err := argsOf(cmds)
	if err != nil {
		return err
	}
	if !subscribes(args[0][0]) {
		return notHere(args[0][0], "in Receive: it is for SUBSCRIBE, PSUBSCRIBE and SSUBSCRIBE")
	}
	conn, keys, err := d.begin(ctx, cmds, args)
	if err != nil {
		return err
	}
	defer d.end(conn, keys, true)
	err = conn.dedicated.Receive(ctx, subscribe, fn)
	if err == nil || ctx.Err() != nil && gaveUp(err) {
		return err
	}
	var refused *rueidis.RedisError
	if errors.As(err, &refused) {
		conn.learn(err)
		return err
	}
	return conn.worded(ctx, args[0][0], err)
}

// release gives the connection back; further calls get ErrDedicatedClientRecycled.
func (d *dedicated) release() { d.part(nil) }

// Close ends the connection, and what waits on it with rueidis.ErrClosing.
func (d *dedicated) Close() { d.part(rueidis.ErrClosing) }

func (d *dedicated) part(cause error) {
	d.mu.Lock()
	if d.mu.released {
		d.mu.Unlock()
		return
	}
	d.mu.released = true
	conn, hooks := d.mu.conn, d.mu.hooks
	d.mu.hooks = nil
	clean := d.mu.state.clean() && d.mu.running == 0 && cause == nil
	d.mu.Unlock()
	hooks.fail(cause)
	if conn == nil {
		return
	}
	if cause != nil {
		conn.close(cause)
	} else if !clean {
		_ = conn.dedicated.SetPubSubHooks(rueidis.PubSubHooks{}) // their channel closes without an error
		conn.close(rueidis.ErrDedicatedClientRecycled)
	}
	conn.owned.give(conn, clean)
}
