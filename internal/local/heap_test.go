//go:build !race

package local

import (
	"fmt"
	"runtime"
	"testing"
)

// The heap was 1.31 to 1.47 times MaxBytes under a scan. The race detector has memory of its own.
func TestTheHeapStaysWithinMaxBytes(t *testing.T) {
	heap := func() int64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	for _, size := range []int{20, 100, 1000, 5000} {
		before := heap()
		l := startLocal(t, 32<<20)
		for i := range 4 * (32 << 20) / (300 + size) {
			l.putPlain(fmt.Sprint("key:", i), make([]byte, size))
		}
		waitJudged(t, l)
		held := heap() - before
		t.Logf("values of %d bytes: %d entries, heap %.3f of MaxBytes", size, l.Len(), float64(held)/float64(l.maxBytes))
		if held > l.maxBytes*11/10 {
			t.Errorf("values of %d bytes: the heap is %.2f times MaxBytes", size, float64(held)/float64(l.maxBytes))
		}
		runtime.KeepAlive(l)
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
