package wal

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// written is a log as it is on the disk, and what each of its prefixes means.
type written struct {
	name  string
	data  []byte
	ends  []int               // where each record ends; the first is the header
	state []map[string]string // the contents after so many records
}

// write makes a log of records of all kinds.
func write(t testing.TB, records int) written {
	t.Helper()
	fs := newMemFS()
	l, _, _ := mustOpen(t, fs, Options{})
	w := written{name: fileID{id: 1}.name()}
	state := make(map[string]string)
	for i := range records {
		key := fmt.Sprint("key", i%5)
		if i%4 == 3 {
			delete(state, key)
			mustDrop(t, l, key, uint64(i))
		} else {
			// Some payloads end in zeros, which a crash leaves, too.
			payload := strings.Repeat(string(rune('a'+i)), i*3) + strings.Repeat("\x00", i%3)
			state[key] = payload
			mustPut(t, l, key, uint64(i), payload)
		}
		if i == 0 {
			w.ends, w.state = append(w.ends, headerSize), append(w.state, map[string]string{})
		}
		w.ends = append(w.ends, len(fs.contents()[w.name]))
		w.state = append(w.state, maps.Clone(state))
	}
	mustClose(t, l)
	w.data = fs.contents()[w.name]
	return w
}

// whole returns how many records are wholly in the first n bytes.
func (w written) whole(n int) int {
	count := 0
	for count+1 < len(w.ends) && w.ends[count+1] <= n {
		count++
	}
	return count
}

func TestALogThatIsCutAnywhereHasTheRecordsBeforeTheCut(t *testing.T) {
	w := write(t, 12)
	for cut := range len(w.data) + 1 {
		for _, zeros := range []int{0, 1, 20, len(w.data) - cut, 5000} {
			fs := holding(map[string][]byte{w.name: append(bytes.Clone(w.data[:cut]), make([]byte, zeros)...)})
			got, report := contentsOf(t, fs)
			// Where bytes were zero anyway, zeros are what was written.
			sound := w.whole(matching(w.data, fs.contents()[w.name]))
			wantContents(t, got, w.state[sound])
			if report.Records != sound || len(report.Damage) > 0 {
				t.Fatalf("cut at %d, %d zeros: %v", cut, zeros, report)
			}
			clean := cut+zeros == w.ends[sound] && cut+zeros >= headerSize
			if (report.TornFile == "") != clean {
				t.Fatalf("cut at %d, %d zeros: %v", cut, zeros, report)
			}
		}
	}
}

func matching(a, b []byte) int {
	n := 0
	for n < min(len(a), len(b)) && a[n] == b[n] {
		n++
	}
	return n
}

func TestATornLogIsGoneOnWithAndNotReportedAgain(t *testing.T) {
	w := write(t, 12)
	for cut := range len(w.data) {
		fs := holding(map[string][]byte{w.name: bytes.Clone(w.data[:cut])})
		l, _, _ := mustOpen(t, fs, Options{SegmentBytes: 100})
		for i := range 10 {
			mustPut(t, l, "more", uint64(i), fmt.Sprint(i))
		}
		mustClose(t, l)
		want := maps.Clone(w.state[w.whole(cut)])
		want["more"] = "9"
		got, report := contentsOf(t, fs)
		wantContents(t, got, want)
		if len(report.Damage) > 0 || report.TornFile != "" {
			t.Fatalf("cut at %d: %v", cut, report)
		}
	}
}

func TestABitThatIsFlippedIsNoticedAndTheFileIsKept(t *testing.T) {
	w := write(t, 12)
	for at := range w.data {
		for _, bit := range []byte{0x01, 0x10, 0x80} {
			data := bytes.Clone(w.data)
			data[at] ^= bit
			fs := holding(map[string][]byte{w.name: data})
			got, report := contentsOf(t, fs)
			sound := w.whole(at)
			wantContents(t, got, w.state[sound])
			switch {
			case len(report.Damage) == 1:
				d := report.Damage[0]
				if at >= headerSize && (d.Offset != int64(w.ends[sound]) || d.Recovered != sound) {
					t.Fatalf("byte %d: %v", at, report)
				}
				if !bytes.Equal(fs.contents()[d.SetAside], data) {
					t.Fatalf("byte %d: the damaged file was not kept: %v", at, report)
				}
				again, after := contentsOf(t, fs)
				wantContents(t, again, got)
				if len(after.Damage) > 0 {
					t.Fatalf("byte %d: it is damaged still: %v", at, after)
				}
			case report.TornFile != "" && sound == len(w.ends)-2:
				// The last record, and it cannot be told from an unfinished one.
				if !bytes.Equal(fs.contents()[w.name], data) {
					t.Fatalf("byte %d: the file was changed", at)
				}
			default:
				t.Fatalf("byte %d: %v", at, report)
			}
		}
	}
}

// threeLogs is a directory of three logs of one key each.
func threeLogs(t *testing.T) map[string][]byte {
	t.Helper()
	fs := newMemFS()
	for _, key := range []string{"a", "b", "c"} {
		l, _, _ := mustOpen(t, fs, Options{})
		mustPut(t, l, key, 1, "first")
		mustPut(t, l, key, 2, key)
		mustClose(t, l)
	}
	return fs.contents()
}

func TestAnOlderLogThatIsCutOrFlippedDoesNoHarmToTheOthers(t *testing.T) {
	files := threeLogs(t)
	second := fileID{id: 2}.name()
	for cut := range files[second] {
		for _, flip := range []bool{false, true} {
			damaged := bytes.Clone(files[second][:cut])
			if flip {
				damaged = bytes.Clone(files[second])
				damaged[cut] ^= 1
			}
			dir := maps.Clone(files)
			dir[second] = damaged
			fs := holding(dir)
			got, report := contentsOf(t, fs)
			want := map[string]string{"a": "a", "c": "c"}
			if cut >= headerSize+len(appendRecord(nil, putRecord, 1, "b", []byte("first"))) {
				want["b"] = "first"
			}
			wantContents(t, got, want)
			if len(report.Damage) != 1 || report.Damage[0].File != second {
				t.Fatalf("at %d: %v", cut, report)
			}
			if !bytes.Equal(fs.contents()[report.Damage[0].SetAside], damaged) {
				t.Fatalf("at %d: the damaged file was not kept: %v", cut, report)
			}
			again, after := contentsOf(t, fs)
			wantContents(t, again, want)
			if len(after.Damage) > 0 {
				t.Fatalf("at %d: reported again: %v", cut, after)
			}
		}
	}
}

func TestASnapshotThatIsCutOrFlippedGivesWhatIsBeforeIt(t *testing.T) {
	want := map[string]string{"a": "1", "b": "2", "c": "3"}
	fs := newMemFS()
	l, _, _ := mustOpen(t, fs, Options{})
	if err := l.Compact(all(want, 1)); err != nil {
		t.Fatal(err)
	}
	mustPut(t, l, "later", 1, "v")
	mustClose(t, l)
	files := fs.contents()
	snap := fileID{id: 1, snapshot: true}.name()
	record := len(appendRecord(nil, putRecord, 1, "a", []byte("1")))
	for at := range files[snap] {
		for _, flip := range []bool{false, true} {
			damaged := bytes.Clone(files[snap][:at])
			if flip {
				damaged = bytes.Clone(files[snap])
				damaged[at] ^= 1
			}
			dir := maps.Clone(files)
			dir[snap] = damaged
			fs := holding(dir)
			got, report := contentsOf(t, fs)
			sound := map[string]string{"later": "v"}
			for i, key := range []string{"a", "b", "c"} {
				if at >= headerSize+(i+1)*record {
					sound[key] = want[key]
				}
			}
			wantContents(t, got, sound)
			if len(report.Damage) != 1 || !bytes.Equal(fs.contents()[report.Damage[0].SetAside], damaged) {
				t.Fatalf("at %d: %v", at, report)
			}
		}
	}
}

func TestOtherDamageIsToldAndSetAside(t *testing.T) {
	name := func(id uint64) string { return fileID{id: id}.name() }
	snap := func(id uint64) string { return fileID{id: id, snapshot: true}.name() }
	sound := func(id uint64, records ...[]byte) []byte {
		return append(header{file: fileID{id: id}, run: id}.append(nil), bytes.Join(records, nil)...)
	}
	snapshot := func(id uint64, records ...[]byte) []byte {
		h := header{file: fileID{id: id, snapshot: true}, run: id}
		return append(h.append(nil), bytes.Join(records, nil)...)
	}
	put := func(key string) []byte { return appendRecord(nil, putRecord, 1, key, []byte("v")) }
	absurd := binary.LittleEndian.AppendUint32(nil, 0xfffffff0)
	future := sound(2, put("b"))
	future[8] = 9
	summed := func(body ...byte) []byte { // a record whose checksum is right
		b := appendRecord(nil, putRecord, 0, string(body), nil)
		rec := append(b[:recordHead:recordHead], body...)
		binary.LittleEndian.PutUint32(rec, uint32(len(body)))
		binary.LittleEndian.PutUint32(rec[4:], sumBytes(body))
		return rec
	}
	unknown := summed(append([]byte{77}, make([]byte, 12)...)...)
	longKey := summed(append([]byte{1, 0, 0, 0, 0, 0, 0, 0, 0, 200}, make([]byte, 3)...)...)

	tests := map[string]struct {
		file   string
		data   []byte
		reason string
		lost   int
	}{
		"foreign":                      {name(2), []byte("this is somebody's notebook\n"), "not a file of this journal", 0},
		"foreign and last":             {name(9), []byte("this is somebody's notebook\n"), "not a file of this journal", 0},
		"a future version":             {name(2), future, "format version 9, known is 1", 1},
		"under another's name":         {name(2), sound(7, put("b")), "is journal-0000000000000007.log under another name", 1},
		"an absurd number":             {name(1<<62 + 1), sound(1<<62+1, put("b")), "an absurd number", 1},
		"an absurd length":             {name(2), sound(2, put("b"), absurd, put("x"), put("y")), "an absurd length, 4294967280", 3},
		"an absurd length and last":    {name(9), sound(9, put("b"), absurd, make([]byte, 50)), "an absurd length, 4294967280", 1},
		"a length of zero":             {name(2), sound(2, put("b"), make([]byte, 40)), "an absurd length, 0", 1},
		"an unknown kind":              {name(2), sound(2, put("b"), unknown, put("x")), "an unknown kind of record", 2},
		"an unknown kind and last":     {name(9), sound(9, put("b"), unknown, []byte{1}), "an unknown kind of record", 1},
		"a key over its record":        {name(2), sound(2, put("b"), longKey, put("x")), "an unknown kind of record", 2},
		"an end within a log":          {name(2), sound(2, put("b"), appendRecord(nil, endRecord, 1, "", nil), put("x")), "an unknown kind of record", 3},
		"empty, and not the last":      {name(2), nil, "not a file of this journal", 0},
		"cut, and sound records after": {name(9), sound(9, put("b"), put("x")[:15], put("y")), "a record cut short", 2},
		"a snapshot with a gap":        {snap(2), snapshot(2, put("b"), appendRecord(nil, endRecord, 2, "", nil)), "a snapshot of 2 records that has 1", 0},
		"more than a snapshot":         {snap(2), snapshot(2, put("b"), appendRecord(nil, endRecord, 1, "", nil), put("x")), "something behind the end of a snapshot", 2},
		"a log as a snapshot":          {snap(2), sound(2, put("b")), "not a file of this journal", 1},
	}
	for title, tt := range tests {
		t.Run(title, func(t *testing.T) {
			fs := holding(map[string][]byte{
				name(1): sound(1, put("a")),
				tt.file: tt.data,
				name(5): sound(5, put("c")),
			})
			got, report := contentsOf(t, fs)
			want := map[string]string{"a": "v", "c": "v"}
			if len(report.Damage) != 1 {
				t.Fatal(report)
			}
			d := report.Damage[0]
			if d.Recovered > 0 {
				want["b"] = "v"
			}
			wantContents(t, got, want)
			if strings.HasPrefix(tt.reason, "a record cut") {
				// A length that reaches into the next record looks like a bad checksum.
				d.Reason = tt.reason
			}
			if d.File != tt.file || d.Reason != tt.reason || d.Lost != tt.lost {
				t.Errorf("%v; want %s with %q and %d lost", report, tt.file, tt.reason, tt.lost)
			}
			if d.LostBytes != int64(len(tt.data))-d.Offset {
				t.Errorf("%d bytes lost from byte %d of %d", d.LostBytes, d.Offset, len(tt.data))
			}
			if !bytes.Equal(fs.contents()[d.SetAside], tt.data) {
				t.Errorf("the file was not kept: %v", report)
			}
			if line := report.String(); !strings.Contains(line, tt.file) || strings.Contains(line, "\n") {
				t.Errorf("the report reads %q", line)
			}
			again, after := contentsOf(t, fs)
			wantContents(t, again, want)
			if len(after.Damage) > 0 {
				t.Errorf("reported again: %v", after)
			}
		})
	}
}

func TestALogThatIsMissingIsTold(t *testing.T) {
	files := threeLogs(t)
	delete(files, fileID{id: 2}.name())
	fs := holding(files)
	got, report := contentsOf(t, fs)
	wantContents(t, got, map[string]string{"a": "a", "c": "c"})
	if len(report.Damage) != 1 || report.Damage[0].Reason != "is missing" {
		t.Error(report)
	}
	if _, after := contentsOf(t, fs); len(after.Damage) > 0 {
		t.Errorf("reported again: %v", after)
	}
}

func TestADamagedFileNeverTakesTheNameOfAnother(t *testing.T) {
	name := fileID{id: 1}.name()
	fs := holding(map[string][]byte{
		name:                []byte("third"),
		name + ".damaged-1": []byte("first"),
		name + ".damaged-2": []byte("second"),
	})
	_, report := contentsOf(t, fs)
	if report.Damage[0].SetAside != name+".damaged-3" {
		t.Error(report)
	}
	for n, want := range []string{"first", "second", "third"} {
		if got := fs.contents()[fmt.Sprintf("%s.damaged-%d", name, n+1)]; string(got) != want {
			t.Errorf("the %s one is %q", want, got)
		}
	}
}

// A payload may hold what looks like a record: whoever fills a cache may choose it.
func TestARecordInsideAPayloadIsNeverLoaded(t *testing.T) {
	inner := string(appendRecord(nil, putRecord, 99, "forged", []byte("v")))
	fs := newMemFS()
	l, _, _ := mustOpen(t, fs, Options{})
	mustPut(t, l, "a", 1, "v")
	mustPut(t, l, "b", 1, strings.Repeat(inner, 3))
	mustPut(t, l, "c", 1, "v")
	mustClose(t, l)
	name := fileID{id: 1}.name()
	data := fs.contents()[name]
	for at := range data {
		for _, cut := range []bool{false, true} {
			damaged := bytes.Clone(data)
			if damaged[at] ^= 1; cut {
				damaged = damaged[:at]
			}
			got, _ := contentsOf(t, holding(map[string][]byte{name: damaged}))
			if _, ok := got["forged"]; ok {
				t.Fatalf("byte %d: %s", at, brief(got))
			}
		}
	}
}

func TestASnapshotThatWasNotFinishedIsRemoved(t *testing.T) {
	files := threeLogs(t)
	files[fileID{id: 4, snapshot: true}.name()+".tmp"] = []byte("half")
	files["journal-notes.snap.tmp"] = []byte("not ours")
	fs := holding(files)
	got, report := contentsOf(t, fs)
	wantContents(t, got, map[string]string{"a": "a", "b": "b", "c": "c"})
	if len(report.Damage) > 0 {
		t.Error(report)
	}
	if left := fs.segments(); len(left) != 4 || left["journal-notes.snap.tmp"] == nil {
		t.Errorf("%d files are left", len(left))
	}
}

// A crash between the making of a snapshot and the removal of what it replaces must
// not bring back what was dropped.
func TestWhatASnapshotHasReplacedDoesNotCount(t *testing.T) {
	fs := newMemFS()
	l, _, _ := mustOpen(t, fs, Options{})
	mustPut(t, l, "old", 1, "v")
	mustPut(t, l, "kept", 1, "v")
	fs.fault = failing(opRemove, 1, 100, 0, errDisk)
	if err := l.Compact(all(map[string]string{"kept": "v"}, 1)); err != nil {
		t.Fatal(err)
	}
	next := fs.killed()
	if len(next.segments()) != 2 {
		t.Fatal("the older file is gone")
	}
	l, got, report := mustOpen(t, next, Options{})
	wantContents(t, got, map[string]string{"kept": "v"})
	if len(report.Damage) > 0 {
		t.Error(report)
	}
	if err := l.Compact(all(got, 1)); err != nil {
		t.Fatal(err)
	}
	mustClose(t, l)
	if len(next.segments()) != 1 {
		t.Error("the next Compact did not remove it")
	}
}

// A crash of the machine may leave of a log that has been replaced less than there
// was, and not who tells where it ended.
func TestATornLogThatASnapshotHasReplacedIsNoDamage(t *testing.T) {
	fs := newMemFS()
	l, _, _ := mustOpen(t, fs, Options{})
	mustPut(t, l, "k", 1, "v")
	older := fileID{id: 1}.name()
	data := fs.contents()[older]
	if err := l.Compact(all(map[string]string{"k": "w"}, 2)); err != nil {
		t.Fatal(err)
	}
	mustPut(t, l, "l", 1, "v")
	files := fs.contents() // with a marker that does not say that the log was closed
	mustClose(t, l)
	for cut := range data {
		for _, ends := range []bool{true, false} {
			dir := maps.Clone(files)
			dir[older] = data[:cut]
			if !ends {
				delete(dir, fileID{id: 3}.name())
			}
			got, report := contentsOf(t, holding(dir))
			if got["k"] != "w" || report.TornFile != "" {
				t.Fatalf("cut at %d: %s, %v", cut, brief(got), report)
			}
			if unknown := !ends || cut < headerSize; unknown && len(report.Damage) > 0 {
				t.Fatalf("cut at %d: %v", cut, report)
			}
		}
	}
}

func TestWhatIsNoFileIsSetAside(t *testing.T) {
	dir := t.TempDir()
	odd := fileID{id: 3}.name()
	if err := os.MkdirAll(filepath.Join(dir, odd, "within"), 0o700); err != nil {
		t.Fatal(err)
	}
	l, report, err := Open(dir, Options{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Damage) != 1 || report.Damage[0].Reason != "not a regular file" {
		t.Error(report)
	}
	if _, err := os.Stat(filepath.Join(dir, report.Damage[0].SetAside, "within")); err != nil {
		t.Error(err)
	}
	mustPut(t, l, "k", 1, "v")
	mustClose(t, l)
}

func TestAFullDiskKeepsDamagedFilesWhereTheyAre(t *testing.T) {
	for _, id := range []uint64{1, 2, 3} {
		files := threeLogs(t)
		name := fileID{id: id}.name()
		files[name][headerSize+20] ^= 1
		fs := holding(files)
		fs.fault = failing(opWrite, 1, 1000, 10, errDisk)
		l, want, report := mustOpen(t, fs, Options{})
		if len(want) != 2 || len(report.Damage) != 1 || report.Damage[0].SetAside != "" {
			t.Errorf("%s, %v", brief(want), report)
		}
		if !bytes.Equal(fs.contents()[name], files[name]) {
			t.Error("the damaged file was touched")
		}
		if !l.NeedsCompaction(1 << 30) {
			t.Error("a damaged file that is not set aside needs no Compact")
		}
		fs.fault = nil
		want["more"] = "v"
		mustPut(t, l, "more", 1, "v")

		// The next process finds it damaged as before.
		next := copyOf(fs)
		got, report := contentsOf(t, next)
		wantContents(t, got, want)
		if len(report.Damage) != 1 || !bytes.Equal(next.contents()[name+".damaged-1"], files[name]) {
			t.Errorf("the damaged file was not kept by the next process: %v", report)
		}

		if err := l.Compact(all(want, 1)); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(fs.contents()[name+".damaged-1"], files[name]) {
			t.Error("the damaged file was not kept")
		}
		mustClose(t, l)
		got, _ = contentsOf(t, fs)
		wantContents(t, got, want)
	}
}

// Bytes can be made up of which each is the beginning of a long record.
func TestDamageThatLooksLikeRecordsIsReadInBoundedTime(t *testing.T) {
	data := header{file: fileID{id: 1}, run: 1}.append(nil)
	trap := make([]byte, 8<<20)
	for i := range trap {
		trap[i] = 1 // a length of 16 MiB and more, a put, a key of 16 MiB
	}
	for i := 0; i+recordHead+bodyHead < len(trap); i += recordHead + bodyHead {
		binary.LittleEndian.PutUint32(trap[i:], uint32(len(trap)-i-recordHead))
		binary.LittleEndian.PutUint32(trap[i+recordHead+9:], 0)
	}
	// And the first one looks cut, as after a crash.
	binary.LittleEndian.PutUint32(trap, uint32(len(trap)))
	data = append(data, trap...)
	name := fileID{id: 1}.name()
	fs := holding(map[string][]byte{name: data})
	_, report := contentsOf(t, fs)
	if len(report.Damage) != 1 || len(fs.contents()[name+".damaged-1"]) != len(data) {
		t.Error(report)
	}
}

func TestACrashWhileDamageIsRepairedLosesNothing(t *testing.T) {
	second := fileID{id: 2}.name()
	flipped, cut := threeLogs(t), threeLogs(t)
	flipped[second][len(flipped[second])-1] ^= 1
	cut[second] = cut[second][:len(cut[second])-1]
	want := map[string]string{"a": "a", "b": "first", "c": "c"}
	for name, files := range map[string]map[string][]byte{"flipped": flipped, "cut": cut} {
		for crash, repaired := 0, false; !repaired; crash++ {
			fs := holding(files)
			left := crash
			fs.fault = func(_ op, _ string, size int) (int, error) {
				if left--; left < 0 {
					return size / 2, errCrash
				}
				return size, nil
			}
			mustOpen(t, fs, Options{})
			if repaired = !fs.dead; repaired && crash < 5 {
				t.Fatalf("%s: it was repaired in %d changes", name, crash)
			}
			nexts := []*memFS{fs.killed()}
			for seed := range uint64(10) {
				nexts = append(nexts, fs.unplugged(newRand(seed)))
			}
			for _, next := range nexts {
				l, got, report := mustOpen(t, next, Options{})
				wantContents(t, got, want)
				if err := l.Compact(all(got, 1)); err != nil {
					t.Fatal(err)
				}
				mustClose(t, l)
				kept := false
				for _, data := range next.contents() {
					kept = kept || bytes.Equal(data, files[second])
				}
				if !kept {
					t.Fatalf("%s, crash at change %d: the damaged file is gone: %v", name, crash, report)
				}
			}
		}
	}
}
