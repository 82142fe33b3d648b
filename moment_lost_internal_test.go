package holdfast

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/rueidis"
)

// An unused connection was lost while a probe was under way on it. The probe's failure was
// taken for that of the attempt after the loss: the state was Down at once, and the first
// call failed though Redis was there.
func TestAProbeThatWasUnderWayAtALossDoesNotDecideForTheFirstCall(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr())
	var downs atomic.Int64
	o := Options{Redis: rueidis.ClientOption{InitAddress: []string{proxy.Addr()}}, Timeout: 30 * time.Second}
	o.Redis.Dialer.Timeout, o.Redis.Dialer.KeepAlive = 30*time.Second, time.Hour
	o.Breaker.MinBackoff, o.Breaker.MaxBackoff = 10*time.Millisecond, 50*time.Millisecond
	o.Hooks.OnStateChange = func(ch StateChange) {
		if ch.To == Down {
			downs.Add(1)
		}
	}
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	l := c.routes.SeedLink
	for round := range 10 {
		redistest.WaitFor(t, 20*time.Second, "the last attempt to end", func() bool { return !l.TestHooks().Trying.Load() })
		proxy.SetMode(redistest.Hang)
		var began int64
		seen := 0
		redistest.WaitFor(t, 20*time.Second, "a probe that hangs", func() bool {
			l.Use() // or the link rests, and probes no more
			if b := l.TestHooks().Began.Load(); !l.TestHooks().Trying.Load() || b != began {
				began, seen = b, 0
			}
			seen++
			return seen > 5 // not the end of an attempt that was answered
		})
		l.TestHooks().Used.Store(false)
		l.TestHooks().Quiet.Store(true) // as after MaxBackoff without a call
		l.Gate.Load().Dialer.Connection().Close()
		redistest.WaitFor(t, 20*time.Second, "the next attempt", func() bool { return l.TestHooks().Began.Load() != began })
		proxy.SetMode(redistest.Pass)
		if added, err := c.Add(ctx, fmt.Sprint("key", round), nil, 0); err != nil || !added {
			t.Fatalf("round %d: %v, %v; health %+v", round, added, err, c.Health())
		}
	}
	if n := downs.Load(); n != 0 {
		t.Errorf("the state was Down %d times", n)
	}
}
