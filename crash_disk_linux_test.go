package holdfast_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/holdfast-cache/holdfast/internal/redistest"
)

// full runs a victim until its disk takes nothing any more.
func full(t *testing.T, addr, dir string) *victimProcess {
	t.Helper()
	v := startVictim(t, victimOptions{Addr: addr, Dir: dir, FileSize: 8 << 10})
	v.restored()
	for i := range 4 {
		v.must("set", fmt.Sprint("early", i), "old", "0s")
	}
	if got := v.do("health"); !strings.Contains(got, "journal=<nil>") {
		t.Fatalf("there is room, and it says %s", got)
	}
	v.must("fill", 0, 64, 512)
	got := v.do("health")
	if !contains(got, "file too large") {
		t.Fatalf("the disk is full, and it says %s", got)
	}
	return v
}

func TestAFullDiskIsToldOfAndHeals(t *testing.T) {
	begin(t)
	s, p := behind(t)
	dir := t.TempDir()
	p.SetMode(redistest.Cut)
	v := full(t, p.Addr(), dir)
	s.MustDo("SET", "deleted", "before")
	v.must("del", "deleted")
	v.must("set", "early0", "new", "0s")
	for key, want := range map[string]string{"early0": "value new", "early1": "value old", "fill63": "value " + strings.Repeat("f", 512)} {
		if got := v.do("get", key); got != want {
			t.Errorf("in memory %s is %s", key, got)
		}
	}
	redistest.WaitFor(t, patience, "the log to say so", func() bool { return contains(v.do("log"), "too large") })
	v.must("room")
	redistest.WaitFor(t, patience, "the disk to be used again", func() bool {
		return strings.Contains(v.do("health"), "journal=<nil>")
	})
	redistest.WaitFor(t, patience, "the log to say so", func() bool { return contains(v.do("log"), "durable again") })
	log := v.do("log")
	if n := strings.Count(log, "not durable"); n != 1 {
		t.Errorf("%d log lines where one is told: %s", n, log)
	}
	v.must("set", "late", "v", "0s")
	v.kill()

	c := open(t, in(p.Addr(), dir))
	if st := c.Stats(); st.Restored != 4+64+2 || st.Downgraded != 0 {
		t.Errorf("%d keys were found, %d of them made deletes", st.Restored, st.Downgraded)
	}
	p.SetMode(redistest.Pass)
	ready(t, c)
	drain(t, c)
	for key, want := range map[string]string{
		"deleted": "(nil)", "early0": "new", "early1": "old", "fill63": strings.Repeat("f", 512), "late": "v",
	} {
		if got := s.MustDo("GET", key); got != want {
			t.Errorf("%s is %s", key, got)
		}
	}
}

// A write that is found may have been replaced since, by one that the disk did not take.
func TestAfterADeathOnAFullDiskSetsAreDeletes(t *testing.T) {
	begin(t)
	s, p := behind(t)
	dir := t.TempDir()
	p.SetMode(redistest.Cut)
	v := full(t, p.Addr(), dir)
	v.must("del", "early0") // accepted, and in memory only
	v.must("set", "early1", "new", "0s")
	v.kill()

	var lines logLines
	o := in(p.Addr(), dir)
	o.Logger = slogTo(&lines)
	c := open(t, o)
	st := c.Stats()
	if st.Restored < 4 || st.Downgraded < 4-1 {
		t.Errorf("%d keys were found, and %d were made deletes", st.Restored, st.Downgraded)
	}
	for i := range 4 {
		wantGet(t, c, fmt.Sprint("early", i), "")
	}
	redistest.WaitFor(t, patience, "the log to say so", func() bool {
		return contains(strings.Join(lines.get(), "\n"), "doubt")
	})
	p.SetMode(redistest.Pass)
	ready(t, c)
	drain(t, c)
	for i := range 4 {
		if got := s.MustDo("GET", fmt.Sprint("early", i)); got != "(nil)" {
			t.Errorf("early%d is %s, and was replaced", i, got)
		}
	}
}

// Nothing is written that could find out that there is room again.
func TestADiskThatIsFullFromTheBeginningHealsWithoutAWrite(t *testing.T) {
	begin(t)
	dir := t.TempDir()
	addr := redistest.FreeAddr(t)
	for range 2 { // a new directory, and one with something in it
		v := startVictim(t, victimOptions{Addr: addr, Dir: dir, FileSize: 12})
		found := v.restored()
		if got := v.do("health"); !contains(got, "file too large") {
			t.Fatalf("the disk is full, and it says %s", got)
		}
		v.must("room")
		redistest.WaitFor(t, patience, "the disk to be used again", func() bool {
			return strings.Contains(v.do("health"), "journal=<nil>")
		})
		v.must("set", fmt.Sprint("k", found), "v", "0s")
		v.kill()
	}
	c := open(t, in(addr, dir))
	if st := c.Stats(); st.Restored != 2 || st.Downgraded != 0 {
		t.Errorf("%d keys were found, %d of them made deletes", st.Restored, st.Downgraded)
	}
}
