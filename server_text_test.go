package holdfast_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/rueidis"
)

// shout is 61 KB that would take over a terminal.
var shout = strings.Repeat("\x1b[31m\x07 \x1b]0;owned\x07 \u009b2J\u202e ", 1850)

// texts gathers what is shown: lines of the log, and errors.
type texts struct {
	mu   sync.Mutex
	seen []string
}

func (x *texts) add(where, text string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.seen = append(x.seen, where+": "+text)
}

func (x *texts) err(where string, err error) {
	if err != nil {
		text := err.Error()
		if where != "hook" && where != "health" {
			text = strings.ReplaceAll(text, "\nholdfast: ", "; ") // errors.Join
		}
		x.add(where, text)
	}
}

func (x *texts) Enabled(context.Context, slog.Level) bool { return true }
func (x *texts) WithAttrs([]slog.Attr) slog.Handler       { return x }
func (x *texts) WithGroup(string) slog.Handler            { return x }
func (x *texts) Handle(_ context.Context, r slog.Record) error {
	x.add("log", r.Message)
	r.Attrs(func(a slog.Attr) bool { x.add("log "+a.Key, a.Value.String()); return true })
	return nil
}

// any says whether a part of the shout was shown.
func (x *texts) any() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return slices.ContainsFunc(x.seen, func(text string) bool { return strings.Contains(text, "0;owned") })
}

// check finds what must not be shown. It returns how often a part of the shout was.
func (x *texts) check(t *testing.T, name string) (n int) {
	t.Helper()
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, text := range x.seen {
		bad := strings.IndexFunc(text, func(r rune) bool { return unicode.IsControl(r) || !unicode.IsPrint(r) || r == utf8.RuneError })
		if bad >= 0 || len(text) > 3000 {
			t.Errorf("%s: %d bytes, a control character at %d: %.300q", name, len(text), bad, text)
			return -1
		}
		if strings.Contains(text, `\x1b]0;owned`) {
			n++
		}
	}
	return n
}

// A server's error was repeated as it was, 61 KB with escape sequences.
func TestWhatAServerSaysIsCutAndQuotedWhereverItIsShown(t *testing.T) {
	begin(t)
	const hello = "%3\r\n$6\r\nserver\r\n$5\r\nredis\r\n$5\r\nproto\r\n:3\r\n$4\r\nmode\r\n"
	mode := func(name string) string { return hello + fmt.Sprintf("$%d\r\n%s\r\n", len(name), name) }
	is := func(names ...string) func([]string, int) bool {
		return func(cmd []string, _ int) bool {
			for _, name := range names {
				if strings.EqualFold(cmd[0], name) {
					return true
				}
			}
			return false
		}
	}
	probe := func(cmd []string) bool { return len(cmd) > 1 && strings.HasPrefix(cmd[1], "holdfast:probe") }
	type test struct {
		name string
		evil func(cmd []string, hellos int) bool
		says string // for an error
		mode string
		set  func(*holdfast.Options)
		mute bool // nothing of it needs to be shown
	}
	try := func(tt test) {
		if tt.says == "" {
			tt.says = "-ERR "
		}
		if tt.mode == "" {
			tt.mode = "standalone"
		}
		reply := tt.says + shout + "\r\n"
		switch tt.says[0] {
		case '!':
			reply = fmt.Sprintf("!%d\r\n%s\r\n", len(shout), shout)
		case '*':
			reply = tt.says + fmt.Sprintf("$%d\r\n%s\r\n", len(shout), shout)
		}
		var mu sync.Mutex
		var away atomic.Bool
		hellos := map[int]int{}
		l := redistest.Respond(t, func(conn int, cmd []string) (string, bool) {
			mu.Lock()
			if strings.EqualFold(cmd[0], "HELLO") {
				hellos[conn]++
			}
			n := hellos[conn]
			mu.Unlock()
			switch {
			case tt.evil(cmd, n):
				return reply, true
			case probe(cmd) && away.Load():
				return "-LOADING " + shout + "\r\n", true
			case strings.EqualFold(cmd[0], "HELLO"):
				return mode(tt.mode), true
			case is("GET", "EVAL", "EVALSHA")(cmd, 0):
				return "_\r\n", true
			case is("INFO")(cmd, 0):
				return "$0\r\n\r\n", true
			case is("PTTL", "DEL")(cmd, 0):
				return ":-2\r\n", true
			}
			return "+OK\r\n", true
		})
		var shown texts
		o := at(l.Addr())
		o.Logger = slog.New(&shown)
		o.Hooks.OnStateChange = func(c holdfast.StateChange) { shown.err("hook", c.Err); shown.add("hook shard", c.Shard) }
		o.Breaker.MinBackoff, o.Breaker.MaxBackoff = 5*time.Millisecond, 10*time.Millisecond
		if tt.set != nil {
			tt.set(&o)
		}
		away.Store(true)
		c := open(t, o)
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		began := time.Now()
		for i := 0; ctx.Err() == nil; i++ {
			if took := time.Since(began); took > 300*time.Millisecond && (tt.mute || shown.any()) {
				break
			}
			if time.Since(began) > 50*time.Millisecond {
				away.Store(false) // there is something to replay
			}
			key := fmt.Sprint("k", i%7)
			shown.err("set", c.Set(ctx, key, []byte("v"), 0))
			shown.err("delete", c.Delete(ctx, key, "other"))
			_, err := c.Get(ctx, fmt.Sprint("other", i))
			shown.err("get", err)
			_, err = c.GetMany(ctx, "a", "b", fmt.Sprint("c", i))
			shown.err("getmany", err)
			_, err = c.Add(ctx, key, []byte("v"), 0)
			shown.err("add", err)
			_, err = c.TTL(ctx, key)
			shown.err("ttl", err)
			shown.err("setmany", c.SetMany(ctx, map[string][]byte{"x": nil, "y": nil}, 0))
			shown.err("check", c.Check(ctx))
			shown.err("deliver", c.Deliver(ctx, key))
			shown.err("health", c.Health().LastError)
			_, err = c.Client().Do(ctx, c.Client().B().Incr().Key("n").Build()).AsInt64()
			if re := (*rueidis.RedisError)(nil); !errors.As(err, &re) { // else it is passed on
				shown.err("incr", err)
			}
			time.Sleep(time.Millisecond)
		}
		cancel()
		short, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		shown.err("drain", c.Drain(short))
		shown.err("ready", c.WaitReady(short))
		cancel()
		shown.err("close", c.Close())
		if n := shown.check(t, tt.name); n == 0 && !tt.mute {
			t.Errorf("%s: nothing was shown of what the server said", tt.name)
		}
	}
	var all sync.WaitGroup
	for _, tt := range []test{
		{name: "HELLO", evil: is("HELLO")},
		{name: "AUTH", evil: is("HELLO", "AUTH"), says: "-WRONGPASS ", set: func(o *holdfast.Options) { o.Redis.Password = "x" }},
		{name: "SELECT", evil: is("SELECT"), set: func(o *holdfast.Options) { o.Redis.SelectDB = 3 }},
		{name: "CLIENT", evil: is("CLIENT"), set: func(o *holdfast.Options) { o.Redis.ClientNoTouch = true }},
		{name: "the greeting", evil: func(cmd []string, hellos int) bool { return hellos > 1 }, says: "-LOADING "},
		{name: "tracking", evil: func(cmd []string, _ int) bool { return len(cmd) > 1 && cmd[1] == "TRACKING" }},
		{name: "the probe", evil: func(cmd []string, _ int) bool { return probe(cmd) }},
		{name: "the probe, down", evil: func(cmd []string, _ int) bool { return probe(cmd) }, says: "-CLUSTERDOWN "},
		{name: "the probe, refused", evil: func(cmd []string, _ int) bool { return probe(cmd) }, says: "-MISCONF "},
		{name: "SET", evil: func(cmd []string, _ int) bool { return is("SET")(cmd, 0) && !probe(cmd) }},
		{name: "SET, refused", evil: func(cmd []string, _ int) bool { return is("SET")(cmd, 0) && !probe(cmd) }, says: "-OOM "},
		{name: "GET", evil: is("GET", "MGET", "PTTL")},
		{name: "GET, blob", evil: is("GET", "MGET", "PTTL"), says: "!"},
		{name: "scripts", evil: is("EVAL", "EVALSHA", "SCRIPT", "FCALL"), mute: true},
		{name: "MOVED", evil: is("GET", "SET", "PTTL"), says: "-MOVED 1 "},
		{name: "MOVED, a name", evil: is("GET", "SET", "PTTL"), says: "-MOVED 1 \x1b]0;owned:", mode: "cluster", mute: true},
		{name: "CLUSTER SLOTS", evil: is("CLUSTER"), mode: "cluster"},
		{name: "the mode", evil: is(), mode: "\x1b]0;owned\x07" + shout, set: func(o *holdfast.Options) { o.Mode = holdfast.ModeCluster }, mute: true},
		{name: "a sentinel", evil: is("SENTINEL"), set: func(o *holdfast.Options) { o.Redis.Sentinel.MasterSet = "m" }},
		{name: "a sentinel's answer", evil: is("SENTINEL"), says: "*2\r\n$15\r\n\x1b]0;owned\x07\x1b[31m\r\n", set: func(o *holdfast.Options) { o.Redis.Sentinel.MasterSet = "m" }},
		{name: "everything", evil: func([]string, int) bool { return true }},
	} {
		all.Go(func() { try(tt) })
	}
	all.Wait()
}

// Through Client a user's own command gets Redis' error as it is, and errors.As finds it
// whole where it is cut for the eye.
func TestRedisOwnErrorIsFoundWhole(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	o := at(s.Addr())
	o.Timeout = patience
	c := open(t, o)
	ready(t, c)
	script := "return redis.error_reply('SHOUT ' .. string.rep(string.char(27) .. '[31m', 10000))"
	err := c.Client().Do(ctx, c.Client().B().Eval().Script(script).Numkeys(0).Build()).Error()
	var re *rueidis.RedisError
	if !errors.As(err, &re) || len(re.Error()) != len("SHOUT ")+50_000 || err.Error() != re.Error() {
		t.Errorf("%.100q", err)
	}
	wrapped := error(&holdfast.Error{Op: "get", Key: "k", Err: fmt.Errorf("twice: %w", errors.Join(err, errors.New("b")))})
	re = nil
	if !errors.As(wrapped, &re) || len(re.Error()) != len("SHOUT ")+50_000 {
		t.Errorf("%.100q", wrapped)
	}
	if text := wrapped.Error(); len(text) > 400 || strings.Contains(text, "\x1b") || !strings.Contains(text, `SHOUT \x1b[31m\x1b[31m`) {
		t.Errorf("%.500q", text)
	}
}

// fmt.Println(cache.Options()) showed the password.
func TestPasswordsAreNotPrinted(t *testing.T) {
	begin(t)
	o := at("127.0.0.1:1")
	o.Redis.Username, o.Redis.Password = "alice", "hunter2"
	o.Redis.Sentinel.Password = "hunter3"
	o.Redis.AuthCredentialsFn = func(rueidis.AuthCredentialsContext) (rueidis.AuthCredentials, error) {
		return rueidis.AuthCredentials{Password: "hunter4"}, nil
	}
	o.Redis.TLSConfig = &tls.Config{SessionTicketsDisabled: true, KeyLogWriter: nil, ServerName: "hunter5"}
	o.Breaker.Failures = 77
	c := open(t, o)
	closed(t, c)
	type nested struct {
		Name string
		Opts holdfast.Options
		Ptr  *holdfast.Options
		List []holdfast.Options
		Map  map[string]any
	}
	var logged bytes.Buffer
	values := []any{
		o, &o, c.Options(), []holdfast.Options{o}, map[string]holdfast.Options{"a": o}, c, nested{"n", o, &o, []holdfast.Options{o}, map[string]any{"o": o}},
		struct{ o holdfast.Options }{c.Options()}, fmt.Errorf("options %v", o),
	}
	if raceFactor == 1 {
		// fmt reads through these, down to the mutexes, which a goroutine that has ended
		// its work may just be leaving.
		values = append(values, c.Client(), holdfast.NewTyped(c, holdfast.String()), struct{ c *holdfast.Cache }{c}, &struct{ c *holdfast.Cache }{c})
	}
	for _, v := range values {
		verbs := []string{"%v", "%+v", "%#v", "%s", "%q", "%d", "%x", "% x"}
		if _, ok := v.(struct{ o holdfast.Options }); ok {
			verbs = verbs[:3] // fmt cannot call methods there
		}
		for _, verb := range verbs {
			if text := fmt.Sprintf(verb, v); hunted(text) {
				t.Errorf("%s of %T: %.300s", verb, v, text)
			}
		}
		logged.WriteString(fmt.Sprintln(v))
		for _, h := range []slog.Handler{slog.NewTextHandler(&logged, nil), slog.NewJSONHandler(&logged, nil)} {
			slog.New(h).Info("m", "v", v, slog.Group("g", "v", v))
		}
		_ = json.NewEncoder(&logged).Encode(v)
	}
	if text := logged.String(); hunted(text) {
		t.Errorf("logged: %.300s", text)
	}
	for _, want := range []string{"alice", "***", "77", "127.0.0.1:1"} {
		if text := fmt.Sprintf("%+v", o); !strings.Contains(text, want) {
			t.Errorf("%q is missing in %s", want, text)
		}
	}
	if o.Redis.Password != "hunter2" {
		t.Error("printing changed the options")
	}
	if got := c.Options().Redis; got.Password != "" || got.Sentinel.Password != "" || got.AuthCredentialsFn != nil || got.Username != "alice" {
		t.Errorf("Options hands out %q, %q", got.Password, got.Sentinel.Password)
	}
	// A URL where an address belongs, and one that cannot be read.
	_, err := holdfast.New(at("redis://alice:hunter2@127.0.0.1"))
	_, err2 := holdfast.Open("redis://alice:hunter2@127.0.0.1:port")
	_, err3 := holdfast.Open("redis://alice:hunter2%40127.0.0.1:6379/0")
	_, err4 := holdfast.Open("redis://alice:hunter2")
	_, err5 := holdfast.New(at("redis://alice:hunter2"))
	for _, err := range []error{err, err2, err3, err4, err5} {
		if err == nil || hunted(err.Error()) {
			t.Errorf("%v", err)
		}
	}
}

// hunted says whether a password is in the text, as it is or in hexadecimal.
func hunted(text string) bool {
	return strings.Contains(text, "hunter") || strings.Contains(text, fmt.Sprintf("%x", "hunter")) ||
		strings.Contains(text, fmt.Sprintf("% x", "hunter")) || strings.Contains(text, fmt.Sprintf("%X", "hunter"))
}

// A text where a number belongs was repeated whole, for rueidis' error has all of it.
func TestATextWhereANumberBelongsIsCutToo(t *testing.T) {
	ctx := begin(t)
	l := redistest.Respond(t, func(_ int, cmd []string) (string, bool) {
		switch strings.ToUpper(cmd[0]) {
		case "HELLO":
			return "%2\r\n$6\r\nserver\r\n$5\r\nredis\r\n$5\r\nproto\r\n:3\r\n", true
		case "PTTL", "PEXPIRE", "PERSIST", "EXISTS":
			return fmt.Sprintf("$%d\r\n%s\r\n", len(shout), shout), true
		case "GET":
			return "_\r\n", true
		case "INFO":
			return "$0\r\n\r\n", true
		}
		return "+OK\r\n", true
	})
	o := at(l.Addr())
	o.Timeout = patience
	c := open(t, o)
	ready(t, c)
	var shown texts
	_, err := c.TTL(ctx, "k")
	shown.err("ttl", err)
	shown.err("touch", c.Touch(ctx, "k", time.Minute))
	shown.err("persist", c.Touch(ctx, "k", 0))
	shown.check(t, "a number")
	for _, text := range shown.seen {
		if len(text) > 600 {
			t.Errorf("%d bytes: %.100q", len(text), text)
		}
	}
	if len(shown.seen) == 0 {
		t.Error("nothing was shown")
	}
}
