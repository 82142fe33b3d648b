package holdfast_test

import (
	"errors"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/rueidis"
)

// A script may write keys that it does not name. The server tells of them, but mostly
// behind the script's reply, and with prefixes not at all.
func TestWhatAScriptWritesWithoutNamingItIsReadAfterIt(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	for _, mode := range []holdfast.TrackingMode{holdfast.TrackReads, holdfast.TrackPrefixes} {
		o := at(s.Addr())
		o.Timeout, o.Tracking.Mode = 10*time.Second, mode
		if mode == holdfast.TrackPrefixes {
			o.Tracking.Prefixes = []string{"n"}
		}
		c := open(t, o)
		ready(t, c)
		cl := c.Client()
		for i := range 500 {
			want := strconv.Itoa(i)
			wantSay(t, cl, "OK", "EVAL", "return redis.call('SET','n:'..'x',ARGV[1])", "0", want)
			wantSay(t, cl, want, "GET", "n:x")
			wantSay(t, cl, want, "GET", "n:x")
			// Also in the batch that has the script.
			res := cl.DoMulti(ctx, built(cl.B(), []string{"EVAL", "return redis.call('INCR','n:'..'x')", "0"}), cl.B().Get().Key("n:x").Build())
			if got, err := textOf(res[1]); err != nil || got != strconv.Itoa(i+1) {
				t.Fatalf("GET behind a script: %q, %v", got, err)
			}
		}
	}
}

// FLUSHALL is behind every write of ours that was accepted before it, also behind one
// that waits in the journal.
func TestNothingComesBackAfterAFlush(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	o := at(s.Addr())
	o.Journal.MaxRate = 20
	c := open(t, o)
	ready(t, c)
	cl := c.Client()
	const n = 40
	for i := range n {
		wantSay(t, cl, "OK", "SET", "k"+strconv.Itoa(i), "1")
	}
	s.Kill()
	waitState(t, c, holdfast.Down)
	for i := range n {
		wantSay(t, cl, "OK", "SET", "k"+strconv.Itoa(i), "2")
	}
	s.Restart()
	waitState(t, c, holdfast.Up)
	for i, res := range cl.DoMulti(ctx, cl.B().Flushall().Build(), cl.B().Set().Key("k0").Value("3").Build()) {
		if err := res.Error(); err != nil {
			t.Fatalf("command %d: %v", i, err)
		}
	}
	if c.Health().JournalKeys == 0 {
		t.Fatal("all was replayed before the flush came: the test shows nothing")
	}
	for i := range n {
		want := "(nil)"
		if i == 0 {
			want = "3" // it was set behind the flush
		}
		wantSay(t, cl, want, "GET", "k"+strconv.Itoa(i))
	}
	drain(t, c)
	for i := range n {
		if got := s.MustDo("GET", "k"+strconv.Itoa(i)); i > 0 && got != "(nil)" || got == "2" {
			t.Errorf("k%d came back: %s", i, got)
		}
	}
}

// A batch may change a key's expiry and then set its value: the expiry is of the value before.
func TestAnEndIsOfTheValueThatItWasGiven(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	for _, mode := range []holdfast.TrackingMode{holdfast.TrackReads, holdfast.TrackOff} {
		o := at(s.Addr())
		o.Timeout, o.Tracking.Mode = 10*time.Second, mode
		o.Tracking.UntrackedTTL = time.Hour
		c := open(t, o)
		ready(t, c)
		cl := c.Client()
		wantSay(t, cl, "OK", "SET", "a", "1", "EX", "900")
		wantSay(t, cl, "OK", "SET", "b", "1")
		for i, res := range cl.DoMulti(ctx, cl.B().Persist().Key("a").Build(), cl.B().Set().Key("a").Value("2").ExSeconds(100).Build(),
			cl.B().Expire().Key("b").Seconds(50).Build(), cl.B().Set().Key("b").Value("2").Build()) {
			if err := res.Error(); err != nil {
				t.Fatal(i, err)
			}
		}
		for key, want := range map[string]string{"a": "100", "b": "-1"} {
			if got := say(t, cl, "TTL", key); got != want {
				t.Errorf("TTL %s: %s; want %s", key, got, want)
			}
		}
		s.Kill()
		waitState(t, c, holdfast.Down)
		for key, want := range map[string]string{"a": "100", "b": "-1"} {
			if got, err := ask(cl, "TTL", key); err == nil && got != want {
				t.Errorf("TTL %s while Redis is away: %s; want %s", key, got, want)
			}
		}
		s.Restart()
		waitState(t, c, holdfast.Up)
	}
}

// rueidis may send a command after its caller has left. What the caller does then with
// the memory that it made the command of must not make another command of it.
func TestAWriteThatIsSentLateIsTheOneThatWasGiven(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	o := at(s.Addr())
	o.Breaker.Failures = 100
	c := open(t, o)
	ready(t, c)
	cl := c.Client()
	large := strings.Repeat("x", 64<<20) // more than the socket takes
	late := 0
	for i := 0; i < 5 && late == 0; i++ {
		waitState(t, c, holdfast.Up)
		right, wrong := "right"+strconv.Itoa(i), "wrong"+strconv.Itoa(i)
		s.Pause()
		_ = cl.Do(ctx, cl.B().Append().Key("large").Value(large).Build())
		key := []byte(right)
		err := cl.Do(ctx, cl.B().Incr().Key(rueidis.BinaryString(key)).Build()).Error()
		copy(key, wrong)
		s.Resume()
		if !errors.Is(err, holdfast.ErrUnavailable) || !strings.Contains(err.Error(), right) {
			t.Errorf("INCR of a server that does not answer: %v", err)
		}
		waitState(t, c, holdfast.Up)
		redistest.WaitFor(t, patience, "an answer", func() bool { _, err := ask(cl, "PING"); return err == nil })
		if got := s.MustDo("GET", wrong); got != "(nil)" {
			t.Fatalf("a key that nobody wrote to is %q", got)
		}
		if s.MustDo("GET", right) == "1" {
			late++
		}
		s.MustDo("DEL", "large")
	}
	if late == 0 {
		t.Log("no command was sent late: the test showed nothing")
	}
}

// A reply of many levels is no fault of the server's: it must not cost all callers their
// connection.
func TestTheDeepestReplyOfRedisIsTaken(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	o := at(s.Addr())
	o.Timeout = 10 * time.Second
	c := open(t, o)
	ready(t, c)
	cl := c.Client()
	for _, line := range []string{"COMMAND DOCS", "COMMAND", "XINFO STREAM x FULL"} {
		if err := cl.Do(ctx, built(cl.B(), strings.Fields(line))).Error(); errors.Is(err, holdfast.ErrUnavailable) {
			t.Errorf("%s: %v", line, err)
		}
	}
	if n := c.Stats().DialAttempts; n != 1 {
		t.Errorf("%d connections were made", n)
	}
}

// A command that is kept is a copy, because the caller may reuse its arguments.
func TestWhatIsKeptOfACommandIsACopy(t *testing.T) {
	begin(t)
	s := redistest.Start(t)
	c := open(t, at(s.Addr()))
	ready(t, c)
	cl := c.Client()
	// said says it with arguments that change when the call has returned.
	said := func(want string, args ...string) {
		t.Helper()
		bufs := make([][]byte, len(args))
		for i, arg := range args {
			bufs[i] = []byte(arg)
			args[i] = rueidis.BinaryString(bufs[i])
		}
		wantSay(t, cl, want, args...)
		for _, buf := range bufs {
			for i := range buf {
				buf[i] = '#'
			}
		}
	}
	s.Kill()
	waitState(t, c, holdfast.Down)
	said("OK", "SET", "f0", "value 0")
	said("OK", "SETEX", "f1", "500", "value 1")
	said("OK", "MSET", "f2", "value 2", "f3", "value 3")
	said("OK", "SET", "f4", "value 4", "PXAT", strconv.FormatInt(time.Now().Add(time.Hour).UnixMilli(), 10))
	said("OK", "SET", "f0", "value 5", "KEEPTTL")
	said("0", "DEL", "f5", "f6")
	said("(nil)", "GETDEL", "f7")
	said("0", "EXPIRE", "f8", "-1")
	if n := c.Health().JournalKeys; n != 9 {
		t.Errorf("the journal has %d keys", n)
	}
	want := map[string]string{"f0": "value 5", "f1": "value 1", "f2": "value 2", "f3": "value 3", "f4": "value 4"}
	for key, value := range want {
		wantSay(t, cl, value, "GET", key)
	}
	s.Restart()
	waitState(t, c, holdfast.Up)
	drain(t, c)
	for key, value := range want {
		if got := s.MustDo("GET", key); got != value {
			t.Errorf("%s is %q at Redis; want %q", key, got, value)
		}
	}
}
