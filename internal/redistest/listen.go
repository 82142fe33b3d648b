package redistest

import (
	"bufio"
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// Listener is a loopback listener without a redis behind it. It closes with the test. Its
// methods may be called from any goroutine.
type Listener struct {
	ln    net.Listener
	serve func(c *net.TCPConn, n int)
	wg    sync.WaitGroup

	mu     sync.Mutex
	closed bool
	times  []time.Time
	conns  map[*net.TCPConn]bool
}

// Blackhole returns a listener that accepts connections, reads all bytes and never
// answers. It does not block.
func Blackhole(tb testing.TB) *Listener {
	tb.Helper()
	return listen(tb, func(c *net.TCPConn, _ int) { drain(c) })
}

const badRequest = "HTTP/1.1 400 Bad Request\r\n" +
	"Content-Type: text/plain; charset=utf-8\r\n" +
	"Connection: close\r\n\r\n400 Bad Request"

// HTTP returns a listener that answers the first bytes of a connection like a web server
// that gets a malformed request, and then closes. It does not block.
func HTTP(tb testing.TB) *Listener {
	tb.Helper()
	return listen(tb, func(c *net.TCPConn, _ int) {
		if !readSome(c) {
			return
		}
		if _, err := io.WriteString(c, badRequest); err != nil {
			return
		}
		// Closing at once could reset the connection before the answer is read.
		if c.CloseWrite() == nil && c.SetReadDeadline(time.Now().Add(time.Second)) == nil {
			drain(c)
		}
	})
}

// Garbage returns a listener that answers the first bytes of a connection with the result
// of reply, and then stays silent with the connection open. Connections are numbered from
// 0 in the order they are accepted. reply may be called from several goroutines at once.
// Garbage does not block.
func Garbage(tb testing.TB, reply func(conn int) []byte) *Listener {
	tb.Helper()
	return listen(tb, func(c *net.TCPConn, n int) {
		if !readSome(c) {
			return
		}
		if _, err := c.Write(reply(n)); err != nil {
			return
		}
		drain(c)
	})
}

// Respond returns a listener that reads commands, as a server does, and writes the result
// of answer for each, without checking it. With an empty reply the command gets no
// answer; false closes the connection after the reply. Connections are numbered from 0 in
// the order they are accepted. answer may be called from several goroutines at once.
// Respond does not block.
func Respond(tb testing.TB, answer func(conn int, command []string) (reply string, more bool)) *Listener {
	tb.Helper()
	return listen(tb, func(c *net.TCPConn, n int) {
		r := bufio.NewReader(c)
		for more := true; more; {
			command, err := readReply(r)
			if err != nil {
				return
			}
			var reply string
			reply, more = answer(n, command.strings())
			if _, err := io.WriteString(c, reply); err != nil {
				return
			}
		}
	})
}

func readSome(c net.Conn) bool {
	n, _ := c.Read(make([]byte, 4096))
	return n > 0
}

// drain reads until the other side or the rig closes. The error does not matter.
func drain(c net.Conn) { _, _ = io.Copy(io.Discard, c) }

func listen(tb testing.TB, serve func(c *net.TCPConn, n int)) *Listener {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatalf("redistest: %v", err)
	}
	l := &Listener{ln: ln, serve: serve, conns: make(map[*net.TCPConn]bool)}
	l.wg.Add(1)
	go l.acceptLoop()
	tb.Cleanup(l.Close)
	return l
}

func (l *Listener) acceptLoop() {
	defer l.wg.Done()
	for {
		c, err := l.ln.Accept()
		if err != nil {
			return
		}
		l.accept(c.(*net.TCPConn))
	}
}

func (l *Listener) accept(c *net.TCPConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		c.Close()
		return
	}
	n := len(l.times)
	l.times = append(l.times, time.Now())
	l.conns[c] = true
	l.wg.Add(1)
	go func() {
		defer l.wg.Done()
		defer l.forget(c)
		l.serve(c, n)
	}()
}

func (l *Listener) forget(c *net.TCPConn) {
	c.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, c)
}

// Addr returns the host:port of the listener. It does not block.
func (l *Listener) Addr() string { return l.ln.Addr().String() }

// Accepted returns how many connections were accepted. A client may see its
// connection a moment before it is counted. It does not block.
func (l *Listener) Accepted() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.times)
}

// AcceptTimes returns when connections were accepted, in order. It does not block.
func (l *Listener) AcceptTimes() []time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]time.Time(nil), l.times...)
}

// Close closes the listener and its connections before the test ends and
// returns when its goroutines are gone, which takes milliseconds.
func (l *Listener) Close() {
	l.ln.Close()
	l.mu.Lock()
	l.closed = true
	for c := range l.conns {
		c.Close()
	}
	l.mu.Unlock()
	l.wg.Wait()
}
