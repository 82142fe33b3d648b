package link

import (
	"sync/atomic"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/local"
)

// hearing measures when the server of a connection was last known to be alive. The time at which
// its bytes were read proves nothing: they may have waited in the socket while the process stood
// still. The proof is the time at which an answered request was sent. Replies and invalidations
// arrive in one order, so once a request is answered, every invalidation of a change made before it
// was sent has arrived.
//
// One request at a time is watched, the first of a write to the socket, so the cost is an atomic
// load for each system call.
type hearing struct {
	clock clock.Clock
	told  func(at int64) // runs on the goroutine that reads the connection

	nth atomic.Int64 // number of the watched request, 0 for none; guards at
	at  atomic.Int64 // earliest time at which it was sent
}

// sends is called before a write to the connection. requests is the number of requests sent so far.
func (h *hearing) sends(requests int64, now time.Time) {
	if h.nth.Load() == 0 {
		h.at.Store(h.clock.At(now))
		h.nth.Store(requests + 1)
	}
}

// reads is called before a read of the connection. replies is the number of replies received so
// far. Everything received with them, including invalidations, has been processed.
func (h *hearing) reads(replies int64) {
	nth := h.nth.Load()
	if nth == 0 || replies < nth {
		return
	}
	at := h.at.Load()
	h.nth.Store(0)
	h.told(at)
}

// hears notes that the server was alive at the given time.
func (s *Session) hears(at int64) {
	s.heard.Store(at)
	l := s.Link
	// Check the gate before the session's fields: a greeting may still be writing them.
	if l.Gate.Load() == s && s.tracked && at+l.silence-l.heardUntil.Load() > l.silence/hearingStep {
		l.hear(s)
	}
}

// hearingStep limits how often the end of freshness is moved: only by steps of more than one
// hearingStep-th of the silence. A link of a cluster has thousands of epoch scopes.
const hearingStep = 16

// hear extends the freshness of local copies to the last time the server was heard plus the
// silence. Without tracking, freshness does not depend on the server.
func (l *Link) hear(s *Session) {
	end := int64(clock.Never)
	if s.tracked {
		end = s.heard.Load() + l.silence
	}
	l.heardUntil.Store(end)
	l.Keys.Scopes(func(d *local.EpochScope) { d.Until.Store(end) })
}
