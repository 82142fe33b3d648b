package holdfast_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/rueidis"
)

// elapsed waits until so much time has passed since start.
func elapsed(t testing.TB, what string, start time.Time, d time.Duration) {
	t.Helper()
	redistest.WaitFor(t, d+patience, what, func() bool { return time.Since(start) >= d })
}

// The path on which the server tells of changes stands still, and nothing says
// so: no socket breaks, no call fails, for the callers hit the local tier.
func TestAStoppedInvalidationPathBoundsStaleness(t *testing.T) {
	beside(t)
	quick := holdfast.BreakerOptions{MinBackoff: 20 * time.Millisecond, MaxBackoff: 100 * time.Millisecond}
	for _, tt := range []struct {
		name    string
		breaker holdfast.BreakerOptions
		before  time.Duration // of nothing but local hits
		server  bool          // it is the server that stops, not the path
	}{
		{"the path", quick, 0, false},
		{"the server, by default", holdfast.BreakerOptions{MinBackoff: 100 * time.Millisecond, MaxBackoff: time.Second}, 0, true},
		{"after a time without a call to Redis", quick, 1500 * time.Millisecond, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx := begin(t)
			s, p := behind(t)
			o := tracked(p.Addr(), holdfast.TrackReads)
			o.Breaker = tt.breaker
			o.Timeout = max(250*time.Millisecond, budget())
			const failures = 5
			bound := o.Breaker.MaxBackoff + failures*(o.Timeout+o.Breaker.MinBackoff)
			c := open(t, o)
			ready(t, c)
			raw := rawClient(t, rueidis.ClientOption{InitAddress: []string{s.Addr()}, ConnWriteTimeout: time.Minute, Dialer: net.Dialer{KeepAlive: time.Minute}})
			s.MustDo("SET", "k", "one")
			held(t, c, "k", "one")

			var last atomic.Int64 // when the replaced value was last served as it is
			var wrote atomic.Int64
			begun := time.Now()
			stop := load(t, 2, func(int, int) {
				e, err := c.Lookup(ctx, "k")
				if err != nil && !errors.Is(err, holdfast.ErrMiss) {
					t.Errorf("lookup: %v", err)
				}
				if wrote.Load() != 0 && string(e.Value) == "one" && !e.Degraded {
					last.Store(int64(time.Since(begun)))
				}
				time.Sleep(time.Millisecond)
			})
			defer stop()
			for try := 1; ; try++ {
				held(t, c, "k", "one")
				before := c.Stats()
				elapsed(t, "local hits", time.Now(), tt.before)
				after := c.Stats()
				if after.RemoteHits == before.RemoteHits {
					break
				}
				// A probe that a stalled machine left unanswered breaks the stream, and the key is read again.
				if after.StreamLosses == before.StreamLosses || try == 10 {
					t.Fatalf("%d of the hits were not local, after %d losses of the stream", after.RemoteHits-before.RemoteHits, after.StreamLosses-before.StreamLosses)
				}
			}

			var late sync.WaitGroup
			if tt.server {
				s.Pause()
				late.Go(func() { // runs when the server does
					noError(t, raw.Do(ctx, raw.B().Set().Key("k").Value("two").Build()).Error())
				})
			} else {
				p.SetMode(redistest.Hang)
				s.MustDo("SET", "k", "two")
			}
			stopped := time.Since(begun)
			wrote.Store(1)
			waitState(t, c, holdfast.Down)
			elapsed(t, "reads in the outage", time.Now(), 100*time.Millisecond)
			e, err := c.Lookup(ctx, "k")
			if err != nil || string(e.Value) != "one" || !e.Degraded || e.Tier != holdfast.Local {
				t.Errorf("in doubt: %+v, %v", e, err)
			}
			stale := time.Duration(last.Load()) - stopped
			t.Logf("stale for %v of %v", stale, bound)
			if stale > bound+bound/2+2*slack() {
				t.Errorf("a replaced value was served as it is for %v, the detection time is %v", stale, bound)
			}
			if n := c.Stats().StreamLosses; n == 0 {
				t.Error("no loss of the stream was counted")
			}
			if c.Health().Tracking {
				t.Error("health says that the server tells of changes")
			}

			p.SetMode(redistest.Pass)
			if tt.server {
				s.Resume()
				late.Wait()
			}
			waitState(t, c, holdfast.Up)
			soon(t, c, "k", "two")
			elapsed(t, "reads afterwards", time.Now(), 50*time.Millisecond)
			if v, err := c.Get(ctx, "k"); string(v) != "two" && !errors.Is(err, holdfast.ErrMiss) { // a miss: no answer in time
				t.Errorf("the replaced value is back: %q, %v", v, err)
			}
			held(t, c, "k", "two")
		})
	}
}

func TestConnectionsThatAreKilledLeaveNothingStale(t *testing.T) {
	bothModes(t, func(t *testing.T, ctx context.Context, mode holdfast.TrackingMode) {
		s := redistest.Start(t)
		o := tracked(s.Addr(), mode)
		o.Breaker.MinBackoff, o.Breaker.MaxBackoff = 5*time.Millisecond, 20*time.Millisecond
		c := open(t, o)
		ready(t, c)
		const keys = 8
		rounds := 8
		if testing.Short() {
			rounds = 5
		}
		key := func(k int) string { return fmt.Sprint("app:", k) }
		var acked [keys]int
		for round := range rounds {
			var writing atomic.Bool
			writing.Store(true)
			var wg sync.WaitGroup
			written := sync.OnceFunc(func() {
				writing.Store(false)
				wg.Wait()
			})
			t.Cleanup(written)
			wg.Go(func() { // each write on a connection of its own: those are killed, too
				for k := 0; writing.Load(); k = (k + 1) % keys {
					if out, err := s.Do("SET", key(k), strconv.Itoa(acked[k]+1)); err == nil && out == "OK" {
						acked[k]++
					}
				}
			})
			stop := load(t, 3, func(g, i int) {
				c.Get(ctx, key((g+i)%keys))
				if i%64 == 0 {
					time.Sleep(time.Millisecond)
				}
			})
			for range 1 + round%4 {
				losses := c.Stats().StreamLosses
				redistest.WaitFor(t, patience, "a loss to be noticed", func() bool {
					s.Do("CLIENT", "KILL", "TYPE", "normal")
					return c.Stats().StreamLosses > losses
				})
			}
			waitState(t, c, holdfast.Up)
			back := time.Now()
			written()
			elapsed(t, "100 ms", back, 100*time.Millisecond)
			// The last write that was not acknowledged may have run.
			for k := range keys {
				truth := s.MustDo("GET", key(k))
				var v []byte
				var err error
				redistest.WaitFor(t, patience, "an answer about "+key(k), func() bool { // a miss: none in time
					v, err = c.Get(ctx, key(k))
					return truth == "(nil)" || !errors.Is(err, holdfast.ErrMiss)
				})
				if err != nil && !errors.Is(err, holdfast.ErrMiss) || string(v) != truth && (truth != "(nil)" || err == nil) {
					t.Errorf("round %d: %s is %q (%v) 100 ms after the reconnect, redis holds %s; %+v", round, key(k), v, err, truth, c.Health())
				}
				acked[k], _ = strconv.Atoi(truth)
			}
			stop()
			if !c.Health().Tracking {
				t.Fatalf("round %d: the new connection does not track", round)
			}
		}
	})
}

func TestAfterARestartTheNextUseFindsTrackingAndScripts(t *testing.T) {
	ctx := begin(t)
	s, p := behind(t)
	o := tracked(p.Addr(), holdfast.TrackReads)
	o.Breaker.MinBackoff, o.Breaker.MaxBackoff = 10*time.Millisecond, 50*time.Millisecond
	c := open(t, o)
	ready(t, c)
	works := func(round string) {
		t.Helper()
		for _, key := range []string{"k", "new " + round} {
			s.MustDo("SET", key, "one")
			soon(t, c, key, "one")
			held(t, c, key, "one")
			s.MustDo("SET", key, "two")
			soon(t, c, key, "two")
		}
		// And the replay's script is there again: without it a set would have
		// become a delete.
		outage(t, c, p, func() { must(t, c.Set(ctx, "script", []byte(round), 0)) })
		if got := s.MustDo("GET", "script"); got != round {
			t.Errorf("%s: the replayed key is %s", round, got)
		}
		if st := c.Stats(); st.Downgraded != 0 || st.Superseded != 0 || st.Rejected != 0 {
			t.Errorf("%s: stats %+v", round, st)
		}
	}
	works("first")
	s.MustDo("SCRIPT", "FLUSH")
	works("scripts flushed")

	s.RestartEmpty()
	waitState(t, c, holdfast.Up) // no call led to this
	redistest.WaitFor(t, patience, "tracking", func() bool { return c.Health().Tracking })
	works("restarted")

	// Long after the last call, nobody looks for Redis any more.
	idle := time.Now()
	elapsed(t, "an unused client", idle, 1200*time.Millisecond)
	s.RestartEmpty()
	elapsed(t, "an outage that nobody meets", time.Now(), 100*time.Millisecond)
	if e, err := c.Lookup(ctx, "k"); err == nil && !e.Degraded && string(e.Value) == "two" {
		t.Errorf("the first use after the restart got %+v as if it were sure", e)
	}
	waitState(t, c, holdfast.Up)
	works("restarted unused")
}

// A hundred thousand changes a second, of keys that nobody here has ever seen.
func TestAFloodOfInvalidationsHoldsNobodyUp(t *testing.T) {
	redistest.Long(t)
	ctx := undisturbed(t)
	s := redistest.Start(t)
	o := tracked(s.Addr(), holdfast.TrackPrefixes)
	o.Tracking.Prefixes = []string{"app:", "flood:"}
	c := open(t, o)
	ready(t, c)
	raw := rawAt(t, s.Addr())
	const keys, each = 20_000, 500
	msets := make([][]string, keys/each)
	for i := range msets {
		for j := range each {
			msets[i] = append(msets[i], fmt.Sprint("flood:", i*each+j), "v")
		}
	}
	for i := range 100 {
		must(t, c.Set(ctx, fmt.Sprint("app:", i), []byte("one"), 0))
	}
	var mem runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&mem)
	base, peak := mem.HeapAlloc, uint64(0)
	entries := c.Stats().LocalEntries

	before := c.Stats().Invalidations
	start := time.Now()
	flood := load(t, 1, func(_, i int) {
		for _, args := range msets {
			noError(t, raw.Do(ctx, raw.B().Arbitrary("MSET").Args(args...).Build()).Error())
		}
		s.Do("SET", fmt.Sprint("app:", i%100), "two")
	})
	var hits, calls latencies
	users := load(t, 8, func(g, i int) {
		if g%2 == 0 {
			hits.time(func() {
				if _, err := c.Get(ctx, fmt.Sprint("app:", i%100)); err != nil && !errors.Is(err, holdfast.ErrMiss) {
					t.Errorf("get: %v", err)
				}
			})
		} else {
			calls.time(func() {
				if err := c.Set(ctx, fmt.Sprint("app:own", g), []byte("v"), 0); err != nil {
					t.Errorf("set: %v", err)
				}
			})
		}
		time.Sleep(time.Millisecond)
	})
	redistest.WaitFor(t, patience, "the flood", func() bool {
		runtime.ReadMemStats(&mem)
		peak = max(peak, mem.HeapInuse)
		return time.Since(start) > 2*time.Second && c.Stats().Invalidations-before > 100_000
	})
	took := time.Since(start)
	flood()
	users()
	n := c.Stats().Invalidations - before
	t.Logf("%d invalidations, %.0f/s; gets p99 %v max %v, sets p99 %v max %v; peak heap %d KiB over %d KiB", n, float64(n)/took.Seconds(),
		hits.quantile(0.99), hits.quantile(1), calls.quantile(0.99), calls.quantile(1), peak>>10, base>>10)
	hits.within(t, 0.99, 50*time.Millisecond+slack())
	calls.within(t, 0.99, 50*time.Millisecond+slack())
	if peak > base+256<<20 {
		t.Errorf("the heap grew from %d to %d MiB", base>>20, peak>>20)
	}
	runtime.GC()
	runtime.ReadMemStats(&mem)
	if mem.HeapAlloc > base+32<<20 {
		t.Errorf("the heap was %d MiB before and is %d MiB after", base>>20, mem.HeapAlloc>>20)
	}
	redistest.WaitFor(t, patience, "the local tier to be as small as before", func() bool {
		return c.Stats().LocalEntries <= entries+16
	})
	waitState(t, c, holdfast.Up)
	drain(t, c)
	told(t, c)
	for i := range 100 {
		key := fmt.Sprint("app:", i)
		soon(t, c, key, s.MustDo("GET", key))
	}
}

// Nobody probes for a client that nobody uses, so a path that breaks in silence
// meanwhile goes unnoticed: what it would have told must not be missed.
func TestAClientThatWasNotUsedVouchesForNothing(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	p := redistest.NewProxy(t, s.Addr())
	o := tracked(p.Addr(), holdfast.TrackReads)
	o.Breaker.MinBackoff, o.Breaker.MaxBackoff = 20*time.Millisecond, 100*time.Millisecond
	c := open(t, o)
	ready(t, c)
	s.MustDo("SET", "k", "one")
	held(t, c, "k", "one")
	start := time.Now()
	redistest.WaitFor(t, patience, "the client to be unused for long enough", func() bool {
		return time.Since(start) > 15*o.Breaker.MaxBackoff && time.Since(c.Health().ProbedAt) > 4*o.Breaker.MaxBackoff
	})
	p.SetMode(redistest.Hang)
	s.MustDo("SET", "k", "two")
	if e, err := c.Lookup(ctx, "k"); err != nil || !e.Degraded {
		t.Errorf("behind a path that hangs: %+v, %v", e, err)
	}
	p.SetMode(redistest.Pass)
	waitState(t, c, holdfast.Up)
	soon(t, c, "k", "two")
}
