package holdfast

import (
	"testing"

	"github.com/holdfast-cache/holdfast/internal/link"
)

func TestStatesHaveTheirLowerCaseNames(t *testing.T) {
	for s, want := range map[State]string{
		Connecting: "connecting", Up: "up", ReadOnly: "readonly", Down: "down", Closed: "closed",
		Closed + 1: "state(5)", 255: "state(255)",
	} {
		if got := s.String(); got != want {
			t.Errorf("state %d is %q, want %q", uint8(s), got, want)
		}
	}
}

// The links have states and topologies of their own, which a Cache shows as these.
func TestStatesAndModesAreThoseOfTheLinks(t *testing.T) {
	for from, to := range map[link.State]State{
		link.Connecting: Connecting, link.Up: Up, link.ReadOnly: ReadOnly, link.Down: Down, link.Closed: Closed,
	} {
		if State(from) != to {
			t.Errorf("state %d of a link is %v, want %v", from, State(from), to)
		}
	}
	for _, m := range []Mode{ModeAuto, ModeStandalone, ModeSentinel, ModeCluster} {
		if got := link.Topology(m).String(); got != m.String() {
			t.Errorf("%v is %q for the links", m, got)
		}
	}
}
