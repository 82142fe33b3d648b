//go:build !(darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd)

package wal

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
)

// lockDir takes the directory for this Log alone, by a file that must not have been
// there. On Windows a file that a process has open cannot be removed, so one that
// can be was left behind by a crash. Elsewhere that cannot be told: after a crash
// the file has to be removed by hand, and the error names it.
func lockDir(dir string) (unlock func() error, err error) {
	path := filepath.Join(dir, lockName)
	if runtime.GOOS == "windows" {
		os.Remove(path)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil, &InUse{Dir: dir, Lock: path, PID: readPID(path)}
	}
	if err != nil {
		return nil, err
	}
	f.WriteString(strconv.Itoa(os.Getpid()) + "\n")
	return func() error { return errors.Join(f.Close(), os.Remove(path)) }, nil
}
