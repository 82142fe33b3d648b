package link

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/holdfast-cache/holdfast/internal/dial"
)

// linkTable is the table of link.go, cell by cell. Where it has no answer, since
// the event cannot come, the state must stay.
var linkTable = []struct {
	from State
	to   [6]State // by event
}{
	//           ok      no write  failed      lost        refused     close
	{Connecting, [6]State{Up, ReadOnly, Connecting, Connecting, Connecting, Closed}},
	{Up, [6]State{Up, ReadOnly, Down, Down, ReadOnly, Closed}},
	{ReadOnly, [6]State{Up, ReadOnly, Down, Down, ReadOnly, Closed}},
	{Down, [6]State{Up, ReadOnly, Down, Down, Down, Closed}},
	{Closed, [6]State{Closed, Closed, Closed, Closed, Closed, Closed}},
}

var allEvents = [6]event{evProbeOK, evProbeRefused, evProbeFailed, evLost, evRefused, evClose}

func TestTheLinkStepsAsItsTableSays(t *testing.T) {
	for _, row := range linkTable {
		for i, ev := range allEvents {
			if got := step(row.from, ev); got != row.to[i] {
				t.Errorf("%v, event %d: %v, want %v", row.from, ev, got, row.to[i])
			}
		}
	}
}

func TestTheTableAboveTheLinkIsTheOneItSteps(t *testing.T) {
	src, err := os.ReadFile("link.go")
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]State{"Connecting": Connecting, "Up": Up, "ReadOnly": ReadOnly, "Down": Down, "Closed": Closed}
	rows := 0
	for line := range strings.Lines(string(src)) {
		line, isComment := strings.CutPrefix(strings.TrimSpace(line), "//")
		cells := strings.Split(line, "|")
		if !isComment || len(cells) != 1+len(allEvents) {
			continue
		}
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		from, ok := names[cells[0]]
		if !ok {
			continue // the heading
		}
		rows++
		for i, cell := range cells[1:] {
			want, ok := names[cell]
			if cell == "-" {
				want, ok = from, true
			}
			if !ok {
				t.Errorf("%v: cell %q is no state", from, cell)
			}
			if got := step(from, allEvents[i]); got != want {
				t.Errorf("%v, event %d: the code says %v and its comment %q", from, allEvents[i], got, cell)
			}
		}
	}
	if rows != len(names) {
		t.Errorf("%d rows of %d states: where has the table gone?", rows, len(names))
	}
}

// Once the sentinels name another master, what the old one acknowledges is lost. It
// took writes for as long as the dial of the new one lasted.
func TestADeposedMasterTakesNoWriteWhileTheNewOneIsDialled(t *testing.T) {
	r := newLinkRig(t)
	var l *Link
	old := &Session{Pipe: &dial.Pipe{Addr: "old:1"}}
	old.Writable.Store(true)
	tookWrites, dialled := false, false
	r.cfg.Redis.DialCtxFn = func(context.Context, string, *net.Dialer, *tls.Config) (net.Conn, error) {
		tookWrites, dialled = l.Writer(false) != nil, true
		return nil, errors.New("nobody there")
	}
	r.find.server = func() (string, error) { return "new:1", nil }
	l = r.open()
	l.mu.health.State = Up
	l.session = old
	l.Gate.Store(old)
	if l.Writer(false) == nil {
		t.Fatal("the old master takes no writes to begin with")
	}
	if _, _, err := l.candidate(context.Background()); err == nil {
		t.Fatal("a session with nobody")
	}
	if !dialled || tookWrites {
		t.Errorf("dialled %v, and the old master took writes meanwhile: %v", dialled, tookWrites)
	}
	if h := l.health(); h.State != ReadOnly || h.Writable {
		t.Errorf("health %+v", h)
	}
	if l.Reader() != old {
		t.Error("reads do not go on")
	}
}
