package holdfast

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"
)

// link is the way to Redis. One goroutine, the supervisor, builds sessions,
// probes them with a write, replaces and closes them; everybody else asks the
// gate, one atomic load, and gets a session or nil.
//
// A first connect that fails is no case of its own: the circuit starts open.
//
//	state      | probed: ok | probed: no write | probed: failed | lost, tripped | refused  | close
//	Connecting | Up         | ReadOnly         | Connecting     | Connecting    | -        | Closed
//	Up         | Up         | ReadOnly         | Down           | Down          | ReadOnly | Closed
//	ReadOnly   | Up         | ReadOnly         | Down           | Down          | ReadOnly | Closed
//	Down       | Up         | ReadOnly         | Down           | Down          | -        | Closed
//	Closed     | -          | -                | -              | -             | -        | Closed
//
// The gate is open in Up and ReadOnly, for as long as the session lives and the
// breaker is closed. Attempts are made when the schedule says that one is due
// and somebody wants Redis: a call came by lately, the journal has something to
// replay, or WaitReady waits. Otherwise the supervisor sleeps until used.
type link struct {
	opts    rueidis.ClientOption
	timeout time.Duration // a probe on a standing connection
	probing string        // the probe's key
	idle    time.Duration // how long after its last use a link is kept up

	clock   clock
	stats   *counters
	notify  *notifier
	breaker *breaker

	// pending says that the journal needs Redis.
	pending func() bool
	// onUp and onLost tell the other rooms; called by the supervisor.
	onUp   func()
	onLost func()

	gate   atomic.Pointer[session]
	last   atomic.Pointer[string] // run id of the server last spoken to
	signal chan struct{}          // one slot: look around

	used    atomic.Bool // a call wanted Redis since the supervisor last looked
	parked  atomic.Bool // the supervisor sleeps until used
	refused atomic.Bool // a write was refused
	waiting atomic.Int32

	// Of the supervisor alone.
	session  *session
	schedule backoff
	sessions uint64

	ready chan struct{} // closed when Up for the first time

	mu struct {
		sync.Mutex
		health Health
	}
}

// event is what the supervisor met.
type event uint8

const (
	evProbeOK event = iota
	evProbeRefused
	evProbeFailed
	evLost // the connection broke, or the breaker tripped
	evRefused
	evClose
)

// step is the table above.
func step(s State, ev event) State {
	switch {
	case ev == evClose || s == Closed:
		return Closed
	case ev == evProbeOK:
		return Up
	case ev == evProbeRefused:
		return ReadOnly
	case ev == evRefused:
		if s == Up {
			return ReadOnly
		}
		return s
	case s == Connecting:
		return Connecting
	default: // evProbeFailed, evLost
		return Down
	}
}

func newLink(o Options, id string, clk clock, stats *counters, notify *notifier) *link {
	l := &link{
		opts:     o.Redis,
		timeout:  o.Timeout,
		probing:  o.Breaker.ProbePrefix + id,
		idle:     10 * o.Breaker.MaxBackoff,
		clock:    clk,
		stats:    stats,
		notify:   notify,
		signal:   make(chan struct{}, 1),
		schedule: backoff{min: o.Breaker.MinBackoff, max: o.Breaker.MaxBackoff},
		ready:    make(chan struct{}),
	}
	l.mu.health = Health{State: Connecting, Since: time.Now()}
	l.breaker = newBreaker(o.Breaker.Failures, l.shut)
	l.breaker.trip()
	l.breaker.opens.Store(0) // it starts open; that is no outage
	return l
}

// reader returns the session that may be read from, or nil at once.
func (l *link) reader() *session {
	s := l.gate.Load()
	l.use()
	return s
}

// writer returns the session that may be written to, or nil at once.
func (l *link) writer() *session {
	s := l.reader()
	if s == nil || !s.writable.Load() {
		return nil
	}
	return s
}

// use notes that somebody wants Redis. It costs an atomic load, mostly.
func (l *link) use() {
	if l.used.Load() {
		return
	}
	l.used.Store(true)
	if l.parked.Load() {
		l.look()
	}
}

// look wakes the supervisor. It does not block.
func (l *link) look() {
	select {
	case l.signal <- struct{}{}:
	default:
	}
}

// shut closes the gate: the breaker opened. It runs under gobreaker's lock.
func (l *link) shut() {
	l.gate.Store(nil)
	l.look()
}

// lostSession runs on whatever goroutine found the connection gone.
func (l *link) lostSession(s *session) {
	l.gate.CompareAndSwap(s, nil)
	l.look()
}

// report tells the breaker of a call's outcome. One that began on an earlier
// session, or before the circuit opened, says nothing about the present.
func (l *link) report(s *session, c class, err error) {
	if c == classOK || c == classCommand {
		l.breaker.success()
		return
	}
	if l.gate.Load() != s {
		return
	}
	switch c {
	case classWriteRefused:
		l.breaker.success()
		l.noteRefusal(s, err)
	case classDown:
		l.setError(err)
		l.breaker.failure(err)
	}
}

// noteRefusal stops writes until a probe is let through.
func (l *link) noteRefusal(s *session, err error) {
	s.replica.Store(isReplica(err))
	l.setError(err)
	if s.writable.Swap(false) {
		l.refused.Store(true)
		l.look()
	}
}

func (l *link) setError(err error) {
	l.mu.Lock()
	l.mu.health.LastError = err
	l.mu.Unlock()
}

func (l *link) health() Health {
	l.mu.Lock()
	h := l.mu.health
	l.mu.Unlock()
	// Between an event and the supervisor's looking at it the gate knows more.
	s := l.gate.Load()
	h.Writable = s != nil && s.writable.Load()
	switch {
	case s == nil && (h.State == Up || h.State == ReadOnly):
		h.State = Down
	case s != nil && h.State == Up && !h.Writable:
		h.State = ReadOnly
	}
	return h
}

// apply takes the step, tells of it, and says whether the state changed.
func (l *link) apply(ev event, err error) {
	l.mu.Lock()
	from := l.mu.health.State
	to := step(from, ev)
	if err != nil {
		l.mu.health.LastError = err
	}
	if from != to {
		l.mu.health.State = to
		l.mu.health.Since = time.Now()
	}
	if ev == evProbeOK {
		l.mu.health.ProbedAt = time.Now()
	}
	h := l.mu.health
	l.mu.Unlock()
	if from == to {
		return
	}
	change := StateChange{From: from, To: to, At: h.Since}
	if to != Up && to != Closed {
		change.Err = h.LastError
	}
	l.notify.stateChange(change)
	if to == Up {
		select {
		case <-l.ready:
		default:
			close(l.ready)
		}
	}
}

// supervise is the supervisor's life. It ends with ctx and leaves nothing open.
func (l *link) supervise(ctx context.Context) {
	defer func() {
		l.gate.Store(nil)
		l.drop()
		l.apply(evClose, nil)
	}()
	timer := time.NewTimer(0)
	defer timer.Stop()
	var (
		due     = l.clock.now() // the next attempt
		lastUse = due           // New is a use
		stable  int64           // when the link came up
	)
	for {
		now := l.clock.now()
		if l.used.Swap(false) || l.waiting.Load() > 0 {
			lastUse = now
		}
		if l.observe() {
			// It broke. A link that was up for a while starts its schedule anew;
			// one that flaps goes on backing off.
			if now-stable >= int64(l.schedule.max) {
				l.schedule.reset()
			}
			due = now + int64(l.schedule.next())
		}
		if l.refused.Swap(false) && l.state() == Up {
			l.apply(evRefused, nil)
			if now-stable >= int64(l.schedule.max) {
				l.schedule.reset()
			}
			due = now + int64(l.schedule.next())
		}

		wanted := now-lastUse < int64(l.idle) || l.pending()
		if wanted && now >= due {
			up := l.state() == Up
			interval := l.attempt(ctx)
			if !up && l.state() == Up {
				stable = l.clock.now()
			}
			due = max(now+int64(interval), l.clock.now())
			if ctx.Err() != nil {
				return
			}
			continue
		}

		if wanted {
			timer.Reset(time.Duration(due - now))
		} else {
			timer.Stop()
			l.parked.Store(true)
			if l.used.Load() || l.pending() || l.waiting.Load() > 0 {
				l.parked.Store(false) // came by just now
				continue
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-l.signal:
		case <-timer.C:
		}
		l.parked.Store(false)
	}
}

func (l *link) state() State {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.health.State
}

// observe takes note of a session that was lost and of a circuit that opened;
// it says whether the link broke just now.
func (l *link) observe() bool {
	s := l.session
	lost := s != nil && s.lost.Load()
	serving := l.state() == Up || l.state() == ReadOnly
	if !lost && (!serving || l.gate.Load() != nil) {
		return false
	}
	var err error
	if lost {
		err = *s.lostErr.Load()
		l.drop()
		l.onLost()
	}
	l.breaker.trip() // a lost connection opens the circuit at once
	l.apply(evLost, err)
	return serving
}

// drop closes the session, if there is one.
func (l *link) drop() {
	if l.session != nil {
		l.session.close()
		l.session = nil
	}
}

// errNoProbe is the result of an attempt that was cut short by a panic.
var errNoProbe = errors.New("holdfast: the attempt did not end")

// attempt reaches for Redis once, with at most one dial, and returns how long to
// wait from its beginning before the next. It blocks for at most three times
// Dialer.Timeout plus Timeout, and less when ctx ends.
func (l *link) attempt(ctx context.Context) time.Duration {
	done, ok := l.breaker.probe()
	if !ok {
		return l.schedule.next()
	}
	var (
		once   sync.Once
		result = errNoProbe
		finish = func() { once.Do(func() { done(result) }) }
	)
	defer finish()

	next, old := l.session, (*session)(nil)
	if next == nil || next.replica.Load() {
		// A replica does not become a master by waiting for it on the same
		// connection: the address may lead elsewhere by now. Until another
		// connection has proved itself, this one goes on serving reads.
		l.sessions++
		fresh, err := connect(ctx, l.opts, l.sessions, func() { l.stats.dials.Add(1) }, l.lostSession)
		if err != nil {
			if l.gate.Load() != nil {
				result = nil // reads go on
				l.setError(err)
			} else {
				result = err
				l.apply(evProbeFailed, err)
			}
			return l.schedule.next()
		}
		next, old = fresh, next
	}

	budget, cancel := context.WithTimeout(ctx, l.timeout)
	err := next.probe(budget, l.probing)
	cancel()
	switch classify(ctx, err) {
	case classOK:
		next.writable.Store(true)
		next.replica.Store(false)
		result = nil
		finish()
		l.replace(ctx, old, next)
		l.serve(next, evProbeOK, nil)
		return l.schedule.max
	case classWriteRefused, classCommand:
		// A command error here is a user without permission for the probe's
		// key: whether anything can be written is not known, and is not claimed.
		next.replica.Store(isReplica(err))
		next.writable.Store(false)
		result = nil
		finish()
		l.replace(ctx, old, next)
		l.serve(next, evProbeRefused, err)
		return l.schedule.next()
	default:
		if gaveUp(err) {
			err = errBudget
		}
		result = err
		if old != nil {
			next.close() // the old one goes on, such as it is
			result = nil
		} else {
			l.session = next
		}
		if l.gate.Load() != nil {
			l.setError(err) // one failure among calls that may fare better
			return l.schedule.max
		}
		l.apply(evProbeFailed, err)
		return l.schedule.next()
	}
}

// replace makes next the session. The old one, if there is one, is closed once
// the reads that are under way on it have ended, or their time is up.
func (l *link) replace(ctx context.Context, old, next *session) {
	l.session = next
	if old == nil {
		return
	}
	l.gate.CompareAndSwap(old, next)
	l.onLost() // what the old one told may not be what the new one holds
	for deadline := l.clock.now() + int64(l.timeout); old.used.Load() > 0 && l.clock.now() < deadline; {
		if !sleep(ctx, time.Millisecond) {
			break
		}
	}
	old.close()
}

// serve opens the gate to the session, now that the breaker is closed.
func (l *link) serve(s *session, ev event, err error) {
	// As one step with the breaker's being closed: a gate that is open beside
	// an open breaker would never close again, for nobody reports to it.
	if !l.breaker.whileClosed(func() { l.gate.Store(s) }) {
		return
	}
	if s.lost.Load() {
		l.gate.CompareAndSwap(s, nil)
		return
	}
	l.last.Store(&s.server)
	l.apply(ev, err)
	if ev == evProbeOK {
		l.onUp()
	}
}

// server is the run id of the server that was last spoken to, "" if unknown.
func (l *link) server() string {
	if id := l.last.Load(); id != nil {
		return *id
	}
	return ""
}

func isReplica(err error) bool { return strings.Contains(err.Error(), "READONLY") }
