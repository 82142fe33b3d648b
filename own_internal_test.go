package holdfast

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast/internal/dial"
	"github.com/holdfast-cache/holdfast/internal/rediserr"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/rueidis"
)

// The error of a call that the circuit ended has the link's last error as its cause. That was
// taken for what had happened on the call's own connection: for a server that does not speak
// RESP3, for a used-up budget, for a client that was closed, or for the answer to SUBSCRIBE.
func TestTheLinksLastErrorIsNoVerdictAboutAConnectionOfACaller(t *testing.T) {
	server := redistest.Start(t)
	refusal := func(ctx context.Context, c *Cache) error {
		cl := c.Client()
		return cl.Do(ctx, cl.B().Arbitrary("EVAL", "return redis.error_reply('READONLY in a script')", "0").Build()).Error()
	}
	for name, last := range map[string]func(context.Context, *Cache) error{
		"a lost connection": func(context.Context, *Cache) error { return dial.ErrNoPermit },
		"no answer": func(context.Context, *Cache) error {
			return dial.Unanswered(context.DeadlineExceeded, time.Second)
		},
		"a closed client": func(context.Context, *Cache) error { return fmt.Errorf("probe: %w", rueidis.ErrClosing) },
		"a refusal":       refusal,
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			c, err := New(Options{Redis: rueidis.ClientOption{InitAddress: []string{server.Addr()}}, Timeout: 10 * time.Second})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if err := c.WaitReady(ctx); err != nil {
				t.Fatal(err)
			}
			cl := c.Client()
			channel := strings.ReplaceAll(name, " ", "-")
			ends := map[string]chan error{"receive": make(chan error, 1), "blpop": make(chan error, 1)}
			go func() {
				ends["receive"] <- cl.Receive(ctx, cl.B().Subscribe().Channel(channel).Build(), func(rueidis.PubSubMessage) {})
			}()
			go func() { ends["blpop"] <- cl.Do(ctx, cl.B().Blpop().Key(channel).Timeout(0).Build()).Error() }()
			redistest.WaitFor(t, 20*time.Second, "both to wait", func() bool {
				return strings.Contains(server.MustDo("PUBSUB", "NUMSUB", channel), "1") && strings.Contains(server.MustDo("INFO", "clients"), "blocked_clients:1")
			})
			l := c.routes.SeedLink
			timeouts, cause := c.Stats().Timeouts, last(ctx, c)
			l.TestHooks().SetError(cause)
			l.Breaker.Trip()
			for op, end := range ends {
				err := <-end
				var e *Error
				if !errors.Is(err, ErrUnavailable) || !errors.As(err, &e) || e.Op != strings.Replace(op, "receive", "subscribe", 1) {
					t.Errorf("%s: %v; want an *Error that is ErrUnavailable", op, err)
				}
				if err != nil && (strings.Contains(err.Error(), "RESP3") || !strings.Contains(err.Error(), strings.TrimPrefix(rediserr.Text(cause), "holdfast: "))) {
					t.Errorf("%s: %v; want the cause %v", op, err, cause)
				}
			}
			if more := c.Stats().Timeouts - timeouts; more != 0 {
				t.Errorf("%d calls without a budget are counted as over it", more)
			}
		})
	}
}

// A session that is lost while nobody calls is made anew before the state leaves Up. What waits on
// the connections beside it does not wait for that: it fails at once, though the state is Up.
func TestALostSessionEndsTheConnectionsOfCallersBeforeTheStateIsDown(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr())
	o := Options{Redis: rueidis.ClientOption{InitAddress: []string{proxy.Addr()}}, Timeout: 30 * time.Second}
	o.Redis.Dialer.Timeout, o.Redis.Dialer.KeepAlive = 30*time.Second, time.Hour
	o.Breaker.MinBackoff, o.Breaker.MaxBackoff = 10*time.Millisecond, time.Minute // no probe is under way below
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	cl, l := c.Client(), c.routes.SeedLink
	receive := func(ctx context.Context, channel string) error {
		return cl.Receive(ctx, cl.B().Subscribe().Channel(channel).Build(), func(rueidis.PubSubMessage) {})
	}
	subscribed := func(channel string) {
		redistest.WaitFor(t, 20*time.Second, "the subscription", func() bool {
			return strings.Contains(server.MustDo("PUBSUB", "NUMSUB", channel), "1")
		})
	}
	ended := make(chan error, 1)
	go func() { ended <- receive(ctx, "first") }()
	subscribed("first")
	l.TestHooks().Used.Store(false)
	l.TestHooks().Quiet.Store(true) // as after MaxBackoff without a call
	s := l.Gate.Load()
	proxy.SetMode(redistest.Hang)
	s.Dialer.Connection().Close()
	if err := <-ended; !errors.Is(err, ErrUnavailable) {
		t.Errorf("%v; want ErrUnavailable", err)
	}
	if st := c.Health().State; st != Up {
		t.Errorf("the session is made anew, and the state is %v", st)
	}
	proxy.SetMode(redistest.Pass)
	listening, stop := context.WithCancel(ctx)
	go func() { ended <- receive(listening, "next") }() // it waits for the session
	subscribed("next")
	stop()
	if err := <-ended; err != context.Canceled {
		t.Errorf("the next: %v; want that of its context", err)
	}
}
