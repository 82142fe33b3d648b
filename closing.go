package holdfast

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/redis/rueidis"
)

// deliverTick is how often Close looks whether what it delivers can still be delivered.
const deliverTick = 2 * time.Millisecond

var (
	errCloseTimeout = errors.New("holdfast: not within Options.CloseTimeout")
	errUndelivered  = errors.New("holdfast: the cache was closed before they were sent")
)

// deliver lets the calls in flight have their answers, for their budget, and waits until
// Redis has what the journal holds, for CloseTimeout at most in all. It waits no longer
// than there is something to wait for: a link that is up and takes the writes, or whose
// first attempt is under way. It returns why it stopped waiting, nil where nothing is left.
func (c *Cache) deliver() error {
	if c.routes == nil || c.opts.CloseTimeout < 0 {
		return nil
	}
	began := c.clock.now()
	limit := time.NewTimer(c.opts.CloseTimeout)
	defer limit.Stop()
	tick := time.NewTicker(deliverTick)
	defer tick.Stop()
	for {
		inFlight := !c.fence.drained() && c.clock.now()-began < int64(c.opts.Timeout) && slices.ContainsFunc(c.routes.links(), (*link).hopeful)
		idle := c.journal.drained()
		switch {
		case inFlight:
		case idle == nil:
			return nil
		case !c.journal.deliverable(c.deliverableBy):
			return nil // lost says why
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

// deliverableBy says whether a write of the key may reach Redis soon.
func (c *Cache) deliverableBy(key string, del bool) bool {
	l := c.routes.link(c.routes.of(key))
	s := l.gate.Load()
	return l.hopeful() && (s == nil || s.takes(del))
}

// deliverable says whether Redis may get any write that is queued, by what way says of
// its key.
func (j *journal) deliverable(way func(key string, del bool) bool) bool {
	for i := range j.shards {
		sh := &j.shards[i]
		sh.mu.RLock()
		for key, in := range sh.intents {
			if in.queuedLocked() && !in.done && way(key, in.del) {
				sh.mu.RUnlock()
				return true
			}
		}
		sh.mu.RUnlock()
	}
	return false
}

// undeliveredKeys are the keys of what Redis has not got, in order. What waits for its
// second check has been replayed.
func (j *journal) undeliveredKeys() []string {
	var keys []string
	for i := range j.shards {
		sh := &j.shards[i]
		sh.mu.RLock()
		for key, in := range sh.intents {
			if (in.held != nil || in.checkAt == 0) && !in.done {
				keys = append(keys, key)
			}
		}
		sh.mu.RUnlock()
	}
	slices.Sort(keys)
	return keys
}

// UndeliveredError is the error of Close and Shutdown: what the journal still held.
type UndeliveredError struct {
	Keys int   // writes that did not reach Redis
	Err  error // why not
}

func (u *UndeliveredError) Error() string {
	return fmt.Sprintf("holdfast: close: %d writes did not reach redis: %v", u.Keys, u.Err)
}

func (u *UndeliveredError) Unwrap() error { return u.Err }

// lost is what Close and Shutdown say of writes that did not reach Redis, by error, log
// line and hook; nil where there are none. The workers have ended, the notifier has not.
// Where Journal.Dir has them they are not lost, but Shutdown was asked to deliver them.
func (c *Cache) lost(why error, shutdown bool) error {
	onDisk := c.journal.file != nil
	n := c.journal.undelivered()
	if n == 0 || onDisk && !shutdown {
		return nil
	}
	if why == nil && c.journal.queued.Load() == 0 {
		why = errHeld
	}
	if why == nil {
		why = c.routes.health().LastError
	}
	if why == nil {
		why = errUndelivered
	}
	u := &UndeliveredError{Keys: n, Err: why}
	if !onDisk {
		c.notify.undelivered(c.journal.undeliveredKeys(), why)
	}
	return u
}

// stuckError is what Close returns when it stopped waiting: for whom.
type stuckError struct{ whom []string }

func (e *stuckError) Error() string {
	return "holdfast: close: did not return in time: " + strings.Join(e.whom, ", ")
}

// stuck names those whom end did not wait for to the end. Only what runs is blamed: a
// user's code by the option that it was given in, and else a goroutine of this package,
// which the machine has not let run.
type stuck struct{ whom []string }

func (s *stuck) add(whom ...string) { s.whom = append(s.whom, whom...) }

// group waits for the group; foreign is what of the user's code it is in.
func (s *stuck) group(g *group, running func() []string) {
	if g.wait(closeLimit) {
		return
	}
	if named := running(); len(named) > 0 {
		s.add(named...)
		return
	}
	for _, name := range g.members() {
		s.add("the goroutine " + name + ", which had no time to run")
	}
}

func (s *stuck) err() error {
	if len(s.whom) == 0 {
		return nil
	}
	return &stuckError{s.whom}
}

// stuckLoaders names what the loaders' group is in.
func (c *Cache) stuckLoaders() []string {
	names := c.loaders.members()
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

// stuckWorkers names what the workers are in.
func (c *Cache) stuckWorkers() []string {
	names := c.foreign.names()
	if c.journal.file != nil && slices.Contains(c.workers.members(), "replayer") {
		names = append(names, "the disk of Journal.Dir")
	}
	return names
}

// foreign is the user's code that runs at this moment on goroutines of this package.
type foreign struct {
	mu struct {
		sync.Mutex
		running map[string]int
	}
}

func (f *foreign) enter(what string) (leave func()) {
	f.add(what, 1)
	return func() { f.add(what, -1) }
}

func (f *foreign) add(what string, n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.mu.running == nil {
		f.mu.running = make(map[string]int)
	}
	if f.mu.running[what] += n; f.mu.running[what] == 0 {
		delete(f.mu.running, what)
	}
}

func (f *foreign) names() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Sorted(maps.Keys(f.mu.running))
}

// watch has foreign know of the functions that the options bring for the connection. The
// one that dials runs on a goroutine of its own, of the workers': if it ends its
// goroutine, that is not the supervisor's.
func (f *foreign) watch(o rueidis.ClientOption, workers *group) rueidis.ClientOption {
	if dial := o.DialCtxFn; dial != nil {
		o.DialCtxFn = func(ctx context.Context, addr string, nd *net.Dialer, cfg *tls.Config) (conn net.Conn, err error) {
			const what = "Redis.DialCtxFn"
			if died := workers.call("dial", what, func() {
				defer f.enter("the dial function (" + what + ")")()
				conn, err = dial(ctx, addr, nd, cfg)
			}); died != nil {
				return nil, died
			}
			return conn, err
		}
	}
	if ask := o.AuthCredentialsFn; ask != nil {
		o.AuthCredentialsFn = func(ctx rueidis.AuthCredentialsContext) (rueidis.AuthCredentials, error) {
			defer f.enter("Redis.AuthCredentialsFn")()
			return ask(ctx)
		}
	}
	return o
}
