//go:build darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd

package wal

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

// lockDir takes the directory for this Log alone. The kernel gives it back when the
// process dies, so no lock is ever stale; and it belongs to the open file, so a
// second Log of the same process is kept out, too.
//
// The file stays where it is when it is unlocked: were it removed, two Logs could
// each hold a lock, on two files of one name.
func lockDir(dir string) (unlock func() error, err error) {
	path := filepath.Join(dir, lockName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err != nil {
		pid := readPID(path)
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, &InUse{Dir: dir, Lock: path, PID: pid}
		}
		return nil, &os.PathError{Op: "flock", Path: path, Err: err}
	}
	// Who holds it is told for the message of another's error alone; a full disk
	// must not keep anybody from starting.
	if f.Truncate(0) == nil {
		f.WriteString(strconv.Itoa(os.Getpid()) + "\n")
	}
	return func() error {
		f.Truncate(0)
		// Closing it is not enough: a process that another goroutine is just starting
		// has the open file, too, until it has become another program.
		return errors.Join(syscall.Flock(int(f.Fd()), syscall.LOCK_UN), f.Close())
	}, nil
}
