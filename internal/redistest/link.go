package redistest

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

const (
	chunkSize   = 32 << 10
	dialBackend = 5 * time.Second
)

// link is one client connection of a Proxy with its connection to the backend. Each
// direction has a goroutine that always reads and one that delivers when the proxy
// permits.
type link struct {
	p      *Proxy
	client *net.TCPConn
	up     *queue
	down   *queue
	ended  context.Context
	cancel context.CancelFunc

	// clientOpen is guarded by the proxy's lock.
	clientOpen bool

	mu       sync.Mutex
	closed   bool
	backend  *net.TCPConn
	upBroken bool
	downDone bool
}

func newLink(p *Proxy, client *net.TCPConn) *link {
	l := &link{p: p, client: client, up: newQueue(), down: newQueue()}
	l.ended, l.cancel = context.WithCancel(context.Background())
	return l
}

// end closes both connections, by a reset or by a normal close. Only the first call has
// an effect.
func (l *link) end(byReset bool) {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return
	}
	l.closed = true
	backend := l.backend
	l.mu.Unlock()
	l.cancel()
	for _, c := range []*net.TCPConn{l.client, backend} {
		switch {
		case c == nil:
		case byReset:
			resetConn(c)
		default:
			c.Close()
		}
	}
	l.p.forget(l)
}

// serve connects to the backend as soon as the proxy does not hang, and then delivers the
// client's bytes.
func (l *link) serve() {
	mode, ok := l.p.waitOpen(l.ended.Done())
	if !ok {
		return
	}
	if mode != Pass || !l.connect() {
		l.end(true)
		return
	}
	l.deliverUp()
}

// connect dials the backend and starts the goroutines for the bytes that come from it.
func (l *link) connect() bool {
	c, err := (&net.Dialer{Timeout: dialBackend}).DialContext(l.ended, "tcp", l.p.target())
	if err != nil {
		return false
	}
	backend := c.(*net.TCPConn)
	l.mu.Lock()
	closed := l.closed
	if !closed {
		l.backend = backend
	}
	l.mu.Unlock()
	if closed {
		resetConn(backend)
		return false
	}
	l.p.mu.Lock()
	defer l.p.mu.Unlock()
	l.p.goLocked(func() { l.readServer(backend) })
	l.p.goLocked(l.deliverDown)
	return true
}

func (l *link) readClient() {
	l.read(l.client, func(data []byte) { l.up.push(chunk{data: data}) }, func(reset bool) {
		l.p.clientGone(l)
		l.up.push(chunk{end: true, reset: reset})
	})
}

func (l *link) readServer(backend *net.TCPConn) {
	l.read(backend, func(data []byte) {
		if l.p.swallow(data) {
			return
		}
		l.down.push(chunk{data: data, due: time.Now().Add(l.p.delay())})
	}, func(reset bool) {
		l.down.push(chunk{end: true, reset: reset, due: time.Now().Add(l.p.delay())})
	})
}

func (l *link) read(c *net.TCPConn, got func([]byte), over func(reset bool)) {
	buf := make([]byte, chunkSize)
	for {
		n, err := c.Read(buf)
		if n > 0 {
			got(append([]byte(nil), buf[:n]...))
		}
		if err != nil {
			over(!errors.Is(err, io.EOF))
			return
		}
	}
}

// deliverUp writes to the backend. Once the client has closed and all its bytes are
// written, nothing can read an answer, and the link ends.
func (l *link) deliverUp() {
	for {
		c, ok := l.up.pop(l.ended.Done())
		if !ok {
			return
		}
		if _, ok := l.p.waitOpen(l.ended.Done()); !ok {
			return
		}
		if c.end {
			l.end(c.reset)
			return
		}
		if _, err := l.backend.Write(c.data); err != nil && l.markUpBroken() {
			l.end(true)
			return
		}
	}
}

// deliverDown writes to the client, each chunk when it is due.
func (l *link) deliverDown() {
	for {
		c, ok := l.down.pop(l.ended.Done())
		if !ok || !l.waitDue(c.due) {
			return
		}
		if c.end {
			l.serverDone(c.reset)
			return
		}
		n, cut := l.p.allow(len(c.data))
		_, err := l.client.Write(c.data[:n])
		if cut {
			l.end(true)
			return
		}
		if err != nil {
			// Reading from the client ends too, and with it the link, but only after the
			// client's bytes are delivered.
			return
		}
	}
}

// waitDue blocks until the time has come and the proxy does not hang.
func (l *link) waitDue(due time.Time) bool {
	if d := time.Until(due); d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
		case <-l.ended.Done():
			return false
		}
	}
	_, ok := l.p.waitOpen(l.ended.Done())
	return ok
}

// serverDone forwards the end of the server's stream. After a normal end the client sees
// it, and closes.
func (l *link) serverDone(byReset bool) {
	l.mu.Lock()
	l.downDone = true
	byReset = byReset || l.upBroken
	l.mu.Unlock()
	if byReset || l.client.CloseWrite() != nil {
		l.end(true)
	}
}

// markUpBroken records that the backend accepts no more bytes. It reports whether the
// backend's last bytes have been delivered; until then the link must stay.
func (l *link) markUpBroken() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.upBroken = true
	return l.downDone
}
