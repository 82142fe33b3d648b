package holdfast

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"
)

// NewClient is Client for libraries that wait for changes of keys, such as rueidislock: it can be
// the LockerOption.ClientBuilder, as in `ClientBuilder: cache.NewClient`. It does not block. The
// error is ErrClosed or nil.
//
// OnInvalidations is the only field of the option that is used. The address of Redis and the
// protocol come from the Cache's own Options. OnInvalidations is called with keys that were read
// through this Cache, also by a script, and that Redis reports as changed, also by a write of this
// Cache. With Tracking.Prefixes it is called with all keys under the prefixes that other clients
// change. It is called with nil when any key may have changed: Redis was emptied, was lost or is
// back, the Cache was closed, and, while Redis does not report changes of every key, once in each
// Tracking.UntrackedTTL.
//
// Calls come one at a time, on a goroutine of the view. A call may block, and may call the Cache,
// except for Close, which would wait a second for it. While a call runs, up to 4096 keys are
// queued; more become one nil. A panic in it is logged and goes no further.
//
// Until the view is closed it counts as use of the Cache: the supervisor goes on probing Redis even
// if there are no calls.
func (c *Cache) NewClient(option rueidis.ClientOption) (rueidis.Client, error) {
	guard, open := c.inflight.Enter()
	defer guard.Leave()
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
	if !c.loaders.Spawn("invalidations", func() { cl.listener.run(c) }) {
		cl.listener.end()
		return nil, ErrClosed
	}
	c.routes.Use()
	return cl, nil
}

// listener is the OnInvalidations of one view, with the keys that are queued for it.
type listener struct {
	fn   func([]rueidis.RedisMessage)
	any  atomic.Bool   // any key may have changed
	kick chan struct{} // capacity 1: there is something to deliver
	once sync.Once
	stop chan struct{}
	gone *listeners

	mu struct {
		sync.Mutex
		keys []rueidis.RedisMessage
	}
}

// mostQueuedKeys bounds the keys queued for a listener, so that the memory of a slow one is bounded.
const mostQueuedKeys = 4096

func (l *listener) add(keys []rueidis.RedisMessage) {
	if keys == nil {
		l.any.Store(true)
	} else {
		l.mu.Lock()
		if len(l.mu.keys)+len(keys) <= mostQueuedKeys {
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

// run delivers until the view or the Cache is closed.
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

// end is called by the view's Close. It does not wait for a running call of fn.
func (l *listener) end() {
	if l != nil {
		l.gone.remove(l)
		l.once.Do(func() { close(l.stop) })
	}
}
