package holdfast_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast/internal/redistest"
)

// One story of each topology that is told in a short run, too: what is written arrives
// where it belongs, what another writes is seen, and what is written while a server is
// away arrives at the one that takes over.

func TestSmokeOfACluster(t *testing.T) {
	ctx := begin(t)
	r := redistest.StartClusterForSmoke(t, 3, 0)
	c := open(t, inCluster(r.Addrs()...))
	ready(t, c)
	keys := make([]string, 3)
	for i, node := range r.Nodes() {
		keys[i] = keysAt(i, 1, "k")[0]
		must(t, c.Set(ctx, keys[i], []byte("one"), time.Hour))
		if got := node.MustDo("GET", keys[i]); got != "one" {
			t.Errorf("node %d holds %q", i, got)
		}
		held(t, c, keys[i], "one")
		node.MustDo("SET", keys[i], "two")
		held(t, c, keys[i], "two")
	}
	away := r.Nodes()[1]
	away.Kill()
	for i, key := range keys {
		must(t, c.Set(ctx, key, []byte("three"), time.Hour))
		wantGet(t, c, key, "three")
		if node := r.Nodes()[i]; node != away {
			redistest.WaitFor(t, patience, "the write at a node that is there", func() bool { return node.MustDo("GET", key) == "three" })
		}
	}
	away.Restart()
	drain(t, c)
	if got := away.MustDo("GET", keys[1]); got != "three" {
		t.Errorf("the node that was away holds %q", got)
	}
}

func TestSmokeOfSentinel(t *testing.T) {
	ctx := begin(t)
	r := redistest.StartSentinelWith(t, redistest.SentinelOptions{Replicas: 1, ForSmoke: true})
	c := open(t, watched(r.Addrs()...))
	ready(t, c)
	first := r.Master()
	must(t, c.Set(ctx, "k", []byte("one"), time.Hour))
	if got := first.MustDo("GET", "k"); got != "one" {
		t.Errorf("the master holds %q", got)
	}
	held(t, c, "k", "one")
	first.MustDo("SET", "k", "two")
	held(t, c, "k", "two")
	first.Kill()
	for i := range 3 {
		must(t, c.Set(ctx, fmt.Sprint("away", i), []byte("v"), time.Hour))
	}
	redistest.WaitFor(t, patience, "another master", func() bool { return r.Master() != first })
	drain(t, c)
	for i := range 3 {
		if got := r.Master().MustDo("GET", fmt.Sprint("away", i)); got != "v" {
			t.Errorf("the new master holds %q", got)
		}
	}
}
