package holdfast

import (
	"math"
	"time"
)

// never is the time of what does not expire.
const never = math.MaxInt64

// clock tells monotonic nanoseconds since it was made. time.Since reads one
// clock where time.Now reads two, which is half the cost of a local hit's
// expiry check. Nothing here is a wall time, so a clock that is set back or
// forward expires nothing.
type clock struct{ base time.Time }

func newClock() clock {
	// An hour of head start keeps every time positive, so that zero is free to
	// mean "not yet".
	return clock{base: time.Now().Add(-time.Hour)}
}

func (c clock) now() int64 { return int64(time.Since(c.base)) }

// at is a time that was read before, as now would have told it.
func (c clock) at(t time.Time) int64 { return int64(t.Sub(c.base)) }

// after is now+d, or never where that overflows or where d is 0 for no expiry.
func after(now int64, d time.Duration) int64 {
	if d <= 0 || now > never-int64(d) {
		return never
	}
	return now + int64(d)
}

// left is the time from now until t; 0 where t is never.
func left(now, t int64) time.Duration {
	if t == never {
		return 0
	}
	return time.Duration(max(t-now, 1))
}
