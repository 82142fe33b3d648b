package holdfast

// The options of the first tier, and their check. The tier itself is internal/local.

import "time"

// LocalOptions bounds the in-process tier.
type LocalOptions struct {
	// MaxBytes bounds keys, values and their bookkeeping (about 280 bytes an entry). Default
	// 64 MiB; at least 64 KiB. When full, the least used entries are evicted. An entry larger
	// than MaxBytes/8 is not kept locally; it still goes to Redis.
	MaxBytes int64

	// MaxTTL is the longest time that a local copy is served without being read again from
	// Redis. Default 10m. It does not shorten an entry's life without a Redis configured.
	MaxTTL time.Duration

	// CacheDo lets Do and DoMulti of Client serve replies to read commands of one key, such as
	// HGETALL or LRANGE, from memory, as DoCache and DoMultiCache do. Default false: each such
	// command asks Redis. GET and MGET go through memory in either case.
	CacheDo bool
}

func (o LocalOptions) withDefaults() LocalOptions {
	def(&o.MaxBytes, 64<<20)
	def(&o.MaxTTL, 10*time.Minute)
	return o
}

// validate passes each contradiction to bad.
func (o LocalOptions) validate(bad func(format string, args ...any)) {
	if o.MaxBytes < 64<<10 {
		bad("Local.MaxBytes is %d: it must be at least 65536", o.MaxBytes)
	}
}
