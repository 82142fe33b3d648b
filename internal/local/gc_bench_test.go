//go:build unix

package local

import (
	"fmt"
	"runtime"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/dgraph-io/ristretto/v2"
)

// BenchmarkCollection is a full collection with a million entries of 100 B, beside one with as many in
// ristretto.
func BenchmarkCollection(b *testing.B) {
	const n = 1_000_000
	collect := func() time.Duration {
		runtime.GC()
		begin := cpuTime()
		for range 5 {
			runtime.GC()
		}
		return (cpuTime() - begin) / 5
	}
	for range b.N {
		raw, err := ristretto.NewCache(&ristretto.Config[string, []byte]{NumCounters: 10 * n, MaxCost: n, BufferItems: 64, IgnoreInternalCost: true})
		if err != nil {
			b.Fatal(err)
		}
		for i := range n {
			raw.Set(strconv.Itoa(i), make([]byte, 100), 1)
			if i%1000 == 999 {
				raw.Wait()
			}
		}
		base := collect()
		raw.Close()
		raw = nil
		l := startLocal(b, 450*n)
		for i := range n {
			l.putPlain(fmt.Sprint(i), make([]byte, 100))
		}
		waitJudged(b, l)
		ours := collect()
		if l.Len() != n {
			b.Fatal(l.Len())
		}
		b.ReportMetric(float64(ours.Milliseconds()), "ms")
		b.ReportMetric(float64(base.Milliseconds()), "base-ms")
		b.ReportMetric(float64(ours)/float64(base), "ratio")
	}
}

// cpuTime returns the CPU time that this process has used.
func cpuTime() time.Duration {
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		return 0
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}
