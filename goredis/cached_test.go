package goredis_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/goredis"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/go-redis/v9"
)

// read is a read of one key that CacheReads keeps, by a method of go-redis.
type read struct {
	name string
	do   func(rdb redis.Cmdable) redis.Cmder
}

// readsOf are reads of the keys of fill, of all methods. Each is changed by change.
func readsOf(ctx context.Context) []read {
	by := &redis.ZRangeBy{Min: "-inf", Max: "+inf"}
	near := redis.GeoSearchQuery{Longitude: 15, Latitude: 37, Radius: 500, RadiusUnit: "km", Sort: "ASC"}
	all := &redis.GeoSearchLocationQuery{GeoSearchQuery: near, WithCoord: true, WithDist: true, WithHash: true}
	radius := redis.GeoRadiusQuery{Radius: 500, Unit: "km", WithCoord: true, WithDist: true, WithGeoHash: true, Sort: "ASC"}
	type c = redis.Cmdable
	return []read{
		{"HGET", func(r c) redis.Cmder { return r.HGet(ctx, "hash", "f") }},
		{"HGETALL", func(r c) redis.Cmder { return r.HGetAll(ctx, "hash") }},
		{"HMGET", func(r c) redis.Cmder { return r.HMGet(ctx, "hash", "f", "none", "g") }},
		{"HLEN", func(r c) redis.Cmder { return r.HLen(ctx, "hash") }},
		{"HKEYS", func(r c) redis.Cmder { return r.HKeys(ctx, "hash") }},
		{"HVALS", func(r c) redis.Cmder { return r.HVals(ctx, "hash") }},
		{"HEXISTS", func(r c) redis.Cmder { return r.HExists(ctx, "hash", "new") }},
		{"LRANGE", func(r c) redis.Cmder { return r.LRange(ctx, "list", 0, -1) }},
		{"LINDEX", func(r c) redis.Cmder { return r.LIndex(ctx, "list", 0) }},
		{"LLEN", func(r c) redis.Cmder { return r.LLen(ctx, "list") }},
		{"LPOS", func(r c) redis.Cmder { return r.LPos(ctx, "list", "b", redis.LPosArgs{}) }},
		{"LPOS COUNT", func(r c) redis.Cmder { return r.LPosCount(ctx, "list", "b", 2, redis.LPosArgs{}) }},
		{"SMEMBERS", func(r c) redis.Cmder { return r.SMembers(ctx, "set") }},
		{"SMEMBERS as a map", func(r c) redis.Cmder { return r.SMembersMap(ctx, "set") }},
		{"SISMEMBER", func(r c) redis.Cmder { return r.SIsMember(ctx, "set", "new") }},
		{"SMISMEMBER", func(r c) redis.Cmder { return r.SMIsMember(ctx, "set", "a", "new") }},
		{"SCARD", func(r c) redis.Cmder { return r.SCard(ctx, "set") }},
		{"ZRANGE", func(r c) redis.Cmder { return r.ZRange(ctx, "zset", 0, -1) }},
		{"ZRANGE WITHSCORES", func(r c) redis.Cmder { return r.ZRangeWithScores(ctx, "zset", 0, -1) }},
		{"ZREVRANGE", func(r c) redis.Cmder { return r.ZRevRange(ctx, "zset", 0, -1) }},
		{"ZREVRANGE WITHSCORES", func(r c) redis.Cmder { return r.ZRevRangeWithScores(ctx, "zset", 0, -1) }},
		{"ZRANGEBYSCORE", func(r c) redis.Cmder { return r.ZRangeByScore(ctx, "zset", by) }},
		{"ZRANGEBYSCORE WITHSCORES", func(r c) redis.Cmder { return r.ZRangeByScoreWithScores(ctx, "zset", by) }},
		{"ZREVRANGEBYSCORE", func(r c) redis.Cmder { return r.ZRevRangeByScore(ctx, "zset", by) }},
		{"ZREVRANGEBYSCORE WITHSCORES", func(r c) redis.Cmder { return r.ZRevRangeByScoreWithScores(ctx, "zset", by) }},
		{"ZRANGEBYLEX", func(r c) redis.Cmder { return r.ZRangeByLex(ctx, "zset", &redis.ZRangeBy{Min: "-", Max: "+"}) }},
		{"ZREVRANGEBYLEX", func(r c) redis.Cmder { return r.ZRevRangeByLex(ctx, "zset", &redis.ZRangeBy{Min: "-", Max: "+"}) }},
		{"ZSCORE", func(r c) redis.Cmder { return r.ZScore(ctx, "zset", "a") }},
		{"ZMSCORE", func(r c) redis.Cmder { return r.ZMScore(ctx, "zset", "a", "none") }},
		{"ZCARD", func(r c) redis.Cmder { return r.ZCard(ctx, "zset") }},
		{"ZCOUNT", func(r c) redis.Cmder { return r.ZCount(ctx, "zset", "-inf", "+inf") }},
		{"ZLEXCOUNT", func(r c) redis.Cmder { return r.ZLexCount(ctx, "zset", "-", "+") }},
		{"ZRANK", func(r c) redis.Cmder { return r.ZRank(ctx, "zset", "b") }},
		{"ZREVRANK", func(r c) redis.Cmder { return r.ZRevRank(ctx, "zset", "a") }},
		{"GEODIST", func(r c) redis.Cmder { return r.GeoDist(ctx, "geo", "a", "b", "km") }},
		{"GEOHASH", func(r c) redis.Cmder { return r.GeoHash(ctx, "geo", "a", "new") }},
		{"GEOPOS", func(r c) redis.Cmder { return r.GeoPos(ctx, "geo", "a", "new") }},
		{"GEOSEARCH", func(r c) redis.Cmder { return r.GeoSearch(ctx, "geo", &near) }},
		{"GEOSEARCH WITHCOORD", func(r c) redis.Cmder { return r.GeoSearchLocation(ctx, "geo", all) }},
		{"GEORADIUS_RO", func(r c) redis.Cmder {
			query := radius // go-redis writes to it
			return r.GeoRadius(ctx, "geo", 15, 37, &query)
		}},
		{"GEORADIUSBYMEMBER_RO", func(r c) redis.Cmder {
			return r.GeoRadiusByMember(ctx, "geo", "a", &redis.GeoRadiusQuery{Radius: 500, Unit: "km"})
		}},
		{"GETBIT", func(r c) redis.Cmder { return r.GetBit(ctx, "text", 1) }},
		{"BITCOUNT", func(r c) redis.Cmder { return r.BitCount(ctx, "text", nil) }},
		{"BITPOS", func(r c) redis.Cmder { return r.BitPos(ctx, "text", 1) }},
		{"GETRANGE", func(r c) redis.Cmder { return r.GetRange(ctx, "text", 0, 1) }},
		{"STRLEN", func(r c) redis.Cmder { return r.StrLen(ctx, "text") }},
		{"XRANGE", func(r c) redis.Cmder { return r.XRange(ctx, "stream", "-", "+") }},
		{"XREVRANGE", func(r c) redis.Cmder { return r.XRevRangeN(ctx, "stream", "+", "-", 5) }},
		{"XLEN", func(r c) redis.Cmder { return r.XLen(ctx, "stream") }},
		{"TYPE", func(r c) redis.Cmder { return r.Type(ctx, "kind") }},
		{"HSTRLEN by Do", func(r c) redis.Cmder { return do(ctx, r, "HSTRLEN", "hash", "f") }},
		{"LRANGE by Do", func(r c) redis.Cmder { return do(ctx, r, "LRANGE", "list", 0, -1) }},
		{"HGETALL by Do", func(r c) redis.Cmder { return do(ctx, r, "HGETALL", "hash") }},
		{"ZSCORE by Do", func(r c) redis.Cmder { return do(ctx, r, "zscore", "zset", "a") }},
		{"XRANGE by Do", func(r c) redis.Cmder { return do(ctx, r, "XRANGE", "stream", "-", "+") }},
		{"BITFIELD_RO by Do", func(r c) redis.Cmder { return do(ctx, r, "BITFIELD_RO", "text", "GET", "u8", 0) }},
		{"SUBSTR by Do", func(r c) redis.Cmder { return do(ctx, r, "SUBSTR", "text", 0, 1) }},
	}
}

func do(ctx context.Context, rdb redis.Cmdable, args ...any) redis.Cmder {
	return rdb.(interface {
		Do(context.Context, ...any) *redis.Cmd
	}).Do(ctx, args...)
}

// lines runs commands that are written in one line each.
func lines(t testing.TB, run func(args ...string) error, all string) {
	t.Helper()
	for line := range strings.Lines(all) {
		if err := run(strings.Fields(line)...); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
	}
}

const (
	fill = `DEL hash list set zset geo stream kind
		HSET hash f 1 g 22
		RPUSH list a b c
		SADD set a
		ZADD zset 1 a 2 b
		GEOADD geo 13 38 a 15 37 b
		XADD stream 1-1 f v
		SET text abcdef
		SET kind s`
	change = `HSET hash f 333 new 4
		LPUSH list b
		SADD set new
		ZADD zset 1.5 a 0 x 9 y
		GEOADD geo 13.1 38.1 a 14 38 new
		XADD stream 2-1 f w
		SETRANGE text 0 ????????????
		DEL kind`
)

// runOver runs a command by rdb.
func runOver(ctx context.Context, rdb *redis.Client) func(args ...string) error {
	return func(args ...string) error {
		all := make([]any, len(args))
		for i, arg := range args {
			all[i] = arg
		}
		return rdb.Do(ctx, all...).Err()
	}
}

func server(s *redistest.Server) func(args ...string) error {
	return func(args ...string) error { _, err := s.Do(args...); return err }
}

// calls returns how often the server has executed a command.
func calls(s *redistest.Server, name string) int { return allCalls(s)[strings.ToLower(name)] }

// readCalls returns how often the server has executed any of the reads of readsOf.
func readCalls(s *redistest.Server) (n int) {
	all := allCalls(s)
	names := map[string]bool{}
	for _, r := range readsOf(context.Background()) {
		names[strings.ToLower(r.command())] = true
	}
	for name := range names {
		n += all[name]
	}
	return n
}

// allCalls returns how often the server has executed each command.
func allCalls(s *redistest.Server) map[string]int {
	all := map[string]int{}
	for line := range strings.Lines(s.MustDo("INFO", "commandstats")) {
		name, stats, _ := strings.Cut(strings.TrimPrefix(line, "cmdstat_"), ":calls=")
		n, _, _ := strings.Cut(stats, ",")
		all[name], _ = strconv.Atoi(n)
	}
	return all
}

// command is the name of the command.
func (r read) command() string {
	name, _, _ := strings.Cut(r.name, " ")
	return name
}

// inMemory reads until the reply comes from memory.
func inMemory(t testing.TB, s *redistest.Server, r read, rdb redis.Cmdable) redis.Cmder {
	t.Helper()
	var cmd redis.Cmder
	redistest.WaitFor(t, patience, "a hit of "+r.name, func() bool {
		before := calls(s, r.command())
		cmd = r.do(rdb)
		return calls(s, r.command()) == before
	})
	return cmd
}

// A reply from memory is the one that go-redis has without the cache, and is replaced when
// the key changes, by this client or by another one.
func TestCachedReadsAreServedFromMemoryUntilTheirKeyChanges(t *testing.T) {
	for _, protocol := range []int{2, 3} {
		for _, foreign := range []bool{true, false} {
			t.Run(fmt.Sprintf("RESP%d, foreign: %v", protocol, foreign), func(t *testing.T) { untilTheKeyChanges(t, protocol, foreign) })
		}
	}
}

func untilTheKeyChanges(t *testing.T, protocol int, foreign bool) {
	ctx := begin(t)
	s := redistest.Start(t)
	c := open(t, calm(s.Addr()))
	rdb := plain(t, &redis.Options{Addr: s.Addr(), Protocol: protocol})
	must(t, goredis.Attach(rdb, c, goredis.CacheReads()))
	ready(t, c)
	without := plain(t, &redis.Options{Addr: s.Addr(), Protocol: protocol})
	lines(t, server(s), fill)
	reads := readsOf(ctx)
	old := map[string]result{}
	for _, r := range reads {
		if protocol == 2 && (r.name == "HGETALL by Do" || r.name == "ZSCORE by Do") {
			old[r.name] = resultOf(r.do(rdb)) // RESP3 has another value: these go to Redis
		} else {
			old[r.name] = resultOf(inMemory(t, s, r, rdb))
		}
		if want := resultOf(r.do(without)); !same(old[r.name], want) {
			t.Errorf("%s: %#v; without the cache %#v", r.name, old[r.name], want)
		}
	}
	if foreign {
		lines(t, server(s), change)
	} else {
		lines(t, runOver(ctx, rdb), change)
	}
	for _, r := range reads {
		want := resultOf(r.do(without))
		if foreign {
			redistest.WaitFor(t, patience, "the change of "+r.name, func() bool { return same(resultOf(r.do(rdb)), want) })
		}
		if got := resultOf(r.do(rdb)); !same(got, want) {
			t.Errorf("%s after a write: %#v; without the cache %#v", r.name, got, want)
		}
		if same(want, old[r.name]) && r.name != "LPOS" && r.name != "GEORADIUSBYMEMBER_RO" {
			t.Errorf("%s: the write changes nothing", r.name)
		}
	}
}

// A queue that is polled must be seen as it is in Redis.
func TestWithoutCacheReadsEveryReadGoesToRedis(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	rdb, _ := attached(t, calm(s.Addr()))
	for i := range 200 {
		s.MustDo("RPUSH", "queue", fmt.Sprint(i))
		if got := rdb.LRange(ctx, "queue", 0, -1).Val(); len(got) != i+1 || got[i] != fmt.Sprint(i) {
			t.Fatalf("after %d RPUSH of another client: %v", i+1, got)
		}
	}
	lines(t, server(s), fill)
	for _, r := range readsOf(ctx) {
		for range 3 {
			before := calls(s, r.command())
			if r.do(rdb); calls(s, r.command()) == before {
				t.Errorf("%s did not reach Redis", r.name)
			}
		}
	}
}

func TestInAnOutageCachedReadsGoOnFromMemory(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	rdb, c := attached(t, at(s.Addr()), goredis.CacheReads())
	lines(t, server(s), fill)
	reads := readsOf(ctx)
	want := map[string]result{}
	for _, r := range reads {
		want[r.name] = resultOf(inMemory(t, s, r, rdb))
	}
	s.Kill()
	waitState(t, c, holdfast.Down)
	for _, r := range reads {
		took, got := time.Duration(0), result{}
		took, _ = timed(func() error { got = resultOf(r.do(rdb)); return nil })
		if !same(got, want[r.name]) || took > slack {
			t.Errorf("%s: %#v after %v; before the outage %#v", r.name, got, took, want[r.name])
		}
	}
	cmds, err := rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		p.HGetAll(ctx, "hash")
		p.Incr(ctx, "n")
		p.LRange(ctx, "list", 0, -1)
		p.HGetAll(ctx, "never read")
		p.Set(ctx, "written", "in the outage", 0)
		p.Get(ctx, "written")
		return nil
	})
	for i, known := range []bool{true, false, true, false, true, true} {
		if cmdErr := cmds[i].Err(); known && cmdErr != nil || !known && !errors.Is(cmdErr, holdfast.ErrUnavailable) {
			t.Errorf("command %d of a pipeline: %v", i, cmds[i])
		}
	}
	if !errors.Is(err, holdfast.ErrUnavailable) {
		t.Errorf("a pipeline: %v", err)
	}
	for what, err := range map[string]error{
		"HGETALL of a key that was not read": rdb.HGetAll(ctx, "never read").Err(),
		"another HGET":                       rdb.HGet(ctx, "hash", "g").Err(),
		"HSCAN":                              rdb.HScan(ctx, "hash", 0, "", 10).Err(),
		"HSET":                               rdb.HSet(ctx, "hash", "f", 1).Err(),
	} {
		if !errors.Is(err, holdfast.ErrUnavailable) {
			t.Errorf("%s: %v", what, err)
		}
	}
	s.Restart()
	redistest.WaitFor(t, patience, "Redis is read", func() bool { return rdb.HLen(ctx, "never read").Err() == nil })
	must(t, c.Drain(ctx))
	if got := s.MustDo("GET", "written"); got != "in the outage" {
		t.Errorf("Redis has %q after the replay", got)
	}
}

// The cache answers a pipeline up to the first command that only Redis can execute.
func TestPipelinesOfCachedReads(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	rdb, _ := attached(t, calm(s.Addr()), goredis.CacheReads())
	lines(t, server(s), fill)
	var reads []read
	for _, r := range readsOf(ctx) {
		if !strings.HasSuffix(r.name, "by Do") {
			reads = append(reads, r)
			inMemory(t, s, r, rdb)
		}
	}
	must(t, rdb.Get(ctx, "text").Err())
	all := func(p redis.Pipeliner) error {
		p.Get(ctx, "text")
		for _, r := range reads {
			r.do(p)
		}
		return nil
	}
	run := func(rdb *redis.Client) []redis.Cmder {
		cmds, err := rdb.Pipelined(ctx, all)
		must(t, err)
		return cmds
	}
	want := run(plain(t, &redis.Options{Addr: s.Addr()}))
	before := readCalls(s)
	got := run(rdb)
	if n := readCalls(s) - before; n != 0 {
		t.Errorf("%d commands of a pipeline of cached reads reached Redis", n)
	}
	for i := range got {
		if a, b := resultOf(got[i]), resultOf(want[i]); !same(a, b) {
			t.Errorf("%v: %#v; without the cache %#v", got[i].Args(), a, b)
		}
	}

	// In order, whatever of it the cache answers.
	for i := range 100 {
		n := fmt.Sprint(i)
		cmds, err := rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
			p.Set(ctx, "k", n, 0)
			p.StrLen(ctx, "k")
			p.GetRange(ctx, "k", 0, -1)
			p.HGet(ctx, "hash", "f")
			p.HSet(ctx, "hash", "f", n)
			p.HGet(ctx, "hash", "f")
			p.Get(ctx, "k")
			return nil
		})
		must(t, err)
		for at, want := range map[int]string{2: n, 5: n, 6: n} {
			if v := cmds[at].(*redis.StringCmd).Val(); v != want {
				t.Fatalf("round %d: %v, want %s", i, cmds[at], want)
			}
		}
		if v := rdb.HGetAll(ctx, "hash").Val()["f"]; v != n {
			t.Fatalf("round %d: %q after the pipeline", i, v)
		}
	}

	// A transaction goes to Redis as a whole.
	calledBefore := calls(s, "hlen")
	_, err := rdb.TxPipelined(ctx, func(p redis.Pipeliner) error { p.HLen(ctx, "hash"); return nil })
	if must(t, err); calls(s, "hlen") == calledBefore {
		t.Error("a transaction was answered from memory")
	}
}

// With other readers of the key, each write ends its replies before it returns.
func TestOwnWritesEndCachedReplies(t *testing.T) {
	for _, mode := range []holdfast.TrackingMode{holdfast.TrackReads, holdfast.TrackPrefixes, holdfast.TrackOff} {
		t.Run(mode.String(), func(t *testing.T) { ownWritesEndReplies(t, mode) })
	}
}

func ownWritesEndReplies(t *testing.T, mode holdfast.TrackingMode) {
	ctx := begin(t)
	s := redistest.Start(t)
	o := calm(s.Addr())
	o.Tracking.Mode, o.Tracking.UntrackedTTL = mode, time.Hour
	if mode == holdfast.TrackPrefixes {
		o.Tracking.Prefixes = []string{"hash", "list", "other"}
	}
	rdb, _ := attached(t, o, goredis.CacheReads())
	var readers sync.WaitGroup
	done := make(chan struct{})
	for range 3 {
		readers.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					_ = rdb.HGetAll(ctx, "hash").Err()
					_ = rdb.LLen(ctx, "list").Err()
					runtime.Gosched()
				}
			}
		})
	}
	defer readers.Wait()
	defer close(done)
	pipelined := func(f func(p redis.Pipeliner)) func() error {
		return func() error {
			_, err := rdb.Pipelined(ctx, func(p redis.Pipeliner) error { f(p); return nil })
			return err
		}
	}
	n := 0
	for range 100 {
		for i, write := range []func() error{
			func() error { return rdb.HSet(ctx, "hash", "n", n).Err() },
			func() error { return rdb.HIncrBy(ctx, "hash", "n", 1).Err() },
			func() error {
				return rdb.Eval(ctx, "return redis.call('hset', KEYS[1], 'n', ARGV[1])", []string{"hash"}, n).Err()
			},
			pipelined(func(p redis.Pipeliner) { p.HGetAll(ctx, "hash"); p.HSet(ctx, "hash", "n", n) }),
			func() error {
				_, err := rdb.TxPipelined(ctx, func(p redis.Pipeliner) error { p.HSet(ctx, "hash", "n", n); return nil })
				return err
			},
			func() error {
				must(t, rdb.HSet(ctx, "other", "n", n).Err())
				return rdb.Rename(ctx, "other", "hash").Err()
			},
			func() error {
				must(t, rdb.Del(ctx, "hash").Err())
				if left := rdb.HGetAll(ctx, "hash").Val(); len(left) != 0 {
					t.Errorf("after DEL: %v", left)
				}
				return rdb.HSet(ctx, "hash", "n", n).Err()
			},
		} {
			n++
			must(t, write())
			if got := rdb.HGetAll(ctx, "hash").Val()["n"]; got != fmt.Sprint(n) {
				t.Fatalf("after write %d, of kind %d: %q", n, i, got)
			}
			if got := rdb.HGet(ctx, "hash", "n").Val(); got != fmt.Sprint(n) {
				t.Fatalf("after write %d, of kind %d: HGET has %q", n, i, got)
			}
		}
		must(t, rdb.LPush(ctx, "list", n).Err())
		if got := rdb.LLen(ctx, "list").Val(); got != int64(n/7) {
			t.Fatalf("after LPUSH %d: %d elements", n/7, got)
		}
	}
}

// What WATCH guards must not have been read before it.
func TestACachedReadAfterWatchAsksRedis(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	o := calm(s.Addr())
	o.Tracking.Mode, o.Tracking.UntrackedTTL = holdfast.TrackOff, time.Hour
	rdb, _ := attached(t, o, goredis.CacheReads())
	must(t, rdb.HSet(ctx, "h", "f", "old").Err())
	must(t, rdb.HGet(ctx, "h", "f").Err())
	s.MustDo("HSET", "h", "f", "new")
	if v := rdb.HGet(ctx, "h", "f").Val(); v != "old" {
		t.Fatalf("%q was not served from memory", v)
	}
	must(t, rdb.Watch(ctx, func(tx *redis.Tx) error {
		if v := tx.HGet(ctx, "h", "f").Val(); v != "new" {
			t.Errorf("%q after WATCH", v)
		}
		return nil
	}, "h"))
}

// A caller may write to what it got.
func TestWritingToACachedReplyHarmsNobody(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	rdb, _ := attached(t, calm(s.Addr()), goredis.CacheReads())
	lines(t, server(s), fill)
	want := map[string]string{}
	reads := readsOf(ctx)
	for _, r := range reads {
		want[r.name] = fmt.Sprint(resultOf(inMemory(t, s, r, rdb)))
	}
	for range 2 {
		for _, r := range reads {
			cmd := r.do(rdb)
			if got := fmt.Sprint(resultOf(cmd)); got != want[r.name] && r.name != "GEOPOS" { // of pointers
				t.Errorf("%s: %s, want %s", r.name, got, want[r.name])
			}
			spoil(cmd)
		}
	}
	// The same of a GET in a pipeline with other commands.
	for range 3 {
		cmds, err := rdb.Pipelined(ctx, func(p redis.Pipeliner) error { p.Get(ctx, "text"); p.HGet(ctx, "hash", "f"); return nil })
		must(t, err)
		for i, want := range []string{"abcdef", "1"} {
			if b, err := cmds[i].(*redis.StringCmd).Bytes(); err != nil || string(b) != want {
				t.Errorf("%q, %v, want %q", b, err, want)
			}
			spoil(cmds[i])
		}
	}
}

// spoil writes to the value of a command, as far as Go allows it.
func spoil(cmd redis.Cmder) {
	switch cmd := cmd.(type) {
	case *redis.StringCmd:
		if b, _ := cmd.Bytes(); len(b) > 0 {
			b[0] = 'X'
		}
	case *redis.StatusCmd:
		if b, _ := cmd.Bytes(); len(b) > 0 {
			b[0] = 'X'
		}
	case *redis.StringSliceCmd:
		clear(cmd.Val())
	case *redis.SliceCmd:
		clear(cmd.Val())
	case *redis.IntSliceCmd:
		clear(cmd.Val())
	case *redis.BoolSliceCmd:
		clear(cmd.Val())
	case *redis.FloatSliceCmd:
		clear(cmd.Val())
	case *redis.MapStringStringCmd:
		cmd.Val()["f"] = "X"
	case *redis.StringStructMapCmd:
		clear(cmd.Val())
	case *redis.ZSliceCmd:
		clear(cmd.Val())
	case *redis.XMessageSliceCmd:
		cmd.Val()[0].Values["f"] = "X"
	case *redis.GeoPosCmd:
		cmd.Val()[0].Latitude = 0
	case *redis.GeoSearchLocationCmd:
		clear(cmd.Val())
	case *redis.GeoLocationCmd:
		clear(cmd.Val())
	case *redis.Cmd:
		switch v := cmd.Val().(type) {
		case []any:
			clear(v)
		case map[any]any:
			clear(v)
		}
	}
}

// A command object of a type that cannot hold the reply goes to Redis, so that the caller
// gets go-redis' own value or error.
func TestACachedReadOfAnOddTypeGoesToRedis(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	rdb, _ := attached(t, calm(s.Addr()), goredis.CacheReads())
	lines(t, server(s), fill)
	s.MustDo("GEOADD", "geo", "14", "38", "without")
	alone := &redis.GeoSearchLocationQuery{GeoSearchQuery: redis.GeoSearchQuery{Member: "without", Radius: 1, RadiusUnit: "km"}}
	processed := func(newCmd func() redis.Cmder) func(*redis.Client) redis.Cmder {
		return func(rdb *redis.Client) redis.Cmder {
			cmd := newCmd()
			_ = rdb.Process(ctx, cmd)
			return cmd
		}
	}
	without := plain(t, &redis.Options{Addr: s.Addr()})
	for what, run := range map[string]func(*redis.Client) redis.Cmder{
		"HGET as a number": processed(func() redis.Cmder { return redis.NewIntCmd(ctx, "hget", "hash", "f") }),
		"HLEN as text":     processed(func() redis.Cmder { return redis.NewStringCmd(ctx, "hlen", "hash") }),
		"ZRANGE WITHSCORES as text": processed(func() redis.Cmder {
			return redis.NewStringSliceCmd(ctx, "zrange", "zset", 0, -1, "WITHSCORES")
		}),
		"HGETALL as an array": processed(func() redis.Cmder { return redis.NewSliceCmd(ctx, "hgetall", "hash") }),
		"HGETALL as numbers":  processed(func() redis.Cmder { return redis.NewMapStringIntCmd(ctx, "hgetall", "hash") }),
		"GEOSEARCH without the options of its type": func(rdb *redis.Client) redis.Cmder {
			return rdb.GeoSearchLocation(ctx, "geo", alone)
		},
	} {
		for range 3 {
			if got, want := resultOf(run(rdb)), resultOf(run(without)); !same(got, want) {
				t.Errorf("%s: %#v; without the cache %#v", what, got, want)
			}
		}
	}
}

// A program that uses both clients keeps one reply.
func TestCachedRepliesAreSharedWithTheCachesClient(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	rdb, c := attached(t, calm(s.Addr()), goredis.CacheReads())
	s.MustDo("HSET", "h", "f", "v")
	inMemory(t, s, read{"HGET", func(rdb redis.Cmdable) redis.Cmder { return rdb.HGet(ctx, "h", "f") }}, rdb)
	cl := c.Client()
	if !cl.DoCache(ctx, cl.B().Hget().Key("h").Field("f").Cache(), time.Hour).IsCacheHit() {
		t.Error("a reply that go-redis read is not served to rueidis")
	}
}

func TestCachedReadsOfACluster(t *testing.T) {
	redistest.Long(t)
	ctx := begin(t)
	cluster := redistest.StartCluster(t, 3, 0)
	o := calm("")
	o.Redis.InitAddress = cluster.Addrs()
	c := open(t, o)
	rdb := redis.NewClusterClient(&redis.ClusterOptions{Addrs: cluster.Addrs()})
	defer rdb.Close()
	must(t, goredis.Attach(rdb, c, goredis.CacheReads()))
	ready(t, c)
	for i := range 30 {
		key := fmt.Sprint("hash", i)
		s := cluster.NodeFor(key)
		hget := read{"HGET", func(r redis.Cmdable) redis.Cmder { return r.HGet(ctx, key, "f") }}
		for _, v := range []string{"old", "new"} {
			must(t, rdb.HSet(ctx, key, "f", v).Err())
			if got := inMemory(t, s, hget, rdb).(*redis.StringCmd).Val(); got != v {
				t.Errorf("%s: %q, want %q", key, got, v)
			}
		}
	}
}
