// Package goredis puts a holdfast.Cache before a client of github.com/redis/go-redis/v9.
// The program goes on using the client; one line is added:
//
//	err := goredis.Attach(rdb, cache)
//
// # What becomes of a command
//
// GET, MGET, EXISTS, STRLEN, GETRANGE, TTL, PTTL, EXPIRETIME, PEXPIRETIME, SET, SETEX,
// PSETEX, MSET, DEL, UNLINK, GETDEL, EXPIRE, PEXPIRE, EXPIREAT, PEXPIREAT and PERSIST are
// answered by the cache as Cache.Client answers them, over the cache's own connection and
// with what it promises: from memory where that is fresh; with Redis' own reply while
// Redis is up; from memory and with the journal while it is away. A miss is redis.Nil, and
// so is an outage that finds nothing here. FLUSHALL, FLUSHDB and SWAPDB go that way, too,
// because the cache has to know of them.
//
// Every other command goes to Redis by the client's own connections, as before. Before it
// is sent, what the journal holds of its keys is replayed; after it, what the cache knew
// of those that it may have written is forgotten. So INCR after SET counts from what was
// set, and GET after INCR is no older. While Redis is away it fails at once with
// holdfast.ErrUnavailable, and nothing is dialled. Where Redis does not answer within the
// cache's Options.Timeout it fails with the same error: then it may have run, or run late.
//
// SCRIPT KILL and FUNCTION KILL go by the cache, too, which has a way to a server that is
// busy with a script, and FUNCTION STATS is sent to it; on a client of another database than
// 0 it may need a connection that the pool has already.
//
// An error of Redis' own is a redis.Error with Redis' words, whichever way the command
// went.
//
// # Pipelines and transactions
//
// The commands of a pipeline that come before the first one which only Redis can do are
// answered by the cache, in order; the rest goes to Redis in one pipeline. While Redis is
// away, those of the rest that the cache can answer are answered, the others fail, and the
// pipeline returns the first error. A transaction goes to Redis as a whole or fails as a
// whole. What is read after WATCH is not older than the WATCH.
//
// # How long a call may take
//
// Options.Timeout of the cache; a pipeline of both kinds may take twice that. It is a
// budget for all that go-redis does for the command: waiting for a connection of the pool,
// dialling and the three or so round trips of a handshake, its retries. Set it with the
// slowest command in mind: a script of a second needs more than a second. Commands that
// wait at Redis, such as BLPOP, XREAD with BLOCK, WAIT and MONITOR, have no budget, only
// the timeouts that they have without the cache, and fail at once if Redis is known to be
// away when they begin.
//
// # Limits
//
//   - A script, a function or a module that writes to keys which it does not name as keys
//     is noticed when the server tells, a moment later, and where the server cannot
//     track, after Tracking.UntrackedTTL. Of commands that are not in Redis 7 every
//     argument counts as a key.
//   - SELECT of another database than the client's is refused, also on a Conn, and so are
//     RESET, which selects database 0, and MULTI, EXEC and DISCARD by themselves; use
//     TxPipelined.
//   - In a pipeline that was sent and got no answer every command has failed, also a GET.
//   - A command object of another type than go-redis' own method makes, such as an IntCmd
//     for GET, goes to Redis where the types do not fit.
//   - Ends of keys that are over 292 years away read as 292 years, the longest Duration.
//   - An AutoPipeliner works; not with its FullDuplex, which sends a command before it asks
//     the hooks.
//   - go-redis' own client-side cache sees only what goes to Redis by go-redis. It is not
//     needed beside this one.
//   - Clients made before Attach by WithTimeout or Conn are not attached.
//   - Hooks that were added before see every command, those added later only what goes to
//     Redis by go-redis.
//
// PubSub is left as it is, but dials only while Redis is there.
package goredis
