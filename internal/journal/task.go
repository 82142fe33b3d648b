package journal

import (
	"math"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/keyhash"
)

// Task is an intent on its way to Redis: a copy made when it was taken.
type Task struct {
	Intent
	Key      string
	Hash     keyhash.Hash
	Check    bool // the second check of an ambiguous write
	Isolated bool // nothing else is under way

	Canary *objection // the refusal for which this held entry is tried as the canary; nil: it is none

	// SentAt is when the task was sent. It ran no earlier than that, and no later than the
	// moment of its answer.
	SentAt int64
}

// Take marks intents as being sent and returns them: those to replay and those whose second
// check is due, if want allows them. It takes up to n intents and about the given bytes.
// Where only suspects are left, take returns one of them, to be sent alone.
func (j *Journal) Take(n, bytes int, now int64, hash func(string) keyhash.Hash, want func(key string, del bool) bool) []Task {
	if !j.reserve() {
		return nil
	}
	var tasks []Task
	first := j.next.Load()
	var suspectKey string // key of an intent that is to be sent alone
	var suspectShard *shard
	for i := range uint32(shardCount) {
		at := (first + i) % shardCount
		sh := &j.shards[at]
		sh.mu.Lock()
		for key, in := range sh.intents {
			if in.sending || in.held != nil || !in.checkAt.due(now) || !want(key, in.Del) {
				continue
			}
			if in.Disconnects >= PoisonDisconnects || j.Poison(key, in.Del) {
				suspectKey, suspectShard = key, sh
				continue
			}
			t := j.takeLocked(sh, key, in, hash(key))
			t.SentAt = now
			tasks = append(tasks, t)
			bytes -= len(t.Key) + len(t.Value)
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

// PoisonDisconnects is the number of lost connections after which an intent is sent last and
// alone. Some servers close the connection at a command that they do not accept.
const PoisonDisconnects = 2

const isolatedUnderWay = 1 << 32

// reserve keeps takePoison from taking an intent meanwhile. It returns false while an
// intent is under way alone. The caller ends the reservation by underWay.Add(-1).
func (j *Journal) reserve() bool {
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
func (j *Journal) takePoison(sh *shard, key string, hash func(string) keyhash.Hash) []Task {
	if !j.underWay.CompareAndSwap(0, isolatedUnderWay) {
		return nil
	}
	sh.mu.Lock()
	defer sh.mu.Unlock()
	in := sh.intents[key]
	if in == nil || in.sending || in.held != nil || in.Disconnects < PoisonDisconnects && !j.Poison(key, in.Del) {
		j.underWay.Add(-isolatedUnderWay)
		return nil
	}
	t := j.takeLocked(sh, key, in, hash(key))
	t.Isolated = true
	j.underWay.Add(-1)
	return []Task{t}
}

// TakeOne is Take for one key; it returns nil where the key has no queued intent.
func (j *Journal) TakeOne(h keyhash.Hash, key string) []Task {
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
	return []Task{j.takeLocked(sh, key, in, h)}
}

// takeLocked marks an intent as being sent. The caller holds the shard's lock.
func (j *Journal) takeLocked(sh *shard, key string, in *Intent, h keyhash.Hash) Task {
	in.sending = true
	j.underWay.Add(1)
	t := Task{Intent: *in, Key: key, Hash: h, Check: in.checkAt.waits()}
	in.PlainUntil = 0
	t.PossibleLateWrites.Sums = t.PossibleLateWrites.Sums[:len(t.PossibleLateWrites.Sums):len(t.PossibleLateWrites.Sums)]
	if j.file != nil && !in.Compensate {
		sh.sent[in] = sent{in.Value, in.Del, in.Deadline}
	}
	return t
}

// sent is a write that a replay is sending at present.
type sent struct {
	value    []byte
	del      bool
	deadline int64
}

// NextCheck returns when the next second check of the owned keys is due, or never.
func (j *Journal) NextCheck(owns func(key string) bool) int64 {
	next := int64(clock.Never)
	if j.Keys.Load() == j.Queued.Load()+j.Held.N.Load() {
		return next
	}
	for i := range j.shards {
		sh := &j.shards[i]
		sh.mu.RLock()
		for key, in := range sh.intents {
			if in.checkAt.waits() && in.held == nil && owns(key) {
				next = min(next, int64(in.checkAt))
			}
		}
		sh.mu.RUnlock()
	}
	return next
}

// Found is the result of a replay for one task.
type Found uint8

const (
	FoundOurs    Found = iota // Redis has the wanted state
	FoundUndone               // Redis had our own late value, which is now deleted
	FoundNothing              // the key is absent, which was not wanted
	FoundTheirs               // another writer's value is still there; the next round deletes it
	FoundRefused              // Redis does not accept the write, so the state is unknown
	FoundAgain                // nothing was done; the task is to be sent again
	FoundNoReply              // it may or may not have run
	FoundCut                  // like FoundNoReply, because the connection was lost
	FoundUnsent               // it did not run
)

// answered reports whether Redis decided on the task.
func (f Found) answered() bool { return f != FoundNoReply && f != FoundCut && f != FoundUnsent }

// lateAfter is how long after a replay a server may still run a command of an earlier
// connection. A stopped server was measured to do so 0.7 s after its client had gone.
const lateAfter = 2 * time.Second

// Resolve ends a task that was sent on the session. The intent leaves the journal, except
// where a later write of the key has replaced it, where Redis has not decided, or where a
// write of an earlier session may still run late. In the last case the key is checked once
// more. now is the latest moment at which the task may have run.
func (j *Journal) Resolve(t Task, what Found, sessionID uint64, server string, now int64) {
	j.returned(&t, func(sh *shard, in *Intent) {
		if what.answered() {
			j.releaseLocked(in)
		}
		if j.resolveLocked(in, t, what, sessionID, server, now) {
			j.leaveLocked(sh, t.Key, in)
		} else if what != FoundUnsent && what != FoundAgain {
			j.saveLocked(sh, t.Key, in)
		}
	})
	j.tried(t.Canary, what.answered(), now)
	if j.file == nil {
		j.Announce() // with a file, sweep calls it after the drop record is written
	}
}

// returned ends the sending of a task. If the intent still exists, returned calls f with it
// under the lock of its shard.
func (j *Journal) returned(t *Task, f func(sh *shard, in *Intent)) {
	if t.Isolated {
		j.underWay.Add(-isolatedUnderWay)
	} else {
		j.underWay.Add(-1)
	}
	sh := j.shard(t.Hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if in := sh.intents[t.Key]; in != nil {
		in.sending = false
		delete(sh.sent, in)
		f(sh, in)
	}
	sh.wakeLocked(t.Key)
}

// wakeLocked ends the waits for the key's intent. The caller holds the shard's lock.
func (sh *shard) wakeLocked(key string) {
	if ch := sh.waits[key]; ch != nil {
		close(ch)
		delete(sh.waits, key)
	}
}

// AwaitReturn returns a channel that is closed when the key's intent is no longer being sent. It
// returns nil if that is not being sent now, or is resolved and waits for its record in the file.
func (j *Journal) AwaitReturn(h keyhash.Hash, key string) <-chan struct{} {
	sh := j.shard(h)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if in := sh.intents[key]; in == nil || !in.sending || in.done {
		return nil
	}
	if sh.waits == nil {
		sh.waits = map[string]chan struct{}{}
	}
	if sh.waits[key] == nil {
		sh.waits[key] = make(chan struct{})
	}
	return sh.waits[key]
}

// GiveUp turns a set under which connections were lost into a delete.
func (j *Journal) GiveUp(t *Task) {
	sh := j.shard(t.Hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if in := sh.intents[t.Key]; in != nil && in.is(t) {
		j.Bytes.Add(-int64(len(in.Value)))
		in.Value, in.Del, in.WasSet, in.Disconnects = nil, true, true, 0
		j.saveLocked(sh, t.Key, in)
	}
}

// Latest reports whether no later write has replaced the task's intent.
func (j *Journal) Latest(t *Task) bool {
	sh := j.shard(t.Hash)
	sh.mu.RLock()
	defer sh.mu.RUnlock()
	in := sh.intents[t.Key]
	return in == nil || in.is(t)
}

// is reports whether the intent is still as it was when the task was taken.
func (in *Intent) is(t *Task) bool {
	return in.Seq == t.Seq && in.Deadline == t.Deadline && in.Del == t.Del
}

// resolveLocked applies the result to the intent, and reports whether the intent is
// resolved.
func (j *Journal) resolveLocked(in *Intent, t Task, what Found, sessionID uint64, server string, now int64) bool {
	switch what {
	case FoundUnsent, FoundAgain:
		return false
	case FoundNoReply, FoundCut:
		in.PossibleLateWrites.unanswered(sessionID, t.Value, t.deletesAt(t.SentAt), t.Deadline)
		if what == FoundCut && in.is(&t) && in.Disconnects < math.MaxUint8 {
			in.Disconnects++
		}
		return false
	case FoundOurs:
		if t.Compensate {
			break // there was nothing to compensate; the value in Redis stays
		}
		in.Expected = afterwards(t.Value, t.deletesAt(t.SentAt), t.Deadline, server)
	case FoundNothing, FoundUndone:
		in.Expected = HoldingNothing(server)
	case FoundRefused, FoundTheirs:
		in.Expected = Expected{}
	}
	in.expectedSeq, in.news = foundByReplay, 0
	if !in.is(&t) {
		return false // a later write has replaced the intent
	}
	if !in.Del && j.flushing.Load() > 0 {
		return false // it may have run behind the flush
	}
	if what == FoundTheirs {
		// The next round deletes it. The script that finds a conflict does not delete: if
		// its answer were lost, the next try would find nothing and take that for no
		// conflict.
		j.Bytes.Add(-int64(len(in.Value)))
		in.Value, in.Del, in.WasSet = nil, true, true
		return false
	}
	if !in.PossibleLateWrites.anyBefore(sessionID) {
		return true
	}
	if in.PossibleLateWrites.until == 0 {
		in.PossibleLateWrites.until = now + int64(lateAfter)
	}
	if t.SentAt >= in.PossibleLateWrites.until {
		return true // this was the second check, or is as good as one
	}
	if (what == FoundNothing || what == FoundRefused) && !in.Del {
		// The value is not wanted any more. The check only compensates our own late writes.
		j.Bytes.Add(-int64(len(in.Value)))
		in.Value, in.Del, in.Compensate = nil, true, !in.PossibleLateWrites.More
	}
	if in.checkAt == toReplay {
		j.Queued.Add(-1)
	}
	in.checkAt = checkTime(in.PossibleLateWrites.until)
	return false
}

// deletesAt reports whether a task that is sent now is a delete.
func (t *Task) deletesAt(now int64) bool { return t.Del || now >= t.Deadline }
