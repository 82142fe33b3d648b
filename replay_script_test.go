package holdfast

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/journal"
	"github.com/holdfast-cache/holdfast/internal/link"
	"github.com/holdfast-cache/holdfast/internal/rediserr"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/holdfast-cache/holdfast/internal/replay"
)

// journaled puts writes in the journal and takes them as the replayer would, if that
// was not faster.
func (r *replayed) journaled(writes ...journal.Write) (tasks []journal.Task) {
	for _, w := range writes {
		h := r.c.local.Hash(w.Key)
		r.c.journal.Put(h, w)
		tasks = append(tasks, r.c.journal.TakeOne(h, w.Key)...)
	}
	return tasks
}

// Redis is not held up by looking at what somebody else put there: a script stops
// when it has seen enough, and what it did not come to is done by others.
func TestAScriptThatHasSeenEnoughLeavesTheRestToOthers(t *testing.T) {
	servers(t, func(t *testing.T, r *replayed) {
		big := strings.Repeat("x", 300<<10) // two are enough
		var tasks []journal.Task
		for i := range 6 {
			k := journal.Task{Key: fmt.Sprint("big", i), Intent: journal.Intent{Value: []byte("v"), Deadline: clock.Never}}
			if r.do("SET", k.Key, big); i%3 != 0 {
				k.Expected = journal.Holding([]byte(big), clock.Never, r.session().Server)
			}
			tasks = append(tasks, k)
		}
		if got, want := r.replay(tasks...), (replay.Total{Replayed: 4, Superseded: 2}); got != want {
			t.Errorf("%+v; want %+v", got, want)
		}
		for i, k := range tasks {
			want := "v"
			if i%3 == 0 {
				want = ""
			}
			if got := r.held(k.Key); got != want {
				t.Errorf("%s is %.10q, want %q", k.Key, got, want)
			}
		}
	}, func(o *Options) { o.Timeout = time.Minute })
}

// Of a thousand entries some are refused, each for itself or with those of its script.
func TestAPoisonEntryHoldsUpNobody(t *testing.T) {
	s := redistest.Start(t)
	s.MustDo("ACL", "SETUSER", "app", "on", ">pw", "~holdfast:*", "~ours:*", "&*", "+@all")
	r := newReplayed(t, s.Addr(), s.MustDo, func(o *Options) {
		o.Redis.Username, o.Redis.Password, o.Timeout = "app", "pw", time.Minute
	})
	var tasks []journal.Task
	for i := range 1000 {
		key := fmt.Sprint("ours:", i)
		if i == 500 || i == 501 {
			key = fmt.Sprint("theirs:", i)
		}
		if i%100 == 7 {
			s.MustDo("RPUSH", key, "x")
		}
		tasks = append(tasks, journal.Task{Key: key, Intent: journal.Intent{Value: []byte("v"), Deadline: clock.Never}})
	}
	if got, want := r.replay(tasks...), (replay.Total{Replayed: 988, Superseded: 10, Held: 2}); got != want {
		t.Errorf("%+v; want %+v", got, want)
	}
	if got := s.MustDo("DBSIZE"); got != "998" && got != "999" { // and the probe's key
		t.Errorf("redis has %s keys", got)
	}
	if st := r.c.Stats(); st.Downgraded != 0 || st.BreakerOpens != 0 {
		t.Errorf("stats %+v", st)
	}
}

// Out of memory Redis takes deletes and no sets, also where they share a script.
func TestOutOfMemoryASetWaitsAndADeleteDoesNot(t *testing.T) {
	s := redistest.Start(t)
	r := newReplayed(t, s.Addr(), s.MustDo)
	for _, key := range []string{"deleted", "theirs"} {
		r.do("SET", key, "v0")
	}
	session := r.session()
	r.do("CONFIG", "SET", "maxmemory-policy", "noeviction")
	r.do("CONFIG", "SET", "maxmemory", "1mb")
	tasks := r.journaled(
		journal.Write{Key: "set", Value: []byte("v"), Deadline: clock.Never, Seq: 1},
		journal.Write{Key: "set with a TTL", Value: []byte("v"), Deadline: clock.After(r.c.clock.Now(), time.Hour), Seq: 1},
		journal.Write{Key: "theirs", Value: []byte("v"), Deadline: clock.Never, Seq: 1, Expected: journal.HoldingNothing(session.Server)},
		journal.Write{Key: "deleted", Del: true, Deadline: clock.Never, Seq: 1},
	)
	replayerOf(r.c.routes.SeedLink).Replay(context.Background(), session, tasks)
	// The replayer itself may have come by and taken some.
	redistest.WaitFor(t, time.Minute, "the delete", func() bool { return r.held("deleted") == "" })
	for key, want := range map[string]string{"set": "", "set with a TTL": "", "theirs": "v0"} {
		if !r.c.journal.Holds(r.c.local.Hash(key), key) || r.held(key) != want {
			t.Errorf("%s left the journal; redis holds %q", key, r.held(key))
		}
	}
	r.do("CONFIG", "SET", "maxmemory", "0")
	r.up()
	r.drain()
	if got, conflict := r.held("set"), r.held("theirs"); got != "v" || conflict != "" {
		t.Errorf("with memory again, the set is %q, and what conflicted %q", got, conflict)
	}
	if st := r.c.Stats(); st.Replayed != 3 || st.Superseded != 1 || st.Rejected != 0 || st.Downgraded != 0 {
		t.Errorf("stats %+v", st)
	}
}

// A Redis before 7 puts the script's line before what it had against a command.
func TestARefusalInsideAScriptIsReadWhateverTheVersion(t *testing.T) {
	for _, tt := range []struct {
		err  string
		want rediserr.Class
	}{
		{"@user_script: 12: -OOM command not allowed when used memory > 'maxmemory'.", rediserr.WriteRefused},
		{"OOM command not allowed when used memory > 'maxmemory'.", rediserr.WriteRefused},
		{"@user_script: 12: -READONLY You can't write against a read only replica.", rediserr.WriteRefused},
		{"@user_script: 12: -MISCONF Redis is configured to save RDB snapshots", rediserr.WriteRefused},
		{"-LOADING Redis is loading the dataset in memory", rediserr.Unknown}, // nobody says so
		{"LOADING Redis is loading the dataset in memory", rediserr.Down},
		{"@user_script: 3: The user executing the script can't run this command or subcommand", rediserr.Command},
		{"ERR invalid expire time in 'set' command", rediserr.Command},
	} {
		servers(t, func(t *testing.T, r *replayed) {
			script := "local sha1hex = redis.sha1hex\n" +
				"local redis = {sha1hex = sha1hex, pcall = function() return {err = ARGV[#ARGV]} end}\n" + replay.Script
			b := r.session().Client.B()
			cmd := b.Eval().Script(script).Numkeys(5).Key("a", "b", "c", "d", "e").Arg(
				"set", "v", "0", "", "keep", "v", "0", "", "overwrite", "v", "0", "", "delete", "", "0", "", "reset", "v", "0", "", tt.err).Build()
			answers, err := r.session().Client.Do(context.Background(), cmd).ToArray()
			if err != nil || len(answers) != 5 {
				t.Fatalf("%d answers, %v", len(answers), err)
			}
			for i, m := range answers {
				a := replay.ReadAnswer(m)
				if got := rediserr.Classify(context.Background(), a.Err); got != tt.want {
					t.Errorf("%s: answer %d is %+v, of class %v, want %v", tt.err, i, a, got, tt.want)
				}
			}
		})
	}
}

// saidLongAgo has it that the server said as long ago as matters that it runs no scripts.
func (r *replayed) saidLongAgo() {
	r.c.routes.SeedLink.TestHooks().AgeScripts()
	r.c.routes.SeedLink.Replayer.Wake()
}

// A proxy that takes a script for another command says nothing about scripts: a set is held,
// however long that lasts.
func TestAnAnswerThatMakesNoSenseIsNoVerdict(t *testing.T) {
	for _, answer := range []string{"+OK\r\n", ":1\r\n", "_\r\n", "*0\r\n", "*2\r\n:1\r\n:1\r\n", "*1\r\n:9\r\n", "*1\r\n_\r\n", "*1\r\n+done\r\n"} {
		t.Run(strings.ReplaceAll(answer, "\r\n", " "), func(t *testing.T) {
			deleted := make(chan string, 16)
			l := redistest.Respond(t, func(_ int, args []string) (string, bool) {
				switch strings.ToUpper(args[0]) {
				case "HELLO":
					return "%2\r\n+proto\r\n:3\r\n+mode\r\n+standalone\r\n", true
				case "EVALSHA":
					return answer, true
				case "DEL":
					deleted <- args[1]
					return ":1\r\n", true
				}
				return "+OK\r\n", true
			})
			r := newReplayed(t, l.Addr(), nil)
			r.queued("k", 0)
			r.c.routes.SeedLink.Replayer.Wake()
			redistest.WaitFor(t, time.Minute, "it to be held", func() bool { return r.c.Health().HeldKeys == 1 })
			r.saidLongAgo()
			r.drain()
			if got := r.c.Health(); got.JournalKeys != 1 || slices.Contains(got.Lacks, "scripts") || r.session().Scriptless() {
				t.Errorf("%+v", got)
			}
			if len(deleted) != 0 {
				t.Errorf("%q was deleted", <-deleted)
			}
		})
	}
}

// A server that only imports the slot of a key serves it to those who ask, each time.
func TestWithoutScriptsAServerThatIsToBeAskedIsAsked(t *testing.T) {
	s := redistest.Start(t)
	s.MustDo("ACL", "SETUSER", "app", "on", ">pw", "~*", "&*", "+@all", "-evalsha")
	r := newReplayed(t, s.Addr(), s.MustDo, func(o *Options) { o.Redis.Username, o.Redis.Password = "app", "pw" })
	r.do("SET", "k", "v0")
	tasks := []journal.Task{{Key: "k", Intent: journal.Intent{Del: true, Deadline: clock.Never}}}
	if round, ok := replayerOf(r.c.routes.SeedLink).Pass(context.Background(), r.session(), tasks, true); !ok || round.Replayed != 1 {
		t.Errorf("%+v, %v", round, ok)
	}
	if got := r.held("k"); got != "" {
		t.Errorf("k is %q", got)
	}
	// One before EVALSHA, one before DEL. A server that is in no cluster minds, and
	// runs what follows.
	if got := s.MustDo("INFO", "commandstats"); !strings.Contains(got, "cmdstat_asking:calls=2,") {
		t.Errorf("ASKING was not sent twice: %s", got)
	}
}

// Two nodes may each say that the other one is to be asked, or one of itself. Who is asked
// and sends further is not followed: the entry waits for another round.
func TestAChainOfAsksEndsWithTheSecond(t *testing.T) {
	var addr atomic.Pointer[string]
	var asked atomic.Int64
	var well atomic.Bool
	f := redistest.Respond(t, func(_ int, cmd []string) (string, bool) {
		for addr.Load() == nil {
			time.Sleep(time.Millisecond)
		}
		host, port, _ := strings.Cut(*addr.Load(), ":")
		switch {
		case cmd[0] == "HELLO":
			return "%2\r\n+proto\r\n:3\r\n+mode\r\n+cluster\r\n", true
		case cmd[0] == "INFO":
			return "$0\r\n\r\n", true
		case cmd[0] == "CLUSTER":
			return fmt.Sprintf("*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$%d\r\n%s\r\n:%s\r\n", len(host), host, port), true
		case cmd[0] == "EVALSHA" && cmd[3] == "k" && !well.Load():
			asked.Add(1)
			return fmt.Sprintf("-ASK %d %s\r\n", link.SlotOf("k"), *addr.Load()), true
		case cmd[0] == "EVALSHA":
			return "*1\r\n:1\r\n", true
		}
		return "+OK\r\n", true
	})
	a := f.Addr()
	addr.Store(&a)
	r := newReplayed(t, a, nil, func(o *Options) { o.Mode = ModeCluster })
	l := r.c.routes.Link(r.c.routes.Of("k"))
	r.queued("k", 0)
	l.Replayer.Wake()
	redistest.WaitFor(t, time.Minute, "two rounds", func() bool { return asked.Load() >= 4 })
	for began := time.Now(); time.Since(began) < 500*time.Millisecond; {
		runtime.Gosched()
		time.Sleep(time.Millisecond)
	}
	if n := asked.Load(); n > 40 { // a pause, and two, for each round
		t.Errorf("it was sent %d times in half a second", n)
	}
	well.Store(true)
	r.drain()
	if st := r.c.Stats(); st.Replayed != 1 || st.Superseded != 0 {
		t.Errorf("%+v", st)
	}
}
