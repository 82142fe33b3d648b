package holdfast

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/local"
	"github.com/holdfast-cache/holdfast/internal/rediserr"
)

// link is the connection to one Redis server. One goroutine, the supervisor, builds sessions,
// probes them with a write, replaces and closes them. All other goroutines read the gate, one
// atomic load, and get a session or nil.
//
// A first connect that fails is not a special case: the circuit starts open.
//
//	state      | probed: ok | probed: no write | probed: failed | lost, tripped | refused  | close
//	Connecting | Up         | ReadOnly         | Connecting     | Connecting    | -        | Closed
//	Up         | Up         | ReadOnly         | Down           | Down          | ReadOnly | Closed
//	ReadOnly   | Up         | ReadOnly         | Down           | Down          | ReadOnly | Closed
//	Down       | Up         | ReadOnly         | Down           | Down          | -        | Closed
//	Closed     | -          | -                | -              | -             | -        | Closed
//
// A server that is busy with a script is Down, with BUSY as the reason. Its session is kept in
// busy, for the commands that end the script.
//
// The gate is open in Up and ReadOnly, while the session lives and the breaker is closed. An
// attempt is made when the schedule says that one is due.
//
// A link rests when no call came recently, the journal is empty and no caller is in WaitReady. A
// resting link that is Up is probed once every restMost. A lost connection is replaced at once, and
// after a failure by a back-off that grows to restMost. A link that is ReadOnly is probed by the
// same back-off. For the attempts that calls wait for, see moment.
type link struct {
	cfg     *linkConfig
	routes  *routes
	locator locator
	keys    keyspace
	watcher watcher
	clock   clock.Clock
	stats   *linkCounters
	breaker circuitBreaker
	idle    time.Duration // time after the last use until the link rests

	replayer linkReplayer   // replays the journal's intents for this link
	owned    *dedicatedPool // dedicated connections of callers

	credentials credentials

	// For a node of a cluster. The mutex of cluster guards mapped.
	addr   string
	slots  atomic.Int32
	mapped bool // a cluster map named this node
	retire context.CancelFunc

	gate   atomic.Pointer[session]
	busy   atomic.Pointer[session] // session of a server busy with a script; the gate is shut
	last   atomic.Pointer[string]  // run id of the last server that served
	signal chan struct{}           // wakes the supervisor; capacity 1

	used           atomic.Bool // a call needed Redis since the supervisor last checked
	parked         atomic.Bool // the supervisor sleeps until a use
	quiet          atomic.Bool // no call for MaxBackoff, at the supervisor's last check
	refused        atomic.Bool // a write was refused since the supervisor last checked
	asked          atomic.Bool // a probe was requested
	streamUnbroken atomic.Bool // the invalidation stream was unbroken

	silence    int64                  // silence of the server, in ns, after which no copy is fresh
	heardUntil atomic.Int64           // when that silence ends; copied to the epoch scopes
	moment     atomic.Pointer[moment] // window in which calls wait for an attempt; nil for none
	trying     atomic.Bool            // an attempt is running
	began      atomic.Int64           // beginning of the last attempt
	failedAt   atomic.Int64           // end of the last failed attempt
	failedFrom atomic.Int64           // beginning of that attempt
	lostAt     atomic.Int64           // when a serving connection was last lost
	// plainFrom is set when the first attempt has failed. An intent whose PlainUntil is not later
	// than plainFrom no longer counts as on the wire; see write.PlainUntil.
	plainFrom atomic.Int64

	broken atomic.Pointer[chan struct{}] // nil while no goroutine waits; see stream

	suspects suspects    // commands that may cause the loss of connections
	excused  atomic.Bool // a suspect command caused the last loss
	flushes  flushSuspicion

	scripting scripting

	// The supervisor alone uses these fields.
	session  *session
	served   *session // the last session that the gate was opened to
	schedule clock.Backoff
	excuses  int64         // time up to which losses are already excused
	resting  clock.Backoff // back-off while the link rests
	causes   causes
	probing  string // key of the probe
	bare     bool   // open the next session bare; see session.bare
	answered bool   // the current attempt's probe was answered and its session serves
	// overtaken: the current attempt was a probe over a connection that served and was lost
	// meanwhile while unused. Its failure says no more than the loss: the next attempt decides.
	overtaken bool
	// skipScripts: the last greeting ended at the question whether the server runs the script.
	skipScripts bool
	keyCounts   keyCounts // keys in each database, at the last count
	keyCountsOf *session  // the session that counted them
	trackingErr string    // why the server does not track, as last logged

	introduction introduction

	mu struct {
		sync.Mutex
		health linkHealth
	}
}

// The errors of a link for its callers.
var (
	errUnavailable = errors.New("holdfast: redis is unavailable and only redis can answer: try again later")
	errBudget      = errors.New("holdfast: redis did not answer within Options.Timeout")
	errBulkhead    = errors.New("holdfast: too many calls wait for redis already")
)

// unavailable is errUnavailable with its cause.
type unavailable struct{ cause error }

func (u unavailable) Error() string        { return errUnavailable.Error() + ": " + rediserr.Text(u.cause) }
func (u unavailable) Is(target error) bool { return target == errUnavailable }
func (u unavailable) Unwrap() error        { return u.cause }

// errTripped ends what depends on a serving session when the circuit opens.
var errTripped = errors.New("holdfast: circuit opened")

// event is an input of the state machine.
type event uint8

const (
	evProbeOK event = iota
	evProbeRefused
	evProbeFailed
	evLost // the connection broke, or the breaker tripped
	evRefused
	evClose
)

// step is the table in the comment of link.
func step(s linkState, ev event) linkState {
	switch {
	case ev == evClose || s == linkClosed:
		return linkClosed
	case ev == evProbeOK:
		return linkUp
	case ev == evProbeRefused:
		return linkReadOnly
	case ev == evRefused:
		if s == linkUp {
			return linkReadOnly
		}
		return s
	case s == linkConnecting:
		return linkConnecting
	default: // evProbeFailed, evLost
		return linkDown
	}
}

// restMost is the longest time between two attempts of a resting link, and so the greatest age of
// Health.
const restMost = time.Minute

func newLink(r *routes, find locator, keys keyspace) *link {
	c := r.cfg
	l := &link{
		cfg:      c,
		routes:   r,
		locator:  find,
		keys:     keys,
		watcher:  r.watcher,
		clock:    c.Clock,
		stats:    c.Stats,
		idle:     10 * c.MaxBackoff,
		signal:   make(chan struct{}, 1),
		schedule: clock.Backoff{Min: c.MinBackoff, Max: c.MaxBackoff},
		silence:  int64(c.Silence),
		resting:  clock.Backoff{Min: c.MaxBackoff, Max: max(c.MaxBackoff, restMost)},
	}
	l.moment.Store(newMoment(true, c.Timeout))
	l.owned = newOwned(l)
	l.credentials.fn, l.credentials.workers = c.Redis.AuthCredentialsFn, c.Workers
	l.suspects = newSuspects(c.Clock, c.MaxBackoff)
	l.mu.health = linkHealth{State: linkConnecting, Since: time.Now()}
	l.breaker = c.NewBreaker(l.shut)
	return l
}

// reader returns the session to read from, or nil. It does not block.
func (l *link) reader() *session {
	s := l.gate.Load()
	l.use()
	return s
}

// writer returns the session to write to, or nil. It does not block. A server that is out of memory
// accepts deletes, and needs every one.
func (l *link) writer(del bool) *session {
	s := l.reader()
	if s == nil || !s.takes(del) {
		return nil
	}
	return s
}

// takes reports whether the server accepts a write; del: the write is a delete.
func (s *session) takes(del bool) bool {
	return s.writable.Load() || del && s.deletable.Load()
}

// use notes that a caller needs Redis. Usually it costs two atomic loads.
func (l *link) use() {
	if !l.used.Load() {
		l.used.Store(true)
	}
	// Check parked even if used was set before: the supervisor may have gone to sleep without
	// clearing it, because it had nothing to do then.
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

// shut closes the gate when the breaker opens. It runs under gobreaker's lock.
func (l *link) shut() {
	if l.gate.Load() == nil {
		l.look() // an attempt failed: the gate was shut already
		return
	}
	l.suspect() // before any caller can see that the circuit is open
	if s := l.gate.Swap(nil); s != nil && l.busy.Load() != s {
		s.endPeriod(errTripped)
	}
	l.suspect() // entries filled in between
	l.look()
}

// lostSession runs on the goroutine that detects the loss, which can be any.
func (l *link) lostSession(s *session) {
	if l.gate.Load() == s {
		l.suspect() // as in shut
		now := l.clock.Now()
		l.lostAt.Store(now)
		if l.quiet.Load() && !l.used.Load() {
			l.openMoment(now) // before the gate is shut: a probe that is under way looks for it
		}
	}
	if l.gate.CompareAndSwap(s, nil) {
		l.suspect()
	}
	l.busy.CompareAndSwap(s, nil)
	s.endPeriod(*s.lostErr.Load())
	l.blameAbandoned(s)
	l.look()
}

// suspect notes that the invalidation stream is broken or unwatched: every entry filled from it
// becomes suspect and must be read again. This keeps law 5.
func (l *link) suspect() {
	if l.streamUnbroken.Swap(false) {
		l.stats.StreamLosses.Add(1)
	}
	l.keys.scopes((*local.EpochScope).Suspect)
	l.interrupt()
}

// stream returns a channel that is closed when an invalidation may never arrive: the stream broke,
// or the server invalidated all keys at once. A goroutine that waits for an invalidation takes the
// channel before it sends its command to the server.
func (l *link) stream() <-chan struct{} {
	for {
		if ch := l.broken.Load(); ch != nil {
			return *ch
		}
		ch := make(chan struct{})
		if l.broken.CompareAndSwap(nil, &ch) {
			return ch
		}
	}
}

// interrupt closes the channel of stream. It takes no lock, because the gate is shut under
// gobreaker's.
func (l *link) interrupt() {
	if ch := l.broken.Swap(nil); ch != nil {
		close(*ch)
	}
}

// report passes a call's outcome to the breaker. A failure is dropped if the call's session is no
// longer at the gate: it says nothing about the present.
func (l *link) report(s *session, c rediserr.Class, err error) {
	if c == rediserr.OK || c == rediserr.Command || c == rediserr.Redirect {
		l.breaker.Success()
		return
	}
	if l.gate.Load() != s {
		return
	}
	switch c {
	case rediserr.WriteRefused:
		l.breaker.Success()
		l.noteRefusal(s, err)
	case rediserr.Down:
		if rediserr.IsReply(err) {
			l.askProbe() // does it refuse reads, too?
			return
		}
		l.setError(err)
		l.breaker.Failure(err)
	case rediserr.Busy, rediserr.Unknown:
		l.askProbe()
	}
}

// noteRefusal stops writes until a probe succeeds.
func (l *link) noteRefusal(s *session, err error) {
	l.setError(err)
	if s.refuse(err) {
		if s.replica.Load() {
			l.suspect() // the server is a replica: its copies may be stale
		}
		l.refused.Store(true)
		l.look()
	}
}

func (l *link) setError(err error) {
	err = rediserr.Presentable(err)
	l.mu.Lock()
	l.mu.health.LastError = err
	l.mu.Unlock()
}

// why returns errUnavailable, wrapped with the link's last error if there is one.
func (l *link) why() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.mu.health.LastError; err != nil {
		return unavailable{err}
	}
	return errUnavailable
}

func (l *link) health() linkHealth {
	l.mu.Lock()
	h := l.mu.health
	l.mu.Unlock()
	// The gate is newer than the state until the supervisor has handled an event.
	s := l.gate.Load()
	h.Writable = s != nil && s.writable.Load()
	h.Tracking = s != nil && s.tracked
	if s != nil {
		h.Lacks = s.lacks.names()
	}
	switch {
	case s == nil && (h.State == linkUp || h.State == linkReadOnly) && !l.mending():
		h.State = linkDown
	case s != nil && h.State == linkUp && !h.Writable:
		h.State = linkReadOnly
	}
	return h
}

// mending reports that a connection was lost while unused and is being replaced. The state is not
// Down until that attempt has failed or Timeout has passed.
func (l *link) mending() bool {
	m := l.moment.Load()
	return m != nil && !m.first && !m.isOver()
}

// apply performs one step of the state machine and reports it to the keyspace. In Connecting, a failed
// probe with a new cause is reported although the state stays.
func (l *link) apply(ev event, err error) {
	err = rediserr.Presentable(err)
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
	if from == to && !(ev == evProbeFailed && to == linkConnecting && l.newCause(err)) {
		return
	}
	transition := linkChange{From: from, To: to, At: h.Since}
	if from == to {
		transition.At = time.Now()
	}
	if to != linkUp && to != linkClosed {
		transition.Err = h.LastError
	}
	l.keys.changed(transition)
}

// newCause reports whether the failure of an attempt has a cause that must be reported; see causes.
func (l *link) newCause(err error) bool {
	return err != nil && !errors.Is(err, errAllKnown) && l.causes.news(err.Error(), l.clock.Now())
}

// supervise is the supervisor's loop. It returns when ctx ends, with every connection closed.
func (l *link) supervise(ctx context.Context) {
	defer func() {
		l.gate.Store(nil)
		l.busy.Store(nil)
		l.suspect()
		l.failedAt.Store(clock.Never) // no call waits for another attempt
		l.failedFrom.Store(clock.Never)
		l.began.Store(clock.Never)
		l.endMoment()
		l.discard()
		l.locator.close()
		l.apply(evClose, nil)
	}()
	timer := time.NewTimer(0)
	defer timer.Stop()
	var (
		due     = l.clock.Now() // when the next attempt is due
		begun   = due           // when the last attempt began
		lastUse = due           // New counts as a use
		atRest  bool
		doubted bool  // doubt was called since the link rests
		stable  int64 // when the link came up
		hits    uint64
	)
	for {
		l.resolveFlush(ctx)
		now := l.clock.Now()
		if n := l.keys.hits(); l.used.Swap(false) || n != hits {
			lastUse, hits = now, n
			l.wakened()
		} else if now-lastUse >= int64(l.schedule.Max) {
			l.quiet.Store(true)
		}
		if l.observe() {
			// The link broke. If it was up for MaxBackoff or more, its schedule starts again; a
			// link that flaps keeps backing off.
			if now-stable >= int64(l.schedule.Max) {
				l.schedule.Reset()
			}
			due = now + int64(l.schedule.Next())
		}
		if l.excused.Swap(false) && l.excuse(now) {
			// One command caused the loss; the other calls must not wait for it.
			l.schedule.Reset()
			if l.session == nil {
				due = now
			}
		}
		if l.refused.Swap(false) && l.state() == linkUp {
			l.apply(evRefused, nil)
			if now-stable >= int64(l.schedule.Max) {
				l.schedule.Reset()
			}
			due = now + int64(l.schedule.Next())
		}

		if s := l.gate.Load(); l.asked.Swap(false) && s != nil && !s.replica.Load() {
			due = min(due, begun+int64(l.schedule.Min))
		}

		wanted := now-lastUse < int64(l.idle) || l.keys.wanted() || l.owned.inUse()
		switch {
		case wanted && atRest:
			due = min(due, begun+int64(l.schedule.Max))
		case !wanted && !atRest && l.gate.Load() != nil && l.state() == linkUp:
			due = max(due, begun+int64(l.resting.Max))
		}
		if atRest = !wanted; wanted {
			l.resting.Reset()
			doubted = false
		}
		if m := l.moment.Load(); m != nil && m.asked.Swap(false) {
			due = now
		}
		if now >= due && !l.keys.empty() {
			up := l.state() == linkUp && l.gate.Load() != nil
			begun = now
			interval := l.reach(ctx)
			if !up && l.state() == linkUp {
				stable = l.clock.Now()
			}
			if atRest {
				interval = l.restFor(interval)
			}
			due = max(now+int64(interval), l.clock.Now())
			if ctx.Err() != nil {
				return
			}
			continue
		}

		if l.keys.empty() {
			timer.Stop()
		} else {
			timer.Reset(time.Duration(due - now))
		}
		if atRest || l.keys.empty() {
			l.parked.Store(true)
			if (l.used.Load() || l.keys.wanted() || l.owned.inUse()) && !l.keys.empty() {
				l.parked.Store(false) // a use arrived just now
				continue
			}
			// Probes are rare from here on, so a silent break of the stream would stay unnoticed
			// for long. After doubt the next reader asks Redis, which wakes the supervisor.
			if s := l.gate.Load(); s != nil && s.tracked && !doubted {
				l.suspect()
				doubted = true
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

// wakened ends the quiet time after a call. If the link has no session, calls may wait for the
// attempt that follows. The moment must be visible before quiet is cleared; see window.
func (l *link) wakened() {
	if !l.quiet.Load() {
		return
	}
	if l.gate.Load() == nil {
		l.openMoment(0)
		if m := l.moment.Load(); m != nil {
			m.asked.Store(true)
		}
	}
	l.quiet.Store(false)
}

// restFor returns the wait of a resting link, from the beginning of an attempt. interval is the
// wait of a link in use.
func (l *link) restFor(interval time.Duration) time.Duration {
	switch {
	case l.gate.Load() == nil, l.state() != linkUp:
		return max(interval, l.resting.Next()) // a linkReadOnly server may soon accept writes
	case interval <= l.schedule.Min:
		return interval // repeat an unanswered probe soon
	}
	l.resting.Reset()
	return l.resting.Max
}

func (l *link) state() linkState {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.health.State
}

// observe handles a lost session or an open circuit. It reports whether the link broke just now.
func (l *link) observe() bool {
	s := l.session
	lost := s != nil && s.lost.Load()
	serving := l.state() == linkUp || l.state() == linkReadOnly
	if !lost && (!serving || l.gate.Load() != nil || l.mending()) {
		return false
	}
	var err error
	if lost {
		err = *s.lostErr.Load()
		l.lostSession(s) // the goroutine that detected the loss may not have come to it
		l.discard()
	}
	l.breaker.Trip() // a lost connection opens the circuit at once
	if lost && serving && l.mending() {
		l.setError(err)
		l.watcher.Changed(nil) // the state does not change, so nothing else informs them
		return true            // it becomes linkDown only if the new attempt fails
	}
	l.apply(evLost, err)
	return serving
}

// discard closes the session, if there is one.
func (l *link) discard() {
	if l.session != nil {
		l.session.close()
		l.session = nil
	}
}

// server returns the run id of the last server that served, or "" if unknown.
func (l *link) server() string {
	if id := l.last.Load(); id != nil {
		return *id
	}
	return ""
}
