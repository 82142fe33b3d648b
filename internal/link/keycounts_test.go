package link

import (
	"testing"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/local"
)

func TestWhichDatabaseWasEmptiedIsJudgedByWhatIsLeft(t *testing.T) {
	for _, tt := range []struct {
		name        string
		before, now keyCounts
		copies      int64
		want        bool
	}{
		{"another one, which had keys", keyCounts{3: 100, 5: 7}, keyCounts{3: 100}, 100, false},
		{"another one, and keys have come", keyCounts{3: 100, 5: 7}, keyCounts{3: 150}, 0, false},
		{"another one, and a few keys have gone", keyCounts{3: 100, 5: 7}, keyCounts{3: 90}, 0, false},
		{"another one, which had none", keyCounts{3: 100}, keyCounts{3: 100}, 80, false},
		{"another one, and more copies are here than keys, of what has expired", keyCounts{3: 1, 5: 7}, keyCounts{3: 1}, 5, false},
		{"this one", keyCounts{3: 100, 5: 7}, keyCounts{5: 7}, 0, true},
		{"this one, which held one key", keyCounts{3: 1}, keyCounts{}, 0, true},
		{"this one, and somebody writes", keyCounts{3: 100}, keyCounts{3: 20}, 0, true},
		{"this one, and somebody writes; the number before is old", keyCounts{3: 1}, keyCounts{3: 2}, 9, true},
		{"all, and somebody writes", keyCounts{3: 100, 5: 7}, keyCounts{3: 20}, 0, true},
		{"nobody knows now", keyCounts{3: 100, 5: 7}, nil, 0, true},
		{"nobody knew before", nil, keyCounts{3: 100}, 0, true},
	} {
		if got := databaseEmptied(tt.before, tt.now, 3, tt.copies); got != tt.want {
			t.Errorf("%s: emptied is %v", tt.name, got)
		}
	}
}

func TestSizesAreReadFromInfo(t *testing.T) {
	got := readKeyCounts("# Keyspace\r\ndb0:keys=7,expires=0,avg_ttl=0\r\ndb12:keys=1,expires=1,avg_ttl=5,subexpiry=0\r\n")
	if len(got) != 2 || got[0] != 7 || got[12] != 1 {
		t.Errorf("%v", got)
	}
	if got := readKeyCounts("# Keyspace\r\n"); got == nil || len(got) != 0 {
		t.Errorf("of an empty server: %v", got)
	}
	for _, bad := range []string{"", "# Server\r\n", "# Keyspace\r\ndb0:keys=x\r\n", "# Keyspace\r\ndbx:keys=1", "# Keyspace\r\ndb0:keys=-1,"} {
		if got := readKeyCounts(bad); got != nil {
			t.Errorf("%q: %v", bad, got)
		}
	}
}

// A flush that the server reports counts at once. The later decision about it does not take back
// a report that came since, or a write of this process.
func TestAnAccusationIsNotTakenBackForAnother(t *testing.T) {
	var d local.EpochScope
	fill := func() *local.Entry {
		return local.NewEntry("k", nil, local.Freshness{Expires: clock.Never, Scope: &d, Epoch: d.Epoch.Load()})
	}
	e := fill()
	d.SuspectFlush()
	if !e.Invalid() {
		t.Error("a copy under suspicion is served")
	}
	d.DismissFlush()
	if e.Invalid() || e.EpochValid(0) {
		t.Error("a copy of another database is wrong, or fresh")
	}
	d.SuspectFlush()
	later := fill()
	d.ConfirmFlush()
	if !e.Invalid() || later.Invalid() {
		t.Error("a judgement is about what was there before the flush")
	}
	e = fill()
	d.SuspectFlush()
	d.Flush() // of our own
	d.DismissFlush()
	if !e.Invalid() {
		t.Error("a flush of our own was taken back")
	}
	d.ConfirmFlush()
	if later = fill(); later.Invalid() {
		t.Error("what came after the flush is wrong")
	}
}
