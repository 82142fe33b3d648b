package goredis_test

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"testing"

	"github.com/holdfast-cache/holdfast/goredis"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/go-redis/v9"
)

// method is a command by a method of go-redis.
type method func(rdb redis.Cmdable) redis.Cmder

// kindAndKey returns a type, or "" for any, and a key that is mostly of that type.
func (s *script) kindAndKey() (kind, key string) {
	kinds := []string{"hash", "list", "set", "zset", "geo", "stream", "text"}
	kind = pick(s, kinds...)
	key = fmt.Sprint(kind, s.IntN(2))
	switch s.IntN(12) {
	case 0:
		kind = pick(s, kinds...)
	case 1, 2:
		kind = ""
	}
	return kind, key
}

// anyRead returns a read of a random key, which may be of another type.
func (s *script) anyRead() method {
	kind, k := s.kindAndKey()
	ctx, m, n, from, to := s.ctx, s.member(), s.member(), int64(s.IntN(4)-1), int64(s.IntN(6)-2)
	by := &redis.ZRangeBy{Min: pick(s, "-inf", "1", "(2", "x"), Max: pick(s, "+inf", "5"), Count: int64(s.IntN(3))}
	lex := &redis.ZRangeBy{Min: pick(s, "-", "[b"), Max: pick(s, "+", "(d")}
	byHand := pick(s, "HGETALL", "lrange", "ZRANGE", "xlen", "TYPE")
	type c = redis.Cmdable
	switch kind {
	case "hash":
		return pick[method](s,
			func(r c) redis.Cmder { return r.HGet(ctx, k, m) },
			func(r c) redis.Cmder { return r.HGetAll(ctx, k) },
			func(r c) redis.Cmder { return r.HMGet(ctx, k, m, n) },
			func(r c) redis.Cmder { return r.HLen(ctx, k) },
			func(r c) redis.Cmder { return r.HKeys(ctx, k) },
			func(r c) redis.Cmder { return r.HVals(ctx, k) },
			func(r c) redis.Cmder { return r.HExists(ctx, k, m) },
			func(r c) redis.Cmder { return do(ctx, r, "HGETALL", k) },
		)
	case "list":
		return pick[method](s,
			func(r c) redis.Cmder { return r.LRange(ctx, k, from, to) },
			func(r c) redis.Cmder { return r.LIndex(ctx, k, to) },
			func(r c) redis.Cmder { return r.LLen(ctx, k) },
			func(r c) redis.Cmder { return r.LPos(ctx, k, m, redis.LPosArgs{Rank: from}) },
			func(r c) redis.Cmder { return r.LPosCount(ctx, k, m, 0, redis.LPosArgs{}) },
		)
	case "set":
		return pick[method](s,
			func(r c) redis.Cmder { return r.SMembersMap(ctx, k) },
			func(r c) redis.Cmder { return r.SMembers(ctx, k) },
			func(r c) redis.Cmder { return r.SIsMember(ctx, k, m) },
			func(r c) redis.Cmder { return r.SMIsMember(ctx, k, m, n) },
			func(r c) redis.Cmder { return r.SCard(ctx, k) },
		)
	case "zset":
		return pick[method](s,
			func(r c) redis.Cmder { return r.ZRange(ctx, k, from, to) },
			func(r c) redis.Cmder { return r.ZRangeWithScores(ctx, k, from, to) },
			func(r c) redis.Cmder { return r.ZRevRange(ctx, k, from, to) },
			func(r c) redis.Cmder { return r.ZRevRangeWithScores(ctx, k, from, to) },
			func(r c) redis.Cmder { return r.ZRangeByScore(ctx, k, by) },
			func(r c) redis.Cmder { return r.ZRangeByScoreWithScores(ctx, k, by) },
			func(r c) redis.Cmder { return r.ZRangeByLex(ctx, k, lex) },
			func(r c) redis.Cmder { return r.ZScore(ctx, k, m) },
			func(r c) redis.Cmder { return r.ZMScore(ctx, k, m, n) },
			func(r c) redis.Cmder { return r.ZCard(ctx, k) },
			func(r c) redis.Cmder { return r.ZCount(ctx, k, by.Min, by.Max) },
			func(r c) redis.Cmder { return r.ZLexCount(ctx, k, lex.Min, lex.Max) },
			func(r c) redis.Cmder { return r.ZRank(ctx, k, m) },
			func(r c) redis.Cmder { return r.ZRevRank(ctx, k, m) },
			func(r c) redis.Cmder { return r.ZRankWithScore(ctx, k, m) }, // an error before Redis 7.2
			func(r c) redis.Cmder { return do(ctx, r, "zrange", k, 0, -1, "WITHSCORES") },
		)
	case "geo":
		return pick[method](s,
			func(r c) redis.Cmder { return r.GeoPos(ctx, k, m, n) },
			func(r c) redis.Cmder { return r.GeoHash(ctx, k, m, n) },
			func(r c) redis.Cmder { return r.GeoDist(ctx, k, m, n, "km") },
			func(r c) redis.Cmder {
				return r.GeoRadiusByMember(ctx, k, m, &redis.GeoRadiusQuery{Radius: 300, WithDist: true, Sort: "ASC"})
			},
			func(r c) redis.Cmder {
				q := redis.GeoSearchQuery{Member: m, Radius: 300, RadiusUnit: "km", Sort: "ASC"}
				return r.GeoSearchLocation(ctx, k, &redis.GeoSearchLocationQuery{GeoSearchQuery: q, WithCoord: true, WithHash: true})
			},
		)
	case "text":
		return pick[method](s,
			func(r c) redis.Cmder { return r.GetBit(ctx, k, to) },
			func(r c) redis.Cmder { return r.BitCount(ctx, k, &redis.BitCount{Start: from, End: to}) },
			func(r c) redis.Cmder { return r.BitPos(ctx, k, 1, from, to) },
			func(r c) redis.Cmder { return r.GetRange(ctx, k, from, to) },
			func(r c) redis.Cmder { return r.StrLen(ctx, k) },
			func(r c) redis.Cmder { return r.Get(ctx, k) },
		)
	case "stream":
		return pick[method](s,
			func(r c) redis.Cmder { return r.XRangeN(ctx, k, "-", "+", to) },
			func(r c) redis.Cmder { return r.XRevRange(ctx, k, "+", "-") },
			func(r c) redis.Cmder { return r.XLen(ctx, k) },
		)
	}
	return pick[method](s,
		func(r c) redis.Cmder { return r.Type(ctx, k) },
		func(r c) redis.Cmder { return r.Exists(ctx, k) },
		func(r c) redis.Cmder { return do(ctx, r, byHand, k) },
	)
}

func (s *script) member() string { return pick(s, "a", "b", "c", "d", "e") }

// anyWrite returns a write of a random key.
func (s *script) anyWrite() method {
	kind, k := s.kindAndKey()
	_, k2 := s.kindAndKey()
	ctx, m, x := s.ctx, s.member(), float64(s.IntN(8))
	s.n++
	id := fmt.Sprint(s.n, "-1")
	type c = redis.Cmdable
	switch kind {
	case "hash":
		return pick[method](s,
			func(r c) redis.Cmder { return r.HSet(ctx, k, m, x) },
			func(r c) redis.Cmder { return r.HSet(ctx, k, m, x, "b", m) },
			func(r c) redis.Cmder { return r.HDel(ctx, k, m) },
			func(r c) redis.Cmder { return r.HIncrBy(ctx, k, m, 1) },
		)
	case "list":
		return pick[method](s,
			func(r c) redis.Cmder { return r.RPush(ctx, k, m, x) },
			func(r c) redis.Cmder { return r.LPush(ctx, k, m) },
			func(r c) redis.Cmder { return r.LPop(ctx, k) },
			func(r c) redis.Cmder { return r.LMove(ctx, k, k2, "left", "right") },
		)
	case "set":
		return pick[method](s,
			func(r c) redis.Cmder { return r.SAdd(ctx, k, m) },
			func(r c) redis.Cmder { return r.SRem(ctx, k, m) },
		)
	case "zset":
		return pick[method](s,
			func(r c) redis.Cmder { return r.ZAdd(ctx, k, redis.Z{Member: m, Score: x / 4}) },
			func(r c) redis.Cmder { return r.ZIncrBy(ctx, k, 0.5, m) },
			func(r c) redis.Cmder { return r.ZRem(ctx, k, m) },
		)
	case "geo":
		return pick[method](s,
			func(r c) redis.Cmder {
				return r.GeoAdd(ctx, k, &redis.GeoLocation{Name: m, Longitude: 13 + x/10, Latitude: 38})
			},
		)
	case "stream":
		return pick[method](s,
			func(r c) redis.Cmder {
				return r.XAdd(ctx, &redis.XAddArgs{Stream: k, ID: id, Values: []string{m, "v", "f", m}})
			},
		)
	case "text":
		return pick[method](s,
			func(r c) redis.Cmder { return r.SetBit(ctx, k, int64(x), 1) },
			func(r c) redis.Cmder { return r.Set(ctx, k, m, 0) },
			func(r c) redis.Cmder { return r.Append(ctx, k, m) },
		)
	}
	return pick[method](s,
		func(r c) redis.Cmder { return r.Rename(ctx, k, k2) },
		func(r c) redis.Cmder { return r.Eval(ctx, "return redis.call('del', KEYS[1])", []string{k}) },
		func(r c) redis.Cmder { return r.Persist(ctx, k) },
		func(r c) redis.Cmder { return r.Del(ctx, k, k2) },
		func(r c) redis.Cmder { return r.Del(ctx, k) },
	)
}

// some returns the next commands: reads that are repeated, or one write.
func (s *script) some() []method {
	if s.IntN(4) == 0 {
		return []method{s.anyWrite()}
	}
	read := s.anyRead()
	return slices.Repeat([]method{read}, 1+s.IntN(3))
}

// equal compares all but the order of a set's members, which differs between two servers.
func equal(a, b redis.Cmder) bool {
	x, y := resultOf(a), resultOf(b)
	for _, r := range []*result{&x, &y} {
		if all, ok := r.val.([]string); ok && a.Name() == "smembers" {
			r.val = slices.Sorted(slices.Values(all))
		}
	}
	return reflect.DeepEqual(x, y)
}

func TestCachedReadsOfRandomCommandsAreAsWithoutTheCache(t *testing.T) {
	for _, protocol := range []int{3, 2} {
		t.Run(fmt.Sprint("RESP", protocol), func(t *testing.T) { randomCachedReads(t, protocol) })
	}
}

func randomCachedReads(t *testing.T, protocol int) {
	begin(t)
	servers := []*redistest.Server{redistest.Start(t), redistest.Start(t)}
	c := open(t, calm(servers[0].Addr()))
	with := plain(t, &redis.Options{Addr: servers[0].Addr(), Protocol: protocol})
	must(t, goredis.Attach(with, c, goredis.CacheReads()))
	ready(t, c)
	without := plain(t, &redis.Options{Addr: servers[1].Addr(), Protocol: protocol})
	s := newScript(t)
	var lately []string
	for i := 0; i < 4000; {
		methods := s.some()
		run := func(rdb *redis.Client) (cmds []redis.Cmder) {
			for _, m := range methods {
				cmds = append(cmds, m(rdb))
			}
			return cmds
		}
		if s.IntN(4) == 0 { // as one pipeline, or as one transaction
			for range s.IntN(4) {
				methods = append(methods, s.some()...)
			}
			whole := s.IntN(4) == 0
			run = func(rdb *redis.Client) []redis.Cmder { return inPipeline(s.ctx, rdb, whole, methods) }
		}
		a, b := run(with), run(without)
		for j := range a {
			lately = append(lately, b[j].String())
			if !equal(a[j], b[j]) {
				t.Fatalf("command %d, %v: %#v; without the cache %#v; after %v",
					i+j, a[j].Args(), resultOf(a[j]), resultOf(b[j]), lately[max(0, len(lately)-30):])
			}
		}
		i += len(a)
	}
	sameContents(t, with, without)
	own, all := readCalls(servers[0]), readCalls(servers[1])
	if t.Logf("%d of %d reads reached Redis", own, all); own >= all {
		t.Error("no read was answered from memory")
	}
}

func inPipeline(ctx context.Context, rdb *redis.Client, whole bool, methods []method) []redis.Cmder {
	p := rdb.Pipeline()
	if whole {
		p = rdb.TxPipeline()
	}
	for _, m := range methods {
		m(p)
	}
	cmds, _ := p.Exec(ctx)
	return cmds
}
