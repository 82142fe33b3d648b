package link

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/dial"
	"github.com/holdfast-cache/holdfast/internal/group"
	"github.com/holdfast-cache/holdfast/internal/rediserr"
	"github.com/redis/rueidis"
)

// dedicatedPool holds the dedicated connections of one link, beside its session: for transactions,
// subscriptions, streams and commands that block. They are dialled on demand, and only while the
// link's session serves: no connection is dialled to a Redis that the supervisor does not hold to
// be there. They end with the session's servingCtx, so that no caller waits for a server that has
// fallen silent.
//
// After a failed dial no other is made until its back-off has passed; callers that come meanwhile
// get an error at once. Each connection and each dial takes a slot, and few dials run at once.
// Connections without state are kept idle for the next caller, for a limited time.
type dedicatedPool struct {
	link *Link

	slots      chan struct{} // one token for each connection and each dial
	dialTurns  chan struct{} // one token for each running dial
	idle       chan *Conn    // idle connections; some may have ended
	inUseCount atomic.Int64  // connections in use, not counting streams

	mu struct {
		sync.Mutex
		due     int64 // no dial before this time
		backoff clock.Backoff
		cause   error // the error of the last failed dial

		streams *streaming
	}
}

const (
	dedicatedSlots = 1024 // default of BlockingPoolSize
	dedicatedDials = 8    // dials that run at once
	dedicatedIdle  = 1024 // most idle connections
	// dedicatedKept is how long an idle connection is kept, unless BlockingPoolCleanup is set.
	dedicatedKept = 10 * time.Second
	// dedicatedRing is the scale of rueidis' ring for one of these connections. Half the ring may be
	// waiting, as with a session's bulkhead.
	dedicatedRing   = 6
	dedicatedWaits  = 1 << dedicatedRing / 2
	dedicatedBuffer = 16 << 10
)

var (
	errDedicatedFull = errors.New("holdfast: too many connections are in use already: raise Redis.BlockingPoolSize")
	errDedicatedLate = errors.New("holdfast: no connection within Redis.Dialer.Timeout")
	errNoPubSub      = errors.New("holdfast: the server does not speak RESP3: nobody can subscribe to it here, and that will not change by itself")
	errNoHello       = errors.New("holdfast: the server hung up at HELLO, so the connection speaks RESP2, over which nobody can subscribe here")
)

func newDedicatedPool(l *Link) *dedicatedPool {
	n := l.cfg.Redis.BlockingPoolSize
	if n <= 0 {
		n = dedicatedSlots
	}
	o := &dedicatedPool{
		link:      l,
		slots:     make(chan struct{}, n),
		dialTurns: make(chan struct{}, dedicatedDials),
		idle:      make(chan *Conn, min(n, dedicatedIdle)),
	}
	o.mu.backoff = clock.Backoff{Min: l.cfg.MinBackoff, Max: l.cfg.MaxBackoff}
	return o
}

// inUse reports whether a caller has a connection. The supervisor does not sleep then.
func (o *dedicatedPool) inUse() bool { return o.inUseCount.Load() > 0 }

// Conn is a dedicated connection.
type Conn struct {
	pool      *dedicatedPool
	Session   *Session
	serving   *servingCtx
	dialer    *dial.Dialer
	Dedicated rueidis.DedicatedClient

	state atomic.Int32          // connTaken, connIdle or connEnded
	timer *time.Timer           // ends an idle connection
	cause atomic.Pointer[error] // the reason, if this side closed it
	waits chan struct{}         // one token for each command under way
}

const (
	connTaken int32 = iota
	connIdle
	connEnded
)

// ended reports whether the connection is lost.
func (c *Conn) ended() bool { return c.dialer.Ended() || c.serving.Err() != nil }

// Close ends the connection. Calls that wait on it get cause as their error.
func (c *Conn) Close(cause error) {
	c.cause.CompareAndSwap(nil, &cause)
	c.dialer.Close()
}

// failed returns the error for reads and writes of the connection.
func (c *Conn) failed(err error) error {
	if cause := c.cause.Load(); cause != nil {
		return *cause
	}
	return c.pool.failed(c.serving, err)
}

// failed turns an error of a connection into the error for its caller.
func (o *dedicatedPool) failed(p *servingCtx, err error) error {
	var u Unavailable
	switch {
	case o.link.cfg.Closed():
		return group.ErrClosed
	case errors.As(err, &u):
		return err
	case p.Err() == nil:
		return Unavailable{err}
	}
	cause := context.Cause(p)
	if last := o.link.health().LastError; last != nil && (cause == errTripped || rediserr.GaveUp(cause)) {
		cause = last
	}
	return Unavailable{cause}
}

// Acquire returns a connection, either an idle one or a new one. It blocks for at most
// Dialer.Timeout until it may dial, and then for as long as connect takes; less if ctx or the
// servingCtx ends. With fresh set it returns a new connection on which rueidis sends PINGs. The
// caller has entered the call gate.
func (o *dedicatedPool) Acquire(ctx context.Context, fresh bool) (*Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s := o.link.Reader()
	if s == nil {
		return nil, o.link.Why()
	}
	p := s.serving.Load()
	if p == nil {
		return nil, o.link.Why()
	}
	o.inUseCount.Add(1)
	conn, err := o.acquireFrom(ctx, s, p, fresh)
	if err != nil {
		o.inUseCount.Add(-1)
	}
	return conn, err
}

func (o *dedicatedPool) acquireFrom(ctx context.Context, s *Session, p *servingCtx, fresh bool) (*Conn, error) {
	if !fresh {
		if conn := o.fromIdle(p); conn != nil {
			return conn, nil
		}
	}
	g := &dialSlot{pool: o, serving: p}
	limit := time.NewTimer(o.link.cfg.Redis.Dialer.Timeout)
	defer limit.Stop()
	idle := o.idle
	if fresh {
		idle = nil
	}
	for {
		conn, err := g.wait(ctx, limit.C, idle)
		if err != nil {
			return nil, err
		}
		if conn == nil {
			break
		}
		if conn.wake(p) {
			return conn, nil
		}
	}
	// The dial runs on its own goroutine: the caller's context can end the wait for a dial that
	// hangs, and the next caller can use the connection that the dial brings.
	d := &dedicatedDial{fresh: fresh, done: make(chan struct{})}
	if !o.link.cfg.Workers.Spawn("dial", func() { d.run(g, s) }) {
		<-o.dialTurns
		<-o.slots
		return nil, group.ErrClosed
	}
	select {
	case <-d.done:
	case <-ctx.Done():
		return nil, d.leave(ctx.Err())
	case <-p.Done():
		return nil, d.leave(o.failed(p, dial.ErrConnClosed))
	}
	if d.err != nil {
		return nil, Unavailable{d.err}
	}
	return d.conn, nil
}

// fromIdle returns an idle connection, nil if there is none.
func (o *dedicatedPool) fromIdle(p *servingCtx) *Conn {
	for {
		select {
		case conn := <-o.idle:
			if conn.wake(p) {
				return conn
			}
		default:
			return nil
		}
	}
}

// wake takes an idle connection into use. It returns false if the connection is not usable.
func (c *Conn) wake(p *servingCtx) bool {
	if !c.state.CompareAndSwap(connIdle, connTaken) {
		return false
	}
	c.timer.Stop()
	if c.serving != p || c.ended() {
		c.Close(dial.ErrConnClosed)
		return false
	}
	return true
}

// Release returns the connection to its pool; see dedicatedPool.Release.
func (c *Conn) Release(clean bool) { c.pool.Release(c, clean) }

// Release returns a connection. A clean connection is kept for the next caller, any other is closed.
func (o *dedicatedPool) Release(c *Conn, clean bool) {
	o.inUseCount.Add(-1)
	o.keep(c, clean)
}

func (o *dedicatedPool) keep(c *Conn, clean bool) {
	if !clean || c.ended() || o.link.cfg.Closed() {
		c.Close(dial.ErrConnClosed)
		return
	}
	idleFor := o.kept()
	c.state.Store(connIdle)
	if c.timer == nil {
		c.timer = time.AfterFunc(idleFor, func() {
			if c.state.CompareAndSwap(connIdle, connEnded) {
				c.Close(dial.ErrConnClosed)
				o.sweep()
			}
		})
	} else {
		c.timer.Reset(idleFor)
	}
	select {
	case o.idle <- c:
	default:
		if c.state.CompareAndSwap(connIdle, connEnded) {
			c.timer.Stop()
			c.Close(dial.ErrConnClosed)
		}
	}
}

// sweep removes connections that ended while they were idle. It checks the oldest first and stops
// at a live one.
func (o *dedicatedPool) sweep() {
	for {
		select {
		case c := <-o.idle:
			if c.state.Load() == connEnded {
				continue
			}
			select {
			case o.idle <- c:
			default: // its timer closes it
			}
		default:
		}
		return
	}
}

func (o *dedicatedPool) kept() time.Duration {
	if d := o.link.cfg.Redis.BlockingPoolCleanup; d > 0 {
		return d
	}
	return dedicatedKept
}

// dialSlot is the right to dial. It consists of a slot, which is held as long as the connection, and a
// turn, which is held until the dial ends.
type dialSlot struct {
	pool    *dedicatedPool
	serving *servingCtx
}

// wait waits for the grant, or for an idle connection.
func (g *dialSlot) wait(ctx context.Context, limit <-chan time.Time, idle <-chan *Conn) (*Conn, error) {
	o, full := g.pool, errDedicatedFull
	if err := o.resting(); err != nil {
		return nil, err
	}
	slots, turns := o.slots, (chan struct{})(nil)
	for {
		select {
		case slots <- struct{}{}:
			slots, turns, full = nil, o.dialTurns, errDedicatedLate
			continue
		case turns <- struct{}{}:
			// Another dial may have failed meanwhile.
			err := o.resting()
			if err != nil {
				<-o.dialTurns
				<-o.slots
			}
			return nil, err
		case conn := <-idle:
			if slots == nil {
				<-o.slots
			}
			return conn, nil
		case <-ctx.Done():
			full = ctx.Err()
		case <-g.serving.Done():
			full = o.failed(g.serving, dial.ErrConnClosed)
		case <-limit:
			// After a stall both times may be over: the caller's own ended first if it was shorter.
			if deadline, ok := ctx.Deadline(); ok && !time.Now().Before(deadline) {
				full = context.DeadlineExceeded
			} else {
				full = Unavailable{full}
			}
		}
		if slots == nil {
			<-o.slots
		}
		return nil, full
	}
}

// resting returns the error of the last dial while its back-off lasts, nil otherwise.
func (o *dedicatedPool) resting() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.mu.due != 0 && o.link.clock.Now() < o.mu.due {
		return Unavailable{o.mu.cause}
	}
	return nil
}

// dialled records the result of a dial.
func (o *dedicatedPool) dialled(err error) {
	<-o.dialTurns
	if errors.Is(err, context.Canceled) {
		return // its caller has left; that says nothing about Redis
	}
	now := o.link.clock.Now()
	o.mu.Lock()
	defer o.mu.Unlock()
	if err == nil {
		o.mu.due = 0
		o.mu.backoff.Reset()
		return
	}
	if now < o.mu.due {
		return // it ran beside a dial that failed and was counted
	}
	if o.mu.backoff.Tries == 0 {
		o.mu.backoff.Tries = 1 // the first try of a schedule has no wait
	}
	o.mu.due, o.mu.cause = now+int64(o.mu.backoff.Next()), err
}

// dedicatedDial is a dial that its caller may abandon.
type dedicatedDial struct {
	fresh   bool
	conn    *Conn
	err     error
	done    chan struct{}
	decided atomic.Bool // the caller has left, or takes the result
}

func (d *dedicatedDial) run(g *dialSlot, s *Session) {
	o := g.pool
	d.conn, d.err = o.connect(g.serving, s, d.fresh)
	o.dialled(d.err)
	if !d.decided.CompareAndSwap(false, true) && d.err == nil {
		o.keep(d.conn, !d.fresh)
	}
	close(d.done)
}

// leave is called when the caller stops waiting.
func (d *dedicatedDial) leave(why error) error {
	if !d.decided.CompareAndSwap(false, true) {
		<-d.done // it is done just now
		if d.err == nil {
			d.conn.pool.keep(d.conn, !d.fresh)
		}
	}
	return why
}

// connect makes one dial and one handshake. It blocks for at most twice Dialer.Timeout, after the
// call of Redis.AuthCredentialsFn (ten seconds at most); less if p ends.
func (o *dedicatedPool) connect(p *servingCtx, s *Session, pings bool) (conn *Conn, err error) {
	conn = &Conn{pool: o, Session: s, serving: p, waits: make(chan struct{}, dedicatedWaits)}
	d := &dial.Dialer{
		User: o.link.cfg.Redis.DialCtxFn, Life: p,
		Attempt: func() { o.link.stats.Dials.Add(1) },
		MapErr:  conn.failed,

		Plain: s.Manner != dial.MannerFull, Credentials: &o.link.credentials,
	}
	stop := context.AfterFunc(p, d.Close)
	free := sync.OnceFunc(func() { stop(); <-o.slots })
	d.Lost = func(error) { free() }
	conn.dialer = d
	defer func() {
		// As in Pipe.Dial: rueidis may panic on the replies of a handshake.
		if r := recover(); r != nil {
			err = fmt.Errorf("the handshake made no sense: %v", r)
		}
		d.HandshakeDone()
		if err != nil {
			d.Close()
			free()
			conn, err = nil, fmt.Errorf("holdfast: another connection to %s: %w", s.Addr, d.Explain(err))
			return
		}
		d.Settled()
	}()
	// rueidis.NewClient would dial the client's single wire at once, so there is no permit yet.
	// With ForceSingleClient it returns the client although that dial fails. The permit is for the
	// dedicated wire.
	rc, err := rueidis.NewClient(o.option(s, d, pings))
	if rc == nil {
		return nil, err
	}
	d.Permit.Store(true)
	conn.Dedicated, _ = rc.Dedicate()
	d.HandshakeDone()
	if d.Late.Load() {
		return nil, dial.Unanswered(context.DeadlineExceeded, o.link.cfg.Redis.Dialer.Timeout)
	}
	if d.Ended() {
		// A command on a dead wire returns the reason.
		err = conn.Dedicated.Do(context.Background(), rc.B().Ping().Build()).NonRedisError()
		if err == nil {
			err = dial.ErrConnClosed
		}
		return nil, dial.Unanswered(err, o.link.cfg.Redis.Dialer.Timeout)
	}
	return conn, nil
}

// option returns the rueidis configuration of a dedicated connection.
func (o *dedicatedPool) option(s *Session, d *dial.Dialer, pings bool) rueidis.ClientOption {
	option := dial.ClientOption(dial.Plan{Addr: s.Addr, Option: o.link.cfg.connection(), Manner: s.Manner}, d)
	option.RingScaleEachConn = dedicatedRing
	if option.ReadBufferEachConn == 0 {
		option.ReadBufferEachConn = dedicatedBuffer
	}
	if option.WriteBufferEachConn == 0 {
		option.WriteBufferEachConn = dedicatedBuffer
	}
	if !pings {
		// A PING after MULTI would be queued and answered within EXEC's reply. A PING after a
		// blocking command would get no answer in time, and the connection would be given up. Only
		// subscriptions need the PING: the other connections are monitored by TCP keep-alive and by
		// the session.
		d.KeepAlive, option.Dialer.KeepAlive = option.Dialer.KeepAlive, -1
	}
	return option
}

// Do sends the commands in one pipeline and waits until ctx or the servingCtx ends.
func (c *Conn) Do(ctx context.Context, asking bool, cmds []rueidis.Completed) []rueidis.RedisResult {
	// A caller that finds rueidis' ring full is blocked regardless of its context.
	select {
	case c.waits <- struct{}{}:
		defer func() { <-c.waits }()
	case <-ctx.Done():
		return Failures(len(cmds), ctx.Err())
	case <-c.serving.Done():
		return Failures(len(cmds), c.failed(dial.ErrConnClosed))
	}
	if asking {
		return WithoutAsking(c.Dedicated.DoMulti(ctx, WithAsking(c.Dedicated.B(), cmds)...))
	}
	return c.Dedicated.DoMulti(ctx, cmds...)
}

// Failures returns n replies with the error.
func Failures(n int, err error) []rueidis.RedisResult {
	replies := make([]rueidis.RedisResult, n)
	for i := range replies {
		replies[i] = rueidis.NewErrorResult(err)
	}
	return replies
}

// Worded turns the error of a command without a reply into the error for its caller. named reports
// whether the caller is to hear the name of the command with it.
func (c *Conn) Worded(ctx context.Context, err error) (worded error, named bool) {
	switch {
	case rediserr.GaveUp(err) && ctx.Err() != nil:
		return ctx.Err(), false
	case IsUnavailable(err):
		err = c.failed(err)
	case errors.Is(err, group.ErrClosed):
		return group.ErrClosed, false
	case Misuse(err), errors.Is(err, rueidis.ErrClosing), errors.Is(err, rueidis.ErrDedicatedClientRecycled):
		return err, false
	case errors.Is(err, dial.ErrNoPermit): // in RESP2 rueidis wants a second connection for it
		err = errNoPubSub
		if c.Session.Manner == dial.MannerMinimal {
			err = Unavailable{errNoHello} // a hang-up is no answer, and another session asks again
		}
	case rediserr.GaveUp(err):
		c.pool.link.stats.Timeouts.Add(1)
		err = Unavailable{ErrBudget}
	default:
		err = c.failed(err)
	}
	return err, true
}

// IsUnavailable reports whether failed has made the error. Its cause may then be the last error of
// the link, which says nothing about this connection or about an answer of the server on it.
func IsUnavailable(err error) bool { return errors.Is(err, ErrUnavailable) }

// Misuse reports whether rueidis refused to send a command.
func Misuse(err error) bool {
	return errors.Is(err, rueidis.ErrRESP2PubSubMixed) || errors.Is(err, rueidis.ErrBlockingPubSubMixed)
}

// Learn reports an error reply of Redis to the link if it says something about the server.
func (c *Conn) Learn(err error) {
	switch rediserr.Classify(context.Background(), err) {
	case rediserr.WriteRefused:
		c.pool.link.Report(c.Session, rediserr.WriteRefused, err)
	case rediserr.Busy, rediserr.Unknown:
		c.pool.link.Report(c.Session, rediserr.Classify(context.Background(), err), err)
	case rediserr.Redirect:
		c.pool.link.Routes.Follow(c.Session, err)
	}
}
