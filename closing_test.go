package holdfast_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

// gossip gathers what a Cache says by log and by hook.
type gossip struct {
	mu    sync.Mutex
	lines bytes.Buffer
	drops []holdfast.Drop
}

func (h *gossip) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.lines.Write(p)
}

// hear has the options tell it.
func (h *gossip) hear(o *holdfast.Options) {
	o.Logger = slog.New(slog.NewTextHandler(h, nil))
	o.Hooks.OnDrop = func(d holdfast.Drop) {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.drops = append(h.drops, d)
	}
}

// of returns the lines that hold the text.
func (h *gossip) of(text string) (lines []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for line := range strings.Lines(h.lines.String()) {
		if strings.Contains(line, text) {
			lines = append(lines, line)
		}
	}
	return lines
}

func (h *gossip) undelivered() (keys []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, d := range h.drops {
		if d.Reason == holdfast.DropUndelivered {
			keys = append(keys, d.Key)
		}
	}
	return keys
}

// The first program of the README, as it stands there, stored nothing in ten of ten runs:
// Set went to the journal, for the connection was milliseconds away, and Close dropped it.
func TestTheQuickstartOfTheReadmeStoresItsValue(t *testing.T) {
	redistest.Long(t)
	s := redistest.Start(t)
	readme, err := os.ReadFile("README.md")
	must(t, err)
	fence := regexp.MustCompile("(?s)```go import\n(.*?)```.*?```go Example\n(.*?)```").FindSubmatch(readme)
	if fence == nil {
		t.Fatal("the README has no quickstart")
	}
	source := "package main\n\nimport \"os\"\n" + string(fence[1]) +
		"\nfunc main() {\n\taddr := os.Args[1]\n" + string(fence[2]) + "}\n"
	dir := t.TempDir()
	main, program := filepath.Join(dir, "main.go"), filepath.Join(dir, "quickstart")
	must(t, os.WriteFile(main, []byte(source), 0o600))
	if out, err := exec.Command("go", "build", "-o", program, main).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s\n%s", err, out, source)
	}
	for run := range 10 {
		s.MustDo("DEL", "user:7")
		out, err := exec.Command(program, s.Addr()).CombinedOutput()
		if err != nil || string(out) != "Ada\n" {
			t.Fatalf("run %d: %v\n%s", run, err, out)
		}
		if v := s.MustDo("GET", "user:7"); v != "Ada" {
			t.Fatalf("run %d: redis holds %q", run, v)
		}
	}
}

func TestCloseDeliversWhatTheJournalHolds(t *testing.T) {
	ctx := begin(t)
	s, p := behind(t)
	var h gossip
	o := at(p.Addr())
	o.CloseTimeout = patience
	h.hear(&o)
	c := open(t, o)
	ready(t, c)
	p.SetMode(redistest.Cut)
	for i := range 500 {
		must(t, c.Set(ctx, fmt.Sprint("k", i), []byte("v"), 0))
	}
	p.SetMode(redistest.Pass)
	waitState(t, c, holdfast.Up)
	closedEmpty(t, c) // the replay has hardly begun
	if n := s.MustDo("DBSIZE"); n != "500" && n != "501" {
		t.Errorf("redis has %s keys", n)
	}
	if keys := h.undelivered(); len(keys) != 0 {
		t.Errorf("said to be undelivered: %v", keys)
	}
}

// A write that is lost with the process is told of: in an outage, after a first attempt
// that has failed, behind a server that hangs, and where Close is not to wait.
func TestCloseSaysWhatItCouldNotDeliver(t *testing.T) {
	beside(t)
	kinds := map[string]struct {
		within time.Duration
		away   func(t *testing.T, o *holdfast.Options) func(c *holdfast.Cache)
	}{
		"nobody listens": {100 * time.Millisecond, func(t *testing.T, o *holdfast.Options) func(*holdfast.Cache) {
			*o = at(unused())
			return func(c *holdfast.Cache) {
				redistest.WaitFor(t, patience, "an attempt to fail", func() bool { return c.Health().LastError != nil })
			}
		}},
		"an outage": {100 * time.Millisecond, func(t *testing.T, o *holdfast.Options) func(*holdfast.Cache) {
			_, p := behind(t)
			*o = at(p.Addr())
			return func(c *holdfast.Cache) {
				ready(t, c)
				p.SetMode(redistest.Cut)
				waitState(t, c, holdfast.Down)
			}
		}},
		"the first attempt hangs": {time.Second, func(t *testing.T, o *holdfast.Options) func(*holdfast.Cache) {
			_, p := behind(t)
			p.SetMode(redistest.Hang)
			*o = at(p.Addr())
			o.Redis.Dialer.Timeout = patience
			return func(*holdfast.Cache) {}
		}},
		"it shall not": {100 * time.Millisecond, func(t *testing.T, o *holdfast.Options) func(*holdfast.Cache) {
			_, p := behind(t)
			p.SetMode(redistest.Hang)
			*o = at(p.Addr())
			o.CloseTimeout, o.Redis.Dialer.Timeout = -1, patience
			return func(*holdfast.Cache) {}
		}},
	}
	for name, kind := range kinds {
		t.Run(name, func(t *testing.T) {
			ctx := begin(t)
			var o holdfast.Options
			var h gossip
			away := kind.away(t, &o)
			h.hear(&o)
			c, err := holdfast.New(o)
			must(t, err)
			away(c)
			var want []string
			for i := range 300 {
				key := fmt.Sprintf("k%03d", i)
				want = append(want, key)
				must(t, c.Set(ctx, key, []byte("v"), 0))
			}
			start := time.Now()
			err = c.Close()
			took := time.Since(start)
			var u *holdfast.UndeliveredError
			if !errors.As(err, &u) || u.Keys != 300 || u.Err == nil {
				t.Errorf("close: %v", err)
			}
			if took > kind.within+slack() {
				t.Errorf("close took %v", took)
			}
			if lines := h.of("undelivered=300"); len(lines) != 1 {
				t.Errorf("%d lines tell of it: %q", len(lines), lines)
			}
			if keys := h.undelivered(); !slices.Equal(keys, want) {
				t.Errorf("%d drops", len(keys))
			}
			closedEmpty(t, c)
		})
	}
}

func TestCloseWithADirectoryLosesNothingAndSaysNothing(t *testing.T) {
	ctx := begin(t)
	s, p := behind(t)
	var h gossip
	o := at(p.Addr())
	o.Journal.Dir = t.TempDir()
	h.hear(&o)
	p.SetMode(redistest.Refuse)
	c, err := holdfast.New(o)
	must(t, err)
	for i := range 50 {
		must(t, c.Set(ctx, fmt.Sprint("k", i), []byte("v"), 0))
	}
	redistest.WaitFor(t, patience, "an attempt to fail", func() bool { return c.Health().LastError != nil })
	closedEmpty(t, c)
	if lines := h.of("undelivered"); len(lines)+len(h.undelivered()) != 0 {
		t.Errorf("told: %q, %v", lines, h.undelivered())
	}
	p.SetMode(redistest.Pass)
	next := open(t, o)
	ready(t, next)
	drain(t, next)
	if v := s.MustDo("GET", "k49"); v != "v" {
		t.Errorf("redis holds %q", v)
	}
}

// Close beside a Shutdown cuts it short; whoever calls it after one that has ended gets
// nil, and nobody delivers once more.
func TestCloseAddsNothingToAShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		for _, beside := range []bool{false, true} {
			v := newVirtual(t)
			v.set(true, false, false)
			c, err := holdfast.New(v.options())
			must(t, err)
			must(t, c.Set(ctx, "k", []byte("v"), 0))
			synctest.Wait()
			limited, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
			defer cancel()
			shut := make(chan error, 1)
			start := time.Now()
			go func() { shut <- c.Shutdown(limited) }()
			if beside {
				synctest.Wait()
				closedEmpty(t, c)
			}
			err = <-shut
			var u *holdfast.UndeliveredError
			if !errors.As(err, &u) || u.Keys != 1 {
				t.Errorf("shutdown: %v", err)
			}
			if took := time.Since(start); beside && took > 10*time.Millisecond || took > 150*time.Millisecond {
				t.Errorf("beside %v: it took %v", beside, took)
			}
			start = time.Now()
			closedEmpty(t, c)
			if took := time.Since(start); took > time.Millisecond {
				t.Errorf("the Close after it took %v", took)
			}
		}
	})
}

// In a cluster a shard that is away keeps Close no longer than any outage does, and the
// others get what is theirs.
func TestCloseOfAClusterDeliversToTheShardsThatAreThere(t *testing.T) {
	ctx := begin(t)
	cl := redistest.StartCluster(t, 3, 0)
	o := at(cl.Addrs()[0])
	o.Mode = holdfast.ModeCluster
	c, err := holdfast.New(o)
	must(t, err)
	ready(t, c)
	dead := cl.Nodes()[2]
	owners := map[string]*redistest.Server{}
	for i := range 300 {
		key := fmt.Sprint("k", i)
		owners[key] = cl.NodeFor(key)
	}
	dead.Kill()
	redistest.WaitFor(t, patience, "the shard to be missed", func() bool { return c.Health().State == holdfast.Down })
	n := 0
	for i := range 300 {
		key := fmt.Sprint("k", i)
		if owners[key] == dead {
			n++
		}
		must(t, c.Set(ctx, key, []byte("v"), 0))
	}
	start := time.Now()
	err = c.Close()
	var u *holdfast.UndeliveredError
	if !errors.As(err, &u) || u.Keys != n {
		t.Errorf("%v; want %d undelivered", err, n)
	}
	if took := time.Since(start); took > 500*time.Millisecond+slack() {
		t.Errorf("close took %v", took)
	}
}

// Close blamed hooks that were not set. It names what it did not wait for to the end.
func TestCloseNamesWhatDidNotReturn(t *testing.T) {
	beside(t)
	kinds := map[string]func(o *holdfast.Options, begun func(), hold <-chan struct{}){
		"Hooks.OnStateChange": func(o *holdfast.Options, begun func(), hold <-chan struct{}) {
			o.Hooks.OnStateChange = func(holdfast.StateChange) { begun(); <-hold }
			o.Hooks.OnDrop = func(holdfast.Drop) {}
		},
		"the log handler (Logger)": func(o *holdfast.Options, begun func(), hold <-chan struct{}) {
			o.Logger = slog.New(slog.NewTextHandler(blocking{begun, hold}, nil))
		},
		"the dial function (Redis.DialCtxFn)": func(o *holdfast.Options, begun func(), hold <-chan struct{}) {
			o.Redis.DialCtxFn = func(context.Context, string, *net.Dialer, *tls.Config) (net.Conn, error) {
				begun()
				<-hold
				return nil, errors.New("given up")
			}
		},
	}
	for name, kind := range kinds {
		t.Run(name, func(t *testing.T) {
			begin(t)
			o := at(unused())
			begun, hold := make(chan struct{}), make(chan struct{})
			var once sync.Once
			kind(&o, func() { once.Do(func() { close(begun) }) }, hold)
			c, err := holdfast.New(o)
			must(t, err)
			<-begun
			err = c.Close()
			if err == nil || err.Error() != "holdfast: close: did not return in time: "+name {
				t.Errorf("close: %v", err)
			}
			close(hold)
		})
	}
}

type blocking struct {
	begun func()
	hold  <-chan struct{}
}

func (b blocking) Write(p []byte) (int, error) { b.begun(); <-b.hold; return len(p), nil }

// A Drain beside Close had a goroutine join a group that was waited for.
func TestDrainBesideCloseEndsInPeace(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	for range 30 {
		o := at(s.Addr())
		o.Journal.Dir = t.TempDir()
		c, err := holdfast.New(o)
		must(t, err)
		var users sync.WaitGroup
		for range 4 {
			users.Go(func() {
				for {
					if err := c.Drain(ctx); err != nil {
						return
					}
				}
			})
		}
		must(t, c.Set(ctx, "k", nil, 0))
		closedEmpty(t, c)
		users.Wait()
	}
}

// A job computes for a while, and a load balancer ends its connection meanwhile, or just
// now: its last write finds out, waits in the journal for the connection that is made anew
// at once, and Close, which came next, gave it up.
func TestCloseDeliversWhatFoundTheConnectionLostJustNow(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	for round := range 12 {
		o := leisurely(s.Addr())
		o.CloseTimeout = patience
		c := open(t, o)
		ready(t, c)
		want := fmt.Sprint("round ", round)
		must(t, c.SetMany(ctx, map[string][]byte{"a": nil, "b": nil}, 0))
		s.MustDo("CLIENT", "KILL", "TYPE", "normal")
		must(t, c.SetMany(ctx, map[string][]byte{"a": []byte(want), "b": []byte(want)}, 0))
		must(t, c.Delete(ctx, "c"))
		if err := c.Close(); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if a, b := s.MustDo("GET", "a"), s.MustDo("GET", "b"); a != want || b != want {
			t.Fatalf("round %d: redis holds %q and %q", round, a, b)
		}
	}
	// Where the attempt to make it anew fails, Redis is away, and nobody waits.
	o := leisurely(s.Addr())
	o.CloseTimeout = patience
	c := open(t, o)
	ready(t, c)
	s.Kill()
	must(t, c.Set(ctx, "a", nil, 0))
	began := time.Now()
	var u *holdfast.UndeliveredError
	if err := c.Close(); !asUndelivered(err, &u) || time.Since(began) > patience/2 {
		t.Errorf("close took %v: %v", time.Since(began), err)
	}
}
