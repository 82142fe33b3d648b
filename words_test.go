package holdfast_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

// What a server, or what stands before it, says in words that nobody here knows.

// The backend of a proxy goes away, and the proxy answers every command on the live
// connection in its own words: Envoy's, nutcracker's, a metered service's. 99 of 100
// loads never asked their loader, Gets and Sets returned the text, the probe took it for
// a server that takes no writes, and the circuit never opened.
func TestAProxyWhoseBackendIsGoneAnswersInItsOwnWords(t *testing.T) {
	beside(t)
	for _, text := range []string{
		"no upstream host",
		"ERR Connection refused",
		"ERR max requests limit exceeded. Limit: 500000, Usage: 500002",
		"Out of memory",
		"ERR Invalid argument",
		"BACKENDGONE try again",
	} {
		t.Run(strings.Fields(text)[0]+" "+strings.Fields(text)[1], func(t *testing.T) {
			ctx := begin(t)
			s := redistest.Start(t)
			p := redistest.NewInjector(t, s.Addr())
			o := tracked(p.Addr(), holdfast.TrackReads)
			o.Breaker.MaxBackoff = 200 * time.Millisecond
			o.Breaker.Failures = 1 << 20 // one probe that is refused says enough
			c := open(t, o)
			ready(t, c)
			s.MustDo("SET", "k", "one")
			held(t, c, "k", "one")

			var loads, calls atomic.Int64
			stop := load(t, 4, func(g, i int) {
				key := fmt.Sprintf("load%d.%d", g, i)
				v, err := c.GetOrLoad(ctx, key, time.Minute, func(context.Context) ([]byte, error) {
					loads.Add(1)
					return []byte(key), nil
				})
				if err != nil || string(v) != key {
					t.Errorf("getorload %s: %q, %v", key, v, err)
				}
				many, err := c.GetOrLoadMany(ctx, []string{key + "a", key + "b"}, 0, func(_ context.Context, keys []string) (map[string][]byte, error) {
					got := map[string][]byte{}
					for _, k := range keys {
						got[k] = []byte(k)
					}
					return got, nil
				})
				if err != nil || len(many) != 2 {
					t.Errorf("getorloadmany %s: %v, %v", key, many, err)
				}
				if _, err := c.Get(ctx, fmt.Sprint("absent", i)); !errors.Is(err, holdfast.ErrMiss) {
					t.Errorf("get: %v", err)
				}
				if _, err := c.GetMany(ctx, "k", "absent"); err != nil {
					t.Errorf("getmany: %v", err)
				}
				w := fmt.Sprintf("w%d.%d", g, i%100)
				noError(t, c.Set(ctx, w, []byte(fmt.Sprint(i)), 0))
				noError(t, c.SetMany(ctx, map[string][]byte{w + "m": []byte(fmt.Sprint(i))}, 0))
				noError(t, c.Delete(ctx, w+"d"))
				for _, err := range []error{errorOf(c.Add(ctx, w+"a", nil, 0)), c.Touch(ctx, "k", time.Hour), errorOf(c.TTL(ctx, w+"t"))} {
					if err != nil && !errors.Is(err, holdfast.ErrUnavailable) && !errors.Is(err, holdfast.ErrMiss) {
						t.Errorf("what only redis can decide: %v", err)
					}
				}
				calls.Add(1)
				time.Sleep(time.Millisecond)
			})
			defer stop()
			p.Say(text)
			waitState(t, c, holdfast.Down)
			if h := c.Health(); h.LastError == nil || !contains(h.LastError.Error(), strings.TrimPrefix(text, "ERR ")) {
				t.Errorf("health %+v", h)
			}
			if st := c.Stats(); st.BreakerOpens != 1 {
				t.Errorf("the circuit opened %d times", st.BreakerOpens)
			}
			wantGet(t, c, "k", "one") // a copy in doubt, as in an outage
			if err := c.Check(ctx); !errors.Is(err, holdfast.ErrUnavailable) {
				t.Errorf("check: %v", err)
			}
			at := calls.Load()
			redistest.WaitFor(t, patience, "calls", func() bool { return calls.Load() > at+50 })
			s.MustDo("SET", "k", "two")

			p.Answer(nil)
			waitState(t, c, holdfast.Up)
			soon(t, c, "k", "two")
			stop()
			drain(t, c)
			if n := p.Accepted(); n != 1 {
				t.Errorf("%d connections: none was lost", n)
			}
			if loads.Load() == 0 {
				t.Error("nothing was loaded")
			}
			for g := range 4 {
				for i := range 100 {
					if w := fmt.Sprintf("w%d.%d", g, i); s.MustDo("GET", w) != s.MustDo("GET", w+"m") {
						t.Errorf("%s and %sm differ at redis: a set was given up", w, w)
					}
				}
			}
			if st := c.Stats(); st.Rejected+st.Superseded+st.Downgraded+st.LoadErrors != 0 {
				t.Errorf("stats %+v", st)
			}
		})
	}
}

func errorOf[T any](_ T, err error) error { return err }

// One key's replies make no sense; the others are well. That is no outage, and however
// often it is read, no flood of probes.
func TestAWordAboutOneKeyIsThatCallsAlone(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	p := redistest.NewInjector(t, s.Addr())
	o := tracked(p.Addr(), holdfast.TrackReads)
	o.Breaker.MaxBackoff = time.Minute // none by the schedule
	c := open(t, o)
	ready(t, c)
	s.MustDo("SET", "k", "one")
	var probes atomic.Int64
	p.Answer(func(cmd []string) string {
		switch {
		case len(cmd) > 1 && cmd[1] == "odd":
			return "shard 7 is being moved"
		case cmd[0] == "SET" && strings.HasPrefix(cmd[1], "holdfast:probe:"):
			probes.Add(1)
		}
		return ""
	})
	start := time.Now()
	for i := 0; i < 2000 || probes.Load() == 0; i++ {
		if _, err := c.Get(ctx, "odd"); !errors.Is(err, holdfast.ErrMiss) {
			t.Fatalf("get: %v", err)
		}
		if v, err := c.GetOrLoad(ctx, "odd", 0, func(context.Context) ([]byte, error) { return []byte("loaded"), nil }); err != nil || string(v) != "loaded" {
			t.Fatalf("getorload: %q, %v", v, err)
		}
		must(t, c.Invalidate("odd"))
		wantGet(t, c, "k", "one")
	}
	most := int64(time.Since(start)/(100*time.Millisecond)) + 2
	if n := probes.Load(); n > most {
		t.Errorf("%d probes, at most %d", n, most)
	}
	// A command that the tiers do not know gets the words.
	client := c.Client()
	if err := client.Do(ctx, client.B().Incr().Key("odd").Build()).Error(); err == nil || err.Error() != "shard 7 is being moved" {
		t.Errorf("incr: %v", err)
	}
	if err := client.Do(ctx, client.B().Get().Key("odd").Build()).Error(); err == nil || contains(err.Error(), "shard") {
		t.Errorf("get through the client: %v", err)
	}
	if err := client.Do(ctx, client.B().Exists().Key("odd").Build()).Error(); !errors.Is(err, holdfast.ErrUnavailable) {
		t.Errorf("exists through the client: %v", err)
	}
	if _, err := c.Add(ctx, "odd", nil, 0); !errors.Is(err, holdfast.ErrUnavailable) || !contains(err.Error(), "shard 7") {
		t.Errorf("add: %v", err)
	}
	must(t, c.Check(ctx))
	if h := c.Health(); h.State != holdfast.Up || c.Stats().BreakerOpens != 0 {
		t.Errorf("health %+v", h)
	}
}

// Passed commands that fail in words of their own, as scripts do, are nothing that the
// circuit heeds.
func TestWhatAScriptSaysNeverOpensTheCircuit(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	c := open(t, at(s.Addr()))
	ready(t, c)
	client := c.Client()
	for range 300 {
		err := client.Do(ctx, client.B().Eval().Script("return redis.error_reply('MINE says no')").Numkeys(0).Build()).Error()
		if err == nil || err.Error() != "MINE says no" {
			t.Fatalf("eval: %v", err)
		}
	}
	if h := c.Health(); h.State != holdfast.Up || c.Stats().BreakerOpens != 0 {
		t.Errorf("health %+v", h)
	}
}

// A key holds a list, or this user may not touch it. The load is the caller's way to the
// source, and Redis' opinion of the key is no reason to refuse it.
func TestALoadNeverFailsBecauseRedisRefusesItsKey(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	s.MustDo("ACL", "SETUSER", "app", "on", ">x", "~*", "&*", "+@all")
	o := tracked(s.Addr(), holdfast.TrackReads)
	o.Redis.Username, o.Redis.Password = "app", "x"
	o.Tracking.UntrackedTTL = 300 * time.Millisecond
	c := open(t, o)
	ready(t, c)
	s.MustDo("RPUSH", "list", "a", "b")
	s.MustDo("ACL", "SETUSER", "app", "resetkeys", "~list", "~holdfast:*", "%R~readable")
	for _, key := range []string{"list", "forbidden", "readable"} {
		var n atomic.Int64
		get := func() error {
			v, err := c.GetOrLoad(ctx, key, time.Hour, func(context.Context) ([]byte, error) {
				return fmt.Appendf(nil, "loaded %d", n.Add(1)), nil
			})
			if err == nil && !strings.HasPrefix(string(v), "loaded") {
				err = fmt.Errorf("got %q", v)
			}
			return err
		}
		must(t, get())
		for range 20 {
			must(t, get())
		}
		if got := n.Load(); got == 0 || got > 5 {
			t.Errorf("%s was loaded %d times in a moment", key, got)
		}
		first := n.Load()
		redistest.WaitFor(t, patience, "another load", func() bool { must(t, get()); return n.Load() > first })
		many, err := c.GetOrLoadMany(ctx, []string{key}, 0, func(context.Context, []string) (map[string][]byte, error) {
			return map[string][]byte{key: []byte("many")}, nil
		})
		if err != nil || len(many) != 1 {
			t.Errorf("getorloadmany %s: %v, %v", key, many, err)
		}
		if e, err := c.GetOrLoadWith(ctx, key, 0, holdfast.LoadOptions{}, func(context.Context, *holdfast.Entry) (holdfast.Loaded, error) {
			return holdfast.Loaded{Value: []byte("v")}, nil
		}); err != nil {
			t.Errorf("load %s: %+v, %v", key, e, err)
		}
		must(t, c.Invalidate(key))
		if _, err := c.Get(ctx, key); !contains(fmt.Sprint(err), "WRONGTYPE", "NOPERM") && (key != "readable" || !errors.Is(err, holdfast.ErrMiss)) {
			t.Errorf("get %s: %v", key, err)
		}
	}
	if got := s.MustDo("LRANGE", "list", "0", "-1"); got != "a\nb" {
		t.Errorf("the list is %q", got)
	}
	if s.MustDo("EXISTS", "forbidden", "readable") != "0" {
		t.Error("stored what may not be")
	}
	if h := c.Health(); h.State != holdfast.Up || c.Stats().LoadErrors != 0 {
		t.Errorf("health %+v, stats %+v", h, c.Stats())
	}
}

// PTTL, EXISTS, scripts and the keys of leases are helpers. A user who may not use them
// has the cache all the same, and Health says what is lacking until it is given.
func TestHelperCommandsThatAreNotPermittedAreDoneWithout(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	s.MustDo("ACL", "SETUSER", "app", "on", ">x", "~app:*", "~holdfast:probe:*", "&*", "+@all", "-pttl", "-exists", "-eval", "-evalsha", "-script")
	o := tracked(s.Addr(), holdfast.TrackReads)
	o.Redis.Username, o.Redis.Password = "app", "x"
	o.Load.Lease = time.Second
	c := open(t, o)
	ready(t, c)
	s.MustDo("SET", "app:k", "one")
	wantGet(t, c, "app:k", "one")
	v, err := c.GetOrLoad(ctx, "app:cold", time.Minute, func(context.Context) ([]byte, error) { return []byte("loaded"), nil })
	if err != nil || string(v) != "loaded" {
		t.Fatalf("getorload: %q, %v", v, err)
	}
	if got := s.MustDo("GET", "app:cold"); got != "loaded" {
		t.Errorf("what was loaded is %s at redis", got)
	}
	must(t, c.Touch(ctx, "app:cold", time.Hour))
	if err := c.Touch(ctx, "app:absent", time.Hour); !errors.Is(err, holdfast.ErrMiss) {
		t.Errorf("touch of an absent key: %v", err)
	}
	must(t, c.Delete(ctx, "app:cold"))
	lacks := fmt.Sprint(c.Health().Lacks)
	for _, name := range []string{"pttl", "exists", "leases"} {
		if !strings.Contains(lacks, name) {
			t.Errorf("lacks %s, want %s among it", lacks, name)
		}
	}
	if h := c.Health(); h.State != holdfast.Up {
		t.Errorf("health %+v", h)
	}
	s.MustDo("ACL", "SETUSER", "app", "~*", "+@all")
	redistest.WaitFor(t, patience, "nothing to be lacking", func() bool {
		must(t, c.Invalidate("app:k"))
		wantGet(t, c, "app:k", "one")
		if _, err := c.GetOrLoad(ctx, "app:cold", time.Minute, func(context.Context) ([]byte, error) { return nil, nil }); err != nil {
			t.Fatal(err)
		}
		must(t, c.Touch(ctx, "app:cold", time.Hour))
		must(t, c.Delete(ctx, "app:cold"))
		return len(c.Health().Lacks) == 0
	})
}

// Rights are taken away from a live connection and given back: what was accepted
// meanwhile arrives, and loads never fail.
func TestRightsThatAreTakenAwayAndGivenBackOnALiveConnection(t *testing.T) {
	beside(t)
	for _, tt := range []struct{ name, take, give string }{
		{"write", "-@write", "+@write"},
		{"all", "-@all", "+@all"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx := begin(t)
			s := redistest.Start(t)
			s.MustDo("ACL", "SETUSER", "app", "on", ">x", "~*", "&*", "+@all")
			o := tracked(s.Addr(), holdfast.TrackReads)
			o.Redis.Username, o.Redis.Password = "app", "x"
			c := open(t, o)
			ready(t, c)
			s.MustDo("ACL", "SETUSER", "app", tt.take)
			waitState(t, c, holdfast.ReadOnly)
			if h := c.Health(); h.LastError == nil || !contains(h.LastError.Error(), "NOPERM") {
				t.Errorf("health %+v", h)
			}
			for i := range 50 {
				must(t, c.Set(ctx, fmt.Sprint("k", i), []byte("kept"), 0))
				key := fmt.Sprint("load", i)
				v, err := c.GetOrLoad(ctx, key, 0, func(context.Context) ([]byte, error) { return []byte(key), nil })
				if err != nil || string(v) != key {
					t.Errorf("getorload: %q, %v", v, err)
				}
			}
			s.MustDo("ACL", "SETUSER", "app", tt.give)
			waitState(t, c, holdfast.Up)
			drain(t, c)
			for i := range 50 {
				if got := s.MustDo("GET", fmt.Sprint("k", i)); got != "kept" {
					t.Errorf("k%d is %s at redis", i, got)
				}
			}
		})
	}
}

// What stands before Redis has forgotten who logged in, on a connection that lives. The
// next connection logs in.
func TestAConnectionThatIsNotLoggedInAnyMoreIsMadeAnew(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	p := redistest.NewInjector(t, s.Addr())
	o := tracked(p.Addr(), holdfast.TrackReads)
	o.Breaker.MaxBackoff = 200 * time.Millisecond
	c := open(t, o)
	ready(t, c)
	var in atomic.Bool
	p.Answer(func(cmd []string) string {
		if cmd[0] == "HELLO" {
			in.Store(true)
		}
		if in.Load() {
			return ""
		}
		return "NOAUTH Authentication required."
	})
	must(t, c.Set(ctx, "k", []byte("kept"), 0))
	waitState(t, c, holdfast.Up)
	redistest.WaitFor(t, patience, "another connection", func() bool { return p.Accepted() > 1 && c.Health().State == holdfast.Up })
	drain(t, c)
	if got := s.MustDo("GET", "k"); got != "kept" {
		t.Errorf("k is %s at redis", got)
	}
	if n := p.Accepted(); n > 3 {
		t.Errorf("%d connections", n)
	}
}

// The backend was away for a moment, and that was when the server was asked to tell of
// changes. The answer says nothing about tracking.
func TestAGreetingThatIsNotUnderstoodIsRepeated(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	p := redistest.NewInjector(t, s.Addr())
	var said atomic.Bool
	p.Answer(func(cmd []string) string {
		if cmd[0] == "CLIENT" && len(cmd) > 1 && cmd[1] == "TRACKING" && !said.Swap(true) {
			return "no upstream host"
		}
		return ""
	})
	c := open(t, tracked(p.Addr(), holdfast.TrackReads))
	ready(t, c)
	if h := c.Health(); !h.Tracking || !said.Load() {
		t.Errorf("health %+v", h)
	}
	must(t, c.Set(ctx, "k", []byte("one"), 0))
	held(t, c, "k", "one")

	// There all the time, it says that the server cannot.
	p.Answer(func(cmd []string) string {
		if cmd[0] == "CLIENT" && len(cmd) > 1 && cmd[1] == "TRACKING" {
			return "tracking is for paying customers"
		}
		return ""
	})
	other := open(t, tracked(p.Addr(), holdfast.TrackReads))
	ready(t, other)
	if h := other.Health(); h.Tracking || h.State != holdfast.Up {
		t.Errorf("health %+v", h)
	}
}

// The proxy is there before its backend is, and answers from the first command on.
func TestAProxyThatHasNoBackendYetIsAnOutage(t *testing.T) {
	beside(t)
	for _, text := range []string{"no upstream host", "ERR Connection refused", "ERR max requests limit exceeded"} {
		t.Run(text, func(t *testing.T) {
			ctx := begin(t)
			s := redistest.Start(t)
			p := redistest.NewInjector(t, s.Addr())
			p.Say(text)
			o := tracked(p.Addr(), holdfast.TrackReads)
			o.Breaker.MaxBackoff = 200 * time.Millisecond
			c := open(t, o)
			must(t, c.Set(ctx, "k", []byte("kept"), 0))
			v, err := c.GetOrLoad(ctx, "cold", 0, func(context.Context) ([]byte, error) { return []byte("v"), nil })
			if err != nil || string(v) != "v" {
				t.Errorf("getorload: %q, %v", v, err)
			}
			redistest.WaitFor(t, patience, "the reason", func() bool {
				err := c.Health().LastError
				return err != nil && contains(err.Error(), strings.TrimPrefix(text, "ERR "))
			})
			p.Answer(nil)
			ready(t, c)
			drain(t, c)
			if got := s.MustDo("GET", "k"); got != "kept" {
				t.Errorf("k is %s at redis", got)
			}
			if h := c.Health(); !h.Tracking {
				t.Errorf("health %+v", h)
			}
		})
	}
}
