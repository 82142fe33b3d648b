package compat

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/redis/rueidis/rueidiscompat"
)

func stringsProgram(ctx context.Context, s *story) {
	c := s.c
	tell(s, "get of nothing", c.Get(ctx, "s:none"))
	tell(s, "set", c.Set(ctx, "s:a", "1", 0))
	tell(s, "get", c.Get(ctx, "s:a"))
	tell(s, "get again", c.Get(ctx, "s:a"))
	tell(s, "set with a ttl", c.Set(ctx, "s:b", "\x00\xff\r\n", time.Hour))
	tell(s, "get", c.Get(ctx, "s:b"))
	tell(s, "set ms", c.Set(ctx, "s:c", "", 3600_500*time.Millisecond))
	tell(s, "get of the empty", c.Get(ctx, "s:c"))
	tell(s, "set keepttl", c.Set(ctx, "s:b", "b2", rueidiscompat.KeepTTL))
	about(s, "ttl", c.TTL(ctx, "s:b"))
	tell(s, "setex", c.SetEX(ctx, "s:d", "d", time.Hour))
	tell(s, "setnx taken", c.SetNX(ctx, "s:a", "no", 0))
	tell(s, "setnx taken, ttl", c.SetNX(ctx, "s:a", "no", time.Hour))
	tell(s, "setnx free", c.SetNX(ctx, "s:e", "yes", time.Hour))
	tell(s, "get", c.Get(ctx, "s:e"))
	tell(s, "setxx", c.SetXX(ctx, "s:e", "xx", time.Hour))
	tell(s, "setxx of nothing", c.SetXX(ctx, "s:none", "xx", time.Hour))
	tell(s, "set get", c.SetArgs(ctx, "s:e", "args", rueidiscompat.SetArgs{Get: true}))
	tell(s, "mget", c.MGet(ctx, "s:a", "s:none", "s:b", "s:c", "s:a"))
	tell(s, "mset", c.MSet(ctx, "s:f", "1", "s:g", 2.5))
	tell(s, "msetnx taken", c.MSetNX(ctx, "s:f", "9", "s:h", "9"))
	tell(s, "mget", c.MGet(ctx, "s:f", "s:g", "s:h"))
	tell(s, "append", c.Append(ctx, "s:f", "tail"))
	tell(s, "get", c.Get(ctx, "s:f"))
	tell(s, "strlen", c.StrLen(ctx, "s:f"))
	tell(s, "getrange", c.GetRange(ctx, "s:f", 1, 2))
	tell(s, "setrange", c.SetRange(ctx, "s:f", 2, "__"))
	tell(s, "getset", c.GetSet(ctx, "s:f", "new"))
	tell(s, "getex", c.GetEx(ctx, "s:f", time.Hour))
	about(s, "ttl", c.TTL(ctx, "s:f"))
	tell(s, "getdel", c.GetDel(ctx, "s:f"))
	tell(s, "getdel of nothing", c.GetDel(ctx, "s:f"))
	tell(s, "rename", c.Rename(ctx, "s:g", "s:g2"))
	tell(s, "get of the old name", c.Get(ctx, "s:g"))
	tell(s, "get of the new name", c.Get(ctx, "s:g2"))
	tell(s, "copy", c.Copy(ctx, "s:g2", "s:copy", 0, true))
	tell(s, "get of the copy", c.Get(ctx, "s:copy"))
	tell(s, "exists", c.Exists(ctx, "s:a", "s:a", "s:b", "s:none"))
	tell(s, "type", c.Type(ctx, "s:a"))
	tell(s, "del", c.Del(ctx, "s:a", "s:a", "s:none", "s:b"))
	tell(s, "unlink", c.Unlink(ctx, "s:c", "s:none"))
	tell(s, "get of the deleted", c.Get(ctx, "s:a"))
	tell(s, "exists", c.Exists(ctx, "s:a", "s:b", "s:c"))
}

func countersProgram(ctx context.Context, s *story) {
	c := s.c
	tell(s, "incr", c.Incr(ctx, "n"))
	tell(s, "get", c.Get(ctx, "n"))
	tell(s, "incr", c.Incr(ctx, "n"))
	tell(s, "get", c.Get(ctx, "n"))
	tell(s, "incrby", c.IncrBy(ctx, "n", 40))
	tell(s, "decr", c.Decr(ctx, "n"))
	tell(s, "decrby", c.DecrBy(ctx, "n", 5))
	tell(s, "incrbyfloat", c.IncrByFloat(ctx, "n", 0.5))
	tell(s, "get", c.Get(ctx, "n"))
	tell(s, "set", c.Set(ctx, "n", 100, 0))
	tell(s, "incr", c.Incr(ctx, "n"))
	n, err := c.Get(ctx, "n").Int64()
	s.note("get as a number", n, err)
	tell(s, "set of text", c.Set(ctx, "n", "text", 0))
	tell(s, "incr of text", c.Incr(ctx, "n"))
	tell(s, "del", c.Del(ctx, "n"))
}

func expiryProgram(ctx context.Context, s *story) {
	c := s.c
	about(s, "ttl of nothing", c.TTL(ctx, "x:none"))
	tell(s, "expire of nothing", c.Expire(ctx, "x:none", time.Hour))
	tell(s, "set", c.Set(ctx, "x", "v", 0))
	about(s, "ttl of no end", c.TTL(ctx, "x"))
	about(s, "pttl of no end", c.PTTL(ctx, "x"))
	tell(s, "expire", c.Expire(ctx, "x", time.Hour))
	about(s, "ttl", c.TTL(ctx, "x"))
	about(s, "pttl", c.PTTL(ctx, "x"))
	tell(s, "expirenx", c.ExpireNX(ctx, "x", 3*time.Hour))
	tell(s, "expirexx", c.ExpireXX(ctx, "x", 3*time.Hour))
	about(s, "ttl", c.TTL(ctx, "x"))
	tell(s, "persist", c.Persist(ctx, "x"))
	tell(s, "persist again", c.Persist(ctx, "x"))
	about(s, "ttl", c.TTL(ctx, "x"))
	at := time.Unix(4102444800, 0)
	tell(s, "expireat", c.ExpireAt(ctx, "x", at))
	tell(s, "expiretime", c.ExpireTime(ctx, "x"))
	tell(s, "pexpireat", c.PExpireAt(ctx, "x", at.Add(time.Millisecond)))
	tell(s, "pexpiretime", c.PExpireTime(ctx, "x"))
	tell(s, "pexpire", c.PExpire(ctx, "x", time.Hour))
	tell(s, "get", c.Get(ctx, "x"))
	tell(s, "expire now", c.Expire(ctx, "x", -time.Second))
	tell(s, "get of the expired", c.Get(ctx, "x"))
	tell(s, "set", c.Set(ctx, "x", "v", 0))
	tell(s, "expireat then", c.ExpireAt(ctx, "x", time.Unix(1, 0)))
	tell(s, "exists", c.Exists(ctx, "x"))
	tell(s, "touch", c.Touch(ctx, "x"))
}

func hashesProgram(ctx context.Context, s *story) {
	c := s.c
	tell(s, "hset", c.HSet(ctx, "h", "f", "1", "g", "2"))
	tell(s, "hset map", c.HSet(ctx, "h", map[string]any{"m": 3}))
	tell(s, "hget", c.HGet(ctx, "h", "f"))
	tell(s, "hget of nothing", c.HGet(ctx, "h", "none"))
	tell(s, "hgetall", c.HGetAll(ctx, "h"))
	tell(s, "hmget", c.HMGet(ctx, "h", "f", "none", "m"))
	tell(s, "hincrby", c.HIncrBy(ctx, "h", "f", 5))
	tell(s, "hsetnx", c.HSetNX(ctx, "h", "f", "no"))
	tell(s, "hexists", c.HExists(ctx, "h", "g"))
	set(s, "hkeys", c.HKeys(ctx, "h"))
	set(s, "hvals", c.HVals(ctx, "h"))
	tell(s, "hlen", c.HLen(ctx, "h"))
	tell(s, "hdel", c.HDel(ctx, "h", "f", "none"))
	tell(s, "hgetall of nothing", c.HGetAll(ctx, "h:none"))
	var row struct {
		G string `redis:"g"`
		M int    `redis:"m"`
	}
	s.note("scan into a struct", row, c.HGetAll(ctx, "h").Scan(&row))
	tell(s, "del", c.Del(ctx, "h"))
	tell(s, "hgetall of the deleted", c.HGetAll(ctx, "h"))
}

func listsProgram(ctx context.Context, s *story) {
	c := s.c
	tell(s, "lpush", c.LPush(ctx, "l", "a", "b", "c"))
	tell(s, "rpush", c.RPush(ctx, "l", "z"))
	tell(s, "lrange", c.LRange(ctx, "l", 0, -1))
	tell(s, "blpop", c.BLPop(ctx, time.Second, "l:none", "l"))
	tell(s, "brpop", c.BRPop(ctx, time.Second, "l"))
	tell(s, "lpop", c.LPop(ctx, "l"))
	tell(s, "llen", c.LLen(ctx, "l"))
	tell(s, "blmove", c.BLMove(ctx, "l", "l2", "LEFT", "RIGHT", time.Second))
	tell(s, "blpop of nothing", c.BLPop(ctx, time.Second, "l"))
	tell(s, "lrange", c.LRange(ctx, "l2", 0, -1))
	popped := make(chan *rueidiscompat.StringSliceCmd, 1)
	go func() { popped <- c.BLPop(ctx, time.Minute, "l:wait") }()
	tell(s, "lpush to who waits", c.LPush(ctx, "l:wait", "for you"))
	tell(s, "blpop that waited", <-popped)
	tell(s, "del", c.Del(ctx, "l", "l2"))
}

func setsProgram(ctx context.Context, s *story) {
	c := s.c
	tell(s, "sadd", c.SAdd(ctx, "t", "a", "b", "a"))
	set(s, "smembers", c.SMembers(ctx, "t"))
	tell(s, "sismember", c.SIsMember(ctx, "t", "a"))
	tell(s, "srem", c.SRem(ctx, "t", "a", "none"))
	tell(s, "sadd", c.SAdd(ctx, "t2", "b", "c"))
	tell(s, "sinterstore", c.SInterStore(ctx, "t3", "t", "t2"))
	set(s, "sunion", c.SUnion(ctx, "t", "t2", "t3"))
	tell(s, "zadd", c.ZAdd(ctx, "z", rueidiscompat.Z{Score: 1, Member: "a"}, rueidiscompat.Z{Score: 2.5, Member: "b"}))
	tell(s, "zincrby", c.ZIncrBy(ctx, "z", 3, "a"))
	tell(s, "zscore", c.ZScore(ctx, "z", "a"))
	tell(s, "zscore of nothing", c.ZScore(ctx, "z", "none"))
	tell(s, "zrange", c.ZRange(ctx, "z", 0, -1))
	tell(s, "zrange with scores", c.ZRangeWithScores(ctx, "z", 0, -1))
	tell(s, "zrangebyscore", c.ZRangeByScore(ctx, "z", rueidiscompat.ZRangeBy{Min: "2", Max: "+inf"}))
	tell(s, "zrank", c.ZRank(ctx, "z", "b"))
	tell(s, "zunionstore", c.ZUnionStore(ctx, "z2", rueidiscompat.ZStore{Keys: []string{"z", "z"}}))
	tell(s, "zpopmin", c.ZPopMin(ctx, "z2"))
	tell(s, "bzpopmax", c.BZPopMax(ctx, time.Second, "z2"))
	tell(s, "del", c.Del(ctx, "t", "t2", "t3", "z", "z2"))
}

func streamsProgram(ctx context.Context, s *story) {
	c := s.c
	tell(s, "xadd", c.XAdd(ctx, rueidiscompat.XAddArgs{Stream: "st", ID: "1-1", Values: []any{"k", "v"}}))
	tell(s, "xlen", c.XLen(ctx, "st"))
	tell(s, "xrange", c.XRange(ctx, "st", "-", "+"))
	tell(s, "xread", c.XRead(ctx, rueidiscompat.XReadArgs{Streams: []string{"st", "0"}, Block: -1}))
	tell(s, "xread that waits", c.XRead(ctx, rueidiscompat.XReadArgs{Streams: []string{"st", "$"}, Block: 20 * time.Millisecond}))
	tell(s, "xgroup create", c.XGroupCreate(ctx, "st", "g", "0"))
	tell(s, "xreadgroup", c.XReadGroup(ctx, rueidiscompat.XReadGroupArgs{Group: "g", Consumer: "me", Streams: []string{"st", ">"}, Block: -1}))
	tell(s, "xack", c.XAck(ctx, "st", "g", "1-1"))
	tell(s, "setbit", c.SetBit(ctx, "bits", 7, 1))
	tell(s, "get of bits", c.Get(ctx, "bits"))
	tell(s, "bitcount", c.BitCount(ctx, "bits", nil))
	tell(s, "pfadd", c.PFAdd(ctx, "hll", "a", "b"))
	tell(s, "pfcount", c.PFCount(ctx, "hll"))
	tell(s, "del", c.Del(ctx, "st", "bits", "hll"))
}

func pipelinesProgram(ctx context.Context, s *story) {
	p := s.c.Pipeline()
	p.Set(ctx, "p:a", "1", 0)
	get := p.Get(ctx, "p:a")
	p.Incr(ctx, "p:a")
	again := p.Get(ctx, "p:a")
	none := p.Get(ctx, "p:none")
	p.LPush(ctx, "p:a", "wrong type")
	p.Expire(ctx, "p:a", time.Hour)
	ttl := p.TTL(ctx, "p:a")
	p.MGet(ctx, "p:a", "p:none")
	p.Del(ctx, "p:a")
	last := p.Exists(ctx, "p:a")
	cmds, err := p.Exec(ctx)
	s.note("pipeline", len(cmds), err)
	tell(s, "get", get)
	tell(s, "get behind incr", again)
	tell(s, "get of nothing", none)
	about(s, "ttl", ttl)
	tell(s, "exists", last)
	for i, cmd := range cmds {
		s.note("command", i, cmd.Err())
	}
	cmds, err = s.c.Pipelined(ctx, func(p rueidiscompat.Pipeliner) error {
		p.Set(ctx, "p:b", "2", time.Hour)
		p.Get(ctx, "p:b")
		return nil
	})
	s.note("pipelined", len(cmds), err)
	cmds, err = s.c.Pipelined(ctx, func(rueidiscompat.Pipeliner) error { return errors.New("changed my mind") })
	s.note("pipelined, given up", len(cmds), err)
	tell(s, "get", s.c.Get(ctx, "p:b"))
}

func transactionsProgram(ctx context.Context, s *story) {
	tell(s, "set", s.c.Set(ctx, "tx:a", "1", 0))
	tell(s, "get", s.c.Get(ctx, "tx:a"))
	tx := s.c.TxPipeline()
	tx.Incr(ctx, "tx:a")
	get := tx.Get(ctx, "tx:a")
	tx.Set(ctx, "tx:b", "2", time.Hour)
	cmds, err := tx.Exec(ctx)
	s.note("transaction", len(cmds), err)
	tell(s, "get within", get)
	tell(s, "get afterwards", s.c.Get(ctx, "tx:a"))
	tell(s, "get afterwards", s.c.Get(ctx, "tx:b"))
	cmds, err = s.c.TxPipelined(ctx, func(p rueidiscompat.Pipeliner) error {
		p.Set(ctx, "tx:a", "text", 0)
		p.Incr(ctx, "tx:a")
		p.Get(ctx, "tx:a")
		return nil
	})
	s.note("transaction with an error", len(cmds), err)
	for i, cmd := range cmds {
		s.note("command", i, cmd.Err())
	}
	tell(s, "get afterwards", s.c.Get(ctx, "tx:a"))
}

func watchProgram(ctx context.Context, s *story) {
	c := s.c
	tell(s, "set", c.Set(ctx, "w", "1", 0))
	tell(s, "get", c.Get(ctx, "w"))
	add := func(between func()) error {
		return c.Watch(ctx, func(tx rueidiscompat.Tx) error {
			n, err := tx.Get(ctx, "w").Int64()
			if err != nil {
				return err
			}
			between()
			_, err = tx.TxPipelined(ctx, func(p rueidiscompat.Pipeliner) error {
				p.Set(ctx, "w", n+1, 0)
				return nil
			})
			return err
		}, "w")
	}
	s.note("watch", nil, add(func() {}))
	tell(s, "get", c.Get(ctx, "w"))
	s.note("watch, overtaken", nil, add(func() { c.Incr(ctx, "w") }))
	tell(s, "get", c.Get(ctx, "w"))
	s.note("watch, given up", nil, c.Watch(ctx, func(rueidiscompat.Tx) error { return errors.New("no") }, "w"))
	s.note("watch", nil, add(func() {}))
	tell(s, "get", c.Get(ctx, "w"))
}

func scriptsProgram(ctx context.Context, s *story) {
	c := s.c
	tell(s, "set", c.Set(ctx, "e", "1", 0))
	tell(s, "get", c.Get(ctx, "e"))
	tell(s, "eval that writes", c.Eval(ctx, `return redis.call("SET", KEYS[1], ARGV[1])`, []string{"e"}, "by script"))
	tell(s, "get", c.Get(ctx, "e"))
	tell(s, "eval", c.Eval(ctx, `return {1, "two", {3}, false}`, nil))
	tell(s, "eval that fails", c.Eval(ctx, `return redis.error_reply("MINE no")`, nil))
	script := rueidiscompat.NewScript(`return redis.call("APPEND", KEYS[1], ARGV[1])`)
	tell(s, "evalsha of nothing", c.EvalSha(ctx, "0123456789012345678901234567890123456789", nil))
	tell(s, "run", script.Run(ctx, c, []string{"e"}, "!"))
	tell(s, "run again", script.Run(ctx, c, []string{"e"}, "!"))
	tell(s, "get", c.Get(ctx, "e"))
	tell(s, "exists", script.Exists(ctx, c))
	tell(s, "load", script.Load(ctx, c))
	tell(s, "ro", c.EvalRO(ctx, `return redis.call("GET", KEYS[1])`, []string{"e"}))
}

func scanProgram(ctx context.Context, s *story) {
	c := s.c
	for i := range 30 {
		must := c.Set(ctx, fmt.Sprintf("scan:%02d", i), i, 0).Err()
		if must != nil {
			s.note("set", i, must)
		}
	}
	var all []string
	var cursor uint64
	for {
		keys, next, err := c.Scan(ctx, cursor, "scan:*", 7).Result()
		if err != nil {
			s.note("scan", nil, err)
		}
		all = append(all, keys...)
		if cursor = next; cursor == 0 {
			break
		}
	}
	slices.Sort(all)
	s.note("scan", slices.Compact(all), nil)
	set(s, "keys", c.Keys(ctx, "scan:0*"))
	tell(s, "del", c.Del(ctx, all...))
	set(s, "keys", c.Keys(ctx, "scan:*"))
	tell(s, "ping", c.Ping(ctx))
	tell(s, "echo", c.Echo(ctx, "hello"))
}

func cacheProgram(ctx context.Context, s *story) {
	c, cached := s.c, s.c.Cache(time.Minute)
	tell(s, "set", c.Set(ctx, "c:a", "1", time.Hour))
	tell(s, "hset", c.HSet(ctx, "c:h", "f", "v"))
	tell(s, "get", cached.Get(ctx, "c:a"))
	hit := cached.Get(ctx, "c:a")
	for i := 0; i < 100 && !hit.IsCacheHit(); i++ {
		hit = cached.Get(ctx, "c:a")
	}
	tell(s, "get again", hit)
	s.note("is a hit", hit.IsCacheHit(), nil)
	tell(s, "get of nothing", cached.Get(ctx, "c:none"))
	tell(s, "mget", cached.MGet(ctx, "c:a", "c:none"))
	tell(s, "hget", cached.HGet(ctx, "c:h", "f"))
	tell(s, "hgetall", cached.HGetAll(ctx, "c:h"))
	tell(s, "strlen", cached.StrLen(ctx, "c:a"))
	about(s, "pttl", cached.PTTL(ctx, "c:a"))
	tell(s, "type", cached.Type(ctx, "c:a"))
	tell(s, "get of a hash", cached.Get(ctx, "c:h"))
	tell(s, "del", c.Del(ctx, "c:a", "c:h"))
}

func mistakesProgram(ctx context.Context, s *story) {
	c := s.c
	tell(s, "lpush", c.LPush(ctx, "m", "a"))
	tell(s, "get of a list", c.Get(ctx, "m"))
	tell(s, "mget of a list", c.MGet(ctx, "m"))
	tell(s, "incr of a list", c.Incr(ctx, "m"))
	tell(s, "hset of a list", c.HSet(ctx, "m", "f", "v"))
	tell(s, "getdel of a list", c.GetDel(ctx, "m"))
	tell(s, "setex of no time", c.SetEX(ctx, "m:s", "v", 0))
	tell(s, "del of nothing", c.Del(ctx))
	tell(s, "eval of nonsense", c.Eval(ctx, `this is no script`, nil))
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	s.note("get, cancelled", nil, c.Get(canceled, "m").Err())
	s.note("set, cancelled", nil, c.Set(canceled, "m:s", "v", 0).Err())
	tell(s, "set over a list", c.Set(ctx, "m", "v", 0))
	tell(s, "get", c.Get(ctx, "m"))
	tell(s, "del", c.Del(ctx, "m"))
}

func subscribeProgram(ctx context.Context, s *story) {
	sub := s.c.Subscribe(ctx, "news")
	receive := func(what string) {
		m, err := sub.ReceiveTimeout(ctx, patience)
		s.note(what, m, err)
	}
	receive("subscribed")
	tell(s, "publish", s.c.Publish(ctx, "news", "one"))
	receive("message")
	s.note("psubscribe", nil, sub.PSubscribe(ctx, "new*"))
	receive("subscribed")
	tell(s, "publish", s.c.Publish(ctx, "newer", "two"))
	receive("message")
	s.note("unsubscribe", nil, sub.Unsubscribe(ctx, "news"))
	receive("unsubscribed")
	s.note("close", nil, sub.Close())
}

// cachedTypesProgram reads each type by a cached command, twice, and once more after a write
// of its own.
func cachedTypesProgram(ctx context.Context, s *story) {
	c, cached := s.c, s.c.Cache(time.Hour)
	c.Set(ctx, "ct:s", "value", 0)
	c.HSet(ctx, "ct:h", "f", "1", "g", "2")
	c.RPush(ctx, "ct:l", "a", "b", "c")
	c.SAdd(ctx, "ct:t", "a")
	c.ZAdd(ctx, "ct:z", rueidiscompat.Z{Score: 1, Member: "a"}, rueidiscompat.Z{Score: 2, Member: "b"})
	c.SetBit(ctx, "ct:b", 7, 1)
	reads := []struct {
		name string
		read func() (any, error)
	}{
		{"get", result(func() *rueidiscompat.StringCmd { return cached.Get(ctx, "ct:s") })},
		{"getrange", result(func() *rueidiscompat.StringCmd { return cached.GetRange(ctx, "ct:s", 1, 2) })},
		{"strlen", result(func() *rueidiscompat.IntCmd { return cached.StrLen(ctx, "ct:s") })},
		{"bitcount", result(func() *rueidiscompat.IntCmd { return cached.BitCount(ctx, "ct:b", nil) })},
		{"getbit", result(func() *rueidiscompat.IntCmd { return cached.GetBit(ctx, "ct:b", 7) })},
		{"hget", result(func() *rueidiscompat.StringCmd { return cached.HGet(ctx, "ct:h", "f") })},
		{"hget of nothing", result(func() *rueidiscompat.StringCmd { return cached.HGet(ctx, "ct:h", "none") })},
		{"hgetall", result(func() *rueidiscompat.StringStringMapCmd { return cached.HGetAll(ctx, "ct:h") })},
		{"hgetall of nothing", result(func() *rueidiscompat.StringStringMapCmd { return cached.HGetAll(ctx, "ct:none") })},
		{"hmget", result(func() *rueidiscompat.SliceCmd { return cached.HMGet(ctx, "ct:h", "f", "none") })},
		{"hlen", result(func() *rueidiscompat.IntCmd { return cached.HLen(ctx, "ct:h") })},
		{"hexists", result(func() *rueidiscompat.BoolCmd { return cached.HExists(ctx, "ct:h", "g") })},
		{"lrange", result(func() *rueidiscompat.StringSliceCmd { return cached.LRange(ctx, "ct:l", 0, -1) })},
		{"lindex", result(func() *rueidiscompat.StringCmd { return cached.LIndex(ctx, "ct:l", 1) })},
		{"llen", result(func() *rueidiscompat.IntCmd { return cached.LLen(ctx, "ct:l") })},
		{"smembers", result(func() *rueidiscompat.StringSliceCmd { return cached.SMembers(ctx, "ct:t") })},
		{"sismember", result(func() *rueidiscompat.BoolCmd { return cached.SIsMember(ctx, "ct:t", "a") })},
		{"scard", result(func() *rueidiscompat.IntCmd { return cached.SCard(ctx, "ct:t") })},
		{"zrange", result(func() *rueidiscompat.ZSliceCmd { return cached.ZRangeWithScores(ctx, "ct:z", 0, -1) })},
		{"zscore", result(func() *rueidiscompat.FloatCmd { return cached.ZScore(ctx, "ct:z", "a") })},
		{"zrank of nothing", result(func() *rueidiscompat.IntCmd { return cached.ZRank(ctx, "ct:z", "none") })},
		{"hget of a list", result(func() *rueidiscompat.StringCmd { return cached.HGet(ctx, "ct:l", "f") })},
	}
	note := func(what string) {
		for _, r := range reads {
			v, err := r.read()
			s.note(r.name+", "+what, v, err)
		}
	}
	note("first")
	note("again")
	c.Del(ctx, "ct:s", "ct:h", "ct:l", "ct:t", "ct:z", "ct:b")
	// Rueidis' own cache may be a moment behind its own writes.
	gone := func() bool {
		hash, err := cached.HGetAll(ctx, "ct:h").Result()
		return err == nil && len(hash) == 0 && cached.ZScore(ctx, "ct:z", "a").Err() == rueidiscompat.Nil
	}
	for began := time.Now(); !gone() && time.Since(began) < patience; {
		time.Sleep(time.Millisecond)
	}
	note("after the deletion")
}

// result makes a function of a command that returns its result.
func result[T any, C interface{ Result() (T, error) }](run func() C) func() (any, error) {
	return func() (any, error) { return run().Result() }
}
