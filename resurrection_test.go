package holdfast_test

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

// A value that was deleted, replaced or has expired does not come back.

// neverRead reads the keys all the time, and fails the test if one has a value.
func neverRead(t *testing.T, ctx context.Context, c *holdfast.Cache, keys []string) (stop func()) {
	stop = load(t, 4, func(g, i int) {
		key := keys[(i*7+g)%len(keys)]
		if v, err := c.Get(ctx, key); err == nil {
			t.Errorf("%s is back, and is %q", key, v)
		} else if !errors.Is(err, holdfast.ErrMiss) {
			t.Errorf("get %s: %v", key, err)
		}
		time.Sleep(20 * time.Microsecond)
	})
	t.Cleanup(stop)
	return stop
}

// absent is what is wanted of keys that are gone.
func absent(keys ...string) map[string]string {
	want := map[string]string{}
	for _, key := range keys {
		want[key] = nothing
	}
	return want
}

// The server has its old data when it comes back, and the replay takes its time.
func TestADeleteInAnyOutageIsNeverUndone(t *testing.T) {
	outagesAtOnce(t, func(t *testing.T, ctx context.Context, s *site) {
		c := s.open(s.options())
		keys := named("k", 100)
		must(t, c.SetMany(ctx, all(keys, "old"), 0))
		drain(t, c)
		s.leaves(c)
		must(t, c.Delete(ctx, keys...))
		stop := neverRead(t, ctx, c, keys)
		s.way.SetLatency(5 * time.Millisecond)
		s.returns(c)
		drain(t, c)
		stop()
		mismatches(t, s.master, "after the drain", absent(keys...))
		s.way.SetLatency(0)
		settled(t, c)
		mismatches(t, s.master, "after the second checks", absent(keys...))
	})
}

func TestASetThatRanOutInAnyOutageDoesNotBringTheOldValueBack(t *testing.T) {
	outagesAtOnce(t, func(t *testing.T, ctx context.Context, s *site) {
		c := s.open(s.options())
		keys := named("k", 200)
		must(t, c.SetMany(ctx, all(keys, "old"), 0))
		drain(t, c)
		s.leaves(c)
		const life = 50 * time.Millisecond
		must(t, c.SetMany(ctx, all(keys, "brief"), life))
		passes(t, "the time of the sets", life+time.Millisecond)
		stop := neverRead(t, ctx, c, keys)
		s.returns(c)
		drain(t, c)
		stop()
		settled(t, c)
		mismatches(t, s.master, "in the end", absent(keys...))
	})
}

// lateWay is a client of the site whose first connection leads through a proxy of
// its own: what is held back there runs when it is let through, if there is anybody
// to run it. With cut, the client loses that connection; what it sent is not lost.
func lateWay(s *site) (c *holdfast.Cache, first *redistest.Proxy, cut func()) {
	s.t.Helper()
	first = redistest.NewProxy(s.t, s.master.Addr())
	var conn atomic.Pointer[net.Conn]
	o := s.options()
	o.Redis.DialCtxFn = func(ctx context.Context, addr string, d *net.Dialer, _ *tls.Config) (net.Conn, error) {
		if conn.Load() != nil {
			return d.DialContext(ctx, "tcp", addr)
		}
		made, err := d.DialContext(ctx, "tcp", first.Addr())
		conn.Store(&made)
		return made, err
	}
	return s.open(o), first, func() { (*conn.Load()).Close() }
}

// A caller gave up on a write just before the outage, and the server gets it when
// all is over: when the later write has long been replayed.
func TestAWriteThatRunsLateDoesNotUndoALaterOneOfAnyOutage(t *testing.T) {
	outagesAtOnce(t, func(t *testing.T, ctx context.Context, s *site) {
		c, first, cut := lateWay(s)
		setSet, setDel, delSet := named("set-set", 20), named("set-del", 20), named("del-set", 20)
		late := append(append([]string(nil), setSet...), setDel...)
		must(t, c.SetMany(ctx, all(append(append([]string(nil), late...), delSet...), "before"), 0))
		drain(t, c)

		first.SetMode(redistest.Hang)
		must(t, c.SetMany(ctx, all(late, "late"), 0)) // sent, and not answered
		must(t, c.Delete(ctx, delSet...))
		s.leaves(c)
		cut()
		must(t, c.SetMany(ctx, all(append(append([]string(nil), setSet...), delSet...), "last"), 0))
		must(t, c.Delete(ctx, setDel...))
		s.returns(c)
		drain(t, c)
		first.SetMode(redistest.Pass)

		want := absent(setDel...)
		for _, key := range append(append([]string(nil), setSet...), delSet...) {
			want[key] = "last"
		}
		read := func() {
			t.Helper()
			for key, v := range want {
				if v == nothing {
					v = ""
				}
				wantGet(t, c, key, v)
			}
		}
		if s.kind.same {
			redistest.WaitFor(t, patience, "the late writes to run", func() bool {
				return s.master.MustDo("GET", setDel[0]) == "late"
			})
		}
		read()
		settled(t, c)
		mismatches(t, s.master, "after the second checks", want)
		read()
		if n := c.Stats().Superseded; n != 0 {
			t.Errorf("%d writes superseded where nobody else writes", n)
		}
	})
}
