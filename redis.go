package holdfast

import (
	"crypto/rand"
	"time"

	"github.com/holdfast-cache/holdfast/internal/journal"
	"github.com/holdfast-cache/holdfast/internal/keyhash"
	"github.com/holdfast-cache/holdfast/internal/link"
	"github.com/holdfast-cache/holdfast/internal/local"
	"github.com/holdfast-cache/holdfast/internal/replay"
	"github.com/redis/rueidis"
)

// connect starts the links to Redis, the replay and the journal's goroutines.
func (c *Cache) connect() {
	o := c.dialled
	c.routes = link.New(&link.Config{
		Topology:     link.Topology(o.mode()),
		Timeout:      o.Timeout,
		MinBackoff:   o.Breaker.MinBackoff,
		MaxBackoff:   o.Breaker.MaxBackoff,
		Redis:        o.Redis,
		AllowAddress: o.AllowAddress,
		Silence:      o.silence(),
		ProbeKey:     o.Breaker.ProbePrefix + rand.Text(),
		FirstSession: journal.EarlierProcess,
		Tracking:     link.TrackedKeys{Reads: o.Tracking.Mode == TrackReads, Prefixes: o.Tracking.Prefixes},
		Script:       replay.Check,
		NewBreaker: func(opened func()) link.Breaker {
			return newOpenBreaker(o.Breaker.Failures, opened, &c.stats.breakerOpens)
		},
		Clock:   c.clock,
		Stats:   &c.stats.Counters,
		Life:    c.life,
		Workers: &c.workers,
		Closed:  c.inflight.Closed.Load,
	}, &linkEvents{c}, &linkDemand{c}, func(l *link.Link, owns func(string) bool) link.Replayer {
		return c.newReplayer(l, owns)
	})
	c.remote = link.NewRemote(c.routes)
	c.journal.Poison = c.routes.Isolated
	if c.journal.HasFile() {
		c.keeper.Spawn("journal", func() { c.journal.Keep(c.stop) })
		c.keeper.Spawn("sweeper", func() { c.journal.Tidy(c.life, c.routes.Wake) })
	}
	c.routes.Start()
}

// newReplayer returns the replayer of a link.
func (c *Cache) newReplayer(l *link.Link, owns func(key string) bool) *replay.Replayer {
	return replay.New(&replay.Config{
		Journal: c.journal, Clock: c.clock, Watcher: &replayEvents{c}, Copies: &replayCopies{c.local},
		Timeout: c.opts.Timeout, MaxBackoff: c.opts.Breaker.MaxBackoff, MaxRate: c.opts.Journal.MaxRate,
		Rule: journal.ConflictRule(c.opts.Journal.OnConflict),
	}, l, owns)
}

// replayerOf returns the replayer of a link.
func replayerOf(l *link.Link) *replay.Replayer { return l.Replayer.(*replay.Replayer) }

// linkEvents is the watcher of the links of a Cache.
type linkEvents struct{ c *Cache }

// Invalidated handles an invalidation of key, which may also be the echo of our own write. The local copy
// is invalidated, and a set of the key that waits in the journal is compared with the value in
// Redis. An invalidation over a session that no longer serves (serving is false) may be older than
// that value, so it causes no comparison.
func (e *linkEvents) Invalidated(key string, serving bool) {
	c := e.c
	h, now := c.local.Hash(key), c.clock.Now()
	// Flights first: a load that is storing puts its entry in place and then checks whether its
	// flight was invalidated. If it was not, local.Tier.Invalidate runs later and finds the entry.
	c.flights.Invalidate(h)
	c.local.Invalidate(h, now)
	if serving && c.opts.Journal.OnConflict == ConflictDelete && c.journal.Invalidated(h, key, now) {
		c.routes.Link(c.routes.Of(key)).Replayer.Wake()
	}
}

func (e *linkEvents) Changed(keys []rueidis.RedisMessage) { e.c.listeners.onInvalidation(keys) }

func (e *linkEvents) Emptied(owns func(key string) bool) (replay bool) {
	c := e.c
	return c.opts.Journal.OnConflict == ConflictDelete && c.journal.InvalidatedAll(c.clock.Now(), owns)
}

func (e *linkEvents) StateChanged(s link.Change) {
	e.c.notify.stateChange(StateChange{From: State(s.From), To: State(s.To), Shard: s.Shard, At: s.At, Err: s.Err})
}

func (e *linkEvents) Untracked(addr, why string) {
	e.c.notify.untracked(addr, why, e.c.opts.Tracking.UntrackedTTL)
}

func (e *linkEvents) Scriptless(addr string, why error) { e.c.notify.scriptless(addr, why) }
func (e *linkEvents) Isolated(key, addr string)         { e.c.notify.isolated(key, addr) }

// linkDemand is the demand of a Cache for Redis.
type linkDemand struct{ c *Cache }

func (d *linkDemand) Wanted() bool     { return d.c.journal.Keys.Load() > 0 || d.c.listeners.any() }
func (d *linkDemand) Hits() uint64     { return d.c.local.Hits() + d.c.stats.localAnswers() }
func (d *linkDemand) Journaling() bool { return d.c.journal.Keys.Load() != 0 }
func (d *linkDemand) Copies() int64    { return d.c.local.Len() - d.c.journal.Keys.Load() }

// healthOf returns what the links know of Redis.
func healthOf(h link.Health) Health {
	whole := Health{
		State: State(h.State), Writable: h.Writable, Tracking: h.Tracking, Lacks: h.Lacks,
		Since: h.Since, ProbedAt: h.ProbedAt, LastError: h.LastError,
	}
	for _, s := range h.Shards {
		whole.Shards = append(whole.Shards, ShardHealth{
			Addr: s.Addr, Slots: s.Slots, State: State(s.State), Writable: s.Writable,
			Tracking: s.Tracking, Since: s.Since, LastError: s.LastError,
		})
	}
	return whole
}

// replayEvents is the watcher of the replays of a Cache.
type replayEvents struct{ c *Cache }

func (e *replayEvents) Replayed()                   { e.c.stats.replayed.Add(1) }
func (e *replayEvents) Finished(total replay.Total) { e.c.notify.replay(Replay(total)) }

func (e *replayEvents) Superseded(key string) {
	e.c.stats.superseded.Add(1)
	e.c.notify.drop(key, DropSuperseded)
}

func (e *replayEvents) Rejected(key string) {
	e.c.stats.rejected.Add(1)
	e.c.notify.drop(key, DropRejected)
}

func (e *replayEvents) Held(w replay.Held, again, first bool) {
	if !again {
		e.c.stats.held.Add(1)
	}
	if first {
		e.c.notify.held(HeldWrite{Key: w.Key, Delete: w.Del, Bytes: w.Bytes, Since: time.Now(), Refusal: w.Refusal})
	}
}

// replayCopies are the local copies of a Cache as its replays change them.
type replayCopies struct{ *local.Tier }

func (t *replayCopies) Doubt(h keyhash.Hash)  { t.Suspect(h, local.SameEnd) }
func (t *replayCopies) Forget(h keyhash.Hash) { t.Put(h, nil) }
