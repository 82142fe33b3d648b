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
)

// An entry that Redis refuses for itself, while a probe succeeds, is held: it stays in
// the journal and keeps its key fenced, but is not part of what is to be drained. One
// entry for each text by which Redis refuses, the canary, is tried again by a back-off.
// When it goes through, all that are held for that text are queued again. A later write
// of the key takes the place of what is held, and is tried at once.
//
// A delete is held until Redis has answered for its key. A set that Redis speaks of in
// words that are understood becomes a delete once it was held for heldSets: what Redis
// has is older than it, and others read that.

// objection is a text by which Redis refuses entries, and when one of them is tried again.
// It lives as long as the journal; keys is changed under the shard of each key.
type objection struct {
	text    string
	command bool         // of a command of ours: not one that nobody understands
	keys    atomic.Int64 // that are held for it

	// Guarded by heldEntries.
	schedule backoff
	due      int64 // when a canary is to be sent
	trying   bool  // one is under way
	told     int64 // when it was last logged; 0 for never
}

// heldEntry is that an entry is held, and since when.
type heldEntry struct {
	*objection
	since int64
}

// heldEntries are the refusals that a journal has met.
type heldEntries struct {
	n atomic.Int64 // entries that are held

	sync.Mutex
	refusals map[string]*objection
}

const (
	// refusalTexts bounds the texts that are told apart, and refusalRead how much is read
	// of each of them, but for the key.
	refusalTexts = 64
	refusalRead  = 4 << 10
	// refusalNews is how often a refusal is logged, if it comes and goes.
	refusalNews = time.Minute
	// heldSets is how long a set is held before it becomes a delete.
	heldSets = time.Minute
)

var errHeld = errors.New("holdfast: redis refuses them for themselves: see Cache.Held")

// undelivered counts the entries of which Redis does not have what they are for.
func (j *journal) undelivered() int { return int(j.queued.Load() + j.held.n.Load()) }

// heldMost is how many entries may be held: if Redis refuses more, it is not about them.
func (j *journal) heldMost() int64 { return int64(j.maxKeys+1) / 2 }

// refusalOf is the text of an error as it is shown and compared: printable, and without
// what differs from key to key.
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

// withoutKey replaces a key in a text, but not where it is a part of a word: a short one
// may be in any.
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

// refusal is the one of this text. Texts beyond the bound share one.
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
		r.schedule.tries = 1 // the first wait is the shortest, not none
		if h.refusals == nil {
			h.refusals = make(map[string]*objection)
		}
		h.refusals[text] = r
	}
	return r
}

// hold ends a task that Redis refuses for itself: it is held for that refusal, unless a
// later write of the key came in meanwhile. It says whether it was held already, and
// whether that refusal is news. ok is false where too many are held: then it stays queued.
// ran, if not 0, is the session on which it may have run all the same.
func (j *journal) hold(t *task, r *objection, ran uint64, now int64) (again, news, ok bool) {
	ok = true
	first := false
	j.returned(t, func(_ *journalShard, in *intent) {
		if ran != 0 {
			in.late.unanswered(ran, t.value, t.deletesAt(t.sentAt), t.deadline)
		}
		was := heldEntry{since: now}
		if again = in.held != nil; again {
			was = *in.held
		}
		switch {
		case !in.is(t):
			again = true // it is not held at all
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
		r.due = now + int64(r.schedule.next())
		if news = r.told == 0 || now-r.told >= int64(refusalNews); news {
			r.told = now
		}
	}
	h.Unlock()
	j.announce()
	return again, news, ok
}

// queuedLocked says whether the intent is to be replayed. The caller holds its shard.
func (in *intent) queuedLocked() bool { return in.checkAt == 0 && in.held == nil }

// releaseLocked has an intent that is held queued again. The caller holds its shard.
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

// tried notes what became of a canary. If it went through, all that are held for its
// refusal are queued again.
func (j *journal) tried(r *objection, through bool, now int64) {
	if r == nil {
		return
	}
	h := &j.held
	h.Lock()
	r.trying = false
	if through {
		r.schedule.tries = 1
	}
	r.due = now + int64(r.schedule.next())
	h.Unlock()
	if through {
		j.eachHeld(r, func(_ *journalShard, _ string, in *intent) { j.releaseLocked(in) })
	}
}

// eachHeld calls f for each entry that is held for the refusal, or for any where there is
// none, under its shard's lock.
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

// canaries takes one of the entries for each refusal of which one is due, of those that
// want says may go now. Which one is left to chance: what is refused for another reason
// by the same text must not stand in front of the others for ever.
func (j *journal) canaries(now int64, hash func(string) keyHash, want func(key string, del bool) bool) (tasks []task) {
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
		r.trying = false // none of them is for who asks
		j.held.Unlock()
	}
	return tasks
}

// dueRefusals are marked as being tried.
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

func (j *journal) canary(r *objection, hash func(string) keyHash, want func(key string, del bool) bool) (t task, ok bool) {
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

// nextCanary is when one is due, or never.
func (j *journal) nextCanary() int64 {
	next := int64(never)
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

// expireHeld makes deletes of the sets that are held since before, and returns their
// keys.
func (j *journal) expireHeld(before int64) (keys []string) {
	if j.held.n.Load() == 0 {
		return nil
	}
	j.eachHeld(nil, func(sh *journalShard, key string, in *intent) {
		if in.del || in.sending || !in.held.command || in.held.since > before {
			return
		}
		j.bytes.Add(-int64(len(in.value)))
		in.value, in.del, in.lost = nil, true, true
		j.releaseLocked(in)
		j.saveLocked(sh, key, in)
		keys = append(keys, key)
	})
	return keys
}

// heldSince is when the oldest of those that are held was refused first; 0 for none.
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

// discard takes the intent of a key out if it is held.
func (j *journal) discard(h keyHash, key string) bool {
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

// HeldWrite is a write that Redis refuses for itself, and that waits until it does not.
type HeldWrite struct {
	Key     string
	Delete  bool      // of a set Bytes is the length of the value
	Bytes   int       //
	Since   time.Time // when Redis refused it first
	Refusal string    // what Redis said, printable and cut; the key and numbers are left out
}

func (w HeldWrite) String() string {
	what := fmt.Sprintf("set of %d bytes", w.Bytes)
	if w.Delete {
		what = "delete"
	}
	return fmt.Sprintf("%q: %s, held since %v: %s", shortKey(w.Key), what, w.Since.Format(time.RFC3339), w.Refusal)
}

// Held lists the writes of the journal that Redis refuses for themselves while a probe
// succeeds. They are tried again by themselves. A loop over it may call the Cache; what
// changes meanwhile may be listed or not. It waits for nothing, and after Close lists
// what was held then.
func (c *Cache) Held() iter.Seq[HeldWrite] {
	return func(yield func(HeldWrite) bool) {
		if c.journal.held.n.Load() == 0 {
			return
		}
		now, wall := c.clock.now(), time.Now()
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

// Discard gives up what is held of the keys, and returns how many writes that were. Redis
// keeps what it has for them: after a delete that was refused, that is the value which
// was to be deleted. What is not held is left as it is. With Journal.Dir it waits for the
// disk, for no longer than ctx allows.
//
// Errors: ErrClosed, the context's own; what was discarded until then stays so.
func (c *Cache) Discard(ctx context.Context, keys ...string) (discarded int, err error) {
	guard, open := c.fence.enter()
	defer guard.leave()
	if err := enterable(ctx, open); err != nil {
		return 0, err
	}
	for _, key := range keys {
		h := c.local.hash(key)
		if !c.journal.discard(h, key) {
			continue
		}
		discarded++
		c.stats.discarded.Add(1)
		c.notify.drop(key, DropDiscarded)
		c.invalidate([]string{key}) // what Redis has is something else
	}
	if discarded > 0 {
		c.journal.announce()
		err = c.swept(ctx)
	}
	return discarded, err
}
