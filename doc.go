// Package holdfast is a two-tier cache client that keeps answering while Redis is away. An
// in-process tier stands in front of Redis, and a circuit breaker stands between the two.
// Redis is one server, a master watched by sentinels, or a cluster; in a cluster each shard
// has a circuit breaker of its own.
//
// # Tiers
//
// A read asks the local tier first. A local copy is served at once while it is fresh. It is
// fresh within its own TTL and Options.Local.MaxTTL, and as long as the server, which reports
// every change, has reported none and was heard lately. Otherwise the key is read from Redis
// with its remaining TTL and kept locally. A write goes to the local tier first and then to
// Redis. Without a Redis configured the local tier is the whole cache.
//
// # Blocking
//
// New and Open do no network I/O. With Journal.Dir set they read the journal's files, and a
// write that goes to the journal waits for the disk, for at most Options.Timeout.
//
// Every other call waits for Redis for at most Options.Timeout, and no longer than its own
// context. A call of many keys sends pipelines of at most 256 keys; each pipeline has a
// budget of Options.Timeout, as long as the previous one was answered in time. Once the
// circuit is open no call waits: a read is answered from memory or with ErrMiss, and a write
// is kept in the journal, within microseconds.
//
// Calls do not dial the connection that they share. The supervisor does: one goroutine for
// each server, one attempt at a time, with a back-off. Connections that one caller uses
// alone (Dedicate, Receive and blocking commands of Client) are dialled on that caller's
// behalf, while the shared connection serves, within about Redis.Dialer.Timeout.
//
// These calls may wait longer than Options.Timeout:
//   - WaitReady, Retry, Drain and Shutdown, for as long as their context allows;
//   - GetOrLoad, GetOrLoadMany, GetOrLoadWith and Refresh, for the load, for as long as their context allows;
//   - blocking commands, Receive and transactions of Client, for as long as their context
//     allows;
//   - Close, for up to Options.CloseTimeout while the journal can be delivered, and four
//     seconds more where loaders, hooks or the dial function do not return; with Journal.Dir
//     also for the disk. With nothing to wait for it takes milliseconds.
//
// Two attempts to reach Redis are waited for, within Options.Timeout, in one window for all
// callers:
//   - The first attempt, right after New. Calls that only Redis can answer wait for it: Add,
//     TTL, Touch, GETDEL, and the commands that Client passes on. Get, Set and Delete do not wait;
//     their writes are sent like any other write as soon as Redis is reached.
//   - The attempt after a quiet time. A connection that is lost while no call uses it is
//     dialled again at once, and then at growing intervals of up to a minute. The first call
//     that finds it lost causes an attempt, unless one failed within Breaker.MaxBackoff.
//
// Check always looks: see there.
//
// # Staleness
//
// The server reports every change to a key that was read through this Cache, by any cause:
// another client, an expiry, FLUSHALL. The report comes over the connection that carries the
// reads, so reads and reports are in order, and the copy is invalidated within a fraction of
// a millisecond, as a rule. When that connection breaks, falls silent, or leads to a server
// that is no longer the master, every earlier copy becomes suspect: it is read again before
// it is served as fresh. Silence is noticed after 1.75 seconds with the default options, also
// in a process that was stopped meanwhile; see Options.Breaker.
//
// Where the server cannot report changes, Health.Tracking is false, and a copy is fresh for
// Tracking.UntrackedTTL.
//
// In an outage no copy can be confirmed. A copy is then served for as long as its own TTL
// lasts; Options.Outage shortens that (ServeFor) or extends it (ServeStaleFor). Lookup marks
// such an answer with Entry.Degraded and Entry.Stale. A broken connection flushes nothing, so
// an outage finds every copy except those that the server has reported as changed.
//
// # Read your own writes
//
// After Set or Delete has returned nil, no read through the same Cache returns an older
// value: not while the write is on its way to Redis, not in an outage, not between the end
// of the outage and the replay, and not when the local tier had no room. This holds for one
// Cache, not between two, and it ends where Redis loses a write that it had acknowledged.
//
// # The journal
//
// A write that Redis did not acknowledge is kept in memory, one intent a key, within
// Options.Journal. It is replayed when a probe has shown that Redis takes writes again; until
// then the key is answered from the journal. A replay never overwrites the write of another
// client. A script compares the value in Redis with the value that this process last knew
// Redis to hold, and writes only if the two are equal. Otherwise it deletes the key, because
// a miss is safe and a wrong value is not; Journal.OnConflict has other rules. A journaled
// delete always deletes. A write that timed out may still run late, so its key is checked a
// second time.
//
// Without Journal.Dir the journal is lost with the process. Close and Shutdown deliver it
// first, and return an error that says how much they could not deliver. With Journal.Dir the
// next process replays the rest, also after a crash.
//
// # Loading
//
// GetOrLoad, GetOrLoadMany and GetOrLoadWith call a loader, a function of the caller's, for keys that
// the tiers do not have. A process runs one load of a key at a time, for all callers that ask
// meanwhile. A load belongs to none of them: it continues as long as one caller waits, or a
// refresh wants it, and ends with Load.HardTimeout.
//
// Of the processes that share a Redis, one takes a lease on the key, and the others wait for
// the value that it stores. The server reports that value to them, or the end of the lease.
// A lease is a key under "holdfast:lease:" that exists only while its key is loaded. A lost
// lease may cost an additional load, and never an answer: without Redis, without permission,
// or after Load.Lease, each process loads for itself.
//
// A Set, Delete, Add or Touch that begins during a load wins over it. So does a change that
// the server reports, and a delete by another Cache that the lease reports. The callers that
// wait get the loaded value, and it is not kept. A loaded value is not sent to Redis if the
// connection has broken since the key was missed, and it is stored there only if the key is
// unchanged since before the load. In an outage it stays in the local tier: it is not a
// user's write, so it is not journaled.
//
// # Values and keys in Redis
//
// The bytes given to Set are the bytes that any other client reads, and the other way round.
// There is no envelope, no version and no second key per entry. Besides the user's keys the
// Cache uses leases, above, and the key of the write probe, which begins with
// Breaker.ProbePrefix and never exists. Bytes returned by a read may be shared with other
// readers: do not write to them. Bytes given to Set are copied.
//
// # Typed values
//
// NewTyped puts a Codec between a type and the bytes: JSON, Bytes, String, Binary, or two
// functions of the caller's. The decoded value is kept beside the bytes, so a local hit
// decodes nothing. Callers may share that value and must not change it, unless Typed.WithClone or
// WithoutDecoded gives each of them its own. A value that cannot be decoded counts as a miss
// and is loaded again. The module compress, below this one, has a Codec that compresses.
//
// # Units
//
// Durations are time.Duration. Redis' resolution is a millisecond; a fraction is rounded up.
// A ttl of 0 means Options.DefaultTTL, and no expiry where that is 0, too. A negative ttl is
// ErrInvalidTTL. Sizes are in bytes. Keys and values are any bytes of up to 512 MiB each.
//
// # Concurrency and lifetime
//
// A Cache is safe for concurrent use and meant to be shared: one for each Redis, for the life
// of the program. Its calls share one connection to each server; a server is a shard's master
// in a cluster. With sentinels there is one connection more, to one of them. Connections that
// a caller of Client uses alone come on demand, at most Redis.BlockingPoolSize to a server.
// The number of goroutines depends on the number of servers, of loads in progress and of
// connections, and hardly on the number of callers.
//
// Close ends all connections and goroutines and waits for them; every later call returns
// ErrClosed. Hooks and the log handler run on a goroutine of their own, and no call waits for
// them.
package holdfast
