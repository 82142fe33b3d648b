package holdfast_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

// virtual is a miniredis within a bubble of virtual time: connections are pipes,
// the clock is the bubble's.
type virtual struct {
	redis *miniredis.Miniredis

	mu    sync.Mutex
	away  bool          // dials are refused
	mute  bool          // dials succeed and nothing answers
	thaw  chan struct{} // not nil: nothing is delivered until it is closed
	dials []time.Time
	conns []net.Conn
}

func newVirtual(t *testing.T) *virtual {
	m := miniredis.NewMiniRedis()
	m.ClockTTL(true)
	t.Cleanup(m.Close)
	return &virtual{redis: m}
}

func (v *virtual) options() holdfast.Options {
	o := at("virtual:6379")
	o.Redis.DialCtxFn = v.dial
	return o
}

func (v *virtual) dial(context.Context, string, *net.Dialer, *tls.Config) (net.Conn, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.dials = append(v.dials, time.Now())
	var conn net.Conn
	var err error
	switch {
	case v.away:
		return nil, errors.New("connection refused")
	case v.mute:
		var peer net.Conn
		conn, peer = net.Pipe()
		go func() { // takes what comes and answers nothing
			buf := make([]byte, 4096)
			for {
				if _, err := peer.Read(buf); err != nil {
					return
				}
			}
		}()
	default:
		if conn, err = v.redis.Dial(); err == nil {
			conn = &freezable{conn, v, make(chan struct{})}
		}
	}
	if err == nil {
		v.conns = append(v.conns, conn)
	}
	return conn, err
}

// freezable is a connection whose peer can hang.
type freezable struct {
	net.Conn
	v      *virtual
	closed chan struct{}
}

func (f *freezable) Read(p []byte) (int, error) {
	n, err := f.Conn.Read(p)
	f.v.mu.Lock()
	thaw := f.v.thaw
	f.v.mu.Unlock()
	if thaw != nil {
		select {
		case <-thaw:
		case <-f.closed:
			return 0, net.ErrClosed
		}
	}
	return n, err
}

func (f *freezable) Close() error {
	err := f.Conn.Close()
	f.v.mu.Lock()
	defer f.v.mu.Unlock()
	select {
	case <-f.closed:
	default:
		close(f.closed)
	}
	return err
}

// freeze hangs the server, as far as clients can see.
func (v *virtual) freeze() {
	v.mu.Lock()
	v.thaw = make(chan struct{})
	v.mu.Unlock()
}

func (v *virtual) unfreeze() {
	v.mu.Lock()
	close(v.thaw)
	v.thaw = nil
	v.mu.Unlock()
}

// set changes what dials meet; cut ends the connections there are.
func (v *virtual) set(away, mute, cut bool) {
	v.mu.Lock()
	v.away, v.mute = away, mute
	var conns []net.Conn
	if cut {
		conns, v.conns = v.conns, nil
	}
	v.mu.Unlock()
	for _, c := range conns {
		c.Close()
	}
}

func (v *virtual) times() []time.Time {
	v.mu.Lock()
	defer v.mu.Unlock()
	return append([]time.Time(nil), v.dials...)
}

func (v *virtual) resetTimes() {
	v.mu.Lock()
	v.dials = nil
	v.mu.Unlock()
}

// inBubble runs the test in virtual time, with a cache that is up.
func inBubble(t *testing.T, o func(*holdfast.Options), test func(ctx context.Context, c *holdfast.Cache, v *virtual)) {
	synctest.Test(t, func(t *testing.T) {
		v := newVirtual(t)
		opts := v.options()
		if o != nil {
			o(&opts)
		}
		c := open(t, opts)
		ready(t, c)
		test(context.Background(), c, v)
	})
}

func TestAnHourOfOutageFollowsTheSchedule(t *testing.T) {
	inBubble(t, nil, func(ctx context.Context, c *holdfast.Cache, v *virtual) {
		v.resetTimes()
		v.set(true, false, true)
		start := time.Now()
		for time.Since(start) < time.Hour {
			time.Sleep(250 * time.Millisecond)
			wantGet(t, c, "absent", "")
		}
		dials := v.times()
		must(t, redistest.RateOKUntil(dials, start, time.Now()))
		// Doubling from 100ms: within a second 0, 0.1, 0.3, 0.7.
		if n := len(dials); n < 3600 || n > 4300 {
			t.Errorf("%d attempts in an hour of use, want about one a second", n)
		}
		for i := 6; i < len(dials); i++ {
			if gap := dials[i].Sub(dials[i-1]); gap < 850*time.Millisecond || gap > time.Second {
				t.Fatalf("attempts %d and %d are %v apart, want 0.85s to 1s", i-1, i, gap)
			}
		}
		if s := c.Stats(); s.BreakerOpens != 1 {
			t.Errorf("the circuit opened %d times", s.BreakerOpens)
		}
		v.set(false, false, false)
		time.Sleep(1100 * time.Millisecond)
		if h := c.Health(); h.State != holdfast.Up {
			t.Errorf("health a probe interval after redis was back: %+v", h)
		}
	})
}

func TestAnUnusedClientLooksOnceAMinuteUntilItIsUsed(t *testing.T) {
	inBubble(t, nil, func(ctx context.Context, c *holdfast.Cache, v *virtual) {
		v.set(true, false, true)
		time.Sleep(time.Minute)
		v.resetTimes()
		time.Sleep(time.Hour)
		if n := len(v.times()); n < 59 || n > 75 {
			t.Errorf("%d attempts in an hour without a call", n)
		}
		v.set(false, false, false)
		v.resetTimes()
		wantGet(t, c, "absent", "")
		time.Sleep(time.Second)
		if h := c.Health(); h.State != holdfast.Up {
			t.Errorf("health a second after it was used: %+v", h)
		}
		if n := len(v.times()); n != 1 {
			t.Errorf("%d dials to come back, want 1", n)
		}
	})
}

func TestAnUnusedClientWithAJournalGoesOnLooking(t *testing.T) {
	inBubble(t, nil, func(ctx context.Context, c *holdfast.Cache, v *virtual) {
		v.set(true, false, true)
		time.Sleep(time.Second)
		must(t, c.Set(ctx, "k", []byte("v"), 0))
		time.Sleep(10 * time.Minute)
		v.set(false, false, false)
		time.Sleep(2 * time.Second)
		if got, _ := v.redis.Get("k"); got != "v" {
			t.Errorf("what was set in the outage is %q", got)
		}
	})
}

// A server that accepts and drops at once is no reason to dial at full speed.
func TestAFlappingServerIsBackedOffFrom(t *testing.T) {
	inBubble(t, nil, func(ctx context.Context, c *holdfast.Cache, v *virtual) {
		v.resetTimes()
		start := time.Now()
		for time.Since(start) < time.Minute {
			v.set(false, false, true)
			time.Sleep(10 * time.Millisecond)
			c.Get(ctx, "k")
		}
		if err := redistest.RateOKUntil(v.times(), start, time.Now()); err != nil {
			t.Error(err)
		}
	})
}

func TestACallWaitsForItsBudgetAndNoLonger(t *testing.T) {
	inBubble(t, nil, func(ctx context.Context, c *holdfast.Cache, v *virtual) {
		must(t, c.Set(ctx, "k", []byte("v"), 0))
		time.Sleep(10 * time.Second) // the copy is in doubt by now
		v.freeze()
		start := time.Now()
		e, err := c.Lookup(ctx, "k")
		if took := time.Since(start); took < 46*time.Millisecond || took > 50*time.Millisecond {
			t.Errorf("a get on a hung server took %v, want the budget of 50ms", took)
		}
		if err != nil || string(e.Value) != "v" || !e.Degraded || e.Tier != holdfast.Local {
			t.Errorf("lookup: %+v, %v; want the copy in doubt", e, err)
		}
		for range 4 {
			wantGet(t, c, "absent", "")
		}
		if h := c.Health(); h.State != holdfast.Down {
			t.Errorf("health after five timeouts: %+v", h)
		}
		start = time.Now()
		wantGet(t, c, "absent", "")
		must(t, c.Set(ctx, "n", []byte("v"), 0))
		if took := time.Since(start); took != 0 {
			t.Errorf("with the circuit open calls took %v", took)
		}
		// The connection is given up after twice the keep-alive and the write
		// timeout; from then on it is dialled.
		time.Sleep(5 * time.Second)
		v.unfreeze()
		time.Sleep(2 * time.Second)
		if h := c.Health(); h.State != holdfast.Up || h.JournalKeys != 0 {
			t.Errorf("health after it thawed: %+v", h)
		}
		if got, _ := v.redis.Get("n"); got != "v" {
			t.Errorf("what was set in the outage is %q", got)
		}
	})
}

func TestForeignWritesAreSeenAfterUntrackedTTL(t *testing.T) {
	inBubble(t, nil, func(ctx context.Context, c *holdfast.Cache, v *virtual) {
		must(t, c.Set(ctx, "k", []byte("ours"), 0))
		v.redis.Set("k", "theirs")
		time.Sleep(4900 * time.Millisecond)
		wantGet(t, c, "k", "ours")
		time.Sleep(200 * time.Millisecond)
		wantGet(t, c, "k", "theirs")
		if c.Health().Tracking {
			t.Error("health claims tracking")
		}
	})
}

func TestACopyNeverOutlivesTheOriginal(t *testing.T) {
	inBubble(t, func(o *holdfast.Options) { o.Tracking.UntrackedTTL = time.Hour }, func(ctx context.Context, c *holdfast.Cache, v *virtual) {
		v.redis.Set("k", "v")
		v.redis.SetTTL("k", 3*time.Second)
		wantGet(t, c, "k", "v")
		time.Sleep(2900 * time.Millisecond)
		e, err := c.Lookup(ctx, "k")
		if err != nil || e.Tier != holdfast.Local || e.TTL <= 0 || e.TTL > 100*time.Millisecond {
			t.Errorf("lookup: %+v, %v", e, err)
		}
		time.Sleep(200 * time.Millisecond)
		wantGet(t, c, "k", "")
	})
}

func TestMaxTTLBoundsAFreshCopy(t *testing.T) {
	inBubble(t, func(o *holdfast.Options) {
		o.Tracking.UntrackedTTL = time.Hour
		o.Local.MaxTTL = time.Minute
	}, func(ctx context.Context, c *holdfast.Cache, v *virtual) {
		must(t, c.Set(ctx, "k", []byte("ours"), 0))
		v.redis.Set("k", "theirs")
		time.Sleep(59 * time.Second)
		wantGet(t, c, "k", "ours")
		time.Sleep(2 * time.Second)
		wantGet(t, c, "k", "theirs")
	})
}

func TestOutageServesCopiesWithinServeForAndServeStaleFor(t *testing.T) {
	for _, tt := range []struct {
		name     string
		outage   holdfast.OutageOptions
		ttl      time.Duration
		after    time.Duration
		want     string
		stale    bool
		degraded bool
	}{
		{"its own ttl", holdfast.OutageOptions{}, time.Hour, 59 * time.Minute, "v", false, true},
		{"past its ttl", holdfast.OutageOptions{}, time.Hour, 61 * time.Minute, "", false, true},
		{"without ttl", holdfast.OutageOptions{}, 0, 100 * time.Hour, "v", false, true},
		{"within ServeFor", holdfast.OutageOptions{ServeFor: time.Minute}, time.Hour, 50 * time.Second, "v", false, true},
		{"past ServeFor", holdfast.OutageOptions{ServeFor: time.Minute}, time.Hour, 70 * time.Second, "", false, true},
		{"within ServeStaleFor", holdfast.OutageOptions{ServeStaleFor: time.Minute}, time.Minute, 90 * time.Second, "v", true, true},
		{"past ServeStaleFor", holdfast.OutageOptions{ServeStaleFor: time.Minute}, time.Minute, 150 * time.Second, "", false, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, func(o *holdfast.Options) { o.Outage = tt.outage }, func(ctx context.Context, c *holdfast.Cache, v *virtual) {
				must(t, c.Set(ctx, "k", []byte("v"), tt.ttl))
				v.set(true, false, true)
				time.Sleep(tt.after)
				e, err := c.Lookup(ctx, "k")
				if string(e.Value) != tt.want || (tt.want == "") != errors.Is(err, holdfast.ErrMiss) {
					t.Errorf("lookup: %+v, %v", e, err)
				}
				if e.Stale != tt.stale || e.Degraded != tt.degraded {
					t.Errorf("lookup: %+v", e)
				}
			})
		})
	}
}

func TestASetWhoseTimeRanOutInTheOutageDoesNotReturn(t *testing.T) {
	inBubble(t, nil, func(ctx context.Context, c *holdfast.Cache, v *virtual) {
		v.redis.Set("k", "before the outage")
		wantGet(t, c, "k", "before the outage")
		v.set(true, false, true)
		time.Sleep(time.Second)
		must(t, c.Set(ctx, "k", []byte("short"), 5*time.Second))
		wantGet(t, c, "k", "short")
		time.Sleep(6 * time.Second)
		wantGet(t, c, "k", "")
		v.set(false, false, false)
		wantGet(t, c, "k", "")
		time.Sleep(5 * time.Second)
		wantGet(t, c, "k", "")
		if v.redis.Exists("k") {
			got, _ := v.redis.Get("k")
			t.Errorf("redis holds %q", got)
		}
	})
}

// The value from before the outage ended by its own TTL during it: its absence is
// nobody's doing, and the set of the outage must be there afterwards.
func TestASetSurvivesTheEndOfTheValueItReplaced(t *testing.T) {
	inBubble(t, nil, func(ctx context.Context, c *holdfast.Cache, v *virtual) {
		must(t, c.Set(ctx, "k", []byte("before"), 5*time.Second))
		v.set(true, false, true)
		time.Sleep(time.Second)
		must(t, c.Set(ctx, "k", []byte("ours"), 0))
		time.Sleep(10 * time.Second)
		v.set(false, false, false)
		drain(t, c)
		if got, _ := v.redis.Get("k"); got != "ours" {
			t.Errorf("redis holds %q; stats %+v", got, c.Stats())
		}
	})
}

// Many writes of one key follow a write that timed out.
func TestAHotKeyAfterATimeoutIsReplayed(t *testing.T) {
	inBubble(t, nil, func(ctx context.Context, c *holdfast.Cache, v *virtual) {
		must(t, c.Set(ctx, "k", []byte("before"), 0))
		v.freeze()
		for i := range 20 {
			must(t, c.Set(ctx, "k", []byte(fmt.Sprint("v", i)), 0))
			time.Sleep(100 * time.Millisecond)
		}
		v.unfreeze()
		v.set(true, false, true) // cut: the second check is on
		time.Sleep(500 * time.Millisecond)
		v.set(false, false, false)
		for range 100 {
			if v.redis.Exists("k") && c.Health().State == holdfast.Up {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
		drain(t, c)
		if got, _ := v.redis.Get("k"); got != "v19" {
			t.Errorf("after the outage redis holds %q", got)
		}
		for i := range 10 {
			must(t, c.Set(ctx, "k", []byte(fmt.Sprint("w", i)), 0))
			drain(t, c)
			if got, _ := v.redis.Get("k"); got != fmt.Sprint("w", i) {
				t.Errorf("%d: redis holds %q; superseded %d", i, got, c.Stats().Superseded)
			}
			time.Sleep(50 * time.Millisecond)
		}
	})
}

// A copy outlives its end, in case that it may be served stale. A Touch that found no key
// gave it a new one, and the next outage served it.
func TestATouchOfWhatIsGoneDoesNotReviveItsCopy(t *testing.T) {
	inBubble(t, nil, func(ctx context.Context, c *holdfast.Cache, v *virtual) {
		must(t, c.Set(ctx, "k", []byte("v"), time.Second))
		time.Sleep(2 * time.Second)
		if err := c.Touch(ctx, "k", time.Hour); !errors.Is(err, holdfast.ErrMiss) {
			t.Errorf("touch: %v", err)
		}
		v.set(true, false, true)
		time.Sleep(time.Second)
		wantGet(t, c, "k", "")
	})
}
