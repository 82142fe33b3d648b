package holdfast

import (
	"errors"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
)

const longest = time.Duration(math.MaxInt64)

func TestTheClockIsPositiveAndGoesWithTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := clock.Start()
		begin := c.Now()
		if begin <= 0 {
			t.Errorf("it begins at %d, and 0 means not yet", begin)
		}
		time.Sleep(90 * time.Minute)
		if got := time.Duration(c.Now() - begin); got != 90*time.Minute {
			t.Errorf("90 minutes took %v", got)
		}
	})
}

// PTTL of a key that ends in over 292 years was -1, which is the word for no end.
func TestATimeFarAwayIsNeitherInThePastNorNever(t *testing.T) {
	const hour = int64(time.Hour)
	for _, tt := range []struct {
		now  int64
		d    time.Duration
		want int64
	}{
		{hour, 0, clock.Never},
		{hour, -1, clock.Never},
		{hour, math.MinInt64, clock.Never},
		{hour, 1, hour + 1},
		{hour, time.Hour, 2 * hour},
		{hour, longest, clock.Far},
		{hour, longest - time.Duration(hour), clock.Far},
		{hour, longest - time.Duration(hour) - 1, clock.Far},
		{hour, longest - time.Duration(hour) - 2, clock.Far - 1},
		{hour, longest - time.Duration(hour) + 1, clock.Far},
		{clock.Far, 1, clock.Far},
		{clock.Far, 2, clock.Far},
		{clock.Never, 1, clock.Never},
	} {
		if got := clock.After(tt.now, tt.d); got != tt.want {
			t.Errorf("after(%d, %v) = %d, want %d", tt.now, tt.d, got, tt.want)
		}
	}
}

func TestWhatIsLeftIsPositiveUnlessItIsForEver(t *testing.T) {
	const hour = int64(time.Hour)
	for _, tt := range []struct {
		now, t int64
		want   time.Duration
	}{
		{hour, clock.Never, 0},
		{clock.Never, clock.Never, 0},
		{hour, hour + 1, 1},
		{hour, 3 * hour, 2 * time.Hour},
		{hour, hour, 1},
		{hour, hour - 1, 1}, // 0 would mean no expiry
		{3 * hour, 1, 1},
		{clock.Never - 1, 1, 1},
		{1, clock.Never - 1, longest - 2},
		{hour, clock.After(hour, longest-2*time.Hour), longest - 2*time.Hour},
	} {
		if got := clock.Left(tt.now, tt.t); got != tt.want {
			t.Errorf("left(%d, %d) = %v, want %v", tt.now, tt.t, got, tt.want)
		}
	}
}

func TestATTLIsRoundedUpToWhatRedisCanExpress(t *testing.T) {
	for _, tt := range []struct {
		ttl, byDefault, want time.Duration
	}{
		{0, 0, 0},
		{0, time.Minute, time.Minute},
		{0, 1, time.Millisecond},
		{0, 1500 * time.Microsecond, 2 * time.Millisecond},
		{time.Second, time.Minute, time.Second},
		{1, 0, time.Millisecond},
		{999 * time.Microsecond, 0, time.Millisecond},
		{time.Millisecond - 1, 0, time.Millisecond},
		{time.Millisecond, 0, time.Millisecond},
		{time.Millisecond + 1, 0, 2 * time.Millisecond},
		{time.Hour + 1, 0, time.Hour + time.Millisecond},
		{longest, 0, longest.Truncate(time.Millisecond)},
		{longest.Truncate(time.Millisecond), 0, longest.Truncate(time.Millisecond)},
		{0, longest, longest.Truncate(time.Millisecond)},
	} {
		c := &Cache{opts: Options{DefaultTTL: tt.byDefault}}
		if got, err := c.ttl(tt.ttl); err != nil || got != tt.want {
			t.Errorf("ttl %v, default %v: %v, %v; want %v", tt.ttl, tt.byDefault, got, err, tt.want)
		}
	}
	c := &Cache{opts: Options{DefaultTTL: time.Minute}}
	for _, ttl := range []time.Duration{-1, -time.Millisecond, -time.Hour, math.MinInt64} {
		if _, err := c.ttl(ttl); !errors.Is(err, ErrInvalidTTL) {
			t.Errorf("ttl %v: %v", ttl, err)
		}
	}
	// Near the end of what a Duration can hold, nothing wraps around.
	for off := time.Duration(0); off < 3*time.Millisecond; off += 997 {
		got, err := c.ttl(longest - off)
		if err != nil || got <= 0 || got%time.Millisecond != 0 || got < longest-off-time.Millisecond {
			t.Fatalf("ttl %d: %d, %v", longest-off, got, err)
		}
	}
}
