package holdfast_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
)

// A victim is this test binary, run once more as a program with a Cache that
// dies. It does what its stdin says, answers a line for each line, and ends with
// its stdin, so that it never outlives the test.
type victimOptions struct {
	Addr     string
	Dir      string
	Fsync    holdfast.FsyncPolicy
	MaxKeys  int
	Defaults bool          // the breaker's
	Timeout  time.Duration // of a call; 0 for the tests' own
	FileSize int64         // no file may grow over it; 0 for any size
	Prefixes []string      // tracked; nil for what is read

	// Life is not 0 for a victim that writes by itself, with so many writers.
	Life, Writers int
	// May is what each key may hold at its beginning; "" is nothing.
	May map[string][]string
}

const victimEnv = "HOLDFAST_VICTIM"

func victim(file string) error {
	var o victimOptions
	data, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(data, &o)
	}
	if err == nil && o.FileSize != 0 {
		err = limitFileSize(o.FileSize)
	}
	if err != nil {
		return err
	}
	var lines logLines
	opts := at(o.Addr)
	opts.Local.MaxBytes = 1 << 20
	if o.Prefixes != nil {
		opts.Tracking.Mode, opts.Tracking.Prefixes = holdfast.TrackPrefixes, o.Prefixes
	}
	if !o.Defaults {
		opts.Breaker.MinBackoff, opts.Breaker.MaxBackoff = time.Millisecond, 20*time.Millisecond
	}
	opts.Journal.Dir, opts.Journal.Fsync, opts.Journal.MaxKeys = o.Dir, o.Fsync, o.MaxKeys
	if o.Life != 0 {
		// What an fsync of a busy disk takes, whose write would be in memory only for so
		// long: it says what was acknowledged, and not what Health said.
		opts.Timeout = 10 * time.Second
	}
	if o.Timeout != 0 {
		opts.Timeout = o.Timeout
	}
	opts.Logger = slogTo(&lines)
	opts.Hooks.OnStateChange = func(c holdfast.StateChange) {
		if o.Life != 0 {
			fmt.Println("state", c.To)
		}
	}
	opts.Hooks.OnDrop = func(d holdfast.Drop) {
		if o.Life != 0 {
			fmt.Println("drop", d.Key, d.Reason, "in life", o.Life)
		}
	}
	c, err := holdfast.New(opts)
	if err != nil {
		return err
	}
	fmt.Println("restored", c.Stats().Restored)
	if o.Life != 0 {
		for g := range o.Writers {
			go writer(c, o, g)
		}
	}
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		fmt.Println(obey(c, &lines, strings.Split(in.Text(), " ")))
	}
	return nil
}

// obey does what one line says.
func obey(c *holdfast.Cache, lines *logLines, words []string) string {
	ctx := context.Background()
	said := func(err error) string {
		if err != nil {
			return "error: " + err.Error()
		}
		return "ok"
	}
	switch words[0] {
	case "set": // key, value, ttl
		ttl, err := time.ParseDuration(words[3])
		if err == nil {
			err = c.Set(ctx, words[1], []byte(words[2]), ttl)
		}
		return said(err)
	case "fill": // from, to, bytes
		from, _ := strconv.Atoi(words[1])
		to, _ := strconv.Atoi(words[2])
		size, _ := strconv.Atoi(words[3])
		for i := from; i < to; i++ {
			if err := c.Set(ctx, fmt.Sprint("fill", i), bytes.Repeat([]byte("f"), size), 0); err != nil {
				return said(err)
			}
		}
		return "ok"
	case "del":
		return said(c.Delete(ctx, words[1]))
	case "get":
		v, err := c.Get(ctx, words[1])
		if err != nil {
			return said(err)
		}
		return "value " + string(v)
	case "health":
		h := c.Health()
		return fmt.Sprintf("%v keys=%d journal=%v", h.State, h.JournalKeys, h.JournalError)
	case "watch": // key, value
		victimWatch.begin(c, words[1], words[2])
		return "ok"
	case "gap":
		return victimWatch.result()
	case "superseded":
		return fmt.Sprint(c.Stats().Superseded)
	case "room":
		return said(limitFileSize(-1))
	case "log":
		return strings.ReplaceAll(strings.Join(lines.get(), "; "), "\n", " ")
	case "drain":
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		return said(c.Drain(ctx))
	}
	return "error: what is " + words[0]
}

// watch reads one key all the time, and notes when the process stood still, and when the
// value was last served as it is.
type watch struct {
	resumed, last atomic.Int64 // on the clock of begun
	begun         time.Time
}

// gapAtLeast is what tells a process that was stopped from one that is slow.
const gapAtLeast = 3 * time.Second

var victimWatch watch // by the victim's one Cache

func (w *watch) begin(c *holdfast.Cache, key, value string) {
	w.begun = time.Now()
	go func() {
		for before := time.Duration(0); ; time.Sleep(100 * time.Microsecond) {
			e, err := c.Lookup(context.Background(), key)
			now := time.Since(w.begun)
			if now-before > gapAtLeast {
				w.resumed.Store(int64(now))
			}
			if before = now; err == nil && !e.Degraded && string(e.Value) == value {
				w.last.Store(int64(now))
			}
		}
	}()
}

// result says for how long after the gap the value was served as it is.
func (w *watch) result() string {
	resumed := w.resumed.Load()
	return fmt.Sprintf("%v %d", resumed != 0, max(0, w.last.Load()-resumed))
}

// victimProcess is a victim as its parent sees it.
type victimProcess struct {
	t      *testing.T
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	out    *bufio.Scanner
	stderr bytes.Buffer
	said   []string
}

// startVictim runs a victim. It is there when restored has returned.
func startVictim(t *testing.T, o victimOptions) *victimProcess {
	t.Helper()
	data, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "victim.json")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &victimProcess{t: t, cmd: exec.Command(self)}
	p.cmd.Env = append(os.Environ(), victimEnv+"="+file)
	p.cmd.Stderr = &p.stderr
	p.stdin, err = p.cmd.StdinPipe()
	if err == nil {
		var out io.Reader
		out, err = p.cmd.StdoutPipe()
		p.out = bufio.NewScanner(out)
		p.out.Buffer(nil, 1<<20)
	}
	if err == nil {
		err = p.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.end)
	return p
}

// line is the next line that the victim says, "" at its end.
func (p *victimProcess) line() string {
	if !p.out.Scan() {
		return ""
	}
	p.said = append(p.said, p.out.Text())
	return p.out.Text()
}

// restored waits until the victim has its Cache, and returns what New found.
func (p *victimProcess) restored() int {
	p.t.Helper()
	for {
		var n int
		line := p.line()
		if _, err := fmt.Sscanf(line, "restored %d", &n); err == nil {
			return n
		}
		if !strings.HasPrefix(line, "state ") { // a hook may come first
			p.t.Fatalf("the victim did not begin: %q", p.said)
		}
	}
}

// do has the victim do something, and returns its answer.
func (p *victimProcess) do(words ...any) string {
	p.t.Helper()
	text := strings.TrimSuffix(fmt.Sprintln(words...), "\n")
	if _, err := fmt.Fprintln(p.stdin, text); err != nil {
		p.t.Fatalf("%s: %v; %s", text, err, p.stderr.String())
	}
	return p.line()
}

// must is do for what is to succeed.
func (p *victimProcess) must(words ...any) {
	p.t.Helper()
	if got := p.do(words...); got != "ok" {
		p.t.Fatalf("%v: %s; %s", words, got, p.stderr.String())
	}
}

// kill ends the victim with SIGKILL.
func (p *victimProcess) kill() {
	p.t.Helper()
	p.end()
	if p.stderr.Len() > 0 {
		p.t.Fatalf("the victim says: %s", p.stderr.String())
	}
}

func (p *victimProcess) end() {
	if p.cmd.ProcessState != nil {
		return
	}
	_ = p.cmd.Process.Kill() // it may have ended by itself
	for p.out.Scan() {
	}
	_ = p.cmd.Wait()
}

// step is the n-th write of a writer in one life. Each key has one writer, so
// that what was acknowledged last is known.
type step struct {
	key, value string // no value is a delete
	ttl        time.Duration
}

// Of each writer's keys the old ones are written in every life, and were there
// before; the new ones only in one. Some of both are written more often.
const (
	oldKeys  = 12
	newKeys  = 24
	busyKeys = 3
)

func oldKey(g, i int) string       { return fmt.Sprintf("old:%d:%d", g, i) }
func newKey(life, g, i int) string { return fmt.Sprintf("new:%d:%d:%d", life, g, i) }

func stepOf(life, g, n int) step {
	rnd := rand.New(rand.NewPCG(uint64(life)<<32|uint64(g), uint64(n)))
	pick := func(of int) int {
		if rnd.IntN(2) == 0 {
			return rnd.IntN(busyKeys)
		}
		return rnd.IntN(of)
	}
	s := step{key: oldKey(g, pick(oldKeys))}
	if rnd.IntN(2) == 0 {
		s.key = newKey(life, g, pick(newKeys))
	}
	if rnd.IntN(3) > 0 {
		s.value = fmt.Sprintf("%d.%d.%d", life, g, n)
	}
	if rnd.IntN(4) == 0 {
		s.ttl = time.Hour
	}
	return s
}

// writer looks at what its keys are, writes for ever, and says what was accepted.
// It says, too, what it read and should not have.
func writer(c *holdfast.Cache, o victimOptions, g int) {
	ctx := context.Background()
	may := make(map[string][]string)
	look := func(key string) {
		v, err := c.Get(ctx, key)
		switch {
		case errors.Is(err, holdfast.ErrMiss):
		case err != nil:
			fmt.Println("wrong: get", key, err)
		case !allowed(may[key], string(v)):
			fmt.Printf("wrong: %s is read as %q, and may be %q\n", key, v, may[key])
		}
	}
	for key, values := range o.May {
		var life, of int
		if _, err := fmt.Sscanf(key, "old:%d", &of); err != nil {
			fmt.Sscanf(key, "new:%d:%d", &life, &of)
		}
		if of == g {
			may[key] = values
			look(key)
		}
	}
	rnd := rand.New(rand.NewPCG(uint64(o.Life), uint64(g)))
	for n := 0; ; n++ {
		s := stepOf(o.Life, g, n)
		var err error
		if s.value == "" {
			err = c.Delete(ctx, s.key)
		} else {
			err = c.Set(ctx, s.key, []byte(s.value), s.ttl)
		}
		if err != nil {
			fmt.Println("wrong: write", s.key, err)
		}
		fmt.Println("wrote", g, n)
		may[s.key] = []string{s.value}
		if rnd.IntN(4) == 0 {
			look(s.key)
		}
	}
}

// allowed says whether a key may be that; "" is nothing.
func allowed(may []string, value string) bool {
	for _, v := range may {
		if v == value {
			return true
		}
	}
	return len(may) == 0 && value == ""
}

// lives is what is known of the keys from one life to the next.
type lives struct {
	mu   sync.Mutex
	may  map[string][]string
	last []int // of each writer, the last step that was acknowledged; -1 for none

	acknowledged int
	restored     int
	up           bool
	wrong        []string
	drops        map[string][]string // by key: why a set was given up
}
