package clock

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func runCoarse(t *testing.T) (c *Coarse, of Clock, end func()) {
	t.Helper()
	c, of = NewCoarse(), Start()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { c.Run(of, stop) })
	return c, of, func() {
		close(stop)
		wg.Wait()
	}
}

// A question that meets the moment at which the goroutine goes to rest must not be its last: the
// coarse clock would rest for ever.
func TestTheCoarseClockStartsAgainAfterAQuestionWhileItGoesToRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, of, end := runCoarse(t)
		defer end()
		c.asked.Store(true) // the question was asked, and read a time from before the rest
		for range 3 {
			c.Before(of.Now())
			synctest.Wait()
			if !c.Before(of.Now() + int64(time.Second)) {
				t.Fatal("the coarse clock does not start")
			}
			time.Sleep(2 * coarseRest * coarseStep)
			if c.now.Load() != 0 {
				t.Fatal("the coarse clock does not rest when nobody asks")
			}
		}
	})
}

func TestTheCoarseClockIsSureOnlyOfTimesFarAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, of, end := runCoarse(t)
		if c.Before(Never) {
			t.Error("a clock that rests is sure")
		}
		synctest.Wait()
		for _, d := range []time.Duration{-time.Hour, 0, time.Millisecond, CoarseMargin} {
			if c.Before(of.Now() + int64(d)) {
				t.Errorf("sure that %v is to come", d)
			}
		}
		if !c.Before(Never) || !c.Before(of.Now()+int64(CoarseMargin+time.Millisecond)) || c.Before(-Never) {
			t.Error("wrong about times far away")
		}
		end()
		if c.Before(Never) {
			t.Error("sure after the end: the time stands still")
		}
	})
}
