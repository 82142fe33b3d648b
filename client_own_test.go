package holdfast_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/rueidis"
)

// counted is a Cache whose dials are counted, and the server behind it.
func counted(t *testing.T, change ...func(*holdfast.Options)) (*redistest.Server, *holdfast.Cache, *redistest.DialCounter) {
	t.Helper()
	s := redistest.Start(t)
	dials := &redistest.DialCounter{}
	o := at(s.Addr())
	o.Redis.DialCtxFn = dials.Dial
	o.Timeout = max(400*time.Millisecond, budget()) // a machine that is busy otherwise is no outage
	for _, f := range change {
		f(&o)
	}
	c := open(t, o)
	ready(t, c)
	return s, c, dials
}

// wantUnavailable asserts that an error says that Redis is away.
func wantUnavailable(t *testing.T, what string, err error) {
	t.Helper()
	if !errors.Is(err, holdfast.ErrUnavailable) {
		t.Errorf("%s: %v; want ErrUnavailable", what, err)
	}
}

// async runs f, and returns where its error comes.
func async(f func() error) <-chan error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	return done
}

// result waits for what async has run.
func result(t *testing.T, what string, done <-chan error) error {
	t.Helper()
	select {
	case err := <-done:
		return err
	case <-time.After(patience):
		t.Fatalf("%s: still waiting", what)
		return nil
	}
}

func blocked(t *testing.T, s *redistest.Server, n int) {
	t.Helper()
	redistest.WaitFor(t, patience, fmt.Sprint(n, " blocked clients"), func() bool {
		return strings.Contains(s.MustDo("INFO", "clients"), fmt.Sprint("blocked_clients:", n))
	})
}

func subscribed(t *testing.T, s *redistest.Server, channel string, n int) {
	t.Helper()
	redistest.WaitFor(t, patience, fmt.Sprint(n, " subscribers"), func() bool {
		return strings.Contains(s.MustDo("PUBSUB", "NUMSUB", channel), fmt.Sprint(n))
	})
}

func TestATransactionOnADedicatedConnection(t *testing.T) {
	for name, mode := range map[string]holdfast.TrackingMode{"tracked": holdfast.TrackReads, "untracked": holdfast.TrackOff} {
		t.Run(name, func(t *testing.T) { testTransactions(t, mode) })
	}
}

// testTransactions tests it also where nobody but the client itself could know that its
// copies are no good any more.
func testTransactions(t *testing.T, mode holdfast.TrackingMode) {
	ctx := begin(t)
	s, c, dials := counted(t, func(o *holdfast.Options) {
		o.Tracking.Mode, o.Tracking.UntrackedTTL = mode, time.Hour
	})
	cl := c.Client()
	b := cl.B()
	must(t, c.Set(ctx, "k", []byte("1"), 0))
	wantGet(t, c, "k", "1")
	transact := func() error {
		return cl.Dedicated(func(d rueidis.DedicatedClient) error {
			if err := d.Do(ctx, b.Watch().Key("k").Build()).Error(); err != nil {
				return err
			}
			v, err := d.Do(ctx, b.Get().Key("k").Build()).AsInt64()
			if err != nil {
				return err
			}
			replies := d.DoMulti(ctx, b.Multi().Build(), b.Set().Key("k").Value(fmt.Sprint(v+1)).Build(), b.Exec().Build())
			return replies[2].Error()
		})
	}
	for i := range 10 {
		must(t, transact())
		wantGet(t, c, "k", fmt.Sprint(i+2)) // law 4
	}
	// MULTI, what is queued and EXEC one by one, with a read of the key in between.
	must(t, cl.Dedicated(func(d rueidis.DedicatedClient) error {
		must(t, d.Do(ctx, b.Multi().Build()).Error())
		if r, err := d.Do(ctx, b.Set().Key("k").Value("x").Build()).ToString(); err != nil || r != "QUEUED" {
			t.Errorf("%q, %v", r, err)
		}
		wantGet(t, c, "k", "11")
		_, err := d.Do(ctx, b.Exec().Build()).ToArray()
		return err
	}))
	wantGet(t, c, "k", "x")
	// What is watched and changed makes EXEC nil.
	err := cl.Dedicated(func(d rueidis.DedicatedClient) error {
		must(t, d.Do(ctx, b.Watch().Key("k").Build()).Error())
		s.MustDo("SET", "k", "y")
		return d.DoMulti(ctx, b.Multi().Build(), b.Set().Key("k").Value("z").Build(), b.Exec().Build())[2].Error()
	})
	if !rueidis.IsRedisNil(err) || s.MustDo("GET", "k") != "y" {
		t.Errorf("EXEC after a change: %v, and k is %s", err, s.MustDo("GET", "k"))
	}
	if n := dials.Attempts(); n != 2 {
		t.Errorf("%d dials; want the session's, and one for all transactions", n)
	}
}

func TestADedicatedConnectionThatRemembersSomethingIsNotHandedOn(t *testing.T) {
	ctx := begin(t)
	s, c, _ := counted(t)
	cl := c.Client()
	b := cl.B()
	for name, leave := range map[string]func(d rueidis.DedicatedClient){
		"watch": func(d rueidis.DedicatedClient) { d.Do(ctx, b.Watch().Key("w").Build()) },
		"multi": func(d rueidis.DedicatedClient) { d.Do(ctx, b.Multi().Build()) },
		"exec alone": func(d rueidis.DedicatedClient) {
			d.Do(ctx, b.Watch().Key("w").Build())
			d.Do(ctx, b.Exec().Build())
			d.Do(ctx, b.Discard().Build())
		},
		"select":    func(d rueidis.DedicatedClient) { d.Do(ctx, b.Select().Index(1).Build()) },
		"tracking":  func(d rueidis.DedicatedClient) { d.Do(ctx, b.ClientTracking().On().Build()) },
		"subscribe": func(d rueidis.DedicatedClient) { d.Do(ctx, b.Subscribe().Channel("ch").Build()) },
		"hooks": func(d rueidis.DedicatedClient) {
			d.Do(ctx, b.Ping().Build())
			d.SetPubSubHooks(rueidis.PubSubHooks{OnMessage: func(rueidis.PubSubMessage) {}})
		},
	} {
		must(t, cl.Dedicated(func(d rueidis.DedicatedClient) error { leave(d); return nil }))
		s.MustDo("SET", "w", name)
		must(t, cl.Dedicated(func(d rueidis.DedicatedClient) error {
			r := d.DoMulti(ctx, b.Multi().Build(), b.Set().Key("in0").Value(name).Build(), b.Exec().Build())
			if err := errors.Join(r[0].Error(), r[2].Error()); err != nil {
				t.Errorf("after %s: %v", name, err)
			}
			return nil
		}))
		if got := s.MustDo("GET", "in0"); got != name {
			t.Errorf("after %s: %s", name, got)
		}
	}
	// A released client is of no use any more, and says so as rueidis' does.
	d, release := cl.Dedicate()
	release()
	release()
	if err := d.Do(ctx, b.Ping().Build()).Error(); !errors.Is(err, rueidis.ErrDedicatedClientRecycled) {
		t.Errorf("after its release: %v", err)
	}
	if err := <-d.SetPubSubHooks(rueidis.PubSubHooks{OnMessage: func(rueidis.PubSubMessage) {}}); !errors.Is(err, rueidis.ErrDedicatedClientRecycled) {
		t.Errorf("hooks after its release: %v", err)
	}
}

func TestReceiveOfChannelsPatternsAndShardChannels(t *testing.T) {
	ctx := begin(t)
	s, c, dials := counted(t)
	cl := c.Client()
	b := cl.B()
	for name, one := range map[string]struct {
		cmd     rueidis.Completed
		publish []string
	}{
		"subscribe":  {b.Subscribe().Channel("a", "b", "c").Build(), []string{"PUBLISH", "b", "m"}},
		"psubscribe": {b.Psubscribe().Pattern("x*").Build(), []string{"PUBLISH", "xy", "m"}},
		"ssubscribe": {b.Ssubscribe().Channel("s").Build(), []string{"SPUBLISH", "s", "m"}},
	} {
		bounded, cancel := context.WithCancel(ctx)
		got := make(chan rueidis.PubSubMessage, 100)
		done := async(func() error {
			return cl.Receive(bounded, one.cmd, func(m rueidis.PubSubMessage) { got <- m })
		})
		redistest.WaitFor(t, patience, "a message", func() bool {
			s.MustDo(one.publish...)
			return len(got) > 0
		})
		if m := <-got; m.Message != "m" || m.Channel != one.publish[1] {
			t.Errorf("%s: %+v", name, m)
		}
		cancel()
		if err := result(t, name, done); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := dials.Attempts(); n != 4 {
		t.Errorf("%d dials; want the session's, and one for each Receive", n)
	}
	redistest.WaitFor(t, patience, "the connections to be closed", func() bool { return dials.Open() == 1 })
	if err := cl.Receive(ctx, b.Get().Key("k").Build(), nil); err == nil {
		t.Error("GET was received")
	}
}

func TestHooksOnADedicatedConnection(t *testing.T) {
	ctx := begin(t)
	s, c, _ := counted(t)
	b := c.Client().B()
	d, release := c.Client().Dedicate()
	var messages, subs atomic.Int32
	hooks := rueidis.PubSubHooks{
		OnMessage:      func(m rueidis.PubSubMessage) { messages.Add(1) },
		OnSubscription: func(rueidis.PubSubSubscription) { subs.Add(1) },
	}
	told := d.SetPubSubHooks(hooks) // before there is a connection
	must(t, d.Do(ctx, b.Subscribe().Channel("one", "two").Build()).Error())
	must(t, d.Do(ctx, b.Psubscribe().Pattern("t*").Build()).Error())
	must(t, d.Do(ctx, b.Get().Key("other").Build()).NonRedisError()) // other commands go on
	redistest.WaitFor(t, patience, "messages", func() bool {
		s.MustDo("PUBLISH", "two", "m")
		return messages.Load() > 2
	})
	must(t, d.Do(ctx, b.Unsubscribe().Channel("one", "two").Build()).Error())
	must(t, d.Do(ctx, b.Punsubscribe().Build()).Error())
	must(t, d.Do(ctx, b.Unsubscribe().Build()).Error()) // from nothing
	must(t, d.Do(ctx, b.Ping().Build()).Error())
	if n := subs.Load(); n != 7 {
		t.Errorf("%d subscriptions and unsubscriptions were told, want 7", n)
	}
	select {
	case err := <-told:
		t.Errorf("the hooks' channel told %v", err)
	default:
	}
	release()
	if err, open := <-told; open || err != nil {
		t.Errorf("after the release: %v, %v", err, open)
	}
}

func TestInvalidationsOnADedicatedConnection(t *testing.T) {
	ctx := begin(t)
	s, c, _ := counted(t)
	b := c.Client().B()
	d, release := c.Client().Dedicate()
	defer release()
	keys := make(chan string, 10)
	d.SetOnInvalidations(func(m []rueidis.RedisMessage) {
		for _, k := range m {
			text, _ := k.ToString()
			keys <- text
		}
	})
	must(t, d.Do(ctx, b.ClientTracking().On().Build()).Error())
	d.Do(ctx, b.Get().Key("watched").Build())
	s.MustDo("SET", "watched", "1")
	select {
	case k := <-keys:
		if k != "watched" {
			t.Errorf("%q was invalidated", k)
		}
	case <-time.After(patience):
		t.Error("nothing was invalidated")
	}
}

func TestBlockingCommandsWaitForLongerThanTheBudget(t *testing.T) {
	ctx := begin(t)
	s, c, dials := counted(t, func(o *holdfast.Options) { o.Timeout = 50 * time.Millisecond })
	cl := c.Client()
	b := cl.B()
	for range 3 {
		done := async(func() error {
			v, err := cl.Do(ctx, b.Blpop().Key("q", "r").Timeout(0).Build()).AsStrSlice()
			if err == nil && fmt.Sprint(v) != "[r job]" {
				err = fmt.Errorf("got %v", v)
			}
			return err
		})
		blocked(t, s, 1)
		select {
		case err := <-done:
			t.Fatalf("it returned at once: %v", err)
		case <-time.After(100 * time.Millisecond): // twice the budget
		}
		s.MustDo("RPUSH", "r", "job")
		must(t, result(t, "BLPOP", done))
	}
	// Its own timeout, and the caller's.
	if err := cl.Do(ctx, b.Blpop().Key("q").Timeout(0.01).Build()).Error(); !rueidis.IsRedisNil(err) {
		t.Errorf("BLPOP that timed out: %v", err)
	}
	// A batch with a blocking command passes the tiers, also with a GET that is a hit alone.
	s.MustDo("SET", "k", "v")
	redistest.WaitFor(t, patience, "a copy of k", func() bool {
		return cl.DoCache(ctx, b.Get().Key("k").Cache(), time.Hour).IsCacheHit()
	})
	before := c.Stats().LocalHits
	batch := cl.DoMulti(ctx, b.Get().Key("k").Build(), b.Blpop().Key("q").Timeout(0.01).Build())
	if got, err := textOf(batch[0]); err != nil || got != "v" || c.Stats().LocalHits != before {
		t.Errorf("GET beside BLPOP: %q, %v; local hits %d, before %d", got, err, c.Stats().LocalHits, before)
	}
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	if err := cl.Do(short, b.Arbitrary("BLPOP").Keys("q").Args("0").Build()).Error(); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("BLPOP of an impatient caller: %v", err)
	}
	blocked(t, s, 0) // it takes nothing away from others
	if n := dials.Attempts(); n > 3 {
		t.Errorf("%d dials; want the session's, and one or two for what blocked in turn", n)
	}
}

func TestStreamsAreReadFromConnectionsThatAreUsedAgain(t *testing.T) {
	ctx := begin(t)
	s, c, dials := counted(t)
	cl := c.Client()
	b := cl.B()
	big := strings.Repeat("0123456789", 300_000)
	s.MustDo("SET", "big", big)
	for range 5 {
		r := cl.DoStream(ctx, b.Get().Key("big").Build())
		var got bytes.Buffer
		for r.HasNext() {
			if _, err := r.WriteTo(&got); err != nil {
				t.Fatal(err)
			}
		}
		if got.String() != big {
			t.Fatalf("%d bytes", got.Len())
		}
	}
	r := cl.DoMultiStream(ctx, b.Get().Key("big").Build(), b.Strlen().Key("big").Build(), b.Get().Key("none").Build())
	n, err := r.WriteTo(io.Discard)
	if n != int64(len(big)) || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	var length strings.Builder
	if _, err := r.WriteTo(&length); length.String() != fmt.Sprint(len(big)) || err != nil {
		t.Errorf("%q, %v", length.String(), err)
	}
	if _, err := r.WriteTo(io.Discard); !rueidis.IsRedisNil(err) {
		t.Errorf("no such key: %v", err)
	}
	if r.HasNext() {
		t.Error("there is more")
	}
	if n := dials.Attempts(); n != 2 {
		t.Errorf("%d dials; want the session's, and one for all streams", n)
	}
	for _, bad := range []rueidis.Completed{b.Multi().Build(), b.Subscribe().Channel("c").Build(), {}} {
		if r := cl.DoStream(ctx, bad); r.Error() == nil {
			t.Error("a stream of what has none")
		}
	}
	if r := cl.DoMultiStream(ctx); r.Error() != io.EOF {
		t.Errorf("a stream of nothing: %v", r.Error())
	}
}
