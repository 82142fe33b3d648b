package replay

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast/internal/rediserr"
)

func TestAPipelineGrowsWhileItIsQuickAndShrinksWhereItIsNot(t *testing.T) {
	const share = 8 * time.Millisecond
	for _, tt := range []struct {
		batch int
		took  time.Duration
		want  int
	}{
		{8, 0, 16},
		{8, share/2 - 1, 16},
		{8, share / 2, 8},
		{8, share, 8},
		{32, share + 1, 16},
		{firstBatch, time.Hour, firstBatch},
		{mostKeys, 0, mostKeys},
		{mostKeys - 1, 0, mostKeys},
	} {
		if got := nextBatch(tt.batch, tt.took, share); got != tt.want {
			t.Errorf("%d took %v: %d follow, want %d", tt.batch, tt.took, got, tt.want)
		}
	}
}

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
		if got := refusalText(errors.New(tt.text), tt.key); got != tt.want {
			t.Errorf("%q of %q is %q, want %q", tt.text, tt.key, got, tt.want)
		}
	}
	long := refusalText(errors.New("ERR "+strings.Repeat("\x1b\u009b\u202e", 20_000)), "k")
	if len(long) > rediserr.MaxServerText+3 {
		t.Errorf("%d bytes", len(long))
	}
	// Keys of any length make no other refusal of a long text.
	tail := strings.Repeat(" and so on", 100)
	a := refusalText(fmt.Errorf("ERR key %s%s", "short", tail), "short")
	key := strings.Repeat("long", 5000)
	b := refusalText(fmt.Errorf("ERR key %s%s", key, tail), key)
	if a != b {
		t.Errorf("%q\n%q", a, b)
	}
}
