package redistest

import (
	"runtime"
	"testing"
	"time"
)

// pollEvery is the interval at which the helpers check a condition.
const pollEvery = 5 * time.Millisecond

// poll calls cond until it holds or the time is over, and reports whether it held.
func poll(within time.Duration, cond func() bool) bool {
	if cond() {
		return true
	}
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	over := time.NewTimer(within)
	defer over.Stop()
	for {
		select {
		case <-tick.C:
			if cond() {
				return true
			}
		case <-over.C:
			return cond()
		}
	}
}

// WaitFor blocks until cond holds, checking every few milliseconds, and fails the test if
// it does not within the given time. The text completes the sentence "waited 5s for ...".
func WaitFor(tb testing.TB, within time.Duration, what string, cond func() bool) {
	tb.Helper()
	if !poll(within, cond) {
		tb.Fatalf("redistest: waited %v for %s", within, what)
	}
}

// GoroutinesBackTo blocks until no more than base+slack goroutines run, and
// fails the test with all their stacks when that has not happened after a
// minute. A connection through a Proxy costs the test binary goroutines too;
// they end with the connection, but not while the proxy hangs: let it pass or
// Close it first.
func GoroutinesBackTo(tb testing.TB, base, slack int) {
	tb.Helper()
	const within = time.Minute
	if poll(within, func() bool { return runtime.NumGoroutine() <= base+slack }) {
		return
	}
	buf := make([]byte, 1<<20)
	buf = buf[:runtime.Stack(buf, true)]
	tb.Fatalf("redistest: %d goroutines after %v, want at most %d+%d:\n%s",
		runtime.NumGoroutine(), within, base, slack, buf)
}
