package holdfast

import (
	"crypto/sha1"
	"strings"
	"sync"
	"sync/atomic"
	"time"
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

	keys   atomic.Int64 // intents, also those that wait for their second check
	queued atomic.Int64 // intents to be replayed
	bytes  atomic.Int64

	shards [journalShards]journalShard

	idle struct {
		sync.Mutex
		ch chan struct{} // closed when nothing is queued any more
	}
}

const journalShards = 64

type journalShard struct {
	mu      sync.RWMutex
	intents map[string]*intent
}

// intent is what Redis shall hold for a key.
type intent struct {
	key      string
	value    []byte // not for a delete
	deadline int64  // of a set; never for none
	seq      uint64 // the order of the writes of one key
	checkAt  int64  // when the second check is due, 0 while it is to be replayed

	base   base
	sentOn uint64 // the session on which it may still run late, 0 for none

	del     bool
	sending bool // a replay of it is under way
}

// base is what Redis may hold for a key without anybody else having written.
type base struct {
	known  bool
	absent bool   // absence is expected, whatever the server
	server string // run id of the server that held it
	sums   []digest
}

type digest [sha1.Size]byte

// knownBase is the base of a key of which this value was last seen. Its own TTL
// may have taken it away: then its absence is nobody's doing.
func knownBase(value []byte, expired bool, server string) base {
	return base{known: true, absent: expired, server: server, sums: []digest{sha1.Sum(value)}}
}

// add says that Redis may hold value by our own doing.
func (b *base) add(value []byte) {
	sum := sha1.Sum(value)
	for _, s := range b.sums {
		if s == sum {
			return
		}
	}
	// Past a few, what is forgotten makes a replay delete where it could have
	// written: safe, and rare.
	if len(b.sums) < 8 {
		b.sums = append(b.sums, sum)
	}
}

// admission is what became of a write that was offered to the journal.
type admission uint8

const (
	admitted   admission = iota
	downgraded           // a set became a delete
	rejected             // no room for a further key
)

// fence is what the journal knows of a key to a reader.
type fenced struct {
	value    []byte
	deadline int64
	live     bool // there is a value to serve
}

func newJournal(maxKeys int, maxBytes int64) *journal {
	j := &journal{maxKeys: maxKeys, maxBytes: maxBytes}
	for i := range j.shards {
		j.shards[i].intents = make(map[string]*intent)
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
	if in == nil {
		return f, false
	}
	return fenced{value: in.value, deadline: in.deadline, live: !in.del && now < in.deadline}, true
}

func (j *journal) holds(h keyHash, key string) bool {
	_, ok := j.get(h, key, 0)
	return ok
}

// write is an intent as it is offered.
type write struct {
	key      string
	value    []byte
	del      bool
	deadline int64
	seq      uint64
	base     base
	sentOn   uint64 // not 0: it may have reached Redis on this session
}

// put keeps the write, unless a later one of the same key is there already. What
// it may have done to Redis is added to the base in any case.
func (j *journal) put(h keyHash, w write) admission {
	sh := j.shard(h)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	in := sh.intents[w.key]
	if in == nil {
		if j.keys.Add(1) > int64(j.maxKeys) {
			j.keys.Add(-1)
			return rejected
		}
		in = &intent{key: strings.Clone(w.key), base: w.base, checkAt: notQueued}
		sh.intents[in.key] = in
		j.bytes.Add(int64(len(in.key)))
	} else if in.sending || in.sentOn != 0 || in.checkAt > 0 {
		j.mayHold(in, in.value, in.del)
	}
	if w.sentOn != 0 {
		in.sentOn = w.sentOn
		j.mayHold(in, w.value, w.del)
		if w.base.known {
			in.base.known = true
			for _, s := range w.base.sums {
				in.base.sums = appendNew(in.base.sums, s)
			}
		}
	}
	if w.seq < in.seq {
		return admitted
	}
	verdict := admitted
	freed := int64(len(in.value))
	if !w.del && j.bytes.Add(int64(len(w.value))-freed) > j.maxBytes {
		j.bytes.Add(-int64(len(w.value)))
		w.value, w.del = nil, true
		verdict = downgraded
	} else if w.del {
		j.bytes.Add(-freed)
	}
	in.value, in.del, in.deadline, in.seq = w.value, w.del, w.deadline, w.seq
	if in.checkAt != 0 {
		in.checkAt = 0
		j.queued.Add(1)
	}
	return verdict
}

// notQueued marks an intent that is new, until put has queued it.
const notQueued = -1

func appendNew(sums []digest, s digest) []digest {
	for _, have := range sums {
		if have == s {
			return sums
		}
	}
	if len(sums) < 8 {
		sums = append(sums, s)
	}
	return sums
}

func (j *journal) mayHold(in *intent, value []byte, del bool) {
	if del {
		in.base.absent = true
		return
	}
	in.base.add(value)
}

// overtaken is told of a write that Redis has acknowledged although its key is
// fenced by now: it was begun before the fence. An intent of an earlier write is
// done with, for either it was never sent, or it was sent before this one on the
// same session and has run before it. An intent that may still run late stays,
// and is brought up to date.
func (j *journal) overtaken(h keyHash, w write, session uint64) {
	if j.keys.Load() == 0 {
		return
	}
	sh := j.shard(h)
	sh.mu.Lock()
	in := sh.intents[w.key]
	stays := false
	if in != nil && in.seq < w.seq {
		if stays = in.sending || in.sentOn != 0 && in.sentOn != session; !stays {
			j.dropLocked(sh, in)
		}
	}
	sh.mu.Unlock()
	if stays {
		j.put(h, w)
	}
}

// touch gives a journaled set another end. It says whether there was one.
func (j *journal) touch(h keyHash, key string, now, deadline int64) bool {
	sh := j.shard(h)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	in := sh.intents[key]
	if in == nil || in.del || now >= in.deadline || in.checkAt != 0 {
		return false
	}
	in.deadline = deadline
	return true
}

func (j *journal) dropLocked(sh *journalShard, in *intent) {
	delete(sh.intents, in.key)
	j.bytes.Add(-int64(len(in.key) + len(in.value)))
	j.keys.Add(-1)
	if in.checkAt == 0 {
		j.unqueued()
	}
}

// unqueued counts one less to replay, and wakes who waits for none.
func (j *journal) unqueued() {
	if j.queued.Add(-1) != 0 {
		return
	}
	j.idle.Lock()
	if j.idle.ch != nil {
		close(j.idle.ch)
		j.idle.ch = nil
	}
	j.idle.Unlock()
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

// task is an intent on its way to Redis, as it was when it was taken.
type task struct {
	intent
	hash  keyHash
	check bool // the second look at an ambiguous write
}

// take marks up to n intents as being sent and returns them: those to replay,
// and those whose second check is due.
func (j *journal) take(n int, now int64, hash func(string) keyHash) []task {
	var tasks []task
	for i := range j.shards {
		sh := &j.shards[i]
		sh.mu.Lock()
		for _, in := range sh.intents {
			if in.sending || in.checkAt > now {
				continue
			}
			in.sending = true
			t := task{intent: *in, hash: hash(in.key), check: in.checkAt > 0}
			t.base.sums = t.base.sums[:len(t.base.sums):len(t.base.sums)]
			tasks = append(tasks, t)
			if len(tasks) == n {
				sh.mu.Unlock()
				return tasks
			}
		}
		sh.mu.Unlock()
	}
	return tasks
}

// takeOne is take for the one key, or nil.
func (j *journal) takeOne(h keyHash, key string) []task {
	sh := j.shard(h)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	in := sh.intents[key]
	if in == nil || in.sending || in.checkAt != 0 {
		return nil
	}
	in.sending = true
	return []task{{intent: *in, hash: h}}
}

// nextCheck is when the next second check is due, or never.
func (j *journal) nextCheck() int64 {
	next := int64(never)
	if j.keys.Load() == j.queued.Load() {
		return next
	}
	for i := range j.shards {
		sh := &j.shards[i]
		sh.mu.RLock()
		for _, in := range sh.intents {
			if in.checkAt > 0 {
				next = min(next, in.checkAt)
			}
		}
		sh.mu.RUnlock()
	}
	return next
}

// settleAs is what a replay found out about a task.
type settleAs uint8

const (
	settled settleAs = iota // Redis decided: it holds ours, theirs or nothing
	failed                  // it may or may not have run, on the given session
	unsent                  // it did not run
)

// lateAfter is how long after a replay a server may still run a command that an
// earlier connection left behind: a stopped server was seen to do so 0.7s after
// its client had gone.
const lateAfter = 2 * time.Second

// settle ends a task. It returns false where a later write of the key came in
// meanwhile, or where a second check is to follow: the key stays fenced then.
func (j *journal) settle(t task, how settleAs, session uint64, now int64) bool {
	sh := j.shard(t.hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	in := sh.intents[t.key]
	if in == nil {
		return false
	}
	in.sending = false
	switch {
	case how == unsent:
		return false
	case how == failed:
		in.sentOn = session
		j.mayHold(in, t.value, t.del)
		return false
	case in.seq != t.seq || in.deadline != t.deadline:
		// A later write took the intent over while this one was replayed: Redis
		// may hold the earlier value now.
		j.mayHold(in, t.value, t.del)
		return false
	}
	if !t.check && in.sentOn != 0 && in.sentOn != session {
		in.checkAt = now + int64(lateAfter)
		j.unqueued()
		return false
	}
	j.dropLocked(sh, in)
	return true
}
