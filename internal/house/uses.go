package house

import (
	"cmp"
	"go/ast"
	"go/types"
	"maps"
	"slices"
)

// A Use is that one file uses what another file of the package declares at
// package level, or a method or a field of a type that it declares.
type Use struct {
	From string // the file
	To   string // the file that declares it
	Decl string // Name, or Type.Name of a field or a method
	Call bool   // it is called somewhere in From
}

// Uses returns each use once, in the order of its fields.
func (p *Package) Uses() []Use {
	owners := p.owners()
	found := map[Use]bool{} // with Call unset; the value says whether it is called
	p.built(func(f *File) {
		called := map[*ast.Ident]bool{}
		ast.Inspect(f.Syntax, func(n ast.Node) bool {
			if call, ok := n.(*ast.CallExpr); ok {
				if id := callee(call.Fun); id != nil {
					called[id] = true
				}
			}
			id, ok := n.(*ast.Ident)
			if !ok {
				return true
			}
			o := origin(p.Info.Uses[id])
			if o == nil || o.Pkg() != p.Types {
				return true
			}
			decl := p.declared(o, owners)
			to := p.file(o.Pos())
			if decl == "" || to == f.Name {
				return true
			}
			_, isFunc := o.(*types.Func)
			u := Use{From: f.Name, To: to, Decl: decl}
			found[u] = found[u] || isFunc && called[id]
			return true
		})
	})
	uses := make([]Use, 0, len(found))
	for u, call := range found {
		u.Call = call
		uses = append(uses, u)
	}
	slices.SortFunc(uses, func(a, b Use) int {
		return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To), cmp.Compare(a.Decl, b.Decl))
	})
	return uses
}

// callee returns the identifier of the function that a call names, or nil.
func callee(e ast.Expr) *ast.Ident {
	switch e := ast.Unparen(e).(type) {
	case *ast.Ident:
		return e
	case *ast.SelectorExpr:
		return e.Sel
	case *ast.IndexExpr:
		return callee(e.X)
	case *ast.IndexListExpr:
		return callee(e.X)
	}
	return nil
}

// origin leads from an instance of something generic to its declaration.
func origin(o types.Object) types.Object {
	switch o := o.(type) {
	case *types.Func:
		return o.Origin()
	case *types.Var:
		return o.Origin()
	case nil:
		return nil
	}
	return o
}

// owners maps each field and each method that a named type of the package declares
// to the type's name. Fields of structs within it count as its own.
func (p *Package) owners() map[types.Object]string {
	owners := map[types.Object]string{}
	for _, name := range p.Types.Scope().Names() {
		t, ok := p.Types.Scope().Lookup(name).(*types.TypeName)
		if !ok || t.IsAlias() {
			continue
		}
		named, ok := t.Type().(*types.Named)
		if !ok {
			continue
		}
		for m := range named.Methods() {
			owners[m] = name
		}
		switch u := named.Underlying().(type) {
		case *types.Interface:
			for m := range u.ExplicitMethods() {
				if m.Pkg() == p.Types {
					owners[m] = name
				}
			}
		default:
			ownFields(owners, name, u)
		}
	}
	return owners
}

func ownFields(owners map[types.Object]string, name string, t types.Type) {
	switch t := t.(type) {
	case *types.Struct:
		for f := range t.Fields() {
			if owners[f] == "" {
				owners[f] = name
			}
			ownFields(owners, name, f.Type())
		}
	case *types.Pointer:
		ownFields(owners, name, t.Elem())
	case *types.Slice:
		ownFields(owners, name, t.Elem())
	case *types.Array:
		ownFields(owners, name, t.Elem())
	case *types.Map:
		ownFields(owners, name, t.Elem())
	}
}

// declared returns the name of a declaration of the package, or "" for a local of
// a function.
func (p *Package) declared(o types.Object, owners map[types.Object]string) string {
	if o.Parent() == p.Types.Scope() {
		return o.Name()
	}
	if owner := owners[o]; owner != "" {
		return owner + "." + o.Name()
	}
	return ""
}

// Edges returns for each file the files of which it uses something, and nothing
// for a file that uses no other.
func Edges(uses []Use, callsOnly bool) map[string][]string {
	sets := map[string]map[string]bool{}
	for _, u := range uses {
		if callsOnly && !u.Call {
			continue
		}
		if sets[u.From] == nil {
			sets[u.From] = map[string]bool{}
		}
		sets[u.From][u.To] = true
	}
	edges := map[string][]string{}
	for from, to := range sets {
		edges[from] = slices.Sorted(maps.Keys(to))
	}
	return edges
}

// Knots returns the groups of files in which each leads to each other, directly or
// not: the largest first, and none of a single file.
func Knots(edges map[string][]string) [][]string {
	t := tarjan{edges: edges, index: map[string]int{}, low: map[string]int{}, on: map[string]bool{}}
	for _, from := range slices.Sorted(maps.Keys(edges)) {
		if t.index[from] == 0 {
			t.visit(from)
		}
	}
	slices.SortStableFunc(t.groups, func(a, b []string) int { return cmp.Compare(len(b), len(a)) })
	return t.groups
}

// tarjan finds strongly connected groups in one walk.
type tarjan struct {
	edges  map[string][]string
	index  map[string]int // from 1 on, in the order of discovery
	low    map[string]int
	on     map[string]bool // the stack
	stack  []string
	groups [][]string
}

func (t *tarjan) visit(n string) {
	t.index[n] = len(t.index) + 1
	t.low[n] = t.index[n]
	t.stack = append(t.stack, n)
	t.on[n] = true
	for _, to := range t.edges[n] {
		if t.index[to] == 0 {
			t.visit(to)
			t.low[n] = min(t.low[n], t.low[to])
		} else if t.on[to] {
			t.low[n] = min(t.low[n], t.index[to])
		}
	}
	if t.low[n] != t.index[n] {
		return
	}
	i := slices.Index(t.stack, n)
	group := slices.Clone(t.stack[i:])
	t.stack = t.stack[:i]
	for _, member := range group {
		t.on[member] = false
	}
	if len(group) > 1 {
		slices.Sort(group)
		t.groups = append(t.groups, group)
	}
}
