package wal

import "sync"

// batch is records that are written together, and those who wait for that. It is
// filled while the batch before it is being written; the first of its callers to
// find nobody writing writes it for all.
type batch struct {
	changed sync.Cond // it is done, or it is its turn
	buf     []byte
	done    bool
	err     error
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
// that orders the writes of a key. The record is written by the next Wait, of
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
	l.mu.busy = true
	l.mu.filling = nil
	l.mu.Unlock()

	err := l.write(b)
	l.release(b, err)
	return err
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
	l.mu.busy = true
	b := l.mu.filling
	l.mu.filling = nil
	return b
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
	l.mu.busy = false
	if b != nil {
		if cap(b.buf) <= spareBytes && len(l.mu.spares) < maxSpares {
			l.mu.spares = append(l.mu.spares, b.buf)
		}
		b.buf, b.done, b.err = nil, true, err
		b.changed.Broadcast()
	}
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
