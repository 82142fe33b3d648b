package holdfast_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

// in is Options for a server at addr, with the journal in dir.
func in(addr, dir string) holdfast.Options {
	o := at(addr)
	o.Timeout = time.Second // a miss may be a busy machine's, too
	o.Journal.Dir = dir
	return o
}

// died runs a victim that does this while Redis cannot be reached, and is killed.
func died(t *testing.T, p *redistest.Proxy, dir string, before, during func(v *victimProcess)) {
	t.Helper()
	v := startVictim(t, victimOptions{Addr: p.Addr(), Dir: dir})
	v.restored()
	reach(t, v, "up")
	before(v)
	p.SetMode(redistest.Cut)
	reach(t, v, "down")
	during(v)
	v.kill()
	p.SetMode(redistest.Pass)
}

// reach waits until the victim's Redis is in this state.
func reach(t *testing.T, v *victimProcess, state string) {
	t.Helper()
	redistest.WaitFor(t, patience, state, func() bool { return strings.HasPrefix(v.do("health"), state) })
}

// files are the journal's files of these names.
func files(t *testing.T, dir, pattern string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestARestartWithABaseWritesOnlyWhatNobodyReplaced(t *testing.T) {
	begin(t)
	s, p := behind(t)
	dir := t.TempDir()
	keys := []string{"ours", "theirs", "removed", "deleted", "deleted-theirs", "unknown", "new", "shortlived"}
	died(t, p, dir, func(v *victimProcess) {
		for _, key := range keys[:5] {
			v.must("set", key, "v0", "0s")
		}
		v.must("set", "shortlived", "v0", "0s")
		s.MustDo("SET", "unknown", "v0")
	}, func(v *victimProcess) {
		for _, key := range keys {
			switch {
			case strings.HasPrefix(key, "deleted"):
				v.must("del", key)
			case key == "shortlived":
				v.must("set", key, "v1", "1ms")
			default:
				v.must("set", key, "v1", "0s")
			}
		}
	})
	s.MustDo("SET", "theirs", "X")
	s.MustDo("SET", "deleted-theirs", "X")
	s.MustDo("DEL", "removed")
	p.SetMode(redistest.Cut)
	c := open(t, in(p.Addr(), dir))
	if n := c.Stats().Restored; n != uint64(len(keys)) {
		t.Fatalf("%d of %d keys were found", n, len(keys))
	}
	for _, key := range keys { // while Redis is away, the journal answers
		want := "v1"
		if key == "shortlived" || strings.HasPrefix(key, "deleted") {
			want = ""
		}
		wantGet(t, c, key, want)
	}
	p.SetMode(redistest.Pass)
	ready(t, c)
	drain(t, c)
	for round, wait := range []func(){func() {}, func() { settled(t, c) }} {
		wait()
		for key, want := range map[string]string{
			"ours": "v1", "theirs": "(nil)", "removed": "(nil)", "deleted": "(nil)",
			"deleted-theirs": "(nil)", "unknown": "(nil)", "new": "v1", "shortlived": "(nil)",
		} {
			if got := s.MustDo("GET", key); got != want {
				t.Errorf("round %d: %s is %s, want %s", round, key, got, want)
			}
		}
	}
	for key, want := range map[string]string{"ours": "v1", "theirs": "", "deleted": "", "new": "v1"} {
		wantGet(t, c, key, want)
	}
}

// What the first process sent and nobody answered runs when the second has long
// replayed the delete that came after it.
func TestALateWriteOfAnEarlierProcessDoesNotUndoWhatThisOneReplayed(t *testing.T) {
	begin(t)
	s, p := behind(t)
	dir := t.TempDir()
	// Within its time a starved process sends what is to run late.
	v := startVictim(t, victimOptions{Addr: p.Addr(), Dir: dir, Timeout: 300 * time.Millisecond})
	v.restored()
	reach(t, v, "up")
	v.must("set", "deleted", "before", "0s")
	v.must("set", "replaced", "before", "0s")
	p.SetMode(redistest.Hang)
	v.must("set", "deleted", "late", "0s")
	v.must("set", "replaced", "late", "0s")
	v.must("del", "deleted")
	v.must("set", "replaced", "last", "0s")
	v.kill()
	// Not through the proxy: it still has what the first one sent.
	c := open(t, in(s.Addr(), dir))
	wantGet(t, c, "deleted", "")
	wantGet(t, c, "replaced", "last")
	ready(t, c)
	drain(t, c)
	p.SetMode(redistest.Pass)
	redistest.WaitFor(t, patience, "the late write to run", func() bool { return s.MustDo("GET", "deleted") == "late" })
	settled(t, c)
	for key, want := range map[string]string{"deleted": "(nil)", "replaced": "last"} {
		if got := s.MustDo("GET", key); got != want {
			t.Errorf("%s is %s, want %s", key, got, want)
		}
	}
	wantGet(t, c, "deleted", "")
	wantGet(t, c, "replaced", "last")
}

// The first restart finds that another client has written, and gives up the set.
// The second one finds the key absent, which is no reason to write it.
func TestASetThatWasSupersededDoesNotComeBackWithTheSecondRestart(t *testing.T) {
	begin(t)
	s, p := behind(t)
	dir := t.TempDir()
	died(t, p, dir, func(v *victimProcess) { v.must("set", "k", "v0", "0s") },
		func(v *victimProcess) { v.must("set", "k", "v1", "0s") })
	s.MustDo("SET", "k", "theirs")
	p.SetMode(redistest.Cut)
	v := startVictim(t, victimOptions{Addr: p.Addr(), Dir: dir})
	if n := v.restored(); n != 1 {
		t.Fatalf("%d keys were found", n)
	}
	dials := p.Accepted()
	redistest.WaitFor(t, patience, "a second attempt", func() bool { return p.Accepted() > dials+2 })
	p.SetMode(redistest.Pass)
	v.must("drain")
	if got := v.do("superseded"); got != "1" {
		t.Fatalf("%s sets were superseded", got)
	}
	if got := v.do("get", "k"); strings.HasPrefix(got, "value") {
		t.Errorf("it was given up, and is read: %s", got)
	}
	// It dies before the second look, and has written something since.
	p.SetMode(redistest.Cut)
	reach(t, v, "down")
	v.must("set", "other", "v", "0s")
	v.kill()
	p.SetMode(redistest.Pass)
	c := open(t, in(p.Addr(), dir))
	ready(t, c)
	drain(t, c)
	settled(t, c)
	if got := s.MustDo("GET", "k"); got != "(nil)" {
		t.Errorf("k is %s: another client had replaced it", got)
	}
	wantGet(t, c, "k", "")
	wantGet(t, c, "other", "v")
}

// Nothing was known of the key, so its absence would be no conflict to the second
// process: it must know from the file that the set was given up, once Drain has
// returned.
func TestWhatADrainHasGivenUpStaysSoIfTheProcessDiesBehindIt(t *testing.T) {
	begin(t)
	s, p := behind(t)
	dir := t.TempDir()
	p.SetMode(redistest.Cut)
	v := startVictim(t, victimOptions{Addr: p.Addr(), Dir: dir})
	v.restored()
	v.must("set", "k", "v1", "0s")
	v.kill()
	s.MustDo("SET", "k", "theirs")
	p.SetMode(redistest.Pass)
	v = startVictim(t, victimOptions{Addr: p.Addr(), Dir: dir})
	v.restored()
	v.must("drain")
	if got := v.do("superseded"); got != "1" {
		t.Fatalf("%s sets were superseded", got)
	}
	v.kill()
	c := open(t, in(p.Addr(), dir))
	ready(t, c)
	drain(t, c)
	if got := s.MustDo("GET", "k"); got != "(nil)" {
		t.Errorf("k is %s: another client had replaced it", got)
	}
	wantGet(t, c, "k", "")
}

func TestCloseLeavesWhatIsUndeliveredAndShutdownNothing(t *testing.T) {
	ctx := begin(t)
	s, p := behind(t)
	dir := t.TempDir()
	p.SetMode(redistest.Cut)
	c := open(t, in(p.Addr(), dir))
	for i := range 100 {
		must(t, c.Set(ctx, fmt.Sprint("k", i), []byte("v"), 0))
		must(t, c.Delete(ctx, fmt.Sprint("d", i)))
	}
	closedEmpty(t, c)
	c = open(t, in(p.Addr(), dir))
	if n := c.Stats().Restored; n != 200 {
		t.Fatalf("%d of 200 keys were found", n)
	}
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	var u *holdfast.UndeliveredError
	if err := c.Shutdown(short); !asUndelivered(err, &u) || u.Keys != 200 {
		t.Fatalf("shutdown without redis: %v", err)
	}
	c = open(t, in(p.Addr(), dir))
	if n := c.Stats().Restored; n != 200 {
		t.Fatalf("after the shutdown that delivered nothing, %d of 200 keys were found", n)
	}
	p.SetMode(redistest.Pass)
	ready(t, c)
	must(t, c.Shutdown(ctx))
	for i := range 100 {
		if got := s.MustDo("GET", fmt.Sprint("k", i)); got != "v" {
			t.Errorf("k%d is %s", i, got)
		}
	}
	c = open(t, in(p.Addr(), dir))
	for i := range 100 {
		s.MustDo("SET", fmt.Sprint("d", i), "theirs") // and nobody deletes that
	}
	ready(t, c)
	drain(t, c)
	settled(t, c)
	for i := range 100 {
		if got := s.MustDo("GET", fmt.Sprint("d", i)); got != "theirs" {
			t.Errorf("d%d is %s: a delete was delivered twice", i, got)
		}
	}
	must(t, c.Shutdown(ctx))
	c = open(t, in(p.Addr(), dir))
	if n := c.Stats().Restored; n != 0 {
		t.Errorf("%d keys were found where all was delivered and looked at twice", n)
	}
}

func TestASmallerMaxKeysRefusesNothingThatWasAccepted(t *testing.T) {
	ctx := begin(t)
	s, p := behind(t)
	dir := t.TempDir()
	for i := range 50 {
		s.MustDo("SET", fmt.Sprint("d", i), "before")
	}
	p.SetMode(redistest.Cut)
	c := open(t, in(p.Addr(), dir))
	for i := range 50 {
		must(t, c.Set(ctx, fmt.Sprint("k", i), []byte("v"), 0))
		must(t, c.Delete(ctx, fmt.Sprint("d", i)))
	}
	closedEmpty(t, c)
	o := in(p.Addr(), dir)
	o.Journal.MaxKeys = 10
	c = open(t, o)
	if h := c.Health(); h.JournalKeys != 100 {
		t.Fatalf("%d of 100 keys are there", h.JournalKeys)
	}
	if err := c.Set(ctx, "further", []byte("v"), 0); !errors.Is(err, holdfast.ErrJournalFull) {
		t.Errorf("a further key: %v", err)
	}
	must(t, c.Set(ctx, "k0", []byte("newer"), 0)) // a key that is there has room
	p.SetMode(redistest.Pass)
	ready(t, c)
	drain(t, c)
	for i := range 50 {
		want := "v"
		if i == 0 {
			want = "newer"
		}
		if got := s.MustDo("GET", fmt.Sprint("k", i)); got != want {
			t.Errorf("k%d is %s", i, got)
		}
		if got := s.MustDo("GET", fmt.Sprint("d", i)); got != "(nil)" {
			t.Errorf("d%d is %s", i, got)
		}
	}
	settled(t, c)
	must(t, c.Set(ctx, "further", []byte("v"), 0))
}

func TestASmallerMaxBytesTurnsSetsIntoDeletesAndCountsThem(t *testing.T) {
	ctx := begin(t)
	s, p := behind(t)
	dir := t.TempDir()
	p.SetMode(redistest.Cut)
	c := open(t, in(p.Addr(), dir))
	for i := range 20 {
		must(t, c.Set(ctx, fmt.Sprint("k", i), bytes.Repeat([]byte("v"), 100), 0))
		s.MustDo("SET", fmt.Sprint("k", i), "before")
	}
	closedEmpty(t, c)
	o := in(p.Addr(), dir)
	o.Journal.MaxBytes = 1000
	c = open(t, o)
	st := c.Stats()
	if st.Restored != 20 || st.Downgraded < 11 || st.Downgraded > 13 {
		t.Errorf("%d keys found, %d of them deletes for want of room", st.Restored, st.Downgraded)
	}
	p.SetMode(redistest.Pass)
	ready(t, c)
	drain(t, c)
	for i := range 20 {
		if got := s.MustDo("GET", fmt.Sprint("k", i)); got == "before" {
			t.Errorf("k%d was replaced, and is %s", i, got)
		}
	}
}

func TestTwoProcessesOnOneDirectory(t *testing.T) {
	begin(t)
	dir := t.TempDir()
	addr := redistest.FreeAddr(t)
	v := startVictim(t, victimOptions{Addr: addr, Dir: dir})
	v.restored()
	v.must("set", "k", "v", "0s")
	_, err := holdfast.New(in(addr, dir))
	if err == nil {
		t.Fatal("two processes have it")
	}
	for _, part := range []string{"Journal.Dir", dir, fmt.Sprint(v.cmd.Process.Pid)} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q does not say %s", err, part)
		}
	}
	v.must("set", "k", "v2", "0s") // the first one is none the worse
	v.kill()
	c := open(t, in(addr, dir))
	wantGet(t, c, "k", "v2")
	// And the other way round.
	w := startVictim(t, victimOptions{Addr: addr, Dir: dir})
	if got := w.line(); !contains(got, "Journal.Dir") || !contains(got, dir) || !contains(got, fmt.Sprint(os.Getpid())) {
		t.Errorf("the second process says %q", got)
	}
}
