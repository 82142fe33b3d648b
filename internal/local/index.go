package local

import (
	"math/bits"
	"sync/atomic"
)

// index is the table of one stripe: open addressing with linear probing. Readers take no lock;
// writers hold the stripe's. An index that is full is replaced by a new one and changes no more,
// so a reader that still has it reads the state of the moment of the replacement.
type index struct {
	slots []slot
	used  int // slots that are not empty: a probe ends at an empty one
	keys  int // slots that have a key
}

// slot is what is known of one key. A slot whose key is gone keeps its place, so that probes for
// other keys go past it, until the slot is taken again or the index is replaced.
type slot struct {
	place atomic.Uint64 // Hash.Place of the key; 0: the slot is empty
	entry atomic.Pointer[Entry]
	state
}

// state is the part of a slot that only the holder of the stripe's lock reads. A key without an
// entry keeps its slot while it has a state.
type state struct {
	writers     int32 // own writes on their way to Redis
	overlap     bool  // two own writes were in flight at once: only Redis knows their order
	invalidated bool  // invalidated while an own write was in flight
	queued      bool  // a change is queued for the policy
	judged      bool  // the policy has the key, or is being told
}

// smallestIndex is the number of slots of the first index of a stripe.
const smallestIndex = 8

// home is the first slot of the probe for a key. The stripe is chosen by the lower bits of the
// place, the slot by the upper ones.
func (x *index) home(place uint64) int {
	hi, _ := bits.Mul64(place, uint64(len(x.slots)))
	return int(hi)
}

func (x *index) next(i int) int {
	if i++; i < len(x.slots) {
		return i
	}
	return 0
}

// find returns the slot of a place, which may be free, or nil.
func (x *index) find(place uint64) *slot {
	if x == nil {
		return nil
	}
	for i := x.home(place); ; i = x.next(i) {
		switch s := &x.slots[i]; s.place.Load() {
		case place:
			return s
		case 0:
			return nil
		}
	}
}

// free reports whether the slot has no key. The caller holds the stripe.
func (s *slot) free() bool { return s.entry.Load() == nil && s.state == state{} }

// changed reports whether the policy has to be told of the slot's key: of a change that is queued,
// or of the removal of its entry by trim. The caller holds the stripe.
func (s *slot) changed() bool { return s.queued || s.judged && s.entry.Load() == nil }

// find returns the slot of a place, or nil if it has none. The caller holds the stripe.
func (s *stripe) find(place uint64) *slot {
	if k := s.index.Load().find(place); k != nil && !k.free() {
		return k
	}
	return nil
}

// take gives a slot to a place for which find has found none. It replaces the index if that is three
// quarters full. The caller holds the stripe.
func (s *stripe) take(place uint64) *slot {
	x := s.index.Load()
	if x == nil || x.used >= len(x.slots)/4*3 {
		x = s.resize()
	}
	return x.insert(place)
}

// insert gives a slot to a place that has none, or only a free one.
func (x *index) insert(place uint64) *slot {
	x.keys++
	for i := x.home(place); ; i = x.next(i) {
		s := &x.slots[i]
		if s.place.Load() == 0 {
			x.used++
		} else if !s.free() {
			continue
		}
		s.place.Store(place)
		return s
	}
}

// resize replaces the index by one that is half full with the present keys.
func (s *stripe) resize() *index {
	old := s.index.Load()
	x := &index{}
	if old == nil {
		x.slots = make([]slot, smallestIndex)
	} else {
		x.slots = make([]slot, max(2*old.keys, smallestIndex))
		for i := range old.slots {
			if was := &old.slots[i]; was.place.Load() != 0 && !was.free() {
				now := x.insert(was.place.Load())
				now.state = was.state
				now.entry.Store(was.entry.Load())
			}
		}
	}
	s.index.Store(x)
	return x
}

// release is called when a key has lost its entry or its state. A slot without both is free, and
// empty if no probe has to go past it. The index is replaced by a smaller one when most of it is
// free. The caller holds the stripe.
func (s *stripe) release(k *slot) {
	if !k.free() {
		return
	}
	x := s.index.Load()
	if x.keys--; len(x.slots) > 8*smallestIndex && x.keys < len(x.slots)/8 {
		s.resize()
		return
	}
	i := x.home(k.place.Load())
	for &x.slots[i] != k {
		i = x.next(i)
	}
	if x.slots[x.next(i)].place.Load() != 0 {
		return
	}
	for x.slots[i].place.Load() != 0 && x.slots[i].free() {
		x.slots[i].place.Store(0)
		x.used--
		if i--; i < 0 {
			i = len(x.slots) - 1
		}
	}
}
