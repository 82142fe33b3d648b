package latency

import (
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

// indexOf is the definition of OpenTelemetry's exponential histograms.
func indexOf(d time.Duration) int {
	n := int(math.Ceil(math.Log2(d.Seconds()) * perOctave))
	return min(max(n, First), Last) - First
}

func TestADurationIsInTheBucketOfTheStandard(t *testing.T) {
	check := func(d time.Duration) {
		t.Helper()
		var h Histogram
		h.Record(d)
		var s Snapshot
		h.AddTo(&s)
		want := 0
		if d > 0 {
			want = indexOf(d)
		}
		// At a bound the logarithm may err.
		if s.Counts[want] != 1 && d != bounds[want] && (want == 0 || d != bounds[want-1]) && (want == Buckets-1 || d != bounds[want+1]) {
			t.Errorf("%v is not in bucket %d: %v", d, want, s.Counts)
		}
		if s.Count() != 1 || s.Sum != max(d, 0) {
			t.Errorf("%v counts as %d durations, in all %v", d, s.Count(), s.Sum)
		}
	}
	for _, d := range []time.Duration{-1, 0, 1, 2, 999, time.Microsecond, time.Second, 16 * time.Second, time.Hour, math.MaxInt64} {
		check(d)
	}
	for i := range Buckets {
		check(bounds[i])
		check(bounds[i] + 1)
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range 200_000 {
		check(time.Duration(math.Exp2(r.Float64() * 40)))
	}
}

func TestBoundsGrowByTheFourthRootOfTwo(t *testing.T) {
	for i := 1; i < Buckets; i++ {
		if ratio := float64(Bound(i)) / float64(Bound(i-1)); math.Abs(ratio-math.Exp2(0.25)) > 0.002 {
			t.Errorf("bound %d is %v times the one before", i, ratio)
		}
	}
	if Bound(-First) != time.Second || Bound(Buckets-1) != 16*time.Second {
		t.Errorf("the bounds of index 0 and %d are %v and %v", Last, Bound(-First), Bound(Buckets-1))
	}
}

func TestQuantilesAreBoundsOfTheirBuckets(t *testing.T) {
	var h Histogram
	var s Snapshot
	h.AddTo(&s)
	if s.Quantile(0.5) != 0 {
		t.Errorf("the median of nothing is %v", s.Quantile(0.5))
	}
	for range 99 {
		h.Record(time.Millisecond)
	}
	h.Record(5 * time.Second)
	h.AddTo(&s)
	if m := s.Quantile(0.5); m < time.Millisecond || m > 1190*time.Microsecond {
		t.Errorf("the median of 1 ms is %v", m)
	}
	if s.Quantile(0.99) != s.Quantile(0) || s.Quantile(1) < 5*time.Second {
		t.Errorf("of 99 durations of 1 ms and one of 5 s the quantiles 0.99 and 1 are %v and %v", s.Quantile(0.99), s.Quantile(1))
	}
	before := s
	h.Record(time.Second)
	var after Snapshot
	h.AddTo(&after)
	if d := after.Minus(before); d.Count() != 1 || d.Sum != time.Second {
		t.Errorf("one more is %d, of %v", d.Count(), d.Sum)
	}
}

func TestManyRecordAtOnce(t *testing.T) {
	var h Histogram
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 1000 {
				h.Record(time.Duration(i))
			}
		})
	}
	wg.Wait()
	var s Snapshot
	h.AddTo(&s)
	if s.Count() != 8000 || s.Sum != 8*999*1000/2 {
		t.Errorf("%d durations, in all %v", s.Count(), s.Sum)
	}
}

func BenchmarkRecord(b *testing.B) {
	var h Histogram
	b.ReportAllocs()
	for i := range b.N {
		h.Record(time.Duration(i%1000) * 50 * time.Microsecond)
	}
}
