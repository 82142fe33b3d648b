package holdfast_test

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

// Real nodes that say what nobody expects, for real reasons.
func TestAClusterThatSaysOddThings(t *testing.T) {
	undisturbed(t)
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
	stop := load(t, 2, func(g, i int) {
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
	calls.within(t, 1, 50*time.Millisecond+slack())
	// The write waits in the journal. It must not ask all the time.
	before = rejected(t, a) + rejected(t, b)
	start := time.Now()
	redistest.WaitFor(t, patience, "a second", func() bool { return time.Since(start) > time.Second })
	if n := rejected(t, a) + rejected(t, b) - before; n > 300 {
		t.Errorf("%d redirections in a second of waiting", n)
	}
	if h := c.Health(); h.State != holdfast.Up || h.JournalKeys == 0 {
		t.Errorf("one slot is lost, and no server: %+v", h)
	}
	others.within(t, 0.9, 30*time.Millisecond)
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
	redistest.WaitFor(t, patience, "the nodes to hear each other's names", func() bool {
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
	redistest.WaitFor(t, patience, "all that there is to be up", func() bool {
		h := c.Health()
		return len(h.Shards) == 3 && !slices.ContainsFunc(h.Shards, func(s holdfast.ShardHealth) bool { return s.State != holdfast.Up })
	})
	var calls latencies
	calls.time(func() { must(t, c.Set(ctx, key, []byte("ours"), time.Hour)) })
	calls.time(func() { wantGet(t, c, key, "ours") })
	calls.time(func() { wantMiss(t, c, "{"+key+"}absent") })
	calls.within(t, 1, slack())
	near := keysAt(0, 2, "near:")[1]
	must(t, c.Set(ctx, near, []byte("v"), time.Hour))
	waitLookup(t, c, near, holdfast.Local, "v")
	if h := c.Health(); h.State != holdfast.Down || h.Writable || h.JournalKeys != 1 || !contains(fmt.Sprint(h.LastError), "1 hash slots") {
		t.Errorf("health %+v", h)
	}
	r.Nodes()[0].MustDo("CLUSTER", "ADDSLOTS", slot)
	r.AwaitServed()
	ready(t, c)
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
	redistest.WaitFor(t, patience, "two seconds of calls", func() bool {
		calls.time(func() { wantGet(t, c, "{"+key+"}absent", "") })
		calls.time(func() { must(t, c.Set(ctx, key, []byte("ours"), time.Hour)) })
		calls.time(func() { wantGet(t, c, key, "ours") })
		return time.Since(killed) > 2*time.Second
	})
	calls.within(t, 0.9, 20*time.Millisecond)
	must(t, redistest.RateOKUntil(d.to(gone.Addr()).Times(), killed, time.Now()))
	if s, _ := shard(c, a.Addr()); s.State != holdfast.Up {
		t.Errorf("the node that points there: %+v", s)
	}
	setslot(r, a, key, a)
	redistest.WaitFor(t, patience, "the write to come home", func() bool { return a.MustDo("GET", key) == "ours" })
	waitLookup(t, c, key, holdfast.Remote, "ours")
	for _, addr := range d.addrs() {
		if n := d.to(addr).Open(); n > 1 {
			t.Errorf("%d connections to %s", n, addr)
		}
	}
}
