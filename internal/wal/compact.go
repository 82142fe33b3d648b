package wal

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
)

// maxFiles is how many files may lie about before NeedsCompaction says that they
// should become one: a process that is restarted again and again leaves one each
// time.
const maxFiles = 64

// Size returns how many bytes the files have together. It does not block.
func (l *Log) Size() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.bytes
}

// NeedsCompaction says whether Compact is worth its while: more than half of the
// files, and more than a segment, is out of date; or there are more than 64 files;
// or a damaged one could not be set aside; or something was not written. live is what the records of all live keys
// take up, the sum of their RecordSize. It does not block.
func (l *Log) NeedsCompaction(live int64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.err != nil || l.mu.bytes > 2*live+l.opts.SegmentBytes || l.mu.files > maxFiles || l.mu.damaged > 0
}

// Compact writes all that is live into one file and removes the older ones. Other
// calls go on meanwhile, and are not lost.
//
// live is called once, by this goroutine and without a lock held. It yields every
// live key with its payload and the number of its last record, and stops when yield
// returns false. It must not call Compact or Close. What it yields is the state at
// any moment since Compact was called, for each key another if need be: so a caller
// changes its own state first, and calls Stage, Put or Drop after it.
//
// If it succeeds, everything is durable, and Err is nil unless something failed
// meanwhile. Where it is nil, the next Open is not in doubt for what was before: what
// live yields is the truth, so who was told of Report.Doubt acts on it first. If it
// fails, the older files stay and are as good as before; it may be called again. It blocks on the disk, for a time in proportion to what is live,
// and on another Compact. The error is ErrClosed, ErrTooLarge or the disk's.
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

// compact is Compact. Unless the caller vouches for what live yields, doubt remains.
// It returns what damaged files are called now.
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
		// It is there for everybody but the disk. The others stay until it is there too,
		// but those before it that came no further: whoever tries again and again would
		// fill the disk with them.
		snapshot.unplaced = true
		l.replace(old, l.clearUnplaced(old), snapshot)
		return nil, fmt.Errorf("wal: %s: %w", file.name(), err)
	}
	aside, kept := l.clearAway(old)
	l.replace(old, kept, snapshot)
	return aside, l.recover(failures, vouched)
}

// turnPage ends the active segment: what is written from now on is behind the
// snapshot that has the number which turnPage returns. What is before it, the
// caller has in memory. Writing begins again, if it had stopped: if the snapshot
// succeeds everything counts, and if not, what was written since counts.
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

// writeWhole makes a file in place of one that there may be, whole or not at all,
// but for its place in the directory.
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

// recover ends the time in which not everything was durable or could be trusted,
// unless something failed after the snapshot was begun, which may not be in it. It
// comes last, when there is room where older files were.
func (l *Log) recover(failures uint64, vouched bool) error {
	b := l.acquire()
	err := l.heal(failures, vouched)
	l.release(b, l.write(b))
	return err
}

// heal is recover. Whoever calls it has the turn, so nothing is written meanwhile.
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
		// Suspended meanwhile, and the marker may have come after its removal.
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

// clearAway gives the damaged files that a snapshot has replaced another name, and
// removes the others. It returns the new names, and what is still there.
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
			continue // somebody was here before
		}
		if err != nil {
			keep(f, err)
			continue
		}
		aside[f.name] = to
	}
	if len(aside) > 0 {
		// That a file was cut short is known from the one behind it, which goes next.
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

// clearUnplaced removes the snapshots that have replaced nothing, and returns what is
// still there.
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

// replace has kept in place of old, and the snapshot behind them.
func (l *Log) replace(old, kept []oldFile, snapshot oldFile) {
	b := l.acquire()
	since := l.files.old[len(old):]
	l.files.old = append(append(kept[:len(kept):len(kept)], snapshot), since...)
	l.files.names = true
	l.count()
	l.release(b, l.write(b))
}
