package holdfast

import (
	"context"
	"crypto/tls"
	"net"
	"sync"

	"github.com/holdfast-cache/holdfast/internal/dial"
	"github.com/redis/rueidis"
)

// recycler returns commands to the pool of rueidis' builders. rueidis returns a command once it was
// sent and answered. A command that the tiers answer is never sent, so without the recycler each
// such command costs two allocations.
//
// The only exported calls that return a command without sending it are DoStream and DoMultiStream of
// a closed client. They take the locks of a connection pool, so the recycler collects commands and
// returns a batch at a time. A go:linkname to rueidis' own function would save 26 of 166 ns, but a
// program with a rueidis that has no such function would not link.
type recycler struct {
	closed  rueidis.Client
	batches sync.Pool // of *recycled
}

// recycled is a batch of commands.
type recycled struct {
	cmds [32]rueidis.Completed
	n    int
}

// newRecycler makes the recycler, with a client that has no connection and cannot get one.
func newRecycler() *recycler {
	unconnected, _ := rueidis.NewClient(rueidis.ClientOption{
		InitAddress:       []string{"nowhere:0"},
		ForceSingleClient: true,
		DisableCache:      true,
		DialCtxFn: func(context.Context, string, *net.Dialer, *tls.Config) (net.Conn, error) {
			return nil, dial.ErrNoPermit
		},
	})
	unconnected.Close()
	return &recycler{closed: unconnected, batches: sync.Pool{New: func() any { return new(recycled) }}}
}

// put returns a command that was answered. Its arguments must not be read afterwards. The rules are
// those of rueidis: a command that got no reply is left to its caller, and a pinned command stays
// as it is.
func (r *recycler) put(cmd rueidis.Completed, reply *rueidis.RedisResult) {
	if reply.NonRedisError() != nil {
		return
	}
	b := r.batches.Get().(*recycled)
	b.cmds[b.n] = cmd
	if b.n++; b.n == len(b.cmds) {
		r.closed.DoMultiStream(context.Background(), b.cmds[:]...)
		b.n = 0
	}
	r.batches.Put(b)
}
