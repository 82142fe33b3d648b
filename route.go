package holdfast

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// routes knows which link a key goes through. Where Redis is one server, or a
// master that sentinels watch, that is home. In a cluster there is a link for
// each master, and home looks for the cluster, as long as no node of it answers.
type routes struct {
	home    *link
	one     slot // of all keys, outside a cluster
	cluster atomic.Pointer[cluster]

	urgent  atomic.Int64 // until when a replay begins without its random wait
	waiting atomic.Int32 // WaitReady
	ready   chan struct{}
	once    sync.Once
}

// of returns the key's slot. Its domain must be looked at before its link: when a
// slot moves, the link changes first.
func (r *routes) of(key string) *slot {
	c := r.cluster.Load()
	if c == nil {
		return &r.one
	}
	return &c.slots[slotOf(key)]
}

// link is the one that the slot's keys go through.
func (r *routes) link(s *slot) *link {
	if l := s.link.Load(); l != nil {
		return l
	}
	return r.home
}

// deliver has the journal's intent for the key replayed by whoever has the key by
// now, which may not be who had it when the write began.
func (r *routes) deliver(key string) {
	l := r.link(r.of(key))
	if l.gate.Load() != nil {
		l.replayer.wake()
	}
	l.use()
}

// hurry has replays begin at once until then: what was accepted during the first attempt
// is to be sent while it counts as an ordinary command.
func (r *routes) hurry(deadline int64) {
	for old := r.urgent.Load(); old < deadline && !r.urgent.CompareAndSwap(old, deadline); old = r.urgent.Load() {
	}
}

// links returns those that serve keys.
func (r *routes) links() []*link {
	if c := r.cluster.Load(); c != nil {
		return c.masters()
	}
	return []*link{r.home}
}

// any is where a command goes that names no key: to a link that serves, or to one that
// an attempt may bring.
func (r *routes) any() *link {
	for _, l := range r.links() {
		if l.gate.Load() != nil {
			return l
		}
	}
	for _, l := range r.links() {
		if l.window(true) != nil {
			return l
		}
	}
	return r.home
}

// use says that Redis is wanted, all of it.
func (r *routes) use() {
	for _, l := range r.links() {
		l.use()
	}
	if r.cluster.Load() == nil {
		return
	}
	r.home.use()
}

// wake has every replayer look at the journal.
func (r *routes) wake() {
	for _, l := range r.links() {
		l.replayer.wake()
	}
}

// look wakes every supervisor.
func (r *routes) look() {
	r.home.look()
	for _, l := range r.links() {
		l.look()
	}
}

// follow returns the session to which a redirection leads, nil where there is
// none now, and whether it wants to be asked. Whatever it says is learnt.
func (r *routes) follow(s *session, err error) (next *session, asking bool) {
	c := r.cluster.Load()
	if c == nil {
		return nil, false
	}
	to, err := readRedirection(err.Error(), hostOf(s.addr))
	if err != nil {
		c.wake()
		return nil, false
	}
	if err := c.allow.check(to.addr); err != nil {
		c.wake()
		s.link.setError(err)
		return nil, false
	}
	l := c.redirected(to)
	if l == nil || l == s.link && !to.ask {
		return nil, false
	}
	return l.reader(), to.ask
}

// noteUp closes ready when all of Redis is up for the first time.
func (r *routes) noteUp() {
	if r.health().State == Up {
		r.once.Do(func() { close(r.ready) })
	}
}

// opens counts how often a circuit has opened.
func (r *routes) opens() uint64 {
	n := r.home.breaker.opens.Load()
	if c := r.cluster.Load(); c != nil {
		n += c.opens()
	}
	return n
}

// severity orders states for the whole of a cluster, which is as well as the
// worst of its parts.
var severity = [...]int{Up: 0, ReadOnly: 1, Connecting: 2, Down: 3, Closed: 4}

func (r *routes) health() Health {
	c := r.cluster.Load()
	if c == nil {
		return r.home.health()
	}
	whole := Health{Writable: true, Tracking: true}
	covered := 0
	for i, l := range c.masters() {
		h := l.health()
		covered += int(l.slots.Load())
		whole.Shards = append(whole.Shards, ShardHealth{
			Addr: l.addr, Slots: int(l.slots.Load()), State: h.State, Writable: h.Writable,
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

// seeds names the addresses of the options in turn, but for those of nodes that
// have a link of their own.
type seeds struct {
	addrs   []string
	next    int
	routes  *routes
	limit   time.Duration // for resolving a name
	resolve bool          // names are the network's, not a dial function's
}

func (s *seeds) where(ctx context.Context, _ bool) (string, error) {
	c := s.routes.cluster.Load()
	for range s.addrs {
		addr := s.addrs[s.next%len(s.addrs)]
		s.next++
		if c == nil || !c.knows(addr) && !s.knownByNumber(ctx, c, addr) {
			return addr, nil
		}
	}
	return "", errAllKnown
}

// knownByNumber says whether a name stands for a node that the cluster calls by
// its number: dialled under both, it would be dialled twice as often.
func (s *seeds) knownByNumber(ctx context.Context, c *cluster, addr string) bool {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || !s.resolve {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, s.limit)
	defer cancel()
	numbers, _ := net.DefaultResolver.LookupHost(ctx, host)
	for _, n := range numbers {
		if c.knows(net.JoinHostPort(n, port)) {
			return true
		}
	}
	return false
}
