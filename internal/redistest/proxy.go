package redistest

import (
	"net"
	"sync"
	"testing"
	"time"
)

// Mode is how a Proxy treats connections and bytes.
type Mode int

const (
	// Pass forwards everything.
	Pass Mode = iota
	// Refuse accepts new connections and resets them at once: the client's dial or its
	// first read fails. Existing connections go on.
	Refuse
	// Hang accepts connections and keeps them open, accepts all bytes and delivers none,
	// in either direction. It delivers them in order once the mode changes, like a
	// network that stalls and recovers. Bytes of a client that has closed meanwhile are
	// delivered, too.
	Hang
	// Cut resets all existing connections and then acts like Refuse.
	Cut
)

// String returns the mode's name. It does not block.
func (m Mode) String() string {
	switch m {
	case Pass:
		return "Pass"
	case Refuse:
		return "Refuse"
	case Hang:
		return "Hang"
	case Cut:
		return "Cut"
	}
	return "unknown"
}

// Proxy is a TCP proxy in front of one backend that always listens, counts, and
// misbehaves on request. Its methods may be called from any goroutine.
type Proxy struct {
	ln net.Listener
	wg sync.WaitGroup

	mu        sync.Mutex
	closed    bool
	mode      Mode
	changed   chan struct{}
	backend   string
	latency   time.Duration
	cutArmed  bool
	cutAfter  int
	times     []time.Time
	links     map[*link]bool
	active    int
	swallowed int

	// matchMu keeps calls of match apart, so that it may have state.
	matchMu sync.Mutex
	match   func([]byte) bool
}

// NewProxy returns a proxy on a free loopback port that passes everything to
// backend and ends with the test. The backend need not be there yet. It does
// not block.
func NewProxy(tb testing.TB, backend string) *Proxy {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatalf("redistest: %v", err)
	}
	p := &Proxy{ln: ln, backend: backend, changed: make(chan struct{}), links: make(map[*link]bool)}
	p.wg.Add(1)
	go p.acceptLoop()
	tb.Cleanup(p.Close)
	return p
}

func (p *Proxy) acceptLoop() {
	defer p.wg.Done()
	for {
		c, err := p.ln.Accept()
		if err != nil {
			return
		}
		p.accept(c.(*net.TCPConn))
	}
}

func (p *Proxy) accept(c *net.TCPConn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.times = append(p.times, time.Now())
	if p.closed || p.mode == Refuse || p.mode == Cut {
		resetConn(c)
		return
	}
	l := newLink(p, c)
	p.links[l] = true
	p.active++
	l.clientOpen = true
	p.goLocked(l.readClient)
	p.goLocked(l.serve)
}

// goLocked runs f in a goroutine that Close waits for. The caller holds p.Mu.
func (p *Proxy) goLocked(f func()) {
	p.wg.Add(1)
	go func() {
		defer p.wg.Done()
		f()
	}()
}

// clientGone removes a link from the count of open client connections.
func (p *Proxy) clientGone(l *link) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l.clientOpen {
		l.clientOpen = false
		p.active--
	}
}

func (p *Proxy) forget(l *link) {
	p.clientGone(l)
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.links, l)
}

// waitOpen blocks while the proxy hangs and returns the mode after that; false means that
// stop was closed.
func (p *Proxy) waitOpen(stop <-chan struct{}) (Mode, bool) {
	for {
		p.mu.Lock()
		mode, changed := p.mode, p.changed
		p.mu.Unlock()
		if mode != Hang {
			return mode, true
		}
		select {
		case <-changed:
		case <-stop:
			return mode, false
		}
	}
}

// swallow reports whether a chunk from the server must be dropped.
func (p *Proxy) swallow(data []byte) bool {
	p.matchMu.Lock()
	defer p.matchMu.Unlock()
	if p.match == nil || !p.match(data) {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.swallowed++
	return true
}

// allow returns how many of n bytes may go to a client, and whether the connection must
// be cut after them.
func (p *Proxy) allow(n int) (int, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.cutArmed {
		return n, false
	}
	if n <= p.cutAfter {
		p.cutAfter -= n
		if p.cutAfter > 0 {
			return n, false
		}
	} else {
		n = p.cutAfter
	}
	p.cutArmed = false
	return n, true
}

func (p *Proxy) delay() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.latency
}

func (p *Proxy) target() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.backend
}

// Addr returns the host:port clients connect to. It does not block.
func (p *Proxy) Addr() string { return p.ln.Addr().String() }

// Accepted returns the total number of accepted connections, including those that were
// reset at once. A client may see its connection a moment before it is counted. It does
// not block.
func (p *Proxy) Accepted() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.times)
}

// AcceptTimes returns when connections were accepted, in order. It does not block.
func (p *Proxy) AcceptTimes() []time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]time.Time(nil), p.times...)
}

// Active returns how many client connections neither the client nor the proxy
// has closed. It does not block, and follows a close within a moment.
func (p *Proxy) Active() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.active
}

// Swallowed returns how many chunks Swallow has dropped. It does not block.
func (p *Proxy) Swallowed() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.swallowed
}

// SetBackend sets the backend for connections that are dialed from now on; existing ones
// keep theirs. It does not block.
func (p *Proxy) SetBackend(addr string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.backend = addr
}

// SetMode changes the mode for later bytes and connections. With Cut, all existing
// connections have been reset when it returns. It does not block.
func (p *Proxy) SetMode(m Mode) {
	p.mu.Lock()
	p.mode = m
	close(p.changed)
	p.changed = make(chan struct{})
	p.mu.Unlock()
	if m == Cut {
		p.CutAll()
	}
}

// CutAll resets all existing connections and does not change the mode. It does not block.
func (p *Proxy) CutAll() {
	p.mu.Lock()
	links := make([]*link, 0, len(p.links))
	for l := range p.links {
		links = append(links, l)
	}
	p.mu.Unlock()
	for _, l := range links {
		l.end(true)
	}
}

// SetLatency delays later bytes from the server by d. It is a latency and not a
// bandwidth: chunks that arrive together leave together, d later, in the same order. It
// does not block.
func (p *Proxy) SetLatency(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.latency = d
}

// CutReplyAfter lets n more bytes pass from the server to clients and then resets the
// connection of the last of them, once. With n = 0 it resets the connection on which the
// next byte would pass. It does not block; a negative n cancels the order.
func (p *Proxy) CutReplyAfter(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cutArmed, p.cutAfter = n >= 0, n
}

// Swallow drops every chunk from the server for which match returns true; nil lets all
// chunks pass again. A chunk is the result of one read, so it may hold several messages
// or a part of one. match is called when the chunk arrives, for one chunk at a time, and
// must not call the proxy's Swallow. It blocks while match runs on another goroutine.
func (p *Proxy) Swallow(match func(serverToClientChunk []byte) bool) {
	p.matchMu.Lock()
	defer p.matchMu.Unlock()
	p.match = match
}

// Close ends the proxy before the test does: it stops listening, resets all connections
// and returns when its goroutines have ended, which takes milliseconds. It may be called
// twice.
func (p *Proxy) Close() {
	p.ln.Close()
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.CutAll()
	p.wg.Wait()
}

// resetConn closes a connection so that the other side sees a reset. An error means
// that it is closed already.
func resetConn(c *net.TCPConn) {
	_ = c.SetLinger(0)
	c.Close()
}
