// Package dial makes one connection to one server: the permit to dial it once, TLS, credentials, the
// handshake and the cause of its failure, and the rueidis client on top.
package dial

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

// ErrNoPermit is the result of a dial that rueidis attempts on a caller's behalf.
var ErrNoPermit = errors.New("holdfast: the connection was lost; only the supervisor dials")

// Dialer is the DialCtxFn of one session. It has one permit. rueidis redials on the caller's
// goroutine, without a back-off, whenever a command finds the connection gone. Here such a dial
// fails at once, and the supervisor opens another session when its schedule says so.
type Dialer struct {
	User    func(context.Context, string, *net.Dialer, *tls.Config) (net.Conn, error)
	Life    context.Context // ends with the session
	Permit  atomic.Bool
	Attempt func()      // counts a dial
	Lost    func(error) // called when the connection has closed, for any reason

	// MapErr is set for a caller's dedicated connection, which may subscribe. It maps the errors of
	// its reads and writes. KeepAlive is its TCP keep-alive instead of rueidis' PING.
	MapErr    func(error) error
	KeepAlive time.Duration

	hearing     *Hearing // of a session; nil for a dedicated connection
	Plain       bool     // the handshake omits HELLO; see Manner
	Credentials *Credentials

	// Late is set when the handshake was cut short by its time limit.
	Late  atomic.Bool
	watch *time.Timer // written before Dial returns, stopped by HandshakeDone

	mu struct {
		sync.Mutex
		conn   *wire
		closed bool
		secure bool     // the connection uses TLS
		step   string   // the step before the first command
		sent   []string // names of the commands sent, until settled
		words  string   // the server's last error before a write failed
	}
}

// Dial makes the one connection for which the Dialer has a permit. Without it Dial fails at once,
// so that a call cannot redial (law 3).
func (d *Dialer) Dial(ctx context.Context, addr string, nd *net.Dialer, cfg *tls.Config) (net.Conn, error) {
	if !d.Permit.CompareAndSwap(true, false) {
		return nil, ErrNoPermit
	}
	auth, err := d.Credentials.login(d.Life, addr)
	if err != nil {
		return nil, err
	}
	d.Attempt()
	// rueidis passes a background context, so the limit and the cancellation are set here.
	ctx, cancel := context.WithTimeout(ctx, nd.Timeout)
	defer cancel()
	stop := context.AfterFunc(d.Life, cancel)
	defer stop()
	raw, err := d.connect(ctx, addr, d.patient(nd), cfg)
	if err != nil {
		return nil, err
	}
	guard := resp.Guard
	if d.MapErr != nil {
		guard = resp.GuardPubSub
	}
	lost := func(cause error) { d.Lost(auth.lost(cause)) }
	conn := &wire{Conn: guard(raw, resp.DefaultLimits, lost), mapErr: d.MapErr, login: auth, plain: d.Plain, hearing: d.hearing}
	conn.handshaking.Store(d)
	d.mu.Lock()
	closed := d.mu.closed
	d.mu.conn = conn
	d.mu.Unlock()
	if closed {
		conn.Close()
		return nil, net.ErrClosed
	}
	// rueidis limits the handshake too, but then waits another second to say goodbye to a server
	// that does not answer.
	d.watch = time.AfterFunc(nd.Timeout, func() {
		d.Late.Store(true)
		conn.Close()
	})
	return conn, nil
}

// patient returns the dialer with KeepAlive, if it is set.
func (d *Dialer) patient(nd *net.Dialer) *net.Dialer {
	if d.KeepAlive == 0 {
		return nd
	}
	other := *nd
	other.KeepAlive = d.KeepAlive
	return &other
}

// Connection returns the dialled connection, nil before the dial has succeeded.
func (d *Dialer) Connection() *wire {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mu.conn
}

// Ended reports that the connection has ended, even before Lost was called.
func (d *Dialer) Ended() bool {
	conn := d.Connection()
	return conn == nil || conn.Ended()
}

// HandshakeDone notes that the handshake is over, successful or not.
func (d *Dialer) HandshakeDone() {
	if d.watch != nil {
		d.watch.Stop()
	}
}

func (d *Dialer) connect(ctx context.Context, addr string, nd *net.Dialer, cfg *tls.Config) (net.Conn, error) {
	d.began(stepDial, cfg != nil)
	if d.User != nil {
		return d.connectByUser(ctx, addr, nd, cfg)
	}
	conn, err := nd.DialContext(ctx, "tcp", addr)
	if err != nil || cfg == nil {
		return conn, err
	}
	// A DialCtxFn replaces rueidis' TLS as well. This is tls.Dialer in two steps, so that an error
	// names the step that failed.
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

// connectByUser calls the user's dial function.
func (d *Dialer) connectByUser(ctx context.Context, addr string, nd *net.Dialer, cfg *tls.Config) (net.Conn, error) {
	conn, err := d.User(ctx, addr, nd, cfg)
	if err != nil {
		return nil, err
	}
	if v := reflect.ValueOf(conn); !v.IsValid() || v.Kind() == reflect.Pointer && v.IsNil() {
		return nil, errNoConn // a nil connection would make rueidis panic
	}
	return userConn{conn}, nil
}

// userConn guards a user's connection whose methods may panic, as they do if it wraps nil. They run
// on rueidis' goroutines, where no caller could recover.
type userConn struct{ net.Conn }

func (c userConn) Read(p []byte) (n int, err error) {
	defer connPanicked(&err)
	return c.Conn.Read(p)
}

func (c userConn) Write(p []byte) (n int, err error) {
	defer connPanicked(&err)
	return c.Conn.Write(p)
}

// Close closes the connection below TLS first; see resp.Conn.Close.
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

// wire is the guarded connection. Its writer yields the processor before a write. rueidis flushes
// as soon as it finds no further command: of forty callers that were answered at once, without the
// yield two callers each cause a write of 10 us, while the others wait. Two yields let the
// goroutines that are ready add their commands, so one write carries five times as many.
//
// If no goroutine is ready, a yield costs next to nothing. If it took longer than yieldTooLong, the
// writer does not yield for yieldHurry: beside goroutines that compute rather than wait, the writer
// would queue behind all of them.
type wire struct {
	*resp.Conn
	mapErr      func(error) error
	hearing     *Hearing
	hurried     time.Time              // no yield before this time
	handshaking atomic.Pointer[Dialer] // records the commands sent; nil once settled

	// For the handshake, which a single goroutine performs before all others.
	login *login
	plain bool // leave out the HELLO
	first byte // first byte received: the type of the first reply
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
	if err != nil && w.mapErr != nil {
		err = w.mapErr(err)
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
	if d := w.handshaking.Load(); d != nil {
		if !w.Conn.Ended() { // else it is the PING that rueidis sends when it closes
			d.sends(p)
		}
		n, err := w.Conn.Write(p)
		if err != nil {
			d.readLastError(w)
			if w.mapErr != nil {
				err = w.mapErr(err)
			}
		}
		return n, err
	}
	if w.mapErr != nil {
		n, err := w.Conn.Write(p) // no other caller uses it, so no yield
		if err != nil {
			err = w.mapErr(err)
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

// RemoteAddr returns the login if the connection has one: rueidis passes it to AuthCredentialsFn.
func (w *wire) RemoteAddr() net.Addr {
	if w.login != nil {
		return w.login
	}
	return w.Conn.RemoteAddr()
}

// SpeaksRESP3 reports that HELLO was answered with a map, so the connection speaks RESP3.
func (w *wire) SpeaksRESP3() bool { return w.first == '%' }

// Close ends the connection; one that is still being dialled is closed once it stands. Everything
// that waits on it fails at once, including a handshake.
func (d *Dialer) Close() {
	d.Permit.Store(false)
	d.mu.Lock()
	d.mu.closed = true
	conn := d.mu.conn
	d.mu.Unlock()
	if conn != nil {
		conn.Close()
	}
}

// ClientOption returns the rueidis configuration of one pipe.
func ClientOption(pl Plan, d *Dialer) rueidis.ClientOption {
	o := pl.Option
	if pl.Manner != MannerFull {
		o = withoutClientOptions(o)
	}
	o.TLSConfig = nodeTLS(pl.Option, pl.Addr)
	o.InitAddress = []string{pl.Addr}
	o.Sentinel = rueidis.SentinelOption{}
	o.DialCtxFn = d.Dial
	if o.AuthCredentialsFn != nil {
		o.AuthCredentialsFn = d.Credentials.answer
	}
	o.OnInvalidations = pl.Invalidated
	// Without it rueidis detects a cluster by trying cluster commands, and takes miniredis for one.
	o.ForceSingleClient = true
	// One wire: replies then arrive in the order in which the writes were sent. More wires gain
	// nothing on loopback and lose the order.
	o.PipelineMultiplex = -1
	// Without it a call whose context ends closes the connection of all calls. rueidis' other mode,
	// which saves one caller two goroutine switches, cannot be had here: OnInvalidations needs a
	// goroutine that reads all the time.
	o.AlwaysPipelining = true
	// A retry would outlive the budget; without a permit it would spin.
	o.DisableRetry = true
	// Without it rueidis dials another connection for a pipeline of 2,000 commands.
	o.BlockingPipeline = -1
	// The local tier is the cache. Tracking is enabled after the handshake: rueidis treats every
	// failure of it as a server that cannot track.
	o.DisableCache = true
	return o
}
