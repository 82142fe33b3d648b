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

// routes maps a key to its link. With one server, or a master behind sentinels, that is the seed
// link. In a cluster there is one link for each master, and the seed link searches for the cluster
// while no node of it serves.
type routes struct {
	cfg      *linkConfig
	watcher  watcher
	demand   demand
	sessions atomic.Uint64 // numbers the sessions of all links

	seedLink *link
	one      slot // for all keys, outside a cluster
	cluster  atomic.Pointer[cluster]

	urgent  atomic.Int64 // until then replays start without their random wait
	waiting atomic.Int32 // callers in WaitReady
	ready   chan struct{}
	once    sync.Once
}

// of returns the key's slot. Read the slot's epoch before its link: when a slot moves, the link is
// changed first.
func (r *routes) of(key string) *slot {
	c := r.cluster.Load()
	if c == nil {
		return &r.one
	}
	return &c.slots[slotOf(key)]
}

// link returns the link for the slot's keys.
func (r *routes) link(s *slot) *link {
	if l := s.link.Load(); l != nil {
		return l
	}
	return r.seedLink
}

// deliver starts the replay of the journal's intent for key on the key's current link, which may
// differ from its link when the write began.
func (r *routes) deliver(key string) {
	l := r.link(r.of(key))
	if l.gate.Load() != nil {
		l.replayer.Wake()
	}
	l.use()
}

// isolated reports whether a write of the key may not be sent in company.
func (r *routes) isolated(key string, del bool) bool {
	return r.link(r.of(key)).treat(key, del) != sendInCompany
}

// hurry lets replays start without their random wait until deadline: writes accepted during the
// first attempt must be sent while they count as ordinary commands.
func (r *routes) hurry(deadline int64) {
	for old := r.urgent.Load(); old < deadline && !r.urgent.CompareAndSwap(old, deadline); old = r.urgent.Load() {
	}
}

// links returns the links that serve keys.
func (r *routes) links() []*link {
	if c := r.cluster.Load(); c != nil {
		return c.masters()
	}
	return []*link{r.seedLink}
}

// any returns the link for a command without keys: one that serves, else one with an attempt to
// wait for, else the seed link.
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
	return r.seedLink
}

// use notes that a caller needs all of Redis.
func (r *routes) use() {
	for _, l := range r.links() {
		l.use()
	}
	if r.cluster.Load() == nil {
		return
	}
	r.seedLink.use()
}

// wake makes every replayer check the journal.
func (r *routes) wake() {
	for _, l := range r.links() {
		l.replayer.Wake()
	}
}

// look wakes every supervisor.
func (r *routes) look() {
	r.seedLink.look()
	for _, l := range r.links() {
		l.look()
	}
}

// follow learns from a redirection and returns the session to which it leads, nil if no session
// serves there. asking: the command must be preceded by ASKING.
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
	if r.health().State == linkUp {
		r.once.Do(func() { close(r.ready) })
	}
}

// severity orders states: the state of a cluster is the worst of its shards' states.
var severity = [...]int{linkUp: 0, linkReadOnly: 1, linkConnecting: 2, linkDown: 3, linkClosed: 4}

func (r *routes) health() linkHealth {
	c := r.cluster.Load()
	if c == nil {
		return r.seedLink.health()
	}
	whole := linkHealth{Writable: true, Tracking: true}
	covered := 0
	for i, l := range c.masters() {
		h := l.health()
		covered += int(l.slots.Load())
		whole.Shards = append(whole.Shards, linkHealth{
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
		whole.State, whole.Writable, whole.Tracking = linkDown, false, false
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
	routes *routes
	next   int
}

func (s *seeds) disbelieve() {}
func (s *seeds) close()      {}

func (s *seeds) fits(ctx context.Context, to *session, mode string) error {
	return s.routes.settleMode(ctx, to, mode)
}

func (s *seeds) where(ctx context.Context, _ bool) (string, error) {
	c, addrs := s.routes.cluster.Load(), s.routes.cfg.Redis.InitAddress
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
