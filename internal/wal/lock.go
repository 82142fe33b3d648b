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

// dirLock is a directory that is this Log's alone.
type dirLock struct {
	path string
	dir  *os.File // the directory itself, locked where the system can; nil where it cannot even open it
	file *os.File // LOCK
}

func (k *dirLock) lockPath() string { return filepath.Join(k.path, lockName) }

// lockDir takes the directory for this Log alone.
//
// The directory itself is locked, because LOCK can be removed while it is: a second Log
// would lock another file of the same name. LOCK is locked as well: some file systems
// lock no directories, an earlier version knows only the file, and it says who has it.
func lockDir(path string) (*dirLock, error) {
	k := &dirLock{path: path}
	if err := k.retake(); err != nil {
		return nil, errors.Join(err, k.unlock())
	}
	return k, nil
}

// held returns nil if what has the names now is what was locked, and otherwise what
// happened to it. A LOCK that was removed while the directory stayed is made anew.
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

// retake locks what is not locked, or is not what has the name any more; the directory
// is made if it is not there.
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
		// Who holds it is told for the message of another's error alone; a full disk
		// must not keep anybody from starting.
		if file.Truncate(0) == nil {
			file.WriteString(strconv.Itoa(os.Getpid()) + "\n")
		}
	}
	return nil
}

// errLocked is what the systems' parts return where somebody else has the lock.
var errLocked = errors.New("locked")

func (k *dirLock) inUse(err error, what string) error {
	if errors.Is(err, errLocked) {
		return &InUse{Dir: k.path, Lock: what, PID: readPID(k.lockPath())}
	}
	return err
}

// sameFile says whether an open file is what has the name now. Of one that is not open
// nothing is known, and it counts as the same.
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

// readPID reads who holds a lock file, or 0.
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
