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
	value    []byte // not for a delete
	deadline int64  // of a set; never for none
	seq      uint64 // the order of the writes of one key
	checkAt  int64  // when the second check is due, 0 while it is to be replayed

	base    base
	baseSeq uint64 // the write that found the base; 0 once a replay has told
	late    late

	del     bool
	undo    bool // of a delete: only of what a write of our own may have left
	sending bool // a replay of it is under way
}

// base is what Redis was last known to hold.
type base struct {
	known  bool
	held   bool   // it held a value; else nothing
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
func holding(value []byte, expires int64, server string) base {
	return base{known: true, held: true, sum: sha1.Sum(value), gone: expires, server: server}
}

// holdingNothing is the base of a key that was last seen to be absent.
func holdingNothing(server string) base { return base{known: true, server: server} }

// mayBeAbsent says whether finding nothing at server is no conflict: nothing is
// known, or nothing was there, or a write of our own deleted it, or its time ran
// out, or the server is another one than the one that held it and has lost it.
func (in *intent) mayBeAbsent(server string, now int64) bool {
	b, l := &in.base, &in.late
	return !b.known || !b.held || now >= b.gone || b.server != server ||
		l.del || l.since != 0 && now >= l.gone
}

// lateMost bounds the values that are remembered of one key's unanswered writes:
// more than a bulkhead lets under way, as many as there may be on a hot key when
// the circuit opens. Past it, what the key holds cannot be told from what others
// wrote, and the second check deletes instead.
const lateMost = 2 * bulkheadSlots

// unanswered notes a write that was sent on the session and got no answer.
func (l *late) unanswered(session uint64, value []byte, del bool, deadline int64) {
	if l.since == 0 {
		*l = late{since: session, gone: never}
	}
	l.since, l.until = min(l.since, session), 0
	if del {
		l.del = true
		return
	}
	l.gone = min(l.gone, deadline)
	sum := sha1.Sum(value)
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
	undo     []byte // the value of an Add that got no answer, to be taken back
	deadline int64
	seq      uint64
	base     base
	sentOn   uint64 // not 0: it may have reached Redis on this session
}

// put keeps the write, unless a later one of the same key is there already. What
// it may have done to Redis is remembered in any case.
func (j *journal) put(h keyHash, w write) admission {
	sh := j.shard(h)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	return j.putLocked(sh, w)
}

func (j *journal) putLocked(sh *journalShard, w write) admission {
	in := sh.intents[w.key]
	if in == nil {
		if j.keys.Add(1) > int64(j.maxKeys) || j.bytes.Load()+int64(len(w.key)) > j.maxBytes {
			j.keys.Add(-1)
			return rejected
		}
		in = &intent{base: w.base, baseSeq: w.seq, checkAt: notQueued}
		sh.intents[strings.Clone(w.key)] = in
		j.bytes.Add(int64(len(w.key)))
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
		in.base, in.baseSeq = w.base, w.seq
	}
	if w.seq < in.seq {
		return admitted
	}
	verdict := admitted
	j.bytes.Add(-int64(len(in.value)))
	if !w.del && j.bytes.Add(int64(len(w.value))) > j.maxBytes {
		j.bytes.Add(-int64(len(w.value)))
		w.value, w.del = nil, true
		verdict = downgraded
	}
	in.value, in.del, in.deadline, in.seq = w.value, w.del, w.deadline, w.seq
	in.undo = w.undo != nil
	if in.checkAt != 0 {
		in.checkAt = 0
		j.queued.Add(1)
	}
	return verdict
}

// notQueued marks an intent that is new, until put has queued it.
const notQueued = -1

// overtaken is told of a write that Redis has acknowledged although its key is
// fenced by now: it was begun before the fence. An intent of an earlier write is
// done with, for either it was never sent, or it was sent before this one on the
// same session and has run before it. An intent that may still run late stays,
// and is brought up to date.
func (j *journal) overtaken(h keyHash, w write, session uint64, server string) {
	if j.keys.Load() == 0 {
		return
	}
	sh := j.shard(h)
	sh.mu.Lock()
	in := sh.intents[w.key]
	switch {
	case in == nil || in.seq >= w.seq:
	case in.sending || in.late.since != 0 && in.late.since != session:
		j.putLocked(sh, w)
		in.base, in.baseSeq = afterwards(w.value, w.del, w.deadline, server), 0
	default:
		j.dropLocked(sh, w.key, in)
	}
	sh.mu.Unlock()
	j.announce()
}

// afterwards is the base once Redis has run a write.
func afterwards(value []byte, del bool, deadline int64, server string) base {
	if del {
		return holdingNothing(server)
	}
	return holding(value, deadline, server)
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

// dropLocked takes the intent out. The caller holds the shard, and announces
// afterwards.
func (j *journal) dropLocked(sh *journalShard, key string, in *intent) {
	delete(sh.intents, key)
	j.bytes.Add(-int64(len(key) + len(in.value)))
	j.keys.Add(-1)
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

// task is an intent on its way to Redis, as it was when it was taken.
type task struct {
	intent
	key   string
	hash  keyHash
	check bool // the second look at an ambiguous write
}

// take marks intents as being sent and returns them: those to replay, and those
// whose second check is due, of which want says that they may go now; up to n of
// them, and up to about so many bytes.
func (j *journal) take(n, bytes int, now int64, hash func(string) keyHash, want func(key string, del bool) bool) []task {
	var tasks []task
	for i := range j.shards {
		sh := &j.shards[i]
		sh.mu.Lock()
		for key, in := range sh.intents {
			if in.sending || in.checkAt > now || !want(key, in.del) {
				continue
			}
			in.sending = true
			t := task{intent: *in, key: key, hash: hash(key), check: in.checkAt > 0}
			t.late.sums = t.late.sums[:len(t.late.sums):len(t.late.sums)]
			tasks = append(tasks, t)
			bytes -= len(t.key) + len(t.value)
			if len(tasks) == n || bytes <= 0 {
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
	t := task{intent: *in, key: key, hash: h}
	t.late.sums = t.late.sums[:len(t.late.sums):len(t.late.sums)]
	return []task{t}
}

// nextCheck is when the next second check of a key that is owned is due, or never.
func (j *journal) nextCheck(owned func(key string) bool) int64 {
	next := int64(never)
	if j.keys.Load() == j.queued.Load() {
		return next
	}
	for i := range j.shards {
		sh := &j.shards[i]
		sh.mu.RLock()
		for key, in := range sh.intents {
			if in.checkAt > 0 && owned(key) {
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
	foundNothing              // somebody else wrote; now the key is absent
	foundRefused              // Redis does not take it: what it holds is not known
	foundNoReply              // it may or may not have run
	foundUnsent               // it did not run
)

// lateAfter is how long after a replay a server may still run a command that an
// earlier connection left behind: a stopped server was seen to do so 0.7s after
// its client had gone.
const lateAfter = 2 * time.Second

// settle ends a task that was sent on the session. The key leaves the journal
// unless a later write of it came in meanwhile, or Redis has not decided, or a
// write of an earlier session may still run late: then it is checked once more.
func (j *journal) settle(t task, what found, session uint64, server string, now int64) {
	sh := j.shard(t.hash)
	sh.mu.Lock()
	if in := sh.intents[t.key]; in != nil {
		in.sending = false
		if j.settleLocked(in, t, what, session, server, now) {
			j.dropLocked(sh, t.key, in)
		}
	}
	sh.mu.Unlock()
	j.announce()
}

// settleLocked says whether the intent is done with.
func (j *journal) settleLocked(in *intent, t task, what found, session uint64, server string, now int64) bool {
	switch what {
	case foundUnsent:
		return false
	case foundNoReply:
		if !t.undo {
			in.late.unanswered(session, t.value, t.del, t.deadline)
		}
		return false
	case foundOurs:
		if t.undo {
			in.base = base{} // somebody else's value may be there, and stays
			break
		}
		in.base = afterwards(t.value, t.del || now >= t.deadline, t.deadline, server)
	case foundNothing:
		in.base = holdingNothing(server)
	case foundRefused:
		in.base = base{}
	}
	in.baseSeq = 0
	if in.seq != t.seq || in.deadline != t.deadline {
		return false // a later write took the intent over
	}
	if in.late.since == 0 || in.late.since == session {
		return true
	}
	if in.late.until == 0 {
		in.late.until = now + int64(lateAfter)
	}
	if now >= in.late.until {
		return true // this was the second look, or as good as one
	}
	if in.checkAt == 0 {
		j.queued.Add(-1)
	}
	in.checkAt = in.late.until
	return false
}
