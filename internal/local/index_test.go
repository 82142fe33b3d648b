package local

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
)

// checkIndex compares the counts of an index with its slots, and says whether each key that it has
// is found.
func checkIndex(t *testing.T, s *stripe) {
	t.Helper()
	x := s.index.Load()
	if x == nil {
		return
	}
	used, keys := 0, 0
	for i := range x.slots {
		k := &x.slots[i]
		if k.place.Load() == 0 {
			if !k.free() {
				t.Errorf("slot %d is empty and has %+v", i, k.state)
			}
			continue
		}
		used++
		if k.free() {
			continue
		}
		keys++
		if s.find(k.place.Load()) != k {
			t.Errorf("the key of slot %d is found elsewhere or not at all", i)
		}
	}
	if used != x.used || keys != x.keys {
		t.Errorf("%d slots are used and %d have keys; counted %d and %d", used, keys, x.used, x.keys)
	}
	if used >= len(x.slots) {
		t.Error("no slot is empty: a probe does not end")
	}
}

// The index of a stripe beside a map: random puts, removals and states of keys that probe from few
// homes.
func TestTheIndexFindsWhatAMapFinds(t *testing.T) {
	for round := range 200 {
		rnd := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), uint64(round)))
		var s stripe
		model := map[uint64]*Entry{}
		held := map[uint64]bool{} // keys with a state
		keys := 1 + rnd.IntN(300)
		homes := uint64(1 + rnd.IntN(8))
		for range 2000 {
			n := uint64(rnd.IntN(keys))
			place := (n%homes)<<60 | n + 1
			k := s.find(place)
			taken := func() *slot {
				if k != nil {
					return k
				}
				return s.take(place)
			}
			switch rnd.IntN(5) {
			case 0, 1:
				e := new(Entry)
				taken().entry.Store(e)
				model[place] = e
			case 2:
				if k != nil {
					k.entry.Store(nil)
					s.release(k)
				}
				delete(model, place)
			case 3:
				taken().queued = true
				held[place] = true
			default:
				if k != nil && k.queued {
					k.queued = false
					s.release(k)
				}
				delete(held, place)
			}
		}
		checkIndex(t, &s)
		for n := range uint64(keys) {
			place := (n%homes)<<60 | n + 1
			k := s.find(place)
			if (k != nil) != (model[place] != nil || held[place]) {
				t.Fatalf("round %d: a slot is there: %v; entry %v, state %v", round, k != nil, model[place] != nil, held[place])
			}
			if k != nil && (k.entry.Load() != model[place] || k.queued != held[place]) {
				t.Fatalf("round %d: place %x has another entry or state than the model", round, place)
			}
		}
		if t.Failed() {
			t.Fatalf("round %d: %d keys, %d homes", round, keys, homes)
		}
	}
}

// Keys that stay are found at any moment, while others come and go around them and the index is
// replaced.
func TestAReaderFindsWhatStaysWhileOthersComeAndGo(t *testing.T) {
	l := New(1 << 30)
	entry := func(key string) *Entry {
		return NewEntry(key, []byte(key), Freshness{Expires: clock.Never, Scope: &l.StandaloneScope})
	}
	const stay = 2000
	for i := range stay {
		key := fmt.Sprint("stays", i)
		l.Put(l.Hash(key), entry(key))
	}
	var done atomic.Bool
	var writers, readers sync.WaitGroup
	for g := range 3 {
		writers.Go(func() {
			rnd := rand.New(rand.NewPCG(3, uint64(g)))
			for range 100_000 {
				key := fmt.Sprint("goes", rnd.IntN(100_000))
				if rnd.IntN(2) == 0 {
					l.Put(l.Hash(key), entry(key))
				} else {
					l.Put(l.Hash(key), nil)
				}
			}
		})
	}
	for range 3 {
		readers.Go(func() {
			for i := 0; !done.Load(); i++ {
				key := fmt.Sprint("stays", i%stay)
				if e := l.Get(l.Hash(key)); e == nil || string(e.Bytes()) != key {
					t.Errorf("%s: %v", key, e)
					return
				}
			}
		})
	}
	writers.Wait()
	done.Store(true)
	readers.Wait()
	for i := range l.stripes {
		checkIndex(t, &l.stripes[i])
	}
}

// What was emptied gives its memory back.
func TestAnIndexShrinks(t *testing.T) {
	l := New(1 << 30)
	const n = 100_000
	slots := func() (n int) {
		for i := range l.stripes {
			if x := l.stripes[i].index.Load(); x != nil {
				n += len(x.slots)
			}
		}
		return n
	}
	for i := range n {
		key := fmt.Sprint(i)
		l.Put(l.Hash(key), NewEntry(key, nil, Freshness{Expires: clock.Never, Scope: &l.StandaloneScope}))
	}
	if got := slots(); got < n || got > 3*n {
		t.Errorf("%d slots for %d keys", got, n)
	}
	for i := range n {
		l.Put(l.Hash(fmt.Sprint(i)), nil)
	}
	if got := slots(); got > 8*smallestIndex*stripeCount {
		t.Errorf("%d slots for no key", got)
	}
	if l.Bytes() != 0 || l.Len() != 0 {
		t.Errorf("%d bytes and %d entries are left", l.Bytes(), l.Len())
	}
}
