package holdfast

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"

	"github.com/holdfast-cache/holdfast/internal/link"
	"github.com/holdfast-cache/holdfast/internal/rediserr"
	"github.com/redis/rueidis"
)

// dedicated is a rueidis.DedicatedClient. It is safe for concurrent use.
type dedicated struct {
	cl      *client
	listens bool // it will subscribe, so rueidis must send PINGs
	patient bool // its commands are not bounded by the budget
	link    *link.Link
	asking  bool

	mu struct {
		sync.Mutex
		conn     *link.Conn
		dialling chan struct{} // closed when the present dial ends; nil while there is none
		released bool
		running  int
		state    connState
		hooks    *pendingHooks
	}
}

// connState is the state that a connection keeps between commands. A connection without state may
// serve another caller.
type connState struct {
	multi   bool // MULTI was sent, but no EXEC or DISCARD yet
	watches bool
	marked  bool       // by a command whose effect no other command reverts
	queued  [][]string // commands since MULTI; EXEC runs them, and so writes their keys
}

// stateful reports whether a command changes or uses the state of its connection.
func stateful(name string, args []string) bool {
	switch commandOf(name, args).verb {
	case verbSession, verbMulti, verbExec, verbReceive:
		return true
	}
	return name == "CLIENT" && len(args) < 2
}

// deadly reports whether a rueidis connection does not survive the command: the server answers with
// something other than a reply, with nothing, or in another protocol.
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

// step applies one command to the state, or returns the reason why it may not be sent. listening is
// set for a command from the Builder's subscription methods, which rueidis knows to have no reply.
// keep is set if a command queued after MULTI has to be remembered with its keys.
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
			copies[i] = strings.Clone(a) // it is used after the call has returned
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

// harmless reports whether a subcommand of CLIENT leaves the connection as it was.
func harmless(name string) bool {
	switch name {
	case "ID", "INFO", "LIST", "GETNAME", "GETREDIR", "KILL", "UNBLOCK", "PAUSE", "UNPAUSE", "TRACKINGINFO",
		"HELP":
		return true
	}
	return false
}

func (s *connState) clean() bool { return !s.multi && !s.watches && !s.marked }

// B returns the builder of commands.
func (d *dedicated) B() rueidis.Builder { return d.cl.B() }

// Do implements rueidis.DedicatedClient.
func (d *dedicated) Do(ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	return d.DoMulti(ctx, cmd)[0]
}

// DoMulti implements rueidis.DedicatedClient.
func (d *dedicated) DoMulti(ctx context.Context, multi ...rueidis.Completed) []rueidis.RedisResult {
	if len(multi) == 0 {
		return nil
	}
	args, err := argsOf(multi)
	if err != nil {
		return link.Failures(len(multi), err)
	}
	if d.toBusy(ctx, args) {
		return d.cl.DoMulti(ctx, multi...)
	}
	return d.run(ctx, multi, args)
}

// toBusy reports whether the commands go over the link's own session, because a server is busy with
// a script. That is so if all of them are allowed on a busy server and no connection was dialled
// yet: a busy server refuses the handshake of a new connection, and these commands need no
// connection state.
func (d *dedicated) toBusy(ctx context.Context, args [][]string) bool {
	for _, a := range args {
		if !allowedBusy(a) {
			return false
		}
	}
	d.mu.Lock()
	mayDial := d.mu.conn == nil && d.mu.dialling == nil && !d.mu.released
	d.mu.Unlock()
	guard, open := d.cl.c.inflight.Enter()
	defer guard.Leave()
	if !mayDial || d.cl.usable(ctx, open) != nil {
		return false
	}
	d.cl.awaitOwn(ctx, args)
	return slices.ContainsFunc(d.cl.c.routes.Links(), func(l *link.Link) bool { return l.Busy.Load() != nil })
}

// run sends the commands in one pipeline.
func (d *dedicated) run(ctx context.Context, cmds []rueidis.Completed, args [][]string) []rueidis.RedisResult {
	conn, keys, err := d.prepare(ctx, cmds, args)
	if err != nil {
		return link.Failures(len(cmds), err)
	}
	ok := false
	defer func() { d.end(conn, keys, ok) }()
	waiting, cancel := ctx, context.CancelFunc(link.NoCancel)
	bounded := !d.patient
	for i := range cmds {
		bounded = bounded && !blocks(&cmds[i], args[i])
	}
	if bounded {
		waiting, cancel = d.cl.c.remote.Budget.Of(ctx, d.cl.c.clock.Now())
	}
	defer cancel()
	replies := conn.Do(waiting, d.asking, cmds)
	ok = true
	for i := range replies {
		if err := replies[i].NonRedisError(); err != nil {
			replies[i] = rueidis.NewErrorResult(worded(ctx, conn, args[i][0], err))
			ok = ok && link.Misuse(err)
		} else if err := replies[i].Error(); err != nil {
			conn.Learn(err)
			d.refused(args[i], err)
		}
	}
	return replies
}

// prepare prepares the connection, the keys and the state for the commands. keys holds the arguments
// of all commands that may take effect, including those that an EXEC runs.
func (d *dedicated) prepare(ctx context.Context, cmds []rueidis.Completed, args [][]string) (conn *link.Conn, keys [][]string, err error) {
	guard, open := d.cl.c.inflight.Enter()
	defer guard.Leave()
	if err := d.cl.usable(ctx, open); err != nil {
		return nil, nil, err
	}
	if keys, err = d.step(cmds, args, false); err != nil { // before a connection is dialled for them
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

// step applies the commands to the state, permanently if final is set. It returns the arguments of
// all commands that may take effect. With final set it is called just before sending, so a
// subscription is refused from the moment at which a MULTI is about to be sent.
func (d *dedicated) step(cmds []rueidis.Completed, args [][]string, final bool) (keys [][]string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.mu.released {
		return nil, rueidis.ErrDedicatedClientRecycled
	}
	next := d.mu.state
	lastEnd := 0 // commands queued before it are examined in this call only
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

// ends reports whether a command ends a transaction.
func ends(args []string) bool {
	return len(args) == 1 && oneOf(args[0], "EXEC", "DISCARD")
}

// worded returns the error of a command without a reply.
func worded(ctx context.Context, conn *link.Conn, name string, err error) error {
	err, named := conn.Worded(ctx, err)
	if named {
		err = &Error{Op: strings.ToLower(name), Tier: Remote, Err: err}
	}
	return err
}

// end is called when the commands have their replies, or will get none.
func (d *dedicated) end(conn *link.Conn, keys [][]string, ok bool) {
	if !ok {
		conn.Close(link.Unavailable{Cause: errUnanswered})
	}
	guard, open := d.cl.c.inflight.Enter()
	if open {
		d.cl.after(keys)
	}
	guard.Leave()
	d.mu.Lock()
	d.mu.running--
	d.mu.Unlock()
}

// errUnanswered is the reason why a connection was given up.
var errUnanswered = errors.New("holdfast: a command before this one got no answer: the connection was given up")

// refused handles a command that Redis did not run: the real state of the connection differs from
// the recorded one.
func (d *dedicated) refused(args []string, err error) {
	if oneOf(args[0], "MULTI", "EXEC", "DISCARD", "UNWATCH") && !rueidis.IsRedisNil(err) && !strings.HasPrefix(err.Error(), "EXECABORT") {
		d.mu.Lock()
		d.mu.state.marked = true
		d.mu.Unlock()
	}
}

// at returns the session beside which the connection was dialled, nil before the dial.
func (d *dedicated) at() *link.Session {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.mu.conn == nil {
		return nil
	}
	return d.mu.conn.Session
}

// connection returns the connection, and dials it if there is none yet. The caller has entered the
// call gate.
func (d *dedicated) connection(ctx context.Context, args [][]string) (*link.Conn, error) {
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

// dialLocked is called with the lock held and returns without it.
func (d *dedicated) dialLocked(ctx context.Context, args [][]string) (*link.Conn, error) {
	done := make(chan struct{})
	d.mu.dialling = done
	fresh := d.listens || d.mu.hooks != nil || strings.HasSuffix(upper(args[0][0]), "SUBSCRIBE")
	d.mu.Unlock()
	l := d.link
	if l == nil {
		l = d.cl.awaitOwn(ctx, args)
	}
	conn, err := l.Dedicated.Acquire(ctx, fresh)
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
		l.Dedicated.Release(conn, !fresh)
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

// Receive implements rueidis.DedicatedClient.
func (d *dedicated) Receive(ctx context.Context, subscribe rueidis.Completed, fn func(msg rueidis.PubSubMessage)) error {
	cmds := []rueidis.Completed{subscribe}
	args, err := argsOf(cmds)
	if err != nil {
		return err
	}
	if !subscribes(args[0][0]) {
		return notHere(args[0][0], "in Receive: it is for SUBSCRIBE, PSUBSCRIBE and SSUBSCRIBE")
	}
	conn, keys, err := d.prepare(ctx, cmds, args)
	if err != nil {
		return err
	}
	defer d.end(conn, keys, true)
	err = conn.Dedicated.Receive(ctx, subscribe, fn)
	if err == nil || ctx.Err() != nil && rediserr.GaveUp(err) {
		return err
	}
	var refused *rueidis.RedisError
	if errors.As(err, &refused) && !link.IsUnavailable(err) {
		conn.Learn(err)
		return err
	}
	return worded(ctx, conn, args[0][0], err)
}

// release gives the connection back. Later calls return ErrDedicatedClientRecycled.
func (d *dedicated) release() { d.part(nil) }

// Close ends the connection. Calls that wait on it return rueidis.ErrClosing.
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
		conn.Close(cause)
	} else if !clean {
		_ = conn.Dedicated.SetPubSubHooks(rueidis.PubSubHooks{}) // ends the hooks without an error
		conn.Close(rueidis.ErrDedicatedClientRecycled)
	}
	conn.Release(clean)
}
