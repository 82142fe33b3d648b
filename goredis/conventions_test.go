package goredis_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/goredis"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/go-redis/v9"
)

func TestRepliesAreWhatGoRedisMakesOfThem(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	rdb, _ := attached(t, calm(s.Addr()))
	want := func(what string, got any, err error, want any, wantErr error) {
		t.Helper()
		if !reflect.DeepEqual(got, want) || !errors.Is(err, wantErr) || (err == nil) != (wantErr == nil) {
			t.Errorf("%s: %#v, %v; want %#v, %v", what, got, err, want, wantErr)
		}
	}
	v, err := rdb.Get(ctx, "k").Result()
	want("GET of nothing", v, err, "", redis.Nil)
	v, err = rdb.Set(ctx, "k", 7, time.Minute).Result()
	want("SET", v, err, "OK", nil)
	n, err := rdb.Get(ctx, "k").Int()
	want("GET as a number", n, err, 7, nil)
	d, err := rdb.TTL(ctx, "k").Result()
	want("TTL", d.Round(time.Minute), err, time.Minute, nil)
	d, err = rdb.PTTL(ctx, "k").Result()
	want("PTTL", d.Round(time.Minute), err, time.Minute, nil)
	ok, err := rdb.Persist(ctx, "k").Result()
	want("PERSIST", ok, err, true, nil)
	d, err = rdb.TTL(ctx, "k").Result()
	want("TTL of what does not end", d, err, time.Duration(-1), nil)
	d, err = rdb.PTTL(ctx, "none").Result()
	want("PTTL of nothing", d, err, time.Duration(-2), nil)
	ok, err = rdb.Expire(ctx, "none", time.Minute).Result()
	want("EXPIRE of nothing", ok, err, false, nil)
	v, err = rdb.Set(ctx, "k", "kept", redis.KeepTTL).Result()
	want("SET with KEEPTTL", v, err, "OK", nil)
	all, err := rdb.MGet(ctx, "k", "none", "k").Result()
	want("MGET", all, err, []any{"kept", nil, "kept"}, nil)
	v, err = rdb.MSet(ctx, "a", 1, "b", true).Result()
	want("MSET", v, err, "OK", nil)
	count, err := rdb.Exists(ctx, "a", "b", "none", "a").Result()
	want("EXISTS", count, err, int64(3), nil)
	count, err = rdb.Del(ctx, "a", "b", "none").Result()
	want("DEL", count, err, int64(2), nil)
	v, err = rdb.GetDel(ctx, "k").Result()
	want("GETDEL", v, err, "kept", nil)
	count, err = rdb.Unlink(ctx, "k").Result()
	want("UNLINK of nothing", count, err, int64(0), nil)
	ok, err = rdb.SetNX(ctx, "nx", 1, 0).Result()
	want("SETNX", ok, err, true, nil)
	ok, err = rdb.SetNX(ctx, "nx", 1, 0).Result()
	want("SETNX again", ok, err, false, nil)
	x, err := rdb.Do(ctx, "GET", "nx").Result()
	want("GET by Do", x, err, "1", nil)
	x, err = rdb.Do(ctx, "GET", "none").Result()
	want("GET of nothing by Do", x, err, nil, redis.Nil)
	x, err = rdb.Do(ctx, "EXPIRE", "nx", "60").Result()
	want("EXPIRE by Do", x, err, int64(1), nil)
	x, err = rdb.Do(ctx, "MGET", "nx", "none").Result()
	want("MGET by Do", x, err, []any{"1", nil}, nil)
	must(t, rdb.LPush(ctx, "list", "x").Err())
	if err := rdb.Get(ctx, "list").Err(); !redis.HasErrorPrefix(err, "WRONGTYPE") ||
		err.Error() != "WRONGTYPE Operation against a key holding the wrong kind of value" {
		t.Errorf("GET of a list: %v", err)
	}
	if err := rdb.Do(ctx, "set", "k").Err(); err == nil || err.Error() != "ERR wrong number of arguments for 'set' command" {
		t.Errorf("SET of nothing: %v", err)
	}
}

// Bytes of a reply may be written to: they are the command's own.
func TestWritingToAReplyHarmsNobody(t *testing.T) {
	ctx := begin(t)
	rdb, _ := attached(t, calm(redistest.Start(t).Addr()))
	must(t, rdb.Set(ctx, "k", "value", 0).Err())
	for range 3 {
		b, err := rdb.Get(ctx, "k").Bytes()
		if must(t, err); string(b) != "value" {
			t.Fatalf("%q", b)
		}
		b[0] = 'X'
	}
}

func TestWhatIsWrittenIsReadWhicheverWayItWent(t *testing.T) {
	for _, mode := range []holdfast.TrackingMode{holdfast.TrackReads, holdfast.TrackOff} {
		t.Run(mode.String(), func(t *testing.T) { whicheverWay(t, mode) })
	}
}

func whicheverWay(t *testing.T, mode holdfast.TrackingMode) {
	ctx := begin(t)
	s := redistest.Start(t)
	o := calm(s.Addr())
	o.Tracking.Mode, o.Tracking.UntrackedTTL = mode, time.Hour
	rdb, c := attached(t, o)
	// Somebody who reads meanwhile must not bring back what was there before.
	var readers sync.WaitGroup
	done := make(chan struct{})
	for range 2 {
		readers.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					_ = rdb.Get(ctx, "n").Err()
					runtime.Gosched()
				}
			}
		})
	}
	defer readers.Wait()
	defer close(done)
	for i := range 30 {
		must(t, rdb.Set(ctx, "n", i, 0).Err())
		for step, add := range []func() error{
			func() error { return rdb.Incr(ctx, "n").Err() },
			func() error { return rdb.Eval(ctx, "return redis.call('incr', KEYS[1])", []string{"n"}).Err() },
			func() error {
				_, err := rdb.TxPipelined(ctx, func(p redis.Pipeliner) error { p.Get(ctx, "n"); p.Incr(ctx, "n"); return nil })
				return err
			},
			func() error {
				_, err := rdb.Pipelined(ctx, func(p redis.Pipeliner) error { p.Get(ctx, "n"); p.Incr(ctx, "n"); return nil })
				return err
			},
			func() error { return rdb.Rename(ctx, "n", "m").Err() },
			func() error { return rdb.Copy(ctx, "m", "n", 0, true).Err() },
		} {
			must(t, add())
			want := fmt.Sprint(i + min(step+1, 4))
			if step == 4 {
				if v, err := rdb.Get(ctx, "n").Result(); !errors.Is(err, redis.Nil) {
					t.Fatalf("round %d: renamed, and still %q, %v", i, v, err)
				}
				continue
			}
			if v, err := rdb.Get(ctx, "n").Result(); err != nil || v != want {
				t.Fatalf("round %d, step %d: %q, %v; want %s", i, step, v, err, want)
			}
			if v, err := c.Get(ctx, "n"); err != nil || string(v) != want {
				t.Fatalf("round %d, step %d: the cache has %q, %v; want %s", i, step, v, err, want)
			}
		}
	}
}

// What WATCH guards must not have been read before it.
func TestAReadAfterWatchAsksRedis(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	o := calm(s.Addr())
	o.Tracking.Mode, o.Tracking.UntrackedTTL = holdfast.TrackOff, time.Hour
	rdb, _ := attached(t, o)
	must(t, rdb.Set(ctx, "k", "old", 0).Err())
	must(t, rdb.Get(ctx, "k").Err())
	s.MustDo("SET", "k", "new")
	if v := rdb.Get(ctx, "k").Val(); v != "old" {
		t.Fatalf("%q was not served from here", v)
	}
	must(t, rdb.Watch(ctx, func(tx *redis.Tx) error {
		if v := tx.Get(ctx, "k").Val(); v != "new" {
			t.Errorf("%q after WATCH", v)
		}
		return nil
	}, "k"))
}

func TestOptimisticLockingLosesNoUpdate(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	o := calm(s.Addr())
	clients := make([]*redis.Client, 2) // of two programs
	for i := range clients {
		clients[i], _ = attached(t, o)
	}
	const each = 30
	var wg sync.WaitGroup
	for g := range 6 {
		rdb := clients[g%2]
		wg.Go(func() {
			for done := 0; done < each; {
				err := rdb.Watch(ctx, func(tx *redis.Tx) error {
					var cmd *redis.StringCmd
					if g < 3 {
						cmd = tx.Get(ctx, "n")
					} else {
						_, _ = tx.Pipelined(ctx, func(p redis.Pipeliner) error { cmd = p.Get(ctx, "n"); return nil })
					}
					n, err := cmd.Int()
					if err != nil && !errors.Is(err, redis.Nil) {
						return err
					}
					_, err = tx.TxPipelined(ctx, func(p redis.Pipeliner) error { p.Set(ctx, "n", n+1, 0); return nil })
					return err
				}, "n")
				if err == nil {
					done++
				} else if !errors.Is(err, redis.TxFailedErr) {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if got := s.MustDo("GET", "n"); got != fmt.Sprint(6*each) {
		t.Errorf("%s, want %d", got, 6*each)
	}
}

func TestWhatWouldChangeTheConnectionIsRefused(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	o := calm(s.Addr())
	o.Redis.SelectDB = 3
	rdb, _ := attached(t, o)
	must(t, rdb.Set(ctx, "k", "in 3", 0).Err())
	must(t, rdb.Incr(ctx, "n").Err())
	conn := rdb.Conn()
	defer conn.Close()
	if err := conn.Select(ctx, 0).Err(); err == nil {
		t.Error("selected another database")
	}
	must(t, conn.Select(ctx, 3).Err())
	if v := conn.Get(ctx, "k").Val(); v != "in 3" {
		t.Errorf("%q", v)
	}
	for _, name := range []string{"multi", "EXEC", "Discard"} {
		if err := conn.Do(ctx, name).Err(); err == nil {
			t.Errorf("%s is sent", name)
		}
	}
	if err := rdb.Process(ctx, redis.NewCmd(ctx)); err == nil {
		t.Error("nothing is sent")
	}
	if got := s.MustDo("DBSIZE"); got != "0" {
		t.Errorf("database 0 has %s keys", got)
	}
}

func TestTheCallersContextWins(t *testing.T) {
	begin(t)
	s := redistest.Start(t)
	o := at(s.Addr())
	o.Timeout = time.Minute
	rdb, _ := attached(t, o)
	must(t, rdb.Incr(context.Background(), "n").Err())
	canceled, cancel := context.WithCancel(context.Background())
	cancel()
	for what, f := range others(canceled, rdb) {
		if err := f(); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", what, err)
		}
	}
	s.Pause()
	defer s.Resume()
	short, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
	defer cancel()
	took, err := timed(func() error { return rdb.Incr(short, "n").Err() })
	if !errors.Is(err, context.DeadlineExceeded) || took > 10*time.Second {
		t.Errorf("%v after %v", err, took)
	}
}

func TestAClusterIsServed(t *testing.T) {
	redistest.Long(t)
	ctx := begin(t)
	cluster := redistest.StartCluster(t, 3, 0)
	o := at("")
	o.Redis.InitAddress = cluster.Addrs()
	o.Timeout = 2 * time.Second
	c := open(t, o)
	rdb := redis.NewClusterClient(&redis.ClusterOptions{Addrs: cluster.Addrs()})
	defer rdb.Close()
	must(t, goredis.Attach(rdb, c))
	ready(t, c)
	var keys []string
	for i := range 30 {
		key := fmt.Sprint("k", i)
		keys = append(keys, key)
		must(t, rdb.Set(ctx, key, i, 0).Err())
		must(t, rdb.Incr(ctx, key).Err())
		if n, err := rdb.Get(ctx, key).Int(); n != i+1 || err != nil {
			t.Fatalf("%s: %d, %v", key, n, err)
		}
	}
	values, err := rdb.MGet(ctx, keys...).Result()
	if err != nil || len(values) != 30 || values[29] != "30" {
		t.Errorf("%v, %v", values, err)
	}
	_, err = rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		for _, key := range keys {
			p.Get(ctx, key)
			p.Incr(ctx, key)
		}
		return nil
	})
	must(t, err)

	dead, owners := cluster.NodeFor("k0"), map[string]*redistest.Server{}
	for _, key := range keys {
		must(t, rdb.Get(ctx, key).Err())
		owners[key] = cluster.NodeFor(key)
	}
	dead.Kill()
	// Of another key of the shard: an INCR that is cut off may have run, and takes the copy with it.
	redistest.WaitFor(t, patience, "the shard counts as away", func() bool {
		return errors.Is(rdb.Incr(ctx, "{k0}").Err(), holdfast.ErrUnavailable)
	})
	for _, key := range keys {
		took, err := timed(func() error { return rdb.Get(ctx, key).Err() })
		if err != nil || took > o.Timeout+slack {
			t.Errorf("GET %s: %v after %v", key, err, took)
		}
		if owners[key] != dead {
			must(t, rdb.Incr(ctx, key).Err())
		}
	}
}
