package redistest

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
	"time"
)

// DialCounter dials and counts. Its Dial method has the signature of the client's dial
// hook. The zero value is ready; all methods may be called from any goroutine.
type DialCounter struct {
	mu       sync.Mutex
	attempts []attempt
	open     int
}

type attempt struct {
	addr string
	at   time.Time
}

// Dial counts an attempt and connects to addr over TCP, with TLS when cfg is
// not nil. It blocks as long as ctx and the dialer allow.
func (c *DialCounter) Dial(ctx context.Context, addr string, d *net.Dialer, cfg *tls.Config) (net.Conn, error) {
	c.mu.Lock()
	c.attempts = append(c.attempts, attempt{addr, time.Now()})
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
	return len(c.attempts)
}

// Times returns when Dial was called, in order. It does not block.
func (c *DialCounter) Times() []time.Time {
	return c.times(func(string) bool { return true })
}

// TimesTo returns when Dial was called for the address, in order. It does not
// block.
func (c *DialCounter) TimesTo(addr string) []time.Time {
	return c.times(func(a string) bool { return a == addr })
}

func (c *DialCounter) times(want func(addr string) bool) []time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	var times []time.Time
	for _, a := range c.attempts {
		if want(a.addr) {
			times = append(times, a.at)
		}
	}
	return times
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
