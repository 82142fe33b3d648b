package holdfast

import (
	"strings"
	"sync"
	"sync/atomic"
)

// journal remembers what was written while Redis was away: one intent a key,
// the last one. It is a leaf: it knows neither Redis nor the local tier, and is
// told the time.
//
// A key in the journal is fenced: it is read from here and never from Redis,
// and its writes go here, until the replay is done with it.
//
// An intent carries what this client last knew Redis to hold, its base. A replay
// may write only over the base: whatever else it finds, somebody else wrote.
type journal struct {
	maxKeys  int
	maxBytes int64
	keysOnly bool

	// downgraded is told of a set that became a delete while it waited.
	downgraded func(key string)
	// suspect says of a write that connections were lost under it: it is sent last and
	// alone.
	suspect func(key string, del bool) bool

	file *journalFile // nil: in memory only

	news  atomic.Bool // there may be sets that are to be compared with what Redis holds
	held  heldEntries
	retry backoff // between the canaries of a refusal

	// underWay counts the intents that are being sent, and aloneUnderWay for one that
	// is to be alone.
	underWay atomic.Int64

	next   atomic.Uint32 // the shard where the next take begins
	keys   atomic.Int64  // intents, also those that wait for their second check
	queued atomic.Int64  // intents to be replayed
	bytes  atomic.Int64

	shards [journalShards]journalShard

	idle struct {
		sync.Mutex
		ch chan struct{} // closed when nothing is queued any more
	}
}

const (
	journalShards = 64
	// shardKept is how many intents a shard's map may have grown to and be used again.
	shardKept = 16
)

type journalShard struct {
	mu      sync.RWMutex
	intents map[string]*intent
	grown   int              // to how many, since the map was made
	sent    map[*intent]sent // with a file: what is under way
}

// admission is what became of a write that was offered to the journal.
type admission uint8

const (
	admitted   admission = iota
	downgraded           // a set became a delete
	rejected             // no room for a further key
)

// fenced is what the journal knows of a key to a reader.
type fenced struct {
	value     []byte
	deadline  int64
	live      bool // there is a value to serve
	elsewhere bool // there is one, but not here: the local tier may have it
}

func newJournal(o JournalOptions) *journal {
	j := &journal{maxKeys: o.MaxKeys, maxBytes: o.MaxBytes, keysOnly: o.KeysOnly, downgraded: func(string) {}, suspect: func(string, bool) bool { return false }}
	for i := range j.shards {
		j.shards[i].intents = make(map[string]*intent)
		j.shards[i].sent = make(map[*intent]sent)
	}
	return j
}

func (j *journal) shard(h keyHash) *journalShard { return &j.shards[h.check%journalShards] }

// get says what a fenced key is. While the journal is empty it costs one atomic
// load.
func (j *journal) get(h keyHash, key string, now int64) (f fenced, ok bool) {
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
	return fenced{
		value: in.value, deadline: in.deadline,
		live: !in.del && now < in.deadline, elsewhere: in.elsewhere,
	}, true
}

// holds says whether a write of the key has to go here: also where a replay is done
// with it, until the file has forgotten it.
func (j *journal) holds(h keyHash, key string) bool {
	if j.keys.Load() == 0 {
		return false
	}
	sh := j.shard(h)
	sh.mu.RLock()
	defer sh.mu.RUnlock()
	return sh.intents[key] != nil
}

// write is an intent as it is offered.
type write struct {
	key      string
	value    []byte
	del      bool
	undo     []byte // the value of an Add that got no answer, to be taken back
	deadline int64
	seq      uint64
	base     base
	sentOn   uint64 // not 0: it may have reached Redis on this session

	// plainUntil: until then it counts as if it waited on the wire, and is sent as the
	// command that its caller asked for; 0 for not at all.
	plainUntil int64
}

// put keeps the write, unless a later one of the same key is there already. What
// it may have done to Redis is remembered in any case. It waits for nothing; before
// the write is accepted, the caller waits for what it returns.
func (j *journal) put(h keyHash, w write) (admission, saving) {
	sh := j.shard(h)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	return j.putLocked(sh, w)
}

// admit counts a further key and its bytes, if there is room for them.
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

func (j *journal) putLocked(sh *journalShard, w write) (admission, saving) {
	in, decision := sh.intents[w.key], admitted
	if in == nil {
		if !j.admit(w.key) {
			if w.sentOn == 0 {
				return rejected, saving{}
			}
			// It may run late, and would undo what is written next, so its key is
			// fenced all the same.
			decision = rejected
			j.keys.Add(1)
			j.bytes.Add(int64(len(w.key)))
		}
		w.key = strings.Clone(w.key)
		in = &intent{base: w.base, baseSeq: w.seq, checkAt: notQueued}
		sh.intents[w.key] = in
		sh.grown = max(sh.grown, len(sh.intents))
	}
	if w.sentOn != 0 {
		if w.undo != nil {
			in.late.unanswered(w.sentOn, w.undo, false, w.deadline)
		} else {
			in.late.unanswered(w.sentOn, w.value, w.del, w.deadline)
		}
	}
	if w.seq < in.baseSeq {
		// It began earlier and comes later: what it found was there before what
		// the others found, which may have been its own.
		in.base, in.baseSeq, in.looked = w.base, w.seq, false
	}
	switch {
	case decision == rejected:
		w.value, w.del, w.undo = nil, true, w.value
		j.replaceLocked(in, w)
		in.undo = true
	case w.seq >= in.seq:
		decision = j.replaceLocked(in, w)
	}
	if in.unsure() {
		j.news.Store(true)
	}
	return decision, j.saveLocked(sh, w.key, in)
}

// replaceLocked makes the write what the intent is for.
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
	in.value, in.del, in.elsewhere, in.deadline, in.seq = w.value, w.del, elsewhere, w.deadline, w.seq
	in.undo, in.lost, in.cuts = w.undo != nil, false, 0
	if w.plainUntil != 0 {
		in.plainUntil = w.plainUntil
	} // else the end of the earlier write that it takes the place of counts
	j.releaseLocked(in)
	if in.checkAt != 0 {
		in.checkAt = 0
		j.queued.Add(1)
	}
	return decision
}

// claim takes so many bytes, if there are as many: never more for a moment, which would
// show in the gauge and cost another set its value.
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

// notQueued marks an intent that is new, until put has queued it.
const notQueued = -1

// lend says of a key that is deleted that the local tier has a value for it all the
// same, which was loaded since and goes with the replay.
func (j *journal) lend(h keyHash, key string, now int64) {
	if j.keys.Load() == 0 {
		return
	}
	sh := j.shard(h)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if in := sh.intents[key]; in != nil && (in.del || now >= in.deadline) {
		in.elsewhere = true
	}
}

// overtaken is told of a write that Redis has acknowledged although its key is
// fenced by now: it was begun before the fence. An intent of an earlier write is
// done with, for either it was never sent, or it was sent before this one on the
// same session and has run before it. An intent that may still run late stays,
// and is brought up to date. It says whether it must be replayed then. It waits for
// nothing; before the write is acknowledged, the caller waits for what it returns.
func (j *journal) overtaken(h keyHash, w write, sessionID uint64, server string) (again bool, saved saving) {
	if j.keys.Load() == 0 {
		return false, saving{}
	}
	sh := j.shard(h)
	sh.mu.Lock()
	in := sh.intents[w.key]
	decision := admitted
	switch {
	case in == nil || in.seq >= w.seq:
	case in.sending || in.late.since != 0 && in.late.since != sessionID:
		decision, _ = j.putLocked(sh, w)
		in.base, in.baseSeq = afterwards(w.value, w.del, w.deadline, server), 0
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

// flushed is told that the server was emptied at this process' own wish, behind whatever
// it had accepted: what waits to be written to it, or is looked at again, becomes a
// delete, but not what spare names, which came behind that wish. It returns the keys, for
// each of which there is something to replay, and the last change of the file.
func (j *journal) flushed(owns func(key string) bool, spare map[string]uint64) (keys []string, last saving) {
	if j.keys.Load() == 0 {
		return nil, saving{}
	}
	for i := range j.shards {
		sh := &j.shards[i]
		sh.mu.Lock()
		for key, in := range sh.intents {
			if seq, spared := spare[key]; in.done || in.del && !in.elsewhere || spared && seq == in.seq || !owns(key) {
				continue
			}
			j.bytes.Add(-int64(len(in.value)))
			in.value, in.del, in.elsewhere = nil, true, false
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

// afterwards is the base once Redis has run a write.
func afterwards(v []byte, del bool, deadline int64, server string) base {
	if del {
		return holdingNothing(server)
	}
	return holding(v, deadline, server)
}

// touch gives a journaled set another end. It says whether there was one. It
// waits for nothing, as put does.
func (j *journal) touch(h keyHash, key string, now, deadline int64) (saved saving, touched bool) {
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

// leaveLocked takes the intent out: at once, or, where there is a file, in the
// next sweep, once the file has forgotten it. Otherwise an intent that was done
// with would be replayed after the death of this process, over what was written
// since. The caller holds the shard, and announces afterwards.
func (j *journal) leaveLocked(sh *journalShard, key string, in *intent) saving {
	if j.file == nil {
		j.dropLocked(sh, key, in)
		return saving{}
	}
	in.done, in.sending = true, true
	return j.file.forget(sh, key, in)
}

// dropLocked takes the intent out. The caller holds the shard, and announces
// afterwards.
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

// announce wakes who waits for nothing to be queued, if so it is.
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

// drained returns a channel that is closed when nothing is queued, or nil where
// nothing is.
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
