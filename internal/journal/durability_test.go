package journal

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/holdfast-cache/holdfast/internal/wal"
)

// imaged is what a process finds that begins where this one would die now.
func imaged(t *testing.T, dir string) (*Journal, Restored) {
	t.Helper()
	image := filepath.Join(t.TempDir(), "image")
	if err := os.CopyFS(image, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	j, r := reopened(t, image, roomy)
	t.Cleanup(func() { dies(t, j) })
	return j, r
}

// A crash in a drain: one write was on its way to Redis, and may have arrived,
// when another took its place in the journal.
func TestWhatWasBeingReplayedIsKnownToTheNextProcess(t *testing.T) {
	dir := t.TempDir()
	j, _ := reopened(t, dir, roomy)
	defer dies(t, j)
	put(t, j, set("set-set", "sent", 1), admitted)
	put(t, j, del("del-set", 1), admitted)
	takeAll(j, 0)
	put(t, j, set("set-set", "last", 2), admitted)
	put(t, j, set("del-set", "last", 2), admitted)
	next, _ := imaged(t, dir)
	if in := next.shard(hashed("set-set")).intents["set-set"]; in == nil || !remembers(in.PossibleLateWrites, "sent") {
		t.Errorf("what was sent would be taken for another client's: %+v", in)
	}
	if in := next.shard(hashed("del-set")).intents["del-set"]; in == nil || !in.PossibleLateWrites.Del {
		t.Errorf("the absence would be taken for another client's doing: %+v", in)
	}
}

// A superseded set that waits for its second look is no set any more, neither to a
// reader nor to the next process.
func TestASupersededSetIsGivenUpThoughItWaitsForItsSecondLook(t *testing.T) {
	dir := t.TempDir()
	j, _ := reopened(t, dir, roomy)
	defer dies(t, j)
	put(t, j, ambiguous(set("k", "v", 1), 3), admitted)
	settle(j, takeOnly(t, j, 0), FoundNothing, 4, 0)
	wantHolds(t, j, "k", 0, "gone")
	put(t, j, set("other", "v", 2), admitted) // and the file has both
	next, _ := imaged(t, dir)
	if in := next.shard(hashed("k")).intents["k"]; in != nil && !in.Compensate {
		t.Errorf("the next process replays it: %+v", in)
	}
}

// A damaged file makes sets doubtful. They stay doubtful if this process dies at once, before it
// has written anything.
func TestDoubtOutlivesTheProcessThatHadIt(t *testing.T) {
	dir := damagedDir(t)
	j, r := reopened(t, dir, roomy)
	defer dies(t, j)
	if r.Doubt == "" || r.Keys == 0 {
		t.Fatalf("found %+v", r)
	}
	next, _ := imaged(t, dir)
	for i := range 10 {
		key := fmt.Sprint("k", i)
		if f, ok := next.Get(hashed(key), key, 0); ok && f.Live {
			t.Errorf("%s is a set again", key)
		}
	}
}

// A write that Redis has acknowledged overtakes the intent of an earlier one. When
// it returns, no reader may find the earlier one, and no later process.
func TestAWriteThatOvertakesAnIntentReturnsWhenItIsForgotten(t *testing.T) {
	dir := t.TempDir()
	o := roomy
	o.Fsync = wal.SyncAlways
	j, _ := reopened(t, dir, o)
	defer dies(t, j)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() { // the replayer, who has something to forget all the time
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				sweep(j)
			}
		}
	}()
	defer func() { close(stop); <-done }()
	for i := range 500 {
		seq := uint64(2*i + 1)
		put(t, j, ambiguous(set("k", "old", seq), 1), admitted)
		_, saved := j.Superseded(hashed("k"), del("k", seq+1), 1, "server")
		durable(t, j, saved)
		sweep(j)
		if f, ok := j.Get(hashed("k"), "k", 0); ok && f.Live {
			t.Fatalf("round %d: behind the delete %q is read", i, f.Value)
		}
		if i%50 == 0 {
			if next, r := imaged(t, dir); r.Keys > 0 {
				f, _ := next.Get(hashed("k"), "k", 0)
				t.Fatalf("round %d: behind the delete the next process finds %+v", i, f)
			}
		}
	}
}

// A write that comes in late, with a number from before what has left the journal,
// is accepted: the file must have it.
func TestAWriteThatIsAcceptedLateIsInTheFile(t *testing.T) {
	dir := t.TempDir()
	j, _ := reopened(t, dir, roomy)
	defer dies(t, j)
	put(t, j, set("k", "later", 7), admitted)
	settle(j, takeOnly(t, j, 0), FoundOurs, 1, 0)
	sweep(j)
	put(t, j, ambiguous(del("k", 5), 1), admitted)
	wantHolds(t, j, "k", 0, "gone")
	next, _ := imaged(t, dir)
	wantHolds(t, next, "k", 0, "gone")
}

func TestWhatDoesNotFitTheNextJournalIsCounted(t *testing.T) {
	dir := t.TempDir()
	j, _ := reopened(t, dir, roomy)
	for i := range 10 {
		put(t, j, set(fmt.Sprint("k", i), "0123456789", 1), admitted)
	}
	dies(t, j)
	o := roomy
	o.MaxBytes = 60
	j, r := reopened(t, dir, o)
	defer dies(t, j)
	n := 0
	for i := range 10 {
		key := fmt.Sprint("k", i)
		if f, ok := j.Get(hashed(key), key, 0); !ok {
			t.Errorf("%s is not there", key)
		} else if !f.Live {
			n++
		}
	}
	if n == 0 || r.Downgraded != n {
		t.Errorf("%d of 10 became deletes, and %d are told of", n, r.Downgraded)
	}
}

// The server tells of a replay's own write behind its reply. A set that took the
// intent over meanwhile is not overruled by that.
func TestTheEchoOfAReplayOverrulesNoLaterSet(t *testing.T) {
	for name, file := range map[string]bool{"in memory": false, "in a file": true} {
		j := roomyJournal()
		if file {
			j, _ = reopened(t, t.TempDir(), roomy)
		}
		put(t, j, set("during", "first", 1), admitted)
		put(t, j, set("behind", "first", 1), admitted)
		tasks := takeAll(j, 0)
		put(t, j, set("during", "second", 2), admitted)
		for _, task := range tasks {
			settle(j, task, FoundOurs, 1, 0)
		}
		if file {
			put(t, j, set("behind", "second", 2), admitted)
			sweep(j)
			j.Invalidated(hashed("behind"), "behind", 0)
			wantHolds(t, j, "behind", 0, "second")
		}
		if j.Invalidated(hashed("during"), "during", 0) {
			t.Errorf("%s: it is a delete now", name)
		}
		wantHolds(t, j, "during", 0, "second")
		if file {
			dies(t, j)
		}
	}
}

func TestADeleteForAConflictIsInTheFileBeforeItIsSent(t *testing.T) {
	for name, conflict := range map[string]func(j *Journal){
		"found": func(j *Journal) { settle(j, takeOnly(t, j, 0), FoundTheirs, 1, 0) },
		"overruled": func(j *Journal) {
			j.Invalidated(hashed("k"), "k", 0)
			for _, s := range j.Uncompared(hashed, func(string) bool { return true }) {
				j.Compared(s, []byte("theirs"), true, "server")
			}
		},
	} {
		dir := t.TempDir()
		j, _ := reopened(t, dir, roomy)
		put(t, j, set("k", "v1", 1), admitted)
		conflict(j)
		if task := takeOnly(t, j, 0); !task.Del {
			t.Fatalf("%s: the conflict is no delete", name)
		}
		sweep(j) // a replay begins with a sweep
		now := t.TempDir()
		if err := os.CopyFS(now, os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
		k, _ := reopened(t, now, roomy)
		if next := takeOnly(t, k, 0); !next.Del {
			t.Errorf("%s: the next process sets %q", name, next.Value)
		}
		dies(t, k)
		dies(t, j)
	}
}

// A set is replayed before the file has it, and the process dies: Redis then holds what
// the next process knows nothing of.
func TestWhatIsSentIsInTheFile(t *testing.T) {
	dir := t.TempDir()
	j, _ := reopened(t, dir, roomy)
	put(t, j, set("k", "old", 1), admitted)
	j.Put(hashed("k"), set("k", "new", 2)) // its caller still waits for the disk
	if task := takeOnly(t, j, 0); string(task.Value) != "new" {
		t.Fatalf("%s is replayed", task.Value)
	}
	sweep(j) // a replay begins with a sweep
	now := t.TempDir()
	if err := os.CopyFS(now, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	k, _ := reopened(t, now, roomy)
	wantHolds(t, k, "k", 1, "new")
	dies(t, k)
	dies(t, j)
}
