package holdfast

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/link"
	"github.com/holdfast-cache/holdfast/internal/rediserr"
	"github.com/redis/rueidis"
)

// Health returns the last known state of Redis. It does no I/O and does not block. Without a
// Redis configured the state is Up.
func (c *Cache) Health() Health {
	if c.inflight.Closed.Load() {
		h := Health{State: Closed}
		if c.routes != nil {
			h = healthOf(c.routes.Health())
			h.State, h.Writable, h.Tracking = Closed, false, false
		}
		return h
	}
	if c.routes == nil {
		return Health{State: Up, Writable: true, Since: c.clock.Base.Add(time.Hour)}
	}
	h := healthOf(c.routes.Health())
	h.JournalKeys = int(c.journal.Keys.Load())
	h.HeldKeys = int(c.journal.Held.N.Load())
	if since := c.journal.HeldSince(); since != 0 {
		h.HeldSince = time.Now().Add(-time.Duration(c.clock.Now() - since))
	}
	h.JournalError = c.journal.Err()
	return h
}

// Check writes a probe to Redis now, over the connection that serves traffic, and returns nil
// if that succeeded. It is made for readiness endpoints. In a cluster it probes every shard;
// the error is a *BatchError if several failed. While Redis is away, Check joins the attempt
// to connect that is in progress or causes one, and returns ErrUnavailable with the cause if
// that fails; an attempt that failed within Breaker.MinBackoff is not repeated. Check waits
// for Options.Timeout at most for an attempt, and as long again for the probe.
func (c *Cache) Check(ctx context.Context) error {
	guard, open := c.inflight.Enter()
	defer guard.Leave()
	if err := enterable(ctx, open); err != nil {
		return err
	}
	if c.routes == nil {
		return nil
	}
	bounded, cancel := c.remote.Bound(ctx, c.clock.Now())
	defer cancel()
	c.makeSure(bounded)
	if err := ctx.Err(); err != nil {
		return err
	}
	var errs errorList
	var items []link.Item
	for _, l := range c.routes.Links() {
		if s := l.Reader(); s != nil {
			items = append(items, link.Item{Key: l.Keys.ProbeKey(""), Session: s})
		} else {
			errs.errs = append(errs.errs, unreachable(l))
		}
	}
	if len(items) > 0 {
		bounded, cancel := c.remote.Bound(ctx, c.clock.Now())
		defer cancel()
		build := func(b rueidis.Builder, it *link.Item, cmds []rueidis.Completed) []rueidis.Completed {
			return link.ProbeCommands(b, it.Key, cmds)
		}
		c.remote.Batch(bounded, items, 0, build, func(_ int, replies []rueidis.RedisResult, o link.Outcome) {
			if o.Class == rediserr.OK && len(replies) > 1 {
				o.Class, o.Err = link.Probed(context.Background(), replies)
			}
			if err := c.asError("check", "", o); err != nil {
				errs.errs = append(errs.errs, err)
			}
		})
	}
	return errs.join()
}

// unreachable is the error of a Check that needs this link.
func unreachable(l *link.Link) error {
	if err := l.Why(); err != ErrUnavailable {
		return &Error{Op: "check", Tier: Remote, Err: err}
	}
	return ErrUnavailable
}

// makeSure causes an attempt to connect on every link without a session, or joins the attempt
// in progress, and waits for the results until ctx ends.
func (c *Cache) makeSure(ctx link.Bound) {
	looked := map[*link.Link]bool{}
	for { // again, because the first attempt may find a cluster
		var attempts []*link.Moment
		for _, l := range c.routes.Links() {
			if l.Gate.Load() != nil || looked[l] {
				continue
			}
			looked[l] = true
			l.Use()
			if m := l.Forced(); m != nil {
				attempts = append(attempts, m)
			}
		}
		if len(attempts) == 0 {
			return
		}
		for _, m := range attempts {
			select {
			case <-m.Decided:
			case <-ctx.Done():
				return
			}
		}
	}
}

// WaitReady waits until Redis is Up for the first time, or until ctx ends. It is for programs
// that must not start without Redis. Without a Redis configured it returns at once. The error
// is the context's own or ErrClosed.
func (c *Cache) WaitReady(ctx context.Context) error {
	if ctx == nil {
		return errNilContext
	}
	if c.routes == nil {
		return enterable(ctx, !c.inflight.Closed.Load())
	}
	c.routes.Waiting.Add(1)
	defer c.routes.Waiting.Add(-1)
	c.routes.Look()
	select {
	case <-c.stop:
		return ErrClosed
	default:
	}
	select {
	case <-c.routes.Ready:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-c.stop:
		return ErrClosed
	}
}

// Retry runs call, and runs it again for as long as its error is ErrUnavailable, or wraps
// it. It is for calls that only Redis can decide, such as locks and counters, in a program
// that prefers to wait for Redis. call may use the Cache, its Client, or another client to
// which the Cache is attached. If it may have run at Redis before its error, as after a
// timeout, then it may run twice.
//
// After such an error Retry waits for the next change of Health.State, but no longer than
// about Breaker.MinBackoff, twice that the next time, and so on to Breaker.MaxBackoff. The
// wait sends nothing and dials nothing. Retry blocks until call succeeds or fails in
// another way, until ctx ends, or until the Cache is closed: give ctx a deadline. Without a
// Redis configured it runs call once.
//
// The error is that of the last call; ErrClosed; or, where ctx ended the wait, one that
// wraps both the context's and that of the last call. If ctx has ended already, call does
// not run.
func (c *Cache) Retry(ctx context.Context, call func(context.Context) error) error {
	if err := enterable(ctx, !c.inflight.Closed.Load()); err != nil {
		return err
	}
	pause := c.opts.backoff()
	pause.Tries = 1 // without the first wait, which is 0
	for {
		changed := c.notify.changes.next() // before the call, which may meet the old state
		err := call(ctx)
		if c.routes == nil || !errors.Is(err, ErrUnavailable) {
			return err
		}
		timer := time.NewTimer(pause.Next())
		select {
		case <-timer.C:
		case <-changed:
			pause.Tries = 1
		case <-ctx.Done():
		}
		timer.Stop()
		switch {
		case c.inflight.Closed.Load():
			return ErrClosed
		case ctx.Err() != nil:
			return fmt.Errorf("holdfast: retry: %w: %w", ctx.Err(), err)
		}
	}
}

// Drain waits until every write of the journal was replayed, or until ctx ends. It does not
// wait for held writes, which Redis refuses while a probe succeeds; Health.HeldKeys counts
// them. A key whose earlier write may still run late at Redis stays in the journal, and in
// Health.JournalKeys, until it was checked a second time; Drain does not wait for that. The
// error is the context's own, ErrClosed, or the error of Journal.Dir.
func (c *Cache) Drain(ctx context.Context) error {
	if err := enterable(ctx, !c.inflight.Closed.Load()); err != nil {
		return err
	}
	return c.drain(ctx)
}

func (c *Cache) drain(ctx context.Context) error {
	for {
		idle := c.journal.Drained()
		if idle == nil {
			return c.swept(ctx) // the file forgets them, too, should the process die now
		}
		c.routes.Use()
		select {
		case <-idle:
		case <-ctx.Done():
			return ctx.Err()
		case <-c.life.Done():
			return ErrClosed
		}
	}
}

// swept waits until the journal's file is up to date, and wakes the replay of writes that
// must be replayed again.
func (c *Cache) swept(ctx context.Context) error {
	again, err := c.journal.Swept(ctx)
	if again {
		c.routes.Wake()
	}
	return err
}

// Stats returns the counters and gauges. It does no I/O, does not block, and takes a few
// microseconds.
func (c *Cache) Stats() Stats {
	r := statSource{
		counters:     &c.stats,
		tierHits:     c.local.Hits(),
		localEvicted: c.local.Evicted.Load(),
		localDropped: c.local.Dropped.Load(),
		journalKeys:  c.journal.Keys.Load(),
		journalBytes: c.journal.Bytes.Load(),
		heldKeys:     c.journal.Held.N.Load(),
		localBytes:   c.local.Bytes(),
		localEntries: c.local.Len(),
	}
	return r.snapshot()
}

// StateChanges returns the last 50 changes of Health.State since New, oldest first, as
// Hooks.OnStateChange gets them. It does not block, and is no use of Redis.
func (c *Cache) StateChanges() []StateChange { return c.notify.changes.all() }

// Latencies returns how long the work of the Cache took since New. It takes some microseconds, does
// not block, and is no use of Redis.
func (c *Cache) Latencies() Latencies { return c.stats.latencies() }

// closeLimit bounds how long Close waits for user code that does not return: a hook, a log
// handler, a loader or a dial function that ignores its context. diskLimit is the bound for
// the disk of Journal.Dir.
const (
	closeLimit = time.Second
	diskLimit  = 5 * time.Second
)

// Close delivers the writes in the journal, if any, stops all goroutines of the Cache and
// waits for them.
//
// It delivers as long as Redis takes the writes, or the first attempt to connect is in
// progress, and for Options.CloseTimeout at most. It does not wait with an empty journal,
// after a failed attempt, or in an outage. Writes that were not delivered are lost, unless
// Journal.Dir has them. The error is then an *UndeliveredError that counts them, the log has one
// line, and Hooks.OnDrop is called for each. Use Shutdown to deliver for longer. A Close
// beside a Shutdown delivers nothing and cuts the Shutdown short.
//
// Calls in flight get their answer from the local tier or the journal, or an error. Apart
// from the delivery Close takes milliseconds, also while a dial or the server hangs. If the
// caller's own code does not return, Close waits one second each for loaders, for the dial
// function, and for hooks and the log handler; with Journal.Dir it waits up to ten seconds
// for the disk. So Close ends within CloseTimeout and four seconds, 5s by default, and within
// 15s with Journal.Dir. Give a pod a longer grace period than that plus the time that the
// rest of the program needs (Kubernetes: terminationGracePeriodSeconds, 30s by default). The
// error names the code that did not return, or the cause why Journal.Dir is incomplete.
//
// Further calls of Close wait for the first and return nil. Every other call returns
// ErrClosed.
func (c *Cache) Close() error {
	if !c.inflight.Close() {
		if c.shutting.Load() {
			c.cancel() // ends the Shutdown's drain
		}
		<-c.closed
		return nil
	}
	c.notify.changes.wake()
	return c.end(c.deliver(), false)
}

// end does the rest of Close or Shutdown: the call gate is closed, and the delivery is over. why
// is the cause why the journal is not empty, if it is not.
func (c *Cache) end(why error, shutdown bool) error {
	defer close(c.closed)
	c.cancel() // ends the supervisor, which closes the connection under all calls
	var slow stuck
	if !c.left() {
		slow.add("calls that wait for the disk of Journal.Dir")
	}
	slow.group(&c.loaders, c.stuckLoaders)
	slow.group(&c.workers, c.stuckWorkers)
	lost := c.lost(why, shutdown)
	close(c.stop)
	slow.group(&c.notifier, c.notify.running)
	slow.group(&c.feeder, func() []string { return nil })
	var unsaved error
	c.keeper.Spawn("journal", func() { unsaved = c.journal.Close() })
	onDisk := c.keeper.Wait(diskLimit)
	if !onDisk {
		slow.add("the disk of Journal.Dir")
	} else if unsaved != nil {
		unsaved = fmt.Errorf("holdfast: close: the journal: %w", unsaved)
		return errors.Join(lost, slow.err(), unsaved)
	}
	return errors.Join(lost, slow.err())
}

// left waits until the last call has left. Calls are bounded by their budget. With a journal
// file they may spend it on the disk, and the budget may be large, so diskLimit bounds the
// wait. It returns false after that.
func (c *Cache) left() bool {
	if !c.journal.HasFile() {
		return c.inflight.Wait(clock.Never)
	}
	return c.inflight.Wait(diskLimit)
}

// Shutdown refuses new calls with ErrClosed, waits for the calls in flight, drains the journal
// for as long as ctx allows, and closes the Cache as Close does. If writes remain undelivered
// it returns an *UndeliveredError that counts them. A Close beside it cuts the drain short.
func (c *Cache) Shutdown(ctx context.Context) error {
	c.shutting.Store(true)
	if !c.inflight.Close() {
		c.shutting.Store(false)
		<-c.closed
		return ErrClosed
	}
	c.notify.changes.wake()
	c.left() // the writes that they could not deliver are in the journal then
	err := errNilContext
	if ctx != nil {
		err = c.drain(ctx)
	}
	return c.end(err, true)
}

// urlError returns the error of a URL without its secrets. Parsers quote the text at which
// they fail. In a URL with a user part that text may be the password, and in a malformed URL,
// too, where the @ may be missing or written as %40.
func urlError(text string, err error) error {
	if malformed := (*url.Error)(nil); strings.Contains(text, "@") || errors.As(err, &malformed) {
		return errors.New("holdfast: open: malformed URL: want redis://user:password@host:port/db (it is not shown, for it may hold a password)")
	}
	return fmt.Errorf("holdfast: open: %w", err)
}
