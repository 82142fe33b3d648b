// Package goredis puts a holdfast.Cache before a client of github.com/redis/go-redis/v9.
// The program goes on using the client; one line is added:
//
//	err := goredis.Attach(rdb, cache)
//
// # How commands are handled
//
// The cache answers GET, MGET, EXISTS, STRLEN, GETRANGE, TTL, PTTL, EXPIRETIME,
// PEXPIRETIME, SET, SETEX, PSETEX, MSET, DEL, UNLINK, GETDEL, EXPIRE, PEXPIRE, EXPIREAT,
// PEXPIREAT and PERSIST in the same way as Cache.Client does, over the cache's own
// connection and with its guarantees: from memory if the copy is fresh; with Redis' own
// reply while Redis is up; from memory and with the journal while it is away. A miss is
// redis.Nil, and so is a read during an outage of a key that is not known here. FLUSHALL,
// FLUSHDB and SWAPDB go through the cache, too, because they change its keys.
//
// All other commands go to Redis over the client's own connections, as before. Before
// such a command is sent, the journaled writes of its keys are replayed. After it, the
// local copies of the keys that it may have written are invalidated. So INCR after SET
// counts from the value that was set, and GET after INCR is no older. While Redis is away
// the command fails at once with holdfast.ErrUnavailable, and nothing is dialled. If
// Redis does not answer within the cache's Options.Timeout, the command fails with the
// same error; it may have run, or may still run.
//
// SCRIPT KILL and FUNCTION KILL go through the cache, too, which can reach a server that
// is busy with a script. FUNCTION STATS is sent to a busy server over the client's
// connections; on a client of another database than 0 it may need a connection that is
// already in the pool.
//
// An error reply of Redis is a redis.Error with Redis' text, whether the command went
// through the cache or not.
//
// # Cached reads
//
// With the option CacheReads the cache keeps Redis' replies to reads of one key as well,
// and answers equal commands from memory, as DoCache of Cache.Client does: GETRANGE,
// STRLEN, SUBSTR, GETBIT, BITCOUNT, BITPOS, BITFIELD_RO, TYPE; HGET, HGETALL, HMGET,
// HLEN, HKEYS, HVALS, HEXISTS, HSTRLEN; LRANGE, LINDEX, LLEN, LPOS; SMEMBERS, SISMEMBER,
// SMISMEMBER, SCARD; ZRANGE, ZREVRANGE, ZRANGEBYSCORE, ZREVRANGEBYSCORE, ZRANGEBYLEX,
// ZREVRANGEBYLEX, ZSCORE, ZMSCORE, ZCARD, ZCOUNT, ZLEXCOUNT, ZRANK, ZREVRANK; GEOPOS,
// GEODIST, GEOHASH, GEOSEARCH, GEORADIUS_RO, GEORADIUSBYMEMBER_RO; XRANGE, XREVRANGE,
// XLEN; JSON.GET, but not in a pipeline; and the reads of Bloom, cuckoo, count-min and
// top-k filters but INFO. The reply is stored in the command as go-redis would have
// stored it, and belongs to the caller. A Cmd of a command to which RESP2 and RESP3 have
// different replies, such as HGETALL by Do, is answered so only if the client and the
// cache both use RESP3.
//
// # Pipelines and transactions
//
// The cache answers the commands of a pipeline up to the first one that only Redis can
// execute, in order; the rest goes to Redis in one pipeline. While Redis is away, the
// cache answers as many commands of the rest as it can, the others fail, and the pipeline
// returns the first error. A transaction goes to Redis as a whole or fails as a whole. A
// value read after WATCH is not older than the WATCH.
//
// # How long a call may take
//
// A call takes at most Options.Timeout of the cache. A pipeline that needs both the cache
// and go-redis may take twice that, and one of more than 256 commands for go-redis is
// sent in parts of 256, each with a budget of its own. The budget covers all work of
// go-redis for the command: waiting for a connection of the pool, dialling and the three
// or so round trips of a handshake, and its retries. Set it with the slowest command in
// mind: a script of a second needs more than a second. Commands that block in Redis, such
// as BLPOP, XREAD with BLOCK, WAIT and MONITOR, have no budget, only the timeouts that
// they have without the cache. They fail at once if Redis is known to be away when they
// begin. A loop that calls again without a pause after an error needs Pace.
//
// # Limits
//
//   - If a script, a function or a module writes to keys that it does not declare as
//     keys, the cache learns that from the server's invalidation, a moment later, and
//     without tracking only after Tracking.UntrackedTTL. For commands that are not in
//     Redis 7 every argument counts as a key.
//   - SELECT of another database than the client's is refused, also on a Conn, and so are
//     RESET, which selects database 0, and MULTI, EXEC and DISCARD by themselves; use
//     TxPipelined.
//   - If a pipeline was sent and not answered, all of its commands have failed, including
//     a GET.
//   - A command object of another type than go-redis' own method makes, such as an IntCmd
//     for GET, goes to Redis if the reply does not fit the type; in a pipeline a kept reply
//     that turns out not to fit is an error.
//   - Expiry times over 292 years away read as 292 years, the longest Duration.
//   - An AutoPipeliner works, except with its FullDuplex, which sends a command before it
//     calls the hooks.
//   - go-redis' own client-side cache sees only commands that go to Redis over go-redis.
//     It is not needed beside this one.
//   - A Conn of an attached client is attached. One made before Attach is not: it sees
//     Redis alone, and the cache learns of its writes from the server's invalidations. A
//     client of WithTimeout has the hooks of its client up to go-redis 9.14, and none from
//     9.16 on: attach it, too, which with any version does no harm.
//   - On a client of a cluster, the clients of its nodes (ForEachMaster, WATCH) are attached
//     for commands with keys. Commands without keys go to that node.
//   - A client of a cluster that reads from replicas goes on doing so for commands that the
//     cache does not serve. NewFailoverClusterClient and Ring are refused by Attach. Attach
//     cannot refuse what a client does not show, such as other sentinels, or ReplicaOnly.
//   - Hooks, and instrumentation such as redisotel, that were added before Attach see every
//     command; those added later see only the commands that go to Redis over go-redis, and
//     of a pipeline the part that does.
//
// PubSub is not changed, but dials only while Redis is there.
//
// # Calls that should wait
//
// A lock or a limiter of a library that waited out a short hang of Redis is refused with
// holdfast.ErrUnavailable after Options.Timeout, and at once while Redis is away. To wait
// instead, make the call in Cache.Retry, with a context that has a deadline. More of what
// a program meets first is in docs/MIGRATION.md.
//
// # Versions
//
// The module requires go-redis 9.9.0, the oldest whose Conn has the hooks of its client,
// and works with the version that the program requires. Its tests pass with 9.9.0 and
// 9.22.0, the newest that Go 1.25 can build.
package goredis
