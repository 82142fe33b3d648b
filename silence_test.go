package holdfast

import (
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
)

// The bound is the one that the README states, and does not grow with Timeout: before, a
// connection was given up when its server had been silent for that long.
func TestTheSilenceAfterWhichNoCopyIsFresh(t *testing.T) {
	for _, tt := range []struct {
		name string
		set  func(*Options)
		want time.Duration
	}{
		{"by default", func(*Options) {}, 1750 * time.Millisecond},
		{"a shorter back-off", func(o *Options) {
			o.Breaker.MinBackoff, o.Breaker.MaxBackoff = 20*time.Millisecond, 100*time.Millisecond
		}, 450 * time.Millisecond},
		{"a long Timeout", func(o *Options) { o.Timeout = 10 * time.Second }, 4 * time.Second},
		{"a very long one", func(o *Options) { o.Timeout = clock.Never }, 4 * time.Second},
		{"a long back-off", func(o *Options) { o.Breaker.MaxBackoff = time.Minute }, 4 * time.Second},
		{"a connection that is given up late", func(o *Options) { o.Timeout, o.Redis.ConnWriteTimeout = 10*time.Second, clock.Never }, 51500 * time.Millisecond},
		{"any number of failures", func(o *Options) { o.Breaker.Failures = 1 << 40 }, 4 * time.Second},
	} {
		o := Options{}
		tt.set(&o)
		o = o.withDefaults()
		if got := o.silence(); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}
