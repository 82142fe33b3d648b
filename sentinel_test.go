package holdfast_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

// The master is killed, and the one after it hangs: writes go to the next one
// within a second of its promotion, and nothing that was accepted is lost.
func TestTwoMastersOfASentinelGoAndNoAcceptedWriteDoes(t *testing.T) {
	ctx := undisturbed(t)
	r := redistest.StartSentinel(t, 2)
	base := runtime.NumGoroutine()
	var dials redistest.DialCounter
	o := watched(r.Addrs()...)
	o.Redis.DialCtxFn = dials.Dial
	c := open(t, o)
	ready(t, c)
	var l ledger
	stop := l.write(t, ctx, c, 8)
	most := 0
	var lost []moment
	for _, how := range []struct {
		name string
		goes func(*redistest.Server)
		left int // replicas of the next master
	}{
		{"killed", (*redistest.Server).Kill, 1},
		{"stopped", (*redistest.Server).Pause, 0},
	} {
		passes(t, "some load", 200*time.Millisecond)
		old := r.Master()
		gone := momentOf(func() { how.goes(old) })
		lost = append(lost, gone)
		waitState(t, c, holdfast.Down)
		down := time.Now()
		redistest.WaitFor(t, patience, "a promotion", func() bool {
			most = max(most, dials.Open())
			return r.Master() != old
		})
		promoted := time.Now()
		waitState(t, c, holdfast.Up)
		took := time.Since(promoted)
		t.Logf("%s: down after %v, promotion after %v, up %v later", how.name, down.Sub(gone.until), promoted.Sub(gone.until), took)
		if took > 3*time.Second+slack() {
			t.Errorf("%s: up %v after the promotion", how.name, took)
		}
		if h := c.Health(); !h.Writable {
			t.Errorf("%s: %+v", how.name, h)
		}
		r.Master().AwaitReplicas(how.left)
		if how.name == "stopped" {
			old.Resume() // and runs what it had been sent
		}
	}
	passes(t, "some load", 200*time.Millisecond)
	stop()
	drain(t, c)
	l.calls.within(t, 0.999, 50*time.Millisecond+slack())
	l.check(t, r.Master(), lost...)
	if most > 2 {
		t.Errorf("%d connections at once, want one to a server and one to a sentinel", most)
	}
	redistest.WaitFor(t, patience, "one connection to the master alone", func() bool {
		return ours(r.Master()) == 1 && oursAt(running(r.Servers())) == 1
	})
	if n := oursAt(r.Sentinels()); n > 1 {
		t.Errorf("%d connections to sentinels", n)
	}
	closedEmpty(t, c)
	if n := dials.Open(); n != 0 {
		t.Errorf("%d connections left open", n)
	}
	redistest.GoroutinesBackTo(t, base, 2)
	redistest.WaitFor(t, patience, "no connection anywhere", func() bool {
		return oursAt(running(r.Servers()))+oursAt(r.Sentinels()) == 0
	})
}

func running(servers []*redistest.Server) []*redistest.Server {
	return slices.DeleteFunc(servers, func(s *redistest.Server) bool { return !s.Running() })
}

// A node kept writing to a read-only replica, and its health said ok: the notice
// of the switch had been lost.
func TestAFailoverIsFollowedWithoutANotice(t *testing.T) {
	ctx := begin(t)
	r := redistest.StartSentinel(t, 1)
	var addrs []string
	for _, s := range r.Sentinels() {
		p := redistest.NewProxy(t, s.Addr())
		p.Swallow(func(chunk []byte) bool { return bytes.Contains(chunk, []byte("switch-master")) })
		addrs = append(addrs, p.Addr())
	}
	var changes states
	o := watched(addrs...)
	changes.record(&o)
	c := open(t, o)
	ready(t, c)
	old := r.Master()
	var l ledger
	stop := l.write(t, ctx, c, 8)
	passes(t, "some load", 100*time.Millisecond)
	next := r.Servers()[1]
	began := time.Now()
	r.Sentinels()[1].MustDo("SENTINEL", "FAILOVER", redistest.MasterSet)
	var before time.Time // the last that is known of
	redistest.WaitFor(t, patience, "the promotion", func() bool {
		asked := time.Now()
		if role(next) == "master" {
			return true
		}
		before = asked
		return false
	})
	promoted := time.Now()
	// A sentinel makes a master of the replica before it makes a replica of the
	// master: what the latter acknowledges in between will be lost, and nobody can
	// tell before the sentinels do.
	split := moment{from: before.Add(-100 * time.Millisecond)}
	redistest.WaitFor(t, patience, "the old master to be left", func() bool { return ours(old) == 0 && ours(next) == 1 })
	split.until = time.Now()
	told := false
	redistest.WaitFor(t, patience, "the demotion", func() bool {
		told = told || r.Master() == next
		return told && role(old) == "slave"
	})
	waitState(t, c, holdfast.Up)
	took := split.until.Sub(promoted)
	t.Logf("promoted %v after the order, left %v later, demoted %v after the promotion, by way of %v",
		promoted.Sub(began), took, time.Since(promoted), changes.between(began, time.Now()))
	if took > 3*2*time.Second+slack() {
		t.Errorf("off the old master %v after the promotion", took)
	}
	// Enough of the load is not of that time.
	redistest.WaitFor(t, patience, "as much load again", func() bool { return time.Since(split.until) > 3*split.until.Sub(split.from)/2 })
	passes(t, "some load", 100*time.Millisecond)
	stop()
	drain(t, c)
	l.calls.within(t, 0.999, 50*time.Millisecond+slack())
	l.check(t, r.Master(), split)
}

// The sentinels have lost sight of a master that is as well as ever for us. It is
// nobody's master any more, and what it acknowledges will be lost.
func TestAMasterThatItsSentinelsGaveUpIsLeftThoughItAnswers(t *testing.T) {
	ctx := begin(t)
	r := redistest.StartSentinelWith(t, redistest.SentinelOptions{Replicas: 1, MasterProxy: true})
	old := r.Master()
	o := watched(r.Addrs()...)
	o.Redis.DialCtxFn = func(ctx context.Context, addr string, d *net.Dialer, _ *tls.Config) (net.Conn, error) {
		if addr == r.MasterProxy().Addr() {
			addr = old.Addr() // our way to it is another one than theirs
		}
		return d.DialContext(ctx, "tcp", addr)
	}
	var changes states
	changes.record(&o)
	c := open(t, o)
	ready(t, c)
	must(t, c.Set(ctx, "before", []byte("v"), 0))
	old.AwaitReplicas(1)
	began := time.Now()
	r.MasterProxy().SetMode(redistest.Cut)
	redistest.WaitFor(t, patience, "the promotion", func() bool {
		must(t, c.Set(ctx, "lost", []byte("v"), 0))
		wantGet(t, c, "lost", "v")
		return r.Master() != old
	})
	promoted := time.Now()
	redistest.WaitFor(t, patience, "the old master to be left", func() bool {
		must(t, c.Set(ctx, fmt.Sprint("k", time.Since(promoted)), []byte("v"), 0))
		return ours(old) == 0
	})
	took := time.Since(promoted)
	waitState(t, c, holdfast.Up)
	t.Logf("left %v after the promotion, by way of %v", took, changes.between(began, time.Now()))
	if took > 3*2*time.Second+slack() {
		t.Errorf("left %v after the promotion", took)
	}
	drain(t, c)
	// What only the old master knows is no longer true, and no copy of ours says
	// otherwise; what both know is.
	if r.Master().MustDo("EXISTS", "lost") == "0" {
		redistest.WaitFor(t, patience, "the copy of what was lost to be in doubt", func() bool {
			e, err := c.Lookup(ctx, "lost")
			return err == holdfast.ErrMiss && !e.Degraded
		})
	}
	wantGet(t, c, "before", "v")
	must(t, c.Set(ctx, "after", []byte("v"), 0))
	if got := r.Master().MustDo("GET", "after"); got != "v" {
		t.Errorf("the new master holds %s", got)
	}
	r.MasterProxy().SetMode(redistest.Pass)
	redistest.WaitFor(t, patience, "the old master to be told", func() bool { return role(old) == "slave" })
	redistest.WaitFor(t, patience, "one connection, to the new master", func() bool {
		return c.Health().State == holdfast.Up && ours(r.Master()) == 1 && ours(old) == 0
	})
}

// Without sentinels nobody knows where the master is, but it is still there.
func TestWithoutSentinelsTheMasterGoesOnServing(t *testing.T) {
	for _, tt := range []struct {
		name     string
		go_, get func(*redistest.Server)
	}{
		{"refused", (*redistest.Server).Kill, func(s *redistest.Server) { s.Restart() }},
		{"black holes", (*redistest.Server).Pause, (*redistest.Server).Resume},
	} {
		t.Run(tt.name, func(t *testing.T) {
			outage := time.Duration(3*roundsFactor(t)) * time.Second
			ctx := undisturbed(t)
			r := redistest.StartSentinel(t, 0)
			master := r.Master()
			var dials redistest.DialCounter
			var changes states
			o := watched(r.Addrs()...)
			o.Redis.DialCtxFn = dials.Dial
			o.Timeout = max(250*time.Millisecond, budget()) // a machine that stalls is no news of Redis
			changes.record(&o)
			c := open(t, o)
			ready(t, c)
			base := runtime.NumGoroutine()
			var calls latencies
			stop := mixed(t, ctx, c, 8, &calls)
			up := time.Now()
			for _, s := range r.Sentinels() {
				tt.go_(s)
			}
			passes(t, "traffic without sentinels", outage*2/3)
			if in := changes.between(up, time.Now()); len(in) > 0 || c.Health().State != holdfast.Up {
				t.Errorf("without sentinels: %v, %+v", in, c.Health())
			}
			if n := ours(master); n != 1 {
				t.Errorf("%d connections to the master", n)
			}
			for _, a := range r.Addrs() {
				must(t, redistest.RateOKUntil(dials.TimesTo(a), up, time.Now()))
			}
			tt.go_(master)
			gone := time.Now()
			waitState(t, c, holdfast.Down)
			most := 0
			redistest.WaitFor(t, outage+patience, "an outage of all", func() bool {
				most = max(most, runtime.NumGoroutine())
				return time.Since(gone) > outage
			})
			for _, a := range append(r.Addrs(), master.Addr()) {
				times := dials.TimesTo(a)
				t.Logf("%s: %d dials", a, len(times))
				must(t, redistest.RateOKUntil(times, gone, time.Now()))
			}
			// Each of the eight callers may leave a call behind that its server
			// never answers; nothing else grows.
			if most > base+8+32 {
				t.Errorf("%d goroutines, %d before", most, base)
			}
			calls.within(t, 1, o.Timeout+slack())
			before := len(dials.Times())
			tt.get(master)
			tt.get(r.Sentinels()[2]) // one alone
			waitState(t, c, holdfast.Up)
			stop()
			if n := len(dials.Times()) - before; n > 12 {
				t.Errorf("%d dials to come back", n)
			}
			drain(t, c)
			if n := ours(master); n != 1 {
				t.Errorf("%d connections to the master", n)
			}
		})
	}
}

// A sentinel that hangs is waited for by nobody but the one who asks it.
func TestASentinelThatHangsHoldsUpNothing(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	way := redistest.NewProxy(t, s.Addr())
	first, second := sentinelFor(t, way.Addr()), sentinelFor(t, way.Addr())
	p1, p2 := redistest.NewProxy(t, first.Addr()), redistest.NewProxy(t, second.Addr())
	o := watched(p1.Addr(), p2.Addr())
	o.Timeout = max(250*time.Millisecond, budget()) // a machine that stalls is no news of Redis
	c := open(t, o)
	ready(t, c)
	var calls latencies
	stop := mixed(t, ctx, c, 4, &calls)
	p1.SetMode(redistest.Hang)
	hung := time.Now()
	redistest.WaitFor(t, patience, "three seconds with a hung sentinel", func() bool {
		h := c.Health()
		if h.State != holdfast.Up {
			t.Fatalf("%+v", h)
		}
		if ago := time.Since(h.ProbedAt); ago > 3*time.Second+slack() {
			t.Fatalf("the last probe was %v ago: nobody looks after the master", ago)
		}
		return time.Since(hung) > 2500*time.Millisecond
	})
	// The master's connection is lost while whichever of them we talk to hangs.
	p1.SetMode(redistest.Pass)
	p2.SetMode(redistest.Hang)
	dialed := way.Accepted()
	way.CutAll()
	cut := time.Now()
	redistest.WaitFor(t, patience, "another connection", func() bool {
		return way.Accepted() > dialed && c.Health().State == holdfast.Up
	})
	t.Logf("up %v after the cut", time.Since(cut))
	if took := time.Since(cut); took > 3*2*time.Second+slack() {
		t.Errorf("up %v after the cut", took)
	}
	stop()
	calls.within(t, 1, o.Timeout+slack())
	drain(t, c)
}
