package wal

import "sync/atomic"

// active is the log segment to which records are appended.
type active struct {
	file     writeFile
	name     string
	id       uint64
	size     int64       // end of the last complete write; with SyncAlways, forced to the disk
	unsynced atomic.Bool // with SyncInterval: written since the last fsync
}

// makeRoom ensures that there is an active segment with room for n bytes. A segment
// without records takes any n. The caller holds the write turn.
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
	// From here on the older segment must not grow any more, even if a later step fails:
	// the header of the new one says where the older one ends, and the new file may
	// reappear after a crash although it was removed.
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

// begin writes the header of a new log segment and, unless the policy is SyncNone, forces
// its name to the disk.
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

// retire turns the active segment into an old one. With SyncInterval it forces the
// segment to the disk, because nothing else would do that before Close. The caller holds
// the write turn.
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

// abandon turns the active segment into an old one without an fsync, for example after a
// failed write. The recorded end is that of the last complete write; bytes behind it are
// not read.
func (l *Log) abandon(unsynced bool) {
	a := l.files.active
	l.files.active = nil
	l.files.prev = link{a.id, uint64(a.size)}
	l.files.old = append(l.files.old, oldFile{
		name: a.name, size: a.size, ends: a.size, unsynced: unsynced,
	})
	// An error of Close concerns a write that is not on the disk yet. Only fsync reports
	// those reliably, and callers that need it have called Sync before.
	a.file.Close()
}
