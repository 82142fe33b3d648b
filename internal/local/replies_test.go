package local

import (
	"fmt"
	"testing"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/keyhash"
)

// replyRig is a tier with a few stored replies of keys.
type replyRig struct {
	t     *testing.T
	l     *Tier
	scope EpochScope
}

func newReplyRig(t *testing.T, maxBytes int64) *replyRig {
	r := &replyRig{t: t, l: New(maxBytes)}
	r.scope.Until.Store(clock.Never)
	return r
}

func (r *replyRig) freshness() Freshness {
	return Freshness{Confirmed: 1, Expires: clock.Never, Fresh: clock.Never - 1, Scope: &r.scope, Epoch: r.scope.Epoch.Load()}
}

func (r *replyRig) token(key string) Token { return r.l.Token(r.l.Hash(key), &r.scope) }

func (r *replyRig) command(key, command string) (h, at keyhash.Hash) {
	h = r.l.Hash(key)
	return h, r.l.CommandHash(h, []string{command, key}, 1)
}

func (r *replyRig) fillUnder(token Token, key, command, value string, size int64) bool {
	return r.fillAs(token, key, command, value, size, r.freshness())
}

func (r *replyRig) fillAs(token Token, key, command, value string, size int64, f Freshness) bool {
	h, at := r.command(key, command)
	return FillReply(r.l, h, at, value, size, token, f)
}

func (r *replyRig) fill(key, command, value string) bool {
	return r.fillUnder(r.token(key), key, command, value, 0)
}

func (r *replyRig) want(key, command, want string) {
	r.t.Helper()
	_, at := r.command(key, command)
	got := ""
	if e, v := StoredReply[string](r.l, at); e != nil {
		got = *v
	}
	if got != want {
		r.t.Errorf("%s of %s is %q, want %q", command, key, got, want)
	}
}

func TestAReplyIsFoundByItsCommandAndKey(t *testing.T) {
	r := newReplyRig(t, 1<<20)
	r.fill("k", "HLEN", "1")
	r.fill("k", "HGETALL", "2")
	r.fill("other", "HLEN", "3")
	r.want("k", "HLEN", "1")
	r.want("k", "HGETALL", "2")
	r.want("other", "HLEN", "3")
	r.want("other", "HGETALL", "")
	r.fill("k", "HLEN", "4")
	r.want("k", "HLEN", "4")
	h := r.l.Hash("k")
	for _, args := range [][]string{{"A", "k", "bc"}, {"A", "k", "b", "c"}, {"A", "k", "c", "b"}, {"A", "k", "bc", ""}} {
		at := r.l.CommandHash(h, args, 1)
		if e, _ := StoredReply[string](r.l, at); e != nil {
			t.Errorf("%q has the reply of another command", args)
		}
		FillReply(r.l, h, at, "x", 0, r.token("k"), r.freshness())
	}
	if n := r.l.Len(); n != 7 {
		t.Errorf("there are %d entries, want 7", n)
	}
}

// Whatever may have changed the key ends all of its replies, and no other key's.
func TestAChangeOfAKeyEndsAllOfItsReplies(t *testing.T) {
	entry := func(r *replyRig) *Entry { return NewEntry("k", []byte("v"), r.freshness()) }
	for name, change := range map[string]func(r *replyRig, h keyhash.Hash){
		"Invalidate": func(r *replyRig, h keyhash.Hash) { r.l.Invalidate(h, 1) },
		"Put":        func(r *replyRig, h keyhash.Hash) { r.l.Put(h, entry(r)) },
		"Delete":     func(r *replyRig, h keyhash.Hash) { r.l.Put(h, nil) },
		"Begin":      func(r *replyRig, h keyhash.Hash) { r.l.Begin(h, entry(r)) },
		"Hold":       func(r *replyRig, h keyhash.Hash) { r.l.Hold(h) },
		"End":        func(r *replyRig, h keyhash.Hash) { r.l.End(h, true, KeepFreshness) },
		"Add":        func(r *replyRig, h keyhash.Hash) { r.l.Add(h, entry(r), 1) },
		"Suspect":    func(r *replyRig, h keyhash.Hash) { r.l.Suspect(h, SameEnd) },
		"Retime":     func(r *replyRig, h keyhash.Hash) { r.l.Retime(h, nil, 1) },
		"OnReplayed": func(r *replyRig, h keyhash.Hash) { r.l.OnReplayed(h) },
	} {
		r := newReplyRig(t, 1<<20)
		r.fill("k", "HLEN", "1")
		r.fill("k", "HGETALL", "1")
		r.fill("other", "HLEN", "1")
		before := r.token("k")
		change(r, r.l.Hash("k"))
		r.want("k", "HLEN", "")
		r.want("k", "HGETALL", "")
		r.want("other", "HLEN", "1")
		if r.fillUnder(before, "k", "HLEN", "2", 0) {
			t.Errorf("%s: a reply that was read before is stored", name)
		}
		r.want("k", "HLEN", "")
		if t.Failed() {
			t.Fatalf("after %s", name)
		}
	}
}

func TestNoReplyIsStoredWhileAWriteOfTheKeyIsUnderWay(t *testing.T) {
	r := newReplyRig(t, 1<<20)
	h := r.l.Hash("k")
	r.l.Begin(h, nil)
	if r.fill("k", "HLEN", "1") {
		t.Error("the reply is stored")
	}
	r.want("k", "HLEN", "")
	r.l.End(h, false, KeepFreshness)
	r.fill("k", "HLEN", "2")
	r.want("k", "HLEN", "2")
}

// A reply from before a loss of the stream may stand in while Redis is away, but not after a caller
// has seen a later answer.
func TestALaterAnswerEndsTheRepliesOfAnEarlierEpoch(t *testing.T) {
	for name, answer := range map[string]func(r *replyRig){
		"another reply": func(r *replyRig) { r.fill("k", "HGETALL", "2") },
		"a value": func(r *replyRig) {
			r.l.Fill(r.l.Hash("k"), "k", []byte("2"), r.token("k"), r.freshness())
		},
		"no such key": func(r *replyRig) { r.l.Forget(r.l.Hash("k"), r.token("k"), 1) },
		"a reply that is too large": func(r *replyRig) {
			for _, command := range []string{"HLEN", "HGETALL"} {
				if r.fillUnder(r.token("k"), "k", command, "2", 1<<40) {
					t.Error("a reply that is too large is stored")
				}
			}
		},
	} {
		r := newReplyRig(t, 1<<20)
		r.fill("k", "HLEN", "1")
		r.scope.Suspect()
		r.want("k", "HLEN", "1")
		_, at := r.command("k", "HLEN")
		if e, _ := StoredReply[string](r.l, at); e.FreshEnd() != 0 {
			t.Error("the reply is fresh after a loss of the stream")
		}
		answer(r)
		r.want("k", "HLEN", "")
		if t.Failed() {
			t.Fatalf("with %s", name)
		}
	}
	r := newReplyRig(t, 1<<20)
	r.fill("k", "HLEN", "1")
	stale := r.token("k")
	r.scope.Suspect()
	r.fillUnder(stale, "k", "HLEN", "2", 0)
	r.want("k", "HLEN", "") // the caller has got 2
}

func TestAnAnswerThatWasAskedForEarlierReplacesNoLaterOne(t *testing.T) {
	r := newReplyRig(t, 1<<20)
	token, earlier, later := r.token("k"), r.freshness(), r.freshness()
	later.Confirmed++
	r.fillAs(token, "k", "HLEN", "2", 0, later)
	if r.fillAs(token, "k", "HLEN", "1", 0, earlier) {
		t.Error("the earlier reply is stored")
	}
	r.want("k", "HLEN", "2")
	r.l.Invalidate(r.l.Hash("k"), 1)
	r.fillAs(r.token("k"), "k", "HLEN", "3", 0, earlier) // of a later version of the key
	r.want("k", "HLEN", "3")
}

// The server announces that a key has expired. Outage.ServeStaleFor may need the replies.
func TestAnInvalidationLeavesRepliesWhoseTimeIsOver(t *testing.T) {
	for name, answer := range map[string]func(r *replyRig, f Freshness){
		"another reply": func(r *replyRig, f Freshness) { r.fillAs(r.token("k"), "k", "HGETALL", "2", 0, f) },
		"a value":       func(r *replyRig, f Freshness) { r.l.Fill(r.l.Hash("k"), "k", []byte("2"), r.token("k"), f) },
		"no such key":   func(r *replyRig, f Freshness) { r.l.Forget(r.l.Hash("k"), r.token("k"), f.Confirmed) },
	} {
		r := newReplyRig(t, 1<<20)
		h, f := r.l.Hash("k"), r.freshness()
		f.Expires, f.Fresh = 100, 100
		r.fillAs(r.token("k"), "k", "HLEN", "1", 0, f)
		f.Expires, f.Fresh = 99, 99 // as told by another PTTL
		r.fillAs(r.token("k"), "k", "HKEYS", "1", 0, f)
		before := r.token("k")
		r.l.Invalidate(h, 100)
		r.want("k", "HLEN", "1")
		r.want("k", "HKEYS", "1")
		if r.fillUnder(before, "k", "HVALS", "2", 0) {
			t.Error("a reply that was read before the invalidation is stored")
		}
		f.Confirmed, f.Expires, f.Fresh = 200, 300, 300
		answer(r, f)
		r.want("k", "HLEN", "")

		r.fillAs(r.token("k"), "k", "HLEN", "3", 0, f)
		r.l.Invalidate(h, 299)
		r.want("k", "HLEN", "")
		if t.Failed() {
			t.Fatalf("with %s", name)
		}
	}
}

func TestTheRepliesOfAKeyTakeAnEighthOfMaxBytes(t *testing.T) {
	r := newReplyRig(t, 80_000)
	for _, command := range []string{"A", "B", "C"} {
		r.fillUnder(r.token("k"), "k", command, command, 2500)
	}
	r.fillUnder(r.token("other"), "other", "A", "A", 2500)
	r.want("k", "A", "A")
	r.want("k", "C", "C")
	r.fillUnder(r.token("k"), "k", "D", "D", 2500) // four take about 11,600
	r.want("k", "B", "")                           // the least recently used
	r.want("k", "A", "A")
	r.want("k", "C", "C")
	r.want("k", "D", "D")
	r.want("other", "A", "A")
	if r.fillUnder(r.token("k"), "k", "E", "E", 20_000) {
		t.Error("a reply is stored that is larger than the replies of a key may be")
	}
	if r.fillUnder(r.token("k"), "k", "E", "E", 1<<40) {
		t.Error("a reply of a terabyte is stored")
	}
	checkReplies(t, r.l, r.l.stripe(r.l.Hash("k").Place))
}

// The replies that an invalidation ends leave when later ones are stored, and with the last reply
// goes all that is known of the key's replies.
func TestEndedRepliesLeave(t *testing.T) {
	r := newReplyRig(t, 1<<20)
	h := r.l.Hash("k")
	for i := range 1000 {
		r.fill("k", fmt.Sprint("HGET", i), "1")
	}
	r.l.Invalidate(h, 1)
	for i := range 20 {
		r.fill("k", fmt.Sprint("HGET", i), "2")
	}
	if n := r.l.Len(); n != 20 {
		t.Errorf("%d entries are left, want 20", n)
	}
	s := r.l.stripe(h.Place)
	for i := range 20 {
		_, at := r.command("k", fmt.Sprint("HGET", i))
		s.mu.Lock()
		r.l.replace(s, s.find(at.Place), nil)
		s.mu.Unlock()
	}
	if len(s.replies) != 0 || r.l.Len() != 0 || r.l.Bytes() != 0 {
		t.Errorf("%d sets, %d entries of %d bytes are left", len(s.replies), r.l.Len(), r.l.Bytes())
	}
}

// A million small replies stay within MaxBytes, and those that are read stay longest.
func TestRepliesStayWithinMaxBytes(t *testing.T) {
	l := startLocal(t, 4<<20)
	r := &replyRig{t: t, l: l}
	r.scope.Until.Store(clock.Never)
	n := 1_000_000
	if testing.Short() {
		n = 20_000
	}
	for i := range n {
		r.fill(fmt.Sprint("key", i%5000), fmt.Sprint("HGET", i), "1")
		if l.Bytes() > l.maxBytes {
			t.Fatalf("%d bytes after %d replies", l.Bytes(), i)
		}
	}
	if l.Bytes() < l.maxBytes/2 {
		t.Errorf("only %d bytes are used", l.Bytes())
	}
	for i := range l.stripes {
		s := &l.stripes[i]
		s.mu.Lock()
		checkReplies(t, l, s)
		s.mu.Unlock()
	}
}
