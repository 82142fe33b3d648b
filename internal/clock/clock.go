// Package clock tells monotonic time, and how long to wait between attempts.
package clock

import (
	"math"
	"time"
)

// Never is the time of an event that does not come, as the end of an entry without a TTL.
const Never = math.MaxInt64

// Clock returns monotonic nanoseconds since Start, plus an hour. time.since reads one
// clock where time.Now reads two, which is half the cost of a local hit's expiry check. None
// of its times is a wall time, so setting the system clock expires nothing.
type Clock struct{ Base time.Time }

func Start() Clock {
	// An hour of head start keeps every time positive, so that zero is free to mean "not
	// yet".
	return Clock{Base: time.Now().Add(-time.Hour)}
}

func (c Clock) Now() int64 { return int64(time.Since(c.Base)) }

// At converts a time that was read before to the clock's time.
func (c Clock) At(t time.Time) int64 { return int64(t.Sub(c.Base)) }

// Far is the latest end there is: later ends are capped to it, so that they are not taken for
// never.
const Far = Never - 1

// After is now+d, but at most far; it is never if d is 0 or less, which means no expiry, or
// if now is never.
func After(now int64, d time.Duration) int64 {
	switch {
	case d <= 0 || now == Never:
		return Never
	case now > Far-int64(d):
		return Far
	}
	return now + int64(d)
}

// Left is the time from now until t, at least 1 ns; 0 if t is never.
func Left(now, t int64) time.Duration {
	if t == Never {
		return 0
	}
	return time.Duration(max(t-now, 1))
}

// Saturated is a+b, or the last moment before never where that overflows.
func Saturated(a, b int64) int64 {
	if b > 0 && a > math.MaxInt64-1-b {
		return math.MaxInt64 - 1
	}
	return a + b
}
