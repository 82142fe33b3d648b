package link

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-cache/holdfast/internal/dial"
	"github.com/holdfast-cache/holdfast/internal/local"
	"github.com/holdfast-cache/holdfast/internal/rediserr"
)

// Routes maps a key to its link. With one server, or a master behind sentinels, that is the seed
// link. In a cluster there is one link for each master, and the seed link searches for the cluster
// while no node of it serves.
type Routes struct {
	cfg         *Config
	watcher     Watcher
	demand      Demand
	newReplayer NewReplayer
	sessions    atomic.Uint64 // numbers the sessions of all links

	SeedLink *Link
	one      Slot // for all keys, outside a cluster
	Cluster  atomic.Pointer[cluster]

	Urgent  atomic.Int64 // until then replays start without their random wait
	Waiting atomic.Int32 // callers in WaitReady
	Ready   chan struct{}
	once    sync.Once
}

// Of returns the key's slot. Read the slot's epoch before its link: when a slot moves, the link is
// changed first.
func (r *Routes) Of(key string) *Slot {
	c := r.Cluster.Load()
	if c == nil {
		return &r.one
	}
	return &c.slots[SlotOf(key)]
}

// Link returns the link for the slot's keys.
func (r *Routes) Link(s *Slot) *Link {
	if l := s.link.Load(); l != nil {
		return l
	}
	return r.SeedLink
}

// Deliver starts the replay of the journal's intent for key on the key's current link, which may
// differ from its link when the write began.
func (r *Routes) Deliver(key string) {
	l := r.Link(r.Of(key))
	if l.Gate.Load() != nil {
		l.Replayer.Wake()
	}
	l.Use()
}

// Isolated reports whether a write of the key may not be sent in company.
func (r *Routes) Isolated(key string, del bool) bool {
	return r.Link(r.Of(key)).Treat(key, del) != SendInCompany
}

// Hurry lets replays start without their random wait until deadline: writes accepted during the
// first attempt must be sent while they count as ordinary commands.
func (r *Routes) Hurry(deadline int64) {
	for old := r.Urgent.Load(); old < deadline && !r.Urgent.CompareAndSwap(old, deadline); old = r.Urgent.Load() {
	}
}

// Links returns the links that serve keys.
func (r *Routes) Links() []*Link {
	if c := r.Cluster.Load(); c != nil {
		return c.Masters()
	}
	return []*Link{r.SeedLink}
}

// Any returns the link for a command without keys: one that serves, else one with an attempt to
// wait for, else the seed link.
func (r *Routes) Any() *Link {
	for _, l := range r.Links() {
		if l.Gate.Load() != nil {
			return l
		}
	}
	for _, l := range r.Links() {
		if l.window(true) != nil {
			return l
		}
	}
	return r.SeedLink
}

// Use notes that a caller needs all of Redis.
func (r *Routes) Use() {
	for _, l := range r.Links() {
		l.Use()
	}
	if r.Cluster.Load() == nil {
		return
	}
	r.SeedLink.Use()
}

// Wake makes every replayer check the journal.
func (r *Routes) Wake() {
	for _, l := range r.Links() {
		l.Replayer.Wake()
	}
}

// Look wakes every supervisor.
func (r *Routes) Look() {
	r.SeedLink.look()
	for _, l := range r.Links() {
		l.look()
	}
}

// Follow learns from a redirection and returns the session to which it leads, nil if no session
// serves there. asking: the command must be preceded by ASKING.
func (r *Routes) Follow(s *Session, err error) (next *Session, asking bool) {
	c := r.Cluster.Load()
	if c == nil {
		return nil, false
	}
	to, err := readRedirection(err.Error(), dial.HostOf(s.Addr))
	if err != nil {
		c.wake()
		return nil, false
	}
	if err := c.allow.check(to.addr); err != nil {
		c.wake()
		s.Link.setError(err)
		return nil, false
	}
	l := c.redirected(to)
	if l == nil || l == s.Link && !to.ask {
		return nil, false
	}
	return l.Reader(), to.ask
}

// noteUp closes Ready when all of Redis is up for the first time.
func (r *Routes) noteUp() {
	if r.Health().State == Up {
		r.once.Do(func() { close(r.Ready) })
	}
}

// severity orders states: the state of a cluster is the worst of its shards' states.
var severity = [...]int{Up: 0, ReadOnly: 1, Connecting: 2, Down: 3, Closed: 4}

func (r *Routes) Health() Health {
	c := r.Cluster.Load()
	if c == nil {
		return r.SeedLink.health()
	}
	whole := Health{Writable: true, Tracking: true}
	covered := 0
	for i, l := range c.Masters() {
		h := l.health()
		covered += int(l.slots.Load())
		whole.Shards = append(whole.Shards, Health{
			Addr: l.Addr, Slots: int(l.slots.Load()), State: h.State, Writable: h.Writable,
			Tracking: h.Tracking, Since: h.Since, LastError: h.LastError,
		})
		if i == 0 || severity[h.State] > severity[whole.State] {
			whole.State, whole.LastError, whole.Since = h.State, h.LastError, h.Since
		} else if h.State == whole.State {
			whole.Since = later(whole.Since, h.Since)
			if whole.LastError == nil {
				whole.LastError = h.LastError
			}
		}
		for _, name := range h.Lacks {
			if !slices.Contains(whole.Lacks, name) {
				whole.Lacks = append(whole.Lacks, name)
			}
		}
		whole.Writable = whole.Writable && h.Writable
		whole.Tracking = whole.Tracking && h.Tracking
		if i == 0 || h.ProbedAt.Before(whole.ProbedAt) {
			whole.ProbedAt = h.ProbedAt
		}
	}
	if covered < slotCount {
		whole.State, whole.Writable, whole.Tracking = Down, false, false
		whole.LastError = fmt.Errorf("holdfast: %d hash slots of the cluster have no master", slotCount-covered)
	}
	return whole
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// seeds returns the addresses of the options in turn, without those of nodes that have a link.
type seeds struct {
	routes *Routes
	next   int
}

func (s *seeds) disbelieve() {}
func (s *seeds) close()      {}

func (s *seeds) fits(ctx context.Context, to *Session, mode string) error {
	return s.routes.settleMode(ctx, to, mode)
}

func (s *seeds) where(ctx context.Context, _ bool) (string, error) {
	c, addrs := s.routes.Cluster.Load(), s.routes.cfg.Redis.InitAddress
	for range addrs {
		addr := addrs[s.next%len(addrs)]
		s.next++
		if c == nil || !c.knows(addr) && !s.knownByNumber(ctx, c, addr) {
			return addr, nil
		}
	}
	return "", errAllKnown
}

// knownByNumber reports whether addr resolves to the address of a node that has a link already.
// Without this check the seed link would dial that node too. It blocks for at most Dialer.Timeout.
func (s *seeds) knownByNumber(ctx context.Context, c *cluster, addr string) bool {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || s.routes.cfg.Redis.DialCtxFn != nil { // the dial function resolves names
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, s.routes.cfg.Redis.Dialer.Timeout)
	defer cancel()
	numbers, _ := net.DefaultResolver.LookupHost(ctx, host)
	for _, n := range numbers {
		if c.knows(net.JoinHostPort(n, port)) {
			return true
		}
	}
	return false
}

// NewReplayer makes the replayer of a link, which replays the journaled writes of the keys for which
// owns returns true.
type NewReplayer func(l *Link, owns func(key string) bool) Replayer

// New returns the routes with the link to the server that the options name. Start them.
func New(cfg *Config, w Watcher, d Demand, newReplayer NewReplayer) *Routes {
	r := &Routes{cfg: cfg, watcher: w, demand: d, newReplayer: newReplayer, Ready: make(chan struct{})}
	r.sessions.Store(cfg.FirstSession)
	var find locator
	if cfg.Topology == Sentinel {
		find = newSentinels(r)
	} else {
		find = &seeds{routes: r}
	}
	r.SeedLink = r.newLink(find, &seedKeys{r})
	r.one.link.Store(r.SeedLink)
	return r
}

// Start starts the goroutines. They end with the configuration's Life.
func (r *Routes) Start() { r.startLink(r.cfg.Life, r.SeedLink) }

// wanted reports that Redis is needed without a call.
func (r *Routes) wanted() bool { return r.Waiting.Load() > 0 || r.demand.Wanted() }

// newLink returns a link with its replayer.
func (r *Routes) newLink(find locator, keys keyspace) *Link {
	l := newLink(r, find, keys)
	l.Replayer = r.newReplayer(l, keys.Owns)
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
	n.link = c.routes.newLink(n, n)
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
func (k *seedKeys) Scopes(each func(*local.EpochScope)) { each(&k.routes.one.Scope) }
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
func (n *node) Scopes(each func(*local.EpochScope)) { n.cluster.scopes(n.link, each) }
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
