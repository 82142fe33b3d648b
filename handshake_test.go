package holdfast_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/rueidis"
)

// serve gives each connection of a listener to f, and closes it after that.
func serve(t *testing.T, l net.Listener, f func(net.Conn)) string {
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(patience))
				f(c)
			}()
		}
	}()
	return l.Addr().String()
}

// loopback listens.
func loopback(t *testing.T) net.Listener {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	return l
}

// says is a server that says something at once, and hangs up.
func says(text string) func(net.Conn) {
	return func(c net.Conn) {
		_, _ = io.WriteString(c, text)
		_ = c.(*net.TCPConn).CloseWrite()
		_, _ = io.Copy(io.Discard, c)
	}
}

// hangsUp reads something, and hangs up in the middle of it.
func hangsUp(c net.Conn) { _, _ = c.Read(make([]byte, 1)) }

// Each was an EOF or a reset connection, and nobody knew of what.
func TestLastErrorSaysInWhichStepAConnectionFailed(t *testing.T) {
	begin(t)
	web := httptest.NewTLSServer(nil) // for its certificate
	defer web.Close()
	secure := &tls.Config{Certificates: web.TLS.Certificates}
	picky := secure.Clone()
	picky.ClientAuth = tls.RequireAnyClientCert
	old := picky.Clone()
	old.MaxVersion = tls.VersionTLS12
	trusting := &tls.Config{InsecureSkipVerify: true}
	handshake := func(cfg *tls.Config) func(net.Conn) {
		return func(c net.Conn) { _ = tls.Server(c, cfg).Handshake() }
	}
	real := redistest.Start(t)
	locked := redistest.Start(t, "--requirepass", "s3cret")
	hello := "%2\r\n$6\r\nserver\r\n$5\r\nredis\r\n$5\r\nproto\r\n:3\r\n"
	answers := func(n int, last string) func(net.Conn) {
		return func(c net.Conn) {
			in := bufio.NewReader(c)
			for i := range n {
				if _, err := readCommand(in); err != nil {
					return
				}
				_, _ = io.WriteString(c, []string{hello, "+OK\r\n"}[min(i%3, 1)])
			}
			_, _ = io.WriteString(c, last)
			_ = c.(*net.TCPConn).CloseWrite()
			_, _ = io.Copy(io.Discard, in)
		}
	}
	for _, tt := range []struct {
		name string
		addr string
		set  func(*holdfast.Options)
		want []string
	}{
		{"nobody there", redistest.FreeAddr(t), nil, []string{": dial ", "refused"}},
		{"too many clients", serve(t, loopback(t), says("-ERR max number of clients reached\r\n")), nil,
			[]string{`: HELLO: the server said "ERR max number of clients reached" and hung up: `}},
		{"cut off in its last words", serve(t, loopback(t), says("-ERR max number of cli")), nil,
			[]string{`: HELLO: the server said "ERR max number of cli" and hung up: `}},
		{"cut off in a blob error", serve(t, loopback(t), says("!33\r\nERR max number of cli")), nil,
			[]string{`: HELLO: the server said "ERR max number of cli" and hung up: `}},
		{"words that a terminal would obey", serve(t, loopback(t), says("-ERR \x1b[31m \"no\"\r\n")), nil,
			[]string{`: HELLO: the server said "ERR \x1b[31m "no"" and hung up: `}},
		{"its last words in pieces", serve(t, loopback(t), func(c net.Conn) {
			_, _ = io.WriteString(c, "-ERR max num")
			time.Sleep(5 * time.Millisecond)
			_, _ = io.WriteString(c, "ber of clients reached\r\n")
			_ = c.(*net.TCPConn).CloseWrite()
			_, _ = io.Copy(io.Discard, c)
		}), nil, []string{`: HELLO: the server said "ERR max number of clients reached" and hung up: `}},
		{"protected mode", serve(t, loopback(t), says("-DENIED Redis is running in protected mode\r\n")), nil,
			[]string{`: HELLO: the server said "DENIED Redis is running in protected mode" and hung up: `}},
		{"hangs up at HELLO", serve(t, loopback(t), hangsUp), nil, []string{": HELLO: the server hung up without an answer"}},
		{"hangs up behind HELLO", serve(t, loopback(t), answers(1, "")), nil, []string{": CLIENT SETINFO: the server hung up: "}},
		{"no such database", real.Addr(), func(o *holdfast.Options) { o.Redis.SelectDB = 99 }, []string{": SELECT: DB index is out of range"}},
		{"hangs up at the greeting", serve(t, loopback(t), answers(3, "")), nil, []string{": greeting: ", ": the server hung up: "}},
		{"says why at the greeting", serve(t, loopback(t), answers(4, "-ERR server is shutting down\r\n")), nil,
			[]string{`: greeting: INFO: the server said "ERR server is shutting down" and hung up: `}},
		{"cut off at the greeting", serve(t, loopback(t), answers(4, "-ERR server is shut")), nil,
			[]string{`: greeting: INFO: the server said "ERR server is shut" and hung up: `}},
		{"a TLS port, spoken plain", serve(t, loopback(t), handshake(secure)), nil, []string{": HELLO: ", "TLS port"}},
		{"a plain port, spoken TLS", real.Addr(), func(o *holdfast.Options) { o.Redis.TLSConfig = trusting }, []string{": TLS handshake: "}},
		{"a wanted certificate", serve(t, loopback(t), handshake(picky)), func(o *holdfast.Options) { o.Redis.TLSConfig = trusting },
			[]string{": HELLO: ", "certificate"}},
		{"a wanted certificate, TLS 1.2", serve(t, loopback(t), handshake(old)), func(o *holdfast.Options) { o.Redis.TLSConfig = trusting },
			[]string{": TLS handshake: "}},
		{"an unknown authority", serve(t, loopback(t), handshake(secure)), func(o *holdfast.Options) { o.Redis.TLSConfig = &tls.Config{} },
			[]string{": TLS handshake: ", "certificate"}},
		{"an HTTP server", redistest.HTTP(t).Addr(), nil, []string{": HELLO: ", "looks like an HTTP server"}},
		{"mute", redistest.Blackhole(t).Addr(), nil, []string{": HELLO: no answer within 300ms"}},
		{"mute, spoken TLS", redistest.Blackhole(t).Addr(), func(o *holdfast.Options) { o.Redis.TLSConfig = trusting },
			[]string{": TLS handshake: no answer within 300ms"}},
		{"no password", locked.Addr(), nil, []string{": HELLO: NOAUTH "}},
		{"a wrong password", locked.Addr(), func(o *holdfast.Options) { o.Redis.Password = "wr0ng" }, []string{": HELLO: WRONGPASS "}},
	} {
		o := at(tt.addr)
		o.Redis.Dialer.Timeout = 300 * time.Millisecond
		if tt.set != nil {
			tt.set(&o)
		}
		c := open(t, o)
		var text string
		saysAll := func() bool {
			_, _ = c.Get(context.Background(), "k")
			if err := c.Health().LastError; err != nil {
				text = err.Error()
			}
			return !slices.ContainsFunc(tt.want, func(want string) bool { return !strings.Contains(text, want) })
		}
		// On a busy machine an attempt may run out of its time in another step.
		for start := time.Now(); !saysAll() && time.Since(start) < 5*time.Second+4*slack(); {
			time.Sleep(time.Millisecond) // between two looks
		}
		if !saysAll() {
			t.Errorf("%s: %q; want %q", tt.name, text, tt.want)
		}
		if strings.Contains(text, "s3cret") || strings.Contains(text, "wr0ng") {
			t.Errorf("%s: a password in %q", tt.name, text)
		}
		closed(t, c)
	}
}

// A real server that has too many clients, and one that is full for a moment.
func TestMaxClientsIsToldInItsOwnWords(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	other, err := net.Dial("tcp", s.Addr())
	must(t, err)
	defer other.Close()
	_, err = io.WriteString(other, "CONFIG SET maxclients 1\r\n")
	must(t, err)
	_, err = other.Read(make([]byte, 100))
	must(t, err)
	c := open(t, at(s.Addr()))
	redistest.WaitFor(t, patience, "the first failure", func() bool { return c.Health().LastError != nil })
	if text := c.Health().LastError.Error(); !strings.Contains(text, "max number of clients") {
		t.Errorf("%q", text)
	}
	_, err = io.WriteString(other, "CONFIG SET maxclients 100\r\n")
	must(t, err)
	redistest.WaitFor(t, patience, "a connection", func() bool {
		_, _ = c.Get(ctx, "k")
		return c.Health().State == holdfast.Up
	})
}

// A connection of a caller's own fails in the same words.
func TestAnotherConnectionSaysInWhichStepItFailed(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	full := serve(t, loopback(t), says("-ERR max number of clients reached\r\n"))
	dials := 0
	o := at(s.Addr())
	o.Timeout = patience
	o.Redis.DialCtxFn = func(ctx context.Context, addr string, d *net.Dialer, _ *tls.Config) (net.Conn, error) {
		if dials++; dials > 1 {
			addr = full
		}
		return d.DialContext(ctx, "tcp", addr)
	}
	c := open(t, o)
	ready(t, c)
	b := c.Client().B()
	d, release := c.Client().Dedicate()
	defer release()
	err := d.Do(ctx, b.Ping().Build()).Error()
	if !errors.Is(err, holdfast.ErrUnavailable) || !strings.Contains(err.Error(), `HELLO: the server said "ERR max number of clients reached"`) {
		t.Errorf("%v", err)
	}
	r := c.Client().DoStream(ctx, b.Get().Key("k").Build())
	if err := r.Error(); !errors.Is(err, holdfast.ErrUnavailable) || !strings.Contains(err.Error(), "max number of clients reached") {
		t.Errorf("a stream: %v", err)
	}
	var re *rueidis.RedisError
	if errors.As(err, &re) {
		t.Errorf("%v is taken for the command's answer", err)
	}
}

// A write that fails finds what the server had said before, also where it comes in pieces.
func TestTheLastWordsOfAServerThatIsNotWrittenToAreReadToTheirEnd(t *testing.T) {
	begin(t)
	o := at("127.0.0.1:1")
	o.Redis.DialCtxFn = func(context.Context, string, *net.Dialer, *tls.Config) (net.Conn, error) {
		ours, theirs := net.Pipe()
		go func() {
			for _, piece := range []string{"-ERR max num", "ber of cli", "ents reached\r", "\n"} {
				_, _ = io.WriteString(theirs, piece)
			}
		}()
		return deafConn{ours}, nil
	}
	c := open(t, o)
	// The words are waited for for a moment only, which a stalled machine may let pass: then the next attempt finds them.
	redistest.WaitFor(t, patience, "the server's words", func() bool {
		err := c.Health().LastError
		return err != nil && strings.Contains(err.Error(), `HELLO: the server said "ERR max number of clients reached" and hung up: `)
	})
}

// deafConn cannot be written to.
type deafConn struct{ net.Conn }

func (deafConn) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }
