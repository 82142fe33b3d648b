package holdfast_test

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

// cut copies a directory, with only so much of one of its files.
func cut(t *testing.T, dir, file string, size int) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "journal")
	must(t, os.CopyFS(to, os.DirFS(dir)))
	must(t, os.Truncate(filepath.Join(to, filepath.Base(file)), int64(size)))
	return to
}

// A crash of the machine leaves any part of the last record. The deletes before it
// are replayed, and no reader gets past them before.
func TestWhereverTheLastRecordIsTornTheDeletesBeforeItAreReplayedFirst(t *testing.T) {
	ctx := begin(t)
	s, p := behind(t)
	dir := t.TempDir()
	size := func() int {
		logs := files(t, dir, "*.log")
		if len(logs) != 1 {
			t.Fatal(logs)
		}
		info, err := os.Stat(logs[0])
		must(t, err)
		return int(info.Size())
	}
	v := startVictim(t, victimOptions{Addr: redistest.FreeAddr(t), Dir: dir})
	v.restored()
	for i := range 3 {
		v.must("del", fmt.Sprint("d", i))
	}
	v.must("set", "s", "v", "0s")
	whole := size()
	v.must("set", "last", "v", "0s")
	all := size()
	v.kill()
	reset := func() {
		for i := range 3 {
			s.MustDo("SET", fmt.Sprint("d", i), "before")
		}
		s.MustDo("DEL", "s", "last")
	}
	for at := whole; at <= all; at++ {
		reset()
		torn := cut(t, dir, files(t, dir, "*.log")[0], at)
		p.SetMode(redistest.Pass)
		var lines logLines
		o := in(p.Addr(), torn)
		o.Logger = slogTo(&lines)
		c, err := holdfast.New(o)
		if err != nil {
			t.Fatalf("cut at %d: %v", at, err)
		}
		// With Redis there, from the first call on.
		for i := range 3 {
			wantGet(t, c, fmt.Sprint("d", i), "")
		}
		ready(t, c)
		for i := range 3 {
			wantGet(t, c, fmt.Sprint("d", i), "")
		}
		must(t, c.Shutdown(ctx))
		for key, want := range map[string]string{"d0": "(nil)", "d1": "(nil)", "d2": "(nil)", "s": "v"} {
			if got := s.MustDo("GET", key); got != want {
				t.Errorf("cut at %d of %d to %d: %s is %s, want %s", at, whole, all, key, got, want)
			}
		}
		got := s.MustDo("GET", "last")
		if want := map[bool]string{true: "v", false: "(nil)"}[at == all]; got != want {
			t.Errorf("cut at %d of %d to %d: the last one is %s, want %s", at, whole, all, got, want)
		}
		if aside := files(t, torn, "*damaged*"); len(aside) > 0 {
			t.Errorf("cut at %d: a crash is no damage: %v", at, aside)
		}
	}
}

// With files of any content New works, the readable writes are used, and a write that may be out
// of date is a delete.
func TestNoFileKeepsNewFromWorkingAndNoneIsGuessedAt(t *testing.T) {
	beside(t)
	damage := func(change func(data []byte) []byte) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			name := files(t, dir, "*.log")[0]
			data, err := os.ReadFile(name)
			must(t, err)
			must(t, os.WriteFile(name, change(data), 0o600))
		}
	}
	another := func(name string, data []byte) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			must(t, os.WriteFile(filepath.Join(dir, name), data, 0o600))
		}
	}
	const none, some, all = 0, 1, 2
	for name, tt := range map[string]struct {
		harm  func(t *testing.T, dir string)
		used  int
		aside bool
	}{
		"a bit in the middle": {damage(func(b []byte) []byte { b[len(b)/2] ^= 4; return b }), some, true},
		"a bit in the header": {damage(func(b []byte) []byte { b[20] ^= 4; return b }), none, true},
		"zeros in the middle": {damage(func(b []byte) []byte { clear(b[len(b)/2 : len(b)/2+200]); return b }), some, true},
		"a future version": {damage(func(b []byte) []byte {
			binary.LittleEndian.PutUint32(b[8:], 9)
			return b
		}), none, true},
		"another program's": {damage(func(b []byte) []byte { return []byte(strings.Repeat("not a journal. ", 50)) }), none, true},
		"a further file of another program": {
			another("journal-0000000000000099.log", []byte(strings.Repeat("not a journal. ", 50))), all, true,
		},
		"a further one of a future version": {
			another("journal-0000000000000099.log", append([]byte("hfwallog\x09\x00\x00\x00"), make([]byte, 100)...)), all, true,
		},
		"a snapshot that is no whole one": {
			another("journal-0000000000000000.snap", []byte("hfwalsnp\x01\x00\x00\x00")), all, true,
		},
		"files that are nobody's business": {another("README", []byte("x")), all, false},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := begin(t)
			s, p := behind(t)
			dir := t.TempDir()
			p.SetMode(redistest.Cut)
			const n = 20
			c := open(t, in(p.Addr(), dir))
			for i := range n {
				s.MustDo("SET", fmt.Sprint("d", i), "before")
				s.MustDo("SET", fmt.Sprint("s", i), "before")
				must(t, c.Delete(ctx, fmt.Sprint("d", i)))
				must(t, c.Set(ctx, fmt.Sprint("s", i), []byte("v"), 0))
			}
			closedEmpty(t, c)
			tt.harm(t, dir)

			var lines logLines
			o := in(p.Addr(), dir)
			o.Logger = slogTo(&lines)
			c = open(t, o)
			found := int(c.Stats().Restored)
			switch {
			case tt.used == none && found != 0, tt.used == all && found != 2*n,
				tt.used == some && (found == 0 || found == 2*n):
				t.Errorf("%d of %d keys are used", found, 2*n)
			}
			doubted := tt.used != all || tt.aside
			for i := range n {
				key := fmt.Sprint("s", i)
				v, err := c.Get(ctx, key)
				if err == nil && (doubted || string(v) != "v") {
					t.Errorf("%s may be out of date, and is read as %q", key, v)
				}
				if err != nil && !doubted {
					t.Errorf("%s: %v", key, err)
				}
			}
			if aside := files(t, dir, "*damaged*"); (len(aside) > 0) != tt.aside {
				t.Errorf("set aside: %v", aside)
			}
			if tt.aside {
				redistest.WaitFor(t, patience, "the log to say so", func() bool {
					return contains(strings.Join(lines.get(), "\n"), "damaged")
				})
			}
			p.SetMode(redistest.Pass)
			ready(t, c)
			drain(t, c)
			deleted := 0
			for i := range n {
				got, set := s.MustDo("GET", fmt.Sprint("d", i)), s.MustDo("GET", fmt.Sprint("s", i))
				if got == "(nil)" {
					deleted++
				}
				if set == "v" {
					t.Errorf("s%d is written, over what was unknown", i)
				}
			}
			switch {
			case tt.used == all && deleted != n:
				t.Errorf("%d of %d deletes were replayed", deleted, n)
			case tt.used == some && (deleted == 0 || deleted == n):
				t.Errorf("%d of %d deletes were replayed, of a part", deleted, n)
			}
		})
	}
}

// Doubt is about what was found. What this process accepts is not in doubt when it
// dies.
func TestWhatIsAcceptedAfterDamageIsASetInTheNextProcess(t *testing.T) {
	begin(t)
	dir := t.TempDir()
	addr := redistest.FreeAddr(t)
	v := startVictim(t, victimOptions{Addr: addr, Dir: dir})
	v.restored()
	for i := range 20 {
		v.must("set", fmt.Sprint("s", i), "v", "0s")
	}
	v.kill()
	name := files(t, dir, "*.log")[0]
	data, err := os.ReadFile(name)
	must(t, err)
	data[len(data)/2] ^= 4
	must(t, os.WriteFile(name, data, 0o600))
	v = startVictim(t, victimOptions{Addr: addr, Dir: dir})
	found := v.restored()
	if found == 0 || found == 20 {
		t.Fatalf("%d keys were found", found)
	}
	v.must("set", "new", "v", "0s")
	redistest.WaitFor(t, patience, "the files to be trusted again", func() bool {
		return len(files(t, dir, "TRUSTED")) == 1
	})
	v.kill()
	c := open(t, in(addr, dir))
	if n := c.Stats(); n.Restored != uint64(found)+1 || n.Downgraded != 0 {
		t.Errorf("%d keys were found, and %d are deletes now", n.Restored, n.Downgraded)
	}
	wantGet(t, c, "new", "v")
	for i := range 20 {
		wantGet(t, c, fmt.Sprint("s", i), "")
	}
}
