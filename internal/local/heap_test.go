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
