package holdfast_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/rueidis"
)

// owning starts one of everything that has a connection of its own and waits there, and
// returns where the errors come.
func owning(t *testing.T, ctx context.Context, s *redistest.Server, cl rueidis.Client) map[string]<-chan error {
	t.Helper()
	b := cl.B()
	d, release := cl.Dedicate()
	t.Cleanup(release)
	must(t, d.Do(ctx, b.Watch().Key("w").Build()).Error())
	hooked, release := cl.Dedicate()
	t.Cleanup(release)
	told := hooked.SetPubSubHooks(rueidis.PubSubHooks{OnMessage: func(rueidis.PubSubMessage) {}})
	must(t, hooked.Do(ctx, b.Subscribe().Channel("hooked").Build()).Error())
	waiting := map[string]<-chan error{
		"BLPOP": async(func() error { return cl.Do(ctx, b.Blpop().Key("q").Timeout(0).Build()).Error() }),
		"BLPOP on a dedicated connection": async(func() error {
			return d.Do(ctx, b.Blpop().Key("q").Timeout(0).Build()).Error()
		}),
		"Receive": async(func() error {
			return cl.Receive(ctx, b.Subscribe().Channel("ch").Build(), func(rueidis.PubSubMessage) {})
		}),
		"the hooks": told,
	}
	blocked(t, s, 2)
	subscribed(t, s, "ch", 1)
	return waiting
}

func TestWhatWaitsOnAConnectionOfItsOwnFailsWhenRedisIsKilled(t *testing.T) {
	ctx := begin(t)
	s, c, dials := counted(t)
	cl := c.Client()
	waiting := owning(t, ctx, s, cl)
	before := dials.Attempts()
	killed := time.Now()
	s.Kill()
	for what, done := range waiting {
		wantUnavailable(t, what, result(t, what, done))
	}
	if d := time.Since(killed); d > 5*time.Second+slack() {
		t.Errorf("it took %v to say so", d)
	}
	waitState(t, c, holdfast.Down)
	// Nothing dials but the supervisor, by its schedule.
	downFor(t, ctx, cl, 1000)
	must(t, redistest.RateOKUntil(dials.Times()[before:], killed, time.Now()))
	s.Restart()
	waitState(t, c, holdfast.Up)
	must(t, cl.Dedicated(func(d rueidis.DedicatedClient) error { return d.Do(ctx, cl.B().Ping().Build()).Error() }))
	if r := cl.DoStream(ctx, cl.B().Ping().Build()); r.Error() != nil {
		t.Error(r.Error())
	} else {
		_, err := r.WriteTo(io.Discard)
		must(t, err)
	}
}

// downFor makes calls of each kind while Redis is away: each fails, and at once.
func downFor(t *testing.T, ctx context.Context, cl rueidis.Client, calls int) {
	t.Helper()
	b := cl.B()
	var took latencies
	for range calls / 5 {
		for what, f := range map[string]func() error{
			"dedicated": func() error {
				return cl.Dedicated(func(d rueidis.DedicatedClient) error { return d.Do(ctx, b.Multi().Build()).Error() })
			},
			"receive": func() error {
				return cl.Receive(ctx, b.Subscribe().Channel("ch").Build(), func(rueidis.PubSubMessage) {})
			},
			"blpop":  func() error { return cl.Do(ctx, b.Blpop().Key("q").Timeout(0).Build()).Error() },
			"stream": func() error { r := cl.DoStream(ctx, b.Get().Key("k").Build()); return r.Error() },
			"streams": func() error {
				r := cl.DoMultiStream(ctx, b.Get().Key("k").Build(), b.Get().Key("l").Build())
				return r.Error()
			},
		} {
			took.time(func() { wantUnavailable(t, what, f()) })
		}
	}
	took.within(t, 0.99, slack())
}

func TestNothingIsDialledForAConnectionOfItsOwnWhileRedisIsAway(t *testing.T) {
	ctx := begin(t)
	dead := redistest.Start(t)
	dead.Kill()
	dials := &redistest.DialCounter{}
	o := at(dead.Addr())
	o.Redis.DialCtxFn = dials.Dial
	o.Breaker.MinBackoff, o.Breaker.MaxBackoff = time.Minute, time.Minute
	c := open(t, o)
	redistest.WaitFor(t, patience, "the supervisor's attempts", func() bool { return dials.Attempts() == 2 || c.Health().LastError != nil })
	n := dials.Attempts()
	downFor(t, ctx, c.Client(), 1000)
	if more := dials.Attempts() - n; more > 1 { // the supervisor's second
		t.Errorf("%d dials for 1,000 calls", more)
	}
}

// The PING of rueidis may find out before the circuit opens. Its own error reached the hooks.
func TestHooksThatEndByAPingWithoutAnswerEndAsUnavailable(t *testing.T) {
	begin(t)
	_, p := behind(t)
	o := at(p.Addr())
	// The circuit stays closed, and a busy machine answers within the budget.
	o.Timeout, o.Breaker.Failures = 500*time.Millisecond, 1000
	o.Breaker.MaxBackoff = patience
	o.Redis.Dialer.KeepAlive, o.Redis.ConnWriteTimeout = 50*time.Millisecond, 100*time.Millisecond
	c := open(t, o)
	ready(t, c)
	cl := c.Client()
	var ends []<-chan error
	for range 20 {
		d, release := cl.Dedicate()
		defer release()
		ends = append(ends, d.SetPubSubHooks(rueidis.PubSubHooks{OnMessage: func(rueidis.PubSubMessage) {}}))
		must(t, d.Do(context.Background(), cl.B().Subscribe().Channel("ch").Build()).Error())
	}
	p.SetMode(redistest.Hang)
	for _, end := range ends {
		select {
		case err := <-end:
			wantUnavailable(t, "the hooks", err)
		case <-time.After(patience):
			t.Fatal("the hooks did not end")
		}
	}
}

func TestWhatWaitsOnAConnectionOfItsOwnFailsWhenTheCircuitOpens(t *testing.T) {
	ctx := undisturbed(t) // the supervisor is to find out first
	s, c, dials := counted(t)
	cl := c.Client()
	waiting := owning(t, ctx, s, cl)
	s.Pause()
	// Nobody else calls: the supervisor watches over what is in use.
	for what, done := range waiting {
		wantUnavailable(t, what, result(t, what, done))
	}
	// With a long Timeout rueidis' PING finds out first, and the session is lost before the circuit
	// opens. Then the state leaves Up only when the next attempt has failed; see Link.mending.
	redistest.WaitFor(t, patience, "the state to leave up", func() bool { return c.Health().State != holdfast.Up })
	redistest.WaitFor(t, patience, "the connections to be closed", func() bool { return dials.Open() <= 1 })
	downFor(t, ctx, cl, 100)
	s.Resume()
	waitState(t, c, holdfast.Up)
	wantTransaction(t, ctx, cl)
}

func wantTransaction(t *testing.T, ctx context.Context, cl rueidis.Client) {
	t.Helper()
	b := cl.B()
	must(t, cl.Dedicated(func(d rueidis.DedicatedClient) error {
		return d.DoMulti(ctx, b.Multi().Build(), b.Set().Key("t").Value("1").Build(), b.Exec().Build())[2].Error()
	}))
}

func TestACommandOnADedicatedConnectionHasTheBudget(t *testing.T) {
	ctx := begin(t)
	s, c, _ := counted(t)
	cl := c.Client()
	b := cl.B()
	d, release := cl.Dedicate()
	defer release()
	must(t, d.Do(ctx, b.Watch().Key("k").Build()).Error())
	s.Pause()
	defer s.Resume()
	start := time.Now()
	wantUnavailable(t, "GET", d.Do(ctx, b.Get().Key("k").Build()).Error())
	if took := time.Since(start); took > 400*time.Millisecond+slack() {
		t.Errorf("it took %v", took)
	}
	// What it watched is forgotten: EXEC on another connection would not know of it.
	wantUnavailable(t, "the next", d.Do(ctx, b.Get().Key("k").Build()).Error())
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if err := d.Do(cancelled, b.Get().Key("k").Build()).Error(); err != context.Canceled {
		t.Errorf("of a caller who has left: %v", err)
	}
}

func TestAStreamEndsWithTheCircuit(t *testing.T) {
	ctx := begin(t)
	s, c, _ := counted(t)
	s.MustDo("SET", "big", string(bytes.Repeat([]byte("x"), 24<<20)))
	r := c.Client().DoStream(ctx, c.Client().B().Get().Key("big").Build())
	must(t, r.Error())
	s.Pause()
	_, err := r.WriteTo(io.Discard)
	wantUnavailable(t, "the stream", err)
	s.Resume()
}

func TestCloseEndsWhatWaitsOnConnectionsOfItsOwn(t *testing.T) {
	beside(t)
	for _, paused := range []bool{false, true} {
		t.Run(fmt.Sprint("paused ", paused), func(t *testing.T) {
			ctx := begin(t)
			s := redistest.Start(t)
			dials := &redistest.DialCounter{}
			o := at(s.Addr())
			o.Redis.DialCtxFn, o.Timeout = dials.Dial, 400*time.Millisecond
			c, err := holdfast.New(o)
			must(t, err)
			ready(t, c)
			cl := c.Client()
			waiting := owning(t, ctx, s, cl)
			// Idle ones, too.
			wantTransaction(t, ctx, cl)
			r := cl.DoStream(ctx, cl.B().Get().Key("t").Build())
			_, err = r.WriteTo(io.Discard)
			must(t, err)
			if paused {
				s.Pause()
				defer s.Resume()
			}
			start := time.Now()
			closedEmpty(t, c)
			if d := time.Since(start); d > time.Second+slack() {
				t.Errorf("Close took %v", d)
			}
			for what, done := range waiting {
				if err := result(t, what, done); !errors.Is(err, holdfast.ErrClosed) {
					t.Errorf("%s: %v; want ErrClosed", what, err)
				}
			}
			redistest.WaitFor(t, patience, "the connections to be closed", func() bool { return dials.Open() == 0 })
			if err := cl.Dedicated(func(d rueidis.DedicatedClient) error { return d.Do(ctx, cl.B().Ping().Build()).Error() }); !errors.Is(err, holdfast.ErrClosed) {
				t.Errorf("after Close: %v", err)
			}
		})
	}
}

// refusing dials, or not.
type refusing struct {
	redistest.DialCounter
	refuse, hang atomic.Bool
	refused      atomic.Int32
}

func (r *refusing) dial(ctx context.Context, addr string, d *net.Dialer, cfg *tls.Config) (net.Conn, error) {
	if r.refuse.Load() {
		r.refused.Add(1)
		return nil, errors.New("refused by the test")
	}
	if r.hang.Load() {
		r.refused.Add(1)
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return r.Dial(ctx, addr, d, cfg)
}

func TestAFailedDialOfAConnectionOfItsOwnIsNotRepeatedInALoop(t *testing.T) {
	ctx := begin(t)
	r := &refusing{}
	_, c, _ := counted(t, func(o *holdfast.Options) { o.Redis.DialCtxFn = r.dial })
	cl := c.Client()
	r.refuse.Store(true)
	start := time.Now()
	stop := load(t, 32, func(g, i int) {
		var err error
		if g%2 == 0 {
			err = cl.Do(ctx, cl.B().Blpop().Key("q").Timeout(0).Build()).Error()
		} else {
			s := cl.DoStream(ctx, cl.B().Get().Key("q").Build())
			err = s.Error()
		}
		wantUnavailable(t, "a call", err)
		runtime.Gosched()
	})
	redistest.WaitFor(t, patience, "a while", func() bool { return time.Since(start) > 1500*time.Millisecond })
	stop()
	// The first eight at once, and after 100, 200, 400, 800 ms, 1 s, eight at most each.
	if n := r.refused.Load(); n < 2 || n > 48 {
		t.Errorf("%d dials", n)
	}
	if st := c.Health().State; st != holdfast.Up {
		t.Errorf("the session is fine, and the state %v", st)
	}
	r.refuse.Store(false)
	redistest.WaitFor(t, patience, "the next dial", func() bool {
		return cl.Dedicated(func(d rueidis.DedicatedClient) error { return d.Do(ctx, cl.B().Ping().Build()).Error() }) == nil
	})
	// The caller's context wins over a dial that hangs, and Close does, too.
	r.hang.Store(true)
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	began := time.Now()
	err := cl.Receive(short, cl.B().Subscribe().Channel("ch").Build(), nil)
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > 20*time.Millisecond+slack() {
		t.Errorf("%v after %v", err, time.Since(began))
	}
}

func TestTheNumberOfConnectionsOfTheirOwnIsBounded(t *testing.T) {
	ctx := begin(t)
	_, c, dials := counted(t, func(o *holdfast.Options) {
		o.Redis.BlockingPoolSize = 4
		o.Redis.Dialer.Timeout = 200 * time.Millisecond
	})
	cl := c.Client()
	b := cl.B()
	short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	var all sync.WaitGroup
	for range 100 {
		all.Go(func() {
			if err := cl.Do(short, b.Blpop().Key("q").Timeout(0).Build()).Error(); !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if n := dials.Attempts(); n > 1+4 {
		t.Errorf("%d dials", n)
	}
	var held []func()
	for range 4 {
		d, release := cl.Dedicate()
		must(t, d.Do(ctx, b.Ping().Build()).Error())
		held = append(held, release)
	}
	wantUnavailable(t, "one too many", cl.Dedicated(func(d rueidis.DedicatedClient) error { return d.Do(ctx, b.Ping().Build()).Error() }))
	held[0]()
	wantTransaction(t, ctx, cl)
	for _, release := range held[1:] {
		release()
	}
}

func TestManyCallersOnConnectionsOfTheirOwnWhileRedisComesAndGoes(t *testing.T) {
	ctx := begin(t)
	s, c, dials := counted(t)
	cl := c.Client()
	var done atomic.Int64
	stop := load(t, 24, func(g, i int) {
		b := cl.B()
		var err error
		switch g % 4 {
		case 0:
			err = cl.Dedicated(func(d rueidis.DedicatedClient) error {
				return d.DoMulti(ctx, b.Multi().Build(), b.Incr().Key("n").Build(), b.Exec().Build())[2].Error()
			})
		case 1:
			err = cl.Do(ctx, b.Blpop().Key(fmt.Sprint("q", g)).Timeout(0.01).Build()).Error()
		case 2:
			r := cl.DoStream(ctx, b.Get().Key("n").Build())
			_, err = r.WriteTo(io.Discard)
		case 3:
			short, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
			defer cancel()
			err = cl.Receive(short, b.Subscribe().Channel("ch").Build(), func(rueidis.PubSubMessage) {})
		}
		if err == nil || rueidis.IsRedisNil(err) || errors.Is(err, context.DeadlineExceeded) {
			done.Add(1)
		} else {
			wantUnavailable(t, fmt.Sprint("kind ", g%4), err)
		}
	})
	for round := range 2 {
		want := done.Load() + 200
		redistest.WaitFor(t, patience, "calls", func() bool { return done.Load() > want })
		if round%2 == 0 {
			s.Kill()
			waitState(t, c, holdfast.Down)
			s.Restart()
		} else {
			s.Pause()
			redistest.WaitFor(t, patience, "the circuit to open", func() bool { return c.Health().State == holdfast.Down })
			s.Resume()
		}
		waitState(t, c, holdfast.Up)
	}
	stop()
	closedEmpty(t, c)
	redistest.WaitFor(t, patience, "the connections to be closed", func() bool { return dials.Open() == 0 })
}

func TestASubscriptionOutlivesAServerThatTakesNoWrites(t *testing.T) {
	ctx := begin(t)
	s, c, dials := counted(t)
	cl := c.Client()
	done := async(func() error {
		return cl.Receive(ctx, cl.B().Subscribe().Channel("ch").Build(), func(rueidis.PubSubMessage) {})
	})
	subscribed(t, s, "ch", 1)
	s.MustDo("REPLICAOF", "127.0.0.1", "1")
	waitState(t, c, holdfast.ReadOnly)
	// The supervisor dials anew, and replaces its session, as the address may lead elsewhere.
	n := dials.Attempts()
	redistest.WaitFor(t, patience, "new sessions", func() bool { return dials.Attempts() >= n+2 })
	select {
	case err := <-done:
		t.Errorf("Receive ended: %v", err)
	default:
	}
	s.MustDo("REPLICAOF", "NO", "ONE")
	waitState(t, c, holdfast.Up)
	subscribed(t, s, "ch", 1)
	s.Kill()
	wantUnavailable(t, "Receive", result(t, "Receive", done))
}

func TestCloseOfADedicatedClientEndsWhatWaitsThere(t *testing.T) {
	ctx := begin(t)
	s, c, _ := counted(t)
	cl := c.Client()
	d, release := cl.Dedicate()
	defer release()
	told := d.SetPubSubHooks(rueidis.PubSubHooks{OnMessage: func(rueidis.PubSubMessage) {}})
	done := async(func() error { return d.Do(ctx, cl.B().Blpop().Key("q").Timeout(0).Build()).Error() })
	blocked(t, s, 1)
	d.Close()
	if err := result(t, "BLPOP", done); !errors.Is(err, rueidis.ErrClosing) {
		t.Errorf("BLPOP: %v", err)
	}
	if err := result(t, "the hooks", told); !errors.Is(err, rueidis.ErrClosing) {
		t.Errorf("the hooks: %v", err)
	}
	blocked(t, s, 0)
	// The view's Close ends the view.
	cl.Close()
	for what, err := range map[string]error{
		"dedicated": cl.Dedicated(func(d rueidis.DedicatedClient) error { return d.Do(ctx, cl.B().Ping().Build()).Error() }),
		"receive":   cl.Receive(ctx, cl.B().Subscribe().Channel("c").Build(), nil),
	} {
		if !errors.Is(err, rueidis.ErrClosing) {
			t.Errorf("%s: %v", what, err)
		}
	}
	wantTransaction(t, ctx, c.Client())
}

func TestWithoutRESP3OnlySubscriptionsAreMissing(t *testing.T) {
	ctx := begin(t)
	_, c, dials := counted(t, func(o *holdfast.Options) {
		o.Redis.AlwaysRESP2 = true
		o.Tracking.Mode = holdfast.TrackOff
	})
	cl := c.Client()
	wantTransaction(t, ctx, cl)
	err := cl.Receive(ctx, cl.B().Subscribe().Channel("c").Build(), nil)
	var e *holdfast.Error
	if !errors.As(err, &e) || !contains(err.Error(), "RESP3") {
		t.Errorf("%v does not say why", err)
	}
	// Who tries again gets the same.
	if errors.Is(err, holdfast.ErrUnavailable) || contains(err.Error(), "try again") {
		t.Errorf("%v says that it would help to try again", err)
	}
	d, release := cl.Dedicate()
	defer release()
	if err := d.Do(ctx, d.B().Subscribe().Channel("c").Build()).Error(); err == nil || errors.Is(err, holdfast.ErrUnavailable) || !contains(err.Error(), "RESP3") {
		t.Errorf("on a dedicated connection: %v", err)
	}
	if n := dials.Attempts(); n > 4 {
		t.Errorf("%d dials", n)
	}
}

// That the server refuses HELLO is an answer. That it hangs up is none: a proxy does so, too, while
// its backend is away, and the next session asks again.
func TestAHangUpAtHELLOIsNoVerdictAboutSubscriptions(t *testing.T) {
	for name, rule := range map[string]redistest.Rule{
		"unknown":  {Command: "HELLO", Manner: redistest.Unknown},
		"refused":  {Command: "HELLO", Manner: redistest.Says, Text: "ERR Unsupported"},
		"hangs up": {Command: "HELLO", Manner: redistest.HangUp},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := begin(t)
			s := redistest.Start(t)
			o := at(redistest.NewFilter(t, s.Addr(), makeOf(t, "Redis 7.0"), rule).Addr())
			o.Breaker.MinBackoff, o.Breaker.MaxBackoff = 5*time.Millisecond, 10*time.Millisecond
			c := open(t, o)
			ready(t, c)
			cl := c.Client()
			err := cl.Receive(ctx, cl.B().Subscribe().Channel("c").Build(), nil)
			if got, want := errors.Is(err, holdfast.ErrUnavailable), name == "hangs up"; err == nil || got != want {
				t.Errorf("%v; is ErrUnavailable: %v, want %v", err, got, want)
			}
			if err != nil && !contains(err.Error(), "RESP") {
				t.Errorf("%v does not say why", err)
			}
		})
	}
}

func TestTheSupervisorWatchesOverASubscriptionThoughNobodyCalls(t *testing.T) {
	ctx := begin(t)
	s, c, _ := counted(t, func(o *holdfast.Options) {
		o.Breaker.MinBackoff, o.Breaker.MaxBackoff = 20*time.Millisecond, 20*time.Millisecond // idle after 200ms
		o.Redis.Dialer.KeepAlive = 10 * time.Minute                                           // rueidis' pings would notice, too
	})
	done := async(func() error {
		return c.Client().Receive(ctx, c.Client().B().Subscribe().Channel("ch").Build(), func(rueidis.PubSubMessage) {})
	})
	subscribed(t, s, "ch", 1)
	since := time.Now()
	redistest.WaitFor(t, patience, "far more than the link's idle time", func() bool { return time.Since(since) > time.Second })
	s.Pause()
	wantUnavailable(t, "Receive", result(t, "Receive", done))
	s.Resume()
}

func TestShutdownDoesNotWaitForWhatBlocks(t *testing.T) {
	ctx := begin(t)
	s, c, _ := counted(t)
	cl := c.Client()
	done := async(func() error { return cl.Do(ctx, cl.B().Blpop().Key("q").Timeout(0).Build()).Error() })
	blocked(t, s, 1)
	must(t, c.Set(ctx, "k", []byte("v"), 0))
	began := time.Now()
	must(t, c.Shutdown(ctx))
	if d := time.Since(began); d > time.Second+slack() {
		t.Errorf("it took %v", d)
	}
	if err := result(t, "BLPOP", done); !errors.Is(err, holdfast.ErrClosed) {
		t.Errorf("BLPOP: %v", err)
	}
}

// With Timeout: 10s and a script of six seconds the call should have got its answer. The
// connection was given up after 2 x KeepAlive + ConnWriteTimeout, which knew nothing of it.
func TestASilentConnectionIsKeptForAsLongAsACallMayWaitOnIt(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	o := at(s.Addr())
	o.Redis.Dialer.KeepAlive, o.Redis.ConnWriteTimeout = 50*time.Millisecond, 100*time.Millisecond
	o.Timeout = patience
	c := open(t, o)
	ready(t, c)
	cl := c.Client()
	must(t, cl.Do(ctx, cl.B().Get().Key("n").Build()).NonRedisError())
	d, release := cl.Dedicate()
	defer release()
	must(t, d.Do(ctx, d.B().Ping().Build()).Error())
	listening, stop := context.WithCancel(ctx)
	defer stop()
	messages := make(chan string, 1)
	ended := make(chan error, 1)
	go func() {
		ended <- cl.Receive(listening, cl.B().Subscribe().Channel("news").Build(), func(m rueidis.PubSubMessage) { messages <- m.Message })
	}()
	redistest.WaitFor(t, patience, "the subscription", func() bool { return s.MustDo("PUBSUB", "NUMSUB", "news") != "news 0" && len(s.Clients()) > 2 })

	s.Pause()
	paused := time.Now()
	answers := make(chan error, 3)
	go func() { answers <- cl.Do(ctx, cl.B().Incr().Key("n").Build()).Error() }()
	go func() { answers <- d.Do(ctx, d.B().Incr().Key("n").Build()).Error() }()
	go func() { _, err := c.Add(ctx, "k", nil, 0); answers <- err }()
	elapsed(t, "the server is silent", paused, 1200*time.Millisecond)
	s.Resume()
	for range 3 {
		if err := <-answers; err != nil {
			t.Errorf("a call within its budget: %v", err)
		}
	}
	if n := s.MustDo("GET", "n"); n != "2" {
		t.Errorf("%s increments, want 2", n)
	}
	redistest.WaitFor(t, patience, "a message", func() bool {
		s.MustDo("PUBLISH", "news", "one")
		select {
		case m := <-messages:
			return m == "one"
		case err := <-ended:
			t.Fatalf("the subscription ended: %v", err)
		case <-time.After(10 * time.Millisecond):
		}
		return false
	})
	stop()
	<-ended
	if n := c.Stats().DialAttempts; n > 3 {
		t.Errorf("%d dials, want one for each connection", n)
	}
}
