package link

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Routes maps a key to its link. With one server, or a master behind sentinels, that is the seed
// link. In a cluster there is one link for each master, and the seed link searches for the cluster
// while no node of it serves.
type Routes struct {
	cfg      *Config
	watcher  Watcher
	demand   Demand
	sessions atomic.Uint64 // numbers the sessions of all links

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
	to, err := readRedirection(err.Error(), hostOf(s.Addr))
	if err != nil {
		c.wake()
		return nil, false
	}
	if err := c.allow.check(to.addr); err != nil {
		c.wake()
		s.Link.SetError(err)
		return nil, false
	}
	l := c.redirected(to)
	if l == nil || l == s.Link && !to.ask {
		return nil, false
	}
	return l.Reader(), to.ask
}

// noteUp closes ready when all of Redis is up for the first time.
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

// knownByNumber reports whether addr has a name of a node that the cluster calls by its IP address.
// Otherwise such a node would be dialled twice as often. It blocks for at most Dialer.Timeout.
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
