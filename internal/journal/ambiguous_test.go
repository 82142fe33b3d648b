package journal

import (
	"crypto/sha1"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
)

func TestAnAcknowledgedWriteOvertakesWhatWasJournaledBefore(t *testing.T) {
	const session = 5
	for _, tt := range []struct {
		name   string
		before func(t *testing.T, j *Journal)
		write  Write
		holds  string
		seq    uint64 // of the intent that stays
		late   string // a value that may appear late
	}{
		{"nothing there", func(*testing.T, *Journal) {}, set("k", "new", 2), "", 0, ""},
		{"another key", func(t *testing.T, j *Journal) { put(t, j, set("other", "v", 1), admitted) }, set("k", "new", 2), "", 0, ""},
		{"never sent", func(t *testing.T, j *Journal) { put(t, j, set("k", "old", 1), admitted) }, set("k", "new", 2), "", 0, ""},
		{"a delete, never sent", func(t *testing.T, j *Journal) { put(t, j, del("k", 1), admitted) }, set("k", "new", 2), "", 0, ""},
		{"sent before on the same session", func(t *testing.T, j *Journal) {
			put(t, j, ambiguous(set("k", "old", 1), session), admitted)
		}, set("k", "new", 2), "", 0, ""},
		{"later than the write", func(t *testing.T, j *Journal) { put(t, j, set("k", "later", 3), admitted) }, set("k", "new", 2), "later", 3, ""},
		{"may run late on another session", func(t *testing.T, j *Journal) {
			put(t, j, ambiguous(set("k", "old", 1), session-1), admitted)
		}, set("k", "new", 2), "new", 2, "old"},
		{"may run late on another session, and this is a delete", func(t *testing.T, j *Journal) {
			put(t, j, ambiguous(set("k", "old", 1), session-1), admitted)
		}, del("k", 2), "gone", 2, "old"},
		{"is being sent", func(t *testing.T, j *Journal) {
			put(t, j, set("k", "old", 1), admitted)
			takeOnly(t, j, 0)
		}, set("k", "new", 2), "new", 2, ""},
		{"waits for its second check", func(t *testing.T, j *Journal) {
			put(t, j, ambiguous(set("k", "old", 1), session-1), admitted)
			settle(j, takeOnly(t, j, 0), FoundOurs, session, 0)
		}, set("k", "new", 2), "new", 2, "old"},
	} {
		j := roomyJournal()
		tt.before(t, j)
		j.Superseded(hashed("k"), tt.write, session, "server")
		wantHolds(t, j, "k", 0, tt.holds)
		switch in := j.shard(hashed("k")).intents["k"]; {
		case tt.seq == 0:
			if in != nil {
				t.Errorf("%s: the intent is %+v", tt.name, in)
			}
			if j.Holds(hashed("other"), "other") {
				wantGauges(t, j, 1, 1, 6)
			} else {
				wantGauges(t, j, 0, 0, 0)
			}
		case in == nil:
			t.Errorf("%s: the intent is gone", tt.name)
		default:
			if in.Seq != tt.seq || in.checkAt != toReplay {
				t.Errorf("%s: the intent is %+v, want write %d, queued", tt.name, in, tt.seq)
			}
			if tt.late != "" && !remembers(in.PossibleLateWrites, tt.late) {
				t.Errorf("%s: what may run late is forgotten", tt.name)
			}
			if tt.seq == tt.write.Seq && in.Expected != afterwards(tt.write.Value, tt.write.Del, clock.Never, "server") {
				t.Errorf("%s: redis has acknowledged the write, and the base is %+v", tt.name, in.Expected)
			}
			wantGauges(t, j, 1, 1, int64(len("k")+len(in.Value)))
		}
	}
}

func TestAnAmbiguousWriteIsCheckedOnceMoreUnlessItsSessionAnswered(t *testing.T) {
	const now, due = int64(time.Hour), int64(time.Hour + lateAfter)
	// replayed is a journal with a write of session 1 that was replayed on 2.
	replayed := func(t *testing.T) *Journal {
		t.Helper()
		j := roomyJournal()
		put(t, j, ambiguous(set("k", "v1", 1), 1), admitted)
		if j.NextCheck(anyKey) != clock.Never {
			t.Errorf("a check is due at %d before the replay", j.NextCheck(anyKey))
		}
		if settle(j, takeOnly(t, j, now), FoundOurs, 2, now) {
			t.Fatal("gone, although it may still run late")
		}
		return j
	}
	t.Run("replayed on the session that sent it", func(t *testing.T) {
		j := roomyJournal()
		put(t, j, ambiguous(set("k", "v1", 1), 1), admitted)
		sent := takeOnly(t, j, now)
		if sent.Check || !remembers(sent.PossibleLateWrites, "v1") {
			t.Errorf("the replay: %+v", sent)
		}
		if !settle(j, sent, FoundOurs, 1, now) {
			t.Error("stays, although the session's own order has settled it")
		}
		wantGauges(t, j, 0, 0, 0)
	})
	t.Run("replayed on a later session", func(t *testing.T) {
		j := replayed(t)
		wantHolds(t, j, "k", now, "v1")
		wantGauges(t, j, 1, 0, 3)
		if got := j.NextCheck(anyKey); got != due {
			t.Errorf("the check is due %v after the replay, want %v", time.Duration(got-now), lateAfter)
		}
		if j.Drained() != nil {
			t.Error("a second check is not part of drained")
		}
		if early := takeAll(j, due-1); len(early) != 0 {
			t.Errorf("checked early: %+v", early)
		}
		if one := j.TakeOne(hashed("k"), "k"); one != nil {
			t.Errorf("replayed again before its check: %+v", one)
		}
		check := takeOnly(t, j, due)
		if !check.Check || !remembers(check.PossibleLateWrites, "v1") || check.Expected != Holding([]byte("v1"), clock.Never, "server") {
			t.Errorf("the second look: %+v", check)
		}
		if !settle(j, check, FoundOurs, 2, due) {
			t.Error("stays after its check")
		}
		wantGauges(t, j, 0, 0, 0)
		if j.NextCheck(anyKey) != clock.Never {
			t.Errorf("an empty journal has a check due at %d", j.NextCheck(anyKey))
		}
	})
	t.Run("a check that found something else, or was refused, is done", func(t *testing.T) {
		for _, what := range []Found{FoundNothing, FoundRefused} {
			j := replayed(t)
			if !settle(j, takeOnly(t, j, due), what, 2, due) {
				t.Errorf("%d: stays after its check", what)
			}
			wantGauges(t, j, 0, 0, 0)
		}
	})
	t.Run("a check that was not sent is repeated", func(t *testing.T) {
		j := replayed(t)
		if settle(j, takeOnly(t, j, due), FoundUnsent, 2, due) {
			t.Error("gone without an answer")
		}
		wantGauges(t, j, 1, 0, 3)
		check := takeOnly(t, j, due)
		if !check.Check || !settle(j, check, FoundOurs, 2, due) {
			t.Errorf("the repeated check: %+v", check)
		}
		wantGauges(t, j, 0, 0, 0)
	})
	t.Run("a check without an answer is repeated, and ends", func(t *testing.T) {
		j := replayed(t)
		if settle(j, takeOnly(t, j, due), FoundNoReply, 2, due) {
			t.Error("gone without an answer")
		}
		wantGauges(t, j, 1, 0, 3)
		for at, looks := due, 0; looks < 3 && j.Keys.Load() > 0; at += int64(lateAfter) {
			for _, task := range takeAll(j, at) {
				if !task.Check {
					t.Errorf("the repeated check: %+v", task)
				}
				settle(j, task, FoundOurs, 3, at)
			}
			looks++
		}
		wantGauges(t, j, 0, 0, 0)
	})
	t.Run("a later write is replayed, and the check is due when it was", func(t *testing.T) {
		j := replayed(t)
		put(t, j, set("k", "v2", 2), admitted)
		wantGauges(t, j, 1, 1, 3)
		if j.NextCheck(anyKey) != clock.Never {
			t.Error("the check of the earlier write stands beside the replay of the later")
		}
		sent := takeOnly(t, j, now+1)
		if sent.Check || string(sent.Value) != "v2" || !remembers(sent.PossibleLateWrites, "v1") {
			t.Errorf("%+v", sent)
		}
		if settle(j, sent, FoundOurs, 2, now+1) {
			t.Error("gone, although v1 may still run late on session 1")
		}
		wantGauges(t, j, 1, 0, 3)
		if j.NextCheck(anyKey) != due {
			t.Errorf("the check is due %v after the first answer, want %v: a key that is written all the time must be unfenced", time.Duration(j.NextCheck(anyKey)-now), lateAfter)
		}
		check := takeOnly(t, j, due)
		if !check.Check || !remembers(check.PossibleLateWrites, "v1") || !settle(j, check, FoundOurs, 2, due) {
			t.Errorf("the check: %+v", check)
		}
		wantGauges(t, j, 0, 0, 0)
	})
	t.Run("a later write that is replayed after that time is its own check", func(t *testing.T) {
		j := replayed(t)
		put(t, j, set("k", "v2", 2), admitted)
		if !settle(j, takeOnly(t, j, due), FoundOurs, 2, due) {
			t.Error("stays, although nothing can run late any more")
		}
		wantGauges(t, j, 0, 0, 0)
	})
	t.Run("a later write during the check", func(t *testing.T) {
		j := replayed(t)
		check := takeOnly(t, j, due)
		put(t, j, set("k", "v2", 2), admitted)
		if settle(j, check, FoundOurs, 2, due) {
			t.Error("the later write left with the check")
		}
		wantHolds(t, j, "k", now, "v2")
		wantGauges(t, j, 1, 1, 3)
	})
	t.Run("an earlier ambiguous write that is told late", func(t *testing.T) {
		j := roomyJournal()
		later, earlier := set("k", "v2", 2), ambiguous(set("k", "v1", 1), 1)
		later.Expected = Holding([]byte("v1"), clock.Never, "server")
		earlier.Expected = Holding([]byte("v0"), clock.Never, "server")
		put(t, j, later, admitted)
		put(t, j, earlier, admitted)
		wantHolds(t, j, "k", now, "v2")
		sent := takeOnly(t, j, now)
		if string(sent.Value) != "v2" || !remembers(sent.PossibleLateWrites, "v1") || sent.PossibleLateWrites.Since != 1 || sent.Expected != earlier.Expected {
			t.Errorf("%+v", sent)
		}
		if settle(j, sent, FoundOurs, 2, now) {
			t.Error("gone, although v1 may still run late")
		}
	})
}

func TestAbsenceIsAConflictOnlyWhereSomebodyElseMustHaveDeleted(t *testing.T) {
	const now = int64(time.Hour)
	held := Holding([]byte("v0"), clock.Never, "here")
	v1 := []Digest{sha1.Sum([]byte("v1"))}
	for _, tt := range []struct {
		name string
		base Expected
		late LateWrites
		want bool
	}{
		{"nothing is known", Expected{}, LateWrites{}, true},
		{"nothing was there", HoldingNothing("here"), LateWrites{}, true},
		{"nothing was there, on another server", HoldingNothing("there"), LateWrites{}, true},
		{"a value was there", held, LateWrites{}, false},
		{"a value was there, with time left", Holding([]byte("v0"), now+clockAllowance+1, "here"), LateWrites{}, false},
		{"a value was there, whose time has run out if our clock is behind", Holding([]byte("v0"), now+clockAllowance, "here"), LateWrites{}, true},
		{"a value was there, and its time has run out", Holding([]byte("v0"), now, "here"), LateWrites{}, true},
		{"a value was there, on another server", Holding([]byte("v0"), clock.Never, "there"), LateWrites{}, true},
		{"our own delete may have run", held, LateWrites{Since: 1, Gone: clock.Never, Del: true}, true},
		{"our own set may have run", held, LateWrites{Since: 1, Gone: clock.Never, Sums: v1}, false},
		{"our own set may have run, with time left", held, LateWrites{Since: 1, Gone: now + clockAllowance + 1, Sums: v1}, false},
		{"our own set may have run, and its time has run out", held, LateWrites{Since: 1, Gone: now, Sums: v1}, true},
	} {
		in := &Intent{Expected: tt.base, PossibleLateWrites: tt.late}
		if got := in.mayBeAbsent("here", now); got != tt.want {
			t.Errorf("%s: may be absent %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestTheBaseIsWhatRedisLastHeldAndTheLateOnesAreOurOwn(t *testing.T) {
	if b := Holding([]byte("v0"), 7, "server"); b != (Expected{known: true, held: true, sum: sha1.Sum([]byte("v0")), gone: 7, server: "server"}) {
		t.Errorf("holding: %+v", b)
	}
	if b := HoldingNothing("server"); b != (Expected{known: true, server: "server"}) {
		t.Errorf("holding nothing: %+v", b)
	}
	if b := afterwards([]byte("v1"), false, 7, "server"); b != Holding([]byte("v1"), 7, "server") {
		t.Errorf("after a set: %+v", b)
	}
	if b := afterwards(nil, true, clock.Never, "server"); b != HoldingNothing("server") {
		t.Errorf("after a delete: %+v", b)
	}

	// The unanswered add up: the first session, all values, the first end.
	var l LateWrites
	l.unanswered(5, []byte("v1"), false, 100)
	l.unanswered(5, []byte("v1"), false, clock.Never)
	l.unanswered(4, []byte("v2"), false, 50)
	l.until = 99
	l.unanswered(6, []byte("v3"), false, clock.Never)
	want := []Digest{sha1.Sum([]byte("v1")), sha1.Sum([]byte("v2")), sha1.Sum([]byte("v3"))}
	if l.Since != 4 || l.Gone != 50 || l.Del || l.until != 0 || !slices.Equal(l.Sums, want) {
		t.Errorf("after v1, v1, v2, v3: %+v", l)
	}
	l.unanswered(7, nil, true, clock.Never)
	if !l.Del || len(l.Sums) != 3 || l.Since != 4 {
		t.Errorf("after a delete: %+v", l)
	}
	if l.More {
		t.Error("three were too many")
	}
	for i := range lateMost {
		l.unanswered(7, fmt.Append(nil, i), false, clock.Never)
	}
	if len(l.Sums) != lateMost || !l.More || !remembers(l, "v1") || !remembers(l, "v3") {
		t.Errorf("%d values are remembered of a hundred; it is bounded, and keeps the first", len(l.Sums))
	}

	// The first write's base stays: Redis held it before all of them.
	j := roomyJournal()
	w := set("k", "v1", 1)
	w.Expected = Holding([]byte("v0"), clock.Never, "server")
	put(t, j, w, admitted)
	w = set("k", "v2", 2)
	w.Expected = Holding([]byte("v1"), clock.Never, "another")
	put(t, j, w, admitted)
	sent := takeOnly(t, j, 0)
	if sent.Expected != Holding([]byte("v0"), clock.Never, "server") || sent.PossibleLateWrites.Since != 0 {
		t.Errorf("a write that nobody sent is in the base, or expected late: %+v", sent)
	}
	settle(j, sent, FoundUnsent, 1, 0)
}
