package link

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// Moment is a window in which calls may wait for an attempt to reach Redis: until the attempt is
// decided, or for one Timeout from its beginning. All callers of a link share one moment. It begins
//
//   - with the link, for the first attempt; only calls that need an answer from Redis wait;
//   - when an unused connection is lost, for the next attempt;
//   - when a call finds a quiet link without a connection, and no attempt has failed within
//     MaxBackoff, for the attempt that the call causes.
//
// After the moment no call waits: a link in use follows its schedule, and a link that has just
// failed would most likely fail again.
type Moment struct {
	first   bool
	lost    int64         // when an unused connection was lost, which opened it; 0 otherwise
	asked   atomic.Bool   // a call waits, so the attempt is due now
	Decided chan struct{} // closed when the attempt has succeeded or failed
	over    chan struct{} // closed by then, or after Timeout
	once    sync.Once
	timer   *time.Timer // shared by all waiting calls
}

func newMoment(first bool, timeout time.Duration) *Moment {
	m := &Moment{first: first, Decided: make(chan struct{}), over: make(chan struct{})}
	m.timer = time.AfterFunc(timeout, m.end)
	return m
}

func (m *Moment) end() { m.once.Do(func() { close(m.over) }) }

func (m *Moment) decide() {
	m.timer.Stop()
	m.end()
	close(m.Decided)
}

func (m *Moment) isOver() bool {
	select {
	case <-m.over:
		return true
	default:
		return false
	}
}

// openMoment begins a moment, unless there is one, an attempt has failed within MaxBackoff, or the
// link has no keys to serve. lost is the time of the loss that causes it, or 0.
func (l *Link) openMoment(lost int64) {
	if l.moment.Load() != nil || l.clock.Now()-l.failedAt.Load() < int64(l.schedule.Max) || l.Keys.empty() {
		return
	}
	m := newMoment(false, l.cfg.Timeout)
	m.lost = lost
	if !l.moment.CompareAndSwap(nil, m) {
		m.timer.Stop()
	}
}

// window returns the moment in which a call that found the gate shut may wait, or nil. first: the
// call also waits for the first attempt. window does not block.
func (l *Link) window(first bool) *Moment {
	m := l.moment.Load()
	if m == nil {
		if l.quiet.Load() {
			l.openMoment(0)
		}
		// Check this also if the link is not quiet any more: the supervisor opens the moment before
		// it clears quiet.
		if m = l.moment.Load(); m == nil {
			return nil
		}
	}
	if m.first && !first || m.isOver() {
		return nil
	}
	l.ask(m)
	return m
}

// ask makes the moment's attempt due now.
func (l *Link) ask(m *Moment) {
	if !m.first && !m.asked.Swap(true) {
		l.look()
	}
}

// Forced is window for Check: it joins a running attempt or causes one. Check needs the result of
// an attempt. A failure within MinBackoff is such a result, and Forced returns nil.
func (l *Link) Forced() *Moment {
	m := l.moment.Load()
	if m == nil {
		if !l.trying.Load() && l.clock.Now()-l.failedAt.Load() < int64(l.schedule.Min) {
			return nil
		}
		fresh := newMoment(false, l.cfg.Timeout)
		if l.moment.CompareAndSwap(nil, fresh) {
			m = fresh
		} else {
			fresh.timer.Stop()
			if m = l.moment.Load(); m == nil {
				return nil // decided just now
			}
		}
	}
	l.ask(m)
	return m
}

// reach makes an attempt and wakes the calls that wait for it. It blocks as long as attempt does.
func (l *Link) reach(ctx context.Context) time.Duration {
	l.trying.Store(true)
	began := l.clock.Now()
	if l.quiet.Load() && l.Gate.Load() == nil {
		l.openMoment(0) // so that a call that arrives now joins
	}
	if m := l.moment.Load(); m != nil {
		m.timer.Reset(l.cfg.Timeout) // counted from the attempt's beginning
	}
	l.began.Store(began)
	again := l.attempt(ctx)
	if l.overtaken {
		l.trying.Store(false)
		return 0
	}
	if l.trying.Load() && l.Gate.Load() == nil {
		l.failedFrom.Store(began)
	}
	l.decide()
	return again
}

// decide records the end of an attempt, and ends the moment, if there is one. An attempt that the
// breaker did not allow decides nothing.
func (l *Link) decide() {
	if !l.trying.Load() {
		return
	}
	if l.Gate.Load() == nil {
		now := l.clock.Now()
		l.failedAt.Store(now)
		if l.Undecided() && l.health().LastError != nil { // else the attempt found a cluster
			l.PlainFrom.Store(now + int64(l.cfg.Timeout))
		}
	}
	l.trying.Store(false)
	l.endMoment()
}

// endMoment ends the moment, but not one that a loss has opened since the attempt began.
func (l *Link) endMoment() {
	if m := l.moment.Load(); m != nil && m.lost <= l.began.Load() && l.moment.CompareAndSwap(m, nil) {
		m.decide()
	}
}

// Awaited reports whether there is an attempt that calls wait for.
func (l *Link) Awaited() bool { return l.moment.Load() != nil }

// Undecided reports whether the link's first attempt is still undecided.
func (l *Link) Undecided() bool {
	m := l.moment.Load()
	return m != nil && m.first
}

// Hopeful reports whether the link serves or may serve soon: no attempt begun after the loss of its
// connection has failed.
func (l *Link) Hopeful() bool {
	return l.Gate.Load() != nil || l.Undecided() || l.mending() || l.lostAt.Load() > l.failedFrom.Load()
}
