package goredis

// Option changes how Attach handles commands.
type Option func(*hook)

// CacheReads has the cache keep Redis' replies to read commands of one key, such as HGETALL,
// LRANGE, SMEMBERS and ZRANGE, and answer equal commands from memory. The package
// documentation lists the commands. By default they go to Redis over go-redis each time.
//
// A reply is as fresh as a copy of GET's: a write of this client to the key ends it before
// the write returns, and a write of another program when the server's invalidation arrives,
// a moment later; without tracking it lives for Tracking.UntrackedTTL. A program that must
// see such a write at once, such as one that polls a queue by LRANGE, needs a client without
// the option. While Redis is away, or when its answer does not come in time, a kept reply is
// served within Options.Outage of the cache; if there is none, the command fails with
// holdfast.ErrUnavailable. The replies count in Options.Local.MaxBytes of the cache.
func CacheReads() Option { return func(h *hook) { h.cached = true } }
