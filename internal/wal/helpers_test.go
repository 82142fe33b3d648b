package wal

import (
	"fmt"
	"hash/crc32"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

// contentsOf opens a directory and returns what it holds, and how it went. The Log
// is closed again.
func contentsOf(t testing.TB, fs fileSystem) (map[string]string, Report) {
	t.Helper()
	l, got, report := mustOpen(t, fs, Options{})
	if err := l.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	return got, report
}

func mustOpen(t testing.TB, fs fileSystem, o Options) (*Log, map[string]string, Report) {
	t.Helper()
	got := make(map[string]string)
	o, err := o.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	l, report, err := open(fs, o, func(key string, payload []byte) {
		if _, ok := got[key]; ok {
			t.Fatalf("%q was loaded twice", key)
		}
		got[key] = string(payload)
	})
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	if report.Keys != len(got) {
		t.Fatalf("Report.Keys is %d, loaded were %d", report.Keys, len(got))
	}
	return l, got, report
}

func mustPut(t testing.TB, l *Log, key string, seq uint64, payload string) {
	t.Helper()
	if err := l.Put(key, seq, []byte(payload)); err != nil {
		t.Errorf("Put(%q): %v", key, err) // not Fatalf: it may be another goroutine
	}
}

func mustDrop(t testing.TB, l *Log, key string, seq uint64) {
	t.Helper()
	if err := l.Drop(key, seq); err != nil {
		t.Fatalf("Drop(%q): %v", key, err)
	}
}

func mustClose(t testing.TB, l *Log) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
}

// all yields a map as Compact wants it, every number being seq.
func all(m map[string]string, seq uint64) func(func(string, uint64, []byte) bool) {
	return func(yield func(string, uint64, []byte) bool) {
		for _, key := range slices.Sorted(maps.Keys(m)) {
			if !yield(key, seq, []byte(m[key])) {
				return
			}
		}
	}
}

func wantContents(t testing.TB, got, want map[string]string) {
	t.Helper()
	if !maps.Equal(got, want) {
		t.Fatalf("loaded %s, want %s", brief(got), brief(want))
	}
}

func brief(m map[string]string) string {
	s := fmt.Sprintf("%d keys", len(m))
	for i, key := range slices.Sorted(maps.Keys(m)) {
		if i == 20 {
			return s + " ..."
		}
		s += fmt.Sprintf(" %q=%.20q", key, m[key])
	}
	return s
}

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0)) }

func sumBytes(b []byte) uint32 { return crc32.Checksum(b, castagnoli()) }
