// Package link is how Redis is reached: one Link for each server, with a supervisor that dials and
// probes, a gate, a bulkhead and a budget for calls; Routes from keys to links, for one server,
// sentinels and clusters; Remote, which sends commands; and dedicated connections.
package link

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/dial"
	"github.com/holdfast-cache/holdfast/internal/local"
	"github.com/holdfast-cache/holdfast/internal/rediserr"
)

// Link is the connection to one Redis server. One goroutine, the supervisor, builds sessions,
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
// A link rests when no call came recently, the journal is empty, no caller is in WaitReady, no view
// listens and no dedicated connection is in use. A resting link that is Up is probed once every
// restMost. A lost connection is replaced at once, and after a failure by a back-off that grows to
// restMost. A link that is ReadOnly is probed by the same back-off. For the attempts that calls
// wait for, see Moment.
type Link struct {
	cfg     *Config
	Routes  *Routes
	locator locator
	Keys    keyspace
	Watcher Watcher
	clock   clock.Clock
	stats   *Counters
	Breaker Breaker
	idle    time.Duration // time after the last use until the link rests

	Replayer  Replayer       // replays the journal's intents for this link
	Dedicated *dedicatedPool // dedicated connections of callers

	credentials dial.Credentials

	// For a node of a cluster. The mutex of cluster guards mapped.
	Addr   string
	slots  atomic.Int32
	mapped bool // a cluster map named this node
	retire context.CancelFunc

	Gate   atomic.Pointer[Session]
	Busy   atomic.Pointer[Session] // session of a server busy with a script; the gate is shut
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
	moment     atomic.Pointer[Moment] // window in which calls wait for an attempt; nil for none
	trying     atomic.Bool            // an attempt is running
	began      atomic.Int64           // beginning of the last attempt
	failedAt   atomic.Int64           // end of the last failed attempt
	failedFrom atomic.Int64           // beginning of that attempt
	lostAt     atomic.Int64           // when a serving connection was last lost
	// PlainFrom is set when the first attempt has failed. An intent whose PlainUntil is not later
	// than PlainFrom is no longer sent unconditionally; see journal.Write.PlainUntil.
	PlainFrom atomic.Int64

	broken atomic.Pointer[chan struct{}] // nil while no goroutine waits; see Stream

	Suspects suspects    // commands that may cause the loss of connections
	excused  atomic.Bool // a suspect command caused the last loss
	flushes  flushSuspicion

	scripting scripting

	// The supervisor alone uses these fields.
	session  *Session
	served   *Session // the last session that the gate was opened to
	schedule clock.Backoff
	excuses  int64         // end of the allowance of immediate attempts after losses caused by a command
	resting  clock.Backoff // back-off while the link rests
	causes   causes
	probing  string // key of the probe
	bare     bool   // open the next session bare; see Session.bare
	answered bool   // the current attempt's probe was answered and its session serves
	// overtaken: the current attempt was a probe over a connection that served and was lost
	// meanwhile while unused. A failed probe of a lost connection is not counted as a failed
	// attempt; another attempt follows at once.
	overtaken bool
	// skipScripts: the last greeting ended at the question whether the server runs the script.
	skipScripts bool
	keyCounts   keyCounts // keys in each database, at the last count
	keyCountsOf *Session  // the session that counted them
	trackingErr string    // why the server does not track, as last logged

	introduction dial.Introduction

	mu struct {
		sync.Mutex
		health Health
	}
}

// locator finds the server of a link. Only the supervisor calls it; where and fits may block.
type locator interface {
	// where returns the address of the server. It may ask the network for it, and may take longer
	// while no session serves. It is called before each probe, also while a session serves. If its
	// address differs from the session's, writes stop at once and the session is replaced. So a
	// locator of two endpoints returns the same one until disbelieve is called.
	where(ctx context.Context, serving bool) (addr string, err error)
	// disbelieve reports that the server named by where is no master or is unreachable.
	disbelieve()
	// fits checks whether a server of this mode may be used. It may send commands to it.
	fits(ctx context.Context, s *Session, mode string) error
	// close closes the connections that where holds open.
	close()
}

// keyspace is the part of the keys that a link serves. Its methods do not block and are safe from
// any goroutine.
type keyspace interface {
	// empty reports that the link has nothing to do, even if Redis is needed.
	empty() bool
	Owns(key string) bool
	// ProbeKey returns a key that the server accepts: last if it is still accepted, and "" for a
	// node without slots.
	ProbeKey(last string) string
	// Scopes calls each for the epoch scopes of the keys.
	Scopes(each func(*local.EpochScope))
	// wanted, hits and copies are those of Demand, as far as they say something about this link.
	wanted() bool
	hits() uint64
	copies() int64
	// changed handles a change of the link's state.
	changed(Change)
}

// The errors of a link for its callers.
var (
	ErrUnavailable = errors.New("holdfast: redis is unavailable and only redis can answer: try again later")
	ErrBudget      = errors.New("holdfast: redis did not answer within Options.Timeout")
	errBulkhead    = errors.New("holdfast: too many calls wait for redis already")
)

// Unavailable is ErrUnavailable with its cause.
type Unavailable struct{ Cause error }

func (u Unavailable) Error() string        { return ErrUnavailable.Error() + ": " + rediserr.Text(u.Cause) }
func (u Unavailable) Is(target error) bool { return target == ErrUnavailable }
func (u Unavailable) Unwrap() error        { return u.Cause }

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

// step is the table in the comment of Link.
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

// restMost is the longest time between two attempts of a resting link, and so the greatest age of
// Health.
const restMost = time.Minute

func newLink(r *Routes, find locator, keys keyspace) *Link {
	c := r.cfg
	l := &Link{
		cfg:      c,
		Routes:   r,
		locator:  find,
		Keys:     keys,
		Watcher:  r.watcher,
		clock:    c.Clock,
		stats:    c.Stats,
		idle:     10 * c.MaxBackoff,
		signal:   make(chan struct{}, 1),
		schedule: clock.Backoff{Min: c.MinBackoff, Max: c.MaxBackoff},
		silence:  int64(c.Silence),
		resting:  clock.Backoff{Min: c.MaxBackoff, Max: max(c.MaxBackoff, restMost)},
	}
	l.moment.Store(newMoment(true, c.Timeout))
	l.Dedicated = newDedicatedPool(l)
	l.credentials.Fn, l.credentials.Workers = c.Redis.AuthCredentialsFn, c.Workers
	l.Suspects = newSuspects(c.Clock, c.MaxBackoff)
	l.mu.health = Health{State: Connecting, Since: time.Now()}
	l.Breaker = c.NewBreaker(l.shut)
	return l
}

// Reader returns the session to read from, or nil. It does not block.
func (l *Link) Reader() *Session {
	s := l.Gate.Load()
	l.Use()
	return s
}

// Writer returns the session to write to, or nil. It does not block. A server that is out of memory
// accepts deletes, and needs every one.
func (l *Link) Writer(del bool) *Session {
	s := l.Reader()
	if s == nil || !s.Takes(del) {
		return nil
	}
	return s
}

// Takes reports whether the server accepts a write; del: the write is a delete.
func (s *Session) Takes(del bool) bool {
	return s.Writable.Load() || del && s.Deletable.Load()
}

// Use notes that a caller needs Redis. Usually it costs two atomic loads.
func (l *Link) Use() {
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
func (l *Link) look() {
	select {
	case l.signal <- struct{}{}:
	default:
	}
}

// shut closes the gate when the breaker opens, so that no call waits for Redis any more (law 2). It
// runs under gobreaker's lock.
func (l *Link) shut() {
	if l.Gate.Load() == nil {
		l.look() // an attempt failed: the gate was shut already
		return
	}
	l.Suspect() // before any caller can see that the circuit is open
	if s := l.Gate.Swap(nil); s != nil && l.Busy.Load() != s {
		s.endServing(errTripped)
	}
	l.Suspect() // entries filled in between
	l.look()
}

// lostSession runs on the goroutine that detects the loss, which can be any.
func (l *Link) lostSession(s *Session) {
	if l.Gate.Load() == s {
		l.Suspect() // as in shut
		now := l.clock.Now()
		l.lostAt.Store(now)
		if l.quiet.Load() && !l.used.Load() {
			l.openMoment(now) // before the gate is shut: a probe that is under way looks for it
		}
	}
	if l.Gate.CompareAndSwap(s, nil) {
		l.Suspect()
	}
	l.Busy.CompareAndSwap(s, nil)
	s.endServing(*s.LostErr.Load())
	l.blameAbandoned(s)
	l.look()
}

// Suspect notes that the invalidation stream is broken or unwatched: every entry filled from it
// becomes suspect and must be read again. This keeps law 5.
func (l *Link) Suspect() {
	if l.streamUnbroken.Swap(false) {
		l.stats.StreamLosses.Add(1)
	}
	l.SuspectCopies()
}

// SuspectCopies is Suspect where the stream is not broken, but does not report a change that this
// process caused.
func (l *Link) SuspectCopies() {
	l.Keys.Scopes((*local.EpochScope).Suspect)
	l.interrupt()
}

// Stream returns a channel that is closed when an invalidation may never arrive: the stream broke,
// or the server invalidated all keys at once. A goroutine that waits for an invalidation takes the
// channel before it sends its command to the server.
func (l *Link) Stream() <-chan struct{} {
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

// interrupt closes the channel of Stream. It takes no lock, because the gate is shut under
// gobreaker's.
func (l *Link) interrupt() {
	if ch := l.broken.Swap(nil); ch != nil {
		close(*ch)
	}
}

// Report passes a call's outcome to the breaker. A failure is dropped if the call's session is no
// longer at the gate: it says nothing about the present.
func (l *Link) Report(s *Session, c rediserr.Class, err error) {
	if c == rediserr.OK || c == rediserr.Command || c == rediserr.Redirect {
		l.Breaker.Success()
		return
	}
	if l.Gate.Load() != s {
		return
	}
	switch c {
	case rediserr.WriteRefused:
		l.Breaker.Success()
		l.noteRefusal(s, err)
	case rediserr.Down:
		if rediserr.IsReply(err) {
			l.AskProbe() // does it refuse reads, too?
			return
		}
		l.setError(err)
		l.Breaker.Failure(err)
	case rediserr.Busy, rediserr.Unknown:
		l.AskProbe()
	}
}

// AskProbe asks the supervisor to probe the serving session: at once, or as soon as
// Breaker.MinBackoff has passed since the last such probe. Many calls cause one probe.
// AskProbe does not block and is safe from any goroutine. While no session serves it does
// nothing, because the supervisor follows its schedule then.
func (l *Link) AskProbe() {
	if l.Gate.Load() != nil && !l.asked.Swap(true) {
		l.look()
	}
}

// noteRefusal stops writes until a probe succeeds.
func (l *Link) noteRefusal(s *Session, err error) {
	l.setError(err)
	if s.refuse(err) {
		if s.replica.Load() {
			l.Suspect() // the server is a replica: its copies may be stale
		}
		l.refused.Store(true)
		l.look()
	}
}

func (l *Link) setError(err error) {
	err = rediserr.Presentable(err)
	l.mu.Lock()
	l.mu.health.LastError = err
	l.mu.Unlock()
}

// Why returns ErrUnavailable, wrapped with the link's last error if there is one.
func (l *Link) Why() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.mu.health.LastError; err != nil {
		return Unavailable{err}
	}
	return ErrUnavailable
}

func (l *Link) health() Health {
	l.mu.Lock()
	h := l.mu.health
	l.mu.Unlock()
	// The gate is newer than the state until the supervisor has handled an event.
	s := l.Gate.Load()
	h.Writable = s != nil && s.Writable.Load()
	h.Tracking = s != nil && s.tracked
	if s != nil {
		h.Lacks = s.Lacks.names()
	}
	switch {
	case s == nil && (h.State == Up || h.State == ReadOnly) && !l.mending():
		h.State = Down
	case s != nil && h.State == Up && !h.Writable:
		h.State = ReadOnly
	}
	return h
}

// mending reports that a connection was lost while unused and is being replaced. The state is not
// Down until that attempt has failed or Timeout has passed.
func (l *Link) mending() bool {
	m := l.moment.Load()
	return m != nil && !m.first && !m.isOver()
}

// apply performs one step of the state machine and reports it to the keyspace. In Connecting, a failed
// probe with a new cause is reported although the state stays.
func (l *Link) apply(ev event, err error) {
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
	if from == to && !(ev == evProbeFailed && to == Connecting && l.newCause(err)) {
		return
	}
	transition := Change{From: from, To: to, At: h.Since}
	if from == to {
		transition.At = time.Now()
	}
	if to != Up && to != Closed {
		transition.Err = h.LastError
	}
	l.Keys.changed(transition)
}

// newCause reports whether the failure of an attempt has a cause that must be reported; see causes.
func (l *Link) newCause(err error) bool {
	return err != nil && !errors.Is(err, errAllKnown) && l.causes.news(err.Error(), l.clock.Now())
}

func (l *Link) state() State {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.health.State
}

// Server returns the run id of the last server that served, or "" if unknown.
func (l *Link) Server() string {
	if id := l.last.Load(); id != nil {
		return *id
	}
	return ""
}
