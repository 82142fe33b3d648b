package holdfast

import (
	"sync"
	"time"
)

// pace spaces what is sent so that it is no more than a rate, over any second, but for
// a batch that was late.
type pace struct {
	each int64 // ns for one key
	most int   // keys at once

	mu struct {
		sync.Mutex
		next int64 // when the next key may be sent
	}
}

// paceBatches is into how many batches a second's keys are spread at least.
const paceBatches = 20

// newPace keeps to so many keys a second, in batches of most or fewer.
func newPace(rate, most int) pace {
	return pace{each: max(1, int64(time.Second)/int64(rate)), most: max(1, min(most, rate/paceBatches))}
}

// reserve makes room for so many keys, and says for how long to wait before they may be
// sent. Who comes late may catch up on as much as one batch.
func (p *pace) reserve(keys int, now int64) (wait time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	start := max(p.mu.next, now-int64(p.most)*p.each)
	p.mu.next = start + int64(keys)*p.each
	return time.Duration(start - now)
}

// refund gives back what was reserved and not used.
func (p *pace) refund(keys int) {
	p.mu.Lock()
	p.mu.next -= int64(keys) * p.each
	p.mu.Unlock()
}
