package holdfast

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-cache/holdfast/internal/group"
	"github.com/holdfast-cache/holdfast/internal/link"
)

// deliverTick is the interval at which Close checks whether Redis may still take writes.
const deliverTick = 2 * time.Millisecond

var (
	errCloseTimeout = errors.New("holdfast: not within Options.CloseTimeout")
	errUndelivered  = errors.New("holdfast: the cache was closed before they were sent")
)

// deliver waits until the calls in flight have their answers, for at most Timeout, and
// until the journal is replayed, for at most CloseTimeout in all. It stops earlier if no
// link can take a write: a link must be up and take the writes, or its first attempt must
// be under way. The error says why it stopped; nil if the journal is empty or if lost knows
// the reason.
func (c *Cache) deliver() error {
	if c.routes == nil || c.opts.CloseTimeout < 0 {
		return nil
	}
	began := c.clock.Now()
	limit := time.NewTimer(c.opts.CloseTimeout)
	defer limit.Stop()
	tick := time.NewTicker(deliverTick)
	defer tick.Stop()
	for {
		inFlight := !c.inflight.Drained() && c.clock.Now()-began < int64(c.opts.Timeout) && slices.ContainsFunc(c.routes.Links(), (*link.Link).Hopeful)
		idle := c.journal.Drained()
		switch {
		case inFlight:
		case idle == nil:
			return nil
		case !c.journal.Deliverable(c.deliverableBy):
			return nil // lost finds the reason
		}
		select {
		case <-idle:
		case <-tick.C:
		case <-limit.C:
			return errCloseTimeout
		case <-c.life.Done():
			return ErrClosed
		}
	}
}

// deliverableBy reports whether a write of the key may reach Redis soon.
func (c *Cache) deliverableBy(key string, del bool) bool {
	l := c.routes.Link(c.routes.Of(key))
	s := l.Gate.Load()
	return l.Hopeful() && (s == nil || s.Takes(del))
}

// UndeliveredError is the error of Close and Shutdown if the journal still held writes.
type UndeliveredError struct {
	Keys int   // number of writes that did not reach Redis
	Err  error // the reason
}

func (u *UndeliveredError) Error() string {
	return fmt.Sprintf("holdfast: close: %d writes did not reach redis: %v", u.Keys, u.Err)
}

func (u *UndeliveredError) Unwrap() error { return u.Err }

// lost reports the writes that did not reach Redis: by the error of Close and Shutdown, a
// log line and the hook OnDrop. It returns nil if there are none. Writes that Journal.Dir
// has are not lost and are not logged, but they are an error of Shutdown, which was asked to
// deliver them. It is called when the workers have ended and the notifier has not.
func (c *Cache) lost(why error, shutdown bool) error {
	onDisk := c.journal.HasFile()
	n := c.journal.Undelivered()
	if n == 0 || onDisk && !shutdown {
		return nil
	}
	if why == nil && c.journal.Queued.Load() == 0 {
		why = errHeld
	}
	if why == nil {
		why = c.routes.Health().LastError
	}
	if why == nil {
		why = errUndelivered
	}
	u := &UndeliveredError{Keys: n, Err: why}
	if !onDisk {
		c.notify.undelivered(c.journal.UndeliveredKeys(), why)
	}
	return u
}

// stuckError is the error of Close if it stopped waiting: it names the code that did not
// return.
type stuckError struct{ whom []string }

func (e *stuckError) Error() string {
	return "holdfast: close: did not return in time: " + strings.Join(e.whom, ", ")
}

// stuck collects the names of the code for which end stopped waiting. Only running code is
// named: user code by its option, and otherwise a goroutine of this package, which had no
// CPU time.
type stuck struct{ whom []string }

func (s *stuck) add(whom ...string) { s.whom = append(s.whom, whom...) }

// group waits for g; running names the user code in which its goroutines are.
func (s *stuck) group(g *group.Group, running func() []string) {
	if g.Wait(closeLimit) {
		return
	}
	if named := running(); len(named) > 0 {
		s.add(named...)
		return
	}
	for _, name := range g.Members() {
		s.add("the goroutine " + name + ", which had no time to run")
	}
}

func (s *stuck) err() error {
	if len(s.whom) == 0 {
		return nil
	}
	return &stuckError{s.whom}
}

// stuckLoaders names the code in which the goroutines of the loaders' group are.
func (c *Cache) stuckLoaders() []string {
	names := c.loaders.Members()
	for i, name := range names {
		switch name {
		case "loader":
			names[i] = "a loader"
		case "invalidations":
			names[i] = "OnInvalidations of NewClient"
		}
	}
	return names
}

// stuckWorkers names the code in which the workers are.
func (c *Cache) stuckWorkers() []string {
	names := c.userCode.names()
	if c.journal.HasFile() && slices.Contains(c.workers.Members(), "replayer") {
		names = append(names, "the disk of Journal.Dir")
	}
	return names
}
