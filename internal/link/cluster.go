package link

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/dial"
	"github.com/holdfast-cache/holdfast/internal/local"
)

// cluster is the map of a Redis Cluster. Each master has its own link, with supervisor, breaker,
// bulkhead and connection, so a dead master costs only its own keys. Each slot has its own epoch
// scope, so a slot that moves makes only its own copies suspect.
//
// The map is learnt from the nodes: as a whole, by CLUSTER SLOTS, when a link changes its state,
// when a node redirects, and every ShardsRefreshInterval while the cluster is in use; and slot by
// slot from MOVED.
type cluster struct {
	routes *Routes
	allow  allowed
	open   func(addr string) *Link // makes a link and starts it
	signal chan struct{}           // requests a new map; capacity 1

	slots [slotCount]Slot

	mu struct {
		sync.Mutex
		nodes map[string]*Link
	}
}

// Slot holds the link that serves a slot and the epoch scope of its copies.
type Slot struct {
	link  atomic.Pointer[Link]
	Scope local.EpochScope
}

const (
	// refreshPause is the shortest time between two readings of the map.
	refreshPause = 100 * time.Millisecond
	// unmappedMost bounds the links to nodes named by a redirection but by no map: the targets of
	// a migration, or addresses that a hostile server made up.
	unmappedMost = 16
)

var (
	errJoined   = errors.New("holdfast: the server is a node of a cluster, which was joined")
	errAllKnown = errors.New("holdfast: every address of the options is a node that is being tried already")
)

// Masters returns the links that have slots, ordered by address.
func (c *cluster) Masters() []*Link {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []*Link
	for _, l := range c.mu.nodes {
		if l.slots.Load() > 0 {
			all = append(all, l)
		}
	}
	slices.SortFunc(all, func(a, b *Link) int { return cmp.Compare(a.Addr, b.Addr) })
	return all
}

func (c *cluster) knows(addr string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mu.nodes[addr] != nil
}

// serving reports whether any node serves.
func (c *cluster) serving() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.mu.nodes {
		if l.Gate.Load() != nil {
			return true
		}
	}
	return false
}

// learn applies the ranges to the map. A slot in none of them keeps its link.
func (c *cluster) learn(ranges []slotRange) {
	// A shard that WaitReady waited for may be gone, or may be up already.
	defer c.routes.noteUp()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range ranges {
		l := c.nodeLocked(r.addr)
		if l == nil {
			continue
		}
		l.mapped = true
		for i := r.from; i <= r.to; i++ {
			c.giveLocked(i, l)
		}
	}
}

// letGo removes the links that have no slot and are parked. It reports whether other links without
// a slot remain. They stay because calls may be running there, and because an outdated map or a
// redirection that names the node again would otherwise restart its back-off.
func (c *cluster) letGo() (more bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for addr, l := range c.mu.nodes {
		switch {
		case l.slots.Load() > 0:
		case l.parked.Load():
			delete(c.mu.nodes, addr)
			l.retire()
		default:
			more = true
		}
	}
	return more
}

// nodeLocked returns the link to the node, nil if there are mostNodes already.
func (c *cluster) nodeLocked(addr string) *Link {
	l := c.mu.nodes[addr]
	if l == nil && len(c.mu.nodes) < mostNodes {
		l = c.open(addr)
		c.mu.nodes[addr] = l
	}
	return l
}

// giveLocked makes l the slot's link. The slot's copies become suspect: the new node does not send
// invalidations for keys that were read from the old one.
func (c *cluster) giveLocked(i int, l *Link) {
	s := &c.slots[i]
	old := s.link.Load()
	if old == l {
		return
	}
	s.link.Store(l)
	s.Scope.OtherServer()
	s.Scope.Until.Store(l.heardUntil.Load())
	l.slots.Add(1)
	if old != nil {
		old.slots.Add(-1)
		l.Watcher.Changed(nil)
		// The journal may have intents that the old node did not get.
		l.Replayer.Wake()
		l.look()
	}
}

// redirected learns from a redirection and returns the link to which it leads, nil if such a link
// may not be opened.
func (c *cluster) redirected(to redirection) *Link {
	c.wake()
	c.mu.Lock()
	defer c.mu.Unlock()
	l := c.mu.nodes[to.addr]
	if l == nil {
		unmapped := 0
		for _, l := range c.mu.nodes {
			if !l.mapped {
				unmapped++
			}
		}
		if unmapped >= unmappedMost {
			return nil
		}
		// It gets the slot once the map or another redirection names it, too.
		return c.nodeLocked(to.addr)
	}
	if !to.ask {
		c.giveLocked(to.slot, l)
	}
	return l
}

// scopes calls each for the epoch scopes of the link's slots.
func (c *cluster) scopes(l *Link, each func(*local.EpochScope)) {
	for i := range c.slots {
		if s := &c.slots[i]; s.link.Load() == l {
			each(&s.Scope)
		}
	}
}

// probeKey returns a key in a slot of the link: last if it still is one, else prefix with a hash
// tag. It returns "" if the link has no slot.
func (c *cluster) probeKey(l *Link, prefix, last string) string {
	if l.slots.Load() == 0 {
		return ""
	}
	owns := func(key string) bool { return c.slots[SlotOf(key)].link.Load() == l }
	if last != "" && owns(last) {
		return last
	}
	// A tag leads to a given slot with a chance of 1 in 16,384. The start is random so that a
	// migrating slot, which accepts no new key, is not chosen again.
	from := rand.IntN(slotCount)
	for i := range 16 * slotCount {
		if key := prefix + "{" + strconv.Itoa(from+i) + "}"; owns(key) {
			return key
		}
	}
	return ""
}

// wake requests a new map. It does not block.
func (c *cluster) wake() {
	select {
	case c.signal <- struct{}{}:
	default:
	}
}

// run keeps the map current until ctx ends. It does not dial: it asks a node that serves, or wakes
// the link that looks for one.
func (c *cluster) run(ctx context.Context) {
	timer := time.NewTimer(c.routes.cfg.Redis.ClusterOption.ShardsRefreshInterval)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.signal:
		case <-timer.C:
		}
		c.refresh(ctx)
		next := c.routes.cfg.Redis.ClusterOption.ShardsRefreshInterval
		if c.letGo() {
			next = min(next, c.routes.cfg.MaxBackoff)
		}
		for _, l := range c.Masters() {
			if l.state() != Up && !l.parked.Load() {
				next = min(next, c.routes.cfg.MaxBackoff/2) // a replica may have been promoted
			}
		}
		timer.Reset(next)
		if !clock.Sleep(ctx, refreshPause) {
			return
		}
	}
}

// refresh learns the map from the first node that returns it. Each node has Dialer.Timeout to answer.
func (c *cluster) refresh(ctx context.Context) {
	used := false
	for _, l := range c.Masters() {
		used = used || !l.parked.Load()
		s := l.Gate.Load()
		if s == nil {
			continue
		}
		bounded, cancel := context.WithTimeout(ctx, l.cfg.Redis.Dialer.Timeout)
		ranges, err := s.readMap(bounded)
		cancel()
		if err == nil {
			c.learn(ranges)
			return
		}
	}
	if used {
		c.routes.SeedLink.Use()
	}
}

// readMap asks the node for the cluster's map.
func (s *Session) readMap(ctx context.Context) ([]slotRange, error) {
	return readSlots(s.aside(ctx, s.Client.B().ClusterSlots().Build()), dial.HostOf(s.Addr))
}

// join makes c, which the seed link found, the cluster of the routes. If there is one already, only the map
// is learnt.
func (r *Routes) join(c *cluster, ranges []slotRange) {
	if r.Cluster.Load() != nil {
		r.Cluster.Load().learn(ranges)
		return
	}
	c.learn(ranges)
	r.Cluster.Store(c)
	r.noteUp() // the links may be up already
	r.one.Scope.Suspect()
	for _, l := range c.Masters() {
		l.Use()
	}
}
