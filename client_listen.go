package holdfast

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"
)

// NewClient is Client for libraries that wait for changes of keys, such as rueidislock,
// whose LockerOption.ClientBuilder it can be: `ClientBuilder: cache.NewClient`. It waits
// for nothing. The error is ErrClosed or nil.
//
// Of the option, OnInvalidations counts, and nothing else: where Redis is, and how it is
// spoken to, say the Cache's own Options. It is called with keys that were read by way
// of this Cache, be it in a script, and that Redis says have changed, also by a write of
// this Cache; with Tracking.Prefixes, with all keys of the prefixes that others change.
// It is called with nil where any key may have changed: Redis was emptied, went away or
// is back, the Cache was closed, and, while Redis does not tell of every key, each
// Tracking.UntrackedTTL. Calls come one at a time, on a goroutine of the view's own: one
// may block, or call the Cache, except Close, which would wait for it, for a second.
// While it is under way, up to 4096 keys wait; more become one nil. A panic in it is logged
// and goes no further.
//
// Until the view is closed, it counts as a use of the Cache, which therefore looks for
// Redis even if nobody calls it.
func (c *Cache) NewClient(option rueidis.ClientOption) (rueidis.Client, error) {
	guard, open := c.fence.enter()
	defer guard.leave()
	if !open {
		return nil, ErrClosed
	}
	cl := c.Client().(*client)
	if option.OnInvalidations == nil || c.routes == nil {
		return cl, nil
	}
	cl.listener = &listener{
		fn: option.OnInvalidations, kick: make(chan struct{}, 1), stop: make(chan struct{}),
		gone: &c.listeners,
	}
	c.listeners.add(cl.listener)
	if !c.loaders.spawn("invalidations", func() { cl.listener.run(c) }) {
		cl.listener.end()
		return nil, ErrClosed
	}
	c.routes.use()
	return cl, nil
}

// listeners hear what Redis tells. It is read by the goroutine that reads the
// connection, so there is no lock.
type listeners struct{ all atomic.Pointer[[]*listener] }

func (ls *listeners) any() bool {
	all := ls.all.Load()
	return all != nil && len(*all) > 0
}

func (ls *listeners) add(l *listener) {
	ls.change(func(all []*listener) []*listener { return append(all, l) })
}

func (ls *listeners) remove(l *listener) {
	ls.change(func(all []*listener) []*listener {
		return slices.DeleteFunc(all, func(other *listener) bool { return other == l })
	})
}

// change gives f a copy.
func (ls *listeners) change(f func([]*listener) []*listener) {
	for {
		old := ls.all.Load()
		var all []*listener
		if old != nil {
			all = slices.Clone(*old)
		}
		if all = f(all); ls.all.CompareAndSwap(old, &all) {
			return
		}
	}
}

// told takes keys that have changed, nil for any. It does not block.
func (ls *listeners) told(keys []rueidis.RedisMessage) {
	if ls == nil {
		return // a link that a test made
	}
	if all := ls.all.Load(); all != nil {
		for _, l := range *all {
			l.add(keys)
		}
	}
}

// listener is a view's OnInvalidations, and what waits for it.
type listener struct {
	fn   func([]rueidis.RedisMessage)
	any  atomic.Bool   // any key may have changed
	kick chan struct{} // one slot: there is something to tell
	once sync.Once
	stop chan struct{}
	gone *listeners

	mu struct {
		sync.Mutex
		keys []rueidis.RedisMessage
	}
}

// mostUntold is how many keys wait for a listener, so that a slow one costs no memory.
const mostUntold = 4096

func (l *listener) add(keys []rueidis.RedisMessage) {
	if keys == nil {
		l.any.Store(true)
	} else {
		l.mu.Lock()
		if len(l.mu.keys)+len(keys) <= mostUntold {
			l.mu.keys = append(l.mu.keys, keys...)
		} else {
			l.any.Store(true)
		}
		l.mu.Unlock()
	}
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

// run ends with the view or the Cache.
func (l *listener) run(c *Cache) {
	blind := time.NewTicker(c.opts.Tracking.UntrackedTTL)
	defer blind.Stop()
	for {
		select {
		case <-l.stop:
			return
		case <-c.life.Done():
			c.notify.call(func() { l.fn(nil) })
			return
		case <-blind.C:
			if c.opts.Tracking.Mode == TrackReads && c.Health().Tracking {
				continue
			}
			l.any.Store(true)
		case <-l.kick:
		}
		l.mu.Lock()
		keys := l.mu.keys
		l.mu.keys = nil
		l.mu.Unlock()
		if l.any.Swap(false) {
			c.notify.call(func() { l.fn(nil) })
		} else if len(keys) > 0 {
			c.notify.call(func() { l.fn(keys) })
		}
	}
}

// end is the view's Close. It does not wait for a call of fn.
func (l *listener) end() {
	if l != nil {
		l.gone.remove(l)
		l.once.Do(func() { close(l.stop) })
	}
}
