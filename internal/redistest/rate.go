package redistest

import (
	"fmt"
	"time"
)

const (
	rateFirst  = 5
	ratePerSec = 1.2
)

// RateOK checks the rate of attempts against a server that is away: at most 5 within a second of
// the first attempt after from, and after that at most 1.2 per second on average, plus one for
// the edge of the window. The average is taken up to the last attempt, over at least one
// second; attempts before from do not count. The second begins with an attempt, not with from:
// a busy machine may start a client late. The error contains the figures. It does not block.
func RateOK(times []time.Time, from time.Time) error {
	until := from
	for _, t := range times {
		if t.After(until) {
			until = t
		}
	}
	return RateOKUntil(times, from, until)
}

// RateOKUntil is RateOK for a test that knows when it stopped measuring: the average is
// taken up to until, and attempts after it do not count.
func RateOKUntil(times []time.Time, from, until time.Time) error {
	began := until
	for _, t := range times {
		if !t.Before(from) && t.Before(began) {
			began = t
		}
	}
	edge := began.Add(time.Second)
	first, later := 0, 0
	for _, t := range times {
		switch {
		case t.Before(from) || t.After(until):
		case t.Before(edge):
			first++
		default:
			later++
		}
	}
	if first > rateFirst {
		return fmt.Errorf("%d attempts in the first second, at most %d allowed", first, rateFirst)
	}
	window := max(until.Sub(edge), time.Second)
	allowed := ratePerSec*window.Seconds() + 1
	if float64(later) > allowed {
		return fmt.Errorf("%d attempts in the %v after the first second (%.2f/s), at most %.1f/s plus one allowed (%.1f)",
			later, window.Round(time.Millisecond), float64(later)/window.Seconds(), ratePerSec, allowed)
	}
	return nil
}
