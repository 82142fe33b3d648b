//go:build ignore

// The program of a fleet whose peer is rueidisaside itself, in the last version that was
// part of rueidis' own module. It needs another version of rueidis than holdfast does, so
// the program is built by its name and with requirements of its own:
//
//	go build -modfile=rueidisaside/go.alt.mod -o worker rueidisaside/main.go
package main

import (
	"context"
	"time"

	"github.com/holdfast-cache/holdfast/bench/worker"
	"github.com/redis/rueidis"
	"github.com/redis/rueidis/rueidisaside"
)

type peer struct{ client rueidisaside.CacheAsideClient }

func (p peer) Get(ctx context.Context, key string, load func(context.Context) ([]byte, error)) ([]byte, error) {
	v, err := p.client.Get(ctx, 10*time.Minute, key, func(ctx context.Context, _ string) (string, error) {
		b, err := load(ctx)
		return string(b), err
	})
	return []byte(v), err
}

func (p peer) Close() { p.client.Close() }

func main() {
	worker.Main(func(s worker.Setup) (worker.Peer, error) {
		client, err := rueidisaside.NewClient(rueidisaside.ClientOption{
			ClientOption: rueidis.ClientOption{InitAddress: []string{s.Addr}},
		})
		return peer{client}, err
	})
}
