package wal

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
)

func TestWhatWasPutIsThereAtTheNextOpen(t *testing.T) {
	type step struct {
		op      string
		key     string
		seq     uint64
		payload string
	}
	tests := map[string]struct {
		steps []step
		want  map[string]string
	}{
		"nothing":             {nil, map[string]string{}},
		"one":                 {[]step{{"put", "k", 1, "v"}}, map[string]string{"k": "v"}},
		"an empty key":        {[]step{{"put", "", 1, "v"}}, map[string]string{"": "v"}},
		"an empty payload":    {[]step{{"put", "k", 1, ""}}, map[string]string{"k": ""}},
		"bytes of any kind":   {[]step{{"put", "\x00\xff", 1, "\r\n\x00"}}, map[string]string{"\x00\xff": "\r\n\x00"}},
		"the later one":       {[]step{{"put", "k", 1, "a"}, {"put", "k", 2, "b"}}, map[string]string{"k": "b"}},
		"the higher number":   {[]step{{"put", "k", 2, "b"}, {"put", "k", 1, "a"}}, map[string]string{"k": "b"}},
		"the later of equals": {[]step{{"put", "k", 0, "a"}, {"put", "k", 0, "b"}}, map[string]string{"k": "b"}},
		"dropped":             {[]step{{"put", "k", 1, "a"}, {"drop", "k", 1, ""}}, map[string]string{}},
		"dropped in vain":     {[]step{{"put", "k", 2, "a"}, {"drop", "k", 1, ""}}, map[string]string{"k": "a"}},
		"dropped before":      {[]step{{"drop", "k", 2, ""}, {"put", "k", 1, "a"}}, map[string]string{}},
		"put again":           {[]step{{"put", "k", 1, "a"}, {"drop", "k", 1, ""}, {"put", "k", 2, "b"}}, map[string]string{"k": "b"}},
		"a later run wins":    {[]step{{"put", "k", 9, "a"}, {"reopen", "", 0, ""}, {"put", "k", 1, "b"}}, map[string]string{"k": "b"}},
		"a later run drops":   {[]step{{"put", "k", 9, "a"}, {"reopen", "", 0, ""}, {"drop", "k", 1, ""}}, map[string]string{}},
		"put after a dropped": {[]step{{"drop", "k", 9, ""}, {"reopen", "", 0, ""}, {"put", "k", 1, "b"}}, map[string]string{"k": "b"}},
	}
	for name, tt := range tests {
		for _, policy := range []SyncPolicy{SyncNone, SyncInterval, SyncAlways} {
			t.Run(fmt.Sprintf("%s/%v", name, policy), func(t *testing.T) {
				fs := newMemFS()
				l, _, _ := mustOpen(t, fs, Options{Sync: policy})
				for _, s := range tt.steps {
					switch s.op {
					case "put":
						mustPut(t, l, s.key, s.seq, s.payload)
					case "drop":
						mustDrop(t, l, s.key, s.seq)
					case "reopen":
						mustClose(t, l)
						l, _, _ = mustOpen(t, fs, Options{Sync: policy})
					}
				}
				mustClose(t, l)
				got, report := contentsOf(t, fs)
				wantContents(t, got, tt.want)
				if len(report.Damage) > 0 || report.TornFile != "" {
					t.Errorf("it was not sound: %v", report)
				}
			})
		}
	}
}

func TestKeysAreLoadedInTheOrderOfTheirLastRecords(t *testing.T) {
	fs := newMemFS()
	l, _, _ := mustOpen(t, fs, Options{})
	for i, key := range []string{"a", "b", "c", "a", "d", "b"} {
		mustPut(t, l, key, uint64(i), key)
	}
	mustDrop(t, l, "d", 9)
	mustClose(t, l)
	for range 10 {
		var got []string
		o, _ := Options{}.withDefaults()
		l, _, err := open(fs, o, func(key string, _ []byte) { got = append(got, key) })
		if err != nil {
			t.Fatal(err)
		}
		mustClose(t, l)
		if want := []string{"c", "a", "b"}; !slices.Equal(got, want) {
			t.Fatalf("loaded in the order %v, want %v", got, want)
		}
	}
}

func TestAnOpenThatWritesNothingLeavesNoSegment(t *testing.T) {
	fs := newMemFS()
	for range 3 {
		l, _, _ := mustOpen(t, fs, Options{})
		mustClose(t, l)
	}
	if got := fs.segments(); len(got) > 0 {
		t.Errorf("there are %d files", len(got))
	}
}

func TestALogThatIsFullGoesOnInTheNextFile(t *testing.T) {
	for _, policy := range []SyncPolicy{SyncNone, SyncInterval, SyncAlways} {
		fs := newMemFS()
		l, _, _ := mustOpen(t, fs, Options{Sync: policy, SegmentBytes: 200})
		want := make(map[string]string)
		for i := range 50 {
			key := fmt.Sprint("k", i%20)
			want[key] = fmt.Sprint(i)
			mustPut(t, l, key, uint64(i), want[key])
		}
		want["large"] = strings.Repeat("x", 1000)
		mustPut(t, l, "large", 0, want["large"])
		size := int64(0)
		for name, data := range fs.segments() {
			size += int64(len(data))
			if len(data) > 200 && !bytes.Contains(data, []byte("large")) {
				t.Errorf("%s has %d bytes", name, len(data))
			}
		}
		if l.Size() != size {
			t.Errorf("Size is %d, the files have %d", l.Size(), size)
		}
		mustClose(t, l)
		got, report := contentsOf(t, fs)
		wantContents(t, got, want)
		if report.Files < 5 || len(report.Damage) > 0 {
			t.Error(report)
		}
	}
}

func TestADirectoryIsOneLogsAlone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	l, _, err := Open(dir, Options{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = Open(dir, Options{}, nil)
	var inUse *InUse
	if !errors.As(err, &inUse) || inUse.Dir != dir || inUse.PID != os.Getpid() {
		t.Fatalf("a second Open: %v", err)
	}
	if !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
		t.Errorf("the error names neither directory nor process: %v", err)
	}
	mustPut(t, l, "k", 1, "v") // the first one does not mind
	mustClose(t, l)
	got := ""
	l, _, err = Open(dir, Options{}, func(key string, payload []byte) { got = key + string(payload) })
	if err != nil || got != "kv" {
		t.Fatalf("after Close: %q, %v", got, err)
	}
	mustClose(t, l)
}

func TestAPanicOfLoadUnlocksTheDirectory(t *testing.T) {
	dir := t.TempDir()
	l, _, err := Open(dir, Options{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	mustPut(t, l, "k", 1, "v")
	mustClose(t, l)
	func() {
		defer func() { recover() }()
		Open(dir, Options{}, func(string, []byte) { panic("load") })
		t.Error("it did not panic")
	}()
	l, _, err = Open(dir, Options{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	mustClose(t, l)
}

func TestFilesAreTheOwnersAlone(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows has other permissions")
	}
	dir := filepath.Join(t.TempDir(), "d")
	l, _, err := Open(dir, Options{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	mustPut(t, l, "k", 1, "v")
	if err := l.Compact(all(map[string]string{"k": "v"}, 1)); err != nil {
		t.Fatal(err)
	}
	mustPut(t, l, "l", 1, "v")
	defer mustClose(t, l)
	err = filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		want := os.FileMode(0o600)
		if path == dir {
			want = 0o700
		}
		if err == nil && info.Mode().Perm() != want {
			t.Errorf("%s has %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestADirectoryThatIsNoneIsAnError(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{file, filepath.Join(file, "below")} {
		if _, _, err := Open(dir, Options{}, nil); err == nil {
			t.Errorf("Open(%s) succeeded", dir)
		}
	}
	if _, _, err := Open(t.TempDir(), Options{Sync: 7}, nil); err == nil {
		t.Error("a policy that does not exist was taken")
	}
}

func TestWhatIsWrittenAfterCloseIsRefused(t *testing.T) {
	fs := newMemFS()
	l, _, _ := mustOpen(t, fs, Options{})
	staged := l.Stage("staged", 1, []byte("before"))
	mustClose(t, l)
	mustClose(t, l)
	if err := staged.Wait(); err != nil {
		t.Errorf("staged before Close: %v", err)
	}
	for name, err := range map[string]error{
		"Put":     l.Put("k", 1, nil),
		"Drop":    l.Drop("k", 1),
		"Compact": l.Compact(all(nil, 0)),
	} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	got, _ := contentsOf(t, fs)
	wantContents(t, got, map[string]string{"staged": "before"})
}

func TestWaitMayBeCalledAgain(t *testing.T) {
	l, _, _ := mustOpen(t, newMemFS(), Options{})
	defer mustClose(t, l)
	first := l.Stage("a", 1, nil)
	second := l.Stage("b", 1, nil)
	for _, p := range []Pending{second, first, second, first, {}} {
		if err := p.Wait(); err != nil {
			t.Error(err)
		}
	}
}

func TestARecordThatIsTooLargeIsRefusedAndDoesNoHarm(t *testing.T) {
	l, _, _ := mustOpen(t, newMemFS(), Options{})
	defer mustClose(t, l)
	l.largest = 100 // not a GiB of memory
	huge := map[string]string{"k": strings.Repeat("x", 100)}
	if err := l.Put("k", 1, []byte(huge["k"])); !errors.Is(err, ErrTooLarge) {
		t.Errorf("Put: %v", err)
	}
	if err := l.Compact(all(huge, 1)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("Compact: %v", err)
	}
	if err := l.Err(); err != nil {
		t.Errorf("Err: %v", err)
	}
	mustPut(t, l, "k", 1, "v")
}

func TestCompactForgetsTheWayAndKeepsTheState(t *testing.T) {
	for _, policy := range []SyncPolicy{SyncNone, SyncInterval, SyncAlways} {
		fs := newMemFS()
		l, _, _ := mustOpen(t, fs, Options{Sync: policy, SegmentBytes: 300})
		want := make(map[string]string)
		for i := range 200 {
			key := fmt.Sprint("k", i%7)
			want[key] = fmt.Sprint(i)
			mustPut(t, l, key, uint64(i), want[key])
		}
		live := int64(0)
		for key, payload := range want {
			live += RecordSize(len(key), len(payload))
		}
		if !l.NeedsCompaction(live) {
			t.Error("it is worth while, and is not said to be")
		}
		if err := l.Compact(all(want, 200)); err != nil {
			t.Fatal(err)
		}
		if l.NeedsCompaction(live) {
			t.Error("it has been done, and is said to be worth while")
		}
		if files := fs.segments(); len(files) != 1 {
			t.Errorf("%d files are left", len(files))
		}
		want["after"] = "v"
		mustPut(t, l, "after", 1, "v")
		mustClose(t, l)
		got, report := contentsOf(t, fs)
		wantContents(t, got, want)
		if len(report.Damage) > 0 || report.Files != 2 {
			t.Error(report)
		}
	}
}

func TestManySmallFilesNeedCompaction(t *testing.T) {
	fs := newMemFS()
	for i := range maxFiles + 1 {
		l, _, _ := mustOpen(t, fs, Options{})
		mustPut(t, l, fmt.Sprint(i), 1, "")
		if l.NeedsCompaction(1<<20) != (i == maxFiles) {
			t.Fatalf("with %d files it is %v", i+1, l.NeedsCompaction(1<<20))
		}
		mustClose(t, l)
	}
}

// The state that a snapshot is made of may be newer than the records behind it, and
// older than others.
func TestRecordsDuringACompactCountByTheirNumbers(t *testing.T) {
	fs := newMemFS()
	l, _, _ := mustOpen(t, fs, Options{})
	mustPut(t, l, "older", 1, "1")
	mustPut(t, l, "newer", 1, "1")
	mustPut(t, l, "dropped", 1, "1")
	mustPut(t, l, "gone", 1, "1")
	err := l.Compact(func(yield func(string, uint64, []byte) bool) {
		mustPut(t, l, "older", 2, "2") // is in the snapshot as 3
		mustPut(t, l, "newer", 3, "3") // is in the snapshot as 2
		mustDrop(t, l, "dropped", 1)   // is in the snapshot as 1
		mustPut(t, l, "only here", 1, "1")
		for _, r := range []struct {
			key string
			seq uint64
		}{{"older", 3}, {"newer", 2}, {"dropped", 1}} {
			if !yield(r.key, r.seq, []byte(fmt.Sprint(r.seq))) {
				t.Error("yield said false")
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"older": "3", "newer": "3", "only here": "1"}
	got, _ := contentsOf(t, fs.killed())
	wantContents(t, got, want)
}

func TestAPanicOfLiveLeavesTheLogAsItWas(t *testing.T) {
	fs := newMemFS()
	l, _, _ := mustOpen(t, fs, Options{})
	mustPut(t, l, "k", 1, "v")
	func() {
		defer func() { recover() }()
		l.Compact(func(yield func(string, uint64, []byte) bool) {
			yield("half", 1, nil)
			panic("live")
		})
	}()
	mustPut(t, l, "l", 1, "v")
	if err := l.Compact(all(map[string]string{"k": "v", "l": "v"}, 1)); err != nil {
		t.Fatal(err)
	}
	mustClose(t, l)
	got, _ := contentsOf(t, fs)
	wantContents(t, got, map[string]string{"k": "v", "l": "v"})
	if files := fs.segments(); len(files) != 1 {
		t.Errorf("%d files are left", len(files))
	}
}

func TestCloseEndsACompact(t *testing.T) {
	fs := newMemFS()
	l, _, _ := mustOpen(t, fs, Options{})
	mustPut(t, l, "k", 1, "v")
	closed := make(chan error, 1)
	err := l.Compact(func(yield func(string, uint64, []byte) bool) {
		go func() { closed <- l.Close() }()
		for yield("k", 1, []byte("v")) {
			runtime.Gosched()
		}
	})
	if !errors.Is(err, ErrClosed) {
		t.Errorf("Compact: %v", err)
	}
	if err := <-closed; err != nil {
		t.Errorf("Close: %v", err)
	}
	got, _ := contentsOf(t, fs)
	wantContents(t, got, map[string]string{"k": "v"})
}

func TestConcurrentCallersShareAnFsync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := newMemFS()
		l, _, _ := mustOpen(t, fs, Options{Sync: SyncAlways})
		mustPut(t, l, "first", 1, "")

		// While an fsync is under way, others stage; the one after it is theirs.
		const callers = 20
		proceed := make(chan struct{})
		syncs := 0
		fs.fault = func(o op, _ string, size int) (int, error) {
			if o == opSync {
				if syncs++; syncs == 1 {
					<-proceed
				}
			}
			return size, nil
		}
		var all sync.WaitGroup
		all.Go(func() { mustPut(t, l, "slow", 1, "") })
		synctest.Wait()
		for i := range callers {
			all.Go(func() { mustPut(t, l, fmt.Sprint(i), 1, "") })
		}
		synctest.Wait() // they all wait for the one that writes
		close(proceed)
		all.Wait()
		if syncs != 2 {
			t.Errorf("%d callers took %d fsyncs, want 2", callers+1, syncs)
		}
		mustClose(t, l)
	})
}

func TestCloseForcesEverythingToTheDisk(t *testing.T) {
	for _, policy := range []SyncPolicy{SyncNone, SyncInterval, SyncAlways} {
		fs := newMemFS()
		l, _, _ := mustOpen(t, fs, Options{Sync: policy, SegmentBytes: 100})
		want := make(map[string]string)
		for i := range 20 {
			want[fmt.Sprint(i)] = "v"
			mustPut(t, l, fmt.Sprint(i), 1, "v")
		}
		mustClose(t, l)
		for seed := range uint64(20) {
			got, report := contentsOf(t, fs.unplugged(newRand(seed)))
			wantContents(t, got, want)
			if len(report.Damage) > 0 {
				t.Error(report)
			}
		}
	}
}
