package holdfast

import (
	"strings"

	"github.com/redis/rueidis"
)

// With tracking the server sends an invalidation for every change of a key that was read on the
// session, over the same session. So replies and invalidations arrive in the order of the events,
// and none is lost while the connection stands.
//
// The server forgets a key once it has sent its invalidation. It also sends invalidations for this
// client's own writes. NOLOOP would suppress those, but with NOLOOP the server is also silent about
// keys that it evicts, from its data or from its table of readers, while it executes a command of
// this client, and it forgets them all the same: of 200 copies 165 to 200 were stale for good. So
// an invalidation may be the echo of our own write, and it invalidates only a copy that was read
// since; see local.invalidate. In prefix mode the server has no such table, and NOLOOP is safe.

// command returns the command that enables tracking, or nil if it is off.
func (t TrackingOptions) command() []string {
	switch t.Mode {
	case TrackReads:
		return []string{"CLIENT", "TRACKING", "ON"}
	case TrackPrefixes:
		cmd := []string{"CLIENT", "TRACKING", "ON", "BCAST", "NOLOOP"}
		for _, p := range t.Prefixes {
			cmd = append(cmd, "PREFIX", p)
		}
		return cmd
	}
	return nil
}

// covers reports whether a tracking server sends invalidations for key.
func (t *TrackingOptions) covers(key string) bool {
	if t.Mode == TrackReads {
		return true
	}
	for _, p := range t.Prefixes {
		if strings.HasPrefix(key, p) {
			return true
		}
	}
	return false
}

// tells reports whether the server sends invalidations for key on this session.
func (s *session) tells(key string) bool {
	return s.tracked && s.link.opts.Tracking.covers(key)
}

// invalidated handles an invalidation on the goroutine that reads the connection. keys is nil for a
// flush, of this database or another one (see flushSuspicion), and also when the connection is
// gone: rueidis reports both in the same way. The loss is handled by lostSession.
func (l *link) invalidated(s *session, keys []rueidis.RedisMessage) {
	// A panic here would end the program: the goroutine belongs to rueidis.
	defer func() {
		if recover() != nil {
			l.doubt()
		}
	}()
	if keys == nil {
		// Two goroutines of rueidis close the connection. The second one calls here while the first
		// is still closing.
		if !s.dialer.ended() {
			l.suspectFlush(s)
			l.interrupt()
			if l.gate.Load() == s {
				l.emptied()
			}
			l.listeners.told(nil)
		}
		return
	}
	l.stats.invalidations.Add(uint64(len(keys)))
	serving := l.gate.Load() == s
	for i := range keys {
		if key, err := keys[i].ToString(); err == nil {
			l.told(key, serving)
		}
	}
	l.listeners.told(keys)
}

// told handles an invalidation of key, which may also be the echo of our own write. The local copy
// is invalidated, and a set of the key that waits in the journal is compared with the value in
// Redis. An invalidation over a session that no longer serves (serving is false) may be older than
// that value, so it causes no comparison.
func (c *Cache) told(key string, serving bool) {
	h, now := c.local.hash(key), c.clock.now()
	// Flights first: a load that is storing puts its entry in place and then checks whether its
	// flight was invalidated. If it was not, local.invalidate runs later and finds the entry.
	c.flights.tell(h)
	c.local.invalidate(h, now)
	if serving && c.opts.Journal.OnConflict == ConflictDelete && c.journal.overruled(h, key, now) {
		c.routes.link(c.routes.of(key)).replayer.wake()
	}
}

// emptied handles a flush for all keys that are owned. It reports whether a waiting set must be
// compared.
func (c *Cache) emptied(owns func(key string) bool) bool {
	return c.opts.Journal.OnConflict == ConflictDelete && c.journal.overruledAll(c.clock.now(), owns)
}
