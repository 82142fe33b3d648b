package bench

import (
	"context"

	"github.com/holdfast-cache/holdfast/bench/worker"
	"golang.org/x/sync/singleflight"
)

// flights is a program without a cache library: Redis, the source behind it, and
// singleflight in front of both.
type flights struct {
	store store
	group singleflight.Group
}

func openFlights(s worker.Setup) (worker.Peer, error) {
	st, err := openStore(s.Addr, s.Budget)
	if err != nil {
		return nil, err
	}
	return &flights{store: st}, nil
}

func (p *flights) Get(ctx context.Context, key string, load func(context.Context) ([]byte, error)) ([]byte, error) {
	v, err, _ := p.group.Do(key, func() (any, error) {
		if b, found := p.store.get(ctx, key); found {
			return b, nil
		}
		b, err := load(ctx)
		if err == nil {
			p.store.set(ctx, key, b)
		}
		return b, err
	})
	b, _ := v.([]byte)
	return b, err
}

func (p *flights) Close() { p.store.client.Close() }
