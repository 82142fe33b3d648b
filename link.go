package holdfast

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"time"
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
// A server that is busy with a script is Down, with BUSY as the reason. Its session is
// kept, in busy, for the commands that end the script.
//
// The gate is open in Up and ReadOnly, for as long as the session lives and the
// breaker is closed. Attempts are made when the schedule says that one is due.
// Where nobody wants Redis, for no call came by lately, the journal is empty and
// nobody is in WaitReady, the link rests: what serves is probed once a restMost, what
// is lost is made anew at once and then by a back-off that grows to that, and by the same
// back-off what takes no writes is looked at again.
// For which attempts calls wait: see moment.
type link struct {
	opts    Options
	breaker *breaker
	idle    time.Duration // how long after its last use a link is kept up
	linkEnv

	replayer *replayer // carries what the journal has for this link
	owned    *owned    // the connections that callers have of their own

	credentials credentials

	// Of a node of a cluster; see cluster, which guards mapped.
	addr   string
	slots  atomic.Int32
	mapped bool // a map of the cluster named it
	retire context.CancelFunc

	gate   atomic.Pointer[session]
	busy   atomic.Pointer[session] // where a script runs and runs, beside a shut gate
	last   atomic.Pointer[string]  // run id of the server last spoken to
	signal chan struct{}           // one slot: look around

	used    atomic.Bool // a call wanted Redis since the supervisor last looked
	parked  atomic.Bool // the link rests, and the supervisor sleeps until used
	quiet   atomic.Bool // no call came by for MaxBackoff, as the supervisor last looked
	refused atomic.Bool // a write was refused
	asked   atomic.Bool // for a probe
	vouched atomic.Bool // the stream was held to be unbroken

	silence    int64                  // how long the server may be silent until no copy is fresh
	heardUntil atomic.Int64           // when that is; of the domains, too
	moment     atomic.Pointer[moment] // in which calls wait for an attempt, nil for none
	trying     atomic.Bool            // an attempt is under way
	failedAt   atomic.Int64           // when the last one that failed did
	failedFrom atomic.Int64           // and when that had begun
	lostAt     atomic.Int64           // when the last connection was lost that served
	// plainFrom: what counts as on the wire until then, or not so long, does not any
	// more, for the first attempt has failed; see write.plainUntil.
	plainFrom atomic.Int64

	broken atomic.Pointer[chan struct{}] // nil while nobody waits; see stream

	suspects suspects    // what may be why connections are lost
	excused  atomic.Bool // the last loss was the doing of one of them
	flushes  flushSuspicion

	scripting scripting

	// Of the supervisor alone.
	session  *session
	served   *session // the last that the gate was opened to
	schedule backoff
	excuses  int64   // up to when losses are excused already
	resting  backoff // of a link that rests
	causes   causes
	probing  string // the probe's key
	bare     bool   // the next session is: see session.bare
	answered bool   // the last attempt had an answer
	// skipScripts: the last greeting ended where the script was asked for.
	skipScripts bool
	keyCounts   keyCounts // of the databases, when it was last asked
	keyCountsOf *session  // which told them
	untold      string    // why the server does not tell of changes, as last logged

	introduction introduction

	mu struct {
		sync.Mutex
		health Health
	}
}

// linkEnv is what a link needs of the other rooms. The functions do not block,
// but for where, and may be called from any goroutine, but for where and fits,
// which are the supervisor's.
type linkEnv struct {
	clock    clock
	stats    *counters
	notify   *notifier
	sessions *atomic.Uint64 // numbers the sessions of all links

	// where names the server to speak to. It may ask for it, for longer where
	// nothing is served meanwhile.
	where func(ctx context.Context, serving bool) (addr string, err error)
	// disbelieve says that where named a server that is no master, or not there.
	disbelieve func()
	// leave ends what where holds open.
	leave func()
	// fits says whether a server of this mode is one to speak to, and may ask it.
	fits func(ctx context.Context, s *session, mode string) error
	// redirected learns from a probe that another node has the key.
	redirected func(s *session, err error)
	// probeKey is a key that the server takes, last if it still does, and "" where
	// it takes none: a node without slots.
	probeKey func(last string) string
	// wanted says that somebody waits for Redis: WaitReady, or the journal.
	// needless says that there is nothing for this link to do, whoever waits.
	wanted   func() bool
	needless func() bool
	// hits counts the answers of the local tier, which are uses, too: they are
	// fresh only because the link watches over them.
	hits func() uint64
	// domains are what the link vouches for.
	domains func(each func(*domain))
	// told hears of the key of which the server told that it changed, and whether
	// that came over the session that serves.
	told func(key string, serving bool)
	// listeners are told what the server tells.
	listeners *listeners
	// emptied hears that the server that serves was.
	emptied func()
	// copies is how many there may be, at least, of what the server's database holds.
	copies func() int64
	// changed is told of a step.
	changed func(StateChange)
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

// restMost is the time between two attempts of a link that nobody uses, at most: so old
// may Health be.
const restMost = time.Minute

func newLink(o Options, env linkEnv) *link {
	l := &link{
		opts:     o,
		linkEnv:  env,
		idle:     10 * o.Breaker.MaxBackoff,
		signal:   make(chan struct{}, 1),
		schedule: backoff{min: o.Breaker.MinBackoff, max: o.Breaker.MaxBackoff},
		silence:  int64(o.silence()),
		resting:  backoff{min: o.Breaker.MaxBackoff, max: max(o.Breaker.MaxBackoff, restMost)},
	}
	l.moment.Store(newMoment(true, o.Timeout))
	l.owned = newOwned(l)
	l.suspects = newSuspects(env.clock, o.Breaker.MaxBackoff)
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

// writer returns the session that may be written to, or nil at once. A server
// that is out of memory takes deletes, of which it needs every one.
func (l *link) writer(del bool) *session {
	s := l.reader()
	if s == nil || !s.takes(del) {
		return nil
	}
	return s
}

// takes says whether the server takes a write, which may be a delete.
func (s *session) takes(del bool) bool {
	return s.writable.Load() || del && s.deletable.Load()
}

// use notes that somebody wants Redis. It costs an atomic load, mostly.
func (l *link) use() {
	if !l.used.Load() {
		l.used.Store(true)
	}
	// Also where it was noted before: the supervisor may have gone to sleep over
	// it, because there was nothing for it to do then.
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
	if l.gate.Load() == nil {
		l.look() // an attempt failed: nothing was served since the gate was shut
		return
	}
	l.doubt() // before anybody can see that the circuit is open
	if s := l.gate.Swap(nil); s != nil && l.busy.Load() != s {
		s.endPeriod(errTripped)
	}
	l.doubt() // what was read in between
	l.look()
}

// lostSession runs on whatever goroutine found the connection gone.
func (l *link) lostSession(s *session) {
	if l.gate.Load() == s {
		l.doubt() // as in shut
	}
	if l.gate.CompareAndSwap(s, nil) {
		l.lostAt.Store(l.clock.now())
		l.doubt()
		if l.quiet.Load() && !l.used.Load() {
			l.openMoment()
		}
	}
	l.busy.CompareAndSwap(s, nil)
	s.endPeriod(*s.lostErr.Load())
	l.blameAbandoned(s)
	l.look()
}

// doubt says that the stream of invalidations is broken, or that nobody watches
// over it: what was filled from it must be read again. It is where law 5 is kept.
func (l *link) doubt() {
	if l.vouched.Swap(false) {
		l.stats.streamLosses.Add(1)
	}
	l.domains((*domain).doubt)
	l.interrupt()
}

// stream returns a channel that is closed when what the server is to tell of may never
// come: the stream is broken, or it told of all keys at once. Who means to wait for
// news takes the channel first, and then asks the server.
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

// interrupt wakes who waits on the stream. It takes no lock: the gate is shut under
// gobreaker's.
func (l *link) interrupt() {
	if ch := l.broken.Swap(nil); ch != nil {
		close(*ch)
	}
}

// report tells the breaker of a call's outcome. One that began on an earlier
// session, or before the circuit opened, says nothing about the present.
func (l *link) report(s *session, c class, err error) {
	if c == classOK || c == classCommand || c == classRedirect {
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
		if isReply(err) {
			l.askProbe() // whether it refuses reads, too
			return
		}
		l.setError(err)
		l.breaker.failure(err)
	case classBusy, classUnknown:
		l.askProbe()
	}
}

// noteRefusal stops writes until a probe is let through.
func (l *link) noteRefusal(s *session, err error) {
	l.setError(err)
	if s.refuse(err) {
		if s.replica.Load() {
			l.doubt() // the copies are of what its master held
		}
		l.refused.Store(true)
		l.look()
	}
}

func (l *link) setError(err error) {
	err = presentable(err)
	l.mu.Lock()
	l.mu.health.LastError = err
	l.mu.Unlock()
}

// unavailable is what Check gets that only this link could have served.
func (l *link) unavailable() error {
	if err := l.why(); err != ErrUnavailable {
		return &Error{Op: "check", Tier: Remote, Err: err}
	}
	return ErrUnavailable
}

// why is ErrUnavailable, with why the link does not serve as far as that is known.
func (l *link) why() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.mu.health.LastError; err != nil {
		return unavailable{err}
	}
	return ErrUnavailable
}

func (l *link) health() Health {
	l.mu.Lock()
	h := l.mu.health
	l.mu.Unlock()
	// Between an event and the supervisor's looking at it the gate knows more.
	s := l.gate.Load()
	h.Writable = s != nil && s.writable.Load()
	h.Tracking = s != nil && s.tracked
	if s != nil {
		h.Lacks = s.lacks.names()
	}
	switch {
	case s == nil && (h.State == Up || h.State == ReadOnly) && !l.mending():
		h.State = Down
	case s != nil && h.State == Up && !h.Writable:
		h.State = ReadOnly
	}
	return h
}

// mending says whether a connection that nobody used was lost just now, and is being
// made anew: that is not Down until the attempt has failed.
func (l *link) mending() bool {
	m := l.moment.Load()
	return m != nil && !m.first && !m.isOver()
}

// apply takes the step, and tells of it.
func (l *link) apply(ev event, err error) {
	err = presentable(err)
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
	if from == to && !(ev == evProbeFailed && to == Connecting && l.newCause(err)) {
		return
	}
	change := StateChange{From: from, To: to, At: h.Since}
	if from == to {
		change.At = time.Now()
	}
	if to != Up && to != Closed {
		change.Err = h.LastError
	}
	l.changed(change)
}

// newCause says whether it is to be told why an attempt failed, of a link that was never
// up.
func (l *link) newCause(err error) bool {
	return err != nil && !errors.Is(err, errAllKnown) && l.causes.news(err.Error(), l.clock.now())
}

// supervise is the supervisor's life. It ends with ctx and leaves nothing open.
func (l *link) supervise(ctx context.Context) {
	defer func() {
		l.gate.Store(nil)
		l.busy.Store(nil)
		l.doubt()
		l.failedAt.Store(never) // nobody waits for another attempt
		l.failedFrom.Store(never)
		l.endMoment()
		l.discard()
		l.leave()
		l.apply(evClose, nil)
	}()
	timer := time.NewTimer(0)
	defer timer.Stop()
	var (
		due     = l.clock.now() // the next attempt
		begun   = due           // the last one
		lastUse = due           // New is a use
		resting bool
		doubted bool  // since it rests
		stable  int64 // when the link came up
		hits    uint64
	)
	for {
		l.resolveFlush(ctx)
		now := l.clock.now()
		if n := l.hits(); l.used.Swap(false) || n != hits {
			lastUse, hits = now, n
			l.wakened()
		} else if now-lastUse >= int64(l.schedule.max) {
			l.quiet.Store(true)
		}
		if l.observe() {
			// It broke. A link that was up for a while starts its schedule anew;
			// one that flaps goes on backing off.
			if now-stable >= int64(l.schedule.max) {
				l.schedule.reset()
			}
			due = now + int64(l.schedule.next())
		}
		if l.excused.Swap(false) && l.excuse(now) {
			// Not the fault of who was merely beside it.
			l.schedule.reset()
			if l.session == nil {
				due = now
			}
		}
		if l.refused.Swap(false) && l.state() == Up {
			l.apply(evRefused, nil)
			if now-stable >= int64(l.schedule.max) {
				l.schedule.reset()
			}
			due = now + int64(l.schedule.next())
		}

		if s := l.gate.Load(); l.asked.Swap(false) && s != nil && !s.replica.Load() {
			due = min(due, begun+int64(l.schedule.min))
		}

		wanted := now-lastUse < int64(l.idle) || l.wanted() || l.owned.inUse()
		switch {
		case wanted && resting:
			due = min(due, begun+int64(l.schedule.max))
		case !wanted && !resting && l.gate.Load() != nil && l.state() == Up:
			due = max(due, begun+int64(l.resting.max))
		}
		if resting = !wanted; wanted {
			l.resting.reset()
			doubted = false
		}
		if m := l.moment.Load(); m != nil && m.asked.Swap(false) {
			due = now
		}
		if now >= due && !l.needless() {
			up := l.state() == Up && l.gate.Load() != nil
			begun = now
			interval := l.reach(ctx)
			if !up && l.state() == Up {
				stable = l.clock.now()
			}
			if resting {
				interval = l.restFor(interval)
			}
			due = max(now+int64(interval), l.clock.now())
			if ctx.Err() != nil {
				return
			}
			continue
		}

		if l.needless() {
			timer.Stop()
		} else {
			timer.Reset(time.Duration(due - now))
		}
		if resting || l.needless() {
			l.parked.Store(true)
			if (l.used.Load() || l.wanted() || l.owned.inUse()) && !l.needless() {
				l.parked.Store(false) // came by just now
				continue
			}
			// Probes are rare from here on, so a stream that breaks in silence would
			// not be missed soon. The next reader asks Redis, and that wakes the
			// supervisor.
			if s := l.gate.Load(); s != nil && s.tracked && !doubted {
				l.doubt()
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

// wakened takes note of a call: the link is not quiet any more. Where a call has found
// it lost, the attempt that it causes may be waited for; it must be seen before quiet is
// cleared, see window.
func (l *link) wakened() {
	if !l.quiet.Load() {
		return
	}
	if l.gate.Load() == nil {
		l.openMoment()
		if m := l.moment.Load(); m != nil {
			m.asked.Store(true)
		}
	}
	l.quiet.Store(false)
}

// restFor is how long a link that rests waits from the beginning of an attempt, where
// one in use would wait for the interval.
func (l *link) restFor(interval time.Duration) time.Duration {
	switch {
	case l.gate.Load() == nil, l.state() != Up:
		return max(interval, l.resting.next()) // what takes no writes may take them soon
	case interval <= l.schedule.min:
		return interval // a probe without an answer is repeated soon
	}
	l.resting.reset()
	return l.resting.max
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
		l.discard()
	}
	l.breaker.trip() // a lost connection opens the circuit at once
	if lost && serving && l.mending() {
		l.setError(err)
		l.listeners.told(nil) // no change of state will tell them
		return true           // it is Down once it could not be made anew at once
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

// server is the run id of the server that was last spoken to, "" if unknown.
func (l *link) server() string {
	if id := l.last.Load(); id != nil {
		return *id
	}
	return ""
}

// refuse notes why the server takes no writes, and says whether it took them
// until now.
func (s *session) refuse(err error) bool {
	s.replica.Store(strings.Contains(err.Error(), "READONLY"))
	s.deletable.Store(strings.HasPrefix(err.Error(), "OOM"))
	return s.writable.Swap(false)
}
