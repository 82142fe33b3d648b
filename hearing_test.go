package holdfast

import (
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
)

// A reply may lie in the socket while the process stands still: that it is read says
// that the server was there when the request was sent, and not a moment later.
func TestAServerWasHeardWhenTheRequestWasSentThatItAnswered(t *testing.T) {
	var heard []int64
	h := &hearing{clock: clock.Start(), told: func(at int64) { heard = append(heard, at) }}
	base := h.clock.Base
	sent := func(requests int64, at time.Duration) { h.sends(requests, base.Add(at)) }
	want := func(what string, all ...time.Duration) {
		t.Helper()
		for i := range max(len(heard), len(all)) {
			if len(heard) != len(all) || heard[i] != int64(all[i]) {
				t.Fatalf("%s: heard at %v, want %v", what, heard, all)
			}
		}
	}
	h.reads(0)
	want("nothing was sent")
	sent(0, 1)
	sent(1, 2) // before the first is answered
	sent(2, 3)
	h.reads(0)
	want("nothing is answered")
	h.reads(1)
	want("the first is answered", 1)
	h.reads(3)
	want("the others are answered, and were not watched", 1)
	sent(3, 10)
	h.reads(3)
	want("the next is not", 1)
	h.reads(4)
	want("the next is", 1, 10)
}

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
