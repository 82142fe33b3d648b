package holdfast_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

// wordy is a way to Redis that can answer in words of its own, as proxies and services do
// whose backend is away, or whose quota is used up.
type wordy struct {
	addr string

	mu     sync.Mutex
	words  func(cmd []string) string // "" lets the command through
	asked  int                       // how many commands it has answered
	cancel []func()
}

func newWordy(t *testing.T, backend string) *wordy {
	l, err := net.Listen("tcp", redistest.FreeAddr(t))
	must(t, err)
	w := &wordy{addr: l.Addr().String()}
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() { w.serve(c, backend) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		w.cut()
		conns.Wait()
	})
	return w
}

func (w *wordy) serve(c net.Conn, backend string) {
	defer c.Close()
	b, err := net.Dial("tcp", backend)
	if err != nil {
		return
	}
	defer b.Close()
	w.mu.Lock()
	w.cancel = append(w.cancel, func() { c.Close(); b.Close() })
	w.mu.Unlock()
	in, replies := bufio.NewReader(c), bufio.NewReader(b)
	for {
		cmd, err := readCommand(in)
		if err != nil {
			return
		}
		w.mu.Lock()
		reply := ""
		if w.words != nil {
			reply = w.words(cmd)
		}
		if reply != "" {
			w.asked++
		}
		w.mu.Unlock()
		if reply == "" {
			var text strings.Builder
			fmt.Fprintf(&text, "*%d\r\n", len(cmd))
			for _, arg := range cmd {
				fmt.Fprintf(&text, "$%d\r\n%s\r\n", len(arg), arg)
			}
			if _, err := io.WriteString(b, text.String()); err != nil {
				return
			}
			if reply, err = readRaw(replies); err != nil {
				return
			}
		}
		if _, err := io.WriteString(c, reply); err != nil {
			return
		}
	}
}

// says has it answer every command like that, or those of which only is true.
func (w *wordy) says(text string, only func(cmd []string) bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if text == "" {
		w.words = nil
		return
	}
	w.words = func(cmd []string) string {
		if only != nil && !only(cmd) {
			return ""
		}
		return "-" + text + "\r\n"
	}
}

// answers has it answer the commands of which only is true with these bytes.
func (w *wordy) answers(raw string, only func(cmd []string) bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.words = func(cmd []string) string {
		if !only(cmd) {
			return ""
		}
		return raw
	}
}

// cut ends the connections that there are.
func (w *wordy) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range w.cancel {
		f()
	}
	w.cancel = nil
}

func (w *wordy) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.asked
}

// forty puts forty sets and forty deletes in the journal of a cache that is down, and
// arrived says how many of them Redis has done.
func forty(t *testing.T, s *redistest.Server, prepare func(c *holdfast.Cache), o holdfast.Options, away func()) (c *holdfast.Cache, arrived func() int) {
	ctx := context.Background()
	c = open(t, o)
	ready(t, c)
	for i := range 40 {
		must(t, c.Set(ctx, fmt.Sprint("set:", i), []byte("before"), 0))
		must(t, c.Set(ctx, fmt.Sprint("deleted:", i), []byte("before"), 0))
	}
	drain(t, c)
	if prepare != nil {
		prepare(c)
	}
	away()
	redistest.WaitFor(t, patience, "an outage", func() bool { return c.Health().State != holdfast.Up })
	for i := range 40 {
		must(t, c.Set(ctx, fmt.Sprint("set:", i), []byte("ours"), 0))
		must(t, c.Delete(ctx, fmt.Sprint("deleted:", i)))
	}
	return c, func() (n int) {
		for i := range 40 {
			if s.MustDo("GET", fmt.Sprint("set:", i)) == "ours" {
				n++
			}
			if s.MustDo("EXISTS", fmt.Sprint("deleted:", i)) == "0" {
				n++
			}
		}
		return n
	}
}

// The way comes back, and answers everything in its own words for two seconds. 80 of 80
// writes were given up over that, in silence.
func TestWhatAWayAnswersForTwoSecondsCostsNoWriteOfTheJournal(t *testing.T) {
	beside(t)
	redistest.Long(t)
	for _, text := range []string{
		"no upstream host", "ERR Connection refused", "ERR max requests limit exceeded", "NOPERM this user has no permissions",
		"ERR backend is not there", "Out of memory", "ERR a script may not run here", "ERR unknown error",
	} {
		t.Run(text, func(t *testing.T) {
			begin(t)
			s := redistest.Start(t)
			w := newWordy(t, s.Addr())
			o := at(w.addr)
			o.Tracking.Mode = holdfast.TrackOff
			c, arrived := forty(t, s, nil, o, func() { w.says("LOADING", nil); w.cut() })
			// Of a connection that stands, from the first replay on.
			w.says(text, func(cmd []string) bool { return cmd[0] != "HELLO" && cmd[0] != "CLIENT" })
			redistest.WaitFor(t, patience, "it to be asked", func() bool { return w.count() > 0 })
			elapsed(t, "words", time.Now(), 2*time.Second)
			w.says("", nil)
			waitState(t, c, holdfast.Up)
			redistest.WaitFor(t, patience, "the writes", func() bool { return c.Health().JournalKeys == 0 })
			if n := arrived(); n != 80 {
				t.Errorf("%d of 80 writes arrived: %+v", n, c.Stats())
			}
		})
	}
}

// As above, but only the replay is answered so, or a part of it: the probe succeeds.
func TestWhatIsRefusedWhileAProbeSucceedsIsHeldUntilItIsNot(t *testing.T) {
	beside(t)
	redistest.Long(t)
	replayed := func(cmd []string) bool {
		return (cmd[0] == "EVALSHA" || cmd[0] == "DEL") && slices.ContainsFunc(cmd, func(arg string) bool {
			return strings.HasPrefix(arg, "set:") || strings.HasPrefix(arg, "deleted:")
		})
	}
	for _, text := range []string{"no upstream host", "ERR max requests limit exceeded", "NOPERM No permissions to access a key", "ERR syntax error"} {
		t.Run(text, func(t *testing.T) {
			ctx := begin(t)
			s := redistest.Start(t)
			w := newWordy(t, s.Addr())
			var lines logLines
			o := at(w.addr)
			o.Tracking.Mode, o.Logger = holdfast.TrackOff, slogTo(&lines)
			c, arrived := forty(t, s, nil, o, func() { w.says("LOADING", nil); w.cut() })
			w.says(text, replayed)
			waitState(t, c, holdfast.Up)
			redistest.WaitFor(t, patience, "all to be held", func() bool { return c.Health().HeldKeys == 80 })
			drain(t, c) // without them
			h, st := c.Health(), c.Stats()
			if h.JournalKeys != 80 || h.HeldSince.IsZero() || st.Held != 80 || st.Rejected != 0 || st.Downgraded != 0 || h.State != holdfast.Up {
				t.Errorf("%+v; %+v", h, st)
			}
			told := 0
			for _, line := range lines.get() {
				if strings.Contains(line, "are held") {
					told++
				}
			}
			if told != 1 {
				t.Errorf("%d lines about one text: %q", told, lines.get())
			}
			// They are read as before, and are tried again one at a time.
			wantGet(t, c, "set:7", "ours")
			wantGet(t, c, "deleted:7", "")
			before, start := w.count(), time.Now()
			elapsed(t, "canaries", start, time.Second)
			// One in a second or more often, as a script and, of a delete, plainly.
			if n := w.count() - before; n > 2*int(time.Since(start)/(50*time.Millisecond)) {
				t.Errorf("%d commands to try them again in a second", n)
			}
			// What is listed can be given up.
			held := map[string]holdfast.HeldWrite{}
			for write := range c.Held() {
				held[write.Key] = write
			}
			if len(held) != 80 || !held["deleted:7"].Delete || held["set:7"].Bytes != 4 || held["set:7"].Refusal == "" {
				t.Errorf("%d are listed, among them %v and %v", len(held), held["deleted:7"], held["set:7"])
			}
			redistest.WaitFor(t, patience, "two to be discarded", func() bool {
				for _, key := range []string{"set:1", "deleted:1"} { // while one is tried it is not
					_, err := c.Discard(ctx, key)
					must(t, err)
				}
				return c.Stats().Discarded == 2
			})
			wantGet(t, c, "set:1", "before")
			wantGet(t, c, "deleted:1", "before")
			// A later write takes the place of what is held, and is tried at once.
			must(t, c.Set(ctx, "set:2", []byte("later"), 0))

			w.says("", nil)
			redistest.WaitFor(t, patience, "the writes", func() bool { return c.Health().JournalKeys == 0 })
			if n := arrived(); n != 77 || s.MustDo("GET", "set:2") != "later" {
				t.Errorf("%d of 77 writes arrived, a later one is %s: %+v", n, s.MustDo("GET", "set:2"), c.Stats())
			}
			if h := c.Health(); h.HeldKeys != 0 || !h.HeldSince.IsZero() {
				t.Errorf("%+v", h)
			}
		})
	}
}

// More than half of what the journal may hold is not refused for itself: then the way is
// to blame, and the replay pauses.
func TestNoMoreThanHalfTheJournalIsHeld(t *testing.T) {
	begin(t)
	s := redistest.Start(t)
	w := newWordy(t, s.Addr())
	o := at(w.addr)
	o.Tracking.Mode, o.Journal.MaxKeys = holdfast.TrackOff, 100
	c, arrived := forty(t, s, nil, o, func() { w.says("LOADING", nil); w.cut() })
	w.says("ERR quota", func(cmd []string) bool {
		return cmd[0] == "DEL" || cmd[0] == "EVALSHA" && !strings.HasPrefix(cmd[3], "holdfast:")
	})
	waitState(t, c, holdfast.Up)
	redistest.WaitFor(t, patience, "some to be held", func() bool { return c.Health().HeldKeys == 50 })
	before := w.count()
	elapsed(t, "pauses", time.Now(), time.Second)
	if h := c.Health(); h.HeldKeys > 50 || h.JournalKeys != 80 {
		t.Errorf("%+v", h)
	}
	if n := w.count() - before; n > 1000 {
		t.Errorf("%d commands in a second", n)
	}
	w.says("", nil)
	redistest.WaitFor(t, patience, "the writes", func() bool { return c.Health().JournalKeys == 0 })
	if n := arrived(); n != 80 {
		t.Errorf("%d of 80 writes arrived: %+v", n, c.Stats())
	}
}

// A second and a half without the script's permission turned every set that waited into
// a delete.
func TestSetsWaitWhileTheScriptIsNotPermittedForAMoment(t *testing.T) {
	beside(t)
	redistest.Long(t)
	for name, deny := range map[string][]string{
		"EVALSHA": {"-evalsha"}, "a command of the script's": {"-get"}, "EVALSHA and SCRIPT": {"-evalsha", "-script"},
	} {
		t.Run(name, func(t *testing.T) {
			begin(t)
			s := redistest.Start(t)
			may := func(rules ...string) {
				s.MustDo(append([]string{"ACL", "SETUSER", "app", "on", "nopass", "~*", "&*", "+@all"}, rules...)...)
			}
			may()
			w := newWordy(t, s.Addr())
			o := at(w.addr)
			o.Redis.Username, o.Redis.Password, o.Tracking.Mode = "app", "any", holdfast.TrackOff
			c, arrived := forty(t, s, nil, o, func() { w.says("LOADING", nil); w.cut() })
			may(deny...)
			w.says("", nil)
			waitState(t, c, holdfast.Up)
			redistest.WaitFor(t, patience, "health to say so", func() bool { return slices.Contains(c.Health().Lacks, "scripts") })
			// Deletes need no script.
			redistest.WaitFor(t, patience, "the deletes", func() bool { return arrived() == 40 })
			elapsed(t, "without a permission", time.Now(), 1500*time.Millisecond)
			may()
			drain(t, c)
			if n := arrived(); n != 80 {
				t.Errorf("%d of 80 writes arrived: %+v", n, c.Stats())
			}
			redistest.WaitFor(t, patience, "health to take it back", func() bool { return !slices.Contains(c.Health().Lacks, "scripts") })
		})
	}
}

// What a way says of the script in its own words, for longer than a server would have to
// say it to be believed, is not the server's word.
func TestSetsWaitForAServerBehindAWayThatKnowsNoScripts(t *testing.T) {
	redistest.Long(t)
	begin(t)
	s := redistest.Start(t)
	w := newWordy(t, s.Addr())
	o := at(w.addr)
	o.Tracking.Mode = holdfast.TrackOff
	c, arrived := forty(t, s, nil, o, func() { w.says("LOADING", nil); w.cut() })
	w.says("ERR unknown command", func(cmd []string) bool { return cmd[0] != "HELLO" && cmd[0] != "CLIENT" })
	for began := time.Now(); time.Since(began) < 13*time.Second; {
		elapsed(t, "words", time.Now(), 500*time.Millisecond)
		w.cut() // and it is greeted anew
	}
	w.says("", nil)
	redistest.WaitFor(t, patience, "the writes", func() bool { return c.Health().JournalKeys == 0 })
	if n := arrived(); n != 80 {
		t.Errorf("%d of 80 writes arrived: %+v", n, c.Stats())
	}
}

// Scripts alone are answered in words that nobody understands, or in none, for longer than
// a server would have to say that it runs none. The sets became deletes.
func TestWhatIsNoWordOnScriptsMakesNoDeleteOfASet(t *testing.T) {
	beside(t)
	redistest.Long(t)
	for name, raw := range map[string]string{"words": "-no upstream host\r\n", "nonsense": "+OK\r\n"} {
		t.Run(name, func(t *testing.T) {
			begin(t)
			s := redistest.Start(t)
			w := newWordy(t, s.Addr())
			o := at(w.addr)
			o.Tracking.Mode = holdfast.TrackOff
			c, arrived := forty(t, s, nil, o, func() { w.says("LOADING", nil); w.cut() })
			w.answers(raw, func(cmd []string) bool { return cmd[0] == "EVALSHA" || cmd[0] == "SCRIPT" })
			waitState(t, c, holdfast.Up)
			elapsed(t, "words", time.Now(), 13*time.Second)
			if h := c.Health(); h.HeldKeys != 40 || h.JournalKeys != 40 {
				t.Errorf("%+v", h)
			}
			w.says("", nil)
			redistest.WaitFor(t, patience, "the writes", func() bool { return c.Health().JournalKeys == 0 })
			if n := arrived(); n != 80 {
				t.Errorf("%d of 80 writes arrived: %+v", n, c.Stats())
			}
		})
	}
}

// An answer that Redis does not give to a delete, or to the script, is none, though it is
// no error either. A delete left the journal over it.
func TestWhatMakesNoSenseEndsNoEntry(t *testing.T) {
	beside(t)
	for name, raw := range map[string]string{"OK": "+OK\r\n", "null": "_\r\n", "nil": "$-1\r\n", "a list": "*0\r\n", "text": "$1\r\n1\r\n"} {
		t.Run(name, func(t *testing.T) {
			begin(t)
			s := redistest.Start(t)
			w := newWordy(t, s.Addr())
			o := at(w.addr)
			o.Tracking.Mode = holdfast.TrackOff
			c, arrived := forty(t, s, nil, o, func() { w.says("LOADING", nil); w.cut() })
			w.answers(raw, func(cmd []string) bool {
				return (cmd[0] == "DEL" || cmd[0] == "EVALSHA") && !slices.ContainsFunc(cmd, func(arg string) bool { return strings.HasPrefix(arg, "holdfast:") })
			})
			waitState(t, c, holdfast.Up)
			redistest.WaitFor(t, patience, "all to be held", func() bool { return c.Health().HeldKeys == 80 })
			w.says("", nil)
			redistest.WaitFor(t, patience, "the writes", func() bool { return c.Health().JournalKeys == 0 })
			if n := arrived(); n != 80 {
				t.Errorf("%d of 80 writes arrived: %+v", n, c.Stats())
			}
		})
	}
}

// It may have run all the same. Then what Redis holds is ours, and no reason to give up
// what was set later.
func TestWhatMakesNoSenseMayHaveRun(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	w := newWordy(t, s.Addr())
	o := at(w.addr)
	o.Tracking.Mode = holdfast.TrackOff
	c, _ := forty(t, s, nil, o, func() { w.says("LOADING", nil); w.cut() })
	w.answers("+OK\r\n", func(cmd []string) bool {
		if cmd[0] != "EVALSHA" || !slices.Contains(cmd, "set:7") {
			return false
		}
		if slices.Contains(cmd, "ours") {
			s.MustDo("SET", "set:7", "ours")
		}
		return true
	})
	waitState(t, c, holdfast.Up)
	redistest.WaitFor(t, patience, "it to be held", func() bool { return c.Health().JournalKeys == 1 && c.Health().HeldKeys == 1 })
	must(t, c.Set(ctx, "set:7", []byte("later"), 0))
	w.says("", nil)
	redistest.WaitFor(t, patience, "the writes", func() bool { return c.Health().JournalKeys == 0 })
	if got, st := s.MustDo("GET", "set:7"), c.Stats(); got != "later" || st.Superseded != 0 {
		t.Errorf("it is %s: %+v", got, st)
	}
}

// What is refused in words that nobody understands is held alone. The others of its script
// were held with it, and came after it one by one.
func TestWhatIsRefusedHoldsNoNeighbour(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	w := newWordy(t, s.Addr())
	o := at(w.addr)
	o.Tracking.Mode = holdfast.TrackOff
	c, arrived := forty(t, s, nil, o, func() { w.says("LOADING", nil); w.cut() })
	must(t, c.Set(ctx, "poison:set", []byte("v"), 0))
	must(t, c.Delete(ctx, "poison:deleted"))
	w.says("shard 7 is being moved", func(cmd []string) bool {
		return slices.ContainsFunc(cmd, func(arg string) bool { return strings.HasPrefix(arg, "poison:") })
	})
	waitState(t, c, holdfast.Up)
	drain(t, c)
	if n, st := arrived(), c.Stats(); n != 80 || st.HeldKeys != 2 || st.Held != 2 {
		t.Errorf("%d of 80 writes arrived: %+v", n, st)
	}
}

// A permission is missing for a moment, nothing waits, so nobody asks again; and much later
// it is missing for a moment again. That is not to have been without it all the time.
func TestTwoMomentsWithoutThePermissionForScriptsAreNotOneLongOne(t *testing.T) {
	redistest.Long(t)
	begin(t)
	s := redistest.Start(t)
	may := func(rules ...string) {
		s.MustDo(append([]string{"ACL", "SETUSER", "app", "on", "nopass", "~*", "&*", "+@all"}, rules...)...)
	}
	may()
	w := newWordy(t, s.Addr())
	o := at(w.addr)
	o.Redis.Username, o.Redis.Password, o.Tracking.Mode = "app", "any", holdfast.TrackOff
	c, arrived := forty(t, s, func(c *holdfast.Cache) {
		may("-evalsha")
		w.cut()
		redistest.WaitFor(t, patience, "health to say so", func() bool { return slices.Contains(c.Health().Lacks, "scripts") })
		may()
		elapsed(t, "nothing to do", time.Now(), 10500*time.Millisecond)
	}, o, func() { w.says("LOADING", nil); w.cut() })
	may("-evalsha")
	w.says("", nil)
	waitState(t, c, holdfast.Up)
	elapsed(t, "without a permission", time.Now(), 2500*time.Millisecond)
	may()
	drain(t, c)
	if n := arrived(); n != 80 {
		t.Errorf("%d of 80 writes arrived: %+v", n, c.Stats())
	}
}

// A Close or Shutdown that leaves what is held says so.
func TestWhatIsHeldCountsAsUndelivered(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	s.MustDo("ACL", "SETUSER", "app", "on", "nopass", "~holdfast:*", "~ours:*", "&*", "+@all")
	w := newWordy(t, s.Addr())
	o := at(w.addr)
	o.Tracking.Mode = holdfast.TrackOff
	o.Redis.Username, o.Redis.Password = "app", "any"
	c, err := holdfast.New(o)
	must(t, err)
	w.says("LOADING", nil)
	w.cut()
	must(t, c.Set(ctx, "theirs:1", []byte("v"), 0))
	must(t, c.Set(ctx, "ours:1", []byte("v"), 0))
	w.says("", nil)
	redistest.WaitFor(t, patience, "one to be held", func() bool { return c.Health().HeldKeys == 1 })
	drain(t, c)
	var u *holdfast.UndeliveredError
	if err := c.Shutdown(ctx); !errors.As(err, &u) || u.Keys != 1 || !strings.Contains(err.Error(), "refuses") {
		t.Errorf("shutdown: %v", err)
	}
}

// A write that one process holds is held by the next process, until Redis takes it.
func TestWhatIsHeldSurvivesTheProcess(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	may := func(keys string) {
		s.MustDo("ACL", "SETUSER", "app", "on", "nopass", "resetkeys", "~holdfast:*", keys, "&*", "+@all")
	}
	may("~ours:*")
	s.MustDo("SET", "theirs:deleted", "before")
	o := at(s.Addr())
	o.Redis.Username, o.Redis.Password = "app", "any"
	o.Journal.Dir = t.TempDir()
	p := redistest.NewProxy(t, s.Addr())
	p.SetMode(redistest.Refuse)
	o.Redis.InitAddress = []string{p.Addr()}
	c, err := holdfast.New(o)
	must(t, err)
	must(t, c.Set(ctx, "theirs:set", []byte("v"), 0))
	must(t, c.Delete(ctx, "theirs:deleted"))
	p.SetMode(redistest.Pass)
	redistest.WaitFor(t, patience, "both to be held", func() bool { return c.Health().HeldKeys == 2 })
	closedEmpty(t, c)
	c = open(t, o)
	wantGet(t, c, "theirs:set", "v")
	redistest.WaitFor(t, patience, "both to be held", func() bool { return c.Health().HeldKeys == 2 })
	wantGet(t, c, "theirs:set", "v")
	wantGet(t, c, "theirs:deleted", "")
	may("~*")
	redistest.WaitFor(t, patience, "both to arrive", func() bool {
		return s.MustDo("GET", "theirs:set") == "v" && s.MustDo("EXISTS", "theirs:deleted") == "0"
	})
	redistest.WaitFor(t, patience, "the journal", func() bool { return c.Health().HeldKeys == 0 })
}

// A write that a round has decided leaves the journal with that round, also where a file has to
// forget it first, and nobody waits for it.
func TestWhatARoundHasDecidedLeavesWithoutAnybodysAsking(t *testing.T) {
	ctx := begin(t)
	s, p := behind(t)
	o := at(p.Addr())
	o.Journal.Dir = t.TempDir()
	c := open(t, o)
	ready(t, c)
	p.SetMode(redistest.Refuse)
	p.SetMode(redistest.Cut)
	waitState(t, c, holdfast.Down)
	for i := range 10 {
		must(t, c.Set(ctx, fmt.Sprint("k", i), []byte("v"), 0))
	}
	p.SetMode(redistest.Pass)
	redistest.WaitFor(t, patience, "the journal to be empty", func() bool { return c.Health().JournalKeys == 0 })
	if got := s.MustDo("GET", "k3"); got != "v" {
		t.Errorf("k3 is %s", got)
	}
}
