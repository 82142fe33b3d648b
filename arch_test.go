package holdfast

import (
	"bytes"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	gotoken "go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// What holds the package together is checked here, from its source: who may
// import what, who may start a goroutine, and that the documents say what the
// code says.

const modulePath = "github.com/holdfast-cache/holdfast"

// source is a parsed file.
type source struct {
	path string
	text []byte
	fset *gotoken.FileSet
	*ast.File
}

// sources parses the files of a directory of which want says yes.
func sources(t *testing.T, dir string, want func(name string) bool) []source {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []source
	for _, e := range entries {
		if e.IsDir() || !strings.HasSuffix(e.Name(), ".go") || !want(e.Name()) {
			continue
		}
		path := filepath.Join(dir, e.Name())
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		fset := gotoken.NewFileSet()
		f, err := parser.ParseFile(fset, path, text, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, source{path, text, fset, f})
	}
	if len(all) == 0 {
		t.Fatalf("%s has no such files", dir)
	}
	return all
}

// houseSources parses the root and the rooms under internal, without tests.
func houseSources(t *testing.T) []source {
	t.Helper()
	all := sources(t, ".", notTest)
	for _, dir := range slices.Sorted(maps.Keys(rooms)) {
		switch {
		case strings.HasPrefix(dir, "internal/house"), dir == "internal/redistest": // for tests
		case dir == "internal/resp", dir == "internal/wal": // know nothing of the house
		default:
			all = append(all, sources(t, dir, notTest)...)
		}
	}
	return all
}

func notTest(name string) bool { return !strings.HasSuffix(name, "_test.go") }

// at names a place for a message.
func (s source) at(n ast.Node) string { return s.fset.Position(n.Pos()).String() }

func (s source) imports() []string {
	paths := make([]string, len(s.Imports))
	for i, spec := range s.Imports {
		paths[i], _ = strconv.Unquote(spec.Path.Value)
	}
	return paths
}

// thirdParty says that an import is neither of the standard library nor ours.
func thirdParty(path string) bool {
	host, _, _ := strings.Cut(path, "/")
	return strings.Contains(host, ".") && path != modulePath && !strings.HasPrefix(path, modulePath+"/")
}

func TestEachDependencyIsImportedByItsOwnFilesAlone(t *testing.T) {
	want := map[string][]string{
		"github.com/sony/gobreaker/v2": {"breaker.go"},
		"github.com/redis/rueidis": {
			"client.go", "client_cached.go", "client_dedicated.go", "client_hooks.go", "client_listen.go", "client_own.go", "client_pass.go",
			"client_read.go", "client_recycle.go", "client_reply.go", "client_run.go", "client_write.go", "commands.go", "lease.go", "lifecycle.go",
			"listeners.go", "open.go", "options.go", "redis.go", "user_code.go", "write.go",
		},
	}
	got := map[string][]string{}
	for _, s := range sources(t, ".", notTest) {
		for _, path := range s.imports() {
			if thirdParty(path) {
				got[path] = append(got[path], s.path)
			}
		}
	}
	for _, path := range slices.Sorted(maps.Keys(got)) {
		if !slices.Equal(got[path], want[path]) {
			t.Errorf("%s is imported by %v; it should be by %v", path, got[path], want[path])
		}
	}
	for path := range want {
		if got[path] == nil {
			t.Errorf("nobody imports %s", path)
		}
	}
}

func TestOnlyTheGroupStartsGoroutines(t *testing.T) {
	for _, s := range houseSources(t) {
		if s.path == "internal/group/group.go" {
			continue
		}
		ast.Inspect(s.File, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GoStmt:
				t.Errorf("%s: a go statement; use group.Group.Spawn", s.at(n))
			case *ast.CallExpr:
				if f, ok := n.Fun.(*ast.SelectorExpr); ok && f.Sel.Name == "Go" {
					t.Errorf("%s: a goroutine; use group.Group.Spawn", s.at(n))
				}
			}
			return true
		})
	}
}

func TestOnlyTheCallGateSleeps(t *testing.T) {
	for _, s := range houseSources(t) {
		if s.path == "internal/inflight/gate.go" {
			continue
		}
		ast.Inspect(s.File, func(n ast.Node) bool {
			f, ok := n.(*ast.SelectorExpr)
			if !ok || f.Sel.Name != "Sleep" {
				return true
			}
			if pkg, ok := f.X.(*ast.Ident); ok && pkg.Name == "time" {
				t.Errorf("%s: time.Sleep cannot be interrupted; wait on a timer and a context", s.at(f))
			}
			return true
		})
	}
}

func TestNoStateAtPackageLevel(t *testing.T) {
	// Read by everybody, written by nobody.
	tables := []string{"replyClasses", "commandTexts", "leaseScript", "storeScript", "Check", "stateNames", "severity", "crcTable", "redisCommands", "statTable", "bounds", "starts"}
	// A lock, and nothing else: a loader of one Cache may wait for one of another.
	tables = append(tables, "graph")
	for _, s := range houseSources(t) {
		for _, d := range s.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Recv == nil && d.Name.Name == "init" {
					t.Errorf("%s: an init function", s.at(d))
				}
			case *ast.GenDecl:
				if d.Tok != gotoken.VAR {
					continue
				}
				for _, spec := range d.Specs {
					v := spec.(*ast.ValueSpec)
					for i, name := range v.Names {
						if slices.Contains(tables, name.Name) || len(v.Values) > i && isErrorOrFunc(v.Values[i]) {
							continue
						}
						t.Errorf("%s: %s is state at package level", s.at(v), name.Name)
					}
				}
			}
		}
	}
}

// isErrorOrFunc recognises errors.New(...), the error of another package, and a function literal.
func isErrorOrFunc(e ast.Expr) bool {
	switch e := e.(type) {
	case *ast.SelectorExpr:
		return strings.HasPrefix(e.Sel.Name, "Err")
	case *ast.FuncLit:
		return true
	case *ast.CallExpr:
		f, ok := e.Fun.(*ast.SelectorExpr)
		if !ok || f.Sel.Name != "New" {
			return false
		}
		pkg, ok := f.X.(*ast.Ident)
		return ok && pkg.Name == "errors"
	}
	return false
}

// A user should be able to hold the package's surface in mind.
func TestThePackageExportsFewNames(t *testing.T) {
	// A program of Typed values needs a dozen of them and few of the others.
	const most = 84
	var names []string
	add := func(id *ast.Ident) {
		if id.IsExported() {
			names = append(names, id.Name)
		}
	}
	for _, s := range sources(t, ".", notTest) {
		for _, d := range s.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Recv == nil {
					add(d.Name)
				}
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					switch spec := spec.(type) {
					case *ast.TypeSpec:
						add(spec.Name)
					case *ast.ValueSpec:
						for _, name := range spec.Names {
							add(name)
						}
					}
				}
			}
		}
	}
	if len(names) > most {
		t.Errorf("%d exported names, over %d: %v", len(names), most, names)
	}
}

// walk calls f for each file of the module that a person wrote.
func walk(t *testing.T, f func(path string)) {
	t.Helper()
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == ".git" || d.Name() == "testdata"):
			return filepath.SkipDir
		case d.Type().IsRegular():
			f(filepath.ToSlash(path))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestTheFileMapIsTheFilesOnDisk(t *testing.T) {
	design := readFile(t, "docs/DESIGN.md")
	_, section, found := strings.Cut(design, "\n## File map\n")
	if !found {
		t.Fatal("docs/DESIGN.md has no file map")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	mapped := map[string]bool{}
	for _, row := range regexp.MustCompile("(?m)^\\| `([^`]+\\.go)` \\|").FindAllStringSubmatch(section, -1) {
		if mapped[row[1]] {
			t.Errorf("the file map names %s twice", row[1])
		}
		mapped[row[1]] = true
	}
	walk(t, func(path string) {
		root := !strings.Contains(path, "/")
		if !strings.HasSuffix(path, ".go") || !notTest(path) || !root && !strings.HasPrefix(path, "internal/") {
			return
		}
		if !mapped[path] {
			t.Errorf("the file map of docs/DESIGN.md lacks %s", path)
		}
		delete(mapped, path)
	})
	for path := range mapped {
		t.Errorf("the file map of docs/DESIGN.md names %s, which is not there", path)
	}
}

func TestTheReadmeShowsCodeThatRuns(t *testing.T) {
	bodies := exampleBodies(t)
	blocks := regexp.MustCompile("(?ms)^```go([^\n]*)\n(.*?)^```$").FindAllStringSubmatch(readFile(t, "README.md"), -1)
	if len(blocks) == 0 {
		t.Error("README.md shows no code")
	}
	for _, b := range blocks {
		name, code := strings.TrimSpace(b[1]), b[2]
		body, ok := bodies[name]
		switch {
		case name == "import": // of the quickstart, which a test builds
		case name == "":
			t.Errorf("README.md has Go code that names no example:\n%s", code)
		case !ok:
			t.Errorf("README.md shows code of %s, which example_test.go does not have", name)
		case !strings.Contains("\n"+body, "\n"+code):
			t.Errorf("README.md shows code that %s does not have:\n%s", name, code)
		default:
			whole := "package p; func _() {\n" + code + "\n}"
			if _, err := parser.ParseFile(gotoken.NewFileSet(), "README.md", whole, 0); err != nil {
				t.Errorf("README.md shows a piece of %s that does not stand alone: %v", name, err)
			}
		}
	}
}

// exampleBodies returns the lines between the braces of each example, a tab to
// the left of where they are.
func exampleBodies(t *testing.T) map[string]string {
	t.Helper()
	bodies := map[string]string{}
	for _, s := range sources(t, ".", func(name string) bool { return name == "example_test.go" }) {
		for _, d := range s.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok || !strings.HasPrefix(f.Name.Name, "Example") {
				continue
			}
			from, to := s.fset.Position(f.Body.Lbrace).Offset+2, s.fset.Position(f.Body.Rbrace).Offset
			var body strings.Builder
			for line := range strings.Lines(string(s.text[from:to])) {
				body.WriteString(strings.TrimPrefix(line, "\t"))
			}
			bodies[f.Name.Name] = body.String()
		}
	}
	return bodies
}

func TestTheReadmeTellsEveryOptionAndItsDefault(t *testing.T) {
	_, section, found := strings.Cut(readFile(t, "README.md"), "\n## Options\n")
	if !found {
		t.Fatal("README.md has no section of the options")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	rows := map[string]string{} // the default, by the field
	for _, row := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\| ([^|]*) \\|").FindAllStringSubmatch(section, -1) {
		rows[row[1]] = row[2]
	}
	for name, want := range optionDefaults("", reflect.ValueOf(Options{}.withDefaults())) {
		row, ok := rows[name]
		switch {
		case !ok:
			t.Errorf("README.md does not tell of Options.%s", name)
		case !strings.HasPrefix(row, want):
			t.Errorf("README.md says that the default of %s is %q; it is %q", name, row, want)
		}
		delete(rows, name)
	}
	for name := range rows {
		if !strings.HasPrefix(name, "Redis.") {
			t.Errorf("README.md tells of Options.%s, which does not exist", name)
		}
	}
}

// optionDefaults returns the fields of an options struct and how their defaults
// are written; "" where that is prose.
func optionDefaults(prefix string, v reflect.Value) map[string]string {
	all := map[string]string{}
	for i := range v.NumField() {
		name, field := prefix+v.Type().Field(i).Name, v.Field(i)
		switch x := field.Interface().(type) {
		case time.Duration:
			all[name] = strings.TrimSuffix(strings.TrimSuffix(x.String(), "0s"), "0m")
			if x == 0 {
				all[name] = "0"
			}
		case int:
			all[name] = strconv.Itoa(x)
		case int64:
			all[name] = fmt.Sprintf("%d MiB", x>>20)
		case string:
			if all[name] = "`" + x + "`"; x == "" {
				all[name] = ""
			}
		default:
			ours := field.Type().PkgPath() == reflect.TypeFor[Options]().PkgPath()
			if field.Kind() == reflect.Struct && ours && name != "Hooks" {
				maps.Copy(all, optionDefaults(name+".", field))
			} else {
				all[name] = ""
			}
		}
	}
	return all
}

func TestNothingIsLeftForLater(t *testing.T) {
	// In two halves, or this file would be found.
	marks := [][]byte{[]byte("TO" + "DO"), []byte("FIX" + "ME")}
	walk(t, func(path string) {
		text, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return // somebody's temporary file
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, mark := range marks {
			if bytes.Contains(text, mark) {
				t.Errorf("%s says %s", path, mark)
			}
		}
	})
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
