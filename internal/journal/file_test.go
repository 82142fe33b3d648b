package journal

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/wal"
)

// reopened is what a process finds that begins where the last one died.
func reopened(t *testing.T, dir string, o Config) (*Journal, Restored) {
	t.Helper()
	j := New(o)
	o.Dir = dir
	r, err := j.Open(o, 10*time.Second, clock.Start(), hashed, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	return j, r
}

// sweep takes out what is done with.
func sweep(j *Journal) (again bool) {
	again, _ = j.Swept(context.Background())
	return again
}

// durable waits until the file has what was saved.
func durable(t *testing.T, j *Journal, p Saving) {
	t.Helper()
	if err := j.Durable(context.Background(), clock.Start().Now(), p); err != nil {
		t.Error(err)
	}
}

// dies ends the journal's file as the death of the process does: whatever is not
// written is lost, and the lock is gone.
func dies(t *testing.T, j *Journal) {
	t.Helper()
	if err := j.file.log.Close(); err != nil {
		t.Fatal(err)
	}
}

var roomy = Config{MaxKeys: 1000, MaxBytes: 1 << 20}

func TestAnIntentSurvivesItsProcess(t *testing.T) {
	hour := int64(time.Hour)
	const now, wall = 5 * int64(time.Hour), 1_700_000_000 * int64(time.Second)
	late := LateWrites{Since: 7, Sums: []Digest{{1}, {2}}, Gone: now + hour, Del: true, More: true}
	for name, in := range map[string]*Intent{
		"a set":          {Value: []byte("v"), Deadline: now + hour},
		"without an end": {Value: []byte("v"), Deadline: clock.Never},
		"empty":          {Value: []byte{}, Deadline: clock.Never},
		"over its time":  {Value: []byte("v"), Deadline: now - 1},
		"for ever":       {Value: []byte("v"), Deadline: clock.Never - 1},
		"a delete":       {Del: true, Deadline: clock.Never},
		"an undo":        {Del: true, Compensate: true, Deadline: clock.Never, PossibleLateWrites: late},
		"base":           {Value: []byte("v"), Deadline: clock.Never, Expected: Expected{known: true, held: true, sum: Digest{9}, gone: clock.Never, server: "id"}},
		"base with end":  {Value: []byte("v"), Deadline: clock.Never, Expected: Expected{known: true, held: true, sum: Digest{9}, gone: now + 2*hour, server: "id"}},
		"absent before":  {Value: []byte("v"), Deadline: clock.Never, Expected: Expected{known: true, server: "id"}},
		"late":           {Value: []byte("v"), Deadline: clock.Never, PossibleLateWrites: late},
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
			if string(got.Value) != string(in.Value) || got.Del != in.Del || got.Compensate != in.Compensate {
				t.Errorf("%+v", got)
			}
			if want := moved(in.Deadline); in.Deadline < clock.Never-1 && got.Deadline != want || in.Deadline == clock.Never && got.Deadline != clock.Never {
				t.Errorf("its end is %d, want %d", got.Deadline, want)
			}
			if got.Deadline == clock.Never && in.Deadline != clock.Never {
				t.Error("it has no end any more")
			}
			want := in.Expected
			want.gone = moved(want.gone)
			if in.Expected.held && got.Expected != want || got.Expected.known != want.known || got.Expected.held != want.held || got.Expected.server != want.server {
				t.Errorf("base %+v, want %+v", got.Expected, want)
			}
			if got.PossibleLateWrites.Since != EarlierProcess || got.PossibleLateWrites.until != 0 {
				t.Errorf("what the last process sent may still run, and it says %+v", got.PossibleLateWrites)
			}
			for _, sum := range in.PossibleLateWrites.Sums {
				if !slices.Contains(got.PossibleLateWrites.Sums, sum) {
					t.Errorf("digest %x is lost", sum[:2])
				}
			}
			if in.PossibleLateWrites.Since != 0 && (got.PossibleLateWrites.More != in.PossibleLateWrites.More || got.PossibleLateWrites.Del != in.PossibleLateWrites.Del) {
				t.Errorf("late %+v, want %+v", got.PossibleLateWrites, in.PossibleLateWrites)
			}
			if !in.Del && !remembers(got.PossibleLateWrites, string(in.Value)) {
				t.Error("it does not know that its own value may appear late")
			}
			if in.Del && !in.Compensate && !got.PossibleLateWrites.Del {
				t.Error("it does not know that it may delete late")
			}
			for cut := range in.encode(now, wall) {
				if cut < len(in.encode(now, wall))-len(in.Value) {
					if got, ok := decodeIntent(in.encode(now, wall)[:cut], now, wall); ok || !got.Del {
						t.Fatalf("%d bytes of it are understood: %+v", cut, got)
					}
				}
			}
		})
	}
}

func FuzzDecodeIntent(f *testing.F) {
	for _, in := range []*Intent{
		{Value: []byte("v"), Deadline: clock.Never, PossibleLateWrites: LateWrites{Since: 1, Sums: []Digest{{1}}}},
		{Del: true, Deadline: 5, Expected: Expected{known: true, held: true, server: "id"}},
	} {
		f.Add(in.encode(10, 1<<60))
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		in, ok := decodeIntent(payload, 10, 1<<60)
		if !ok && (!in.Del || in.PossibleLateWrites.Since == 0) {
			t.Fatalf("not understood, and no delete: %+v", in)
		}
		again, ok := decodeIntent(in.encode(10, 1<<60), 10, 1<<60)
		if !ok || string(again.Value) != string(in.Value) || again.Del != in.Del || again.Deadline != in.Deadline && in.Deadline < clock.Never-1<<61 {
			t.Fatalf("%+v became %+v", in, again)
		}
	})
}

func TestWhatWasAcceptedIsFencedInTheNextProcess(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "journal")
	j, r := reopened(t, dir, roomy)
	if r.Keys != 0 || r.Doubt != "" {
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
	saved, touched := j.Touch(hashed("touched"), "touched", 0, time.Hour.Nanoseconds())
	if !touched {
		t.Fatal("not touched")
	}
	durable(t, j, saved)
	put(t, j, set("done", "v", 1), admitted)
	for _, task := range j.TakeOne(hashed("done"), "done") {
		settle(j, task, FoundOurs, 1, 0)
	}
	if !j.Holds(hashed("done"), "done") {
		t.Fatal("its fence fell before the file knew")
	}
	if sweep(j); j.Holds(hashed("done"), "done") {
		t.Fatal("it stays")
	}
	wantGauges(t, j, 6, 6, int64(len("setv"+"del"+"againnew"+"undone"+"sentv"+"touchedv")))
	dies(t, j)

	j, r = reopened(t, dir, roomy)
	if r.Keys != 6 || r.Doubt != "" {
		t.Errorf("found %+v", r)
	}
	for key, want := range map[string]string{"set": "v", "del": "gone", "again": "new", "undone": "gone", "sent": "v", "done": ""} {
		wantHolds(t, j, key, 1, want)
	}
	wantGauges(t, j, 6, 6, int64(len("setv"+"del"+"againnew"+"undone"+"sentv"+"touchedv")))
	if f, _ := j.Get(hashed("touched"), "touched", 1); f.Deadline == clock.Never {
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
	for name, write := range map[string]func(j *Journal){
		"set":   func(j *Journal) { put(t, j, set("k", "new", 2), admitted) },
		"touch": func(j *Journal) { j.Touch(hashed("k"), "k", 0, 99) },
		"snapshot": func(j *Journal) {
			if err := j.file.log.Compact(j.each); err != nil {
				t.Fatal(err)
			}
		},
	} {
		j, _ := reopened(t, dir, roomy)
		put(t, j, set("k", "old", 1), admitted)
		for _, task := range takeAll(j, 0) {
			settle(j, task, FoundOurs, 1, 0)
		}
		write(j)
		again := sweep(j)
		if stays := name != "snapshot"; again != stays || j.Holds(hashed("k"), "k") != stays {
			t.Errorf("%s: to be replayed again: %v", name, again)
		}
		for _, task := range takeAll(j, 0) {
			settle(j, task, FoundOurs, 1, 0)
		}
		sweep(j)
		wantGauges(t, j, 0, 0, 0)
		dies(t, j)
		j, r := reopened(t, dir, roomy)
		if r.Keys != 0 {
			t.Errorf("%s: %d keys come back", name, r.Keys)
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
	var j *Journal
	for round := range 2 { // also where this process dies at once
		var r Restored
		j, r = reopened(t, dir, roomy)
		if (r.Doubt == "") != (round > 0) || r.Keys == 0 || r.Keys == 10 {
			t.Fatalf("found %+v", r)
		}
		for i := range r.Keys {
			key := fmt.Sprint("k", i)
			if f, ok := j.Get(hashed(key), key, 0); ok && f.Live {
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
		if in, ok := decodeIntent(payload, 0, 0); !ok || string(in.Value) != "v" {
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
	if j.Err() == nil {
		t.Fatalf("the disk has failed, and it says nothing; found %+v", r)
	}
	wantHolds(t, j, "k", 0, "v")
	stop, kept := make(chan struct{}), make(chan struct{})
	go func() { defer close(kept); j.Keep(stop) }()
	stopKeeping := sync.OnceFunc(func() { close(stop); <-kept })
	defer stopKeeping()
	// In one step: the keeper may put a file in its place at any moment.
	if err := os.Rename(marker, filepath.Join(t.TempDir(), "moved")); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(time.Minute); j.Err() != nil; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(j.Err())
		}
	}
	stopKeeping()
	next, r := imaged(t, dir)
	wantHolds(t, next, "k", 0, "v")
	if r.Doubt != "" {
		t.Error(r.Doubt)
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
		_, err := New(o).Open(o, time.Second, clock.Start(), hashed, t.Logf)
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
			j := New(roomy)
			o := roomy
			o.Dir, o.Fsync = t.TempDir(), wal.SyncAlways
			if _, err := j.Open(o, 50*time.Millisecond, clock.Start(), hashed, t.Logf); err != nil {
				t.Fatal(err)
			}
			put(t, j, ambiguous(set("k", "old", 1), 1), admitted)
			goOn := j.HangDisk()
			defer goOn()
			_, saved := j.Superseded(hashed("k"), set("k", "new", 2), session, "server") // which returns
			if f, ok := j.Get(hashed("k"), "k", 0); ok && string(f.Value) != "new" {
				t.Errorf("%q is read", f.Value)
			}
			durable(t, j, saved)
			sweep(j)
			if j.Err() == nil {
				t.Error("it is in memory only, and it says nothing")
			}
			if j.Holds(hashed("k"), "k") != (session == 2) {
				t.Error("the fence is not what it should be")
			}
			goOn()
			if !j.rewrite() {
				t.Fatal(j.Err())
			}
			next, r := imaged(t, o.Dir)
			want := map[uint64]string{1: "", 2: "new"}[session]
			wantHolds(t, next, "k", 0, want)
			if r.Doubt != "" {
				t.Error(r.Doubt)
			}
			dies(t, j)
		})
	}
}

// A sweep that a caller gave up is done all the same: what is done with leaves.
func TestASweepThatWasGivenUpIsDoneLater(t *testing.T) {
	j := New(roomy)
	o := roomy
	o.Dir, o.Fsync = t.TempDir(), wal.SyncAlways
	if _, err := j.Open(o, time.Minute, clock.Start(), hashed, t.Logf); err != nil {
		t.Fatal(err)
	}
	put(t, j, set("k", "v", 1), admitted)
	settle(j, takeOnly(t, j, 0), FoundOurs, 1, 0)
	goOn := j.HangDisk()
	defer goOn()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, done := j.Sweep(ctx, 0); done {
		t.Fatal("the file cannot know")
	}
	life, end := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); j.Tidy(life, func() {}) }()
	idle := j.Drained()
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
