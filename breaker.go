package holdfast

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sony/gobreaker/v2"
)

// BreakerOptions says when Redis counts as away, and how often it is dialled and probed.
type BreakerOptions struct {
	// Failures is the number of consecutive failed calls that opens the circuit. Default 5. A
	// lost connection opens it at once.
	Failures int

	// MinBackoff and MaxBackoff bound the time between two attempts to connect, which doubles
	// from the first to the second with 15% of jitter. Defaults 100ms and 1s. The first
	// attempt after the loss of a stable connection is made at once. Once no call has used
	// the link for ten times MaxBackoff, the time doubles further, up to a minute.
	MinBackoff time.Duration
	MaxBackoff time.Duration

	// ProbePrefix is the beginning of the name of the one key that the probe writes and reads.
	// The key never exists: the write is SET with XX. Default "holdfast:probe:". The Redis
	// user needs SET and GET on it.
	ProbePrefix string
}

// breaker wraps gobreaker and adds three things: a success that costs one atomic load while nothing
// fails, a way to open at once, and a probe that cannot leave the breaker stuck.
//
// The link's schedule decides when a probe is due, because gobreaker's timeout is fixed and the
// schedule backs off. So gobreaker's timeout is the shortest possible, and the supervisor calls
// Probe when its schedule says so.
type breaker struct {
	// suspect is set by a failure and cleared by the next success. Only that success has to be
	// reported to gobreaker: it ends a row of failures.
	suspect atomic.Bool
	opens   *atomic.Uint64 // how often a closed circuit has opened

	// mu makes the check for "closed" and the report one step. Otherwise the circuit could open
	// between the two, gobreaker's Allow would turn it half-open, and the result of a late call
	// would be taken for the result of the probe.
	mu struct {
		sync.Mutex
		cb     *gobreaker.TwoStepCircuitBreaker[struct{}]
		forced bool
	}
}

// errForced is the failure that Trip reports.
var errForced = errors.New("holdfast: circuit opened")

// newBreaker returns a closed breaker that opens after the given number of failures in a row.
// onOpen runs under gobreaker's lock: it may use only atomics and non-blocking sends.
func newBreaker(limit int, onOpen func()) *breaker {
	b := &breaker{opens: new(atomic.Uint64)}
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

// newOpenBreaker is newBreaker for a link that is not connected yet: the circuit is open. That is no
// outage, and is not counted in opens as further ones are.
func newOpenBreaker(limit int, onOpen func(), opens *atomic.Uint64) *breaker {
	b := newBreaker(limit, onOpen)
	b.Trip()
	b.opens = opens
	return b
}

// Success reports a call that Redis answered.
func (b *breaker) Success() {
	if b.suspect.Load() && b.suspect.CompareAndSwap(true, false) {
		b.report(nil)
	}
}

// Failure reports a call that Redis did not answer, or refused to serve.
func (b *breaker) Failure(err error) {
	b.report(err)
	b.suspect.Store(true) // after report: a success in between must not be the last one seen
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

// Trip opens a closed circuit at once.
func (b *breaker) Trip() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mu.forced = true
	b.reportLocked(errForced)
	b.mu.forced = false
}

// Probe asks for the one attempt that may close the circuit. Its result must be passed to the
// returned function, or the breaker stays half-open for ever.
func (b *breaker) Probe() (done func(error), ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	report, err := b.mu.cb.Allow()
	if err != nil {
		return nil, false
	}
	return func(err error) {
		report(err)
		if err != nil {
			// On a closed circuit this failure counts towards a row of failures.
			b.suspect.Store(true)
		}
	}, true
}

// WhileClosed runs f if the circuit is closed, and keeps it closed meanwhile.
func (b *breaker) WhileClosed(f func()) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.mu.cb.State() != gobreaker.StateClosed {
		return false
	}
	f()
	return true
}
