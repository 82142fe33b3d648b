package local

import (
	"fmt"
	"runtime"
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

// standingStill returns a tier whose feeder stands still. The policy has judged the given number of
// small entries.
func standingStill(t *testing.T, maxBytes int64, entries int) (l *Tier, write func(i, size int)) {
	l = New(maxBytes)
	t.Cleanup(l.Close)
	write = func(i, size int) {
		key := fmt.Sprint("k", i)
		h := l.Hash(key)
		l.Begin(h, NewEntry(key, make([]byte, size), Freshness{Expires: clock.Never, Scope: &l.StandaloneScope}))
		l.End(h, true, FreshUntil(clock.Never))
	}
	for i := range entries {
		write(i, 10)
	}
	l.start()
	for chunk := l.policy.take(nil); len(chunk) > 0; chunk = l.policy.take(nil) {
		l.judge(chunk)
	}
	if l.Len() != int64(entries) || l.Queued() != 0 {
		t.Fatalf("%d entries, %d changes queued", l.Len(), l.Queued())
	}
	return l, write
}

// While the feeder stands still, neither new keys nor updates of known ones may make its queue grow.
func TestTheQueueOfTheFeederIsBounded(t *testing.T) {
	l, write := standingStill(t, 100_000, 250)
	for round := range 100 {
		for i := range 500 { // half of them new
			write(i, 100+round%2*500)
		}
	}
	// A key that the policy has may be queued once more, for its removal.
	if got, most := l.Queued(), l.maxBytes/entryOverhead+251; got > most {
		t.Errorf("%d changes are queued, more than %d", got, most)
	}
}

// An entry that was removed to make room, and that comes again before the policy has heard of it,
// can be removed again.
func TestUpdatesBesideABusyPolicyStayWithinMaxBytes(t *testing.T) {
	l, write := standingStill(t, 100_000, 150)
	for round := range 2 {
		for i := range 150 {
			write(i, 1000+round*100)
			if got := l.Bytes(); got > l.maxBytes {
				t.Fatalf("round %d: %d bytes, over %d", round, got, l.maxBytes)
			}
		}
	}
}

// Close waits for the feeder, so a long queue must not keep it.
func TestTheFeederEndsBeforeItsQueue(t *testing.T) {
	l := New(64 << 20)
	defer l.Close()
	for i := range 100_000 {
		l.putPlain(fmt.Sprint("k", i), make([]byte, 100))
	}
	stop := make(chan struct{})
	ended := make(chan struct{})
	l.start()
	l.policy.wake()
	queued := l.Queued()
	go func() {
		l.Feed(stop)
		close(ended)
	}()
	for l.Queued() == queued {
		runtime.Gosched()
	}
	close(stop)
	<-ended
	if l.Queued() == 0 {
		t.Error("the feeder worked off its queue first")
	}
}
