package holdfast

import (
	"context"
	"fmt"

	"github.com/holdfast-cache/holdfast/internal/link"
)

// This file has the calls for a program that uses another client of the same Redis beside
// the Cache, and for commands that the tiers do not know. Before such a command is sent,
// Redis must have the writes that this Cache made to the command's keys. After the
// answer, no value of these keys that was known before may be served.

// Deliver waits until Redis has the writes of this Cache to the keys, so that another
// client of the program finds them there. A write that Redis has acknowledged is there
// already, so Deliver mostly returns at once. A write that is in the journal is replayed
// first. Deliver waits for at most Options.Timeout. Without keys it does nothing and
// returns nil; see Available.
//
// Errors: ErrUnavailable while Redis is away (at once, but for the attempts that Add waits
// for, too), where a write could not be replayed in time, and where its second check is
// still due; the context's own; ErrClosed.
func (c *Cache) Deliver(ctx context.Context, keys ...string) error {
	sh, open := c.inflight.Enter()
	defer sh.Leave()
	if err := enterable(ctx, open); err != nil {
		return err
	}
	if len(keys) == 0 {
		return nil
	}
	if c.routes == nil {
		return ErrUnavailable
	}
	bounded, cancel := c.remote.Bound(ctx, c.clock.Now())
	defer cancel()
	return c.deliverNow(bounded, keys)
}

// deliverNow is Deliver for a call that is counted in.
func (c *Cache) deliverNow(ctx link.Bound, keys []string) error {
	for _, key := range keys {
		h := c.local.Hash(key)
		if c.journal.Holds(h, key) {
			if _, err := c.writerAfterReplay(ctx, h, key); err != nil {
				return err
			}
		} else if l, _ := c.remote.AwaitLink(ctx.Caller, ctx.Began, true, func() *link.Link { return c.routes.Link(c.routes.Of(key)) }); l.Reader() == nil {
			return ErrUnavailable
		}
	}
	return nil
}

// Available returns nil while the circuit to Redis is closed: in a cluster, to each
// master. It is for a program that uses another client beside the Cache and wants to
// know, before each command, whether to send it. It sends nothing; Check sends a probe.
// It counts as a use of the Cache, so the supervisor looks for a Redis that is away.
//
// Errors: ErrUnavailable while Redis is away, at once, but for the attempts that Add waits
// for, too, within Options.Timeout; the context's own; ErrClosed.
func (c *Cache) Available(ctx context.Context) error {
	sh, open := c.inflight.Enter()
	defer sh.Leave()
	if err := enterable(ctx, open); err != nil {
		return err
	}
	if c.routes == nil {
		return ErrUnavailable
	}
	began := c.clock.Now()
	bounded, cancel := c.remote.Bound(ctx, began)
	defer cancel()
	for again := true; again; { // the first attempt may find a cluster
		again = false
		for _, l := range c.routes.Links() {
			_, waited := c.remote.AwaitLink(ctx, began, true, func() *link.Link { return l })
			again = again || waited && bounded.Err() == nil
			if l.Reader() == nil && !again {
				return ErrUnavailable
			}
		}
	}
	return nil
}

// Invalidate is for a program that also writes by another client, or whose Redis does not
// track keys. The local copies of the keys are no longer served, and a read or a load of
// them that is under way is not kept. A write of theirs in the journal stays, because it
// is newer. Invalidate waits for nothing and sends nothing.
//
// The only error is ErrClosed.
func (c *Cache) Invalidate(keys ...string) error {
	sh, open := c.inflight.Enter()
	defer sh.Leave()
	if !open {
		return ErrClosed
	}
	c.invalidate(keys)
	return nil
}

func (c *Cache) invalidate(keys []string) {
	for _, key := range keys {
		h := c.local.Hash(key)
		c.flights.Supersede(h)
		c.local.Put(h, nil)
	}
}

// Options returns the options that New was given, with the defaults filled in. It is for
// a program that puts another client beside the Cache and must know where Redis is and
// how long a call may take. The secrets are left out: Redis.Password and
// Redis.Sentinel.Password are empty, and Redis.AuthCredentialsFn, which would return
// them, is nil. The struct is a copy, but its slices and pointers, such as
// Redis.TLSConfig with the client's certificates, are the Cache's own: do not write to
// them.
func (c *Cache) Options() Options { return c.opts.withoutSecrets() }

// Format implements fmt.Formatter. A Cache prints as its state, because its fields hold
// passwords.
func (c *Cache) Format(f fmt.State, _ rune) {
	if c == nil {
		fmt.Fprint(f, "holdfast.Cache(nil)")
		return
	}
	fmt.Fprintf(f, "holdfast.Cache(%v)", c.Health().State)
}
