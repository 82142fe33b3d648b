package holdfast

import (
	"sync/atomic"
	"time"
)

// hearing finds out when the server at the other end of a connection was there: not
// when its bytes were read, for they may have lain in the socket while the process
// stood still, but when a request was sent that it has answered. Replies and what is
// told of keys come in one order. So once a request is answered, everything was told
// that had changed before it was sent.
//
// One request at a time is watched, the first of a write to the socket: so the price
// is an atomic load for each system call.
type hearing struct {
	clock clock
	told  func(at int64) // on the goroutine that reads the connection

	nth atomic.Int64 // the request that is watched; 0: none. It guards at
	at  atomic.Int64 // when it was sent, at the earliest
}

// sends is called before something is written to the connection, over which so many
// requests have gone until now.
func (h *hearing) sends(requests int64, now time.Time) {
	if h.nth.Load() == 0 {
		h.at.Store(h.clock.at(now))
		h.nth.Store(requests + 1)
	}
}

// reads is called before something is read from the connection, over which so many
// replies have come: what came with them has been done by now, also what was told.
func (h *hearing) reads(replies int64) {
	nth := h.nth.Load()
	if nth == 0 || replies < nth {
		return
	}
	at := h.at.Load()
	h.nth.Store(0)
	h.told(at)
}

// hears is told that the server was there at that time.
func (s *session) hears(at int64) {
	s.heard.Store(at)
	l := s.link
	// The gate before what is known of the session: it may still be greeting.
	if l.gate.Load() == s && s.tracked && at+l.silence-l.heardUntil.Load() > l.silence/hearingStep {
		l.hear(s)
	}
}

// hearingStep is the part of the silence, one in so many, by which its end is moved at
// least: a link of a cluster has thousands of domains.
const hearingStep = 16

// hear has the copies count as end for as long as the server, which was heard, may be
// silent. Where it tells of nothing, nothing is missed while it is.
func (l *link) hear(s *session) {
	end := int64(never)
	if s.tracked {
		end = s.heard.Load() + l.silence
	}
	l.heardUntil.Store(end)
	l.domains(func(d *domain) { d.until.Store(end) })
}

// silence is how long a server that is to tell of changes may be silent until no copy
// counts as fresh: until the circuit would be open, but no longer than it takes to give
// a connection up where Timeout is short.
func (o *Options) silence() time.Duration {
	gap := int64(o.Redis.Dialer.KeepAlive)
	most := saturated(saturated(gap, gap), int64(o.Redis.ConnWriteTimeout))
	each := saturated(int64(o.Timeout), int64(o.Breaker.MinBackoff))
	if n := int64(o.Breaker.Failures); each < most/n {
		return time.Duration(min(most, saturated(int64(o.Breaker.MaxBackoff), each*n)))
	}
	return time.Duration(most)
}
