package holdfast

import "fmt"

// What the model test in holdfast_test asks of the inside, and nothing else does.

// Journaled says whether the journal has the key, and whether it waits there to be
// replayed, rather than for its second check or to be taken back.
func (c *Cache) Journaled(key string) (fenced, queued bool) {
	sh := c.journal.shard(c.local.Hash(key))
	sh.mu.RLock()
	defer sh.mu.RUnlock()
	in := sh.intents[key]
	return in != nil, in != nil && in.checkAt == 0 && !in.compensate
}

// Replaying is how many intents are on their way to Redis.
func (c *Cache) Replaying() int {
	n := 0
	for i := range c.journal.shards {
		sh := &c.journal.shards[i]
		sh.mu.RLock()
		for _, in := range sh.intents {
			if in.sending {
				n++
			}
		}
		sh.mu.RUnlock()
	}
	return n
}

// Leftover says what is left in the journal or in the overlay, nil for nothing.
func (c *Cache) Leftover() error {
	intents := 0
	for i := range c.journal.shards {
		sh := &c.journal.shards[i]
		sh.mu.RLock()
		intents += len(sh.intents)
		sh.mu.RUnlock()
	}
	pending, _ := c.local.InOverlay()
	keys, queued, bytes := c.journal.keys.Load(), c.journal.queued.Load(), c.journal.bytes.Load()
	overlay := c.local.OverlayBytes()
	if intents != 0 || keys != 0 || queued != 0 || bytes != 0 || pending != 0 || overlay != 0 {
		return fmt.Errorf("left behind: %d intents, counted as %d keys, %d queued, %d bytes; %d places in the overlay, counted as %d bytes",
			intents, keys, queued, bytes, pending, overlay)
	}
	return nil
}

// FlightsOf is how many keys the flight table has, and who listens.
func FlightsOf(c *Cache) int64 {
	n := c.flights.N.Load()
	for i := range c.flights.Shards {
		sh := &c.flights.Shards[i]
		sh.Mu.Lock()
		n = max(n, int64(len(sh.Flights)+len(sh.Listeners)))
		sh.Mu.Unlock()
	}
	return n
}
