package main

import (
	"fmt"
	"net"
	"sync"
	"time"
)

// mode says how the proxy treats the clients.
type mode uint8

const (
	// up: everything passes.
	up mode = iota
	// killed: connections are reset and new ones refused.
	killed
	// hung: connections are accepted and frozen. Bytes sent into them are delivered when
	// the mode changes to up, as after a stopped server is continued.
	hung
)

func (m mode) String() string { return [...]string{"up", "killed", "hung"}[m] }

// proxy stands between the clients and the server and simulates the outages.
type proxy struct {
	addr    string
	backend string
	group   sync.WaitGroup

	mu       sync.Mutex
	mode     mode
	closed   bool
	listener net.Listener  // nil while killed
	thaw     chan struct{} // closed at the end of hung; nil in other modes
	conns    map[net.Conn]bool
}

func newProxy(backend string) (*proxy, error) {
	p := &proxy{backend: backend, conns: make(map[net.Conn]bool)}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("starting the proxy: %w", err)
	}
	p.addr = listener.Addr().String()
	p.listener = listener
	p.serve(listener)
	return p, nil
}

// set changes the mode. Leaving killed may take a moment, up to 3 s, because another
// process may use the port meanwhile.
func (p *proxy) set(m mode) error {
	var reopened net.Listener
	if m != killed && p.refusing() {
		var err error
		if reopened, err = listenAgain(p.addr); err != nil {
			return err
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mode = m
	switch {
	case m == killed:
		p.cut() // before the thaw: frozen bytes must not get through
	case reopened != nil:
		p.listener = reopened
		p.serve(reopened)
	}
	switch {
	case m == hung && p.thaw == nil:
		p.thaw = make(chan struct{})
	case m != hung && p.thaw != nil:
		close(p.thaw)
		p.thaw = nil
	}
	return nil
}

func (p *proxy) refusing() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.listener == nil
}

// close resets the remaining connections and waits for the proxy's goroutines.
func (p *proxy) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.set(killed)
	p.group.Wait()
}

// cut closes the listener and resets all connections. The caller holds the lock.
func (p *proxy) cut() {
	if p.listener != nil {
		p.listener.Close()
		p.listener = nil
	}
	for conn := range p.conns {
		reset(conn)
	}
}

func reset(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	conn.Close()
}

func listenAgain(addr string) (net.Listener, error) {
	const patience, pause = 3 * time.Second, 10 * time.Millisecond
	for start := time.Now(); ; time.Sleep(pause) {
		listener, err := net.Listen("tcp", addr)
		if err == nil {
			return listener, nil
		}
		if time.Since(start) > patience {
			return nil, fmt.Errorf("the proxy could not get its port back: %w", err)
		}
	}
}

func (p *proxy) serve(listener net.Listener) {
	p.group.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			p.group.Go(func() { p.relay(conn) })
		}
	})
}

// keep registers a connection so that the next kill resets it. It resets the connection
// at once, and returns false, if the proxy is killed or closed already.
func (p *proxy) keep(conn net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mode == killed || p.closed {
		reset(conn)
		return false
	}
	p.conns[conn] = true
	return true
}

func (p *proxy) drop(conn net.Conn) {
	conn.Close()
	p.mu.Lock()
	delete(p.conns, conn)
	p.mu.Unlock()
}

// pass blocks while the mode is hung, and otherwise returns at once.
func (p *proxy) pass() {
	p.mu.Lock()
	thaw := p.thaw
	p.mu.Unlock()
	if thaw != nil {
		<-thaw
	}
}

func (p *proxy) relay(front net.Conn) {
	if !p.keep(front) {
		return
	}
	defer p.drop(front)
	p.pass()
	behind, err := net.DialTimeout("tcp", p.backend, 2*time.Second)
	if err != nil {
		reset(front)
		return
	}
	if !p.keep(behind) {
		return
	}
	defer p.drop(behind)
	back := make(chan struct{})
	go func() {
		defer close(back)
		p.copy(front, behind)
		front.Close()
	}()
	p.copy(behind, front)
	behind.Close()
	<-back
}

func (p *proxy) copy(to, from net.Conn) {
	buffer := make([]byte, 16<<10)
	for {
		n, err := from.Read(buffer)
		p.pass()
		if n > 0 {
			if _, err := to.Write(buffer[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}
