package wal

import (
	"errors"
	"fmt"
	"os"
)

var (
	// ErrClosed is returned for a record that is written after Close, and by a Compact
	// that Close interrupted.
	ErrClosed = errors.New("wal: the log is closed")

	// ErrTooLarge is returned for a record whose key and payload together are larger than
	// about 1 GiB. The Log can still be used.
	ErrTooLarge = errors.New("wal: key and payload are more than 1 GiB")
)

// Newer is the error of Open for a directory with a file that a newer version of this
// package has written. Open changed nothing in the directory.
type Newer struct {
	File    string
	Version uint32
	Known   uint32 // the newest version that this package reads
}

// Error names the file and the versions.
func (e *Newer) Error() string {
	return fmt.Sprintf("wal: %s has format version %d, and this program knows none above %d: a newer one has written it", e.File, e.Version, e.Known)
}

// InUse is the error of Open for a directory that another Log has open, in this process
// or in another.
type InUse struct {
	Dir  string
	Lock string // the lock file
	PID  int    // of the process that holds it; 0 if not known
}

// Error names the directory and, where it is known, the process.
func (e *InUse) Error() string {
	switch e.PID {
	case 0:
		return fmt.Sprintf("wal: directory %s is in use: %s is held by another process", e.Dir, e.Lock)
	case os.Getpid():
		return fmt.Sprintf("wal: directory %s is in use by this process (%d) already", e.Dir, e.PID)
	}
	return fmt.Sprintf("wal: directory %s is in use by process %d", e.Dir, e.PID)
}
