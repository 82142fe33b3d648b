package holdfast

import (
	"context"
	"crypto/tls"
	"net"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"
)

// client is a view of a Cache as a rueidis.Client.
type client struct {
	c      *Cache
	only   *link // of Nodes: its commands go there, and past the tiers; nil for all
	closed atomic.Bool
}

var _ rueidis.Client = (*client)(nil)

// Client is the Cache as a rueidis.Client: a program that is written for one keeps its
// commands and gets both tiers. It waits for nothing; each call returns a view of its
// own, and Close of a view ends that view and not the Cache.
func (c *Cache) Client() rueidis.Client {
	return &client{c: c}
}

// noDial is a rueidis client that has never been connected and cannot be: it is there
// for its Builder, which cannot be had without one.
func noDial() (rueidis.Client, error) {
	return rueidis.NewClient(rueidis.ClientOption{
		InitAddress:       []string{"nowhere:0"},
		ForceSingleClient: true,
		DisableCache:      true,
		DisableRetry:      true,
		DialCtxFn: func(context.Context, string, *net.Dialer, *tls.Config) (net.Conn, error) {
			return nil, errNoPermit
		},
	})
}

// B is the builder of commands.
func (cl *client) B() rueidis.Builder {
	lazy, _ := noDial()
	return lazy.B()
}

// Do is rueidis.Client's.
func (cl *client) Do(ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	return cl.ownDo(ctx, cmd)[0]
}

// DoMulti is rueidis.Client's.
func (cl *client) DoMulti(ctx context.Context, multi ...rueidis.Completed) []rueidis.RedisResult {
	return cl.ownDo(ctx, multi...)
}

// DoCache is rueidis.Client's.
func (cl *client) DoCache(ctx context.Context, cmd rueidis.Cacheable, ttl time.Duration) rueidis.RedisResult {
	return cl.Do(ctx, rueidis.Completed(cmd))
}

// DoMultiCache is rueidis.Client's.
func (cl *client) DoMultiCache(ctx context.Context, multi ...rueidis.CacheableTTL) []rueidis.RedisResult {
	replies := make([]rueidis.RedisResult, len(multi))
	for i, m := range multi {
		replies[i] = cl.DoCache(ctx, m.Cmd, m.TTL)
	}
	return replies
}

// before makes ready for commands that go to Redis beside the tiers, with these
// arguments: Redis gets what the journal has of their keys, and where they may write,
// nothing that is known of the keys is served any more. The caller is within the fence.
// It waits for at most what is left of the call's budget. The error is ErrUnavailable or
// the context's own; then nothing may be sent.
func (cl *client) before(ctx bound, args [][]string) error {
	return nil
}

// after is told that the commands were sent, whatever became of them.
func (cl *client) after(args [][]string) {}

// Nodes is rueidis.Client's.
func (cl *client) Nodes() map[string]rueidis.Client { return nil }

// Mode is rueidis.Client's.
func (cl *client) Mode() rueidis.ClientMode { return rueidis.ClientModeStandalone }

// Close ends the view: calls that come later get rueidis.ErrClosing. The Cache goes on.
func (cl *client) Close() { cl.closed.Store(true) }
