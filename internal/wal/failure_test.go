package wal

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
	"testing"
)

func TestAFailedWriteIsToldAndLosesNothingThatWasAcknowledged(t *testing.T) {
	record := int(RecordSize(1, 1))
	tests := map[string]struct {
		kind    op
		written []int
		err     error
		want    error
		policy  SyncPolicy
	}{
		"a full disk":           {opWrite, upTo(2 * record), syscall.ENOSPC, syscall.ENOSPC, SyncNone},
		"a full disk, forced":   {opWrite, upTo(2 * record), syscall.ENOSPC, syscall.ENOSPC, SyncAlways},
		"a short write":         {opWrite, upTo(2*record - 1), nil, io.ErrShortWrite, SyncNone},
		"a short write, forced": {opWrite, upTo(2*record - 1), nil, io.ErrShortWrite, SyncAlways},
		"an fsync":              {opSync, []int{0}, errDisk, errDisk, SyncAlways},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			for _, written := range tt.written {
				fs := newMemFS()
				l, _, _ := mustOpen(t, fs, Options{Sync: tt.policy})
				mustPut(t, l, "a", 1, "1")
				fs.fault = failing(tt.kind, 1, 1, written, tt.err)
				b, c := l.Stage("b", 1, []byte("1")), l.Stage("c", 1, []byte("1"))
				for _, err := range []error{b.Wait(), c.Wait(), l.Err(), l.Put("d", 1, nil), l.Drop("a", 1)} {
					if !errors.Is(err, tt.want) {
						t.Fatalf("%d bytes: the error is %v", written, err)
					}
				}
				check := func(when string, fs *memFS) {
					t.Helper()
					got, report := contentsOf(t, fs)
					if got["a"] != "1" || len(report.Damage) > 0 {
						t.Fatalf("%d bytes, %s: %s, %v", written, when, brief(got), report)
					}
				}
				if fs.amnesia() {
					t.Fatal("the next process would read what is not on the disk")
				}
				check("killed", copyOf(fs))
				if tt.policy == SyncAlways {
					check("unplugged", copyOf(fs).unplugged(newRand(uint64(written))))
				}

				want := map[string]string{"a": "2", "b": "2", "c": "2"}
				if err := l.Compact(all(want, 2)); err != nil {
					t.Fatal(err)
				}
				if err := l.Err(); err != nil {
					t.Fatalf("it is durable again, and says %v", err)
				}
				mustPut(t, l, "d", 1, "1")
				want["d"] = "1"
				mustClose(t, l)
				got, report := contentsOf(t, fs.unplugged(newRand(0)))
				wantContents(t, got, want)
				if len(report.Damage) > 0 || report.TornFile != "" {
					t.Error(report)
				}
			}
		})
	}
}

// copyOf is what a process would find now, while this one lives on.
func copyOf(fs *memFS) *memFS {
	next := fs.killed()
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.dead = false
	return next
}

func upTo(n int) []int {
	all := make([]int, n)
	for i := range all {
		all[i] = i
	}
	return all
}

func TestRecordsAfterAFailedCompactAreKept(t *testing.T) {
	fs := newMemFS()
	l, _, _ := mustOpen(t, fs, Options{Sync: SyncAlways})
	mustPut(t, l, "a", 1, "1")
	fs.fault = failing(opWrite, 1, 1, 5, syscall.ENOSPC)
	if l.Put("b", 1, []byte("1")) == nil {
		t.Fatal("a full disk was not noticed")
	}
	state := map[string]string{"a": "1", "b": "1"}
	for i, kind := range []op{opCreate, opWrite, opSync, opRename} {
		fs.fault = failing(kind, 1, 1, 5, errDisk)
		if err := l.Compact(all(state, 1)); !errors.Is(err, errDisk) {
			t.Errorf("%s failed, and Compact: %v", kind, err)
		}
		fs.fault = nil
		if l.Err() == nil {
			t.Errorf("%s failed, and b is durable", kind)
		}
		key := fmt.Sprint("c", i)
		state[key] = "1"
		mustPut(t, l, key, 1, "1") // there is room again for this
	}
	for name := range fs.contents() {
		if strings.Contains(name, ".tmp") || strings.Contains(name, ".snap") {
			t.Errorf("%s was left behind", name)
		}
	}
	got, report := contentsOf(t, copyOf(fs).unplugged(newRand(3)))
	delete(got, "b")
	delete(state, "b")
	wantContents(t, got, state)
	if len(report.Damage) > 0 {
		t.Error(report)
	}
	state["b"] = "1"
	if err := l.Compact(all(state, 1)); err != nil || l.Err() != nil {
		t.Fatal(err, l.Err())
	}
	mustClose(t, l)
	got, _ = contentsOf(t, fs)
	wantContents(t, got, state)
}

// A failed Compact is no loss while everything is in the older files.
func TestAFailedCompactAloneIsNotDegraded(t *testing.T) {
	for _, kind := range []op{opCreate, opWrite, opSync, opRename, opSyncDir} {
		fs := newMemFS()
		l, _, _ := mustOpen(t, fs, Options{Sync: SyncAlways})
		state := map[string]string{"a": "1"}
		mustPut(t, l, "a", 1, "1")
		fs.fault = failing(kind, 1, 1, 5, errDisk)
		if err := l.Compact(all(state, 1)); !errors.Is(err, errDisk) {
			t.Errorf("%s failed, and Compact: %v", kind, err)
		}
		if err := l.Err(); err != nil {
			t.Errorf("%s failed, and Err: %v", kind, err)
		}
		for seed := range uint64(10) {
			got, report := contentsOf(t, copyOf(fs).unplugged(newRand(seed)))
			wantContents(t, got, state)
			if len(report.Damage) > 0 {
				t.Errorf("%s: %v", kind, report)
			}
		}
		if err := l.Compact(all(state, 1)); err != nil {
			t.Error(err)
		}
		if files := fs.segments(); len(files) != 1 {
			t.Errorf("%s: %d files are left", kind, len(files))
		}
		mustClose(t, l)
	}
}

func TestAFailureDuringACompactIsNotHealedByIt(t *testing.T) {
	fs := newMemFS()
	l, _, _ := mustOpen(t, fs, Options{Sync: SyncAlways})
	mustPut(t, l, "a", 1, "1")
	err := l.Compact(func(yield func(string, uint64, []byte) bool) {
		yield("a", 1, []byte("1"))
		fs.fault = failing(opWrite, 1, 1, 5, errDisk)
		if l.Put("a", 2, []byte("2")) == nil {
			t.Error("a failed write was not noticed")
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if !errors.Is(l.Err(), errDisk) {
		t.Errorf("the snapshot does not have the second one, and Err is %v", l.Err())
	}
	if err := l.Compact(all(map[string]string{"a": "2"}, 2)); err != nil || l.Err() != nil {
		t.Error(err, l.Err())
	}
	mustClose(t, l)
}

func TestAFileThatCannotBeCreatedIsToldAndLeavesNothing(t *testing.T) {
	for _, kind := range []op{opCreate, opWrite, opSyncDir} {
		fs := newMemFS()
		l, _, _ := mustOpen(t, fs, Options{Sync: SyncAlways})
		fs.fault = failing(kind, 1, 1, 5, errDisk)
		if err := l.Put("a", 1, []byte("1")); !errors.Is(err, errDisk) {
			t.Errorf("%s failed, and Put: %v", kind, err)
		}
		if files := fs.contents(); len(files) != 0 {
			t.Errorf("%s failed, and left %d files", kind, len(files))
		}
		if err := l.Close(); !errors.Is(err, errDisk) {
			t.Errorf("%s failed, and Close: %v", kind, err)
		}
	}
}

// As in a process that is out of file descriptors.
func TestALogGrowsFurtherWhereNoFileCanBeCreated(t *testing.T) {
	fs := newMemFS()
	lines := 0
	l, _, _ := mustOpen(t, fs, Options{SegmentBytes: 100, Logf: func(string, ...any) { lines++ }})
	mustPut(t, l, "a", 1, "1")
	fs.fault = failing(opCreate, 1, 1000, 0, syscall.EMFILE)
	want := map[string]string{"a": "1"}
	for i := range 50 {
		want[fmt.Sprint(i)] = "v"
		mustPut(t, l, fmt.Sprint(i), 1, "v")
	}
	if l.Err() != nil || lines == 0 || lines > 20 {
		t.Errorf("%v, %d lines", l.Err(), lines)
	}
	fs.fault = nil
	for i := range 50 {
		mustPut(t, l, fmt.Sprint(i), 2, "w")
		want[fmt.Sprint(i)] = "w"
	}
	mustClose(t, l)
	got, report := contentsOf(t, fs)
	wantContents(t, got, want)
	if report.Files < 10 || len(report.Damage) > 0 {
		t.Error(report)
	}
}

func TestEveryChangeOfStateIsOneLine(t *testing.T) {
	fs := newMemFS()
	var lines []string
	l, _, _ := mustOpen(t, fs, Options{Logf: func(format string, args ...any) {
		lines = append(lines, fmt.Sprintf(format, args...))
	}})
	mustPut(t, l, "a", 1, "1")
	fs.fault = failing(opWrite, 1, 1, 0, syscall.ENOSPC)
	for range 10 {
		if l.Put("a", 2, nil) == nil {
			t.Fatal("a full disk was not noticed")
		}
	}
	for range 3 {
		if err := l.Compact(all(map[string]string{"a": ""}, 2)); err != nil {
			t.Fatal(err)
		}
	}
	mustClose(t, l)
	if len(lines) != 2 || !strings.Contains(lines[0], "not durable: no space left") || lines[1] != "wal: durable again" {
		t.Errorf("%q", lines)
	}
}

// As on a file system that never forces names to the disk: the caller tries again
// and again.
func TestCompactsThatFailDoNotFillTheDiskWithSnapshots(t *testing.T) {
	for _, degraded := range []bool{false, true} {
		fs := newMemFS()
		l, _, _ := mustOpen(t, fs, Options{})
		state := map[string]string{"a": "1", "b": "2"}
		mustPut(t, l, "a", 1, "1")
		mustPut(t, l, "b", 1, "2")
		if degraded {
			fs.setFault(failing(opWrite, 1, 1, 5, errDisk))
			if l.Put("a", 2, []byte("2")) == nil {
				t.Fatal("a failed write was not noticed")
			}
			state["a"] = "2"
		}
		fs.setFault(failing(opSyncDir, 1, 1000, 0, errDisk))
		for range 10 {
			if err := l.Compact(all(state, 2)); !errors.Is(err, errDisk) {
				t.Fatalf("Compact: %v", err)
			}
		}
		size := int64(0)
		for _, data := range fs.segments() {
			size += int64(len(data))
		}
		if files := fs.segments(); len(files) > 2 || l.Size() != size {
			t.Errorf("there are %d files of %d bytes, Size is %d", len(files), size, l.Size())
		}
		got, _ := contentsOf(t, copyOf(fs))
		wantContents(t, got, state)
		if !degraded {
			for seed := range uint64(20) {
				// The machine may lose what was not forced, and nothing in between.
				got, report := contentsOf(t, copyOf(fs).unplugged(newRand(seed)))
				if len(got) < 2 && report.Doubt == "" {
					t.Errorf("found %s: %v", brief(got), report)
				}
			}
		}
		fs.setFault(nil)
		if err := l.Compact(all(state, 3)); err != nil || l.Err() != nil {
			t.Error(err, l.Err())
		}
		mustClose(t, l)
		got, report := contentsOf(t, fs)
		wantContents(t, got, state)
		wantDoubt(t, report.Doubt, "")
	}
}
