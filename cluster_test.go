package holdfast_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/rueidis"
)

// clientName tells a Cache's connections from the tests' own in CLIENT LIST.
const clientName = "holdfast-cluster-test"

// inCluster is Options for a cluster, with a budget that lets the law be tested
// and not the machine.
func inCluster(addrs ...string) holdfast.Options {
	return holdfast.Options{
		Redis:   rueidis.ClientOption{InitAddress: addrs, ClientName: clientName},
		Timeout: time.Second,
	}
}

// home is the index of the master, of three, that a new cluster gives the key to.
func home(key string) int {
	for i := range 3 {
		if redistest.Slot(key) < (i+1)*16384/3 {
			return i
		}
	}
	return -1
}

// keysAt returns n keys, in as many slots as they please, that a new cluster of
// three gives to that master.
func keysAt(master, n int, prefix string) []string {
	var keys []string
	for i := 0; len(keys) < n; i++ {
		if key := fmt.Sprint(prefix, i); home(key) == master {
			keys = append(keys, key)
		}
	}
	return keys
}

// shard returns the health of the shard at addr.
func shard(c *holdfast.Cache, addr string) (holdfast.ShardHealth, bool) {
	for _, s := range c.Health().Shards {
		if s.Addr == addr {
			return s, true
		}
	}
	return holdfast.ShardHealth{}, false
}

func waitShard(t testing.TB, c *holdfast.Cache, addr string, want holdfast.State) {
	t.Helper()
	redistest.WaitFor(t, patience, fmt.Sprintf("shard %s to be %v", addr, want), func() bool {
		s, ok := shard(c, addr)
		return ok && s.State == want
	})
}

// waitLookup waits until the key is answered by the tier, with the value.
func waitLookup(t testing.TB, c *holdfast.Cache, key string, tier holdfast.Tier, want string) {
	t.Helper()
	var e holdfast.Entry
	var err error
	ok := false
	defer func() {
		if !ok {
			t.Logf("lookup %q: %q of tier %v, degraded %v, %v; want %q of %v", key, e.Value, e.Tier, e.Degraded, err, want, tier)
		}
	}()
	redistest.WaitFor(t, patience, "a lookup's answer", func() bool {
		e, err = c.Lookup(context.Background(), key)
		ok = err == nil && e.Tier == tier && !e.Degraded && string(e.Value) == want
		return ok
	})
}

// connections counts those of Caches at a node.
func connections(s *redistest.Server) int {
	n := 0
	for _, line := range s.Clients() {
		if strings.Contains(line, " name="+clientName+" ") {
			n++
		}
	}
	return n
}

// dials counts dials by address. Its dial method fits DialCtxFn.
type dials struct {
	mu   sync.Mutex
	addr map[string]*redistest.DialCounter
}

func (d *dials) to(addr string) *redistest.DialCounter {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.addr == nil {
		d.addr = map[string]*redistest.DialCounter{}
	}
	if d.addr[addr] == nil {
		d.addr[addr] = &redistest.DialCounter{}
	}
	return d.addr[addr]
}

func (d *dials) dial(ctx context.Context, addr string, dialer *net.Dialer, cfg *tls.Config) (net.Conn, error) {
	return d.to(addr).Dial(ctx, addr, dialer, cfg)
}

// addrs returns all addresses ever dialed, in order.
func (d *dials) addrs() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Sorted(maps.Keys(d.addr))
}

func TestAClusterOfThreeMasters(t *testing.T) {
	begin(t)
	r := redistest.StartCluster(t, 3, 0)
	for _, story := range []struct {
		name string
		test func(t *testing.T, r *redistest.Cluster)
	}{
		{"is found however it is named", foundHoweverNamed},
		{"answers every command from the right node", answersFromTheRightNode},
		{"takes batches over all its slots", takesBatches},
		{"tells of what others write on any node", tellsOfForeignWrites},
		{"costs one node's copies when one stream is lost", losesOneStream},
		{"is no standalone server and has none among it", isNoStandaloneServer},
	} {
		t.Run(story.name, func(t *testing.T) {
			begin(t)
			story.test(t, r)
		})
	}
}

func foundHoweverNamed(t *testing.T, r *redistest.Cluster) {
	nodes := r.Addrs()
	for _, way := range []struct {
		name  string
		mode  holdfast.Mode
		addrs []string
	}{
		{"one address, asked what it is", holdfast.ModeAuto, nodes[1:2]},
		{"several addresses", holdfast.ModeAuto, nodes},
		{"one address of a cluster", holdfast.ModeCluster, nodes[2:]},
		// A node may go by more names than it knows itself.
		{"by another name", holdfast.ModeCluster, []string{strings.Replace(nodes[0], "127.0.0.1", "localhost", 1)}},
		{"the same address twice", holdfast.ModeCluster, []string{nodes[0], nodes[0]}},
		{"the first address is down", holdfast.ModeAuto, []string{redistest.FreeAddr(t), nodes[1]}},
		{"the first address is mute", holdfast.ModeCluster, []string{redistest.Blackhole(t).Addr(), nodes[1]}},
		{"the first address is no redis", holdfast.ModeCluster, []string{redistest.HTTP(t).Addr(), nodes[1]}},
	} {
		t.Run(way.name, func(t *testing.T) {
			ctx := begin(t)
			o := inCluster(way.addrs...)
			o.Mode = way.mode
			c := open(t, o)
			ready(t, c)
			h := c.Health()
			if h.State != holdfast.Up || !h.Writable || !h.Tracking {
				t.Errorf("health %+v", h)
			}
			var addrs []string
			slots := 0
			for _, s := range h.Shards {
				addrs = append(addrs, s.Addr)
				slots += s.Slots
				if s.State != holdfast.Up || !s.Writable || !s.Tracking || s.Since.IsZero() {
					t.Errorf("shard %+v", s)
				}
			}
			if want := slices.Sorted(slices.Values(nodes)); !slices.Equal(addrs, want) || slots != 16384 {
				t.Errorf("shards %v with %d slots, want %v with all", addrs, slots, want)
			}
			for i, node := range r.Nodes() {
				key := keysAt(i, 1, way.name)[0]
				must(t, c.Set(ctx, key, []byte(way.name), time.Minute))
				if got := node.MustDo("GET", key); got != way.name {
					t.Errorf("%s at %s is %q", key, node.Addr(), got)
				}
				redistest.WaitFor(t, patience, "one connection to each node", func() bool { return connections(node) == 1 })
			}
		})
	}
	for _, node := range r.Nodes() {
		redistest.WaitFor(t, patience, "closed caches to be gone", func() bool { return connections(node) == 0 })
	}
}

// awkward are keys whose slot is easily got wrong.
var awkward = []string{
	"{tag}1", "{tag}2", "a{tag}b", "{tag}{other}", "{}empty tag", "{open", "close}", "}{", "{{tag}}", "x{}{tag}",
	"\x00\xff binary", "ключ", "{\xff\r\n}line", " ", "s p a c e",
}

func answersFromTheRightNode(t *testing.T, r *redistest.Cluster) {
	ctx := context.Background()
	c := open(t, inCluster(r.Addrs()[0]))
	other := open(t, inCluster(r.Addrs()[1]))
	ready(t, c)
	ready(t, other)
	keys := slices.Clone(awkward)
	for i := range 3 {
		keys = append(keys, keysAt(i, 20, "one:")...)
	}
	for _, key := range keys {
		node := r.Nodes()[home(key)]
		pttl := func() (ms int) {
			fmt.Sscan(node.MustDo("PTTL", key), &ms)
			return ms
		}
		must(t, c.Set(ctx, key, []byte("v of "+key), time.Hour))
		if got := node.MustDo("GET", key); got != "v of "+key {
			t.Fatalf("%q at its node is %q", key, got)
		}
		wantGet(t, c, key, "v of "+key)
		waitLookup(t, other, key, holdfast.Remote, "v of "+key)
		waitLookup(t, other, key, holdfast.Local, "v of "+key)
		if added, err := c.Add(ctx, key, []byte("late"), 0); added || err != nil {
			t.Errorf("add of %q, which is there: %v, %v", key, added, err)
		}
		if d, err := other.TTL(ctx, key); err != nil || d <= 59*time.Minute || d > time.Hour {
			t.Errorf("ttl of %q: %v, %v", key, d, err)
		}
		must(t, c.Touch(ctx, key, 2*time.Hour))
		if ms := pttl(); ms <= 7_000_000 || ms > 7_200_000 {
			t.Errorf("ttl of %q after a touch: %dms", key, ms)
		}
		must(t, c.Delete(ctx, key))
		if got := node.MustDo("EXISTS", key); got != "0" {
			t.Errorf("%q is there after the delete", key)
		}
		wantGet(t, c, key, "")
		if err := c.Touch(ctx, key, time.Hour); !errors.Is(err, holdfast.ErrMiss) {
			t.Errorf("touch of %q, which is not there: %v", key, err)
		}
		if added, err := c.Add(ctx, key, []byte("first"), time.Hour); !added || err != nil {
			t.Errorf("add of %q: %v, %v", key, added, err)
		}
		if got := node.MustDo("GET", key); got != "first" {
			t.Errorf("%q after the add is %q", key, got)
		}
		must(t, c.Delete(ctx, key))
	}
	must(t, c.Check(ctx))
}

func takesBatches(t *testing.T, r *redistest.Cluster) {
	ctx := context.Background()
	o := inCluster(r.Addrs()...)
	o.Timeout = 5 * time.Second
	c, other := open(t, o), open(t, o)
	ready(t, c)
	ready(t, other)
	items := map[string][]byte{}
	for i := range 5000 {
		items[fmt.Sprint("batch:", i)] = fmt.Append(nil, "v", i)
	}
	for _, key := range awkward {
		items[key] = []byte(key)
	}
	must(t, c.SetMany(ctx, items, time.Hour))
	keys := slices.Sorted(maps.Keys(items))
	for _, reader := range []*holdfast.Cache{c, other, other} {
		got, err := reader.GetMany(ctx, append(keys, "batch:absent", "batch:absent too")...)
		must(t, err)
		if len(got) != len(items) {
			t.Errorf("%d of %d values", len(got), len(items))
		}
		for key, v := range got {
			if string(v) != string(items[key]) {
				t.Fatalf("%q is %q", key, v)
			}
		}
	}
	for _, key := range append(keysAt(0, 2, "batch:"), "{tag}1", "\x00\xff binary") {
		if got := r.Nodes()[home(key)].MustDo("GET", key); got != string(items[key]) {
			t.Errorf("%q at its node is %q", key, got)
		}
	}
	if c.Health().JournalKeys != 0 || c.Stats().Timeouts != 0 {
		t.Errorf("the batch did not go through at once: %+v", c.Stats())
	}
	must(t, c.Delete(ctx, keys...))
	for _, node := range r.Nodes() {
		for _, key := range strings.Fields(node.MustDo("KEYS", "batch:*")) {
			t.Errorf("%s has %s", node.Addr(), key)
		}
	}
	redistest.WaitFor(t, patience, "the other cache to see the deletes", func() bool {
		got, err := other.GetMany(ctx, keys...)
		return err == nil && len(got) == 0
	})
}

func tellsOfForeignWrites(t *testing.T, r *redistest.Cluster) {
	ctx := context.Background()
	c := open(t, inCluster(r.Addrs()[0]))
	ready(t, c)
	var seen latencies
	for i, node := range r.Nodes() {
		for _, key := range keysAt(i, 10, "told:") {
			node.MustDo("SET", key, "one")
			waitLookup(t, c, key, holdfast.Remote, "one")
			waitLookup(t, c, key, holdfast.Local, "one")
			node.MustDo("SET", key, "two")
			seen.time(func() { waitLookup(t, c, key, holdfast.Remote, "two") })
			must(t, c.Set(ctx, key, []byte("ours"), 0))
			waitLookup(t, c, key, holdfast.Local, "ours")
			node.MustDo("DEL", key)
			seen.time(func() {
				redistest.WaitFor(t, patience, "the foreign delete to be seen", func() bool {
					_, err := c.Get(ctx, key)
					return errors.Is(err, holdfast.ErrMiss)
				})
			})
		}
	}
	seen.within(t, 0.9, slack())
	if st := c.Stats(); st.Invalidations < 60 {
		t.Errorf("%d invalidations of 60 foreign writes", st.Invalidations)
	}
}

// The stream of one node says nothing about the keys of another.
func losesOneStream(t *testing.T, r *redistest.Cluster) {
	ctx := context.Background()
	c := open(t, inCluster(r.Addrs()[0]))
	ready(t, c)
	var keys [3][]string
	for i := range keys {
		keys[i] = keysAt(i, 30, "stream:")
		for _, key := range keys[i] {
			must(t, c.Set(ctx, key, []byte("v"), time.Hour))
			waitLookup(t, c, key, holdfast.Local, "v")
		}
	}
	for cut, node := range r.Nodes() {
		before := c.Stats()
		losses := before.StreamLosses
		node.MustDo("CLIENT", "KILL", "TYPE", "normal")
		// The copies are in doubt before anybody can see that the circuit is open.
		redistest.WaitFor(t, patience, "the loss to be noticed", func() bool {
			st := c.Stats()
			return st.StreamLosses > losses && st.DialAttempts > before.DialAttempts
		})
		waitState(t, c, holdfast.Up)
		for i := range keys {
			for _, key := range keys[i] {
				e, err := c.Lookup(ctx, key)
				if err != nil || string(e.Value) != "v" || e.Degraded {
					t.Fatalf("lookup %s: %+v, %v", key, e, err)
				}
				if inDoubt := e.Tier == holdfast.Remote; inDoubt != (i == cut) {
					t.Errorf("stream of node %d cut: %s of node %d came from tier %v", cut, key, i, e.Tier)
				}
			}
		}
		// Once, unless the machine is so slow that the circuit opened again.
		after := c.Stats()
		if n, opens := after.StreamLosses-losses, after.BreakerOpens-before.BreakerOpens; n < 1 || n > max(opens, 1) {
			t.Errorf("one lost stream counts as %d, and the circuit opened %d times", n, opens)
		}
		for _, node := range r.Nodes() {
			if n := connections(node); n != 1 {
				t.Errorf("%d connections to %s", n, node.Addr())
			}
		}
	}
}

func isNoStandaloneServer(t *testing.T, r *redistest.Cluster) {
	ctx := context.Background()
	alone := redistest.Start(t)
	for _, wrong := range []struct {
		mode holdfast.Mode
		addr string
		db   int
		says string
	}{
		{holdfast.ModeCluster, alone.Addr(), 0, "cluster"},
		{holdfast.ModeStandalone, r.Addrs()[0], 0, "cluster"},
		{holdfast.ModeAuto, r.Addrs()[0], 1, "SELECT"},
		{holdfast.ModeCluster, r.Addrs()[0], 1, "SELECT"},
	} {
		o := inCluster(wrong.addr)
		o.Mode, o.Redis.SelectDB = wrong.mode, wrong.db
		c := open(t, o)
		redistest.WaitFor(t, patience, "a first attempt", func() bool { return c.Health().LastError != nil })
		if err := c.Health().LastError; !contains(err.Error(), wrong.says) {
			t.Errorf("mode %v of %s, database %d: %v", wrong.mode, wrong.addr, wrong.db, err)
		}
		if h := c.Health(); h.State != holdfast.Connecting {
			t.Errorf("mode %v of %s: state %v", wrong.mode, wrong.addr, h.State)
		}
		// It is a Redis that is not there, like any other.
		must(t, c.Set(ctx, "k", []byte("v"), 0))
		wantGet(t, c, "k", "v")
	}
}

func TestOptionsThatContradictTheModeAreNamed(t *testing.T) {
	two := []string{"a:1", "b:2"}
	sentinel := rueidis.SentinelOption{MasterSet: "m"}
	for _, bad := range []struct {
		mode  holdfast.Mode
		redis rueidis.ClientOption
		names []string
	}{
		{holdfast.ModeCluster, rueidis.ClientOption{InitAddress: two, Sentinel: sentinel}, []string{"Mode", "Sentinel.MasterSet"}},
		{holdfast.ModeStandalone, rueidis.ClientOption{InitAddress: two[:1], Sentinel: sentinel}, []string{"Mode", "Sentinel.MasterSet"}},
		{holdfast.ModeStandalone, rueidis.ClientOption{InitAddress: two}, []string{"InitAddress"}},
		{holdfast.ModeSentinel, rueidis.ClientOption{InitAddress: two}, []string{"MasterSet"}},
		{holdfast.ModeCluster, rueidis.ClientOption{InitAddress: []string{"a:1", ""}}, []string{"InitAddress[1]"}},
		{99, rueidis.ClientOption{InitAddress: two[:1]}, []string{"Mode"}},
		// All at once.
		{holdfast.ModeCluster, rueidis.ClientOption{InitAddress: two, SelectDB: -1, Sentinel: sentinel}, []string{"SelectDB", "Sentinel.MasterSet"}},
	} {
		c, err := holdfast.New(holdfast.Options{Mode: bad.mode, Redis: bad.redis})
		if err == nil {
			c.Close()
			t.Errorf("mode %v with %+v: no error", bad.mode, bad.redis)
			continue
		}
		for _, name := range bad.names {
			if !strings.Contains(err.Error(), name) {
				t.Errorf("mode %v: %q does not name %s", bad.mode, err, name)
			}
		}
	}
	for _, good := range []holdfast.Options{
		{Mode: holdfast.ModeAuto, Redis: rueidis.ClientOption{InitAddress: two}},
		{Mode: holdfast.ModeCluster, Redis: rueidis.ClientOption{InitAddress: two, SelectDB: 3}}, // the server decides
		{Mode: holdfast.ModeSentinel, Redis: rueidis.ClientOption{InitAddress: two, Sentinel: sentinel, SelectDB: 3}},
	} {
		good.Redis.DialCtxFn = (&dials{}).dial
		open(t, good)
	}
}
