package holdfast

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-cache/holdfast/internal/wal"
)

// journalFile is the journal's copy in Journal.Dir. It is changed under the lock
// of the key's shard, right after the journal itself, so that it tells the same
// story; and waited for without a lock.
type journalFile struct {
	log   *wal.Log
	clock clock
	kick  chan struct{} // there may be something for the keeper to do

	sweeping chan struct{} // holds a token while a sweep runs

	// doubted: what was found may be out of date, and the file has yet to be written
	// anew without that doubt.
	doubted atomic.Bool
	mu      struct {
		sync.Mutex
		leaving []leaving
		last    saving // of what a replay has settled
		settled bool   // there is one
	}
}

// saving is a change on its way to the file; the zero value is none. When one is
// written, so are all that came before it.
type saving struct{ wal.Pending }

// or is the later of the two, if there is one.
func (s saving) or(later saving) saving {
	if later == (saving{}) {
		return s
	}
	return later
}

// leaving is an intent that is done with, until the file has forgotten it.
type leaving struct {
	shard *journalShard
	key   string
	in    *intent
}

const (
	// fileRetry is the pause between two tries to write everything to a disk that
	// does not take it.
	fileRetry = time.Second
	// recordOverhead is about what a record has over key and value.
	recordOverhead = 128
	// recordMost is what a record may have in all.
	recordMost = 1 << 30
)

// restored is what was found in Journal.Dir.
type restored struct {
	report     wal.Report
	keys       int
	downgraded int    // sets that became deletes, because
	doubt      string // what was found may be out of date; "" where it is not
}

// open makes the directory the journal's, and takes over what an earlier process
// left in it. Every key of it is fenced, so none is read from Redis before it was
// replayed. It blocks on the disk. It must be called before anything else.
func (j *journal) open(o JournalOptions, c clock, hash func(string) keyHash, logf func(string, ...any)) (restored, error) {
	policy := [...]wal.SyncPolicy{
		FsyncNo: wal.SyncNone, FsyncEverySecond: wal.SyncInterval, FsyncAlways: wal.SyncAlways,
	}[o.Fsync]
	f := &journalFile{clock: c, kick: make(chan struct{}, 1), sweeping: make(chan struct{}, 1)}
	now, foreign := c.now(), 0
	log, report, err := wal.Open(o.Dir, wal.Options{Sync: policy, Logf: logf}, func(key string, payload []byte) {
		in, ok := decodeIntent(payload, now, time.Now().UnixNano())
		if !ok {
			foreign++
		}
		j.restore(j.shard(hash(key)), key, in)
	})
	if err != nil {
		return restored{}, err
	}
	f.log, j.file = log, f
	r := restored{report: report, keys: int(j.keys.Load())}
	var last saving
	if r.doubt = report.Doubt; r.doubt == "" && foreign > 0 {
		r.doubt = fmt.Sprintf("%d records are of another version", foreign)
	}
	if r.doubt != "" {
		r.downgraded, last = j.downgradeAll(func(*intent) bool { return true })
		f.doubted.Store(true)
		f.wake()
	} else {
		r.downgraded, last = j.downgradeAll(func(*intent) bool { return j.bytes.Load() > j.maxBytes })
	}
	j.durable(last) // or the next process would find sets
	if log.Err() != nil {
		f.wake()
	}
	return r, nil
}

// restore takes an intent over. It is not refused for want of room: what was
// accepted stays accepted.
func (j *journal) restore(sh *journalShard, key string, in *intent) {
	sh.intents[key] = in
	j.keys.Add(1)
	j.bytes.Add(int64(len(key) + len(in.value)))
	if in.checkAt == 0 {
		j.queued.Add(1)
	}
}

// downgradeAll makes deletes of sets, of which some may have been replaced since by
// a write that was not found, or for which there is no room. It returns how many
// there were, and the last change.
func (j *journal) downgradeAll(which func(*intent) bool) (n int, last saving) {
	for i := range j.shards {
		for key, in := range j.shards[i].intents {
			if in.del || !which(in) {
				continue
			}
			n++
			j.bytes.Add(-int64(len(in.value)))
			in.value, in.del = nil, true
			last = j.saveLocked(&j.shards[i], key, in)
		}
	}
	return n, last
}

// saveLocked has the intent, as it is now, written to the file. The caller holds
// its shard, and waits with durable once it does not.
func (j *journal) saveLocked(sh *journalShard, key string, in *intent) saving {
	in.done = false
	if j.file == nil {
		return saving{}
	}
	return saving{j.file.log.Stage(key, unnumbered, j.file.encode(sh, key, in))}
}

// unnumbered is the number of every record: they are staged under the lock of the
// key's shard, so they come in their order.
const unnumbered = 0

// encode is the intent as the next process has to know it, to which this one may
// die in the middle of a replay. The caller holds the shard.
func (f *journalFile) encode(sh *journalShard, key string, in *intent) []byte {
	now, wall := f.clock.now(), time.Now().UnixNano()
	if s, ok := sh.sent[in]; ok {
		known := *in
		known.late.sums = slices.Clone(in.late.sums)
		known.late.unanswered(earlierProcess, s.value, s.del, s.deadline)
		in = &known
	}
	payload := in.encode(now, wall)
	if wal.RecordSize(len(key), len(payload)) > recordMost {
		del := *in
		del.value, del.del = nil, true
		payload = del.encode(now, wall)
	}
	return payload
}

// durable returns when the file has what was saved, as Journal.Fsync means it.
// Where the disk does not take it, it is in memory only, and Health says so.
func (j *journal) durable(p saving) {
	if j.file == nil {
		return
	}
	if p.Wait() != nil || j.file.log.NeedsCompaction(j.live()) {
		j.file.wake()
	}
}

func (j *journal) live() int64 { return j.bytes.Load() + recordOverhead*j.keys.Load() }

func (f *journalFile) wake() {
	select {
	case f.kick <- struct{}{}:
	default:
	}
}

// forget has the file forget the intent. The caller holds the shard.
func (f *journalFile) forget(sh *journalShard, key string, in *intent) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mu.leaving = append(f.mu.leaving, leaving{sh, key, in})
	f.mu.last = saving{f.log.StageDrop(key, unnumbered)}
	f.mu.settled = true
}

// settledLocked has the file know what a replay found of an intent that stays. The
// caller holds the shard; sweep waits for it.
func (j *journal) settledLocked(sh *journalShard, key string, in *intent) {
	if j.file == nil {
		in.done = false
		return
	}
	j.file.mu.Lock()
	defer j.file.mu.Unlock()
	j.file.mu.last = j.saveLocked(sh, key, in)
	j.file.mu.settled = true
}

// sweep takes out what is done with, once the file has forgotten it; when it
// returns, the file knows all that was settled when it was called. It says whether
// some of that was written again meanwhile, and must be replayed.
func (j *journal) sweep() (again bool) {
	f := j.file
	if f == nil {
		return false
	}
	f.sweeping <- struct{}{}
	defer func() { <-f.sweeping }()
	f.mu.Lock()
	gone, last, settled := f.mu.leaving, f.mu.last, f.mu.settled
	f.mu.leaving, f.mu.settled = nil, false
	f.mu.Unlock()
	if !settled {
		return false
	}
	j.durable(last) // they were staged in this order
	defer j.announce()
	for _, l := range gone {
		l.shard.mu.Lock()
		l.in.sending = false
		if l.in.done {
			j.dropLocked(l.shard, l.key, l.in)
		} else {
			again = true
		}
		l.shard.mu.Unlock()
	}
	return again
}

// keep writes the file anew when most of it is out of date, or when the disk did
// not take something: then once each fileRetry. It ends when stop is closed.
func (j *journal) keep(stop <-chan struct{}) {
	log := j.file.log
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		select {
		case <-stop:
			return
		case <-j.file.kick:
		}
		for log.Err() != nil || log.NeedsCompaction(j.live()) || j.file.doubted.Load() {
			if log.Compact(j.each) == nil && log.Err() == nil {
				j.file.doubted.Store(false)
				break
			}
			pause.Reset(fileRetry)
			select {
			case <-stop:
				return
			case <-pause.C:
			}
		}
	}
}

// each yields what the file is to hold: a shard at a time, so that no lock is held
// while it is written.
func (j *journal) each(yield func(key string, seq uint64, payload []byte) bool) {
	type record struct {
		key     string
		payload []byte
	}
	var records []record
	for i := range j.shards {
		sh := &j.shards[i]
		records = records[:0]
		sh.mu.RLock()
		for key, in := range sh.intents {
			if !in.done {
				records = append(records, record{key, j.file.encode(sh, key, in)})
			}
		}
		sh.mu.RUnlock()
		for _, r := range records {
			if !yield(r.key, unnumbered, r.payload) {
				return
			}
		}
	}
}

// close has everything on the disk, or says why not. It blocks on the disk.
func (j *journal) close() error {
	if j.file == nil {
		return nil
	}
	return j.file.log.Close()
}

// err is why the file does not have everything; nil where it does, or where there
// is none.
func (j *journal) err() error {
	if j.file == nil {
		return nil
	}
	if err := j.file.log.Err(); err != nil {
		return fmt.Errorf("holdfast: the journal's file: %w", err)
	}
	return nil
}
