package resp

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const ping = "*1\r\n$4\r\nPING\r\n"

// A script is a net.Conn whose Read returns the scripted chunks in turn, then
// EOF, and whose Write swallows everything.
type script struct {
	net.Conn
	chunks   []string
	writeErr error
	closed   atomic.Int32
}

func (s *script) Read(p []byte) (int, error) {
	if len(s.chunks) == 0 {
		return 0, io.EOF
	}
	n := copy(p, s.chunks[0])
	if s.chunks[0] = s.chunks[0][n:]; s.chunks[0] == "" {
		s.chunks = s.chunks[1:]
	}
	return n, nil
}

func (s *script) Write(p []byte) (int, error) {
	if s.writeErr != nil {
		return 0, s.writeErr
	}
	return len(p), nil
}

func (s *script) Close() error {
	s.closed.Add(1)
	return nil
}

// closings records what onClose is told.
type closings struct {
	mu   sync.Mutex
	errs []error
}

func (c *closings) onClose(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.errs = append(c.errs, err)
}

func (c *closings) only(t *testing.T) error {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.errs) != 1 {
		t.Fatalf("onClose was called %d times: %v", len(c.errs), c.errs)
	}
	return c.errs[0]
}

func send(t *testing.T, c *Conn, s string) {
	t.Helper()
	if n, err := c.Write([]byte(s)); n != len(s) || err != nil {
		t.Fatalf("Write = %d, %v", n, err)
	}
}

func mustViolate(t *testing.T, c *Conn, reason string) *ProtocolError {
	t.Helper()
	n, err := c.Read(make([]byte, 4096))
	var violation *ProtocolError
	if n != 0 || !errors.As(err, &violation) || !strings.Contains(err.Error(), reason) {
		t.Fatalf("Read = %d, %v; want a violation: %s", n, err, reason)
	}
	return violation
}

func TestRepliesPassUnchangedAndAreCounted(t *testing.T) {
	c := Guard(&script{chunks: []string{"+PO", "NG\r\n" + invalidation + "$3\r\na", "bc\r\n"}}, Limits{}, nil)
	send(t, c, ping+ping+ping)
	if got := c.Pending(); got != 3 {
		t.Errorf("Pending = %d before any reply", got)
	}
	got, err := io.ReadAll(c)
	if want := "+PONG\r\n" + invalidation + "$3\r\nabc\r\n"; string(got) != want || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	if got := c.Pending(); got != 1 {
		t.Errorf("Pending = %d after two replies", got)
	}
}

func TestAReplyNobodyAskedForIsAViolation(t *testing.T) {
	s := &script{chunks: []string{"+PONG\r\n+PONG\r\n"}}
	var closings closings
	c := Guard(s, Limits{}, closings.onClose)
	send(t, c, ping)
	first := mustViolate(t, c, `a reply nobody asked for; it said "+PONG"`)
	if first.Offset != 7 {
		t.Errorf("Offset = %d", first.Offset)
	}
	if again := mustViolate(t, c, ""); again != first {
		t.Errorf("a later Read returned %v", again)
	}
	if _, err := c.Write([]byte(ping)); err != error(first) {
		t.Errorf("a later Write returned %v", err)
	}
	if c.Err() != error(first) || closings.only(t) != error(first) || s.closed.Load() != 1 {
		t.Errorf("Err = %v, onClose was told %v, closed %d times", c.Err(), closings.errs, s.closed.Load())
	}
	if err := c.Close(); err != nil || len(closings.errs) != 1 {
		t.Errorf("Close = %v after the violation, onClose was told %v", err, closings.errs)
	}
}

func TestAReplyBeforeTheFirstRequestIsAViolation(t *testing.T) {
	c := Guard(&script{chunks: []string{"-ERR max number of clients reached\r\n"}}, Limits{}, nil)
	mustViolate(t, c, `it said "-ERR max number of clients reach`)
}

func TestTheBeginningOfAReplyNobodyAskedForIsAViolation(t *testing.T) {
	// rueidis would allocate all of it before the reply is complete.
	c := Guard(&script{chunks: []string{"$500000000\r\n"}}, Limits{}, nil)
	mustViolate(t, c, "a reply nobody asked for")
}

func TestAPushNeedsNoRequest(t *testing.T) {
	c := Guard(&script{chunks: []string{invalidation}}, Limits{}, nil)
	if got, err := io.ReadAll(c); string(got) != invalidation || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestARequestCountsFromItsFirstByte(t *testing.T) {
	c := Guard(&script{chunks: []string{"-ERR too big\r\n"}}, Limits{}, nil)
	send(t, c, ping[:5])
	if got, err := io.ReadAll(c); string(got) != "-ERR too big\r\n" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	send(t, Guard(&script{}, Limits{}, nil), ping[:5])
}

func TestAnHTTPServerIsRecognized(t *testing.T) {
	c := Guard(&script{chunks: []string{"HTTP/1.1 400 Bad Request\r\n"}}, Limits{}, nil)
	send(t, c, ping)
	mustViolate(t, c, "looks like an HTTP server")
}

func TestTheLimitsApplyToReplies(t *testing.T) {
	c := Guard(&script{chunks: []string{"$65\r\n"}}, testLimits, nil)
	send(t, c, "*2\r\n$3\r\nSET\r\n$100\r\n"+strings.Repeat("x", 100)+"\r\n")
	mustViolate(t, c, "bulk string longer than the limit")
}

func TestAnythingButARequestIsAnOutboundViolation(t *testing.T) {
	s := &script{}
	var closings closings
	c := Guard(s, Limits{}, closings.onClose)
	n, err := c.Write([]byte("PING\r\n"))
	var violation *ProtocolError
	if n != 0 || !errors.As(err, &violation) || !violation.Outbound || !strings.Contains(err.Error(), "client broke") {
		t.Errorf("Write = %d, %v", n, err)
	}
	if closings.only(t) != err || s.closed.Load() != 1 {
		t.Errorf("onClose was told %v, closed %d times", closings.errs, s.closed.Load())
	}
}

func TestTheEndOfTheStreamPassesThrough(t *testing.T) {
	var closings closings
	c := Guard(&script{chunks: []string{"$3\r\nab"}}, Limits{}, closings.onClose)
	send(t, c, ping)
	p := make([]byte, 100)
	if n, err := c.Read(p); string(p[:n]) != "$3\r\nab" || err != nil {
		t.Errorf("Read = %q, %v", p[:n], err)
	}
	if n, err := c.Read(p); n != 0 || err != io.EOF || c.Err() != io.EOF {
		t.Errorf("Read = %d, %v; Err = %v", n, err, c.Err())
	}
	_ = c.Close()
	if err := closings.only(t); err != io.EOF {
		t.Errorf("onClose was told %v", err)
	}
}

func TestAWriteErrorIsTheFirstError(t *testing.T) {
	broken := errors.New("broken pipe")
	var closings closings
	c := Guard(&script{writeErr: broken}, Limits{}, closings.onClose)
	if n, err := c.Write([]byte(ping)); n != 0 || err != broken {
		t.Errorf("Write = %d, %v", n, err)
	}
	if _, err := c.Read(make([]byte, 1)); err != broken {
		t.Errorf("Read after it: %v", err)
	}
	_ = c.Close()
	if err := closings.only(t); err != broken || c.Err() != broken {
		t.Errorf("onClose was told %v, Err = %v", err, c.Err())
	}
}

func TestCloseWithoutAnErrorTellsNil(t *testing.T) {
	s := &script{}
	var closings closings
	c := Guard(s, Limits{}, closings.onClose)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() { _ = c.Close() })
	}
	all.Wait()
	if err := closings.only(t); err != nil || c.Err() != nil || s.closed.Load() != 1 {
		t.Errorf("onClose was told %v, Err = %v, closed %d times", err, c.Err(), s.closed.Load())
	}
	if _, err := c.Write([]byte(ping)); err != net.ErrClosed {
		t.Errorf("Write after Close: %v", err)
	}
	if _, err := c.Read(make([]byte, 1)); err != net.ErrClosed {
		t.Errorf("Read after Close: %v", err)
	}
}

func TestATimeoutDoesNotEndAConnection(t *testing.T) {
	ours, theirs := net.Pipe()
	defer theirs.Close()
	var closings closings
	c := Guard(ours, Limits{}, closings.onClose)
	if err := c.SetReadDeadline(time.Now()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) || c.Err() != nil {
		t.Errorf("Read: %v, Err = %v", err, c.Err())
	}
	if err := c.SetDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = theirs.Write([]byte(invalidation)) }()
	if _, err := io.ReadFull(c, make([]byte, len(invalidation))); err != nil {
		t.Errorf("Read after the timeout: %v", err)
	}
	_ = c.Close()
	if err := closings.only(t); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("onClose was told %v", err)
	}
}

func TestCloseWakesUpReadAndWrite(t *testing.T) {
	ours, theirs := net.Pipe()
	defer theirs.Close()
	c := Guard(ours, Limits{}, nil)
	var both sync.WaitGroup
	both.Go(func() { _, _ = c.Read(make([]byte, 1)) })
	both.Go(func() { _, _ = c.Write([]byte(ping)) })
	_ = c.Close()
	both.Wait()
}

func TestCloseOfATLSConnectionDoesNotWaitForThePeer(t *testing.T) {
	// The peer reads nothing after the handshake, so that the alert that
	// tls.Conn.Close sends would block until its deadline, in five seconds.
	ours, theirs := net.Pipe()
	defer theirs.Close()
	web := httptest.NewTLSServer(nil) // for its certificate
	defer web.Close()
	client := tls.Client(ours, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12})
	server := tls.Server(theirs, web.TLS)
	shaken := make(chan error, 1)
	go func() { shaken <- server.Handshake() }()
	if err := errors.Join(client.Handshake(), <-shaken); err != nil {
		t.Fatal(err)
	}
	c := Guard(client, Limits{}, nil)
	begun := time.Now()
	_ = c.Close()
	if d := time.Since(begun); d > 2*time.Second {
		t.Errorf("Close took %v", d)
	}
	if c.NetConn() != net.Conn(client) {
		t.Error("NetConn is not the wrapped connection")
	}
}

func TestReadAndWriteMayRunConcurrently(t *testing.T) {
	ours, theirs := net.Pipe()
	c := Guard(ours, Limits{}, nil)
	const requests = 2000
	var all sync.WaitGroup
	all.Go(func() { // the server answers each request at once
		p := make([]byte, len(ping))
		for range requests {
			if _, err := io.ReadFull(theirs, p); err != nil {
				t.Error(err)
				return
			}
			if _, err := theirs.Write([]byte("+PONG\r\n")); err != nil {
				t.Error(err)
				return
			}
		}
		_ = theirs.Close()
	})
	all.Go(func() {
		for range requests {
			if _, err := c.Write([]byte(ping)); err != nil {
				t.Error(err)
				return
			}
		}
	})
	if _, err := io.Copy(io.Discard, c); err != nil {
		t.Errorf("Read: %v", err)
	}
	all.Wait()
	if got := c.Pending(); got != 0 {
		t.Errorf("Pending = %d", got)
	}
}

// endless is a peer that sends the same chunk for ever.
type endless struct {
	net.Conn
	chunk []byte
}

func (e *endless) Read(p []byte) (int, error)  { return copy(p, e.chunk), nil }
func (e *endless) Write(p []byte) (int, error) { return len(p), nil }

func BenchmarkGuardedConn(b *testing.B) { benchmarkConn(b, true) }
func BenchmarkBareConn(b *testing.B)    { benchmarkConn(b, false) }

// benchmarkConn makes round trips over loopback TCP, a pipeline of 50 requests
// with replies of 100 bytes each; the time is that of one reply.
func benchmarkConn(b *testing.B, guarded bool) {
	const pipeline = 50
	requests := []byte(strings.Repeat("*2\r\n$3\r\nGET\r\n$20\r\n01234567890123456789\r\n", pipeline))
	replies := []byte(strings.Repeat("$100\r\n"+strings.Repeat("x", 100)+"\r\n", pipeline))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		p := make([]byte, len(requests))
		for {
			if _, err := io.ReadFull(c, p); err != nil {
				return
			}
			if _, err := c.Write(replies); err != nil {
				return
			}
		}
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	if guarded {
		c = Guard(c, Limits{}, nil)
	}
	defer c.Close()
	p := make([]byte, len(replies))
	b.ReportAllocs()
	for n := 0; n < b.N; n += pipeline {
		if _, err := c.Write(requests); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(c, p); err != nil {
			b.Fatal(err)
		}
	}
}

func TestAGuardedConnectionAllocatesNothing(t *testing.T) {
	c := Guard(&endless{chunk: []byte("$3\r\nabc\r\n")}, Limits{}, nil)
	request, p := []byte(ping), make([]byte, 100)
	if n := testing.AllocsPerRun(100, func() {
		if _, err := c.Write(request); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(p); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations per round trip", n)
	}
}
