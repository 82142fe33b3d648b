package goredis

import (
	"strconv"
	"strings"
)

// class says how a command is executed.
type class uint8

const (
	// through: sent to Redis by go-redis itself, within the budget.
	through class = iota
	// served: passed to the Cache, which may answer without Redis.
	served
	// cached: a read that the Cache may answer by a reply that it kept, if the option
	// CacheReads is set.
	cached
	// waiting: as through, but Redis may block, so there is no budget.
	waiting
	// session: as through, and concerns the connection. go-redis begins each connection
	// with some.
	session
	// refused: the command would change the meaning of a later one without the hook
	// knowing.
	refused
)

// keySpec says which arguments are keys, as COMMAND does: the first, the last, which
// counts from the end if it is negative, and the step between them. If first is 0, there
// are none.
type keySpec struct{ first, last, step int }

// spec is the description of a command.
type spec struct {
	class class
	shape shape // of the reply, if the cache answers
	write bool  // it may change its keys
	tells bool  // Redis runs it while it is busy with a script
	keys  keySpec
	moved func(args []string) []string // finds the keys if their positions vary

	// Of cached commands: an option that changes the shape of the reply; the name as
	// Cache.Client has it, so that both share the replies; the class without CacheReads.
	option  variant
	upper   string
	without class
}

// variant is the shape of a reply if an argument after the second begins with option.
type variant struct {
	option string // "": there is none
	shape  shape
}

// unknown describes a command that is not in specs: any argument may be a key.
var unknown = spec{class: through, write: true, keys: keySpec{1, -1, 1}}

// specs describes the commands of Redis 7, by their names in lower case.
var specs = makeSpecs()

func makeSpecs() map[string]spec {
	all := make(map[string]spec, 256)
	add := func(s spec, names string) {
		for name := range strings.FieldsSeq(names) {
			s.upper = strings.ToUpper(name)
			all[name] = s
		}
	}
	none, one, two, every := keySpec{}, keySpec{1, 1, 1}, keySpec{1, 2, 1}, keySpec{1, -1, 1}

	add(spec{class: served, shape: bulk, keys: one}, "get")
	add(spec{class: cached, without: served, shape: bulk, keys: one}, "getrange")
	add(spec{class: served, shape: array, keys: every}, "mget")
	add(spec{class: served, shape: integer, keys: every}, "exists")
	add(spec{class: cached, without: served, shape: integer, keys: one}, "strlen")
	add(spec{class: served, shape: seconds, keys: one}, "ttl expiretime")
	add(spec{class: served, shape: milliseconds, keys: one}, "pttl pexpiretime")
	add(spec{class: served, shape: bulk, write: true, keys: one}, "getdel")
	add(spec{class: served, shape: status, write: true, keys: one}, "set setex psetex")
	add(spec{class: served, shape: status, write: true, keys: keySpec{1, -1, 2}}, "mset")
	add(spec{class: served, shape: integer, write: true, keys: every}, "del unlink")
	add(spec{class: served, shape: integer, write: true, keys: one}, "expire pexpire expireat pexpireat persist")
	// They change keys that they do not name; the Cache handles that.
	add(spec{class: served, shape: status, write: true, keys: none}, "flushall flushdb swapdb")

	add(spec{keys: none}, `bgrewriteaof bgsave cluster command config dbsize echo failover function info keys
		lastsave latency lolwut module ping pubsub publish randomkey replicaof role save scan script shutdown
		slaveof slowlog time acl pfselftest`)
	add(spec{keys: one}, "spublish dump hrandfield hscan srandmember sscan xpending zrandmember zscan sort_ro")
	for _, c := range cachedReads {
		add(spec{class: cached, shape: c.shape, option: c.option, keys: one}, c.names)
	}
	add(spec{keys: two}, "lcs")
	add(spec{keys: every}, "pfcount sdiff sinter sunion touch")
	add(spec{write: true, keys: one}, `append bitfield decr decrby geoadd getex getset hdel hincrby hincrbyfloat hmset
		hset hsetnx incr incrby incrbyfloat linsert lpop lpush lpushx lrem lset ltrim move pfadd restore
		restore-asking rpop rpush rpushx sadd setbit setnx setrange spop srem xack xadd xautoclaim xclaim xdel
		xsetid xtrim zadd zincrby zpopmax zpopmin zrem zremrangebylex zremrangebyrank zremrangebyscore`)
	add(spec{write: true, keys: two}, "copy geosearchstore lmove rename renamenx rpoplpush smove zrangestore")
	add(spec{write: true, keys: every}, "pfmerge sdiffstore sinterstore sunionstore")
	add(spec{write: true, keys: keySpec{1, -1, 2}}, "msetnx")
	add(spec{write: true, keys: keySpec{2, -1, 1}}, "bitop")
	add(spec{write: true, keys: keySpec{2, 2, 1}}, "pfdebug")
	// A key may have changed before WATCH, with the invalidation still under way. The
	// local copy must not be read after WATCH.
	add(spec{write: true, keys: every}, "watch")

	add(spec{moved: counted(1)}, "sintercard zdiff zinter zintercard zunion")
	add(spec{moved: counted(2)}, "eval_ro evalsha_ro fcall_ro")
	add(spec{write: true, moved: counted(1)}, "lmpop zmpop")
	add(spec{write: true, moved: counted(2)}, "eval evalsha fcall")
	add(spec{write: true, moved: targetAndCounted}, "zdiffstore zinterstore zunionstore")
	add(spec{moved: second}, "xinfo object memory debug")
	add(spec{write: true, moved: second}, "xgroup")
	// Their options may name a key to store to.
	add(spec{write: true, keys: every}, "georadius georadiusbymember sort migrate")

	add(spec{class: waiting, write: true, keys: keySpec{1, -2, 1}}, "blpop brpop bzpopmax bzpopmin")
	add(spec{class: waiting, write: true, keys: two}, "blmove brpoplpush")
	add(spec{class: waiting, write: true, moved: counted(2)}, "blmpop bzmpop")
	add(spec{class: waiting, moved: streams}, "xread")
	add(spec{class: waiting, write: true, moved: streams}, "xreadgroup")
	add(spec{class: waiting, keys: none}, "wait waitaof")

	add(spec{class: waiting, keys: none}, "monitor psubscribe psync ssubscribe subscribe sync")

	add(spec{class: session}, `asking auth client hello punsubscribe quit readonly readwrite replconf select
		sunsubscribe unsubscribe unwatch`)
	// RESET would leave a connection of the pool in database 0.
	add(spec{class: refused}, "multi exec discard reset")
	return all
}

// cachedReads are the commands whose replies Cache.Client keeps and go-redis has a type for.
var cachedReads = []struct {
	shape  shape
	option variant
	names  string
}{
	{bulk, variant{}, "hget lindex substr"},
	{status, variant{}, "type"},
	{integer, variant{}, `bitcount bitpos getbit hexists hlen hstrlen llen scard sismember xlen zcard zcount zlexcount
		bf.card cf.count`},
	{integer, variant{"count", integers}, "lpos"},
	{integer, variant{"withscore", ranked}, "zrank zrevrank"},
	{integers, variant{}, "bitfield_ro smismember cms.query topk.count"},
	{array, variant{}, "hmget"},
	{texts, variant{}, "geohash hkeys hvals lrange smembers zrangebylex zrevrangebylex"},
	{texts, variant{"withcount", mixed}, "topk.list"},
	{texts, variant{"withscores", scores}, "zrange zrangebyscore zrevrange zrevrangebyscore"},
	{texts, variant{"with", locations}, "georadius_ro georadiusbymember_ro geosearch"},
	{messages, variant{}, "xrange xrevrange"},
	{fields, variant{}, "hgetall"},
	{decimal, variant{}, "geodist zscore"},
	{decimals, variant{}, "zmscore"},
	{positions, variant{}, "geopos"},
	{flag, variant{}, "bf.exists cf.exists"},
	{flags, variant{}, "bf.mexists cf.mexists topk.query"},
	{document, variant{}, "json.get"},
}

// specOf returns the spec of a command.
func specOf(name string) spec {
	if s, ok := specs[name]; ok {
		return s
	}
	return unknown
}

// ofSubcommand returns the spec of SCRIPT or FUNCTION with a subcommand. A KILL goes
// through the cache, which can reach a busy server.
func ofSubcommand(s spec, name, sub string) spec {
	switch {
	case strings.EqualFold(sub, "kill"):
		s.class, s.shape = served, status
	case name == "function" && strings.EqualFold(sub, "stats"):
		s.tells = true
	}
	return s
}

// telling returns how many of n arguments are needed to find the keys.
func (s *spec) telling(n int) int {
	switch {
	case s.moved != nil || s.keys.last < 0:
		return n
	case s.class == session:
		return min(n, 2) // the database of SELECT
	}
	return min(n, max(1, s.keys.last+1))
}

// shapeOf returns the shape of the reply to a cached command.
func (s *spec) shapeOf(args []string) shape {
	if s.option.option == "" {
		return s.shape
	}
	n := len(s.option.option)
	for _, arg := range args[min(3, len(args)):] {
		if len(arg) >= n && strings.EqualFold(arg[:n], s.option.option) {
			return s.option.shape
		}
	}
	return s.shape
}

// find returns the keys of a command. args begins with the command's name.
func (s *spec) find(args []string) []string {
	if s.moved != nil {
		return s.moved(args)
	}
	if s.keys.first == 0 {
		return nil
	}
	last := s.keys.last
	if last < 0 {
		last += len(args)
	}
	last = min(last, len(args)-1)
	if s.keys.step == 1 {
		return cut(args, s.keys.first, last+1)
	}
	var keys []string
	for i := s.keys.first; i <= last; i += s.keys.step {
		keys = append(keys, args[i])
	}
	return keys
}

// cut returns args[from:to], clipped to the length of args.
func cut(args []string, from, to int) []string {
	to = min(to, len(args))
	if from >= to {
		return nil
	}
	return args[from:to:to]
}

// counted returns a function that finds keys behind their number, which is the argument
// at.
func counted(at int) func([]string) []string {
	return func(args []string) []string {
		if at >= len(args) {
			return nil
		}
		n, err := strconv.Atoi(args[at])
		if err != nil || n < 0 || n > len(args) {
			return cut(args, 1, len(args)) // Redis will refuse it
		}
		return cut(args, at+1, at+1+n)
	}
}

// targetAndCounted returns the first argument and the keys of counted(2).
func targetAndCounted(args []string) []string {
	return append(cut(args, 1, 2), counted(2)(args)...)
}

// second returns the key of a command that has a subcommand.
func second(args []string) []string { return cut(args, 2, 3) }

// streams returns the first half of the arguments behind STREAMS: keys, then as many ids.
func streams(args []string) []string {
	for i := 1; i < len(args); i++ {
		if strings.EqualFold(args[i], "streams") {
			rest := len(args) - i - 1
			return cut(args, i+1, i+1+rest/2)
		}
	}
	return nil
}
