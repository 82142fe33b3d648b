package link

import (
	"net"
	"testing"

	"github.com/holdfast-cache/holdfast/internal/dial"
	"github.com/holdfast-cache/holdfast/internal/resp"
)

// A flush that the session which serves tells of is told to the journal, for a set that
// waits may be older; what an earlier session says is about an earlier time.
func TestAFlushIsToldToTheJournalByTheSessionThatServesAlone(t *testing.T) {
	r := newLinkRig(t)
	l := r.open()
	ours, theirs := net.Pipe()
	defer theirs.Close()
	defer ours.Close()
	s := &Session{Pipe: &dial.Pipe{Dialer: dial.Opened(resp.Guard(ours, resp.DefaultLimits, nil))}, Link: l}
	l.invalidated(s, nil)
	if r.watcher.flushes != 0 {
		t.Error("a session that does not serve was believed")
	}
	l.Gate.Store(s)
	l.invalidated(s, nil)
	if r.watcher.flushes != 1 {
		t.Errorf("the journal was told %d times, want once", r.watcher.flushes)
	}
	s.Dialer.Connection().Close() // rueidis says the end of a connection in the same words
	l.invalidated(s, nil)
	if r.watcher.flushes != 1 {
		t.Error("the end of a connection was taken for a flush")
	}
}
