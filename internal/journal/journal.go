// Package journal keeps the writes that Redis has not acknowledged, one intent for each key,
// in memory and in a directory, and decides how each is replayed.
package journal

import (
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/keyhash"
	"github.com/holdfast-cache/holdfast/internal/wal"
)

// Journal holds the writes that Redis has not acknowledged: one intent per key, for the
// latest write. It is a leaf: it knows neither Redis nor the local tier, and gets the time
// as a parameter.
//
// While a key is journaled, its reads are answered from the journal and never from Redis,
// and its writes go to the journal, until the replay has resolved the key.
//
// Each intent has a base: the state in which this client last knew the key in Redis. A
// replay writes over the base and over this client's own unanswered writes. Anything else
// is another writer's value, and a conflict (law 7).
type Journal struct {
	maxKeys  int
	maxBytes int64
	keysOnly bool

	// Downgraded is called for a set that became a delete while it waited.
	Downgraded func(key string)
	// Poison reports whether connections were lost under a write of the key. Such a write
	// is sent last and alone.
	Poison func(key string, del bool) bool

	file *file // nil: in memory only

	news  atomic.Bool // there may be sets to compare with the value in Redis
	Held  heldEntries
	Retry clock.Backoff // between the canaries of a refusal

	// underWay counts the intents that are being sent. An intent that is sent alone counts
	// as isolatedUnderWay.
	underWay atomic.Int64

	flushing atomic.Int32 // flushes of this process that are under way; see BeginFlush

	next   atomic.Uint32 // the shard where the next take begins
	Keys   atomic.Int64  // intents, including those that wait for their second check
	Queued atomic.Int64  // intents to be replayed
	Bytes  atomic.Int64

	shards [shardCount]shard

	idle struct {
		sync.Mutex
		ch chan struct{} // closed when no intent is queued
	}
}

const (
	shardCount = 64
	// shardKept is the number of intents up to which the map of an emptied shard is reused.
	shardKept = 16
)

type shard struct {
	mu      sync.RWMutex
	intents map[string]*Intent
	grown   int                      // the largest number of intents since the map was made
	sent    map[*Intent]sent         // with a file: the writes that are being sent
	waits   map[string]chan struct{} // see AwaitReturn; nil until somebody waits
}

// admission is the journal's decision on a write.
type admission uint8

const (
	admitted   admission = iota
	Downgraded           // a set became a delete
	Rejected             // no room for another key
)

// keyState is a journaled key as a reader sees it.
type keyState struct {
	Value            []byte
	Deadline         int64
	Live             bool // there is a value to serve
	ValueInLocalTier bool // the value is not here, but the local tier may have it
}

func New(o Config) *Journal {
	j := &Journal{maxKeys: o.MaxKeys, maxBytes: o.MaxBytes, keysOnly: o.KeysOnly, Downgraded: func(string) {}, Poison: func(string, bool) bool { return false }}
	for i := range j.shards {
		j.shards[i].intents = make(map[string]*Intent)
		j.shards[i].sent = make(map[*Intent]sent)
	}
	return j
}

func (j *Journal) shard(h keyhash.Hash) *shard { return &j.shards[h.Check%shardCount] }

// Get returns the state of a journaled key. A key that a replay has resolved is not
// reported. While the journal is empty, get costs one atomic load.
func (j *Journal) Get(h keyhash.Hash, key string, now int64) (f keyState, ok bool) {
	if j.Keys.Load() == 0 {
		return f, false
	}
	sh := j.shard(h)
	sh.mu.RLock()
	defer sh.mu.RUnlock()
	in := sh.intents[key]
	if in == nil || in.done {
		return f, false
	}
	return keyState{
		Value: in.Value, Deadline: in.Deadline,
		Live: !in.Del && now < in.Deadline, ValueInLocalTier: in.valueInLocalTier,
	}, true
}

// Holds reports whether a write of the key must go to the journal. That includes a key that
// is resolved, until the drop record is in the file.
func (j *Journal) Holds(h keyhash.Hash, key string) bool {
	if j.Keys.Load() == 0 {
		return false
	}
	sh := j.shard(h)
	sh.mu.RLock()
	defer sh.mu.RUnlock()
	return sh.intents[key] != nil
}

// Write is a write as it is offered to the journal.
type Write struct {
	Key        string
	Value      []byte
	Del        bool
	Compensate []byte // the value of an unanswered Add, to be compensated
	Deadline   int64
	Seq        uint64
	Expected   Expected
	SentOn     uint64 // session on which the write may have reached Redis; 0 for none

	// Until PlainUntil the write is sent as the ordinary command of its caller, without a
	// comparison. 0: it never is.
	PlainUntil int64
}

// mayHaveRun reports whether the write may have reached Redis.
func (w *Write) mayHaveRun() bool { return w.SentOn != 0 }

// Put stores the write, unless a later write of the same key is there already. A possible effect
// of the write on Redis is recorded in any case. Put does not block. Before the write is accepted,
// the caller waits for the returned saving.
func (j *Journal) Put(h keyhash.Hash, w Write) (admission, Saving) {
	sh := j.shard(h)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	return j.putLocked(sh, w)
}

// admit counts another key and its bytes, if there is room for them.
func (j *Journal) admit(key string) bool {
	for {
		n := j.Keys.Load()
		if n >= int64(j.maxKeys) {
			return false
		}
		if j.Keys.CompareAndSwap(n, n+1) {
			break
		}
	}
	if !j.claim(int64(len(key))) {
		j.Keys.Add(-1)
		return false
	}
	return true
}

// putLocked is put for a caller that holds the shard's lock.
func (j *Journal) putLocked(sh *shard, w Write) (admission, Saving) {
	in, decision := sh.intents[w.Key], admitted
	if in == nil {
		if !j.admit(w.Key) {
			if !w.mayHaveRun() {
				return Rejected, Saving{}
			}
			// The write may run late and replace the next one. So the key is journaled
			// although the journal is full.
			decision = Rejected
			j.Keys.Add(1)
			j.Bytes.Add(int64(len(w.Key)))
		}
		w.Key = strings.Clone(w.Key)
		in = &Intent{Expected: w.Expected, expectedSeq: w.Seq, checkAt: notQueued}
		sh.intents[w.Key] = in
		sh.grown = max(sh.grown, len(sh.intents))
	}
	if w.mayHaveRun() {
		if w.Compensate != nil {
			in.PossibleLateWrites.unanswered(w.SentOn, w.Compensate, false, w.Deadline)
		} else {
			in.PossibleLateWrites.unanswered(w.SentOn, w.Value, w.Del, w.Deadline)
		}
	}
	if w.Seq < in.expectedSeq {
		// This write began earlier and arrives later. So its base is older than the base of
		// the other writes, which may be one of our own values.
		in.Expected, in.expectedSeq, in.looked = w.Expected, w.Seq, false
	}
	switch {
	case decision == Rejected:
		w.Value, w.Del, w.Compensate = nil, true, w.Value
		j.replaceLocked(in, w)
		in.Compensate = true
	case w.Seq >= in.Seq:
		decision = j.replaceLocked(in, w)
	}
	if in.unsure() {
		j.news.Store(true)
	}
	return decision, j.saveLocked(sh, w.Key, in)
}

// replaceLocked makes the write the content of the intent. A set becomes a delete where its
// value does not fit or KeysOnly is set.
func (j *Journal) replaceLocked(in *Intent, w Write) admission {
	decision := admitted
	elsewhere := j.keysOnly && !w.Del
	j.Bytes.Add(-int64(len(in.Value)))
	if !w.Del && !elsewhere && !j.claim(int64(len(w.Value))) {
		elsewhere, decision = true, Downgraded
	}
	if elsewhere {
		w.Value, w.Del = nil, true
	}
	in.Value, in.Del, in.valueInLocalTier, in.Deadline, in.Seq = w.Value, w.Del, elsewhere, w.Deadline, w.Seq
	in.Compensate, in.WasSet, in.Disconnects = w.Compensate != nil, false, 0
	if w.PlainUntil != 0 {
		in.PlainUntil = w.PlainUntil
	} // else the time of the earlier write, which this one replaces, stays valid
	j.releaseLocked(in)
	j.queueLocked(in)
	return decision
}

// queueLocked queues an intent for its replay, unless it is queued already. The caller holds the
// shard's lock.
func (j *Journal) queueLocked(in *Intent) {
	if in.checkAt != toReplay {
		in.checkAt = toReplay
		j.Queued.Add(1)
	}
}

// claim adds n bytes if they fit. It never exceeds the limit, not even for a moment: the
// excess would show in the gauge, and could cost another set its value.
func (j *Journal) claim(n int64) bool {
	for {
		held := j.Bytes.Load()
		if held+n > j.maxBytes {
			return false
		}
		if j.Bytes.CompareAndSwap(held, held+n) {
			return true
		}
	}
}

// AllowLocalValue notes that the local tier has a value for a journaled delete or an expired set. The
// value was loaded since, and is removed by the replay.
func (j *Journal) AllowLocalValue(h keyhash.Hash, key string, now int64) {
	if j.Keys.Load() == 0 {
		return
	}
	sh := j.shard(h)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if in := sh.intents[key]; in != nil && (in.Del || now >= in.Deadline) {
		in.valueInLocalTier = true
	}
}

// Superseded handles a write that began before its key was journaled and that Redis has
// acknowledged. An intent of an earlier write is then resolved: either it was never sent, or it
// was sent on the same session before this write, so Redis has run it before this write. An
// exception is an intent that is being sent, or that has an unanswered write of another session.
// That write may still run late, so the intent stays and takes over this write's value; again
// reports that it must be replayed. Superseded does not block. Before the write is acknowledged,
// the caller waits for saved.
func (j *Journal) Superseded(h keyhash.Hash, w Write, sessionID uint64, server string) (again bool, saved Saving) {
	if j.Keys.Load() == 0 {
		return false, Saving{}
	}
	sh := j.shard(h)
	sh.mu.Lock()
	in := sh.intents[w.Key]
	decision := admitted
	switch {
	case in == nil || in.Seq >= w.Seq:
	case in.sending || in.PossibleLateWrites.anyBefore(sessionID):
		decision, _ = j.putLocked(sh, w)
		in.Expected, in.expectedSeq = afterwards(w.Value, w.Del, w.Deadline, server), foundByReplay
		saved = j.saveLocked(sh, w.Key, in)
		again = true
	default:
		saved = j.leaveLocked(sh, w.Key, in)
	}
	sh.mu.Unlock()
	if decision == Downgraded {
		j.Downgraded(w.Key)
	}
	j.Announce()
	return again, saved
}

// BeginFlush is called before this process sends a flush, and EndFlush after flushed, or when the
// flush has failed. A set that is replayed meanwhile may run behind the flush, so its intent stays
// until Flushed has made it a delete, or it is replayed once more.
func (j *Journal) BeginFlush() { j.flushing.Add(1) }
func (j *Journal) EndFlush()   { j.flushing.Add(-1) }

// Flushed handles a flush that this process sent and the server has run, after all writes that the
// server had accepted. Each set that waits for its replay or its second check becomes a delete,
// and so does each delete that still has a value in the local tier. Writes in spare stay, because
// they were sent after the flush. Flushed returns the keys that must be replayed, and the last
// change of the file.
func (j *Journal) Flushed(owns func(key string) bool, spare map[string]uint64) (keys []string, last Saving) {
	if j.Keys.Load() == 0 {
		return nil, Saving{}
	}
	for i := range j.shards {
		sh := &j.shards[i]
		sh.mu.Lock()
		for key, in := range sh.intents {
			if seq, spared := spare[key]; in.done || in.Del && !in.valueInLocalTier || spared && seq == in.Seq || !owns(key) {
				continue
			}
			j.Bytes.Add(-int64(len(in.Value)))
			in.Value, in.Del, in.valueInLocalTier = nil, true, false
			j.releaseLocked(in)
			j.queueLocked(in)
			last = last.Or(j.saveLocked(sh, key, in))
			keys = append(keys, key)
		}
		sh.mu.Unlock()
	}
	return keys, last
}

// afterwards is the base after Redis has run a write.
func afterwards(v []byte, del bool, deadline int64, server string) Expected {
	if del {
		return HoldingNothing(server)
	}
	return Holding(v, deadline, server)
}

// Touch changes the deadline of a journaled set. touched is false where the key has no live set
// that waits for its replay. Touch does not block; for saved see Put.
func (j *Journal) Touch(h keyhash.Hash, key string, now, deadline int64) (saved Saving, touched bool) {
	sh := j.shard(h)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	in := sh.intents[key]
	if in == nil || in.Del || now >= in.Deadline || in.checkAt != toReplay {
		return Saving{}, false
	}
	in.Deadline = deadline
	return j.saveLocked(sh, key, in), true
}

// leaveLocked removes the intent: at once without a file, else by the next sweep after the
// drop record is in the file. If it were removed before, the process could die, and the
// next process would replay a resolved intent over newer writes. The caller holds the
// shard's lock, and calls announce after it has released it.
func (j *Journal) leaveLocked(sh *shard, key string, in *Intent) Saving {
	if j.file == nil {
		j.dropLocked(sh, key, in)
		return Saving{}
	}
	in.done, in.sending = true, true
	return j.file.forget(sh, key, in)
}

// dropLocked removes the intent from memory. The caller holds the shard's lock, and calls announce
// after it has released it.
func (j *Journal) dropLocked(sh *shard, key string, in *Intent) {
	delete(sh.intents, key)
	if len(sh.intents) == 0 && sh.grown > shardKept {
		sh.intents, sh.grown = make(map[string]*Intent), 0 // an emptied map keeps its memory
	}
	j.Bytes.Add(-int64(len(key) + len(in.Value)))
	j.Keys.Add(-1)
	j.releaseLocked(in)
	if in.checkAt == toReplay {
		j.Queued.Add(-1)
	}
}

// Announce wakes the callers that wait for an empty queue, if no intent is queued.
func (j *Journal) Announce() {
	if j.Queued.Load() != 0 {
		return
	}
	j.idle.Lock()
	defer j.idle.Unlock()
	if j.idle.ch != nil && j.Queued.Load() == 0 {
		close(j.idle.ch)
		j.idle.ch = nil
	}
}

// Drained returns a channel that is closed as soon as no intent is queued, or nil if none
// is queued now.
func (j *Journal) Drained() <-chan struct{} {
	j.idle.Lock()
	defer j.idle.Unlock()
	if j.Queued.Load() == 0 {
		return nil
	}
	if j.idle.ch == nil {
		j.idle.ch = make(chan struct{})
	}
	return j.idle.ch
}

// Config bounds the journal, and says where its file is.
type Config struct {
	MaxKeys  int
	MaxBytes int64 // of keys and values
	KeysOnly bool  // the journal keeps no values
	Dir      string
	Fsync    wal.SyncPolicy
}

// Deliverable reports whether the journal has a queued write for which way returns true:
// one that may reach Redis soon.
func (j *Journal) Deliverable(way func(key string, del bool) bool) bool {
	for i := range j.shards {
		sh := &j.shards[i]
		sh.mu.RLock()
		for key, in := range sh.intents {
			if in.queuedLocked() && !in.done && way(key, in.Del) {
				sh.mu.RUnlock()
				return true
			}
		}
		sh.mu.RUnlock()
	}
	return false
}

// UndeliveredKeys returns the sorted keys of the writes that did not reach Redis. A write
// that waits for its second check has been replayed and is not among them.
func (j *Journal) UndeliveredKeys() []string {
	var keys []string
	for i := range j.shards {
		sh := &j.shards[i]
		sh.mu.RLock()
		for key, in := range sh.intents {
			if (in.held != nil || in.checkAt == toReplay) && !in.done {
				keys = append(keys, key)
			}
		}
		sh.mu.RUnlock()
	}
	slices.Sort(keys)
	return keys
}
