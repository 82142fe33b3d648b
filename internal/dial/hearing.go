package dial

import (
	"sync/atomic"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
)

// Hearing measures when the server of a connection was last known to be alive. The time at which
// its bytes were read proves nothing: they may have waited in the socket while the process stood
// still. The proof is the time at which an answered request was sent. Replies and invalidations
// arrive in one order, so once a request is answered, every invalidation of a change made before it
// was sent has arrived.
//
// One request at a time is watched, the first of a write to the socket, so the cost is an atomic
// load for each system call.
type Hearing struct {
	Clock clock.Clock
	// LastAlive gets the time at which an answered request was sent. It runs on the goroutine that
	// reads the connection.
	LastAlive func(at int64)

	nth atomic.Int64 // number of the watched request, 0 for none; guards at
	at  atomic.Int64 // earliest time at which it was sent
}

// sends is called before a write to the connection. requests is the number of requests sent so far.
func (h *Hearing) sends(requests int64, now time.Time) {
	if h.nth.Load() == 0 {
		h.at.Store(h.Clock.At(now))
		h.nth.Store(requests + 1)
	}
}

// reads is called before a read of the connection. replies is the number of replies received so
// far. Everything received with them, including invalidations, has been processed.
func (h *Hearing) reads(replies int64) {
	nth := h.nth.Load()
	if nth == 0 || replies < nth {
		return
	}
	at := h.at.Load()
	h.nth.Store(0)
	h.LastAlive(at)
}
