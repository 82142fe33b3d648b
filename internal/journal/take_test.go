package journal

import (
	"fmt"
	"slices"
	"testing"
)

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
		if !remembers(j.shard(sent.Hash).intents["k"].PossibleLateWrites, value) {
			t.Error("a task under way changed what the journal remembers")
		}
		settle(j, sent, FoundUnsent, 1, 0)
	}
}
