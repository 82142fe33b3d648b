package house

import (
	"go/ast"
	"go/token"
	"go/types"
)

// A function is a declared function or a function literal of the packages.
type function struct {
	name   string
	body   *ast.BlockStmt
	params []types.Object // nil for one without a name
	pkg    *Package
}

// program is all functions of some packages, and for each variable, field and
// parameter the functions that it may hold. An assignment counts wherever it
// stands; a function that is the result of a call is not followed.
type program struct {
	packages []*Package
	declared map[types.Object]*function
	literals map[*ast.FuncLit]*function
	holds    map[types.Object]map[*function]bool
	flows    map[types.Object]map[types.Object]bool // from a variable to another
	foreign  map[string]map[*function]bool          // put into a struct of another module, by its package
	types    []*types.Named                         // of the packages
}

func newProgram(packages []*Package) *program {
	g := &program{
		packages: packages,
		declared: map[types.Object]*function{},
		literals: map[*ast.FuncLit]*function{},
		holds:    map[types.Object]map[*function]bool{},
		flows:    map[types.Object]map[types.Object]bool{},
		foreign:  map[string]map[*function]bool{},
	}
	for _, p := range packages {
		for _, name := range p.Types.Scope().Names() {
			if t, ok := p.Types.Scope().Lookup(name).(*types.TypeName); ok && !t.IsAlias() {
				if named, ok := t.Type().(*types.Named); ok {
					g.types = append(g.types, named)
				}
			}
		}
		p.built(func(f *File) { g.collect(p, f) })
	}
	// A call of a variable passes functions on only once the variable's functions are known.
	for known := -1; known != g.size(); {
		known = g.size()
		for _, p := range packages {
			p.built(func(f *File) {
				ast.Inspect(f.Syntax, func(n ast.Node) bool {
					g.assign(p, n)
					return true
				})
			})
		}
		for before := -1; before != g.size(); {
			before = g.size()
			for from, all := range g.flows {
				for to := range all {
					for f := range g.holds[from] {
						insert(g.holds, to, f)
					}
				}
			}
		}
	}
	return g
}

// size counts the functions that variables may hold.
func (g *program) size() (n int) {
	for _, all := range g.holds {
		n += len(all)
	}
	return n
}

func insert[K, V comparable](m map[K]map[V]bool, k K, v V) {
	if m[k] == nil {
		m[k] = map[V]bool{}
	}
	m[k][v] = true
}

// collect makes the functions of a file.
func (g *program) collect(p *Package, f *File) {
	for _, d := range f.Syntax.Decls {
		name := "package level"
		if fn, ok := d.(*ast.FuncDecl); ok {
			name = p.funcName(fn)
			if fn.Body != nil {
				g.declared[p.Info.Defs[fn.Name]] = &function{name, fn.Body, p.params(fn.Type), p}
			}
		}
		ast.Inspect(d, func(n ast.Node) bool {
			if lit, ok := n.(*ast.FuncLit); ok {
				g.literals[lit] = &function{"a function in " + name, lit.Body, p.params(lit.Type), p}
			}
			return true
		})
	}
}

// funcName is Type.name for a method.
func (p *Package) funcName(fn *ast.FuncDecl) string {
	name := fn.Name.Name
	if f, ok := p.Info.Defs[fn.Name].(*types.Func); ok {
		if recv := f.Signature().Recv(); recv != nil {
			if named, ok := deref(recv.Type()).(*types.Named); ok {
				name = named.Obj().Name() + "." + name
			}
		}
	}
	return name
}

func deref(t types.Type) types.Type {
	if p, ok := types.Unalias(t).(*types.Pointer); ok {
		t = p.Elem()
	}
	return types.Unalias(t)
}

func (p *Package) params(t *ast.FuncType) []types.Object {
	var params []types.Object
	for _, field := range t.Params.List {
		for _, name := range field.Names {
			params = append(params, p.Info.Defs[name])
		}
		if len(field.Names) == 0 {
			params = append(params, nil)
		}
	}
	return params
}

// assign notes the functions that a node puts somewhere.
func (g *program) assign(p *Package, n ast.Node) {
	switch n := n.(type) {
	case *ast.AssignStmt:
		if len(n.Lhs) == len(n.Rhs) && (n.Tok == token.ASSIGN || n.Tok == token.DEFINE) {
			for i := range n.Lhs {
				g.put(p, p.object(n.Lhs[i]), n.Rhs[i])
			}
		}
	case *ast.ValueSpec:
		if len(n.Names) == len(n.Values) {
			for i := range n.Names {
				g.put(p, p.Info.Defs[n.Names[i]], n.Values[i])
			}
		}
	case *ast.CompositeLit:
		s, _ := deref(p.Info.TypeOf(n)).Underlying().(*types.Struct)
		for i, e := range n.Elts {
			if kv, ok := e.(*ast.KeyValueExpr); ok {
				if s != nil {
					g.put(p, p.object(kv.Key), kv.Value)
				}
			} else if s != nil {
				g.put(p, s.Field(i), e)
			}
		}
	case *ast.CallExpr:
		for _, f := range g.callees(p, n.Fun) {
			for i, arg := range n.Args {
				if i < len(f.params) {
					g.put(p, f.params[i], arg)
				}
			}
		}
	}
}

// put notes that a variable may hold the function that an expression is.
func (g *program) put(p *Package, to types.Object, e ast.Expr) {
	to = origin(to)
	if to == nil {
		return
	}
	e = ast.Unparen(e)
	if lit, ok := e.(*ast.FuncLit); ok {
		g.hold(to, g.literals[lit])
		return
	}
	if id := callee(e); id != nil {
		from := origin(p.Info.Uses[id])
		switch from := from.(type) {
		case *types.Func:
			g.hold(to, g.declared[from])
		case *types.Var:
			if _, ok := from.Type().Underlying().(*types.Signature); ok {
				insert(g.flows, types.Object(from), to)
			}
		}
	}
}

func (g *program) hold(to types.Object, f *function) {
	if f == nil {
		return
	}
	insert(g.holds, to, f)
	if v, ok := to.(*types.Var); ok && v.IsField() && !g.ours(v.Pkg()) {
		insert(g.foreign, v.Pkg().Path(), f)
	}
}

func (g *program) ours(pkg *types.Package) bool {
	for _, p := range g.packages {
		if p.Types == pkg {
			return true
		}
	}
	return false
}

// object returns the variable or the field that an expression names.
func (p *Package) object(e ast.Expr) types.Object {
	id := callee(e)
	if id == nil {
		return nil
	}
	if o := p.Info.Defs[id]; o != nil {
		return o
	}
	return origin(p.Info.Uses[id])
}

// callees returns the functions of the packages that a call may run, as far as they
// are known before the variables are: a declared function or a literal.
func (g *program) callees(p *Package, e ast.Expr) []*function {
	if lit, ok := ast.Unparen(e).(*ast.FuncLit); ok {
		return []*function{g.literals[lit]}
	}
	id := callee(e)
	if id == nil {
		return nil
	}
	switch o := origin(p.Info.Uses[id]).(type) {
	case *types.Func:
		if f := g.declared[o]; f != nil {
			return []*function{f}
		}
		return g.implementers(p, o)
	case *types.Var:
		var all []*function
		for f := range g.holds[o] {
			all = append(all, f)
		}
		return all
	}
	return nil
}

// implementers returns the methods that a call of an interface's method in p may
// run. An interface of the standard library or of another module, as io.Writer, has
// too many implementations: there those of p alone count.
func (g *program) implementers(p *Package, m *types.Func) []*function {
	recv := m.Signature().Recv()
	if recv == nil {
		return nil
	}
	i, ok := recv.Type().Underlying().(*types.Interface)
	if !ok {
		return nil
	}
	var all []*function
	for _, named := range g.types {
		if types.IsInterface(named) || named.TypeParams() != nil {
			continue
		}
		if !g.ours(m.Pkg()) && named.Obj().Pkg() != p.Types {
			continue
		}
		pointer := types.NewPointer(named)
		if !types.Implements(pointer, i) {
			continue
		}
		o, _, _ := types.LookupFieldOrMethod(pointer, false, m.Pkg(), m.Name())
		if f := g.declared[origin(o)]; f != nil {
			all = append(all, f)
		}
	}
	return all
}
