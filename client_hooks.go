package holdfast

import (
	"context"

	"github.com/holdfast-cache/holdfast/internal/link"
	"github.com/redis/rueidis"
)

// SetPubSubHooks implements rueidis.DedicatedClient. Hooks that are set before the first command
// take effect with the connection that the command dials.
func (d *dedicated) SetPubSubHooks(hooks rueidis.PubSubHooks) <-chan error {
	return d.setHooks(hooks.OnMessage == nil && hooks.OnSubscription == nil, &pendingHooks{hooks: hooks},
		func(conn *link.Conn) <-chan error { return conn.Dedicated.SetPubSubHooks(hooks) })
}

// SetOnInvalidations implements rueidis.DedicatedClient.
func (d *dedicated) SetOnInvalidations(fn func([]rueidis.RedisMessage)) <-chan error {
	d.mu.Lock()
	next := &pendingHooks{onInvalidations: fn}
	if old := d.mu.hooks; old != nil {
		next.hooks = old.hooks
	}
	d.mu.Unlock()
	none := fn == nil && next.hooks.OnMessage == nil && next.hooks.OnSubscription == nil
	return d.setHooks(none, next,
		func(conn *link.Conn) <-chan error { return conn.Dedicated.SetOnInvalidations(fn) })
}

// setHooks sets the hooks now, or as soon as there is a connection.
func (d *dedicated) setHooks(none bool, next *pendingHooks, set func(*link.Conn) <-chan error) <-chan error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.mu.released {
		return failedHooks(rueidis.ErrDedicatedClientRecycled)
	}
	if conn := d.mu.conn; conn != nil {
		d.mu.state.marked = true
		return set(conn)
	}
	d.mu.hooks.fail(nil)
	d.mu.hooks = nil
	if none {
		return nil
	}
	next.cl, next.ended = d.cl, make(chan error, 1)
	d.mu.hooks = next
	return next.ended
}

func failedHooks(err error) <-chan error {
	ended := make(chan error, 1)
	ended <- err
	return ended
}

// pendingHooks are hooks that wait for a connection. A nil pointer means none.
type pendingHooks struct {
	cl              *client
	hooks           rueidis.PubSubHooks
	onInvalidations func([]rueidis.RedisMessage)
	ended           chan error // closed when the hooks will not be called any more
}

// fail ends the hooks: there will be no connection.
func (h *pendingHooks) fail(err error) {
	if h == nil {
		return
	}
	if err != nil {
		h.ended <- err
	}
	close(h.ended)
}

// install passes the hooks to the connection. The caller has entered the call gate.
func (h *pendingHooks) install(conn *link.Conn) {
	if h == nil {
		return
	}
	var ended <-chan error
	if h.hooks.OnMessage != nil || h.hooks.OnSubscription != nil {
		ended = conn.Dedicated.SetPubSubHooks(h.hooks)
	}
	if h.onInvalidations != nil {
		ended = conn.Dedicated.SetOnInvalidations(h.onInvalidations)
	}
	// The goroutine ends with the connection at the latest.
	if !h.cl.c.workers.Spawn("hooks", func() {
		for err := range ended {
			if err != nil { // rueidis' own error, if its PING got no answer
				err, _ = conn.Worded(context.Background(), err)
			}
			h.ended <- err
		}
		close(h.ended)
	}) {
		h.fail(ErrClosed)
	}
}
