package main

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast/internal/redistest"
)

// TestMain makes this binary the process of a contender, too.
func TestMain(m *testing.M) {
	if os.Getenv(jobVariable) != "" {
		os.Exit(work(os.Stdout, os.Stderr))
	}
	os.Exit(redistest.Run(m))
}

// needServer skips the test where there is no redis-server, unless one is required.
func needServer(t *testing.T) {
	t.Helper()
	if !redistest.Available() {
		redistest.Start(t)
	}
}

func TestEachContenderOfEachRowRuns(t *testing.T) {
	needServer(t)
	var out, log bytes.Buffer
	p := plan{turns: 5, quick: true, svg: t.TempDir(), out: &out, log: &log}
	if err := p.choose("", "", true); err != nil {
		t.Fatal(err)
	}
	if len(p.rows) != len(rows()) {
		t.Fatalf("%d of %d rows were chosen", len(p.rows), len(rows()))
	}
	if err := p.run(t.Context()); err != nil {
		t.Fatalf("%v\n%s", err, log.String())
	}
	report := out.String()
	for _, r := range p.rows {
		_, section, found := strings.Cut(report, "## "+r.name+": ")
		if !found {
			t.Errorf("the report has no row %s", r.name)
			continue
		}
		section, _, _ = strings.Cut(section, "\n## ")
		for _, c := range r.contenders {
			if !strings.Contains(section, " | "+c.name+" | ") {
				t.Errorf("%s has no %s", r.name, c.name)
			}
		}
		if !strings.Contains(section, " | 1.000 |") && !strings.Contains(section, " | 1.000 | ") {
			t.Errorf("%s has no ratio of the baseline to itself", r.name)
		}
		plots, err := filepath.Glob(filepath.Join(p.svg, "speed-"+r.name+"*.svg"))
		if err != nil || len(plots) == 0 {
			t.Errorf("%s has no plot: %v", r.name, err)
		}
		for _, plot := range plots {
			b, err := os.ReadFile(plot)
			if err != nil {
				t.Fatal(err)
			}
			wellFormed(t, plot, b)
		}
	}
}

func TestABaselineIsAContenderOfItsRow(t *testing.T) {
	names := map[string]bool{}
	for _, r := range rows() {
		if names[r.name] {
			t.Errorf("two rows are named %s", r.name)
		}
		names[r.name] = true
		seen := map[string]bool{}
		for _, c := range r.contenders {
			if seen[c.name] {
				t.Errorf("%s has two contenders %s", r.name, c.name)
			}
			seen[c.name] = true
		}
		if !seen[r.baseline] {
			t.Errorf("%s has no contender %q, its baseline", r.name, r.baseline)
		}
	}
}

func TestRowsAndContendersAreChosenByName(t *testing.T) {
	var p plan
	if err := p.choose("hit,set", "holdfast,otter", false); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range p.rows {
		for _, c := range r.contenders {
			got = append(got, r.name+" "+c.name)
		}
	}
	if s := strings.Join(got, ", "); s != "hit holdfast, hit otter, set holdfast" {
		t.Errorf("chosen were %s", s)
	}
	for _, wrong := range []struct{ row, contender string }{
		{"nonesuch", ""}, {"", "nonesuch"}, {"set", "otter"}, {"hit-huge", ""},
	} {
		if err := new(plan).choose(wrong.row, wrong.contender, false); err == nil {
			t.Errorf("-row %q -contender %q was accepted", wrong.row, wrong.contender)
		}
	}
	var all plan
	if err := all.choose("", "", false); err != nil {
		t.Fatal(err)
	}
	for _, r := range all.rows {
		if r.huge {
			t.Errorf("%s runs without -huge", r.name)
		}
	}
}

func TestAContenderThatFailsIsReportedAndHoldsUpNoOther(t *testing.T) {
	r := rows()[1]
	r.contenders = append([]contender{{name: "nonesuch"}}, r.contenders[1])
	var out bytes.Buffer
	p := plan{rows: []row{r}, turns: 1, quick: true, out: &out, log: io.Discard}
	if err := p.run(t.Context()); err == nil || !strings.Contains(err.Error(), "1 measurements failed") {
		t.Errorf("the error is %v", err)
	}
	for _, want := range []string{"Failed: nonesuch, turn 1:", `no contender "nonesuch"`, "| " + r.contenders[1].name + " |"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the report has no %q:\n%s", want, out.String())
		}
	}
}

func TestARatioIsOfTheSameTurn(t *testing.T) {
	at := point{X: 1}
	one := func(v float64) []sample { return []sample{{at, map[string]float64{"time": v}}} }
	r := result{row: row{axis: "callers", baseline: "b", contenders: []contender{{name: "a"}, {name: "b"}}}, found: map[string][]map[point]sample{}}
	// The machine gets ten times as slow, and a measurement fails.
	r.add("a", one(20))
	r.add("b", one(10))
	r.add("a", one(200))
	r.add("b", nil)
	r.add("a", one(3300))
	r.add("b", one(1100))
	if got := r.ratios("a", at, "time"); len(got) != 2 || got[0] != 2 || got[1] != 3 {
		t.Errorf("the ratios are %v, want 2 and 3", got)
	}
	var out bytes.Buffer
	r.write(&out)
	for _, want := range []string{
		"| callers | contender | time/op | time/op to b |\n|---|---|---|---|\n",
		"| 1 | a | 200 ns | 2.500 (2.000-3.000) |", "| 1 | b | 555 ns | 1.000 (1.000-1.000) |",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the table has no %q:\n%s", want, out.String())
		}
	}
}

func TestFiguresArePrintedInTheirUnits(t *testing.T) {
	for _, c := range []struct {
		unit unit
		v    float64
		want string
	}{
		{nanoseconds, 57.4, "57 ns"}, {nanoseconds, 1234, "1.23 µs"}, {nanoseconds, 82_000_000, "82 ms"}, {nanoseconds, 4.6e9, "4.6 s"},
		{byteCount, 411.3, "411 B"}, {count, 0.04, "0"}, {count, 5.96, "6"}, {count, 1_000_000, "1000000"}, {fraction, 0.7821, "0.782"},
	} {
		if got := c.unit.format([]float64{c.v}); got != c.want {
			t.Errorf("%v is printed as %q, want %q", c.v, got, c.want)
		}
	}
	if got := nanoseconds.format(nil); got != "" {
		t.Errorf("no figure is printed as %q", got)
	}
}

func TestEachOperationHasANumberOfItsOwn(t *testing.T) {
	loads := []load{{callers: 1, ops: 1000, warm: 100, every: 64}, {callers: 7, ops: 1000, warm: 10, every: 1}, {callers: 64, ops: 3, warm: 1, every: 1}}
	for _, quick := range []bool{false, true} {
		j := &job{Quick: quick}
		var mu sync.Mutex
		seen := map[int]bool{}
		s := subject{per: 10, op: func(n int) error {
			mu.Lock()
			defer mu.Unlock()
			if seen[n] {
				t.Errorf("two operations have the number %d", n)
			}
			seen[n] = true
			return nil
		}}
		var m meter
		all, err := s.measure(j, &m, "", loads)
		if err != nil || len(all) != len(loads) {
			t.Fatal(len(all), err)
		}
		if n := operations(j, loads); m.next > n || len(seen) != m.next {
			t.Errorf("%d operations had numbers up to %d; the bound is %d", len(seen), m.next, n)
		}
	}
}

func TestAnOperationsCostIsMeasured(t *testing.T) {
	var m meter
	var sink []byte
	var mu sync.Mutex
	found, err := m.run(load{callers: 2, ops: 40, every: 3}, func(int) error {
		mu.Lock()
		sink = make([]byte, 1000)
		mu.Unlock()
		time.Sleep(time.Millisecond)
		return nil
	}, func() { time.Sleep(20 * time.Millisecond) })
	if err != nil || len(sink) == 0 {
		t.Fatal(err)
	}
	// Twenty sleeps of each caller, and the one in the end.
	if found["time"] < 1e6 {
		t.Errorf("an operation takes %v ns: neither caller's 20 ms nor the end is counted", found["time"])
	}
	if found["p50"] < 1e6 || found["p99"] < found["p50"] {
		t.Errorf("p50 is %v, p99 %v", found["p50"], found["p99"])
	}
	if found["allocs"] < 1 {
		t.Errorf("%v allocations", found["allocs"])
	}
	broken := errors.New("broken")
	if _, err := m.run(load{callers: 4, ops: 8, every: 1}, func(int) error { return broken }, nil); !errors.Is(err, broken) {
		t.Errorf("the error is %v", err)
	}
}

func TestTheCPUOfAnOperationIsCounted(t *testing.T) {
	var m meter
	var x uint64
	found, err := m.run(load{callers: 1, ops: 20, every: 1}, func(int) error {
		for i := range uint64(3_000_000) {
			x = x*31 + i
		}
		return nil
	}, nil)
	if err != nil || found["cpu"] <= 0 {
		t.Errorf("%v ns of CPU, %v (%d)", found["cpu"], err, x)
	}
}

func TestAReadThatIsNoConfirmedHitIsReported(t *testing.T) {
	server := redistest.Start(t)
	server.MustDo("SET", "speed:0000000000", string(newValue()))
	c, err := connect(server.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx := context.Background()
	check := allLocal(c)
	if _, err := c.Get(ctx, newKeys(1).at(0)); err != nil {
		t.Fatal(err)
	}
	if check() == nil {
		t.Error("a read that went to Redis passed as a hit")
	}
	if check, err = confirm(c, newKeys(1)); err != nil {
		t.Fatal(err)
	}
	remote := allRemote(c)
	if _, err := c.Get(ctx, newKeys(1).at(0)); err != nil {
		t.Fatal(err)
	}
	if err := check(); err != nil {
		t.Errorf("a hit of a confirmed copy: %v", err)
	}
	if remote() == nil {
		t.Error("a hit passed as a call that went to Redis")
	}
}

func TestTracesAreTheSameEachTime(t *testing.T) {
	const length = 70_000
	first, second := traces(length), traces(length)
	for i, tr := range first {
		if len(tr.keys) != length {
			t.Errorf("%s has %d reads", tr.name, len(tr.keys))
		}
		reads := map[uint32]int{}
		for j, k := range tr.keys {
			if second[i].keys[j] != k {
				t.Fatalf("read %d of %s is %d and %d", j, tr.name, k, second[i].keys[j])
			}
			if int(k) >= tr.span {
				t.Fatalf("%s reads key %d of %d", tr.name, k, tr.span)
			}
			reads[k]++
		}
		if tr.name != "scan + Zipf" {
			continue
		}
		scanned := 0
		for k, n := range reads {
			if k >= zipfKeys {
				scanned++
				if n != 1 {
					t.Errorf("key %d of a scan is read %d times", k, n)
				}
			}
		}
		if scanned != 2*scanLength {
			t.Errorf("%d keys of scans among %d reads", scanned, length)
		}
	}
}

// oldest is a cache that evicts its oldest entry.
type oldest struct {
	room  int
	order []string
	has   map[string]bool
}

func (o *oldest) get(key string) bool { return o.has[key] }
func (o *oldest) settle()             {}
func (o *oldest) close()              {}

func (o *oldest) put(key string, _ []byte) {
	if len(o.order) == o.room {
		delete(o.has, o.order[0])
		o.order = o.order[1:]
	}
	o.order, o.has[key] = append(o.order, key), true
}

func TestTheHitRatioIsThatOfTheLastThreeQuarters(t *testing.T) {
	// Four keys in turns: all missed, or, with room, missed once.
	tr := trace{keys: []uint32{0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3}, span: 4}
	for room, want := range map[int]float64{3: 0, 4: 1} {
		if got := tr.play(&oldest{room: room, has: map[string]bool{}}, newKeys(4)); got != want {
			t.Errorf("with room for %d of 4 keys the ratio is %v, want %v", room, got, want)
		}
	}
}

func TestASizeIsFoundThatKeepsTheWantedEntries(t *testing.T) {
	// Here a unit of size is worth an entry, and 100 are lost.
	l := local{name: "oldest", unit: 3, open: func(size int) (cache, error) {
		return &oldest{room: max(size-100, 1), has: map[string]bool{}}, nil
	}}
	size, err := calibrate(l, 2000, byNumber)
	if err != nil || math.Abs(float64(size-100)-2000) > 40 {
		t.Errorf("size %d, %v", size, err)
	}
	l.open = func(int) (cache, error) { return &oldest{room: 7, has: map[string]bool{}}, nil }
	if _, err := calibrate(l, 200, byNumber); err == nil {
		t.Error("a cache that has no size was fitted")
	}
}

func TestKeysAreApartAndPopularOnesScattered(t *testing.T) {
	all := newKeys(1000)
	seen := map[string]bool{}
	for i := range all.len() {
		seen[all.at(i)] = true
	}
	if len(seen) != 1000 {
		t.Errorf("%d keys of 1000", len(seen))
	}
	for _, n := range []int{1000, 20_000, zipfKeys, 1_000_000} {
		hit := make([]bool, n)
		for rank := range n {
			hit[scatter(uint64(rank), n)] = true
		}
		for i := range hit {
			if !hit[i] {
				t.Fatalf("no rank below %d is mapped to %d", n, i)
			}
		}
	}
}

func wellFormed(t *testing.T, name string, b []byte) {
	t.Helper()
	d := xml.NewDecoder(bytes.NewReader(b))
	for {
		token, err := d.Token()
		if err == io.EOF {
			return
		}
		if err != nil {
			t.Errorf("%s is no XML: %v", name, err)
			return
		}
		e, ok := token.(xml.StartElement)
		if !ok {
			continue
		}
		for _, a := range e.Attr {
			if strings.Contains(a.Value, "NaN") || strings.Contains(a.Value, "Inf") || a.Name.Local == "width" && strings.HasPrefix(a.Value, "-") {
				t.Errorf("%s: %s of %s is %q", name, a.Name.Local, e.Name.Local, a.Value)
			}
		}
	}
}
