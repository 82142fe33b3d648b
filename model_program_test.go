package holdfast_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-cache/holdfast"
)

// program is what happens in one run of the model test. It is made from a seed, and
// can be made shorter.
type program struct {
	seed     uint64
	rule     holdfast.ConflictRule
	keysOnly bool
	maxKeys  int
	maxBytes int64
	tracking bool
	file     bool // the journal survives the process
	endsLate bool // the server runs a replay late, so that ends fall into it
	ops      []modelOp
}

type modelOp struct {
	kind  modelKind
	keys  []string
	value string
	ttl   time.Duration
	wait  time.Duration // how long something is to last, or when it begins
	seed  uint64        // for what it draws
}

type modelKind uint8

const (
	opSet modelKind = iota
	opSetMany
	opDelete
	opAdd
	opTouch
	opGet
	opGetMany
	opGetBeside // while others go on
	opSetHurried
	opOther
	opOtherLater
	opWait
	opCut
	opCutSoon
	opRefuse
	opHold
	opDeafen
	opHoldReplay
	opSlow
	opReadOnly
	opForbid // a key, to replays
	opHeal
	opForgetScripts
	opSave
	opReplaceEmpty
	opReplaceOld
	opReplaceSame
	opReopen
	opSettle
)

// modelWeights says how often each kind comes.
var modelWeights = map[modelKind]int{
	opSet: 26, opSetMany: 4, opDelete: 10, opAdd: 4, opTouch: 4,
	opGet: 14, opGetMany: 4, opGetBeside: 6, opSetHurried: 2,
	opOther: 10, opOtherLater: 4, opWait: 18,
	opCut: 4, opCutSoon: 3, opRefuse: 4, opHold: 5, opDeafen: 3, opHoldReplay: 1, opSlow: 1, opReadOnly: 2, opForbid: 2, opHeal: 8,
	opForgetScripts: 1, opSave: 2, opReplaceEmpty: 1, opReplaceOld: 1, opReplaceSame: 1, opReopen: 2, opSettle: 2,
}

var modelNames = [...]string{
	"set", "setmany", "delete", "add", "touch", "get", "getmany", "get beside", "set hurried", "other", "other later",
	"wait", "cut", "cut soon", "refuse", "hold", "deafen", "hold replay", "slow", "readonly", "forbid", "heal",
	"forget scripts", "save", "replace empty", "replace old", "replace same", "reopen", "settle",
}

func (o modelOp) String() string {
	text := modelNames[o.kind]
	for _, key := range o.keys {
		text += " " + key
	}
	if o.value != "" {
		text += fmt.Sprintf(" %.8s", o.value)
	}
	if o.ttl != 0 {
		text += fmt.Sprint(" ttl ", o.ttl)
	}
	if o.wait != 0 {
		text += fmt.Sprint(" ", o.wait)
	}
	return text
}

func (p program) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d: conflict %v, keys only %t, %d keys, %d bytes, tracking %t, file %t, ends late %t\n",
		p.seed, p.rule, p.keysOnly, p.maxKeys, p.maxBytes, p.tracking, p.file, p.endsLate)
	for i, op := range p.ops {
		fmt.Fprintf(&b, "  %d %v\n", i, op)
	}
	return b.String()
}

// newProgram makes a program from a seed.
func newProgram(seed uint64) program {
	r := rand.New(rand.NewPCG(seed, 4))
	p := program{seed: seed, maxKeys: 65536, maxBytes: 64 << 20, tracking: r.IntN(2) == 0}
	switch r.IntN(10) {
	case 0:
		p.rule = holdfast.ConflictKeep
	case 1:
		p.rule = holdfast.ConflictOverwrite
	case 2:
		p.keysOnly = true
	}
	p.file = r.IntN(4) == 0
	p.endsLate = r.IntN(4) == 0
	if r.IntN(4) == 0 {
		p.maxKeys = 1 + r.IntN(4)
	}
	if r.IntN(4) == 0 {
		p.maxBytes = 1 + r.Int64N(400)
	}
	g := modelGenerator{random: r, values: map[string][]string{}, whose: "ours"}
	for range 3 + r.IntN(4) {
		g.keys = append(g.keys, fmt.Sprint("k", len(g.keys)))
	}
	var kinds []modelKind
	for kind := opSet; kind <= opSettle; kind++ {
		for range modelWeights[kind] {
			kinds = append(kinds, kind)
		}
	}
	for range 10 + r.IntN(35) {
		if r.IntN(10) == 0 {
			p.ops = append(p.ops, g.story()...)
		} else {
			p.ops = append(p.ops, g.op(kinds[r.IntN(len(kinds))]))
		}
	}
	return p
}

type modelGenerator struct {
	random *rand.Rand
	keys   []string
	whose  string              // what values of ours begin with
	values map[string][]string // that were used
	made   int
}

// story is what chance alone brings about too seldom.
func (g *modelGenerator) story() []modelOp {
	key := g.keys[g.random.IntN(len(g.keys))]
	of := func(kinds ...modelKind) modelOp {
		op := g.op(kinds[g.random.IntN(len(kinds))])
		op.keys = []string{key}
		switch g.random.IntN(5) {
		case 0, 1, 2:
			op.ttl = 0
		case 3:
			op.ttl = time.Duration(50+g.random.IntN(500)) * time.Millisecond
		}
		return op
	}
	write := func() modelOp { return of(opSet, opSet, opSet, opDelete, opAdd, opTouch) }
	wait := func(ms int) modelOp { return modelOp{kind: opWait, wait: time.Duration(ms) * time.Millisecond} }
	gone := func() []modelOp { return []modelOp{g.op(opRefuse), g.op(opCut)} }
	story := []modelOp{g.op(opHeal), wait(300), of(opSet, opGet)}
	switch g.random.IntN(6) {
	case 5: // the time of what was there, or of what was set, runs out about when it is replayed
		ends := of(opSet, opSet, opAdd)
		ends.ttl = time.Duration(400+g.random.IntN(2500)) * time.Millisecond
		story[len(story)-1] = ends
		story = append(append(story, gone()...), write(), write(), g.op(opHeal), wait(100+g.random.IntN(1500)))
	case 0: // a write gets no answer and may run late
		silence := g.op([]modelKind{opHold, opHold, opDeafen}[g.random.IntN(3)])
		story = append(story, silence, write(), g.op(opCut), write(), g.op(opHeal), wait(1800), of(opGet))
	case 1: // a replay does
		story = append(append(story, gone()...), write(), g.op(opHoldReplay), wait(400), g.op(opCut), write(), g.op(opHeal))
	case 2: // others write after us
		story = append(append(story, gone()...), of(opSet, opSet, opDelete, opGet), of(opOther), g.op(opHeal))
	case 3: // a set runs out of time meanwhile
		story = append(append(story, gone()...), write(), wait(600), g.op(opHeal))
	default: // Redis holds an older value, and can be read
		story = append(story, g.op(opReadOnly), write(), of(opGet), g.op(opHeal))
	}
	return append(story, of(opSettle, opSettle, opSet, opDelete, opGet, opWait))
}

func (g *modelGenerator) op(kind modelKind) modelOp {
	r := g.random
	op := modelOp{kind: kind, seed: r.Uint64()}
	key := g.keys[r.IntN(len(g.keys))]
	switch kind {
	case opSet, opSetHurried, opAdd:
		op.keys, op.value, op.ttl = []string{key}, g.value(key, g.whose, kind != opAdd), g.ttl()
		op.wait = time.Duration(1+r.IntN(40)) * time.Millisecond
	case opSetMany, opGetMany:
		op.keys, op.ttl = g.some(), g.ttl()
		if kind == opSetMany {
			op.value = g.value("", g.whose, false)
		}
	case opDelete:
		op.keys = []string{key}
		if r.IntN(5) == 0 {
			op.keys = g.some()
		}
	case opTouch:
		op.keys, op.ttl = []string{key}, g.ttl()
	case opGet, opGetBeside, opForbid:
		op.keys = []string{key}
	case opOther, opOtherLater:
		op.keys = []string{key}
		op.wait = time.Duration(r.IntN(60)) * time.Millisecond
		if r.IntN(3) > 0 {
			op.value, op.ttl = g.value(key, "theirs", true), g.ttl()
		}
	case opWait:
		op.wait = time.Duration(1+r.IntN(120)) * time.Millisecond
		if r.IntN(3) == 0 {
			op.wait = time.Duration(200+r.IntN(3000)) * time.Millisecond
		}
	case opCutSoon:
		op.wait = time.Duration(1 + r.IntN(5)) // commands, not time
	}
	return op
}

// value is a new one, or sometimes one that the key had before.
func (g *modelGenerator) value(key, whose string, again bool) string {
	if old := g.values[key]; again && len(old) > 0 && g.random.IntN(8) == 0 {
		return old[g.random.IntN(len(old))]
	}
	g.made++
	v := fmt.Sprint(whose, g.made, " ", strings.Repeat(".", g.random.IntN(100)))
	g.values[key] = append(g.values[key], v)
	return v
}

func (g *modelGenerator) ttl() time.Duration {
	if g.random.IntN(4) > 0 {
		return 0
	}
	return time.Duration(100+g.random.IntN(8000)) * time.Millisecond
}

func (g *modelGenerator) some() []string {
	keys := slices.Clone(g.keys)
	g.random.Shuffle(len(keys), func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
	return keys[:2+g.random.IntN(len(keys)-1)]
}

// shrink leaves out of a failing program what it can. How calls and replays
// interleave is not in the program, so a program is given several tries to fail.
func shrink(p program, fails func(program) error) (program, error) {
	const tries = 4
	var last error
	for size := max(1, len(p.ops)/2); size > 0; size /= 2 {
		for from := len(p.ops) - size; from >= 0; {
			q := p
			q.ops = slices.Delete(slices.Clone(p.ops), from, from+size)
			for range tries {
				if err := fails(q); err != nil {
					p, last = q, err
					break
				}
			}
			from = min(from-size, len(p.ops)-size)
			if size == 1 && from < 0 {
				break
			}
		}
	}
	return p, last
}
