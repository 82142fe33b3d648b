package holdfast_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

// makeOf is a server of that name.
func makeOf(t *testing.T, name string) redistest.Make {
	t.Helper()
	for _, m := range redistest.Makes {
		if m.Name == name {
			return m
		}
	}
	t.Fatalf("no such make: %q", name)
	return redistest.Make{}
}

// Redis 6.0 was taken for a server without RESP3, because HELLO without arguments is
// an error there: what it can track was read again every five seconds.
func TestEachMakeOfServerTellsOfChangesIfItCan(t *testing.T) {
	beside(t)
	for _, m := range redistest.Makes {
		t.Run(m.Name, func(t *testing.T) {
			ctx := begin(t)
			s := redistest.Start(t)
			f := redistest.NewFilter(t, s.Addr(), m)
			c := open(t, leisurely(f.Addr())) // one attempt is enough, and each call gets its answer
			ready(t, c)
			h := c.Health()
			if want := m.Name != "Redis 5.0"; h.Tracking != want {
				t.Errorf("tracking is %v, want %v; health %+v", h.Tracking, want, h)
			}
			if n := f.Seen("HELLO") - f.Seen("HELLO 3") - f.Seen("HELLO 2"); n != 0 {
				t.Errorf("%d times HELLO was sent without arguments", n)
			}
			if n := c.Stats().DialAttempts; n != 1 {
				t.Errorf("%d dials", n)
			}
			s.MustDo("SET", "k", "theirs")
			wantGet(t, c, "k", "theirs")
			must(t, c.Set(ctx, "k", []byte("ours"), time.Hour))
			wantGet(t, c, "k", "ours")
			s.MustDo("SET", "k", "theirs again")
			if h.Tracking {
				redistest.WaitFor(t, patience, "the change", func() bool {
					v, err := c.Get(ctx, "k")
					return err == nil && string(v) == "theirs again"
				})
			}
		})
	}
}

// A proxy or a managed service refused HELLO in words that rueidis does not take for
// "unknown command", or hung up at it, and the client never connected.
func TestAServerThatRefusesHelloInItsOwnWordsIsUsedWithoutIt(t *testing.T) {
	beside(t)
	for _, tt := range []struct {
		name  string
		rules []redistest.Rule
	}{
		{"unknown command", []redistest.Rule{{Command: "HELLO", Manner: redistest.Unknown}}},
		{"no command named", []redistest.Rule{{Command: "HELLO", Manner: redistest.Says, Text: "ERR unknown command"}}},
		{"unsupported", []redistest.Rule{{Command: "HELLO", Manner: redistest.Says, Text: "ERR Unsupported"}}},
		{"unsupported command", []redistest.Rule{{Command: "HELLO", Manner: redistest.Says, Text: "ERR unsupported command 'hello'"}}},
		{"command not allowed", []redistest.Rule{{Command: "HELLO", Manner: redistest.Says, Text: "ERR command not allowed"}}},
		{"not permitted", []redistest.Rule{{Command: "HELLO", Manner: redistest.Denied}}},
		{"no such protocol", []redistest.Rule{{Command: "HELLO", Manner: redistest.Says, Text: "NOPROTO unsupported protocol version"}}},
		{"a syntax error", []redistest.Rule{{Command: "HELLO", Manner: redistest.Says, Text: "ERR syntax error"}}},
		{"neither HELLO nor CLIENT nor INFO", []redistest.Rule{
			{Command: "HELLO", Manner: redistest.Says, Text: "ERR Unsupported"},
			{Command: "CLIENT", Manner: redistest.Says, Text: "ERR Unsupported"},
			{Command: "INFO", Manner: redistest.Says, Text: "ERR Unsupported"},
		}},
		{"it hangs up", []redistest.Rule{{Command: "HELLO", Manner: redistest.HangUp}}},
		{"it hangs up at all that it does not know", []redistest.Rule{
			{Command: "HELLO", Manner: redistest.HangUp}, {Command: "CLIENT", Manner: redistest.HangUp},
			{Command: "INFO", Manner: redistest.HangUp}, {Command: "SCRIPT", Manner: redistest.HangUp},
		}},
		{"it hangs up at CLIENT TRACKING", []redistest.Rule{{Command: "CLIENT TRACKING", Manner: redistest.HangUp}}},
		{"it hangs up at INFO", []redistest.Rule{{Command: "INFO", Manner: redistest.HangUp}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if strings.HasPrefix(tt.name, "it hangs up") {
				redistest.Long(t) // whether it runs scripts is asked again for ten seconds
			}
			ctx := begin(t)
			s := redistest.Start(t, "--requirepass", "secret")
			f := redistest.NewFilter(t, s.Addr(), makeOf(t, "Redis 7.0"), tt.rules...)
			p := redistest.NewProxy(t, f.Addr())
			o := at(p.Addr())
			o.Redis.Password = "secret"
			o.Redis.SelectDB = 3
			o.Redis.ClientName = "a-name"
			o.Redis.WriteBufferEachConn = 16 // a handshake is more than that
			o.Tracking.UntrackedTTL = 50 * time.Millisecond
			c := open(t, o)
			ready(t, c)
			if c.Health().Tracking {
				t.Error("tracking without RESP3")
			}
			must(t, c.Set(ctx, "k", []byte("v"), time.Hour))
			wantGet(t, c, "k", "v")
			must(t, s.Inside(3, func(do func(...string) string) {
				if v := do("GET", "k"); v != "v" {
					t.Errorf("redis has %q", v)
				}
				do("SET", "k", "theirs")
			}))
			redistest.WaitFor(t, patience, "the change", func() bool {
				v, err := c.Get(ctx, "k")
				return err == nil && string(v) == "theirs"
			})
			p.SetMode(redistest.Cut)
			redistest.WaitFor(t, patience, "the loss", func() bool { return c.Health().State != holdfast.Up })
			must(t, c.Set(ctx, "kept", []byte("v"), time.Hour))
			p.SetMode(redistest.Pass)
			waitState(t, c, holdfast.Up)
			drain(t, c)
			must(t, s.Inside(3, func(do func(...string) string) {
				if v := do("GET", "kept"); v != "v" && v != "(nil)" {
					t.Errorf("redis has %q", v)
				}
			}))
			t.Logf("%d dials; %v", c.Stats().DialAttempts, c.Health().LastError)
		})
	}
}

// A proxy whose backend is away hangs up at HELLO, too, or says so in words: when it is
// back it must not be taken for one that knows no RESP3.
func TestAProxyWhoseBackendWasAwayIsNotTakenForAnOldServer(t *testing.T) {
	beside(t)
	for _, rule := range []redistest.Rule{
		{Command: "", Manner: redistest.HangUp}, {Command: "", Manner: redistest.Says, Text: "no upstream host"},
	} {
		t.Run(rule.Text, func(t *testing.T) {
			begin(t)
			s := redistest.Start(t)
			away := redistest.NewFilter(t, s.Addr(), makeOf(t, "Redis 7.0"), rule)
			p := redistest.NewProxy(t, away.Addr())
			o := at(p.Addr())
			o.Breaker.MinBackoff, o.Breaker.MaxBackoff = 5*time.Millisecond, 10*time.Millisecond
			c := open(t, o)
			for range 10 {
				n := c.Stats().DialAttempts
				redistest.WaitFor(t, patience, "further attempts", func() bool {
					c.Get(context.Background(), "k")
					return c.Stats().DialAttempts > n+6
				})
				p.SetBackend(s.Addr())
				redistest.WaitFor(t, patience, "up", func() bool { return c.Health().State == holdfast.Up })
				if !c.Health().Tracking {
					t.Fatal("up without tracking")
				}
				opens := c.Stats().BreakerOpens
				p.SetBackend(away.Addr())
				p.CutAll()
				redistest.WaitFor(t, patience, "down", func() bool { return c.Stats().BreakerOpens > opens })
			}
		})
	}
}

// The same of a sentinel: the master was never found.
func TestASentinelThatRefusesHelloInItsOwnWordsIsAskedWithoutIt(t *testing.T) {
	beside(t)
	for _, rule := range []redistest.Rule{
		{Command: "HELLO", Manner: redistest.Unknown},
		{Command: "HELLO", Manner: redistest.Says, Text: "ERR Unsupported"},
		{Command: "HELLO", Manner: redistest.Denied},
		{Command: "HELLO", Manner: redistest.HangUp},
		{Command: "CLIENT", Manner: redistest.HangUp},
	} {
		t.Run(fmt.Sprint(rule), func(t *testing.T) {
			ctx := begin(t)
			s := redistest.Start(t)
			f := redistest.NewFilter(t, sentinelFor(t, s.Addr()).Addr(), makeOf(t, "Redis 7.0"), rule)
			p := redistest.NewProxy(t, f.Addr())
			o := watched(p.Addr())
			o.Redis.Sentinel.Password = "secret"
			c := open(t, o)
			ready(t, c)
			if !c.Health().Tracking {
				t.Error("the server speaks RESP3, whatever its sentinels do")
			}
			// The connection to the sentinel is made anew where it is lost.
			p.SetMode(redistest.Cut)
			s.Restart()
			p.SetMode(redistest.Pass)
			must(t, c.Set(ctx, "k", []byte("v"), time.Hour))
			waitState(t, c, holdfast.Up)
			drain(t, c)
			if got := s.MustDo("GET", "k"); got != "v" {
				t.Errorf("redis has %q", got)
			}
		})
	}
}
