package local

import (
	"fmt"
	"testing"

	"github.com/holdfast-cache/holdfast/internal/clock"
)

func (l *Tier) putPlain(key string, value []byte) {
	l.Put(l.Hash(key), NewEntry(key, value, Freshness{Expires: clock.Never, Scope: &l.StandaloneScope}))
}

// An eighth of MaxBytes was held back for new entries.
func TestAllOfMaxBytesIsUsable(t *testing.T) {
	const n, value = 10_000, 96
	l := startLocal(t, n*(4+value+entryOverhead))
	for i := range n {
		l.putPlain(fmt.Sprint(1000 + i)[:4]+fmt.Sprint(i), make([]byte, value))
	}
	waitJudged(t, l)
	if got, want := l.Bytes(), l.maxBytes*97/100; got < want {
		t.Errorf("%d bytes are used of %d", got, l.maxBytes)
	}
}

// ristretto drops a Set when its queue is full. Each entry is judged all the same, or is gone.
func TestAFloodIsJudgedOrGone(t *testing.T) {
	l := startLocal(t, 8<<20)
	for i := range 200_000 {
		l.putPlain(fmt.Sprint(i), make([]byte, i%200))
		if i%3 == 0 {
			l.CountRead(l.Hash(fmt.Sprint(i / 2)))
		}
		if i%5 == 0 {
			l.Put(l.Hash(fmt.Sprint(i/2)), nil)
		}
	}
	waitJudged(t, l)
	var bytes, entries int64
	for i := range l.stripes {
		s := &l.stripes[i]
		s.mu.Lock()
		if x := s.index.Load(); x != nil {
			for j := range x.slots {
				k := &x.slots[j]
				if e := k.entry.Load(); e != nil {
					entries++
					bytes += e.size()
					if !k.judged {
						t.Errorf("an entry that the policy does not know: %+v", k.state)
					}
				}
			}
		}
		s.mu.Unlock()
		checkIndex(t, s)
	}
	if bytes != l.Bytes() || entries != l.Len() {
		t.Errorf("%d entries of %d bytes, counted as %d of %d", entries, bytes, l.Len(), l.Bytes())
	}
	if bytes > l.maxBytes || bytes < l.maxBytes*9/10 {
		t.Errorf("%d bytes of %d are used after a flood", bytes, l.maxBytes)
	}
	if used := l.policy.store.MaxCost() - l.policy.store.RemainingCost(); used != bytes {
		t.Errorf("the policy counts %d bytes, the tier %d", used, bytes)
	}
}
