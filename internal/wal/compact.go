package wal

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
)

// maxFiles is the number of files above which NeedsCompaction reports true. A process
// that is restarted again and again leaves one file each time.
const maxFiles = 64

// Size returns the total size of the files in bytes. It does not block.
func (l *Log) Size() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.bytes
}

// NeedsCompaction reports whether a Compact is worthwhile: more than half of the bytes,
// and more than a segment, are out of date; or there are more than 64 files; or a damaged
// file could not be set aside; or a write failed. live is the size of all live records,
// the sum of their RecordSize. It does not block.
func (l *Log) NeedsCompaction(live int64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.err != nil || l.mu.bytes > 2*live+l.opts.SegmentBytes || l.mu.files > maxFiles || l.mu.damaged > 0
}

// Compact writes all live keys into one file and removes the older files. Concurrent
// calls proceed, and their records are not lost.
//
// live is called once, on the caller's goroutine and without a lock held. It yields every
// live key with its payload and the number of its last record, and stops when yield
// returns false. It must not call Compact or Close. The state of each key may be from any
// moment since Compact was called. So a caller changes its own state first and calls
// Stage, Put or Drop after it.
//
// If Compact succeeds, everything is durable, and Err is nil unless a write failed
// meanwhile. If Err is nil, the data are not suspect at the next Open, because live has
// supplied the current state. So a caller that got a Report.Doubt acts on it first. If
// Compact fails, the older files stay and are as good as before; it may be called again. It
// blocks on the disk, for a time in proportion to the live data, and on another Compact.
// The error is ErrClosed, ErrTooLarge, *InUse if another Log has taken a directory that
// this one had lost, or the disk's.
func (l *Log) Compact(live func(yield func(key string, seq uint64, payload []byte) bool)) error {
	l.compacting <- struct{}{}
	defer func() { <-l.compacting }()
	if l.isClosed() {
		return ErrClosed
	}
	if err := l.regain(); err != nil {
		return err
	}
	_, err := l.compact(true, live)
	return err
}

func (l *Log) isClosed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.closed
}

// compact does the work of Compact. Unless vouched is set, suspect data stay suspect. It
// returns the new names of the damaged files.
func (l *Log) compact(vouched bool, live func(yield func(string, uint64, []byte) bool)) (map[string]string, error) {
	file, old, failures := l.turnPage()
	var size int64
	err := l.writeWhole(file.name(), func(w io.Writer) (err error) {
		size, err = l.fill(w, file, live)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("wal: %s: %w", file.name(), err)
	}
	snapshot := oldFile{name: file.name(), size: size, ends: size}
	if err := l.fs.syncDir(); err != nil {
		// The name is in place except on the disk. The other files stay until it is on
		// the disk, too. Only earlier snapshots that failed at this step are removed:
		// repeated attempts would fill the disk with them.
		snapshot.unplaced = true
		l.replace(old, l.clearUnplaced(old), snapshot)
		return nil, fmt.Errorf("wal: %s: %w", file.name(), err)
	}
	aside, kept := l.clearAway(old)
	l.replace(old, kept, snapshot)
	return aside, l.recover(failures, vouched)
}

// turnPage ends the active segment: later records go behind the snapshot with the
// returned number. The caller has all earlier records in memory. If writing had stopped,
// it begins again: if the snapshot succeeds, all records count; if not, those written
// since count.
func (l *Log) turnPage() (file fileID, old []oldFile, failures uint64) {
	b := l.acquire()
	if l.files.active != nil {
		l.retire()
	}
	l.shunMarker()
	l.files.lastID++
	file = fileID{id: l.files.lastID, snapshot: true}
	old = l.files.old[:len(l.files.old):len(l.files.old)]
	l.mu.Lock()
	l.mu.stopped = false
	failures = l.mu.failures
	l.mu.Unlock()
	l.release(b, l.write(b))
	return file, old, failures
}

// writeWhole creates or replaces a file atomically. The caller must still force the name
// to the disk (syncDir).
func (l *Log) writeWhole(name string, fill func(io.Writer) error) error {
	tmp := name + tmpSuffix
	f, err := l.fs.create(tmp)
	if err != nil {
		return err
	}
	closed, renamed := false, false
	defer func() { // also if fill panics
		if !closed {
			f.Close()
		}
		if !renamed {
			if err := l.fs.remove(tmp); err != nil {
				l.opts.Logf("wal: %s stays: %v", tmp, err)
			}
		}
	}()
	err = fill(f)
	if err == nil {
		err = f.Sync()
	}
	closed = true
	if err = firstError(err, f.Close()); err != nil {
		return err
	}
	if err = l.fs.rename(tmp, name); err != nil {
		return err
	}
	renamed = true
	return nil
}

func (l *Log) fill(f io.Writer, file fileID, live func(yield func(string, uint64, []byte) bool)) (size int64, err error) {
	w := bufio.NewWriterSize(f, 64<<10)
	records := uint64(0)
	buf := header{file: file, run: l.run}.append(nil)
	put := func() bool {
		var n int
		n, err = w.Write(buf)
		size += int64(n)
		return err == nil
	}
	if !put() {
		return 0, err
	}
	live(func(key string, seq uint64, payload []byte) bool {
		switch {
		case err != nil:
			return false
		case l.isClosed():
			err = ErrClosed
			return false
		case RecordSize(len(key), len(payload)) > l.largest:
			err = ErrTooLarge
			return false
		}
		records++
		buf = appendRecord(buf[:0], putRecord, seq, key, payload)
		return put()
	})
	if err != nil {
		return 0, err
	}
	buf = appendRecord(buf[:0], endRecord, records, "", nil)
	if !put() {
		return 0, err
	}
	return size, w.Flush()
}

// recover clears the error and, if vouched, restores the marker, unless a write failed
// after the snapshot was begun: that record may not be in it. It comes last, when the
// removal of older files has freed space.
func (l *Log) recover(failures uint64, vouched bool) error {
	b := l.acquire()
	err := l.heal(failures, vouched)
	l.release(b, l.write(b))
	return err
}

// heal does the work of recover. The caller holds the write turn, so no record is written
// meanwhile.
func (l *Log) heal(failures uint64, vouched bool) error {
	l.mu.Lock()
	since := l.mu.failures != failures
	l.mu.Unlock()
	if since {
		return nil
	}
	if vouched && l.files.marker != stands {
		if err := l.trust(false); err != nil {
			l.fail(err)
			return fmt.Errorf("wal: %s: %w", markerName, err)
		}
	}
	l.mu.Lock()
	if l.mu.failures != failures {
		// The log was suspended meanwhile, and the marker may have been written after its
		// removal.
		l.mu.Unlock()
		l.shunMarker()
		return nil
	}
	was := l.mu.err
	l.mu.err = nil
	l.mu.Unlock()
	if was != nil {
		l.opts.Logf("wal: durable again")
	}
	return nil
}

// clearAway renames the damaged files that a snapshot has replaced, and removes the
// others. It returns the new names, and the files that remain.
func (l *Log) clearAway(old []oldFile) (aside map[string]string, kept []oldFile) {
	aside = make(map[string]string)
	keep := func(f oldFile, err error) {
		l.opts.Logf("wal: %s stays: %v", f.name, err)
		kept = append(kept, f)
	}
	for _, f := range old {
		if !f.damaged {
			continue
		}
		to, err := l.setAside(f.name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it was moved or removed from outside
		}
		if err != nil {
			keep(f, err)
			continue
		}
		aside[f.name] = to
	}
	if len(aside) > 0 {
		// The successor records that a file was cut short, and is removed next.
		if err := l.fs.syncDir(); err != nil {
			l.opts.Logf("wal: %v", err)
		}
	}
	for _, f := range old {
		if f.damaged {
			continue
		}
		if err := l.fs.remove(f.name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			keep(f, err)
		}
	}
	return aside, kept
}

// clearUnplaced removes the snapshots that have replaced nothing, and returns the
// remaining files.
func (l *Log) clearUnplaced(old []oldFile) (kept []oldFile) {
	for _, f := range old {
		if f.unplaced && l.fs.remove(f.name) == nil {
			continue
		}
		kept = append(kept, f)
	}
	return kept
}

// maxAside bounds the search for a free name.
const maxAside = 10_000

func (l *Log) setAside(name string) (string, error) {
	for n := 1; n <= maxAside; n++ {
		to := fmt.Sprintf("%s%s%d", name, asideSuffix, n)
		if !l.fs.exists(to) {
			return to, l.fs.rename(name, to)
		}
	}
	return "", errors.New("there is no free name for it")
}

// replace puts kept and the snapshot in the place of old.
func (l *Log) replace(old, kept []oldFile, snapshot oldFile) {
	b := l.acquire()
	since := l.files.old[len(old):]
	l.files.old = append(append(kept[:len(kept):len(kept)], snapshot), since...)
	l.files.names = true
	l.count()
	l.release(b, l.write(b))
}
