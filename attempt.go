package holdfast

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"
)

// errNoProbe is the result of an attempt that was cut short by a panic.
var errNoProbe = errors.New("holdfast: the attempt did not end")

// attempt reaches for Redis once, with at most one dial of it, and returns how
// long to wait from its beginning before the next. It blocks for as long as
// asking where Redis is takes, and then for at most three times Dialer.Timeout
// plus twice Timeout, and less when ctx ends.
func (l *link) attempt(ctx context.Context) time.Duration {
	l.answered = false
	defer func() {
		if l.answered { // who does not answer a probe is not asked for more
			l.noteKeyCounts(ctx)
		}
	}()
	done, ok := l.breaker.probe()
	if !ok {
		l.trying.Store(false)
		return l.schedule.next()
	}
	var (
		once     sync.Once
		reported = errNoProbe
		finish   = func() { once.Do(func() { done(reported) }) }
	)
	defer finish()

	next, old, err := l.candidate(ctx)
	if err != nil {
		reported = l.unreached(err)
		return l.schedule.next()
	}

	bounded, cancel := context.WithTimeout(ctx, l.opts.Timeout)
	l.probing = l.probeKey(l.probing)
	c, err := next.probe(bounded, l.probing)
	cancel()
	switch {
	case c == classBusy && old == nil:
		l.busy.Store(next) // before the gate is shut
		reported = err
		finish()
		return l.busied(next, err)
	case next.bare:
		reported = errBusyOver
		return l.bared(next, c, err)
	}
	switch c {
	case classOK:
		if l.served != next {
			if err := next.greetAgain(ctx); err != nil {
				next.close()
				l.session = old
				reported = l.unreached(err)
				return l.schedule.next()
			}
		}
		next.writable.Store(true)
		next.replica.Store(false)
		reported = nil
		finish()
		l.replace(ctx, old, next)
		l.serve(next, evProbeOK, nil)
		return l.schedule.max
	case classRedirect:
		// The map of the cluster is out of date: with the next one, another key.
		l.notBusy(err)
		l.redirected(next, err)
		l.probing = ""
		l.setError(err)
		reported = nil
		l.replace(ctx, old, next)
		return l.schedule.min
	case classWriteRefused:
		// The refusal may have any text: a user without permission for the probe's key is one case.
		// Whether anything can be written is not known, and is not claimed.
		l.setError(err) // before Health can show that writes are refused
		next.refuse(err)
		reported = nil
		finish()
		l.replace(ctx, old, next)
		l.serve(next, evProbeRefused, err)
		if next.replica.Load() {
			l.doubt() // the copies are of what its master held
		}
		return l.schedule.next()
	default:
		var again time.Duration
		again, reported = l.unanswered(next, old, err)
		if isReply(reported) && l.gate.Load() != nil {
			finish()
			l.breaker.trip() // it is there, and refuses reads and writes alike: no call fares better
		}
		return again
	}
}

// errBusyOver is what the breaker is told of an attempt that found that the script has
// ended, by a connection that is good for nothing else.
var errBusyOver = errors.New("holdfast: redis is not busy any more")

// busied keeps the session of a server that is busy with a script, beside a shut gate:
// what Redis allows then may be sent over it. What callers have of their own stays, too.
func (l *link) busied(s *session, err error) (again time.Duration) {
	l.session = s
	l.breaker.trip()
	l.apply(evProbeFailed, err)
	if s.lost.Load() {
		l.lostSession(s)
	}
	return l.schedule.next()
}

// notBusy is told that the session that was kept for that has another fate.
func (l *link) notBusy(why error) {
	if s := l.busy.Swap(nil); s != nil && l.gate.Load() != s {
		s.endPeriod(why)
	}
}

// bared ends a bare session once the server is not busy, and says when to open another.
func (l *link) bared(s *session, c class, err error) (again time.Duration) {
	l.notBusy(errBusyOver)
	s.close()
	l.session, l.bare = nil, false
	if c == classOK || c == classWriteRefused || c == classRedirect {
		return 0 // it answers: the handshake will succeed now
	}
	if gaveUp(err) {
		err = errBudget
	}
	l.apply(evProbeFailed, err)
	return l.schedule.next()
}

// unreached takes note of an attempt that found nobody to probe, and returns what
// the breaker is to be told.
func (l *link) unreached(err error) error {
	switch {
	case errors.Is(err, errJoined):
		// That was all that this link was for.
	case l.gate.Load() != nil:
		l.refuse(l.session, err)
		return nil // reads go on
	default:
		l.apply(evProbeFailed, err)
	}
	return err
}

// unanswered takes note of a probe that got no answer, or one by which the server
// refuses everything, and returns how long to wait, and what the breaker is to be
// told.
func (l *link) unanswered(next, old *session, err error) (again time.Duration, reported error) {
	if gaveUp(err) {
		err = errBudget
	}
	reported = err
	l.notBusy(err)
	if old == nil && l.gate.Load() == nil && isReply(err) && strings.HasPrefix(err.Error(), "NOAUTH") {
		next.close() // another one logs in
		l.session = nil
	} else if old == nil {
		l.session = next
	} else {
		next.close() // the old one goes on, such as it is
		reported = nil
	}
	switch {
	case l.gate.Load() == nil:
		l.apply(evProbeFailed, err)
	case old != nil:
		l.refuse(old, err)
	default:
		// One failure among calls that may fare better. But the stream may be
		// silent, so whether it is must be known soon.
		l.setError(err)
		return l.schedule.min, reported
	}
	return l.schedule.next(), reported
}

// candidate returns the session to probe: the present one, or, beside it as old,
// one to where Redis is by now. A replica does not become a master by waiting for
// it on the same connection: the address may lead elsewhere. Until another
// connection has proved itself, the old one goes on serving reads.
func (l *link) candidate(ctx context.Context) (next, old *session, err error) {
	s := l.session
	if s != nil && s.replica.Load() {
		l.disbelieve()
	}
	addr, err := l.where(ctx, s != nil)
	switch {
	case s == nil && err != nil:
		return nil, nil, err
	case s != nil && !s.replica.Load() && (err != nil || addr == s.addr):
		return s, nil, nil // who cannot be asked does not end what works
	case err != nil:
		return nil, nil, err
	}
	if s != nil && addr != s.addr && l.gate.Load() == s {
		l.refuse(s, errMoved) // before the dial, which may take its time
	}
	if next, err = l.introduce(ctx, addr); err != nil {
		l.disbelieve()
	}
	return next, s, err
}

// errMoved is why a master that another one has replaced takes no more writes.
var errMoved = errors.New("holdfast: another server is the master now")

// refuse takes writes away from a session that serves, because Redis is
// elsewhere by now, and that place is yet to be reached.
func (l *link) refuse(s *session, err error) {
	l.setError(err)
	s.replica.Store(true)
	s.writable.Store(false)
	l.doubt()
	l.apply(evRefused, err)
}

// replace makes next the session. The old one, if there is one, is closed once
// the reads that are under way on it have ended, or their time is up.
func (l *link) replace(ctx context.Context, old, next *session) {
	l.session = next
	if old == nil {
		return
	}
	next.inherit(old)
	l.gate.CompareAndSwap(old, next)
	l.doubt() // what the old one told may not be what the new one holds
	// Once at least: a call may have asked the gate before, and have no slot yet.
	for deadline := l.clock.now() + int64(l.opts.Timeout); ; {
		if !sleep(ctx, time.Millisecond) || old.used.Load() == 0 || l.clock.now() >= deadline {
			break
		}
	}
	old.close()
}

// serve opens the gate to the session, now that the breaker is closed.
func (l *link) serve(s *session, ev event, err error) {
	// As one step with the breaker's being closed: a gate that is open beside
	// an open breaker would never close again, for nobody reports to it.
	switch { // before anything that is read there is kept
	case l.served != s && (s.server == "" || l.server() != s.server):
		l.domains((*domain).otherServer)
	case l.gate.Load() == nil:
		l.domains((*domain).doubt) // what a loader said meanwhile may not hold any more
	}
	mended := l.served != s && l.state() == Up // see mending: no change tells of it
	l.served, l.answered = s, true
	l.busy.Store(nil)
	l.hear(s)
	l.last.Store(&s.server)
	if !l.breaker.whileClosed(func() { s.beginPeriod(); l.gate.Store(s) }) {
		return
	}
	l.vouched.Store(s.tracked && !s.replica.Load())
	if s.lost.Load() {
		l.lostSession(s)
		return
	}
	l.tellUntold(s)
	if mended {
		l.listeners.told(nil)
	}
	s.tellScripts()
	l.apply(ev, err)
	if ev == evProbeOK || s.deletable.Load() {
		l.replayer.wake()
	}
}

// tellUntold logs, once for each reason, that the server does not tell of changes.
func (l *link) tellUntold(s *session) {
	why := ""
	if s.untold != nil {
		why = presentable(s.untold).Error()
	}
	if why != "" && why != l.untold {
		l.notify.untracked(s.addr, why, l.opts.Tracking.UntrackedTTL)
	}
	l.untold = why
}
