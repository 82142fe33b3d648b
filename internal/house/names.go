package house

import (
	"cmp"
	"go/types"
	"regexp"
	"slices"
	"strings"
)

// A Shadow is a local of a function that hides a name of the package.
type Shadow struct {
	Name string
	At   string // file:line
}

// Shadows returns the variables, parameters, results, receivers, constants and
// types within functions that have the name of a package-level declaration, sorted
// by file and line.
func (p *Package) Shadows() []Shadow {
	type hit struct {
		file string
		pos  int
		Shadow
	}
	var hits []hit
	for id, o := range p.Info.Defs {
		if o == nil || o.Parent() == nil || o.Parent() == p.Types.Scope() || p.Types.Scope().Lookup(id.Name) == nil {
			continue
		}
		if v, ok := o.(*types.Var); ok && v.IsField() {
			continue
		}
		hits = append(hits, hit{p.file(id.Pos()), int(id.Pos()), Shadow{id.Name, p.at(id.Pos())}})
	}
	slices.SortFunc(hits, func(a, b hit) int {
		return cmp.Or(cmp.Compare(a.file, b.file), cmp.Compare(a.pos, b.pos))
	})
	shadows := make([]Shadow, len(hits))
	for i, h := range hits {
		shadows[i] = h.Shadow
	}
	return shadows
}

var (
	word    = regexp.MustCompile(`[\pL\pN]+(?:['’][\pL]+)?`)
	pronoun = regexp.MustCompile(`^(?i:what|who|whoever|whatever)$`)
)

// Pronouns counts the words of the comments, and those among them that take the
// place of a subject that should be a noun: what, who, whoever, whatever.
func (p *Package) Pronouns() (pronouns, words int) {
	for _, f := range p.Files {
		for _, group := range f.Syntax.Comments {
			for _, w := range word.FindAllString(group.Text(), -1) {
				words++
				if pronoun.MatchString(strings.TrimSpace(w)) {
					pronouns++
				}
			}
		}
	}
	return pronouns, words
}

// Methods maps the name of each type of the package to those of the methods that
// it declares, interfaces aside.
func (p *Package) Methods() map[string][]string {
	methods := map[string][]string{}
	p.methods(func(owner string, m *types.Func) { methods[owner] = append(methods[owner], m.Name()) })
	for _, names := range methods {
		slices.Sort(names)
	}
	return methods
}

func (p *Package) methods(f func(owner string, m *types.Func)) {
	for _, name := range p.Types.Scope().Names() {
		t, ok := p.Types.Scope().Lookup(name).(*types.TypeName)
		if !ok || t.IsAlias() {
			continue
		}
		if named, ok := t.Type().(*types.Named); ok {
			for m := range named.Methods() {
				f(name, m)
			}
		}
	}
}

// MainType returns the type with the most methods, how many those are, and in how
// many files.
func (p *Package) MainType() (name string, methods, files int) {
	count := map[string]int{}
	in := map[string]map[string]bool{}
	p.methods(func(owner string, m *types.Func) {
		count[owner]++
		if in[owner] == nil {
			in[owner] = map[string]bool{}
		}
		in[owner][p.file(m.Pos())] = true
	})
	for owner, n := range count {
		if n > methods || n == methods && owner < name {
			name, methods, files = owner, n, len(in[owner])
		}
	}
	return name, methods, files
}

// Owners maps the name of each method to the types that declare it.
func (p *Package) Owners() map[string][]string {
	owners := map[string][]string{}
	p.methods(func(owner string, m *types.Func) { owners[m.Name()] = append(owners[m.Name()], owner) })
	return owners
}
