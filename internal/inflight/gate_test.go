package inflight

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
)

func TestAfterCloseAndWaitNobodyIsInside(t *testing.T) {
	for round := range 300 {
		var f Gate
		var inside atomic.Int64
		var gone atomic.Bool
		var wg sync.WaitGroup
		start := make(chan struct{})
		for g := range 16 {
			wg.Go(func() {
				<-start
				for i := 0; ; i++ {
					l, open := f.Enter()
					if !open {
						l.Leave()
						return
					}
					inside.Add(1)
					if gone.Load() {
						t.Errorf("round %d: a call is inside after close and wait", round)
					}
					if (i+g)%8 == 0 {
						runtime.Gosched()
					}
					if gone.Load() {
						t.Errorf("round %d: a call was inside when wait returned", round)
					}
					inside.Add(-1)
					l.Leave()
				}
			})
		}
		close(start)
		for range round % 50 {
			runtime.Gosched()
		}
		if !f.Close() {
			t.Fatal("the first close was not the first")
		}
		f.Wait(clock.Never)
		n := inside.Load()
		gone.Store(true)
		if n != 0 {
			t.Errorf("round %d: %d calls inside after close and wait", round, n)
		}
		wg.Wait()
		if !f.Drained() {
			t.Errorf("round %d: not drained, and all have left", round)
		}
		if t.Failed() {
			return
		}
	}
}

func TestWaitWaitsForEachLane(t *testing.T) {
	for i := range shardCount {
		synctest.Test(t, func(t *testing.T) {
			var f Gate
			l := &f.shards[i]
			l.entered.Add(1)
			f.Close()
			if f.Drained() {
				t.Errorf("drained with a call in lane %d", i)
			}
			time.AfterFunc(50*time.Millisecond, l.Leave)
			start := time.Now()
			f.Wait(clock.Never)
			if took := time.Since(start); took < 50*time.Millisecond || took > 52*time.Millisecond {
				t.Errorf("lane %d: waited %v for a call of 50ms", i, took)
			}
		})
	}
}

// A call is inside while others are turned away from the same lane: their coming
// and going must not make up for it.
func TestCallsThatAreTurnedAwayDoNotHideOneInside(t *testing.T) {
	var f Gate
	f.Close()
	l := &f.shards[0]
	l.entered.Add(1)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					l.entered.Add(1)
					l.Leave()
				}
			}
		})
	}
	for i := range 100_000 {
		if f.Drained() {
			t.Errorf("look %d: drained with a call inside", i)
			break
		}
	}
	close(stop)
	wg.Wait()
	l.Leave()
	if !f.Drained() {
		t.Error("not drained, and all have left")
	}
}

func TestAFenceClosesOnceAndKeepsNewCallsOut(t *testing.T) {
	var f Gate
	l, open := f.Enter()
	if !open || f.Drained() {
		t.Fatalf("entered %v, drained %v", open, f.Drained())
	}
	l.Leave()
	if !f.Drained() {
		t.Error("not drained, and the only call has left")
	}
	var first atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if f.Close() {
				first.Add(1)
			}
		})
	}
	wg.Wait()
	if first.Load() != 1 {
		t.Errorf("%d closes were the first", first.Load())
	}
	if f.Close() {
		t.Error("a later close was the first")
	}
	l, open = f.Enter()
	if open {
		t.Error("a closed fence let a call in")
	}
	l.Leave()
	f.Wait(clock.Never)
}
