package resp

import (
	"errors"
	"net"
	"os"
	"slices"
	"sync/atomic"
	"time"
)

// A Conn is a net.Conn whose traffic is validated. One goroutine may Read while another
// one Writes, and any number may Close.
type Conn struct {
	conn    net.Conn
	onClose func(error)
	end     atomic.Pointer[ending]
	timeout atomic.Pointer[ending]
	closed  atomic.Bool

	out      Framer // used by the goroutine that writes
	requests atomic.Int64

	in      Framer  // used by the goroutine that reads
	backlog backlog // received bytes that are not delivered yet
	errors  int64   // value of in.errors at the last look
	replies atomic.Int64
	said    atomic.Pointer[[]Said]
	settled atomic.Bool
}

// An ending is the reason why a connection ended. err is nil after a local Close.
type ending struct{ err error }

// Guard wraps c, which must be fresh: nothing written and nothing read, except for a TLS
// handshake. The connection must not be used to subscribe, because a subscription is
// answered with pushes and not with a reply: see [GuardPubSub]. A client that
// unsubscribes as a precaution, as rueidis does when it takes back a dedicated connection
// (mux.go, Store), loses the connection.
//
// onClose may be nil. It is called once, on the goroutine that closes the connection or
// that found the violation, so it must not block.
func Guard(c net.Conn, limits Limits, onClose func(error)) *Conn {
	return &Conn{
		conn:    c,
		onClose: onClose,
		in:      newFramer(limits.withDefaults()),
		out:     newRequestFramer(),
	}
}

// GuardPubSub is Guard for a connection that may subscribe. It tracks the kind of reply
// that each request expects, at the price of a lock for each request.
func GuardPubSub(c net.Conn, limits Limits, onClose func(error)) *Conn {
	g := Guard(c, limits, onClose)
	both := &ledger{}
	g.in.AllowPubSub, g.in.ledger, g.out.ledger = true, both, both
	return g
}

// Read reads from the peer. If the peer breaks the protocol, Read closes the connection
// and returns no bytes and a *ProtocolError, also on every later call. It holds back
// bytes that would make the client allocate much more than was received.
func (c *Conn) Read(p []byte) (int, error) {
	for {
		if e := c.end.Load(); e != nil {
			return 0, e.cause()
		}
		if c.backlog.ready > 0 {
			return c.backlog.read(p), nil
		}
		b := p
		if c.backlog.size > 0 {
			b = c.backlog.room()
		}
		n, err := c.conn.Read(b)
		if n > 0 {
			// A request is counted before it is sent, so the count includes every request
			// that these bytes may answer.
			c.in.allowed = c.requests.Load()
			if bad := c.in.Feed(b[:n]); bad != nil {
				return 0, c.abort(bad)
			}
			c.replies.Store(c.in.replies)
			if c.in.errors != c.errors {
				c.note()
			}
			if c.backlog.size > 0 || c.in.hold >= 0 || len(c.in.cuts) > 0 {
				n = c.keep(p, b[:n])
				if c.backlog.ready > 0 {
					return c.backlog.read(p), nil // the next Read returns err again
				}
			}
		}
		if err != nil {
			c.unfinished()
			c.failed(err)
		}
		if n > 0 || err != nil || len(p) == 0 {
			return n, err
		}
	}
}

// keep stores a chunk that cannot be delivered as it is. b is the beginning of p, or of
// the backlog's room. It returns how many bytes of p may be delivered.
func (c *Conn) keep(p, b []byte) (n int) {
	l, hold := &c.backlog, c.in.hold
	switch {
	case len(c.in.cuts) > 0:
		b, hold = c.in.apply(b)
		l.add(b)
	case l.size > 0:
		l.keep(len(b))
	default:
		n = hold
		l.add(append(make([]byte, 0, max(len(b)-hold, minChunk)), b[hold:]...))
		hold, b = 0, b[hold:]
	}
	if hold < 0 {
		l.ready = l.size
	} else if hold > 0 {
		l.ready = l.size - (len(b) - hold)
	}
	return n
}

// Streams declares that from now on the client reads top-level bulk strings in pieces, so
// they are not held back. It must not be called concurrently with Read.
func (c *Conn) Streams() { c.in.streams = true }

// Settled declares that Said will not be called any more. Further errors are not kept.
func (c *Conn) Settled() { c.settled.Store(true) }

// Said returns the first error replies that came before Settled, and the last one, which
// may be incomplete if the connection ended within it.
func (c *Conn) Said() []Said {
	if all := c.said.Load(); all != nil {
		return *all
	}
	return nil
}

func (c *Conn) note() {
	c.errors = c.in.errors
	if c.settled.Load() {
		c.in.said, c.in.deaf = nil, true
		return
	}
	all := slices.Clone(c.in.said)
	c.said.Store(&all)
}

// unfinished keeps an error reply that was incomplete when the connection ended.
func (c *Conn) unfinished() {
	if text := c.in.unfinished(); text != "" && !c.settled.Load() {
		all := append(slices.Clone(c.in.said), Said{c.in.replies + 1, text})
		c.said.Store(&all)
	}
}

// Write sends requests to the peer. Any other bytes close the connection, because the
// number of expected replies would be unknown.
func (c *Conn) Write(p []byte) (int, error) {
	if e := c.end.Load(); e != nil {
		return 0, e.cause()
	}
	if bad := c.out.Feed(p); bad != nil {
		return 0, c.abort(bad)
	}
	// A request counts from its first byte, because a server that finds it too large
	// answers without reading the rest.
	c.requests.Store(c.out.begun)
	n, err := c.conn.Write(p)
	if err != nil {
		c.failed(err)
	}
	return n, err
}

// Close closes the connection. Only the first call has an effect; no call waits for the
// peer.
func (c *Conn) Close() error {
	c.end.CompareAndSwap(nil, &ending{})
	if !c.closed.CompareAndSwap(false, true) {
		return nil
	}
	if t, ok := c.conn.(interface{ NetConn() net.Conn }); ok {
		// tls.Conn waits up to five seconds for its close-notify message to be sent to a
		// peer that does not read.
		_ = t.NetConn().Close()
	}
	err := c.conn.Close()
	if c.onClose != nil {
		cause := c.end.Load().err
		if cause == nil {
			if t := c.timeout.Load(); t != nil {
				cause = t.err
			}
		}
		c.onClose(cause)
	}
	return err
}

// Ended reports whether the connection has ended or is being closed. A Close that returns
// because another Close is running may return before onClose is called.
func (c *Conn) Ended() bool { return c.end.Load() != nil }

// Err returns the error that ended the connection: a violation, or an error of Read or
// Write other than a timeout, whichever came first. It is nil while the connection works,
// and if Close came before any error.
func (c *Conn) Err() error {
	if e := c.end.Load(); e != nil {
		return e.err
	}
	return nil
}

// Requests returns how many requests have begun to be written.
func (c *Conn) Requests() int64 { return c.requests.Load() }

// Replies returns how many requests have been answered completely.
func (c *Conn) Replies() int64 { return c.replies.Load() }

// Pending returns how many requests have not been answered.
func (c *Conn) Pending() int64 {
	replies := c.replies.Load() // read first, or the difference may be negative
	return c.requests.Load() - replies
}

// NetConn returns the wrapped connection. Bytes that bypass the Conn through it are
// neither validated nor counted.
func (c *Conn) NetConn() net.Conn { return c.conn }

// LocalAddr returns the local address of the wrapped connection.
func (c *Conn) LocalAddr() net.Addr { return c.conn.LocalAddr() }

// RemoteAddr returns the address of the peer.
func (c *Conn) RemoteAddr() net.Addr { return c.conn.RemoteAddr() }

// SetDeadline sets both deadlines of the wrapped connection.
func (c *Conn) SetDeadline(t time.Time) error { return c.conn.SetDeadline(t) }

// SetReadDeadline sets the read deadline of the wrapped connection.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.conn.SetReadDeadline(t) }

// SetWriteDeadline sets the write deadline of the wrapped connection.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.conn.SetWriteDeadline(t) }

// failed records an error of the wrapped connection. A timeout does not end the
// connection, but is passed to onClose if the connection is closed without another error.
func (c *Conn) failed(err error) {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		c.timeout.CompareAndSwap(nil, &ending{err})
		return
	}
	c.end.CompareAndSwap(nil, &ending{err})
}

// abort closes the connection because of a violation. It returns the error to report: an
// earlier one, if that ended the connection first.
func (c *Conn) abort(err error) error {
	c.end.CompareAndSwap(nil, &ending{err})
	_ = c.Close()
	return c.end.Load().cause()
}

func (e *ending) cause() error {
	if e.err == nil {
		return net.ErrClosed
	}
	return e.err
}
