// Package latency counts durations in exponential buckets.
package latency

import (
	"math"
	"math/bits"
	"sync/atomic"
	"time"
)

// The buckets are those of an exponential histogram of OpenTelemetry with scale 2, and of a native
// histogram of Prometheus with schema 2: four an octave, bounded above by 2^(n/4) seconds. So an
// exporter passes the counts on as they are.
const (
	// Scale is the scale of OpenTelemetry and the schema of Prometheus.
	Scale = 2

	// First is the index n of the first bucket, which also has all shorter durations: up to about
	// 1 us. The last one, of index Last, has all longer than 2^((Last-1)/4) s, about 13 s.
	First = -80
	Last  = 16

	// Buckets is their number.
	Buckets = Last - First + 1

	perOctave = 1 << Scale
)

// Bound returns the inclusive upper bound of the nth of all buckets, from 0.
func Bound(n int) time.Duration { return bounds[n] }

// bounds are in nanoseconds, rounded down: durations are whole. starts has, for each bit length of a
// duration, the first bucket that it may belong to.
var bounds, starts = func() (b [Buckets]time.Duration, s [65]uint8) {
	for i := range b {
		b[i] = time.Duration(math.Exp2(float64(First+i)/perOctave) * float64(time.Second))
	}
	for n := range s {
		if n == 0 {
			continue
		}
		shortest := time.Duration(1) << min(n-1, 62)
		for int(s[n]) < Buckets-1 && b[s[n]] < shortest {
			s[n]++
		}
	}
	return b, s
}()

// Histogram counts durations. Its zero value is empty. Its methods may be called from any goroutine.
type Histogram struct {
	counts [Buckets]atomic.Uint64
	sum    atomic.Int64
}

// Record counts a duration; a negative one counts as 0. It takes two atomic additions.
func (h *Histogram) Record(d time.Duration) {
	d = max(d, 0)
	i := int(starts[bits.Len64(uint64(d))])
	for i < Buckets-1 && d > bounds[i] {
		i++
	}
	h.counts[i].Add(1)
	h.sum.Add(int64(d))
}

// Snapshot has the counts of a Histogram, which may be a few durations apart from each other.
type Snapshot struct {
	Counts [Buckets]uint64
	Sum    time.Duration
}

// AddTo adds the counts to a snapshot.
func (h *Histogram) AddTo(s *Snapshot) {
	for i := range h.counts {
		s.Counts[i] += h.counts[i].Load()
	}
	s.Sum += time.Duration(h.sum.Load())
}

// Count returns the number of durations.
func (s *Snapshot) Count() (n uint64) {
	for _, c := range s.Counts {
		n += c
	}
	return n
}

// Quantile returns the upper bound of the bucket that has the quantile q, from 0 to 1; 0 if there
// are no durations.
func (s *Snapshot) Quantile(q float64) time.Duration {
	rank := uint64(math.Ceil(min(max(q, 0), 1) * float64(s.Count())))
	var n uint64
	for i, c := range s.Counts {
		if n += c; c > 0 && n >= rank {
			return bounds[i]
		}
	}
	return 0
}

// Minus returns the durations of s that are not in earlier, a snapshot of the same Histogram.
func (s Snapshot) Minus(earlier Snapshot) Snapshot {
	for i := range s.Counts {
		s.Counts[i] -= min(s.Counts[i], earlier.Counts[i])
	}
	s.Sum = max(s.Sum-earlier.Sum, 0)
	return s
}
