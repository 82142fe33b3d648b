package holdfast_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

// swift is Options with which a client has not been used for long after half a second,
// and whose calls wait for what is there, whatever the machine has to do beside.
func swift(addr string) holdfast.Options {
	o := leisurely(addr)
	o.Breaker.MinBackoff, o.Breaker.MaxBackoff = 10*time.Millisecond, 50*time.Millisecond
	return o
}

// rests waits until nobody has used the Cache for ten times MaxBackoff, and so long that
// no attempt to reach Redis was made lately: the next one is far off.
func rests(t testing.TB, c *holdfast.Cache, between time.Duration) {
	t.Helper()
	idle, start := 10*c.Options().Breaker.MaxBackoff, time.Now()
	redistest.WaitFor(t, patience, "the client to be unused for long", func() bool { return time.Since(start) > idle })
	noAttempt(t, c, between)
}

// noAttempt waits until there was none for so long.
func noAttempt(t testing.TB, c *holdfast.Cache, between time.Duration) {
	t.Helper()
	dials, at := uint64(0), time.Now()
	redistest.WaitFor(t, patience, "attempts to be rare", func() bool {
		if n := c.Stats().DialAttempts; n != dials {
			dials, at = n, time.Now()
		}
		return time.Since(at) > between
	})
}

// firstCalls are those of which the answer must be Redis' own. Each is the first after a
// quiet time.
var firstCalls = map[string]func(ctx context.Context, c *holdfast.Cache) error{
	"Add": func(ctx context.Context, c *holdfast.Cache) error {
		added, err := c.Add(ctx, "new", []byte("v"), 0)
		if err == nil && !added {
			err = errors.New("not added")
		}
		return err
	},
	"TTL": func(ctx context.Context, c *holdfast.Cache) error {
		ttl, err := c.TTL(ctx, "there")
		if err == nil && ttl <= 0 {
			err = fmt.Errorf("ttl %v", ttl)
		}
		return err
	},
	"Touch": func(ctx context.Context, c *holdfast.Cache) error { return c.Touch(ctx, "there", time.Minute) },
	"Get": func(ctx context.Context, c *holdfast.Cache) error {
		e, err := c.Lookup(ctx, "there")
		if err == nil && (e.Degraded || string(e.Value) != "theirs") {
			err = fmt.Errorf("%+v", e)
		}
		return err
	},
	"GetMany": func(ctx context.Context, c *holdfast.Cache) error {
		got, err := c.GetMany(ctx, "there", "counter")
		if err == nil && string(got["there"]) != "theirs" {
			err = fmt.Errorf("%q", got)
		}
		return err
	},
	"Check":     func(ctx context.Context, c *holdfast.Cache) error { return c.Check(ctx) },
	"Available": func(ctx context.Context, c *holdfast.Cache) error { return c.Available(ctx) },
	"INCR": func(ctx context.Context, c *holdfast.Cache) error {
		cl := c.Client()
		return cl.Do(ctx, cl.B().Incr().Key("counter").Build()).Error()
	},
	"PING": func(ctx context.Context, c *holdfast.Cache) error {
		cl := c.Client()
		return cl.Do(ctx, cl.B().Ping().Build()).Error()
	},
	"GET": func(ctx context.Context, c *holdfast.Cache) error {
		cl := c.Client()
		v, err := cl.Do(ctx, cl.B().Get().Key("there").Build()).ToString()
		if err == nil && v != "theirs" {
			err = fmt.Errorf("%q", v)
		}
		return err
	},
	"EXISTS": func(ctx context.Context, c *holdfast.Cache) error {
		cl := c.Client()
		return cl.Do(ctx, cl.B().Exists().Key("there").Build()).Error()
	},
	"BLPOP": func(ctx context.Context, c *holdfast.Cache) error {
		cl := c.Client()
		return cl.Do(ctx, cl.B().Blpop().Key("list").Timeout(1).Build()).Error()
	},
	"MULTI": func(ctx context.Context, c *holdfast.Cache) error {
		cl := c.Client()
		d, release := cl.Dedicate()
		defer release()
		for _, r := range d.DoMulti(ctx, cl.B().Multi().Build(), cl.B().Incr().Key("counter").Build(), cl.B().Exec().Build()) {
			if r.Error() != nil {
				return r.Error()
			}
		}
		return nil
	},
	"Set": func(ctx context.Context, c *holdfast.Cache) error { return c.Set(ctx, "there", []byte("ours"), 0) },
}

func filled(s *redistest.Server) {
	s.MustDo("FLUSHALL")
	s.MustDo("SET", "there", "theirs", "EX", "1000")
	s.MustDo("RPUSH", "list", "1")
}

// Nobody calls for ten times MaxBackoff and longer; Redis goes and comes back. The first
// call found the circuit open, and got ErrUnavailable or a miss though Redis was up.
func TestTheFirstCallAfterAQuietTimeIsAnsweredByRedis(t *testing.T) {
	for name, call := range firstCalls {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := context.Background()
			s := redistest.Start(t)
			c := open(t, swift(s.Addr()))
			ready(t, c)
			rests(t, c, 100*time.Millisecond)
			s.Kill()
			rests(t, c, 300*time.Millisecond)
			s.RestartEmpty()
			filled(s)
			start := time.Now()
			if err := call(ctx, c); err != nil {
				t.Fatalf("after %v: %v; health %+v", time.Since(start), err, c.Health())
			}
			if name == "Set" {
				if v := s.MustDo("GET", "there"); v != "ours" {
					t.Fatalf("redis holds %q", v)
				}
			}
		})
	}
}

// The same right after New.
func TestTheFirstCallAfterNewIsAnsweredByRedis(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	for name, call := range firstCalls {
		if name == "Get" || name == "GetMany" || name == "GET" || name == "Set" {
			continue // they wait for nothing
		}
		for range 20 { // the attempt may be decided between two looks of the call
			filled(s)
			c := open(t, leisurely(s.Addr()))
			if err := call(ctx, c); err != nil {
				t.Fatalf("%s: %v; health %+v", name, err, c.Health())
			}
			closedEmpty(t, c)
		}
	}
}

// A load balancer closes the connection of a client that nobody uses. That is nothing to
// tell of: it is made anew at once.
func TestHealthDoesNotCallDownWhatIsOnlyIdle(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	o := swift(s.Addr())
	changes := make(chan holdfast.StateChange, 100)
	o.Hooks.OnStateChange = func(change holdfast.StateChange) { changes <- change }
	c := open(t, o)
	ready(t, c)
	rests(t, c, 100*time.Millisecond)
	for range 2 {
		dials := c.Stats().DialAttempts
		s.MustDo("CLIENT", "KILL", "TYPE", "normal")
		redistest.WaitFor(t, patience, "another connection", func() bool {
			if st := c.Health().State; st != holdfast.Up {
				t.Fatalf("health says %v", st)
			}
			return c.Stats().DialAttempts > dials && c.Health().Writable
		})
		rests(t, c, 100*time.Millisecond)
	}
	if change := <-changes; change.To != holdfast.Up {
		t.Errorf("%+v", change)
	}
	select {
	case change := <-changes:
		t.Errorf("%+v was told", change)
	default:
	}
	must(t, c.Check(ctx))
}

// Law 3 for a client that nobody uses: once a minute, with Redis there and with Redis
// away; and looking at Health and Stats is no use.
func TestAClientThatNobodyUsesLooksForRedisOnceAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVirtual(t)
		c := open(t, v.options())
		ready(t, c)
		time.Sleep(time.Minute)
		scraped := func(d time.Duration, each func()) {
			for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(time.Second) {
				c.Health()
				c.Stats()
				each()
			}
		}
		probes, last := 0, c.Health().ProbedAt
		scraped(time.Hour, func() {
			h := c.Health()
			if h.State != holdfast.Up || time.Since(h.ProbedAt) > time.Minute+time.Second {
				t.Fatalf("health %+v, at %v", h, time.Now())
			}
			if h.ProbedAt != last {
				probes, last = probes+1, h.ProbedAt
			}
		})
		if probes < 59 || probes > 61 {
			t.Errorf("%d probes in an hour", probes)
		}
		before := len(v.times())
		v.set(true, false, true)
		scraped(time.Hour, func() {})
		n := len(v.times()) - before
		if n < 59 || n > 75 {
			t.Errorf("%d attempts in an hour without Redis", n)
		}
		times := v.times()[before:]
		for i := 20; i < len(times); i++ {
			if gap := times[i].Sub(times[i-1]); gap < 50*time.Second {
				t.Errorf("attempts %v apart", gap)
			}
		}
		// Back again, it is found within a minute, by nobody's call.
		v.set(false, false, false)
		time.Sleep(time.Minute)
		if h := c.Health(); h.State != holdfast.Up {
			t.Errorf("health %+v", h)
		}
	})
}

// Nobody waits twice for what is not there: one window for all, and then none while
// attempts fail.
func TestOnlyTheFirstCallsAfterAQuietTimeWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		v := newVirtual(t)
		o := v.options()
		c := open(t, o)
		ready(t, c)
		time.Sleep(time.Minute)
		v.set(false, true, true) // mute from now on
		time.Sleep(10 * time.Minute)
		for i := range 100 {
			start := time.Now()
			if _, err := c.Add(ctx, "k", nil, 0); !errors.Is(err, holdfast.ErrUnavailable) {
				t.Fatal(err)
			}
			took := time.Since(start)
			if i == 0 && took > 50*time.Millisecond || i > 0 && took > 0 {
				t.Fatalf("call %d waited %v", i, took)
			}
			time.Sleep(30 * time.Millisecond)
		}
	})
}

// Check always looks: it is for what asks seldom, and wants to know.
func TestCheckLooksForARedisThatWasAway(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	o := leisurely(s.Addr())
	o.Breaker.MinBackoff, o.Breaker.MaxBackoff = time.Millisecond, time.Hour
	c := open(t, o)
	ready(t, c)
	s.Kill()
	if err := c.Check(ctx); !errors.Is(err, holdfast.ErrUnavailable) {
		t.Fatalf("check of a dead server: %v", err)
	}
	noAttempt(t, c, 500*time.Millisecond) // the next is as far off
	s.RestartEmpty()
	readiness := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := c.Check(r.Context()); err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer readiness.Close()
	resp, err := readiness.Client().Get(readiness.URL)
	must(t, err)
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("readiness %v; health %+v", resp.Status, c.Health())
	}
}

// Who listens must hear of a connection that was lost and made anew in silence: what
// changed in between was told to nobody.
func TestAViewThatListensHearsOfALossThatIsOnlyIdle(t *testing.T) {
	begin(t)
	s := redistest.Start(t)
	o := swift(s.Addr())
	var h heard
	c, cl := listening(t, s, o, h.listen)
	defer cl.Close()
	rests(t, c, 100*time.Millisecond)
	before, dials := h.none(), c.Stats().DialAttempts
	s.MustDo("CLIENT", "KILL", "TYPE", "normal")
	redistest.WaitFor(t, patience, "two calls without keys: it went away, and is back", func() bool {
		return h.none() >= before+2 && c.Stats().DialAttempts > dials
	})
}
