package holdfast_test

import (
	"slices"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

func TestAReplicaTakesOverUnderTrafficAndNobodyNotices(t *testing.T) {
	ctx := begin(t)
	r := redistest.StartCluster(t, 3, 1)
	masters, replicas := r.Nodes()[:3], r.Nodes()[3:]
	var d dials
	// A replica is no master, but it knows them.
	o := inCluster(replicas[2].Addr())
	o.Redis.DialCtxFn = d.dial
	c := open(t, o)
	ready(t, c)
	quiet := open(t, inCluster(r.Addrs()...))
	ready(t, quiet)
	if got, want := shardAddrs(c), addrsOf(masters); !slices.Equal(got, want) {
		t.Errorf("shards %v, want the masters, %v", got, want)
	}
	for _, node := range replicas {
		redistest.WaitFor(t, patience, "nobody to stay with a replica", func() bool { return connections(node) == 0 })
	}

	t.Run("as it is told to", func(t *testing.T) {
		var keys [3][]string
		for i := range keys {
			keys[i] = keysAt(i, 10, "quiet:")
			for _, key := range keys[i] {
				must(t, quiet.Set(ctx, key, []byte("v"), time.Hour))
				waitLookup(t, quiet, key, holdfast.Local, "v")
			}
		}
		tr := startTraffic(t, r, c, "told", 3*time.Second)
		r.Failover(replicas[0])
		waitShard(t, c, replicas[0].Addr(), holdfast.Up)
		waitShard(t, quiet, replicas[0].Addr(), holdfast.Up)
		// Nobody sends invalidations for what merely has another master now.
		for i := range keys {
			for _, key := range keys[i] {
				e, err := quiet.Lookup(ctx, key)
				if err != nil || string(e.Value) != "v" || (e.Tier == holdfast.Remote) != (i == 0) {
					t.Errorf("%s of shard %d after shard 0 has another master: %+v, %v", key, i, e, err)
				}
			}
		}
		followsForeignWrites(t, r, quiet, append(keys[0][:3:3], keys[1][:3]...))
		tr.verify(t, r, c, o.Timeout)
		awaitConnections(t, r, 2, replicas[0], masters[1], masters[2])
		for _, cache := range []*holdfast.Cache{c, quiet} {
			if got, want := shardAddrs(cache), addrsOf([]*redistest.Server{replicas[0], masters[1], masters[2]}); !slices.Equal(got, want) {
				t.Errorf("shards %v, want %v", got, want)
			}
		}
	})

	t.Run("as its master dies", func(t *testing.T) {
		key := keysAt(1, 1, "resumes:")[0]
		must(t, quiet.Set(ctx, key, []byte("v"), time.Hour))
		tr := startTraffic(t, r, c, "dies", 4*time.Second)
		// What a master has acknowledged and not passed on dies with it; that is
		// between redis and its users.
		tr.writing.Lock()
		masters[1].AwaitReplicas(1)
		masters[1].Kill()
		tr.writing.Unlock()
		killed := time.Now()
		waitShard(t, c, masters[1].Addr(), holdfast.Down)
		e, err := quiet.Lookup(ctx, key)
		if err != nil || string(e.Value) != "v" {
			t.Errorf("a copy in doubt: %+v, %v", e, err)
		}
		redistest.WaitFor(t, patience, "the replica to take over", func() bool { return r.Owner(key) == replicas[1] })
		promoted := time.Now()
		waitShard(t, c, replicas[1].Addr(), holdfast.Up)
		waitState(t, c, holdfast.Up)
		resumed := time.Since(promoted)
		if resumed > 3*time.Second+slack() {
			t.Errorf("in use %v after the replica took over", resumed)
		}
		must(t, redistest.RateOKUntil(d.to(masters[1].Addr()).Times(), killed, time.Now()))
		followsForeignWrites(t, r, c, append(keysAt(1, 3, "died:"), keysAt(0, 2, "died:")...))
		tr.verify(t, r, c, o.Timeout)
		waitState(t, quiet, holdfast.Up)
		followsForeignWrites(t, r, quiet, []string{key})
		t.Logf("promoted after %v, in use %v later", promoted.Sub(killed), resumed)

		masters[1].Restart()
		redistest.WaitFor(t, patience, "the old master to follow", func() bool {
			out, err := masters[1].Do("ROLE")
			return err == nil && contains(out, "connected")
		})
		awaitConnections(t, r, 2, replicas[0], replicas[1], masters[2])
		if h := c.Health(); h.State != holdfast.Up {
			t.Errorf("health %+v", h)
		}
	})
}

func shardAddrs(c *holdfast.Cache) (addrs []string) {
	for _, s := range c.Health().Shards {
		addrs = append(addrs, s.Addr)
	}
	return addrs
}

func addrsOf(nodes []*redistest.Server) (addrs []string) {
	for _, n := range nodes {
		addrs = append(addrs, n.Addr())
	}
	slices.Sort(addrs)
	return addrs
}

// awaitConnections waits until the masters have one connection of each of n
// Caches, and all other nodes none.
func awaitConnections(t *testing.T, r *redistest.Cluster, n int, masters ...*redistest.Server) {
	t.Helper()
	for _, node := range r.Nodes() {
		if !node.Running() {
			continue
		}
		want := 0
		if slices.Contains(masters, node) {
			want = n
		}
		redistest.WaitFor(t, patience, "the right connections to "+node.Addr(), func() bool { return connections(node) == want })
	}
}
