package link

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/dial"
	"github.com/holdfast-cache/holdfast/internal/group"
	"github.com/holdfast-cache/holdfast/internal/local"
	"github.com/redis/rueidis"
)

// linkRig is a link whose server, keys and Cache are the test's.
type linkRig struct {
	cfg     Config
	find    stubLocator
	keys    stubKeys
	watcher stubWatcher
	link    *Link
	workers group.Group
}

// newLinkRig returns a rig with short options. Change its functions, then make the link.
func newLinkRig(t *testing.T) *linkRig {
	t.Helper()
	r := &linkRig{}
	r.cfg = Config{
		Timeout: 50 * time.Millisecond, MinBackoff: 100 * time.Millisecond, MaxBackoff: time.Second,
		Clock: clock.Start(), Stats: &Counters{}, Life: t.Context(), Workers: &r.workers,
		Closed:     func() bool { return false },
		NewBreaker: func(func()) Breaker { return &stubBreaker{} },
	}
	r.cfg.Redis.Dialer.Timeout = time.Second
	return r
}

func (r *linkRig) open() *Link {
	routes := &Routes{cfg: &r.cfg, watcher: &r.watcher, demand: stubDemand{}, Ready: make(chan struct{})}
	routes.newReplayer = func(*Link, func(string) bool) Replayer { return stubReplayer{} }
	r.link = routes.newLink(&r.find, &r.keys)
	return r.link
}

type stubLocator struct {
	server func() (addr string, err error)
}

func (s *stubLocator) where(context.Context, bool) (string, error)  { return s.server() }
func (s *stubLocator) disbelieve()                                  {}
func (s *stubLocator) fits(context.Context, *Session, string) error { return nil }
func (s *stubLocator) close()                                       {}

type stubKeys struct {
	none func() bool // nil: there are keys
}

func (k *stubKeys) empty() bool                    { return k.none != nil && k.none() }
func (k *stubKeys) Owns(string) bool               { return true }
func (k *stubKeys) ProbeKey(string) string         { return "p" }
func (k *stubKeys) Scopes(func(*local.EpochScope)) {}
func (k *stubKeys) wanted() bool                   { return false }
func (k *stubKeys) hits() uint64                   { return 0 }
func (k *stubKeys) copies() int64                  { return 0 }
func (k *stubKeys) changed(Change)                 {}

type stubWatcher struct{ flushes int }

func (w *stubWatcher) Invalidated(string, bool)       {}
func (w *stubWatcher) Changed([]rueidis.RedisMessage) {}
func (w *stubWatcher) StateChanged(Change)            {}
func (w *stubWatcher) Untracked(string, string)       {}
func (w *stubWatcher) Scriptless(string, error)       {}
func (w *stubWatcher) Isolated(string, string)        {}

func (w *stubWatcher) Emptied(func(string) bool) bool {
	w.flushes++
	return false
}

type stubDemand struct{}

func (stubDemand) Wanted() bool     { return false }
func (stubDemand) Hits() uint64     { return 0 }
func (stubDemand) Journaling() bool { return false }
func (stubDemand) Copies() int64    { return 0 }

type stubReplayer struct{}

func (stubReplayer) Run(context.Context) {}
func (stubReplayer) Wake()               {}

// stubBreaker is a breaker that a probe closes and a failure opens.
type stubBreaker struct {
	mu     sync.Mutex
	closed bool
}

func (b *stubBreaker) Success()      {}
func (b *stubBreaker) Failure(error) { b.set(false) }
func (b *stubBreaker) Trip()         { b.set(false) }

func (b *stubBreaker) Probe() (done func(error), ok bool) {
	return func(err error) { b.set(err == nil) }, true
}

func (b *stubBreaker) WhileClosed(f func()) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		f()
	}
	return b.closed
}

func (b *stubBreaker) set(closed bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = closed
}

// testBuilder returns a builder of commands. Nothing is dialled.
func testBuilder() rueidis.Builder {
	c, _ := rueidis.NewClient(rueidis.ClientOption{
		InitAddress: []string{"127.0.0.1:1"}, ForceSingleClient: true, DisableCache: true,
		DialCtxFn: func(context.Context, string, *net.Dialer, *tls.Config) (net.Conn, error) {
			return nil, dial.ErrNoPermit
		},
	})
	return c.B()
}
