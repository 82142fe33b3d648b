package wal

import (
	"errors"
	"io"
	"io/fs"
)

// standing is the state of the marker on the disk.
type standing int

const (
	gone    standing = iota
	stands           // the next Open may trust the files
	lingers          // it must be removed, and that failed or is uncertain
)

// trust writes the marker atomically. After a late error the marker may exist all the
// same. The caller holds the write turn.
func (l *Log) trust(closed bool) error {
	if tmp := markerName + tmpSuffix; l.fs.exists(tmp) {
		l.remove(tmp)
	}
	if l.files.marker == gone && l.fs.exists(markerName) {
		// It was put there from outside since. Nothing can be renamed over a directory.
		if err := l.removeMarker(); err != nil {
			return err
		}
	}
	m := marker{policy: l.opts.Sync, closed: closed, boot: l.boot}
	if closed {
		m.ends = l.ends()
	}
	err := l.writeWhole(markerName, func(w io.Writer) error { return writeAll(w, m.append(nil)) })
	if err != nil {
		return err
	}
	l.files.marker = stands
	// Until this is done, a crash may bring back the previous marker, which says that the
	// log is closed or was forced to the disk at every write.
	return l.fs.syncDir()
}

// distrust removes the marker. A full disk lets a file be removed when it takes no new
// one; so the absence of the marker is the warning. If the removal fails, nothing is left
// to warn the next Open; it is tried again at the next Compact and at Close. The caller
// holds the write turn.
func (l *Log) distrust() {
	if l.files.marker == gone {
		return
	}
	err := l.removeMarker()
	if err == nil {
		err = l.fs.syncDir()
	}
	before := l.files.marker
	if err == nil {
		l.files.marker = gone
		return
	}
	l.files.marker = lingers
	if before != lingers {
		l.opts.Logf("wal: %s could not be removed for certain: the next Open may take what is out of date for the latest: %v", markerName, err)
	}
}

// ends returns where each file ends that the next Open must find. The caller holds the
// write turn, and there is no active segment.
func (l *Log) ends() map[fileID]int64 {
	ends := make(map[fileID]int64)
	for _, f := range l.files.old {
		if file, ok := parseName(f.name); ok && f.ends > 0 && !f.damaged && !f.unplaced {
			ends[file] = f.ends
		}
	}
	return ends
}

// shunMarker removes the marker if the log was suspended, or if an earlier removal
// failed. The caller holds the write turn.
func (l *Log) shunMarker() {
	l.mu.Lock()
	suspended, warned := l.mu.suspended, l.mu.warned
	l.mu.suspended, l.mu.warned = false, nil
	l.mu.Unlock()
	if warned != nil {
		<-warned // otherwise it could remove the next marker
	}
	if suspended || l.files.marker == lingers {
		l.distrust()
	}
}

func (l *Log) removeMarker() error {
	err := l.fs.remove(markerName)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	// A copy-on-write file system may need space to remove a name, and a directory of
	// that name may not be empty.
	if l.fs.empty(markerName) == nil {
		return nil
	}
	if _, aside := l.setAside(markerName); aside == nil {
		return nil
	}
	return err
}
