package holdfast_test

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

// Real nodes that say what nobody expects, for real reasons.
func TestAClusterThatSaysOddThings(t *testing.T) {
	begin(t)
	r := redistest.StartCluster(t, 3, 0)
	for _, story := range []struct {
		name string
		test func(t *testing.T, r *redistest.Cluster)
	}{
		{"two nodes that point at each other", pointAtEachOther},
		{"nodes that do not know their own address", knowNoAddress},
		{"nodes that go by names", goByNames},
		{"a slot that nobody has", nobodyHasIt},
		{"a node that points at one that is gone", pointsAtTheGone}, // and gone it stays: the last
	} {
		t.Run(story.name, func(t *testing.T) {
			story.test(t, r)
		})
	}
}

// rejected counts the commands of a node that got no answer but a redirection.
func rejected(t *testing.T, node *redistest.Server) (n int) {
	t.Helper()
	for line := range strings.Lines(node.MustDo("INFO", "commandstats")) {
		if _, count, ok := strings.Cut(line, "rejected_calls="); ok {
			var one int
			fmt.Sscanf(count, "%d", &one)
			n += one
		}
	}
	return n
}

// setslot tells one node, and no other, who serves the slot of key.
func setslot(r *redistest.Cluster, on *redistest.Server, key string, owner *redistest.Server) {
	on.MustDo("CLUSTER", "SETSLOT", fmt.Sprint(redistest.Slot(key)), "NODE", r.ID(owner))
}

// A reshard that was left half done: the old owner was told, the new one was not.
func pointAtEachOther(t *testing.T, r *redistest.Cluster) {
	ctx := context.Background()
	o := inCluster(r.Addrs()...)
	o.Timeout = 0
	c := open(t, o)
	ready(t, c)
	base := runtime.NumGoroutine()
	a, b := r.Nodes()[0], r.Nodes()[1]
	key := keysAt(0, 1, "lost:")[0]
	tag := "{" + key + "}"
	near := keysAt(0, 1, "near:")[0]
	must(t, c.Set(ctx, near, []byte("v"), time.Hour))
	setslot(r, a, key, b)
	var calls, others latencies
	stop := load(2, func(g, i int) {
		k := keysAt(i%3, 1, fmt.Sprint("absent", g, i, ":"))[0]
		others.time(func() { wantMiss(t, c, k) })
		time.Sleep(time.Millisecond)
	})
	defer stop()
	before := rejected(t, a) + rejected(t, b)
	const n = 20
	for i := range n {
		calls.time(func() { wantMiss(t, c, fmt.Sprint(tag, "absent", i)) })
		calls.time(func() {
			got, err := c.GetMany(ctx, fmt.Sprint(tag, "absent", i), near)
			if err != nil || string(got[near]) != "v" {
				t.Errorf("a batch with a lost slot in it: %q, %v", got, err)
			}
		})
	}
	calls.time(func() { must(t, c.Set(ctx, tag, []byte("ours"), time.Hour)) })
	wantGet(t, c, tag, "ours")
	hops := rejected(t, a) + rejected(t, b) - before
	if hops > 40*(2*n+1) {
		t.Errorf("%d redirections for %d calls", hops, 2*n+1)
	}
	calls.within(t, 1, 50*time.Millisecond+slack)
	// The write waits in the journal. It must not ask all the time.
	before = rejected(t, a) + rejected(t, b)
	start := time.Now()
	redistest.WaitFor(t, 5*time.Second, "a second", func() bool { return time.Since(start) > time.Second })
	if n := rejected(t, a) + rejected(t, b) - before; n > 300 {
		t.Errorf("%d redirections in a second of waiting", n)
	}
	if h := c.Health(); h.State != holdfast.Up || h.JournalKeys == 0 {
		t.Errorf("one slot is lost, and no server: %+v", h)
	}
	others.within(t, 0.99, 30*time.Millisecond)
	if n := runtime.NumGoroutine(); n > base+20 {
		t.Errorf("%d goroutines, %d before", n, base)
	}
	setslot(r, b, key, b)
	stop()
	drain(t, c)
	if got := b.MustDo("GET", tag); got != "ours" {
		t.Errorf("the write at the node that got the slot: %q", got)
	}
	followsForeignWrites(t, r, c, []string{tag})
	t.Logf("%d redirections for %d calls", hops, 2*n+1)
}

func wantMiss(t *testing.T, c *holdfast.Cache, key string) {
	t.Helper()
	if v, err := c.Get(context.Background(), key); err != holdfast.ErrMiss {
		t.Errorf("get %s: %q, %v; want a miss", key, v, err)
	}
}

// Behind some address translations a node says "the host where you found me".
func knowNoAddress(t *testing.T, r *redistest.Cluster) {
	r.Configure("cluster-preferred-endpoint-type", "unknown-endpoint")
	defer r.Configure("cluster-preferred-endpoint-type", "ip")
	redirectsAreFollowed(t, r, "unknown:")
}

func goByNames(t *testing.T, r *redistest.Cluster) {
	r.Configure("cluster-announce-hostname", "localhost")
	r.Configure("cluster-preferred-endpoint-type", "hostname")
	defer r.Configure("cluster-announce-hostname", "")
	defer r.Configure("cluster-preferred-endpoint-type", "ip")
	redistest.WaitFor(t, 10*time.Second, "the nodes to hear each other's names", func() bool {
		for _, node := range r.Nodes() {
			if told := node.MustDo("CLUSTER", "SLOTS"); strings.Contains(told, "?") || !strings.Contains(told, "localhost") {
				return false
			}
		}
		return true
	})
	redirectsAreFollowed(t, r, "named:")
}

// redirectsAreFollowed opens a Cache and has MOVED, ASK and the topology tell it
// where to go.
func redirectsAreFollowed(t *testing.T, r *redistest.Cluster, prefix string) {
	ctx := context.Background()
	c := open(t, inCluster(r.Nodes()[1].Addr()))
	ready(t, c)
	if n := len(c.Health().Shards); n != 3 {
		t.Errorf("%d shards: %+v", n, c.Health().Shards)
	}
	key := keysAt(0, 1, prefix)[0]
	must(t, c.Set(ctx, key, []byte("v"), time.Hour))
	m := r.BeginMove(redistest.Slot(key), r.Nodes()[2])
	m.AllKeys()
	waitLookup(t, c, key, holdfast.Remote, "v") // by ASK
	m.End()
	must(t, c.Set(ctx, key, []byte("new"), time.Hour)) // by MOVED
	if got := r.Nodes()[2].MustDo("GET", key); got != "new" {
		t.Errorf("%s at its new node is %q", key, got)
	}
	followsForeignWrites(t, r, c, append(keysAt(0, 2, prefix), keysAt(1, 1, prefix)...))
	for _, node := range r.Nodes() {
		if n := connections(node); n != 1 {
			t.Errorf("%d connections to %s", n, node.Addr())
		}
	}
	if st := c.Stats(); st.Journaled != 0 || c.Health().State != holdfast.Up {
		t.Errorf("stats %+v, health %+v", st, c.Health())
	}
	r.MoveSlot(redistest.Slot(key), r.Nodes()[0])
}

// A cluster that is not whole yet: writes to what is missing wait for it.
func nobodyHasIt(t *testing.T, r *redistest.Cluster) {
	ctx := context.Background()
	key := keysAt(0, 1, "orphan:")[0]
	slot := fmt.Sprint(redistest.Slot(key))
	for _, node := range r.Nodes() {
		node.MustDo("CLUSTER", "DELSLOTS", slot)
	}
	o := inCluster(r.Addrs()...)
	o.Redis.ClusterOption.ShardsRefreshInterval = time.Second
	c := open(t, o)
	ready(t, c)
	var calls latencies
	calls.time(func() { must(t, c.Set(ctx, key, []byte("ours"), time.Hour)) })
	calls.time(func() { wantGet(t, c, key, "ours") })
	calls.time(func() { wantMiss(t, c, "{"+key+"}absent") })
	calls.within(t, 1, slack)
	near := keysAt(0, 2, "near:")[1]
	must(t, c.Set(ctx, near, []byte("v"), time.Hour))
	waitLookup(t, c, near, holdfast.Local, "v")
	if h := c.Health(); h.State != holdfast.Up || h.JournalKeys != 1 {
		t.Errorf("health %+v", h)
	}
	r.Nodes()[0].MustDo("CLUSTER", "ADDSLOTS", slot)
	r.AwaitServed()
	drain(t, c)
	if got := r.Nodes()[0].MustDo("GET", key); got != "ours" {
		t.Errorf("the write, once somebody has the slot: %q", got)
	}
	followsForeignWrites(t, r, c, []string{key})
}

func pointsAtTheGone(t *testing.T, r *redistest.Cluster) {
	ctx := context.Background()
	var d dials
	o := inCluster(r.Addrs()[:2]...)
	o.Timeout = 0
	o.Redis.DialCtxFn = d.dial
	c := open(t, o)
	ready(t, c)
	a, gone := r.Nodes()[0], r.Nodes()[2]
	key := keysAt(0, 1, "gone:")[0]
	must(t, c.Set(ctx, key, []byte("before"), time.Hour))
	must(t, c.Delete(ctx, key))
	gone.Kill()
	killed := time.Now()
	waitShard(t, c, gone.Addr(), holdfast.Down)
	setslot(r, a, key, gone)
	var calls latencies
	redistest.WaitFor(t, 10*time.Second, "two seconds of calls", func() bool {
		calls.time(func() { wantGet(t, c, "{"+key+"}absent", "") })
		calls.time(func() { must(t, c.Set(ctx, key, []byte("ours"), time.Hour)) })
		calls.time(func() { wantGet(t, c, key, "ours") })
		return time.Since(killed) > 2*time.Second
	})
	calls.within(t, 0.99, 20*time.Millisecond)
	must(t, redistest.RateOKUntil(d.to(gone.Addr()).Times(), killed, time.Now()))
	if s, _ := shard(c, a.Addr()); s.State != holdfast.Up {
		t.Errorf("the node that points there: %+v", s)
	}
	setslot(r, a, key, a)
	redistest.WaitFor(t, 15*time.Second, "the write to come home", func() bool { return a.MustDo("GET", key) == "ours" })
	waitLookup(t, c, key, holdfast.Remote, "ours")
	for _, addr := range d.addrs() {
		if n := d.to(addr).Open(); n > 1 {
			t.Errorf("%d connections to %s", n, addr)
		}
	}
}

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
	f.Listener = redistest.Script(t, func(_ int, args []string) string {
		<-listening
		return f.answer(args)
	})
	close(listening)
	return f
}

func bulk(s string) string { return fmt.Sprintf("$%d\r\n%s\r\n", len(s), s) }

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
	}
	return "+OK\r\n"
}

func slotsReply(from, to int, host, port string) string {
	return fmt.Sprintf("*1\r\n*3\r\n:%d\r\n:%d\r\n*4\r\n%s:%s\r\n%s*0\r\n", from, to, bulk(host), port, bulk(strings.Repeat("a", 40)))
}

func TestRedirectionsThatMakeNoSenseHarmNobody(t *testing.T) {
	ctx := begin(t)
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
	calls.within(t, 1, 50*time.Millisecond+slack)
	redistest.WaitFor(t, 5*time.Second, "a sane key to be answered", func() bool {
		v, err := c.Get(ctx, "fine after")
		return err == nil && string(v) == "fine after"
	})
	for _, addr := range d.addrs() {
		must(t, redistest.RateOKUntil(d.to(addr).Times(), started, time.Now()))
	}

	// To be named again and again is no reason to be dialed each time.
	started = time.Now()
	dead := redistest.FreeAddr(t)
	redistest.WaitFor(t, 10*time.Second, "a second of calls that lead nowhere", func() bool {
		c.Get(ctx, "say:-MOVED 6 "+dead)
		return time.Since(started) > 1300*time.Millisecond
	})
	must(t, redistest.RateOKUntil(d.to(dead).Times(), started, time.Now()))

	// A hostile node may name as many addresses as it likes.
	before := totalDials(&d)
	calls.reset()
	var named atomic.Int64
	peak := 0
	stop := load(20, func(g, i int) {
		n := named.Add(1)
		calls.time(func() { c.Get(ctx, fmt.Sprintf("say:-MOVED %d 127.%d.%d.%d:1", n%16384, 1+n>>16&127, n>>8&255, n&255)) })
		time.Sleep(2 * time.Millisecond)
	})
	start := time.Now()
	redistest.WaitFor(t, 10*time.Second, "a storm of addresses", func() bool {
		peak = max(peak, runtime.NumGoroutine())
		return time.Since(start) > 1500*time.Millisecond
	})
	stop()
	if n := totalDials(&d) - before; n > 50 {
		t.Errorf("%d dials for %d addresses", n, named.Load())
	}
	if peak > base+200 {
		t.Errorf("%d goroutines, %d before", peak, base)
	}
	calls.within(t, 0.99, 50*time.Millisecond+slack)
	waitState(t, c, holdfast.Up)
	redistest.WaitFor(t, 5*time.Second, "a sane key to be answered", func() bool {
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
	rounds := 50
	if testing.Short() {
		rounds = 10
	}
	for range rounds {
		c, err := holdfast.New(inCluster(f.Addr()))
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
	redistest.WaitFor(t, 10*time.Second, "a second of nonsense", func() bool { return time.Since(started) > 1200*time.Millisecond })
	for _, one := range cases {
		redistest.WaitFor(t, 5*time.Second, "a first attempt on "+one.name, func() bool { return one.c.Health().LastError != nil })
		h := one.c.Health()
		if h.State == holdfast.Up || h.State == holdfast.ReadOnly {
			t.Errorf("%s: state %v, shards %+v", one.name, h.State, h.Shards)
		}
		var calls latencies
		calls.time(func() { must(t, one.c.Set(ctx, "k", []byte("v"), 0)) })
		calls.time(func() { wantGet(t, one.c, "k", "v") })
		calls.time(func() { wantGet(t, one.c, "absent", "") })
		calls.within(t, 1, 50*time.Millisecond+slack)
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
		redistest.WaitFor(t, 5*time.Second, "a sane answer", func() bool {
			v, err := one.c.Get(ctx, "sane")
			return err == nil && string(v) == "sane"
		})
	}
}
