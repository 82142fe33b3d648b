package holdfast

import (
	"context"
	"crypto/rand"
	"fmt"
	"sync/atomic"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/flight"
	"github.com/holdfast-cache/holdfast/internal/journal"
	"github.com/holdfast-cache/holdfast/internal/keyhash"
	"github.com/holdfast-cache/holdfast/internal/local"
	"github.com/redis/rueidis"
)

// New returns a Cache. It does no network I/O and cannot fail for a network reason: a Redis
// that is not there is a normal start. The error names every option that is invalid or
// contradicts another. With Journal.Dir, New reads the files there, and fails if the
// directory cannot be used or another Cache uses it.
func New(opts Options) (*Cache, error) {
	opts = opts.withDefaults()
	if err := opts.validate(); err != nil {
		return nil, err
	}
	tier, err := buildLocal(opts.Local)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	c := &Cache{
		opts:    opts,
		clock:   clock.Start(),
		life:    ctx,
		cancel:  cancel,
		stop:    make(chan struct{}),
		local:   tier,
		journal: journal.New(opts.Journal.config()),
		closed:  make(chan struct{}),
	}
	c.opts.Redis = c.foreign.watch(opts.Redis, &c.workers)
	full := c.opts
	c.dialled, c.opts = &full, c.opts.withoutPasswords()
	c.flights, c.holder = flight.New[Entry](), rand.Text()
	if opts.Load.MaxConcurrent > 0 {
		c.loadSlots = make(chan struct{}, opts.Load.MaxConcurrent)
	}
	c.notify = newNotifier(opts, &c.stats)
	c.journal.Downgraded = c.downgraded
	c.journal.Retry = clock.Backoff{Min: opts.Breaker.MinBackoff, Max: opts.Breaker.MaxBackoff}
	if opts.Journal.Dir != "" && len(opts.Redis.InitAddress) > 0 {
		if err := c.restore(); err != nil {
			cancel()
			c.local.Close()
			return nil, err
		}
	}
	c.flusher.spawn("flusher", func() { c.local.Flush(c.stop) })
	c.notifier.spawn("notifier", func() { c.notify.run(c.stop) })
	if len(opts.Redis.InitAddress) == 0 {
		return c, nil
	}
	c.connect()
	return c, nil
}

// Open is New with the Redis options of a URL, in the syntax of rueidis.ParseURL:
// redis://user:password@host:port/db, rediss:// for TLS, unix:///path/to/redis.sock. Further
// addresses are given as ?addr=host:port, the name of a master that sentinels watch as
// ?master_set=name. The error never shows the password.
func Open(url string) (*Cache, error) {
	redis, err := rueidis.ParseURL(url)
	if err != nil {
		return nil, urlError(url, err)
	}
	return New(Options{Redis: redis})
}

// restore opens Journal.Dir and takes over the intents of an earlier process.
func (c *Cache) restore() error {
	r, err := c.journal.Open(c.opts.Journal.config(), c.opts.Timeout, c.clock, c.local.Hash, c.notify.journalFile)
	if err != nil {
		return fmt.Errorf("holdfast: options: Journal.Dir: %w", err)
	}
	c.stats.restored.Add(uint64(r.Keys))
	c.notify.restored(r)
	return nil
}

// connect builds the parts that speak to Redis, and starts them.
func (c *Cache) connect() {
	r := &routes{ready: make(chan struct{})}
	c.routes = r
	c.remote = &remote{
		routes: r, hops: c.opts.Redis.ClusterOption.MaxMovedRedirections,
		budget: newBudget(c.opts.Timeout, c.clock), clock: c.clock, stats: &c.stats,
		journaling: func() bool { return c.journal.Keys.Load() != 0 },
	}
	probe := c.opts.Breaker.ProbePrefix + rand.Text()
	sessions := new(atomic.Uint64)
	sessions.Store(journal.EarlierProcess)
	env := linkEnv{
		clock:    c.clock,
		stats:    &c.stats,
		notify:   c.notify,
		sessions: sessions,
		probeKey: func(string) string { return probe },
		wanted:   func() bool { return c.journal.Keys.Load() > 0 || r.waiting.Load() > 0 || c.listeners.any() },
		needless: func() bool { return false },
		hits:     func() uint64 { return c.inflight.Hits() + c.stats.localAnswers() },
		leave:    func() {},

		disbelieve: func() {},

		redirected:     func(s *session, err error) { r.follow(s, err) },
		domains:        func(each func(*local.EpochScope)) { each(&r.one.domain) },
		onInvalidation: c.onInvalidation,
		listeners:      &c.listeners,
		copies:         func() int64 { return c.local.Len() - c.journal.Keys.Load() },
		changed: func(s StateChange) {
			c.notify.stateChange(s)
			if s.From == s.To {
				return
			}
			c.listeners.onInvalidation(nil)
			if s.To == Up {
				r.noteUp()
			}
		},
	}
	home := env
	home.needless = func() bool {
		cl := r.cluster.Load()
		return cl != nil && cl.serving()
	}
	home.changed = func(s StateChange) {
		if s.From != s.To || r.cluster.Load() == nil { // the shards report for themselves
			env.changed(s)
		}
	}
	home.fits = func(ctx context.Context, s *session, mode string) error {
		return c.settleMode(ctx, s, mode, func() *cluster { return c.newCluster(env, probe) })
	}
	switch c.opts.mode() {
	case ModeSentinel:
		s := newSentinels(c.life, *c.dialled, c.clock, &c.workers, func() { c.stats.dials.Add(1) })
		home.where, home.leave, home.disbelieve = s.where, s.close, s.disbelieve
	default:
		s := &seeds{
			addrs: c.opts.Redis.InitAddress, routes: r,
			limit: c.opts.Redis.Dialer.Timeout, resolve: c.opts.Redis.DialCtxFn == nil,
		}
		home.where = s.where
	}
	c.journal.Poison = func(key string, del bool) bool { return r.link(r.of(key)).treat(key, del) != sendInCompany }
	r.seedLink = c.newLink(c.life, home, func(string) bool { return r.cluster.Load() == nil })
	r.one.link.Store(r.seedLink)
	if c.journal.HasFile() {
		c.keeper.spawn("journal", func() { c.journal.Keep(c.stop) })
		c.keeper.spawn("sweeper", func() { c.journal.Tidy(c.life, r.wake) })
	}
	c.start(c.life, r.seedLink)
}

// newLink returns a link with a replayer for the keys for which owns returns true.
func (c *Cache) newLink(ctx context.Context, env linkEnv, owns func(key string) bool) *link {
	var l *link
	env.emptied = func() {
		if c.emptied(owns) {
			l.replayer.wake()
		}
	}
	l = newLink(*c.dialled, env)
	l.owned.workers, l.owned.closed = &c.workers, c.inflight.Closed.Load
	l.credentials.fn, l.credentials.workers = c.opts.Redis.AuthCredentialsFn, &c.workers
	l.replayer = &replayer{
		journal: c.journal,
		link:    l,
		routes:  c.routes,
		owns:    owns,
		clock:   c.clock,
		stats:   &c.stats,
		notify:  c.notify,
		hash:    c.local.Hash,
		settled: c.local.OnReplayed,
		doubt:   func(h keyhash.Hash) { c.local.Suspect(h, local.SameEnd) },
		forget:  func(h keyhash.Hash) { c.local.Put(h, nil) },
		timeout: max(c.opts.Timeout, replayTimeout),
		maxHeld: journal.HeldSets,
		pauses:  clock.Backoff{Min: replayPause, Max: c.opts.Breaker.MaxBackoff},
		share:   c.opts.Timeout / 8,
		rule:    c.opts.Journal.OnConflict,
		pace:    newPace(c.opts.Journal.MaxRate, replayMost),
		kick:    make(chan struct{}, 1),
	}
	return l
}

// start starts the link's goroutines, which run until ctx ends.
func (c *Cache) start(ctx context.Context, l *link) {
	c.workers.spawn("supervisor", func() { l.supervise(ctx) })
	c.workers.spawn("replayer", func() { l.replayer.run(ctx) })
}

// settleMode compares the server's mode with the options. If the server is the node of a
// cluster, it joins that cluster and returns errJoined.
func (c *Cache) settleMode(ctx context.Context, s *session, mode string, create func() *cluster) error {
	want := c.opts.mode()
	switch {
	case want == ModeCluster && (mode == "cluster" || mode == ""), want == ModeAuto && mode == "cluster":
		ranges, err := s.readMap(ctx)
		if err != nil {
			return err
		}
		cl := c.routes.cluster.Load()
		if cl == nil {
			cl = create()
		}
		c.routes.join(cl, ranges)
		return errJoined
	case want == ModeCluster, mode == "cluster", mode == "sentinel":
		return errWrongMode(want, mode)
	}
	return nil
}

// newCluster returns the map of a cluster and starts the goroutine that keeps it current.
func (c *Cache) newCluster(env linkEnv, probe string) *cluster {
	cl := &cluster{
		routes:  c.routes,
		allow:   allowed{ask: c.opts.AllowAddress, anyway: c.opts.Redis.InitAddress, workers: &c.workers},
		refresh: c.opts.Redis.ClusterOption.ShardsRefreshInterval,
		backoff: c.opts.Breaker.MaxBackoff,
		signal:  make(chan struct{}, 1),
	}
	cl.mu.nodes = make(map[string]*link)
	cl.open = func(addr string) *link {
		ctx, cancel := context.WithCancel(c.life)
		var l *link
		node := env
		node.where = func(context.Context, bool) (string, error) { return addr, cl.allow.check(addr) }
		node.fits = func(_ context.Context, _ *session, mode string) error {
			if mode != "cluster" && mode != "" {
				return errWrongMode(ModeCluster, mode)
			}
			return nil
		}
		node.probeKey = func(last string) string { return cl.probeKey(l, probe, last) }
		node.wanted = func() bool { return l.slots.Load() > 0 && env.wanted() }
		node.hits = func() uint64 {
			if l.slots.Load() == 0 {
				return 0 // without slots none of the hits are the link's
			}
			return env.hits()
		}
		node.copies = func() int64 { return 0 } // the copies of one node are not counted
		node.domains = func(each func(*local.EpochScope)) { cl.domains(l, each) }
		node.changed = func(s StateChange) {
			s.Shard = addr
			if s.To == Closed {
				return // the shard has moved, or the Cache is closed
			}
			cl.wake()
			env.changed(s)
		}
		l = c.newLink(ctx, node, func(key string) bool { return cl.slots[slotOf(key)].link.Load() == l })
		l.addr, l.retire = addr, cancel
		c.start(ctx, l)
		return l
	}
	c.workers.spawn("cluster", func() { cl.run(c.life) })
	return cl
}
