package wal

import (
	"context"
	"fmt"
	"runtime/pprof"
	"sync"
	"time"
)

// batch is records that are written together, and those who wait for that. It is
// filled while the batch before it is being written; the first of its callers to
// find nobody writing writes it for all.
type batch struct {
	changed sync.Cond // it is done, or it is its turn
	buf     []byte
	done    bool
	err     error
	written chan struct{} // closed when it is done; nil where nobody asked for it
}

// Pending is a record that has its place in the log, and may not be written yet.
type Pending struct {
	log   *Log
	batch *batch // nil if it will not be written
	err   error
}

// Put keeps a payload under a key, in place of what was kept before. It returns
// when the record is as durable as the policy says, and blocks for as long as the
// disk takes: Options.Sync tells. It copies what it is given.
//
// seq orders the records of one key: a lower one does not win over a higher one, of
// equal ones the later wins. Callers that write the records of a key in their order
// may pass 0. A Compact forgets the numbers of keys that were dropped: a Put that
// is later than that, with a number from before the Drop, would count. Stage under
// the lock that gives the numbers is never that late.
//
// After an error the record may or may not be there at the next Open. The error is
// ErrClosed, ErrTooLarge, or what Err returns.
func (l *Log) Put(key string, seq uint64, payload []byte) error {
	return l.Stage(key, seq, payload).Wait()
}

// Drop ends the life of a key, unless a Put has a higher number. Else it is like
// Put.
func (l *Log) Drop(key string, seq uint64) error {
	return l.StageDrop(key, seq).Wait()
}

// Stage is the first half of Put: it gives the record its place, behind all that
// was staged before it, and does not block, so that it can be called under a lock
// that orders the writes of a key. The record is written by the next Wait or Start, of
// whomever, or by Close. Whoever stages and never waits lets memory grow.
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

// Wait is the second half of Put: it returns when the record is durable. It may be
// called more than once.
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
	// Nobody writes, so b has not been taken: it is what is being filled.
	l.beginLocked()
	l.mu.Unlock()

	err := l.write(b)
	l.release(b, err)
	return err
}

// Start is Wait for those who cannot wait for ever. It has a goroutine write what is
// staged, one for all callers, and returns a channel that is closed when the record is
// durable, or will not be written; Wait returns at once then. It does not block.
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

// spawn runs a goroutine that Close waits for, under a name that a goroutine profile
// shows. Once the Log is closed nobody may call it.
func (l *Log) spawn(name string, f func()) {
	l.workers.Go(func() {
		pprof.Do(context.Background(), pprof.Labels("holdfast", name), func(context.Context) { f() })
	})
}

// writeStaged writes until nothing is staged any more.
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

// Late is for a caller that has waited for the disk for as long as it may: a disk that
// stands still keeps whoever has called it. From then on Err returns the cause. What is
// staged meanwhile is nobody's to wait for, and counts as written when the disk goes on
// and has it. Where that takes longer than lateGrace, or lateBytes have gathered, the Log
// is suspended: everything that waits is done, not written, nothing is staged until a
// Compact has begun, and the marker is removed where that can be done, for what is in the
// files may be out of date. Late does not block.
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
	// lateGrace is longer than most fsyncs of a busy disk: to write everything anew, as
	// must be done after it, costs it more.
	lateGrace = time.Second
	lateBytes = 1 << 20
)

// lateness is the time between the first caller's giving up and the disk's catching up.
type lateness struct {
	err   error
	timer *time.Timer
	over  bool   // the disk goes on: callers wait for it again
	tail  *batch // then: the last of which not all have waited
}

// Hangs says whether callers should not wait, because one has done so in vain and the
// disk has not gone on since. It does not block.
func (l *Log) Hangs() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.late != nil && !l.mu.late.over
}

// caughtUpLocked notes the end of a turn in which this batch was written. The caller
// holds the mutex.
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

// suspendLocked ends writing until Compact, though somebody has the turn. The caller
// holds the mutex.
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
	// The marker belongs to who has the turn, and that one hangs. A second removal, by
	// the Compact to come, does no harm; it waits for this one.
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

// Busy returns for how long the present turn has been going on, 0 where nobody has it:
// what a disk that stands still takes. It does not block.
func (l *Log) Busy() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.mu.busy {
		return 0
	}
	return time.Since(l.mu.begun)
}

// beginLocked gives the turn to the caller, who holds the mutex.
func (l *Log) beginLocked() *batch {
	b := l.mu.filling
	l.mu.busy, l.mu.begun = true, time.Now()
	l.mu.filling, l.mu.writing = nil, b
	return b
}

func notDurable(cause error) error { return fmt.Errorf("wal: not durable: %w", cause) }

// settleLocked tells those who wait for a batch what became of it. The caller holds the
// mutex.
func (l *Log) settleLocked(b *batch, err error) {
	if b.done {
		return // of a batch that was given up
	}
	b.done, b.err = true, err
	b.changed.Broadcast()
	if b.written != nil {
		close(b.written)
	}
}

// acquire waits for the turn, and takes what has been staged.
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

// Of the buffers of batches two are kept for others, one to be filled while the
// other is written, unless they are larger than spareBytes.
const (
	maxSpares  = 2
	spareBytes = 1 << 20
)

// release ends a turn and lets the next begin. The batch, if there is one, is done.
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

// write puts a batch into the active segment. Whoever calls it has the turn.
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
		// The next Open would take the whole records of it for good ones, though after
		// a failed fsync they may be nowhere but in memory. If this fails as well, the
		// segment that follows still tells where this one ends.
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
