package bench

import (
	"context"

	"github.com/holdfast-cache/holdfast/bench/worker"
	"github.com/redis/rueidis"
	"github.com/viccon/sturdyc"
)

// sturdycPeer is sturdyc with its distributed storage on Redis. The capacity, the number
// of shards and the eviction percentage are those of sturdyc's own examples. Early
// refreshes are off, as in the other peers.
type sturdycPeer struct {
	store store
	cache *sturdyc.Client[[]byte]
}

func openSturdyc(s worker.Setup) (worker.Peer, error) { return newSturdyc(s) }

func newSturdyc(s worker.Setup) (*sturdycPeer, error) {
	st, err := openStore(s.Addr, s.Budget)
	if err != nil {
		return nil, err
	}
	return &sturdycPeer{st, sturdyc.New[[]byte](100_000, 100, keptFor, 25,
		sturdyc.WithDistributedStorage(distributed{st}))}, nil
}

func (p *sturdycPeer) Get(ctx context.Context, key string, load func(context.Context) ([]byte, error)) ([]byte, error) {
	return p.cache.GetOrFetch(ctx, key, load)
}

func (p *sturdycPeer) Close() { p.store.client.Close() }

// distributed adapts a store to sturdyc's interface.
type distributed struct{ store }

func (d distributed) Get(ctx context.Context, key string) ([]byte, bool) { return d.get(ctx, key) }

func (d distributed) Set(ctx context.Context, key string, value []byte) { d.set(ctx, key, value) }

func (d distributed) GetBatch(ctx context.Context, keys []string) map[string][]byte {
	ctx, cancel := context.WithTimeout(ctx, d.budget)
	defer cancel()
	found := map[string][]byte{}
	replies, err := rueidis.MGet(d.client, ctx, keys)
	if err != nil {
		return found
	}
	for key, reply := range replies {
		if b, err := reply.AsBytes(); err == nil {
			found[key] = b
		}
	}
	return found
}

func (d distributed) SetBatch(ctx context.Context, records map[string][]byte) {
	for key, value := range records {
		d.set(ctx, key, value)
	}
}
