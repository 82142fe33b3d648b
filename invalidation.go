package holdfast

// onInvalidation handles an invalidation of key, which may also be the echo of our own write. The local copy
// is invalidated, and a set of the key that waits in the journal is compared with the value in
// Redis. An invalidation over a session that no longer serves (serving is false) may be older than
// that value, so it causes no comparison.
func (c *Cache) onInvalidation(key string, serving bool) {
	h, now := c.local.Hash(key), c.clock.Now()
	// Flights first: a load that is storing puts its entry in place and then checks whether its
	// flight was invalidated. If it was not, local.Invalidate runs later and finds the entry.
	c.flights.Invalidate(h)
	c.local.Invalidate(h, now)
	if serving && c.opts.Journal.OnConflict == ConflictDelete && c.journal.Invalidated(h, key, now) {
		c.routes.link(c.routes.of(key)).replayer.wake()
	}
}

// emptied handles a flush for all keys that are owned. It reports whether a waiting set must be
// compared.
func (c *Cache) emptied(owns func(key string) bool) bool {
	return c.opts.Journal.OnConflict == ConflictDelete && c.journal.InvalidatedAll(c.clock.Now(), owns)
}
