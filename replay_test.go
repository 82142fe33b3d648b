package holdfast

import (
	"context"
	"crypto/sha1"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/journal"
	"github.com/holdfast-cache/holdfast/internal/keyhash"
	"github.com/holdfast-cache/holdfast/internal/link"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/holdfast-cache/holdfast/internal/replay"
	"github.com/redis/rueidis"
	"go.uber.org/goleak"
)

// replayed is a Cache that is up, for tests that hand tasks to its replayer, and
// a way round it to the same server.
type replayed struct {
	t  *testing.T
	c  *Cache
	do func(args ...string) string
}

// newReplayed connects to addr; do goes round the Cache.
func newReplayed(t *testing.T, addr string, do func(args ...string) string, set ...func(*Options)) *replayed {
	t.Helper()
	o := Options{Redis: rueidis.ClientOption{InitAddress: []string{addr}}, Timeout: 2 * time.Second}
	for _, f := range set {
		f(&o)
	}
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		var u *UndeliveredError // some tests end with what Redis refuses
		if err := c.Close(); err != nil && !errors.As(err, &u) {
			t.Errorf("close: %v", err)
		}
	})
	r := &replayed{t, c, do}
	r.up()
	return r
}

// up waits until calls are answered by Redis.
func (r *replayed) up() {
	r.t.Helper()
	redistest.WaitFor(r.t, time.Minute, "up", func() bool {
		r.c.routes.SeedLink.Use()
		return r.c.Health().State == Up
	})
}

func (r *replayed) drain() {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := r.c.Drain(ctx); err != nil {
		r.t.Fatalf("not drained: %v; health %+v", err, r.c.Health())
	}
}

func (r *replayed) session() *link.Session {
	r.t.Helper()
	s := r.c.routes.SeedLink.Gate.Load()
	if s == nil {
		r.t.Fatalf("the gate is closed: %+v", r.c.Health())
	}
	return s
}

// replay hands the tasks to the replayer and returns what it made of them, once
// those on which it found a conflict were deleted by the round after.
func (r *replayed) replay(tasks ...journal.Task) replay.Total {
	r.t.Helper()
	var ours []*journal.Task
	for i := range tasks {
		t := &tasks[i]
		if t.Hash = r.c.local.Hash(t.Key); r.c.journal.Adopt(t) {
			ours = append(ours, t)
		}
	}
	round, ok := replayerOf(r.c.routes.SeedLink).Replay(context.Background(), r.session(), tasks)
	if !ok {
		r.t.Fatalf("redis did not answer: %v", r.c.Health().LastError)
	}
	for _, t := range ours {
		redistest.WaitFor(r.t, time.Minute, "the conflict's end", func() bool { return r.c.journal.Dismiss(t, r.c.clock.Now()) })
	}
	return round
}

// servers runs the test against miniredis and against a real server.
func servers(t *testing.T, test func(t *testing.T, r *replayed), set ...func(*Options)) {
	leaks := func(t *testing.T) {
		old := goleak.IgnoreCurrent()
		t.Cleanup(func() { goleak.VerifyNone(t, old, goleak.IgnoreAnyFunction(redistest.SpawnerFunction)) })
	}
	t.Run("miniredis", func(t *testing.T) {
		leaks(t)
		m := miniredis.RunT(t)
		m.ClockTTL(true)
		test(t, newReplayed(t, m.Addr(), func(args ...string) string {
			t.Helper()
			reply, err := redistest.Do(m.Addr(), args...)
			if err != nil {
				t.Fatalf("%q: %v", args, err)
			}
			return reply
		}, set...))
	})
	t.Run("redis-server", func(t *testing.T) {
		leaks(t)
		s := redistest.Start(t)
		test(t, newReplayed(t, s.Addr(), s.MustDo, set...))
	})
}

const nothing = "(nil)"

func TestAReplayDecidesByWhatRedisHoldsAndWhatWasKnown(t *testing.T) {
	const (
		none = iota
		done
		superseded
	)
	servers(t, func(t *testing.T, r *replayed) {
		now := r.c.clock.Now()
		here := r.session().Server
		unknown := journal.Intent{}
		known := journal.Intent{Expected: journal.Holding([]byte("v0"), clock.Never, here)}
		expiring := journal.Intent{Expected: journal.Holding([]byte("v0"), clock.After(now, time.Hour), here)}
		expired := journal.Intent{Expected: journal.Holding([]byte("v0"), now-1, here)}
		elsewhere := journal.Intent{Expected: journal.Holding([]byte("v0"), clock.Never, "another server")}
		absent := journal.Intent{Expected: journal.HoldingNothing(here)}
		v1 := journal.LateWrites{Since: 1, Gone: clock.Never, Sums: []journal.Digest{sha1.Sum([]byte("v1"))}}
		unknownLate := journal.Intent{PossibleLateWrites: v1}
		knownLate := journal.Intent{Expected: known.Expected, PossibleLateWrites: v1}
		lateExpired := journal.Intent{Expected: known.Expected, PossibleLateWrites: journal.LateWrites{Since: 1, Gone: now - 1, Sums: v1.Sums}}
		lateDelete := journal.Intent{Expected: known.Expected, PossibleLateWrites: journal.LateWrites{Since: 1, Gone: clock.Never, Del: true}}

		wanted := journal.Intent{Value: []byte("ours"), Deadline: clock.Never}
		gone := journal.Intent{Del: true, Deadline: clock.Never}
		overdue := journal.Intent{Value: []byte("ours"), Deadline: now - 1}
		binary := journal.Intent{Value: []byte("\x00\xff\r\n"), Deadline: clock.Never}
		empty := journal.Intent{Value: []byte{}, Deadline: clock.Never}

		var wantRound Replay
		var tasks []journal.Task
		var checks []func()
		for _, tt := range []struct {
			name  string
			what  journal.Intent
			check bool
			known journal.Intent // base and late
			holds string         // "": absent; "list": no string
			want  string         // "": absent
			says  int
		}{
			{"set, base unknown", wanted, false, unknown, "", "ours", done},
			{"set, base unknown", wanted, false, unknown, "ours", "ours", done},
			{"set, base unknown", wanted, false, unknown, "theirs", "", superseded},
			{"set, base unknown", wanted, false, unknown, "list", "list", superseded},
			{"set, base unknown, v1 may have run", wanted, false, unknownLate, "v1", "ours", done},
			{"set, base unknown, v1 may have run", wanted, false, unknownLate, "", "ours", done},
			{"set, base unknown, v1 may have run", wanted, false, unknownLate, "theirs", "", superseded},

			{"set, base known", wanted, false, known, "v0", "ours", done},
			{"set, base known", wanted, false, known, "ours", "ours", done},
			{"set, base known", wanted, false, known, "", "", superseded}, // somebody deleted it
			{"set, base known", wanted, false, known, "theirs", "", superseded},
			{"set, base known", wanted, false, known, "v1", "", superseded},
			{"set, base known", wanted, false, known, "list", "list", superseded},
			{"set, base known to be nothing", wanted, false, absent, "", "ours", done},
			{"set, base known to be nothing", wanted, false, absent, "theirs", "", superseded},

			{"set, base known, v1 may have run", wanted, false, knownLate, "v0", "ours", done},
			{"set, base known, v1 may have run", wanted, false, knownLate, "v1", "ours", done},
			{"set, base known, v1 may have run", wanted, false, knownLate, "", "", superseded},
			{"set, base known, v1 may have run", wanted, false, knownLate, "theirs", "", superseded},
			{"set, base known, v1 may have run and ended", wanted, false, lateExpired, "", "ours", done},
			{"set, base known, our delete may have run", wanted, false, lateDelete, "", "ours", done},
			{"set, base known, our delete may have run", wanted, false, lateDelete, "v0", "ours", done},
			{"set, base known, our delete may have run", wanted, false, lateDelete, "theirs", "", superseded},

			{"set, base known of another server", wanted, false, elsewhere, "", "ours", done}, // a loss
			{"set, base known of another server", wanted, false, elsewhere, "v0", "ours", done},
			{"set, base known of another server", wanted, false, elsewhere, "theirs", "", superseded},
			{"set, base known, with time left", wanted, false, expiring, "", "", superseded},
			{"set, base known, its time has run out", wanted, false, expired, "", "ours", done},
			{"set, base known, its time has run out", wanted, false, expired, "v0", "ours", done},
			{"set, base known, its time has run out", wanted, false, expired, "theirs", "", superseded},

			{"binary set", binary, false, known, "v0", "\x00\xff\r\n", done},
			{"binary set", binary, false, known, "\x00\xff\r\n", "\x00\xff\r\n", done},
			{"empty set", empty, false, unknown, "", "<empty>", done},
			{"empty set", empty, false, known, "v0", "<empty>", done},
			{"empty set", empty, false, known, "", "", superseded},

			{"delete", gone, false, unknown, "", "", done},
			{"delete", gone, false, unknown, "theirs", "", done},
			{"delete", gone, false, known, "v0", "", done},
			{"delete", gone, false, known, "theirs", "", done},
			{"delete", gone, false, known, "list", "list", superseded},

			{"expired set", overdue, false, known, "v0", "", done},
			{"expired set", overdue, false, unknown, "theirs", "", done},
			{"expired set", overdue, false, unknown, "", "", done},
			{"expired set", overdue, false, known, "list", "list", superseded},

			// The second check undoes what we did ourselves, and nothing else.
			{"check of a set", wanted, true, knownLate, "v1", "ours", none},
			{"check of a set", wanted, true, knownLate, "ours", "ours", none},
			{"check of a set", wanted, true, knownLate, "v0", "v0", none},
			{"check of a set", wanted, true, knownLate, "theirs", "theirs", none},
			{"check of a set", wanted, true, knownLate, "", "", none},
			{"check of a set, base unknown", wanted, true, unknownLate, "", "", none},
			{"check of a set, base unknown", wanted, true, unknownLate, "v1", "ours", none},
			{"check of a set, our delete may have run", wanted, true, lateDelete, "", "ours", none},
			{"check of a set, our delete may have run", wanted, true, lateDelete, "theirs", "theirs", none},
			{"check of a delete", gone, true, knownLate, "v1", "", none},
			{"check of a delete", gone, true, knownLate, "theirs", "theirs", none},
			{"check of a delete", gone, true, knownLate, "", "", none},
			{"check of an expired set", overdue, true, knownLate, "v1", "", none},
			{"check of an expired set", overdue, true, knownLate, "theirs", "theirs", none},
		} {
			key := fmt.Sprint("key", len(tasks))
			switch tt.holds {
			case "":
			case "list":
				r.do("RPUSH", key, "e1", "e2")
			default:
				r.do("SET", key, tt.holds)
			}
			k := journal.Task{Intent: tt.what, Check: tt.check}
			k.Key, k.Expected, k.PossibleLateWrites, k.Seq = key, tt.known.Expected, tt.known.PossibleLateWrites, 1
			tasks = append(tasks, k)
			switch tt.says {
			case done:
				wantRound.Replayed++
			case superseded:
				wantRound.Superseded++
			}
			checks = append(checks, func() {
				var got string
				switch {
				case r.do("TYPE", key) == "list":
					if got = "list"; r.do("LLEN", key) != "2" {
						got = "another list"
					}
				default:
					if got = r.do("GET", key); got == nothing {
						got = ""
					} else if got == "" {
						got = "<empty>"
					}
				}
				if got != tt.want {
					t.Errorf("%s, redis held %q: now %q, want %q", tt.name, tt.holds, got, tt.want)
				}
			})
			if one := r.replay(k); one.Replayed != b2i(tt.says == done) || one.Superseded != b2i(tt.says == superseded) || one.Held+one.Rejected != 0 {
				t.Errorf("%s, redis holds %q: %+v", tt.name, tt.holds, one)
			}
		}
		for _, check := range checks {
			check()
		}
		if st := r.c.Stats(); int(st.Superseded) != wantRound.Superseded || int(st.Replayed) != wantRound.Replayed {
			t.Errorf("%d replayed and %d superseded are counted, want %d and %d", st.Replayed, st.Superseded, wantRound.Replayed, wantRound.Superseded)
		}
	})
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

func TestAPipelineOfTasksSettlesEachForItself(t *testing.T) {
	servers(t, func(t *testing.T, r *replayed) {
		here := r.session().Server
		r.do("SET", "theirs", "x")
		r.do("RPUSH", "list", "x")
		var tasks []journal.Task
		for _, key := range []string{"a", "theirs", "b", "list", "c"} {
			tasks = append(tasks, journal.Task{Key: key, Intent: journal.Intent{Value: []byte("v:" + key), Deadline: clock.Never, Expected: journal.HoldingNothing(here)}})
		}
		if got, want := r.replay(tasks...), (replay.Total{Replayed: 3, Superseded: 2}); got != want {
			t.Errorf("%+v, want %+v", got, want)
		}
		for key, want := range map[string]string{"a": "v:a", "b": "v:b", "c": "v:c", "theirs": nothing} {
			if got := r.do("GET", key); got != want {
				t.Errorf("%s is %q, want %q", key, got, want)
			}
		}
	})
}

func TestAReplayKeepsTheTimeThatIsLeft(t *testing.T) {
	for rule := range ConflictOverwrite + 1 {
		t.Run(rule.String(), func(t *testing.T) {
			servers(t, keepsTheTimeThatIsLeft, func(o *Options) { o.Journal.OnConflict = rule })
		})
	}
}

func keepsTheTimeThatIsLeft(t *testing.T, r *replayed) {
	now := r.c.clock.Now()
	longest := clock.After(now, 1<<63-1-2*time.Hour)
	for _, tt := range []struct {
		name     string
		holds    string
		deadline int64
		check    bool
		ttl      time.Duration // -1ms: none
	}{
		{"none", "v0", clock.Never, false, -time.Millisecond},
		{"a minute", "v0", clock.After(now, time.Minute), false, time.Minute},
		{"a year", "v0", clock.After(now, 365*24*time.Hour), false, 365 * 24 * time.Hour},
		{"as long as it gets", "v0", longest, false, time.Duration(longest - now)},
		{"none, the same value", "v", clock.Never, false, -time.Millisecond},
		{"a minute, the same value", "v", clock.After(now, time.Minute), false, time.Minute},
		{"a minute, checked", "v1", clock.After(now, time.Minute), true, time.Minute},
		{"none, checked", "v1", clock.Never, true, -time.Millisecond},
	} {
		r.do("SET", "k", tt.holds, "EX", "1000")
		k := journal.Task{Key: "k", Intent: journal.Intent{
			Value: []byte("v"), Deadline: tt.deadline, Expected: journal.Holding([]byte("v0"), clock.Never, ""),
			PossibleLateWrites: journal.LateWrites{Since: 1, Gone: clock.Never, Sums: []journal.Digest{sha1.Sum([]byte("v1"))}},
		}, Check: tt.check}
		r.replay(k)
		ms, err := strconv.ParseInt(r.do("PTTL", "k"), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		got := time.Duration(ms) * time.Millisecond
		if got > tt.ttl || got < tt.ttl-30*time.Second || tt.ttl < 0 && got != tt.ttl || r.do("GET", "k") != "v" {
			t.Errorf("%s: %q for another %v, want %v", tt.name, r.do("GET", "k"), got, tt.ttl)
		}
	}
	// What has less than a millisecond left is set for one, which redis takes.
	k := journal.Task{Key: "brief", Intent: journal.Intent{Value: []byte("v"), Deadline: r.c.clock.Now() + int64(500*time.Microsecond)}}
	if round := r.replay(k); round.Replayed != 1 {
		t.Errorf("half a millisecond: %+v", round)
	}
	redistest.WaitFor(t, time.Minute, "its end", func() bool { return r.do("EXISTS", "brief") == "0" })
}

// A server forgets its scripts by SCRIPT FLUSH, by a restart and by a failover.
// That must not turn sets into deletes.
func TestAServerThatForgotTheScriptIsGivenItAgain(t *testing.T) {
	servers(t, func(t *testing.T, r *replayed) {
		for i := range 3 {
			var tasks []journal.Task
			for j := range 3 {
				tasks = append(tasks, journal.Task{Key: fmt.Sprint(i, j), Intent: journal.Intent{Value: []byte("v"), Deadline: clock.Never}})
			}
			if got, want := r.replay(tasks...), (replay.Total{Replayed: 3}); got != want {
				t.Errorf("round %d: %+v, want %+v", i, got, want)
			}
			for j := range 3 {
				if got := r.do("GET", fmt.Sprint(i, j)); got != "v" {
					t.Errorf("round %d: %q", i, got)
				}
			}
			r.do("SCRIPT", "FLUSH")
		}
		if n := r.c.Stats().Downgraded; n != 0 {
			t.Errorf("%d sets became deletes", n)
		}
	})
}

// Where the script may not run nothing can be compared: a set becomes a delete,
// and the journal goes on.
func TestWithoutScriptsAReplayDeletes(t *testing.T) {
	for _, tt := range []struct {
		name string
		acl  []string
		args []string
		// loads: EVALSHA is allowed, and only the script cannot be left there.
		// Then it is as well if the sets are made by another way.
		loads bool
	}{
		{name: "no permission for EVALSHA", acl: []string{"+@all", "-evalsha"}},
		{name: "no permission for any script command", acl: []string{"+@all", "-@scripting"}},
		{name: "EVALSHA is unknown", args: []string{"--rename-command", "EVALSHA", ""}},
		{name: "no permission for SCRIPT", acl: []string{"+@all", "-script"}, loads: true},
		{name: "SCRIPT is unknown", args: []string{"--rename-command", "SCRIPT", ""}, loads: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := redistest.Start(t, tt.args...)
			var login []func(*Options)
			if tt.acl != nil {
				s.MustDo(slices.Concat([]string{"ACL", "SETUSER", "app", "on", ">pw", "~*", "&*"}, tt.acl)...)
				login = append(login, func(o *Options) { o.Redis.Username, o.Redis.Password = "app", "pw" })
			}
			r := newReplayed(t, s.Addr(), s.MustDo, login...)
			if lacks := r.c.Health().Lacks; !slices.Contains(lacks, "scripts") {
				t.Errorf("the greeting has told of no lack: %q", lacks)
			}
			r.saidLongAgo()
			if err := r.session().AskScripts(context.Background()); err != nil {
				t.Fatal(err)
			}
			for _, key := range []string{"set", "deleted", "untouched"} {
				r.do("SET", key, "v0")
			}
			var tasks []journal.Task
			for _, w := range []journal.Write{
				{Key: "set", Value: []byte("v"), Deadline: clock.Never, Seq: 1, Expected: journal.Holding([]byte("v0"), clock.Never, "")},
				{Key: "absent", Value: []byte("v"), Deadline: clock.Never, Seq: 1},
				{Key: "deleted", Del: true, Deadline: clock.Never, Seq: 1},
			} {
				h := r.c.local.Hash(w.Key)
				r.c.journal.Put(h, w)
				tasks = append(tasks, r.c.journal.TakeOne(h, w.Key)...)
			}
			round, ok := replayerOf(r.c.routes.SeedLink).Replay(context.Background(), r.session(), tasks)
			written := tt.loads && round.Replayed == 3
			if !ok || round.Superseded != 0 || round.Held+round.Rejected != 0 || !written && round.Replayed != 1 {
				t.Errorf("%+v, %v", round, ok)
			}
			for key, want := range map[string]string{"set": nothing, "absent": nothing, "deleted": nothing, "untouched": "v0"} {
				if written && key != "deleted" && key != "untouched" {
					want = "v"
				}
				if got := r.do("GET", key); got != want {
					t.Errorf("%s is %q, want %q", key, got, want)
				}
			}
			if st := r.c.Stats(); st.Downgraded != uint64(3-round.Replayed) || st.Superseded != 0 || st.Rejected != 0 || st.JournalKeys != 0 {
				t.Errorf("stats %+v", st)
			}
			if h := r.c.Health(); h.State != Up {
				t.Errorf("health %+v", h)
			}
		})
	}
}

// Redis refuses one entry and accepts others: it is held and does not hold up the others.
func TestAnEntryThatRedisRefusesIsHeldAndHoldsUpNobody(t *testing.T) {
	s := redistest.Start(t)
	s.MustDo("ACL", "SETUSER", "app", "on", ">pw", "~holdfast:*", "~ours:*", "+@all")
	holds := make(chan HeldWrite, 10)
	r := newReplayed(t, s.Addr(), s.MustDo, func(o *Options) {
		o.Redis.Username, o.Redis.Password = "app", "pw"
		o.Hooks.OnHold = func(h HeldWrite) { holds <- h }
		o.Hooks.OnDrop = func(d Drop) {
			if d.Reason != DropUndelivered { // by Close, at the end
				t.Errorf("dropped: %+v", d)
			}
		}
	})
	var tasks []journal.Task
	for _, key := range []string{"ours:1", "theirs:1", "ours:2"} {
		h := r.c.local.Hash(key)
		r.c.journal.Put(h, journal.Write{Key: key, Value: []byte("v"), Deadline: clock.Never, Seq: 1})
		tasks = append(tasks, r.c.journal.TakeOne(h, key)...)
	}
	round, ok := replayerOf(r.c.routes.SeedLink).Replay(context.Background(), r.session(), tasks)
	if want := (replay.Total{Replayed: 2, Held: 1}); round != want || !ok {
		t.Errorf("%+v, %v; want %+v", round, ok, want)
	}
	r.drain() // is not held up by that
	if st := r.c.Stats(); st.Rejected != 0 || st.Replayed != 2 || st.Held != 1 || st.HeldKeys != 1 {
		t.Errorf("stats %+v", st)
	}
	if r.do("GET", "ours:1") != "v" || r.do("GET", "ours:2") != "v" || r.do("GET", "theirs:1") != nothing {
		t.Error("redis does not hold the others")
	}
	if h := r.c.Health(); h.JournalKeys != 1 || h.HeldKeys != 1 || time.Since(h.HeldSince) > time.Minute {
		t.Errorf("health %+v", h)
	}
	if got, err := r.c.Get(context.Background(), "theirs:1"); err != nil || string(got) != "v" {
		t.Errorf("what is held is read as %q, %v", got, err)
	}
	select {
	case h := <-holds:
		if h.Key != "theirs:1" || !strings.Contains(h.Refusal, "permission") {
			t.Errorf("told of %+v", h)
		}
	case <-time.After(10 * time.Second):
		t.Error("not told")
	}
}

// A read-only replica refuses the script and with it every write: that is no
// fault of the entries.
func TestAReplayThatMeetsAReplicaKeepsItsEntries(t *testing.T) {
	server := redistest.Start(t)
	r := newReplayed(t, server.Addr(), server.MustDo)
	s := r.session()
	r.do("REPLICAOF", "127.0.0.1", "1")
	h := r.c.local.Hash("k")
	r.c.journal.Put(h, journal.Write{Key: "k", Value: []byte("v"), Deadline: clock.Never, Seq: 1})
	tasks := r.c.journal.TakeOne(h, "k")
	round, ok := replayerOf(r.c.routes.SeedLink).Replay(context.Background(), s, tasks)
	if ok || round != (replay.Total{}) {
		t.Errorf("%+v, %v; want nothing done", round, ok)
	}
	if !r.c.journal.Holds(h, "k") || r.c.Stats().Rejected != 0 {
		t.Errorf("the entry is gone: %+v", r.c.Stats())
	}
	r.do("REPLICAOF", "NO", "ONE")
	r.up()
	r.drain()
	if got := r.do("GET", "k"); got != "v" {
		t.Errorf("after the promotion k is %q", got)
	}
}

func TestWhatARestartLostIsWrittenAgainAndWhatSomebodyDeletedIsNot(t *testing.T) {
	bg := context.Background()
	s := redistest.Start(t)
	p := redistest.NewProxy(t, s.Addr())
	r := newReplayed(t, p.Addr(), s.MustDo)
	set := func(key, value string) {
		t.Helper()
		if err := r.c.Set(bg, key, []byte(value), 0); err != nil {
			t.Fatal(err)
		}
	}
	away := func() {
		t.Helper()
		p.SetMode(redistest.Cut)
		redistest.WaitFor(t, time.Minute, "down", func() bool { return r.c.Health().State == Down })
	}

	set("k", "v0")
	set("other", "v0")
	r.drain()
	away()
	set("k", "v1")
	set("other", "v1")
	r.do("DEL", "k") // somebody else, on the server that stays
	p.SetMode(redistest.Pass)
	r.up()
	r.drain()
	if got := r.do("GET", "k"); got != nothing {
		t.Errorf("somebody deleted k on the same server, and it is %q", got)
	}
	if got := r.do("GET", "other"); got != "v1" {
		t.Errorf("other is %q, want v1", got)
	}
	if st := r.c.Stats(); st.Superseded != 1 {
		t.Errorf("stats %+v", st)
	}

	set("k", "v2")
	r.drain()
	away()
	set("k", "v3")
	s.Kill()
	s.RestartEmpty()
	if got := r.do("GET", "k"); got != nothing {
		t.Fatalf("the server came back with %q", got)
	}
	p.SetMode(redistest.Pass)
	r.up()
	r.drain()
	if got := r.do("GET", "k"); got != "v3" {
		t.Errorf("the server came back empty, and k is %q, want v3", got)
	}
	if got, err := r.c.Get(bg, "k"); err != nil || string(got) != "v3" {
		t.Errorf("get: %q, %v", got, err)
	}
}

// The whole way of a write that timed out on a server that hung: its late run is
// found and undone, and a foreign value that came after it stays.
func TestALateRunOfOurOwnWriteIsUndoneByTheSecondCheck(t *testing.T) {
	servers(t, func(t *testing.T, r *replayed) {
		here := r.session().Server
		var tasks []journal.Task
		for _, key := range []string{"late", "foreign"} {
			r.do("SET", key, "v0")
			h := r.c.local.Hash(key)
			w := journal.Write{Key: key, Value: []byte("v1"), Deadline: clock.Never, Seq: 1, Expected: journal.Holding([]byte("v0"), clock.Never, here), SentOn: 1 << 40}
			r.c.journal.Put(h, w)
			w.Value, w.Seq, w.SentOn = []byte("v2"), 2, 0
			r.c.journal.Put(h, w)
			tasks = append(tasks, r.c.journal.TakeOne(h, key)...)
		}
		if got, want := r.replay(tasks...), (replay.Total{Replayed: 2}); got != want {
			t.Fatalf("%+v, want %+v", got, want)
		}
		if n := r.c.Health().JournalKeys; n != 2 {
			t.Errorf("%d keys wait for their second check, want 2", n)
		}
		r.drain()                      // is not held up by that
		r.do("SET", "late", "v1")      // the server runs what session 1<<40 had sent
		r.do("SET", "foreign", "new!") // and somebody writes
		if got, err := r.c.Get(context.Background(), "late"); err != nil || string(got) != "v2" {
			t.Errorf("get late before its check: %q, %v; want the journal's", got, err)
		}
		checks := r.c.journal.Take(10, 1<<20, r.c.clock.Now()+int64(journal.LateAfter), r.c.local.Hash, every)
		if len(checks) != 2 || !checks[0].Check || !checks[1].Check {
			t.Fatalf("checks: %+v", checks)
		}
		if got := r.replay(checks...); got != (replay.Total{}) {
			t.Errorf("a second check counts as %+v", got)
		}
		if late, foreign := r.do("GET", "late"), r.do("GET", "foreign"); late != "v2" || foreign != "new!" {
			t.Errorf("late is %q, want v2; foreign is %q, want new!", late, foreign)
		}
	})
}

// queued puts a set in the journal without telling the replayer.
func (r *replayed) queued(key string, sentOn uint64) keyhash.Hash {
	h := r.c.local.Hash(key)
	r.c.journal.Put(h, journal.Write{Key: key, Value: []byte("v"), Deadline: clock.Never, Seq: 1, SentOn: sentOn})
	return h
}

// A caller has a fenced key replayed for it, and its context ends meanwhile.
func TestACallerWhoLeavesWhileItsKeyIsReplayedTripsNothing(t *testing.T) {
	s := redistest.Start(t)
	p := redistest.NewProxy(t, s.Addr())
	r := newReplayed(t, p.Addr(), s.MustDo)
	p.SetLatency(100 * time.Millisecond)
	// Ten who waited in vain. Who came while the replayer had the key was told so
	// at once, and does not count.
	for waited, limit := 0, time.Now().Add(time.Minute); waited < 10; {
		r.queued("k", 0)
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Millisecond)
		_, err := r.c.Add(ctx, "k", []byte("w"), 0)
		switch {
		case errors.Is(err, context.DeadlineExceeded):
			waited++
		case err != nil && !errors.Is(err, ErrUnavailable):
			t.Errorf("add: %v, want the caller's own deadline", err)
		case time.Now().After(limit):
			t.Fatalf("add does not wait: %v", err)
		}
		cancel()
		runtime.Gosched()
	}
	if n := r.c.Stats().BreakerOpens; n != 0 {
		t.Errorf("impatient callers opened the circuit %d times", n)
	}
	p.SetLatency(0)
}

// While a caller has a key replayed for it, the replayer passes by and finds
// nothing to do. What the caller leaves undone must not wait for the next outage.
func TestWhatACallersReplayLeavesUndoneIsDoneByTheReplayer(t *testing.T) {
	t.Parallel()
	s := redistest.Start(t)
	r := newReplayed(t, s.Addr(), s.MustDo)
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	abandoned := r.c.journal.TakeOne(r.queued("abandoned", 0), "abandoned")
	ambiguous := r.c.journal.TakeOne(r.queued("ambiguous", 1<<40), "ambiguous")
	r.queued("other", 0)
	r.c.routes.SeedLink.Replayer.Wake()
	redistest.WaitFor(t, time.Minute, "the replayer to pass by", func() bool { return r.do("GET", "other") == "v" })
	redistest.WaitFor(t, time.Minute, "the replayer to settle that", func() bool { return !r.c.journal.Holds(r.c.local.Hash("other"), "other") })

	replayerOf(r.c.routes.SeedLink).Replay(gone, r.session(), abandoned)
	replayerOf(r.c.routes.SeedLink).Replay(context.Background(), r.session(), ambiguous)
	limit := time.Now().Add(journal.LateAfter + 2*time.Second)
	for r.c.Health().JournalKeys > 0 && time.Now().Before(limit) {
		runtime.Gosched()
		r.do("PING")
	}
	for _, key := range []string{"abandoned", "ambiguous"} {
		if r.c.journal.Holds(r.c.local.Hash(key), key) {
			t.Errorf("%s is fenced for ever; redis holds %q", key, r.do("GET", key))
		}
	}
}

// Redis has an older value for a set that it refuses for good, and others read that value.
func TestASetThatIsRefusedForLongBecomesADelete(t *testing.T) {
	s := redistest.Start(t)
	s.MustDo("ACL", "SETUSER", "app", "on", ">pw", "~holdfast:*", "%R~*", "+@all")
	s.MustDo("SET", "theirs", "old")
	drops := make(chan Drop, 10)
	r := newReplayed(t, s.Addr(), s.MustDo, func(o *Options) {
		o.Redis.Username, o.Redis.Password = "app", "pw"
		o.Hooks.OnDrop = func(d Drop) { drops <- d }
	})
	r.queued("theirs", 0)
	r.c.routes.SeedLink.Replayer.Wake()
	redistest.WaitFor(t, time.Minute, "it to be held", func() bool { return r.c.Health().HeldKeys == 1 })
	if keys := r.c.journal.ExpireHeld(r.c.clock.Now() - int64(journal.HeldSets)); len(keys) != 0 {
		t.Errorf("it is given up at once: %q", keys)
	}
	redistest.WaitFor(t, time.Minute, "a minute", func() bool {
		return r.c.journal.AgeHeld(r.c.local.Hash("theirs"), "theirs", int64(journal.HeldSets))
	})
	if d := <-drops; d != (Drop{"theirs", DropRejected}) {
		t.Errorf("told of %+v", d)
	}
	// The delete is held as long as it is refused.
	redistest.WaitFor(t, time.Minute, "the delete to be held", func() bool { return r.c.Health().HeldKeys == 1 })
	r.drain()
	if got := r.do("GET", "theirs"); got != "old" {
		t.Errorf("it is %q", got)
	}
	s.MustDo("ACL", "SETUSER", "app", "~*")
	redistest.WaitFor(t, time.Minute, "the delete", func() bool { return r.do("GET", "theirs") == nothing })
	if st := r.c.Stats(); st.Rejected != 1 {
		t.Errorf("%+v", st)
	}
}

// The greeting does not have the script call everything. What is refused then is refused
// to that entry, or the server would be asked again for ever.
func TestACommandOfTheScriptsThatFewEntriesNeedHoldsUpThose(t *testing.T) {
	s := redistest.Start(t)
	s.MustDo("ACL", "SETUSER", "app", "on", ">pw", "~*", "+@all", "-persist")
	s.MustDo("SET", "k", "v") // what is wanted is there already
	r := newReplayed(t, s.Addr(), s.MustDo, func(o *Options) { o.Redis.Username, o.Redis.Password = "app", "pw" })
	r.queued("k", 0)
	r.queued("other", 0)
	r.c.routes.SeedLink.Replayer.Wake()
	r.drain()
	if h := r.c.Health(); h.HeldKeys != 1 || len(h.Lacks) != 0 || r.do("GET", "other") != "v" {
		t.Errorf("%+v", h)
	}
}

func every(string, bool) bool { return true }
