package holdfast

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/redis/rueidis"
)

// Health tells what was last known of Redis. It does no I/O and waits for
// nothing. Without a Redis configured the state is Up.
func (c *Cache) Health() Health {
	if c.fence.closed.Load() {
		h := Health{State: Closed}
		if c.routes != nil {
			h = c.routes.health()
			h.State, h.Writable, h.Tracking = Closed, false, false
		}
		return h
	}
	if c.routes == nil {
		return Health{State: Up, Writable: true, Since: c.clock.base.Add(time.Hour)}
	}
	h := c.routes.health()
	h.JournalKeys = int(c.journal.keys.Load())
	h.HeldKeys = int(c.journal.held.n.Load())
	if since := c.journal.heldSince(); since != 0 {
		h.HeldSince = time.Now().Add(-time.Duration(c.clock.now() - since))
	}
	h.JournalError = c.journal.err()
	return h
}

// Check writes a probe to Redis now, over the connection that serves traffic,
// and returns nil if that succeeded: it is made for readiness endpoints. In a
// cluster every shard is probed, and the error is a *BatchError if several failed. It
// waits for at most Options.Timeout in all. While Redis is away it has an attempt
// made to reach it, or waits for the one that is under way, and returns
// ErrUnavailable, with the cause, if that failed; an attempt that has failed within
// Breaker.MinBackoff is not repeated.
func (c *Cache) Check(ctx context.Context) error {
	lane, open := c.fence.enter()
	defer lane.leave()
	if err := enterable(ctx, open); err != nil {
		return err
	}
	if c.routes == nil {
		return nil
	}
	bounded, cancel := c.remote.bound(ctx, c.clock.now())
	defer cancel()
	c.makeSure(bounded)
	if err := ctx.Err(); err != nil {
		return err
	}
	var errs errorList
	var items []item
	for _, l := range c.routes.links() {
		if s := l.reader(); s != nil {
			items = append(items, item{key: l.probeKey(""), session: s})
		} else {
			errs.errs = append(errs.errs, l.unavailable())
		}
	}
	if len(items) > 0 {
		bounded, cancel := c.remote.bound(ctx, c.clock.now())
		defer cancel()
		build := func(b rueidis.Builder, it *item, cmds []rueidis.Completed) []rueidis.Completed {
			return probeCommands(b, it.key, cmds)
		}
		c.remote.batch(bounded, items, 0, build, func(_ int, replies []rueidis.RedisResult, o outcome) {
			if o.class == classOK && len(replies) > 1 {
				o.class, o.err = probed(context.Background(), replies)
			}
			if err := c.decided("check", "", o); err != nil {
				errs.errs = append(errs.errs, err)
			}
		})
	}
	return errs.join()
}

// makeSure has every link that has no session make an attempt, or joins the one that is
// under way, and waits for what becomes of them.
func (c *Cache) makeSure(ctx bound) {
	looked := map[*link]bool{}
	for { // the first attempt may find a cluster
		var waits []*moment
		for _, l := range c.routes.links() {
			if l.gate.Load() != nil || looked[l] {
				continue
			}
			looked[l] = true
			l.use()
			if m := l.forced(); m != nil {
				waits = append(waits, m)
			}
		}
		if len(waits) == 0 {
			return
		}
		for _, m := range waits {
			select {
			case <-m.decided:
			case <-ctx.Done():
				return
			}
		}
	}
}

// WaitReady waits until Redis was Up for the first time, or until ctx ends. It
// is for programs that would rather not start than start degraded. Without a Redis
// configured it returns at once.
func (c *Cache) WaitReady(ctx context.Context) error {
	if ctx == nil {
		return errNilContext
	}
	if c.routes == nil {
		return enterable(ctx, !c.fence.closed.Load())
	}
	c.routes.waiting.Add(1)
	defer c.routes.waiting.Add(-1)
	c.routes.look()
	select {
	case <-c.stop:
		return ErrClosed
	default:
	}
	select {
	case <-c.routes.ready:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-c.stop:
		return ErrClosed
	}
}

// Drain waits until everything in the journal was replayed, or until ctx ends. What
// Redis refuses for itself is held, and not waited for: Health.HeldKeys counts it. A
// key whose write may still run late at Redis stays fenced a little longer and
// counts in Health.JournalKeys until it was checked once more.
func (c *Cache) Drain(ctx context.Context) error {
	if err := enterable(ctx, !c.fence.closed.Load()); err != nil {
		return err
	}
	return c.drain(ctx)
}

func (c *Cache) drain(ctx context.Context) error {
	for {
		idle := c.journal.drained()
		if idle == nil {
			return c.swept(ctx) // so that it stays so if the process dies now
		}
		c.routes.use()
		select {
		case <-idle:
		case <-ctx.Done():
			return ctx.Err()
		case <-c.life.Done():
			return ErrClosed
		}
	}
}

// swept is the journal's, and has replayed again what must be.
func (c *Cache) swept(ctx context.Context) error {
	again, err := c.journal.swept(ctx)
	if again {
		c.routes.wake()
	}
	return err
}

// Stats returns the counters and gauges.
func (c *Cache) Stats() Stats {
	n := &c.stats
	doubt := n.doubtHits.Load()
	s := Stats{
		LocalHits:       c.fence.hits() + n.batchHits.Load() + doubt,
		RemoteHits:      n.remoteHits.Load(),
		JournalHits:     n.journalHits.Load(),
		StaleHits:       n.staleHits.Load(),
		DoubtHits:       doubt,
		Misses:          n.misses.Load(),
		Undecodable:     n.undecodable.Load(),
		DialAttempts:    n.dials.Load(),
		Timeouts:        n.timeouts.Load(),
		BulkheadRefused: n.bulkheadRefused.Load(),
		HooksDropped:    n.hooksDropped.Load(),
		JournalKeys:     int(c.journal.keys.Load()),
		JournalBytes:    c.journal.bytes.Load(),
		Journaled:       n.journaled.Load(),
		Restored:        n.restored.Load(),
		Replayed:        n.replayed.Load(),
		Superseded:      n.superseded.Load(),
		Downgraded:      n.downgraded.Load(),
		Refused:         n.refused.Load(),
		Rejected:        n.rejected.Load(),
		Held:            n.held.Load(),
		HeldKeys:        int(c.journal.held.n.Load()),
		Discarded:       n.discarded.Load(),
		Loads:           n.loads.Load(),
		LoadsShared:     n.loadsShared.Load(),
		LoadErrors:      n.loadErrors.Load(),
		NegativeHits:    n.negativeHits.Load(),
		EarlyRefreshes:  n.earlyRefreshes.Load(),
		LeaseWaits:      n.leaseWaits.Load(),
		FillsDiscarded:  n.fillsDiscarded.Load(),
		Invalidations:   n.invalidations.Load(),
		StreamLosses:    n.streamLosses.Load(),
		Isolated:        n.isolated.Load(),
		LocalEvicted:    c.local.evicted.Load(),
		LocalDropped:    c.local.dropped.Load(),
	}
	if c.routes != nil {
		s.BreakerOpens = c.routes.opens()
	}
	if lane, open := c.fence.enter(); open {
		s.LocalBytes, s.LocalEntries = c.local.bytes(), c.local.len()
		lane.leave()
	} else {
		lane.leave()
	}
	return s
}

// closeLimit bounds what Close waits for a user's code that does not return: a
// hook, a log handler, a loader or a dial function that ignores its context. diskLimit is for
// a disk that has Journal.Dir.
const (
	closeLimit = time.Second
	diskLimit  = 5 * time.Second
)

// Close delivers what the journal holds, if anything, stops everything and waits for it.
//
// It delivers for as long as Redis takes the writes, or the first attempt to reach it is
// under way, and for Options.CloseTimeout at most; with an empty journal, once an attempt
// has failed and in an outage it waits for nothing. What Redis did not get is lost, unless
// Journal.Dir has it: the error is then an *UndeliveredError that counts the writes, there is
// one line in the log, and Hooks.OnDrop hears of each. Shutdown takes longer to deliver,
// if it is let. Beside a Shutdown Close delivers nothing, and cuts it short.
//
// Calls in flight get their answer or, from Redis, none. Otherwise Close takes
// milliseconds, also while a dial or the server hangs. If the caller's own code does not
// return, it waits a second each for loaders, for the dial function and for hooks and the
// log handler, and with Journal.Dir ten seconds for the disk. So it ends within
// CloseTimeout and four seconds at the worst, 5s by default, and 15s with Journal.Dir:
// give a pod a longer grace period than that (Kubernetes: terminationGracePeriodSeconds,
// 30s by default), less what the program needs beside. The error names what did not
// return, or says why Journal.Dir does not have everything.
//
// Further calls of Close wait for the first and return nil; every other call returns
// ErrClosed.
func (c *Cache) Close() error {
	if !c.fence.close() {
		if c.shutting.Load() {
			c.cancel() // it drains no longer
		}
		<-c.closed
		return nil
	}
	return c.end(c.deliver(), false)
}

// end is Close, once the fence is closed and no longer waits for what is left in the
// journal; why says why there is anything.
func (c *Cache) end(why error, shutdown bool) error {
	defer close(c.closed)
	c.cancel() // ends the supervisor, which cuts the connection under every call
	var late stuck
	if !c.left() {
		late.add("calls that wait for the disk of Journal.Dir")
	}
	late.group(&c.loaders, c.stuckLoaders)
	late.group(&c.workers, c.stuckWorkers)
	lost := c.lost(why, shutdown)
	close(c.stop)
	late.group(&c.notifier, c.notify.running)
	late.group(&c.flusher, func() []string { return nil })
	var kept error
	c.keeper.spawn("journal", func() { kept = c.journal.close() })
	onDisk := c.keeper.wait(diskLimit)
	if late.err() == nil {
		c.local.close()
	} else {
		// Somebody may still be inside, and ristretto panics when it is closed
		// beside a call. It is closed when they are gone.
		c.closer.spawn("closer", func() {
			c.fence.wait(never)
			c.workers.wait(never)
			c.flusher.wait(never)
			c.local.close()
		})
	}
	if !onDisk {
		late.add("the disk of Journal.Dir")
	} else if kept != nil {
		kept = fmt.Errorf("holdfast: close: the journal: %w", kept)
		return errors.Join(lost, late.err(), kept)
	}
	return errors.Join(lost, late.err())
}

// left waits until nobody is inside any more. Calls are bounded by their budget, and
// may spend it on the disk: that is no reason for Close to take as long as a large one.
func (c *Cache) left() bool {
	if c.journal.file == nil {
		return c.fence.wait(never)
	}
	return c.fence.wait(diskLimit)
}

// Shutdown turns away new calls, lets those in flight end, drains the journal for
// as long as ctx allows, and closes. Where writes remain undelivered it returns an
// *UndeliveredError that counts them. A Close beside it cuts the drain short.
func (c *Cache) Shutdown(ctx context.Context) error {
	c.shutting.Store(true)
	if !c.fence.close() {
		c.shutting.Store(false)
		<-c.closed
		return ErrClosed
	}
	c.left() // what they could not deliver is in the journal then
	err := errNilContext
	if ctx != nil {
		err = c.drain(ctx)
	}
	return c.end(err, true)
}

// urlError is what was wrong with a URL. Parsers quote what they stumble on, and
// in a URL with a user part that may be the password; so it may in one that is no URL,
// where the @ may be missing, or written as %40.
func urlError(text string, err error) error {
	if malformed := (*url.Error)(nil); strings.Contains(text, "@") || errors.As(err, &malformed) {
		return errors.New("holdfast: open: malformed URL: want redis://user:password@host:port/db (it is not shown, for it may hold a password)")
	}
	return fmt.Errorf("holdfast: open: %w", err)
}
