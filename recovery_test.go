package holdfast_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

// outage runs during while the server cannot be reached, and returns when the
// journal is drained. The server keeps its data and can be written to by others.
func outage(t *testing.T, c *holdfast.Cache, p *redistest.Proxy, during func()) {
	t.Helper()
	p.SetMode(redistest.Cut)
	waitState(t, c, holdfast.Down)
	during()
	p.SetMode(redistest.Pass)
	waitState(t, c, holdfast.Up)
	drain(t, c)
}

func TestTheTTLOfTheOutageReachesRedis(t *testing.T) {
	ctx := begin(t)
	s, p := behind(t)
	c := open(t, at(p.Addr()))
	ready(t, c)
	must(t, c.Set(ctx, "longer", []byte("v"), time.Minute))
	must(t, c.Set(ctx, "shorter", []byte("v"), 0))
	must(t, c.Set(ctx, "forever", []byte("v"), time.Minute))
	must(t, c.Set(ctx, "touched", []byte("v"), time.Minute))
	outage(t, c, p, func() {
		must(t, c.Set(ctx, "longer", []byte("v"), time.Hour))
		must(t, c.Set(ctx, "shorter", []byte("v"), time.Minute))
		must(t, c.Set(ctx, "forever", []byte("v"), 0))
		must(t, c.Set(ctx, "touched", []byte("new"), time.Minute))
		must(t, c.Touch(ctx, "touched", time.Hour))
	})
	for key, want := range map[string][2]int{"longer": {3500, 3600}, "shorter": {50, 60}, "forever": {-1, -1}, "touched": {3500, 3600}} {
		var ttl int
		fmt.Sscan(s.MustDo("TTL", key), &ttl)
		if ttl < want[0] || ttl > want[1] {
			t.Errorf("ttl of %s is %ds, want %d to %d", key, ttl, want[0], want[1])
		}
	}
}

// hungOnce is a cache whose first connection hangs on demand while later ones do
// not: what it sent may run late, when another connection has long replayed.
func hungOnce(t *testing.T) (c *holdfast.Cache, s *redistest.Server, first *redistest.Proxy) {
	t.Helper()
	s = redistest.Start(t)
	first = redistest.NewProxy(t, s.Addr())
	var used atomic.Bool
	o := at(s.Addr())
	o.Breaker.Failures = 1
	o.Redis.DialCtxFn = func(ctx context.Context, addr string, d *net.Dialer, _ *tls.Config) (net.Conn, error) {
		if used.CompareAndSwap(false, true) {
			addr = first.Addr()
		}
		return d.DialContext(ctx, "tcp", addr)
	}
	c = open(t, o)
	ready(t, c)
	return c, s, first
}

func settled(t *testing.T, c *holdfast.Cache) {
	t.Helper()
	redistest.WaitFor(t, patience, "the second checks", func() bool { return c.Health().JournalKeys == 0 })
}

func TestAWriteThatRunsLateDoesNotUndoALaterOne(t *testing.T) {
	redistest.Long(t)
	ctx := begin(t)
	c, s, first := hungOnce(t)
	for _, k := range []string{"set-set", "set-del", "del-set"} {
		must(t, c.Set(ctx, k, []byte("before"), 0))
	}
	first.SetMode(redistest.Hang)
	// Sent, and not answered: one pipeline, so that the circuit opens behind it.
	must(t, c.SetMany(ctx, map[string][]byte{"set-set": []byte("late"), "set-del": []byte("late")}, 0))
	waitState(t, c, holdfast.Down)
	must(t, c.Set(ctx, "set-set", []byte("last"), 0))
	must(t, c.Delete(ctx, "set-del"))
	drain(t, c)
	check := func(when string) {
		t.Helper()
		if got := s.MustDo("GET", "set-set"); got != "last" {
			t.Errorf("%s: set-set is %s", when, got)
		}
		if got := s.MustDo("GET", "set-del"); got != "(nil)" {
			t.Errorf("%s: set-del is %s", when, got)
		}
	}
	check("after the replay")
	first.SetMode(redistest.Pass) // now they run
	redistest.WaitFor(t, patience, "the late writes to run", func() bool { return s.MustDo("GET", "set-set") == "late" })
	wantGet(t, c, "set-set", "last")
	wantGet(t, c, "set-del", "")
	settled(t, c)
	check("after the second check")
	wantGet(t, c, "set-set", "last")
	wantGet(t, c, "set-del", "")
}

func TestADeleteThatRunsLateDoesNotUndoALaterSet(t *testing.T) {
	redistest.Long(t)
	ctx := begin(t)
	c, s, first := hungOnce(t)
	must(t, c.Set(ctx, "k", []byte("before"), 0))
	first.SetMode(redistest.Hang)
	must(t, c.Delete(ctx, "k"))
	must(t, c.Set(ctx, "k", []byte("last"), 0))
	drain(t, c)
	first.SetMode(redistest.Pass)
	redistest.WaitFor(t, patience, "the late delete to run", func() bool { return s.MustDo("EXISTS", "k") == "0" })
	settled(t, c)
	if got := s.MustDo("GET", "k"); got != "last" {
		t.Errorf("after the second check k is %s", got)
	}
}

// A key that is written all the time must leave the journal, too.
func TestAHotKeyIsUnfencedOnceNothingCanRunLate(t *testing.T) {
	redistest.Long(t)
	ctx := begin(t)
	c, s, first := hungOnce(t)
	must(t, c.Set(ctx, "k", []byte("before"), 0))
	first.SetMode(redistest.Hang)
	for i := range 20 {
		must(t, c.Set(ctx, "k", []byte(fmt.Sprint("during", i)), 0))
	}
	drain(t, c)
	first.SetMode(redistest.Cut) // nothing runs late
	last := ""
	redistest.WaitFor(t, patience, "the key to leave the journal under writes", func() bool {
		last = fmt.Sprint("after", len(last), time.Now().UnixNano())
		must(t, c.Set(ctx, "k", []byte(last), 0))
		drain(t, c)
		if got := s.MustDo("GET", "k"); got != last {
			t.Fatalf("k is %s, want %s", got, last)
		}
		return c.Health().JournalKeys == 0
	})
	if n := c.Stats().Superseded; n != 0 {
		t.Errorf("%d writes superseded where nobody else writes", n)
	}
}

func TestARestartedEmptyServerGetsItsOwnBack(t *testing.T) {
	ctx := begin(t)
	s, p := behind(t)
	c := open(t, at(p.Addr()))
	ready(t, c)
	must(t, c.Set(ctx, "k", []byte("before"), 0))
	s.Kill()
	waitState(t, c, holdfast.Down)
	must(t, c.Set(ctx, "k", []byte("ours"), 0))
	s.RestartEmpty()
	waitState(t, c, holdfast.Up)
	drain(t, c)
	if got := s.MustDo("GET", "k"); got != "ours" {
		t.Errorf("k is %s: its absence was the server's loss, nobody's delete", got)
	}
}

func TestShutdownOfAClientThatNeverReachedRedisSaysHowManyWritesAreLost(t *testing.T) {
	ctx := begin(t)
	c := open(t, at(redistest.FreeAddr(t)))
	for i := range 7 {
		must(t, c.Set(ctx, fmt.Sprint("k", i), []byte("v"), 0))
	}
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	err := c.Shutdown(short)
	var u *holdfast.UndeliveredError
	if !asUndelivered(err, &u) || u.Keys != 7 {
		t.Errorf("shutdown without redis: %v", err)
	}
}

func TestWhatAReplayDidIsTold(t *testing.T) {
	ctx := begin(t)
	s, p := behind(t)
	told := make(chan holdfast.Replay, 100)
	o := at(p.Addr())
	o.Hooks.OnReplay = func(r holdfast.Replay) { told <- r }
	c := open(t, o)
	ready(t, c)
	must(t, c.Set(ctx, "theirs", []byte("before"), 0))
	outage(t, c, p, func() {
		must(t, c.Set(ctx, "set", []byte("v"), 0))
		must(t, c.Set(ctx, "theirs", []byte("ours"), 0))
		must(t, c.Delete(ctx, "deleted"))
		s.MustDo("SET", "theirs", "theirs")
	})
	var sum holdfast.Replay
	for sum.Replayed+sum.Superseded < 3 {
		select {
		case r := <-told:
			sum.Replayed += r.Replayed
			sum.Superseded += r.Superseded
			sum.Held += r.Held
			sum.Rejected += r.Rejected
			sum.Left = r.Left
		case <-time.After(patience):
			t.Fatalf("told of %+v and no more", sum)
		}
	}
	if sum != (holdfast.Replay{Replayed: 2, Superseded: 1}) {
		t.Errorf("told of %+v", sum)
	}
	if st := c.Stats(); st.Replayed != 2 || st.Superseded != 1 {
		t.Errorf("stats %+v", st)
	}
}
