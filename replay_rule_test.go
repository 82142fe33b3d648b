package holdfast

import (
	"context"
	"crypto/sha1"
	"fmt"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/journal"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/holdfast-cache/holdfast/internal/replay"
	"github.com/redis/rueidis"
)

// under is what becomes of a key under each rule.
type under struct {
	want string // "": absent; "list": no string
	says int
}

const (
	saysNothing = iota
	saysDone
	saysSuperseded
)

// held says what Redis holds for a key, in the words of the tables.
func (r *replayed) held(key string) string {
	r.t.Helper()
	if r.do("TYPE", key) == "list" {
		return "list"
	}
	if got := r.do("GET", key); got != nothing {
		return got
	}
	return ""
}

func TestAConflictEndsByTheRule(t *testing.T) {
	for rule := range ConflictOverwrite + 1 {
		t.Run(rule.String(), func(t *testing.T) {
			set := func(o *Options) { o.Journal.OnConflict = rule }
			servers(t, endsByTheRule, set)
			// As with a server that does not know it.
			t.Run("GETEX refused", func(t *testing.T) {
				s := redistest.Start(t)
				s.MustDo("ACL", "SETUSER", "app", "on", ">pw", "~*", "&*", "+@all", "-getex")
				endsByTheRule(t, newReplayed(t, s.Addr(), s.MustDo, set, func(o *Options) {
					o.Redis.Username, o.Redis.Password = "app", "pw"
				}))
			})
		})
	}
}

func endsByTheRule(t *testing.T, r *replayed) {
	rule := r.c.opts.Journal.OnConflict
	now, here := r.c.clock.Now(), r.session().Server
	unknown := journal.Intent{}
	known := journal.Intent{Expected: journal.Holding([]byte("v0"), clock.Never, here)}
	ended := journal.Intent{Expected: journal.Holding([]byte("v0"), now-1, here)}
	absent := journal.Intent{Expected: journal.HoldingNothing(here)}
	v1 := journal.LateWrites{Since: 1, Gone: clock.Never, Sums: []journal.Digest{sha1.Sum([]byte("v1"))}}
	mine := journal.Intent{Expected: known.Expected, PossibleLateWrites: v1}
	mineDel := journal.Intent{Expected: known.Expected, PossibleLateWrites: journal.LateWrites{Since: 1, Gone: clock.Never, Del: true}}
	many := journal.Intent{Expected: known.Expected, PossibleLateWrites: journal.LateWrites{Since: 1, Gone: clock.Never, Sums: v1.Sums, More: true}}

	set := journal.Intent{Value: []byte("ours"), Deadline: clock.Never}
	brief := journal.Intent{Value: []byte("ours"), Deadline: clock.After(now, time.Hour)}
	overdue := journal.Intent{Value: []byte("ours"), Deadline: now - 1}
	del := journal.Intent{Del: true, Deadline: clock.Never}
	undo := journal.Intent{Del: true, Compensate: true, Deadline: clock.Never}

	all := func(want string, says int) [3]under {
		u := under{want, says}
		return [3]under{u, u, u}
	}
	conflict := [3]under{{"", saysSuperseded}, {"theirs", saysSuperseded}, {"ours", saysDone}}
	taken := [3]under{{"", saysSuperseded}, {"", saysSuperseded}, {"ours", saysDone}}
	left := all("list", saysSuperseded)
	for i, tt := range []struct {
		name  string
		what  journal.Intent
		check bool
		known journal.Intent
		holds string
		rules [3]under
	}{
		{"set, base unknown", set, false, unknown, "", all("ours", saysDone)},
		{"set, base unknown", set, false, unknown, "ours", all("ours", saysDone)},
		{"set, base unknown", set, false, unknown, "theirs", conflict},
		{"set, base unknown", set, false, unknown, "list", left},
		{"set, base known", set, false, known, "", taken},
		{"set, base known", set, false, known, "v0", all("ours", saysDone)},
		{"set, base known", set, false, known, "ours", all("ours", saysDone)},
		{"set, base known", set, false, known, "theirs", conflict},
		{"set, base known", set, false, known, "list", left},
		{"set with a TTL, base known", brief, false, known, "", taken},
		{"set with a TTL, base known", brief, false, known, "v0", all("ours", saysDone)},
		{"set with a TTL, base known", brief, false, known, "theirs", conflict},
		{"set with a TTL, base known", brief, false, known, "list", left},
		{"set, the base's time has run out", set, false, ended, "", all("ours", saysDone)},
		{"set, the base's time has run out", set, false, ended, "theirs", conflict},
		{"set, base nothing", set, false, absent, "", all("ours", saysDone)},
		{"set, base nothing", set, false, absent, "theirs", conflict},
		{"set, v1 may have run", set, false, mine, "v1", all("ours", saysDone)},
		{"set, v1 may have run", set, false, mine, "", taken},
		{"set, v1 may have run", set, false, mine, "theirs", conflict},
		{"set, our delete may have run", set, false, mineDel, "", all("ours", saysDone)},
		{"set, too many may have run", set, false, many, "v1", all("ours", saysDone)},
		{"set, too many may have run", set, false, many, "v1024?", taken}, // whose it is cannot be told

		{"expired set", overdue, false, known, "theirs", all("", saysDone)},
		{"expired set", overdue, false, known, "v0", all("", saysDone)},
		{"expired set", overdue, false, known, "list", left},
		{"delete", del, false, known, "theirs", all("", saysDone)},
		{"delete", del, false, known, "", all("", saysDone)},
		{"delete", del, false, known, "list", left},
		{"an Add taken back", undo, false, mine, "v1", all("", saysDone)},
		{"an Add taken back", undo, false, mine, "theirs", all("theirs", saysDone)},
		{"an Add taken back", undo, false, mine, "list", left},

		{"check of a set", set, true, mine, "v1", all("ours", saysNothing)},
		{"check of a set", set, true, mine, "theirs", all("theirs", saysNothing)},
		{"check of a set", set, true, mine, "", all("", saysNothing)},
		{"check of a set", set, true, mine, "list", all("list", saysNothing)}, // was counted before
		{"check of a set, our delete may have run", set, true, mineDel, "", all("ours", saysNothing)},
		{"check of a set, our delete may have run", set, true, mineDel, "theirs", all("theirs", saysNothing)},
		{"check of a set, too many may have run", set, true, many, "v1024?", [3]under{{"", saysSuperseded}, {"", saysSuperseded}, {"ours", saysNothing}}},
		{"check of a delete", del, true, mine, "v1", all("", saysNothing)},
		{"check of a delete", del, true, mine, "theirs", all("theirs", saysNothing)},
		{"check of a delete", del, true, mine, "list", all("list", saysNothing)},
		{"check of an expired set", overdue, true, mine, "v1", all("", saysNothing)},
		{"check of an expired set", overdue, true, mine, "theirs", all("theirs", saysNothing)},
	} {
		key := fmt.Sprint("rule", i)
		switch tt.holds {
		case "":
		case "list":
			r.do("RPUSH", key, "e")
		default:
			r.do("SET", key, tt.holds)
		}
		k := journal.Task{Intent: tt.what, Check: tt.check, Key: key}
		k.Expected, k.PossibleLateWrites, k.Seq = tt.known.Expected, tt.known.PossibleLateWrites, 1
		round, want := r.replay(k), tt.rules[rule]
		if round != (replay.Total{Replayed: b2i(want.says == saysDone), Superseded: b2i(want.says == saysSuperseded)}) {
			t.Errorf("%s, redis held %q: %+v", tt.name, tt.holds, round)
		}
		if got := r.held(key); got != want.want {
			t.Errorf("%s, redis held %q: now %q, want %q", tt.name, tt.holds, got, want.want)
		}
		if ttl := r.do("PTTL", key); want.want == "ours" && (ttl == "-1") != (tt.what.Deadline == clock.Never) {
			t.Errorf("%s, redis held %q: it lives for %sms", tt.name, tt.holds, ttl)
		}
	}
}

// Under ConflictKeep Redis holds another's value afterwards, and so must readers see
// it: neither the local copy nor the journal may go on with ours.
func TestAValueThatIsKeptIsWhatReadersGet(t *testing.T) {
	bg := context.Background()
	s := redistest.Start(t)
	p := redistest.NewProxy(t, s.Addr())
	r := newReplayed(t, p.Addr(), s.MustDo, func(o *Options) { o.Journal.OnConflict = ConflictKeep })
	if err := r.c.Set(bg, "k", []byte("before"), 0); err != nil {
		t.Fatal(err)
	}
	r.drain()
	p.SetMode(redistest.Cut)
	redistest.WaitFor(t, time.Minute, "down", func() bool { return r.c.Health().State == Down })
	if err := r.c.Set(bg, "k", []byte("ours"), 0); err != nil {
		t.Fatal(err)
	}
	r.do("SET", "k", "theirs")
	p.SetMode(redistest.Pass)
	r.up()
	r.drain()
	redistest.WaitFor(t, time.Minute, "the key to leave the journal", func() bool { return r.c.Health().JournalKeys == 0 })
	if got, err := r.c.Get(bg, "k"); err != nil || string(got) != "theirs" {
		t.Errorf("get: %q, %v", got, err)
	}
	if st := r.c.Stats(); st.Superseded != 1 || st.Replayed != 0 {
		t.Errorf("stats %+v", st)
	}
}

func TestWhoWasNeverConnectedKeepsWhatIsThere(t *testing.T) {
	bg := context.Background()
	s := redistest.Start(t)
	p := redistest.NewProxy(t, s.Addr())
	p.SetMode(redistest.Refuse)
	s.MustDo("SET", "k", "theirs")
	c, err := New(Options{
		Redis:   rueidis.ClientOption{InitAddress: []string{p.Addr()}},
		Journal: JournalOptions{OnConflict: ConflictKeep},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, key := range []string{"k", "absent"} {
		if err := c.Set(bg, key, []byte("ours"), 0); err != nil {
			t.Fatal(err)
		}
	}
	// With it what was set is no command on its way any more.
	redistest.WaitFor(t, time.Minute, "the first attempt to fail", func() bool { return c.Health().LastError != nil })
	p.SetMode(redistest.Pass)
	if err := c.Drain(bg); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{"k": "theirs", "absent": "ours"} {
		if got := s.MustDo("GET", key); got != want {
			t.Errorf("%s is %s, want %s", key, got, want)
		}
	}
}

// Finding nothing is judged by when the script may have run, and not by when it was
// sent, in a second look as well; and by a clock that may be behind the server's.
func TestWhatEndsOnTheWayOfAReplayIsExpectedToBeAbsent(t *testing.T) {
	t.Parallel()
	const way = 600 * time.Millisecond
	for rule := range ConflictOverwrite + 1 {
		t.Run(rule.String(), func(t *testing.T) {
			s := redistest.Start(t)
			p := redistest.NewProxy(t, s.Addr())
			r := newReplayed(t, p.Addr(), s.MustDo, func(o *Options) { o.Journal.OnConflict = rule })
			here := r.session().Server
			r.replay(journal.Task{Key: "first", Intent: journal.Intent{Value: []byte("v"), Deadline: clock.Never, Seq: 1}}) // it has the script now
			p.SetLatency(way)                                                                                               // of the answer
			now := r.c.clock.Now()
			var tasks []journal.Task
			cases := []struct {
				name    string
				check   bool
				base    journal.Expected
				late    journal.LateWrites
				deleted bool // somebody did it
			}{
				{"the base ends on the way", false, journal.Holding([]byte("v0"), now+journal.ClockAllowance+int64(way/4), here), journal.LateWrites{}, false},
				{"the base ends soon, by our clock", false, journal.Holding([]byte("v0"), now+journal.ClockAllowance/2, here), journal.LateWrites{}, false},
				{"the base ends in an hour", false, journal.Holding([]byte("v0"), now+int64(time.Hour), here), journal.LateWrites{}, true},
				{"a late value ends on the way", false, journal.Holding([]byte("v0"), clock.Never, here), journal.LateWrites{Since: 1, Gone: now + journal.ClockAllowance + int64(way/4)}, false},
				{"a late value ends in an hour", false, journal.Holding([]byte("v0"), clock.Never, here), journal.LateWrites{Since: 1, Gone: now + int64(time.Hour)}, true},
				{"check, a late value ends on the way", true, journal.Expected{}, journal.LateWrites{Since: 1, Gone: now + journal.ClockAllowance + int64(way/4)}, false},
				{"check, a late value ends in an hour", true, journal.Expected{}, journal.LateWrites{Since: 1, Gone: now + int64(time.Hour)}, true},
			}
			for i, tt := range cases {
				k := journal.Task{Key: fmt.Sprint("k", i), Check: tt.check, Intent: journal.Intent{Value: []byte("ours"), Deadline: clock.Never, Seq: 1}}
				k.Expected, k.PossibleLateWrites = tt.base, tt.late
				if k.PossibleLateWrites.Since == 0 {
					k.PossibleLateWrites.Gone = clock.Never
				}
				tasks = append(tasks, k)
			}
			r.replay(tasks...)
			for i, tt := range cases {
				want := "ours"
				if tt.deleted && (tt.check || rule != ConflictOverwrite) {
					want = ""
				}
				if got := r.held(fmt.Sprint("k", i)); got != want {
					t.Errorf("%s: %q, want %q", tt.name, got, want)
				}
			}
		})
	}
}
