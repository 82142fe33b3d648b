package house

import (
	"cmp"
	"fmt"
	"go/ast"
	"go/token"
	"go/types"
	"maps"
	"slices"
	"strings"
)

// A Held is something that is done while a lock is held.
type Held struct {
	Lock string // Type.field, or the type or variable that is or embeds the mutex
	// Does is the second lock; or the function that is called, of another module or of
	// a package that may do I/O or wait; or "wait" for a channel; or "call NAME" for a
	// function value of which nothing is known.
	Does string
	Kind HeldKind
	By   string // an example: the calls from the function that locks, and file:line
}

// HeldKind is the kind of the thing done.
type HeldKind uint8

const (
	TakesLock HeldKind = iota
	CallsOut
	Waits
	CallsUnknown
)

// Locks finds the things that are done while a lock is held: in each function of
// the packages, and in those that it calls meanwhile. A lock stands for all locks
// of its type and field, with the package's name where it is not the first package. A branch counts as taken, so it finds too much rather than
// too little, but for function values that came out of a call, and reflection.
func Locks(packages []*Package) []Held {
	w := &walker{
		program: newProgram(packages),
		ids:     map[string]int{},
		done:    map[visit]locks{},
		found:   map[Held]string{},
	}
	for _, f := range w.functions() {
		w.run(f, 0)
	}
	var all []Held
	for h, by := range w.found {
		h.By = by
		all = append(all, h)
	}
	slices.SortFunc(all, func(a, b Held) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Lock, b.Lock), cmp.Compare(a.Does, b.Does))
	})
	return all
}

// locks is a set of locks, a bit each.
type locks uint64

// visit is a function run with some locks held by its callers.
type visit struct {
	f    *function
	held locks
}

type walker struct {
	*program
	ids   map[string]int
	names []string
	done  map[visit]locks // and the locks held at the end
	found map[Held]string
	stack []string
	frame *frame
}

// frame is the function that is walked.
type frame struct {
	f      *function
	exit   locks
	defers []*ast.CallExpr
	breaks []locks // of the loops and switches around, where a break leads
}

func (w *walker) functions() []*function {
	all := slices.Collect(maps.Values(w.declared))
	all = slices.AppendSeq(all, maps.Values(w.literals))
	slices.SortFunc(all, func(a, b *function) int { return cmp.Compare(a.body.Pos(), b.body.Pos()) })
	return all
}

// run walks a function with locks held, and returns those held after it.
func (w *walker) run(f *function, held locks) locks {
	v := visit{f, held}
	if after, ok := w.done[v]; ok {
		return after
	}
	w.done[v] = held // where it calls itself
	outer, stack := w.frame, w.stack
	if held == 0 {
		w.stack = nil
	}
	w.frame, w.stack = &frame{f: f}, append(slices.Clip(w.stack), f.name)
	if end, open := w.block(f.body.List, held); open {
		w.frame.exit |= end
	}
	after := w.frame.exit
	for _, d := range slices.Backward(w.frame.defers) {
		after = w.call(d, after)
	}
	w.frame, w.stack = outer, stack
	w.done[v] = after
	return after
}

func (w *walker) id(name string) locks {
	i, ok := w.ids[name]
	if !ok {
		i = len(w.names)
		if i == 64 {
			panic("house: more than 64 locks")
		}
		w.ids[name] = i
		w.names = append(w.names, name)
	}
	return 1 << i
}

// note notes that something is done under each of the locks.
func (w *walker) note(held locks, kind HeldKind, does string, pos token.Pos) {
	for i, name := range w.names {
		if held&(1<<i) == 0 {
			continue
		}
		h := Held{Lock: name, Does: does, Kind: kind}
		by := fmt.Sprintf("%s at %s", strings.Join(w.stack, ", "), w.frame.f.pkg.at(pos))
		if old, ok := w.found[h]; !ok || len(by) < len(old) {
			w.found[h] = by
		}
	}
}

// block walks statements; open says that the end is reached.
func (w *walker) block(body []ast.Stmt, held locks) (end locks, open bool) {
	for _, s := range body {
		if held, open = w.stmt(s, held); !open {
			return held, false
		}
	}
	return held, true
}

// branches walks alternatives and returns the locks held after any of them.
func (w *walker) branches(held locks, also bool, bodies ...[]ast.Stmt) (locks, bool) {
	end, open := locks(0), false
	if also { // none of them may be taken
		end, open = held, true
	}
	for _, b := range bodies {
		if e, o := w.block(b, held); o {
			end, open = end|e, true
		}
	}
	return end, open
}

// breakable walks something that a break leaves.
func (w *walker) breakable(walk func() (locks, bool)) (locks, bool) {
	const never = 1 << 63
	fr := w.frame
	fr.breaks = append(fr.breaks, never)
	end, open := walk()
	b := fr.breaks[len(fr.breaks)-1]
	fr.breaks = fr.breaks[:len(fr.breaks)-1]
	if b&never == 0 {
		end, open = end|b, true
	}
	return end, open
}

func (w *walker) jump(held locks, all bool) {
	const never = 1 << 63
	b := w.frame.breaks
	for i := len(b) - 1; i >= 0; i-- {
		b[i] = b[i]&^never | held
		if !all {
			return
		}
	}
}

func (w *walker) stmt(s ast.Stmt, held locks) (locks, bool) {
	switch s := s.(type) {
	case nil:
		return held, true
	case *ast.BlockStmt:
		return w.block(s.List, held)
	case *ast.LabeledStmt:
		return w.stmt(s.Stmt, held)
	case *ast.IfStmt:
		held, _ = w.stmt(s.Init, held)
		held = w.expr(s.Cond, held)
		if s.Else == nil {
			return w.branches(held, true, s.Body.List)
		}
		return w.branches(held, false, s.Body.List, []ast.Stmt{s.Else})
	case *ast.ForStmt:
		held, _ = w.stmt(s.Init, held)
		return w.breakable(func() (locks, bool) {
			for range 2 { // the second time with the locks that the first one kept
				if s.Cond != nil {
					held = w.expr(s.Cond, held)
				}
				end, open := w.block(s.Body.List, held)
				if open {
					end, _ = w.stmt(s.Post, end)
					held |= end
				}
			}
			return held, s.Cond != nil
		})
	case *ast.RangeStmt:
		held = w.expr(s.X, held)
		if t := w.frame.f.pkg.Info.TypeOf(s.X); t != nil {
			if _, ok := t.Underlying().(*types.Chan); ok {
				w.note(held, Waits, "wait", s.Pos())
			}
		}
		return w.breakable(func() (locks, bool) {
			for range 2 {
				if end, open := w.block(s.Body.List, held); open {
					held |= end
				}
			}
			return held, true
		})
	case *ast.SwitchStmt:
		held, _ = w.stmt(s.Init, held)
		held = w.expr(s.Tag, held)
		return w.clauses(s.Body, held)
	case *ast.TypeSwitchStmt:
		held, _ = w.stmt(s.Init, held)
		held, _ = w.stmt(s.Assign, held)
		return w.clauses(s.Body, held)
	case *ast.SelectStmt:
		return w.selects(s, held)
	case *ast.ReturnStmt:
		for _, e := range s.Results {
			held = w.expr(e, held)
		}
		w.frame.exit |= held
		return held, false
	case *ast.BranchStmt:
		if s.Tok != token.FALLTHROUGH {
			w.jump(held, s.Label != nil)
			return held, false
		}
		return held, true
	case *ast.GoStmt:
		for _, e := range s.Call.Args {
			held = w.expr(e, held)
		}
		for _, f := range w.callees(w.frame.f.pkg, s.Call.Fun) {
			w.run(f, 0)
		}
		return held, true
	case *ast.DeferStmt:
		for _, e := range s.Call.Args {
			held = w.expr(e, held)
		}
		w.frame.defers = append(w.frame.defers, s.Call)
		return held, true
	case *ast.SendStmt:
		held = w.expr(s.Value, w.expr(s.Chan, held))
		w.note(held, Waits, "wait", s.Pos())
		return held, true
	case *ast.ExprStmt:
		held = w.expr(s.X, held)
		if call, ok := s.X.(*ast.CallExpr); ok {
			if id, ok := call.Fun.(*ast.Ident); ok && id.Name == "panic" {
				return held, false
			}
		}
		return held, true
	default: // assignments, declarations, increments
		return w.expr(s, held), true
	}
}

func (w *walker) clauses(body *ast.BlockStmt, held locks) (locks, bool) {
	return w.breakable(func() (locks, bool) {
		all, also := [][]ast.Stmt{}, true
		for _, c := range body.List {
			clause := c.(*ast.CaseClause)
			also = also && clause.List != nil // no default
			for _, e := range clause.List {
				held = w.expr(e, held)
			}
			all = append(all, clause.Body)
		}
		return w.branches(held, also, all...)
	})
}

func (w *walker) selects(s *ast.SelectStmt, held locks) (locks, bool) {
	return w.breakable(func() (locks, bool) {
		all, blocks := [][]ast.Stmt{}, true
		for _, c := range s.Body.List {
			clause := c.(*ast.CommClause)
			blocks = blocks && clause.Comm != nil
			all = append(all, clause.Body)
		}
		if blocks {
			w.note(held, Waits, "wait", s.Pos())
		}
		return w.branches(held, false, all...)
	})
}

// expr walks the calls of a node, the inner ones first.
func (w *walker) expr(n ast.Node, held locks) locks {
	if n == nil || n == ast.Expr(nil) {
		return held
	}
	var open []ast.Node
	ast.Inspect(n, func(n ast.Node) bool {
		if n == nil {
			last := open[len(open)-1]
			open = open[:len(open)-1]
			switch last := last.(type) {
			case *ast.CallExpr:
				held = w.call(last, held)
			case *ast.UnaryExpr:
				if last.Op == token.ARROW {
					w.note(held, Waits, "wait", last.Pos())
				}
			}
			return true
		}
		if _, ok := n.(*ast.FuncLit); ok {
			return false
		}
		open = append(open, n)
		return true
	})
	return held
}

// later are the functions that do not call what they are given before they return.
var later = []string{"time.AfterFunc", "context.AfterFunc", "sync.Go"}

// outside are the packages of the standard library that may wait for the world.
var outside = []string{"io", "log", "net", "os", "syscall"}

// callsBack are the modules whose functions call, before they return, the functions
// that were put into their structs.
var callsBack = []string{"github.com/sony/gobreaker/v2"}

func (w *walker) call(c *ast.CallExpr, held locks) locks {
	p := w.frame.f.pkg
	if tv, ok := p.Info.Types[c.Fun]; ok && (tv.IsType() || tv.IsBuiltin()) {
		return held
	}
	var o types.Object
	if id := callee(c.Fun); id != nil {
		o = origin(p.Info.Uses[id])
	}
	if f, ok := o.(*types.Func); ok && f.Pkg() != nil && f.Pkg().Path() == "sync" {
		if sel, ok := ast.Unparen(c.Fun).(*ast.SelectorExpr); ok {
			switch f.Name() {
			case "Wait": // of a Cond or of a WaitGroup
				w.note(held, Waits, "wait", c.Pos())
			case "Lock", "RLock", "TryLock", "TryRLock":
				name := w.lockName(p, sel.X)
				w.note(held, TakesLock, name, c.Pos())
				return held | w.id(name)
			case "Unlock", "RUnlock":
				return held &^ w.id(w.lockName(p, sel.X))
			}
		}
	}
	targets := w.callees(p, c.Fun)
	if f, ok := o.(*types.Func); ok && f.Pkg() != nil && !w.ours(f.Pkg()) {
		if slices.ContainsFunc(outside, func(path string) bool {
			return f.Pkg().Path() == path || strings.HasPrefix(f.Pkg().Path(), path+"/")
		}) || strings.Contains(f.Pkg().Path(), ".") {
			w.note(held, CallsOut, shortName(f), c.Pos())
		}
		if !slices.Contains(later, f.Pkg().Path()+"."+f.Name()) {
			for _, arg := range c.Args {
				targets = append(targets, w.values(p, arg)...)
			}
		}
		if slices.Contains(callsBack, f.Pkg().Path()) {
			targets = slices.AppendSeq(targets, maps.Keys(w.foreign[f.Pkg().Path()]))
		}
	} else if len(targets) == 0 && (o == nil || !isInterfaceMethod(o)) {
		w.note(held, CallsUnknown, "call "+types.ExprString(c.Fun), c.Pos())
	}
	slices.SortFunc(targets, func(a, b *function) int { return cmp.Compare(a.body.Pos(), b.body.Pos()) })
	if len(targets) == 0 {
		return held
	}
	var after locks
	for _, f := range targets {
		after |= w.run(f, held)
	}
	return after
}

// shortName is package.function, or package.Type.method.
func shortName(f *types.Func) string {
	name := f.Pkg().Name() + "."
	if recv := f.Signature().Recv(); recv != nil {
		if named, ok := deref(recv.Type()).(*types.Named); ok {
			name += named.Obj().Name() + "."
		}
	}
	return name + f.Name()
}

func isInterfaceMethod(o types.Object) bool {
	f, ok := o.(*types.Func)
	return ok && f.Signature().Recv() != nil && types.IsInterface(f.Signature().Recv().Type())
}

// values returns the functions that an argument may be.
func (w *walker) values(p *Package, e ast.Expr) []*function {
	if t := p.Info.TypeOf(e); t == nil {
		return nil
	} else if _, ok := t.Underlying().(*types.Signature); !ok {
		return nil
	}
	return w.callees(p, e)
}

// lockName names the lock of which a method is called: the type that embeds the
// mutex, or the field or the variable that is it.
func (w *walker) lockName(p *Package, e ast.Expr) string {
	name := ""
	if named, ok := deref(p.Info.TypeOf(e)).(*types.Named); ok && w.ours(named.Obj().Pkg()) {
		name = named.Obj().Name()
	} else if sel, ok := ast.Unparen(e).(*ast.SelectorExpr); ok {
		if named, ok := deref(p.Info.TypeOf(sel.X)).(*types.Named); ok {
			name = named.Obj().Name() + "."
		}
		name += sel.Sel.Name
	} else {
		name = types.ExprString(e)
	}
	if p.Types.Name() != w.packages[0].Types.Name() {
		name = p.Types.Name() + "." + name
	}
	return name
}
