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

// far is the last moment before never. What ends then, or later than that, ends: it is
// not told as what has no end.
const far = never - 1

// after is now+d, but no later than far, or never where d is 0 for no expiry.
func after(now int64, d time.Duration) int64 {
	switch {
	case d <= 0 || now == never:
		return never
	case now > far-int64(d):
		return far
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
