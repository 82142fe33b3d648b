package wal

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"syscall"
	"testing"
)

// memFS is a directory that remembers what was forced to the disk, fails where it
// is told to, and can lose what a machine loses.
type memFS struct {
	mu      sync.Mutex
	names   map[string]*memFile // as the process sees them
	disk    map[string]*memFile // as they are after the death of the machine
	pending []dirChange         // changes of names that are not in disk
	dead    bool                // the process has crashed: nothing happens any more
	starts  int                 // of the machine
	unnamed bool                // and they have no names

	// fault, if it is not nil, is asked before each change. Of a write it says how
	// many of the bytes are written before the error; fewer than all without an
	// error is a short write. Having errCrash, the process is dead.
	fault func(op op, name string, size int) (int, error)

	// still, if it is not nil, says what a change waits for before it is made.
	still func(op op) <-chan struct{}
}

type memFile struct {
	data   []byte
	synced int    // so much is on the disk
	hole   [2]int // was not written when fsync failed, and is thought to be clean
	ghost  []byte // was cut off, and is on the disk still
}

// dirChange is a rename; no from creates, no to removes.
type dirChange struct {
	from, to string
	file     *memFile // that is created
}

type op string

const (
	opCreate  op = "create"
	opWrite   op = "write"
	opSync    op = "sync"
	opRename  op = "rename"
	opRemove  op = "remove"
	opCut     op = "truncate"
	opSyncDir op = "syncdir"
)

var (
	errCrash = errors.New("crashed")
	errDisk  = syscall.EIO
)

func newMemFS() *memFS {
	return &memFS{names: make(map[string]*memFile), disk: make(map[string]*memFile)}
}

// holding is a directory of files that are on the disk.
func holding(files map[string][]byte) *memFS {
	m := newMemFS()
	for name, data := range files {
		m.names[name] = &memFile{data: slices.Clone(data), synced: len(data)}
	}
	m.disk = maps.Clone(m.names)
	return m
}

// segments are the contents of the files other than the marker.
func (m *memFS) segments() map[string][]byte {
	files := m.contents()
	delete(files, markerName)
	return files
}

// contents are the files as the process sees them.
func (m *memFS) contents() map[string][]byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	files := make(map[string][]byte)
	for name, f := range m.names {
		files[name] = slices.Clone(f.data)
	}
	return files
}

// killed is the directory that the next process finds after the death of this one.
func (m *memFS) killed() *memFS {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dead = true
	next := newMemFS()
	next.starts, next.unnamed = m.starts, m.unnamed
	copies := make(map[*memFile]*memFile)
	dup := func(f *memFile) *memFile {
		if copies[f] == nil {
			copies[f] = &memFile{slices.Clone(f.data), f.synced, f.hole, f.ghost}
		}
		return copies[f]
	}
	for name, f := range m.names {
		next.names[name] = dup(f)
	}
	for name, f := range m.disk {
		next.disk[name] = dup(f)
	}
	for _, c := range m.pending {
		if c.file != nil {
			c.file = dup(c.file)
		}
		next.pending = append(next.pending, c)
	}
	return next
}

// unplugged is the directory after the death of the machine: of what was not forced
// to the disk anything may be there, names in any choice, and of a file some bytes
// more, maybe as zeros.
func (m *memFS) unplugged(rng *rand.Rand) *memFS {
	n := m.killed()
	for _, c := range n.pending {
		if rng.IntN(2) == 0 {
			change(n.disk, c)
		}
	}
	next := newMemFS()
	next.starts, next.unnamed = n.starts+1, n.unnamed
	for _, name := range slices.Sorted(maps.Keys(n.disk)) {
		f := n.disk[name]
		data := slices.Clone(f.data[:f.synced])
		clear(data[min(f.hole[0], len(data)):min(f.hole[1], len(data))])
		more := append(f.data[f.synced:len(f.data):len(f.data)], f.ghost...)
		more = more[:rng.IntN(len(more)+1)]
		data = append(data, more...)
		if rng.IntN(2) == 0 {
			data = append(data, make([]byte, rng.IntN(len(f.data)+len(f.ghost)-len(data)+1))...)
		}
		next.names[name] = &memFile{data: data, synced: len(data)}
	}
	next.disk = maps.Clone(next.names)
	return next
}

func change(dir map[string]*memFile, c dirChange) {
	f := c.file
	if c.from != "" {
		var ok bool
		if f, ok = dir[c.from]; !ok {
			return // its creation is not there
		}
		delete(dir, c.from)
	}
	if c.to != "" {
		dir[c.to] = f
	}
}

// amnesia says whether the process sees bytes that are not on the disk and never
// will be.
func (m *memFS) amnesia() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, f := range m.names {
		if f.hole[0] < f.hole[1] {
			return true
		}
	}
	return false
}

// step asks for a fault. The caller holds the mutex, and not while the disk stands still.
func (m *memFS) step(op op, name string, size int) (int, error) {
	if m.still != nil {
		if goesOn := m.still(op); goesOn != nil {
			m.mu.Unlock()
			<-goesOn
			m.mu.Lock()
		}
	}
	if m.dead {
		return 0, errCrash
	}
	if m.fault == nil {
		return size, nil
	}
	n, err := m.fault(op, name, size)
	m.dead = errors.Is(err, errCrash)
	return n, err
}

func (m *memFS) list() ([]dirEntry, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var entries []dirEntry
	for _, name := range slices.Sorted(maps.Keys(m.names)) {
		entries = append(entries, dirEntry{name, true})
	}
	return entries, nil
}

func (m *memFS) exists(name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.names[name] != nil
}

func (m *memFS) open(name string) (readFile, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.names[name] == nil {
		return nil, fs.ErrNotExist
	}
	return memReader{m.names[name].data}, nil
}

type memReader struct{ data []byte }

func (r memReader) size() (int64, error) { return int64(len(r.data)), nil }
func (r memReader) Close() error         { return nil }

func (r memReader) ReadAt(b []byte, at int64) (int, error) {
	if at >= int64(len(r.data)) {
		return 0, io.EOF
	}
	n := copy(b, r.data[at:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (m *memFS) size(name string, open writeFile) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f := m.names[name]
	if f == nil {
		return 0, fs.ErrNotExist
	}
	if w, ok := open.(*memWriter); ok && w.file != f {
		return 0, errReplaced
	}
	return int64(len(f.data)), nil
}

func (m *memFS) create(name string) (writeFile, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, err := m.step(opCreate, name, 0); err != nil {
		return nil, err
	}
	if m.names[name] != nil {
		return nil, fs.ErrExist
	}
	f := &memFile{}
	m.names[name] = f
	m.pending = append(m.pending, dirChange{to: name, file: f})
	return &memWriter{m, name, f, false}, nil
}

func (m *memFS) rename(from, to string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, err := m.step(opRename, from, 0); err != nil {
		return err
	}
	if m.names[from] == nil {
		return fs.ErrNotExist
	}
	change(m.names, dirChange{from: from, to: to})
	m.pending = append(m.pending, dirChange{from: from, to: to})
	return nil
}

func (m *memFS) remove(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, err := m.step(opRemove, name, 0); err != nil {
		return err
	}
	if m.names[name] == nil {
		return fs.ErrNotExist
	}
	delete(m.names, name)
	m.pending = append(m.pending, dirChange{from: name})
	return nil
}

func (m *memFS) sync(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.names[name] == nil {
		return fs.ErrNotExist
	}
	return m.syncLocked(name, m.names[name])
}

func (m *memFS) syncLocked(name string, f *memFile) error {
	if _, err := m.step(opSync, name, 0); err != nil {
		if !m.dead {
			// The kernel reports it once, and takes the pages for clean.
			f.hole = [2]int{f.synced, len(f.data)}
			f.synced = len(f.data)
		}
		return err
	}
	f.synced, f.ghost = len(f.data), nil
	return nil
}

func (m *memFS) empty(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, err := m.step(opCut, name, 0); err != nil {
		return err
	}
	if m.names[name] == nil {
		return fs.ErrNotExist
	}
	*m.names[name] = memFile{}
	return nil
}

func (m *memFS) boot() string {
	if m.unnamed {
		return ""
	}
	return fmt.Sprint("start ", m.starts)
}

func (m *memFS) syncDir() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, err := m.step(opSyncDir, "", 0); err != nil {
		return err
	}
	m.disk = maps.Clone(m.names)
	m.pending = nil
	return nil
}

type memWriter struct {
	fs     *memFS
	name   string
	file   *memFile
	closed bool
}

func (w *memWriter) Write(b []byte) (int, error) {
	w.fs.mu.Lock()
	defer w.fs.mu.Unlock()
	if w.closed {
		return 0, fs.ErrClosed
	}
	n, err := w.fs.step(opWrite, w.name, len(b))
	w.file.data = append(w.file.data, b[:n]...)
	return n, err
}

func (w *memWriter) Truncate(size int64) error {
	w.fs.mu.Lock()
	defer w.fs.mu.Unlock()
	if _, err := w.fs.step(opCut, w.name, 0); err != nil {
		return err
	}
	f := w.file
	f.ghost = slices.Clone(f.data[size:])
	clear(f.ghost[:min(max(0, f.hole[1]-int(size)), len(f.ghost))])
	f.data = f.data[:size:size]
	f.synced = min(f.synced, int(size))
	f.hole = [2]int{min(f.hole[0], int(size)), min(f.hole[1], int(size))}
	return nil
}

func (w *memWriter) Sync() error {
	w.fs.mu.Lock()
	defer w.fs.mu.Unlock()
	if w.closed {
		return fs.ErrClosed
	}
	return w.fs.syncLocked(w.name, w.file)
}

func (w *memWriter) Close() error {
	w.fs.mu.Lock()
	defer w.fs.mu.Unlock()
	w.closed = true
	return nil
}

// failing makes the n-th change of a kind fail, counted from one, and those after
// it while it lasts.
func failing(kind op, n, lasts int, written int, err error) func(op, string, int) (int, error) {
	seen := 0
	return func(o op, _ string, size int) (int, error) {
		if o != kind {
			return size, nil
		}
		if seen++; seen >= n && seen < n+lasts {
			return min(written, size), err
		}
		return size, nil
	}
}

func TestTheDirectoryOfTheTestsForgetsWhatWasNotForcedToTheDisk(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	lost, kept := 0, 0
	for range 1000 {
		m := newMemFS()
		f, _ := m.create("a")
		f.Write([]byte("on the disk"))
		f.Sync()
		m.syncDir()
		f.Write([]byte(", and maybe this"))
		m.create("b")
		got := m.unplugged(rng).contents()
		if len(got["a"]) < 11 || string(got["a"][:11]) != "on the disk" {
			t.Fatalf("it forgot what was forced to the disk: %q", got["a"])
		}
		if _, ok := got["b"]; ok && len(got["a"]) > 11 {
			kept++
		} else if !ok && len(got["a"]) == 11 {
			lost++
		}
	}
	if lost == 0 || kept == 0 {
		t.Errorf("of 1000 times it forgot all %d times and nothing %d times", lost, kept)
	}
}
