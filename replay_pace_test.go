package holdfast_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-cache/holdfast"
)

// arrivals notes, in virtual time, how many keys redis has every 10ms until it has n.
func arrivals(t *testing.T, v *virtual, n int, limit time.Duration) (counts []int) {
	t.Helper()
	for start := time.Now(); time.Since(start) < limit; time.Sleep(10 * time.Millisecond) {
		counts = append(counts, len(v.redis.Keys()))
		if counts[len(counts)-1] >= n {
			return counts
		}
	}
	t.Fatalf("%d of %d keys arrived within %v", counts[len(counts)-1], n, limit)
	return nil
}

func TestAReplayKeepsToMaxRate(t *testing.T) {
	for _, tt := range []struct {
		rate, keys int
		took       time.Duration
		burst      int // beside the rate, in any second
	}{
		{1, 5, 3 * time.Second, 2}, // a second batch may come at once
		{10, 50, 5 * time.Second, 3},
		{100, 1000, 10 * time.Second, 20},
		{5000, 10000, 2 * time.Second, 800},
	} {
		t.Run(fmt.Sprint(tt.rate), func(t *testing.T) {
			inBubble(t, func(o *holdfast.Options) { o.Journal.MaxRate = tt.rate }, func(ctx context.Context, c *holdfast.Cache, v *virtual) {
				v.redis.FlushAll()
				v.set(true, false, true)
				time.Sleep(time.Second)
				for i := range tt.keys {
					must(t, c.Set(ctx, fmt.Sprint("k", i), []byte("v"), 0))
				}
				v.set(false, false, false)
				for c.Health().State != holdfast.Up {
					time.Sleep(time.Millisecond)
				}
				start := time.Now()
				counts := arrivals(t, v, tt.keys, 10*tt.took)
				if took := time.Since(start); took < tt.took*8/10 || took > tt.took*12/10 {
					t.Errorf("it took %v, want about %v", took, tt.took)
				}
				for i := range counts {
					if n := counts[min(i+100, len(counts)-1)] - counts[i]; n > tt.rate+tt.burst {
						t.Fatalf("%d keys in the second from %v on", n, time.Duration(i)*10*time.Millisecond)
					}
				}
				drain(t, c)
				if st := c.Stats(); int(st.Replayed) != tt.keys {
					t.Errorf("%d of %d were replayed", st.Replayed, tt.keys)
				}
			})
		})
	}
}

// A replay that pauses for its rate is in nobody's way: not in Close's, not in
// Shutdown's, and not in that of the next session.
func TestAPauseForTheRateEndsWithWhatItIsFor(t *testing.T) {
	slow := func(o *holdfast.Options) { o.Journal.MaxRate = 1 }
	paused := func(ctx context.Context, c *holdfast.Cache, v *virtual) {
		v.set(true, false, true)
		time.Sleep(time.Second)
		for i := range 10 {
			must(t, c.Set(ctx, fmt.Sprint("k", i), []byte("v"), 0))
		}
		v.set(false, false, false)
		for c.Stats().Replayed == 0 {
			time.Sleep(time.Millisecond)
		}
		synctest.Wait()
	}
	t.Run("Close", func(t *testing.T) {
		inBubble(t, slow, func(ctx context.Context, c *holdfast.Cache, v *virtual) {
			paused(ctx, c, v)
			start := time.Now()
			var u *holdfast.UndeliveredError
			if err := c.Close(); !asUndelivered(err, &u) {
				t.Errorf("close: %v", err)
			}
			if took := time.Since(start); took > 1100*time.Millisecond {
				t.Errorf("close took %v, and CloseTimeout is 1s", took)
			}
		})
	})
	t.Run("Shutdown", func(t *testing.T) {
		inBubble(t, slow, func(ctx context.Context, c *holdfast.Cache, v *virtual) {
			paused(ctx, c, v)
			start := time.Now()
			ctx, cancel := context.WithTimeout(ctx, 2500*time.Millisecond)
			defer cancel()
			var u *holdfast.UndeliveredError
			if err := c.Shutdown(ctx); !asUndelivered(err, &u) {
				t.Errorf("shutdown: %v", err)
			}
			if took := time.Since(start); took < 2500*time.Millisecond || took > 2600*time.Millisecond {
				t.Errorf("shutdown took %v, want its context's 2.5s", took)
			}
		})
	})
	t.Run("a lost session", func(t *testing.T) {
		inBubble(t, slow, func(ctx context.Context, c *holdfast.Cache, v *virtual) {
			paused(ctx, c, v)
			v.set(false, false, true)
			time.Sleep(1500 * time.Millisecond)
			if h := c.Health(); h.State != holdfast.Up {
				t.Fatalf("health %+v", h)
			}
			start, before := time.Now(), c.Stats().Replayed
			for c.Stats().Replayed == before {
				time.Sleep(time.Millisecond)
			}
			if took := time.Since(start); took > 1100*time.Millisecond {
				t.Errorf("the next session's replay began after %v", took)
			}
			for c.Stats().Replayed < 10 {
				time.Sleep(time.Second)
			}
			if took := time.Since(start); took > 12*time.Second {
				t.Errorf("the rest took %v", took)
			}
		})
	})
}
