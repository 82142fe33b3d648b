package holdfast_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/rueidis"
)

// What holds of one server right after New and after a quiet time, of a cluster that is
// known by one of its nodes, whose links come and go, and of a master that has to be asked
// for.
func TestTheFirstMomentsOfACluster(t *testing.T) {
	ctx := begin(t)
	r := redistest.StartCluster(t, 3, 0)
	one := func() holdfast.Options {
		o := swift(r.Addrs()[0]) // ModeAuto: the server says what it is
		return o
	}
	get := func(key string) string { return r.NodeFor(key).MustDo("GET", key) }
	firstMoments(t, ctx, one, get, func(t *testing.T) {
		for _, s := range r.Nodes() {
			s.MustDo("FLUSHALL")
		}
	})
	t.Run("Mode", func(t *testing.T) {
		for range 5 {
			c := open(t, one())
			if m := c.Client().Mode(); m != rueidis.ClientModeCluster {
				t.Errorf("right after New the mode is %v", m)
			}
			closedEmpty(t, c)
		}
	})
	quietTime(t, ctx, one(), r.Addrs(), func() {
		for _, s := range r.Nodes() {
			s.MustDo("CLIENT", "KILL", "TYPE", "normal")
		}
	})
}

func TestTheFirstMomentsBehindSentinels(t *testing.T) {
	ctx := begin(t)
	r := redistest.StartSentinel(t, 0)
	one := func() holdfast.Options {
		o := swift("")
		o.Redis.InitAddress = r.Addrs()
		o.Redis.Sentinel.MasterSet = redistest.MasterSet
		return o
	}
	get := func(key string) string { return r.Master().MustDo("GET", key) }
	firstMoments(t, ctx, one, get, func(t *testing.T) { r.Master().MustDo("FLUSHALL") })
	quietTime(t, ctx, one(), []string{r.Master().Addr()}, func() { r.Master().MustDo("CLIENT", "KILL", "TYPE", "normal") })
}

func firstMoments(t *testing.T, ctx context.Context, options func() holdfast.Options, get func(key string) string, empty func(t *testing.T)) {
	t.Run("a Set replaces what is there", func(t *testing.T) {
		empty(t)
		for round := range 5 {
			c := open(t, options())
			for i := range 30 {
				must(t, c.Set(ctx, fmt.Sprint("k", i), fmt.Appendf(nil, "v%d of %d", i, round), 0))
			}
			closedEmpty(t, c)
			for i := range 30 {
				if v := get(fmt.Sprint("k", i)); v != fmt.Sprintf("v%d of %d", i, round) {
					t.Fatalf("round %d: redis holds %q", round, v)
				}
			}
		}
	})
	t.Run("the first call is answered", func(t *testing.T) {
		for name, call := range map[string]func(c *holdfast.Cache) error{
			"Add": func(c *holdfast.Cache) error { _, err := c.Add(ctx, "new", nil, 0); return err },
			"TTL": func(c *holdfast.Cache) error {
				_, err := c.TTL(ctx, "none")
				if errors.Is(err, holdfast.ErrMiss) {
					return nil
				}
				return err
			},
			"Check":     func(c *holdfast.Cache) error { return c.Check(ctx) },
			"Available": func(c *holdfast.Cache) error { return c.Available(ctx) },
			"INCR": func(c *holdfast.Cache) error {
				return c.Client().Do(ctx, c.Client().B().Incr().Key("counter").Build()).Error()
			},
			"PING": func(c *holdfast.Cache) error {
				return c.Client().Do(ctx, c.Client().B().Ping().Build()).Error()
			},
			"BLPOP": func(c *holdfast.Cache) error {
				must(t, c.Client().Do(ctx, c.Client().B().Rpush().Key("list").Element("e").Build()).Error())
				return c.Client().Do(ctx, c.Client().B().Blpop().Key("list").Timeout(1).Build()).Error()
			},
		} {
			c := open(t, options())
			if err := call(c); err != nil {
				t.Errorf("%s: %v; health %+v", name, err, c.Health())
			}
			closedEmpty(t, c)
		}
	})
}

// quietTime ends the connections to servers, which are all that hold data, while nobody
// calls, and calls once each of them has been dialled again: then the loss was noticed. A
// call on its way when the connection ends cannot know whether it was run.
func quietTime(t *testing.T, ctx context.Context, o holdfast.Options, servers []string, cut func()) {
	t.Run("after a quiet time", func(t *testing.T) {
		var mu sync.Mutex
		dialled := map[string]bool{}
		o.Redis.DialCtxFn = func(ctx context.Context, addr string, d *net.Dialer, _ *tls.Config) (net.Conn, error) {
			conn, err := d.DialContext(ctx, "tcp", addr)
			mu.Lock()
			defer mu.Unlock()
			dialled[addr] = dialled[addr] || err == nil
			return conn, err
		}
		c := open(t, o)
		ready(t, c)
		for round := range 5 {
			rests(t, c, 100*time.Millisecond)
			mu.Lock()
			clear(dialled)
			mu.Unlock()
			cut()
			redistest.WaitFor(t, patience, "the cuts to be noticed", func() bool {
				mu.Lock()
				defer mu.Unlock()
				return !slices.ContainsFunc(servers, func(addr string) bool { return !dialled[addr] })
			})
			for i := range 10 {
				key := fmt.Sprint("round", round, "key", i)
				if added, err := c.Add(ctx, key, nil, 0); err != nil || !added {
					t.Fatalf("%v, %v; health %+v", added, err, c.Health())
				}
			}
			if s := c.Health().State; s != holdfast.Up {
				t.Errorf("health says %v", s)
			}
		}
	})
}
