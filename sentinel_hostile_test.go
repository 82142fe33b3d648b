package holdfast_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

// The old master is a replica now and answers everybody; the sentinel has not
// heard of it yet.
func TestADemotedMasterIsLeftAsSoonAsTheSentinelKnows(t *testing.T) {
	ctx := begin(t)
	old, next := replicated(t)
	f := sentinelFor(t, old.Addr())
	var changes states
	o := watched(f.Addr())
	o.Timeout = max(250*time.Millisecond, budget()) // a machine that stalls is no news of Redis
	changes.record(&o)
	c := open(t, o)
	ready(t, c)
	must(t, c.Set(ctx, "before", []byte("v"), 0))
	old.AwaitReplicas(1)
	began := time.Now()
	promote(t, next, old)
	redistest.WaitFor(t, patience, "the first READONLY", func() bool {
		must(t, c.Set(ctx, "k", []byte(fmt.Sprint(time.Now().UnixNano())), 0))
		return c.Health().State != holdfast.Up
	})
	first := time.Now()
	n := 0
	redistest.WaitFor(t, patience, "a second of being read-only", func() bool {
		n++
		key := fmt.Sprint("during", n)
		must(t, c.Set(ctx, key, []byte(key), 0))
		wantGet(t, c, key, key)
		wantGet(t, c, "before", "v")
		if h := c.Health(); h.State != holdfast.ReadOnly || h.Writable || !contains(fmt.Sprint(h.LastError), "READONLY") {
			t.Fatalf("%+v on a replica", h)
		}
		return time.Since(first) > time.Second
	})
	f.names(t, next.Addr())
	heard := time.Now()
	waitState(t, c, holdfast.Up)
	t.Logf("off it %v after the sentinel knew, %v after the first READONLY", time.Since(heard), time.Since(first))
	if took := time.Since(heard); took > 3*2*time.Second+slack() {
		t.Errorf("off it %v after the sentinel knew", took)
	}
	drain(t, c)
	for i := range n {
		key := fmt.Sprint("during", i+1)
		if got := next.MustDo("GET", key); got != key {
			t.Fatalf("%s of %d is %s at the new master", key, n, got)
		}
	}
	redistest.WaitFor(t, patience, "the old connection to end", func() bool { return ours(old) == 0 && ours(next) == 1 })
	if got := changes.between(began, time.Now()); fmt.Sprint(got) != "[readonly up]" {
		t.Errorf("states %v", got)
	}
}

// One sentinel never hears of the failover; the others could tell.
func TestASentinelThatIsBehindIsNotTheOnlyOneAsked(t *testing.T) {
	ctx := begin(t)
	old, next := replicated(t)
	behind, knows := sentinelFor(t, old.Addr()), sentinelFor(t, old.Addr())
	ways := map[*fakeSentinel]*redistest.Proxy{}
	for _, f := range []*fakeSentinel{behind, knows} {
		ways[f] = redistest.NewProxy(t, f.Addr())
	}
	c := open(t, watched(ways[behind].Addr(), ways[knows].Addr()))
	ready(t, c)
	promote(t, next, old)
	if behind.asked.Load() == 0 { // it stuck to the other one
		behind, knows = knows, behind
	}
	knows.names(t, next.Addr())
	began, n := time.Now(), 0
	arrives := func() {
		t.Helper()
		redistest.WaitFor(t, patience, "writes at the new master", func() bool {
			n++
			key := fmt.Sprint("k", n)
			must(t, c.Set(ctx, key, []byte("v"), 0))
			return c.Health().State == holdfast.Up && next.MustDo("EXISTS", key) == "1"
		})
	}
	arrives()
	t.Logf("there after %v", time.Since(began))
	// It is asked again once the other one is gone, and then that one is back.
	asked := behind.asked.Load()
	ways[knows].SetMode(redistest.Cut)
	redistest.WaitFor(t, patience, "the one behind to be asked", func() bool { return behind.asked.Load() > asked })
	ways[knows].SetMode(redistest.Pass)
	began = time.Now()
	arrives()
	t.Logf("back after %v", time.Since(began))
	drain(t, c)
}

// How seldom the sentinels are to be asked while all is well says nothing about
// when it is not.
func TestAnIntervalOfPollsDoesNotKeepAnyoneOnAReplica(t *testing.T) {
	ctx := begin(t)
	old, next := replicated(t)
	f := sentinelFor(t, old.Addr())
	o := watched(f.Addr())
	o.Redis.Sentinel.TopologyRefreshInterval = time.Hour
	c := open(t, o)
	ready(t, c)
	promote(t, next, old)
	f.names(t, next.Addr())
	began := time.Now()
	redistest.WaitFor(t, 6*time.Second+slack(), "writes at the new master", func() bool {
		must(t, c.Set(ctx, "k", []byte("v"), 0))
		return c.Health().State == holdfast.Up && next.MustDo("EXISTS", "k") == "1"
	})
	t.Logf("there after %v", time.Since(began))
}

// The host of a sentinel is gone: nothing answers a dial, and nothing refuses it.
func TestADialToASentinelThatGoesNowhereHoldsUpNoProbe(t *testing.T) {
	begin(t)
	s := redistest.Start(t)
	f := sentinelFor(t, s.Addr())
	var gone atomic.Bool
	o := watched(f.Addr(), f.Addr())
	o.Redis.Dialer.Timeout = 10 * time.Second // a user's, for a slow network
	o.Redis.DialCtxFn = func(ctx context.Context, addr string, d *net.Dialer, _ *tls.Config) (net.Conn, error) {
		if gone.Load() && addr == f.Addr() {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return d.DialContext(ctx, "tcp", addr)
	}
	c := open(t, o)
	ready(t, c)
	gone.Store(true)
	f.Close()
	began := time.Now()
	redistest.WaitFor(t, patience, "three seconds without a sentinel", func() bool {
		c.Get(context.Background(), "absent") // in use
		if ago := time.Since(c.Health().ProbedAt); ago > 2*time.Second+slack() {
			t.Fatalf("the last probe was %v ago: nobody looks after the master", ago)
		}
		return time.Since(began) > 3*time.Second
	})
}

func TestNoReplyOfASentinelDoesHarm(t *testing.T) {
	ctx := undisturbed(t)
	master := redistest.Start(t)
	_, replica := replicated(t)
	dead := redistest.FreeAddr(t)
	host, port, _ := net.SplitHostPort(master.Addr())
	deadHost, deadPort, _ := net.SplitHostPort(dead)
	replicaHost, replicaPort, _ := net.SplitHostPort(replica.Addr())
	sentinel := []string{"sentinel"}
	tests := []struct {
		name  string
		reply string
		want  []string // one of them is in the last error
		state holdfast.State
	}{
		{"nil array", "*-1\r\n", []string{redistest.MasterSet}, holdfast.Connecting},
		{"nil", "_\r\n", []string{redistest.MasterSet}, holdfast.Connecting},
		{"nil string", "$-1\r\n", []string{redistest.MasterSet}, holdfast.Connecting},
		{"error", "-IDONTKNOW really\r\n", []string{"IDONTKNOW"}, holdfast.Connecting},
		{"no permission", "-NOPERM no\r\n", []string{"NOPERM"}, holdfast.Connecting},
		{"status", "+OK\r\n", sentinel, holdfast.Connecting},
		{"number", ":6379\r\n", sentinel, holdfast.Connecting},
		{"empty array", "*0\r\n", sentinel, holdfast.Connecting},
		{"one element", bulks(host), sentinel, holdfast.Connecting},
		{"three elements", bulks(host, port, "x"), append(sentinel, "x"), holdfast.Connecting},
		{"numbers", "*2\r\n:1\r\n:2\r\n", sentinel, holdfast.Connecting},
		{"nils", "*2\r\n$-1\r\n$-1\r\n", sentinel, holdfast.Connecting},
		{"nothing twice", bulks("", ""), sentinel, holdfast.Connecting},
		{"no host", bulks("", port), sentinel, holdfast.Connecting},
		{"no port", bulks(host, ""), sentinel, holdfast.Connecting},
		{"port 0", bulks(host, "0"), []string{"sentinel", ":0"}, holdfast.Connecting},
		{"port too high", bulks(host, "65536"), []string{"65536"}, holdfast.Connecting},
		{"port is a word", bulks(host, "redis"), sentinel, holdfast.Connecting}, // of which the system may know the number
		{"host is none", bulks("a b\r\n\x00", port), nil, holdfast.Connecting},
		{"long host", bulks(strings.Repeat("a", 1<<16), port), nil, holdfast.Connecting},
		{"arrays", "*2\r\n" + bulks(host) + bulks(port), sentinel, holdfast.Connecting},
		{"map", respMap(host, port), sentinel, holdfast.Connecting},
		{"bad length", "$-5\r\n", nil, holdfast.Connecting},
		{"absurd length", "*2\r\n$99999999999999\r\n", nil, holdfast.Connecting},
		{"absurd array", "*2147483647\r\n", nil, holdfast.Connecting},
		{"deep", strings.Repeat("*1\r\n", 100000), nil, holdfast.Connecting},
		{"too many replies", strings.Repeat(bulks(host, port), 3), nil, holdfast.Connecting},
		{"push", ">3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nb\r\n", nil, holdfast.Connecting},
		{"bytes", "\x00\x01\x02\r\n", nil, holdfast.Connecting},
		{"half a reply", "*2\r\n$9\r\n127", []string{"no answer", "deadline", "timeout"}, holdfast.Connecting},
		{"nothing at all", "", []string{"no answer", "deadline", "timeout"}, holdfast.Connecting},
		{"a dead server", bulks(deadHost, deadPort), []string{"refused"}, holdfast.Connecting},
		{"a replica", bulks(replicaHost, replicaPort), []string{"READONLY"}, holdfast.ReadOnly},
		{"itself", "", sentinel, holdfast.Connecting}, // filled in below
	}
	type subject struct {
		f     *fakeSentinel
		c     *holdfast.Cache
		dials *redistest.DialCounter
		began time.Time
	}
	subjects := make([]subject, len(tests))
	for i, tt := range tests {
		f := sentinelFor(t, master.Addr())
		if tt.name == "itself" {
			f.names(t, f.Addr())
		} else {
			f.says(tt.reply)
		}
		o := watched(f.Addr())
		o.Local.MaxBytes = 1 << 20
		o.Redis.Dialer.Timeout, o.Redis.Sentinel.Dialer.Timeout = 400*time.Millisecond, 400*time.Millisecond
		s := subject{f: f, dials: &redistest.DialCounter{}, began: time.Now()}
		o.Redis.DialCtxFn = s.dials.Dial
		s.c = open(t, o)
		subjects[i] = s
		must(t, s.c.Set(ctx, tt.name, []byte("v"), 0))
	}
	began, goroutines := time.Now(), 0
	redistest.WaitFor(t, patience, "two seconds of nonsense", func() bool {
		goroutines = max(goroutines, runtime.NumGoroutine())
		return time.Since(began) > 2*time.Second
	})
	if goroutines > 30*len(tests) {
		t.Errorf("%d goroutines", goroutines)
	}
	for i, tt := range tests {
		s := subjects[i]
		var h holdfast.Health
		redistest.WaitFor(t, patience, fmt.Sprintf("%s: an error that names one of %q", tt.name, tt.want), func() bool {
			h = s.c.Health()
			// The error is there a moment before the state.
			return h.LastError != nil && (tt.want == nil || contains(h.LastError.Error(), tt.want...)) && h.State == tt.state
		})
		if h.State != tt.state || h.Writable {
			t.Errorf("%s: %+v", tt.name, h)
		}
		if len(h.LastError.Error()) > 1000 {
			t.Errorf("%s: the last error has %d bytes", tt.name, len(h.LastError.Error()))
		}
		t.Logf("%s: %d dials, %.150v", tt.name, s.dials.Attempts(), h.LastError)
		for _, addr := range []string{s.f.Addr(), dead, replica.Addr(), master.Addr()} {
			// Five in the first second and 1.2 in each later one, and twice that:
			// a machine that stalls over so many clients moves attempts about.
			most := 6 + int(2.4*time.Since(s.began).Seconds())
			if tt.name == "itself" {
				most *= 2 // each attempt dials the sentinel and the master, which are one
			}
			if n := len(s.dials.TimesTo(addr)); n > most {
				t.Errorf("%s: %d dials to %s in %v", tt.name, n, addr, time.Since(s.began))
			}
		}
		wantGet(t, s.c, tt.name, "v") // from the journal
		if _, err := s.c.Get(ctx, "absent"); !errors.Is(err, holdfast.ErrMiss) {
			t.Errorf("%s: a caller got %v", tt.name, err)
		}
		s.f.names(t, master.Addr())
	}
	for i, tt := range tests {
		ready(t, subjects[i].c)
		drain(t, subjects[i].c)
		if got := master.MustDo("GET", tt.name); got != "v" {
			t.Errorf("%s: the master holds %s", tt.name, got)
		}
		closed(t, subjects[i].c)
	}
}

// A reply of a sentinel, while all is well, must not take the client away from the
// master that serves it to one that does not. If it names another master that
// cannot be reached, ours is none any more as far as anybody knows: it is given
// nothing to write that it would lose, and goes on answering.
func TestASentinelThatTalksNonsenseTakesNobodyOffAGoodMaster(t *testing.T) {
	redistest.Long(t)
	ctx := begin(t)
	master := redistest.Start(t)
	f := sentinelFor(t, master.Addr())
	dead := redistest.FreeAddr(t)
	var dials redistest.DialCounter
	var changes states
	o := watched(f.Addr())
	o.Redis.DialCtxFn = dials.Dial
	o.Timeout = max(250*time.Millisecond, budget()) // a machine that stalls is no news of Redis
	changes.record(&o)
	c := open(t, o)
	ready(t, c)
	var calls latencies
	stop := mixed(t, ctx, c, 4, &calls)
	began := time.Now()
	said := func(reply string) {
		t.Helper()
		asked := f.asked.Load()
		f.says(reply)
		redistest.WaitFor(t, patience, "the sentinel to be asked", func() bool { return f.asked.Load() > asked })
	}
	for _, reply := range []string{"*-1\r\n", "$-5\r\n", ""} {
		said(reply)
	}
	passes(t, "the last of it", 300*time.Millisecond)
	if in := changes.between(began, time.Now()); len(in) > 0 || c.Health().State != holdfast.Up {
		t.Errorf("states %v over what a sentinel said; %+v", in, c.Health())
	}
	host, port, _ := net.SplitHostPort(dead)
	said(bulks(host, port))
	waitState(t, c, holdfast.ReadOnly)
	must(t, c.Set(ctx, "kept", []byte("v"), 0))
	if master.MustDo("EXISTS", "kept") != "0" {
		t.Error("a master that is none any more was written to")
	}
	wantGet(t, c, "kept", "v")
	passes(t, "some attempts", time.Second)
	must(t, redistest.RateOKUntil(dials.TimesTo(dead), began, time.Now()))
	f.names(t, master.Addr())
	waitState(t, c, holdfast.Up)
	stop()
	calls.within(t, 1, o.Timeout+slack())
	drain(t, c)
	if got := master.MustDo("GET", "kept"); got != "v" {
		t.Errorf("the master holds %s", got)
	}
	if n := dials.Open(); n > 2 {
		t.Errorf("%d connections", n)
	}
}

// Sentinels that disagree would have a client go to and fro.
func TestSentinelsThatDisagreeCauseNoStorm(t *testing.T) {
	redistest.Long(t)
	ctx := undisturbed(t)
	one, two := redistest.Start(t), redistest.Start(t)
	f := sentinelFor(t, one.Addr())
	var dials redistest.DialCounter
	o := watched(f.Addr())
	o.Redis.DialCtxFn = dials.Dial
	c := open(t, o)
	ready(t, c)
	base := runtime.NumGoroutine()
	var calls latencies
	stop := load(t, 4, func(g, i int) {
		key := fmt.Sprint("k", g, i%20)
		calls.time(func() {
			if err := c.Set(ctx, key, []byte(fmt.Sprint(i)), 0); err != nil {
				t.Error(err)
			}
			// Each of them knows only a part: what is read is no matter here.
			if _, err := c.Get(ctx, key); err != nil && !errors.Is(err, holdfast.ErrMiss) {
				t.Error(err)
			}
		})
		time.Sleep(time.Millisecond)
	})
	began := time.Now()
	for i := 0; time.Since(began) < 3*time.Second; i++ {
		asked := f.asked.Load()
		f.names(t, []*redistest.Server{two, one}[i%2].Addr())
		redistest.WaitFor(t, patience, "the sentinel to be asked", func() bool { return f.asked.Load() > asked })
	}
	stop()
	calls.within(t, 1, 50*time.Millisecond+slack())
	for _, s := range []*redistest.Server{one, two} {
		must(t, redistest.RateOKUntil(dials.TimesTo(s.Addr()), began, time.Now()))
	}
	waitState(t, c, holdfast.Up)
	drain(t, c)
	redistest.WaitFor(t, patience, "one connection", func() bool { return ours(one)+ours(two) == 1 })
	redistest.GoroutinesBackTo(t, base, 5)
}

func TestAnUnusedClientLeavesTheSentinelsAlone(t *testing.T) {
	redistest.Long(t)
	ctx := begin(t)
	old, next := replicated(t)
	f := sentinelFor(t, old.Addr())
	o := watched(f.Addr())
	o.Breaker.MinBackoff, o.Breaker.MaxBackoff = 50*time.Millisecond, 100*time.Millisecond
	c := open(t, o)
	ready(t, c)
	must(t, c.Set(ctx, "k", []byte("v"), 0))
	old.AwaitReplicas(1)
	redistest.WaitFor(t, patience, "a poll", func() bool { return f.asked.Load() > 1 })
	quiet := func(asked func() int64) {
		t.Helper()
		last, since := asked(), time.Now()
		redistest.WaitFor(t, patience, "half a second without a question", func() bool {
			if now := asked(); now != last {
				last, since = now, time.Now()
			}
			return time.Since(since) > 500*time.Millisecond
		})
	}
	quiet(f.asked.Load)
	// While nobody looks the master moves, and the old one knows.
	promote(t, next, old)
	f.names(t, next.Addr())
	must(t, c.Set(ctx, "k", []byte("w"), 0))
	redistest.WaitFor(t, patience, "the write at the new master", func() bool { return next.MustDo("GET", "k") == "w" })

	// It moves back, and the other one does not know: it goes on taking writes.
	quiet(f.asked.Load)
	old.MustDo("REPLICAOF", "NO", "ONE")
	f.names(t, old.Addr())
	redistest.WaitFor(t, patience, "to be with the right master again", func() bool {
		must(t, c.Set(ctx, "k", []byte("x"), 0))
		return old.MustDo("GET", "k") == "x"
	})

	// Nothing is there at all, and nobody cares.
	drain(t, c)
	settled(t, c)
	old.Kill()
	f.Close()
	quiet(func() int64 { return int64(c.Stats().DialAttempts) })
	dials := c.Stats().DialAttempts
	c.Get(ctx, "absent")
	redistest.WaitFor(t, patience, "to be looked for again", func() bool { return c.Stats().DialAttempts > dials || f.asked.Load() > 0 })
}

func TestCloseWhileASentinelHangsIsQuickAndLeavesNothing(t *testing.T) {
	for _, tt := range []struct {
		name string
		hang func(t *testing.T, o *holdfast.Options) (c func(*holdfast.Cache))
	}{
		{"its dial", func(t *testing.T, o *holdfast.Options) func(*holdfast.Cache) {
			var dialed atomic.Bool
			o.Redis.InitAddress = []string{"unreachable:1"}
			o.Redis.DialCtxFn = func(ctx context.Context, _ string, _ *net.Dialer, _ *tls.Config) (net.Conn, error) {
				dialed.Store(true)
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return func(*holdfast.Cache) { redistest.WaitFor(t, patience, "the dial", dialed.Load) }
		}},
		{"its handshake", func(t *testing.T, o *holdfast.Options) func(*holdfast.Cache) {
			mute := redistest.Blackhole(t)
			o.Redis.InitAddress = []string{mute.Addr()}
			return func(*holdfast.Cache) {
				redistest.WaitFor(t, patience, "the dial", func() bool { return mute.Accepted() > 0 })
			}
		}},
		{"its answer", func(t *testing.T, o *holdfast.Options) func(*holdfast.Cache) {
			f := sentinelFor(t, redistest.FreeAddr(t))
			f.says("")
			o.Redis.InitAddress = []string{f.Addr()}
			return func(*holdfast.Cache) {
				redistest.WaitFor(t, patience, "the question", func() bool { return f.asked.Load() > 0 })
			}
		}},
		{"a poll", func(t *testing.T, o *holdfast.Options) func(*holdfast.Cache) {
			f := sentinelFor(t, redistest.Start(t).Addr())
			o.Redis.InitAddress = []string{f.Addr()}
			return func(c *holdfast.Cache) {
				ready(t, c)
				asked := f.asked.Load()
				f.says("")
				redistest.WaitFor(t, patience, "a poll", func() bool { return f.asked.Load() > asked })
			}
		}},
		{"an answer that never ends", func(t *testing.T, o *holdfast.Options) func(*holdfast.Cache) {
			drip, began := dripping(t)
			o.Redis.InitAddress = []string{drip}
			return func(*holdfast.Cache) { redistest.WaitFor(t, patience, "the first bytes", began.Load) }
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			undisturbed(t)
			o := watched()
			o.Redis.Dialer.Timeout, o.Redis.Sentinel.Dialer.Timeout = time.Minute, time.Minute
			hangs := tt.hang(t, &o)
			base := runtime.NumGoroutine()
			c, err := holdfast.New(o)
			must(t, err)
			hangs(c)
			start := time.Now()
			closedEmpty(t, c)
			if took := time.Since(start); took > 100*time.Millisecond+slack() {
				t.Errorf("close took %v", took)
			}
			redistest.GoroutinesBackTo(t, base, 2)
		})
	}
}

// dripping is a sentinel whose answers come a byte at a time and never end.
func dripping(t *testing.T) (addr string, began *atomic.Bool) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	began = &atomic.Bool{}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				for err == nil {
					_, err = c.Write([]byte("+"))
					began.Store(true)
					time.Sleep(20 * time.Millisecond) // that is its nature
				}
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		wg.Wait()
	})
	return ln.Addr().String(), began
}

func TestASentinelThatDripsIsGivenUp(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	drip, _ := dripping(t)
	good := sentinelFor(t, s.Addr())
	o := watched(drip, good.Addr())
	o.Redis.Dialer.Timeout, o.Redis.Sentinel.Dialer.Timeout = 300*time.Millisecond, 300*time.Millisecond
	c := open(t, o)
	began := time.Now()
	must(t, c.Set(ctx, "k", []byte("v"), 0))
	ready(t, c)
	t.Logf("up after %v", time.Since(began))
	if took := time.Since(began); took > 5*time.Second+slack() {
		t.Errorf("up after %v", took)
	}
	drain(t, c)
}
