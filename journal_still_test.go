package holdfast_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

// within runs a call that must not take as long as a disk that stands still.
func within(t *testing.T, what string, call func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- call() }()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	case <-time.After(patience):
		t.Fatalf("%s waits for a disk that stands still", what)
	}
}

// imageOf is what a process would find that began now, while this one lives on.
func imageOf(t *testing.T, dir string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "image")
	must(t, os.CopyFS(to, os.DirFS(dir)))
	return to
}

// durableAgain waits until the file has everything.
func durableAgain(t *testing.T, c *holdfast.Cache) {
	t.Helper()
	redistest.WaitFor(t, patience, "the file to have everything", func() bool { return c.Health().JournalError == nil })
}

// The disk stands still in the middle of an outage: every call is back after its budget,
// Health says so from the first of them on, and what was accepted meanwhile is in the file
// when the disk goes on.
func TestADiskThatStandsStillHoldsNoCallUpAndHeals(t *testing.T) {
	for name, kinds := range map[string][]string{"all of it": nil, "writes": {"write"}, "fsync": {"sync"}} {
		t.Run(name, func(t *testing.T) {
			ctx := undisturbed(t)
			s, p := behind(t)
			dir := t.TempDir()
			p.SetMode(redistest.Cut)
			o := at(p.Addr())
			o.Timeout = 100 * time.Millisecond
			o.Journal.Dir, o.Journal.Fsync = dir, holdfast.FsyncAlways
			c := open(t, o)
			must(t, c.Set(ctx, "touched", []byte("v"), 0))
			must(t, c.Set(ctx, "replaced", []byte("before"), 0))
			durableAgain(t, c) // an fsync of a busy machine may take longer than Timeout
			goOn := holdfast.HangDisk(c, kinds...)
			defer goOn()
			cl := c.Client()
			within(t, "Set", func() error { return c.Set(ctx, "replaced", []byte("v"), 0) })
			if c.Health().JournalError == nil {
				t.Error("it is in memory only, and Health says nothing")
			}
			within(t, "SetMany", func() error { return c.SetMany(ctx, map[string][]byte{"m1": []byte("v"), "m2": []byte("v")}, 0) })
			within(t, "Delete", func() error { return c.Delete(ctx, "d1", "d2") })
			within(t, "Touch", func() error { return c.Touch(ctx, "touched", time.Hour) })
			within(t, "Client", func() error {
				return cl.Do(ctx, cl.B().Set().Key("client").Value("v").Build()).Error()
			})
			within(t, "Add", func() error {
				if _, err := c.Add(ctx, "added", []byte("v"), 0); !errors.Is(err, holdfast.ErrUnavailable) {
					return fmt.Errorf("redis is away, and it says %v", err)
				}
				return nil
			})
			before := runtime.NumGoroutine()
			var wg sync.WaitGroup
			for g := range 20 {
				wg.Go(func() {
					for i := range 50 {
						if err := c.Set(ctx, fmt.Sprint("many", g, "-", i), make([]byte, 1000), 0); err != nil {
							t.Error(err)
						}
					}
				})
			}
			within(t, "many", func() error { wg.Wait(); return nil })
			if n := runtime.NumGoroutine(); n > before+5 {
				t.Errorf("%d goroutines stand behind the disk", n-before)
			}
			for key, want := range map[string]string{"replaced": "v", "m1": "v", "client": "v", "touched": "v", "d1": ""} {
				wantGet(t, c, key, want)
			}

			goOn()
			durableAgain(t, c)
			must(t, c.Set(ctx, "late", []byte("v"), 0))
			durableAgain(t, c)
			next := open(t, in(p.Addr(), imageOf(t, dir)))
			if st := next.Stats(); st.Restored != 2+2+2+1+1000+1 || st.Downgraded != 0 {
				t.Errorf("the next process finds %d keys, %d of them made deletes", st.Restored, st.Downgraded)
			}
			p.SetMode(redistest.Pass)
			ready(t, c)
			drain(t, c)
			for key, want := range map[string]string{"replaced": "v", "m1": "v", "client": "v", "touched": "v", "late": "v", "d1": "(nil)"} {
				if got := s.MustDo("GET", key); got != want {
					t.Errorf("%s is %s in Redis, want %s", key, got, want)
				}
			}
		})
	}
}

// A set is replayed once the file has it; where the disk never takes it, that must not be
// the end of the replay.
func TestAReplayGoesOnInMemoryWhereTheDiskStandsStill(t *testing.T) {
	ctx := begin(t)
	s, p := behind(t)
	p.SetMode(redistest.Cut)
	o := at(p.Addr())
	o.Timeout, o.Journal.Dir = max(100*time.Millisecond, budget()), t.TempDir()
	c := open(t, o)
	for i := range 300 {
		must(t, c.Set(ctx, fmt.Sprint("k", i), []byte("v"), 0))
	}
	must(t, c.Delete(ctx, "d"))
	s.MustDo("SET", "d", "before")
	goOn := holdfast.HangDisk(c)
	defer goOn()
	p.SetMode(redistest.Pass)
	ready(t, c)
	drain(t, c)
	for i := range 300 {
		if got := s.MustDo("GET", fmt.Sprint("k", i)); got != "v" {
			t.Fatalf("k%d is %s", i, got)
		}
	}
	if got := s.MustDo("GET", "d"); got != "(nil)" {
		t.Errorf("d is %s", got)
	}
	if c.Health().JournalError == nil {
		t.Error("the file knows nothing of that, and Health says nothing")
	}
	// Redis is well, and the disk is nobody's business.
	within(t, "Set", func() error { return c.Set(ctx, "k0", []byte("w"), 0) })
	within(t, "Add", func() error { _, err := c.Add(ctx, "added", []byte("v"), 0); return err })
	within(t, "Deliver", func() error { return c.Deliver(ctx, "k1") })
	goOn()
	durableAgain(t, c)
}

// The caller's own context ends before Timeout does.
func TestWhoeverWaitsForTheDiskLeavesWithTheirContext(t *testing.T) {
	ctx := begin(t)
	o := at(redistest.FreeAddr(t))
	o.Timeout, o.Journal.Dir = 10*time.Minute, t.TempDir()
	c := open(t, o)
	must(t, c.Set(ctx, "touched", []byte("v"), 0))
	goOn := holdfast.HangDisk(c)
	defer goOn()
	cl := c.Client()
	for name, call := range map[string]func(ctx context.Context) error{
		"set":    func(ctx context.Context) error { return c.Set(ctx, "k", []byte("v"), 0) },
		"many":   func(ctx context.Context) error { return c.SetMany(ctx, map[string][]byte{"a": nil, "b": nil}, 0) },
		"delete": func(ctx context.Context) error { return c.Delete(ctx, "k") },
		"touch":  func(ctx context.Context) error { return c.Touch(ctx, "touched", time.Hour) },
		"client": func(ctx context.Context) error { return cl.Do(ctx, cl.B().Del().Key("k").Build()).Error() },
	} {
		within(t, name, func() error {
			ctx, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
			defer cancel()
			if err := call(ctx); !errors.Is(err, context.DeadlineExceeded) {
				return fmt.Errorf("its context ended, and it says %w", err)
			}
			return nil
		})
	}
	goOn()
}

func TestCloseAndShutdownEndThoughTheDiskStandsStill(t *testing.T) {
	redistest.Long(t)
	for name, end := range map[string]func(c *holdfast.Cache) error{
		"close": (*holdfast.Cache).Close,
		"shutdown": func(c *holdfast.Cache) error {
			ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
			defer cancel()
			return c.Shutdown(ctx)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := at(redistest.FreeAddr(t))
			o.Timeout, o.Journal.Dir = 100*time.Millisecond, t.TempDir()
			t.Cleanup(func() { // the disk goes on after the test, and has ended when the directory is free
				redistest.WaitFor(t, patience, "the directory to be free", func() bool {
					next, err := holdfast.New(o)
					if err == nil {
						_ = next.Close()
					}
					return err == nil
				})
			})
			c, err := holdfast.New(o)
			must(t, err)
			goOn := holdfast.HangDisk(c)
			defer goOn()
			must(t, c.Set(context.Background(), "k", []byte("v"), 0))
			within(t, name, func() error {
				if err := end(c); err == nil {
					return errors.New("the disk does not have everything, and it says nothing")
				}
				return nil
			})
		})
	}
}

// A disk that goes on just before the end is given everything, though the keeper has not
// come by.
func TestCloseWritesWhatTheDiskDidNotTakeBefore(t *testing.T) {
	ctx := begin(t)
	dir := t.TempDir()
	o := in(redistest.FreeAddr(t), dir)
	o.Timeout = 50 * time.Millisecond
	c := open(t, o)
	must(t, c.Set(ctx, "k", []byte("before"), 0))
	goOn := holdfast.HangDisk(c)
	must(t, c.Set(ctx, "k", []byte("v"), 0))
	must(t, c.Delete(ctx, "d"))
	goOn()
	closedEmpty(t, c)
	c = open(t, o)
	if st := c.Stats(); st.Restored != 2 || st.Downgraded != 0 {
		t.Errorf("%d keys are found, %d of them made deletes", st.Restored, st.Downgraded)
	}
	wantGet(t, c, "k", "v")
}
