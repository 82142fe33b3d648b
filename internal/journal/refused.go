package journal

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/keyhash"
)

// An entry that Redis refuses while a probe succeeds is held: it stays in the journal and
// its key stays journaled, but Drain does not wait for it. Held entries are grouped by the
// text of the refusal. Of each group one entry, the canary, is tried again with a back-off.
// When Redis accepts it, the whole group is queued again. A later write of a key replaces
// the held entry and is tried at once.
//
// A delete is held until Redis has answered for its key. A set that is refused by a known
// error about the command becomes a delete after HeldSets: the value in Redis is older than
// the set, and other clients read it.

// objection is a text with which Redis refuses entries, and the schedule of its canary. It
// lives as long as the journal. keys changes under the lock of each key's shard.
type objection struct {
	Text    string
	command bool         // a known error about the command, not an unknown text
	keys    atomic.Int64 // entries held for it

	// The fields below are guarded by heldEntries.
	schedule clock.Backoff
	due      int64 // when a canary is to be sent
	trying   bool  // a canary is under way
	told     int64 // when it was last logged; 0: never
}

// heldEntry is the refusal for which an entry is held, and the time of the first refusal.
type heldEntry struct {
	*objection
	since int64
}

// heldEntries are the refusals that a journal has met.
type heldEntries struct {
	N atomic.Int64 // number of held entries

	sync.Mutex
	refusals map[string]*objection
}

const (
	// refusalTexts is the most texts that are distinguished. Of each, RefusalRead bytes and
	// the length of the key are read.
	refusalTexts = 64
	RefusalRead  = 4 << 10
	// refusalNews is the least time between two log lines for one refusal.
	refusalNews = time.Minute
	// HeldSets is how long a set is held before it becomes a delete.
	HeldSets = time.Minute
)

// Undelivered returns the number of entries that Redis does not have: queued and held ones.
func (j *Journal) Undelivered() int { return int(j.Queued.Load() + j.Held.N.Load()) }

// heldMost is the most entries that may be held. If Redis refuses more, the cause is not in
// the entries.
func (j *Journal) heldMost() int64 { return int64(j.maxKeys+1) / 2 }

// Refusal returns the objection with this text. Texts beyond refusalTexts share one.
func (j *Journal) Refusal(text string, ofCommand bool) *objection {
	h := &j.Held
	h.Lock()
	defer h.Unlock()
	if len(h.refusals) >= refusalTexts && h.refusals[text] == nil {
		text, ofCommand = "other texts", false
	}
	r := h.refusals[text]
	if r == nil {
		r = &objection{Text: text, command: ofCommand, schedule: j.Retry}
		r.schedule.Tries = 1 // so that the first wait is MinBackoff and not 0
		if h.refusals == nil {
			h.refusals = make(map[string]*objection)
		}
		h.refusals[text] = r
	}
	return r
}

// Hold ends a task that Redis refuses while it accepts others: the entry is held for
// refusal r, unless a later write of the key has replaced it. again reports that the entry
// was held before, or was replaced. news reports that the refusal is to be logged. If ok is
// false, too many entries are held, and this one stays queued. ran, if not 0, is the
// session on which the task may have run nevertheless.
func (j *Journal) Hold(t *Task, r *objection, ran uint64, now int64) (again, news, ok bool) {
	ok = true
	first := false
	j.returned(t, func(_ *shard, in *Intent) {
		if ran != 0 {
			in.PossibleLateWrites.unanswered(ran, t.Value, t.deletesAt(t.SentAt), t.Deadline)
		}
		was := heldEntry{since: now}
		if again = in.held != nil; again {
			was = *in.held
		}
		switch {
		case !in.is(t):
			again = true // it was replaced, and is not held
			return
		case was.objection == r:
			return
		case again:
			was.keys.Add(-1)
		case j.Held.N.Add(1) > j.heldMost():
			j.Held.N.Add(-1)
			ok = false
			return
		case in.checkAt == toReplay:
			j.Queued.Add(-1)
		}
		in.held = &heldEntry{r, was.since}
		first = r.keys.Add(1) == 1
	})
	j.tried(t.Canary, false, now)
	h := &j.Held
	h.Lock()
	if first {
		r.due = now + int64(r.schedule.Next())
		if news = r.told == 0 || now-r.told >= int64(refusalNews); news {
			r.told = now
		}
	}
	h.Unlock()
	j.Announce()
	return again, news, ok
}

// queuedLocked reports whether the intent is to be replayed. The caller holds the shard's
// lock.
func (in *Intent) queuedLocked() bool { return in.checkAt == toReplay && in.held == nil }

// releaseLocked queues a held intent again. The caller holds the shard's lock.
func (j *Journal) releaseLocked(in *Intent) {
	if in.held == nil {
		return
	}
	in.held.keys.Add(-1)
	in.held = nil
	j.Held.N.Add(-1)
	if in.checkAt == toReplay {
		j.Queued.Add(1)
	}
}

// tried records the result of the canary of refusal r; r is nil if the task was no canary.
// If the canary went through, all entries that are held for r are queued again.
func (j *Journal) tried(r *objection, through bool, now int64) {
	if r == nil {
		return
	}
	h := &j.Held
	h.Lock()
	r.trying = false
	if through {
		r.schedule.Tries = 1
	}
	r.due = now + int64(r.schedule.Next())
	h.Unlock()
	if through {
		j.eachHeld(r, func(_ *shard, _ string, in *Intent) { j.releaseLocked(in) })
	}
}

// eachHeld calls f for each entry that is held for refusal r, or for each held entry if r
// is nil. f runs under the lock of the entry's shard.
func (j *Journal) eachHeld(r *objection, f func(sh *shard, key string, in *Intent)) {
	for i := range j.shards {
		sh := &j.shards[i]
		sh.mu.Lock()
		for key, in := range sh.intents {
			if in.held != nil && (r == nil || in.held.objection == r) {
				f(sh, key, in)
			}
		}
		sh.mu.Unlock()
	}
}

// Canaries takes one entry for each refusal that is due, if want allows one. The entry is
// chosen at random, because an entry that is refused for another reason with the same text
// must not stand in front of the others forever.
func (j *Journal) Canaries(now int64, hash func(string) keyhash.Hash, want func(key string, del bool) bool) (tasks []Task) {
	if j.Held.N.Load() == 0 || !j.reserve() {
		return nil
	}
	defer j.underWay.Add(-1)
	for _, r := range j.dueRefusals(now) {
		t, ok := j.canary(r, hash, want)
		if ok {
			tasks = append(tasks, t)
			continue
		}
		j.Held.Lock()
		r.trying = false // want allows none of its entries
		j.Held.Unlock()
	}
	return tasks
}

// dueRefusals returns the refusals that are due, and marks them as being tried.
func (j *Journal) dueRefusals(now int64) (due []*objection) {
	h := &j.Held
	h.Lock()
	defer h.Unlock()
	for _, r := range h.refusals {
		if !r.trying && now >= r.due && r.keys.Load() > 0 {
			r.trying = true
			due = append(due, r)
		}
	}
	return due
}

// canary takes a random entry that is held for the refusal and that want allows.
func (j *Journal) canary(r *objection, hash func(string) keyhash.Hash, want func(key string, del bool) bool) (t Task, ok bool) {
	first := rand.IntN(shardCount)
	for i := range shardCount {
		sh := &j.shards[(first+i)%shardCount]
		sh.mu.Lock()
		for key, in := range sh.intents {
			if in.held != nil && in.held.objection == r && !in.sending && want(key, in.Del) {
				t, ok = j.takeLocked(sh, key, in, hash(key)), true
				t.Canary = r
				break
			}
		}
		sh.mu.Unlock()
		if ok {
			break
		}
	}
	return t, ok
}

// NextCanary returns when the next canary is due, or never.
func (j *Journal) NextCanary() int64 {
	next := int64(clock.Never)
	if j.Held.N.Load() == 0 {
		return next
	}
	h := &j.Held
	h.Lock()
	defer h.Unlock()
	for _, r := range h.refusals {
		if !r.trying && r.keys.Load() > 0 {
			next = min(next, r.due)
		}
	}
	return next
}

// ExpireHeld turns sets into deletes that are held since the given time or longer for a
// known error, and returns their keys.
func (j *Journal) ExpireHeld(before int64) (keys []string) {
	if j.Held.N.Load() == 0 {
		return nil
	}
	j.eachHeld(nil, func(sh *shard, key string, in *Intent) {
		if in.Del || in.sending || !in.held.command || in.held.since > before {
			return
		}
		j.Bytes.Add(-int64(len(in.Value)))
		in.Value, in.Del, in.WasSet = nil, true, true
		j.releaseLocked(in)
		j.saveLocked(sh, key, in)
		keys = append(keys, key)
	})
	return keys
}

// HeldSince returns when the oldest held entry was first refused; 0: none is held.
func (j *Journal) HeldSince() (since int64) {
	if j.Held.N.Load() == 0 {
		return 0
	}
	j.eachHeld(nil, func(_ *shard, _ string, in *Intent) {
		if since == 0 || in.held.since < since {
			since = in.held.since
		}
	})
	return since
}

// Discard removes the intent of the key if it is held, and reports whether it did.
func (j *Journal) Discard(h keyhash.Hash, key string) bool {
	sh := j.shard(h)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	in := sh.intents[key]
	if in == nil || in.held == nil || in.sending {
		return false
	}
	j.releaseLocked(in)
	j.leaveLocked(sh, key, in)
	return true
}

// HeldIntent is a held entry as a list shows it.
type HeldIntent struct {
	Key     string
	Del     bool
	Bytes   int // of the value
	Since   int64
	Refusal string
}

// HeldWrites yields the held entries. No lock is held while yield runs.
func (j *Journal) HeldWrites(yield func(HeldIntent) bool) {
	for i := range j.shards {
		sh := &j.shards[i]
		var all []HeldIntent
		sh.mu.RLock()
		for key, in := range sh.intents {
			if in.held != nil {
				all = append(all, HeldIntent{key, in.Del, len(in.Value), in.held.since, in.held.Text})
			}
		}
		sh.mu.RUnlock()
		for _, w := range all {
			if !yield(w) {
				return
			}
		}
	}
}
