package wal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// doubtOf opens a directory as the next process would, and closes it again.
func doubtOf(t testing.TB, fs *memFS) string {
	t.Helper()
	_, report := contentsOf(t, fs)
	return report.Doubt
}

func wantDoubt(t testing.TB, doubt, want string) {
	t.Helper()
	if want == "" && doubt != "" {
		t.Fatalf("in doubt without a reason: %s", doubt)
	}
	if want != "" && !strings.Contains(doubt, want) {
		t.Fatalf("the doubt is %q, want one that says %q", doubt, want)
	}
}

const noMarker = "there is no " + markerName

var policies = []SyncPolicy{SyncNone, SyncInterval, SyncAlways}

func TestANewDirectoryAndOneThatWasKilledAreNotInDoubt(t *testing.T) {
	for _, policy := range policies {
		fs := newMemFS()
		for n := range 4 {
			l, _, report := mustOpen(t, fs, Options{Sync: policy})
			wantDoubt(t, report.Doubt, "")
			if n > 0 {
				mustPut(t, l, fmt.Sprint(n), 1, "v")
			}
			fs = fs.killed()
			close(l.stop)
			l.workers.Wait()
		}
	}
}

// The key was dropped while the disk was full, and comes back.
func TestAfterAFullDiskTheNextProcessIsInDoubt(t *testing.T) {
	for _, policy := range policies {
		for _, how := range []string{"killed", "unplugged", "closed"} {
			t.Run(fmt.Sprint(policy, "/", how), func(t *testing.T) {
				fs := newMemFS()
				l, _, _ := mustOpen(t, fs, Options{Sync: policy})
				mustPut(t, l, "a", 1, "1")
				full := fullDisk()
				fs.setFault(full)
				if err := l.Drop("a", 2); !errors.Is(err, syscall.ENOSPC) {
					t.Fatalf("Drop: %v", err)
				}
				if fs.exists(markerName) {
					t.Fatal("the caller has the error, and the marker stands")
				}
				if err := l.Compact(all(nil, 0)); !errors.Is(err, syscall.ENOSPC) {
					t.Fatalf("Compact: %v", err)
				}
				next := copyOf(fs)
				switch how {
				case "unplugged":
					next = next.unplugged(newRand(1))
				case "closed":
					if err := l.Close(); !errors.Is(err, syscall.ENOSPC) {
						t.Errorf("Close: %v", err)
					}
					next = fs.killed()
				}
				for range 3 { // it does not go away by itself
					next.setFault(nil)
					got, report := contentsOf(t, next)
					wantDoubt(t, report.Doubt, noMarker)
					if how != "unplugged" && got["a"] != "1" {
						t.Fatalf("the test is void: %s", brief(got))
					}
				}
				if how != "closed" {
					l.Close()
				}
			})
		}
	}
}

// fullDisk lets nothing be written and no file be made. Files can be removed.
func fullDisk() func(op, string, int) (int, error) {
	return func(o op, _ string, size int) (int, error) {
		if o == opWrite || o == opCreate {
			return 0, syscall.ENOSPC
		}
		return size, nil
	}
}

func (m *memFS) setFault(fault func(op, string, int) (int, error)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fault = fault
}

func TestACompactAfterAFullDiskEndsTheDoubt(t *testing.T) {
	for _, policy := range policies {
		fs := newMemFS()
		l, _, _ := mustOpen(t, fs, Options{Sync: policy})
		mustPut(t, l, "a", 1, "1")
		fs.setFault(fullDisk())
		if l.Drop("a", 2) == nil {
			t.Fatal("a full disk was not noticed")
		}
		fs.setFault(nil)
		if err := l.Compact(all(map[string]string{"b": "1"}, 3)); err != nil || l.Err() != nil {
			t.Fatal(err, l.Err())
		}
		mustPut(t, l, "c", 4, "1")
		got, report := contentsOf(t, copyOf(fs))
		wantDoubt(t, report.Doubt, "")
		wantContents(t, got, map[string]string{"b": "1", "c": "1"})

		// And the next failure begins another.
		fs.setFault(fullDisk())
		if l.Drop("b", 5) == nil {
			t.Fatal("a full disk was not noticed")
		}
		fs.setFault(nil)
		wantDoubt(t, doubtOf(t, copyOf(fs)), noMarker)
		l.Close()
	}
}

func TestAnFsyncThatFailsLaterIsADoubt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := newMemFS()
		l, _, _ := mustOpen(t, fs, Options{Sync: SyncInterval, Interval: time.Minute})
		mustPut(t, l, "k", 1, "v")
		fs.setFault(failing(opSync, 1, 1, 0, errDisk))
		<-time.After(time.Minute)
		synctest.Wait()
		wantDoubt(t, doubtOf(t, copyOf(fs)), noMarker)
		l.Close()
	})
	fs := newMemFS()
	l, _, _ := mustOpen(t, fs, Options{})
	mustPut(t, l, "k", 1, "v")
	fs.setFault(failing(opSync, 1, 1, 0, errDisk))
	if err := l.Close(); !errors.Is(err, errDisk) {
		t.Errorf("Close: %v", err)
	}
	wantDoubt(t, doubtOf(t, fs.killed()), noMarker)
}

// The repair at the beginning of Open makes the files sound again, and what was
// lost is lost.
func TestDamageIsADoubtUntilTheCallersCompact(t *testing.T) {
	for _, policy := range policies {
		fs := newMemFS()
		l, _, _ := mustOpen(t, fs, Options{Sync: policy})
		mustPut(t, l, "a", 1, "1")
		mustPut(t, l, "b", 1, "1")
		mustClose(t, l)
		files := fs.contents()
		files[fileID{id: 1}.name()][headerSize+10] ^= 1
		fs = holding(files)

		l, got, report := mustOpen(t, fs, Options{Sync: policy})
		wantDoubt(t, report.Doubt, "damaged or missing files: 1")
		if !strings.Contains(report.String(), "in doubt: damaged") {
			t.Errorf("the report reads %q", report)
		}
		mustPut(t, l, "c", 1, "1")
		for range 3 {
			next := copyOf(fs)
			_, report := contentsOf(t, next) // also after a proper Close of that one
			wantDoubt(t, report.Doubt, noMarker)
			if len(report.Damage) > 0 {
				t.Errorf("it has been repaired: %v", report)
			}
			wantDoubt(t, doubtOf(t, next), noMarker)
		}
		got["c"] = "1"
		if err := l.Compact(all(got, 2)); err != nil {
			t.Fatal(err)
		}
		wantDoubt(t, doubtOf(t, copyOf(fs)), "")
		mustClose(t, l)
		wantDoubt(t, doubtOf(t, fs), "")
	}
}

func TestADamagedDirectoryLosesItsMarkerBeforeAnythingElse(t *testing.T) {
	files := threeLogs(t)
	files[fileID{id: 2}.name()][headerSize+20] ^= 1
	fs := holding(files)
	var first op
	var name string
	fs.fault = func(o op, n string, size int) (int, error) {
		if first == "" {
			first, name = o, n
		}
		return size, nil
	}
	l, _, _ := mustOpen(t, fs, Options{})
	if first != opRemove || name != markerName {
		t.Errorf("the first change is %s of %q", first, name)
	}
	mustClose(t, l)
}

// A file system that has become read-only takes nothing and gives nothing up. That
// the next Open cannot be warned is all that can be said.
func TestAMarkerThatCannotBeRemovedIsToldAndTriedAgain(t *testing.T) {
	var lines []string
	logf := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	told := func() (n int) {
		for _, line := range lines {
			if strings.Contains(line, markerName+" could not be removed") {
				n++
			}
		}
		return n
	}
	readOnly := func(op, string, int) (int, error) { return 0, syscall.EROFS }
	fs := newMemFS()
	l, _, _ := mustOpen(t, fs, Options{Sync: SyncAlways, Logf: logf})
	mustPut(t, l, "a", 1, "1")
	fs.setFault(readOnly)
	if err := l.Drop("a", 2); !errors.Is(err, syscall.EROFS) {
		t.Fatalf("Drop: %v", err)
	}
	for range 3 {
		if err := l.Compact(all(nil, 0)); !errors.Is(err, syscall.EROFS) {
			t.Fatalf("Compact: %v", err)
		}
	}
	if told() != 1 {
		t.Errorf("it is told %d times: %q", told(), lines)
	}
	wantDoubt(t, doubtOf(t, copyOf(fs)), "") // there was no way to say so

	// Writable again, and too full for a snapshot: at least the marker goes.
	fs.setFault(fullDisk())
	if err := l.Compact(all(nil, 0)); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("Compact: %v", err)
	}
	wantDoubt(t, doubtOf(t, copyOf(fs)), noMarker)
	fs.setFault(nil)
	if err := l.Compact(all(nil, 0)); err != nil {
		t.Fatal(err)
	}
	wantDoubt(t, doubtOf(t, copyOf(fs)), "")
	mustClose(t, l)
}

func TestAMarkerThatCannotBeRemovedIsEmptied(t *testing.T) {
	fs := newMemFS()
	l, _, _ := mustOpen(t, fs, Options{Sync: SyncAlways})
	mustPut(t, l, "a", 1, "1")
	fs.setFault(func(o op, _ string, size int) (int, error) {
		if o == opWrite || o == opCreate || o == opRemove {
			return 0, syscall.ENOSPC
		}
		return size, nil
	})
	if l.Drop("a", 2) == nil {
		t.Fatal("a full disk was not noticed")
	}
	wantDoubt(t, doubtOf(t, copyOf(fs)), "not a marker")
	wantDoubt(t, doubtOf(t, copyOf(fs).unplugged(newRand(1))), "not a marker")
	fs.setFault(nil)
	if err := l.Compact(all(nil, 0)); err != nil {
		t.Fatal(err)
	}
	wantDoubt(t, doubtOf(t, copyOf(fs)), "")
	mustClose(t, l)
}

// A removed file may come back if its directory was not forced to the disk.
func TestARemovalThatMayNotLastIsTriedAgain(t *testing.T) {
	fs := newMemFS()
	l, _, _ := mustOpen(t, fs, Options{Sync: SyncAlways})
	mustPut(t, l, "a", 1, "1")
	fs.setFault(func(o op, _ string, size int) (int, error) {
		if o == opWrite || o == opSyncDir {
			return 0, errDisk
		}
		return size, nil
	})
	if l.Drop("a", 2) == nil {
		t.Fatal("a failed write was not noticed")
	}
	wantDoubt(t, doubtOf(t, copyOf(fs)), noMarker)
	fs.setFault(fullDisk())
	if l.Close() == nil {
		t.Fatal("Close has not told")
	}
	for seed := range uint64(20) {
		wantDoubt(t, doubtOf(t, copyOf(fs).unplugged(newRand(seed))), noMarker)
	}
}

func TestAMarkerThatCannotBeWrittenIsAFailureLikeAnyOther(t *testing.T) {
	for _, kind := range []op{opCreate, opWrite, opSync, opRename, opSyncDir} {
		fs := newMemFS()
		fs.fault = failing(kind, 1, 1, 5, errDisk)
		l, _, report := mustOpen(t, fs, Options{})
		wantDoubt(t, report.Doubt, "")
		if !errors.Is(l.Err(), errDisk) || !errors.Is(l.Put("a", 1, nil), errDisk) {
			t.Errorf("%s failed, and Err is %v", kind, l.Err())
		}
		if files := fs.contents(); len(files) > 0 {
			t.Errorf("%s failed, and left %d files", kind, len(files))
		}
		// The snapshot can be written, and the marker again cannot.
		fs.setFault(failing(kind, 2, 1, 5, errDisk))
		if err := l.Compact(all(map[string]string{"a": "1"}, 1)); !errors.Is(err, errDisk) || l.Err() == nil {
			t.Errorf("%s failed, and Compact: %v, Err: %v", kind, err, l.Err())
		}
		wantDoubt(t, doubtOf(t, copyOf(fs)), noMarker)
		if err := l.Compact(all(map[string]string{"a": "1"}, 1)); err != nil || l.Err() != nil {
			t.Errorf("%s: %v, %v", kind, err, l.Err())
		}
		got, report := contentsOf(t, copyOf(fs))
		wantContents(t, got, map[string]string{"a": "1"})
		wantDoubt(t, report.Doubt, "")
		mustClose(t, l)
	}
}

func TestACloseThatCannotMarkItselfLosesNothing(t *testing.T) {
	for _, kind := range []op{opCreate, opWrite, opRename} {
		fs := newMemFS()
		l, _, _ := mustOpen(t, fs, Options{})
		mustPut(t, l, "a", 1, "1")
		fs.setFault(failing(kind, 1, 1, 5, errDisk))
		mustClose(t, l)
		got, report := contentsOf(t, fs.unplugged(newRand(1)))
		wantContents(t, got, map[string]string{"a": "1"})
		wantDoubt(t, report.Doubt, "the machine went down") // for no reason, which is safe
	}
}

func TestACrashAtAnyChangeOfOpenAndCloseIsNoDoubt(t *testing.T) {
	for crash, done := 0, false; !done; crash++ {
		files := threeLogs(t)
		fs := holding(files)
		left := crash
		fs.fault = func(_ op, _ string, size int) (int, error) {
			if left--; left < 0 {
				return size / 2, errCrash
			}
			return size, nil
		}
		l, _, _ := mustOpen(t, fs, Options{})
		l.Put("d", 1, []byte("d"))
		l.Close()
		if done = !fs.dead; done && crash < 8 {
			t.Fatalf("it took %d changes", crash)
		}
		fs.mu.Lock()
		fs.dead = false
		fs.mu.Unlock()
		wantDoubt(t, doubtOf(t, fs.killed()), "")
	}
}

func TestADirectoryInThePlaceOfTheMarkerIsSetAside(t *testing.T) {
	dir := t.TempDir()
	l, _, err := Open(dir, Options{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	mustPut(t, l, "k", 1, "v")
	mustClose(t, l)
	odd := filepath.Join(dir, markerName)
	if err := os.Remove(odd); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(odd, "within"), 0o700); err != nil {
		t.Fatal(err)
	}
	l, report, err := Open(dir, Options{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	wantDoubt(t, report.Doubt, "not a regular file")
	if err := l.Compact(all(map[string]string{"k": "v"}, 1)); err != nil || l.Err() != nil {
		t.Fatal(err, l.Err())
	}
	mustClose(t, l)
	if _, err := os.Stat(filepath.Join(dir, markerName+".damaged-1", "within")); err != nil {
		t.Error(err)
	}
	l, report, err = Open(dir, Options{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	wantDoubt(t, report.Doubt, "")
	mustClose(t, l)
}

// A directory takes the marker's name after Check has found the marker missing: nothing
// was durable again, for a file cannot be renamed over a directory.
func TestADirectoryThatTakesTheNameOfAMarkerThatIsGoneIsSetAside(t *testing.T) {
	dir := t.TempDir()
	l, _, err := Open(dir, Options{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	mustPut(t, l, "k", 1, "v")
	odd := filepath.Join(dir, markerName)
	if err := os.Remove(odd); err != nil {
		t.Fatal(err)
	}
	if err := l.Check(); err == nil || l.Err() == nil {
		t.Fatal("the marker is gone, and Check found nothing")
	}
	if err := os.MkdirAll(filepath.Join(odd, "within"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := l.Compact(all(map[string]string{"k": "v"}, 1)); err != nil || l.Err() != nil {
		t.Fatal(err, l.Err())
	}
	if err := l.Check(); err != nil {
		t.Error(err)
	}
	mustClose(t, l)
	l, report, err := Open(dir, Options{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	wantDoubt(t, report.Doubt, "")
	mustClose(t, l)
}

// A process that gets the error may die at once, and a Compact may be about to put the marker
// back.
func TestTheMarkerGoesBeforeAnybodyIsToldAndWhileNobodyElseWrites(t *testing.T) {
	for _, kind := range []op{opWrite, opSync} {
		synctest.Test(t, func(t *testing.T) {
			fs := newMemFS()
			l, _, _ := mustOpen(t, fs, Options{Sync: SyncInterval, Interval: time.Minute})
			mustPut(t, l, "k", 1, "v")
			fails, removed := failing(kind, 1, 1, 0, errDisk), 0
			fs.setFault(func(o op, name string, size int) (int, error) {
				if o == opRemove && name == markerName {
					removed++
					l.mu.Lock()
					defer l.mu.Unlock()
					if l.mu.stopped || l.mu.err != nil || !l.mu.busy {
						t.Errorf("%s: told already: %v, or without the turn: %v", kind, l.mu.err, !l.mu.busy)
					}
				}
				return fails(o, name, size)
			})
			if kind == opWrite {
				if l.Put("k", 2, nil) == nil {
					t.Error("a failed write was not noticed")
				}
			}
			<-time.After(time.Minute)
			synctest.Wait()
			if removed != 1 || l.Err() == nil {
				t.Errorf("%s: removed %d times, Err is %v", kind, removed, l.Err())
			}
			l.Close()
		})
	}
}

func TestWhatWasWrittenBeforeAFailureIsForcedToTheDiskByClose(t *testing.T) {
	for _, policy := range policies {
		fs := newMemFS()
		l, _, _ := mustOpen(t, fs, Options{Sync: policy, Interval: time.Hour})
		mustPut(t, l, "a", 1, "1")
		fs.setFault(failing(opWrite, 1, 1, 0, errDisk))
		if l.Put("b", 1, nil) == nil {
			t.Fatal("a failed write was not noticed")
		}
		if err := l.Close(); !errors.Is(err, errDisk) {
			t.Errorf("Close: %v", err)
		}
		fs = fs.killed()
		for seed := range uint64(20) {
			got, report := contentsOf(t, copyOf(fs).unplugged(newRand(seed)))
			wantContents(t, got, map[string]string{"a": "1"})
			wantDoubt(t, report.Doubt, noMarker)
		}
	}
}
