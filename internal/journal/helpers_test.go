package journal

import (
	"context"
	"crypto/sha1"
	"hash/fnv"
	"slices"
	"testing"

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

// all and anyKey accept each write and each key.
func all(string, bool) bool { return true }

func anyKey(string) bool { return true }

// takeAll takes all tasks that are due at that time.
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

// wantHolds asserts the answer for a reader: a value, "gone" for a journaled key
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
