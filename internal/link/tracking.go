package link

import (
	"context"
	"strconv"
	"strings"
	"sync"

	"github.com/holdfast-cache/holdfast/internal/local"
	"github.com/holdfast-cache/holdfast/internal/rediserr"
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
// since; see local.Tier.Invalidate. In prefix mode the server has no such table, and NOLOOP is
// safe.

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
				l.compareJournaled()
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

// When a server empties a database it sends a flush to all clients that read from any database, and
// does not say which database it was. Copies read before it are no longer fresh. But they are
// invalid for good only if they came from that database; otherwise an outage may serve them. So the
// copies are invalid until the supervisor has asked how many keys each database holds.
//
// The counts to compare with are from the last attempt: at most MaxBackoff ago, or restMost if the
// link rests. A database that was emptied and filled again at once may be taken for one that was
// not emptied. Its copies are then suspect as after any loss of the stream, and are read again
// while Redis answers.

// flushSuspicion counts the flushes that the server sent, and those that were resolved.
type flushSuspicion struct {
	sync.Mutex
	seen, resolved uint64
	by             *Session // session of the last flush
}

// compareJournaled has the journaled sets compared that a flush of this server may have removed.
func (l *Link) compareJournaled() {
	if l.Watcher.Emptied(l.Keys.Owns) {
		l.Replayer.Wake()
	}
}

// suspectFlush notes a flush. It runs on the goroutine that reads the connection.
func (l *Link) suspectFlush(by *Session) {
	l.flushes.Lock()
	l.flushes.seen++
	l.flushes.by = by
	l.Keys.Scopes((*local.EpochScope).SuspectFlush)
	l.flushes.Unlock()
	l.look()
}

// resolveFlush finds out whether a flush emptied our database, if one is unresolved. It blocks for
// at most Timeout.
func (l *Link) resolveFlush(ctx context.Context) {
	l.flushes.Lock()
	made, by, open := l.flushes.seen, l.flushes.by, l.flushes.seen != l.flushes.resolved
	l.flushes.Unlock()
	if !open {
		return
	}
	before, now := l.keyCounts, keyCounts(nil)
	if l.Gate.Load() == by { // counts of another server cannot be compared
		tooLate := false
		if now, tooLate = l.countKeys(ctx, by); tooLate && l.Gate.Load() == by {
			l.asked.Store(true)
			return // retried after the next attempt, which comes soon
		}
	}
	l.flushes.Lock()
	defer l.flushes.Unlock()
	if l.flushes.seen != made {
		l.look() // another flush arrived meanwhile
		return
	}
	l.flushes.resolved, l.keyCounts, l.keyCountsOf = made, now, by
	if databaseEmptied(before, now, l.cfg.Redis.SelectDB, l.Keys.copies()) {
		l.Keys.Scopes((*local.EpochScope).ConfirmFlush)
	} else {
		l.Keys.Scopes((*local.EpochScope).DismissFlush)
	}
}

// noteKeyCounts stores the number of keys of each database for resolveFlush. It stores nothing
// while a flush is unresolved: the counts would not be those from before the flush.
func (l *Link) noteKeyCounts(ctx context.Context) {
	var now keyCounts
	s, tooLate := l.Gate.Load(), false
	if s != nil && s.tracked {
		now, tooLate = l.countKeys(ctx, s)
	}
	if tooLate && l.keyCountsOf == s {
		return // keep the older counts
	}
	l.flushes.Lock()
	defer l.flushes.Unlock()
	if l.flushes.seen == l.flushes.resolved {
		l.keyCounts, l.keyCountsOf = now, s
	}
}

// keyCounts is the number of keys of each database that is not empty; nil if unknown.
type keyCounts map[int]int64

// databaseEmptied reports whether a flush must be assumed to have emptied database db. It was not
// emptied if both counts are known, db holds keys and db lost at most an eighth of them. If no
// other database is seen to have become empty, db must also hold seven eighths of the number of
// local copies, because the counts before are old.
func databaseEmptied(before, now keyCounts, db int, copies int64) bool {
	if now == nil || before == nil {
		return true
	}
	for other := range before {
		if _, still := now[other]; other != db && !still {
			copies = 0
		}
	}
	want := max(before[db], copies)
	return now[db] == 0 || now[db] < want-want/8
}

// countKeys asks the server for the number of keys; tooLate reports that it did not answer within
// Timeout. It uses INFO: the greeting uses it, too, and more users may call it than DBSIZE.
func (l *Link) countKeys(ctx context.Context, s *Session) (counts keyCounts, tooLate bool) {
	if s.Server == "" {
		return nil, false // the greeting's INFO was refused; another would only add to ACL LOG
	}
	bounded, cancel := context.WithTimeout(ctx, l.cfg.Timeout)
	defer cancel()
	text, err := s.aside(bounded, s.Client.B().Info().Section("keyspace").Build()).ToString()
	if err != nil {
		return nil, rediserr.GaveUp(err)
	}
	return readKeyCounts(text), false
}

// readKeyCounts parses INFO's lines such as "db0:keys=7,expires=0".
func readKeyCounts(info string) keyCounts {
	if !strings.Contains(info, "# Keyspace") {
		return nil
	}
	all := keyCounts{}
	for line := range strings.Lines(info) {
		name, fields, ok := strings.Cut(strings.TrimSpace(line), ":keys=")
		if !ok {
			continue
		}
		count, _, _ := strings.Cut(fields, ",")
		db, err1 := strconv.Atoi(strings.TrimPrefix(name, "db"))
		keys, err2 := strconv.ParseInt(count, 10, 64)
		if err1 != nil || err2 != nil || keys < 0 {
			return nil
		}
		all[db] = keys
	}
	return all
}
