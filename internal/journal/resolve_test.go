package journal

import (
	"crypto/sha1"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/keyhash"
)

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
	for i := range j.shards {
		if n := len(j.shards[i].intents); n != 0 {
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

// A set timed out on session 1 and was replayed on session 2, which did not
// answer in time either, and then on session 2 once more, which did. That
// settles the write sent on session 2, and says nothing of the writes that the server may still
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

// A late write may run until its time is up, and so behind a second look that was sent
// before and answered after.
func TestASecondLookThatWasSentTooEarlyIsNoneHoweverLateItsAnswer(t *testing.T) {
	j := New(Config{MaxKeys: 10, MaxBytes: 1 << 20})
	hash := func(key string) keyhash.Hash { return keyhash.Hash{} }
	all := func(string, bool) bool { return true }
	j.Put(keyhash.Hash{}, Write{Key: "k", Value: []byte("v"), Deadline: clock.Never, Seq: 1, SentOn: 1})

	take := func(now int64) Task {
		t.Helper()
		tasks := j.Take(1, 1<<20, now, hash, all)
		if len(tasks) != 1 {
			t.Fatalf("taken: %+v", tasks)
		}
		tasks[0].SentAt = now
		return tasks[0]
	}
	first := take(int64(time.Second))
	j.Resolve(first, FoundOurs, 2, "", int64(2*time.Second))
	until := int64(2*time.Second) + int64(lateAfter)

	// A later write has it replayed at once, before that time.
	j.Put(keyhash.Hash{}, Write{Key: "k", Value: []byte("w"), Deadline: clock.Never, Seq: 2})
	early := take(until - 1)
	j.Resolve(early, FoundOurs, 2, "", until+int64(time.Second))
	if !j.Holds(keyhash.Hash{}, "k") {
		t.Fatal("it left the journal, and what is late may still run")
	}
	check := take(until + int64(time.Second))
	if !check.Check {
		t.Errorf("not a second look: %+v", check)
	}
	j.Resolve(check, FoundOurs, 2, "", until+int64(time.Second))
	if j.Holds(keyhash.Hash{}, "k") {
		t.Error("it stays in the journal")
	}
}
