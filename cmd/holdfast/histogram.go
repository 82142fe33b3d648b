package main

import (
	"math/bits"
	"time"
)

// fine is the number of buckets for each power of two: a quantile is at most 1/fine too
// high.
const fine = 32

// histogram counts durations in buckets that grow with the duration. Its size is fixed.
type histogram struct {
	count   uint64
	longest time.Duration
	buckets [64 * fine]uint32
}

func (h *histogram) add(d time.Duration) {
	d = max(d, 0)
	h.count++
	h.longest = max(h.longest, d)
	h.buckets[bucket(uint64(d))]++
}

func (h *histogram) merge(other *histogram) {
	h.count += other.count
	h.longest = max(h.longest, other.longest)
	for i, n := range other.buckets {
		h.buckets[i] += n
	}
}

// quantile returns a duration that the share q of the counted durations does not exceed;
// 0 if nothing was counted.
func (h *histogram) quantile(q float64) time.Duration {
	if h.count == 0 {
		return 0
	}
	rank := uint64(q * float64(h.count))
	var seen uint64
	for i, n := range h.buckets {
		seen += uint64(n)
		if seen > rank {
			return min(time.Duration(limit(i)), h.longest)
		}
	}
	return h.longest
}

// bucket numbers durations below fine exactly, and others by their power of two and the
// bits that follow the first.
func bucket(v uint64) int {
	if v < fine {
		return int(v)
	}
	shift := bits.Len64(v) - bits.Len64(fine)
	return shift*fine + int(v>>shift)
}

// limit returns the largest value of a bucket.
func limit(i int) uint64 {
	if i < 2*fine {
		return uint64(i)
	}
	shift := i/fine - 1
	return uint64(i-shift*fine+1)<<shift - 1
}
