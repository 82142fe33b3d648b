package stats

import (
	"math/rand/v2"
	"testing"
)

func TestTheMedianOfAnEvenNumberIsTheMeanOfTheMiddleTwo(t *testing.T) {
	for _, c := range []struct {
		all  []float64
		want float64
	}{{[]float64{3}, 3}, {[]float64{9, 1, 2}, 2}, {[]float64{4, 100, 1, 2}, 3}} {
		given := append([]float64(nil), c.all...)
		if got := Median(c.all); got != c.want {
			t.Errorf("Median(%v) is %v, want %v", c.all, got, c.want)
		}
		for i := range given {
			if c.all[i] != given[i] {
				t.Errorf("Median has changed its argument: %v, was %v", c.all, given)
			}
		}
	}
}

func TestTheIntervalHoldsTheMedianOfTheSourceInNineteenOfTwenty(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	const rounds, size = 200, 25
	held := 0
	for range rounds {
		all := make([]float64, size)
		for i := range all {
			all[i] = 10 + random.NormFloat64()
		}
		low, high := Interval(all)
		if m := Median(all); m < low || m > high {
			t.Fatalf("the interval %v to %v is beside the median %v of its data", low, high, m)
		}
		if low <= 10 && 10 <= high {
			held++
		}
	}
	// Of 200 the standard deviation is 3.
	if held < 180 || held > 199 {
		t.Errorf("the intervals of %d of %d samples hold the median of the source", held, rounds)
	}
}

func TestTheIntervalOfEqualNumbersIsThatNumber(t *testing.T) {
	if low, high := Interval([]float64{2, 2, 2}); low != 2 || high != 2 {
		t.Errorf("%v to %v", low, high)
	}
}
