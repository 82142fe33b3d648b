package dial

import (
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
)

// A reply may lie in the socket while the process stands still: that it is read says
// that the server was there when the request was sent, and not a moment later.
func TestAServerWasHeardWhenTheRequestWasSentThatItAnswered(t *testing.T) {
	var heard []int64
	h := &Hearing{Clock: clock.Start(), LastAlive: func(at int64) { heard = append(heard, at) }}
	base := h.Clock.Base
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
