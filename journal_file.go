package holdfast

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/keyhash"
	"github.com/holdfast-cache/holdfast/internal/wal"
)

// journalFile is the journal's copy in Journal.Dir. A change is staged under the lock of
// the key's shard, right after the change in memory, so both have the same order. Callers
// wait for the disk without that lock.
type journalFile struct {
	log     *wal.Log
	clock   clock.Clock
	timeout time.Duration // Options.Timeout; see patience
	kick    chan struct{} // the keeper may have something to do

	// before is set by tests only, and is called before each access to the disk.
	before atomic.Pointer[func(op string)]

	sweeping chan struct{} // holds a token while a sweep runs
	unswept  chan struct{} // a caller gave up a sweep

	// doubted is the error of rewriting files that may be out of date; nil where they were
	// rewritten, or need not be.
	doubted atomic.Pointer[error]
	mu      struct {
		sync.Mutex
		leaving []leaving
		last    saving // the last change
		staged  bool   // a change was staged since the last sweep
	}
}

// saving is a change on its way to the file; the zero value is none. When it is written, so
// are all changes before it.
type saving struct {
	wal.Pending
	leaves bool // an intent is resolved, and leaves with a sweep
}

// or returns the later of the two changes, or the one that there is.
func (s saving) or(next saving) saving {
	if next == (saving{}) {
		return s
	}
	next.leaves = next.leaves || s.leaves
	return next
}

// leaving is a resolved intent whose drop record may not be in the file yet.
type leaving struct {
	shard *journalShard
	key   string
	in    *intent
}

const (
	// fileRetry is the pause between two tries to rewrite the files on a failing disk.
	fileRetry = time.Second
	// recordOverhead is the approximate size of a record without key and value, in bytes.
	recordOverhead = 128
	// recordMost is the largest size of a record, in bytes.
	recordMost = 1 << 30
)

// restored is the result of opening Journal.Dir.
type restored struct {
	report     wal.Report
	keys       int
	downgraded int    // sets that became deletes
	doubt      string // why the files may be out of date; "" where they are not
}

// open locks the directory and takes over the intents that an earlier process left in it.
// Their keys are journaled from then on, so none of them is read from Redis before its
// replay. open must be called before any other method. It blocks on the disk.
func (j *journal) open(o JournalOptions, timeout time.Duration, c clock.Clock, hash func(string) keyhash.Hash, logf func(string, ...any)) (restored, error) {
	policy := [...]wal.SyncPolicy{
		FsyncNo: wal.SyncNone, FsyncEverySecond: wal.SyncInterval, FsyncAlways: wal.SyncAlways,
	}[o.Fsync]
	f := &journalFile{
		clock: c, timeout: timeout, kick: make(chan struct{}, 1),
		sweeping: make(chan struct{}, 1), unswept: make(chan struct{}, 1),
	}
	now, unknown, newer := c.Now(), 0, byte(0)
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
	_ = last.Wait() // else the next process would find sets; the keeper handles errors
	return r, nil
}

// rewrite writes the files anew, which ends the doubt about the old ones. open calls it
// before the journal accepts a write, which the next process would doubt as well. rewrite
// reports whether the files are complete now. It blocks on the disk.
func (j *journal) rewrite() bool {
	err := j.file.log.Compact(j.each)
	if err == nil {
		j.file.doubted.Store(nil)
		return j.file.log.Err() == nil
	}
	j.file.doubted.Store(&err)
	return false
}

// restore takes over an intent, even beyond the bounds: it was accepted once (law 6).
func (j *journal) restore(sh *journalShard, key string, in *intent) {
	sh.intents[key] = in
	j.keys.Add(1)
	j.bytes.Add(int64(len(key) + len(in.value)))
	if in.checkAt == 0 {
		j.queued.Add(1)
	}
}

// downgradeAll turns the chosen sets into deletes: either a later write of the key may be
// missing in the files, or there is no room for the value. It returns their number and the
// last change.
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

// saveLocked stages the intent, as it is now, for the file. The caller holds the shard's
// lock. After releasing it, the caller waits with durable, or leaves the wait to a sweep.
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

// unnumbered is the sequence number of every record. Records need no number, because they
// are staged in order, under the lock of the key's shard.
const unnumbered = 0

// encode returns the intent as the next process must know it if this one dies now. So a
// write that a replay is sending counts as unanswered. The caller holds the shard's lock.
func (f *journalFile) encode(sh *journalShard, key string, in *intent) []byte {
	now, wall := f.clock.Now(), time.Now().UnixNano()
	if s, ok := sh.sent[in]; ok {
		known := *in
		known.possibleLateWrites.sums = slices.Clone(in.possibleLateWrites.sums)
		known.possibleLateWrites.unanswered(earlierProcess, s.value, s.del, s.deadline)
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

// durable returns when the change is in the file, as Journal.Fsync defines it. Where the
// disk fails, or does not answer within patience(began), the change is in memory only,
// Health.JournalError says so, and durable returns nil. After one call has waited in vain,
// no call waits until the disk answers again. The only error is that of ctx.
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

// await waits for the disk, for at most patience(began). done is false if that was in vain;
// err is that of ctx, or nil.
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

// patience is how long a call that began at this time waits for the disk: for the rest of
// its timeout, but for at least half a timeout. So a call that spent its time on Redis
// still gives a healthy disk the time to write.
func (f *journalFile) patience(began int64) time.Duration {
	return max(f.timeout-time.Duration(f.clock.Now()-began), f.timeout/2)
}

// live is the approximate size of the records of all intents, in bytes.
func (j *journal) live() int64 { return j.bytes.Load() + recordOverhead*j.keys.Load() }

func (f *journalFile) wake() { signal(f.kick) }

// signal sends on a channel with room for one element. It does not block.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// forget stages the drop record of the intent. The caller holds the shard's lock.
func (f *journalFile) forget(sh *journalShard, key string, in *intent) saving {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mu.leaving = append(f.mu.leaving, leaving{sh, key, in})
	f.mu.last = saving{f.log.StageDrop(key, unnumbered), true}
	f.mu.staged = true
	return f.mu.last
}

// swept repeats sweep until one is complete or ctx ends.
func (j *journal) swept(ctx context.Context) (again bool, err error) {
	for j.file != nil {
		more, done := j.sweep(ctx, j.file.clock.Now())
		if again = again || more; done {
			break
		}
		if err := ctx.Err(); err != nil {
			return again, err
		}
	}
	return again, nil
}

// sweep deletes resolved intents from memory after their drop records are in the file. When
// it is done, the file has all that the journal had when sweep was called, or JournalError
// says that it has not. again reports that some of the intents were written again
// meanwhile, and must be replayed. sweep waits for the disk, and for another sweep, each as
// long as durable. If it gives up, done is false, and tidy sweeps later.
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
	if j.durable(ctx, began, last) != nil { // last is the latest: changes are staged in order
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

// turn waits for the sweep that is running, for at most patience(began).
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

// tidy repeats the sweeps that callers gave up, and calls again if intents must be replayed
// once more. It blocks until ctx ends.
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

// keep checks the directory every fileRetry and when it is woken, because the directory may
// be removed or changed from outside. It rewrites the files when they are mostly out of date
// or incomplete. It blocks on the disk, and returns after stop is closed.
func (j *journal) keep(stop <-chan struct{}) {
	f := j.file
	tick := time.NewTicker(fileRetry)
	defer tick.Stop()
	for {
		// If it fails, another program may still be removing or restoring the directory.
		ok := f.log.Check() == nil
		if ok && (f.log.NeedsCompaction(j.live()) || f.doubted.Load() != nil) {
			ok = j.rewrite()
		}
		kick := f.kick
		if !ok {
			kick = nil // wait for the next tick, however much is written meanwhile
		}
		select {
		case <-stop:
			return
		case <-kick:
		case <-tick.C:
		}
	}
}

// each yields the records that the file is to hold. It copies one shard at a time, so that
// no lock is held during the writing.
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

// close writes the rest to the disk, or returns why it could not. It blocks on the disk.
func (j *journal) close() error {
	if j.file == nil {
		return nil
	}
	_ = j.file.log.Check() // err returns it, too
	if j.err() != nil {
		j.rewrite() // the disk may be healthy again
	}
	return j.file.log.Close()
}

// err returns why the file is incomplete, or nil if it is complete or there is no file.
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
