package holdfast

import (
	"context"
	"errors"
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
	log     *wal.Log
	clock   clock
	timeout time.Duration // what a call waits for the disk, at most
	kick    chan struct{} // there may be something for the keeper to do

	// before, where a test has set it, is called before each access to the disk.
	before atomic.Pointer[func(op string)]

	sweeping chan struct{} // holds a token while a sweep runs
	unswept  chan struct{} // a sweep was given up

	// doubted is why what was found, which may be out of date, has yet to be written anew
	// without that doubt; nil where that is done.
	doubted atomic.Pointer[error]
	mu      struct {
		sync.Mutex
		leaving []leaving
		last    saving // of all changes
		staged  bool   // there was one since the last sweep
	}
}

// saving is a change on its way to the file; the zero value is none. When one is
// written, so are all that came before it.
type saving struct {
	wal.Pending
	leaves bool // an intent is done with, and leaves with a sweep
}

// or is the later of the two, if there is one.
func (s saving) or(next saving) saving {
	if next == (saving{}) {
		return s
	}
	next.leaves = next.leaves || s.leaves
	return next
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
func (j *journal) open(o JournalOptions, timeout time.Duration, c clock, hash func(string) keyHash, logf func(string, ...any)) (restored, error) {
	policy := [...]wal.SyncPolicy{
		FsyncNo: wal.SyncNone, FsyncEverySecond: wal.SyncInterval, FsyncAlways: wal.SyncAlways,
	}[o.Fsync]
	f := &journalFile{
		clock: c, timeout: timeout, kick: make(chan struct{}, 1),
		sweeping: make(chan struct{}, 1), unswept: make(chan struct{}, 1),
	}
	now, unknown, newer := c.now(), 0, byte(0)
	access := func(op string) {
		if before := f.before.Load(); before != nil {
			(*before)(op)
		}
	}
	log, report, err := wal.Open(o.Dir, wal.Options{Sync: policy, Logf: logf, Before: access}, func(key string, payload []byte) {
		in, ok := decodeIntent(payload, now, time.Now().UnixNano())
		if !ok {
			unknown++
			newer = max(newer, newerIntent(payload))
		}
		j.restore(j.shard(hash(key)), key, in)
	})
	if err != nil {
		return restored{}, err
	}
	if newer > 0 {
		err := fmt.Errorf("%s holds records of format %d, and this version knows none above %d: a newer one has written them", o.Dir, newer, intentFormat)
		return restored{}, errors.Join(err, log.Close())
	}
	f.log, j.file = log, f
	r := restored{report: report, keys: int(j.keys.Load())}
	var last saving
	if r.doubt = report.Doubt; r.doubt == "" && unknown > 0 {
		r.doubt = fmt.Sprintf("%d records cannot be read", unknown)
	}
	if r.doubt != "" {
		r.downgraded, _ = j.downgradeAll(func(*intent) bool { return true })
		j.rewrite()
		return r, nil
	}
	r.downgraded, last = j.downgradeAll(func(*intent) bool { return j.bytes.Load() > j.maxBytes })
	_ = last.Wait() // or the next process would find sets; the keeper asks the file for errors
	return r, nil
}

// rewrite writes the file anew, without the doubt in which it was found: before anything
// is accepted that would be as doubtful to the next process. It says whether that was
// done. It blocks on the disk.
func (j *journal) rewrite() bool {
	err := j.file.log.Compact(j.each)
	if err == nil {
		j.file.doubted.Store(nil)
		return j.file.log.Err() == nil
	}
	j.file.doubted.Store(&err)
	return false
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
			j.downgraded(key)
		}
	}
	return n, last
}

// saveLocked has the intent, as it is now, written to the file. The caller holds
// its shard, and waits with durable once it does not, or leaves that to a sweep.
func (j *journal) saveLocked(sh *journalShard, key string, in *intent) saving {
	in.done = false
	f := j.file
	if f == nil {
		return saving{}
	}
	record := f.encode(sh, key, in)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mu.staged = true
	f.mu.last = saving{f.log.Stage(key, unnumbered, record), false}
	return f.mu.last
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

// durable returns when the file has what was saved, as Journal.Fsync means it. Where the
// disk does not take it, it is in memory only, and Health says so: also where the disk
// stands still for longer than is left to a call that began then, or for half a Timeout,
// if that is more. The error is the context's.
func (j *journal) durable(ctx context.Context, began int64, p saving) error {
	f := j.file
	if f == nil {
		return nil
	}
	written := p.Start()
	select {
	case <-written:
	default:
		if f.log.Hangs() {
			return nil
		}
		if done, err := f.await(ctx, began, written); !done {
			return err
		}
	}
	if p.Wait() != nil || f.log.NeedsCompaction(j.live()) {
		f.wake()
	}
	return nil
}

// await waits for the disk; false where it does not come.
func (f *journalFile) await(ctx context.Context, began int64, written <-chan struct{}) (done bool, err error) {
	t := time.NewTimer(f.patience(began))
	defer t.Stop()
	select {
	case <-written:
		return true, nil
	case <-t.C:
	case <-ctx.Done():
		err = ctx.Err()
		if f.log.Busy() < f.timeout {
			return false, err
		}
	}
	f.log.Late(fmt.Errorf("the disk has not answered for %v", f.timeout))
	return false, err
}

// patience is how long a call that began then waits for the disk: for what is left of its
// time. A call that has spent that on Redis still gives a disk that is well the time to
// write.
func (f *journalFile) patience(began int64) time.Duration {
	return max(f.timeout-time.Duration(f.clock.now()-began), f.timeout/2)
}

func (j *journal) live() int64 { return j.bytes.Load() + recordOverhead*j.keys.Load() }

func (f *journalFile) wake() { signal(f.kick) }

// signal notes that there is something to do, on a channel with room for one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// forget has the file forget the intent. The caller holds the shard.
func (f *journalFile) forget(sh *journalShard, key string, in *intent) saving {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mu.leaving = append(f.mu.leaving, leaving{sh, key, in})
	f.mu.last = saving{f.log.StageDrop(key, unnumbered), true}
	f.mu.staged = true
	return f.mu.last
}

// swept is sweep for who waits for the whole of it, or until ctx ends.
func (j *journal) swept(ctx context.Context) (again bool, err error) {
	for j.file != nil {
		more, done := j.sweep(ctx, j.file.clock.now())
		if again = again || more; done {
			break
		}
		if err := ctx.Err(); err != nil {
			return again, err
		}
	}
	return again, nil
}

// sweep takes out what is done with, once the file has forgotten it; when it
// returns, the file knows all that the journal knew when it was called, or JournalError
// says that it does not. It says whether some of that was written again meanwhile, and
// must be replayed. It waits as durable does; where it was given up, it is not done, and
// tidy does it.
func (j *journal) sweep(ctx context.Context, began int64) (again, done bool) {
	f := j.file
	if f == nil {
		return false, true
	}
	if !f.turn(ctx, began) {
		signal(f.unswept)
		return false, false
	}
	defer func() { <-f.sweeping }()
	f.mu.Lock()
	gone, last, staged := f.mu.leaving, f.mu.last, f.mu.staged
	f.mu.leaving, f.mu.staged = nil, false
	f.mu.Unlock()
	if !staged {
		return false, true
	}
	if j.durable(ctx, began, last) != nil { // they were staged in this order
		f.mu.Lock()
		f.mu.leaving, f.mu.staged = append(gone, f.mu.leaving...), true
		f.mu.Unlock()
		signal(f.unswept)
		return false, false
	}
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
	return again, true
}

// turn waits for the sweep that is under way.
func (f *journalFile) turn(ctx context.Context, began int64) bool {
	select {
	case f.sweeping <- struct{}{}:
		return true
	default:
	}
	t := time.NewTimer(f.patience(began))
	defer t.Stop()
	select {
	case f.sweeping <- struct{}{}:
		return true
	case <-t.C:
	case <-ctx.Done():
	}
	return false
}

// tidy does the sweeps that callers gave up, and calls again where something must be
// replayed once more. It ends with ctx.
func (j *journal) tidy(ctx context.Context, again func()) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-j.file.unswept:
		}
		if more, _ := j.swept(ctx); more {
			again()
		}
	}
}

// keep looks at the directory once each fileRetry, for it may be removed or changed from
// outside, and writes the file anew when most of it is out of date, or when it does not
// have everything. It blocks on the disk. It ends when stop is closed.
func (j *journal) keep(stop <-chan struct{}) {
	f := j.file
	tick := time.NewTicker(fileRetry)
	defer tick.Stop()
	for {
		// Who removes or restores a directory may be in the middle of it.
		ok := f.log.Check() == nil
		if ok && (f.log.NeedsCompaction(j.live()) || f.doubted.Load() != nil) {
			ok = j.rewrite()
		}
		kick := f.kick
		if !ok {
			kick = nil // not before the next tick, for all that is written meanwhile
		}
		select {
		case <-stop:
			return
		case <-kick:
		case <-tick.C:
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
	_ = j.file.log.Check() // which err tells, too
	if j.err() != nil {
		j.rewrite() // the disk may take it by now
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
	if err := j.file.doubted.Load(); err != nil {
		return fmt.Errorf("holdfast: the journal's file: it may be out of date, and could not be written anew: %w", *err)
	}
	return nil
}
