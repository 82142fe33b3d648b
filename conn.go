package holdfast

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"reflect"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-cache/holdfast/internal/resp"
	"github.com/redis/rueidis"
)

// errNoPermit is what rueidis gets when it wants to dial on a caller's behalf.
var errNoPermit = errors.New("holdfast: the connection was lost; only the supervisor dials")

// dialer is the DialCtxFn of one session. It has one permit: rueidis redials
// whenever a command finds its connection gone, on the caller's goroutine, with
// no back-off; here that fails at once, and the supervisor builds another
// session when its schedule says so.
type dialer struct {
	user    func(context.Context, string, *net.Dialer, *tls.Config) (net.Conn, error)
	life    context.Context // ends with the session
	permit  atomic.Bool
	attempt func()      // counts
	lost    func(error) // the connection closed, for whatever reason

	// own is set for a connection of a caller's own, which may subscribe: what its
	// reads and writes fail with. keepAlive takes the place of rueidis'.
	own       func(error) error
	keepAlive time.Duration

	hearing     *hearing // of a session; nil for a connection of a caller's own
	plain       bool     // no HELLO: see manner.go
	credentials *credentials

	// late is set when the handshake was cut short for taking too long.
	late  atomic.Bool
	watch *time.Timer // written before the dial returns, stopped by shaken

	mu struct {
		sync.Mutex
		conn   *wire
		closed bool
		secure bool     // it speaks TLS
		step   string   // what came before the first command
		sent   []string // the names of the commands, until settled
		words  string   // what the server had said when it could not be written to
	}
}

func (d *dialer) dial(ctx context.Context, addr string, nd *net.Dialer, cfg *tls.Config) (net.Conn, error) {
	if !d.permit.CompareAndSwap(true, false) {
		return nil, errNoPermit
	}
	auth, err := d.credentials.login(d.life, addr)
	if err != nil {
		return nil, err
	}
	d.attempt()
	// rueidis passes a background context: the bound and the end are ours.
	ctx, cancel := context.WithTimeout(ctx, nd.Timeout)
	defer cancel()
	stop := context.AfterFunc(d.life, cancel)
	defer stop()
	raw, err := d.connect(ctx, addr, d.patient(nd), cfg)
	if err != nil {
		return nil, err
	}
	guard := resp.Guard
	if d.own != nil {
		guard = resp.GuardPubSub
	}
	lost := func(cause error) { d.lost(auth.lost(cause)) }
	conn := &wire{Conn: guard(raw, resp.DefaultLimits, lost), own: d.own, login: auth, plain: d.plain, hearing: d.hearing}
	conn.shaking.Store(d)
	d.mu.Lock()
	closed := d.mu.closed
	d.mu.conn = conn
	d.mu.Unlock()
	if closed {
		conn.Close()
		return nil, net.ErrClosed
	}
	// rueidis bounds the handshake too, and then waits another second for a mute
	// server to take its goodbye.
	d.watch = time.AfterFunc(nd.Timeout, func() {
		d.late.Store(true)
		conn.Close()
	})
	return conn, nil
}

// patient is the dialer with the keep-alive that was asked for.
func (d *dialer) patient(nd *net.Dialer) *net.Dialer {
	if d.keepAlive == 0 {
		return nd
	}
	other := *nd
	other.KeepAlive = d.keepAlive
	return &other
}

// connection is what was dialled; nil before.
func (d *dialer) connection() *wire {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mu.conn
}

// ended says whether the connection has ended, also where lost is yet to be told.
func (d *dialer) ended() bool {
	conn := d.connection()
	return conn == nil || conn.Ended()
}

// shaken says that the handshake is over, one way or the other.
func (d *dialer) shaken() {
	if d.watch != nil {
		d.watch.Stop()
	}
}

func (d *dialer) connect(ctx context.Context, addr string, nd *net.Dialer, cfg *tls.Config) (net.Conn, error) {
	d.began(stepDial, cfg != nil)
	if d.user != nil {
		return d.connectByUser(ctx, addr, nd, cfg)
	}
	conn, err := nd.DialContext(ctx, "tcp", addr)
	if err != nil || cfg == nil {
		return conn, err
	}
	// A DialCtxFn replaces rueidis' own TLS as well. This is tls.Dialer in two steps, so
	// that it is known which of them failed.
	d.began(stepTLS, true)
	if cfg.ServerName == "" {
		cfg = cfg.Clone()
		cfg.ServerName = addr
		if host, _, err := net.SplitHostPort(addr); err == nil {
			cfg.ServerName = host
		}
	}
	secure := tls.Client(conn, cfg)
	if err := secure.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return secure, nil
}

// connectByUser calls the user's function, which may do anything.
func (d *dialer) connectByUser(ctx context.Context, addr string, nd *net.Dialer, cfg *tls.Config) (net.Conn, error) {
	conn, err := d.user(ctx, addr, nd, cfg)
	if err != nil {
		return nil, err
	}
	if v := reflect.ValueOf(conn); !v.IsValid() || v.Kind() == reflect.Pointer && v.IsNil() {
		return nil, errNoConn // rueidis would end the program
	}
	return userConn{conn}, nil
}

// userConn is a connection of the user's making, whose methods may panic: one that was
// wrapped around nothing does. They run on goroutines of rueidis', where nobody could
// recover.
type userConn struct{ net.Conn }

func (c userConn) Read(p []byte) (n int, err error) {
	defer connPanicked(&err)
	return c.Conn.Read(p)
}

func (c userConn) Write(p []byte) (n int, err error) {
	defer connPanicked(&err)
	return c.Conn.Write(p)
}

// Close closes what is below TLS first; see resp.Conn.Close.
func (c userConn) Close() (err error) {
	defer connPanicked(&err)
	if t, ok := c.Conn.(interface{ NetConn() net.Conn }); ok {
		_ = t.NetConn().Close()
	}
	return c.Conn.Close()
}

func (c userConn) SetDeadline(t time.Time) (err error) {
	defer connPanicked(&err)
	return c.Conn.SetDeadline(t)
}

func (c userConn) SetReadDeadline(t time.Time) (err error) {
	defer connPanicked(&err)
	return c.Conn.SetReadDeadline(t)
}

func (c userConn) SetWriteDeadline(t time.Time) (err error) {
	defer connPanicked(&err)
	return c.Conn.SetWriteDeadline(t)
}

func (c userConn) RemoteAddr() (addr net.Addr) {
	defer func() { _ = recover() }()
	return c.Conn.RemoteAddr()
}

func (c userConn) LocalAddr() (addr net.Addr) {
	defer func() { _ = recover() }()
	return c.Conn.LocalAddr()
}

func connPanicked(err *error) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("holdfast: the connection of Redis.DialCtxFn panicked: %.200v", r)
	}
}

var errNoConn = errors.New("holdfast: Redis.DialCtxFn returned neither a connection nor an error")

// wire is the guarded connection, whose writer lets others go first. rueidis
// flushes as soon as it finds no further command, so of forty callers who were
// answered at once the first two pay for a system call of 10 us each, and the
// others after them. Yielding twice lets those who are ready to run add their
// commands: five times as many go out with one write.
//
// Where nobody is ready it costs next to nothing. Where it took long it is not
// done for a while: among goroutines that compute rather than wait, the writer
// would stand behind all of them.
type wire struct {
	*resp.Conn
	own     func(error) error
	hearing *hearing
	hurried time.Time              // until then it does not yield
	shaking atomic.Pointer[dialer] // who wants to know what is sent, nil once settled

	// Of the handshake, which one goroutine makes before any other comes.
	login *login
	plain bool // its HELLO is not sent
	first byte // of what came: the type of its first reply
}

const (
	yieldTooLong = 5 * time.Millisecond
	yieldHurry   = time.Second
)

func (w *wire) Read(p []byte) (int, error) {
	if w.hearing != nil {
		w.hearing.reads(w.Conn.Replies())
	}
	n, err := w.Conn.Read(p)
	if w.first == 0 && n > 0 {
		w.first = p[0]
	}
	if err != nil && w.own != nil {
		err = w.own(err)
	}
	return n, err
}

func (w *wire) Write(p []byte) (int, error) {
	if w.plain {
		w.plain = false
		if _, err := w.Write(withoutHello(p)); err != nil {
			return 0, err
		}
		return len(p), nil
	}
	if d := w.shaking.Load(); d != nil {
		if !w.Conn.Ended() { // else it is the PING by which rueidis ends
			d.sends(p)
		}
		n, err := w.Conn.Write(p)
		if err != nil {
			d.lastWords(w)
			if w.own != nil {
				err = w.own(err)
			}
		}
		return n, err
	}
	if w.own != nil {
		n, err := w.Conn.Write(p) // nobody shares it
		if err != nil {
			err = w.own(err)
		}
		return n, err
	}
	began := time.Now()
	if w.hearing != nil {
		w.hearing.sends(w.Conn.Requests(), began)
	}
	if began.After(w.hurried) {
		runtime.Gosched()
		runtime.Gosched()
		if now := time.Now(); now.Sub(began) > yieldTooLong {
			w.hurried = now.Add(yieldHurry)
		}
	}
	return w.Conn.Write(p)
}

// RemoteAddr is the login, where the user's function was asked for one.
func (w *wire) RemoteAddr() net.Addr {
	if w.login != nil {
		return w.login
	}
	return w.Conn.RemoteAddr()
}

// speaksRESP3 says whether the handshake was answered in RESP3: HELLO with a map.
func (w *wire) speaksRESP3() bool { return w.first == '%' }

// close ends the connection, and one that is being dialled as soon as it is
// there. Everything that waits on it fails at once, also a handshake.
func (d *dialer) close() {
	d.permit.Store(false)
	d.mu.Lock()
	d.mu.closed = true
	conn := d.mu.conn
	d.mu.Unlock()
	if conn != nil {
		conn.Close()
	}
}

// connection is the configuration of a connection to Redis. rueidis gives one up whose
// PING is not answered within ConnWriteTimeout: that must not come before the end of
// the budget of any call that was sent by then, nor, for the server may have fallen
// silent just before, of one that was sent within a budget after it.
func (o *Options) connection() rueidis.ClientOption {
	c := o.Redis
	c.ConnWriteTimeout = max(c.ConnWriteTimeout, time.Duration(saturated(int64(o.Timeout), int64(o.Timeout))))
	return c
}

// clientOption is the rueidis configuration of one pipe.
func clientOption(pl plan, d *dialer) rueidis.ClientOption {
	o := pl.option
	if pl.manner != mannerFull {
		o = withoutCourtesies(o)
	}
	o.TLSConfig = nodeTLS(pl.option, pl.addr)
	o.InitAddress = []string{pl.addr}
	o.Sentinel = rueidis.SentinelOption{}
	o.DialCtxFn = d.dial
	if o.AuthCredentialsFn != nil {
		o.AuthCredentialsFn = d.credentials.answer
	}
	o.OnInvalidations = pl.invalidated
	// Without it rueidis asks the server what it is by trying cluster commands,
	// and takes miniredis for a cluster.
	o.ForceSingleClient = true
	// One wire: replies then come in the order in which the writes were sent.
	// More wires bring nothing on loopback and cost the order.
	o.PipelineMultiplex = -1
	// Without it a call whose context ends closes the connection of all.
	o.AlwaysPipelining = true
	// A retry would outlive the budget; with the permit gone it would spin.
	o.DisableRetry = true
	// 2,000 commands in one pipeline would make rueidis dial a connection.
	o.BlockingPipeline = -1
	// The local tier is the cache. Tracking is asked for once the connection
	// stands: rueidis takes every failure of it for a server that cannot track.
	o.DisableCache = true
	return o
}
