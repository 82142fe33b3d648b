package holdfast

import (
	"math"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/keyhash"
)

// task is an intent on its way to Redis: a copy made when it was taken.
type task struct {
	intent
	key      string
	hash     keyhash.Hash
	check    bool // the second check of an ambiguous write
	isolated bool // nothing else is under way

	canary *objection // the refusal for which this held entry is tried as the canary; nil: it is none

	// sentAt is when the task was sent. It ran no earlier than that, and no later than the
	// moment of its answer.
	sentAt int64
}

// take marks intents as being sent and returns them: those to replay and those whose second
// check is due, if want allows them. It takes up to n intents and about the given bytes.
// Where only suspects are left, take returns one of them, to be sent alone.
func (j *journal) take(n, bytes int, now int64, hash func(string) keyhash.Hash, want func(key string, del bool) bool) []task {
	if !j.reserve() {
		return nil
	}
	var tasks []task
	first := j.next.Load()
	var suspectKey string // key of an intent that is to be sent alone
	var suspectShard *journalShard
	for i := range uint32(journalShards) {
		at := (first + i) % journalShards
		sh := &j.shards[at]
		sh.mu.Lock()
		for key, in := range sh.intents {
			if in.sending || in.held != nil || in.checkAt > now || !want(key, in.del) {
				continue
			}
			if in.disconnects >= poisonDisconnects || j.poison(key, in.del) {
				suspectKey, suspectShard = key, sh
				continue
			}
			t := j.takeLocked(sh, key, in, hash(key))
			t.sentAt = now
			tasks = append(tasks, t)
			bytes -= len(t.key) + len(t.value)
			if len(tasks) == n || bytes <= 0 {
				sh.mu.Unlock()
				j.next.Store(at)
				j.underWay.Add(-1)
				return tasks
			}
		}
		sh.mu.Unlock()
	}
	j.underWay.Add(-1)
	if len(tasks) == 0 && suspectShard != nil {
		tasks = j.takePoison(suspectShard, suspectKey, hash)
	}
	return tasks
}

// poisonDisconnects is the number of lost connections after which an intent is sent last and
// alone. Some servers close the connection at a command that they do not accept.
const poisonDisconnects = 2

const isolatedUnderWay = 1 << 32

// reserve keeps takePoison from taking an intent meanwhile. It returns false while an
// intent is under way alone. The caller ends the reservation by underWay.Add(-1).
func (j *journal) reserve() bool {
	for {
		n := j.underWay.Load()
		if n >= isolatedUnderWay {
			return false
		}
		if j.underWay.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// takePoison takes an intent that is to be sent alone, if nothing else is under way.
func (j *journal) takePoison(sh *journalShard, key string, hash func(string) keyhash.Hash) []task {
	if !j.underWay.CompareAndSwap(0, isolatedUnderWay) {
		return nil
	}
	sh.mu.Lock()
	defer sh.mu.Unlock()
	in := sh.intents[key]
	if in == nil || in.sending || in.held != nil || in.disconnects < poisonDisconnects && !j.poison(key, in.del) {
		j.underWay.Add(-isolatedUnderWay)
		return nil
	}
	t := j.takeLocked(sh, key, in, hash(key))
	t.isolated = true
	j.underWay.Add(-1)
	return []task{t}
}

// takeOne is take for one key; it returns nil where the key has no queued intent.
func (j *journal) takeOne(h keyhash.Hash, key string) []task {
	if !j.reserve() {
		return nil
	}
	defer j.underWay.Add(-1)
	sh := j.shard(h)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	in := sh.intents[key]
	if in == nil || in.sending || !in.queuedLocked() {
		return nil
	}
	return []task{j.takeLocked(sh, key, in, h)}
}

// takeLocked marks an intent as being sent. The caller holds the shard's lock.
func (j *journal) takeLocked(sh *journalShard, key string, in *intent, h keyhash.Hash) task {
	in.sending = true
	j.underWay.Add(1)
	t := task{intent: *in, key: key, hash: h, check: in.checkAt > 0}
	in.plainUntil = 0
	t.possibleLateWrites.sums = t.possibleLateWrites.sums[:len(t.possibleLateWrites.sums):len(t.possibleLateWrites.sums)]
	if j.file != nil && !in.compensate {
		sh.sent[in] = sent{in.value, in.del, in.deadline}
	}
	return t
}

// sent is a write that a replay is sending at present.
type sent struct {
	value    []byte
	del      bool
	deadline int64
}

// nextCheck returns when the next second check of the owned keys is due, or never.
func (j *journal) nextCheck(owns func(key string) bool) int64 {
	next := int64(clock.Never)
	if j.keys.Load() == j.queued.Load()+j.held.n.Load() {
		return next
	}
	for i := range j.shards {
		sh := &j.shards[i]
		sh.mu.RLock()
		for key, in := range sh.intents {
			if in.checkAt > 0 && in.held == nil && owns(key) {
				next = min(next, in.checkAt)
			}
		}
		sh.mu.RUnlock()
	}
	return next
}

// found is the result of a replay for one task.
type found uint8

const (
	foundOurs    found = iota // Redis has the wanted state
	foundUndone               // Redis had our own late value, which is now deleted
	foundNothing              // the key is absent, which was not wanted
	foundTheirs               // another writer's value is still there; the next round deletes it
	foundRefused              // Redis does not accept the write, so the state is unknown
	foundAgain                // nothing was done; the task is to be sent again
	foundNoReply              // it may or may not have run
	foundCut                  // like foundNoReply, because the connection was lost
	foundUnsent               // it did not run
)

// answered reports whether Redis decided on the task.
func (f found) answered() bool { return f != foundNoReply && f != foundCut && f != foundUnsent }

// lateAfter is how long after a replay a server may still run a command of an earlier
// connection. A stopped server was measured to do so 0.7 s after its client had gone.
const lateAfter = 2 * time.Second

// resolve ends a task that was sent on the session. The intent leaves the journal, except
// where a later write of the key has replaced it, where Redis has not decided, or where a
// write of an earlier session may still run late. In the last case the key is checked once
// more. now is the latest moment at which the task may have run.
func (j *journal) resolve(t task, what found, sessionID uint64, server string, now int64) {
	j.returned(&t, func(sh *journalShard, in *intent) {
		if what.answered() {
			j.releaseLocked(in)
		}
		if j.resolveLocked(in, t, what, sessionID, server, now) {
			j.leaveLocked(sh, t.key, in)
		} else if what != foundUnsent && what != foundAgain {
			j.saveLocked(sh, t.key, in)
		}
	})
	j.tried(t.canary, what.answered(), now)
	if j.file == nil {
		j.announce() // with a file, sweep calls it after the drop record is written
	}
}

// returned ends the sending of a task. If the intent still exists, returned calls f with it
// under the lock of its shard.
func (j *journal) returned(t *task, f func(sh *journalShard, in *intent)) {
	if t.isolated {
		j.underWay.Add(-isolatedUnderWay)
	} else {
		j.underWay.Add(-1)
	}
	sh := j.shard(t.hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if in := sh.intents[t.key]; in != nil {
		in.sending = false
		delete(sh.sent, in)
		f(sh, in)
	}
}

// giveUp turns a set under which connections were lost into a delete.
func (j *journal) giveUp(t *task) {
	sh := j.shard(t.hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if in := sh.intents[t.key]; in != nil && in.is(t) {
		j.bytes.Add(-int64(len(in.value)))
		in.value, in.del, in.wasSet, in.disconnects = nil, true, true, 0
		j.saveLocked(sh, t.key, in)
	}
}

// latest reports whether no later write has replaced the task's intent.
func (j *journal) latest(t *task) bool {
	sh := j.shard(t.hash)
	sh.mu.RLock()
	defer sh.mu.RUnlock()
	in := sh.intents[t.key]
	return in == nil || in.is(t)
}

// is reports whether the intent is still as it was when the task was taken.
func (in *intent) is(t *task) bool {
	return in.seq == t.seq && in.deadline == t.deadline && in.del == t.del
}

// resolveLocked applies the result to the intent, and reports whether the intent is
// resolved.
func (j *journal) resolveLocked(in *intent, t task, what found, sessionID uint64, server string, now int64) bool {
	switch what {
	case foundUnsent, foundAgain:
		return false
	case foundNoReply, foundCut:
		in.possibleLateWrites.unanswered(sessionID, t.value, t.deletesAt(t.sentAt), t.deadline)
		if what == foundCut && in.is(&t) && in.disconnects < math.MaxUint8 {
			in.disconnects++
		}
		return false
	case foundOurs:
		if t.compensate {
			break // there was nothing to compensate; the value in Redis stays
		}
		in.expected = afterwards(t.value, t.deletesAt(t.sentAt), t.deadline, server)
	case foundNothing, foundUndone:
		in.expected = holdingNothing(server)
	case foundRefused, foundTheirs:
		in.expected = expected{}
	}
	in.expectedSeq, in.news = 0, 0
	if !in.is(&t) {
		return false // a later write has replaced the intent
	}
	if !in.del && j.flushing.Load() > 0 {
		return false // it may have run behind the flush
	}
	if what == foundTheirs {
		// The next round deletes it. The script that finds a conflict does not delete: if
		// its answer were lost, the next try would find nothing and take that for no
		// conflict.
		j.bytes.Add(-int64(len(in.value)))
		in.value, in.del, in.wasSet = nil, true, true
		return false
	}
	if in.possibleLateWrites.since == 0 || in.possibleLateWrites.since == sessionID {
		return true
	}
	if in.possibleLateWrites.until == 0 {
		in.possibleLateWrites.until = now + int64(lateAfter)
	}
	if t.sentAt >= in.possibleLateWrites.until {
		return true // this was the second check, or is as good as one
	}
	if (what == foundNothing || what == foundRefused) && !in.del {
		// The value is not wanted any more. The check only compensates our own late writes.
		j.bytes.Add(-int64(len(in.value)))
		in.value, in.del, in.compensate = nil, true, !in.possibleLateWrites.more
	}
	if in.checkAt == 0 {
		j.queued.Add(-1)
	}
	in.checkAt = in.possibleLateWrites.until
	return false
}

// deletesAt reports whether a task that is sent now is a delete.
func (t *task) deletesAt(now int64) bool { return t.del || now >= t.deadline }
