package wal

import (
	"context"
	"fmt"
	"runtime/pprof"
	"sync"
	"time"
)

// batch is a group of records that are written together, with the callers that wait for
// them. It is filled while the previous batch is being written. The first of its callers
// that finds no write in progress writes it for all.
type batch struct {
	changed sync.Cond // done was set, or a waiter of this batch may write it
	buf     []byte
	done    bool
	err     error
	written chan struct{} // closed when done is set; nil until Start is called
}

// Pending is a record that has its place in the log, and may not be written yet.
type Pending struct {
	log   *Log
	batch *batch // nil if it will not be written
	err   error
}

// Put stores a payload under a key and replaces the previous one. It copies the payload.
// It returns when the record is as durable as Options.Sync says, and blocks for as long
// as the disk takes, without a bound; see Start for one.
//
// seq orders the records of one key: a lower number does not win over a higher one, and
// of equal numbers the later record wins. Callers that write the records of a key in
// their order may pass 0. A Compact forgets the numbers of dropped keys. So a Put with a
// number from before the Drop would win if it came after such a Compact. Stage, called
// under the lock that assigns the numbers, is never that late.
//
// After an error the record may or may not be there at the next Open. The error is
// ErrClosed, ErrTooLarge, or the result of Err.
func (l *Log) Put(key string, seq uint64, payload []byte) error {
	return l.Stage(key, seq, payload).Wait()
}

// Drop removes a key, unless a Put has a higher number. Blocking and errors are as for
// Put.
func (l *Log) Drop(key string, seq uint64) error {
	return l.StageDrop(key, seq).Wait()
}

// Stage is the first half of Put: it gives the record its place, behind all records
// staged before. It does not block on the disk, so it can be called under a lock that
// orders the writes of a key. The record is written by the next Wait or Start of any
// caller, or by Close. Without a Wait or Start, staged records pile up in memory.
func (l *Log) Stage(key string, seq uint64, payload []byte) Pending {
	return l.stage(putRecord, key, seq, payload)
}

// StageDrop is the first half of Drop.
func (l *Log) StageDrop(key string, seq uint64) Pending {
	return l.stage(dropRecord, key, seq, nil)
}

func (l *Log) stage(typ recordType, key string, seq uint64, payload []byte) Pending {
	if RecordSize(len(key), len(payload)) > l.largest {
		return Pending{err: ErrTooLarge}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.mu.closed:
		return Pending{err: ErrClosed}
	case l.mu.stopped:
		return Pending{err: l.mu.err}
	}
	b := l.mu.filling
	if b == nil {
		b = &batch{}
		b.changed.L = &l.mu
		if n := len(l.mu.spares); n > 0 {
			b.buf, l.mu.spares = l.mu.spares[n-1][:0], l.mu.spares[:n-1]
		}
		l.mu.filling = b
	}
	b.buf = appendRecord(b.buf, typ, seq, key, payload)
	if l.mu.late != nil && !l.mu.late.over && len(b.buf) > lateBytes {
		l.suspendLocked()
	}
	return Pending{log: l, batch: b}
}

// Wait is the second half of Put: it returns when the record is durable. It may be called
// more than once.
func (p Pending) Wait() error {
	l, b := p.log, p.batch
	if b == nil {
		return p.err
	}
	l.mu.Lock()
	for !b.done && (l.mu.busy || l.mu.wanted > 0) {
		b.changed.Wait()
	}
	if b.done {
		l.mu.Unlock()
		return b.err
	}
	// There is no write in progress, so b was not taken: it is the batch being filled.
	l.beginLocked()
	l.mu.Unlock()

	err := l.write(b)
	l.release(b, err)
	return err
}

// Start is Wait for callers with a time limit. It has a goroutine, one for all callers,
// write the staged records. The returned channel is closed when the record is durable or
// will not be written; then Wait returns at once. Start does not block.
func (p Pending) Start() <-chan struct{} {
	l, b := p.log, p.batch
	if b == nil {
		done := make(chan struct{})
		close(done)
		return done
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if b.written == nil {
		b.written = make(chan struct{})
		if b.done {
			close(b.written)
		}
	}
	if !b.done && !l.mu.writer && !l.mu.closed {
		l.mu.writer = true
		l.spawn("wal writer", l.writeStaged)
	}
	return b.written
}

// spawn runs a goroutine that Close waits for. The name appears in goroutine profiles. It
// must not be called once the Log is closed.
func (l *Log) spawn(name string, f func()) {
	l.workers.Go(func() {
		pprof.Do(context.Background(), pprof.Labels("holdfast", name), func(context.Context) { f() })
	})
}

// writeStaged writes batches until no record is staged.
func (l *Log) writeStaged() {
	for more := true; more; {
		b := l.acquire()
		l.release(b, l.write(b))
		l.mu.Lock()
		more = l.mu.filling != nil
		l.mu.writer = more
		l.mu.Unlock()
	}
}

// Late reports that a caller has waited for the disk for as long as it may. A stalled
// disk does not return from the call that is in progress. From then on Err returns the
// cause. Callers need not wait for records staged meanwhile; these count as written if
// the disk resumes and has them. If that takes longer than lateGrace, or lateBytes have
// been staged, the Log is suspended: all waiting batches end with the error, nothing is
// staged until a Compact has begun, and the marker is removed if that is possible,
// because the files may be out of date. Late does not block.
func (l *Log) Late(cause error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mu.stopped || l.mu.closed || l.mu.late != nil || !l.mu.busy && l.mu.filling == nil {
		return
	}
	late := &lateness{err: notDurable(cause)}
	late.timer = time.AfterFunc(lateGrace, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.mu.late == late {
			l.suspendLocked()
		}
	})
	l.mu.late = late
}

const (
	// lateGrace is longer than most fsyncs of a busy disk. Writing everything anew, which
	// is necessary after it, costs the disk more.
	lateGrace = time.Second
	lateBytes = 1 << 20
)

// lateness is the time from the first Late call until the disk has caught up.
type lateness struct {
	err   error
	timer *time.Timer
	over  bool   // the disk has resumed: callers wait for it again
	tail  *batch // set with over: the last batch that some callers did not wait for
}

// Hangs reports whether callers should not wait for the disk, because one has called Late
// and the disk has not resumed since. It does not block.
func (l *Log) Hangs() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.late != nil && !l.mu.late.over
}

// caughtUpLocked records that a turn in which this batch was written has ended. The
// caller holds the mutex.
func (l *Log) caughtUpLocked(b *batch) {
	late := l.mu.late
	if late == nil {
		return
	}
	if !late.over {
		late.over, late.tail = true, l.mu.filling
	} else if b != late.tail {
		return
	}
	if late.tail == nil || late.tail == b {
		late.timer.Stop()
		l.mu.late = nil
	}
}

// suspendLocked stops writing until Compact, although another goroutine holds the write
// turn. The caller holds the mutex.
func (l *Log) suspendLocked() {
	late := l.mu.late
	l.mu.late = nil
	late.timer.Stop()
	if l.mu.stopped || l.mu.closed {
		return
	}
	if l.mu.err == nil {
		l.mu.err = late.err
	}
	err := l.mu.err
	l.mu.stopped, l.mu.suspended = true, true
	l.mu.failures++
	for _, b := range []*batch{l.mu.filling, l.mu.writing} {
		if b != nil {
			l.settleLocked(b, err)
		}
	}
	l.mu.filling = nil
	// Only the holder of the write turn may change the marker, and that goroutine is
	// stalled. A second removal, by the next Compact, does no harm; it waits for this
	// one.
	warned := make(chan struct{})
	l.mu.warned = warned
	l.spawn("wal warning", func() {
		defer close(warned)
		l.opts.Logf("%v", err)
		if err := l.removeMarker(); err != nil {
			l.opts.Logf("wal: %s could not be removed: the next Open may take what is out of date for the latest: %v", markerName, err)
		}
	})
}

// Busy returns the duration of the current write turn, or 0 if there is none. A long one
// means a stalled disk. It does not block.
func (l *Log) Busy() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.mu.busy {
		return 0
	}
	return time.Since(l.mu.begun)
}

// beginLocked gives the write turn to the caller, which holds the mutex.
func (l *Log) beginLocked() *batch {
	b := l.mu.filling
	l.mu.busy, l.mu.begun = true, time.Now()
	l.mu.filling, l.mu.writing = nil, b
	return b
}

func notDurable(cause error) error { return fmt.Errorf("wal: not durable: %w", cause) }

// settleLocked passes the result of a batch to its waiters. The caller holds the mutex.
func (l *Log) settleLocked(b *batch, err error) {
	if b.done {
		return // the batch was given up by suspendLocked
	}
	b.done, b.err = true, err
	b.changed.Broadcast()
	if b.written != nil {
		close(b.written)
	}
}

// acquire waits for the write turn and takes the staged batch, nil if there is none.
func (l *Log) acquire() *batch {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.wanted++
	for l.mu.busy {
		l.mu.yielded.Wait()
	}
	l.mu.wanted--
	return l.beginLocked()
}

// maxSpares buffers of batches are kept for reuse, one to be filled while the other is
// written. Buffers larger than spareBytes are not kept.
const (
	maxSpares  = 2
	spareBytes = 1 << 20
)

// release ends a write turn and lets the next begin. b, if not nil, gets its result.
func (l *Log) release(b *batch, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.busy, l.mu.writing = false, nil
	if b != nil {
		if cap(b.buf) <= spareBytes && len(l.mu.spares) < maxSpares {
			l.mu.spares = append(l.mu.spares, b.buf)
		}
		b.buf = nil
		l.settleLocked(b, err)
	}
	l.caughtUpLocked(b)
	switch {
	case l.mu.wanted > 0:
		l.mu.yielded.Signal()
	case l.mu.filling != nil:
		l.mu.filling.changed.Signal()
	}
}

// write appends a batch to the active segment. The caller holds the write turn.
func (l *Log) write(b *batch) error {
	if b == nil {
		return nil
	}
	l.mu.Lock()
	stopped, err := l.mu.stopped, l.mu.err
	l.mu.Unlock()
	if stopped {
		return err
	}
	if err := l.makeRoom(int64(len(b.buf))); err != nil {
		return l.fail(err)
	}
	a := l.files.active
	err = writeAll(a.file, b.buf)
	if err == nil && l.opts.Sync == SyncAlways {
		err = a.file.Sync()
	}
	if err != nil {
		// The next Open would take its complete records for good ones, though after a
		// failed fsync they may exist in memory only. If Truncate fails as well, the
		// header of the next segment still says where this one ends.
		a.file.Truncate(a.size)
		l.abandon(l.opts.Sync != SyncAlways)
		return l.fail(err)
	}
	a.size += int64(len(b.buf))
	a.unsynced.Store(l.opts.Sync != SyncAlways)
	l.mu.Lock()
	l.mu.bytes += int64(len(b.buf))
	l.mu.Unlock()
	return nil
}
