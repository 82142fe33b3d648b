package holdfast_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

// A write of another client, while Redis was away for us, is never overwritten.

// disputed are keys that we write in an outage, by what they were before it and by
// what somebody else does to them after we wrote, while we cannot reach Redis.
type disputed struct {
	known   []string // ours before; they write another value
	unseen  []string // theirs before, never read by us; they write another value
	fresh   []string // nobody's before; they write a value
	stale   []string // theirs before, never read by us; they do nothing
	removed []string // ours before; they delete it
	lists   []string // nobody's before; they make lists of them
	same    []string // ours before; they write what we write

	ours  []string // ours before; nobody else writes
	newer []string // nobody's before; nobody else writes
}

func newDisputed() disputed {
	const n = 50
	return disputed{
		known: named("known", n), unseen: named("unseen", n), fresh: named("fresh", n),
		stale: named("stale", n), removed: named("removed", n), lists: named("lists", n),
		same: named("same", n), ours: named("ours", n), newer: named("newer", n),
	}
}

func (d disputed) strings() []string {
	var keys []string
	for _, group := range [][]string{d.known, d.unseen, d.fresh, d.stale, d.removed, d.same, d.ours, d.newer} {
		keys = append(keys, group...)
	}
	return keys
}

// before is what is there when the outage begins.
func (d disputed) before(t *testing.T, ctx context.Context, c *holdfast.Cache, r *redistest.Server) {
	t.Helper()
	for _, group := range [][]string{d.known, d.removed, d.same, d.ours} {
		must(t, c.SetMany(ctx, all(group, "before"), 0))
	}
	drain(t, c)
	for _, group := range [][]string{d.unseen, d.stale} {
		for _, key := range group {
			r.MustDo("SET", key, "before")
		}
	}
}

func (d disputed) theirs(r *redistest.Server) {
	for _, group := range [][]string{d.known, d.unseen, d.fresh} {
		for _, key := range group {
			r.MustDo("SET", key, "theirs")
		}
	}
	for i := range d.removed {
		r.MustDo("DEL", d.removed[i])
		r.MustDo("RPUSH", d.lists[i], "theirs")
		r.MustDo("SET", d.same[i], "ours")
	}
}

// want is what the server holds in the end.
func (d disputed) want(rule holdfast.ConflictRule, kind outageKind) map[string]string {
	want := map[string]string{}
	set := func(keys []string, value string) {
		for _, key := range keys {
			want[key] = value
		}
	}
	set(d.ours, "ours")
	set(d.newer, "ours")
	if !kind.same || rule != holdfast.ConflictDelete {
		// Where the stream stood, it told of their write, and not of what.
		set(d.same, "ours")
	}
	after, left := "theirs", "before"
	switch rule {
	case holdfast.ConflictDelete:
		after, left = nothing, nothing
	case holdfast.ConflictOverwrite:
		after, left = "ours", "ours"
	}
	set(d.known, after)
	set(d.unseen, after)
	set(d.fresh, after)
	set(d.stale, left)
	if kind.empty {
		set(d.stale, "ours") // nothing is there, and nothing was known
	}
	// Whoever deleted it there wanted that. On another server it may be lost.
	set(d.removed, "ours")
	if kind.same && rule != holdfast.ConflictOverwrite {
		set(d.removed, nothing)
	}
	return want
}

// neverThere reads the keys as somebody else does, until it is stopped, and fails
// the test if one ever holds what it must not.
func neverThere(t *testing.T, r *redistest.Server, value string, keys ...string) (stop func()) {
	stop = load(t, 1, func(int, int) {
		reply, err := r.Do(append([]string{"MGET"}, keys...)...)
		if err != nil {
			return // it is away
		}
		for i, v := range strings.Split(reply, "\n") {
			if v == value {
				t.Errorf("another client read %s as %q", keys[i], v)
			}
		}
		time.Sleep(200 * time.Microsecond)
	})
	t.Cleanup(stop)
	return stop
}

func dispute(t *testing.T, ctx context.Context, s *site, rule holdfast.ConflictRule) {
	o := s.options()
	o.Journal.OnConflict = rule
	c := s.open(o)
	d := newDisputed()
	d.before(t, ctx, c, s.master)
	s.leaves(c)
	must(t, c.SetMany(ctx, all(append(d.strings(), d.lists...), "ours"), 0))
	var stop func()
	s.meets(func(r *redistest.Server) {
		d.theirs(r)
		stop = func() {}
		if rule != holdfast.ConflictOverwrite {
			contested := append(append(append([]string(nil), d.known...), d.unseen...), d.fresh...)
			stop = neverThere(t, r, "ours", contested...)
		}
	})
	s.returns(c)
	drain(t, c)
	settled(t, c)
	stop()
	want := d.want(rule, s.kind)
	mismatches(t, s.master, "in the end", want)
	for key, got := range heldAt(s.master, d.same) {
		if got != "ours" && got != nothing {
			t.Errorf("%s is %s where both wrote the same", key, got)
		}
	}
	for _, key := range d.lists {
		if got := s.master.MustDo("LRANGE", key, "0", "-1"); got != "theirs" {
			t.Errorf("somebody's list %s is %q", key, got)
		}
	}
	for key, v := range want {
		if v == nothing {
			v = ""
		}
		wantGet(t, c, key, v)
	}
}

func TestWhatAnotherWroteInAnyOutageIsNeverOverwritten(t *testing.T) {
	outagesAtOnce(t, func(t *testing.T, ctx context.Context, s *site) {
		dispute(t, ctx, s, holdfast.ConflictDelete)
	})
}

func TestTheConflictRuleDecidesWhoseValueStays(t *testing.T) {
	beside(t)
	for _, rule := range []holdfast.ConflictRule{holdfast.ConflictKeep, holdfast.ConflictOverwrite} {
		t.Run(rule.String(), func(t *testing.T) {
			twoOutages(t, func(t *testing.T, ctx context.Context, s *site) { dispute(t, ctx, s, rule) })
		})
	}
}

func TestAJournalOfKeysAloneDeletesWhatWasSet(t *testing.T) {
	twoOutages(t, func(t *testing.T, ctx context.Context, s *site) {
		o := s.options()
		o.Journal.KeysOnly = true
		c := s.open(o)
		known, fresh, deletes := named("known", 100), named("fresh", 100), named("deleted", 100)
		must(t, c.SetMany(ctx, all(known, "before"), 0))
		must(t, c.SetMany(ctx, all(deletes, "before"), 0))
		drain(t, c)
		s.leaves(c)
		must(t, c.SetMany(ctx, all(append(append([]string(nil), known...), fresh...), "ours"), 0))
		must(t, c.Delete(ctx, deletes...))
		for i := range known {
			wantGet(t, c, known[i], "ours") // from the local tier
			wantGet(t, c, fresh[i], "ours")
			wantGet(t, c, deletes[i], "")
		}
		s.returns(c)
		drain(t, c)
		settled(t, c)
		want := map[string]string{}
		for i := range known {
			want[known[i]], want[fresh[i]], want[deletes[i]] = nothing, nothing, nothing
			wantGet(t, c, known[i], "")
			wantGet(t, c, fresh[i], "")
			wantGet(t, c, deletes[i], "")
		}
		mismatches(t, s.master, "in the end", want)
	})
}
