package main

import (
	"bufio"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"
)

// echo answers each line with itself, and passes on what it was sent.
func echo(t *testing.T) (addr string, lines <-chan string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	heard := make(chan string, 100)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				for in := bufio.NewScanner(conn); in.Scan(); {
					heard <- in.Text()
					io.WriteString(conn, in.Text()+"\n")
				}
			}()
		}
	}()
	return listener.Addr().String(), heard
}

func proxyForTest(t *testing.T) (*proxy, <-chan string) {
	t.Helper()
	addr, lines := echo(t)
	p, err := newProxy(addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.close)
	return p, lines
}

func dialProxy(t *testing.T, p *proxy) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", p.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func send(t *testing.T, conn net.Conn, line string) {
	t.Helper()
	if _, err := io.WriteString(conn, line+"\n"); err != nil {
		t.Fatal(err)
	}
}

func expect(t *testing.T, conn net.Conn, line string) {
	t.Helper()
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	got := make([]byte, len(line)+1)
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != line+"\n" {
		t.Fatalf("read %q, %v; want %q", got, err, line)
	}
}

// mute looks for an answer for a moment that must pass without one.
func mute(t *testing.T, conn net.Conn) {
	t.Helper()
	conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("read %d bytes, %v; want silence", n, err)
	}
}

func change(t *testing.T, p *proxy, m mode) {
	t.Helper()
	if err := p.set(m); err != nil {
		t.Fatal(err)
	}
}

func TestAProxyThatIsUpPassesBothWays(t *testing.T) {
	p, _ := proxyForTest(t)
	conn := dialProxy(t, p)
	send(t, conn, "a")
	expect(t, conn, "a")
}

func TestAKilledProxyResetsConnectionsAndRefusesNewOnes(t *testing.T) {
	p, _ := proxyForTest(t)
	conn := dialProxy(t, p)
	send(t, conn, "a")
	expect(t, conn, "a")
	change(t, p, killed)
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a connection ended with %v, want a reset", err)
	}
	if c, err := net.Dial("tcp", p.addr); !errors.Is(err, syscall.ECONNREFUSED) {
		if err == nil {
			c.Close()
		}
		t.Errorf("a dial ended with %v, want a refusal", err)
	}
	change(t, p, up)
	again := dialProxy(t, p)
	send(t, again, "b")
	expect(t, again, "b")
}

func TestAHungProxyFreezesAndLaterDeliversWhatItWasSent(t *testing.T) {
	p, lines := proxyForTest(t)
	old := dialProxy(t, p)
	send(t, old, "before")
	expect(t, old, "before")
	<-lines
	gone := dialProxy(t, p)
	send(t, gone, "hello")
	expect(t, gone, "hello")
	<-lines

	change(t, p, hung)
	fresh := dialProxy(t, p)
	send(t, old, "meanwhile")
	send(t, fresh, "new")
	send(t, gone, "last words")
	gone.Close()
	mute(t, old)
	mute(t, fresh)
	select {
	case line := <-lines:
		t.Fatalf("the server was told %q", line)
	default:
	}

	change(t, p, up)
	expect(t, old, "meanwhile")
	expect(t, fresh, "new")
	heard := map[string]bool{<-lines: true, <-lines: true, <-lines: true}
	if !heard["last words"] {
		t.Errorf("the server heard %v, and not what was sent by a client that left", heard)
	}
}

func TestAHungProxyCanBeKilled(t *testing.T) {
	p, _ := proxyForTest(t)
	conn := dialProxy(t, p)
	send(t, conn, "a")
	expect(t, conn, "a")
	change(t, p, hung)
	send(t, conn, "b")
	change(t, p, killed)
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	if n, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read %d bytes, %v; want the end", n, err)
	}
	change(t, p, hung)
	mute(t, dialProxy(t, p))
}
