// Package holdfast is a cache client of two tiers that goes on answering while
// Redis is away. An in-process tier stands in front of Redis, which is one server,
// a master that sentinels watch, or a cluster; a circuit breaker stands between
// them, in a cluster one for each shard.
//
// # Tiers
//
// A read asks the local tier first. A copy there is served as it is while it is
// fresh: within its own TTL and Options.Local.MaxTTL, and as long as the server,
// which tells of every change, has told of none and can be heard. What is
// not fresh is read from Redis, with its remaining TTL, and kept locally for the
// next caller. A write goes to the local tier first and then to Redis. Where no
// Redis is configured the local tier is all there is.
//
// # What may block, and for how long
//
// New and Open wait for nothing, but for the disk where Journal.Dir is set, which
// writes that go to the journal wait for, too. Every other call waits for Redis
// for at most Options.Timeout in all, and no longer than its own context. A call of
// many keys sends pipelines of at most 256 keys; each pipeline has Options.Timeout, as
// long as the one before was answered in time. It waits only while Redis is believed to be there: once the
// circuit is open, a read is answered from memory or with ErrMiss, and a write is
// kept in the journal, in microseconds. A call never dials. One goroutine does,
// one attempt at a time, with a back-off. The calls that wait for something else,
// as long as their context allows, are WaitReady, Drain and Shutdown. Close takes
// milliseconds as a rule, up to Options.CloseTimeout where there is something to deliver,
// and four seconds more where loaders, hooks and the dial function
// do not return; with Journal.Dir it waits for the
// disk.
//
// Two attempts to reach Redis are waited for, within Options.Timeout, one window for all
// callers. The first one, right after New: by what only Redis can decide, such as Add, TTL,
// Touch and what Client passes on, while Get, Set and Delete wait for nothing, and what they
// write is sent, as any other write is, as soon as Redis is there. And the one after a quiet
// time: a connection that is lost while nobody uses it is made anew at once, and then, while
// that fails, at longer and longer intervals, up to a minute; the first call that finds it
// lost has an attempt made, unless one has failed within Breaker.MaxBackoff. Check always
// has one made.
//
// # Staleness
//
// The server tells of every change to a key that was read here, whoever makes it:
// another client, an expiry, FLUSHALL. It tells on the connection over which the
// Cache reads, so what is read and what is told come in order, and the copy is gone
// within a fraction of a millisecond, as a rule. When that connection breaks, falls
// silent, or leads to a server that is the master no more, every copy from before is
// in doubt: it is read again before it is served as fresh. Silence is noticed after
// 1.75 seconds with the default options, also in a process that stood still meanwhile; see
// Options.Breaker.
//
// Where the server cannot tell, Health.Tracking is false, and a copy is fresh for
// Tracking.UntrackedTTL.
//
// In an outage nothing can be confirmed: a copy is served for as long as its own TTL
// lasts, which Options.Outage shortens (ServeFor) or stretches (ServeStaleFor).
// Lookup tells such an answer by Entry.Degraded and Entry.Stale. Nothing is flushed
// when a connection breaks, so that an outage finds every copy there was, but for
// those of which the server told that they are wrong.
//
// # Read your own writes
//
// Once Set or Delete has returned nil, no read through the same Cache returns an
// older value: not while the write waits for Redis, not in an outage, not between
// the outage's end and the replay, and not when the local tier had no room. The
// law holds for one Cache, not between two, and it ends where Redis forgets what
// it had acknowledged.
//
// # The journal
//
// What Redis did not acknowledge is kept in memory, one intent a key, within
// Options.Journal, and is replayed once a probe has shown that Redis takes writes
// again. Until then the key is answered from the journal. A replay never
// overwrites what somebody else wrote meanwhile: it compares what Redis holds
// with what this process last knew it to hold, in a script, and writes only where
// the two agree. Otherwise it deletes, because a miss is safe where a wrong value
// is not; Journal.OnConflict has other rules. A journaled delete always deletes. A
// write that timed out may still run late, so its key is looked at a second time.
//
// Without Journal.Dir the journal is lost with the process: Close and Shutdown deliver it
// first, and say what they could not deliver. With it, the next process replays what
// this one did not, also after a crash.
//
// # Loading
//
// GetOrLoad, GetOrLoadMany and GetOrLoadWith ask a function of the caller's where the tiers
// have nothing. In one process a key is loaded once at a time, for all who ask
// meanwhile. A load is bound to none of them: it goes on as long as one waits, or a
// refresh wants it, and ends with Load.HardTimeout. So these calls wait for as long as
// their contexts allow, once Redis has had its Options.Timeout.
//
// Among processes that share a Redis, one has a lease on the key, and the others wait
// for what it stores: the server tells them, or of the lease's end. A lease is a key
// under "holdfast:lease:", there only while a key is loaded. It may cost a load too
// many and never an answer: without Redis, without permission, or past Load.Lease,
// each process loads for itself.
//
// A Set, Delete, Add or Touch that begins during a load wins over it, and so does a
// change that the server tells of, and one of another Cache's that the lease tells of:
// who waits gets what was loaded, and it is not kept. Nor is it sent to Redis if the
// connection that the key was missed on has broken since, and it is stored there only if
// the key is what it was before the load. In an outage it stays in the local tier: it is
// nobody's write, and nothing that a replay would bring back.
//
// # Values
//
// What Set stores is byte for byte what any other client reads, and the other way
// round: there is no envelope, no version, no second key. The probe's key, which
// begins with Breaker.ProbePrefix, is never there. Bytes that a read returns may be shared with other readers:
// do not write to them. Bytes given to Set are copied.
//
// # Typed values
//
// NewTyped puts a Codec between a type and the bytes: JSON, Bytes, String, Binary, or any
// two functions. What it decoded is kept beside the bytes, so a local hit decodes
// nothing; it may be shared between callers, who must not change what it leads to,
// unless Typed.WithClone or WithoutDecoded give each its own. What cannot be decoded is a
// miss, is counted, and is loaded anew. The module compress, below this one, has a
// Codec that compresses.
//
// # Units
//
// Durations are time.Duration, with the millisecond as Redis' resolution; a
// fraction of one is rounded up. A ttl of 0 is Options.DefaultTTL, and where that
// is 0 too, no expiry. A negative one is ErrInvalidTTL. Sizes are bytes. Keys and
// values are any bytes up to 512 MiB each.
//
// # Concurrency and lifetime
//
// A Cache is safe for concurrent use and is meant to be shared: one for a Redis,
// for the life of the program. It holds one connection and a handful of
// goroutines, however many callers it has. Close ends all of them and waits for
// them; every later call returns ErrClosed. Hooks and the log handler run on a
// goroutine of their own, and no call waits for one.
package holdfast
