package holdfast_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/rueidis"
)

func TestConnectionsOfTheirOwnGoWhereTheirKeysAre(t *testing.T) {
	ctx := begin(t)
	r := redistest.StartCluster(t, 3, 0)
	dials := &redistest.DialCounter{}
	o := inCluster(r.Addrs()...)
	o.Redis.DialCtxFn = dials.Dial
	c := open(t, o)
	ready(t, c)
	cl := c.Client()
	b := cl.B()
	for i := range 3 {
		key := keysAt(i, 1, "k")[0]
		must(t, c.Set(ctx, key, []byte("0"), 0))
		must(t, cl.Dedicated(func(d rueidis.DedicatedClient) error {
			must(t, d.Do(ctx, b.Watch().Key(key).Build()).Error())
			// The key of the first command decides, not MULTI.
			return d.DoMulti(ctx, b.Multi().Build(), b.Incr().Key(key).Build(), b.Exec().Build())[2].Error()
		}))
		wantGet(t, c, key, "1")
		stream := cl.DoMultiStream(ctx, b.Ping().Build(), b.Get().Key(key).Build())
		for stream.HasNext() {
			_, err := stream.WriteTo(io.Discard)
			must(t, err)
		}

		bounded, cancel := context.WithCancel(ctx)
		got := make(chan rueidis.PubSubMessage, 100)
		done := async(func() error {
			return cl.Receive(bounded, b.Ssubscribe().Channel(key).Build(), func(m rueidis.PubSubMessage) { got <- m })
		})
		redistest.WaitFor(t, patience, "a message", func() bool {
			r.Owner(key).MustDo("SPUBLISH", key, "m")
			return len(got) > 0
		})
		cancel()
		if err := result(t, "Receive", done); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		// A view of a node goes nowhere else.
		node := c.Client().Nodes()[r.Nodes()[i].Addr()]
		other := keysAt((i+1)%3, 1, "k")[0]
		must(t, node.Dedicated(func(d rueidis.DedicatedClient) error { return d.Do(ctx, b.Get().Key(key).Build()).Error() }))
		err := node.Dedicated(func(d rueidis.DedicatedClient) error { return d.Do(ctx, b.Get().Key(other).Build()).Error() })
		if e, ok := rueidis.IsRedisErr(err); !ok || !contains(e.Error(), "MOVED") {
			t.Errorf("another node's key: %v", err)
		}
	}
	// A batch of what blocks, at all three, in its order.
	var batch []rueidis.Completed
	for i := range 3 {
		key := keysAt(i, 1, "list")[0]
		r.Owner(key).MustDo("RPUSH", key, fmt.Sprint(i))
		batch = append(batch, b.Blpop().Key(key).Timeout(1).Build())
	}
	for i, reply := range cl.DoMulti(ctx, batch...) {
		if v, err := reply.AsStrSlice(); err != nil || v[1] != fmt.Sprint(i) {
			t.Errorf("%d: %v, %v", i, v, err)
		}
	}

	// One shard goes: what waits there fails, and what waits elsewhere does not notice.
	lost, stays := keysAt(0, 1, "q")[0], keysAt(1, 1, "q")[0]
	there := async(func() error { return cl.Do(ctx, b.Blpop().Key(lost).Timeout(0).Build()).Error() })
	elsewhere := async(func() error { return cl.Do(ctx, b.Blpop().Key(stays).Timeout(0).Build()).Error() })
	blocked(t, r.Owner(lost), 1)
	blocked(t, r.Owner(stays), 1)
	owner := r.Owner(stays)
	r.Nodes()[0].Kill()
	wantUnavailable(t, "BLPOP at the dead shard", result(t, "BLPOP", there))
	redistest.WaitFor(t, patience, "the job to be taken", func() bool {
		_, _ = owner.Do("RPUSH", stays, "job") // CLUSTERDOWN, perhaps
		select {
		case <-elsewhere:
			return true
		default:
			return false
		}
	})
}

func TestABlockingCommandFollowsItsSlot(t *testing.T) {
	ctx := begin(t)
	r := redistest.StartCluster(t, 3, 0)
	o := inCluster(r.Addrs()...)
	o.Redis.ClusterOption.ShardsRefreshInterval = time.Hour // the redirection is all there is
	c := open(t, o)
	ready(t, c)
	cl := c.Client()
	b := cl.B()
	key := keysAt(0, 1, "moves")[0]
	must(t, cl.Do(ctx, b.Rpush().Key(key).Element("1", "2", "3").Build()).Error())
	pop := func() {
		t.Helper()
		if v, err := cl.Do(ctx, b.Blpop().Key(key).Timeout(1).Build()).AsStrSlice(); err != nil || len(v) != 2 {
			t.Errorf("%v, %v", v, err)
		}
	}
	pop()
	m := r.BeginMove(redistest.Slot(key), r.Nodes()[1])
	m.Keys(key)
	pop() // ASK
	m.End()
	pop() // MOVED

	// A pinned command is used by many at once, and sent again by each.
	pinned := b.Blpop().Key(key).Timeout(0.01).Build().Pin()
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			if err := cl.Do(ctx, pinned).Error(); err != nil && !rueidis.IsRedisNil(err) {
				t.Error(err)
			}
		})
	}
	all.Wait()
}
