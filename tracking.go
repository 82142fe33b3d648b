package holdfast

import (
	"strings"

	"github.com/redis/rueidis"
)

// Tracking: the server tells of every change to a key that was read on the
// session, over the session. So what is read and what is told come in the order
// in which they happened, and as long as the connection stands, nothing is missed.
//
// The server forgets a key as soon as it has told of it. It tells of what this
// client writes, too. It could be asked not to (NOLOOP), but then it does not tell
// either of what it drops while it works on a command of this client's, to make
// room for its data or for its table of readers, and forgets it all the same: of
// 200 copies 165 to 200 were stale for good. So a message may be the echo of a
// write of ours, and only a copy that was read since is refuted by it; see
// local.invalidate. With prefixes the server has no such table, and NOLOOP is safe.

// command asks the server to tell of changes; nil for no such wish.
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

// covers says whether the server, if it tracks, tells of this key.
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

// tells says whether the server tells of changes to the key.
func (s *session) tells(key string) bool {
	return s.tracked && s.link.opts.Tracking.covers(key)
}

// invalidated takes what the server tells, on the goroutine that reads the
// connection. No keys means all of them, of this database or another one (see
// flushSuspicion), or that the connection is gone: rueidis says both in the same way, and the
// loss has its own path.
func (l *link) invalidated(s *session, keys []rueidis.RedisMessage) {
	// A panic here would end the program, for the goroutine is rueidis'.
	defer func() {
		if recover() != nil {
			l.doubt()
		}
	}()
	if keys == nil {
		// Two goroutines of rueidis close the connection, and the one that comes
		// second calls here while the first is still closing.
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

// told takes a key out of the local tier that somebody else changed, or it is the
// echo of our own write, and has what waits in the journal compared with what is there.
// What came over a session that has ended may be older than what is there.
func (c *Cache) told(key string, serving bool) {
	h, now := c.local.hash(key), c.clock.now()
	// The flights first: what is being stored is put in its place and then looks whether
	// its flight was told. If it was not, invalidate comes after, and finds it there.
	c.flights.tell(h)
	c.local.invalidate(h, now)
	if serving && c.opts.Journal.OnConflict == ConflictDelete && c.journal.overruled(h, key, now) {
		c.routes.link(c.routes.of(key)).replayer.wake()
	}
}

// emptied is told for all keys that are owned. It says whether there is something to
// compare.
func (c *Cache) emptied(owns func(key string) bool) bool {
	return c.opts.Journal.OnConflict == ConflictDelete && c.journal.overruledAll(c.clock.now(), owns)
}
