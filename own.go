package holdfast

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"
)

// owned are the connections that callers have of their own, beside the link's session:
// for transactions, subscriptions, streams, and commands that block. They are dialled on
// demand, and only while the link's session serves: nothing is dialled to a Redis that
// the supervisor does not hold to be there. They end with the period in which it
// serves, so that nobody waits on a server that has fallen silent.
//
// A dial that failed is not repeated before its back-off is over; callers who come
// meanwhile are turned away. Connections and dials take a slot each; a few dial at
// once. Connections without state are kept for the next caller, for a while.
type owned struct {
	link    *link
	workers *group
	closed  func() bool // the Cache is

	slots chan struct{} // a token for each connection, and each dial
	turns chan struct{} // a token for each dial
	idle  chan *ownConn // to be had; some may have ended
	using atomic.Int64  // connections that are not idle, streams apart

	mu struct {
		sync.Mutex
		due     int64 // no dial before
		backoff backoff
		cause   error // of the last dial's failure

		streams *streaming
	}
}

const (
	ownSlots = 1024 // where BlockingPoolSize does not say
	ownDials = 8    // at once
	ownIdle  = 1024 // kept
	// ownKept is for how long; BlockingPoolCleanup may say otherwise.
	ownKept = 10 * time.Second
	// ownRing is the scale of rueidis' ring for one connection, and half of it what may
	// wait there: as with a session's bulkhead.
	ownRing   = 6
	ownWaits  = 1 << ownRing / 2
	ownBuffer = 16 << 10
)

var (
	errOwnFull  = errors.New("holdfast: too many connections are in use already: raise Redis.BlockingPoolSize")
	errOwnLate  = errors.New("holdfast: no connection within Redis.Dialer.Timeout")
	errNoPubSub = errors.New("holdfast: the server does not speak RESP3: nobody can subscribe to it here, and that will not change by itself")
)

func newOwned(l *link) *owned {
	n := l.opts.Redis.BlockingPoolSize
	if n <= 0 {
		n = ownSlots
	}
	o := &owned{
		link:   l,
		closed: func() bool { return false },
		slots:  make(chan struct{}, n),
		turns:  make(chan struct{}, ownDials),
		idle:   make(chan *ownConn, min(n, ownIdle)),
	}
	o.mu.backoff = backoff{min: l.opts.Breaker.MinBackoff, max: l.opts.Breaker.MaxBackoff}
	return o
}

// inUse says that somebody has a connection: the supervisor watches over it.
func (o *owned) inUse() bool { return o.using.Load() > 0 }

// ownConn is a connection of a caller's own.
type ownConn struct {
	owned     *owned
	session   *session
	period    *period
	dialer    *dialer
	dedicated rueidis.DedicatedClient

	state atomic.Int32          // connTaken...
	timer *time.Timer           // of an idle one
	cause atomic.Pointer[error] // why it was closed, where that was us
	waits chan struct{}         // a token for each command under way
}

const (
	connTaken int32 = iota
	connIdle
	connEnded
)

// ended says whether the connection is lost.
func (c *ownConn) ended() bool { return c.dialer.ended() || c.period.Err() != nil }

// close ends the connection, and whatever waits on it with this error.
func (c *ownConn) close(cause error) {
	c.cause.CompareAndSwap(nil, &cause)
	c.dialer.close()
}

// failed is what reads and writes of the connection fail with.
func (c *ownConn) failed(err error) error {
	if cause := c.cause.Load(); cause != nil {
		return *cause
	}
	return c.owned.failed(c.period, err)
}

// failed makes an error of a connection what its caller gets.
func (o *owned) failed(p *period, err error) error {
	var u unavailable
	switch {
	case o.closed():
		return ErrClosed
	case errors.As(err, &u):
		return err
	case p.Err() == nil:
		return unavailable{err}
	}
	cause := context.Cause(p)
	if last := o.link.health().LastError; last != nil && (cause == errTripped || gaveUp(cause)) {
		cause = last
	}
	return unavailable{cause}
}

// take returns a connection, one that was idle or a new one. It waits for at most
// Dialer.Timeout, and less once ctx ends. fresh wants one of which nothing is known to
// anybody, and over which rueidis pings. The caller is within the fence.
func (o *owned) take(ctx context.Context, fresh bool) (*ownConn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s := o.link.reader()
	if s == nil {
		return nil, o.link.why()
	}
	p := s.period.Load()
	if p == nil {
		return nil, o.link.why()
	}
	o.using.Add(1)
	conn, err := o.takeFrom(ctx, s, p, fresh)
	if err != nil {
		o.using.Add(-1)
	}
	return conn, err
}

func (o *owned) takeFrom(ctx context.Context, s *session, p *period, fresh bool) (*ownConn, error) {
	if !fresh {
		if conn := o.fromIdle(p); conn != nil {
			return conn, nil
		}
	}
	g := &grant{owned: o, period: p}
	limit := time.NewTimer(o.link.opts.Redis.Dialer.Timeout)
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
	// Of its own goroutine: the caller's context wins over a dial that hangs, and what
	// the dial brings is of use to the next.
	d := &ownDial{fresh: fresh, done: make(chan struct{})}
	if !o.workers.spawn("dial", func() { d.run(g, s) }) {
		<-o.turns
		<-o.slots
		return nil, ErrClosed
	}
	select {
	case <-d.done:
	case <-ctx.Done():
		return nil, d.leave(ctx.Err())
	case <-p.Done():
		return nil, d.leave(o.failed(p, errConnClosed))
	}
	if d.err != nil {
		return nil, unavailable{d.err}
	}
	return d.conn, nil
}

// fromIdle returns a connection that is to be had, nil if there is none.
func (o *owned) fromIdle(p *period) *ownConn {
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

// wake takes an idle connection, if it is still good.
func (c *ownConn) wake(p *period) bool {
	if !c.state.CompareAndSwap(connIdle, connTaken) {
		return false
	}
	c.timer.Stop()
	if c.period != p || c.ended() {
		c.close(errConnClosed)
		return false
	}
	return true
}

// give returns a connection: for the next caller where it is clean, else to be closed.
func (o *owned) give(c *ownConn, clean bool) {
	o.using.Add(-1)
	o.keep(c, clean)
}

func (o *owned) keep(c *ownConn, clean bool) {
	if !clean || c.ended() || o.closed() {
		c.close(errConnClosed)
		return
	}
	idleFor := o.kept()
	c.state.Store(connIdle)
	if c.timer == nil {
		c.timer = time.AfterFunc(idleFor, func() {
			if c.state.CompareAndSwap(connIdle, connEnded) {
				c.close(errConnClosed)
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
			c.close(errConnClosed)
		}
	}
}

// sweep lets go of connections that have ended while they were idle; the oldest come
// first.
func (o *owned) sweep() {
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

func (o *owned) kept() time.Duration {
	if d := o.link.opts.Redis.BlockingPoolCleanup; d > 0 {
		return d
	}
	return ownKept
}

// grant is the right to dial: a slot, which goes with the connection, and a turn,
// which ends with the dial.
type grant struct {
	owned  *owned
	period *period
}

// wait waits for the grant, or for an idle connection.
func (g *grant) wait(ctx context.Context, limit <-chan time.Time, idle <-chan *ownConn) (*ownConn, error) {
	o, full := g.owned, errOwnFull
	if err := o.resting(); err != nil {
		return nil, err
	}
	slots, turns := o.slots, (chan struct{})(nil)
	for {
		select {
		case slots <- struct{}{}:
			slots, turns, full = nil, o.turns, errOwnLate
			continue
		case turns <- struct{}{}:
			// Somebody's dial may have failed meanwhile.
			err := o.resting()
			if err != nil {
				<-o.turns
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
		case <-g.period.Done():
			full = o.failed(g.period, errConnClosed)
		case <-limit:
			full = unavailable{full}
		}
		if slots == nil {
			<-o.slots
		}
		return nil, full
	}
}

// resting is why nobody may dial now, nil if that is not so.
func (o *owned) resting() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.mu.due != 0 && o.link.clock.now() < o.mu.due {
		return unavailable{o.mu.cause}
	}
	return nil
}

// dialled takes note of what became of a dial.
func (o *owned) dialled(err error) {
	<-o.turns
	if errors.Is(err, context.Canceled) {
		return // its caller has left; that says nothing of Redis
	}
	now := o.link.clock.now()
	o.mu.Lock()
	defer o.mu.Unlock()
	if err == nil {
		o.mu.due = 0
		o.mu.backoff.reset()
		return
	}
	if now < o.mu.due {
		return // it began beside one that failed: that was counted
	}
	if o.mu.backoff.tries == 0 {
		o.mu.backoff.tries = 1 // the first try of a schedule is none to wait for
	}
	o.mu.due, o.mu.cause = now+int64(o.mu.backoff.next()), err
}

// ownDial is a dial that its caller may leave.
type ownDial struct {
	fresh   bool
	conn    *ownConn
	err     error
	done    chan struct{}
	decided atomic.Bool // the caller has left, or gets what there is
}

func (d *ownDial) run(g *grant, s *session) {
	o := g.owned
	d.conn, d.err = o.connect(g.period, s, d.fresh)
	o.dialled(d.err)
	if !d.decided.CompareAndSwap(false, true) && d.err == nil {
		o.keep(d.conn, !d.fresh)
	}
	close(d.done)
}

// leave is called by a caller who waits no longer.
func (d *ownDial) leave(why error) error {
	if !d.decided.CompareAndSwap(false, true) {
		<-d.done // it has come just now
		if d.err == nil {
			d.conn.owned.keep(d.conn, !d.fresh)
		}
	}
	return why
}

// connect dials once and shakes hands. It blocks for at most twice Dialer.Timeout, after
// what Redis.AuthCredentialsFn takes, and less once the period ends.
func (o *owned) connect(p *period, s *session, pings bool) (conn *ownConn, err error) {
	conn = &ownConn{owned: o, session: s, period: p, waits: make(chan struct{}, ownWaits)}
	d := &dialer{
		user: o.link.opts.Redis.DialCtxFn, life: p,
		attempt: func() { o.link.stats.dials.Add(1) },
		own:     conn.failed,

		plain: s.manner != mannerFull, credentials: &o.link.credentials,
	}
	stop := context.AfterFunc(p, d.close)
	free := sync.OnceFunc(func() { stop(); <-o.slots })
	d.lost = func(error) { free() }
	conn.dialer = d
	defer func() {
		// As in pipe.dial: what rueidis makes of a handshake's replies.
		if r := recover(); r != nil {
			err = fmt.Errorf("the handshake made no sense: %v", r)
		}
		d.shaken()
		if err != nil {
			d.close()
			free()
			conn, err = nil, fmt.Errorf("holdfast: another connection to %s: %w", s.addr, d.explain(err))
			return
		}
		d.settled()
	}()
	// Its one wire would be dialled at once, so there is no permit yet; forced to be
	// single it comes back nevertheless. The permit is for the dedicated wire.
	rc, err := rueidis.NewClient(o.option(s, d, pings))
	if rc == nil {
		return nil, err
	}
	d.permit.Store(true)
	conn.dedicated, _ = rc.Dedicate()
	d.shaken()
	if d.late.Load() {
		return nil, unanswered(context.DeadlineExceeded, o.link.opts.Redis.Dialer.Timeout)
	}
	if d.ended() {
		// A dead wire says why.
		err = conn.dedicated.Do(context.Background(), rc.B().Ping().Build()).NonRedisError()
		if err == nil {
			err = errConnClosed
		}
		return nil, unanswered(err, o.link.opts.Redis.Dialer.Timeout)
	}
	return conn, nil
}

// option is the rueidis configuration of a connection of a caller's own.
func (o *owned) option(s *session, d *dialer, pings bool) rueidis.ClientOption {
	option := clientOption(plan{addr: s.addr, option: o.link.opts.connection(), manner: s.manner}, d)
	option.RingScaleEachConn = ownRing
	if option.ReadBufferEachConn == 0 {
		option.ReadBufferEachConn = ownBuffer
	}
	if option.WriteBufferEachConn == 0 {
		option.WriteBufferEachConn = ownBuffer
	}
	if !pings {
		// A PING behind MULTI would be queued, and its answer be one of EXEC's; behind
		// a command that blocks it would be missed, and the connection given up. Only
		// what listens needs it: the rest is watched over by TCP and by the session.
		d.keepAlive, option.Dialer.KeepAlive = option.Dialer.KeepAlive, -1
	}
	return option
}

// do sends the commands in one pipeline and waits until ctx or the period ends.
func (c *ownConn) do(ctx context.Context, asking bool, cmds []rueidis.Completed) []rueidis.RedisResult {
	// rueidis' ring holds whoever finds it full, whatever their context says.
	select {
	case c.waits <- struct{}{}:
		defer func() { <-c.waits }()
	case <-ctx.Done():
		return failures(len(cmds), ctx.Err())
	case <-c.period.Done():
		return failures(len(cmds), c.failed(errConnClosed))
	}
	if asking {
		return withoutAsking(c.dedicated.DoMulti(ctx, withAsking(c.dedicated.B(), cmds)...))
	}
	return c.dedicated.DoMulti(ctx, cmds...)
}

// worded makes the error of a command that got no reply what its caller gets.
func (c *ownConn) worded(ctx context.Context, name string, err error) error {
	switch {
	case gaveUp(err) && ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, ErrClosed):
		return ErrClosed
	case misuse(err), errors.Is(err, rueidis.ErrClosing), errors.Is(err, rueidis.ErrDedicatedClientRecycled):
		return err
	case errors.Is(err, errNoPermit):
		err = errNoPubSub // rueidis wants a second connection for it, in RESP2
	case gaveUp(err):
		c.owned.link.stats.timeouts.Add(1)
		err = unavailable{errBudget}
	default:
		err = c.failed(err)
	}
	return &Error{Op: strings.ToLower(name), Tier: Remote, Err: err}
}

// misuse says whether rueidis refused to send a command.
func misuse(err error) bool {
	return errors.Is(err, rueidis.ErrRESP2PubSubMixed) || errors.Is(err, rueidis.ErrBlockingPubSubMixed)
}

// learn takes note of what Redis had against a command, where that is about more than it.
func (c *ownConn) learn(err error) {
	switch classify(context.Background(), err) {
	case classWriteRefused:
		c.owned.link.report(c.session, classWriteRefused, err)
	case classBusy, classUnknown:
		c.owned.link.report(c.session, classify(context.Background(), err), err)
	case classRedirect:
		c.owned.link.redirected(c.session, err)
	}
}
