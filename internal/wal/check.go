package wal

import (
	"errors"
	"fmt"
)

// Check compares the directory with the files that the Log has written. It detects that
// the directory was removed or replaced, that a file was removed, replaced or cut short,
// and any damage of the marker. If only LOCK was removed, it is created again. For every
// other difference Check returns an error, and so does Err until a Compact has written
// everything anew. It blocks on the disk. While writing is stopped, and after Close, it
// does nothing.
func (l *Log) Check() error {
	l.mu.Lock()
	idle := l.mu.stopped || l.mu.closed
	l.mu.Unlock()
	if idle {
		return nil
	}
	b := l.acquire()
	err := l.check()
	l.release(b, firstError(err, l.write(b)))
	return err
}

// check does the work of Check. The caller holds the write turn.
func (l *Log) check() error {
	l.mu.Lock()
	closed := l.mu.closed
	l.mu.Unlock()
	if closed {
		return nil // closed since Check was called
	}
	if err := l.held(); err != nil {
		return l.lose(err)
	}
	if err := l.missing(); err != nil {
		return l.fail(err)
	}
	return nil
}

// held returns why this Log has lost the directory, nil if it has not.
func (l *Log) held() error {
	if l.lock == nil {
		return nil
	}
	return l.lock.held()
}

// missing returns the first file that is missing, replaced or cut short, as an error.
func (l *Log) missing() error {
	whole := func(name string, f writeFile, ends int64) error {
		size, err := l.fs.size(name, f)
		switch {
		case err != nil:
			return err
		case size < ends:
			return fmt.Errorf("%s was cut short from outside, by %d bytes", name, ends-size)
		}
		return nil
	}
	if a := l.files.active; a != nil {
		if err := whole(a.name, a.file, a.size); err != nil {
			return err
		}
	}
	for _, f := range l.files.old {
		if f.damaged || f.unplaced || f.ends == 0 {
			continue
		}
		if err := whole(f.name, nil, f.ends); err != nil {
			return err
		}
	}
	if l.files.marker == stands {
		return l.markerMissing()
	}
	return nil
}

// markerMissing returns why the next Open would not believe the marker.
func (l *Log) markerMissing() error {
	if !l.fs.exists(markerName) {
		return fmt.Errorf("%s was removed from outside", markerName)
	}
	entries, err := l.fs.list()
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.name != markerName {
			continue
		}
		if m := readMarker(l.fs, e.regular); m.reason != "" {
			return fmt.Errorf("%s was changed from outside: %s", markerName, m.reason)
		}
	}
	return nil
}

// lose is fail for a directory that this Log has lost: no file in it may be changed. The
// caller holds the write turn.
func (l *Log) lose(cause error) error {
	l.files.marker, l.files.old = gone, nil
	if a := l.files.active; a != nil {
		l.files.active = nil
		a.file.Close()
	}
	l.files.prev = link{}
	return l.fail(cause)
}

// regain takes the directory again if this Log has lost it and no other Log has it. The
// files found there are not read but set aside later, because the Compact in progress
// writes all live keys.
func (l *Log) regain() error {
	b := l.acquire()
	err := l.regainInTurn()
	l.release(b, l.write(b))
	return err
}

func (l *Log) regainInTurn() error {
	cause := l.held()
	if cause == nil {
		return nil
	}
	l.lose(cause)
	if err := l.lock.retake(); err != nil {
		return err
	}
	entries, err := l.fs.list()
	if err != nil {
		return fmt.Errorf("wal: %w", err)
	}
	for _, e := range entries {
		if e.name == markerName {
			l.files.marker = lingers
		}
		if file, ok := parseName(e.name); ok {
			if file.id < maxID {
				l.files.lastID = max(l.files.lastID, file.id)
			}
			l.files.old = append(l.files.old, oldFile{name: e.name, damaged: true})
		}
	}
	return nil
}

// errReplaced says that a name belongs to another file by now.
var errReplaced = errors.New("was replaced from outside")
