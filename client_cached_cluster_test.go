package holdfast_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/rueidis"
)

// Replies of the nodes of a cluster are kept apart: a node that is away costs its own replies their
// freshness, and no others.
func TestRepliesOfAClusterAreKeptByShard(t *testing.T) {
	ctx := begin(t)
	r := redistest.StartClusterForSmoke(t, 3, 0)
	c := open(t, inCluster(r.Addrs()...))
	ready(t, c)
	cl := c.Client()
	var lines []string
	var batch []rueidis.CacheableTTL
	for i, node := range r.Nodes() {
		key := keysAt(i, 1, "h")[0]
		node.MustDo("HSET", key, "f", "1")
		lines = append(lines, "HGET "+key+" f")
		hitOf(t, cl, lines[i])
		node.MustDo("HSET", key, "f", "2")
		redistest.WaitFor(t, patience, "the change of "+key, func() bool { return anyOf(hitOf(t, cl, lines[i])) == "2 <nil>" })
	}
	read := func() (replies []rueidis.RedisResult) {
		batch = batch[:0]
		for _, line := range append(slices.Clone(lines), lines[0]) {
			batch = append(batch, rueidis.CT(cacheable(cl, line), time.Hour))
		}
		replies = cl.DoMultiCache(ctx, batch...)
		for i, res := range replies {
			if got := anyOf(res); got != "2 <nil>" {
				t.Errorf("reply %d of a batch is %s", i, got)
			}
		}
		return replies
	}
	for i, res := range read() {
		if !res.IsCacheHit() {
			t.Errorf("reply %d of a batch of hits is none", i)
		}
	}
	away := r.Nodes()[1]
	away.Kill()
	waitShard(t, c, away.Addr(), holdfast.Down)
	before := c.Stats()
	read()
	if d := c.Stats().Minus(before); d.DoubtHits != 1 || d.LocalHits != 3 {
		t.Errorf("with one node of three away %d reads were hits and %d in doubt, want 3 and 1", d.LocalHits, d.DoubtHits)
	}
}

// A reply that came by ASK is of a server that reports no changes of the key.
func TestAReplyOfASlotThatIsOnItsWay(t *testing.T) {
	ctx := begin(t)
	r := redistest.StartCluster(t, 3, 0)
	c := open(t, inCluster(r.Addrs()...))
	ready(t, c)
	cl := c.Client()
	from := r.NodeFor("{way}")
	to := r.Nodes()[(slices.Index(r.Nodes(), from)+1)%3]
	const line = "HGETALL {way}h"
	read := func() string { return anyOf(cl.DoCache(ctx, cacheable(cl, line), time.Hour)) }
	from.MustDo("HSET", "{way}h", "f", "1")
	hitOf(t, cl, line)
	m := r.BeginMove(redistest.Slot("{way}"), to)
	m.Keys("{way}h")
	redistest.WaitFor(t, patience, "the move to be noticed", func() bool {
		return !cl.DoCache(ctx, cacheable(cl, line), time.Hour).IsCacheHit()
	})
	for i := range 20 {
		if got, want := read(), fmt.Sprintf("map[f:%d] <nil>", i+1); got != want {
			t.Fatalf("on its way %s is %s, want %s", line, got, want)
		}
		if _, err := to.Asking("HSET", "{way}h", "f", fmt.Sprint(i+2)); err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			if res := cl.Do(ctx, built(cl.B(), strings.Fields("HSET {way}h f "+fmt.Sprint(i+2)))); res.Error() != nil {
				t.Fatal(res.Error())
			}
		}
	}
	m.AllKeys()
	m.End()
	hitOf(t, cl, line)
	to.MustDo("HSET", "{way}h", "f", "new")
	redistest.WaitFor(t, patience, "the change at the new node", func() bool { return read() == "map[f:new] <nil>" })
}

func TestRepliesAreReadAgainFromTheNextMaster(t *testing.T) {
	ctx := begin(t)
	r := redistest.StartSentinelWith(t, redistest.SentinelOptions{Replicas: 1, ForSmoke: true})
	c := open(t, watched(r.Addrs()...))
	ready(t, c)
	cl := c.Client()
	first := r.Master()
	first.MustDo("HSET", "h", "f", "1")
	hitOf(t, cl, "HGETALL h")
	redistest.WaitFor(t, patience, "the replica to have the hash", func() bool {
		for _, s := range r.Servers() {
			if s.MustDo("HGET", "h", "f") != "1" {
				return false
			}
		}
		return true
	})
	first.Kill()
	redistest.WaitFor(t, patience, "another master", func() bool {
		if got := anyOf(cl.DoCache(ctx, cacheable(cl, "HGETALL h"), time.Hour)); got != "map[f:1] <nil>" {
			t.Fatalf("in the failover the reply is %s", got)
		}
		return r.Master() != first
	})
	r.Master().MustDo("HSET", "h", "f", "2")
	redistest.WaitFor(t, patience, "the value of the new master", func() bool {
		return anyOf(cl.DoCache(ctx, cacheable(cl, "HGETALL h"), time.Hour)) == "map[f:2] <nil>"
	})
}
