package holdfast_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

// A cache client was "non-blocking" in name: its first connect failed, its
// reconnect loop never ended, and every call waited for it.
func TestNothingListensAndEveryCallAnswersAtOnce(t *testing.T) {
	ctx := begin(t)
	var dials redistest.DialCounter
	o := at(redistest.FreeAddr(t))
	o.Redis.DialCtxFn = dials.Dial
	start := time.Now()
	c := open(t, o)
	if took := time.Since(start); took > slack() {
		t.Errorf("New took %v", took)
	}
	var calls latencies
	for i := range 1000 {
		key := fmt.Sprint("key", i)
		calls.time(func() { must(t, c.Set(ctx, key, []byte(key), 0)) })
		calls.time(func() { wantGet(t, c, key, key) })
		calls.time(func() { wantGet(t, c, "absent"+key, "") })
	}
	calls.within(t, 1, slack())
	calls.within(t, 0.99, time.Millisecond)
	for i := range 1000 {
		wantGet(t, c, fmt.Sprint("key", i), fmt.Sprint("key", i))
	}
	redistest.WaitFor(t, patience, "three seconds of attempts", func() bool {
		c.Get(ctx, "absent")
		return time.Since(start) > 3*time.Second
	})
	must(t, redistest.RateOK(dials.Times(), start))
	if n := dials.Attempts(); n < 3 {
		t.Errorf("%d dials in 3s of use: nobody looks for redis", n)
	}
	if h := c.Health(); h.State != holdfast.Connecting || h.Writable || h.LastError == nil {
		t.Errorf("health %+v", h)
	}
}

func TestAListenerThatNeverAnswersHoldsNobody(t *testing.T) {
	ctx := begin(t)
	mute := redistest.Blackhole(t)
	start := time.Now()
	c := open(t, at(mute.Addr()))
	var calls latencies
	stop := load(t, 200, func(g, i int) {
		key := fmt.Sprint(g, ":", i%10)
		calls.time(func() {
			if i%2 == 0 {
				c.Set(ctx, key, []byte("v"), 0)
			} else {
				c.Get(ctx, key)
			}
		})
		time.Sleep(time.Millisecond) // 200 callers with something else to do, too
	})
	redistest.WaitFor(t, patience, "five seconds of use", func() bool { return time.Since(start) > 5*time.Second })
	stop()
	calls.within(t, 1, 50*time.Millisecond+slack())
	calls.within(t, 0.99, 5*time.Millisecond)
	must(t, redistest.RateOKUntil(mute.AcceptTimes(), start, time.Now()))
	if !contains(c.Health().LastError.Error(), "no answer within") {
		t.Errorf("last error %v does not say that nothing answered", c.Health().LastError)
	}
}

func TestRedisThatStartsLaterIsUsedWithoutACall(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	s.Kill()
	c := open(t, at(s.Addr()))
	must(t, c.Set(ctx, "before", []byte("kept"), time.Hour))
	redistest.WaitFor(t, patience, "a failed attempt", func() bool { return c.Stats().DialAttempts > 2 })
	s.Restart()
	up := time.Now()
	// One probe interval, the handshake, and what starting a process costs here.
	redistest.WaitFor(t, 3*time.Second+slack(), "up without a call", func() bool { return c.Health().State == holdfast.Up })
	t.Logf("up %v after redis was", time.Since(up))
	drain(t, c)
	if got := s.MustDo("GET", "before"); got != "kept" {
		t.Fatalf("what was set before redis was there: %q", got)
	}
	if ttl := s.MustDo("PTTL", "before"); ttl == "-1" || ttl == "-2" {
		t.Fatalf("its ttl was lost: %s", ttl)
	}
	if c.Stats().DialAttempts < 3 || c.Stats().BreakerOpens != 0 {
		t.Fatalf("stats %+v", c.Stats())
	}
}

func TestConcurrentSetsRightAfterNewAllReachRedis(t *testing.T) {
	backends(t, func(t *testing.T, ctx context.Context, b backend) {
		c := open(t, at(b.addr))
		var wg sync.WaitGroup
		for i := range 1000 {
			wg.Go(func() {
				if err := c.Set(ctx, fmt.Sprint("k", i), []byte(fmt.Sprint("v", i)), 0); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		ready(t, c)
		drain(t, c)
		for i := range 1000 {
			if v, ok := b.get(fmt.Sprint("k", i)); !ok || v != fmt.Sprint("v", i) {
				t.Fatalf("k%d: %q, %v", i, v, ok)
			}
		}
	})
}

func TestAWrongAddressIsNamedAndHoldsNobody(t *testing.T) {
	beside(t)
	for _, tt := range []struct {
		name  string
		setup func(t *testing.T) holdfast.Options
		want  []string
	}{
		{"wrong password", func(t *testing.T) holdfast.Options {
			o := at(redistest.Start(t, "--requirepass", "right").Addr())
			o.Redis.Password = "wrong"
			return o
		}, []string{"WRONGPASS"}},
		{"no password", func(t *testing.T) holdfast.Options {
			return at(redistest.Start(t, "--requirepass", "right").Addr())
		}, []string{"NOAUTH"}},
		{"name that does not resolve", func(t *testing.T) holdfast.Options {
			o := at("redis.invalid:6379")
			// The resolver must not leave this machine.
			o.Redis.Dialer.Resolver = &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
				return nil, &net.DNSError{Err: "no such host", Name: "redis.invalid", IsNotFound: true}
			}}
			return o
		}, []string{"no such host", "lookup"}},
		{"tls to a plain port", func(t *testing.T) holdfast.Options {
			o := at(redistest.Start(t).Addr())
			o.Redis.TLSConfig = &tls.Config{ServerName: "localhost", MinVersion: tls.VersionTLS12}
			return o
		}, []string{"tls", "EOF", "reset", "deadline"}},
		{"http server", func(t *testing.T) holdfast.Options { return at(redistest.HTTP(t).Addr()) }, []string{"http"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx := begin(t)
			o := tt.setup(t)
			lines := &logLines{}
			changes := make(chan holdfast.StateChange, 16)
			o.Logger = slogTo(lines)
			o.Hooks.OnStateChange = func(s holdfast.StateChange) { changes <- s }
			start := time.Now()
			c := open(t, o)
			var calls latencies
			for i := range 200 {
				key := fmt.Sprint("k", i)
				calls.time(func() { must(t, c.Set(ctx, key, []byte("v"), 0)) })
				calls.time(func() { wantGet(t, c, key, "v") })
			}
			calls.within(t, 1, slack())
			redistest.WaitFor(t, patience, "three attempts", func() bool { return c.Stats().DialAttempts >= 3 })
			h := c.Health()
			if h.State != holdfast.Connecting || h.LastError == nil || !contains(h.LastError.Error(), tt.want...) {
				t.Errorf("health %+v does not name the cause (%v)", h, tt.want)
			}
			if took := time.Since(start); took > 4*time.Second+slack() {
				t.Errorf("three attempts took %v", took)
			}
			if got := lines.get(); len(got) != len(changes) {
				t.Errorf("%d log lines for %d changes of state: %q", len(got), len(changes), got)
			}
			if strings.Contains(fmt.Sprint(h.LastError), "wrong") && o.Redis.Password == "wrong" && strings.Contains(h.LastError.Error(), " wrong ") {
				t.Errorf("the password is in the error: %v", h.LastError)
			}
		})
	}
}

func TestCloseDuringADialThatHangsIsQuickAndLeavesNothing(t *testing.T) {
	for _, tt := range []struct {
		name string
		addr func(t *testing.T, o *holdfast.Options)
	}{
		{"handshake", func(t *testing.T, o *holdfast.Options) {
			o.Redis.InitAddress = []string{redistest.Blackhole(t).Addr()}
		}},
		{"dial", func(t *testing.T, o *holdfast.Options) {
			o.Redis.InitAddress = []string{"unreachable:1"}
			o.Redis.DialCtxFn = func(ctx context.Context, _ string, _ *net.Dialer, _ *tls.Config) (net.Conn, error) {
				<-ctx.Done() // a SYN that is dropped
				return nil, ctx.Err()
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			undisturbed(t)
			o := holdfast.Options{}
			tt.addr(t, &o)
			o.Redis.Dialer.Timeout = time.Minute
			base := runtime.NumGoroutine()
			c, err := holdfast.New(o)
			must(t, err)
			redistest.WaitFor(t, patience, "the dial", func() bool { return c.Stats().DialAttempts == 1 })
			start := time.Now()
			closedEmpty(t, c)
			if took := time.Since(start); took > 100*time.Millisecond+slack() {
				t.Errorf("close took %v", took)
			}
			redistest.GoroutinesBackTo(t, base, 1) // the listener's own for the connection
			closedEmpty(t, c)
			if _, err := c.Get(context.Background(), "k"); err != holdfast.ErrClosed {
				t.Errorf("get after close: %v", err)
			}
			if c.Health().State != holdfast.Closed {
				t.Errorf("health %+v", c.Health())
			}
		})
	}
}

func TestCloseAtTheWorstMoment(t *testing.T) {
	ctx := begin(t)
	m := miniredis.RunT(t)
	for i := range 100 {
		o := at(m.Addr())
		o.CloseTimeout, o.Redis.Dialer.Timeout = patience, patience // a failed attempt would end the delivery
		c, err := holdfast.New(o)
		must(t, err)
		var wg sync.WaitGroup
		for g := range 4 {
			wg.Go(func() {
				for j := 0; ; j++ {
					if err := c.Set(ctx, fmt.Sprint(g, j%5), []byte("v"), 0); err == holdfast.ErrClosed {
						return
					}
					c.Get(ctx, fmt.Sprint(g, j%5))
					time.Sleep(20 * time.Microsecond) // the server shares these cores
				}
			})
		}
		for range i % 10 {
			runtime.Gosched()
		}
		if i%3 == 0 {
			ready(t, c)
		}
		closedEmpty(t, c)
		wg.Wait()
	}
}

// rueidis panics on some of these, on a goroutine of its own, where nobody can
// recover: the host would be gone.
func TestGarbageFromTheServerHarmsNobody(t *testing.T) {
	ctx := begin(t)
	garbage := []string{
		"+OK\r\n+OK\r\n+OK\r\n+OK\r\n+OK\r\n+OK\r\n+OK\r\n+OK\r\n+OK\r\n",
		"$-5\r\n", "*-7\r\n", "$9999999999999\r\n", "*9999999999\r\n", "%9223372036854775807\r\n",
		">3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n", "\x00\x01\x02", "-ERR no\r\n", "*1\r\n*1\r\n*1\r\n",
	}
	for i, bytes := range garbage {
		l := redistest.Garbage(t, func(int) []byte { return []byte(bytes) })
		o := at(l.Addr())
		o.Redis.Dialer.Timeout = 100 * time.Millisecond
		c := open(t, o)
		must(t, c.Set(ctx, "k", []byte("v"), 0))
		wantGet(t, c, "k", "v")
		redistest.WaitFor(t, patience, "two attempts", func() bool { return c.Stats().DialAttempts >= 2 })
		if h := c.Health(); h.State != holdfast.Connecting || h.LastError == nil {
			t.Errorf("garbage %d: health %+v", i, h)
		}
		closed(t, c)
	}
}
