package holdfast_test

import (
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

// fakeNode is a cluster of one node that has all slots and says of a key what
// the key's name says: "say:X" is answered with X, others with their name.
type fakeNode struct {
	*redistest.Listener
	topology atomic.Pointer[func(addr string) string] // instead of CLUSTER SLOTS and SHARDS
	got      atomic.Int64
}

func newFakeNode(t *testing.T) *fakeNode {
	f := &fakeNode{}
	listening := make(chan struct{})
	f.Listener = redistest.Respond(t, func(_ int, args []string) (string, bool) {
		<-listening
		answer := f.answer(args)
		return answer, answer != ""
	})
	close(listening)
	return f
}

func (f *fakeNode) answer(args []string) string {
	host, port, _ := strings.Cut(f.Addr(), ":")
	id := strings.Repeat("a", 40)
	switch name := strings.ToUpper(args[0]); {
	case name == "HELLO":
		return "%7\r\n+server\r\n+redis\r\n+version\r\n+7.0.15\r\n+proto\r\n:3\r\n+id\r\n:1\r\n+mode\r\n+cluster\r\n+role\r\n+master\r\n+modules\r\n*0\r\n"
	case name == "INFO":
		return bulk("# Server\r\nredis_version:7.0.15\r\nredis_mode:cluster\r\nrun_id:" + id + "\r\n")
	case name == "CLUSTER" && len(args) > 1:
		if odd := f.topology.Load(); odd != nil && !strings.EqualFold(args[1], "MYID") {
			return (*odd)(f.Addr())
		}
		switch strings.ToUpper(args[1]) {
		case "SLOTS":
			return slotsReply(0, 16383, host, port)
		case "SHARDS":
			return "*1\r\n%2\r\n+slots\r\n*2\r\n:0\r\n:16383\r\n+nodes\r\n*1\r\n%7\r\n+id\r\n" + bulk(id) + "+port\r\n:" + port +
				"\r\n+ip\r\n" + bulk(host) + "+endpoint\r\n" + bulk(host) + "+role\r\n+master\r\n+replication-offset\r\n:1\r\n+health\r\n+online\r\n"
		case "NODES":
			return bulk(id + " " + f.Addr() + "@1 myself,master - 0 0 1 connected 0-16383\n")
		case "MYID":
			return bulk(id)
		}
		return "-ERR unknown subcommand\r\n"
	case name == "GET":
		f.got.Add(1)
		if text, ok := strings.CutPrefix(args[1], "say:"); ok {
			return text + "\r\n"
		}
		return bulk(args[1])
	case name == "PTTL", name == "TTL":
		return ":-1\r\n"
	case name == "EXISTS", name == "DEL", name == "UNLINK":
		return ":1\r\n"
	case name == "EVALSHA":
		return "*1\r\n:1\r\n" // the replay's script, of one key in a cluster
	}
	return "+OK\r\n"
}

func slotsReply(from, to int, host, port string) string {
	return fmt.Sprintf("*1\r\n*3\r\n:%d\r\n:%d\r\n*4\r\n%s:%s\r\n%s*0\r\n", from, to, bulk(host), port, bulk(strings.Repeat("a", 40)))
}

func TestRedirectionsThatMakeNoSenseHarmNobody(t *testing.T) {
	redistest.Long(t)
	ctx := undisturbed(t)
	f := newFakeNode(t)
	var d dials
	o := inCluster(f.Addr())
	o.Timeout = 0
	o.Redis.DialCtxFn = d.dial
	c := open(t, o)
	ready(t, c)
	base := runtime.NumGoroutine()
	wantGet(t, c, "fine", "fine")
	mute, web, free := redistest.Blackhole(t).Addr(), redistest.HTTP(t).Addr(), redistest.FreeAddr(t)
	_, port, _ := strings.Cut(free, ":")
	started := time.Now()
	var calls latencies
	for _, to := range []string{
		"", " ", " x y", " 5", " 5 ", " 99999 " + free, " -1 " + free, " 18446744073709551621 " + free, " 5 :", " 5 :0", " 5 :-1",
		" 5 127.0.0.1", " 5 127.0.0.1:", " 5 127.0.0.1:99999", " 5 ?:" + port, " 5 :" + port, " 5 [::1]:" + port, " 5 [::1:" + port,
		" 5 " + free, " 5 " + free + " more", " 5 " + mute, " 5 " + web, " 5 " + f.Addr(), " 5  " + f.Addr(),
		" 5 " + strings.Repeat("long", 1000) + ":1", " 5 no.such.host.invalid:1", " 5 \x00\xff:1",
	} {
		for _, kind := range []string{"MOVED", "ASK"} {
			key := "say:-" + kind + to
			calls.time(func() {
				if v, err := c.Get(ctx, key); err == nil {
					t.Errorf("%q is %q", key, v)
				}
			})
			calls.time(func() {
				got, _ := c.GetMany(ctx, key, "fine in a batch")
				if len(got) > 1 {
					t.Errorf("%q in a batch: %q", key, got)
				}
			})
		}
	}
	calls.within(t, 1, 50*time.Millisecond+slack())
	redistest.WaitFor(t, patience, "a sane key to be answered", func() bool {
		v, err := c.Get(ctx, "fine after")
		return err == nil && string(v) == "fine after"
	})
	for _, addr := range d.addrs() {
		must(t, redistest.RateOKUntil(d.to(addr).Times(), started, time.Now()))
	}

	// To be named again and again is no reason to be dialed each time.
	started = time.Now()
	dead := redistest.FreeAddr(t)
	redistest.WaitFor(t, patience, "a second of calls that lead nowhere", func() bool {
		c.Get(ctx, "say:-MOVED 6 "+dead)
		return time.Since(started) > 1300*time.Millisecond
	})
	must(t, redistest.RateOKUntil(d.to(dead).Times(), started, time.Now()))

	// A hostile node may name as many addresses as it likes.
	before := totalDials(&d)
	calls.reset()
	var named atomic.Int64
	peak := 0
	stop := load(t, 20, func(g, i int) {
		n := named.Add(1)
		calls.time(func() { c.Get(ctx, fmt.Sprintf("say:-MOVED %d 127.%d.%d.%d:1", n%16384, 1+n>>16&127, n>>8&255, n&255)) })
		time.Sleep(2 * time.Millisecond)
	})
	start := time.Now()
	redistest.WaitFor(t, patience, "a storm of addresses", func() bool {
		peak = max(peak, runtime.NumGoroutine())
		return time.Since(start) > 1500*time.Millisecond
	})
	stop()
	if n := totalDials(&d) - before; n > 16*6 { // for the 16 that are looked for, at the usual rate
		t.Errorf("%d dials for %d addresses", n, named.Load())
	}
	if peak > base+200 {
		t.Errorf("%d goroutines, %d before", peak, base)
	}
	calls.within(t, 0.9, 50*time.Millisecond+slack())
	waitState(t, c, holdfast.Up)
	redistest.WaitFor(t, patience, "a sane key to be answered", func() bool {
		v, err := c.Get(ctx, "fine at last")
		return err == nil && string(v) == "fine at last"
	})
	if n := len(c.Health().Shards); n != 1 {
		t.Errorf("%d shards of a cluster of one", n)
	}
	t.Logf("%d addresses named, %d dials, %d goroutines at most (%d before)", named.Load(), totalDials(&d)-before, peak, base)
	// Addresses that were named are looked for until nobody wants them any more.
	redistest.GoroutinesBackTo(t, base, 70)
}

// A node may be up before the one who found it has turned round.
func TestAClusterOfOneNodeIsReadyAsOftenAsItIsOpened(t *testing.T) {
	ctx := begin(t)
	f := newFakeNode(t)
	rounds := 25
	if testing.Short() {
		rounds = 10
	}
	for range rounds {
		o := inCluster(f.Addr())
		o.CloseTimeout = patience
		c, err := holdfast.New(o)
		must(t, err)
		ready(t, c)
		wantGet(t, c, "fine", "fine")
		must(t, c.Shutdown(ctx))
	}
}

func totalDials(d *dials) (n int) {
	for _, addr := range d.addrs() {
		n += d.to(addr).Attempts()
	}
	return n
}

func TestATopologyThatMakesNoSenseIsAnOutageLikeAnyOther(t *testing.T) {
	ctx := begin(t)
	type caseOf struct {
		name string
		node *fakeNode
		c    *holdfast.Cache
		d    dials
	}
	var cases []*caseOf
	started := time.Now()
	for name, topology := range map[string]string{
		"nothing":          "*0\r\n",
		"null":             "_\r\n",
		"a text":           "+OK\r\n",
		"a number":         ":7\r\n",
		"an error":         "-ERR unknown command\r\n",
		"not permitted":    "-NOPERM this user has no permissions\r\n",
		"loading":          "-LOADING Redis is loading the dataset in memory\r\n",
		"a map":            "%1\r\n+a\r\n+b\r\n",
		"texts":            "*2\r\n+a\r\n+b\r\n",
		"an empty range":   "*1\r\n*0\r\n",
		"no node":          "*1\r\n*2\r\n:0\r\n:16383\r\n",
		"a null node":      "*1\r\n*3\r\n:0\r\n:16383\r\n_\r\n",
		"an empty node":    "*1\r\n*3\r\n:0\r\n:16383\r\n*0\r\n",
		"slots as text":    "*1\r\n*3\r\n+a\r\n+b\r\n*2\r\n+127.0.0.1\r\n:1\r\n",
		"negative slots":   slotsReply(-5, -1, "127.0.0.1", "1"),
		"too many slots":   slotsReply(0, 1<<40, "127.0.0.1", "1"),
		"backwards":        slotsReply(16383, 0, "127.0.0.1", "1"),
		"a negative port":  slotsReply(0, 16383, "127.0.0.1", "-1"),
		"a port too large": slotsReply(0, 16383, "127.0.0.1", "99999"),
		"nobody's name":    slotsReply(0, 16383, "no.such.host.invalid", "1"),
		"a huge name":      slotsReply(0, 16383, strings.Repeat("x", 1<<16), "1"),
	} {
		one := &caseOf{name: name, node: newFakeNode(t)}
		odd := func(string) string { return topology }
		one.node.topology.Store(&odd)
		o := inCluster(one.node.Addr())
		o.Mode = holdfast.ModeCluster
		o.Timeout = 0
		o.Redis.DialCtxFn = one.d.dial
		one.c = open(t, o)
		cases = append(cases, one)
	}
	redistest.WaitFor(t, patience, "a second of nonsense", func() bool { return time.Since(started) > 1200*time.Millisecond })
	for _, one := range cases {
		redistest.WaitFor(t, patience, "a first attempt on "+one.name, func() bool { return one.c.Health().LastError != nil })
		h := one.c.Health()
		if h.State == holdfast.Up || h.State == holdfast.ReadOnly {
			t.Errorf("%s: state %v, shards %+v", one.name, h.State, h.Shards)
		}
		var calls latencies
		calls.time(func() { must(t, one.c.Set(ctx, "k", []byte("v"), 0)) })
		calls.time(func() { wantGet(t, one.c, "k", "v") })
		calls.time(func() { wantGet(t, one.c, "absent", "") })
		calls.within(t, 1, 50*time.Millisecond+slack())
		for _, addr := range one.d.addrs() {
			if err := redistest.RateOKUntil(one.d.to(addr).Times(), started, time.Now()); err != nil {
				t.Errorf("%s: dials to %.40s, which is %s: %v", one.name, addr, one.node.Addr(), err)
			}
		}
		one.node.topology.Store(nil)
	}
	for _, one := range cases {
		ready(t, one.c)
		drain(t, one.c)
		redistest.WaitFor(t, patience, "a sane answer", func() bool {
			v, err := one.c.Get(ctx, "sane")
			return err == nil && string(v) == "sane"
		})
	}
}
