package holdfast

import (
	"context"
	"errors"
	"fmt"
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
// cluster every shard is probed, and the error joins one for each that failed. It
// waits for at most Options.Timeout in all. While Redis is away it returns
// ErrUnavailable, with the cause, at once.
func (c *Cache) Check(ctx context.Context) error {
	lane, open := c.fence.enter()
	defer lane.leave()
	if err := enterable(ctx, open); err != nil {
		return err
	}
	if c.routes == nil {
		return nil
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

// WaitReady waits until Redis was Up for the first time, or until ctx ends. It
// is for programs that would rather not start than start degraded; nothing else
// in this package waits for Redis. Without a Redis configured it returns at
// once.
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

// swept is sweep for those who do not wait for a disk longer than ctx.
func (c *Cache) swept(ctx context.Context) error {
	if c.journal.file == nil {
		return nil
	}
	done := make(chan bool, 1)
	c.keeper.spawn("sweep", func() { done <- c.journal.sweep() })
	select {
	case again := <-done:
		if again {
			c.routes.wake()
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-c.life.Done():
		return ErrClosed
	}
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

// errStuck is what Close returns when it stopped waiting.
var errStuck = errors.New("holdfast: close: a hook, the log handler, the dial function, a loader or the disk did not return")

// Close stops everything and waits for it: calls in flight get their answer or,
// from Redis, none. It is bounded by a second each for loaders, hooks and the dial
// function, even if none of them ever returns, and
// takes milliseconds otherwise, also while a dial or the server hangs; with
// Journal.Dir it waits for the disk, for fifteen seconds at most. What is in the
// journal is lost, unless Journal.Dir has it; Shutdown delivers it first. The
// error says what did not return, or why Journal.Dir does not have everything.
// Further calls of Close wait for the first and return nil; every other call returns
// ErrClosed.
func (c *Cache) Close() error {
	if !c.fence.close() {
		c.cancel() // also where a Shutdown still drains
		<-c.closed
		return nil
	}
	return c.end()
}

// end is Close, once the fence is closed.
func (c *Cache) end() error {
	defer close(c.closed)
	c.cancel() // ends the supervisor, which cuts the connection under every call
	stuck := !c.left()
	stuck = !c.loaders.wait(closeLimit) || stuck
	stuck = !c.workers.wait(closeLimit) || stuck
	close(c.stop)
	stuck = !c.notifier.wait(closeLimit) || stuck
	c.flusher.wait(closeLimit)
	var kept error
	c.keeper.spawn("journal", func() { kept = c.journal.close() })
	onDisk := c.keeper.wait(diskLimit)
	if !stuck {
		c.local.close()
	} else {
		// Somebody may still be inside, and ristretto panics when it is closed
		// beside a call. It is closed when they are gone.
		c.flusher.spawn("closer", func() {
			c.fence.wait(never)
			c.workers.wg.Wait()
			c.local.close()
		})
	}
	if stuck || !onDisk {
		return errStuck
	}
	if kept != nil {
		return fmt.Errorf("holdfast: close: the journal: %w", kept)
	}
	return nil
}

// left waits until nobody is inside any more. Calls are bounded by their budget,
// but for those that wait for a disk.
func (c *Cache) left() bool {
	if c.journal.file == nil {
		return c.fence.wait(never)
	}
	return c.fence.wait(diskLimit)
}

// Undelivered is the error of Shutdown: what the journal still held.
type Undelivered struct {
	Keys int   // writes that did not reach Redis
	Err  error // why not
}

func (u *Undelivered) Error() string {
	return fmt.Sprintf("holdfast: shutdown: %d writes did not reach redis: %v", u.Keys, u.Err)
}

func (u *Undelivered) Unwrap() error { return u.Err }

// Shutdown turns away new calls, lets those in flight end, drains the journal for
// as long as ctx allows, and closes. Where writes remain undelivered it returns an
// *Undelivered that counts them. A Close beside it cuts the drain short.
func (c *Cache) Shutdown(ctx context.Context) error {
	if !c.fence.close() {
		<-c.closed
		return ErrClosed
	}
	c.left() // what they could not deliver is in the journal then
	err := errNilContext
	if ctx != nil {
		err = c.drain(ctx)
	}
	if n := c.journal.undelivered(); n > 0 {
		if err == nil {
			err = errHeld
		}
		err = &Undelivered{Keys: n, Err: err}
	} else {
		err = nil
	}
	return errors.Join(err, c.end())
}

// urlError is what was wrong with a URL. Parsers quote what they stumble on, and
// in a URL with a user part that may be the password.
func urlError(text string, err error) error {
	if strings.Contains(text, "@") {
		return errors.New("holdfast: open: malformed URL: want redis://user:password@host:port/db (it is not shown, for it may hold a password)")
	}
	return fmt.Errorf("holdfast: open: %w", err)
}
