package wal

import (
	"fmt"
	"slices"
	"sync"
	"time"
)

// Log is a map that survives its process; see the package documentation.
//
// A Log is safe for concurrent use. It has at most three goroutines. They end by
// themselves or with Close, which waits for them.
type Log struct {
	fs   fileSystem
	opts Options
	run  uint64
	boot string   // identifies the boot of the machine; empty if unknown
	lock *dirLock // nil in a test

	largest int64 // largest record; maxBody, less in a test

	mu struct {
		sync.Mutex

		// The write turn: one goroutine at a time writes, without the mutex. Goroutines
		// that need the turn for another purpose than a batch come first.
		busy    bool
		begun   time.Time // when the turn began
		wanted  int
		yielded sync.Cond

		filling *batch   // the batch to be written next
		writing *batch   // the batch being written
		writer  bool     // the goroutine of Start is running
		spares  [][]byte // buffers for later batches

		err       error         // why not everything is durable; nil if it is
		stopped   bool          // nothing is written until Compact
		late      *lateness     // set while the disk has not answered for too long
		suspended bool          // stopped by a stalled disk: the marker must be removed
		warned    chan struct{} // closed when the goroutine that suspendLocked started is done
		failures  uint64        // number of failed or skipped writes

		bytes   int64 // of all files
		files   int
		damaged int // of these files, the damaged ones still to be set aside

		closed bool
	}

	// files belongs to the holder of the write turn.
	files struct {
		lastID uint64
		active *active
		prev   link      // the log before the active one, or before the next one to be created
		old    []oldFile // all other files, in order
		limit  int64     // the size at which the active one is full
		names  bool      // names were changed since syncDir
		marker standing
	}

	compacting chan struct{} // holds a token while a Compact runs
	stop       chan struct{} // closed by Close
	workers    sync.WaitGroup

	closing struct {
		done chan struct{}
		err  error // read once done is closed
	}
}

// oldFile is a file that the next snapshot replaces.
type oldFile struct {
	name     string
	size     int64
	ends     int64 // where its valid part ends; 0 if not known
	damaged  bool  // to be set aside instead of removed
	unsynced bool
	unplaced bool // a snapshot whose name may not be on the disk: it has replaced nothing
}

// Open reads the directory, creates it (0700) if it does not exist, and locks it. It
// calls load once for every live key, in the order of the last records of the keys. load
// may keep the payload, and must not call the Log. load may be nil.
//
// Open blocks on the disk: it reads every file. If one is damaged, it also writes the
// recovered keys to a new file. It holds every live payload in memory until it returns.
//
// The error is *InUse if another Log has the directory open, *Newer if a newer version
// has written a file, and otherwise says why the directory cannot be used at all. Other
// file contents never make Open fail; the Report describes them.
func Open(dir string, o Options, load func(key string, payload []byte)) (*Log, Report, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, Report{}, err
	}
	if err := makeDir(dir); err != nil {
		return nil, Report{}, fmt.Errorf("wal: %w", err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, Report{}, err
	}
	opened := false
	defer func() {
		if !opened {
			lock.unlock() // also if load panics
		}
	}()
	var fs fileSystem = osDir(dir)
	if o.Before != nil {
		fs = pausing{fs, o.Before}
	}
	l, report, err := open(fs, o, load)
	if err != nil {
		return nil, report, err
	}
	l.lock = lock
	opened = true
	return l, report, nil
}

func open(fs fileSystem, o Options, load func(key string, payload []byte)) (*Log, Report, error) {
	r, err := replay(fs)
	if err != nil {
		return nil, Report{}, err
	}
	l := &Log{
		fs: fs, opts: o, largest: maxBody, boot: fs.boot(),
		compacting: make(chan struct{}, 1),
		stop:       make(chan struct{}),
	}
	l.mu.yielded.L = &l.mu
	l.closing.done = make(chan struct{})
	if r.marker.there {
		l.files.marker = stands
	}
	r.report.Doubt = r.doubt(l.boot)
	if r.report.Doubt != "" {
		l.distrust()
	}
	l.adopt(r)
	if r.report.Doubt == "" && l.Err() == nil {
		// Before anything is written: the marker must not say "closed" while there are
		// records that Close has not seen.
		if err := l.trust(false); err != nil {
			l.fail(err)
		}
	}

	live := r.live()
	r.report.Keys = len(live)
	if len(r.report.Damage) > 0 {
		l.repair(r.report.Damage, live)
	}
	if load != nil {
		for _, k := range live {
			load(k.key, k.payload)
		}
	}
	if o.Sync == SyncInterval {
		l.startSyncer()
	}
	return l, r.report, nil
}

// adopt takes over the files that were found.
func (l *Log) adopt(r *replayer) {
	for _, name := range r.others {
		l.remove(name)
	}
	for _, s := range r.segments {
		if s.id < maxID {
			l.files.lastID = max(l.files.lastID, s.id)
		}
		if s.unborn && l.remove(s.name()) {
			continue
		}
		ends := s.size
		switch {
		case s.unborn:
			ends = 0
		case s.torn || s.ends >= 0:
			ends = s.good
		}
		l.files.old = append(l.files.old, oldFile{
			name: s.name(), size: s.size, ends: ends, damaged: s.damaged(),
			unsynced: l.opts.Sync == SyncNone && !s.snapshot && !s.damaged(),
		})
	}
	l.run = l.files.lastID + 1
	l.files.names = true // the last process may not have forced them to the disk
	// The successor must not record where a damaged file ends: the next Open would take
	// the file for a sound one.
	if r.last != nil && !r.last.damaged() {
		l.files.prev = link{r.last.id, uint64(r.last.good)}
	}
	if l.opts.Sync != SyncNone {
		// The records read just now may not have been forced to the disk when the process
		// died. They must not vanish later, because the marker will say that they cannot.
		if err := l.settle(r); err != nil {
			l.fail(err)
		}
	}
	l.count()
}

func (l *Log) settle(r *replayer) error {
	for _, s := range r.segments {
		// Not only the last one: an earlier run may have had another policy.
		if s.snapshot || s.unborn || s.damaged() || s.id < r.base {
			continue
		}
		if err := l.fs.sync(s.name()); err != nil {
			return err
		}
	}
	if err := l.fs.syncDir(); err != nil {
		return err
	}
	l.files.names = false
	return nil
}

// repair writes the recovered keys into a snapshot, so that the damaged files can be set
// aside. If that fails, they stay and are read again by the next Open.
func (l *Log) repair(damage []Damage, live []*state) {
	aside, err := l.compact(false, func(yield func(string, uint64, []byte) bool) {
		for _, k := range live {
			// Number 0: all records of this run are newer.
			if !yield(k.key, 0, k.payload) {
				return
			}
		}
	})
	if err != nil {
		l.opts.Logf("wal: damaged files stay where they are: %v", err)
	}
	for i := range damage {
		damage[i].SetAside = aside[damage[i].File]
	}
}

// count updates the figures of NeedsCompaction. The caller holds the write turn.
func (l *Log) count() {
	files, bytes, damaged := len(l.files.old), int64(0), 0
	for _, f := range l.files.old {
		bytes += f.size
		if f.damaged {
			damaged++
		}
	}
	if a := l.files.active; a != nil {
		files++
		bytes += a.size
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.files, l.mu.bytes, l.mu.damaged = files, bytes, damaged
}

// remove deletes a file and reports whether that succeeded.
func (l *Log) remove(name string) bool {
	if err := l.fs.remove(name); err != nil {
		l.opts.Logf("wal: %s stays: %v", name, err)
		return false
	}
	l.files.names = true
	return true
}

// Err returns why a written record may not survive, or nil. While it is not nil, Put and
// Drop may return it at once without writing. The caller then goes on in memory and calls
// Compact now and then, which writes everything. Err does not block.
func (l *Log) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mu.err == nil && l.mu.late != nil {
		return l.mu.late.err
	}
	return l.mu.err
}

// fail records a failed write and stops writing until Compact. The caller holds the write
// turn.
func (l *Log) fail(cause error) error {
	// Before the error is returned: a caller that goes on in memory may die at once.
	l.distrust()
	l.mu.Lock()
	l.mu.stopped = true
	l.mu.failures++
	first := l.mu.err == nil
	if first {
		l.mu.err = notDurable(cause)
	}
	err := l.mu.err
	l.mu.Unlock()
	if first {
		l.opts.Logf("%v", err)
	}
	return err
}

// Close writes all staged records, forces the files to the disk, and unlocks the
// directory. It interrupts a running Compact, and blocks until that and the disk are
// done. Further calls wait for the first and return its result: an error if a record may
// not survive. Data that were suspect stay suspect.
func (l *Log) Close() error {
	l.mu.Lock()
	first := !l.mu.closed
	l.mu.closed = true
	l.mu.Unlock()
	if !first {
		<-l.closing.done
		return l.closing.err
	}
	close(l.stop)
	l.workers.Wait()
	l.compacting <- struct{}{}
	l.closing.err = l.finish()
	<-l.compacting
	close(l.closing.done)
	return l.closing.err
}

// finish does the work of Close once all other writers have ended.
func (l *Log) finish() error {
	b := l.acquire()
	if e := l.held(); e != nil {
		// The files that now have these names may belong to another Log.
		err := l.lose(e)
		l.release(b, err)
		return firstError(err, l.lock.unlock())
	}
	l.shunMarker()
	err := l.write(b)
	if l.files.active != nil {
		l.retire()
	}
	force := func(e error) {
		if e != nil {
			err = firstError(err, l.fail(e))
		}
	}
	for _, f := range l.files.old {
		if f.unsynced {
			force(l.fs.sync(f.name))
		}
	}
	if l.files.names {
		force(l.fs.syncDir())
	}
	switch l.files.marker {
	case stands:
		// Without this marker all records are there all the same, but are suspect without
		// reason if the machine reboots.
		if e := l.trust(true); e != nil {
			l.opts.Logf("wal: not marked as closed: %v", e)
		}
	case lingers:
		l.distrust()
	}
	l.release(b, err)
	err = firstError(err, l.Err())
	if l.lock == nil {
		return err
	}
	return firstError(err, l.lock.unlock())
}

func firstError(errs ...error) error {
	i := slices.IndexFunc(errs, func(err error) bool { return err != nil })
	if i < 0 {
		return nil
	}
	return errs[i]
}
