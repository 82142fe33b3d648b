package bench

import (
	"context"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/bench/worker"
	"github.com/redis/rueidis"
)

// keptFor is the TTL of loaded values in each peer.
const keptFor = 10 * time.Minute

type holdfastPeer struct{ c *holdfast.Cache }

func openHoldfast(s worker.Setup, lease bool) (worker.Peer, error) {
	o := holdfast.Options{
		Redis:   rueidis.ClientOption{InitAddress: []string{s.Addr}},
		Timeout: s.Budget,
	}
	if !lease {
		o.Load.Lease = -1
	}
	c, err := holdfast.New(o)
	if err != nil {
		return nil, err
	}
	// The other peers are connected once they are open.
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := c.WaitReady(ctx); err != nil {
		c.Close()
		return nil, err
	}
	return holdfastPeer{c}, nil
}

func (p holdfastPeer) Get(ctx context.Context, key string, load func(context.Context) ([]byte, error)) ([]byte, error) {
	return p.c.GetOrLoad(ctx, key, keptFor, load)
}

func (p holdfastPeer) Close() { p.c.Close() }
