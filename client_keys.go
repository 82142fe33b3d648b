package holdfast

import (
	"strconv"
	"strings"
)

// command describes one of Redis' commands. The zero value describes an unknown command: it may
// write, any of its arguments may be a key, and the first argument is one.
type command struct {
	verb  verb
	where where
	reads bool // is read-only
}

// verb is the way in which the drop-in client handles a command.
type verb uint8

const (
	verbPass verb = iota // only Redis can answer
	verbGet              // verbGet to verbPersist go through the tiers
	verbMget
	verbExists
	verbTTL // also PTTL, EXPIRETIME, PEXPIRETIME
	verbSet
	verbSetex // also PSETEX
	verbMset
	verbDel // also UNLINK
	verbGetdel
	verbExpire // also PEXPIRE, EXPIREAT, PEXPIREAT
	verbPersist
	verbCached   // the first tier can keep Redis' reply
	verbFlush    // only Redis can answer; all copies are invalid afterwards
	verbUnsettle // only Redis can answer; all copies are suspect afterwards
	verbBlock    // blocks at the server, on a dedicated connection
	verbMulti    // begins a transaction
	verbExec     // ends a transaction; also DISCARD
	verbSession  // changes the state of its connection: refused
	verbReceive  // makes the server send messages: refused
)

// where tells which arguments of a command are keys. Zero value: any argument may be a key.
type where uint8

const (
	keysAnywhere where = iota
	keyFirst           // the first argument
	keyFirstTwo
	keysAll       // every argument
	keysAllButOne // every argument but the last
	keysPairs     // every second argument
	keySecond     // after a subcommand
	keysFromSecond
	keysCounted  // after their number, the first argument
	keysCounted2 // after their number, the second argument
	keysInto     // the key to write, then the number of the others and the others
	keysStreams  // the first half of the arguments after STREAMS
	keyless
)

// redisCommands lists the commands of Redis. A command that is missing here is treated as a write
// whose first argument is a key and whose other arguments may be keys.
var redisCommands = tableOf([]row{
	{verbPass, keyFirst, true, `DUMP HRANDFIELD HSCAN HEXPIRETIME HPEXPIRETIME HPTTL HTTL SORT_RO SPUBLISH SRANDMEMBER
		SSCAN XPENDING ZRANDMEMBER ZSCAN`},
	{verbCached, keyFirst, true, `BITCOUNT BITFIELD_RO BITPOS GEODIST GEOHASH GEOPOS GEORADIUSBYMEMBER_RO GEORADIUS_RO
		GEOSEARCH GETBIT GETRANGE HEXISTS HGET HGETALL HKEYS HLEN HMGET HSTRLEN HVALS LINDEX LLEN LPOS LRANGE
		SCARD SISMEMBER SMEMBERS SMISMEMBER STRLEN SUBSTR TYPE XLEN XRANGE XREVRANGE ZCARD ZCOUNT ZLEXCOUNT
		ZMSCORE ZRANGE ZRANGEBYLEX ZRANGEBYSCORE ZRANK ZREVRANGE ZREVRANGEBYLEX ZREVRANGEBYSCORE ZREVRANK
		ZSCORE BF.CARD BF.EXISTS BF.INFO BF.MEXISTS CF.COUNT CF.EXISTS CF.INFO CF.MEXISTS CMS.INFO CMS.QUERY
		JSON.ARRINDEX JSON.ARRLEN JSON.GET JSON.OBJKEYS JSON.OBJLEN JSON.RESP JSON.STRLEN JSON.TYPE
		TOPK.COUNT TOPK.INFO TOPK.LIST TOPK.QUERY`},
	{verbPass, keyFirst, false, `APPEND BITFIELD DECR DECRBY GEOADD GETEX GETSET HDEL HINCRBY HINCRBYFLOAT HMSET
		HSET HSETNX INCR INCRBY INCRBYFLOAT LINSERT LPOP LPUSH LPUSHX LREM LSET LTRIM MOVE PFADD RESTORE
		RPOP RPUSH RPUSHX SADD SETBIT SETNX SETRANGE SPOP SREM XACK XADD XAUTOCLAIM XCLAIM XDEL XSETID XTRIM
		ZADD ZINCRBY ZPOPMAX ZPOPMIN ZREM ZREMRANGEBYLEX ZREMRANGEBYRANK ZREMRANGEBYSCORE`},
	{verbPass, keyFirstTwo, true, `LCS`},
	{verbPass, keyFirstTwo, false, `COPY GEOSEARCHSTORE LMOVE RENAME RENAMENX RPOPLPUSH SMOVE ZRANGESTORE`},
	{verbPass, keysAll, true, `SDIFF SINTER SUNION TOUCH`},
	// PFCOUNT may store its count in the value.
	{verbPass, keysAll, false, `PFCOUNT PFMERGE SDIFFSTORE SINTERSTORE SUNIONSTORE`},
	{verbPass, keysPairs, false, `MSETNX`},
	{verbPass, keySecond, true, `MEMORY OBJECT XINFO`},
	{verbPass, keySecond, false, `XGROUP`},
	{verbPass, keysFromSecond, false, `BITOP`},
	{verbPass, keysCounted, true, `SINTERCARD ZDIFF ZINTER ZINTERCARD ZUNION`},
	{verbPass, keysCounted, false, `LMPOP ZMPOP`},
	{verbPass, keysCounted2, true, `EVALSHA_RO EVAL_RO FCALL_RO`},
	{verbPass, keysInto, false, `ZDIFFSTORE ZINTERSTORE ZUNIONSTORE`},
	{verbPass, keysStreams, true, `XREAD`},
	{verbPass, keysStreams, false, `XREADGROUP`},
	{verbPass, keyless, true, `ACL BGREWRITEAOF BGSAVE CLIENT CLUSTER COMMAND CONFIG DBSIZE ECHO FUNCTION INFO
		KEYS LASTSAVE LATENCY LOLWUT MODULE PING PUBLISH PUBSUB RANDOMKEY ROLE SAVE SCAN SCRIPT SHUTDOWN
		SLOWLOG TIME`},

	{verbGet, keyFirst, true, `GET`},
	{verbMget, keysAll, true, `MGET`},
	{verbExists, keysAll, true, `EXISTS`},
	{verbTTL, keyFirst, true, `EXPIRETIME PEXPIRETIME PTTL TTL`},
	{verbSet, keyFirst, false, `SET`},
	{verbSetex, keyFirst, false, `PSETEX SETEX`},
	{verbMset, keysPairs, false, `MSET`},
	{verbDel, keysAll, false, `DEL UNLINK`},
	{verbGetdel, keyFirst, false, `GETDEL`},
	{verbExpire, keyFirst, false, `EXPIRE EXPIREAT PEXPIRE PEXPIREAT`},
	{verbPersist, keyFirst, false, `PERSIST`},

	{verbFlush, keyless, false, `FLUSHALL FLUSHDB SWAPDB`},
	{verbUnsettle, keyless, false, `DEBUG FAILOVER REPLICAOF SLAVEOF`},

	{verbBlock, keysAllButOne, false, `BLPOP BRPOP BZPOPMAX BZPOPMIN`},
	{verbBlock, keyFirstTwo, false, `BLMOVE BRPOPLPUSH`},
	{verbBlock, keysCounted2, false, `BLMPOP BZMPOP`},
	{verbBlock, keyless, true, `WAIT WAITAOF`},

	{verbMulti, keyless, true, `MULTI`},
	{verbExec, keyless, true, `DISCARD EXEC`},
	{verbSession, keyless, true, `ASKING AUTH HELLO MONITOR PSYNC QUIT READONLY READWRITE REPLCONF RESET SELECT
		SYNC UNWATCH`},
	{verbSession, keysAll, true, `WATCH`},
	{verbReceive, keyless, true, `PSUBSCRIBE PUNSUBSCRIBE SSUBSCRIBE SUBSCRIBE SUNSUBSCRIBE UNSUBSCRIBE`},

	// Their first key is in the usual place; other arguments may be keys too.
	{verbPass, keysAnywhere, false, `EVAL EVALSHA FCALL GEORADIUS GEORADIUSBYMEMBER MIGRATE SORT`},
})

type row struct {
	verb  verb
	where where
	reads bool
	names string
}

func tableOf(rows []row) map[string]command {
	table := map[string]command{}
	for _, r := range rows {
		for name := range strings.FieldsSeq(r.names) {
			table[name] = command{r.verb, r.where, r.reads}
		}
	}
	return table
}

// whyShared returns the error of a command that would change the connection that all callers share.
// It says which call to use instead.
func whyShared(name string, args []string) error {
	switch {
	case name == "SELECT":
		return errOtherDB
	case name == "QUIT":
		return errQuit
	case name == "AUTH", name == "HELLO":
		return errLogin
	case name == "READONLY", name == "READWRITE":
		return errMasters
	case deadly(name, args):
		return errDeadly
	}
	return errShared
}

// commandOf returns the description of a command. name is in upper case.
func commandOf(name string, args []string) command {
	k := redisCommands[name]
	switch name {
	case "XREAD", "XREADGROUP":
		if _, blocking := beforeStreams(args); blocking {
			k.verb = verbBlock
		}
	case "CLIENT":
		if len(args) > 1 && !harmless(upper(args[1])) {
			k.verb = verbSession
		}
	case "SCRIPT":
		if len(args) > 1 && upper(args[1]) == "DEBUG" {
			k.verb = verbSession
		}
	case "DEBUG":
		switch {
		case len(args) > 1 && oneOf(args[1], "SLEEP", "OBJECT"):
			k.verb = verbPass
		case len(args) > 1 && oneOf(args[1], "PROTOCOL"):
			k.verb = verbSession // its answer may be no reply
		}
	}
	return k
}

// allowedBusy reports whether Redis runs a command while it is busy with a script: the commands
// with the flag allow-busy, except for those that change the connection.
func allowedBusy(args []string) bool {
	switch upper(args[0]) {
	case "SHUTDOWN":
		return true
	case "SCRIPT":
		return len(args) > 1 && oneOf(args[1], "KILL")
	case "FUNCTION":
		return len(args) > 1 && oneOf(args[1], "KILL", "STATS")
	}
	return false
}

func oneOf(s string, words ...string) bool {
	for _, w := range words {
		if strings.EqualFold(s, w) {
			return true
		}
	}
	return false
}

// upper is strings.ToUpper; most names are in upper case already.
func upper(s string) string { return strings.ToUpper(s) }

// keys returns the arguments that are keys or may be keys. The result may share args.
func (k command) keys(args []string) []string {
	n := len(args)
	from, to := 1, n
	switch k.where {
	case keyless:
		to = 1
	case keyFirst:
		to = 2
	case keyFirstTwo:
		to = 3
	case keySecond:
		from, to = 2, 3
	case keysFromSecond:
		from = 2
	case keysAllButOne:
		to = n - 1
	case keysPairs:
		var keys []string
		for i := 1; i < n; i += 2 {
			keys = append(keys, args[i])
		}
		return keys
	case keysCounted:
		from, to = counted(args, 1)
	case keysCounted2:
		from, to = counted(args, 2)
	case keysInto:
		from, to = counted(args, 2)
		if from < to {
			return append([]string{args[1]}, args[from:to]...)
		}
		from, to = 1, 2
	case keysStreams:
		from, to = streams(args)
	}
	from = min(from, n)
	return args[from:max(from, min(to, n))]
}

// counted returns the range of the keys whose number is the nth argument. It returns the range of
// all arguments if the number is invalid, which Redis then reports.
func counted(args []string, nth int) (from, to int) {
	if nth >= len(args) {
		return 1, len(args)
	}
	count, err := strconv.Atoi(args[nth])
	if err != nil || count < 0 || count > len(args)-nth-1 {
		return 1, len(args)
	}
	return nth + 1, nth + 1 + count
}

func streams(args []string) (from, to int) {
	if at, _ := beforeStreams(args); at < len(args) {
		return at + 1, at + 1 + (len(args)-at-1)/2
	}
	return 1, len(args)
}

// beforeStreams parses the options of XREAD and XREADGROUP. It returns the index of STREAMS and
// whether the command blocks. The name of a group may equal the name of an option.
func beforeStreams(args []string) (at int, blocking bool) {
	for at = 1; at < len(args); at++ {
		switch upper(args[at]) {
		case "STREAMS":
			return at, blocking
		case "BLOCK":
			blocking = true
			at++
		case "COUNT", "CLAIM":
			at++
		case "GROUP":
			at += 2
		}
	}
	return len(args), blocking
}

// home returns the key that determines the cluster node of the command. There is none if any node
// will do.
func (k command) home(args []string) (key string, ok bool) {
	if k.where != keysAnywhere {
		if keys := k.keys(args); len(keys) > 0 {
			return keys[0], true
		}
		return "", false
	}
	at := 1
	switch upper(args[0]) {
	case "EVAL", "EVALSHA", "FCALL":
		from, to := counted(args, 2)
		if from == to {
			return "", false
		}
		at = from
	case "MIGRATE":
		at = 3
	}
	if at >= len(args) {
		return "", false
	}
	return args[at], true
}
