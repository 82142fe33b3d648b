package holdfast_test

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/rueidis"
)

// A token service took 1.3s to answer, which was more than Dialer.Timeout: the client
// never connected, and said that Redis had not answered.
func TestCredentialsThatTakeLongerThanADialAreWaitedFor(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t, "--requirepass", "secret")
	var asked atomic.Int64
	var addr atomic.Value
	o := at(s.Addr())
	o.Redis.AuthCredentialsFn = func(c rueidis.AuthCredentialsContext) (rueidis.AuthCredentials, error) {
		asked.Add(1)
		addr.Store(c.Address.String())
		if asked.Load() < 3 {
			time.Sleep(1300 * time.Millisecond)
		}
		return rueidis.AuthCredentials{Username: "default", Password: "secret"}, nil
	}
	c := open(t, o)
	ready(t, c)
	if got := addr.Load(); got != s.Addr() {
		t.Errorf("asked for %q, want %q", got, s.Addr())
	}
	must(t, c.Set(ctx, "k", []byte("v"), time.Hour))
	if v := s.MustDo("GET", "k"); v != "v" {
		t.Errorf("redis has %q", v)
	}
	if n, dials := asked.Load(), c.Stats().DialAttempts; n != 1 || dials != 1 {
		t.Errorf("asked %d times, dialled %d times", n, dials)
	}
	// Connections of a caller's own are logged in, too.
	err := c.Client().Dedicated(func(d rueidis.DedicatedClient) error {
		return d.Do(ctx, d.B().Ping().Build()).Error()
	})
	if err != nil || asked.Load() != 2 {
		t.Errorf("a dedicated connection: %v; asked %d times", err, asked.Load())
	}
	stream := c.Client().DoStream(ctx, c.Client().B().Get().Key("k").Build())
	if err := stream.Error(); err != nil || asked.Load() != 3 {
		t.Errorf("a stream: %v; asked %d times", err, asked.Load())
	}
	for stream.HasNext() {
		_, _ = stream.WriteTo(discard{})
	}
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

func TestCredentialsThatCannotBeHadAreNamed(t *testing.T) {
	beside(t)
	mine := errors.New("the vault is sealed")
	for _, tt := range []struct {
		name string
		fn   func() error
		want string
	}{
		{"an error", func() error { return mine }, "vault is sealed"},
		{"a timeout of its own", func() error { return context.DeadlineExceeded }, "deadline exceeded"},
		{"a panic", func() error { panic("no vault") }, "no vault"},
		{"the goroutine's end", func() error { runtime.Goexit(); return nil }, "ended without returning"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			begin(t)
			s := redistest.Start(t, "--requirepass", "secret")
			o := at(s.Addr())
			o.Redis.AuthCredentialsFn = func(rueidis.AuthCredentialsContext) (rueidis.AuthCredentials, error) {
				return rueidis.AuthCredentials{}, tt.fn()
			}
			c := open(t, o)
			redistest.WaitFor(t, patience, "a failed attempt", func() bool { return c.Health().LastError != nil })
			err := c.Health().LastError
			if !contains(err.Error(), "AuthCredentialsFn") || !contains(err.Error(), tt.want) || contains(err.Error(), "no answer within") {
				t.Errorf("last error: %v", err)
			}
			if tt.name == "an error" && !errors.Is(err, mine) {
				t.Errorf("%v does not wrap the function's error", err)
			}
			if n := c.Stats().DialAttempts; n != 0 {
				t.Errorf("%d dials without credentials", n)
			}
		})
	}
}

// A function that hangs is asked once, whatever the attempts, and Close waits a second
// for it at most.
func TestCredentialsThatNeverComeAreAskedForOnce(t *testing.T) {
	redistest.Long(t)
	ctx := begin(t)
	s := redistest.Start(t)
	var asked atomic.Int64
	release := make(chan struct{})
	o := at(s.Addr())
	o.Redis.AuthCredentialsFn = func(rueidis.AuthCredentialsContext) (rueidis.AuthCredentials, error) {
		asked.Add(1)
		<-release
		return rueidis.AuthCredentials{}, nil
	}
	c := open(t, o)
	redistest.WaitFor(t, patience, "the limit", func() bool {
		c.Get(ctx, "k")
		return c.Health().LastError != nil
	})
	if err := c.Health().LastError; !contains(err.Error(), "AuthCredentialsFn did not return within") {
		t.Errorf("last error: %v", err)
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("asked %d times", n)
	}
	close(release)
	ready(t, c)
}

// Credentials that are renewed on a connection that stands come from the same function,
// and its panic there ended the program.
func TestCredentialsThatCannotBeRenewedEndTheConnectionAndNothingElse(t *testing.T) {
	redistest.Long(t)
	begin(t)
	s := redistest.Start(t, "--requirepass", "secret")
	var asked atomic.Int64
	o := at(s.Addr())
	o.Redis.AuthCredentialsFn = func(rueidis.AuthCredentialsContext) (rueidis.AuthCredentials, error) {
		switch asked.Add(1) {
		case 2: // renewed, told a time that is past
		case 3:
			panic("no vault")
		}
		return rueidis.AuthCredentials{Password: "secret", RefreshAfter: time.Now().Add(-time.Hour)}, nil
	}
	var lines logLines
	o.Logger = slogTo(&lines)
	c := open(t, o)
	ready(t, c)
	began := time.Now()
	redistest.WaitFor(t, patience, "another connection", func() bool { return c.Stats().DialAttempts == 2 && c.Health().State == holdfast.Up })
	if took := time.Since(began); took < time.Second {
		t.Errorf("renewed after %v", took)
	}
	if err := c.Health().LastError; err == nil || !contains(err.Error(), "AuthCredentialsFn panicked") {
		t.Errorf("last error: %v", err)
	}
}

// A dial function that returned nothing ended the process: rueidis reads from what it
// is given.
func TestADialFunctionThatReturnsNothingIsNamed(t *testing.T) {
	beside(t)
	for _, tt := range []struct {
		name string
		dial func() (net.Conn, error)
		want string
	}{
		{"nothing", func() (net.Conn, error) { return nil, nil }, "neither a connection nor an error"},
		{"a nil pointer", func() (net.Conn, error) { return (*net.TCPConn)(nil), nil }, "neither a connection nor an error"},
		{"a nil TLS connection", func() (net.Conn, error) { return (*tls.Conn)(nil), nil }, "neither a connection nor an error"},
		{"a panic", func() (net.Conn, error) { panic("no network") }, "DialCtxFn panicked: no network"},
		{"its goroutine's end", func() (net.Conn, error) { runtime.Goexit(); return nil, nil }, "DialCtxFn ended without returning"},
		{"something around nothing", func() (net.Conn, error) { return around{}, nil }, "DialCtxFn panicked"},
		{"a TLS connection around nothing", func() (net.Conn, error) { return tls.Client(nil, &tls.Config{InsecureSkipVerify: true}), nil }, "DialCtxFn panicked"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, sentinel := range []bool{false, true} {
				ctx := begin(t)
				o := at(redistest.FreeAddr(t))
				if sentinel {
					o.Redis.Sentinel.MasterSet = "main"
				}
				o.Redis.DialCtxFn = func(context.Context, string, *net.Dialer, *tls.Config) (net.Conn, error) { return tt.dial() }
				c := open(t, o)
				redistest.WaitFor(t, patience, "a failed attempt", func() bool { return c.Health().LastError != nil })
				if err := c.Health().LastError; !contains(err.Error(), tt.want) {
					t.Errorf("sentinel %v: last error: %v", sentinel, err)
				}
				must(t, c.Set(ctx, "k", []byte("v"), 0))
				wantGet(t, c, "k", "v")
			}
		})
		t.Run(tt.name+" for a caller's own connection", func(t *testing.T) {
			ctx := begin(t)
			s := redistest.Start(t)
			var broken atomic.Bool
			o := at(s.Addr())
			o.Redis.DialCtxFn = func(ctx context.Context, addr string, d *net.Dialer, _ *tls.Config) (net.Conn, error) {
				if broken.Load() {
					return tt.dial()
				}
				return d.DialContext(ctx, "tcp", addr)
			}
			c := open(t, o)
			ready(t, c)
			broken.Store(true)
			err := c.Client().Dedicated(func(d rueidis.DedicatedClient) error {
				return d.Do(ctx, d.B().Ping().Build()).Error()
			})
			if !errors.Is(err, holdfast.ErrUnavailable) || !contains(err.Error(), tt.want) {
				t.Errorf("dedicated: %v", err)
			}
			stream := c.Client().DoStream(ctx, c.Client().B().Get().Key("k").Build())
			err = stream.Error()
			if !errors.Is(err, holdfast.ErrUnavailable) {
				t.Errorf("stream: %v", err)
			}
			must(t, c.Set(ctx, "k", []byte("v"), 0))
		})
	}
}

// around is a connection that a program has wrapped, to count its bytes or the like.
type around struct{ net.Conn }

// A function that ended its goroutine, as a test's FailNow does, ended the supervisor: the
// Cache said that it was closed, and never reached for Redis again.
func TestAFunctionThatEndsItsGoroutineEndsNoSupervisor(t *testing.T) {
	beside(t)
	s := redistest.Start(t)
	sentinel := sentinelFor(t, s.Addr()).Addr()
	for _, tt := range []struct {
		name string
		o    holdfast.Options
		set  func(o *holdfast.Options, end func())
	}{
		{"DialCtxFn", at(s.Addr()), endingDial},
		{"DialCtxFn, behind sentinels", watched(sentinel), endingDial},
		{"AllowAddress", watched(sentinel), func(o *holdfast.Options, end func()) {
			o.AllowAddress = func(string) bool { end(); return true }
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx := begin(t)
			var n atomic.Int64
			o := tt.o
			tt.set(&o, func() {
				if n.Add(1) <= 2 {
					runtime.Goexit()
				}
			})
			c := open(t, o)
			must(t, c.Set(ctx, "k", []byte(tt.name), time.Hour))
			ready(t, c)
			drain(t, c)
			if got := s.MustDo("GET", "k"); got != tt.name {
				t.Errorf("redis has %q", got)
			}
			s.MustDo("FLUSHALL")
		})
	}
}

func endingDial(o *holdfast.Options, end func()) {
	o.Redis.DialCtxFn = func(ctx context.Context, addr string, d *net.Dialer, _ *tls.Config) (net.Conn, error) {
		end()
		return d.DialContext(ctx, "tcp", addr)
	}
}
