package local

import (
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/keyhash"
)

// modelKey is what the rules say of one key, without index, policy and bounds.
type modelKey struct {
	hash        keyhash.Hash
	name        string
	entry       *Entry // nil: none
	writers     int
	overlap     bool
	invalidated bool

	held []*Entry // the previous entries of the writes in flight, for EndRefused
}

// modelToken is a token with the version that the model has of the stripe.
type modelToken struct {
	Token
	version uint64
}

// program runs random calls on a Tier, and the same on the model.
type program struct {
	t       *testing.T
	rnd     *rand.Rand
	l       *Tier
	scope   EpochScope
	keys    []*modelKey
	stripes map[uint64]uint64 // versions
	tokens  map[*modelKey]modelToken
	now     int64
	trace   []string
}

func newProgram(t *testing.T, maxBytes int64, seed uint64) *program {
	p := &program{
		t: t, rnd: rand.New(rand.NewPCG(seed, 7)), l: New(maxBytes), stripes: map[uint64]uint64{}, now: 1000,
		tokens: map[*modelKey]modelToken{},
	}
	p.scope.Until.Store(clock.Never)
	stripes, homes := uint64(1+p.rnd.IntN(3)), uint64(1+p.rnd.IntN(3))
	for i := range uint64(1 + p.rnd.IntN(40)) {
		name := fmt.Sprint("key", i)
		place := (i%homes)<<60 | i<<20 | i%stripes + 1
		p.keys = append(p.keys, &modelKey{hash: keyhash.Hash{Place: place, Check: keyhash.KeyLength(len(name)) | i}, name: name})
	}
	return p
}

// moved is called when the version of the key's stripe has grown.
func (p *program) moved(k *modelKey) { p.stripes[k.hash.Place%stripeCount]++ }

func (p *program) freshness() Freshness {
	f := Freshness{Confirmed: p.now - int64(p.rnd.IntN(20)), Expires: p.now + int64(p.rnd.IntN(200)), Scope: &p.scope, Epoch: p.scope.Epoch.Load()}
	switch p.rnd.IntN(4) {
	case 0:
		f.Fresh = Unconfirmed
	case 1:
		f.Expires = clock.Never
		f.Fresh = FreshUntil(p.now + 100)
	default:
		f.Fresh = FreshUntil(f.Expires)
	}
	return f
}

// value is one of a few values, so that equal ones meet. It is all zeros: two are equal if their
// lengths are.
func (p *program) value() []byte { return make([]byte, p.rnd.IntN(5)*p.rnd.IntN(60)) }

// entry is a new entry, or nil.
func (p *program) entry(k *modelKey) *Entry {
	if p.rnd.IntN(6) == 0 {
		return nil
	}
	return NewEntry(k.name, p.value(), p.freshness())
}

// fields are those of an entry that the rules change.
type fields struct {
	confirmed, expires int64
	fresh              FreshUntil
	epoch              uint32
}

func fieldsOf(e *Entry) fields {
	return fields{e.Confirmed.Load(), e.Expires.Load(), e.FreshUntil(), e.Epoch.Load()}
}

// expect is what an entry must look like after a call.
func (p *program) expect(k *modelKey, want fields, what string) {
	p.t.Helper()
	if got := fieldsOf(k.entry); got != want {
		p.fatalf("%s of %s: the entry has %+v, want %+v", what, k.name, got, want)
	}
}

func (p *program) fatalf(format string, args ...any) {
	p.t.Helper()
	for _, line := range p.trace[max(0, len(p.trace)-40):] {
		p.t.Log(line)
	}
	p.t.Fatalf(format, args...)
}

func (p *program) sameOld(k *modelKey, old, was *Entry, what string) {
	p.t.Helper()
	if old != was {
		p.fatalf("%s of %s returned %p as the previous entry, want %p", what, k.name, old, was)
	}
}

// begun is the model's part of the calls that open a write.
func (p *program) begun(k *modelKey, was, e *Entry) {
	k.overlap = k.writers > 0
	k.writers++
	k.held = append(k.held, was)
	k.entry = e
	p.moved(k)
}

// ended is the model's part of the calls that end a write.
func (p *program) ended(k *modelKey, e *Entry, fresh FreshUntil) {
	p.moved(k)
	k.writers--
	k.held = k.held[:k.writers]
	if k.overlap {
		e = nil
	}
	var want fields
	if e != nil {
		want = fieldsOf(e)
		if fresh != KeepFreshness {
			want.fresh = fresh
			if k.invalidated {
				want.fresh = Unconfirmed
			}
		}
	}
	if k.writers == 0 {
		k.overlap, k.invalidated = false, false
	}
	k.entry = e
}

// fillable reports whether the key's token still allows to store an answer.
func (p *program) fillable(k *modelKey) (Token, bool) {
	t, ok := p.tokens[k]
	if !ok {
		t = modelToken{p.l.Token(k.hash, &p.scope), p.stripes[k.hash.Place%stripeCount]}
	}
	delete(p.tokens, k)
	return t.Token, t.version == p.stripes[k.hash.Place%stripeCount] && t.Epoch == p.scope.Epoch.Load() && k.writers == 0
}

func (p *program) step() {
	k := p.keys[p.rnd.IntN(len(p.keys))]
	l, h, was := p.l, k.hash, k.entry
	p.now += int64(p.rnd.IntN(5))
	op := p.rnd.IntN(20)
	p.trace = append(p.trace, fmt.Sprintf("%d of %s at %d: %p, %d writers, overlap %v, invalidated %v", op, k.name, p.now, was, k.writers, k.overlap, k.invalidated))
	var had fields
	if was != nil {
		had = fieldsOf(was)
	}
	switch op {
	case 0, 1:
		p.tokens[k] = modelToken{l.Token(h, &p.scope), p.stripes[h.Place%stripeCount]}
	case 2, 3, 4:
		token, fillable := p.fillable(k)
		val, f := p.value(), p.freshness()
		stored := l.Fill(h, k.name, val, token, f)
		older := was != nil && k.writers == 0 && had.confirmed <= f.Confirmed
		switch {
		case !fillable && older && len(was.Bytes()) != len(val):
			p.expect(k, fields{had.confirmed, Invalidated, Suspect, had.epoch}, "a fill that is not stored")
		case !fillable, was != nil && had.confirmed > f.Confirmed:
			if stored {
				p.fatalf("a fill of %s was stored", k.name)
			}
		case was != nil && len(was.Bytes()) == len(val):
			p.expect(k, fields{f.Confirmed, f.Expires, f.Fresh, f.Epoch}, "a fill with the same value")
		default:
			k.entry = l.Get(h)
			if stored != (k.entry != nil) || stored && (k.entry == was || fieldsOf(k.entry) != fields{f.Confirmed, f.Expires, f.Fresh, f.Epoch}) {
				p.fatalf("a fill of %s: stored %v, entry %p", k.name, stored, k.entry)
			}
		}
	case 5:
		token, fillable := p.fillable(k)
		l.Forget(h, token, p.now)
		switch {
		case was == nil || had.fresh.isAbsence() || had.expires != Invalidated && int32(had.epoch-p.scope.Floor.Load()) >= 0 && p.now >= had.expires:
		case fillable:
			k.entry = nil
		case k.writers == 0 && had.confirmed <= p.now:
			p.expect(k, fields{had.confirmed, Invalidated, Suspect, had.epoch}, "an absence that is not stored")
		}
	case 6, 7:
		e := p.entry(k)
		old, _ := l.Begin(h, e)
		p.sameOld(k, old, was, "Begin")
		p.begun(k, was, e)
	case 8:
		e := p.entry(k)
		var superseded atomic.Bool
		superseded.Store(p.rnd.IntN(2) == 0)
		old, _, begun := l.BeginUnless(h, e, &superseded)
		if begun == superseded.Load() {
			p.fatalf("BeginUnless: %v", begun)
		}
		if begun {
			p.sameOld(k, old, was, "BeginUnless")
			p.begun(k, was, e)
		}
	case 9:
		old, _ := l.Hold(h)
		p.sameOld(k, old, was, "Hold")
		p.begun(k, was, was)
	case 10, 11, 12:
		if k.writers == 0 {
			return
		}
		held := k.held[k.writers-1]
		fresh := []FreshUntil{KeepFreshness, Unconfirmed, FreshUntil(p.now + 50)}[p.rnd.IntN(3)]
		switch p.rnd.IntN(4) {
		case 0:
			l.End(h, true, fresh)
			p.ended(k, was, fresh)
		case 1:
			l.End(h, false, fresh)
			p.ended(k, nil, fresh)
		case 2:
			l.EndRefused(h, held)
			if k.invalidated {
				held = nil
			}
			p.ended(k, held, KeepFreshness)
		default:
			e := p.entry(k)
			l.EndAs(h, e, fresh)
			p.ended(k, e, fresh)
		}
	case 13:
		e := p.entry(k)
		old, _ := l.Put(h, e)
		p.sameOld(k, old, was, "Put")
		k.overlap = k.writers > 0
		k.entry = e
		p.moved(k)
	case 14:
		e, seen := p.entry(k), was
		if p.rnd.IntN(2) == 0 {
			seen = NewEntry(k.name, nil, p.freshness())
		}
		var superseded atomic.Bool
		superseded.Store(p.rnd.IntN(3) == 0)
		old, _, done := l.PutUnless(h, e, &superseded, seen)
		if done != (!superseded.Load() && (was == nil || was == seen)) {
			p.fatalf("PutUnless of %s: %v", k.name, done)
		}
		if done {
			p.sameOld(k, old, was, "PutUnless")
			k.overlap = k.writers > 0
			k.entry = e
			p.moved(k)
		}
	case 15:
		e := NewEntry(k.name, p.value(), p.freshness())
		done := l.Add(h, e, p.now)
		if done != (was == nil || p.now >= had.expires) {
			p.fatalf("Add of %s: %v", k.name, done)
		}
		if done {
			k.entry = e
			p.moved(k)
		}
	case 16:
		invalid := was != nil && was.Invalid()
		p.moved(k)
		if p.rnd.IntN(2) == 0 {
			l.Suspect(h, func(int64) int64 { return p.now + 5 })
		} else if p.rnd.IntN(2) == 0 {
			l.Retime(h, was, p.now+5)
		} else {
			other := NewEntry(k.name, nil, p.freshness())
			l.Retime(h, other, p.now+5)
			if was != nil {
				k.overlap = k.writers > 0
			}
			k.entry = nil
			break
		}
		if was != nil && !invalid {
			p.expect(k, fields{had.confirmed, p.now + 5, Unconfirmed, had.epoch}, "Suspect")
		}
	case 17:
		p.moved(k)
		l.OnReplayed(h)
		if was != nil && had.fresh != Unconfirmed {
			k.entry = nil
		}
	case 18:
		l.Invalidate(h, p.now)
		p.moved(k)
		k.invalidated = k.writers > 0
		switch {
		case was == nil:
		case k.writers > 0, had.fresh == Unconfirmed:
			p.expect(k, fields{had.confirmed, had.expires, Unconfirmed, had.epoch}, "Invalidate")
		case p.now < had.expires:
			p.expect(k, fields{had.confirmed, Invalidated, Suspect, had.epoch}, "Invalidate")
		default:
			p.expect(k, fields{had.confirmed, had.expires, Suspect, had.epoch}, "Invalidate")
		}
	default:
		switch p.rnd.IntN(4) {
		case 0:
			p.scope.Suspect()
		case 1:
			p.scope.Flush()
		default:
			if was != nil {
				l.Attach(h, was.Bytes(), &Decoded{Size: int32(p.rnd.IntN(100))})
			}
		}
	}
}

// feed does what the feeder's next pass would do.
func (p *program) feed() {
	p.trace = append(p.trace, "the policy judges")
	if p.l.policy.store == nil {
		if p.l.Bytes() < p.l.maxBytes/startAt {
			return
		}
		p.l.start()
	}
	for chunk := p.l.policy.take(nil); len(chunk) > 0; chunk = p.l.policy.take(nil) {
		p.l.judge(chunk)
	}
	if n := p.l.Queued(); n != 0 {
		p.fatalf("%d changes are queued after a pass", n)
	}
}

// check compares the tier with the model. Entries may be missing only if evictions are expected.
func (p *program) check(evicts bool) {
	var size, n int64
	for _, k := range p.keys {
		e := p.l.Get(k.hash)
		if e == nil && k.entry != nil && evicts {
			k.entry = nil
		}
		if e != k.entry {
			p.fatalf("%s has the entry %p, want %p", k.name, e, k.entry)
		}
		if e != nil {
			size, n = size+e.size(), n+1
		}
		if got := p.l.Writing(k.hash); got != (k.writers > 0) {
			p.fatalf("%s: writing is %v with %d writers", k.name, got, k.writers)
		}
	}
	if size != p.l.Bytes() || n != p.l.Len() {
		p.fatalf("%d entries of %d bytes are counted as %d of %d", n, size, p.l.Len(), p.l.Bytes())
	}
}

func (p *program) checkIndexes() {
	for i := range p.l.stripes {
		if p.l.stripes[i].index.Load() != nil {
			checkIndex(p.t, &p.l.stripes[i])
		}
	}
}

// Random programs of all calls keep the rules, whatever the index and the policy do.
func TestRandomProgramsKeepTheRules(t *testing.T) {
	for round := range 100 {
		// Small tiers reject and evict; the large one never starts the policy.
		maxBytes := []int64{1000, 5000, 20_000, 1 << 40}[round%4]
		p := newProgram(t, maxBytes, rand.Uint64())
		for range 1000 {
			p.step()
			p.check(maxBytes < 1<<40)
			if p.rnd.IntN(20) == 0 {
				p.feed()
				p.check(true)
			}
			if t.Failed() {
				return
			}
		}
		for _, k := range p.keys {
			for ; k.writers > 0; k.writers-- {
				p.l.End(k.hash, false, KeepFreshness)
			}
			p.l.Put(k.hash, nil)
		}
		p.checkIndexes()
		if p.l.policy.store != nil {
			p.feed()
			if used := p.l.policy.store.MaxCost() - p.l.policy.store.RemainingCost(); used != 0 {
				p.fatalf("round %d: the policy counts %d bytes for nothing", round, used)
			}
		}
		for i := range p.l.stripes {
			if x := p.l.stripes[i].index.Load(); x != nil && x.keys != 0 {
				p.fatalf("round %d: %d slots are held for nothing", round, x.keys)
			}
		}
		if p.l.Bytes() != 0 || p.l.Len() != 0 {
			p.fatalf("round %d: %d bytes and %d entries are left", round, p.l.Bytes(), p.l.Len())
		}
		p.l.Close()
	}
}
