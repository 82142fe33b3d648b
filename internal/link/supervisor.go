package link

import (
	"context"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
)

// supervise is the supervisor's loop. It returns when ctx ends, with every connection closed.
func (l *Link) supervise(ctx context.Context) {
	defer l.endSupervision()
	timer := time.NewTimer(0)
	defer timer.Stop()
	began := l.clock.Now() // New counts as a use
	v := &supervision{Link: l, due: began, begun: began, lastUse: began}
	for {
		l.resolveFlush(ctx)
		now := l.clock.Now()
		v.noteUse(now)
		v.handleEvents(now)
		v.noteDemand(now)
		if now >= v.due && !l.Keys.empty() {
			if v.makeAttempt(ctx, now); ctx.Err() != nil {
				return
			}
			continue
		}
		if l.Keys.empty() {
			timer.Stop()
		} else {
			timer.Reset(time.Duration(v.due - now))
		}
		if (v.atRest || l.Keys.empty()) && !v.park() {
			continue
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

// endSupervision leaves the link closed.
func (l *Link) endSupervision() {
	l.Gate.Store(nil)
	l.Busy.Store(nil)
	l.Suspect()
	l.failedAt.Store(clock.Never) // no call waits for another attempt
	l.failedFrom.Store(clock.Never)
	l.began.Store(clock.Never)
	l.endMoment()
	l.discard()
	l.locator.close()
	l.apply(evClose, nil)
}

// supervision is the supervisor's view of time: when the next attempt is due, and whether the link
// rests.
type supervision struct {
	*Link
	due       int64 // when the next attempt is due
	begun     int64 // when the last attempt began
	lastUse   int64
	hits      uint64 // at the last check
	atRest    bool
	suspected bool  // the copies became suspect when the link came to rest
	stable    int64 // when the link came up
}

// noteUse notes a use since the last check, or the beginning of a quiet time.
func (v *supervision) noteUse(now int64) {
	if n := v.Keys.hits(); v.used.Swap(false) || n != v.hits {
		v.lastUse, v.hits = now, n
		v.wakened()
	} else if now-v.lastUse >= int64(v.schedule.Max) {
		v.quiet.Store(true)
	}
}

// handleEvents handles a break of the link, a refused write and a request for a probe.
func (v *supervision) handleEvents(now int64) {
	if v.observe() {
		v.backOff(now)
	}
	if v.excused.Swap(false) && v.excuse(now) {
		// One command caused the loss; the other calls must not wait for it.
		v.schedule.Reset()
		if v.session == nil {
			v.due = now
		}
	}
	if v.refused.Swap(false) && v.state() == Up {
		v.apply(evRefused, nil)
		v.backOff(now)
	}
	if s := v.Gate.Load(); v.asked.Swap(false) && s != nil && s.OfMaster() {
		v.due = min(v.due, v.begun+int64(v.schedule.Min))
	}
}

// backOff sets when the next attempt is due after a failure. The schedule of a link that was up for
// MaxBackoff or more starts again; a link that flaps keeps backing off.
func (v *supervision) backOff(now int64) {
	if now-v.stable >= int64(v.schedule.Max) {
		v.schedule.Reset()
	}
	v.due = now + int64(v.schedule.Next())
}

// noteDemand finds out whether the link is needed or rests.
func (v *supervision) noteDemand(now int64) {
	wanted := now-v.lastUse < int64(v.idle) || v.Keys.wanted() || v.Dedicated.inUse()
	switch {
	case wanted && v.atRest:
		v.due = min(v.due, v.begun+int64(v.schedule.Max))
	case !wanted && !v.atRest && v.Gate.Load() != nil && v.state() == Up:
		v.due = max(v.due, v.begun+int64(v.resting.Max))
	}
	if v.atRest = !wanted; wanted {
		v.resting.Reset()
		v.suspected = false
	}
	if m := v.moment.Load(); m != nil && m.asked.Swap(false) {
		v.due = now
	}
}

// makeAttempt makes the attempt that is due.
func (v *supervision) makeAttempt(ctx context.Context, now int64) {
	up := v.state() == Up && v.Gate.Load() != nil
	v.begun = now
	interval := v.reach(ctx)
	if !up && v.state() == Up {
		v.stable = v.clock.Now()
	}
	if v.atRest {
		interval = v.restFor(interval)
	}
	v.due = max(now+int64(interval), v.clock.Now())
}

// park prepares for a long sleep. It returns false if a use arrived just now.
func (v *supervision) park() bool {
	v.parked.Store(true)
	if (v.used.Load() || v.Keys.wanted() || v.Dedicated.inUse()) && !v.Keys.empty() {
		v.parked.Store(false)
		return false
	}
	// Probes are rare from here on, so a silent break of the stream would stay unnoticed for long.
	// After Suspect the next reader asks Redis, which wakes the supervisor.
	if s := v.Gate.Load(); s != nil && s.tracked && !v.suspected {
		v.Suspect()
		v.suspected = true
	}
	return true
}

// wakened ends the quiet time after a call. If the link has no session, calls may wait for the
// attempt that follows. The moment must be visible before quiet is cleared; see window.
func (l *Link) wakened() {
	if !l.quiet.Load() {
		return
	}
	if l.Gate.Load() == nil {
		l.openMoment(0)
		if m := l.moment.Load(); m != nil {
			m.asked.Store(true)
		}
	}
	l.quiet.Store(false)
}

// restFor returns the wait of a resting link, from the beginning of an attempt. interval is the
// wait of a link in use.
func (l *Link) restFor(interval time.Duration) time.Duration {
	switch {
	case l.Gate.Load() == nil, l.state() != Up:
		return max(interval, l.resting.Next()) // a ReadOnly server may soon accept writes
	case interval <= l.schedule.Min:
		return interval // repeat an unanswered probe soon
	}
	l.resting.Reset()
	return l.resting.Max
}

// observe handles a lost session or an open circuit. It reports whether the link broke just now.
func (l *Link) observe() bool {
	s := l.session
	lost := s != nil && s.Lost.Load()
	serving := l.state() == Up || l.state() == ReadOnly
	if !lost && (!serving || l.Gate.Load() != nil || l.mending()) {
		return false
	}
	var err error
	if lost {
		err = *s.LostErr.Load()
		l.lostSession(s) // the goroutine that detected the loss may not have come to it
		l.discard()
	}
	l.Breaker.Trip() // a lost connection opens the circuit at once
	if lost && serving && l.mending() {
		l.setError(err)
		l.Watcher.Changed(nil) // the state does not change, so the views are informed here
		return true            // the link becomes Down only if the new attempt fails
	}
	l.apply(evLost, err)
	return serving
}

// discard closes the session, if there is one.
func (l *Link) discard() {
	if l.session != nil {
		l.session.Close()
		l.session = nil
	}
}
