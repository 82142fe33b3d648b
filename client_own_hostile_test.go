package holdfast_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"net"
	"sync"
	"testing"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/rueidis"
)

// liar is a connection to a real server that answers a request with a lie.
type liar struct {
	net.Conn
	mu   sync.Mutex
	to   []byte
	says string
	told chan struct{} // closed when it has been asked
	lies []byte
}

func (l *liar) Write(p []byte) (int, error) {
	l.mu.Lock()
	if l.lies == nil && bytes.Contains(p, l.to) {
		l.lies = []byte(l.says)
		close(l.told)
		_ = l.Conn.Close()
	}
	lies := l.lies != nil
	l.mu.Unlock()
	if lies {
		return len(p), nil
	}
	return l.Conn.Write(p)
}

func (l *liar) Read(p []byte) (int, error) {
	n, err := l.Conn.Read(p)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lies != nil {
		if len(l.lies) == 0 {
			return 0, err
		}
		n = copy(p, l.lies)
		l.lies = l.lies[n:]
		return n, nil
	}
	return n, err
}

// rueidis panics on each of these, on a goroutine of its own, which ends the program.
func TestWhatAServerSaysToASubscriptionDoesNotEndTheProgram(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	for name, lie := range map[string]struct{ to, says string }{
		"BUSY to an unsubscription":        {"UNSUBSCRIBE", "-BUSY Redis is busy\r\n-BUSY Redis is busy\r\n"},
		"LOADING to an unsubscription":     {"UNSUBSCRIBE", "-LOADING Redis is loading\r\n-LOADING Redis is loading\r\n"},
		"QUEUED to a subscription":         {"\r\nSUBSCRIBE", "+QUEUED\r\n"},
		"a confirmation nobody asked for":  {"ECHO", ">3\r\n$9\r\nsubscribe\r\n$1\r\nx\r\n:1\r\n"},
		"no PONG behind an unsubscription": {"UNSUBSCRIBE", ">3\r\n$11\r\nunsubscribe\r\n_\r\n:0\r\n+OK\r\n+OK\r\n"},
		"garbage":                          {"ECHO", "$-5\r\n"},
		"a reply too many":                 {"ECHO", "+a\r\n+b\r\n"},
	} {
		var mu sync.Mutex
		conns := 0
		o := at(s.Addr())
		told := make(chan struct{})
		o.Redis.DialCtxFn = func(ctx context.Context, addr string, d *net.Dialer, _ *tls.Config) (net.Conn, error) {
			conn, err := d.DialContext(ctx, "tcp", addr)
			mu.Lock()
			defer mu.Unlock()
			if conns++; conns != 2 || err != nil {
				return conn, err
			}
			return &liar{Conn: conn, to: []byte(lie.to), says: lie.says, told: told}, nil
		}
		c := open(t, o)
		ready(t, c)
		b := c.Client().B()
		d, release := c.Client().Dedicate()
		var err error
		for _, cmd := range []rueidis.Completed{
			b.Subscribe().Channel("a").Build(), b.Echo().Message("x").Build(),
			b.Unsubscribe().Channel("a").Build(), b.Echo().Message("y").Build(), b.Echo().Message("z").Build(),
		} {
			if e := d.Do(ctx, cmd).NonRedisError(); e != nil && err == nil {
				err = e
			}
		}
		<-told
		wantUnavailable(t, name, err)
		release()
		wantTransaction(t, ctx, c.Client())
		if c.Health().State != holdfast.Up {
			t.Errorf("%s: the session is fine, and the state %v", name, c.Health().State)
		}
	}
}

// Each of these would have rueidis panic, or leave the connection so that nobody could
// use it.
func TestWhatAConnectionWouldNotSurviveIsRefused(t *testing.T) {
	ctx := begin(t)
	_, c, dials := counted(t)
	cl := c.Client()
	b := cl.B()
	d, release := cl.Dedicate()
	defer release()
	for _, cmd := range []rueidis.Completed{
		b.Monitor().Build(), b.Reset().Build(), b.Hello().Protover(2).Build(), b.Arbitrary("sync").Build(),
		b.Arbitrary("PSYNC", "?", "-1").Build(), b.ClientReply().Off().Build(), b.Arbitrary("client", "reply", "skip").Build(), {},
	} {
		if err := d.Do(ctx, cmd).Error(); err == nil {
			t.Errorf("%v was sent", cmd.Commands())
		}
	}
	if n := dials.Attempts(); n != 1 {
		t.Errorf("%d dials for what is refused", n)
	}
	must(t, d.Do(ctx, b.Multi().Build()).Error())
	if err := d.Do(ctx, b.Subscribe().Channel("c").Build()).Error(); err == nil {
		t.Error("SUBSCRIBE within MULTI was sent")
	}
	if err := d.Receive(ctx, b.Subscribe().Channel("c").Build(), nil); err == nil {
		t.Error("Receive within MULTI was sent")
	}
	if err := d.DoMulti(ctx, b.Discard().Build(), b.Multi().Build(), b.Ssubscribe().Channel("c").Build())[0].Error(); err == nil {
		t.Error("SSUBSCRIBE behind MULTI was sent")
	}
	must(t, d.Do(ctx, b.Discard().Build()).Error())
	must(t, d.Do(ctx, b.Subscribe().Channel("c").Build()).Error())
	if r := d.DoMulti(ctx); r != nil {
		t.Errorf("nothing was answered with %v", r)
	}
	//lint:ignore SA1012 a nil context is what is tested
	if err := d.Do(nil, b.Ping().Build()).Error(); err == nil {
		t.Error("a nil context was taken")
	}
}
