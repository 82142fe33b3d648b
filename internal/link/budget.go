package link

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/inflight"
)

// budget bounds how long a call may wait for Redis. Calls that begin within the same sixteenth of
// the timeout share one deadline context. A context per call costs about 0.5 us and five
// allocations; a shared one costs an atomic load. So a call's budget differs from the
// timeout by less than a sixteenth.
//
// There are several such contexts at a time, because all callers that wait on a context contend for
// the lock of its channel.
type budget struct {
	timeout time.Duration
	slack   int64
	clock   clock.Clock
	lanes   [budgetLanes]struct {
		shared atomic.Pointer[sharedDeadline]
		_      [56]byte // one cache line each
	}
}

const budgetLanes = 8

type sharedDeadline struct {
	ctx    context.Context
	cancel context.CancelFunc // for the loser of the race to store it; else the timer ends ctx
	at     time.Time
	born   int64
}

func newBudget(timeout time.Duration, clk clock.Clock) *budget {
	return &budget{timeout: timeout, slack: int64(timeout / 16), clock: clk}
}

// end returns the time at which a call that began at now is given up.
func (b *budget) end(now int64) time.Time {
	return b.clock.Base.Add(time.Duration(now) + b.timeout)
}

// Of returns the context for a call to Redis, and a function to call when the call is done. ctx is
// the caller's context. If it can end by itself, the two must be joined into one context of the
// call's own, because rueidis waits on a single context.
func (b *budget) Of(ctx context.Context, now int64) (context.Context, context.CancelFunc) {
	d := b.current(&b.lanes[inflight.Spread()%budgetLanes].shared, now)
	if d.born-now >= b.slack {
		// The call waited for something else before it came here, so it has less time left than
		// calls that begin now.
		return context.WithDeadline(ctx, b.end(now))
	}
	if ctx.Done() == nil {
		return d.ctx, NoCancel
	}
	if deadline, ok := ctx.Deadline(); ok && deadline.Before(d.at) {
		return ctx, NoCancel
	}
	return context.WithDeadline(ctx, d.at)
}

func NoCancel() {}

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
