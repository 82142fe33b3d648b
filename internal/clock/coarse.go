package clock

import (
	"sync/atomic"
	"time"
)

// Coarse tells whether a time is still to come, without reading the clock: that costs a third of a
// local hit. It is a few milliseconds behind the clock, and behind by more after the process stood
// still, until its goroutine runs again: 10 to 20 ms. So it is believed only about a time that is
// further away than CoarseMargin.
//
// Its goroutine rests when nobody asks, and an idle process is not woken.
type Coarse struct {
	now   atomic.Int64 // 0 while the goroutine rests
	asked atomic.Bool  // since the last step
	start chan struct{}
}

const (
	// CoarseMargin is many times the step, so that a goroutine that is late costs nothing.
	CoarseMargin = 250 * time.Millisecond

	coarseStep = 10 * time.Millisecond
	coarseRest = 100 // steps without a question, after which the goroutine rests
)

// NewCoarse returns a Coarse that rests until Run is called.
func NewCoarse() *Coarse { return &Coarse{start: make(chan struct{}, 1)} }

// Before reports whether it is sure that the time t has not come. It does not block.
func (c *Coarse) Before(t int64) bool {
	now := c.now.Load()
	if now == 0 {
		select {
		case c.start <- struct{}{}:
		default:
		}
		return false
	}
	if !c.asked.Load() {
		c.asked.Store(true)
	}
	return t > now+int64(CoarseMargin)
}

// Last returns the time of the last step, 0 while the goroutine rests.
func (c *Coarse) Last() int64 { return c.now.Load() }

// Run keeps the time by the clock until stop is closed.
func (c *Coarse) Run(of Clock, stop <-chan struct{}) {
	ticker := time.NewTicker(coarseStep)
	ticker.Stop()
	defer ticker.Stop()
	defer c.now.Store(0)
	for {
		select {
		case <-stop:
			return
		case <-c.start:
		}
		ticker.Reset(coarseStep)
		for idle := 0; idle < coarseRest; idle++ {
			c.now.Store(of.Now())
			if c.asked.Swap(false) {
				idle = 0
			}
			select {
			case <-stop:
				return
			case <-ticker.C:
			}
		}
		ticker.Stop()
		c.now.Store(0)
	}
}
