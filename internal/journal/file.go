package journal

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

// file is the journal's copy in Journal.Dir. A change is staged under the lock of
// the key's shard, right after the change in memory, so both have the same order. Callers
// wait for the disk without that lock.
type file struct {
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
		last    Saving // the last change
		staged  bool   // a change was staged since the last sweep
	}
}

// HasFile reports whether the journal has a file. Without one it is in memory only.
func (j *Journal) HasFile() bool { return j.file != nil }

// Saving is a change on its way to the file; the zero value is none. When it is written, so
// are all changes before it.
type Saving struct {
	wal.Pending
	Leaves bool // an intent is resolved, and leaves with a sweep
}

// Or returns the later of the two changes, or the one that there is.
func (s Saving) Or(next Saving) Saving {
	if next == (Saving{}) {
		return s
	}
	next.Leaves = next.Leaves || s.Leaves
	return next
}

// leaving is a resolved intent whose drop record may not be in the file yet.
type leaving struct {
	shard *shard
	key   string
	in    *Intent
}

const (
	// fileRetry is the pause between two tries to rewrite the files on a failing disk.
	fileRetry = time.Second
	// recordOverhead is the approximate size of a record without key and value, in bytes.
	recordOverhead = 128
	// recordMost is the largest size of a record, in bytes.
	recordMost = 1 << 30
)

// Restored is the result of opening Journal.Dir.
type Restored struct {
	Report     wal.Report
	Keys       int
	Downgraded int    // sets that became deletes
	Doubt      string // why the files may be out of date; "" where they are not
}

// Open locks the directory and takes over the intents that an earlier process left in it.
// Their keys are journaled from then on, so none of them is read from Redis before its
// replay. open must be called before any other method. It blocks on the disk.
func (j *Journal) Open(o Config, timeout time.Duration, c clock.Clock, hash func(string) keyhash.Hash, logf func(string, ...any)) (Restored, error) {
	f := &file{
		clock: c, timeout: timeout, kick: make(chan struct{}, 1),
		sweeping: make(chan struct{}, 1), unswept: make(chan struct{}, 1),
	}
	now, unknown, newer := c.Now(), 0, byte(0)
	access := func(op string) {
		if before := f.before.Load(); before != nil {
			(*before)(op)
		}
	}
	log, report, err := wal.Open(o.Dir, wal.Options{Sync: o.Fsync, Logf: logf, Before: access}, func(key string, payload []byte) {
		in, ok := decodeIntent(payload, now, time.Now().UnixNano())
		if !ok {
			unknown++
			newer = max(newer, newerIntent(payload))
		}
		j.restore(j.shard(hash(key)), key, in)
	})
	if err != nil {
		return Restored{}, err
	}
	if newer > 0 {
		err := fmt.Errorf("%s holds records of format %d, and this version knows none above %d: a newer one has written them", o.Dir, newer, intentFormat)
		return Restored{}, errors.Join(err, log.Close())
	}
	f.log, j.file = log, f
	r := Restored{Report: report, Keys: int(j.Keys.Load())}
	var last Saving
	if r.Doubt = report.Doubt; r.Doubt == "" && unknown > 0 {
		r.Doubt = fmt.Sprintf("%d records cannot be read", unknown)
	}
	if r.Doubt != "" {
		r.Downgraded, _ = j.downgradeAll(func(*Intent) bool { return true })
		j.rewrite()
		return r, nil
	}
	r.Downgraded, last = j.downgradeAll(func(*Intent) bool { return j.Bytes.Load() > j.maxBytes })
	_ = last.Wait() // else the next process would find sets; the keeper handles errors
	return r, nil
}

// rewrite writes the files anew, which ends the doubt about the old ones. open calls it
// before the journal accepts a write, which the next process would doubt as well. rewrite
// reports whether the files are complete now. It blocks on the disk.
func (j *Journal) rewrite() bool {
	err := j.file.log.Compact(j.each)
	if err == nil {
		j.file.doubted.Store(nil)
		return j.file.log.Err() == nil
	}
	j.file.doubted.Store(&err)
	return false
}

// restore takes over an intent, even beyond the bounds: it was accepted once (law 6).
func (j *Journal) restore(sh *shard, key string, in *Intent) {
	sh.intents[key] = in
	j.Keys.Add(1)
	j.Bytes.Add(int64(len(key) + len(in.Value)))
	if in.checkAt == toReplay {
		j.Queued.Add(1)
	}
}

// downgradeAll turns the chosen sets into deletes: either a later write of the key may be
// missing in the files, or there is no room for the value. It returns their number and the
// last change.
func (j *Journal) downgradeAll(which func(*Intent) bool) (n int, last Saving) {
	for i := range j.shards {
		for key, in := range j.shards[i].intents {
			if in.Del || !which(in) {
				continue
			}
			n++
			j.Bytes.Add(-int64(len(in.Value)))
			in.Value, in.Del = nil, true
			last = j.saveLocked(&j.shards[i], key, in)
			j.Downgraded(key)
		}
	}
	return n, last
}

// saveLocked stages the intent, as it is now, for the file. The caller holds the shard's
// lock. After releasing it, the caller waits with durable, or leaves the wait to a sweep.
func (j *Journal) saveLocked(sh *shard, key string, in *Intent) Saving {
	in.done = false
	f := j.file
	if f == nil {
		return Saving{}
	}
	record := f.encode(sh, key, in)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mu.staged = true
	f.mu.last = Saving{f.log.Stage(key, unnumbered, record), false}
	return f.mu.last
}

// unnumbered is the sequence number of every record. Records need no number, because they
// are staged in order, under the lock of the key's shard.
const unnumbered = 0

// encode returns the intent as the next process must know it if this one dies now. So a
// write that a replay is sending counts as unanswered. The caller holds the shard's lock.
func (f *file) encode(sh *shard, key string, in *Intent) []byte {
	now, wall := f.clock.Now(), time.Now().UnixNano()
	if s, ok := sh.sent[in]; ok {
		known := *in
		known.PossibleLateWrites.Sums = slices.Clone(in.PossibleLateWrites.Sums)
		known.PossibleLateWrites.unanswered(EarlierProcess, s.value, s.del, s.deadline)
		in = &known
	}
	payload := in.encode(now, wall)
	if wal.RecordSize(len(key), len(payload)) > recordMost {
		del := *in
		del.Value, del.Del = nil, true
		payload = del.encode(now, wall)
	}
	return payload
}

// Durable returns when the change is in the file, as Journal.Fsync defines it. Where the
// disk fails, or does not answer within patience(began), the change is in memory only,
// Health.JournalError says so, and durable returns nil. After one call has waited in vain,
// no call waits until the disk answers again. The only error is that of ctx.
func (j *Journal) Durable(ctx context.Context, began int64, p Saving) error {
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
func (f *file) await(ctx context.Context, began int64, written <-chan struct{}) (done bool, err error) {
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
func (f *file) patience(began int64) time.Duration {
	return max(f.timeout-time.Duration(f.clock.Now()-began), f.timeout/2)
}

// live is the approximate size of the records of all intents, in bytes.
func (j *Journal) live() int64 { return j.Bytes.Load() + recordOverhead*j.Keys.Load() }

func (f *file) wake() { signal(f.kick) }

// signal sends on a channel with room for one element. It does not block.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// forget stages the drop record of the intent. The caller holds the shard's lock.
func (f *file) forget(sh *shard, key string, in *Intent) Saving {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mu.leaving = append(f.mu.leaving, leaving{sh, key, in})
	f.mu.last = Saving{f.log.StageDrop(key, unnumbered), true}
	f.mu.staged = true
	return f.mu.last
}

// Swept repeats sweep until one is complete or ctx ends.
func (j *Journal) Swept(ctx context.Context) (again bool, err error) {
	for j.file != nil {
		more, done := j.Sweep(ctx, j.file.clock.Now())
		if again = again || more; done {
			break
		}
		if err := ctx.Err(); err != nil {
			return again, err
		}
	}
	return again, nil
}

// Sweep deletes resolved intents from memory after their drop records are in the file. When
// it is done, the file has all that the journal had when Sweep was called, or JournalError
// says that it has not. again reports that some of the intents were written again meanwhile,
// and must be replayed. Sweep waits for the disk, and for another sweep, each as long as
// Durable. If it gives up, done is false, and Tidy sweeps later.
func (j *Journal) Sweep(ctx context.Context, began int64) (again, done bool) {
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
	if j.Durable(ctx, began, last) != nil { // last is the latest: changes are staged in order
		f.mu.Lock()
		f.mu.leaving, f.mu.staged = append(gone, f.mu.leaving...), true
		f.mu.Unlock()
		signal(f.unswept)
		return false, false
	}
	defer j.Announce()
	for _, l := range gone {
		l.shard.mu.Lock()
		l.in.sending = false
		if l.in.done {
			j.dropLocked(l.shard, l.key, l.in)
		} else {
			again = true
		}
		l.shard.wakeLocked(l.key)
		l.shard.mu.Unlock()
	}
	return again, true
}

// turn waits for the sweep that is running, for at most patience(began).
func (f *file) turn(ctx context.Context, began int64) bool {
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

// Tidy repeats the sweeps that callers gave up, and calls again if intents must be replayed
// once more. It blocks until ctx ends.
func (j *Journal) Tidy(ctx context.Context, again func()) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-j.file.unswept:
		}
		if more, _ := j.Swept(ctx); more {
			again()
		}
	}
}

// Keep checks the directory every fileRetry and when it is woken, because the directory may
// be removed or changed from outside. It rewrites the files when they are mostly out of date
// or incomplete. It blocks on the disk, and returns after stop is closed.
func (j *Journal) Keep(stop <-chan struct{}) {
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
func (j *Journal) each(yield func(key string, seq uint64, payload []byte) bool) {
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

// Close writes the rest to the disk, or returns why it could not. It blocks on the disk.
func (j *Journal) Close() error {
	if j.file == nil {
		return nil
	}
	_ = j.file.log.Check() // err returns it, too
	if j.Err() != nil {
		j.rewrite() // the disk may be healthy again
	}
	return j.file.log.Close()
}

// Err returns why the file is incomplete, or nil if it is complete or there is no file.
func (j *Journal) Err() error {
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
