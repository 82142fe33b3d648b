package holdfast

import (
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/holdfast-cache/holdfast/internal/house"
)

// How tangled the code may be is bounded here. A bound stands where the code stands:
// a change that improves a figure lowers its bound with it. The figures are printed by
//
//	go run ./internal/house/report

// bounds are the most that a package may have.
type bounds struct {
	files    int     // without tests
	longest  int     // lines of a file
	edges    float64 // other files that a file uses, on average
	knot     int     // files in the largest strongly connected group, by any use
	calls    int     // the same, by calls alone
	shadows  int     // locals that have the name of a package-level declaration
	pronouns float64 // what, who, whoever, whatever in 100 words of comments
}

var (
	// The target: {45, 700, 6, 20, 20, 0, 0.3}.
	rootBounds = bounds{files: 73, longest: 703, edges: 7.8, knot: 53, calls: 43, shadows: 0, pronouns: 0.05}
	// Of each package under internal. The target: {45, 700, 6, 14, 14, 0, 0.3}.
	internalBounds = bounds{files: 45, longest: 700, edges: 6, knot: 14, calls: 14, shadows: 0, pronouns: 0.8}
)

var loadAll = sync.OnceValues(func() ([]*house.Package, error) { return house.Load(".", ".", "./internal/...") })

// packages are the root and those under internal, type-checked once for all tests.
func packages(t *testing.T) []*house.Package {
	t.Helper()
	all, err := loadAll()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// root is the root package.
func root(t *testing.T) *house.Package {
	t.Helper()
	for _, p := range packages(t) {
		if p.Path == modulePath {
			return p
		}
	}
	t.Fatalf("there is no package %s", modulePath)
	return nil
}

func TestTheCodeIsNoMoreTangledThanItsBounds(t *testing.T) {
	for _, p := range packages(t) {
		most, f := internalBounds, p.Measure()
		if p.Path == modulePath {
			most = rootBounds
		}
		check := func(name string, got, bound float64, where ...string) {
			if got > bound {
				t.Errorf("%s: %s is %.2f, over %.2f: %s", p.Path, name, got, bound, strings.Join(where, " "))
			}
		}
		check("files", float64(f.Files), float64(most.files))
		check("the longest file", float64(f.Longest), float64(most.longest), f.LongestFile)
		check("edges a file", f.EdgesPerFile(), most.edges)
		check("the knot", float64(len(f.Knot)), float64(most.knot), f.Knot...)
		check("the knot by calls", float64(len(f.CallKnot)), float64(most.calls), f.CallKnot...)
		check("pronouns", f.PronounsPer100(), most.pronouns)
		var shadows []string
		for _, s := range f.Shadows {
			shadows = append(shadows, s.At+" "+s.Name)
		}
		check("shadows", float64(len(shadows)), float64(most.shadows), shadows...)
	}
}

// A method name that four types have says little about any of them, and a search for
// it finds all four.
func TestAMethodNameHasFewOwners(t *testing.T) {
	const most = 3
	// Interfaces of others ask for the first six; the rest mean the same everywhere.
	shared := []string{"Close", "Decode", "Encode", "Error", "String", "Unwrap", "add", "close", "len", "run", "validate"}
	// Names that have more owners today, and how many. The target is that none is left.
	crowded := map[string]int{
		"ask": 6, "await": 4, "begin": 4, "call": 4, "dial": 4, "do": 5, "end": 5, "note": 5, "wake": 4,
	}
	owners := root(t).Owners()
	for name, types := range owners {
		bound := max(most, crowded[name])
		if len(types) > bound && !slices.Contains(shared, name) {
			t.Errorf("%d types have a method %s, over %d: %v", len(types), name, bound, types)
		}
	}
	for name, n := range crowded {
		if got := len(owners[name]); got < n {
			t.Errorf("%d types have a method %s, no longer %d: lower it in the list, or remove it", got, name, n)
		}
	}
}
