package journal

import (
	"bytes"
	"context"
	"crypto/sha1"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/keyhash"
)

// hashed is a key's hash, without a local tier.
func hashed(key string) keyhash.Hash {
	f := fnv.New64a()
	f.Write([]byte(key))
	return keyhash.Hash{Place: f.Sum64(), Check: f.Sum64()}
}

func set(key, value string, seq uint64) Write {
	return Write{Key: key, Value: []byte(value), Deadline: clock.Never, Seq: seq}
}

func del(key string, seq uint64) Write {
	return Write{Key: key, Del: true, Deadline: clock.Never, Seq: seq}
}

func ambiguous(w Write, session uint64) Write {
	w.SentOn = session
	return w
}

func roomyJournal() *Journal { return New(Config{MaxKeys: 1000, MaxBytes: 1 << 20}) }

// offer returns when the journal and its file have the write.
func offer(j *Journal, w Write) admission {
	verdict, saved := j.Put(hashed(w.Key), w)
	_ = j.Durable(context.Background(), 0, saved)
	return verdict
}

// put offers the write and expects this verdict.
func put(t *testing.T, j *Journal, w Write, want admission) {
	t.Helper()
	if got := offer(j, w); got != want {
		t.Fatalf("put %+v: verdict %d, want %d", w, got, want)
	}
}

// takeAll takes what is due now.
// What a take may want: anything.
func all(string, bool) bool { return true }
func anyKey(string) bool    { return true }

func takeAll(j *Journal, now int64) []Task { return j.Take(1<<30, 1<<30, now, hashed, all) }

// takeOnly takes the one task that there must be.
func takeOnly(t *testing.T, j *Journal, now int64) Task {
	t.Helper()
	tasks := takeAll(j, now)
	if len(tasks) != 1 {
		t.Fatalf("%d tasks, want one: %+v", len(tasks), tasks)
	}
	return tasks[0]
}

// wantHolds asserts what a reader finds: a value, "gone" for a fenced key
// without one, "" for a key that is not fenced.
func wantHolds(t *testing.T, j *Journal, key string, now int64, want string) {
	t.Helper()
	f, ok := j.Get(hashed(key), key, now)
	got := ""
	switch {
	case ok && f.Live:
		got = string(f.Value)
	case ok:
		got = "gone"
	}
	if got != want {
		t.Errorf("the journal says %q of %s, want %q", got, key, want)
	}
	if ok != j.Holds(hashed(key), key) {
		t.Errorf("get says that %s is fenced: %v, and holds says otherwise", key, ok)
	}
}

func wantGauges(t *testing.T, j *Journal, keys, queued, size int64) {
	t.Helper()
	if j.Keys.Load() != keys || j.Queued.Load() != queued || j.Bytes.Load() != size {
		t.Errorf("%d keys, %d queued, %d bytes; want %d, %d, %d", j.Keys.Load(), j.Queued.Load(), j.Bytes.Load(), keys, queued, size)
	}
}

// remembers says whether the value is among those that may appear late.
func remembers(l LateWrites, value string) bool {
	return slices.Contains(l.Sums, sha1.Sum([]byte(value)))
}

// settle ends the task on a server of that name and says whether the key has
// left the journal.
func settle(j *Journal, task Task, what Found, session uint64, now int64) bool {
	j.Resolve(task, what, session, "server", now)
	return !j.Holds(task.Hash, task.Key)
}

func TestTheLastIntentOfAKeyWinsInWhateverOrderTheyCome(t *testing.T) {
	for _, tt := range []struct {
		writes []Write // by seq
		want   string
		size   int64
	}{
		{[]Write{set("k", "one", 1), set("k", "two!", 2), set("k", "three", 3)}, "three", 6},
		{[]Write{set("k", "one", 1), del("k", 2), set("k", "three", 3)}, "three", 6},
		{[]Write{set("k", "one", 1), set("k", "two", 2), del("k", 3)}, "gone", 1},
		{[]Write{del("k", 1), set("k", "two", 2), del("k", 3)}, "gone", 1},
		{[]Write{ambiguous(set("k", "one", 1), 7), del("k", 2), ambiguous(set("k", "", 3), 7)}, "", 1},
	} {
		for _, order := range [][]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}} {
			j := roomyJournal()
			for _, i := range order {
				put(t, j, tt.writes[i], admitted)
			}
			f, ok := j.Get(hashed("k"), "k", 0)
			if !ok || f.Live != !tt.writes[2].Del || string(f.Value) != string(tt.writes[2].Value) {
				t.Errorf("order %v: %+v, %v; want %q", order, f, ok, tt.want)
			}
			wantGauges(t, j, 1, 1, tt.size)
			if got := takeOnly(t, j, 0); got.Seq != 3 {
				t.Errorf("order %v: write %d is replayed", order, got.Seq)
			}
		}
	}
}

func TestAKeyInTheJournalIsReadFromThere(t *testing.T) {
	j := roomyJournal()
	wantHolds(t, j, "k", 0, "")
	w := set("k", "v", 1)
	w.Deadline = 100
	put(t, j, w, admitted)
	wantHolds(t, j, "k", 99, "v")
	wantHolds(t, j, "k", 100, "gone") // expired, and fenced all the same
	wantHolds(t, j, "other", 0, "")
	put(t, j, del("k", 2), admitted)
	wantHolds(t, j, "k", 0, "gone")
}

func TestASetThatDoesNotFitBecomesADelete(t *testing.T) {
	j := New(Config{MaxKeys: 10, MaxBytes: 10})
	put(t, j, set("a", "12345678", 1), admitted) // 9 bytes
	put(t, j, set("b", "1", 1), Downgraded)
	wantHolds(t, j, "b", 0, "gone")
	wantGauges(t, j, 2, 2, 10)
	// Where one value takes another's place, only the difference counts.
	put(t, j, set("a", "1234567", 2), admitted)
	wantHolds(t, j, "a", 0, "1234567")
	wantGauges(t, j, 2, 2, 9)
	put(t, j, set("b", "1", 2), admitted)
	wantHolds(t, j, "b", 0, "1")
	put(t, j, set("b", "12", 3), Downgraded)
	wantHolds(t, j, "b", 0, "gone") // and not the value that it should have replaced
	wantGauges(t, j, 2, 2, 9)
	// A key that does not fit has nothing to be downgraded to.
	put(t, j, del("a key of many bytes", 1), Rejected)
	put(t, j, set("a", "1234567890", 3), Downgraded)
	put(t, j, del("a", 4), admitted)
	for _, task := range takeAll(j, 0) {
		if !task.Del {
			t.Errorf("%s is replayed as a set", task.Key)
		}
		settle(j, task, FoundOurs, 1, 0)
	}
	wantGauges(t, j, 0, 0, 0)
}

func TestAFurtherKeyThanMaxKeysIsRefused(t *testing.T) {
	j := New(Config{MaxKeys: 2, MaxBytes: 1 << 20})
	put(t, j, set("a", "1", 1), admitted)
	put(t, j, del("b", 1), admitted)
	for _, w := range []Write{set("c", "1", 1), del("c", 2)} {
		put(t, j, w, Rejected)
		wantHolds(t, j, w.Key, 0, "")
		wantGauges(t, j, 2, 2, 3)
	}
	// The keys that are there may still be written.
	put(t, j, set("a", "22", 2), admitted)
	put(t, j, set("b", "1", 2), admitted)
	wantGauges(t, j, 2, 2, 5)
	for _, task := range takeAll(j, 0) {
		settle(j, task, FoundOurs, 1, 0)
	}
	wantGauges(t, j, 0, 0, 0)
	put(t, j, set("c", "1", 3), admitted)
	put(t, j, set("d", "1", 2), admitted)
	put(t, j, set("e", "1", 1), Rejected)
}

// Redis may still run it, over whatever is written next.
func TestARefusedWriteThatMayRunLateFencesItsKey(t *testing.T) {
	for _, w := range []Write{set("late", "1", 1), set("late", "", 1), del("late", 1)} {
		j := New(Config{MaxKeys: 1, MaxBytes: 1 << 20})
		put(t, j, set("a", "1", 1), admitted)
		put(t, j, ambiguous(w, 3), Rejected)
		wantHolds(t, j, "late", 0, "gone")
		wantGauges(t, j, 2, 2, int64(len("a1late")))
		task := j.TakeOne(hashed("late"), "late")[0]
		if !task.Compensate || !w.Del && !remembers(task.PossibleLateWrites, string(w.Value)) || task.PossibleLateWrites.Del != w.Del {
			t.Errorf("what is taken back of %+v is %+v", w, task.Intent)
		}
		if settle(j, task, FoundOurs, 4, 0) {
			t.Error("nothing can run late any more")
		}
		put(t, j, set("late", "2", 2), admitted)
		wantHolds(t, j, "late", 0, "2")
	}
}

// A journal that has no room for a further key takes nothing from the others.
func TestWhatIsRefusedTakesNothingFromOthers(t *testing.T) {
	j := New(Config{MaxKeys: 2, MaxBytes: 100})
	j.Downgraded = func(key string) { t.Errorf("%s had to go", key) }
	put(t, j, set("a", string(make([]byte, 49)), 1), admitted)
	put(t, j, set("b", string(make([]byte, 49)), 1), admitted)
	put(t, j, del("c", 1), Rejected)
}

func TestWhatIsSettledLeavesNothingBehind(t *testing.T) {
	j := New(Config{MaxKeys: 100, MaxBytes: 110})
	for i := range 20 {
		put(t, j, del(fmt.Sprint("key", i), 1), admitted) // 90 bytes
	}
	for i := range 10 {
		want := admitted
		if j.Bytes.Load()+4 > 110 {
			want = Downgraded
		}
		put(t, j, set(fmt.Sprint("key", 2*i), "1234", 2), want)
	}
	tasks := takeAll(j, 0)
	if len(tasks) != 20 || len(takeAll(j, 0)) != 0 {
		t.Fatalf("%d tasks of 20, and then %d again", len(tasks), len(takeAll(j, 0)))
	}
	for _, task := range tasks {
		if !settle(j, task, FoundOurs, 1, 0) {
			t.Errorf("%s stays", task.Key)
		}
		wantHolds(t, j, task.Key, 0, "")
		settle(j, task, FoundOurs, 1, 0) // once more is as good as once
	}
	wantGauges(t, j, 0, 0, 0)
	for i := range j.Shards {
		if n := len(j.Shards[i].Intents); n != 0 {
			t.Errorf("%d intents in shard %d", n, i)
		}
	}
}

// A replay ran on the server behind a flush of this process, and was resolved before the flush was
// noted: the value was back for good.
func TestASetThatIsReplayedWhileAFlushIsUnderWayStaysUntilTheFlushIsNoted(t *testing.T) {
	for _, fails := range []bool{false, true} {
		j := roomyJournal()
		put(t, j, set("k", "v", 1), admitted)
		one := takeOnly(t, j, 1)
		j.BeginFlush()
		settle(j, one, FoundOurs, 1, 1)
		if !fails {
			if keys, _ := j.Flushed(anyKey, nil); !slices.Equal(keys, []string{"k"}) {
				t.Errorf("the flush met %q", keys)
			}
		}
		j.EndFlush()
		again := takeOnly(t, j, 1)
		if again.Del == fails {
			t.Errorf("after the flush (failed: %v) the replay is a delete: %v", fails, again.Del)
		}
		settle(j, again, FoundOurs, 1, 1)
		wantGauges(t, j, 0, 0, 0)
	}
}

func TestTakeTakesNoMoreThanItsBatch(t *testing.T) {
	j := roomyJournal()
	for i := range 100 {
		put(t, j, set(fmt.Sprint("key", i), "v", 1), admitted)
	}
	seen := map[string]bool{}
	for _, want := range []int{30, 30, 30, 10, 0} {
		tasks := j.Take(30, 1<<30, 0, hashed, all)
		if len(tasks) != want {
			t.Fatalf("%d tasks, want %d", len(tasks), want)
		}
		for _, task := range tasks {
			if seen[task.Key] {
				t.Errorf("%s was taken twice", task.Key)
			}
			seen[task.Key] = true
		}
	}
}

func TestTakeTakesNoMoreBytesThanAPipelineMayHold(t *testing.T) {
	j := roomyJournal()
	for i := range 10 {
		put(t, j, set(fmt.Sprint("key", i), "1234", 1), admitted) // 8 bytes
	}
	// The one that reaches the bound goes with the others: else an entry over it
	// would never go.
	for _, tt := range []struct{ bytes, want int }{{1, 1}, {8, 1}, {9, 2}, {24, 3}, {1000, 3}, {1000, 0}} {
		if got := len(j.Take(100, tt.bytes, 0, hashed, all)); got != tt.want {
			t.Errorf("of at most %d bytes: %d tasks, want %d", tt.bytes, got, tt.want)
		}
	}
}

func TestOneKeyCanBeTakenAlone(t *testing.T) {
	j := roomyJournal()
	put(t, j, set("a", "1", 1), admitted)
	put(t, j, set("b", "2", 1), admitted)
	if got := j.TakeOne(hashed("c"), "c"); got != nil {
		t.Errorf("a key that is not there was taken: %+v", got)
	}
	got := j.TakeOne(hashed("b"), "b")
	if len(got) != 1 || got[0].Key != "b" || got[0].Check {
		t.Fatalf("taken: %+v", got)
	}
	if again := j.TakeOne(hashed("b"), "b"); again != nil {
		t.Errorf("taken twice at once: %+v", again)
	}
	if rest := takeOnly(t, j, 0); rest.Key != "a" {
		t.Errorf("take took %s as well", rest.Key)
	}
	if !settle(j, got[0], FoundOurs, 1, 0) {
		t.Error("b stays")
	}
	wantGauges(t, j, 1, 1, 2)
}

func TestAWriteDuringAReplayIsKeptAndKnowsWhatTheReplayLeft(t *testing.T) {
	const now = int64(time.Hour)
	known := Holding([]byte("v0"), clock.Never, "server")
	v1 := LateWrites{Since: 1, Sums: []Digest{sha1.Sum([]byte("v1"))}, Gone: clock.Never}
	for _, tt := range []struct {
		name          string
		first, second Write
		holds         string     // once both are there
		ran           Expected   // where the first has run
		late          LateWrites // where it may have run
	}{
		{"set over set", set("k", "v1", 1), set("k", "v2", 2), "v2", Holding([]byte("v1"), clock.Never, "server"), v1},
		{"delete over set", set("k", "v1", 1), del("k", 2), "gone", Holding([]byte("v1"), clock.Never, "server"), v1},
		{"set over delete", del("k", 1), set("k", "v2", 2), "v2", HoldingNothing("server"), LateWrites{Since: 1, Gone: clock.Never, Del: true}},
	} {
		for what, want := range map[Found]Intent{
			FoundOurs:    {Expected: tt.ran},
			FoundNothing: {Expected: HoldingNothing("server")},
			FoundRefused: {},
			FoundNoReply: {Expected: known, PossibleLateWrites: tt.late},
			FoundUnsent:  {Expected: known},
		} {
			j := roomyJournal()
			tt.first.Expected = known
			put(t, j, tt.first, admitted)
			sent := takeOnly(t, j, now)
			put(t, j, tt.second, admitted)
			wantHolds(t, j, "k", now, tt.holds)
			if again := takeAll(j, now); len(again) != 0 {
				t.Fatalf("%s: taken a second time while it is being sent: %+v", tt.name, again)
			}
			if settle(j, sent, what, 1, now) {
				t.Errorf("%s, %d: the later write left with the earlier", tt.name, what)
			}
			wantHolds(t, j, "k", now, tt.holds)
			if j.Queued.Load() != 1 || j.Keys.Load() != 1 {
				t.Errorf("%s, %d: %d queued of %d", tt.name, what, j.Queued.Load(), j.Keys.Load())
			}
			next := takeOnly(t, j, now)
			if next.Seq != 2 || next.Check || next.Expected != want.Expected ||
				next.PossibleLateWrites.Since != want.PossibleLateWrites.Since || next.PossibleLateWrites.Del != want.PossibleLateWrites.Del || !slices.Equal(next.PossibleLateWrites.Sums, want.PossibleLateWrites.Sums) {
				t.Errorf("%s, %d: %+v; want base %+v, late %+v", tt.name, what, next, want.Expected, want.PossibleLateWrites)
			}
			if !settle(j, next, FoundOurs, 1, now) {
				t.Errorf("%s, %d: stays", tt.name, what)
			}
			wantGauges(t, j, 0, 0, 0)
		}
	}
}

// The set was given another end while it was under way: Redis may hold the
// value with the end before.
func TestATouchDuringAReplayIsReplayedToo(t *testing.T) {
	j := roomyJournal()
	w := set("k", "v", 1)
	w.Deadline = 1000
	put(t, j, w, admitted)
	sent := takeOnly(t, j, 0)
	if _, ok := j.Touch(hashed("k"), "k", 0, 2000); !ok {
		t.Fatal("no set to touch")
	}
	if settle(j, sent, FoundOurs, 1, 0) {
		t.Error("the touch was lost")
	}
	next := takeOnly(t, j, 0)
	if next.Deadline != 2000 || next.Expected != Holding([]byte("v"), 1000, "server") {
		t.Errorf("%+v", next)
	}
	if !settle(j, next, FoundOurs, 1, 0) {
		t.Error("stays")
	}
}

func TestWhatWasNotSentIsTakenAgainUnchanged(t *testing.T) {
	j := roomyJournal()
	put(t, j, set("k", "v", 1), admitted)
	for range 3 {
		sent := takeOnly(t, j, 0)
		if sent.PossibleLateWrites.Since != 0 || sent.Expected.known || sent.Check {
			t.Fatalf("%+v", sent)
		}
		if settle(j, sent, FoundUnsent, 1, 0) {
			t.Fatal("gone, and was never sent")
		}
		wantGauges(t, j, 1, 1, 2)
	}
}

func TestAnAcknowledgedWriteOvertakesWhatWasJournaledBefore(t *testing.T) {
	const session = 5
	for _, tt := range []struct {
		name   string
		before func(t *testing.T, j *Journal)
		write  Write
		holds  string
		seq    uint64 // of the intent that stays
		late   string // what may appear late
	}{
		{"nothing there", func(*testing.T, *Journal) {}, set("k", "new", 2), "", 0, ""},
		{"another key", func(t *testing.T, j *Journal) { put(t, j, set("other", "v", 1), admitted) }, set("k", "new", 2), "", 0, ""},
		{"never sent", func(t *testing.T, j *Journal) { put(t, j, set("k", "old", 1), admitted) }, set("k", "new", 2), "", 0, ""},
		{"a delete, never sent", func(t *testing.T, j *Journal) { put(t, j, del("k", 1), admitted) }, set("k", "new", 2), "", 0, ""},
		{"sent before on the same session", func(t *testing.T, j *Journal) {
			put(t, j, ambiguous(set("k", "old", 1), session), admitted)
		}, set("k", "new", 2), "", 0, ""},
		{"later than the write", func(t *testing.T, j *Journal) { put(t, j, set("k", "later", 3), admitted) }, set("k", "new", 2), "later", 3, ""},
		{"may run late on another session", func(t *testing.T, j *Journal) {
			put(t, j, ambiguous(set("k", "old", 1), session-1), admitted)
		}, set("k", "new", 2), "new", 2, "old"},
		{"may run late on another session, and this is a delete", func(t *testing.T, j *Journal) {
			put(t, j, ambiguous(set("k", "old", 1), session-1), admitted)
		}, del("k", 2), "gone", 2, "old"},
		{"is being sent", func(t *testing.T, j *Journal) {
			put(t, j, set("k", "old", 1), admitted)
			takeOnly(t, j, 0)
		}, set("k", "new", 2), "new", 2, ""},
		{"waits for its second check", func(t *testing.T, j *Journal) {
			put(t, j, ambiguous(set("k", "old", 1), session-1), admitted)
			settle(j, takeOnly(t, j, 0), FoundOurs, session, 0)
		}, set("k", "new", 2), "new", 2, "old"},
	} {
		j := roomyJournal()
		tt.before(t, j)
		j.Superseded(hashed("k"), tt.write, session, "server")
		wantHolds(t, j, "k", 0, tt.holds)
		switch in := j.Shard(hashed("k")).Intents["k"]; {
		case tt.seq == 0:
			if in != nil {
				t.Errorf("%s: the intent is %+v", tt.name, in)
			}
			if j.Holds(hashed("other"), "other") {
				wantGauges(t, j, 1, 1, 6)
			} else {
				wantGauges(t, j, 0, 0, 0)
			}
		case in == nil:
			t.Errorf("%s: the intent is gone", tt.name)
		default:
			if in.Seq != tt.seq || in.CheckAt != 0 {
				t.Errorf("%s: the intent is %+v, want write %d, queued", tt.name, in, tt.seq)
			}
			if tt.late != "" && !remembers(in.PossibleLateWrites, tt.late) {
				t.Errorf("%s: what may run late is forgotten", tt.name)
			}
			if tt.seq == tt.write.Seq && in.Expected != afterwards(tt.write.Value, tt.write.Del, clock.Never, "server") {
				t.Errorf("%s: redis has acknowledged the write, and the base is %+v", tt.name, in.Expected)
			}
			wantGauges(t, j, 1, 1, int64(len("k")+len(in.Value)))
		}
	}
}

func TestAnAmbiguousWriteIsCheckedOnceMoreUnlessItsSessionAnswered(t *testing.T) {
	const now, due = int64(time.Hour), int64(time.Hour + LateAfter)
	// replayed is a journal with a write of session 1 that was replayed on 2.
	replayed := func(t *testing.T) *Journal {
		t.Helper()
		j := roomyJournal()
		put(t, j, ambiguous(set("k", "v1", 1), 1), admitted)
		if j.NextCheck(anyKey) != clock.Never {
			t.Errorf("a check is due at %d before the replay", j.NextCheck(anyKey))
		}
		if settle(j, takeOnly(t, j, now), FoundOurs, 2, now) {
			t.Fatal("gone, although it may still run late")
		}
		return j
	}
	t.Run("replayed on the session that sent it", func(t *testing.T) {
		j := roomyJournal()
		put(t, j, ambiguous(set("k", "v1", 1), 1), admitted)
		sent := takeOnly(t, j, now)
		if sent.Check || !remembers(sent.PossibleLateWrites, "v1") {
			t.Errorf("the replay: %+v", sent)
		}
		if !settle(j, sent, FoundOurs, 1, now) {
			t.Error("stays, although the session's own order has settled it")
		}
		wantGauges(t, j, 0, 0, 0)
	})
	t.Run("replayed on a later session", func(t *testing.T) {
		j := replayed(t)
		wantHolds(t, j, "k", now, "v1")
		wantGauges(t, j, 1, 0, 3)
		if got := j.NextCheck(anyKey); got != due {
			t.Errorf("the check is due %v after the replay, want %v", time.Duration(got-now), LateAfter)
		}
		if j.Drained() != nil {
			t.Error("a second check is not part of drained")
		}
		if early := takeAll(j, due-1); len(early) != 0 {
			t.Errorf("checked early: %+v", early)
		}
		if one := j.TakeOne(hashed("k"), "k"); one != nil {
			t.Errorf("replayed again before its check: %+v", one)
		}
		check := takeOnly(t, j, due)
		if !check.Check || !remembers(check.PossibleLateWrites, "v1") || check.Expected != Holding([]byte("v1"), clock.Never, "server") {
			t.Errorf("the second look: %+v", check)
		}
		if !settle(j, check, FoundOurs, 2, due) {
			t.Error("stays after its check")
		}
		wantGauges(t, j, 0, 0, 0)
		if j.NextCheck(anyKey) != clock.Never {
			t.Errorf("an empty journal has a check due at %d", j.NextCheck(anyKey))
		}
	})
	t.Run("a check that found something else, or was refused, is done", func(t *testing.T) {
		for _, what := range []Found{FoundNothing, FoundRefused} {
			j := replayed(t)
			if !settle(j, takeOnly(t, j, due), what, 2, due) {
				t.Errorf("%d: stays after its check", what)
			}
			wantGauges(t, j, 0, 0, 0)
		}
	})
	t.Run("a check that was not sent is repeated", func(t *testing.T) {
		j := replayed(t)
		if settle(j, takeOnly(t, j, due), FoundUnsent, 2, due) {
			t.Error("gone without an answer")
		}
		wantGauges(t, j, 1, 0, 3)
		check := takeOnly(t, j, due)
		if !check.Check || !settle(j, check, FoundOurs, 2, due) {
			t.Errorf("the repeated check: %+v", check)
		}
		wantGauges(t, j, 0, 0, 0)
	})
	t.Run("a check without an answer is repeated, and ends", func(t *testing.T) {
		j := replayed(t)
		if settle(j, takeOnly(t, j, due), FoundNoReply, 2, due) {
			t.Error("gone without an answer")
		}
		wantGauges(t, j, 1, 0, 3)
		for at, looks := due, 0; looks < 3 && j.Keys.Load() > 0; at += int64(LateAfter) {
			for _, task := range takeAll(j, at) {
				if !task.Check {
					t.Errorf("the repeated check: %+v", task)
				}
				settle(j, task, FoundOurs, 3, at)
			}
			looks++
		}
		wantGauges(t, j, 0, 0, 0)
	})
	t.Run("a later write is replayed, and the check is due when it was", func(t *testing.T) {
		j := replayed(t)
		put(t, j, set("k", "v2", 2), admitted)
		wantGauges(t, j, 1, 1, 3)
		if j.NextCheck(anyKey) != clock.Never {
			t.Error("the check of the earlier write stands beside the replay of the later")
		}
		sent := takeOnly(t, j, now+1)
		if sent.Check || string(sent.Value) != "v2" || !remembers(sent.PossibleLateWrites, "v1") {
			t.Errorf("%+v", sent)
		}
		if settle(j, sent, FoundOurs, 2, now+1) {
			t.Error("gone, although v1 may still run late on session 1")
		}
		wantGauges(t, j, 1, 0, 3)
		if j.NextCheck(anyKey) != due {
			t.Errorf("the check is due %v after the first answer, want %v: a key that is written all the time must be unfenced", time.Duration(j.NextCheck(anyKey)-now), LateAfter)
		}
		check := takeOnly(t, j, due)
		if !check.Check || !remembers(check.PossibleLateWrites, "v1") || !settle(j, check, FoundOurs, 2, due) {
			t.Errorf("the check: %+v", check)
		}
		wantGauges(t, j, 0, 0, 0)
	})
	t.Run("a later write that is replayed after that time is its own check", func(t *testing.T) {
		j := replayed(t)
		put(t, j, set("k", "v2", 2), admitted)
		if !settle(j, takeOnly(t, j, due), FoundOurs, 2, due) {
			t.Error("stays, although nothing can run late any more")
		}
		wantGauges(t, j, 0, 0, 0)
	})
	t.Run("a later write during the check", func(t *testing.T) {
		j := replayed(t)
		check := takeOnly(t, j, due)
		put(t, j, set("k", "v2", 2), admitted)
		if settle(j, check, FoundOurs, 2, due) {
			t.Error("the later write left with the check")
		}
		wantHolds(t, j, "k", now, "v2")
		wantGauges(t, j, 1, 1, 3)
	})
	t.Run("an earlier ambiguous write that is told late", func(t *testing.T) {
		j := roomyJournal()
		later, earlier := set("k", "v2", 2), ambiguous(set("k", "v1", 1), 1)
		later.Expected = Holding([]byte("v1"), clock.Never, "server")
		earlier.Expected = Holding([]byte("v0"), clock.Never, "server")
		put(t, j, later, admitted)
		put(t, j, earlier, admitted)
		wantHolds(t, j, "k", now, "v2")
		sent := takeOnly(t, j, now)
		if string(sent.Value) != "v2" || !remembers(sent.PossibleLateWrites, "v1") || sent.PossibleLateWrites.Since != 1 || sent.Expected != earlier.Expected {
			t.Errorf("%+v", sent)
		}
		if settle(j, sent, FoundOurs, 2, now) {
			t.Error("gone, although v1 may still run late")
		}
	})
}

// A set timed out on session 1 and was replayed on session 2, which did not
// answer in time either, and then on session 2 once more, which did. That
// settles what session 2 was sent, and says nothing of what the server may still
// read from session 1.
func TestAReplayThatFailedDoesNotForgetAnEarlierSessionsLateWrite(t *testing.T) {
	const now = int64(time.Hour)
	j := roomyJournal()
	put(t, j, ambiguous(set("k", "v1", 1), 1), admitted)
	settle(j, takeOnly(t, j, now), FoundNoReply, 2, now)
	if settle(j, takeOnly(t, j, now), FoundOurs, 2, now) {
		t.Error("gone without a second check, although v1 may still run late on session 1")
	}

	// The same by two writes of one key that were under way when session 1 broke.
	j = roomyJournal()
	put(t, j, ambiguous(set("k", "v1", 1), 1), admitted)
	put(t, j, ambiguous(set("k", "v2", 2), 2), admitted)
	if settle(j, takeOnly(t, j, now), FoundOurs, 2, now) {
		t.Error("gone without a second check, although v1 may still run late on session 1")
	}
}

func TestOnlyALiveQueuedSetCanBeTouched(t *testing.T) {
	const now = 1000
	expires := func(w Write, at int64) Write { w.Deadline = at; return w }
	for _, tt := range []struct {
		name   string
		before func(t *testing.T, j *Journal)
		want   bool
	}{
		{"absent", func(*testing.T, *Journal) {}, false},
		{"a set", func(t *testing.T, j *Journal) { put(t, j, set("k", "v", 1), admitted) }, true},
		{"a set with an end", func(t *testing.T, j *Journal) { put(t, j, expires(set("k", "v", 1), now+1), admitted) }, true},
		{"an expired set", func(t *testing.T, j *Journal) { put(t, j, expires(set("k", "v", 1), now), admitted) }, false},
		{"a delete", func(t *testing.T, j *Journal) { put(t, j, del("k", 1), admitted) }, false},
		{"a set that waits for its check", func(t *testing.T, j *Journal) {
			put(t, j, ambiguous(set("k", "v", 1), 1), admitted)
			settle(j, takeOnly(t, j, now), FoundOurs, 2, now)
		}, false},
	} {
		j := roomyJournal()
		tt.before(t, j)
		if _, got := j.Touch(hashed("k"), "k", now, now+500); got != tt.want {
			t.Errorf("%s: touched %v, want %v", tt.name, got, tt.want)
		}
		if in := j.Shard(hashed("k")).Intents["k"]; in != nil && (in.Deadline == now+500) != tt.want {
			t.Errorf("%s: its end is %d", tt.name, in.Deadline)
		}
	}
}

func TestDrainedIsClosedWhenNothingIsQueuedAndNotBefore(t *testing.T) {
	isDone := func(ch <-chan struct{}) bool {
		select {
		case <-ch:
			return true
		default:
			return false
		}
	}
	j := roomyJournal()
	if j.Drained() != nil {
		t.Fatal("an empty journal has something to wait for")
	}
	put(t, j, set("a", "v", 1), admitted)
	put(t, j, ambiguous(set("b", "v", 1), 1), admitted)
	put(t, j, del("c", 1), admitted)
	first := j.Drained()
	if first == nil || isDone(first) {
		t.Fatal("nothing to wait for, with three keys queued")
	}
	tasks := takeAll(j, 0)
	for i, task := range tasks {
		if isDone(first) {
			t.Errorf("drained with %d of %d settled", i, len(tasks))
		}
		if i == 0 {
			// Does not count until it was answered.
			settle(j, task, FoundNoReply, 2, 0)
			task = takeOnly(t, j, 0)
			if isDone(first) {
				t.Error("drained by a replay that failed")
			}
		}
		settle(j, task, FoundOurs, 2, 0)
	}
	if !isDone(first) || j.Drained() != nil {
		t.Errorf("not drained: %d queued", j.Queued.Load())
	}
	put(t, j, set("a", "v", 2), admitted)
	second := j.Drained()
	if second == nil || isDone(second) {
		t.Fatal("a new write is no new thing to wait for")
	}
	// Overtaken by a write that Redis took.
	j.Superseded(hashed("a"), set("a", "w", 3), 2, "server")
	if !isDone(second) {
		t.Error("the last queued write was overtaken, and drained is not told")
	}
}

func TestAbsenceIsAConflictOnlyWhereSomebodyElseMustHaveDeleted(t *testing.T) {
	const now = int64(time.Hour)
	held := Holding([]byte("v0"), clock.Never, "here")
	v1 := []Digest{sha1.Sum([]byte("v1"))}
	for _, tt := range []struct {
		name string
		base Expected
		late LateWrites
		want bool
	}{
		{"nothing is known", Expected{}, LateWrites{}, true},
		{"nothing was there", HoldingNothing("here"), LateWrites{}, true},
		{"nothing was there, on another server", HoldingNothing("there"), LateWrites{}, true},
		{"a value was there", held, LateWrites{}, false},
		{"a value was there, with time left", Holding([]byte("v0"), now+ClockAllowance+1, "here"), LateWrites{}, false},
		{"a value was there, whose time has run out if our clock is behind", Holding([]byte("v0"), now+ClockAllowance, "here"), LateWrites{}, true},
		{"a value was there, and its time has run out", Holding([]byte("v0"), now, "here"), LateWrites{}, true},
		{"a value was there, on another server", Holding([]byte("v0"), clock.Never, "there"), LateWrites{}, true},
		{"our own delete may have run", held, LateWrites{Since: 1, Gone: clock.Never, Del: true}, true},
		{"our own set may have run", held, LateWrites{Since: 1, Gone: clock.Never, Sums: v1}, false},
		{"our own set may have run, with time left", held, LateWrites{Since: 1, Gone: now + ClockAllowance + 1, Sums: v1}, false},
		{"our own set may have run, and its time has run out", held, LateWrites{Since: 1, Gone: now, Sums: v1}, true},
	} {
		in := &Intent{Expected: tt.base, PossibleLateWrites: tt.late}
		if got := in.mayBeAbsent("here", now); got != tt.want {
			t.Errorf("%s: may be absent %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestTheBaseIsWhatRedisLastHeldAndTheLateOnesAreOurOwn(t *testing.T) {
	if b := Holding([]byte("v0"), 7, "server"); b != (Expected{known: true, held: true, sum: sha1.Sum([]byte("v0")), gone: 7, server: "server"}) {
		t.Errorf("holding: %+v", b)
	}
	if b := HoldingNothing("server"); b != (Expected{known: true, server: "server"}) {
		t.Errorf("holding nothing: %+v", b)
	}
	if b := afterwards([]byte("v1"), false, 7, "server"); b != Holding([]byte("v1"), 7, "server") {
		t.Errorf("after a set: %+v", b)
	}
	if b := afterwards(nil, true, clock.Never, "server"); b != HoldingNothing("server") {
		t.Errorf("after a delete: %+v", b)
	}

	// The unanswered add up: the first session, all values, the first end.
	var l LateWrites
	l.unanswered(5, []byte("v1"), false, 100)
	l.unanswered(5, []byte("v1"), false, clock.Never)
	l.unanswered(4, []byte("v2"), false, 50)
	l.until = 99
	l.unanswered(6, []byte("v3"), false, clock.Never)
	want := []Digest{sha1.Sum([]byte("v1")), sha1.Sum([]byte("v2")), sha1.Sum([]byte("v3"))}
	if l.Since != 4 || l.Gone != 50 || l.Del || l.until != 0 || !slices.Equal(l.Sums, want) {
		t.Errorf("after v1, v1, v2, v3: %+v", l)
	}
	l.unanswered(7, nil, true, clock.Never)
	if !l.Del || len(l.Sums) != 3 || l.Since != 4 {
		t.Errorf("after a delete: %+v", l)
	}
	if l.More {
		t.Error("three were too many")
	}
	for i := range lateMost {
		l.unanswered(7, fmt.Append(nil, i), false, clock.Never)
	}
	if len(l.Sums) != lateMost || !l.More || !remembers(l, "v1") || !remembers(l, "v3") {
		t.Errorf("%d values are remembered of a hundred; it is bounded, and keeps the first", len(l.Sums))
	}

	// The first write's base stays: it is what Redis held before all of them.
	j := roomyJournal()
	w := set("k", "v1", 1)
	w.Expected = Holding([]byte("v0"), clock.Never, "server")
	put(t, j, w, admitted)
	w = set("k", "v2", 2)
	w.Expected = Holding([]byte("v1"), clock.Never, "another")
	put(t, j, w, admitted)
	sent := takeOnly(t, j, 0)
	if sent.Expected != Holding([]byte("v0"), clock.Never, "server") || sent.PossibleLateWrites.Since != 0 {
		t.Errorf("a write that nobody sent is in the base, or expected late: %+v", sent)
	}
	settle(j, sent, FoundUnsent, 1, 0)
}

func TestWhatATaskRemembersIsItsOwn(t *testing.T) {
	j := roomyJournal()
	for i := range 5 { // a slice with room behind its end
		put(t, j, ambiguous(set("k", fmt.Sprint("v", i), uint64(i+1)), 1), admitted)
	}
	for _, take := range []func() Task{
		func() Task { return takeOnly(t, j, 0) },
		func() Task { return j.TakeOne(hashed("k"), "k")[0] },
	} {
		sent := take()
		before := slices.Clone(sent.PossibleLateWrites.Sums)
		_ = append(sent.PossibleLateWrites.Sums, Digest{1})
		seq := sent.Seq + 1
		value := fmt.Sprint("later", seq)
		put(t, j, ambiguous(set("k", value, seq), 1), admitted)
		_ = append(sent.PossibleLateWrites.Sums, Digest{2})
		if !slices.Equal(sent.PossibleLateWrites.Sums, before) {
			t.Error("a later write changed what a task under way remembers")
		}
		if !remembers(j.Shard(sent.Hash).Intents["k"].PossibleLateWrites, value) {
			t.Error("a task under way changed what the journal remembers")
		}
		settle(j, sent, FoundUnsent, 1, 0)
	}
}

func TestAJournalOfItsDefaultSizeCostsLittleBesideKeysAndValues(t *testing.T) {
	heap := func() int64 {
		var m runtime.MemStats
		for range 3 {
			runtime.GC()
		}
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	const n, size, most = 65536, 100, 265
	before := heap()
	j := New(Config{MaxKeys: n, MaxBytes: 1 << 30})
	var keys int64
	for i := range n {
		key := fmt.Sprintf("session:%08d", i)
		keys += int64(len(key))
		value := bytes.Repeat([]byte{'v'}, size)
		value[0], value[1] = byte(i), byte(i>>8)
		w := Write{Key: key, Value: value, Deadline: clock.Never, Seq: 1, Expected: Holding(value, clock.Never, "server")}
		if offer(j, w) != admitted {
			t.Fatal("refused")
		}
	}
	used := heap() - before
	if got := j.Bytes.Load(); got != keys+n*size {
		t.Errorf("it counts %d bytes of keys and values, and holds %d", got, keys+n*size)
	}
	over := (used - j.Bytes.Load()) / n
	t.Logf("%d B an entry over key and value", over)
	if over > most {
		t.Errorf("%d B an entry over key and value, want at most %d", over, most)
	}
	runtime.KeepAlive(j)
}

// Writers, readers and a replayer at once, with a Redis that is a map: when all
// is replayed, it holds the last write of each key and the journal nothing.
func TestTheJournalSettlesWhateverHappensAtOnce(t *testing.T) {
	const writers, rounds, keys = 4, 3000, 20
	j := New(Config{MaxKeys: 1000, MaxBytes: 1 << 20})
	type slot struct {
		mu   sync.Mutex
		seq  uint64
		last string // "" for a delete
	}
	slots := make([]slot, keys)
	var redis sync.Map
	run := func(task Task) {
		if task.Del {
			redis.Delete(task.Key)
		} else {
			redis.Store(task.Key, string(task.Value))
		}
	}
	name := func(i int) string { return fmt.Sprint("key", i) }

	var now, done atomic.Int64
	now.Store(1)
	var background, wg sync.WaitGroup
	replay := func(rnd *rand.Rand, faults bool) {
		at := now.Add(int64(time.Second) / 4)
		tasks := j.Take(7, 1<<10, at, hashed, all)
		if one := rnd.IntN(keys); len(tasks) == 0 {
			tasks = j.TakeOne(hashed(name(one)), name(one))
		}
		for _, task := range tasks {
			what := FoundOurs
			if faults && rnd.IntN(4) == 0 {
				what = FoundNoReply + Found(rnd.IntN(2))
			}
			if what == FoundOurs || what == FoundNoReply && rnd.IntN(2) == 0 {
				run(task)
			}
			settle(j, task, what, 1+rnd.Uint64N(3), at)
		}
	}
	for g := range 2 {
		background.Go(func() {
			rnd := rand.New(rand.NewPCG(7, uint64(g)))
			for done.Load() == 0 {
				replay(rnd, true)
				if ch := j.Drained(); ch != nil && rnd.IntN(10) == 0 {
					select {
					case <-ch:
					default:
					}
				}
				j.NextCheck(anyKey)
			}
		})
	}
	for g := range writers {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(8, uint64(g)))
			for i := range rounds {
				n := rnd.IntN(keys)
				key, s := name(n), &slots[n]
				s.mu.Lock()
				s.seq++
				w := Write{Key: key, Value: fmt.Appendf(nil, "%d:%d", g, i), Deadline: clock.Never, Seq: s.seq}
				if rnd.IntN(3) == 0 {
					w.Value, w.Del = nil, true
				}
				s.last = string(w.Value)
				if rnd.IntN(3) == 0 {
					w.SentOn = 1 + rnd.Uint64N(3)
				}
				if verdict := offer(j, w); verdict != admitted {
					t.Errorf("verdict %d", verdict)
				}
				s.mu.Unlock()
				switch rnd.IntN(4) {
				case 0:
					j.Touch(hashed(key), key, now.Load(), clock.Never-rnd.Int64N(1000))
				case 1:
					j.Get(hashed(key), key, now.Load())
				}
			}
		})
	}
	wg.Wait()
	done.Store(1)
	background.Wait()
	rnd := rand.New(rand.NewPCG(9, 9))
	waits := j.Drained()
	for i := 0; j.Keys.Load() > 0; i++ {
		replay(rnd, false)
		if i > 100_000 {
			t.Fatalf("%d keys, %d queued, and nothing settles", j.Keys.Load(), j.Queued.Load())
		}
	}
	if waits != nil {
		<-waits
	}
	wantGauges(t, j, 0, 0, 0)
	for i := range slots {
		got, _ := redis.Load(name(i))
		if got == nil {
			got = ""
		}
		if got != slots[i].last {
			t.Errorf("%s is %q, last written %q", name(i), got, slots[i].last)
		}
	}
	for i := range j.Shards {
		if n := len(j.Shards[i].Intents); n != 0 {
			t.Errorf("%d intents in shard %d", n, i)
		}
	}
}

func TestOnlyAWaitingSetThatNobodyElseExplainsIsComparedAndTheComparisonDecides(t *testing.T) {
	at := func(b Expected) Write { w := set("k", "v", 1); w.Expected = b; return w }
	held := func(gone int64) Expected { return Holding([]byte("base"), gone, "server") }
	const now = 100
	type decided struct{ absent, base, ours, other bool } // whether it is a delete then
	any := decided{absent: false, base: true, other: true}
	for name, tt := range map[string]struct {
		arrange func(j *Journal)
		want    bool
		decided decided
	}{
		"nothing":           {arrange: func(*Journal) {}},
		"a set":             {func(j *Journal) { put(t, j, set("k", "v", 1), admitted) }, true, any},
		"over a base":       {func(j *Journal) { put(t, j, at(held(clock.Never)), admitted) }, true, decided{absent: true, other: true}},
		"over absence":      {func(j *Journal) { put(t, j, at(HoldingNothing("server")), admitted) }, true, any},
		"of another server": {func(j *Journal) { put(t, j, at(Holding([]byte("base"), clock.Never, "another")), admitted) }, true, decided{other: true}},
		"the base ended":    {arrange: func(j *Journal) { put(t, j, at(held(now)), admitted) }},
		"a delete":          {arrange: func(j *Journal) { put(t, j, del("k", 1), admitted) }},
		"our own, late":     {arrange: func(j *Journal) { put(t, j, ambiguous(set("k", "v", 1), 3), admitted) }},
		"under way":         {arrange: func(j *Journal) { put(t, j, set("k", "v", 1), admitted); takeAll(j, 0) }},
		"of another key":    {arrange: func(j *Journal) { put(t, j, set("other", "v", 1), admitted) }},
		"set again":         {func(j *Journal) { put(t, j, del("k", 1), admitted); put(t, j, set("k", "v", 2), admitted) }, true, any},
		"before its second": {arrange: func(j *Journal) {
			put(t, j, ambiguous(set("k", "v", 1), 3), admitted)
			settle(j, takeOnly(t, j, 0), FoundOurs, 4, 0)
		}},
	} {
		for what, found := range map[string]bool{"": tt.decided.absent, "base": tt.decided.base, "v": tt.decided.ours, "other": tt.decided.other} {
			t.Run(name+", redis holds "+what, func(t *testing.T) {
				j := roomyJournal()
				tt.arrange(j)
				keys, queued, size := j.Keys.Load(), j.Queued.Load(), j.Bytes.Load()
				if got := j.Invalidated(hashed("k"), "k", now); got != tt.want {
					t.Fatalf("to be compared: %v", got)
				}
				wantGauges(t, j, keys, queued, size)
				if !tt.want {
					return
				}
				all := j.Uncompared(hashed, func(string) bool { return true })
				if len(all) != 1 || len(j.Uncompared(hashed, func(string) bool { return true })) != 0 {
					t.Fatalf("to be compared: %+v, and more", all)
				}
				if got := j.Compared(all[0], []byte(what), what != "", "server"); got != found {
					t.Fatalf("a delete: %v", got)
				}
				if found {
					size--
					wantHolds(t, j, "k", 0, "gone")
				}
				wantGauges(t, j, keys, queued, size)
				if takeOnly(t, j, 0).Del != found {
					t.Error("it is replayed as something else")
				}
			})
		}
	}
}

// What is told while the answer is on its way is not in it.
func TestNewsThatComesBesideAComparisonIsComparedOnceMore(t *testing.T) {
	j := roomyJournal()
	w := set("k", "v", 1)
	w.Expected = Holding([]byte("base"), clock.Never, "server")
	put(t, j, w, admitted)
	all := func(string) bool { return true }
	j.Invalidated(hashed("k"), "k", 0)
	first := j.Uncompared(hashed, all)
	j.Invalidated(hashed("k"), "k", 0)
	if j.Compared(first[0], []byte("base"), true, "server") {
		t.Error("it is what it was")
	}
	second := j.Uncompared(hashed, all)
	if len(second) != 1 || !j.Compared(second[0], nil, false, "server") {
		t.Errorf("somebody deleted it meanwhile: %+v", second)
	}
}

// Somebody deletes what was there, and its end comes before the replay: that does not
// explain the absence.
func TestADeleteThatWasToldIsNotUndoneBecauseTheValueWouldHaveEnded(t *testing.T) {
	j := roomyJournal()
	w := set("k", "v", 1)
	w.Expected = Holding([]byte("base"), int64(time.Hour), "server")
	put(t, j, w, admitted)
	if !j.Invalidated(hashed("k"), "k", 0) {
		t.Fatal("it is not to be compared")
	}
	task := takeOnly(t, j, 0)
	if task.mayBeAbsent("server", int64(2*time.Hour)) {
		t.Error("its absence is explained by its end")
	}
}
