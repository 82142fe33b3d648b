package holdfast

import (
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-cache/holdfast/internal/rediserr"
)

// Some lines of the log, and OnHold, ran unnamed: Close did not say what it waited for.
func TestWhateverRunsOfTheUsersCodeIsNamed(t *testing.T) {
	var n *notifier
	var seen []string
	see := func() { seen = append(seen, strings.Join(n.running(), ", ")) }
	o := Options{Logger: slog.New(slog.NewTextHandler(writerFunc(see), nil))}
	o.Hooks.OnHold = func(HeldWrite) { see() }
	n = newNotifier(o, &counters{})
	for name, tell := range map[string]func(){
		"isolated":   func() { n.isolated("k", "addr") },
		"scriptless": func() { n.scriptless("addr", errors.New("no")) },
		"held":       func() { n.held(HeldWrite{Key: "k", Refusal: "no"}) },
		"untracked":  func() { n.untracked("addr", "no", 0) },
	} {
		seen = nil
		tell()
		n.call(<-n.events)
		want := []string{theLogger}
		if name == "held" {
			want = append(want, "Hooks.OnHold")
		}
		if !slices.Equal(seen, want) {
			t.Errorf("%s runs %q, want %q", name, seen, want)
		}
	}
}

type writerFunc func()

func (f writerFunc) Write(p []byte) (int, error) { f(); return len(p), nil }

// A key of any length and the text of a refusal make a line of bounded length.
func TestAHeldWriteIsShownInBoundedLength(t *testing.T) {
	key, refusal := strings.Repeat("long", 5000), strings.Repeat("r", rediserr.MaxServerText)
	if text := (HeldWrite{Key: key, Refusal: refusal}).String(); len(text) > 600 {
		t.Errorf("%d bytes", len(text))
	}
}

func TestNoMoreThanFiftyChangesAreKept(t *testing.T) {
	var s changes
	for i := range 3 * keptChanges {
		s.add(StateChange{Shard: string(rune('a' + i))})
	}
	got := s.all()
	if len(got) != keptChanges || got[0].Shard != string(rune('a'+2*keptChanges)) || got[keptChanges-1].Shard != string(rune('a'+3*keptChanges-1)) {
		t.Errorf("%d changes are kept, from %q to %q", len(got), got[0].Shard, got[len(got)-1].Shard)
	}
}
