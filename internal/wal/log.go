package wal

import (
	"fmt"
	"slices"
	"sync"
	"time"
)

// Log is a map that survives its process: see the package's documentation.
//
// A Log is safe for concurrent use. Its goroutines, of which there are three at most,
// end by themselves or with Close, which waits for them.
type Log struct {
	fs   fileSystem
	opts Options
	run  uint64
	boot string   // which start of the machine this is
	lock *dirLock // nil in a test

	largest int64 // record; maxBody, less in a test

	mu struct {
		sync.Mutex

		// The turn: one goroutine at a time writes, without the mutex. Who wants it for
		// something else than a batch comes first.
		busy    bool
		begun   time.Time // when that was
		wanted  int
		yielded sync.Cond

		filling *batch   // what is written next
		writing *batch   // what is being written
		writer  bool     // there is a goroutine that writes what is staged
		spares  [][]byte // buffers for batches to come

		err       error         // why not everything is durable; nil if it is
		stopped   bool          // nothing is written until Compact
		late      *lateness     // the disk has not answered for too long; nil where it has
		suspended bool          // that is what has stopped it: the marker has to go
		warned    chan struct{} // closed when the goroutine that begins with that is done
		failures  uint64        // how often something was not written

		bytes   int64 // of all files
		files   int
		damaged int // of those, how many wait to be set aside

		closed bool
	}

	// files belongs to whoever has the turn.
	files struct {
		lastID uint64
		active *active
		prev   link      // the log before the active one, or the one to be created
		old    []oldFile // everything else, in order
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

// oldFile is a file that a snapshot will replace.
type oldFile struct {
	name     string
	size     int64
	ends     int64 // where what counts in it ends; 0 if that is not known
	damaged  bool  // to be set aside then, and not to be removed
	unsynced bool
	unplaced bool // a snapshot whose name may not be on the disk: it has replaced nothing
}

// Open reads the directory, creates it (0700) if it is not there, and locks it. It
// calls load once for every key that is live, in the order of their last records;
// the payload is load's to keep. load may be nil. It must not call the Log.
//
// Open blocks on the disk: it reads every file there is, and where something is
// damaged it also writes what it could read to a new file. It holds every live
// payload in memory until it returns.
//
// The error is *InUse where somebody has the directory open, or says why it cannot
// be used at all. What is in the files never makes Open fail; the Report tells.
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
		// Before anything is written: it must not be found closed with records that
		// Close has not seen.
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
	l.files.names = true // who knows what the last process forced to the disk
	// Where a damaged file ends is not for its successor to say: the next Open would
	// take it for a sound one.
	if r.last != nil && !r.last.damaged() {
		l.files.prev = link{r.last.id, uint64(r.last.good)}
	}
	if l.opts.Sync != SyncNone {
		// What was written and not yet forced to the disk when the process died has
		// just been read. It must not vanish later, and the marker will say that it
		// cannot.
		if err := l.settle(r); err != nil {
			l.fail(err)
		}
	}
	l.count()
}

func (l *Log) settle(r *replayer) error {
	for _, s := range r.segments {
		// Not only the last: the policy may have been another one.
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

// repair writes what was read into a snapshot, after which the damaged files can be
// set aside. If that fails they stay, and are read again by the next Open.
func (l *Log) repair(damage []Damage, live []*state) {
	aside, err := l.compact(false, func(yield func(string, uint64, []byte) bool) {
		for _, k := range live {
			// Number 0: whatever this run will write is newer.
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

// count brings the figures of NeedsCompaction up to date. Whoever calls it has the
// turn.
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

// remove says whether a file is gone.
func (l *Log) remove(name string) bool {
	if err := l.fs.remove(name); err != nil {
		l.opts.Logf("wal: %s stays: %v", name, err)
		return false
	}
	l.files.names = true
	return true
}

// Err returns why something that was written may not survive, or nil. While it is
// not nil, Put and Drop may return it at once without writing; the caller goes on
// in memory and calls Compact again now and then, which writes everything. It does
// not block.
func (l *Log) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mu.err == nil && l.mu.late != nil {
		return l.mu.late.err
	}
	return l.mu.err
}

// fail notes that something was not written, and ends writing until Compact. Whoever
// calls it has the turn.
func (l *Log) fail(cause error) error {
	// Before anybody is told: who goes on in memory may die at once.
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

// Close writes and forces to the disk what is not yet there, and gives the
// directory back. It ends a Compact that runs, and waits for it and for the disk.
// Further calls wait for the first and return what it returned: an error if
// something may not survive. What was in doubt is so still.
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

// finish is Close when nobody else writes any more.
func (l *Log) finish() error {
	b := l.acquire()
	if e := l.held(); e != nil {
		// What has that name now is somebody else's.
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
		// Without it everything is there all the same, and doubted for no reason if
		// the machine starts anew.
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
