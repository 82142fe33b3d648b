package holdfast

import (
	"math"
	"time"
)

// task is an intent on its way to Redis, as it was when it was taken.
type task struct {
	intent
	key   string
	hash  keyHash
	check bool // the second look at an ambiguous write
	alone bool // nothing else is under way

	canary *objection // not nil: it is held, and tried for all that are held for that

	// sentAt is when it was sent: it did not run before. It ran no later than its
	// answer came.
	sentAt int64
}

// take marks intents as being sent and returns them: those to replay, and those
// whose second check is due, of which want says that they may go now; up to n of
// them, and up to about so many bytes.
func (j *journal) take(n, bytes int, now int64, hash func(string) keyHash, want func(key string, del bool) bool) []task {
	if !j.reserve() {
		return nil
	}
	var tasks []task
	first := j.next.Load()
	var suspectKey string // of what took the connection with it
	var suspectShard *journalShard
	for i := range uint32(journalShards) {
		at := (first + i) % journalShards
		sh := &j.shards[at]
		sh.mu.Lock()
		for key, in := range sh.intents {
			if in.sending || in.held != nil || in.checkAt > now || !want(key, in.del) {
				continue
			}
			if in.cuts >= suspectCuts || j.suspect(key, in.del) {
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
		tasks = j.takeSuspect(suspectShard, suspectKey, hash)
	}
	return tasks
}

// suspectCuts is how often the connection must have broken under an intent for it to
// be sent last and alone: some servers answer what they do not take by hanging up.
const suspectCuts = 2

const aloneUnderWay = 1 << 32

// reserve keeps one that is to be alone from being taken meanwhile; false where one is
// under way.
func (j *journal) reserve() bool {
	for {
		n := j.underWay.Load()
		if n >= aloneUnderWay {
			return false
		}
		if j.underWay.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// takeSuspect takes such an intent, if nothing else is under way.
func (j *journal) takeSuspect(sh *journalShard, key string, hash func(string) keyHash) []task {
	if !j.underWay.CompareAndSwap(0, aloneUnderWay) {
		return nil
	}
	sh.mu.Lock()
	defer sh.mu.Unlock()
	in := sh.intents[key]
	if in == nil || in.sending || in.held != nil || in.cuts < suspectCuts && !j.suspect(key, in.del) {
		j.underWay.Add(-aloneUnderWay)
		return nil
	}
	t := j.takeLocked(sh, key, in, hash(key))
	t.alone = true
	j.underWay.Add(-1)
	return []task{t}
}

// takeOne is take for the one key, or nil.
func (j *journal) takeOne(h keyHash, key string) []task {
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

// takeLocked marks an intent as being sent. The caller holds its shard.
func (j *journal) takeLocked(sh *journalShard, key string, in *intent, h keyHash) task {
	in.sending = true
	j.underWay.Add(1)
	t := task{intent: *in, key: key, hash: h, check: in.checkAt > 0}
	in.plainUntil = 0
	t.late.sums = t.late.sums[:len(t.late.sums):len(t.late.sums)]
	if j.file != nil && !in.undo {
		sh.sent[in] = sent{in.value, in.del, in.deadline}
	}
	return t
}

// sent is what a replay does to Redis at this moment.
type sent struct {
	value    []byte
	del      bool
	deadline int64
}

// nextCheck is when the next second check of a key that is owned is due, or never.
func (j *journal) nextCheck(owns func(key string) bool) int64 {
	next := int64(never)
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

// found is what a replay found out about a task.
type found uint8

const (
	foundOurs    found = iota // Redis holds what was wanted
	foundUndone               // it held what was to be taken back, which is gone
	foundNothing              // the key is absent, and that was not what was wanted
	foundTheirs               // somebody else wrote, and that is still there
	foundRefused              // Redis does not take it: what it holds is not known
	foundAgain                // nothing was done, and it is to be sent again
	foundNoReply              // it may or may not have run
	foundCut                  // that, for the connection broke
	foundUnsent               // it did not run
)

// answered says whether Redis decided.
func (f found) answered() bool { return f != foundNoReply && f != foundCut && f != foundUnsent }

// lateAfter is how long after a replay a server may still run a command that an
// earlier connection left behind: a stopped server was seen to do so 0.7s after
// its client had gone.
const lateAfter = 2 * time.Second

// settle ends a task that was sent on the session. The key leaves the journal
// unless a later write of it came in meanwhile, or Redis has not decided, or a
// write of an earlier session may still run late: then it is checked once more. now
// is the latest moment at which the task may have run.
func (j *journal) settle(t task, what found, sessionID uint64, server string, now int64) {
	j.returned(&t, func(sh *journalShard, in *intent) {
		if what.answered() {
			j.releaseLocked(in)
		}
		if j.settleLocked(in, t, what, sessionID, server, now) {
			j.leaveLocked(sh, t.key, in)
		} else if what != foundUnsent && what != foundAgain {
			j.saveLocked(sh, t.key, in)
		}
	})
	j.tried(t.canary, what.answered(), now)
	if j.file == nil {
		j.announce() // else sweep does, once the file knows
	}
}

// returned ends the sending of a task, and calls f with what became of its intent, under
// the lock of its shard, if there is one.
func (j *journal) returned(t *task, f func(sh *journalShard, in *intent)) {
	if t.alone {
		j.underWay.Add(-aloneUnderWay)
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

// giveUp makes a delete of a set that takes the connection with it.
func (j *journal) giveUp(t *task) {
	sh := j.shard(t.hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if in := sh.intents[t.key]; in != nil && in.is(t) {
		j.bytes.Add(-int64(len(in.value)))
		in.value, in.del, in.lost, in.cuts = nil, true, true, 0
		j.saveLocked(sh, t.key, in)
	}
}

// latest says whether no later write has taken the task's intent over.
func (j *journal) latest(t *task) bool {
	sh := j.shard(t.hash)
	sh.mu.RLock()
	defer sh.mu.RUnlock()
	in := sh.intents[t.key]
	return in == nil || in.is(t)
}

// is says whether the intent is what it was when the task was taken.
func (in *intent) is(t *task) bool {
	return in.seq == t.seq && in.deadline == t.deadline && in.del == t.del
}

// settleLocked says whether the intent is done with.
func (j *journal) settleLocked(in *intent, t task, what found, sessionID uint64, server string, now int64) bool {
	switch what {
	case foundUnsent, foundAgain:
		return false
	case foundNoReply, foundCut:
		in.late.unanswered(sessionID, t.value, t.deletesAt(t.sentAt), t.deadline)
		if what == foundCut && in.is(&t) && in.cuts < math.MaxUint8 {
			in.cuts++
		}
		return false
	case foundOurs:
		if t.undo {
			break // there was nothing to take back, and what is there stays
		}
		in.base = afterwards(t.value, t.deletesAt(t.sentAt), t.deadline, server)
	case foundNothing, foundUndone:
		in.base = holdingNothing(server)
	case foundRefused, foundTheirs:
		in.base = base{}
	}
	in.baseSeq, in.news = 0, 0
	if !in.is(&t) {
		return false // a later write took the intent over
	}
	if what == foundTheirs {
		// The next round deletes it. The script that finds a conflict does not: its
		// answer may be lost, and whoever asked again would find nothing and take
		// that for no conflict.
		j.bytes.Add(-int64(len(in.value)))
		in.value, in.del, in.lost = nil, true, true
		return false
	}
	if in.late.since == 0 || in.late.since == sessionID {
		return true
	}
	if in.late.until == 0 {
		in.late.until = now + int64(lateAfter)
	}
	if t.sentAt >= in.late.until {
		return true // this was the second look, or as good as one
	}
	if (what == foundNothing || what == foundRefused) && !in.del {
		// It is not wanted any more. The check only takes back what we may leave.
		j.bytes.Add(-int64(len(in.value)))
		in.value, in.del, in.undo = nil, true, !in.late.more
	}
	if in.checkAt == 0 {
		j.queued.Add(-1)
	}
	in.checkAt = in.late.until
	return false
}
