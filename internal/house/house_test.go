package house

import (
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
)

// load writes a module of one package and loads it.
func load(t *testing.T, files map[string]string) *Package {
	t.Helper()
	dir := t.TempDir()
	files = maps.Clone(files)
	files["go.mod"] = "module example.com/p\n\ngo 1.25\n"
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	packages, err := Load(dir, ".")
	if err != nil {
		t.Fatal(err)
	}
	if len(packages) != 1 {
		t.Fatalf("%d packages", len(packages))
	}
	return packages[0]
}

func same(t *testing.T, name string, got, want any) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s: %v, want %v", name, got, want)
	}
}

func TestAUseIsOfANameAFieldOrAMethodOfAnotherFile(t *testing.T) {
	p := load(t, map[string]string{
		"a.go": `package p
import "strings"
type A struct { f int; in struct { deep int } }
func (a *A) m() {}
func (a *A) self() { a.m(); a.f++ }
type I interface { do() }
var _ = strings.ToUpper
`,
		"b.go": `package p
func field(x *A) { x.f = 1; x.in.deep = 2 }
func method(x *A) { x.m() }
func value(x *A) func() { return x.self }
func through(i I) { i.do() }
`,
		"c.go": `package p
type G[T any] struct { v T }
func (g *G[T]) get() T { return g.v }
func free[T any](t T) T { return t }
`,
		"d.go": `package p
func instances() int { g := &G[int]{v: 1}; return free[int](g.get()) }
`,
		"e_test.go": `package p
func unseen() { instances() }
`,
	})
	same(t, "uses", p.Uses(), []Use{
		{"b.go", "a.go", "A", false},
		{"b.go", "a.go", "A.deep", false},
		{"b.go", "a.go", "A.f", false},
		{"b.go", "a.go", "A.in", false},
		{"b.go", "a.go", "A.m", true},
		{"b.go", "a.go", "A.self", false},
		{"b.go", "a.go", "I", false},
		{"b.go", "a.go", "I.do", true},
		{"d.go", "c.go", "G", false},
		{"d.go", "c.go", "G.get", true},
		{"d.go", "c.go", "G.v", false},
		{"d.go", "c.go", "free", true},
	})
	same(t, "calls", Edges(p.Uses(), true), map[string][]string{"b.go": {"a.go"}, "d.go": {"c.go"}})
	f := p.Measure()
	same(t, "files", f.Files, 4)
	same(t, "edges", f.Edges, 2)
	same(t, "main type", f.MainType, "A")
	same(t, "its methods", f.MainTypeMethods, 2)
}

func TestAKnotIsAStronglyConnectedGroup(t *testing.T) {
	edges := map[string][]string{
		"a": {"b"}, "b": {"c"}, "c": {"a", "d"},
		"d": {"e"}, "e": {"d", "f"},
		"f": {"g"},
	}
	same(t, "knots", Knots(edges), [][]string{{"a", "b", "c"}, {"d", "e"}})
	same(t, "no edges", len(Knots(nil)), 0)
}

func TestCallsMakeASmallerKnotThanUses(t *testing.T) {
	f := load(t, map[string]string{
		"a.go": "package p\ntype T struct{}\nfunc a() { b() }\n",
		"b.go": "package p\nfunc b() { c() }\n",
		"c.go": "package p\nfunc c() { b(); var t T; _ = t }\n",
	}).Measure()
	same(t, "knot", f.Knot, []string{"a.go", "b.go", "c.go"})
	same(t, "by calls", f.CallKnot, []string{"b.go", "c.go"})
}

func TestALocalOfAPackageLevelNameIsAShadow(t *testing.T) {
	p := load(t, map[string]string{"a.go": `package p
type item struct { key int }
var key, hash int
type free struct { hash int }
func (item item) method(key int) (hash int) {
	hash, other := 1, 2
	for key := range other { _ = key }
	return func(free int) int { return free }(hash)
}
`})
	var got []string
	for _, s := range p.Shadows() {
		got = append(got, s.Name+" "+s.At)
	}
	same(t, "shadows", got, []string{"item a.go:5", "key a.go:5", "hash a.go:5", "key a.go:7", "free a.go:8"})
}

func TestPronounsAreCountedInCommentsAlone(t *testing.T) {
	pronouns, words := load(t, map[string]string{
		"a.go": "// Package p says what it does.\npackage p\n\n// Who comes, Whatever comes: somewhat.\nconst what = \"who\"\n",
	}).Pronouns()
	same(t, "pronouns", pronouns, 3)
	same(t, "words", words, 11)
}

func TestALineOfCodeHasATokenThatIsNoComment(t *testing.T) {
	text := "package p\n\n// no\n/* no\nno */\nvar x = `one\n\ntwo` // three lines\n"
	same(t, "lines", codeLines([]byte(text)), 4)
}

func TestAFileOfAnotherPlatformCountsAsAFileOnly(t *testing.T) {
	p := load(t, map[string]string{
		"a.go": "package p\nfunc a() {}\n",
		"b.go": "//go:build never\n\npackage p\nfunc b() { a() }\n",
	})
	same(t, "files", p.Measure().Files, 2)
	same(t, "uses", len(p.Uses()), 0)
}

func TestMethodsAreListedByTypeAndByName(t *testing.T) {
	p := load(t, map[string]string{"a.go": `package p
type A struct{}
func (A) x() {}
func (A) y() {}
type B struct{ A }
func (B) x() {}
`})
	same(t, "by type", p.Methods(), map[string][]string{"A": {"x", "y"}, "B": {"x"}})
	owners := p.Owners()
	same(t, "by name", slices.Sorted(maps.Keys(owners)), []string{"x", "y"})
	same(t, "owners of x", owners["x"], []string{"A", "B"})
}
