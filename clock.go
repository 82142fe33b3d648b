package holdfast

import (
	"math"
	"time"
)

// never is the time of an event that does not come, as the end of an entry without a TTL.
const never = math.MaxInt64

// clock returns monotonic nanoseconds since newClock, plus an hour. time.Since reads one
// clock where time.Now reads two, which is half the cost of a local hit's expiry check. None
// of its times is a wall time, so setting the system clock expires nothing.
type clock struct{ base time.Time }

func newClock() clock {
	// An hour of head start keeps every time positive, so that zero is free to mean "not
	// yet".
	return clock{base: time.Now().Add(-time.Hour)}
}

func (c clock) now() int64 { return int64(time.Since(c.base)) }

// at converts a time that was read before to the clock's time.
func (c clock) at(t time.Time) int64 { return int64(t.Sub(c.base)) }

// far is the latest end there is: later ends are capped to it, so that they are not taken for
// never.
const far = never - 1

// after is now+d, but at most far; it is never if d is 0 or less, which means no expiry, or
// if now is never.
func after(now int64, d time.Duration) int64 {
	switch {
	case d <= 0 || now == never:
		return never
	case now > far-int64(d):
		return far
	}
	return now + int64(d)
}

// left is the time from now until t, at least 1 ns; 0 if t is never.
func left(now, t int64) time.Duration {
	if t == never {
		return 0
	}
	return time.Duration(max(t-now, 1))
}
