package holdfast_test

import (
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/holdfast-cache/holdfast/internal/redistest"
)

// The commands of the differential test of all types. In a form, a word in lower case stands
// for one of the words below, and "key" for a key.

// kind is a type of Redis with the keys that usually hold it, and the forms of its commands.
type kind struct {
	name   string
	keys   []string
	reads  []string
	writes []string
}

// words are the arguments. They are few, so that commands meet at the same fields.
var words = map[string][]string{
	"field":  {"f1", "f2", "f", "1f1", "1", ""}, // some are the same in a row
	"member": {"m1", "m2", "m3", "1", "2"},
	"value":  {"1", "v", "", "17", "\x00\r\n\xfe", "a value of more than sixty-four bytes, for which Redis changes the encoding"},
	"index":  {"-3", "-1", "0", "0", "1", "2", "7"},
	"count":  {"1", "2", "5", "-1"},
	"delta":  {"1", "-2", "10", "0"},
	"float":  {"0.5", "-1.25", "1e3"},
	"odd":    someOdd,
	"score":  {"1", "2", "2", "-1", "3.5", "inf", "nan"},
	"min":    {"-inf", "(1", "1", "0"},
	"max":    {"+inf", "(3", "2.5", "[x"},
	"from":   {"-", "[m1", "(1"},
	"to":     {"+", "[m3", "(2"},
	"id":     {"1-1", "1-2", "2-1", "2-7", "3", "0"},
	"offset": {"0", "1", "7", "8", "100"},
	"bit":    {"0", "1"},
	"lon":    {"1.5", "2", "13.361389"},
	"lat":    {"1.25", "2", "38.115556"},
	"longer": {"1000", "100000", "10000000"}, // seconds to live; far from each other: see nearInTime
	"millis": {"1000000", "100000000", "10000000000"},
	"moment": {"4102444800", "4133980800", "1"},
}

// kinds are the types. Their keys begin as the prefixes of tracked do.
var kinds = []kind{
	{"string", []string{"app:s1", "app:s2"}, lines(`
GET key
GET key
MGET key key
STRLEN key
GETRANGE key index index
SUBSTR key 0 index
LCS key key LEN
`), lines(`
SET key value
SET key value EX longer
SET key value PXAT 1
SET key value GET
SETEX key longer value
MSET key value key value
MSETNX key value key value
SETNX key value
APPEND key value
SETRANGE key offset value
INCR key
INCRBY key delta
DECRBY key odd
INCRBYFLOAT key float
GETSET key value
GETDEL key
GETEX key EX longer
GETEX key PERSIST
GETEX key PXAT 1
`)},
	{"bitmap", []string{"app:b1", "app:b2"}, lines(`
GETBIT key offset
BITCOUNT key
BITCOUNT key index index BYTE
BITCOUNT key index index BIT
BITPOS key bit
BITPOS key bit index index
BITFIELD_RO key GET u4 offset GET i8 0
GET key
`), lines(`
SETBIT key offset bit
SETBIT key offset bit
BITFIELD key SET u8 offset delta INCRBY i5 8 1
BITFIELD key GET u8 offset
BITOP AND key key key
BITOP NOT key key
SETBIT key odd bit
`)},
	{"hash", []string{"app:h1", "app:h2", "app:\x00\xff\r\n"}, lines(`
HGETALL key
HGETALL key
HGET key field
HGET key field
HMGET key field field
HLEN key
HEXISTS key field
HKEYS key
HVALS key
HSTRLEN key field
HRANDFIELD key 100
HRANDFIELD key 100 WITHVALUES
HSCAN key 0 COUNT 1000
`), lines(`
HSET key field value
HSET key field value field value
HMSET key field value
HSETNX key field value
HDEL key field
HDEL key field field
HINCRBY key field delta
HINCRBY key field odd
HINCRBYFLOAT key field float
`)},
	{"list", []string{"app:l1", "app:l2"}, lines(`
LRANGE key 0 -1
LRANGE key index index
LINDEX key index
LLEN key
LPOS key member
LPOS key member COUNT 0
SORT_RO key ALPHA
SORT_RO key GET # GET app:s* GET app:h*->f1 ALPHA
`), lines(`
LPUSH key member
RPUSH key member member
LPUSHX key member
RPUSHX key member
LPOP key
LPOP key count
RPOP key
LSET key index member
LINSERT key BEFORE member member
LREM key 0 member
LTRIM key index index
LMOVE key key LEFT RIGHT
RPOPLPUSH key key
LMPOP 2 key key LEFT
BLPOP key 0.001
BLMOVE key key LEFT LEFT 0.001
SORT key ALPHA STORE key
`)},
	{"set", []string{"app:t1", "app:t2"}, lines(`
SMEMBERS key
SMEMBERS key
SISMEMBER key member
SMISMEMBER key member member
SCARD key
SRANDMEMBER key 100
SDIFF key key
SINTER key key
SUNION key key
SINTERCARD 2 key key
SSCAN key 0 COUNT 1000
`), lines(`
SADD key member
SADD key member member
SADD key delta
SREM key member
SPOP key 100
SMOVE key key member
SUNIONSTORE key key key
SINTERSTORE key key key
SDIFFSTORE key key key
SORT key ALPHA STORE key
`)},
	{"sorted set", []string{"app:z1", "app:z2"}, lines(`
ZRANGE key 0 -1
ZRANGE key index index WITHSCORES
ZRANGE key min max BYSCORE
ZRANGE key to from BYLEX REV LIMIT 0 2
ZREVRANGE key 0 -1 WITHSCORES
ZRANGEBYSCORE key min max WITHSCORES LIMIT 0 2
ZREVRANGEBYSCORE key max min
ZRANGEBYLEX key from to
ZREVRANGEBYLEX key to from
ZSCORE key member
ZMSCORE key member member
ZCARD key
ZCOUNT key min max
ZLEXCOUNT key from to
ZRANK key member
ZREVRANK key member
ZRANDMEMBER key 100 WITHSCORES
ZDIFF 2 key key
ZINTER 2 key key WITHSCORES
ZUNION 2 key key WITHSCORES
ZINTERCARD 2 key key
ZSCAN key 0 COUNT 1000
`), lines(`
ZADD key score member
ZADD key score member score member
ZADD key GT CH score member
ZADD key INCR score member
ZINCRBY key float member
ZREM key member
ZPOPMIN key
ZPOPMAX key count
ZMPOP 2 key key MAX
BZPOPMIN key 0.001
ZREMRANGEBYRANK key index index
ZREMRANGEBYSCORE key min max
ZREMRANGEBYLEX key from to
ZRANGESTORE key key 0 index
ZUNIONSTORE key 2 key key
ZINTERSTORE key 2 key key WEIGHTS 1 2
ZDIFFSTORE key 2 key key
`)},
	{"hyperloglog", []string{"app:p1", "app:p2"}, lines(`
GET key
STRLEN key
`), lines(`
PFADD key value
PFADD key value member
PFCOUNT key
PFCOUNT key
PFCOUNT key key
PFMERGE key key
`)},
	{"geo", []string{"app:g1", "app:g2"}, lines(`
GEOPOS key member
GEODIST key member member
GEODIST key member member KM
GEOHASH key member member
GEOSEARCH key FROMLONLAT 1 1 BYRADIUS 300 km ASC
GEOSEARCH key FROMMEMBER member BYBOX 500 500 km ASC WITHCOORD WITHDIST
GEORADIUS_RO key 1 1 300 km ASC
GEORADIUSBYMEMBER_RO key member 300 km DESC COUNT 2
ZRANGE key 0 -1 WITHSCORES
`), lines(`
GEOADD key lon lat member
GEOADD key lon lat member lon lat member
GEOADD key odd lat member
GEOSEARCHSTORE key key FROMLONLAT 1 1 BYRADIUS 300 km ASC
GEORADIUS key 1 1 300 km ASC
GEORADIUS key 1 1 300 km ASC STORE key
GEORADIUSBYMEMBER key member 300 km STOREDIST key
ZREM key member
`)},
	{"stream", []string{"app:x1", "app:x2"}, lines(`
XRANGE key - +
XRANGE key id + COUNT 2
XREVRANGE key + id
XLEN key
XREAD COUNT 2 STREAMS key key id 0
XPENDING key group
`), lines(`
XADD key id field value
XADD key id field value
XADD key id field value field value
XADD key NOMKSTREAM MAXLEN 2 id field value
XDEL key id
XTRIM key MAXLEN 2
XGROUP CREATE key group 0 MKSTREAM
XREADGROUP GROUP group me COUNT 1 STREAMS key >
XACK key group id
`)},
}

// Commands for keys of all types.
var (
	readsOfAny = lines(`
TYPE key
EXISTS key
EXISTS key key
TTL key
PTTL key
EXPIRETIME key
PEXPIRETIME key
`)
	writesOfAny = lines(`
DEL key
DEL key key
UNLINK key
EXPIRE key longer
PEXPIRE key millis
EXPIREAT key moment
PEXPIREAT key 1
EXPIRE key -1
EXPIRE key odd
PERSIST key
RENAME key key
RENAMENX key key
COPY key key
COPY key key REPLACE
MOVE key 1
SET key value
TOUCH key key
BOGUS key value
`)
)

// unordered are the commands that reply with their elements in any order. Some of them choose at
// random when their count is missing.
var unordered = strings.Fields(`SMEMBERS SPOP SRANDMEMBER SDIFF SINTER SUNION HGETALL HKEYS HVALS HRANDFIELD
	ZRANDMEMBER HSCAN SSCAN ZSCAN`)

func lines(text string) []string { return strings.Split(strings.TrimSpace(text), "\n") }

// command is a command with the keys among its arguments.
type command struct {
	args []string
	keys []string
}

func (c command) name() string { return strings.ToUpper(c.args[0]) }

// ofForm makes a command of a form for a kind. Now and then a key is one of another kind.
func ofForm(r *rand.Rand, form string, k *kind) command {
	c := command{args: strings.Fields(form)}
	for i, word := range c.args[1:] {
		if word == "key" {
			of := k
			if r.IntN(16) == 0 {
				of = &kinds[r.IntN(len(kinds))]
			}
			word = pick(r, of.keys)
			c.keys = append(c.keys, word)
		} else if choice, ok := words[word]; ok {
			word = pick(r, choice)
		}
		c.args[i+1] = word
	}
	return c
}

func randomRead(r *rand.Rand, k *kind) command {
	forms := k.reads
	if r.IntN(8) == 0 {
		forms = readsOfAny
	}
	return ofForm(r, pick(r, forms), k)
}

// randomWrite makes a command that is no mere read, or one that is none because it is malformed.
func randomWrite(r *rand.Rand) command {
	k := &kinds[r.IntN(len(kinds))]
	forms := k.writes
	if r.IntN(6) == 0 {
		forms = writesOfAny
	}
	c := ofForm(r, pick(r, forms), k)
	switch r.IntN(40) {
	case 0:
		if !slices.Contains(unordered, c.name()) {
			c.args = c.args[:len(c.args)-1]
		}
	case 1:
		c.args = append(c.args, "extra")
	case 2:
		c.args = c.args[:1]
	case 3:
		c.args[0] = strings.ToLower(c.args[0])
	}
	return c
}

// allKeys are the keys of all kinds.
func allKeys() []string {
	var all []string
	for _, k := range kinds {
		all = append(all, k.keys...)
	}
	return all
}

// kindOf returns the kind that a key usually holds.
func kindOf(key string) *kind {
	return &kinds[slices.IndexFunc(kinds, func(k kind) bool { return slices.Contains(k.keys, key) })]
}

// contents are commands that make a key of each type.
var contents = lines(`
SET app:s1 a-value
SETBIT app:b1 7 1
HSET app:h1 f1 1 f2 2
RPUSH app:l1 m1 m2 m1
SADD app:t1 m1 m2
ZADD app:z1 1 m1 2.5 m2 inf m3
PFADD app:p1 a b c
GEOADD app:g1 13.361389 38.115556 m1 15.087269 37.502669 m2
XADD app:x1 1-1 f1 1
XADD app:x1 2-1 f2 2
`)

// keptReads are reads whose replies are cached, of all types and of absent keys.
var keptReads = lines(`
GET app:s1
STRLEN app:s1
GETRANGE app:s1 0 3
SUBSTR app:s1 0 3
GETBIT app:b1 7
BITCOUNT app:b1
BITCOUNT app:b1 0 0 BIT
BITPOS app:b1 1
BITFIELD_RO app:b1 GET u4 0
HGETALL app:h1
HGET app:h1 f1
HGET app:h1 absent
HMGET app:h1 f1 absent
HLEN app:h1
HEXISTS app:h1 f2
HKEYS app:h1
HVALS app:h1
HSTRLEN app:h1 f1
LRANGE app:l1 0 -1
LINDEX app:l1 1
LLEN app:l1
LPOS app:l1 m1
SMEMBERS app:t1
SISMEMBER app:t1 m1
SMISMEMBER app:t1 m1 absent
SCARD app:t1
ZRANGE app:z1 0 -1
ZRANGE app:z1 0 -1 WITHSCORES
ZRANGEBYSCORE app:z1 -inf 2
ZREVRANGEBYSCORE app:z1 +inf 1
ZREVRANGE app:z1 0 1
ZRANGEBYLEX app:z1 - +
ZREVRANGEBYLEX app:z1 + -
ZSCORE app:z1 m2
ZMSCORE app:z1 m1 absent
ZCARD app:z1
ZCOUNT app:z1 1 2
ZLEXCOUNT app:z1 - +
ZRANK app:z1 m2
ZREVRANK app:z1 absent
GEOPOS app:g1 m1
GEODIST app:g1 m1 m2 km
GEOHASH app:g1 m1
GEOSEARCH app:g1 FROMMEMBER m1 BYRADIUS 200 km ASC
GEORADIUS_RO app:g1 15 37 200 km ASC
GEORADIUSBYMEMBER_RO app:g1 m1 200 km ASC
XRANGE app:x1 - +
XREVRANGE app:x1 + -
XLEN app:x1
TYPE app:p1
HGETALL app:absent
LRANGE app:absent 0 -1
ZSCORE app:absent m1
`)

// fill makes a server hold the contents. A key of another type is as it was.
func fill(s *redistest.Server) {
	for _, line := range contents {
		_, _ = s.Do(strings.Fields(line)...)
	}
}
