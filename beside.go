package holdfast

import (
	"context"
	"fmt"
)

// What goes to Redis beside the tiers: a command that they do not know, of the
// drop-in client or of another client in the program. Before it is sent, Redis must
// have what this Cache wrote to its keys; once it is answered, nothing that was known
// of them before may be served.

// Settle is for a program that also writes by another client. It returns nil once
// Redis has what this Cache wrote to the keys, so that a command of that client finds
// it there; mostly at once, for a write that Redis has acknowledged is there. One that
// the journal still holds is replayed first. It may wait for that, for at most
// Options.Timeout.
//
// Errors: ErrUnavailable, at once but as with Add, while Redis is away, and where a write could not be
// replayed in time or waits for its second look; the context's own; ErrClosed. Without
// keys it says whether Redis is there, all of it.
func (c *Cache) Settle(ctx context.Context, keys ...string) error {
	lane, open := c.fence.enter()
	defer lane.leave()
	if err := enterable(ctx, open); err != nil {
		return err
	}
	if c.routes == nil {
		return ErrUnavailable
	}
	bounded, cancel := c.remote.bound(ctx, c.clock.now())
	defer cancel()
	return c.settled(bounded, keys)
}

// settled is Settle within the fence.
func (c *Cache) settled(ctx bound, keys []string) error {
	if len(keys) == 0 {
		for again := true; again; { // the first attempt may find a cluster
			again = false
			for _, l := range c.routes.links() {
				_, waited := c.awaitLink(ctx.caller, ctx.began, true, func() *link { return l })
				again = again || waited && ctx.Err() == nil
				if l.reader() == nil && !again {
					return ErrUnavailable
				}
			}
		}
	}
	for _, key := range keys {
		h := c.local.hash(key)
		if c.journal.holds(h, key) {
			if _, err := c.decider(ctx, h, key); err != nil {
				return err
			}
		} else if l, _ := c.awaitLink(ctx.caller, ctx.began, true, func() *link { return c.routes.link(c.routes.of(key)) }); l.reader() == nil {
			return ErrUnavailable
		}
	}
	return nil
}

// Invalidate is for a program that also writes by another client, or whose Redis
// cannot tell of changes: what this Cache has of the keys is not served any more, nor
// what a read or a load that is under way finds of them. What the journal holds of
// them stays: that is newer. It waits for nothing and asks nobody.
//
// The error is ErrClosed.
func (c *Cache) Invalidate(keys ...string) error {
	lane, open := c.fence.enter()
	defer lane.leave()
	if !open {
		return ErrClosed
	}
	c.invalidate(keys)
	return nil
}

func (c *Cache) invalidate(keys []string) {
	for _, key := range keys {
		h := c.local.hash(key)
		c.flights.overtake(h)
		c.local.put(h, nil)
	}
}

// Options returns what New was given, with the defaults filled in: for whoever puts
// another client beside the Cache and must know where it goes and how long a call may
// take. It is a copy, but what it points to is the Cache's own. Passwords are left out,
// and so is Redis.AuthCredentialsFn.
func (c *Cache) Options() Options { return c.opts.withoutSecrets() }

// Format implements fmt.Formatter: a Cache prints as its state, for its fields hold
// passwords.
func (c *Cache) Format(f fmt.State, _ rune) {
	if c == nil {
		fmt.Fprint(f, "holdfast.Cache(nil)")
		return
	}
	fmt.Fprintf(f, "holdfast.Cache(%v)", c.Health().State)
}
