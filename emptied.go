package holdfast

import (
	"context"
	"strconv"
	"strings"
	"sync"
)

// A server that empties a database tells all who read from it, whichever database they
// read, and does not say which one it was. What was read before is not fresh any more
// then. But it is wrong only if it was of that database: else it is what an outage lives
// on. So the copies are suspect, and taken for wrong, until the supervisor has asked how
// many keys each database holds.
//
// The numbers before are from the last attempt, MaxBackoff ago at most. So a database that
// was emptied and filled again at once may be taken for one that was not: then its copies
// are in doubt, as after any loss of the stream, and are read again while Redis is there.

// flushSuspicion counts what the server said of that kind, and what of it was resolved.
type flushSuspicion struct {
	sync.Mutex
	seen, resolved uint64
	by             *session // said it last
}

// suspectFlush is told on the goroutine that reads the connection.
func (l *link) suspectFlush(by *session) {
	l.flushes.Lock()
	l.flushes.seen++
	l.flushes.by = by
	l.domains((*domain).suspectFlush)
	l.flushes.Unlock()
	l.look()
}

// resolveFlush asks whether it was this database, if the server said something. It waits for no
// longer than Timeout.
func (l *link) resolveFlush(ctx context.Context) {
	l.flushes.Lock()
	made, by, open := l.flushes.seen, l.flushes.by, l.flushes.seen != l.flushes.resolved
	l.flushes.Unlock()
	if !open {
		return
	}
	before, now := l.keyCounts, keyCounts(nil)
	if l.gate.Load() == by { // another server's numbers say nothing
		tooLate := false
		if now, tooLate = l.countKeys(ctx, by); tooLate && l.gate.Load() == by {
			l.asked.Store(true)
			return // it is asked again after the next attempt, which comes soon
		}
	}
	l.flushes.Lock()
	defer l.flushes.Unlock()
	if l.flushes.seen != made {
		l.look() // it has said so again
		return
	}
	l.flushes.resolved, l.keyCounts, l.keyCountsOf = made, now, by
	if emptied(before, now, l.opts.Redis.SelectDB, l.copies()) {
		l.domains((*domain).confirmFlush)
	} else {
		l.domains((*domain).dismissFlush)
	}
}

// noteKeyCounts takes note of how many keys there are, so that resolveFlush knows it later; unless the
// server has said something meanwhile, for then those are not the numbers from before.
func (l *link) noteKeyCounts(ctx context.Context) {
	var now keyCounts
	s, tooLate := l.gate.Load(), false
	if s != nil && s.tracked {
		now, tooLate = l.countKeys(ctx, s)
	}
	if tooLate && l.keyCountsOf == s {
		return // those from before are better than none
	}
	l.flushes.Lock()
	defer l.flushes.Unlock()
	if l.flushes.seen == l.flushes.resolved {
		l.keyCounts, l.keyCountsOf = now, s
	}
}

// keyCounts are how many keys each database holds that holds any; nil where that is unknown.
type keyCounts map[int]int64

// emptied says whether it must be taken for this database that was emptied. It was not if
// it has lost next to nothing; and where no other one is seen to have lost everything,
// it must also hold as many keys as there are copies, for the numbers before are old.
func emptied(before, now keyCounts, db int, copies int64) bool {
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

// countKeys asks the server for them; late where it does not answer in time. INFO is what
// the greeting asks for, too, and more users have the right to it than to DBSIZE.
func (l *link) countKeys(ctx context.Context, s *session) (counts keyCounts, tooLate bool) {
	if s.server == "" {
		return nil, false // the greeting's INFO was refused, and this one would be in ACL LOG, too
	}
	bounded, cancel := context.WithTimeout(ctx, l.opts.Timeout)
	defer cancel()
	text, err := s.aside(bounded, s.client.B().Info().Section("keyspace").Build()).ToString()
	if err != nil {
		return nil, gaveUp(err)
	}
	return readKeyCounts(text), false
}

// readKeyCounts reads what INFO says: lines such as "db0:keys=7,expires=0".
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
