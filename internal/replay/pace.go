package replay

import (
	"sync"
	"time"
)

// pace limits the rate at which keys are sent, over any second. A sender that is late may
// catch up on paceLate, or on one batch if that is more.
type pace struct {
	each int64 // nanoseconds for one key
	most int   // keys in one batch

	mu struct {
		sync.Mutex
		next int64 // when the next key may be sent
	}
}

// paceBatches is the least number of batches over which a second's keys are spread.
const paceBatches = 20

// newPace returns a pace of rate keys a second, in batches of at most most keys.
func newPace(rate, most int) pace {
	return pace{each: max(1, int64(time.Second)/int64(rate)), most: max(1, min(most, rate/paceBatches))}
}

// paceLate is the delay on which a late sender may catch up; or the time of one batch, if
// that is longer.
const paceLate = 100 * time.Millisecond

// reserve takes places for the keys, and returns how long the caller must wait before it
// sends them; 0 or less: not at all.
func (p *pace) reserve(keys int, now int64) (wait time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	start := max(p.mu.next, now-max(int64(paceLate), int64(p.most)*p.each))
	p.mu.next = start + int64(keys)*p.each
	return time.Duration(start - now)
}

// refund returns places that were reserved and not used.
func (p *pace) refund(keys int) {
	p.mu.Lock()
	p.mu.next -= int64(keys) * p.each
	p.mu.Unlock()
}
