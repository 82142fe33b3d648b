// Package stats has the statistics of measurements that were taken in turns.
package stats

import (
	"math/rand/v2"
	"slices"
)

// Median returns the median of at least one number.
func Median(all []float64) float64 {
	s := slices.Sorted(slices.Values(all))
	n := len(s)
	return (s[(n-1)/2] + s[n/2]) / 2
}

// Interval returns the 95% interval of the median of at least one number, by bootstrap.
func Interval(all []float64) (low, high float64) {
	const resamples = 10_000
	random := rand.New(rand.NewPCG(1, 2)) // the same data give the same interval
	medians := make([]float64, resamples)
	sample := make([]float64, len(all))
	for i := range medians {
		for j := range sample {
			sample[j] = all[random.IntN(len(all))]
		}
		medians[i] = Median(sample)
	}
	slices.Sort(medians)
	return medians[resamples*25/1000], medians[resamples*975/1000]
}
