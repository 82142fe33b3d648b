package holdfast

import (
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/keyhash"
)

// A late write may run until its time is up, and so behind a second look that was sent
// before and answered after.
func TestASecondLookThatWasSentTooEarlyIsNoneHoweverLateItsAnswer(t *testing.T) {
	j := newJournal(JournalOptions{MaxKeys: 10, MaxBytes: 1 << 20})
	hash := func(key string) keyhash.Hash { return keyhash.Hash{} }
	all := func(string, bool) bool { return true }
	j.put(keyhash.Hash{}, write{key: "k", value: []byte("v"), deadline: clock.Never, seq: 1, sentOn: 1})

	take := func(now int64) task {
		t.Helper()
		tasks := j.take(1, 1<<20, now, hash, all)
		if len(tasks) != 1 {
			t.Fatalf("taken: %+v", tasks)
		}
		tasks[0].sentAt = now
		return tasks[0]
	}
	first := take(int64(time.Second))
	j.resolve(first, foundOurs, 2, "", int64(2*time.Second))
	until := int64(2*time.Second) + int64(lateAfter)

	// A later write has it replayed at once, before that time.
	j.put(keyhash.Hash{}, write{key: "k", value: []byte("w"), deadline: clock.Never, seq: 2})
	early := take(until - 1)
	j.resolve(early, foundOurs, 2, "", until+int64(time.Second))
	if !j.holds(keyhash.Hash{}, "k") {
		t.Fatal("it left the journal, and what is late may still run")
	}
	check := take(until + int64(time.Second))
	if !check.check {
		t.Errorf("not a second look: %+v", check)
	}
	j.resolve(check, foundOurs, 2, "", until+int64(time.Second))
	if j.holds(keyhash.Hash{}, "k") {
		t.Error("it stays in the journal")
	}
}
