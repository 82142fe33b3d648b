package holdfast

import (
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/holdfast-cache/holdfast/internal/house"
)

// How tangled the code may be is bounded here. A bound of the root stands where the code
// stands: a change that improves a figure lowers its bound with it. The figures are printed by
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
	rootBounds = bounds{files: 45, longest: 600, edges: 5.7, knot: 11, calls: 10, shadows: 0, pronouns: 0.05}
	// Of each package under internal.
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

// A method name that four types of a package have says little about any of them, and a search
// for it finds all four.
func TestAMethodNameHasFewOwners(t *testing.T) {
	const most = 3
	// Interfaces of others ask for the first six; the rest mean the same everywhere.
	shared := []string{"Close", "Decode", "Encode", "Error", "String", "Unwrap", "Addr", "add", "close", "len", "run", "validate"}
	for _, p := range packages(t) {
		for name, types := range p.Owners() {
			if len(types) > most && !slices.Contains(shared, name) {
				t.Errorf("%s: %d types have a method %s, over %d: %v", p.Path, len(types), name, most, types)
			}
		}
	}
}
