package holdfast

import (
	"crypto/sha1"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
)

// intent is the state that Redis shall have for a key: a value and its deadline, or a
// delete.
type intent struct {
	value    []byte // nil for a delete
	deadline int64  // of a set; never: it does not expire
	seq      uint64 // the order of the writes of one key
	checkAt  int64  // when the second check is due; 0 while the intent is to be replayed

	plainUntil int64 // see write; 0 after it was sent

	expected           expected
	expectedSeq        uint64 // sequence number of the write that found the base; 0 if a replay found it
	possibleLateWrites lateWrites

	del              bool
	compensate       bool  // a delete that only compensates our own unanswered writes
	valueInLocalTier bool  // a delete whose value is in the local tier: it was a set, or was loaded since
	sending          bool  // a replay is sending it
	done             bool  // resolved; the next sweep removes it
	news             uint8 // of a set: number of invalidations not yet compared; see news.go
	looked           bool  // the base is unknown, and the value in Redis was read for a comparison
	disconnects      uint8 // how often the connection was lost while the intent was under way
	wasSet           bool  // a delete that was a set, and was reported as given up by a replay

	held *heldEntry // why and since when it is held; nil: it is not held
}

// expected is the state in which this client last knew the key in Redis.
type expected struct {
	known  bool
	held   bool   // there was a value; with known false: perhaps
	echo   bool   // this client wrote the value, and its invalidation may still arrive
	sum    digest // of that value
	gone   int64  // when that value expires; never: it does not
	server string // run id of the server that had the value
}

// lateWrites describes the effects that our own unanswered writes may still have on Redis.
type lateWrites struct {
	since uint64   // the first session on which one was sent; 0: there is none
	sums  []digest // of the values that they may write
	gone  int64    // when the first of those values expires
	del   bool     // one of them is a delete
	more  bool     // there were more values than lateMost
	until int64    // until when they may run; 0 while Redis has not answered since
}

type digest [sha1.Size]byte

// holding is the base of a key that last had this value, with this expiry.
func holding(v []byte, expires int64, server string) expected {
	return expected{known: true, held: true, sum: sha1.Sum(v), gone: expires, server: server}
}

// perhapsHolding is the base of a key that had this value before an invalidation: now it
// may have that value, another one, or none.
func perhapsHolding(v []byte, server string) expected {
	return expected{held: true, sum: sha1.Sum(v), gone: clock.Never, server: server}
}

// unsure reports whether the value in Redis is to be read while a server serves: the base
// comes from a copy that was invalidated.
func (in *intent) unsure() bool {
	return in.expected.held && !in.expected.known && !in.looked && !in.del && in.possibleLateWrites.since == 0
}

// holdingNothing is the base of a key that was last absent.
func holdingNothing(server string) expected { return expected{known: true, server: server} }

// clockAllowance is how much earlier the server may expire a value than this process' clock
// says. The two clocks drift apart while the value lives, the server's clock may be set,
// and Redis counts whole milliseconds. A foreign delete within this time before the expiry
// cannot be told from the expiry.
const clockAllowance = int64(time.Second)

// over reports whether the server may have expired a value with this end by now.
func over(end, now int64) bool { return end != clock.Never && now >= end-clockAllowance }

// mayBeAbsent reports whether a missing key at server is no conflict. That is so where
// (a) the base is unknown or was absence, (b) a write of our own may have deleted the key
// or left a value that has expired, (c) the base was invalidated before the write, or may
// have expired, and no later invalidation awaits its comparison, or (d) server is another
// one than the server of the base, so the value was lost. now is the latest moment at which
// the script may have looked.
func (in *intent) mayBeAbsent(server string, now int64) bool {
	b := &in.expected
	return !b.held || in.news == 0 && (!b.known || over(b.gone, now)) || b.server != server || in.possibleLateWrites.mayLeaveNothing(now)
}

// mayLeaveNothing reports whether an unanswered write may have deleted the key, or left a
// value that may have expired.
func (l *lateWrites) mayLeaveNothing(now int64) bool {
	return l.del || l.since != 0 && over(l.gone, now)
}

// lateMost bounds the values that are remembered of one key's unanswered writes. It is more
// than the bulkhead allows to be under way, which may all be writes of one hot key when the
// circuit opens. Beyond it our own values cannot be told from others, and the second check
// deletes the key.
const lateMost = 2 * bulkheadSlots

// unanswered records a write that was sent on the session and got no answer.
func (l *lateWrites) unanswered(sessionID uint64, v []byte, del bool, deadline int64) {
	if l.since == 0 {
		*l = lateWrites{since: sessionID, gone: clock.Never}
	}
	l.since, l.until = min(l.since, sessionID), 0
	if del {
		l.del = true
		return
	}
	l.gone = min(l.gone, deadline)
	sum := sha1.Sum(v)
	for _, s := range l.sums {
		if s == sum {
			return
		}
	}
	if len(l.sums) == lateMost {
		l.more = true
		return
	}
	l.sums = append(l.sums, sum)
}
