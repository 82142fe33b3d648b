package goredis_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/goredis"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/go-redis/v9"
)

// recorder is a hook that records the names of the commands that it sees.
type recorder struct {
	mu   sync.Mutex
	seen []string
}

func (r *recorder) record(cmds ...redis.Cmder) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, cmd := range cmds {
		r.seen = append(r.seen, cmd.Name())
	}
}

// take returns the names since the last call of take.
func (r *recorder) take() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	names := strings.Join(r.seen, " ")
	r.seen = nil
	return names
}

func (r *recorder) DialHook(next redis.DialHook) redis.DialHook { return next }

func (r *recorder) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		r.record(cmd)
		return next(ctx, cmd)
	}
}

func (r *recorder) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		r.record(cmds...)
		return next(ctx, cmds)
	}
}

// deployment is where Redis is.
type deployment struct {
	options holdfast.Options
	addrs   []string
	master  string // its name at the sentinels
}

func oneServer(t *testing.T) deployment {
	o := calm(redistest.Start(t).Addr())
	return deployment{options: o, addrs: o.Redis.InitAddress}
}

func sentinels(t *testing.T) deployment {
	redistest.Long(t)
	o := calm("")
	o.Redis.InitAddress = redistest.StartSentinel(t, 1).Addrs()
	o.Redis.Sentinel.MasterSet = redistest.MasterSet
	return deployment{o, o.Redis.InitAddress, redistest.MasterSet}
}

func cluster(t *testing.T) deployment {
	redistest.Long(t)
	o := calm("")
	o.Redis.InitAddress = redistest.StartCluster(t, 3, 0).Addrs()
	return deployment{options: o, addrs: o.Redis.InitAddress}
}

func universal(d deployment) redis.UniversalClient {
	return redis.NewUniversalClient(&redis.UniversalOptions{Addrs: d.addrs, MasterName: d.master})
}

// clients are the kinds of clients to which a cache can be attached.
var clients = map[string]struct {
	deploy func(*testing.T) deployment
	open   func(deployment) redis.UniversalClient
}{
	"NewClient":                           {oneServer, func(d deployment) redis.UniversalClient { return redis.NewClient(&redis.Options{Addr: d.addrs[0]}) }},
	"NewUniversalClient of one address":   {oneServer, universal},
	"NewUniversalClient of sentinels":     {sentinels, universal},
	"NewUniversalClient of several nodes": {cluster, universal},
	"NewFailoverClient": {sentinels, func(d deployment) redis.UniversalClient {
		return redis.NewFailoverClient(&redis.FailoverOptions{MasterName: d.master, SentinelAddrs: d.addrs})
	}},
	"NewClusterClient": {cluster, func(d deployment) redis.UniversalClient {
		return redis.NewClusterClient(&redis.ClusterOptions{Addrs: d.addrs})
	}},
}

// A hook of the program's own is before the cache or behind it, in the order in which they were
// added.
func TestEachKindOfClientIsServedBetweenItsHooks(t *testing.T) {
	for name, kind := range clients {
		t.Run(name, func(t *testing.T) {
			ctx := begin(t)
			d := kind.deploy(t)
			c := open(t, d.options)
			rdb := kind.open(d)
			t.Cleanup(func() { _ = rdb.Close() })
			before, after := &recorder{}, &recorder{}
			rdb.AddHook(before)
			must(t, goredis.Attach(rdb, c))
			rdb.AddHook(after)
			ready(t, c)
			must(t, rdb.Incr(ctx, "{k}:warm").Err()) // hooks see the handshakes, too
			before.take()
			after.take()
			for _, step := range []struct {
				run           func() (any, error)
				want          any
				before, after string // the commands that the hooks see
			}{
				{func() (any, error) { return rdb.Set(ctx, "{k}", 1, time.Hour).Result() }, "OK", "set", ""},
				{func() (any, error) { return rdb.Get(ctx, "{k}").Result() }, "1", "get", ""},
				{func() (any, error) { return rdb.Incr(ctx, "{k}").Result() }, int64(2), "incr", "incr"},
				{func() (any, error) { return rdb.MGet(ctx, "{k}", "{k}:none").Result() }, []any{"2", nil}, "mget", ""},
				{func() (any, error) { return rdb.HSet(ctx, "{k}:h", "f", "v").Result() }, int64(1), "hset", "hset"},
				{func() (any, error) { return rdb.HGetAll(ctx, "{k}:h").Result() }, map[string]string{"f": "v"}, "hgetall", "hgetall"},
				{func() (any, error) {
					cmds, err := rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
						p.Set(ctx, "{k}", 5, 0)
						p.Incr(ctx, "{k}")
						p.Get(ctx, "{k}")
						return nil
					})
					return cmds[2].(*redis.StringCmd).Val(), err
				}, "6", "set incr get", "incr get"},
				{func() (any, error) {
					cmds, err := rdb.TxPipelined(ctx, func(p redis.Pipeliner) error { p.Set(ctx, "{k}", 7, 0); p.Get(ctx, "{k}"); return nil })
					return cmds[1].(*redis.StringCmd).Val(), err
				}, "7", "multi set get exec", "multi set get exec"},
				{func() (any, error) { return rdb.Del(ctx, "{k}", "{k}:h").Result() }, int64(2), "del", ""},
			} {
				got, err := step.run()
				if fmt.Sprint(got) != fmt.Sprint(step.want) || err != nil {
					t.Errorf("%s: %v, %v; want %v", step.before, got, err, step.want)
				}
				if b, a := before.take(), after.take(); b != step.before || a != step.after {
					t.Errorf("the hook before the cache saw %q, that behind it %q; want %q, %q", b, a, step.before, step.after)
				}
			}
		})
	}
}

// A cluster's client makes the transaction with the client of a node. Without tracking, only the
// hook can tell the cache of its writes.
func TestWritesOfAWATCHEndTheLocalCopies(t *testing.T) {
	for name, kind := range clients {
		t.Run(name, func(t *testing.T) {
			ctx := begin(t)
			d := kind.deploy(t)
			d.options.Tracking.Mode, d.options.Tracking.UntrackedTTL = holdfast.TrackOff, time.Hour
			c := open(t, d.options)
			rdb := kind.open(d)
			t.Cleanup(func() { _ = rdb.Close() })
			must(t, goredis.Attach(rdb, c))
			ready(t, c)
			must(t, rdb.Set(ctx, "{k}", "old", 0).Err())
			must(t, rdb.Get(ctx, "{k}").Err())
			must(t, rdb.Watch(ctx, func(tx *redis.Tx) error {
				_, err := tx.TxPipelined(ctx, func(p redis.Pipeliner) error { return p.Set(ctx, "{k}", "new", 0).Err() })
				return err
			}, "{k}"))
			if v, err := rdb.Get(ctx, "{k}").Result(); v != "new" || err != nil {
				t.Errorf("%q, %v", v, err)
			}
		})
	}
}

// derived are the clients that share a pool with the client from which they were made.
var derived = map[string]func(rdb *redis.Client) redis.Cmdable{
	"WithTimeout": func(rdb *redis.Client) redis.Cmdable { return rdb.WithTimeout(time.Minute) },
	"Conn":        func(rdb *redis.Client) redis.Cmdable { return rdb.Conn() },
}

func closeConn(rdb redis.Cmdable) {
	if conn, ok := rdb.(*redis.Conn); ok {
		_ = conn.Close()
	}
}

// go-redis from 9.16 on leaves the hooks out of a client of WithTimeout: it is to be attached, too. With
// other versions the second hook changes nothing.
func TestAClientMadeOfAnAttachedOneIsServed(t *testing.T) {
	for name, derive := range derived {
		t.Run(name, func(t *testing.T) {
			ctx := begin(t)
			s := redistest.Start(t)
			rdb, c := attached(t, at(s.Addr()))
			own := derive(rdb)
			defer closeConn(own)
			if clone, ok := own.(*redis.Client); ok {
				must(t, goredis.Attach(clone, c))
			}
			redistest.WaitFor(t, patience, "INCR within its budget", func() bool { return own.Incr(ctx, "n").Err() == nil })
			s.Kill()
			waitState(t, c, holdfast.Down)
			must(t, own.Set(ctx, "k", "v", 0).Err())
			if v, err := own.Get(ctx, "k").Result(); v != "v" || err != nil {
				t.Errorf("GET: %q, %v", v, err)
			}
			took, err := timed(func() error { return own.Incr(ctx, "n").Err() })
			if !errors.Is(err, holdfast.ErrUnavailable) || took > slack {
				t.Errorf("INCR: %v after %v", err, took)
			}
		})
	}
}

// One that was made before is no client of the cache's: it sees Redis alone, and the server
// announces its writes.
func TestAClientMadeBeforeAttachIsNotServed(t *testing.T) {
	for name, derive := range derived {
		t.Run(name, func(t *testing.T) {
			ctx := begin(t)
			s := redistest.Start(t)
			c := open(t, calm(s.Addr()))
			rdb := plain(t, &redis.Options{Addr: s.Addr(), MaxRetries: -1})
			own := derive(rdb)
			defer closeConn(own)
			must(t, goredis.Attach(rdb, c))
			ready(t, c)
			must(t, rdb.Set(ctx, "k", "old", 0).Err())
			must(t, rdb.Get(ctx, "k").Err())
			must(t, own.Set(ctx, "k", "new", 0).Err())
			redistest.WaitFor(t, patience, "the invalidation", func() bool { return rdb.Get(ctx, "k").Val() == "new" })
			s.Kill()
			waitState(t, c, holdfast.Down)
			if err := own.Set(ctx, "k", "lost", 0).Err(); err == nil {
				t.Error("SET succeeded without Redis")
			}
			if v, err := rdb.Get(ctx, "k").Result(); v != "new" || err != nil {
				t.Errorf("GET of the attached client: %q, %v", v, err)
			}
		})
	}
}

func TestTheClientOfANodeIsServedForItsKeysAlone(t *testing.T) {
	ctx := begin(t)
	d := cluster(t)
	d.options.Tracking.Mode, d.options.Tracking.UntrackedTTL = holdfast.TrackOff, time.Hour
	c := open(t, d.options)
	rdb := redis.NewClusterClient(&redis.ClusterOptions{Addrs: d.addrs})
	t.Cleanup(func() { _ = rdb.Close() })
	must(t, goredis.Attach(rdb, c))
	ready(t, c)
	const n = 30
	for i := range n {
		must(t, rdb.Set(ctx, fmt.Sprint("k", i), "old", 0).Err())
		must(t, rdb.Get(ctx, fmt.Sprint("k", i)).Err())
	}
	node, err := rdb.MasterForKey(ctx, "k0")
	must(t, err)
	must(t, node.Append(ctx, "k0", "er").Err())
	if v, err := rdb.Get(ctx, "k0").Result(); v != "older" || err != nil {
		t.Errorf("after APPEND by the node's client: %q, %v", v, err)
	}
	if size, err := node.DBSize(ctx).Result(); size == 0 || size >= n || err != nil {
		t.Errorf("the node has %d keys, %v", size, err)
	}
}
