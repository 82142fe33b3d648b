package holdfast

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-cache/holdfast/internal/rediserr"
	"github.com/holdfast-cache/holdfast/internal/replay"
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

// One rule for what a server says: what is held was shown in another form, up to four
// times as long. And a key of one letter was taken out of every word.
func TestARefusalIsShownAsEveryTextOfAServerIs(t *testing.T) {
	for _, tt := range []struct{ text, key, want string }{
		{"NOPERM no permission for key e", "e", "NOPERM no permission for key *"},
		{"NOPERM no permission for key 'user:12'", "user:12", "NOPERM no permission for key '*'"},
		{"ERR shard 17 of 3 is away", "k", "ERR shard # of # is away"},
		{"ERR k12 and k1", "k1", "ERR *# and *"},
		{"ERR \x1b[31m \"no\"", "", `ERR \x1b[#m "no"`},
		{"ERR é", "", "ERR é"},
	} {
		if got := replay.Refusal(errors.New(tt.text), tt.key); got != tt.want {
			t.Errorf("%q of %q is %q, want %q", tt.text, tt.key, got, tt.want)
		}
	}
	long := replay.Refusal(errors.New("ERR "+strings.Repeat("\x1b\u009b\u202e", 20_000)), "k")
	if len(long) > rediserr.MaxServerText+3 {
		t.Errorf("%d bytes", len(long))
	}
	// Keys of any length make no other refusal of a long text.
	tail := strings.Repeat(" and so on", 100)
	a := replay.Refusal(fmt.Errorf("ERR key %s%s", "short", tail), "short")
	key := strings.Repeat("long", 5000)
	b := replay.Refusal(fmt.Errorf("ERR key %s%s", key, tail), key)
	if a != b {
		t.Errorf("%q\n%q", a, b)
	}
	if text := (HeldWrite{Key: key, Refusal: a}).String(); len(text) > 600 {
		t.Errorf("%d bytes", len(text))
	}
}
