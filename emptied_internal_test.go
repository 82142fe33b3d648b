package holdfast

import "testing"

func TestWhichDatabaseWasEmptiedIsJudgedByWhatIsLeft(t *testing.T) {
	for _, tt := range []struct {
		name        string
		before, now sizes
		copies      int64
		want        bool
	}{
		{"another one, which had keys", sizes{3: 100, 5: 7}, sizes{3: 100}, 100, false},
		{"another one, and keys have come", sizes{3: 100, 5: 7}, sizes{3: 150}, 0, false},
		{"another one, and a few keys have gone", sizes{3: 100, 5: 7}, sizes{3: 90}, 0, false},
		{"another one, which had none", sizes{3: 100}, sizes{3: 100}, 80, false},
		{"another one, and more copies are here than keys, of what has expired", sizes{3: 1, 5: 7}, sizes{3: 1}, 5, false},
		{"this one", sizes{3: 100, 5: 7}, sizes{5: 7}, 0, true},
		{"this one, which held one key", sizes{3: 1}, sizes{}, 0, true},
		{"this one, and somebody writes", sizes{3: 100}, sizes{3: 20}, 0, true},
		{"this one, and somebody writes; the number before is old", sizes{3: 1}, sizes{3: 2}, 9, true},
		{"all, and somebody writes", sizes{3: 100, 5: 7}, sizes{3: 20}, 0, true},
		{"nobody knows now", sizes{3: 100, 5: 7}, nil, 0, true},
		{"nobody knew before", nil, sizes{3: 100}, 0, true},
	} {
		if got := emptied(tt.before, tt.now, 3, tt.copies); got != tt.want {
			t.Errorf("%s: emptied is %v", tt.name, got)
		}
	}
}

func TestSizesAreReadFromInfo(t *testing.T) {
	got := readSizes("# Keyspace\r\ndb0:keys=7,expires=0,avg_ttl=0\r\ndb12:keys=1,expires=1,avg_ttl=5,subexpiry=0\r\n")
	if len(got) != 2 || got[0] != 7 || got[12] != 1 {
		t.Errorf("%v", got)
	}
	if got := readSizes("# Keyspace\r\n"); got == nil || len(got) != 0 {
		t.Errorf("of an empty server: %v", got)
	}
	for _, bad := range []string{"", "# Server\r\n", "# Keyspace\r\ndb0:keys=x\r\n", "# Keyspace\r\ndbx:keys=1", "# Keyspace\r\ndb0:keys=-1,"} {
		if got := readSizes(bad); got != nil {
			t.Errorf("%q: %v", bad, got)
		}
	}
}

// What the server says of a flush counts at once, and a judgement of one does not take
// back what was said since, or done by this process.
func TestAnAccusationIsNotTakenBackForAnother(t *testing.T) {
	var d domain
	fill := func() *entry { return newEntry("k", nil, term{expires: never, domain: &d, epoch: d.epoch.Load()}) }
	e := fill()
	d.accuse()
	if !e.refuted() {
		t.Error("an accused copy is served")
	}
	d.acquit()
	if e.refuted() || e.vouched(0) {
		t.Error("a copy of another database is wrong, or fresh")
	}
	d.accuse()
	later := fill()
	d.convict()
	if !e.refuted() || later.refuted() {
		t.Error("a judgement is about what was there before the flush")
	}
	e = fill()
	d.accuse()
	d.flush() // of our own
	d.acquit()
	if !e.refuted() {
		t.Error("a flush of our own was taken back")
	}
	d.convict()
	if later = fill(); later.refuted() {
		t.Error("what came after the flush is wrong")
	}
}
