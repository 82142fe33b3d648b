//go:build darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd

package wal

import (
	"errors"
	"os"
	"syscall"
)

// lockFile opens LOCK, creates it if necessary, and locks it. The kernel releases a lock
// when the process dies, so no lock is ever stale. The lock belongs to the open file, so
// a second Log of the same process is kept out, too.
//
// The file is not removed when it is unlocked: otherwise two Logs could each hold a lock,
// on two files of one name.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := flock(f); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// lockDirectory opens a directory and locks it, if its file system supports that.
func lockDirectory(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if err := flock(f); errors.Is(err, errLocked) {
		f.Close()
		return nil, err
	}
	return f, nil // unlocked, it still serves to tell whether the name belongs to another directory
}

func flock(f *os.File) error {
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, syscall.EWOULDBLOCK):
			return errLocked
		case !errors.Is(err, syscall.EINTR):
			return &os.PathError{Op: "flock", Path: f.Name(), Err: err}
		}
	}
}

// unlock releases the locks. LOCK stays in place, empty.
func (k *dirLock) unlock() error {
	if k.file != nil {
		k.file.Truncate(0)
	}
	var errs []error
	for _, f := range []*os.File{k.file, k.dir} {
		if f == nil {
			continue
		}
		// Closing the file is not enough: a process that another goroutine is just
		// starting has the open file, too, until its exec.
		if f == k.file {
			errs = append(errs, syscall.Flock(int(f.Fd()), syscall.LOCK_UN))
		} else {
			syscall.Flock(int(f.Fd()), syscall.LOCK_UN) // it may never have been locked
		}
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}
