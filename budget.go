package holdfast

import (
	"context"
	"sync/atomic"
	"time"
)

// budget bounds what a call may wait for Redis. Calls that begin within the
// same sixteenth of the timeout share one deadline context: a context of its
// own costs a call about 0.5 us and five allocations, a shared one an atomic
// load. So a call has the timeout, less a sixteenth at most.
//
// There are a few such contexts at a time, because everybody who waits on one
// takes its channel's lock.
type budget struct {
	timeout time.Duration
	slack   int64
	clock   clock
	lanes   [budgetLanes]struct {
		shared atomic.Pointer[sharedDeadline]
		_      [56]byte // a cache line each
	}
}

const budgetLanes = 8

type sharedDeadline struct {
	ctx    context.Context
	cancel context.CancelFunc // the timer calls it; kept for the loser of a race
	at     time.Time
	born   int64
}

func newBudget(timeout time.Duration, clk clock) *budget {
	return &budget{timeout: timeout, slack: int64(timeout / 16), clock: clk}
}

// end is when a call that began at now is given up.
func (b *budget) end(now int64) time.Time {
	return b.clock.base.Add(time.Duration(now) + b.timeout)
}

// of returns the context under which a call that has the caller's ctx goes to
// Redis, and what must be called when it is back. Where the caller can give up
// in ways of its own, the two must be joined, and that is not free: rueidis
// waits on one context.
func (b *budget) of(ctx context.Context, now int64) (context.Context, context.CancelFunc) {
	d := b.current(&b.lanes[lane()%budgetLanes].shared, now)
	if d.born-now >= b.slack {
		// The call waited for something else before it came here: it has less left
		// than those who begin now.
		return context.WithDeadline(ctx, b.end(now))
	}
	if ctx.Done() == nil {
		return d.ctx, noCancel
	}
	if deadline, ok := ctx.Deadline(); ok && deadline.Before(d.at) {
		return ctx, noCancel
	}
	return context.WithDeadline(ctx, d.at)
}

func noCancel() {}

func (b *budget) current(shared *atomic.Pointer[sharedDeadline], now int64) *sharedDeadline {
	old := shared.Load()
	if old != nil && now-old.born < b.slack {
		return old
	}
	at := b.end(now)
	d := &sharedDeadline{born: now, at: at}
	d.ctx, d.cancel = context.WithDeadline(context.Background(), at)
	if shared.CompareAndSwap(old, d) {
		return d
	}
	d.cancel()
	return shared.Load()
}
