package wal

import (
	"errors"
	"io/fs"
	"time"
)

// startSyncer starts the goroutine of SyncInterval.
func (l *Log) startSyncer() {
	l.spawn("wal sync", l.syncEveryInterval)
}

func (l *Log) syncEveryInterval() {
	tick := time.NewTicker(l.opts.Interval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			l.syncActive()
		case <-l.stop:
			return
		}
	}
}

// syncActive forces the active segment to the disk while other goroutines go on writing.
func (l *Log) syncActive() {
	b := l.acquire()
	a := l.files.active
	l.release(b, l.write(b))
	if a == nil || !a.unsynced.Swap(false) {
		return
	}
	// A segment that was closed meanwhile was forced to the disk before that.
	if err := a.file.Sync(); err != nil && !errors.Is(err, fs.ErrClosed) {
		b := l.acquire()
		l.fail(err)
		l.release(b, l.write(b))
	}
}
