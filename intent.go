package holdfast

import (
	"crypto/sha1"
	"time"
)

// intent is what Redis shall hold for a key.
type intent struct {
	value    []byte // not for a delete
	deadline int64  // of a set; never for none
	seq      uint64 // the order of the writes of one key
	checkAt  int64  // when the second check is due, 0 while it is to be replayed

	plainUntil int64 // see write; 0 once it was sent

	base    base
	baseSeq uint64 // the write that found the base; 0 once a replay has told
	late    late

	del       bool
	undo      bool  // of a delete: only of what a write of our own may have left
	elsewhere bool  // of a delete: the local tier has the value: it was a set, or was loaded since
	sending   bool  // a replay of it is under way
	done      bool  // it is done with, and leaves with the next sweep
	news      uint8 // of a set: how often it was told of the key, and is not yet compared; see news.go
	looked    bool  // of a base that is not known: what the server holds was asked for
	cuts      uint8 // how often the connection broke while it was under way
	lost      bool  // of a delete: it was a set, of which a replay has told that it is given up

	held *heldEntry // why it is held; nil where it is not
}

// base is what Redis was last known to hold.
type base struct {
	known  bool
	held   bool   // it held a value; else nothing, or, where it is not known, anything
	echo   bool   // of that the server may still tell, for we wrote it
	sum    digest // of that value
	gone   int64  // from then on that value's own time has run out; never for never
	server string // run id of the server that held it
}

// late is what our own writes may still do at Redis: those that got no answer.
type late struct {
	since uint64   // the first session on which one was sent, 0 for none
	sums  []digest // of the values they may leave
	gone  int64    // when the first of those values ends
	del   bool     // one of them deletes
	more  bool     // there were too many to remember
	until int64    // until when that may happen; 0 while Redis has not answered since
}

type digest [sha1.Size]byte

// holding is the base of a key that was last seen to have this value, with this
// end to its life.
func holding(v []byte, expires int64, server string) base {
	return base{known: true, held: true, sum: sha1.Sum(v), gone: expires, server: server}
}

// perhapsHolding is the base of a key that had this value once, and of which the server
// has told since: it may hold that, another value, or nothing.
func perhapsHolding(v []byte, server string) base {
	return base{held: true, sum: sha1.Sum(v), gone: never, server: server}
}

// unsure says whether it is to be asked for what the server holds, while one serves: the
// base is of a copy that the server has told of.
func (in *intent) unsure() bool {
	return in.base.held && !in.base.known && !in.looked && !in.del && in.late.since == 0
}

// holdingNothing is the base of a key that was last seen to be absent.
func holdingNothing(server string) base { return base{known: true, server: server} }

// clockAllowance is how much earlier than by this process' clock the time of a value
// may be over at the server. The two clocks run apart while the value lives, the
// server's may be set, and it counts in whole milliseconds. Who deletes a key within
// this time of its end cannot be told from the end.
const clockAllowance = int64(time.Second)

// over says whether the time of what ends then may be over at the server now.
func over(end, now int64) bool { return end != never && now >= end-clockAllowance }

// mayBeAbsent says whether finding nothing at server is no conflict: nothing is
// known, or nothing was there, or a write of our own deleted it, or its time may
// have run out, unless the server told of the key before, or the server is another one
// than the one that held it and has lost it. now is the latest moment at which Redis may
// have been looked at.
func (in *intent) mayBeAbsent(server string, now int64) bool {
	b := &in.base
	return !b.held || in.news == 0 && (!b.known || over(b.gone, now)) || b.server != server || in.late.mayLeaveNothing(now)
}

// mayLeaveNothing says whether one of the writes may have deleted the key, or left a
// value there whose time may be over.
func (l *late) mayLeaveNothing(now int64) bool {
	return l.del || l.since != 0 && over(l.gone, now)
}

// lateMost bounds the values that are remembered of one key's unanswered writes:
// more than a bulkhead lets under way, as many as there may be on a hot key when
// the circuit opens. Past it, what the key holds cannot be told from what others
// wrote, and the second check deletes instead.
const lateMost = 2 * bulkheadSlots

// unanswered notes a write that was sent on the session and got no answer.
func (l *late) unanswered(sessionID uint64, v []byte, del bool, deadline int64) {
	if l.since == 0 {
		*l = late{since: sessionID, gone: never}
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
