package holdfast

import (
	"strings"
	"sync"
	"sync/atomic"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/keyhash"
)

// journal holds the writes that Redis has not acknowledged: one intent per key, for the
// latest write. It is a leaf: it knows neither Redis nor the local tier, and gets the time
// as a parameter.
//
// While a key is journaled, its reads are answered from the journal and never from Redis,
// and its writes go to the journal, until the replay has resolved the key.
//
// Each intent has a base: the state in which this client last knew the key in Redis. A
// replay writes over the base and over this client's own unanswered writes. Anything else
// is another writer's value, and a conflict (law 7).
type journal struct {
	maxKeys  int
	maxBytes int64
	keysOnly bool

	// downgraded is called for a set that became a delete while it waited.
	downgraded func(key string)
	// poison reports whether connections were lost under a write of the key. Such a write
	// is sent last and alone.
	poison func(key string, del bool) bool

	file *journalFile // nil: in memory only

	news  atomic.Bool // there may be sets to compare with the value in Redis
	held  heldEntries
	retry clock.Backoff // between the canaries of a refusal

	// underWay counts the intents that are being sent. An intent that is sent alone counts
	// as isolatedUnderWay.
	underWay atomic.Int64

	flushing atomic.Int32 // flushes of this process that are under way; see beginFlush

	next   atomic.Uint32 // the shard where the next take begins
	keys   atomic.Int64  // intents, including those that wait for their second check
	queued atomic.Int64  // intents to be replayed
	bytes  atomic.Int64

	shards [journalShards]journalShard

	idle struct {
		sync.Mutex
		ch chan struct{} // closed when no intent is queued
	}
}

const (
	journalShards = 64
	// shardKept is the number of intents up to which the map of an emptied shard is reused.
	shardKept = 16
)

type journalShard struct {
	mu      sync.RWMutex
	intents map[string]*intent
	grown   int              // the largest number of intents since the map was made
	sent    map[*intent]sent // with a file: the writes that are being sent
}

// admission is the journal's decision on a write.
type admission uint8

const (
	admitted   admission = iota
	downgraded           // a set became a delete
	rejected             // no room for another key
)

// journaledKey is a journaled key as a reader sees it.
type journaledKey struct {
	value            []byte
	deadline         int64
	live             bool // there is a value to serve
	valueInLocalTier bool // the value is not here, but the local tier may have it
}

func newJournal(o JournalOptions) *journal {
	j := &journal{maxKeys: o.MaxKeys, maxBytes: o.MaxBytes, keysOnly: o.KeysOnly, downgraded: func(string) {}, poison: func(string, bool) bool { return false }}
	for i := range j.shards {
		j.shards[i].intents = make(map[string]*intent)
		j.shards[i].sent = make(map[*intent]sent)
	}
	return j
}

func (j *journal) shard(h keyhash.Hash) *journalShard { return &j.shards[h.Check%journalShards] }

// get returns the state of a journaled key. A key that a replay has resolved is not
// reported. While the journal is empty, get costs one atomic load.
func (j *journal) get(h keyhash.Hash, key string, now int64) (f journaledKey, ok bool) {
	if j.keys.Load() == 0 {
		return f, false
	}
	sh := j.shard(h)
	sh.mu.RLock()
	defer sh.mu.RUnlock()
	in := sh.intents[key]
	if in == nil || in.done {
		return f, false
	}
	return journaledKey{
		value: in.value, deadline: in.deadline,
		live: !in.del && now < in.deadline, valueInLocalTier: in.valueInLocalTier,
	}, true
}

// holds reports whether a write of the key must go to the journal. That includes a key that
// is resolved, until the drop record is in the file.
func (j *journal) holds(h keyhash.Hash, key string) bool {
	if j.keys.Load() == 0 {
		return false
	}
	sh := j.shard(h)
	sh.mu.RLock()
	defer sh.mu.RUnlock()
	return sh.intents[key] != nil
}

// write is a write as it is offered to the journal.
type write struct {
	key        string
	value      []byte
	del        bool
	compensate []byte // the value of an unanswered Add, to be compensated
	deadline   int64
	seq        uint64
	expected   expected
	sentOn     uint64 // session on which the write may have reached Redis; 0 for none

	// Until plainUntil the write counts as waiting on the wire: it is sent as the ordinary
	// command of its caller. 0: it never is.
	plainUntil int64
}

// put stores the write, unless a later write of the same key is there already. A possible
// effect of the write on Redis is recorded in any case. put does not block. Before the
// write is accepted, the caller waits for the returned saving.
func (j *journal) put(h keyhash.Hash, w write) (admission, saving) {
	sh := j.shard(h)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	return j.putLocked(sh, w)
}

// admit counts another key and its bytes, if there is room for them.
func (j *journal) admit(key string) bool {
	for {
		n := j.keys.Load()
		if n >= int64(j.maxKeys) {
			return false
		}
		if j.keys.CompareAndSwap(n, n+1) {
			break
		}
	}
	if !j.claim(int64(len(key))) {
		j.keys.Add(-1)
		return false
	}
	return true
}

// putLocked is put for a caller that holds the shard's lock.
func (j *journal) putLocked(sh *journalShard, w write) (admission, saving) {
	in, decision := sh.intents[w.key], admitted
	if in == nil {
		if !j.admit(w.key) {
			if w.sentOn == 0 {
				return rejected, saving{}
			}
			// The write may run late and replace the next one. So the key is journaled
			// although the journal is full.
			decision = rejected
			j.keys.Add(1)
			j.bytes.Add(int64(len(w.key)))
		}
		w.key = strings.Clone(w.key)
		in = &intent{expected: w.expected, expectedSeq: w.seq, checkAt: notQueued}
		sh.intents[w.key] = in
		sh.grown = max(sh.grown, len(sh.intents))
	}
	if w.sentOn != 0 {
		if w.compensate != nil {
			in.possibleLateWrites.unanswered(w.sentOn, w.compensate, false, w.deadline)
		} else {
			in.possibleLateWrites.unanswered(w.sentOn, w.value, w.del, w.deadline)
		}
	}
	if w.seq < in.expectedSeq {
		// This write began earlier and arrives later. So its base is older than the base of
		// the other writes, which may be one of our own values.
		in.expected, in.expectedSeq, in.looked = w.expected, w.seq, false
	}
	switch {
	case decision == rejected:
		w.value, w.del, w.compensate = nil, true, w.value
		j.replaceLocked(in, w)
		in.compensate = true
	case w.seq >= in.seq:
		decision = j.replaceLocked(in, w)
	}
	if in.unsure() {
		j.news.Store(true)
	}
	return decision, j.saveLocked(sh, w.key, in)
}

// replaceLocked makes the write the content of the intent. A set becomes a delete where its
// value does not fit or KeysOnly is set.
func (j *journal) replaceLocked(in *intent, w write) admission {
	decision := admitted
	elsewhere := j.keysOnly && !w.del
	j.bytes.Add(-int64(len(in.value)))
	if !w.del && !elsewhere && !j.claim(int64(len(w.value))) {
		elsewhere, decision = true, downgraded
	}
	if elsewhere {
		w.value, w.del = nil, true
	}
	in.value, in.del, in.valueInLocalTier, in.deadline, in.seq = w.value, w.del, elsewhere, w.deadline, w.seq
	in.compensate, in.wasSet, in.disconnects = w.compensate != nil, false, 0
	if w.plainUntil != 0 {
		in.plainUntil = w.plainUntil
	} // else the time of the earlier write, which this one replaces, stays valid
	j.releaseLocked(in)
	if in.checkAt != 0 {
		in.checkAt = 0
		j.queued.Add(1)
	}
	return decision
}

// claim adds n bytes if they fit. It never exceeds the limit, not even for a moment: the
// excess would show in the gauge, and could cost another set its value.
func (j *journal) claim(n int64) bool {
	for {
		held := j.bytes.Load()
		if held+n > j.maxBytes {
			return false
		}
		if j.bytes.CompareAndSwap(held, held+n) {
			return true
		}
	}
}

// notQueued marks a new intent until put has queued it.
const notQueued = -1

// allowLocalValue notes that the local tier has a value for a journaled delete or an expired set. The
// value was loaded since, and is removed by the replay.
func (j *journal) allowLocalValue(h keyhash.Hash, key string, now int64) {
	if j.keys.Load() == 0 {
		return
	}
	sh := j.shard(h)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if in := sh.intents[key]; in != nil && (in.del || now >= in.deadline) {
		in.valueInLocalTier = true
	}
}

// superseded handles a write that began before its key was journaled and that Redis has
// acknowledged. An intent of an earlier write is then resolved: either it was never sent,
// or it was sent on the same session before this write, so Redis has run it before this
// write. An exception is an intent that is being sent, or that has an unanswered write of
// another session. That write may still run late, so the intent stays and takes over this
// write's value; again reports that it must be replayed. superseded does not block. Before
// the write is acknowledged, the caller waits for saved.
func (j *journal) superseded(h keyhash.Hash, w write, sessionID uint64, server string) (again bool, saved saving) {
	if j.keys.Load() == 0 {
		return false, saving{}
	}
	sh := j.shard(h)
	sh.mu.Lock()
	in := sh.intents[w.key]
	decision := admitted
	switch {
	case in == nil || in.seq >= w.seq:
	case in.sending || in.possibleLateWrites.since != 0 && in.possibleLateWrites.since != sessionID:
		decision, _ = j.putLocked(sh, w)
		in.expected, in.expectedSeq = afterwards(w.value, w.del, w.deadline, server), 0
		saved = j.saveLocked(sh, w.key, in)
		again = true
	default:
		saved = j.leaveLocked(sh, w.key, in)
	}
	sh.mu.Unlock()
	if decision == downgraded {
		j.downgraded(w.key)
	}
	j.announce()
	return again, saved
}

// beginFlush is called before this process sends a flush, and endFlush after flushed, or when the
// flush has failed. A set that is replayed meanwhile may run behind the flush, so its intent stays
// until flushed has made it a delete, or it is replayed once more.
func (j *journal) beginFlush() { j.flushing.Add(1) }
func (j *journal) endFlush()   { j.flushing.Add(-1) }

// flushed handles a flush that this process sent and the server has run, after all writes
// that the server had accepted. Each set that waits for its replay or its second check
// becomes a delete, and so does each delete that still has a value in the local tier.
// Writes in spare stay, because they were sent after the flush. flushed returns the keys
// that must be replayed, and the last change of the file.
func (j *journal) flushed(owns func(key string) bool, spare map[string]uint64) (keys []string, last saving) {
	if j.keys.Load() == 0 {
		return nil, saving{}
	}
	for i := range j.shards {
		sh := &j.shards[i]
		sh.mu.Lock()
		for key, in := range sh.intents {
			if seq, spared := spare[key]; in.done || in.del && !in.valueInLocalTier || spared && seq == in.seq || !owns(key) {
				continue
			}
			j.bytes.Add(-int64(len(in.value)))
			in.value, in.del, in.valueInLocalTier = nil, true, false
			j.releaseLocked(in)
			if in.checkAt != 0 {
				in.checkAt = 0
				j.queued.Add(1)
			}
			last = last.or(j.saveLocked(sh, key, in))
			keys = append(keys, key)
		}
		sh.mu.Unlock()
	}
	return keys, last
}

// afterwards is the base after Redis has run a write.
func afterwards(v []byte, del bool, deadline int64, server string) expected {
	if del {
		return holdingNothing(server)
	}
	return holding(v, deadline, server)
}

// touch changes the deadline of a journaled set. touched is false where the key has no live
// set that waits for its replay. touch does not block; for saved see put.
func (j *journal) touch(h keyhash.Hash, key string, now, deadline int64) (saved saving, touched bool) {
	sh := j.shard(h)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	in := sh.intents[key]
	if in == nil || in.del || now >= in.deadline || in.checkAt != 0 {
		return saving{}, false
	}
	in.deadline = deadline
	return j.saveLocked(sh, key, in), true
}

// leaveLocked removes the intent: at once without a file, else by the next sweep after the
// drop record is in the file. If it were removed before, the process could die, and the
// next process would replay a resolved intent over newer writes. The caller holds the
// shard's lock, and calls announce after it has released it.
func (j *journal) leaveLocked(sh *journalShard, key string, in *intent) saving {
	if j.file == nil {
		j.dropLocked(sh, key, in)
		return saving{}
	}
	in.done, in.sending = true, true
	return j.file.forget(sh, key, in)
}

// dropLocked removes the intent from memory. The caller holds the shard's lock, and calls
// announce after it has released it.
func (j *journal) dropLocked(sh *journalShard, key string, in *intent) {
	delete(sh.intents, key)
	if len(sh.intents) == 0 && sh.grown > shardKept {
		sh.intents, sh.grown = make(map[string]*intent), 0 // an emptied map keeps its memory
	}
	j.bytes.Add(-int64(len(key) + len(in.value)))
	j.keys.Add(-1)
	j.releaseLocked(in)
	if in.checkAt == 0 {
		j.queued.Add(-1)
	}
}

// announce wakes the callers that wait for an empty queue, if no intent is queued.
func (j *journal) announce() {
	if j.queued.Load() != 0 {
		return
	}
	j.idle.Lock()
	defer j.idle.Unlock()
	if j.idle.ch != nil && j.queued.Load() == 0 {
		close(j.idle.ch)
		j.idle.ch = nil
	}
}

// drained returns a channel that is closed as soon as no intent is queued, or nil if none
// is queued now.
func (j *journal) drained() <-chan struct{} {
	j.idle.Lock()
	defer j.idle.Unlock()
	if j.queued.Load() == 0 {
		return nil
	}
	if j.idle.ch == nil {
		j.idle.ch = make(chan struct{})
	}
	return j.idle.ch
}
