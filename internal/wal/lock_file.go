//go:build !(darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd)

package wal

import (
	"errors"
	"io/fs"
	"os"
	"runtime"
)

// lockFile makes LOCK, which must not be there. On Windows a file that a process has
// open cannot be removed, so one that can be was left behind by a crash. Elsewhere that
// cannot be told: after a crash the file has to be removed by hand, and the error names
// it.
func lockFile(path string) (*os.File, error) {
	if runtime.GOOS == "windows" {
		os.Remove(path)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil, errLocked
	}
	return f, err
}

// lockDirectory locks nothing here: LOCK has to do.
func lockDirectory(string) (*os.File, error) { return nil, nil }

// unlock gives the directory back.
func (k *dirLock) unlock() error {
	if k.file == nil {
		return nil
	}
	return errors.Join(k.file.Close(), os.Remove(k.lockPath()))
}
