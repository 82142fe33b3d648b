package compat

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/rueidis"
	"github.com/redis/rueidis/rueidiscompat"
)

// venue is a server of its own and the way to a client of it, as the ClientBuilder of a
// library: rueidis' own client, or that of a Cache.
type venue struct {
	redis *redistest.Server
	build func(rueidis.ClientOption) (rueidis.Client, error)
	cache *holdfast.Cache // nil for rueidis' own client
}

func plainVenue(t testing.TB) venue {
	redis := redistest.Start(t)
	return venue{redis: redis, build: func(o rueidis.ClientOption) (rueidis.Client, error) {
		o.InitAddress, o.ForceSingleClient = []string{redis.Addr()}, true
		return rueidis.NewClient(o)
	}}
}

func cacheVenue(t testing.TB, timeout time.Duration) venue {
	redis := redistest.Start(t)
	cache := open(t, redis, timeout)
	return venue{redis: redis, build: cache.NewClient, cache: cache}
}

// story is the record of a program: each result that it got.
type story struct {
	venue
	c     rueidiscompat.Cmdable
	lines []string
}

func newStory(t testing.TB, v venue) *story {
	t.Helper()
	client, err := v.build(rueidis.ClientOption{})
	must(t, err)
	t.Cleanup(client.Close)
	return &story{venue: v, c: rueidiscompat.NewAdapter(client)}
}

func (s *story) note(what string, v any, err error) {
	s.lines = append(s.lines, fmt.Sprintf("%s: %v, %v (nil: %t)", what, v, err, err == rueidiscompat.Nil))
}

// tell notes the result of a command.
func tell[T any](s *story, what string, cmd interface{ Result() (T, error) }) {
	v, err := cmd.Result()
	s.note(what, v, err)
}

// set notes the result of one that has no order.
func set[T cmp.Ordered](s *story, what string, cmd interface{ Result() ([]T, error) }) {
	v, err := cmd.Result()
	slices.Sort(v)
	s.note(what, v, err)
}

// about notes a time, as what it is a few seconds less than.
func about(s *story, what string, cmd interface {
	Result() (time.Duration, error)
}) {
	v, err := cmd.Result()
	if v > 0 {
		v = (v + 10*time.Minute).Truncate(time.Hour)
	}
	s.note(what, v, err)
}

// programs use a Redis as programs do that are written for rueidis or for a library on it.
var programs = []struct {
	name string
	run  func(context.Context, *story)
}{
	{"strings", stringsProgram},
	{"counters", countersProgram},
	{"expiry", expiryProgram},
	{"hashes", hashesProgram},
	{"lists", listsProgram},
	{"sets", setsProgram},
	{"streams and bits", streamsProgram},
	{"pipelines", pipelinesProgram},
	{"transactions", transactionsProgram},
	{"watch", watchProgram},
	{"scripts", scriptsProgram},
	{"scan", scanProgram},
	{"cache", cacheProgram},
	{"cached reads of each type", cachedTypesProgram},
	{"mistakes", mistakesProgram},
	{"subscribe", subscribeProgram},
	{"rueidislock", lockProgram},
	{"rueidisaside", asideProgram},
	{"rueidisaside, typed", typedAsideProgram},
	{"centrifuge's broker", brokerProgram},
	{"centrifuge's presence", redisPresenceProgram},
	{"a PresenceManager on a client", presenceProgram},
}

// A program gets the same results on a Cache as on a client of rueidis, and leaves the same
// keys.
func TestProgramsGetTheSameResultsAsOnAPlainClient(t *testing.T) {
	theirs, ours := plainVenue(t), cacheVenue(t, budget)
	for _, p := range programs {
		t.Run(p.name, func(t *testing.T) {
			want, got := newStory(t, theirs), newStory(t, ours)
			var both sync.WaitGroup
			for _, s := range []*story{want, got} {
				both.Go(func() {
					for range 2 { // the second time on the keys that the first has left
						p.run(context.Background(), s)
					}
				})
			}
			bounded(p.name, both.Wait)
			if len(want.lines) < 4 {
				t.Fatalf("the program noted only %q", want.lines)
			}
			for i := range max(len(want.lines), len(got.lines)) {
				if i >= len(got.lines) || i >= len(want.lines) || got.lines[i] != want.lines[i] {
					t.Errorf("line %d\nplain:    %q\nholdfast: %q", i, from(want.lines, i), from(got.lines, i))
				}
			}
			equal(t, "the server's keys", contents(ours.redis), contents(theirs.redis))
		})
	}
}

func from(lines []string, i int) string {
	if i >= len(lines) {
		return "-"
	}
	return lines[i]
}

// contents is what a server holds, without the cache's own key.
func contents(s *redistest.Server) string {
	return s.MustDo("EVAL", `local keys = redis.call("KEYS", "*"); table.sort(keys)
		local all = {}
		for _, k in ipairs(keys) do
			if not k:find("^holdfast") then
				all[#all+1] = k .. "=" .. redis.call("TYPE", k).ok .. ":" .. redis.sha1hex(
					redis.call("TYPE", k).ok == "string" and redis.call("GET", k) or "")
			end
		end
		return table.concat(all, " ")`, "0")
}
