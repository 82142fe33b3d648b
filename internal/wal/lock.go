package wal

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// dirLock is a directory that this Log holds exclusively.
type dirLock struct {
	path string
	dir  *os.File // the directory itself, locked where the system can; nil where it cannot even open it
	file *os.File // LOCK
}

func (k *dirLock) lockPath() string { return filepath.Join(k.path, lockName) }

// lockDir takes the directory exclusively for this Log.
//
// The directory itself is locked, because LOCK can be removed while it is locked: a
// second Log would lock another file of the same name. LOCK is locked as well: some file
// systems lock no directories, an earlier version knows only the file, and it contains
// the holder's process id.
func lockDir(path string) (*dirLock, error) {
	k := &dirLock{path: path}
	if err := k.retake(); err != nil {
		return nil, errors.Join(err, k.unlock())
	}
	return k, nil
}

// held returns nil if the names still belong to the locked directory and file, and
// otherwise why not. If only LOCK was removed or replaced, it is created and locked
// again.
func (k *dirLock) held() error {
	switch same, err := sameFile(k.dir, k.path); {
	case err != nil:
		return fmt.Errorf("the directory was removed from outside: %w", err)
	case !same:
		return fmt.Errorf("the directory %s %w", k.path, errReplaced)
	}
	same, err := sameFile(k.file, k.lockPath())
	if err == nil && same {
		return nil
	}
	if err = k.retake(); err != nil {
		return fmt.Errorf("%s was removed from outside: %w", lockName, err)
	}
	return nil
}

// retake locks the directory and LOCK unless the lock is held and the name still belongs
// to the locked file. It creates the directory if necessary.
func (k *dirLock) retake() error {
	if err := makeDir(k.path); err != nil {
		return fmt.Errorf("wal: %w", err)
	}
	if same, err := sameFile(k.dir, k.path); k.dir == nil || err != nil || !same {
		dir, err := lockDirectory(k.path)
		if err != nil {
			return k.inUse(err, k.path)
		}
		if k.dir != nil {
			k.dir.Close()
		}
		k.dir = dir
	}
	if same, err := sameFile(k.file, k.lockPath()); k.file == nil || err != nil || !same {
		file, err := lockFile(k.lockPath())
		if err != nil {
			return k.inUse(err, k.lockPath())
		}
		if k.file != nil {
			k.file.Close()
		}
		k.file = file
		// The process id only serves the error message of another Log. A full disk must
		// not prevent a start.
		if file.Truncate(0) == nil {
			file.WriteString(strconv.Itoa(os.Getpid()) + "\n")
		}
	}
	return nil
}

// errLocked is returned by the parts for each operating system if the lock is held by
// another.
var errLocked = errors.New("locked")

func (k *dirLock) inUse(err error, what string) error {
	if errors.Is(err, errLocked) {
		return &InUse{Dir: k.path, Lock: what, PID: readPID(k.lockPath())}
	}
	return err
}

// sameFile reports whether an open file still has the name. A nil f counts as the same.
func sameFile(f *os.File, name string) (bool, error) {
	there, err := os.Stat(name)
	if err != nil {
		return false, err
	}
	if f == nil {
		return true, nil
	}
	ours, err := f.Stat()
	if err != nil {
		return false, err
	}
	return os.SameFile(there, ours), nil
}

// readPID reads the process id in a lock file, 0 if there is none.
func readPID(path string) int {
	f, err := os.Open(path)
	if err != nil {
		return 0
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 32))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid < 0 {
		return 0
	}
	return pid
}
