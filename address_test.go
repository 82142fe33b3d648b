package holdfast_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

// A planned move: the server hands over to its replica, and a while later the
// address leads there. Nobody may notice.
func TestAnAddressThatIsMovedToThePromotedReplicaUnderLoad(t *testing.T) {
	redistest.Long(t)
	for _, tt := range []struct {
		name string
		cut  bool
	}{{"the old connection is kept", false}, {"the old connection is cut", true}} {
		t.Run(tt.name, func(t *testing.T) {
			ctx := undisturbed(t)
			old, next := replicated(t)
			p := redistest.NewProxy(t, old.Addr())
			base := runtime.NumGoroutine()
			var changes states
			o := at(p.Addr())
			changes.record(&o)
			c := open(t, o)
			ready(t, c)
			must(t, c.Set(ctx, "before", []byte("v"), time.Hour))
			var l ledger
			stop := l.write(t, ctx, c, 8)
			passes(t, "some load", 200*time.Millisecond)
			began := time.Now()
			// It holds writes back until the replica has all of them, and then
			// changes places with it: what was acknowledged is there.
			old.MustDo("FAILOVER", "TO", "127.0.0.1", fmt.Sprint(next.Port()))
			redistest.WaitFor(t, patience, "the hand-over", func() bool {
				return role(old) == "slave" && role(next) == "master"
			})
			// The writes that it held back may have opened the circuit first.
			redistest.WaitFor(t, patience, "the replica to be known as one", func() bool {
				wantGet(t, c, "before", "v")
				h := c.Health()
				return h.State == holdfast.ReadOnly && contains(fmt.Sprint(h.LastError), "READONLY")
			})
			p.SetBackend(next.Addr())
			if tt.cut {
				p.CutAll()
			}
			moved := time.Now()
			redistest.WaitFor(t, patience, "writes at the promoted replica", func() bool {
				return c.Health().State == holdfast.Up && ours(next) == 1
			})
			took := time.Since(moved)
			t.Logf("up %v after the move, by way of %v", took, changes.between(began, time.Now()))
			if took > 3*time.Second+slack() {
				t.Errorf("up %v after the move", took)
			}
			passes(t, "some load", 200*time.Millisecond)
			stop()
			drain(t, c)
			l.calls.within(t, 0.999, 50*time.Millisecond+slack())
			l.check(t, next)
			wantGet(t, c, "before", "v")
			must(t, redistest.RateOKUntil(p.AcceptTimes()[1:], began, time.Now()))
			redistest.WaitFor(t, patience, "one connection", func() bool { return ours(next) == 1 && ours(old) == 0 && p.Active() == 1 })
			// The proxy's own, for the one connection.
			redistest.GoroutinesBackTo(t, base, 25)
		})
	}
}

// A node kept writing to what had become a replica, a thousand times a second.
func TestAServerThatBecomesAReplicaIsAskedToWriteNoMore(t *testing.T) {
	ctx := begin(t)
	s, other := replicated(t)
	p := redistest.NewProxy(t, s.Addr())
	var refusals atomic.Int64
	p.Swallow(func(chunk []byte) bool {
		refusals.Add(int64(bytes.Count(chunk, []byte("-READONLY"))))
		return false
	})
	c := open(t, at(p.Addr()))
	ready(t, c)
	must(t, c.Set(ctx, "k", []byte("before"), 0))
	s.AwaitReplicas(1)
	promote(t, other, s)
	began := time.Now()
	n := 0
	redistest.WaitFor(t, patience, "two seconds of writes to a replica", func() bool {
		for range 20 {
			n++
			must(t, c.Set(ctx, fmt.Sprint("k", n%100), []byte(fmt.Sprint(n)), 0))
			must(t, c.Delete(ctx, fmt.Sprint("gone", n%100)))
		}
		wantGet(t, c, "k", "before")
		return time.Since(began) > 2*time.Second
	})
	if h := c.Health(); h.State != holdfast.ReadOnly || h.Writable {
		t.Errorf("%+v", h)
	}
	// Three of the writes, and the probes of the schedule, which are no more than
	// the dials may be.
	if got := refusals.Load(); got > 3+5+2+1 {
		t.Errorf("%d refusals for %d writes", got, 2*n)
	}
	must(t, redistest.RateOKUntil(p.AcceptTimes()[1:], began, time.Now()))
	// It becomes a master again, by itself, with the data of the other one.
	s.MustDo("REPLICAOF", "NO", "ONE")
	waitState(t, c, holdfast.Up)
	drain(t, c)
	if got := s.MustDo("GET", fmt.Sprint("k", n%100)); got != fmt.Sprint(n) {
		t.Errorf("the last write is %s, want %d", got, n)
	}
	t.Logf("%d refusals for %d writes", refusals.Load(), 2*n)
}

// A managed service moves a name to another machine.
func TestANameIsResolvedAnewForEachDial(t *testing.T) {
	beside(t)
	redistest.Long(t)
	for _, tt := range []struct {
		name   string
		within time.Duration
		goes   func(t *testing.T, old, next *redistest.Server)
	}{
		{"the old server is a replica", time.Second, func(t *testing.T, old, next *redistest.Server) { promote(t, next, old) }},
		{"the old server is gone", time.Second, func(t *testing.T, old, next *redistest.Server) {
			old.Kill()
			next.MustDo("REPLICAOF", "NO", "ONE")
		}},
		// Its connection must be given up first: 2 x KeepAlive + ConnWriteTimeout.
		{"the old server hangs", 4*time.Second + time.Second, func(t *testing.T, old, next *redistest.Server) {
			old.Pause()
			next.MustDo("REPLICAOF", "NO", "ONE")
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx := begin(t)
			old, next := replicated(t)
			var address atomic.Value
			address.Store(old.Addr())
			var dials redistest.DialCounter
			o := at("cache.example:6379")
			o.Redis.DialCtxFn = func(ctx context.Context, addr string, d *net.Dialer, cfg *tls.Config) (net.Conn, error) {
				if addr != "cache.example:6379" {
					t.Errorf("dialled %s: the name was resolved before", addr)
				}
				return dials.Dial(ctx, address.Load().(string), d, cfg)
			}
			c := open(t, o)
			ready(t, c)
			must(t, c.Set(ctx, "k", []byte("before"), 0))
			old.AwaitReplicas(1)
			tt.goes(t, old, next)
			redistest.WaitFor(t, patience, "the loss", func() bool {
				must(t, c.Set(ctx, "k", []byte("during"), 0))
				return c.Health().State != holdfast.Up
			})
			wantGet(t, c, "k", "during")
			address.Store(next.Addr())
			moved := time.Now()
			waitState(t, c, holdfast.Up)
			drain(t, c)
			t.Logf("there %v after the name had moved", time.Since(moved))
			if took := time.Since(moved); took > tt.within*3/2+time.Second+slack() {
				t.Errorf("there %v after the name had moved", took)
			}
			if got := next.MustDo("GET", "k"); got != "during" {
				t.Errorf("the promoted replica holds %s", got)
			}
			redistest.WaitFor(t, patience, "one connection", func() bool { return dials.Open() == 1 && ours(next) == 1 })
		})
	}
}

// The address of a sentinel in the place of the server's is reported as such. The callers
// do not get the sentinel's replies to their commands.
func TestASentinelIsNoServer(t *testing.T) {
	ctx := begin(t)
	r := redistest.StartSentinel(t, 0)
	c := open(t, at(r.Addrs()[0]))
	must(t, c.Set(ctx, "k", []byte("v"), 0))
	redistest.WaitFor(t, patience, "two attempts", func() bool { return c.Stats().DialAttempts >= 2 })
	wantGet(t, c, "k", "v")
	wantGet(t, c, "absent", "")
	if h := c.Health(); h.State != holdfast.Connecting || h.Writable || !contains(fmt.Sprint(h.LastError), "sentinel") {
		t.Errorf("%+v", h)
	}
}
