package wal

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// hang makes changes of a kind stand still, from now until the function that it returns
// is called.
func (m *memFS) hang(kinds ...op) (goOn func()) {
	gate := make(chan struct{})
	m.mu.Lock()
	defer m.mu.Unlock()
	m.still = func(o op) <-chan struct{} {
		if slices.Contains(kinds, o) {
			return gate
		}
		return nil
	}
	return sync.OnceFunc(func() {
		m.mu.Lock()
		m.still = nil
		m.mu.Unlock()
		close(gate)
	})
}

var errStill = errors.New("the disk stands still")

// suspend is what the end of a disk's grace does.
func suspend(l *Log) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mu.late == nil {
		l.mu.late = &lateness{err: notDurable(errStill), timer: time.NewTimer(time.Hour)}
	}
	l.suspendLocked()
}

func wantDone(t *testing.T, what string, done <-chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatalf("%s: still waiting", what)
	}
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(what)
		}
	}
}

// A disk stands still in the middle of a write: whoever waits gives up, nobody else waits,
// nothing gathers in memory, and everything is written once the disk goes on.
func TestADiskThatStandsStillHoldsNobodyAndHeals(t *testing.T) {
	for _, policy := range policies {
		for _, kind := range []op{opCreate, opWrite, opSync, opSyncDir} {
			if policy == SyncNone && (kind == opSync || kind == opSyncDir) {
				continue // which waits for neither
			}
			if policy == SyncInterval && kind == opSync {
				continue // off the callers' path
			}
			t.Run(fmt.Sprint(policy, "/", kind), func(t *testing.T) {
				fs := newMemFS()
				l, _, _ := mustOpen(t, fs, Options{Sync: policy, SegmentBytes: 1})
				mustPut(t, l, "a", 1, "1")
				goOn := fs.hang(kind)
				defer goOn()
				first := l.Stage("b", 1, []byte("1"))
				waits := first.Start()
				eventually(t, "nobody writes", func() bool {
					l.mu.Lock()
					defer l.mu.Unlock()
					return l.mu.busy
				})
				second := l.Stage("c", 1, []byte("1"))
				suspend(l)
				wantDone(t, "who has written", waits)
				wantDone(t, "who stands behind", second.Start())
				for _, err := range []error{first.Wait(), second.Wait(), l.Err(), l.Put("d", 1, nil)} {
					if !errors.Is(err, errStill) {
						t.Fatalf("the error is %v", err)
					}
				}
				if n := l.stagedBytes(); n > 0 {
					t.Errorf("%d bytes wait for the disk", n)
				}
				eventually(t, "the marker stands, and the files may be out of date", func() bool { return !fs.exists(markerName) })

				goOn()
				want := map[string]string{"a": "1", "b": "2", "c": "2"}
				if err := l.Compact(all(want, 2)); err != nil {
					t.Fatal(err)
				}
				if err := l.Err(); err != nil {
					t.Fatalf("the disk goes on, and it says %v", err)
				}
				mustPut(t, l, "d", 1, "1")
				want["d"] = "1"
				got, report := contentsOf(t, copyOf(fs))
				wantContents(t, got, want)
				wantDoubt(t, report.Doubt, "")
				mustClose(t, l)
			})
		}
	}
}

func (l *Log) stagedBytes() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mu.filling == nil {
		return 0
	}
	return len(l.mu.filling.buf)
}

// The disk stands still while the log says that it can be trusted again: who gives up
// then must find it said no more.
func TestALogThatIsSuspendedWhileItHealsIsNotTrusted(t *testing.T) {
	fs := newMemFS()
	l, _, _ := mustOpen(t, fs, Options{})
	mustPut(t, l, "a", 1, "old")
	suspend(l)
	eventually(t, "the marker stands", func() bool { return !fs.exists(markerName) })
	goOn := fs.hang(opRename) // of the snapshot; then of the marker
	renames := make(chan string, 4)
	fs.mu.Lock()
	still := fs.still
	fs.still = func(o op) <-chan struct{} {
		if o != opRename {
			return nil
		}
		renames <- "rename"
		if len(renames) < 2 {
			return nil
		}
		return still(o)
	}
	fs.mu.Unlock()
	done := make(chan error, 1)
	go func() { done <- l.Compact(all(map[string]string{"a": "old"}, 1)) }()
	eventually(t, "it does not come to the marker", func() bool { return len(renames) == 2 })
	suspend(l)
	goOn()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if !errors.Is(l.Err(), errStill) {
		t.Errorf("what was given up meanwhile is nowhere, and it says %v", l.Err())
	}
	wantDoubt(t, doubtOf(t, copyOf(fs)), noMarker)
	if err := l.Compact(all(map[string]string{"a": "new"}, 1)); err != nil || l.Err() != nil {
		t.Fatal(err, l.Err())
	}
	got, report := contentsOf(t, copyOf(fs))
	wantContents(t, got, map[string]string{"a": "new"})
	wantDoubt(t, report.Doubt, "")
	mustClose(t, l)
}

// Close of a log that was suspended says so, and leaves no marker.
func TestALogThatIsClosedWhileItIsSuspendedIsInDoubt(t *testing.T) {
	fs := newMemFS()
	l, _, _ := mustOpen(t, fs, Options{})
	mustPut(t, l, "a", 1, "1")
	suspend(l)
	if err := l.Close(); !errors.Is(err, errStill) {
		t.Errorf("Close: %v", err)
	}
	_, report := contentsOf(t, fs)
	wantDoubt(t, report.Doubt, noMarker)
}

// Open notices each cut of a closed log's files, and each file that is missing.
func TestAClosedLogThatWasCutShortAfterwardsIsInDoubt(t *testing.T) {
	for _, build := range []func(l *Log){
		func(l *Log) {
			for i := range 3 {
				mustPut(t, l, fmt.Sprint("k", i), 1, "v")
			}
		},
		func(l *Log) { // a snapshot alone
			if err := l.Compact(all(map[string]string{"a": "1", "b": "2"}, 1)); err != nil {
				t.Fatal(err)
			}
		},
		func(l *Log) { // a snapshot, and a log behind it
			if err := l.Compact(all(map[string]string{"a": "1"}, 1)); err != nil {
				t.Fatal(err)
			}
			mustPut(t, l, "a", 2, "2")
			mustPut(t, l, "b", 2, "2")
		},
	} {
		fs := newMemFS()
		l, _, _ := mustOpen(t, fs, Options{})
		build(l)
		mustClose(t, l)
		whole := fs.contents()
		if _, report := contentsOf(t, holding(whole)); report.Doubt != "" {
			t.Fatalf("nothing was cut: %v", report)
		}
		for name, data := range whole {
			if name == markerName {
				continue
			}
			for cut := range data {
				dir := maps.Clone(whole)
				dir[name] = data[:cut]
				if _, report := contentsOf(t, holding(dir)); report.Doubt == "" {
					t.Errorf("%s of %d bytes was cut to %d: %v", name, len(data), cut, report)
				}
			}
			dir := maps.Clone(whole)
			delete(dir, name)
			_, report := contentsOf(t, holding(dir))
			if report.Doubt == "" || len(report.Damage) != 1 || report.Damage[0].File != name {
				t.Errorf("%s was removed: %v", name, report)
			}
		}
	}
}

// The marker of version 1 says nothing of lengths, which is no damage.
func TestAMarkerOfTheVersionBeforeIsBelieved(t *testing.T) {
	fs := newMemFS()
	l, _, _ := mustOpen(t, fs, Options{})
	mustPut(t, l, "a", 1, "1")
	mustClose(t, l)
	files := fs.contents()
	old := []byte(markerMagic + "\x01\x00\x00\x00\x00\x00\x00\x00\x00\x01start 0")
	files[markerName] = putSum(old)
	got, report := contentsOf(t, holding(files))
	wantContents(t, got, map[string]string{"a": "1"})
	if report.Doubt != "" || len(report.Damage) > 0 {
		t.Error(report)
	}
}

// The files of a newer program are neither read nor changed.
func TestANewerFormatIsRefusedInWords(t *testing.T) {
	fs := newMemFS()
	l, _, _ := mustOpen(t, fs, Options{})
	mustPut(t, l, "a", 1, "1")
	mustClose(t, l)
	for name, sum := range map[string]func(b []byte) []byte{
		fileID{id: 1}.name(): mended,
		markerName:           putSum,
	} {
		files := fs.contents()
		files[name][8] = 9
		files[name] = sum(files[name])
		dir := holding(files)
		_, _, err := open(dir, Options{Logf: t.Logf}, nil)
		var newer *Newer
		if !errors.As(err, &newer) || newer.File != name || !strings.Contains(err.Error(), "version 9") {
			t.Errorf("%s: %v", name, err)
		}
		if !maps.EqualFunc(files, dir.contents(), slices.Equal[[]byte]) {
			t.Errorf("%s: the directory was changed", name)
		}
	}
}

// The disk goes on before long: what was staged meanwhile is written, without a Compact,
// and everything is durable again.
func TestADiskThatGoesOnInTimeHasEverything(t *testing.T) {
	for _, policy := range policies {
		fs := newMemFS()
		l, _, _ := mustOpen(t, fs, Options{Sync: policy})
		mustPut(t, l, "a", 1, "1")
		goOn := fs.hang(opWrite)
		first := l.Stage("b", 1, []byte("1"))
		first.Start()
		eventually(t, "nobody writes", func() bool { return l.Busy() > 0 })
		l.Late(errStill)
		if !errors.Is(l.Err(), errStill) || !l.Hangs() {
			t.Fatalf("it says %v", l.Err())
		}
		second := l.Stage("c", 1, []byte("1"))
		second.Start()
		goOn()
		if err := errors.Join(first.Wait(), second.Wait()); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the disk has everything, and it says otherwise", func() bool { return l.Err() == nil && !l.Hangs() })
		got, report := contentsOf(t, copyOf(fs))
		wantContents(t, got, map[string]string{"a": "1", "b": "1", "c": "1"})
		wantDoubt(t, report.Doubt, "")
		mustClose(t, l)
	}
}

// The log keeps few bytes for a disk that is late. A record beyond them ends the waiting of all
// callers.
func TestWhatGathersBehindADiskThatStandsStillIsBounded(t *testing.T) {
	fs := newMemFS()
	l, _, _ := mustOpen(t, fs, Options{})
	goOn := fs.hang(opWrite)
	defer goOn()
	first := l.Stage("a", 1, []byte("1"))
	written := first.Start()
	eventually(t, "nobody writes", func() bool { return l.Busy() > 0 })
	l.Late(errStill)
	payload := make([]byte, 10<<10)
	for i := range 1000 {
		l.Stage(fmt.Sprint(i), 1, payload)
		if n := l.stagedBytes(); n > lateBytes {
			t.Fatalf("%d bytes wait for the disk", n)
		}
	}
	wantDone(t, "who waits", written)
	if l.Hangs() || !errors.Is(l.Err(), errStill) {
		t.Errorf("it says %v", l.Err())
	}
	goOn()
	if err := l.Compact(all(map[string]string{"a": "1"}, 1)); err != nil || l.Err() != nil {
		t.Fatal(err, l.Err())
	}
	mustClose(t, l)
}

// A disk that stays still for longer than its grace is given up, with nobody there to ask.
func TestADiskThatDoesNotGoOnIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := newMemFS()
		l, _, _ := mustOpen(t, fs, Options{})
		mustPut(t, l, "a", 1, "1")
		goOn := fs.hang(opWrite)
		pending := l.Stage("a", 2, []byte("2"))
		written := pending.Start()
		synctest.Wait()
		l.Late(errStill)
		time.Sleep(lateGrace / 2)
		synctest.Wait()
		if !fs.exists(markerName) || !l.Hangs() {
			t.Error("given up too early")
		}
		time.Sleep(lateGrace)
		synctest.Wait()
		select {
		case <-written:
		default:
			t.Error("somebody waits still")
		}
		if fs.exists(markerName) || l.Hangs() || !errors.Is(l.Err(), errStill) {
			t.Errorf("not given up: %v", l.Err())
		}
		goOn()
		if err := l.Compact(all(map[string]string{"a": "2"}, 2)); err != nil || l.Err() != nil {
			t.Fatal(err, l.Err())
		}
		mustClose(t, l)
	})
}
