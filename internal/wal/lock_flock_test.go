//go:build linux

package wal

import (
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
)

// Another goroutine starts a process, which has every open file until it has become
// another program. The lock must not wait for that.
func TestCloseGivesTheDirectoryBackWhileAProcessIsBeingStarted(t *testing.T) {
	dir := t.TempDir()
	l, _, err := Open(dir, Options{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	inherited := -1
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip(err)
	}
	for _, e := range open {
		to, err := os.Readlink(filepath.Join("/proc/self/fd", e.Name()))
		if err != nil || to != filepath.Join(dir, lockName) {
			continue
		}
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			t.Fatal(err)
		}
		if inherited, err = syscall.Dup(fd); err != nil {
			t.Fatal(err)
		}
		defer syscall.Close(inherited)
	}
	if inherited < 0 {
		t.Fatal("the lock file is not open")
	}
	mustClose(t, l)
	l, _, err = Open(dir, Options{}, nil)
	if err != nil {
		t.Fatalf("after Close: %v", err)
	}
	mustClose(t, l)
}
