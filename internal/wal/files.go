package wal

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
)

// fileSystem is the access of a Log to its directory. Tests replace it by one that fails
// and forgets.
type fileSystem interface {
	list() ([]dirEntry, error)
	exists(name string) bool
	open(name string) (readFile, error)
	create(name string) (writeFile, error) // fails if it exists
	rename(from, to string) error
	remove(name string) error
	sync(name string) error  // forces a file's contents to the disk
	empty(name string) error // cuts a file to zero bytes, on the disk too
	syncDir() error          // forces the names to the disk
	boot() string            // identifies the boot of the machine; empty if there is no identifier

	// size returns the size of the file that has the name now. If f is not nil and the
	// name belongs to another file, the error wraps errReplaced.
	size(name string, f writeFile) (int64, error)
}

type dirEntry struct {
	name    string
	regular bool
}

type readFile interface {
	io.ReaderAt
	io.Closer
	size() (int64, error)
}

type writeFile interface {
	io.WriteCloser
	Sync() error
	Truncate(size int64) error
}

// osDir is a directory of the operating system.
type osDir string

func (d osDir) path(name string) string { return filepath.Join(string(d), name) }

func (d osDir) list() ([]dirEntry, error) {
	found, err := os.ReadDir(string(d))
	entries := make([]dirEntry, len(found))
	for i, e := range found {
		entries[i] = dirEntry{e.Name(), e.Type().IsRegular()}
	}
	return entries, err
}

func (d osDir) exists(name string) bool {
	_, err := os.Lstat(d.path(name))
	return !errors.Is(err, fs.ErrNotExist)
}

type osFile struct{ *os.File }

func (f osFile) size() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

func (d osDir) open(name string) (readFile, error) {
	f, err := os.Open(d.path(name))
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (d osDir) size(name string, held writeFile) (int64, error) {
	info, err := os.Lstat(d.path(name))
	if err != nil {
		return 0, err
	}
	if f, ok := held.(*os.File); ok {
		ours, err := f.Stat()
		if err != nil {
			return 0, err
		}
		if !os.SameFile(info, ours) {
			return 0, fmt.Errorf("%s %w", name, errReplaced)
		}
	}
	return info.Size(), nil
}

func (d osDir) create(name string) (writeFile, error) {
	f, err := os.OpenFile(d.path(name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (d osDir) rename(from, to string) error { return os.Rename(d.path(from), d.path(to)) }
func (d osDir) remove(name string) error     { return os.Remove(d.path(name)) }

func (d osDir) sync(name string) error {
	// Windows flushes only files that are open for writing.
	f, err := os.OpenFile(d.path(name), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func (d osDir) empty(name string) error {
	if err := os.Truncate(d.path(name), 0); err != nil {
		return err
	}
	return d.sync(name)
}

func (d osDir) boot() string {
	if runtime.GOOS != "linux" {
		return ""
	}
	f, err := os.Open("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxBoot))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func (d osDir) syncDir() error {
	if runtime.GOOS == "windows" {
		return nil // Windows cannot sync a directory
	}
	f, err := os.Open(string(d))
	if err != nil {
		return err
	}
	err = f.Sync()
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, errors.ErrUnsupported) {
		err = nil // some file systems, such as network ones, cannot sync a directory
	}
	return errors.Join(err, f.Close())
}

// makeDir creates a directory and its parents, and forces their names to the disk.
func makeDir(dir string) error {
	info, err := os.Stat(dir)
	switch {
	case err == nil && info.IsDir():
		return nil
	case err == nil:
		return &fs.PathError{Op: "mkdir", Path: dir, Err: syscall.ENOTDIR}
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	above := filepath.Dir(dir)
	if above != dir {
		if err := makeDir(above); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return osDir(above).syncDir()
}

// writeAll writes b. A short write is an error even if the file reports none.
func writeAll(w io.Writer, b []byte) error {
	n, err := w.Write(b)
	if err == nil && n < len(b) {
		err = io.ErrShortWrite
	}
	return err
}
