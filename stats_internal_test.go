package holdfast

import (
	"go/ast"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/holdfast-cache/holdfast/internal/latency"
	"github.com/holdfast-cache/holdfast/internal/link"
	"github.com/holdfast-cache/holdfast/internal/local"
)

// The table, the struct and the comments of its fields say the same.
func TestEachFieldOfStatsHasOneRow(t *testing.T) {
	comments := map[string]string{}
	for _, s := range sources(t, ".", func(name string) bool { return name == "stats.go" }) {
		ast.Inspect(s.File, func(n ast.Node) bool {
			spec, ok := n.(*ast.TypeSpec)
			if !ok || spec.Name.Name != "Stats" {
				return true
			}
			for _, f := range spec.Type.(*ast.StructType).Fields.List {
				comments[f.Names[0].Name] = strings.TrimSpace(f.Comment.Text())
			}
			return false
		})
	}
	fields := reflect.TypeFor[Stats]()
	if fields.NumField() != len(statTable) {
		t.Fatalf("Stats has %d fields, statTable %d rows", fields.NumField(), len(statTable))
	}
	for i, row := range statTable {
		switch f := fields.Field(i); {
		case f.Name != row.name:
			t.Errorf("row %d of statTable is %s, field %d of Stats %s", i, row.name, i, f.Name)
		case row.help != comments[f.Name] || !strings.HasSuffix(row.help, "."):
			t.Errorf("%s: the help is %q, the comment %q; want the same sentence", f.Name, row.help, comments[f.Name])
		case row.unit == "" || row.read == nil:
			t.Errorf("%s has no unit, or is not read", f.Name)
		case row.gauge != strings.Contains(row.help, " now"):
			t.Errorf("%s: a gauge, and it alone, tells of now: %q", f.Name, row.help)
		case !row.gauge && f.Type.Kind() != reflect.Uint64:
			t.Errorf("%s is a counter and no uint64", f.Name)
		}
	}
}

// Each histogram gets a number of durations of its own, and Latencies must show it where it belongs.
func TestEachLatencyIsReadFromItsOwnHistogram(t *testing.T) {
	c, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	histograms := map[string]*latency.Histogram{"dial": &c.stats.Dialled, "load": &c.stats.loadTook, "lease": &c.stats.leaseTook}
	for kind := range link.Kind(link.Kinds) {
		histograms[kind.String()] = &c.stats.Took[kind]
	}
	shown := reflect.ValueOf(new(Latencies)).Elem()
	if shown.NumField() != len(histograms) {
		t.Fatalf("%d histograms, and %d are shown", len(histograms), shown.NumField())
	}
	for i := range shown.NumField() {
		h := histograms[strings.ToLower(shown.Type().Field(i).Name)]
		if h == nil {
			t.Fatalf("%s has no histogram", shown.Type().Field(i).Name)
		}
		for range i + 1 {
			h.Record(time.Millisecond)
		}
	}
	shown = reflect.ValueOf(c.Latencies())
	for i := range shown.NumField() {
		if l := shown.Field(i).Interface().(Latency); l.Count() != uint64(i+1) || l.Sum != time.Duration(i+1)*time.Millisecond {
			t.Errorf("%s has %d durations, in all %v; want %d of 1 ms", shown.Type().Field(i).Name, l.Count(), l.Sum, i+1)
		}
	}
	if n := testing.AllocsPerRun(10, func() { c.Latencies() }); n != 0 {
		t.Errorf("a snapshot allocates %v times", n)
	}
}

// Each counter gets a number of its own, and Stats must show it where it belongs.
func TestEachFieldOfStatsIsReadFromItsOwnCounter(t *testing.T) {
	c, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	want := map[string]uint64{}
	n := uint64(1 << 20)
	next := func() uint64 { n += 1 << 20; return n }

	stats := reflect.ValueOf(&c.stats).Elem()
	aside := map[string]string{ // of another name, or of none
		"batchHits": "LocalHits", "asides": "", "Dials": "DialAttempts",
	}
	for _, f := range reflect.VisibleFields(stats.Type()) {
		if f.Anonymous || f.Type != reflect.TypeFor[atomic.Uint64]() {
			continue // its fields follow, or it is a histogram: see below
		}
		counter := (*atomic.Uint64)(unsafe.Pointer(stats.FieldByIndex(f.Index).UnsafeAddr()))
		counter.Store(next())
		field := f.Name
		name, ok := aside[field]
		if !ok {
			name = strings.ToUpper(field[:1]) + field[1:]
		}
		want[name] += n
	}
	delete(want, "")

	// Those that are counted elsewhere.
	c.local.CountHit(c.local.Hash("k"))
	want["LocalHits"]++
	c.local.Evicted.Store(next())
	want["LocalEvicted"] = n
	c.local.Dropped.Store(next())
	want["LocalDropped"] = n
	c.journal.Keys.Store(int64(next()))
	want["JournalKeys"] = n
	c.journal.Bytes.Store(int64(next()))
	want["JournalBytes"] = n
	c.journal.Held.N.Store(int64(next()))
	want["HeldKeys"] = n
	for _, key := range []string{"a", "b"} {
		c.local.Put(c.local.Hash(key), local.NewEntry(key, []byte("v"), local.Freshness{Scope: &c.local.StandaloneScope}))
	}
	want["LocalBytes"], want["LocalEntries"] = uint64(c.local.Bytes()), 2

	s := c.Stats()
	c.journal.Keys.Store(0)
	var names []string
	for st := range s.All() {
		names = append(names, st.Name)
		if st.Value != want[st.Name] || st.Value == 0 {
			t.Errorf("%s is %d, want %d", st.Name, st.Value, want[st.Name])
		}
		if got := reflect.ValueOf(s).FieldByName(st.Name); got.CanInt() && uint64(got.Int()) != st.Value || got.CanUint() && got.Uint() != st.Value {
			t.Errorf("%s is %v in Stats, %d in All", st.Name, got, st.Value)
		}
		delete(want, st.Name)
	}
	if len(want) > 0 {
		t.Errorf("counted and not shown: %v", want)
	}
	if slices.Contains(names, "") || len(names) != len(statTable) {
		t.Errorf("All yields %v", names)
	}
}
