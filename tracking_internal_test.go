package holdfast

import (
	"net"
	"testing"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/local"
	"github.com/holdfast-cache/holdfast/internal/resp"
)

// A flush that the session which serves tells of is told to the journal, for a set that
// waits may be older; what an earlier session says is about an earlier time.
func TestAFlushIsToldToTheJournalByTheSessionThatServesAlone(t *testing.T) {
	n := 0
	c := &Cache{}
	l := newLink(Options{}.withDefaults(), linkEnv{
		clock: clock.Start(), stats: &c.stats, listeners: &c.listeners, emptied: func() { n++ }, domains: func(func(*local.EpochScope)) {},
	})
	ours, theirs := net.Pipe()
	defer theirs.Close()
	defer ours.Close()
	s := &session{pipe: &pipe{dialer: &dialer{}}, link: l}
	s.dialer.mu.conn = &wire{Conn: resp.Guard(ours, resp.DefaultLimits, nil)}
	l.invalidated(s, nil)
	if n != 0 {
		t.Error("a session that does not serve was believed")
	}
	l.gate.Store(s)
	l.invalidated(s, nil)
	if n != 1 {
		t.Errorf("the journal was told %d times, want once", n)
	}
	s.dialer.mu.conn.Close() // rueidis says the end of a connection in the same words
	l.invalidated(s, nil)
	if n != 1 {
		t.Error("the end of a connection was taken for a flush")
	}
}
