package holdfast

import (
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sony/gobreaker/v2"
)

// breaker is gobreaker with what its callers need beside it: a success that
// costs an atomic load while nothing fails, a way to open at once, and a probe
// that cannot wedge it.
//
// When a probe is due is not gobreaker's to say: its timeout is fixed, and the
// schedule backs off. So its timeout is the shortest there is, and whoever owns
// the schedule calls probe.
type breaker struct {
	// suspect is set by a failure and cleared by the next success, the only
	// success of which gobreaker has to know: it ends a row of failures.
	suspect atomic.Bool
	opens   atomic.Uint64

	// mu makes "closed, so report" one step. Between the two the circuit could
	// open, gobreaker's Allow would turn it half-open, and a straggler's result
	// would be taken for the probe's.
	mu struct {
		sync.Mutex
		cb     *gobreaker.TwoStepCircuitBreaker[struct{}]
		forced bool
	}
}

// errTripped is the failure that trip reports.
var errTripped = errors.New("holdfast: circuit opened")

// newBreaker makes a breaker that opens after that many failures in a row.
// onOpen runs under gobreaker's lock: atomics and non-blocking sends only.
func newBreaker(limit int, onOpen func()) *breaker {
	b := &breaker{}
	b.mu.cb = gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
		Name:        "redis",
		MaxRequests: 1,
		Timeout:     1,
		ReadyToTrip: func(c gobreaker.Counts) bool {
			return b.mu.forced || uint64(c.ConsecutiveFailures) >= uint64(limit)
		},
		OnStateChange: func(_ string, from, to gobreaker.State) {
			if to == gobreaker.StateOpen {
				if from == gobreaker.StateClosed {
					b.opens.Add(1)
				}
				onOpen()
			}
		},
	})
	return b
}

// success reports a call that Redis answered.
func (b *breaker) success() {
	if b.suspect.Load() && b.suspect.CompareAndSwap(true, false) {
		b.report(nil)
	}
}

// failure reports a call that Redis did not answer, or refused to serve.
func (b *breaker) failure(err error) {
	b.report(err)
	b.suspect.Store(true) // after it: a success in between must not be the last word
}

func (b *breaker) report(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.reportLocked(err)
}

func (b *breaker) reportLocked(err error) {
	if b.mu.cb.State() != gobreaker.StateClosed {
		return
	}
	if done, refused := b.mu.cb.Allow(); refused == nil {
		done(err)
	}
}

// trip opens a closed circuit at once.
func (b *breaker) trip() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mu.forced = true
	b.reportLocked(errTripped)
	b.mu.forced = false
}

// probe asks for the one attempt that may close the circuit. Its result must be
// given to the function returned, or the breaker stays half-open for ever.
func (b *breaker) probe() (done func(error), ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	report, err := b.mu.cb.Allow()
	if err != nil {
		return nil, false
	}
	return func(err error) {
		report(err)
		if err != nil {
			// On a closed circuit it begins a row of failures like any other.
			b.suspect.Store(true)
		}
	}, true
}

// whileClosed runs f if the circuit is closed, and keeps it closed meanwhile.
func (b *breaker) whileClosed(f func()) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.mu.cb.State() != gobreaker.StateClosed {
		return false
	}
	f()
	return true
}

// backoff is the time between attempts: it doubles from min to max. The jitter
// only shortens, so that max is kept, and by little, so that the rate is.
type backoff struct {
	min, max time.Duration
	tries    int
}

const backoffJitter = 0.15

// next is the wait before the next attempt. The first is none: a connection
// that was stable and broke is most often there again.
func (b *backoff) next() time.Duration {
	b.tries++
	if b.tries == 1 {
		return 0
	}
	d := b.min
	for i := 2; i < b.tries && d < b.max; i++ {
		if d > b.max/2 {
			d = b.max
			break
		}
		d *= 2
	}
	return d - time.Duration(rand.Float64()*backoffJitter*float64(d))
}

func (b *backoff) reset() { b.tries = 0 }
