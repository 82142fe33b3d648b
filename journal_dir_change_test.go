package holdfast_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

// harmed are ways in which what a dead process left cannot be trusted.
var harmed = map[string]func(t *testing.T, dir string){
	"a bit in the middle": func(t *testing.T, dir string) {
		name := files(t, dir, "*.log")[0]
		data, err := os.ReadFile(name)
		must(t, err)
		data[len(data)/2] ^= 4
		must(t, os.WriteFile(name, data, 0o600))
	},
	"nothing left but the directory's marker": func(t *testing.T, dir string) {
		must(t, os.Remove(files(t, dir, "*.log")[0]))
		must(t, os.WriteFile(filepath.Join(dir, "TRUSTED"), []byte("garbage"), 0o600))
	},
	"no marker": func(t *testing.T, dir string) { must(t, os.Remove(filepath.Join(dir, "TRUSTED"))) },
	"another program's file": func(t *testing.T, dir string) {
		must(t, os.WriteFile(filepath.Join(dir, "journal-0000000000000099.log"), []byte(strings.Repeat("not a journal. ", 50)), 0o600))
	},
}

// Doubt is about what was found. A healthy process begins after that, accepts sets, and
// dies or ends at once: they are sets in the next one.
func TestWhatAHealthyProcessAcceptsAfterDamageIsNotInDoubt(t *testing.T) {
	beside(t)
	for name, harm := range harmed {
		for _, killed := range []bool{true, false} {
			t.Run(fmt.Sprint(name, "/killed=", killed), func(t *testing.T) {
				ctx := begin(t)
				dir := t.TempDir()
				addr := redistest.FreeAddr(t)
				v := startVictim(t, victimOptions{Addr: addr, Dir: dir})
				v.restored()
				for i := range 20 {
					v.must("set", fmt.Sprint("s", i), "v", "0s")
				}
				v.kill()
				harm(t, dir)
				const n = 48
				found := 0
				if killed {
					v = startVictim(t, victimOptions{Addr: addr, Dir: dir})
					found = v.restored()
					for i := range n {
						v.must("set", fmt.Sprint("new", i), "v", "0s")
					}
					v.kill()
				} else {
					c := open(t, in(addr, dir))
					found = int(c.Stats().Restored)
					for i := range n {
						must(t, c.Set(ctx, fmt.Sprint("new", i), []byte("v"), 0))
					}
					closedEmpty(t, c)
				}
				c := open(t, in(addr, dir))
				if st := c.Stats(); st.Restored != uint64(found)+n || st.Downgraded != 0 {
					t.Errorf("%d keys were found where %d are, and %d are deletes now", st.Restored, found+n, st.Downgraded)
				}
				for i := range n {
					wantGet(t, c, fmt.Sprint("new", i), "v")
				}
				for i := range 20 {
					wantGet(t, c, fmt.Sprint("s", i), "") // that one is in doubt for good
				}
			})
		}
	}
}

// What was found cannot be written anew, because the disk is full: what is accepted would
// be as doubtful to the next process, and Health says so from the beginning.
func TestDoubtThatCannotBeSettledIsToldOf(t *testing.T) {
	begin(t)
	dir := t.TempDir()
	addr := redistest.FreeAddr(t)
	v := startVictim(t, victimOptions{Addr: addr, Dir: dir})
	v.restored()
	for i := range 20 {
		v.must("set", fmt.Sprint("s", i), "v", "0s")
	}
	v.kill()
	must(t, os.Remove(filepath.Join(dir, "TRUSTED")))
	v = startVictim(t, victimOptions{Addr: addr, Dir: dir, FileSize: 60})
	v.restored()
	if got := v.do("health"); strings.Contains(got, "journal=<nil>") {
		t.Errorf("it says %s", got)
	}
	v.must("room")
	redistest.WaitFor(t, patience, "the file to be written anew", func() bool {
		return strings.Contains(v.do("health"), "journal=<nil>")
	})
	v.must("set", "new", "v", "0s")
	v.kill()
	c := open(t, in(addr, dir))
	if st := c.Stats(); st.Restored != 21 || st.Downgraded != 0 {
		t.Errorf("%d keys were found, and %d are deletes now", st.Restored, st.Downgraded)
	}
	wantGet(t, c, "new", "v")
}

// The fixtures were written by version 0507b80: eight sets, of which the first was set
// again and the second deleted, and four deletes.
func TestADirectoryOfTheVersionBeforeIsReplayed(t *testing.T) {
	beside(t)
	for name, sets := range map[string]bool{
		"closed":        true,
		"killed":        true,  // with an fsync each
		"killed-nosync": false, // the machine is another one now, so it went down
		"damaged":       false,
	} {
		t.Run(name, func(t *testing.T) {
			begin(t)
			s, p := behind(t)
			dir := filepath.Join(t.TempDir(), "journal")
			must(t, os.CopyFS(dir, os.DirFS(filepath.Join("testdata", "journal-1", name))))
			if !sets && name != "damaged" {
				must(t, os.Remove(filepath.Join(dir, "TRUSTED"))) // on the machine that wrote it, too
			}
			for _, key := range []string{"s1", "d0", "d1", "d2", "d3"} {
				s.MustDo("SET", key, "before")
			}
			p.SetMode(redistest.Cut)
			c := open(t, in(p.Addr(), dir))
			st := c.Stats()
			switch {
			case sets && (st.Restored != 12 || st.Downgraded != 0):
				t.Fatalf("%d of 12 keys were found, %d of them made deletes", st.Restored, st.Downgraded)
			case name == "killed-nosync" && (st.Restored != 12 || st.Downgraded != 7):
				t.Fatalf("%d of 12 keys were found, %d of them made deletes", st.Restored, st.Downgraded)
			case name == "damaged" && (st.Restored == 0 || st.Restored == 12):
				t.Fatalf("%d keys were found", st.Restored)
			}
			p.SetMode(redistest.Pass)
			ready(t, c)
			drain(t, c)
			if sets {
				for i := range 8 {
					want := map[int]string{0: "w0", 1: "(nil)"}[i]
					if want == "" {
						want = fmt.Sprint("v", i)
					}
					if got := s.MustDo("GET", fmt.Sprint("s", i)); got != want {
						t.Errorf("s%d is %s, want %s", i, got, want)
					}
				}
			}
			if name != "damaged" {
				for i := range 4 {
					if got := s.MustDo("GET", fmt.Sprint("d", i)); got != "(nil)" {
						t.Errorf("d%d is %s", i, got)
					}
				}
			}
		})
	}
}

// A newer program's directory is no damage: New says what it is, and changes nothing.
func TestADirectoryOfANewerVersionIsRefusedInWords(t *testing.T) {
	begin(t)
	dir := t.TempDir()
	o := in(redistest.FreeAddr(t), dir)
	c := open(t, o)
	must(t, c.Set(t.Context(), "k", []byte("v"), 0))
	closedEmpty(t, c)
	name := files(t, dir, "*.log")[0]
	data, err := os.ReadFile(name)
	must(t, err)
	whole := append([]byte(nil), data...)
	binary.LittleEndian.PutUint32(data[8:], 2)
	table := crc32.MakeTable(crc32.Castagnoli)
	binary.LittleEndian.PutUint32(data[12:], crc32.Update(crc32.Checksum(data[:12], table), table, data[16:48]))
	must(t, os.WriteFile(name, data, 0o600))
	_, err = holdfast.New(o)
	if err == nil || !strings.Contains(err.Error(), "Journal.Dir") || !strings.Contains(err.Error(), "format version 2") || !strings.Contains(err.Error(), filepath.Base(name)) {
		t.Errorf("it says %v", err)
	}
	if now, err := os.ReadFile(name); err != nil || string(now) != string(data) {
		t.Error("the file was changed")
	}
	must(t, os.WriteFile(name, whole, 0o600))
	c = open(t, o)
	wantGet(t, c, "k", "v")
}

// A journal is closed in order, and somebody cuts it short: the value that the last
// records replaced must not come back.
func TestAClosedJournalThatWasCutShortRestoresNoReplacedValue(t *testing.T) {
	ctx := begin(t)
	dir := t.TempDir()
	addr := redistest.FreeAddr(t)
	c := open(t, in(addr, dir))
	size := func() int64 {
		info, err := os.Stat(files(t, dir, "*.log")[0])
		must(t, err)
		return info.Size()
	}
	must(t, c.Set(ctx, "replaced", []byte("old"), 0))
	must(t, c.Set(ctx, "deleted", []byte("old"), 0))
	from := size()
	must(t, c.Set(ctx, "replaced", []byte("new"), 0))
	between := size()
	must(t, c.Delete(ctx, "deleted"))
	closedEmpty(t, c)
	to := size()
	for _, at := range []int64{0, 20, 48, from, from + 1, between, to - 1} {
		o := in(addr, cut(t, dir, files(t, dir, "*.log")[0], int(at)))
		c := open(t, o)
		for _, key := range []string{"replaced", "deleted"} {
			if v, err := c.Get(ctx, key); !errors.Is(err, holdfast.ErrMiss) {
				t.Errorf("cut from %d to %d: %s is %q, %v", to, at, key, v, err)
			}
		}
		closedEmpty(t, c)
	}
	gone := imageOf(t, dir)
	must(t, os.Remove(files(t, gone, "*.log")[0]))
	var lines logLines
	o := in(addr, gone)
	o.Logger = slogTo(&lines)
	open(t, o)
	redistest.WaitFor(t, patience, "the log to say that it is missing", func() bool {
		return strings.Contains(strings.Join(lines.get(), "\n"), "is missing")
	})
}

// removeAll removes the directory beside a cache that may be writing to it.
func removeAll(t *testing.T, dir string) {
	redistest.WaitFor(t, patience, "the directory to be gone", func() bool { return os.RemoveAll(dir) == nil })
}

// The directory is changed under a running cache: Health says so, and everything is
// written anew.
func TestADirectoryThatIsChangedUnderARunningCacheIsNoticedAndWrittenAnew(t *testing.T) {
	beside(t)
	for name, change := range map[string]func(t *testing.T, dir string){
		"removed": removeAll,
		"emptied": func(t *testing.T, dir string) {
			for _, name := range files(t, dir, "*") {
				must(t, os.Remove(name))
			}
		},
		"replaced by an empty one": func(t *testing.T, dir string) {
			must(t, os.Rename(dir, dir+".away"))
			must(t, os.Mkdir(dir, 0o700))
		},
		"replaced by a copy": func(t *testing.T, dir string) {
			copied := imageOf(t, dir)
			must(t, os.Rename(dir, dir+".away"))
			must(t, os.CopyFS(dir, os.DirFS(copied)))
		},
		"a file cut to nothing": func(t *testing.T, dir string) { must(t, os.Truncate(files(t, dir, "*.log")[0], 0)) },
		"a file cut short":      func(t *testing.T, dir string) { must(t, os.Truncate(files(t, dir, "*.log")[0], 60)) },
		"a file removed":        func(t *testing.T, dir string) { must(t, os.Remove(files(t, dir, "*.log")[0])) },
		"a file replaced": func(t *testing.T, dir string) {
			name := files(t, dir, "*.log")[0]
			data, err := os.ReadFile(name)
			must(t, err)
			must(t, os.Remove(name))
			must(t, os.WriteFile(name, data, 0o600))
		},
		"the marker cut to nothing": func(t *testing.T, dir string) { must(t, os.Truncate(filepath.Join(dir, "TRUSTED"), 0)) },
		"the marker damaged": func(t *testing.T, dir string) {
			name := filepath.Join(dir, "TRUSTED")
			data, err := os.ReadFile(name)
			must(t, err)
			data[len(data)-1] ^= 1
			must(t, os.WriteFile(name, data, 0o600))
		},
		"the marker replaced by a directory": func(t *testing.T, dir string) {
			must(t, os.Remove(filepath.Join(dir, "TRUSTED")))
			must(t, os.Mkdir(filepath.Join(dir, "TRUSTED"), 0o700))
		},
		"the marker removed": func(t *testing.T, dir string) { must(t, os.Remove(filepath.Join(dir, "TRUSTED"))) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // each waits for the keeper twice
			ctx := t.Context()
			dir := filepath.Join(t.TempDir(), "journal")
			addr := redistest.FreeAddr(t)
			c := open(t, in(addr, dir))
			for i := range 10 {
				must(t, c.Set(ctx, fmt.Sprint("k", i), []byte("v"), 0))
			}
			must(t, c.Delete(ctx, "d"))
			change(t, dir)
			redistest.WaitFor(t, patience, "Health to say so", func() bool { return c.Health().JournalError != nil })
			must(t, c.Set(ctx, "meanwhile", []byte("v"), 0))
			durableAgain(t, c)
			must(t, c.Set(ctx, "after", []byte("v"), 0))
			if _, err := holdfast.New(in(addr, dir)); err == nil || !strings.Contains(err.Error(), "in use") {
				t.Errorf("a second one on the directory: %v", err)
			}
			next := open(t, in(addr, imageOf(t, dir)))
			if st := next.Stats(); st.Restored != 13 || st.Downgraded != 0 {
				t.Errorf("the next process finds %d keys, %d of them made deletes", st.Restored, st.Downgraded)
			}
			wantGet(t, next, "meanwhile", "v")
			wantGet(t, next, "after", "v")
		})
	}
}

// It ends before anybody has looked.
func TestAJournalWhoseDirectoryWasRemovedIsWrittenByClose(t *testing.T) {
	ctx := begin(t)
	dir := filepath.Join(t.TempDir(), "journal")
	o := in(redistest.FreeAddr(t), dir)
	c := open(t, o)
	must(t, c.Set(ctx, "k", []byte("v"), 0))
	removeAll(t, dir)
	closedEmpty(t, c)
	c = open(t, o)
	wantGet(t, c, "k", "v")
}

func TestALockFileThatIsRemovedLetsNobodyIn(t *testing.T) {
	begin(t)
	dir := t.TempDir()
	o := in(redistest.FreeAddr(t), dir)
	c := open(t, o)
	must(t, c.Set(t.Context(), "k", []byte("v"), 0))
	lock := filepath.Join(dir, "LOCK")
	must(t, os.Remove(lock))
	for range 3 {
		if other, err := holdfast.New(o); err == nil {
			other.Close()
			t.Fatal("there are two on the directory")
		} else if !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "in use") {
			t.Errorf("it says %v", err)
		}
	}
	redistest.WaitFor(t, patience, "the lock file to be there again", func() bool {
		data, err := os.ReadFile(lock)
		return err == nil && string(data) == fmt.Sprintln(os.Getpid())
	})
	if err := c.Health().JournalError; err != nil {
		t.Errorf("nothing is lost, and it says %v", err)
	}
	closedEmpty(t, c)
	c = open(t, o)
	wantGet(t, c, "k", "v")
}

// Somebody else has the directory by now: the first one must not write there.
func TestADirectoryThatIsAnothersByNowIsLeftAlone(t *testing.T) {
	ctx := begin(t)
	dir := filepath.Join(t.TempDir(), "journal")
	o := in(redistest.FreeAddr(t), dir)
	c, err := holdfast.New(o)
	must(t, err)
	must(t, c.Set(ctx, "k", []byte("first"), 0))
	must(t, os.Rename(dir, dir+".away"))
	second := open(t, o)
	must(t, second.Set(ctx, "k", []byte("second"), 0))
	redistest.WaitFor(t, patience, "the first to notice", func() bool { return c.Health().JournalError != nil })
	must(t, c.Set(ctx, "k", []byte("third"), 0))
	if err := c.Close(); err == nil { // which tries once more
		t.Error("it did not write what it had, and says nothing")
	}
	if err := second.Health().JournalError; err != nil {
		t.Errorf("the second: %v", err)
	}
	must(t, second.Close())
	third := open(t, o)
	wantGet(t, third, "k", "second")
	if st := third.Stats(); st.Restored != 1 || st.Downgraded != 0 {
		t.Errorf("found %d keys, %d of them made deletes", st.Restored, st.Downgraded)
	}
}
