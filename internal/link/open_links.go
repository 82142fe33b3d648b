package link

import (
	"context"
	"fmt"

	"github.com/holdfast-cache/holdfast/internal/local"
	"github.com/holdfast-cache/holdfast/internal/rediserr"
)

// New returns the routes with the link to the server that the options name. Start them.
func New(cfg *Config, w Watcher, d Demand) *Routes {
	r := &Routes{cfg: cfg, watcher: w, demand: d, Ready: make(chan struct{})}
	r.sessions.Store(cfg.FirstSession)
	var find locator
	if cfg.Topology == Sentinel {
		find = newSentinels(r)
	} else {
		find = &seeds{routes: r}
	}
	r.SeedLink = r.newLink(cfg.Life, find, &seedKeys{r})
	r.one.link.Store(r.SeedLink)
	return r
}

// Start starts the goroutines. They end with the configuration's Life.
func (r *Routes) Start() { r.startLink(r.cfg.Life, r.SeedLink) }

// wanted reports that Redis is needed without a call.
func (r *Routes) wanted() bool { return r.Waiting.Load() > 0 || r.demand.Wanted() }

// newLink returns a link with its replayer.
func (r *Routes) newLink(ctx context.Context, find locator, keys keyspace) *Link {
	l := newLink(r, find, keys)
	l.Replayer = r.cfg.NewReplayer(l, keys.Owns)
	return l
}

// startLink starts the link's goroutines, which run until ctx ends.
func (r *Routes) startLink(ctx context.Context, l *Link) {
	r.cfg.Workers.Spawn("supervisor", func() { l.supervise(ctx) })
	r.cfg.Workers.Spawn("replayer", func() { l.Replayer.Run(ctx) })
}

// report passes on a change of a link's state.
func (r *Routes) report(c Change) {
	r.watcher.StateChanged(c)
	if c.From == c.To {
		return
	}
	r.watcher.Changed(nil)
	if c.To == Up {
		r.noteUp()
	}
}

// settleMode compares the server's mode with the options. If the server is the node of a
// cluster, it joins that cluster and returns errJoined.
func (r *Routes) settleMode(ctx context.Context, s *Session, mode string) error {
	want := r.cfg.Topology
	switch {
	case want == ClusterOnly && (mode == "cluster" || mode == ""), want == Auto && mode == "cluster":
		ranges, err := s.readMap(ctx)
		if err != nil {
			return err
		}
		cl := r.Cluster.Load()
		if cl == nil {
			cl = r.newCluster()
		}
		r.join(cl, ranges)
		return errJoined
	case want == ClusterOnly, mode == "cluster", mode == "sentinel":
		return errWrongMode(want, mode)
	}
	return nil
}

// errWrongMode is the error for a server whose mode contradicts the options.
func errWrongMode(want Topology, mode string) error {
	return fmt.Errorf("holdfast: Options.Mode is %v, and the server's mode is %s", want, rediserr.Printable(mode))
}

// newCluster returns the map of a cluster and starts the goroutine that keeps it current.
func (r *Routes) newCluster() *cluster {
	cl := &cluster{routes: r, signal: make(chan struct{}, 1)}
	cl.allow = allowed{ask: r.cfg.AllowAddress, anyway: r.cfg.Redis.InitAddress, workers: r.cfg.Workers}
	cl.mu.nodes = make(map[string]*Link)
	cl.open = cl.openNode
	r.cfg.Workers.Spawn("cluster", func() { cl.run(r.cfg.Life) })
	return cl
}

// openNode makes the link to a node of the cluster, and starts it.
func (c *cluster) openNode(addr string) *Link {
	ctx, cancel := context.WithCancel(c.routes.cfg.Life)
	n := &node{cluster: c, addr: addr}
	n.link = c.routes.newLink(ctx, n, n)
	n.link.Addr, n.link.retire = addr, cancel
	c.routes.startLink(ctx, n.link)
	return n.link
}

// seedKeys are the keys of the seed link: all, until a cluster is found.
type seedKeys struct{ routes *Routes }

func (k *seedKeys) empty() bool {
	cl := k.routes.Cluster.Load()
	return cl != nil && cl.serving()
}

func (k *seedKeys) Owns(string) bool                    { return k.routes.Cluster.Load() == nil }
func (k *seedKeys) ProbeKey(string) string              { return k.routes.cfg.ProbeKey }
func (k *seedKeys) Scopes(each func(*local.EpochScope)) { each(&k.routes.one.Domain) }
func (k *seedKeys) wanted() bool                        { return k.routes.wanted() }
func (k *seedKeys) hits() uint64                        { return k.routes.demand.Hits() }
func (k *seedKeys) copies() int64                       { return k.routes.demand.Copies() }

func (k *seedKeys) changed(c Change) {
	if c.From != c.To || k.routes.Cluster.Load() == nil { // the shards report for themselves
		k.routes.report(c)
	}
}

// node is a master of a cluster: the locator of its link, and the keys of its slots.
type node struct {
	cluster *cluster
	addr    string
	link    *Link
}

func (n *node) where(context.Context, bool) (string, error) {
	return n.addr, n.cluster.allow.check(n.addr)
}
func (n *node) disbelieve() {}
func (n *node) close()      {}

func (n *node) fits(_ context.Context, _ *Session, mode string) error {
	if mode != "cluster" && mode != "" {
		return errWrongMode(ClusterOnly, mode)
	}
	return nil
}

func (n *node) empty() bool                         { return false }
func (n *node) Owns(key string) bool                { return n.cluster.slots[SlotOf(key)].link.Load() == n.link }
func (n *node) Scopes(each func(*local.EpochScope)) { n.cluster.domains(n.link, each) }
func (n *node) wanted() bool                        { return n.link.slots.Load() > 0 && n.cluster.routes.wanted() }
func (n *node) copies() int64                       { return 0 } // the copies of one node are not counted

func (n *node) ProbeKey(last string) string {
	return n.cluster.probeKey(n.link, n.cluster.routes.cfg.ProbeKey, last)
}

func (n *node) hits() uint64 {
	if n.link.slots.Load() == 0 {
		return 0 // without slots none of the hits are the link's
	}
	return n.cluster.routes.demand.Hits()
}

func (n *node) changed(c Change) {
	c.Shard = n.addr
	if c.To == Closed {
		return // the shard has moved, or the Cache is closed
	}
	n.cluster.wake()
	n.cluster.routes.report(c)
}
