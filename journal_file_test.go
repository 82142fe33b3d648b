package holdfast

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
)

// reopened is what a process finds that begins where the last one died.
func reopened(t *testing.T, dir string, o JournalOptions) (*journal, restored) {
	t.Helper()
	j := newJournal(o)
	o.Dir = dir
	r, err := j.open(o, 10*time.Second, clock.Start(), hashed, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	return j, r
}

// sweep takes out what is done with.
func sweep(j *journal) (again bool) {
	again, _ = j.swept(context.Background())
	return again
}

// durable waits until the file has what was saved.
func durable(t *testing.T, j *journal, p saving) {
	t.Helper()
	if err := j.durable(context.Background(), clock.Start().Now(), p); err != nil {
		t.Error(err)
	}
}

// dies ends the journal's file as the death of the process does: whatever is not
// written is lost, and the lock is gone.
func dies(t *testing.T, j *journal) {
	t.Helper()
	if err := j.file.log.Close(); err != nil {
		t.Fatal(err)
	}
}

var roomy = JournalOptions{MaxKeys: 1000, MaxBytes: 1 << 20}

func TestAnIntentSurvivesItsProcess(t *testing.T) {
	hour := int64(time.Hour)
	const now, wall = 5 * int64(time.Hour), 1_700_000_000 * int64(time.Second)
	late := lateWrites{since: 7, sums: []digest{{1}, {2}}, gone: now + hour, del: true, more: true}
	for name, in := range map[string]*intent{
		"a set":          {value: []byte("v"), deadline: now + hour},
		"without an end": {value: []byte("v"), deadline: clock.Never},
		"empty":          {value: []byte{}, deadline: clock.Never},
		"over its time":  {value: []byte("v"), deadline: now - 1},
		"for ever":       {value: []byte("v"), deadline: clock.Never - 1},
		"a delete":       {del: true, deadline: clock.Never},
		"an undo":        {del: true, compensate: true, deadline: clock.Never, possibleLateWrites: late},
		"base":           {value: []byte("v"), deadline: clock.Never, expected: expected{known: true, held: true, sum: digest{9}, gone: clock.Never, server: "id"}},
		"base with end":  {value: []byte("v"), deadline: clock.Never, expected: expected{known: true, held: true, sum: digest{9}, gone: now + 2*hour, server: "id"}},
		"absent before":  {value: []byte("v"), deadline: clock.Never, expected: expected{known: true, server: "id"}},
		"late":           {value: []byte("v"), deadline: clock.Never, possibleLateWrites: late},
	} {
		t.Run(name, func(t *testing.T) {
			// An hour later, in a process whose clock began two hours before.
			got, ok := decodeIntent(in.encode(now, wall), 2*hour, wall+hour)
			if !ok {
				t.Fatal("not understood")
			}
			moved := func(at int64) int64 {
				if at == clock.Never {
					return clock.Never
				}
				return min(at-now+hour, clock.Never-1)
			}
			if string(got.value) != string(in.value) || got.del != in.del || got.compensate != in.compensate {
				t.Errorf("%+v", got)
			}
			if want := moved(in.deadline); in.deadline < clock.Never-1 && got.deadline != want || in.deadline == clock.Never && got.deadline != clock.Never {
				t.Errorf("its end is %d, want %d", got.deadline, want)
			}
			if got.deadline == clock.Never && in.deadline != clock.Never {
				t.Error("it has no end any more")
			}
			want := in.expected
			want.gone = moved(want.gone)
			if in.expected.held && got.expected != want || got.expected.known != want.known || got.expected.held != want.held || got.expected.server != want.server {
				t.Errorf("base %+v, want %+v", got.expected, want)
			}
			if got.possibleLateWrites.since != earlierProcess || got.possibleLateWrites.until != 0 {
				t.Errorf("what the last process sent may still run, and it says %+v", got.possibleLateWrites)
			}
			for _, sum := range in.possibleLateWrites.sums {
				if !slices.Contains(got.possibleLateWrites.sums, sum) {
					t.Errorf("digest %x is lost", sum[:2])
				}
			}
			if in.possibleLateWrites.since != 0 && (got.possibleLateWrites.more != in.possibleLateWrites.more || got.possibleLateWrites.del != in.possibleLateWrites.del) {
				t.Errorf("late %+v, want %+v", got.possibleLateWrites, in.possibleLateWrites)
			}
			if !in.del && !remembers(got.possibleLateWrites, string(in.value)) {
				t.Error("it does not know that its own value may appear late")
			}
			if in.del && !in.compensate && !got.possibleLateWrites.del {
				t.Error("it does not know that it may delete late")
			}
			for cut := range in.encode(now, wall) {
				if cut < len(in.encode(now, wall))-len(in.value) {
					if got, ok := decodeIntent(in.encode(now, wall)[:cut], now, wall); ok || !got.del {
						t.Fatalf("%d bytes of it are understood: %+v", cut, got)
					}
				}
			}
		})
	}
}

func FuzzDecodeIntent(f *testing.F) {
	for _, in := range []*intent{
		{value: []byte("v"), deadline: clock.Never, possibleLateWrites: lateWrites{since: 1, sums: []digest{{1}}}},
		{del: true, deadline: 5, expected: expected{known: true, held: true, server: "id"}},
	} {
		f.Add(in.encode(10, 1<<60))
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		in, ok := decodeIntent(payload, 10, 1<<60)
		if !ok && (!in.del || in.possibleLateWrites.since == 0) {
			t.Fatalf("not understood, and no delete: %+v", in)
		}
		again, ok := decodeIntent(in.encode(10, 1<<60), 10, 1<<60)
		if !ok || string(again.value) != string(in.value) || again.del != in.del || again.deadline != in.deadline && in.deadline < clock.Never-1<<61 {
			t.Fatalf("%+v became %+v", in, again)
		}
	})
}

func TestWhatWasAcceptedIsFencedInTheNextProcess(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "journal")
	j, r := reopened(t, dir, roomy)
	if r.keys != 0 || r.doubt != "" {
		t.Fatalf("a new directory: %+v", r)
	}
	put(t, j, set("set", "v", 1), admitted)
	put(t, j, del("del", 1), admitted)
	put(t, j, set("again", "old", 1), admitted)
	put(t, j, set("again", "new", 2), admitted)
	put(t, j, set("undone", "v", 1), admitted)
	put(t, j, del("undone", 2), admitted)
	put(t, j, ambiguous(set("sent", "v", 1), 3), admitted)
	put(t, j, set("touched", "v", 1), admitted)
	saved, touched := j.touch(hashed("touched"), "touched", 0, time.Hour.Nanoseconds())
	if !touched {
		t.Fatal("not touched")
	}
	durable(t, j, saved)
	put(t, j, set("done", "v", 1), admitted)
	for _, task := range j.takeOne(hashed("done"), "done") {
		settle(j, task, foundOurs, 1, 0)
	}
	if !j.holds(hashed("done"), "done") {
		t.Fatal("its fence fell before the file knew")
	}
	if sweep(j); j.holds(hashed("done"), "done") {
		t.Fatal("it stays")
	}
	wantGauges(t, j, 6, 6, int64(len("setv"+"del"+"againnew"+"undone"+"sentv"+"touchedv")))
	dies(t, j)

	j, r = reopened(t, dir, roomy)
	if r.keys != 6 || r.doubt != "" {
		t.Errorf("found %+v", r)
	}
	for key, want := range map[string]string{"set": "v", "del": "gone", "again": "new", "undone": "gone", "sent": "v", "done": ""} {
		wantHolds(t, j, key, 1, want)
	}
	wantGauges(t, j, 6, 6, int64(len("setv"+"del"+"againnew"+"undone"+"sentv"+"touchedv")))
	if f, _ := j.get(hashed("touched"), "touched", 1); f.deadline == clock.Never {
		t.Error("the touched one has no end")
	}
	// A write of this process is the later one, though its numbers begin anew.
	put(t, j, set("again", "newer", 1), admitted)
	wantHolds(t, j, "again", 1, "newer")
	dies(t, j)
	j, _ = reopened(t, dir, roomy)
	wantHolds(t, j, "again", 1, "newer")
	dies(t, j)
}

func TestAWriteBetweenTheEndOfAReplayAndTheFilesKnowingIsKept(t *testing.T) {
	dir := t.TempDir()
	for name, write := range map[string]func(j *journal){
		"set":   func(j *journal) { put(t, j, set("k", "new", 2), admitted) },
		"touch": func(j *journal) { j.touch(hashed("k"), "k", 0, 99) },
		"snapshot": func(j *journal) {
			if err := j.file.log.Compact(j.each); err != nil {
				t.Fatal(err)
			}
		},
	} {
		j, _ := reopened(t, dir, roomy)
		put(t, j, set("k", "old", 1), admitted)
		for _, task := range takeAll(j, 0) {
			settle(j, task, foundOurs, 1, 0)
		}
		write(j)
		again := sweep(j)
		if stays := name != "snapshot"; again != stays || j.holds(hashed("k"), "k") != stays {
			t.Errorf("%s: to be replayed again: %v", name, again)
		}
		for _, task := range takeAll(j, 0) {
			settle(j, task, foundOurs, 1, 0)
		}
		sweep(j)
		wantGauges(t, j, 0, 0, 0)
		dies(t, j)
		j, r := reopened(t, dir, roomy)
		if r.keys != 0 {
			t.Errorf("%s: %d keys come back", name, r.keys)
		}
		dies(t, j)
	}
}

// damagedDir has the file of a journal of ten sets, with a bit flipped in the middle.
func damagedDir(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	j, _ := reopened(t, dir, roomy)
	for i := range 10 {
		put(t, j, set(fmt.Sprint("k", i), "v", 1), admitted)
	}
	dies(t, j)
	files, err := filepath.Glob(filepath.Join(dir, "*.log"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	data, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := os.WriteFile(files[0], data, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestADamagedFileIsSetAsideAndItsSetsBecomeDeletes(t *testing.T) {
	dir := damagedDir(t)
	var j *journal
	for round := range 2 { // also where this process dies at once
		var r restored
		j, r = reopened(t, dir, roomy)
		if (r.doubt == "") != (round > 0) || r.keys == 0 || r.keys == 10 {
			t.Fatalf("found %+v", r)
		}
		for i := range r.keys {
			key := fmt.Sprint("k", i)
			if f, ok := j.get(hashed(key), key, 0); ok && f.live {
				t.Errorf("%s is replayed as a set", key)
			}
		}
		if aside, _ := filepath.Glob(filepath.Join(dir, "*damaged*")); len(aside) == 0 {
			t.Error("the damaged file is not there any more")
		}
		dies(t, j)
	}
	if err := j.file.log.Compact(j.each); err == nil {
		t.Fatal("it was closed")
	}
}

func TestADirectoryInUseIsAnErrorThatSaysSo(t *testing.T) {
	dir := t.TempDir()
	o := Options{Journal: JournalOptions{Dir: dir}}
	o.Redis.InitAddress = []string{"127.0.0.1:1"}
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := New(o); err == nil || !strings.Contains(err.Error(), "Journal.Dir") || !strings.Contains(err.Error(), dir) {
		t.Errorf("the second one on the directory: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	c, err = New(o)
	if err != nil {
		t.Fatalf("after the first was closed: %v", err)
	}
	c.Close()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	o.Journal.Dir = file
	if _, err := New(o); err == nil || !strings.Contains(err.Error(), "Journal.Dir") {
		t.Errorf("a directory that is a file: %v", err)
	}
}

// A shard's keys are yielded once: not again with those of the shards behind it.
func TestTheFileIsWrittenAnewWithEachKeyOnce(t *testing.T) {
	dir := t.TempDir()
	j, _ := reopened(t, dir, roomy)
	for i := range 300 {
		put(t, j, set(fmt.Sprint("k", i), "v", 1), admitted)
	}
	seen := make(map[string]int)
	j.each(func(key string, _ uint64, payload []byte) bool {
		seen[key]++
		if in, ok := decodeIntent(payload, 0, 0); !ok || string(in.value) != "v" {
			t.Errorf("%s: %+v", key, in)
		}
		return true
	})
	for i := range 300 {
		if n := seen[fmt.Sprint("k", i)]; n != 1 {
			t.Errorf("k%d is written %d times", i, n)
		}
	}
	if len(seen) != 300 {
		t.Errorf("%d keys of 300", len(seen))
	}
	dies(t, j)
}

// The disk fails while New takes over what is there, and is well afterwards. Nobody writes
// anything that would find out.
func TestADiskThatFailedWhileRestoringIsToldOfAndHealsByItself(t *testing.T) {
	dir := t.TempDir()
	j, _ := reopened(t, dir, roomy)
	put(t, j, set("k", "v", 1), admitted)
	dies(t, j)
	// The marker cannot be replaced by a file.
	marker := filepath.Join(dir, "TRUSTED.tmp")
	if err := os.MkdirAll(filepath.Join(marker, "within"), 0o700); err != nil {
		t.Fatal(err)
	}
	j, r := reopened(t, dir, roomy)
	if j.err() == nil {
		t.Fatalf("the disk has failed, and it says nothing; found %+v", r)
	}
	wantHolds(t, j, "k", 0, "v")
	stop, kept := make(chan struct{}), make(chan struct{})
	go func() { defer close(kept); j.keep(stop) }()
	if err := os.RemoveAll(marker); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(time.Minute); j.err() != nil; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(j.err())
		}
	}
	close(stop)
	<-kept
	next, r := imaged(t, dir)
	wantHolds(t, next, "k", 0, "v")
	if r.doubt != "" {
		t.Error(r.doubt)
	}
	dies(t, j)
}

// The record of a program to come is no damage.
func TestRecordsOfANewerFormatAreRefusedInWords(t *testing.T) {
	dir := t.TempDir()
	j, _ := reopened(t, dir, roomy)
	put(t, j, set("k", "v", 1), admitted)
	if err := j.file.log.Put("newer", 0, []byte{intentFormat + 1, 0}); err != nil {
		t.Fatal(err)
	}
	dies(t, j)
	o := roomy
	o.Dir = dir
	for range 2 {
		_, err := newJournal(o).open(o, time.Second, clock.Start(), hashed, t.Logf)
		if err == nil || !strings.Contains(err.Error(), "format 2") || !strings.Contains(err.Error(), dir) {
			t.Errorf("it says %v", err)
		}
	}
}

// An acknowledged write overtakes the intent of an earlier one, while the disk stands
// still: the caller waits for it no longer than told, holding no lock meanwhile, and
// readers find nothing of the earlier one.
func TestAWriteThatOvertakesAnIntentWaitsForNoDiskThatStandsStill(t *testing.T) {
	for name, session := range map[string]uint64{"forgets it": 1, "replaces it": 2} {
		t.Run(name, func(t *testing.T) {
			j := newJournal(roomy)
			o := roomy
			o.Dir, o.Fsync = t.TempDir(), FsyncAlways
			if _, err := j.open(o, 50*time.Millisecond, clock.Start(), hashed, t.Logf); err != nil {
				t.Fatal(err)
			}
			put(t, j, ambiguous(set("k", "old", 1), 1), admitted)
			goOn := hangDisk(j)
			defer goOn()
			_, saved := j.superseded(hashed("k"), set("k", "new", 2), session, "server") // which returns
			if f, ok := j.get(hashed("k"), "k", 0); ok && string(f.value) != "new" {
				t.Errorf("%q is read", f.value)
			}
			durable(t, j, saved)
			sweep(j)
			if j.err() == nil {
				t.Error("it is in memory only, and it says nothing")
			}
			if j.holds(hashed("k"), "k") != (session == 2) {
				t.Error("the fence is not what it should be")
			}
			goOn()
			if !j.rewrite() {
				t.Fatal(j.err())
			}
			next, r := imaged(t, o.Dir)
			want := map[uint64]string{1: "", 2: "new"}[session]
			wantHolds(t, next, "k", 0, want)
			if r.doubt != "" {
				t.Error(r.doubt)
			}
			dies(t, j)
		})
	}
}

// A sweep that a caller gave up is done all the same: what is done with leaves.
func TestASweepThatWasGivenUpIsDoneLater(t *testing.T) {
	j := newJournal(roomy)
	o := roomy
	o.Dir, o.Fsync = t.TempDir(), FsyncAlways
	if _, err := j.open(o, time.Minute, clock.Start(), hashed, t.Logf); err != nil {
		t.Fatal(err)
	}
	put(t, j, set("k", "v", 1), admitted)
	settle(j, takeOnly(t, j, 0), foundOurs, 1, 0)
	goOn := hangDisk(j)
	defer goOn()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, done := j.sweep(ctx, 0); done {
		t.Fatal("the file cannot know")
	}
	life, end := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); j.tidy(life, func() {}) }()
	idle := j.drained()
	goOn()
	select {
	case <-idle:
	case <-time.After(time.Minute):
		t.Error("what is done with stays for ever")
	}
	end()
	<-ended
	wantGauges(t, j, 0, 0, 0)
	dies(t, j)
}
