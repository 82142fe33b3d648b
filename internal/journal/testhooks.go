package journal

import (
	"slices"
	"sync"

	"github.com/holdfast-cache/holdfast/internal/keyhash"
)

// The hooks of tests in other packages. Nothing else may use them.

// Bounds of the clock and of a second check, for tests.
const (
	ClockAllowance = clockAllowance
	LateAfter      = lateAfter
)

// HangDisk makes accesses to the disk wait until the returned function is called. The kinds
// of access are those of wal.Options.Before; without a kind, all accesses wait.
func (j *Journal) HangDisk(kinds ...string) (goOn func()) {
	gate := make(chan struct{})
	before := func(op string) {
		if len(kinds) == 0 || slices.Contains(kinds, op) {
			<-gate
		}
	}
	j.file.before.Store(&before)
	return sync.OnceFunc(func() {
		j.file.before.Store(nil)
		close(gate)
	})
}

// HoldSweeps keeps sweeps from running, as a disk that hangs does, until release is called.
func (j *Journal) HoldSweeps() (release func()) {
	j.file.sweeping <- struct{}{}
	return sync.OnceFunc(func() { <-j.file.sweeping })
}

// Sizes counts the intents in memory, beside the gauges.
func (j *Journal) Sizes() (intents int) {
	j.eachIntent(func(*Intent) { intents++ })
	return intents
}

// BeingSent counts the intents that a replay is sending.
func (j *Journal) BeingSent() (intents int) {
	j.eachIntent(func(in *Intent) {
		if in.sending {
			intents++
		}
	})
	return intents
}

func (j *Journal) eachIntent(f func(*Intent)) {
	for i := range j.shards {
		sh := &j.shards[i]
		sh.mu.RLock()
		for _, in := range sh.intents {
			f(in)
		}
		sh.mu.RUnlock()
	}
}

// Awaits reports whether the journal has the key, and whether the key's intent is to be
// replayed. It is not if it waits for its second check, or only compensates.
func (j *Journal) Awaits(h keyhash.Hash, key string) (journaled, replay bool) {
	sh := j.shard(h)
	sh.mu.RLock()
	defer sh.mu.RUnlock()
	in := sh.intents[key]
	return in != nil, in != nil && in.checkAt == toReplay && !in.Compensate
}

// Adopt stores a task as one that was taken, and reports whether its key was free.
func (j *Journal) Adopt(t *Task) bool {
	sh := j.shard(t.Hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.intents[t.Key] != nil {
		return false
	}
	in := t.Intent
	if in.sending = true; t.Check {
		in.checkAt = 1 // long ago
	} else {
		j.Queued.Add(1)
	}
	j.Keys.Add(1)
	j.Bytes.Add(int64(len(t.Key) + len(in.Value)))
	sh.intents[t.Key] = &in
	return true
}

// Dismiss reports whether a replay is done with the task. If a second check is all that
// remains, or if the intent is held, Dismiss removes the intent.
func (j *Journal) Dismiss(t *Task, now int64) bool {
	sh := j.shard(t.Hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	in := sh.intents[t.Key]
	if in == nil {
		return true
	}
	if in.held == nil && in.checkAt.due(now) {
		return false
	}
	j.dropLocked(sh, t.Key, in)
	return true
}

// AgeHeld moves back the time since when a set is held, unless it is being sent. It reports
// whether the set became a delete.
func (j *Journal) AgeHeld(h keyhash.Hash, key string, by int64) (deleted bool) {
	sh := j.shard(h)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	in := sh.intents[key]
	if !in.sending && !in.Del {
		in.held.since -= by
	}
	return in.Del
}
