package wal

import "sync/atomic"

// active is the log segment that records go into.
type active struct {
	file     writeFile
	name     string
	id       uint64
	size     int64       // up to where everything was written; with SyncAlways, forced to the disk
	unsynced atomic.Bool // with SyncInterval: written since the last fsync
}

// makeRoom sees to it that there is an active segment which is not full. Whoever
// calls it has the turn.
func (l *Log) makeRoom(n int64) error {
	a := l.files.active
	if a != nil && (a.size+n <= l.files.limit || a.size == headerSize) {
		return nil
	}
	l.files.lastID++
	file := fileID{id: l.files.lastID}
	f, err := l.fs.create(file.name())
	if err != nil {
		if a == nil {
			return err
		}
		// A process that is out of file descriptors can still use this one.
		l.files.limit += l.opts.SegmentBytes
		l.opts.Logf("wal: %s grows further: %v", a.name, err)
		return nil
	}
	// From here on the older one must not grow any more, whatever goes wrong: the new
	// one says where it ends, and may come back from the dead after it was removed.
	if a != nil {
		l.retire()
	}
	l.files.names = true
	if err := l.begin(f, file); err != nil {
		f.Close()
		l.remove(file.name()) // without a header it would stand between two others
		return err
	}
	l.files.active = &active{file: f, name: file.name(), id: file.id, size: headerSize}
	l.files.limit = l.opts.SegmentBytes
	l.count()
	return nil
}

// begin makes a file a log segment that will be found.
func (l *Log) begin(f writeFile, file fileID) error {
	err := writeAll(f, header{file: file, run: l.run, prev: l.files.prev}.append(nil))
	if err != nil || l.opts.Sync == SyncNone {
		return err
	}
	if err := l.fs.syncDir(); err != nil {
		return err
	}
	l.files.names = false
	return nil
}

// retire makes the active segment an old one. With SyncInterval it is forced to the
// disk, because nobody would before Close. Whoever calls it has the turn.
func (l *Log) retire() {
	a := l.files.active
	var err error
	if l.opts.Sync == SyncInterval {
		err = a.file.Sync()
	}
	l.abandon(l.opts.Sync == SyncNone)
	if err != nil {
		l.fail(err)
	}
}

// abandon makes the active segment an old one as it is, as after a write that
// failed. It ends where it did before that: what is behind is not read.
func (l *Log) abandon(unsynced bool) {
	a := l.files.active
	l.files.active = nil
	l.files.prev = link{a.id, uint64(a.size)}
	l.files.old = append(l.files.old, oldFile{
		name: a.name, size: a.size, ends: a.size, unsynced: unsynced,
	})
	// An error of Close is one of a write that is still on its way, of which only
	// fsync tells reliably; who needs to know that has asked it.
	a.file.Close()
}
