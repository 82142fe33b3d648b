package holdfast

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// cluster is the map of a Redis Cluster. Each master has a link of its own, with
// its supervisor, breaker, bulkhead and connection, so that a dead one costs its
// own keys only. Each slot has a domain of its own, so that one which moves puts
// its own copies in doubt only.
//
// The map is learnt from the nodes: whole, by CLUSTER SLOTS, when a link is lost,
// when a node redirects, and every ShardsRefreshInterval while the cluster is in use; and
// slot by slot from MOVED.
type cluster struct {
	routes  *routes
	allow   allowed
	open    func(addr string) *link // makes a link and starts it
	refresh time.Duration
	backoff time.Duration
	signal  chan struct{} // one slot: learn the map anew

	slots [slotCount]slot

	mu struct {
		sync.Mutex
		nodes map[string]*link
		opens uint64 // openings of the circuits of links that are gone
	}
}

// slot is who has it, and what vouches for its copies.
type slot struct {
	link   atomic.Pointer[link]
	domain domain
}

const (
	// refreshPause is the least time between two readings of the map.
	refreshPause = 100 * time.Millisecond
	// strangers bounds the links to nodes that were named by a redirection and
	// by no map: targets of a move, or what a hostile server makes up.
	strangers = 16
	// mostNodes bounds the links in all. Redis is not made for larger clusters.
	mostNodes = 1024
)

var (
	errJoined   = errors.New("holdfast: the server is a node of a cluster, which was joined")
	errAllKnown = errors.New("holdfast: every address of the options is a node that is being tried already")
)

// masters are the links that have slots, in the order of their addresses.
func (c *cluster) masters() []*link {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []*link
	for _, l := range c.mu.nodes {
		if l.slots.Load() > 0 {
			all = append(all, l)
		}
	}
	slices.SortFunc(all, func(a, b *link) int { return cmp.Compare(a.addr, b.addr) })
	return all
}

// opens counts how often the circuit of a node has opened.
func (c *cluster) opens() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.mu.opens
	for _, l := range c.mu.nodes {
		n += l.breaker.opens.Load()
	}
	return n
}

func (c *cluster) knows(addr string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mu.nodes[addr] != nil
}

// serving says whether any node does.
func (c *cluster) serving() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.mu.nodes {
		if l.gate.Load() != nil {
			return true
		}
	}
	return false
}

// learn makes the ranges the map. Slots that they do not name keep their owner.
func (c *cluster) learn(ranges []slotRange) {
	// A shard that was waited for may have gone, or have come up already.
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

// letGo ends the links that have no slot and that nobody uses any more, and says
// whether there are others without one. Until then calls may be under way there,
// and whoever names such a node again, a map that is behind or a redirection, would
// have it begin its back-off anew.
func (c *cluster) letGo() (more bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for addr, l := range c.mu.nodes {
		switch {
		case l.slots.Load() > 0:
		case l.parked.Load():
			delete(c.mu.nodes, addr)
			c.mu.opens += l.breaker.opens.Load()
			l.retire()
		default:
			more = true
		}
	}
	return more
}

// nodeLocked returns the link to the node, nil where there are too many already.
func (c *cluster) nodeLocked(addr string) *link {
	l := c.mu.nodes[addr]
	if l == nil && len(c.mu.nodes) < mostNodes {
		l = c.open(addr)
		c.mu.nodes[addr] = l
	}
	return l
}

// giveLocked makes the link the slot's owner. What the old owner told of the
// slot's keys, the new one does not know.
func (c *cluster) giveLocked(i int, l *link) {
	s := &c.slots[i]
	old := s.link.Load()
	if old == l {
		return
	}
	s.link.Store(l)
	s.domain.otherServer()
	s.domain.until.Store(l.heardUntil.Load())
	l.slots.Add(1)
	if old != nil {
		old.slots.Add(-1)
		l.listeners.told(nil)
		// The journal may have what the old one could not deliver.
		l.replayer.wake()
		l.look()
	}
}

// redirected learns from a redirection and returns the link to which it leads,
// nil where that may not be had.
func (c *cluster) redirected(to redirection) *link {
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
		if unmapped >= strangers {
			return nil
		}
		// It gets the slot when the map says so, too, or when it is named again.
		return c.nodeLocked(to.addr)
	}
	if !to.ask {
		c.giveLocked(to.slot, l)
	}
	return l
}

// domains are those of the link's slots.
func (c *cluster) domains(l *link, each func(*domain)) {
	for i := range c.slots {
		if s := &c.slots[i]; s.link.Load() == l {
			each(&s.domain)
		}
	}
}

// probeKey is a key of the link's: last, if it still is one, or the prefix with a
// tag that leads to one of its slots. "" where it has none.
func (c *cluster) probeKey(l *link, prefix, last string) string {
	if l.slots.Load() == 0 {
		return ""
	}
	owns := func(key string) bool { return c.slots[slotOf(key)].link.Load() == l }
	if last != "" && owns(last) {
		return last
	}
	// A tag leads to a given slot with one chance in 16,384. From anywhere, so that
	// a slot on its way, which takes no new key, is not hit upon again.
	from := rand.IntN(slotCount)
	for i := range 16 * slotCount {
		if key := prefix + "{" + strconv.Itoa(from+i) + "}"; owns(key) {
			return key
		}
	}
	return ""
}

// wake has the map learnt anew. It does not block.
func (c *cluster) wake() {
	select {
	case c.signal <- struct{}{}:
	default:
	}
}

// run keeps the map, until ctx ends. It dials nobody: it asks a node that serves,
// or wakes the link that looks for one.
func (c *cluster) run(ctx context.Context) {
	timer := time.NewTimer(c.refresh)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.signal:
		case <-timer.C:
		}
		c.ask(ctx)
		next := c.refresh
		if c.letGo() {
			next = min(next, c.backoff)
		}
		for _, l := range c.masters() {
			if l.state() != Up && !l.parked.Load() {
				next = min(next, c.backoff/2) // a replica may have taken over
			}
		}
		timer.Reset(next)
		if !sleep(ctx, refreshPause) {
			return
		}
	}
}

// ask learns the map from the first node that tells it.
func (c *cluster) ask(ctx context.Context) {
	used := false
	for _, l := range c.masters() {
		used = used || !l.parked.Load()
		s := l.gate.Load()
		if s == nil {
			continue
		}
		bounded, cancel := context.WithTimeout(ctx, l.opts.Redis.Dialer.Timeout)
		ranges, err := s.readMap(bounded)
		cancel()
		if err == nil {
			c.learn(ranges)
			return
		}
	}
	if used {
		c.routes.home.use()
	}
}

// readMap asks the node for the cluster's map.
func (s *session) readMap(ctx context.Context) ([]slotRange, error) {
	return readSlots(s.aside(ctx, s.client.B().ClusterSlots().Build()), hostOf(s.addr))
}

// join makes what home found the cluster.
func (r *routes) join(c *cluster, ranges []slotRange) {
	if r.cluster.Load() != nil {
		r.cluster.Load().learn(ranges)
		return
	}
	c.learn(ranges)
	r.cluster.Store(c)
	r.noteUp() // the links may have been quicker than we are
	r.one.domain.doubt()
	for _, l := range c.masters() {
		l.use()
	}
}

// errWrongMode is for a server that is not what the options say it is.
func errWrongMode(want Mode, mode string) error {
	return fmt.Errorf("holdfast: Options.Mode is %v, and the server's mode is %s", want, printable(mode))
}
