package holdfast

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// moment is a window in which calls may wait for an attempt to reach Redis: until the
// attempt is decided, or one Timeout from its beginning. There is one for all callers
// of a link. It begins
//
//   - with the link: the first attempt. Only calls wait that Redis alone can answer;
//   - when a connection is lost that nobody used: the next attempt;
//   - when a call finds such a link without a connection, and no attempt has failed
//     within MaxBackoff: the attempt that the call causes.
//
// After it nobody waits: a link that is used is looked after by its schedule, and one
// that has just failed would most likely fail again.
type moment struct {
	first   bool
	asked   atomic.Bool   // a call waits, so the attempt is due now
	decided chan struct{} // closed when the attempt has succeeded or failed
	over    chan struct{} // closed then, or when Timeout has passed
	once    sync.Once
	timer   *time.Timer // one for all who wait
}

func newMoment(first bool, timeout time.Duration) *moment {
	m := &moment{first: first, decided: make(chan struct{}), over: make(chan struct{})}
	m.timer = time.AfterFunc(timeout, m.end)
	return m
}

func (m *moment) end() { m.once.Do(func() { close(m.over) }) }

func (m *moment) decide() {
	m.timer.Stop()
	m.end()
	close(m.decided)
}

func (m *moment) isOver() bool {
	select {
	case <-m.over:
		return true
	default:
		return false
	}
}

// openMoment begins a moment, unless there is one, an attempt has failed within
// MaxBackoff, or the link has nothing to reach.
func (l *link) openMoment() {
	if l.moment.Load() != nil || l.clock.now()-l.failedAt.Load() < int64(l.schedule.max) || l.needless() {
		return
	}
	m := newMoment(false, l.opts.Timeout)
	if !l.moment.CompareAndSwap(nil, m) {
		m.timer.Stop()
	}
}

// window is for a call that found the gate closed: the moment in which it may wait, nil
// for none. first says whether it waits for the first attempt, too.
func (l *link) window(first bool) *moment {
	m := l.moment.Load()
	if m == nil {
		if l.quiet.Load() {
			l.openMoment()
		}
		// Also where the supervisor has found the link to be used by now: it opens
		// the moment before it says so.
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
func (l *link) ask(m *moment) {
	if !m.first && !m.asked.Swap(true) {
		l.look()
	}
}

// forced is window for Check, which always looks: it joins an attempt that is under way,
// and else causes one, unless one has failed within MinBackoff, which counts as a look.
func (l *link) forced() *moment {
	m := l.moment.Load()
	if m == nil {
		if !l.trying.Load() && l.clock.now()-l.failedAt.Load() < int64(l.schedule.min) {
			return nil
		}
		fresh := newMoment(false, l.opts.Timeout)
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

// reach makes an attempt, and tells who waits for it.
func (l *link) reach(ctx context.Context) time.Duration {
	l.trying.Store(true)
	began := l.clock.now()
	if l.quiet.Load() && l.gate.Load() == nil {
		l.openMoment() // a call that comes by joins
	}
	if m := l.moment.Load(); m != nil {
		m.timer.Reset(l.opts.Timeout) // from its beginning
	}
	again := l.attempt(ctx)
	if l.trying.Load() && l.gate.Load() == nil {
		l.failedFrom.Store(began)
	}
	l.decide()
	return again
}

// decide takes note of an attempt that has ended, and ends the moment, if there is one.
// An attempt that the breaker did not let be made decides nothing.
func (l *link) decide() {
	if !l.trying.Load() {
		return
	}
	if l.gate.Load() == nil {
		now := l.clock.now()
		l.failedAt.Store(now)
		if l.undecided() && l.health().LastError != nil { // else it was joined to a cluster
			l.plainFrom.Store(now + int64(l.opts.Timeout))
		}
	}
	l.trying.Store(false)
	l.endMoment()
}

func (l *link) endMoment() {
	if m := l.moment.Swap(nil); m != nil {
		m.decide()
	}
}

// undecided says whether the link's first attempt is.
func (l *link) undecided() bool {
	m := l.moment.Load()
	return m != nil && m.first
}

// hopeful says whether the link serves, or may do so soon: no attempt that began since it
// was lost has failed.
func (l *link) hopeful() bool {
	return l.gate.Load() != nil || l.undecided() || l.mending() || l.lostAt.Load() > l.failedFrom.Load()
}

// awaitLink waits until the link that find names has a session, as long as an attempt to
// reach it may bring one: see moment. It waits within the budget of a call that began
// at now, returns the link at once where its gate is open, or there is nothing to wait
// for, and says whether it waited. find is asked again after each attempt, for the first
// one may find a cluster.
func (c *Cache) awaitLink(ctx context.Context, now int64, first bool, find func() *link) (l *link, waited bool) {
	l = find()
	if l.gate.Load() != nil {
		return l, false
	}
	l.use()
	m := l.window(first)
	if m == nil {
		return l, false
	}
	bounded, cancel := c.remote.bound(ctx, now)
	defer cancel()
	for m != nil {
		select {
		case <-m.over:
		case <-bounded.Done():
			return l, true
		}
		if l = find(); l.gate.Load() != nil {
			return l, true
		}
		m = l.window(first)
	}
	return l, true
}

// awaitKey is awaitLink for the link of a key, for a call that found no session. It says
// whether to look again: there is one by now, or it waited.
func (c *Cache) awaitKey(ctx context.Context, now int64, first bool, key string) (again bool) {
	l, waited := c.awaitLink(ctx, now, first, func() *link { return c.routes.link(c.routes.of(key)) })
	return waited || l.gate.Load() != nil
}
