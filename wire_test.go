package holdfast_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/holdfast-cache/holdfast/internal/resp"
	"github.com/redis/rueidis"
)

// Centrifugo's load: a hundred goroutines subscribed and unsubscribed on one dedicated
// connection, and a PONG with more than a kilobyte behind it ended it.
func TestAHundredGoroutinesSubscribeAndUnsubscribeOnOneConnection(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	o := at(s.Addr())
	o.Timeout = patience
	c := open(t, o)
	ready(t, c)
	cl := c.Client()
	d, release := cl.Dedicate()
	defer release()
	var told, messages atomic.Int64
	ended := d.SetPubSubHooks(rueidis.PubSubHooks{
		OnSubscription: func(rueidis.PubSubSubscription) { told.Add(1) },
		OnMessage:      func(rueidis.PubSubMessage) { messages.Add(1) },
	})
	b := cl.B()
	const goroutines, rounds = 100, 20
	var all sync.WaitGroup
	for g := range goroutines {
		all.Go(func() {
			for i := range rounds {
				a, z := fmt.Sprintf("news:%d:%d", g, i), fmt.Sprintf("sport:%d", g)
				for _, cmd := range []rueidis.Completed{
					b.Subscribe().Channel(a, z).Build(), b.Psubscribe().Pattern(a + "*").Build(), b.Ssubscribe().Channel(a).Build(),
					b.Ping().Build(), b.Publish().Channel(a).Message("m").Build(),
					b.Unsubscribe().Channel(a, z, "nobody's").Build(), b.Punsubscribe().Pattern(a + "*").Build(), b.Sunsubscribe().Channel(a).Build(),
				} {
					if err := d.Do(ctx, cmd).Error(); err != nil {
						t.Errorf("%d, %d: %v", g, i, err)
						return
					}
				}
			}
		})
	}
	all.Wait()
	for _, cmd := range []rueidis.Completed{b.Unsubscribe().Build(), b.Punsubscribe().Build(), b.Sunsubscribe().Build()} {
		must(t, d.Do(ctx, cmd).Error())
	}
	select {
	case err := <-ended:
		t.Errorf("the connection ended: %v", err)
	default:
	}
	if n := told.Load(); n < goroutines*rounds*7 {
		t.Errorf("%d changes of subscriptions were told", n)
	}
	if n := messages.Load(); n < goroutines*rounds {
		t.Errorf("%d messages came", n)
	}
	if n := c.Stats().DialAttempts; n != 2 {
		t.Errorf("%d dials", n)
	}
}

// The same with Receive, each of which unsubscribes when it returns.
func TestManyReceiversShareADedicatedConnection(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	o := at(s.Addr())
	o.Timeout = patience
	c := open(t, o)
	ready(t, c)
	d, release := c.Client().Dedicate()
	defer release()
	b := c.Client().B()
	var all sync.WaitGroup
	for g := range 30 {
		all.Go(func() {
			for i := range 5 {
				name := fmt.Sprintf("r:%d:%d", g, i)
				ctx, cancel := context.WithCancel(ctx)
				ctx = rueidis.WithOnReceiveReturnHook(ctx, func(err error, cl rueidis.CommandClient) error {
					return cl.Do(context.Background(), cl.B().Unsubscribe().Channel(name).Build()).Error()
				})
				ctx = rueidis.WithOnSubscriptionHook(ctx, func(rueidis.PubSubSubscription) {})
				var err error
				var receiving sync.WaitGroup
				receiving.Go(func() {
					err = d.Receive(ctx, b.Subscribe().Channel(name).Build(), func(rueidis.PubSubMessage) { cancel() })
				})
				redistest.WaitFor(t, patience, "the message", func() bool {
					n, _ := c.Client().Do(context.Background(), b.Publish().Channel(name).Message("x").Build()).AsInt64()
					return n > 0 || ctx.Err() != nil
				})
				receiving.Wait()
				if err != nil {
					t.Errorf("%s: %v", name, err)
				}
				cancel()
			}
		})
	}
	all.Wait()
	if n := c.Stats().DialAttempts; n != 2 {
		t.Errorf("%d dials", n)
	}
}

// announcer is a connection on which the server says something between two replies.
type announcer struct {
	net.Conn
	says   string
	in     *resp.Framer
	said   *atomic.Int64
	unsaid []byte
}

func (a *announcer) Read(p []byte) (int, error) {
	if len(a.unsaid) > 0 {
		n := copy(p, a.unsaid)
		a.unsaid = a.unsaid[n:]
		return n, nil
	}
	n, err := a.Conn.Read(p)
	if n > 0 {
		if e := a.in.Feed(p[:n]); e != nil {
			return n, e
		}
		if !a.in.MidFrame() {
			a.unsaid = []byte(a.says)
			a.said.Add(1)
		}
	}
	return n, err
}

// MOVING, MIGRATING and what else a service announces: rueidis skips it, and so does the
// guard.
func TestAPushOfAnUnknownKindCostsNothing(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	for _, says := range []string{
		">4\r\n$6\r\nMOVING\r\n:1\r\n:30\r\n$14\r\n10.0.0.1:63790\r\n",
		">3\r\n+MIGRATING\r\n:1\r\n*2\r\n:1\r\n%1\r\n+a\r\n_\r\n", ">0\r\n>1\r\n_\r\n",
		">2\r\n$21\r\ntracking-redir-broken\r\n:5\r\n", "|1\r\n+ttl\r\n:3600\r\n>2\r\n:1\r\n#t\r\n",
	} {
		var said atomic.Int64
		o := at(s.Addr())
		o.Timeout = patience
		o.Redis.DialCtxFn = func(ctx context.Context, addr string, d *net.Dialer, _ *tls.Config) (net.Conn, error) {
			conn, err := d.DialContext(ctx, "tcp", addr)
			if err != nil {
				return nil, err
			}
			in := resp.NewFramer(resp.Limits{})
			in.AllowPubSub = true
			return &announcer{Conn: conn, says: says, in: in, said: &said}, nil
		}
		c := open(t, o)
		ready(t, c)
		d, release := c.Client().Dedicate()
		b := c.Client().B()
		must(t, d.Do(ctx, b.Subscribe().Channel("a", "b").Build()).Error())
		for i := range 50 {
			key := fmt.Sprint("k", i)
			must(t, c.Set(ctx, key, []byte("v"), time.Minute))
			if v, err := c.Get(ctx, key); string(v) != "v" || err != nil {
				t.Errorf("%q, %v", v, err)
			}
			must(t, d.Do(ctx, b.Ping().Build()).Error())
		}
		must(t, d.Do(ctx, b.Unsubscribe().Build()).Error())
		h := c.Health()
		if n := c.Stats().DialAttempts; n != 2 || h.State != holdfast.Up || !h.Tracking {
			t.Errorf("%q: %d dials, %v, tracking %v, last error %v", says, n, h.State, h.Tracking, h.LastError)
		}
		if n := said.Load(); n < 100 {
			t.Errorf("it was said %d times", n)
		}
		release()
	}
}

// A dozen bytes cost each of four caches half a gigabyte, again with each connection.
func TestALengthThatAServerAnnouncesCostsNothing(t *testing.T) {
	undisturbed(t)
	hello := func(tail string) string {
		return "%3\r\n$6\r\nserver\r\n$5\r\nredis\r\n$5\r\nproto\r\n:3\r\n$7\r\nversion\r\n" + tail
	}
	for _, header := range []string{
		"$536870911\r\n", "*1048576\r\n", "%524288\r\n", "=536870911\r\n", "!536870911\r\n", "|524288\r\n",
		">1048576\r\n", ">2\r\n$10\r\ninvalidate\r\n*1000000\r\n", ">3\r\n$6\r\nMOVING\r\n$536870911\r\n",
		"*2\r\n+a\r\n~1000000\r\n", strings.Repeat("*6000\r\n", 100), hello("$536870911\r\n"), hello("*1000000\r\n"),
		hello("$6\r\n7.0.15\r\n") + "+OK\r\n$536870911\r\n", "$536870911\r\n" + strings.Repeat("x", 1<<20),
	} {
		l := redistest.Garbage(t, func(int) []byte { return []byte(header) })
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		var caches []*holdfast.Cache
		for range 4 {
			o := at(l.Addr())
			o.Redis.Dialer.Timeout = 50 * time.Millisecond
			o.Breaker.MinBackoff, o.Breaker.MaxBackoff = 10*time.Millisecond, 20*time.Millisecond
			o.Local.MaxBytes = 1 << 20
			caches = append(caches, open(t, o))
		}
		redistest.WaitFor(t, patience, "three attempts each", func() bool {
			n := 0
			for _, c := range caches {
				_, _ = c.Get(context.Background(), "k")
				if c.Stats().DialAttempts >= 3 {
					n++
				}
			}
			return n == len(caches)
		})
		runtime.ReadMemStats(&after)
		for _, c := range caches {
			closedEmpty(t, c)
		}
		sessions := uint64(l.Accepted())
		// A rueidis client has two buffers of half a megabyte, and a ring.
		if each := (after.TotalAlloc - before.TotalAlloc) / sessions; each > 8<<20 {
			t.Errorf("%.40q costs %d bytes for each of %d sessions", header, each, sessions)
		}
	}
}

// A large value that is read in pieces is not kept back by the guard: that would cost
// half of it.
func TestAStreamedValueCostsNoMemory(t *testing.T) {
	ctx := undisturbed(t)
	s := redistest.Start(t)
	s.MustDo("SETRANGE", "big", fmt.Sprint(64<<20-1), "x")
	o := at(s.Addr())
	o.Timeout = patience
	c := open(t, o)
	ready(t, c)
	for range 2 { // also by the connection that is kept
		r := c.Client().DoStream(ctx, c.Client().B().Get().Key("big").Build())
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		n, err := r.WriteTo(io.Discard)
		runtime.ReadMemStats(&after)
		if n != 64<<20 || err != nil {
			t.Fatalf("%d bytes, %v", n, err)
		}
		if cost := after.TotalAlloc - before.TotalAlloc; cost > 8<<20 {
			t.Errorf("%d bytes were allocated", cost)
		}
	}
	v, err := c.Client().Do(ctx, c.Client().B().Get().Key("big").Build()).AsBytes()
	if len(v) != 64<<20 || err != nil {
		t.Errorf("%d bytes, %v", len(v), err)
	}
}

// In a cluster the server ends a sharded subscription by itself when its slot moves,
// beside those who subscribe and unsubscribe.
func TestSlotsMoveBeneathShardedSubscriptions(t *testing.T) {
	redistest.Long(t)
	ctx := begin(t)
	r := redistest.StartCluster(t, 3, 0)
	o := at(r.Addrs()[0])
	o.Timeout = patience
	o.Mode = holdfast.ModeCluster
	c := open(t, o)
	ready(t, c)
	cl := c.Client()
	b := cl.B()
	d, release := cl.Dedicate()
	defer release()
	slot := redistest.Slot("{a}")
	from := r.Owner("{a}")
	to := r.Nodes()[0]
	if to == from {
		to = r.Nodes()[1]
	}
	must(t, d.Do(ctx, b.Set().Key("{a}").Value("v").Build()).Error()) // so the connection goes there
	var ended atomic.Int64
	hooks := d.SetPubSubHooks(rueidis.PubSubHooks{OnSubscription: func(s rueidis.PubSubSubscription) {
		if s.Kind == "sunsubscribe" {
			ended.Add(1)
		}
	}})
	var over atomic.Bool
	var all sync.WaitGroup
	stop := sync.OnceFunc(func() {
		over.Store(true)
		all.Wait()
	})
	defer stop()
	for g := range 50 {
		all.Go(func() {
			for i := 0; !over.Load(); i++ {
				name := fmt.Sprintf("{a}%d:%d", g, i)
				for _, cmd := range []rueidis.Completed{
					b.Ssubscribe().Channel(name, name+"+").Build(), b.Ping().Build(), b.Sunsubscribe().Channel(name).Build(), b.Subscribe().Channel(name).Build(),
					b.Unsubscribe().Channel(name).Build(),
				} {
					if err := d.Do(ctx, cmd).Error(); err != nil && !strings.HasPrefix(err.Error(), "MOVED") {
						t.Errorf("%d, %d: %v", g, i, err)
						return
					}
				}
			}
		})
	}
	for range 4 {
		redistest.WaitFor(t, patience, "subscriptions", func() bool {
			n, _ := from.Do("PUBSUB", "SHARDCHANNELS")
			return len(n) > 100
		})
		before := ended.Load()
		r.MoveSlot(slot, to)
		redistest.WaitFor(t, patience, "the server's ends", func() bool { return ended.Load() > before })
		r.MoveSlot(slot, from)
	}
	stop()
	select {
	case err := <-hooks:
		t.Errorf("the connection ended: %v", err)
	default:
	}
}
