package journal

import (
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
)

func TestOnlyAWaitingSetThatNobodyElseExplainsIsComparedAndTheComparisonDecides(t *testing.T) {
	at := func(b Expected) Write { w := set("k", "v", 1); w.Expected = b; return w }
	held := func(gone int64) Expected { return Holding([]byte("base"), gone, "server") }
	const now = 100
	type decided struct{ absent, base, ours, other bool } // whether it is a delete then
	any := decided{absent: false, base: true, other: true}
	for name, tt := range map[string]struct {
		arrange func(j *Journal)
		want    bool
		decided decided
	}{
		"nothing":           {arrange: func(*Journal) {}},
		"a set":             {func(j *Journal) { put(t, j, set("k", "v", 1), admitted) }, true, any},
		"over a base":       {func(j *Journal) { put(t, j, at(held(clock.Never)), admitted) }, true, decided{absent: true, other: true}},
		"over absence":      {func(j *Journal) { put(t, j, at(HoldingNothing("server")), admitted) }, true, any},
		"of another server": {func(j *Journal) { put(t, j, at(Holding([]byte("base"), clock.Never, "another")), admitted) }, true, decided{other: true}},
		"the base ended":    {arrange: func(j *Journal) { put(t, j, at(held(now)), admitted) }},
		"a delete":          {arrange: func(j *Journal) { put(t, j, del("k", 1), admitted) }},
		"our own, late":     {arrange: func(j *Journal) { put(t, j, ambiguous(set("k", "v", 1), 3), admitted) }},
		"under way":         {arrange: func(j *Journal) { put(t, j, set("k", "v", 1), admitted); takeAll(j, 0) }},
		"of another key":    {arrange: func(j *Journal) { put(t, j, set("other", "v", 1), admitted) }},
		"set again":         {func(j *Journal) { put(t, j, del("k", 1), admitted); put(t, j, set("k", "v", 2), admitted) }, true, any},
		"before its second": {arrange: func(j *Journal) {
			put(t, j, ambiguous(set("k", "v", 1), 3), admitted)
			settle(j, takeOnly(t, j, 0), FoundOurs, 4, 0)
		}},
	} {
		for what, found := range map[string]bool{"": tt.decided.absent, "base": tt.decided.base, "v": tt.decided.ours, "other": tt.decided.other} {
			t.Run(name+", redis holds "+what, func(t *testing.T) {
				j := roomyJournal()
				tt.arrange(j)
				keys, queued, size := j.Keys.Load(), j.Queued.Load(), j.Bytes.Load()
				if got := j.Invalidated(hashed("k"), "k", now); got != tt.want {
					t.Fatalf("to be compared: %v", got)
				}
				wantGauges(t, j, keys, queued, size)
				if !tt.want {
					return
				}
				all := j.Uncompared(hashed, func(string) bool { return true })
				if len(all) != 1 || len(j.Uncompared(hashed, func(string) bool { return true })) != 0 {
					t.Fatalf("to be compared: %+v, and more", all)
				}
				if got := j.Compared(all[0], []byte(what), what != "", "server"); got != found {
					t.Fatalf("a delete: %v", got)
				}
				if found {
					size--
					wantHolds(t, j, "k", 0, "gone")
				}
				wantGauges(t, j, keys, queued, size)
				if takeOnly(t, j, 0).Del != found {
					t.Error("it is replayed as something else")
				}
			})
		}
	}
}

// The answer to a comparison does not include an invalidation that arrives while the answer is on
// its way.
func TestNewsThatComesBesideAComparisonIsComparedOnceMore(t *testing.T) {
	j := roomyJournal()
	w := set("k", "v", 1)
	w.Expected = Holding([]byte("base"), clock.Never, "server")
	put(t, j, w, admitted)
	all := func(string) bool { return true }
	j.Invalidated(hashed("k"), "k", 0)
	first := j.Uncompared(hashed, all)
	j.Invalidated(hashed("k"), "k", 0)
	if j.Compared(first[0], []byte("base"), true, "server") {
		t.Error("it is what it was")
	}
	second := j.Uncompared(hashed, all)
	if len(second) != 1 || !j.Compared(second[0], nil, false, "server") {
		t.Errorf("somebody deleted it meanwhile: %+v", second)
	}
}

// Another client deletes the previous value, and its end comes before the replay: that does not
// explain the absence.
func TestADeleteThatWasToldIsNotUndoneBecauseTheValueWouldHaveEnded(t *testing.T) {
	j := roomyJournal()
	w := set("k", "v", 1)
	w.Expected = Holding([]byte("base"), int64(time.Hour), "server")
	put(t, j, w, admitted)
	if !j.Invalidated(hashed("k"), "k", 0) {
		t.Fatal("it is not to be compared")
	}
	task := takeOnly(t, j, 0)
	if task.mayBeAbsent("server", int64(2*time.Hour)) {
		t.Error("its absence is explained by its end")
	}
}
