//go:build !(darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd)

package wal

import (
	"errors"
	"io/fs"
	"os"
	"runtime"
)

// lockFile creates LOCK, which must not exist. On Windows a file that a process has open
// cannot be removed, so a removable one was left behind by a crash. Other systems without
// flock cannot tell: after a crash the file has to be removed by hand, and the error
// names it.
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

// lockDirectory locks nothing on these systems; LOCK alone must do.
func lockDirectory(string) (*os.File, error) { return nil, nil }

// unlock releases the lock and removes LOCK.
func (k *dirLock) unlock() error {
	if k.file == nil {
		return nil
	}
	return errors.Join(k.file.Close(), os.Remove(k.lockPath()))
}
