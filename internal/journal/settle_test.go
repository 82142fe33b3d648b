package journal

import (
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/keyhash"
)

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
	until := int64(2*time.Second) + int64(LateAfter)

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
