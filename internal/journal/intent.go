package journal

import (
	"crypto/sha1"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
)

// Intent is the state that Redis shall have for a key: a value and its deadline, or a
// delete.
type Intent struct {
	Value    []byte // nil for a delete
	Deadline int64  // of a set; clock.Never: it does not expire
	Seq      uint64 // the order of the writes of one key
	checkAt  checkTime

	PlainUntil int64 // see Write; 0 after it was sent

	Expected           Expected
	expectedSeq        uint64 // sequence number of the write that found the base, or foundByReplay
	PossibleLateWrites LateWrites

	Del              bool
	Compensate       bool  // a delete that only compensates our own unanswered writes
	valueInLocalTier bool  // a delete whose value is in the local tier: it was a set, or was loaded since
	sending          bool  // a replay is sending it
	done             bool  // resolved; the next sweep removes it
	news             uint8 // of a set: number of invalidations not yet compared; see compare.go
	looked           bool  // the base is unknown, and the value in Redis was read for a comparison
	Disconnects      uint8 // how often the connection was lost while the intent was under way
	WasSet           bool  // a delete that was a set, and was reported as given up by a replay

	held *heldEntry // why and since when it is held; nil: it is not held
}

// foundByReplay is the sequence number of a base that a replay found, not a write.
const foundByReplay = 0

// checkTime is when the second check of an intent is due, or one of the marks below.
type checkTime int64

const (
	toReplay  checkTime = 0  // the intent is to be replayed; the second check comes after that
	notQueued checkTime = -1 // a new intent until put has queued it
)

// waits reports whether the intent was replayed and waits for its second check.
func (c checkTime) waits() bool { return c > 0 }

// due reports whether the intent may be sent: for its replay, or for its second check.
func (c checkTime) due(now int64) bool { return int64(c) <= now }

// Expected is the state in which this client last knew the key in Redis.
type Expected struct {
	known  bool
	held   bool   // there was a value; with known false: perhaps
	Echo   bool   // this client wrote the value, and its invalidation may still arrive
	sum    Digest // of that value
	gone   int64  // when that value expires; never: it does not
	server string // run id of the server that had the value
}

// LateWrites describes the effects that our own unanswered writes may still have on Redis.
type LateWrites struct {
	Since uint64   // the first session on which one was sent; 0: there is none
	Sums  []Digest // of the values that they may write
	Gone  int64    // when the first of those values expires
	Del   bool     // one of them is a delete
	More  bool     // there were more values than lateMost
	until int64    // until when they may run; 0 while Redis has not answered since
}

type Digest [sha1.Size]byte

// Holding is the base of a key that last had this value, with this expiry.
func Holding(v []byte, expires int64, server string) Expected {
	return Expected{known: true, held: true, sum: sha1.Sum(v), gone: expires, server: server}
}

// PerhapsHolding is the base of a key that had this value before an invalidation: now it
// may have that value, another one, or none.
func PerhapsHolding(v []byte, server string) Expected {
	return Expected{held: true, sum: sha1.Sum(v), gone: clock.Never, server: server}
}

// unsure reports whether the value in Redis is to be read while a server serves: the base
// comes from a copy that was invalidated.
func (in *Intent) unsure() bool {
	return in.Expected.held && !in.Expected.known && !in.looked && !in.Del && !in.PossibleLateWrites.any()
}

// HoldingNothing is the base of a key that was last absent.
func HoldingNothing(server string) Expected { return Expected{known: true, server: server} }

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
func (in *Intent) mayBeAbsent(server string, now int64) bool {
	b := &in.Expected
	return !b.held || in.news == 0 && (!b.known || over(b.gone, now)) || b.server != server || in.PossibleLateWrites.mayLeaveNothing(now)
}

// any reports whether there is an unanswered write.
func (l *LateWrites) any() bool { return l.Since != 0 }

// anyBefore reports whether an unanswered write was sent on an earlier session. On the same
// session, the server has run it before it answered a later command.
func (l *LateWrites) anyBefore(sessionID uint64) bool { return l.any() && l.Since != sessionID }

// mayLeaveNothing reports whether an unanswered write may have deleted the key, or left a
// value that may have expired.
func (l *LateWrites) mayLeaveNothing(now int64) bool {
	return l.Del || l.any() && over(l.Gone, now)
}

// lateMost bounds the values that are remembered of one key's unanswered writes. It is more
// than the bulkhead allows to be under way, which may all be writes of one hot key when the
// circuit opens. Beyond it our own values cannot be told from others, and the second check
// deletes the key.
const lateMost = 1024

// unanswered records a write that was sent on the session and got no answer.
func (l *LateWrites) unanswered(sessionID uint64, v []byte, del bool, deadline int64) {
	if !l.any() {
		*l = LateWrites{Since: sessionID, Gone: clock.Never}
	}
	l.Since, l.until = min(l.Since, sessionID), 0
	if del {
		l.Del = true
		return
	}
	l.Gone = min(l.Gone, deadline)
	sum := sha1.Sum(v)
	for _, s := range l.Sums {
		if s == sum {
			return
		}
	}
	if len(l.Sums) == lateMost {
		l.More = true
		return
	}
	l.Sums = append(l.Sums, sum)
}
