package link

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
)

func TestCallsThatBeginTogetherShareADeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const timeout = 160 * time.Millisecond
		const slack = timeout / 16
		clk := clock.Start()
		b := newBudget(timeout, clk)
		lane := &b.lanes[0].shared
		first := b.current(lane, clk.Now())
		if want := time.Now().Add(timeout); !first.at.Equal(want) {
			t.Errorf("the deadline is %v, want %v", first.at, want)
		}
		if at, ok := first.ctx.Deadline(); !ok || !at.Equal(first.at) {
			t.Errorf("the context's deadline is %v, %v", at, ok)
		}
		time.Sleep(slack - 1)
		if b.current(lane, clk.Now()) != first {
			t.Error("a call within the slack has a context of its own")
		}
		time.Sleep(time.Nanosecond)
		second := b.current(lane, clk.Now())
		if second == first {
			t.Fatal("a call after the slack shares the old context")
		}
		if want := time.Now().Add(timeout); !second.at.Equal(want) {
			t.Errorf("the second deadline is %v, want %v", second.at, want)
		}
		if b.current(lane, clk.Now()) != second {
			t.Error("the second is not shared")
		}
		// The first still has callers who wait on it, and ends at its own time.
		if first.ctx.Err() != nil {
			t.Errorf("the first has ended with its successor's birth: %v", first.ctx.Err())
		}
		start := time.Now()
		<-first.ctx.Done()
		if took := time.Since(start); took != timeout-slack || !errors.Is(first.ctx.Err(), context.DeadlineExceeded) {
			t.Errorf("the first ended after another %v with %v", took, first.ctx.Err())
		}
		// A lane that was idle for long does not hand out what has ended.
		time.Sleep(time.Hour)
		if third := b.current(lane, clk.Now()); third.ctx.Err() != nil {
			t.Errorf("a new call begins with %v", third.ctx.Err())
		}
	})
}

func TestACallWaitsForTheTimeoutLessASixteenthAtMost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const timeout = 160 * time.Millisecond
		clk := clock.Start()
		b := newBudget(timeout, clk)
		own, cancelOwn := context.WithCancel(context.Background())
		defer cancelOwn()
		patient, cancelPatient := context.WithTimeout(context.Background(), time.Hour)
		defer cancelPatient()
		for i := range 200 {
			time.Sleep(time.Duration(i%23) * time.Millisecond)
			for _, caller := range []context.Context{context.Background(), own, patient} {
				now := clk.Now()
				start := time.Now()
				ctx, release := b.Of(caller, now)
				if at, ok := ctx.Deadline(); !ok || at.Sub(start) > timeout || at.Sub(start) < timeout*15/16 {
					t.Fatalf("round %d: %v until the deadline (%v)", i, at.Sub(start), ok)
				}
				if i%20 == 0 {
					<-ctx.Done()
					if took := time.Since(start); took > timeout || took < timeout*15/16 || ctx.Err() != context.DeadlineExceeded {
						t.Fatalf("round %d: waited %v, %v", i, took, ctx.Err())
					}
					if caller.Err() != nil {
						t.Fatalf("round %d: the budget ended the caller's own context: %v", i, caller.Err())
					}
				}
				release()
			}
		}
	})
}

func TestTheCallersOwnEarlierDeadlineWins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		clk := clock.Start()
		b := newBudget(100*time.Millisecond, clk)
		for _, own := range []time.Duration{-time.Second, 0, time.Millisecond, 90 * time.Millisecond} {
			caller, cancel := context.WithTimeout(context.Background(), own)
			start := time.Now()
			ctx, release := b.Of(caller, clk.Now())
			<-ctx.Done()
			if took := time.Since(start); took != max(own, 0) || ctx.Err() != context.DeadlineExceeded || caller.Err() == nil {
				t.Errorf("own %v: waited %v, %v, the caller's own %v", own, took, ctx.Err(), caller.Err())
			}
			release()
			cancel()
		}
	})
}

func TestTheCallersCancelEndsItsCallAndNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		clk := clock.Start()
		b := newBudget(100*time.Millisecond, clk)
		for _, withDeadline := range []bool{false, true} {
			base, cancelBase := context.Background(), context.CancelFunc(func() {})
			if withDeadline {
				base, cancelBase = context.WithTimeout(base, time.Hour)
			}
			caller, cancel := context.WithCancel(base)
			start := time.Now()
			now := clk.Now()
			ctx, release := b.Of(caller, now)
			other, releaseOther := b.Of(context.Background(), now)
			time.AfterFunc(5*time.Millisecond, cancel)
			<-ctx.Done()
			if took := time.Since(start); took != 5*time.Millisecond || ctx.Err() != context.Canceled {
				t.Errorf("cancelled after 5ms: waited %v, %v", took, ctx.Err())
			}
			release()
			if other.Err() != nil {
				t.Errorf("one caller's cancel ended another's call: %v", other.Err())
			}
			releaseOther()
			if other.Err() != nil {
				t.Errorf("one call's end ended what others share: %v", other.Err())
			}
			cancelBase()
		}
		// A caller who is gone already.
		caller, cancel := context.WithCancel(context.Background())
		cancel()
		ctx, release := b.Of(caller, clk.Now())
		if ctx.Err() != context.Canceled {
			t.Errorf("a context that was cancelled before gave %v", ctx.Err())
		}
		release()
	})
}

func TestACallThatCannotBeCancelledAllocatesNoContext(t *testing.T) {
	clk := clock.Start()
	b := newBudget(time.Hour, clk)
	now := clk.Now()
	for i := range b.lanes {
		b.current(&b.lanes[i].shared, now)
	}
	background := context.Background()
	soon, cancel := context.WithTimeout(background, time.Minute)
	defer cancel()
	for name, caller := range map[string]context.Context{
		"background": background, "a deadline before the budget's": soon,
	} {
		if n := testing.AllocsPerRun(1000, func() {
			_, release := b.Of(caller, now)
			release()
		}); n != 0 {
			t.Errorf("%s: %v allocations a call", name, n)
		}
	}
}

func TestManyCallersGetAWholeBudgetEach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const timeout = 160 * time.Millisecond
		clk := clock.Start()
		b := newBudget(timeout, clk)
		caller, cancel := context.WithCancel(context.Background())
		defer cancel()
		var wg sync.WaitGroup
		for g := range 64 {
			wg.Go(func() {
				for i := range 100 {
					// Several at the same instant, so that they race for a lane.
					time.Sleep(time.Duration(1+(g/8+i)%12) * time.Millisecond)
					ctx, release := b.Of(context.Background(), clk.Now())
					if g%4 == 0 {
						release()
						ctx, release = b.Of(caller, clk.Now())
					}
					at, ok := ctx.Deadline()
					if has := time.Until(at); !ok || has > timeout || has < timeout*15/16 || ctx.Err() != nil {
						t.Errorf("%v left, %v", has, ctx.Err())
					}
					release()
				}
			})
		}
		wg.Wait()
	})
}

// The loser of the race for a lane must not hand out the context that it has
// just ended.
func TestALostRaceForALaneGivesTheWinnersContext(t *testing.T) {
	clk := clock.Start()
	b := newBudget(time.Hour, clk)
	for i := range 2000 {
		var wg sync.WaitGroup
		start := make(chan struct{})
		now := clk.Now() + int64(i)*int64(time.Hour)
		got := make([]*sharedDeadline, 4)
		for g := range got {
			wg.Go(func() {
				<-start
				got[g] = b.current(&b.lanes[0].shared, now)
				if err := got[g].ctx.Err(); err != nil {
					t.Errorf("round %d: a context that has ended: %v", i, err)
				}
			})
		}
		close(start)
		wg.Wait()
		for _, d := range got {
			if d != got[0] {
				t.Fatalf("round %d: callers of one instant and lane have two contexts", i)
			}
			d.cancel() // hours are too long for a test's timers
		}
	}
}

// A call that waited for an attempt, see moment, goes to Redis with what is left.
func TestACallThatWaitedBeforeHasWhatIsLeftOfItsBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const timeout = 160 * time.Millisecond
		clk := clock.Start()
		b := newBudget(timeout, clk)
		for _, others := range []bool{false, true} {
			began := clk.Now()
			time.Sleep(100 * time.Millisecond)
			for lane := range b.lanes {
				if others {
					b.current(&b.lanes[lane].shared, clk.Now())
				}
			}
			ctx, release := b.Of(context.Background(), began)
			if at, ok := ctx.Deadline(); !ok || time.Until(at) != 60*time.Millisecond {
				t.Errorf("%v left (%v), want 60ms", time.Until(at), ok)
			}
			release()
		}
	})
}
