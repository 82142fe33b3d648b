package link

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
// since; see local.Invalidate. In prefix mode the server has no such table, and NOLOOP is safe.

// command returns the command that enables tracking, or nil if it is off.
func (t *TrackedKeys) command() []string {
	switch {
	case t.Reads:
		return []string{"CLIENT", "TRACKING", "ON"}
	case len(t.Prefixes) > 0:
		cmd := []string{"CLIENT", "TRACKING", "ON", "BCAST", "NOLOOP"}
		for _, p := range t.Prefixes {
			cmd = append(cmd, "PREFIX", p)
		}
		return cmd
	}
	return nil
}

// covers reports whether a tracking server sends invalidations for key.
func (t *TrackedKeys) covers(key string) bool {
	if t.Reads {
		return true
	}
	for _, p := range t.Prefixes {
		if strings.HasPrefix(key, p) {
			return true
		}
	}
	return false
}

// Tracks reports whether the server sends invalidations for key on this session.
func (s *Session) Tracks(key string) bool {
	return s.tracked && s.Link.cfg.Tracking.covers(key)
}

// invalidated handles an invalidation on the goroutine that reads the connection. keys is nil for a
// flush, of this database or another one (see flushSuspicion), and also when the connection is
// gone: rueidis reports both in the same way. The loss is handled by lostSession.
func (l *Link) invalidated(s *Session, keys []rueidis.RedisMessage) {
	// A panic here would end the program: the goroutine belongs to rueidis.
	defer func() {
		if recover() != nil {
			l.Suspect()
		}
	}()
	if keys == nil {
		// Two goroutines of rueidis close the connection. The second one calls here while the first
		// is still closing.
		if !s.Dialer.Ended() {
			l.suspectFlush(s)
			l.interrupt()
			if l.Gate.Load() == s {
				l.emptiedHere()
			}
			l.Watcher.Changed(nil)
		}
		return
	}
	l.stats.Invalidations.Add(uint64(len(keys)))
	serving := l.Gate.Load() == s
	for i := range keys {
		if key, err := keys[i].ToString(); err == nil {
			l.Watcher.Invalidated(key, serving)
		}
	}
	l.Watcher.Changed(keys)
}
