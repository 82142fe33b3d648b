package goredis_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/goredis"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/go-redis/v9"
)

func TestAttachRefusesAClientThatGoesElsewhere(t *testing.T) {
	begin(t)
	const here = "127.0.0.1:1"
	sentinel := at(here)
	sentinel.Redis.Sentinel.MasterSet = "m"
	other := at(here)
	other.Redis.SelectDB = 2
	cluster := at(here)
	cluster.Mode = holdfast.ModeCluster
	standalone := at(here)
	standalone.Mode = holdfast.ModeStandalone
	single := func(o redis.Options) redis.UniversalClient { return plain(t, &o) }
	ofCluster := func(addrs ...string) redis.UniversalClient {
		rdb := redis.NewClusterClient(&redis.ClusterOptions{Addrs: addrs})
		t.Cleanup(func() { _ = rdb.Close() })
		return rdb
	}
	failover := redis.NewFailoverClient(&redis.FailoverOptions{MasterName: "m", SentinelAddrs: []string{here}})
	t.Cleanup(func() { _ = failover.Close() })
	failoverCluster := redis.NewFailoverClusterClient(&redis.FailoverOptions{MasterName: "m", SentinelAddrs: []string{here}})
	t.Cleanup(func() { _ = failoverCluster.Close() })
	ring := redis.NewRing(&redis.RingOptions{Addrs: map[string]string{"a": here}})
	t.Cleanup(func() { _ = ring.Close() })
	for _, tt := range []struct {
		name string
		o    holdfast.Options
		rdb  redis.UniversalClient
		want string // in the error; "": none
	}{
		{"the same", at(here), single(redis.Options{Addr: here}), ""},
		{"the same by another name of this host", at(here), single(redis.Options{Addr: "localhost:1"}), ""},
		{"the same database", other, single(redis.Options{Addr: here, DB: 2}), ""},
		{"another port", at(here), single(redis.Options{Addr: "127.0.0.1:2"}), "goes to 127.0.0.1:2"},
		{"another host", at(here), single(redis.Options{Addr: "redis.example:1"}), "goes to redis.example:1"},
		{"another database", other, single(redis.Options{Addr: here}), "database 0, and the cache 2"},
		{"no Redis", holdfast.Options{}, single(redis.Options{Addr: here}), "has no Redis"},
		{"sentinels on both sides", sentinel, failover, ""},
		{"sentinels of the client's alone", at(here), failover, "MasterSet"},
		{"sentinels of the cache's alone", sentinel, single(redis.Options{Addr: here}), "NewFailoverClient"},
		{"sentinels with replicas", sentinel, failoverCluster, "NewFailoverClient"},
		{"replicas, and the cache is to ask", at(here), failoverCluster, "NewFailoverClient"},
		{"a cluster on both sides", cluster, ofCluster("127.0.0.1:7", here), ""},
		{"a cluster, and the cache is to ask", at(here), ofCluster(here), ""},
		{"another cluster", cluster, ofCluster("127.0.0.1:7"), "share an address"},
		{"a cluster of the cache's alone", cluster, single(redis.Options{Addr: here}), "NewClusterClient"},
		{"a cluster of the client's alone", standalone, ofCluster(here), "the cache is not"},
		{"a ring", at(here), ring, "Ring"},
		{"nothing", at(here), nil, "cannot attach to a <nil>"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := goredis.Attach(tt.rdb, open(t, tt.o))
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("%v; want %q", err, tt.want)
			}
		})
	}
	if err := goredis.Attach(single(redis.Options{Addr: here}), nil); err == nil {
		t.Error("attached to no cache")
	}
}

// A Conn of go-redis' looks like the place for SELECT and RESET. Its connection is one of
// the pool, and goes back there; and the cache is one of one database.
func TestNoConnEverServesAnotherDatabase(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	o := calm(s.Addr())
	o.Redis.SelectDB = 3
	rdb, c := attached(t, o)
	s.MustDo("SET", "k", "of 0")
	s.MustDo("HSET", "h", "f", "of 0")
	must(t, rdb.Set(ctx, "k", "of 3", 0).Err())
	must(t, rdb.HSet(ctx, "h", "f", "of 3").Err())
	for what, change := range map[string]func(conn *redis.Conn) error{
		"Select":         func(conn *redis.Conn) error { return conn.Select(ctx, 0).Err() },
		"SELECT by Do":   func(conn *redis.Conn) error { return conn.Do(ctx, "SELECT", 0).Err() },
		"select by Do":   func(conn *redis.Conn) error { return conn.Do(ctx, "select", "0").Err() },
		"no database":    func(conn *redis.Conn) error { return conn.Do(ctx, "select").Err() },
		"RESET":          func(conn *redis.Conn) error { return conn.Do(ctx, "RESET").Err() },
		"in a pipeline":  func(conn *redis.Conn) error { _, err := conn.Pipelined(ctx, selects(ctx)); return err },
		"in transaction": func(conn *redis.Conn) error { _, err := conn.TxPipelined(ctx, selects(ctx)); return err },
		"RESET in a pipeline": func(conn *redis.Conn) error {
			_, err := conn.Pipelined(ctx, func(p redis.Pipeliner) error { p.Do(ctx, "reset"); p.Get(ctx, "k"); return nil })
			return err
		},
	} {
		conn := rdb.Conn()
		if err := change(conn); err == nil || !strings.Contains(err.Error(), "goredis: ") {
			t.Errorf("%s: %v; want a refusal of its own", what, err)
		}
		for name, got := range map[string]string{
			"the Conn": conn.Get(ctx, "k").Val(), "the client": rdb.Get(ctx, "k").Val(),
			"the Conn, by Redis": conn.HGet(ctx, "h", "f").Val(), "the client, by Redis": rdb.HGet(ctx, "h", "f").Val(),
		} {
			if got != "of 3" {
				t.Errorf("after %s, %s has %q", what, name, got)
			}
		}
		must(t, conn.Select(ctx, 3).Err())
		must(t, conn.Close())
	}
	if v, err := c.Get(ctx, "k"); err != nil || string(v) != "of 3" {
		t.Errorf("the cache has %q, %v", v, err)
	}
}

func selects(ctx context.Context) func(redis.Pipeliner) error {
	return func(p redis.Pipeliner) error {
		p.Do(ctx, "SELECT", 0)
		p.HGet(ctx, "h", "f")
		return nil
	}
}

func TestAfterCloseOfTheCacheEveryCommandSaysSo(t *testing.T) {
	ctx := begin(t)
	c := open(t, at("127.0.0.1:1"))
	rdb := plain(t, &redis.Options{Addr: "127.0.0.1:1"})
	must(t, goredis.Attach(rdb, c))
	must(t, c.Close())
	_, inPipeline := rdb.Pipelined(ctx, func(p redis.Pipeliner) error { p.Incr(ctx, "k"); return nil })
	for what, err := range map[string]error{
		"GET": rdb.Get(ctx, "k").Err(), "SET": rdb.Set(ctx, "k", 1, 0).Err(), "MGET": rdb.MGet(ctx, "k").Err(),
		"INCR": rdb.Incr(ctx, "k").Err(), "PING": rdb.Ping(ctx).Err(), "a pipeline": inPipeline,
	} {
		if !errors.Is(err, holdfast.ErrClosed) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
