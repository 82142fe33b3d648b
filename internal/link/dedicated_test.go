package link

import (
	"context"
	"errors"
	"testing"
	"time"
)

// overdue is a context whose deadline has passed and whose timer has not run yet, as after a stall
// of the machine.
type overdue struct{ context.Context }

func (overdue) Deadline() (time.Time, bool) { return time.Now().Add(-time.Millisecond), true }

// A caller got "too many connections", although its own time was over, too.
func TestTheCallersDeadlineIsTheAnswerWhereThePoolsLimitIsOverToo(t *testing.T) {
	r := newLinkRig(t)
	r.cfg.Redis.BlockingPoolSize = 1
	pool := r.open().Dedicated
	pool.slots <- struct{}{} // the only connection is in use
	limit := make(chan time.Time, 1)
	g := &dialSlot{pool: pool, serving: &servingCtx{Context: context.Background()}}
	limit <- time.Now()
	if _, err := g.wait(overdue{context.Background()}, limit, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a caller whose time is over: %v", err)
	}
	limit <- time.Now()
	if _, err := g.wait(context.Background(), limit, nil); !errors.Is(err, errDedicatedFull) || !IsUnavailable(err) {
		t.Errorf("a caller with time left: %v", err)
	}
}
