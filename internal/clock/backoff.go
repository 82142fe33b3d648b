package clock

import (
	"math/rand/v2"
	"time"
)

// Backoff is the time between attempts. It doubles from min to max. The jitter only shortens it, so
// that max is never exceeded, and by at most 15%, so that the rate of attempts stays bounded.
type Backoff struct {
	Min, Max time.Duration
	Tries    int
}

const BackoffJitter = 0.15

// Next returns the wait before the next attempt. The first wait is zero: a stable connection that
// broke can usually be made again at once.
func (b *Backoff) Next() time.Duration {
	b.Tries++
	if b.Tries == 1 {
		return 0
	}
	d := b.Min
	for i := 2; i < b.Tries && d < b.Max; i++ {
		if d > b.Max/2 {
			d = b.Max
			break
		}
		d *= 2
	}
	return d - time.Duration(rand.Float64()*BackoffJitter*float64(d))
}

func (b *Backoff) Reset() { b.Tries = 0 }
