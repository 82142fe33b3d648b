package house

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/scanner"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
)

// A Package is one package of the module without its tests.
type Package struct {
	Path  string
	Dir   string
	Files []*File // by name
	Fset  *token.FileSet
	Types *types.Package
	Info  *types.Info
}

// A File is one file of a package.
type File struct {
	Name   string
	Syntax *ast.File
	Built  bool // on this platform; only then it was type-checked
	Lines  int
	Code   int // lines that have more than space and comments
}

// listed has the fields that are read of the go command's answer.
type listed struct {
	ImportPath     string
	Dir            string
	Export         string
	Standard       bool
	GoFiles        []string
	IgnoredGoFiles []string
	Module         *struct{ Main bool }
}

// Load parses and type-checks the packages of the module in dir that the patterns
// match. Their imports are read from the build cache, which the go command fills
// first if it has to.
func Load(dir string, patterns ...string) ([]*Package, error) {
	wanted, err := list(dir, patterns)
	if err != nil {
		return nil, err
	}
	all, err := list(dir, append([]string{"-export", "-deps"}, patterns...))
	if err != nil {
		return nil, err
	}
	want := map[string]bool{}
	for _, p := range wanted {
		want[p.ImportPath] = true
	}

	fset := token.NewFileSet()
	imp := &fromSource{done: map[string]*types.Package{}, exports: map[string]string{}}
	imp.rest = importer.ForCompiler(fset, "gc", imp.open)
	var packages []*Package
	for _, l := range all { // a package comes after its imports
		if l.Standard || l.Module == nil || !l.Module.Main {
			imp.exports[l.ImportPath] = l.Export
			continue
		}
		p, err := check(fset, imp, l)
		if err != nil {
			return nil, err
		}
		imp.done[l.ImportPath] = p.Types
		if want[l.ImportPath] {
			packages = append(packages, p)
		}
	}
	slices.SortFunc(packages, func(a, b *Package) int { return cmp.Compare(a.Path, b.Path) })
	return packages, nil
}

func list(dir string, args []string) ([]listed, error) {
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Dir,Export,Standard,GoFiles,IgnoredGoFiles,Module"}, args...)...)
	cmd.Dir = dir
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w\n%s", err, complaint.Bytes())
	}
	var all []listed
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var l listed
		switch err := d.Decode(&l); {
		case errors.Is(err, io.EOF):
			return all, nil
		case err != nil:
			return nil, fmt.Errorf("go list: %w", err)
		}
		all = append(all, l)
	}
}

// fromSource imports the module's own packages as they were checked, so that an
// object is the same one wherever it is used, and all others from the build cache.
type fromSource struct {
	done    map[string]*types.Package
	exports map[string]string
	rest    types.Importer
}

func (f *fromSource) Import(path string) (*types.Package, error) {
	if p := f.done[path]; p != nil {
		return p, nil
	}
	return f.rest.Import(path)
}

func (f *fromSource) open(path string) (io.ReadCloser, error) {
	name := f.exports[path]
	if name == "" {
		return nil, fmt.Errorf("house: %s is not in the build cache", path)
	}
	return os.Open(name)
}

func check(fset *token.FileSet, imp types.Importer, l listed) (*Package, error) {
	p := &Package{Path: l.ImportPath, Dir: l.Dir, Fset: fset}
	var built []*ast.File
	add := func(name string, isBuilt bool) error {
		text, err := os.ReadFile(filepath.Join(l.Dir, name))
		if err != nil {
			return err
		}
		// Positions name the file alone: it is the same in every clone.
		syntax, err := parser.ParseFile(fset, name, text, parser.ParseComments)
		if err != nil {
			return err
		}
		if isBuilt {
			built = append(built, syntax)
		}
		p.Files = append(p.Files, &File{
			Name: name, Syntax: syntax, Built: isBuilt,
			Lines: bytes.Count(text, []byte("\n")), Code: codeLines(text),
		})
		return nil
	}
	for _, name := range l.GoFiles {
		if err := add(name, true); err != nil {
			return nil, err
		}
	}
	for _, name := range l.IgnoredGoFiles {
		if ok, _ := filepath.Match("*_test.go", name); ok {
			continue
		}
		if err := add(name, false); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(p.Files, func(a, b *File) int { return cmp.Compare(a.Name, b.Name) })

	p.Info = &types.Info{
		Types:      map[ast.Expr]types.TypeAndValue{},
		Defs:       map[*ast.Ident]types.Object{},
		Uses:       map[*ast.Ident]types.Object{},
		Selections: map[*ast.SelectorExpr]*types.Selection{},
	}
	config := types.Config{Importer: imp}
	var err error
	p.Types, err = config.Check(l.ImportPath, fset, built, p.Info)
	if err != nil {
		return nil, fmt.Errorf("house: %s: %w", l.ImportPath, err)
	}
	return p, nil
}

// codeLines counts the lines on which a token other than a comment begins or goes
// on.
func codeLines(text []byte) int {
	fset := token.NewFileSet()
	file := fset.AddFile("", -1, len(text))
	var s scanner.Scanner
	s.Init(file, text, nil, 0)
	lines := map[int]bool{}
	for {
		pos, tok, literal := s.Scan()
		if tok == token.EOF {
			return len(lines)
		}
		if tok == token.SEMICOLON && literal == "\n" {
			continue // the end of a line
		}
		first := file.Line(pos)
		for i := range 1 + bytes.Count([]byte(literal), []byte("\n")) {
			lines[first+i] = true
		}
	}
}

// file returns the name of the file in which a position is.
func (p *Package) file(pos token.Pos) string { return p.Fset.Position(pos).Filename }

// at returns file:line of a position.
func (p *Package) at(pos token.Pos) string {
	where := p.Fset.Position(pos)
	return fmt.Sprintf("%s:%d", where.Filename, where.Line)
}

// built calls f for each file that was type-checked.
func (p *Package) built(f func(*File)) {
	for _, file := range p.Files {
		if file.Built {
			f(file)
		}
	}
}
