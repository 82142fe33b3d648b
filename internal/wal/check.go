package wal

import (
	"errors"
	"fmt"
)

// Check compares the directory with what the Log has written there: it may have been
// removed or replaced, and a file may have been removed, replaced or cut short, the marker
// damaged in any way. A LOCK
// that was removed alone is made anew. Where something else is not as it should be,
// Check returns why, and so does Err until a Compact has written everything anew. It
// blocks on the disk. Where nothing is written anyhow, and after Close, it does nothing.
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

// check is Check. Whoever calls it has the turn.
func (l *Log) check() error {
	l.mu.Lock()
	closed := l.mu.closed
	l.mu.Unlock()
	if closed {
		return nil // since Check was called
	}
	if err := l.held(); err != nil {
		return l.lose(err)
	}
	if err := l.missing(); err != nil {
		return l.fail(err)
	}
	return nil
}

// held says why the directory is not this Log's any more.
func (l *Log) held() error {
	if l.lock == nil {
		return nil
	}
	return l.lock.held()
}

// missing says what is not in the directory that was written there.
func (l *Log) missing() error {
	whole := func(name string, open writeFile, ends int64) error {
		size, err := l.fs.size(name, open)
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

// markerMissing says why the next Open would not believe the marker that stands.
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

// lose is fail for a directory that is not this Log's any more: nothing in it is to be
// touched. Whoever calls it has the turn.
func (l *Log) lose(cause error) error {
	l.files.marker, l.files.old = gone, nil
	if a := l.files.active; a != nil {
		l.files.active = nil
		a.file.Close()
	}
	l.files.prev = link{}
	return l.fail(cause)
}

// regain makes the directory this Log's again where it was lost, if it can be had. What
// is found there is not read: it will be set aside, for everything there is to be kept
// is about to be written.
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

// errReplaced is what is wrong with a name that is another file's by now.
var errReplaced = errors.New("was replaced from outside")
