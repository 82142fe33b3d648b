package bench

import (
	"context"
	"time"

	"github.com/redis/rueidis"
)

// store is Redis as used by a program with rueidis, a deadline for each command, and a
// source to fall back on: every error is a miss. rueidis has its default options.
type store struct {
	client rueidis.Client
	budget time.Duration
}

func openStore(addr string, budget time.Duration) (store, error) {
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{addr}})
	return store{client, budget}, err
}

func (s store) get(ctx context.Context, key string) ([]byte, bool) {
	ctx, cancel := context.WithTimeout(ctx, s.budget)
	defer cancel()
	b, err := s.client.Do(ctx, s.client.B().Get().Key(key).Build()).AsBytes()
	return b, err == nil
}

func (s store) set(ctx context.Context, key string, value []byte) {
	ctx, cancel := context.WithTimeout(ctx, s.budget)
	defer cancel()
	s.client.Do(ctx, s.client.B().Set().Key(key).Value(rueidis.BinaryString(value)).Px(keptFor).Build())
}
