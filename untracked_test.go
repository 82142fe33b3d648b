package holdfast_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

func TestTrackingOptionsThatContradictEachOther(t *testing.T) {
	begin(t)
	for _, tt := range []struct {
		field    string
		tracking holdfast.TrackingOptions
		resp2    bool
	}{
		{"Tracking.Mode", holdfast.TrackingOptions{Mode: 200}, false},
		{"Tracking.Prefixes", holdfast.TrackingOptions{Mode: holdfast.TrackPrefixes}, false},
		{"Tracking.Prefixes", holdfast.TrackingOptions{Mode: holdfast.TrackPrefixes, Prefixes: []string{"a:", "a:b:"}}, false},
		{"Tracking.Prefixes", holdfast.TrackingOptions{Mode: holdfast.TrackPrefixes, Prefixes: []string{"a:b:", "c:", "a:"}}, false},
		{"Tracking.Prefixes", holdfast.TrackingOptions{Mode: holdfast.TrackPrefixes, Prefixes: []string{"a:", "a:"}}, false},
		{"Tracking.Prefixes", holdfast.TrackingOptions{Mode: holdfast.TrackPrefixes, Prefixes: []string{"", "a:"}}, false},
		{"Tracking.Prefixes", holdfast.TrackingOptions{Prefixes: []string{"a:"}}, false},
		{"Tracking.Prefixes", holdfast.TrackingOptions{Mode: holdfast.TrackOff, Prefixes: []string{"a:"}}, false},
		{"Redis.AlwaysRESP2", holdfast.TrackingOptions{}, true},
		{"Redis.AlwaysRESP2", holdfast.TrackingOptions{Mode: holdfast.TrackPrefixes, Prefixes: []string{"a:"}}, true},
	} {
		o := at("localhost:6379")
		o.Tracking, o.Redis.AlwaysRESP2 = tt.tracking, tt.resp2
		c, err := holdfast.New(o)
		if err == nil {
			c.Close()
			t.Errorf("New took %+v, RESP2 %v", tt.tracking, tt.resp2)
			continue
		}
		if lines := strings.Split(err.Error(), "\n"); len(lines) != 1 || !strings.Contains(lines[0], tt.field) {
			t.Errorf("%+v, RESP2 %v: %q does not name %s alone", tt.tracking, tt.resp2, lines, tt.field)
		}
	}
	for _, tr := range []holdfast.TrackingOptions{
		{}, {Mode: holdfast.TrackReads}, {Mode: holdfast.TrackOff},
		{Mode: holdfast.TrackPrefixes, Prefixes: []string{"a:", "b:", "a"[:0] + "c"}},
	} {
		o := at(redistest.FreeAddr(t))
		o.Tracking = tr
		open(t, o)
	}
}

// untracked asserts that a Cache works on a server that does not tell of changes.
func untracked(t *testing.T, ctx context.Context, o holdfast.Options, set func(key, value string), hint bool) (*holdfast.Cache, *logLines) {
	t.Helper()
	var lines logLines
	o.Logger = slogTo(&lines)
	o.Tracking.UntrackedTTL = 100 * time.Millisecond
	c := open(t, o)
	ready(t, c)
	if h := c.Health(); h.State != holdfast.Up || h.Tracking || !h.Writable {
		t.Fatalf("health %+v", h)
	}
	set("k", "one")
	held(t, c, "k", "one")
	set("k", "two")
	soon(t, c, "k", "two")
	must(t, c.Set(ctx, "own", []byte("one"), time.Minute))
	wantGet(t, c, "own", "one")
	set("own", "two")
	soon(t, c, "own", "two")
	hints := func() (n int) {
		for _, line := range lines.get() {
			if contains(line, "track") {
				n++
			}
		}
		return n
	}
	want := 0
	if hint {
		want = 1
		redistest.WaitFor(t, patience, "a line about tracking", func() bool { return hints() > 0 })
	}
	if n := hints(); n != want {
		t.Errorf("%d lines about tracking, want %d: %q", n, want, lines.get())
	}
	return c, &lines
}

func TestWithoutTrackingItWorksAndSaysSo(t *testing.T) {
	beside(t)
	t.Run("miniredis", func(t *testing.T) {
		ctx := begin(t)
		m := miniredis.RunT(t)
		untracked(t, ctx, at(m.Addr()), func(key, value string) { m.Set(key, value) }, true)
	})
	t.Run("RESP2, as was wished", func(t *testing.T) {
		ctx := begin(t)
		s := redistest.Start(t)
		o := at(s.Addr())
		o.Redis.AlwaysRESP2, o.Tracking.Mode = true, holdfast.TrackOff
		untracked(t, ctx, o, serverBackend(s).set, false)
	})
	t.Run("RESP2, for want of HELLO", func(t *testing.T) {
		ctx := begin(t)
		s := redistest.Start(t, "--rename-command", "HELLO", "")
		untracked(t, ctx, at(s.Addr()), serverBackend(s).set, true)
	})
	t.Run("off", func(t *testing.T) {
		ctx := begin(t)
		s := redistest.Start(t)
		o := at(s.Addr())
		o.Tracking.Mode = holdfast.TrackOff
		untracked(t, ctx, o, serverBackend(s).set, false) // as was wished
	})
	for _, rights := range []string{"-client", "-client|tracking"} {
		t.Run("a user with "+rights, func(t *testing.T) {
			ctx := begin(t)
			s := redistest.Start(t)
			s.MustDo("ACL", "SETUSER", "app", "on", ">secret", "~*", "+@all", rights)
			o := at(s.Addr())
			o.Redis.Username, o.Redis.Password = "app", "secret"
			c, lines := untracked(t, ctx, o, serverBackend(s).set, true)
			if text := strings.Join(lines.get(), "\n"); !contains(text, "client|tracking", "+client") {
				t.Errorf("the log does not say which right is missing: %q", text)
			}
			// It is asked again with each connection: rights change.
			s.MustDo("ACL", "SETUSER", "app", "+client")
			s.MustDo("CLIENT", "KILL", "USER", "app")
			redistest.WaitFor(t, patience, "tracking to be found", func() bool { return c.Health().Tracking })
		})
	}
}

// rueidis gives any failure of the handshake's CLIENT TRACKING the same name.
func TestAServerThatIsBusyIsNotTakenForOneThatCannotTrack(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t, "--busy-reply-threshold", "20")
	o := tracked(s.Addr(), holdfast.TrackReads)
	o.Breaker.MinBackoff, o.Breaker.MaxBackoff = 10*time.Millisecond, 50*time.Millisecond
	raw := rawAt(t, s.Addr())
	busy := make(chan error, 1)
	go func() { busy <- raw.Do(ctx, raw.B().Eval().Script("while true do end").Numkeys(0).Build()).Error() }()
	redistest.WaitFor(t, patience, "the server to be busy", func() bool {
		_, err := s.Do("PING")
		return err != nil && strings.HasPrefix(err.Error(), "BUSY")
	})
	c := open(t, o)
	redistest.WaitFor(t, patience, "some attempts", func() bool {
		err := c.Health().LastError
		return c.Stats().DialAttempts >= 2 && err != nil && contains(err.Error(), "BUSY")
	})
	if h := c.Health(); h.State != holdfast.Connecting {
		t.Errorf("while the server is busy: %+v", h)
	}
	s.MustDo("SCRIPT", "KILL")
	<-busy
	waitState(t, c, holdfast.Up)
	if !c.Health().Tracking {
		t.Error("the server was busy, and tracking was given up")
	}
	s.MustDo("SET", "k", "one")
	held(t, c, "k", "one")
	s.MustDo("SET", "k", "two")
	soon(t, c, "k", "two")
}

func TestAServerThatLoadsIsNotTakenForOneThatCannotTrack(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	o := tracked(s.Addr(), holdfast.TrackReads)
	o.Breaker.MinBackoff, o.Breaker.MaxBackoff = 10*time.Millisecond, 50*time.Millisecond
	c := open(t, o)
	ready(t, c)
	s.MustDo("DEBUG", "POPULATE", "3000")
	s.MustDo("SET", "k", "one")
	held(t, c, "k", "one")
	s.MustDo("SAVE")
	var loading bool
	stop := load(t, 1, func(int, int) {
		c.Get(ctx, "k")
		if err := c.Health().LastError; err != nil && contains(err.Error(), "LOADING") {
			loading = true
		}
		time.Sleep(5 * time.Millisecond)
	})
	s.Restart("--key-load-delay", "200", "--loading-process-events-interval-bytes", "1024")
	waitState(t, c, holdfast.Up)
	stop()
	if !loading {
		t.Error("nobody met the server while it was loading")
	}
	if !c.Health().Tracking {
		t.Error("the server was loading, and tracking was given up")
	}
	held(t, c, "k", "one")
	s.MustDo("SET", "k", "two")
	soon(t, c, "k", "two")
}
