package holdfast_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

// servedBy is what held of a program of a cache on a server.
type servedBy struct {
	changes string // how soon what others write is seen
	ttls    string // whether the time to live of what others wrote is known
	copies  string // whether what was read is there in an outage
	loads   string // how often two processes load a cold key
	loaded  string // where what was loaded is then
	sets    string // what became of the sets of an outage
}

func (s servedBy) row() string {
	return strings.Join([]string{s.changes, s.ttls, s.copies, s.loads, s.loaded, s.sets}, " | ")
}

// One program runs on each make of server, and on one that lacks each command; what
// Redis holds in the end must be right everywhere. docs/SERVERS.md has the table.
func TestWhatHoldsOnEachServerIsWhatTheDocumentsSay(t *testing.T) {
	redistest.Long(t)
	var table strings.Builder
	fmt.Fprintln(&table, "| Server | Changes by others | Their TTLs | Copies of them in an outage | Two processes load a cold key | What was loaded is | Sets of an outage |")
	fmt.Fprintln(&table, "|---|---|---|---|---|---|---|")
	run := func(name string, m redistest.Make, rules ...redistest.Rule) (held servedBy) {
		t.Run(name, func(t *testing.T) { held = servedProgram(t, m, rules...) })
		return held
	}
	for _, m := range redistest.Makes {
		fmt.Fprintf(&table, "| %s | %s |\n", m.Name, run(m.Name, m).row())
	}
	latest := makeOf(t, "Redis 7.0")
	for _, commands := range [][]string{
		{"HELLO"}, {"CLIENT TRACKING"}, {"CLIENT"}, {"INFO"}, {"PTTL"}, {"EXISTS"}, {"PERSIST"}, {"PEXPIRE"},
		{"SCRIPT"}, {"EVALSHA"}, {"EVAL"}, {"EVAL", "EVALSHA", "SCRIPT"},
		{"HELLO", "CLIENT", "INFO", "EVAL", "EVALSHA", "SCRIPT"}, {"UNLINK", "GETEX", "GETDEL", "ROLE", "CLUSTER", "COMMAND"},
	} {
		name := strings.Join(commands, ", ")
		unknown := run("without "+name, latest, turnAway(redistest.Unknown, commands)...)
		denied := run("not permitted "+name, latest, turnAway(redistest.Denied, commands)...)
		fmt.Fprintf(&table, "| without %s | %s |\n", name, unknown.row())
		if denied != unknown {
			fmt.Fprintf(&table, "| not permitted: %s | %s |\n", name, denied.row())
		}
	}
	for _, commands := range [][]string{{"HELLO"}, {"CLIENT TRACKING"}, {"CLIENT"}, {"INFO"}, {"HELLO", "CLIENT", "INFO", "SCRIPT", "ROLE", "COMMAND"}} {
		name := strings.Join(commands, ", ")
		fmt.Fprintf(&table, "| hangs up at %s | %s |\n", name, run("hangs up at "+name, latest, turnAway(redistest.HangUp, commands)...).row())
	}
	if t.Failed() {
		return
	}
	const file, begins, ends = "docs/SERVERS.md", "<!-- table -->\n", "<!-- end -->"
	text, err := os.ReadFile(file)
	must(t, err)
	head, rest, ok := strings.Cut(string(text), begins)
	got, tail, ok2 := strings.Cut(rest, ends)
	switch {
	case !ok || !ok2:
		t.Fatalf("%s has no table", file)
	case got == table.String():
	case os.Getenv("HOLDFAST_UPDATE") == "1":
		must(t, os.WriteFile(file, []byte(head+begins+table.String()+ends+tail), 0o644))
	default:
		t.Errorf("%s says otherwise; HOLDFAST_UPDATE=1 writes what holds:\n%s", file, &table)
	}
}

func turnAway(how redistest.Manner, commands []string) []redistest.Rule {
	var rules []redistest.Rule
	for _, c := range commands {
		rules = append(rules, redistest.Rule{Command: c, Manner: how})
	}
	return rules
}

// servedRig is a server behind a filter that plays another, behind a proxy.
type servedRig struct {
	s *redistest.Server
	f *redistest.Filter
	p *redistest.Proxy
}

func newServedRig(t *testing.T, m redistest.Make, rules ...redistest.Rule) servedRig {
	s := redistest.Start(t)
	f := redistest.NewFilter(t, s.Addr(), m, rules...)
	return servedRig{s, f, redistest.NewProxy(t, f.Addr())}
}

func (r servedRig) open(t *testing.T) *holdfast.Cache {
	o := at(r.p.Addr())
	o.Timeout = time.Second
	o.Breaker.MinBackoff, o.Breaker.MaxBackoff = 10*time.Millisecond, 100*time.Millisecond
	o.Tracking.UntrackedTTL = 50 * time.Millisecond
	return open(t, o)
}

func servedProgram(t *testing.T, m redistest.Make, rules ...redistest.Rule) (held servedBy) {
	ctx := begin(t)
	r := newServedRig(t, m, rules...)
	c, other := r.open(t), r.open(t)
	ready(t, c)
	ready(t, other)

	// Own writes, and those of others.
	must(t, c.Set(ctx, "own", []byte("1"), time.Hour))
	must(t, c.Set(ctx, "own", []byte("2"), time.Hour))
	r.holds(t, "own", "2")
	v, err := c.Get(ctx, "own")
	reads := !errors.Is(err, holdfast.ErrMiss)
	if reads && string(v) != "2" {
		t.Errorf("own: %q, %v", v, err)
	}
	must(t, c.Set(ctx, "deleted", []byte("1"), 0))
	must(t, c.Delete(ctx, "deleted"))
	wantGet(t, c, "deleted", "")
	r.holds(t, "deleted", "(nil)")
	var added bool
	added, err = c.Add(ctx, "added", []byte("1"), time.Hour)
	if !added || err != nil {
		t.Errorf("add: %v, %v", added, err)
	}
	if added, err = other.Add(ctx, "added", []byte("2"), time.Hour); added || err != nil {
		t.Errorf("add of what is there: %v, %v", added, err)
	}
	r.s.MustDo("SET", "theirs", "1", "EX", "3600")
	c.Get(ctx, "theirs")
	r.s.MustDo("SET", "theirs", "2", "EX", "3600")
	switch {
	case !reads:
		held.changes = "nothing is read"
	case c.Health().Tracking:
		held.changes = "at once"
	default:
		held.changes = "within `UntrackedTTL`"
	}
	if reads {
		redistest.WaitFor(t, patience, "another client's write", func() bool {
			v, err := c.Get(ctx, "theirs")
			return err == nil && string(v) == "2"
		})
	}
	held.ttls = "unknown"
	r.s.MustDo("SET", "timed", "1", "EX", "3600")
	if e, err := c.Lookup(ctx, "timed"); err == nil && e.TTL > time.Minute {
		held.ttls = "known"
	}

	held.loads, held.loaded = r.loads(t, ctx, c, other)

	// An outage.
	for _, key := range []string{"kept", "gone", "conflict"} {
		must(t, c.Set(ctx, key, []byte("old"), time.Hour))
		if reads {
			wantGet(t, c, key, "old")
		}
	}
	r.p.SetMode(redistest.Cut)
	waitDown(t, c)
	held.copies = "served"
	if v, err := c.Get(ctx, "theirs"); errors.Is(err, holdfast.ErrMiss) {
		held.copies = "none"
	} else if string(v) != "2" || err != nil {
		t.Errorf("theirs, in the outage: %q, %v", v, err)
	}
	must(t, c.Set(ctx, "kept", []byte("new"), time.Hour))
	must(t, c.Set(ctx, "new", []byte("new"), time.Hour))
	must(t, c.Delete(ctx, "gone"))
	must(t, c.Set(ctx, "conflict", []byte("new"), time.Hour))
	r.s.MustDo("SET", "conflict", "theirs")
	for key, want := range map[string]string{"kept": "new", "new": "new", "gone": "", "conflict": "new"} {
		wantGet(t, c, key, want)
	}
	r.p.SetMode(redistest.Pass)
	waitState(t, c, holdfast.Up)
	drained, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	switch err := c.Drain(drained); {
	case err != nil:
		held.sets = "wait"
	case r.get("kept") == "new" && r.get("new") == "new":
		held.sets = "arrive"
	case r.get("kept") == "(nil)" && r.get("new") == "(nil)":
		held.sets = "become deletes"
	}
	r.compare(t, c, reads)
	return held
}

// loads has two processes ask for a cold key while the first one loads it.
func (r servedRig) loads(t *testing.T, ctx context.Context, c, other *holdfast.Cache) (loads, loaded string) {
	started, release := make(chan struct{}), make(chan struct{})
	var second atomic.Bool
	var all sync.WaitGroup
	defer all.Wait()
	all.Go(func() {
		v, err := c.GetOrLoad(ctx, "cold", time.Hour, func(context.Context) ([]byte, error) {
			close(started)
			<-release
			return []byte("loaded"), nil
		})
		if err != nil || string(v) != "loaded" {
			t.Errorf("load: %q, %v", v, err)
		}
	})
	<-started
	all.Go(func() {
		v, err := other.GetOrLoad(ctx, "cold", time.Hour, func(context.Context) ([]byte, error) {
			second.Store(true)
			return []byte("loaded"), nil
		})
		if err != nil || string(v) != "loaded" {
			t.Errorf("the other load: %q, %v", v, err)
		}
	})
	redistest.WaitFor(t, patience, "the second process to load or to wait", func() bool { return second.Load() || other.Stats().LeaseWaits > 0 })
	close(release)
	all.Wait()
	loads, loaded = "once", "in Redis"
	if second.Load() {
		loads = "each"
	}
	if r.get("cold") == "(nil)" {
		loaded = "here only"
	}
	return loads, loaded
}

func (r servedRig) get(key string) string { return r.s.MustDo("GET", key) }

func (r servedRig) holds(t *testing.T, key, want string) {
	t.Helper()
	if got := r.get(key); got != want {
		t.Errorf("redis has %q of %s, want %q", got, key, want)
	}
}

// compare says what is wrong of what Redis holds in the end, and of what is read.
func (r servedRig) compare(t *testing.T, c *holdfast.Cache, reads bool) {
	t.Helper()
	for key, may := range map[string][]string{
		"own": {"2"}, "deleted": {"(nil)"}, "added": {"1"}, "theirs": {"2"},
		"cold": {"loaded", "(nil)"},
		"kept": {"new", "(nil)"}, "new": {"new", "(nil)"}, "gone": {"(nil)"}, "conflict": {"theirs", "(nil)"},
	} {
		got := r.get(key)
		if !contains(" "+strings.Join(may, " ")+" ", " "+got+" ") {
			t.Errorf("redis has %q of %s, want one of %q", got, key, may)
		}
		if key == "cold" || !reads {
			continue // it may be here only
		}
		redistest.WaitFor(t, patience, "what redis has of "+key, func() bool {
			v, err := c.Get(context.Background(), key)
			return err == nil && string(v) == got || errors.Is(err, holdfast.ErrMiss) && got == "(nil)"
		})
	}
}

// waitDown waits until the circuit is open.
func waitDown(t *testing.T, c *holdfast.Cache) {
	t.Helper()
	redistest.WaitFor(t, patience, "the loss", func() bool {
		s := c.Health().State
		return s == holdfast.Down || s == holdfast.Connecting
	})
}

// A server that hangs up at a command of every read or write is of no use as long as it
// does. When it ends, everything that was accepted arrives.
func TestAServerThatHangsUpAtWhatIsNeededDoesNoHarm(t *testing.T) {
	beside(t)
	redistest.Long(t)
	for _, command := range []string{"PTTL", "GET", "SET", "DEL", "EVAL", "EVALSHA", "SCRIPT", ""} {
		t.Run(command, func(t *testing.T) {
			ctx := begin(t)
			r := newServedRig(t, makeOf(t, "Redis 7.0"))
			c := r.open(t)
			ready(t, c)
			must(t, c.Set(ctx, "own", []byte("2"), time.Hour))
			must(t, c.Set(ctx, "gone", []byte("old"), time.Hour))
			seen := r.f.Seen(command)
			r.f.SetRules(redistest.Rule{Command: command, Manner: redistest.HangUp})
			r.p.SetMode(redistest.Cut) // so that there is something to replay
			waitDown(t, c)
			for i := range 20 {
				must(t, c.Set(ctx, fmt.Sprint("k", i), []byte("v"), time.Hour))
				wantGet(t, c, fmt.Sprint("k", i), "v")
			}
			must(t, c.Delete(ctx, "gone"))
			wantGet(t, c, "gone", "")
			r.p.SetMode(redistest.Pass)
			n := 0
			redistest.WaitFor(t, patience, "it to hang up", func() bool {
				n++
				must(t, c.Set(ctx, "other", fmt.Append(nil, n), time.Hour))
				wantGet(t, c, "other", fmt.Sprint(n))
				must(t, c.Delete(ctx, "other"))
				c.Get(ctx, "own")
				v, err := c.GetOrLoad(ctx, fmt.Sprint("cold", n), time.Hour, func(context.Context) ([]byte, error) { return []byte("loaded"), nil })
				if err != nil || string(v) != "loaded" {
					t.Errorf("load: %q, %v", v, err)
				}
				return command == "" && n > 20 || r.f.Seen(command) > seen
			})
			r.f.SetRules()
			waitState(t, c, holdfast.Up)
			drain(t, c)
			r.holds(t, "gone", "(nil)")
			r.holds(t, "own", "2")
			for i := range 20 {
				if got := r.get(fmt.Sprint("k", i)); got != "v" {
					t.Errorf("k%d is %q; health %+v", i, got, c.Health())
				}
			}
		})
	}
}
