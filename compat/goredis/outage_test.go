package programs

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

const (
	away  = 5 * time.Second       // how long an outage lasts
	pause = 20 * time.Millisecond // between two calls of an operation
)

// An outage is a way for Redis to be away.
type outage struct {
	name       string
	begin, end func(*redistest.Server)
}

var outages = []outage{
	{"killed", (*redistest.Server).Kill, func(s *redistest.Server) { s.Restart() }},
	{"stopped", (*redistest.Server).Pause, (*redistest.Server).Resume},
}

// A span is from the begin of an outage to its end.
type span struct{ begin, end time.Time }

// A call is one of an operation.
type call struct {
	span
	err error
}

// A watch calls an operation until it is ended, and remembers.
type watch struct {
	operation
	mu    sync.Mutex
	calls []call
}

func (w *watch) run(ctx context.Context) {
	for ctx.Err() == nil {
		c := call{span: span{begin: time.Now()}}
		c.err = w.operation.call(context.Background())
		c.end = time.Now()
		w.mu.Lock()
		w.calls = append(w.calls, c)
		w.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// during returns the calls that tell about an outage: those that were made in it, and those
// under way when it began, unless they ended at once, perhaps with an answer of before. A
// call that began in the last three seconds and saw the end tells nothing: it may only
// seem to wait for the end.
func (w *watch) during(o span) (calls []call) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.calls {
		late := c.begin.After(o.end) || c.end.After(o.end) && c.begin.After(o.end.Add(-3*time.Second))
		early := c.begin.Before(o.begin) && c.end.Before(o.begin.Add(short/2))
		if !late && !early {
			calls = append(calls, c)
		}
	}
	return calls
}

// wentOn reports whether a call that began after the outage was answered.
func (w *watch) wentOn(o span) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.ContainsFunc(w.calls, func(c call) bool { return c.begin.After(o.end) && c.err == nil })
}

// A party is a program on clients of one kind, with a server of its own.
type party struct {
	name    string
	cached  bool
	server  *redistest.Server
	watches []*watch
	outage  span
}

func newParty(t *testing.T, p program, cached bool) *party {
	// The data outlive SIGKILL.
	party := &party{name: p.library + ", plain", cached: cached, server: redistest.Start(t, "--appendonly", "yes")}
	open := plain(t, party.server)
	if cached {
		party.name = p.library + ", with the cache"
		open, _ = attached(t, party.server, 0)
	}
	for _, o := range p.inOutage(t, open) {
		party.watches = append(party.watches, &watch{operation: o})
	}
	return party
}

// suffer has all parties go through an outage at once, because they mostly wait, and
// returns by how much the machine was late with timers meanwhile.
func suffer(t *testing.T, parties []*party, o outage) (late time.Duration) {
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	stop := sync.OnceFunc(func() { cancel(); all.Wait() })
	defer stop()
	for _, p := range parties {
		for _, w := range p.watches {
			all.Go(func() { w.run(ctx) })
		}
	}
	all.Go(func() { late = lateness(ctx) })
	for _, p := range parties {
		for _, w := range p.watches {
			eventually(t, p.name+": "+w.name, func() bool { return w.wentOn(span{}) })
		}
	}
	for _, p := range parties {
		o.begin(p.server)
		p.outage.begin = time.Now()
	}
	time.Sleep(away)
	for _, p := range parties {
		p.outage.end = time.Now()
		o.end(p.server)
	}
	for _, p := range parties {
		for _, w := range p.watches {
			eventually(t, p.name+" afterwards: "+w.name, func() bool { return w.wentOn(p.outage) })
		}
	}
	stop()
	for _, p := range parties {
		for _, w := range p.watches {
			if w.after != nil {
				w.after(t)
			}
		}
	}
	return late
}

// lateness returns the longest that a timer was late until the context ends.
func lateness(ctx context.Context) (most time.Duration) {
	for ctx.Err() == nil {
		begin := time.Now()
		select {
		case <-ctx.Done():
		case <-time.After(pause):
			most = max(most, time.Since(begin)-pause)
		}
	}
	return most
}

// seen is a cell of the table: how the calls ended, and a class of the longest wait. How a
// call ends that waits for the end of the outage is left to chance.
func (w *watch) seen(o span, late time.Duration) string {
	calls := w.during(o)
	if len(calls) == 0 {
		return "no call"
	}
	results := map[string]bool{}
	wait := shortWait
	for _, c := range calls {
		results[resultOf(c.err)] = true
		wait = max(wait, classOf(c, o, late))
	}
	if wait == endlessWait {
		return waits[wait]
	}
	return strings.Join(slices.Sorted(maps.Keys(results)), " or ") + ", " + waits[wait]
}

func resultOf(err error) string {
	switch {
	case err == nil:
		return "answered"
	case unavailable(err):
		return "`ErrUnavailable`"
	case strings.Contains(err.Error(), holdfast.ErrUnavailable.Error()):
		return "text of `ErrUnavailable`" // the library does not wrap it
	}
	return "error"
}

// The classes of waits are far apart, for a busy machine. The short one has room for some
// budgets of a cache, and the long one for all retries of go-redis.
const (
	shortWait = iota
	longWait
	endlessWait

	short = 200 * time.Millisecond
	long  = 4 * time.Second
)

var waits = [...]string{"< 0.2 s", "0.2 to 4 s", "waits until it is back"}

func classOf(c call, o span, late time.Duration) int {
	switch took := c.end.Sub(c.begin); {
	case c.end.After(o.end) || took > long:
		return endlessWait
	case took > short+2*late:
		return longWait
	}
	return shortWait
}

// Each program, on a plain client and on one with a cache, goes through both outages.
// docs/PROGRAMS.md has the table.
func TestWhatProgramsSeeOfAnOutageIsWhatTheDocumentsSay(t *testing.T) {
	redistest.Long(t)
	rows := make([][]row, len(outages))
	for i, o := range outages {
		t.Run(o.name, func(t *testing.T) { rows[i] = rowsOf(t, o) })
	}
	if t.Failed() {
		return
	}
	var table strings.Builder
	fmt.Fprintln(&table, "| Program | Operation | Killed: plain | with the cache | Stopped: plain | with the cache |")
	fmt.Fprintln(&table, "|---|---|---|---|---|---|")
	for i, killed := range rows[0] {
		fmt.Fprintf(&table, "| %s | %s | %s |\n", killed.operation, killed.cells, rows[1][i].cells)
	}
	compareTable(t, table.String())
}

// A row has the cells of an operation and an outage: on a plain client, with the cache.
type row struct{ operation, cells string }

func rowsOf(t *testing.T, o outage) (rows []row) {
	var bare, cached []*party
	for _, p := range programs {
		bare, cached = append(bare, newParty(t, p, false)), append(cached, newParty(t, p, true))
	}
	late := suffer(t, slices.Concat(bare, cached), o)
	for i, p := range programs {
		for j, w := range cached[i].watches {
			seen := w.seen(cached[i].outage, late)
			w.asPromised(t, cached[i], seen)
			rows = append(rows, row{
				p.library + " | " + w.name,
				bare[i].watches[j].seen(bare[i].outage, late) + " | " + seen,
			})
		}
	}
	return rows
}

// asPromised checks what must hold with a cache whatever the document says.
func (w *watch) asPromised(t *testing.T, p *party, cell string) {
	want := "answered, "
	if w.alone {
		want = "`ErrUnavailable`, "
	}
	if want += waits[shortWait]; !strings.HasSuffix(cell, want) || strings.Contains(cell, " or ") {
		t.Errorf("%s: %s: %s; want %s", p.name, w.name, cell, want)
	}
	calls := w.during(p.outage)
	took := make([]time.Duration, len(calls))
	for i, c := range calls {
		took[i] = c.end.Sub(c.begin)
	}
	slices.Sort(took)
	if half := took[len(took)/2]; half > pause {
		t.Errorf("%s: %s: half of the calls took %v or more", p.name, w.name, half)
	}
}

func compareTable(t *testing.T, table string) {
	const file, begins, ends = "../../docs/PROGRAMS.md", "<!-- table: go-redis -->\n", "<!-- end: go-redis -->"
	text, err := os.ReadFile(file)
	must(t, err)
	head, rest, ok := strings.Cut(string(text), begins)
	got, tail, ok2 := strings.Cut(rest, ends)
	switch {
	case !ok || !ok2:
		t.Fatalf("%s has no table of go-redis", file)
	case got == table:
	case os.Getenv("HOLDFAST_UPDATE") == "1":
		must(t, os.WriteFile(file, []byte(head+begins+table+ends+tail), 0o644))
	default:
		t.Errorf("%s says otherwise; HOLDFAST_UPDATE=1 writes what holds:\n%s", file, table)
	}
}
