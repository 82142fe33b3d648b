package link

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/local"
	"github.com/holdfast-cache/holdfast/internal/rediserr"
)

// errNoProbe is the result of an attempt that a panic ended.
var errNoProbe = errors.New("holdfast: the attempt did not end")

// attempt tries once to reach Redis, or probes the session that serves. It returns the wait from
// its own beginning to the next attempt. It opens at most one session, or two as introduce says. It
// blocks for the time that where and AuthCredentialsFn take, three times Dialer.Timeout for each
// session that it opens, once Dialer.Timeout for a second greeting, and three times Timeout; less
// if ctx ends.
func (l *Link) attempt(ctx context.Context) time.Duration {
	l.answered, l.overtaken = false, false
	defer func() {
		if l.answered { // without an answer to the probe no more is asked
			l.noteKeyCounts(ctx)
		}
	}()
	done, ok := l.Breaker.Probe()
	if !ok {
		l.trying.Store(false)
		return l.schedule.Next()
	}
	r := &attemptResult{err: errNoProbe, done: done}
	defer r.report()

	next, old, err := l.candidate(ctx)
	if err != nil {
		r.err = l.unreached(err)
		return l.schedule.Next()
	}

	bounded, cancel := context.WithTimeout(ctx, l.cfg.Timeout)
	l.probing = l.Keys.ProbeKey(l.probing)
	c, err := next.probe(bounded, l.probing)
	cancel()
	switch {
	case c == rediserr.Busy && old == nil:
		l.Busy.Store(next) // before the gate is shut
		r.err = err
		r.report()
		return l.keepBusySession(next, err)
	case next.bare:
		r.err = errBusyOver
		return l.endBareSession(next, c, err)
	}
	return l.conclude(ctx, r, next, old, c, err)
}

// attemptResult is the result of an attempt for the breaker, which gets it once.
type attemptResult struct {
	err  error
	done func(error)
	once sync.Once
}

func (r *attemptResult) report() { r.once.Do(func() { r.done(r.err) }) }

// conclude acts on the result of the probe of next, and returns the wait until the next attempt. old
// is the session that serves, if it is another one.
func (l *Link) conclude(ctx context.Context, r *attemptResult, next, old *Session, c rediserr.Class, err error) time.Duration {
	switch c {
	case rediserr.OK:
		if l.served != next {
			if err := next.greetAgain(ctx); err != nil {
				next.Close()
				l.session = old
				r.err = l.unreached(err)
				return l.schedule.Next()
			}
		}
		next.Writable.Store(true)
		next.replica.Store(false)
		r.err = nil
		r.report()
		l.replace(ctx, old, next)
		l.serve(next, evProbeOK, nil)
		return l.schedule.Max
	case rediserr.Redirect:
		// The cluster's map is outdated. The next probe follows with another map and another key.
		l.clearBusy(err)
		l.Routes.Follow(next, err)
		l.probing = ""
		l.setError(err)
		r.err = nil
		l.replace(ctx, old, next)
		return l.schedule.Min
	case rediserr.WriteRefused:
		// The refusal may have any text: a user without permission for the probe's key is one case.
		// Whether any write would be accepted is unknown, and is not claimed.
		l.setError(err) // before Health can show that writes are refused
		next.refuse(err)
		r.err = nil
		r.report()
		l.replace(ctx, old, next)
		l.serve(next, evProbeRefused, err)
		if next.replica.Load() {
			l.Suspect() // the server is a replica: its copies may be stale
		}
		return l.schedule.Next()
	default:
		var again time.Duration
		again, r.err = l.handleFailedProbe(next, old, err)
		if rediserr.IsReply(r.err) && l.Gate.Load() != nil {
			r.report()
			l.Breaker.Trip() // the server refuses reads and writes alike: every call would fail
		}
		return again
	}
}

// errBusyOver is the result of an attempt that found by a bare session that the script has ended.
// Such a session can do nothing else.
var errBusyOver = errors.New("holdfast: redis is not busy any more")

// keepBusySession keeps the session of a server that is busy with a script, beside a shut gate:
// commands that a busy server allows are sent over it. Callers' dedicated connections stay, too.
func (l *Link) keepBusySession(s *Session, err error) (again time.Duration) {
	l.session = s
	l.Breaker.Trip()
	l.apply(evProbeFailed, err)
	if s.Lost.Load() {
		l.lostSession(s)
	}
	return l.schedule.Next()
}

// clearBusy clears Busy. If that session does not serve, its dedicated connections end.
func (l *Link) clearBusy(why error) {
	if s := l.Busy.Swap(nil); s != nil && l.Gate.Load() != s {
		s.endServing(why)
	}
}

// endBareSession closes a bare session once the server is not busy any more. It returns the wait
// until the next attempt.
func (l *Link) endBareSession(s *Session, c rediserr.Class, err error) (again time.Duration) {
	l.clearBusy(errBusyOver)
	s.Close()
	l.session, l.bare = nil, false
	if c == rediserr.OK || c == rediserr.WriteRefused || c == rediserr.Redirect {
		return 0 // the server answers: a full handshake will succeed now
	}
	if rediserr.GaveUp(err) {
		err = ErrBudget
	}
	l.apply(evProbeFailed, err)
	return l.schedule.Next()
}

// unreached handles an attempt without a session to probe. It returns the result for the breaker.
func (l *Link) unreached(err error) error {
	switch {
	case errors.Is(err, errJoined):
		// The server is a node of a cluster, which this link has found. Its work is done.
	case l.Gate.Load() != nil:
		l.refuse(l.session, err)
		return nil // reads go on
	default:
		l.apply(evProbeFailed, err)
	}
	return err
}

// handleFailedProbe handles a probe that got no answer or was refused altogether. It returns the
// wait until the next attempt and the result for the breaker.
func (l *Link) handleFailedProbe(next, old *Session, err error) (again time.Duration, reported error) {
	if rediserr.GaveUp(err) {
		err = ErrBudget
	}
	reported = err
	l.clearBusy(err)
	if old == nil && l.Gate.Load() == nil && rediserr.IsReply(err) && strings.HasPrefix(err.Error(), "NOAUTH") {
		next.Close() // the next session logs in again
		l.session = nil
	} else if old == nil {
		l.session = next
	} else {
		next.Close() // the old session continues
		reported = nil
	}
	if next.Lost.Load() {
		l.lostSession(next) // the goroutine that detected the loss may not have come to it
		l.overtaken = next == l.served && l.mending()
	}
	switch {
	case l.overtaken:
		l.setError(err)
	case l.Gate.Load() == nil:
		l.apply(evProbeFailed, err)
	case old != nil:
		l.refuse(old, err)
	default:
		// One failure: calls may still succeed. But the invalidation stream may be silent, so the
		// next probe comes soon.
		l.setError(err)
		return l.schedule.Min, reported
	}
	return l.schedule.Next(), reported
}

// candidate returns the session to probe. That is the present one, unless Redis has moved or the
// present one is with a replica: then it is a new session, with the present one as old. A replica
// may become a master, but the address may also lead to another server by now, so a new connection
// is made. Until the new session has passed its probe, old serves reads.
func (l *Link) candidate(ctx context.Context) (next, old *Session, err error) {
	s := l.session
	if s != nil && s.replica.Load() {
		l.locator.disbelieve()
	}
	addr, err := l.locator.where(ctx, s != nil)
	switch {
	case s == nil && err != nil:
		return nil, nil, err
	case s != nil && !s.replica.Load() && (err != nil || addr == s.Addr):
		return s, nil, nil // a locator that fails does not end a working session
	case err != nil:
		return nil, nil, err
	}
	if s != nil && addr != s.Addr && l.Gate.Load() == s {
		l.refuse(s, errMoved) // before the dial, which may be slow
	}
	if next, err = l.introduce(ctx, addr); err != nil {
		l.locator.disbelieve()
	}
	return next, s, err
}

// errMoved is the reason why a master that was replaced gets no more writes.
var errMoved = errors.New("holdfast: another server is the master now")

// refuse stops writes to the serving session, because Redis has moved and the new server is not
// reached yet.
func (l *Link) refuse(s *Session, err error) {
	l.setError(err)
	s.replica.Store(true)
	s.Writable.Store(false)
	l.Suspect()
	l.apply(evRefused, err)
}

// replace makes next the session. It closes old, if there is one, once its calls in flight have
// ended, or after Timeout. It blocks until then.
func (l *Link) replace(ctx context.Context, old, next *Session) {
	l.session = next
	if old == nil {
		return
	}
	next.inherit(old)
	l.Gate.CompareAndSwap(old, next)
	l.Suspect() // next may hold other data than old
	// Wait at least once: a call may have read the gate before and have no slot yet.
	for deadline := l.clock.Now() + int64(l.cfg.Timeout); ; {
		if !clock.Sleep(ctx, time.Millisecond) || old.used.Load() == 0 || l.clock.Now() >= deadline {
			break
		}
	}
	old.Close()
}

// serve opens the gate to the session if the breaker is closed.
func (l *Link) serve(s *Session, ev event, err error) {
	switch { // before any reply of this session is stored
	case l.served != s && (s.Server == "" || l.Server() != s.Server):
		l.Keys.Scopes((*local.EpochScope).OtherServer)
	case l.Gate.Load() == nil:
		l.Keys.Scopes((*local.EpochScope).Suspect) // a value from a loader in the meantime may be outdated
	}
	mended := l.served != s && l.state() == Up // see mending: the state does not change
	l.served, l.answered = s, true
	l.Busy.Store(nil)
	l.hear(s)
	l.last.Store(&s.Server)
	// The gate opens in one step with the check that the breaker is closed. An open gate beside an
	// open breaker would never shut again, because no call would report to the breaker.
	if !l.Breaker.WhileClosed(func() { s.beginServing(); l.Gate.Store(s) }) {
		return
	}
	l.streamUnbroken.Store(s.tracked && !s.replica.Load())
	if s.Lost.Load() {
		l.lostSession(s)
		return
	}
	l.reportTrackingErr(s)
	if mended {
		l.Watcher.Changed(nil)
	}
	s.tellScripts()
	l.apply(ev, err)
	if ev == evProbeOK || s.Deletable.Load() {
		l.Replayer.Wake()
	}
}

// reportTrackingErr logs that the server does not track, once for each reason.
func (l *Link) reportTrackingErr(s *Session) {
	why := ""
	if s.trackingErr != nil {
		why = rediserr.Presentable(s.trackingErr).Error()
	}
	if why != "" && why != l.trackingErr {
		l.Watcher.Untracked(s.Addr, why)
	}
	l.trackingErr = why
}

// Judge probes the session now, for a caller that got an unknown error text. It returns nil if the
// probe succeeds: then the text is about the caller's command alone. Otherwise the text is about
// the server or the way to it, and Judge returns the error of the probe, to be classified like any
// other error of the session. It has then asked the supervisor for a probe of its own.
//
// Judge is safe from any goroutine, also for a session that does not serve any more. It blocks for
// at most Options.Timeout, and does not report to the breaker. Each call sends a probe, so a caller
// with many such texts calls it once for all of them.
func (l *Link) Judge(ctx context.Context, s *Session) error {
	bounded, cancel := context.WithTimeout(ctx, l.cfg.Timeout)
	defer cancel()
	c, err := s.probe(bounded, l.Keys.ProbeKey(""))
	switch {
	case c == rediserr.OK:
		return nil
	case rediserr.GaveUp(err) && ctx.Err() != nil:
		return ctx.Err()
	case rediserr.GaveUp(err):
		err = ErrBudget
	}
	l.AskProbe()
	return err
}
