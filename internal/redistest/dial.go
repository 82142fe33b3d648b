package redistest

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
	"time"
)

// DialCounter dials and counts. Its Dial method fits the hook with which the
// redis client lets its user dial. The zero value is ready; all methods may be
// called from any goroutine.
type DialCounter struct {
	mu    sync.Mutex
	times []time.Time
	open  int
}

// Dial counts an attempt and connects to addr over TCP, with TLS when cfg is
// not nil. It blocks as long as ctx and the dialer allow.
func (c *DialCounter) Dial(ctx context.Context, addr string, d *net.Dialer, cfg *tls.Config) (net.Conn, error) {
	c.mu.Lock()
	c.times = append(c.times, time.Now())
	c.mu.Unlock()
	if d == nil {
		d = &net.Dialer{}
	}
	var conn net.Conn
	var err error
	if cfg != nil {
		conn, err = (&tls.Dialer{NetDialer: d, Config: cfg}).DialContext(ctx, "tcp", addr)
	} else {
		conn, err = d.DialContext(ctx, "tcp", addr)
	}
	if err != nil {
		return nil, err
	}
	c.add(1)
	return &countedConn{Conn: conn, counter: c}, nil
}

func (c *DialCounter) add(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open += n
}

// Attempts returns how often Dial was called. It does not block.
func (c *DialCounter) Attempts() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.times)
}

// Times returns when Dial was called, in order. It does not block.
func (c *DialCounter) Times() []time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]time.Time(nil), c.times...)
}

// Open returns how many dialed connections the caller has not closed yet. It
// does not block.
func (c *DialCounter) Open() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.open
}

// countedConn reports its first Close to the counter.
type countedConn struct {
	net.Conn
	counter *DialCounter
	once    sync.Once
}

func (c *countedConn) Close() error {
	c.once.Do(func() { c.counter.add(-1) })
	return c.Conn.Close()
}
