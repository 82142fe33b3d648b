package holdfast

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestAfterCloseAndWaitNobodyIsInside(t *testing.T) {
	for round := range 300 {
		var f fence
		var inside atomic.Int64
		var gone atomic.Bool
		var wg sync.WaitGroup
		start := make(chan struct{})
		for g := range 16 {
			wg.Go(func() {
				<-start
				for i := 0; ; i++ {
					l, open := f.enter()
					if !open {
						l.leave()
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
					if i%2 == 0 {
						l.hit()
					} else {
						l.leave()
					}
				}
			})
		}
		close(start)
		for range round % 50 {
			runtime.Gosched()
		}
		if !f.close() {
			t.Fatal("the first close was not the first")
		}
		f.wait(never)
		n := inside.Load()
		gone.Store(true)
		if n != 0 {
			t.Errorf("round %d: %d calls inside after close and wait", round, n)
		}
		wg.Wait()
		if !f.drained() {
			t.Errorf("round %d: not drained, and all have left", round)
		}
		if t.Failed() {
			return
		}
	}
}

func TestWaitWaitsForEachLane(t *testing.T) {
	for i := range fenceLanes {
		synctest.Test(t, func(t *testing.T) {
			var f fence
			l := &f.lanes[i]
			l.entered.Add(1)
			f.close()
			if f.drained() {
				t.Errorf("drained with a call in lane %d", i)
			}
			time.AfterFunc(50*time.Millisecond, l.hit)
			start := time.Now()
			f.wait(never)
			if took := time.Since(start); took < 50*time.Millisecond || took > 52*time.Millisecond {
				t.Errorf("lane %d: waited %v for a call of 50ms", i, took)
			}
		})
	}
}

// A call is inside while others are turned away from the same lane: their coming
// and going must not make up for it.
func TestCallsThatAreTurnedAwayDoNotHideOneInside(t *testing.T) {
	var f fence
	f.close()
	l := &f.lanes[0]
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
					l.leave()
				}
			}
		})
	}
	for i := range 100_000 {
		if f.drained() {
			t.Errorf("look %d: drained with a call inside", i)
			break
		}
	}
	close(stop)
	wg.Wait()
	l.leave()
	if !f.drained() {
		t.Error("not drained, and all have left")
	}
}

func TestAFenceClosesOnceAndKeepsNewCallsOut(t *testing.T) {
	var f fence
	l, open := f.enter()
	if !open || f.drained() {
		t.Fatalf("entered %v, drained %v", open, f.drained())
	}
	l.leave()
	if !f.drained() {
		t.Error("not drained, and the only call has left")
	}
	var first atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if f.close() {
				first.Add(1)
			}
		})
	}
	wg.Wait()
	if first.Load() != 1 {
		t.Errorf("%d closes were the first", first.Load())
	}
	if f.close() {
		t.Error("a later close was the first")
	}
	l, open = f.enter()
	if open {
		t.Error("a closed fence let a call in")
	}
	l.leave()
	f.wait(never)
}

func TestEachHitIsCountedOnce(t *testing.T) {
	var f fence
	var wg sync.WaitGroup
	const goroutines, each = 16, 1000
	for range goroutines {
		wg.Go(func() {
			for i := range each {
				l, _ := f.enter()
				if i%4 == 0 {
					l.leave()
				} else {
					l.hit()
				}
			}
		})
	}
	wg.Wait()
	if got, want := f.hits(), uint64(goroutines*each*3/4); got != want {
		t.Errorf("%d hits, want %d", got, want)
	}
	if !f.drained() {
		t.Error("not drained, and all have left")
	}
}
