package holdfast

import (
	"go/ast"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// The laws are in docs/DESIGN.md, each with the functions that keep it and the tests
// that fail without them. Comments cite them by number.

// law is a row of the table of laws.
type law struct {
	functions []string // Type.method, with the package's name before it outside the root
	tests     []string
}

func laws(t *testing.T) map[int]law {
	t.Helper()
	all := map[int]law{}
	row := regexp.MustCompile(`(?m)^\| (\d+) \| [^|]+ \| ([^|]+) \| ([^|]+) \|$`)
	for _, m := range row.FindAllStringSubmatch(designSection(t, "Laws"), -1) {
		n, _ := strconv.Atoi(m[1])
		if n != len(all)+1 {
			t.Errorf("law %d stands where law %d should", n, len(all)+1)
		}
		all[n] = law{quoted(m[2]), quoted(m[3])}
	}
	return all
}

// quoted returns the parts of a text that stand between backquotes.
func quoted(text string) []string {
	var names []string
	for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(text, -1) {
		names = append(names, m[1])
	}
	return names
}

func TestEachLawNamesItsFunctionsAndItsTests(t *testing.T) {
	all := laws(t)
	if len(all) < 10 {
		t.Fatalf("docs/DESIGN.md has %d laws", len(all))
	}
	functions := map[string]bool{}
	for _, p := range packages(t) {
		prefix := ""
		if p.Path != modulePath {
			prefix = p.Types.Name() + "."
		}
		for _, name := range p.Types.Scope().Names() {
			functions[prefix+name] = true
		}
		for owner, methods := range p.Methods() {
			for _, name := range methods {
				functions[prefix+owner+"."+name] = true
			}
		}
	}
	tests := map[string]bool{}
	for _, dir := range append(slices.Collect(maps.Keys(rooms)), ".") {
		for _, s := range sources(t, dir, func(string) bool { return true }) {
			for _, d := range s.Decls {
				if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && !notTest(s.path) {
					tests[f.Name.Name] = true
				}
			}
		}
	}
	for n, l := range all {
		if len(l.functions) == 0 || len(l.tests) == 0 {
			t.Errorf("law %d names no function or no test", n)
		}
		for _, name := range l.functions {
			if !functions[name] {
				t.Errorf("law %d is kept by %s, which is not there", n, name)
			}
		}
		for _, name := range l.tests {
			if !tests[name] {
				t.Errorf("law %d is tested by %s, which is not there", n, name)
			}
		}
	}
}

func TestEachLawThatACommentCitesIsThere(t *testing.T) {
	all := laws(t)
	cited := regexp.MustCompile(`(?i)\blaws? (\d+)((?:,? and |, | or )(\d+))?`)
	walk(t, func(path string) {
		if !strings.HasSuffix(path, ".go") {
			return
		}
		for _, m := range cited.FindAllStringSubmatch(readFile(t, path), -1) {
			for _, number := range []string{m[1], m[3]} {
				n, err := strconv.Atoi(number)
				if _, ok := all[n]; err == nil && !ok {
					t.Errorf("%s cites law %d, which docs/DESIGN.md does not have", path, n)
				}
			}
		}
	})
}
