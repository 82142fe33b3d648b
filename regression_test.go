package holdfast_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

// Check and Add sent without a slot filled rueidis' ring, whose PutOne knows no
// context: 3,000 callers on a hung server waited 4 seconds each.
func TestAFloodOfChecksOnAHungServerKeepsItsBudget(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	c := open(t, at(s.Addr()))
	ready(t, c)
	s.Pause()
	var calls latencies
	var wg sync.WaitGroup
	for i := range 3000 {
		wg.Go(func() {
			calls.time(func() {
				if i%2 == 0 {
					c.Check(ctx)
				} else {
					c.Add(ctx, fmt.Sprint("k", i), nil, 0)
				}
			})
		})
	}
	wg.Wait()
	s.Resume()
	calls.within(t, 1, 50*time.Millisecond+2*slack())
}

// Each part of a batch that had outlived its budget reported for itself, and
// one large call opened the circuit of a healthy server for everybody.
func TestALargeBatchThatRunsOutOfTimeOpensNothing(t *testing.T) {
	ctx := begin(t)
	s, p := behind(t)
	o := at(p.Addr())
	// The supervisor makes no probe meanwhile, and the connection outlives the silence. A call has
	// 40 parts, of which some 30 are left when the server stalls. On a busy machine a replay may
	// fail a few times, too.
	o.Timeout, o.Breaker.Failures = time.Second, 20
	o.Breaker.MaxBackoff, o.Redis.Dialer.KeepAlive = patience, patience
	c := open(t, o)
	ready(t, c)
	keys := make([]string, 10_000)
	items := make(map[string][]byte, len(keys))
	for i := range keys {
		keys[i] = fmt.Sprint("k", i)
		items[keys[i]] = []byte("v")
	}
	// stalled runs call, whose first parts are answered. The next one is not, until it has run out of time.
	stalled := func(call func() error) {
		t.Helper()
		passed := 0
		p.Swallow(func(chunk []byte) bool {
			if passed += len(chunk); passed > 10_000 { // of 50,000 at least
				p.SetMode(redistest.Hang)
			}
			return false
		})
		before := c.Stats().Timeouts
		called := async(call)
		redistest.WaitFor(t, patience, "a timeout", func() bool { return c.Stats().Timeouts > before })
		p.Swallow(nil)
		p.SetMode(redistest.Pass)
		must(t, <-called)
		if n := c.Stats().Timeouts - before; n != 1 {
			t.Errorf("a large call that ran out of time counts as %d timeouts", n)
		}
	}
	stalled(func() error { return second(c.GetMany(ctx, keys...)) })
	stalled(func() error { return c.SetMany(ctx, items, 0) })
	if n := c.Stats().BreakerOpens; n != 0 {
		t.Errorf("two large calls opened the circuit %d times", n)
	}
	drain(t, c)
	if got := s.MustDo("EXISTS", "k0", "k5000", "k9999"); got != "3" {
		t.Errorf("%s of 3 keys reached redis", got)
	}
}

// Each task of a replay that had run out of time reported for itself, and one stall of a
// server opened the circuit as soon as the journal had a few writes.
func TestAReplayThatRunsOutOfTimeIsOneFailure(t *testing.T) {
	ctx := begin(t)
	s, p := behind(t)
	o := at(p.Addr())
	// The write and the replay alone run into the stall, and the connection outlives it.
	o.Timeout, o.Breaker.Failures = time.Second, 20
	o.Breaker.MaxBackoff, o.Redis.Dialer.KeepAlive = patience, patience
	c := open(t, o)
	ready(t, c)
	items := make(map[string][]byte)
	for i := range 200 {
		items[fmt.Sprint("k", i)] = []byte("v")
	}
	p.SetMode(redistest.Hang)
	must(t, c.SetMany(ctx, items, 0))
	elapsed(t, "a replay that runs out of time", time.Now(), 5*o.Timeout/2)
	n := c.Stats().BreakerOpens
	p.SetMode(redistest.Pass)
	if n != 0 {
		t.Errorf("a stall opened the circuit %d times", n)
	}
	drain(t, c)
	if got := s.MustDo("EXISTS", "k0", "k100", "k199"); got != "3" {
		t.Errorf("%s of 3 keys reached redis", got)
	}
}

// A readiness endpoint on a replica became a reconnect loop: a dial for each call.
func TestChecksOfAReplicaDialNoMoreThanTheSchedule(t *testing.T) {
	ctx := begin(t)
	master, s := redistest.Start(t), redistest.Start(t)
	var dials redistest.DialCounter
	o := at(s.Addr())
	o.Redis.DialCtxFn = dials.Dial
	c := open(t, o)
	ready(t, c)
	s.MustDo("REPLICAOF", "127.0.0.1", fmt.Sprint(master.Port()))
	start := time.Now()
	redistest.WaitFor(t, patience, "three seconds of checks", func() bool {
		if err := c.Check(ctx); err == nil {
			t.Fatal("a check of a replica succeeded")
		}
		return time.Since(start) > 3*time.Second
	})
	must(t, redistest.RateOKUntil(dials.Times(), start, time.Now()))
	if h := c.Health(); h.State != holdfast.ReadOnly || h.Writable {
		t.Errorf("health %+v", h)
	}
	s.MustDo("REPLICAOF", "NO", "ONE")
	waitState(t, c, holdfast.Up)
}

// Shutdown counted before the last calls had journaled what they could not send.
func TestShutdownLosesNothingThatWasAccepted(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	for round := range 10 {
		c := open(t, at(s.Addr()))
		ready(t, c)
		var accepted sync.Map
		stop := load(t, 16, func(g, i int) {
			key := fmt.Sprint(round, ":", g, ":", i)
			if err := c.Set(ctx, key, []byte("v"), 0); err == nil {
				accepted.Store(key, true)
			}
		})
		redistest.WaitFor(t, patience, "some writes", func() bool { return c.Stats().LocalEntries > 500 })
		must(t, c.Shutdown(ctx))
		stop()
		lost := 0
		accepted.Range(func(key, _ any) bool {
			if s.MustDo("EXISTS", key.(string)) != "1" {
				lost++
			}
			return true
		})
		if lost != 0 {
			t.Fatalf("round %d: %d accepted writes did not reach redis", round, lost)
		}
	}
}

func TestAUserWithoutScriptsStillDrains(t *testing.T) {
	beside(t)
	redistest.Long(t) // until it is certain
	for _, acl := range []string{"-script", "-evalsha", "-@scripting"} {
		t.Run(acl, func(t *testing.T) {
			ctx := begin(t)
			s, p := behind(t)
			s.MustDo("ACL", "SETUSER", "app", "on", "nopass", "~*", "+@all", acl)
			o := at(p.Addr())
			o.Redis.Username, o.Redis.Password = "app", "any"
			c := open(t, o)
			ready(t, c)
			must(t, c.Set(ctx, "deleted", []byte("old"), 0))
			must(t, c.Set(ctx, "set", []byte("old"), 0))
			outage(t, c, p, func() {
				must(t, c.Delete(ctx, "deleted"))
				must(t, c.Set(ctx, "set", []byte("new"), 0))
			})
			if got := s.MustDo("EXISTS", "deleted", "set"); got != "0" {
				t.Errorf("%s of the two keys are there: without a script nothing can be compared", got)
			}
		})
	}
}

func TestAPanicInTheLogHandlerGoesNoFurther(t *testing.T) {
	begin(t)
	s := redistest.Start(t)
	o := at(s.Addr())
	o.Logger = slog.New(panicking{})
	var changes atomic.Int64
	o.Hooks.OnStateChange = func(holdfast.StateChange) { changes.Add(1); panic("hook") }
	c := open(t, o)
	ready(t, c)
	closedEmpty(t, c)
}

type panicking struct{}

func (panicking) Enabled(context.Context, slog.Level) bool  { return true }
func (panicking) Handle(context.Context, slog.Record) error { panic("log handler") }
func (p panicking) WithAttrs([]slog.Attr) slog.Handler      { return p }
func (p panicking) WithGroup(string) slog.Handler           { return p }

func TestCloseFromAHookLeavesNothingBehind(t *testing.T) {
	begin(t)
	s := redistest.Start(t)
	o := at(s.Addr())
	var c *holdfast.Cache
	closed := make(chan error, 1)
	made := make(chan struct{})
	o.Hooks.OnStateChange = func(change holdfast.StateChange) {
		<-made
		if change.To == holdfast.Up {
			closed <- c.Close()
		}
	}
	var err error
	c, err = holdfast.New(o)
	must(t, err)
	close(made)
	select {
	case err := <-closed:
		if err == nil {
			t.Error("close from a hook waits for that hook, and did not say so")
		}
	case <-time.After(10 * time.Second):
		t.Fatal("close from a hook did not return")
	}
}

// One conflict made every later write of the key a conflict: the replay had
// deleted the key, and the local copy went on claiming that Redis held it.
func TestOneConflictDoesNotBreedOthers(t *testing.T) {
	ctx := begin(t)
	s, p := behind(t)
	c := open(t, at(p.Addr()))
	ready(t, c)
	must(t, c.Set(ctx, "k", []byte("v1"), 0))
	outage(t, c, p, func() {
		must(t, c.Set(ctx, "k", []byte("v2"), 0))
		s.MustDo("SET", "k", "theirs")
	})
	for i := range 3 {
		v := fmt.Sprint("later", i)
		outage(t, c, p, func() { must(t, c.Set(ctx, "k", []byte(v), 0)) })
		if got := s.MustDo("GET", "k"); got != v {
			t.Errorf("k is %s, want %s", got, v)
		}
	}
	if n := c.Stats().Superseded; n != 1 {
		t.Errorf("%d conflicts where there was one", n)
	}
}

func TestTouchShortensTheCopyToo(t *testing.T) {
	inBubble(t, nil, func(ctx context.Context, c *holdfast.Cache, v *virtual) {
		must(t, c.Set(ctx, "k", []byte("v"), time.Hour))
		must(t, c.Touch(ctx, "k", time.Second))
		v.set(true, false, true)
		time.Sleep(2 * time.Second)
		wantGet(t, c, "k", "")
	})
}

func TestAnAddThatFindsTheKeyKeepsTheCopy(t *testing.T) {
	inBubble(t, nil, func(ctx context.Context, c *holdfast.Cache, v *virtual) {
		must(t, c.Set(ctx, "k", []byte("v"), time.Hour))
		if added, err := c.Add(ctx, "k", []byte("w"), 0); added || err != nil {
			t.Fatal(added, err)
		}
		v.set(true, false, true)
		time.Sleep(time.Second)
		wantGet(t, c, "k", "v")
	})
}

func TestAnAddThatRunsLateIsTakenBack(t *testing.T) {
	redistest.Long(t)
	ctx := begin(t)
	c, s, first := hungOnce(t)
	s.MustDo("CONFIG", "SET", "slowlog-log-slower-than", "0", "slowlog-max-len", "1000")
	first.SetMode(redistest.Hang)
	if added, err := c.Add(ctx, "k", []byte("added"), 0); added || !errors.Is(err, holdfast.ErrUnavailable) {
		t.Fatal(added, err)
	}
	waitState(t, c, holdfast.Up)
	must(t, c.Delete(ctx, "k"))
	drain(t, c)
	first.SetMode(redistest.Pass)
	// The key itself may show nothing: the delete that takes the add back was
	// perhaps sent on the same connection, and then runs right behind it.
	redistest.WaitFor(t, patience, "the late add to run", func() bool {
		return strings.Contains(s.MustDo("SLOWLOG", "GET", "-1"), "added")
	})
	wantGet(t, c, "k", "")
	settled(t, c)
	if got := s.MustDo("EXISTS", "k"); got != "0" {
		t.Error("what an add that had failed left came back after a delete")
	}
}

// Somebody else's value under the same key must not be taken back with it.
func TestAnAddThatGotNoAnswerLeavesOthersAlone(t *testing.T) {
	redistest.Long(t)
	ctx := begin(t)
	c, s, first := hungOnce(t)
	s.MustDo("SET", "k", "theirs")
	first.SetMode(redistest.Hang)
	if _, err := c.Add(ctx, "k", []byte("added"), 0); !errors.Is(err, holdfast.ErrUnavailable) {
		t.Fatal(err)
	}
	waitState(t, c, holdfast.Up)
	drain(t, c)
	first.SetMode(redistest.Pass)
	settled(t, c)
	if got := s.MustDo("GET", "k"); got != "theirs" {
		t.Errorf("k is %s", got)
	}
	wantGet(t, c, "k", "theirs")
}

// Sixty-four callers of one hot key time out at once; then one more writes it.
func TestAHotKeyOfManyCallersIsNoConflictWithItself(t *testing.T) {
	redistest.Long(t)
	ctx := begin(t)
	for round := range 2 {
		c, s, first := hungOnce(t)
		must(t, c.Set(ctx, "k", []byte("before"), 0))
		first.SetMode(redistest.Hang)
		var wg sync.WaitGroup
		for i := range 64 {
			wg.Go(func() { must(t, c.Set(ctx, "k", []byte(fmt.Sprint("late", i)), 0)) })
		}
		wg.Wait()
		must(t, c.Set(ctx, "k", []byte("last"), 0))
		drain(t, c)
		if got := s.MustDo("GET", "k"); got != "last" || c.Stats().Superseded != 0 {
			t.Errorf("round %d: after the replay k is %s; %d superseded", round, got, c.Stats().Superseded)
		}
		first.SetMode(redistest.Pass)
		settled(t, c)
		if got := s.MustDo("GET", "k"); got != "last" {
			t.Errorf("round %d: after the second check k is %s", round, got)
		}
	}
}
