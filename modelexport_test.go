package holdfast

import "fmt"

// Access to internals for the model test in holdfast_test alone.

// Journaled says whether the journal has the key, and whether it waits there to be
// replayed, rather than for its second check or to be taken back.
func (c *Cache) Journaled(key string) (fenced, queued bool) {
	return c.journal.Awaits(c.local.Hash(key), key)
}

// Replaying is how many intents are on their way to Redis.
func (c *Cache) Replaying() int { return c.journal.BeingSent() }

// Leftover says what is left in the journal or waits for the local tier's policy, nil for nothing.
func (c *Cache) Leftover() error {
	intents := c.journal.Sizes()
	pending, writers := c.local.Queued(), c.local.Writers()
	keys, queued, bytes := c.journal.Keys.Load(), c.journal.Queued.Load(), c.journal.Bytes.Load()
	if intents != 0 || keys != 0 || queued != 0 || bytes != 0 || pending != 0 || writers != 0 {
		return fmt.Errorf("left behind: %d intents, counted as %d keys, %d queued, %d bytes; %d keys not judged, %d writes under way",
			intents, keys, queued, bytes, pending, writers)
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
