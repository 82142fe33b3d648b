package holdfast

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"strings"
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
// error about the command becomes a delete after heldSets: the value in Redis is older than
// the set, and other clients read it.

// objection is a text with which Redis refuses entries, and the schedule of its canary. It
// lives as long as the journal. keys changes under the lock of each key's shard.
type objection struct {
	text    string
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
	n atomic.Int64 // number of held entries

	sync.Mutex
	refusals map[string]*objection
}

const (
	// refusalTexts is the most texts that are distinguished. Of each, refusalRead bytes and
	// the length of the key are read.
	refusalTexts = 64
	refusalRead  = 4 << 10
	// refusalNews is the least time between two log lines for one refusal.
	refusalNews = time.Minute
	// heldSets is how long a set is held before it becomes a delete.
	heldSets = time.Minute
)

var errHeld = errors.New("holdfast: redis refuses them for themselves: see Cache.Held")

// undelivered returns the number of entries that Redis does not have: queued and held ones.
func (j *journal) undelivered() int { return int(j.queued.Load() + j.held.n.Load()) }

// heldMost is the most entries that may be held. If Redis refuses more, the cause is not in
// the entries.
func (j *journal) heldMost() int64 { return int64(j.maxKeys+1) / 2 }

// refusalOf returns the text of an error for display and comparison: printable, and without
// the key and numbers, which differ from entry to entry.
func refusalOf(err error, key string) string {
	text := err.Error()
	if len(text) > refusalRead+len(key) {
		text = text[:refusalRead+len(key)]
	}
	if key != "" {
		text = withoutKey(text, key)
	}
	var b strings.Builder
	digits := false
	for i := range len(text) {
		digit := '0' <= text[i] && text[i] <= '9'
		if !digit {
			b.WriteByte(text[i])
		} else if !digits {
			b.WriteByte('#')
		}
		digits = digit
	}
	return printable(b.String())
}

// withoutKey replaces the key in a text, except where the key is part of a longer word: a
// short key may be part of any word.
func withoutKey(text, key string) string {
	inWord := func(i int) bool {
		return i >= 0 && i < len(text) && (text[i]|0x20 >= 'a' && text[i]|0x20 <= 'z')
	}
	var b strings.Builder
	done := 0
	for at := 0; ; {
		i := strings.Index(text[at:], key)
		if i < 0 {
			return b.String() + text[done:]
		}
		i += at
		if at = i + len(key); inWord(i-1) && inWord(i) || inWord(at-1) && inWord(at) {
			at = i + 1
			continue
		}
		b.WriteString(text[done:i] + "*")
		done = at
	}
}

// refusal returns the objection with this text. Texts beyond refusalTexts share one.
func (j *journal) refusal(text string, ofCommand bool) *objection {
	h := &j.held
	h.Lock()
	defer h.Unlock()
	if len(h.refusals) >= refusalTexts && h.refusals[text] == nil {
		text, ofCommand = "other texts", false
	}
	r := h.refusals[text]
	if r == nil {
		r = &objection{text: text, command: ofCommand, schedule: j.retry}
		r.schedule.Tries = 1 // so that the first wait is MinBackoff and not 0
		if h.refusals == nil {
			h.refusals = make(map[string]*objection)
		}
		h.refusals[text] = r
	}
	return r
}

// hold ends a task that Redis refuses for itself: the entry is held for refusal r, unless a
// later write of the key has replaced it. again reports that the entry was held before, or
// was replaced. news reports that the refusal is to be logged. If ok is false, too many
// entries are held, and this one stays queued. ran, if not 0, is the session on which the
// task may have run nevertheless.
func (j *journal) hold(t *task, r *objection, ran uint64, now int64) (again, news, ok bool) {
	ok = true
	first := false
	j.returned(t, func(_ *journalShard, in *intent) {
		if ran != 0 {
			in.possibleLateWrites.unanswered(ran, t.value, t.deletesAt(t.sentAt), t.deadline)
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
		case j.held.n.Add(1) > j.heldMost():
			j.held.n.Add(-1)
			ok = false
			return
		case in.checkAt == 0:
			j.queued.Add(-1)
		}
		in.held = &heldEntry{r, was.since}
		first = r.keys.Add(1) == 1
	})
	j.tried(t.canary, false, now)
	h := &j.held
	h.Lock()
	if first {
		r.due = now + int64(r.schedule.Next())
		if news = r.told == 0 || now-r.told >= int64(refusalNews); news {
			r.told = now
		}
	}
	h.Unlock()
	j.announce()
	return again, news, ok
}

// queuedLocked reports whether the intent is to be replayed. The caller holds the shard's
// lock.
func (in *intent) queuedLocked() bool { return in.checkAt == 0 && in.held == nil }

// releaseLocked queues a held intent again. The caller holds the shard's lock.
func (j *journal) releaseLocked(in *intent) {
	if in.held == nil {
		return
	}
	in.held.keys.Add(-1)
	in.held = nil
	j.held.n.Add(-1)
	if in.checkAt == 0 {
		j.queued.Add(1)
	}
}

// tried records the result of the canary of refusal r; r is nil if the task was no canary.
// If the canary went through, all entries that are held for r are queued again.
func (j *journal) tried(r *objection, through bool, now int64) {
	if r == nil {
		return
	}
	h := &j.held
	h.Lock()
	r.trying = false
	if through {
		r.schedule.Tries = 1
	}
	r.due = now + int64(r.schedule.Next())
	h.Unlock()
	if through {
		j.eachHeld(r, func(_ *journalShard, _ string, in *intent) { j.releaseLocked(in) })
	}
}

// eachHeld calls f for each entry that is held for refusal r, or for each held entry if r
// is nil. f runs under the lock of the entry's shard.
func (j *journal) eachHeld(r *objection, f func(sh *journalShard, key string, in *intent)) {
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

// canaries takes one entry for each refusal that is due, if want allows one. The entry is
// chosen at random, because an entry that is refused for another reason with the same text
// must not stand in front of the others forever.
func (j *journal) canaries(now int64, hash func(string) keyhash.Hash, want func(key string, del bool) bool) (tasks []task) {
	if j.held.n.Load() == 0 || !j.reserve() {
		return nil
	}
	defer j.underWay.Add(-1)
	for _, r := range j.dueRefusals(now) {
		t, ok := j.canary(r, hash, want)
		if ok {
			tasks = append(tasks, t)
			continue
		}
		j.held.Lock()
		r.trying = false // want allows none of its entries
		j.held.Unlock()
	}
	return tasks
}

// dueRefusals returns the refusals that are due, and marks them as being tried.
func (j *journal) dueRefusals(now int64) (due []*objection) {
	h := &j.held
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
func (j *journal) canary(r *objection, hash func(string) keyhash.Hash, want func(key string, del bool) bool) (t task, ok bool) {
	first := rand.IntN(journalShards)
	for i := range journalShards {
		sh := &j.shards[(first+i)%journalShards]
		sh.mu.Lock()
		for key, in := range sh.intents {
			if in.held != nil && in.held.objection == r && !in.sending && want(key, in.del) {
				t, ok = j.takeLocked(sh, key, in, hash(key)), true
				t.canary = r
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

// nextCanary returns when the next canary is due, or never.
func (j *journal) nextCanary() int64 {
	next := int64(clock.Never)
	if j.held.n.Load() == 0 {
		return next
	}
	h := &j.held
	h.Lock()
	defer h.Unlock()
	for _, r := range h.refusals {
		if !r.trying && r.keys.Load() > 0 {
			next = min(next, r.due)
		}
	}
	return next
}

// expireHeld turns sets into deletes that are held since the given time or longer for a
// known error, and returns their keys.
func (j *journal) expireHeld(before int64) (keys []string) {
	if j.held.n.Load() == 0 {
		return nil
	}
	j.eachHeld(nil, func(sh *journalShard, key string, in *intent) {
		if in.del || in.sending || !in.held.command || in.held.since > before {
			return
		}
		j.bytes.Add(-int64(len(in.value)))
		in.value, in.del, in.wasSet = nil, true, true
		j.releaseLocked(in)
		j.saveLocked(sh, key, in)
		keys = append(keys, key)
	})
	return keys
}

// heldSince returns when the oldest held entry was first refused; 0: none is held.
func (j *journal) heldSince() (since int64) {
	if j.held.n.Load() == 0 {
		return 0
	}
	j.eachHeld(nil, func(_ *journalShard, _ string, in *intent) {
		if since == 0 || in.held.since < since {
			since = in.held.since
		}
	})
	return since
}

// discard removes the intent of the key if it is held, and reports whether it did.
func (j *journal) discard(h keyhash.Hash, key string) bool {
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

// HeldWrite is a write of the journal that Redis refuses for itself. It waits until Redis
// accepts it; see Cache.Held.
type HeldWrite struct {
	Key     string
	Delete  bool      // a delete; false: a set
	Bytes   int       // length of the value of a set; 0 for a delete
	Since   time.Time // when Redis refused it first
	Refusal string    // the error of Redis: printable and cut, without the key and numbers
}

// String describes the write in one line. A long key is cut.
func (w HeldWrite) String() string {
	what := fmt.Sprintf("set of %d bytes", w.Bytes)
	if w.Delete {
		what = "delete"
	}
	return fmt.Sprintf("%q: %s, held since %v: %s", shortKey(w.Key), what, w.Since.Format(time.RFC3339), w.Refusal)
}

// Held iterates over the writes of the journal that Redis refuses for themselves while a
// probe succeeds. The replay tries them again by a back-off from BreakerOptions.MinBackoff
// to MaxBackoff. A set that Redis refuses with a known error becomes a delete after a
// minute. The loop may call the Cache; a write that is held or released during the
// loop may be listed or not. Held does not block. After Close it lists the writes that were
// held at that time.
func (c *Cache) Held() iter.Seq[HeldWrite] {
	return func(yield func(HeldWrite) bool) {
		if c.journal.held.n.Load() == 0 {
			return
		}
		now, wall := c.clock.Now(), time.Now()
		for i := range c.journal.shards {
			sh := &c.journal.shards[i]
			var held []HeldWrite // no lock is held while the caller's code runs
			sh.mu.RLock()
			for key, in := range sh.intents {
				if in.held != nil {
					held = append(held, HeldWrite{
						Key: key, Delete: in.del, Bytes: len(in.value), Refusal: in.held.text,
						Since: wall.Add(time.Duration(in.held.since - now)),
					})
				}
			}
			sh.mu.RUnlock()
			for _, w := range held {
				if !yield(w) {
					return
				}
			}
		}
	}
}

// Discard removes the held writes of the given keys from the journal, and returns their
// number. Redis keeps its values of these keys: after a refused delete, that is the value
// to be deleted. Writes that are not held stay. With JournalOptions.Dir, Discard waits for
// the disk, at most until ctx ends.
//
// Errors: ErrClosed, or the error of ctx. Writes that were discarded before stay discarded.
func (c *Cache) Discard(ctx context.Context, keys ...string) (discarded int, err error) {
	guard, open := c.inflight.Enter()
	defer guard.Leave()
	if err := enterable(ctx, open); err != nil {
		return 0, err
	}
	for _, key := range keys {
		h := c.local.Hash(key)
		if !c.journal.discard(h, key) {
			continue
		}
		discarded++
		c.stats.discarded.Add(1)
		c.notify.drop(key, DropDiscarded)
		c.invalidate([]string{key}) // Redis has another value
	}
	if discarded > 0 {
		c.journal.announce()
		err = c.swept(ctx)
	}
	return discarded, err
}
