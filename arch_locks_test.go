package holdfast

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-cache/holdfast/internal/house"
)

// designSection returns a section of docs/DESIGN.md without its heading.
func designSection(t *testing.T, heading string) string {
	t.Helper()
	_, section, found := strings.Cut(readFile(t, "docs/DESIGN.md"), "\n## "+heading+"\n")
	if !found {
		t.Fatalf("docs/DESIGN.md has no section %q", heading)
	}
	section, _, _ = strings.Cut(section, "\n## ")
	return section
}

func TestTheListOfLockOrdersIsComplete(t *testing.T) {
	// The computation finds these, and they do not happen or mean nothing.
	harmless := map[string]string{
		"dedicated.mu > dedicated.mu": "the call goes to rueidis' client of the same interface",
		"breaker.mu > done":           "gobreaker's function for the outcome",
		"link.cluster.mu > done":      "gobreaker's function for the outcome",
		"breaker.mu > p.end":          "cancels a context",
		"link.cluster.mu > p.end":     "cancels a context",
		"link.cluster.mu > l.retire":  "cancels a context",
		"journal.shard.mu > d.owns":   "the keyspace of a link: atomic loads",
		"journal.shard.mu > owns":     "the keyspace of a link: atomic loads",
		"journal.shard.mu > hash":     "the hash of a key",
	}
	pure := []string{"cmds.Completed.NoReply", "net.ParseIP", "net.SplitHostPort", "rueidis.RedisError.Error"}

	listed := map[string]bool{}
	for _, row := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\| `([^`]+)` \\|").FindAllStringSubmatch(designSection(t, "Locks"), -1) {
		listed[row[1]+" > "+row[2]] = true
	}
	var production []*house.Package
	for _, p := range packages(t) {
		if !strings.Contains(p.Path, "/internal/house") && !strings.HasSuffix(p.Path, "/internal/redistest") {
			production = append(production, p)
		}
	}
	seen := map[string]bool{}
	for _, h := range house.Locks(production) {
		does := h.Does
		switch h.Kind {
		case house.CallsOut:
			if slices.Contains(pure, does) {
				continue
			}
			does, _, _ = strings.Cut(does, ".") // the package will do
		case house.CallsUnknown:
			does = strings.TrimPrefix(does, "call ")
		}
		order := h.Lock + " > " + does
		seen[order] = true
		if !listed[order] && harmless[order] == "" {
			t.Errorf("%s, which docs/DESIGN.md does not list under Locks: %s", order, h.By)
		}
	}
	for order := range listed {
		if !seen[order] {
			t.Errorf("docs/DESIGN.md lists %s under Locks, which the code does not do", order)
		}
	}
	for order := range harmless {
		if !seen[order] {
			t.Errorf("%s is excused here and does not occur", order)
		}
	}
	// A ring among the rows of locks would be a deadlock to come.
	orders := map[string][]string{}
	for order := range listed {
		held, taken, _ := strings.Cut(order, " > ")
		orders[held] = append(orders[held], taken)
	}
	for _, ring := range house.Knots(orders) {
		t.Errorf("locks are taken in a ring: %v", ring)
	}
}
