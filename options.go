package holdfast

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"

	"github.com/redis/rueidis"
)

// Options configures a Cache. The zero value is a cache of the local tier
// only; with Redis.InitAddress set, every other zero value is a good default.
//
// Options are printed and logged, by package fmt and by slog, without Redis.Password and
// Redis.Sentinel.Password, of which is shown whether they are set; functions, among them
// AuthCredentialsFn, and TLS configurations are shown as addresses. That does not hold
// where fmt cannot call methods, in an unexported field of a struct, nor for Redis
// printed by itself, which is rueidis' type.
type Options struct {
	// Redis says where Redis is and how to log in: addresses, user, password,
	// database, TLS, dialer. Empty InitAddress: local tier only.
	//
	// holdfast owns the connection's life, so some fields of
	// rueidis.ClientOption cannot mean what they mean there. Replica routing,
	// client-side caching hooks, ConnLifetime and DisableAutoPipelining are
	// refused by New; DisableRetry, DisableCache, AlwaysPipelining,
	// ForceSingleClient, PipelineMultiplex and BlockingPipeline are set by
	// holdfast. Dialer.Timeout (default here 1s) bounds a dial and, again, its
	// handshake. A silent connection is given up after at most
	// 2 x Dialer.KeepAlive + ConnWriteTimeout (defaults here 1s and 2s); in place of
	// ConnWriteTimeout, 2 x Timeout counts where that is more, so that no call is cut
	// short within its budget.
	// AuthCredentialsFn is asked before each dial, with the address as it is dialled, and
	// has 10s for its answer. The server says whether a cluster has a database SelectDB:
	// Valkey's from version 9 on do. Where TLSConfig.ServerName is the first address'
	// host, as ParseURL sets it, the certificate of another address may be for that
	// address' own host, too.
	// BlockingPoolSize (default 1,024) bounds the connections to one server that
	// callers of Client have of their own; when all are in use, a further caller
	// waits for at most Dialer.Timeout and gets ErrUnavailable. An idle one is kept
	// for BlockingPoolCleanup (default here 10s).
	Redis rueidis.ClientOption

	// Mode says what kind of deployment InitAddress names. See Mode.
	Mode Mode

	// AllowAddress says whether the address, host:port, may be dialled, and the
	// password be sent there. It is asked for each address that a server names and
	// Redis.InitAddress does not: the nodes of a cluster, where MOVED and ASK lead, the
	// master that a sentinel knows. One that is refused is as one that is down, and
	// Health says so. It may be called by several goroutines at once, must not block,
	// and a panic in it refuses. Default nil: every address. To dial another address
	// than the one that was named, behind a NAT for one, use Redis.DialCtxFn.
	AllowAddress func(addr string) bool

	// Timeout is a call's whole remote budget: no call waits for Redis longer
	// than this, whatever the network does. Default 50ms; at least 1ms. A batch is
	// sent in pipelines of at most 256 keys and about 256 KiB. The budget is that of
	// each pipeline, as long as the one before was answered in time.
	// A call may be given up to 1/16 less, because calls that begin together
	// share one timer.
	Timeout time.Duration

	// CloseTimeout is how long Close may take to deliver what the journal holds, while
	// Redis takes it, or the first attempt to reach it is under way. Default 1s;
	// negative: Close delivers nothing. What Redis did not get by then is lost, unless
	// Journal.Dir has it, and Close says so.
	CloseTimeout time.Duration

	// DefaultTTL is used where a call passes ttl 0. Default 0: no expiry.
	// A fraction of a millisecond is rounded up to Redis' resolution, 1ms.
	DefaultTTL time.Duration

	Local    LocalOptions
	Breaker  BreakerOptions
	Tracking TrackingOptions
	Journal  JournalOptions
	Outage   OutageOptions
	Load     LoadOptions

	// Logger gets one line for each change of state, and for each new cause why Redis was
	// not reached from the start, and none for a call.
	// Default: nothing is logged.
	Logger *slog.Logger

	// Hooks are told of changes of state, replays and drops.
	Hooks Hooks
}

// withoutSecrets is a copy that hands out no password, and nothing that gives one.
func (o Options) withoutSecrets() Options {
	o.Redis.AuthCredentialsFn = nil
	return o.withoutPasswords()
}

func (o Options) withoutPasswords() Options {
	o.Redis.Password, o.Redis.Sentinel.Password = "", ""
	return o
}

// plainOptions are Options without the methods by which those are printed.
type plainOptions Options

// Format implements fmt.Formatter: it prints the fields, passwords apart, as %v, %+v or
// %#v does, whatever the verb: for another one fmt would print what pointers point to.
// It is not asked where a struct has Options in a field that is not exported: there fmt
// prints everything.
func (o Options) Format(f fmt.State, _ rune) {
	for _, secret := range []*string{&o.Redis.Password, &o.Redis.Sentinel.Password} {
		if *secret != "" {
			*secret = "***"
		}
	}
	format := "%v"
	switch {
	case f.Flag('#'):
		format = "%#v"
	case f.Flag('+'):
		format = "%+v"
	}
	fmt.Fprintf(f, format, plainOptions(o))
}

// LogValue implements slog.LogValuer: the fields as one string, passwords apart.
func (o Options) LogValue() slog.Value { return slog.StringValue(fmt.Sprintf("%+v", o)) }

// Mode is the kind of Redis deployment.
type Mode uint8

const (
	// ModeAuto tells by the options: Redis.Sentinel.MasterSet means Sentinel,
	// several addresses without it mean a cluster, and one address is asked what
	// it is when it is first reached.
	ModeAuto Mode = iota
	// ModeStandalone is one server at one address. The address may be a name or a
	// proxy behind which the server changes: it is resolved at each dial.
	ModeStandalone
	// ModeSentinel is a master that sentinels watch; Redis.InitAddress are the
	// sentinels. They are asked for the master before each dial and once each
	// Breaker.MaxBackoff while the Cache is in use; once a minute while it is not.
	ModeSentinel
	// ModeCluster is a Redis Cluster; Redis.InitAddress are some of its nodes.
	// Only masters are spoken to.
	ModeCluster
)

func (m Mode) String() string {
	switch m {
	case ModeAuto:
		return "auto"
	case ModeStandalone:
		return "standalone"
	case ModeSentinel:
		return "sentinel"
	case ModeCluster:
		return "cluster"
	}
	return fmt.Sprintf("mode(%d)", uint8(m))
}

// LocalOptions bounds the in-process tier.
type LocalOptions struct {
	// MaxBytes bounds keys, values and their bookkeeping (about 250 bytes an
	// entry). Default 64 MiB; at least 64 KiB. When full, the entries that are
	// used least go. An entry larger than MaxBytes/8 is not kept here at all;
	// it still goes to Redis.
	MaxBytes int64

	// MaxTTL is the longest that a local copy of what Redis holds is served
	// without being read again. Default 10m. It does not shorten an entry's
	// life where there is no Redis to ask.
	MaxTTL time.Duration
}

// BreakerOptions says when Redis counts as away and how it is looked for.
type BreakerOptions struct {
	// Failures is how many calls in a row must fail for the circuit to open.
	// Default 5. A lost connection opens it at once.
	Failures int

	// MinBackoff and MaxBackoff bound the time between two attempts to reach
	// Redis, which doubles from the first to the second with 15% of jitter.
	// Defaults 100ms and 1s. The very first attempt after a stable connection
	// was lost is made at once. While no call has come by for ten times MaxBackoff, it
	// doubles on to a minute.
	MinBackoff time.Duration
	MaxBackoff time.Duration

	// ProbePrefix begins the name of the one key that the probe writes and reads.
	// The key is never there: the write is SET with XX. Default "holdfast:probe:".
	// The Redis user needs SET and GET on it.
	ProbePrefix string
}

// TrackingOptions says how the Cache learns of what other clients write.
type TrackingOptions struct {
	// Mode says what the server is asked to tell of. See TrackingMode.
	Mode TrackingMode

	// Prefixes are the keys of which the server tells in TrackPrefixes; no one
	// may begin with another. One that is empty means every key.
	Prefixes []string

	// UntrackedTTL is how long a local copy counts as fresh where the server
	// does not tell of changes. Default 5s. What another client writes is seen
	// at the latest after this time. The copy stays behind it as a fallback for
	// an outage.
	UntrackedTTL time.Duration
}

// TrackingMode is a use of Redis' server-assisted client-side caching. Where the
// server cannot do it (before Redis 6, RESP2, no permission for CLIENT) the Cache
// works as in TrackOff, says so in Health.Tracking and in one log line.
type TrackingMode uint8

const (
	// TrackReads has the server tell of every key that was read through this
	// Cache. It remembers them, for each client. A key that was written here is
	// read once before its copy is fresh.
	TrackReads TrackingMode = iota
	// TrackPrefixes has it tell of every key that begins with one of
	// Tracking.Prefixes, whether it was read or not: it remembers nothing, and
	// tells more. Other keys are as in TrackOff.
	TrackPrefixes
	// TrackOff: a copy is read again after Tracking.UntrackedTTL.
	TrackOff
)

func (m TrackingMode) String() string {
	switch m {
	case TrackReads:
		return "reads"
	case TrackPrefixes:
		return "prefixes"
	case TrackOff:
		return "off"
	}
	return fmt.Sprintf("trackingmode(%d)", uint8(m))
}

// JournalOptions says what is remembered of the writes made while Redis is away,
// and how it is replayed when Redis is back.
type JournalOptions struct {
	// MaxKeys bounds the keys. Default 65536. When reached, a write of a
	// further key is refused with ErrJournalFull. At most half of them may be writes
	// that Redis refuses for themselves, see Cache.Held; then the replay pauses.
	MaxKeys int

	// MaxBytes bounds keys and values. Default 64 MiB. A set whose value does
	// not fit is downgraded to a delete, and counted: after the outage the key
	// is absent rather than old. Where not even the key fits, the write is
	// refused with ErrJournalFull.
	MaxBytes int64

	// OnConflict says what becomes of a set whose key somebody else wrote
	// meanwhile. Default ConflictDelete. See ConflictRule.
	OnConflict ConflictRule

	// KeysOnly has the journal keep no values: a key that was set while Redis was
	// away is deleted there when Redis is back, and read anew from the source of
	// truth. Until then the local tier serves the value, as long as it has it.
	KeysOnly bool

	// MaxRate is how many keys a second are replayed to one server at most, so
	// that a full journal does not take a server that has just come back from its
	// other clients. Default 100000.
	MaxRate int

	// Dir is a directory, which New creates if need be, for a copy of the journal
	// that survives the process: what New finds there is replayed, and no key of
	// it is read from Redis before. One Cache at a time uses it. Default "": the
	// journal is in memory only. Not used where there is no Redis.
	//
	// With Dir, New reads the files, and a write that goes to the journal waits
	// for the operating system to take it, for at most Timeout; see Fsync. Where the
	// disk does not take it, or stands still for longer, the write is accepted in
	// memory and survives no crash; Health.JournalError says why until everything
	// is in the files again, which is tried once a second. A directory that is
	// removed or changed meanwhile is noticed within about a second and written
	// anew. A directory that a newer version has written is an error of New.
	Dir string

	// Fsync says what an accepted write survives. Default FsyncNo: the death of
	// the process. See FsyncPolicy.
	Fsync FsyncPolicy
}

// ConflictRule says what a replay does where Redis holds what neither it was last
// known to hold nor this Cache wrote, or where it lost what somebody deleted.
type ConflictRule uint8

const (
	// ConflictDelete deletes the key: both values are gone, and a miss is always
	// safe. Whose value is the newer one is for the source of truth to say.
	ConflictDelete ConflictRule = iota
	// ConflictKeep leaves what is there. Where no local copy told, at the time of the
	// write, what was there before, that may be the value from before, also an own one:
	// then reading your own writes ends with the replay.
	ConflictKeep
	// ConflictOverwrite writes the journaled value. It is for keys that nobody
	// else writes: another client's newer value would be lost.
	ConflictOverwrite
)

func (r ConflictRule) String() string {
	switch r {
	case ConflictDelete:
		return "delete"
	case ConflictKeep:
		return "keep"
	case ConflictOverwrite:
		return "overwrite"
	}
	return fmt.Sprintf("conflictrule(%d)", uint8(r))
}

// FsyncPolicy says when what was written to Journal.Dir is forced to the disk.
type FsyncPolicy uint8

const (
	// FsyncNo never waits for the disk: an accepted write survives the death of
	// the process, and not that of the machine.
	FsyncNo FsyncPolicy = iota
	// FsyncEverySecond loses at most about a second of them with the machine.
	FsyncEverySecond
	// FsyncAlways has a write on the disk before it is accepted; writes that are
	// made at the same time share one fsync.
	FsyncAlways
)

func (p FsyncPolicy) String() string {
	switch p {
	case FsyncNo:
		return "no"
	case FsyncEverySecond:
		return "everysec"
	case FsyncAlways:
		return "always"
	}
	return fmt.Sprintf("fsyncpolicy(%d)", uint8(p))
}

// OutageOptions says what may be served while Redis is away.
type OutageOptions struct {
	// ServeFor is how long after it was last confirmed a copy may be served
	// that Redis cannot confirm. Default 0: for as long as its own TTL lasts.
	ServeFor time.Duration

	// ServeStaleFor is how long past its TTL a copy may be served while Redis
	// is away. Default 0: not at all.
	ServeStaleFor time.Duration
}

// LoadOptions says how GetOrLoad, GetOrLoadMany, GetOrLoadWith and Refresh treat what they
// load. In Options they hold for every load of the Cache. WithLoad and GetOrLoadWith take
// options of their own: a zero field means the Cache's value, a negative one switches the
// option off.
type LoadOptions struct {
	// TTLJitter is the part of a TTL, between 0 and 1, by which it is shortened at
	// most, at random, so that what was loaded at one time does not end at one
	// time. Default 0.
	TTLJitter float64

	// EarlyRefresh is the part of its TTL, between 0 and 1, after which a value that
	// is asked for is loaded again in the background, while it is served: 0.8 is a
	// good choice. The TTL is the call's, or that of the copy if that is shorter.
	// Default 0: a value is loaded when it is gone. Not for GetOrLoadMany.
	EarlyRefresh float64

	// StaleIfError is how long past its end a local copy may answer when the load
	// fails. For a second, or StaleIfError if that is shorter, further calls get
	// it without a new load. Default 0: the error is the answer.
	StaleIfError time.Duration

	// SoftTimeout is how long a caller for whom there is such a copy waits for the
	// load; then it gets the copy, and the load goes on. Default 0: until the load
	// has ended. It needs StaleIfError. Not for GetOrLoadMany.
	SoftTimeout time.Duration

	// HardTimeout is how long a load may take. Then its context ends, and who waits
	// for it gets an error, also where the loader does not heed its context.
	// Default 1m. It cannot be switched off.
	HardTimeout time.Duration

	// NotFoundTTL is how long this process remembers that a loader said
	// ErrNotFound, unless it hears that the key was written. Like a copy it is
	// forgotten after Local.MaxTTL, and after Tracking.UntrackedTTL where the server
	// does not tell. Default 1s; negative: not at all.
	NotFoundTTL time.Duration

	// MaxConcurrent bounds the loads that run at the same time in this Cache, so that
	// a cold start does not flatten the source. Default 0: no bound. It belongs to the
	// Cache: a LoadOptions of WithLoad or GetOrLoadWith has 0 or the Cache's number. A
	// load over the bound waits for a place, for at most HardTimeout; its callers wait
	// as long as their contexts allow. A load that a loader of this Cache waits for
	// needs no place, because the two would wait for each other. A loader that ignores
	// its context keeps its place until it returns. Without a bound nothing limits the
	// loads that callers start and give up.
	MaxConcurrent int

	// Lease is how long one process may keep the others that share the Redis from
	// loading a key that it loads. A process that cannot have it waits for what the
	// other one loads, and at most this long. Default 3s; negative: each process
	// loads for itself. It should be longer than a load takes: past it, a Delete by
	// another process is not heard of. Those that share keys should agree on whether
	// there are leases: where Options.Load.Lease is negative, Delete takes none away.
	// See the package's documentation. Not for GetOrLoadMany.
	Lease time.Duration
}

// over is what a call's options come to, with those of the Cache behind them.
func (l LoadOptions) over(c LoadOptions) LoadOptions {
	pick(&l.TTLJitter, c.TTLJitter)
	pick(&l.EarlyRefresh, c.EarlyRefresh)
	pick(&l.StaleIfError, c.StaleIfError)
	pick(&l.SoftTimeout, c.SoftTimeout)
	def(&l.HardTimeout, c.HardTimeout)
	def(&l.NotFoundTTL, c.NotFoundTTL)
	def(&l.Lease, c.Lease)
	def(&l.MaxConcurrent, c.MaxConcurrent)
	if l.StaleIfError == 0 {
		l.SoftTimeout = 0
	}
	return l
}

func pick[T float64 | time.Duration](field *T, value T) {
	def(field, value)
	*field = max(*field, 0)
}

// withDefaults fills in what was left zero.
func (o Options) withDefaults() Options {
	def(&o.Timeout, 50*time.Millisecond)
	def(&o.CloseTimeout, time.Second)
	def(&o.Local.MaxBytes, 64<<20)
	def(&o.Local.MaxTTL, 10*time.Minute)
	def(&o.Breaker.Failures, 5)
	def(&o.Breaker.MinBackoff, 100*time.Millisecond)
	def(&o.Breaker.MaxBackoff, max(time.Second, o.Breaker.MinBackoff))
	def(&o.Breaker.ProbePrefix, "holdfast:probe:")
	def(&o.Tracking.UntrackedTTL, 5*time.Second)
	def(&o.Journal.MaxKeys, 65536)
	def(&o.Journal.MaxBytes, 64<<20)
	def(&o.Journal.MaxRate, 100_000)
	def(&o.Load.HardTimeout, time.Minute)
	def(&o.Load.NotFoundTTL, time.Second)
	def(&o.Load.Lease, 3*time.Second)
	def(&o.Redis.Dialer.Timeout, time.Second)
	def(&o.Redis.Dialer.KeepAlive, time.Second)
	def(&o.Redis.ConnWriteTimeout, 2*time.Second)
	def(&o.Redis.ClusterOption.ShardsRefreshInterval, 10*time.Second)
	def(&o.Redis.ClusterOption.MaxMovedRedirections, 3)
	def(&o.Redis.Sentinel.Dialer.Timeout, o.Redis.Dialer.Timeout)
	def(&o.Redis.Sentinel.Dialer.KeepAlive, o.Redis.Dialer.KeepAlive)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

func def[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// validate reports every contradiction at once, in the words of the fields.
// It is given options that already have their defaults.
func (o Options) validate() error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("holdfast: options: "+format, args...))
	}
	atLeast := func(name string, d, least time.Duration) {
		if d < least {
			bad("%s is %v: it must be at least %v", name, d, least)
		}
	}

	for _, err := range append(o.validateMode(), o.Tracking.validate()...) {
		bad("%w", err)
	}
	atLeast("Timeout", o.Timeout, time.Millisecond)
	atLeast("DefaultTTL", o.DefaultTTL, 0)
	if o.Local.MaxBytes < 64<<10 {
		bad("Local.MaxBytes is %d: it must be at least 65536", o.Local.MaxBytes)
	}
	atLeast("Local.MaxTTL", o.Local.MaxTTL, time.Millisecond)
	if o.Breaker.Failures < 1 {
		bad("Breaker.Failures is %d: it must be at least 1", o.Breaker.Failures)
	}
	atLeast("Breaker.MinBackoff", o.Breaker.MinBackoff, time.Millisecond)
	if o.Breaker.MaxBackoff < o.Breaker.MinBackoff {
		bad("Breaker.MaxBackoff is %v: it must not be below Breaker.MinBackoff, %v", o.Breaker.MaxBackoff, o.Breaker.MinBackoff)
	}
	atLeast("Tracking.UntrackedTTL", o.Tracking.UntrackedTTL, time.Millisecond)
	errs = append(errs, o.Journal.validate()...)
	atLeast("Outage.ServeFor", o.Outage.ServeFor, 0)
	atLeast("Outage.ServeStaleFor", o.Outage.ServeStaleFor, 0)
	errs = append(errs, o.Load.validate()...)
	errs = append(errs, validateRedis(o.Redis)...)
	return errors.Join(errs...)
}

// validateMode finds what contradicts the mode, given or told by the options.
func (o Options) validateMode() []error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	r := o.Redis
	set, servers := r.Sentinel.MasterSet != "", len(r.InitAddress)
	switch o.Mode {
	case ModeAuto:
	case ModeStandalone:
		if servers > 1 {
			bad("Redis.InitAddress names %d servers: Mode standalone has one", servers)
		}
	case ModeSentinel:
		if !set {
			bad("Redis.Sentinel.MasterSet is empty: Mode sentinel needs its name")
		}
	case ModeCluster:
	default:
		bad("Mode is %d: no such mode", o.Mode)
	}
	if set && (o.Mode == ModeStandalone || o.Mode == ModeCluster) {
		bad("Redis.Sentinel.MasterSet is set: it contradicts Mode %v", o.Mode)
	}
	if (o.Mode == ModeSentinel || o.Mode == ModeCluster) && servers == 0 {
		bad("Redis.InitAddress is empty: Mode %v needs an address", o.Mode)
	}
	if r.Sentinel.TopologyRefreshInterval < 0 {
		bad("Redis.Sentinel.TopologyRefreshInterval is %v: it must not be negative", r.Sentinel.TopologyRefreshInterval)
	}
	if r.ClusterOption.ShardsRefreshInterval < 0 {
		bad("Redis.ClusterOption.ShardsRefreshInterval is %v: it must not be negative", r.ClusterOption.ShardsRefreshInterval)
	}
	if r.ClusterOption.MaxMovedRedirections < 0 {
		bad("Redis.ClusterOption.MaxMovedRedirections is %d: it must not be negative", r.ClusterOption.MaxMovedRedirections)
	}
	s := r.Sentinel.Dialer // it inherits from the other
	if s.Timeout < 0 && r.Dialer.Timeout >= 0 || s.KeepAlive < 0 && r.Dialer.KeepAlive >= 0 {
		bad("Redis.Sentinel.Dialer is negative in Timeout or KeepAlive")
	}
	if o.Tracking.Mode != TrackOff && r.AlwaysRESP2 {
		bad("Redis.AlwaysRESP2 is set: the server tells of changes over RESP3 only; set Tracking.Mode to TrackOff, or do not set it")
	}
	return errs
}

// mode is the mode as far as the options tell; ModeAuto where the server has to.
func (o Options) mode() Mode {
	switch {
	case o.Mode != ModeAuto:
		return o.Mode
	case o.Redis.Sentinel.MasterSet != "":
		return ModeSentinel
	case len(o.Redis.InitAddress) > 1:
		return ModeCluster
	}
	return ModeAuto
}

func (t TrackingOptions) validate() []error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if t.Mode > TrackOff {
		bad("Tracking.Mode is %d: no such mode", t.Mode)
	}
	if t.Mode == TrackPrefixes && len(t.Prefixes) == 0 {
		bad("Tracking.Prefixes is empty: TrackPrefixes needs one at least")
	}
	if t.Mode != TrackPrefixes && len(t.Prefixes) > 0 {
		bad("Tracking.Prefixes is set: only TrackPrefixes uses it, and Tracking.Mode is %v", t.Mode)
	}
	for i, a := range t.Prefixes {
		for j, b := range t.Prefixes[:i] {
			if strings.HasPrefix(a, b) || strings.HasPrefix(b, a) {
				bad("Tracking.Prefixes[%d] is %q: it overlaps with Tracking.Prefixes[%d], %q, and redis takes no such list", i, a, j, b)
			}
		}
	}
	return errs
}

func (j JournalOptions) validate() []error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("holdfast: options: "+format, args...))
	}
	if j.MaxKeys < 1 {
		bad("Journal.MaxKeys is %d: it must be at least 1", j.MaxKeys)
	}
	if j.MaxBytes < 1 {
		bad("Journal.MaxBytes is %d: it must be at least 1", j.MaxBytes)
	}
	if j.MaxRate < 1 {
		bad("Journal.MaxRate is %d: it must be at least 1", j.MaxRate)
	}
	if j.OnConflict > ConflictOverwrite {
		bad("Journal.OnConflict is %d: no such rule", j.OnConflict)
	}
	if j.KeysOnly && j.OnConflict != ConflictDelete {
		bad("Journal.OnConflict is %v: with Journal.KeysOnly every key is deleted", j.OnConflict)
	}
	if j.Fsync > FsyncAlways {
		bad("Journal.Fsync is %d: no such policy", j.Fsync)
	}
	if j.Fsync != FsyncNo && j.Dir == "" {
		bad("Journal.Fsync is %v: without Journal.Dir there is no file", j.Fsync)
	}
	return errs
}

func (l LoadOptions) validate() []error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("holdfast: options: "+format, args...))
	}
	if !(l.TTLJitter >= 0 && l.TTLJitter <= 1) {
		bad("Load.TTLJitter is %v: it must be between 0 and 1", l.TTLJitter)
	}
	if !(l.EarlyRefresh >= 0 && l.EarlyRefresh < 1) {
		bad("Load.EarlyRefresh is %v: it must be at least 0 and below 1", l.EarlyRefresh)
	}
	if l.StaleIfError < 0 {
		bad("Load.StaleIfError is %v: it must not be negative", l.StaleIfError)
	}
	if l.SoftTimeout < 0 {
		bad("Load.SoftTimeout is %v: it must not be negative", l.SoftTimeout)
	}
	if l.SoftTimeout > 0 && l.StaleIfError <= 0 {
		bad("Load.SoftTimeout is %v: without Load.StaleIfError there is nothing to serve when it ends", l.SoftTimeout)
	}
	if l.HardTimeout < time.Millisecond {
		bad("Load.HardTimeout is %v: it must be at least 1ms", l.HardTimeout)
	}
	if l.Lease > 0 && l.Lease < 10*time.Millisecond {
		bad("Load.Lease is %v: it must be at least 10ms, or negative for none", l.Lease)
	}
	if l.MaxConcurrent < 0 {
		bad("Load.MaxConcurrent is %d: it must not be negative", l.MaxConcurrent)
	}
	return errs
}

// validateWithin is validate for the options of a Typed or of a call, with those of the
// Cache behind them.
func (l LoadOptions) validateWithin(c LoadOptions) []error {
	errs := l.validate()
	if l.MaxConcurrent != c.MaxConcurrent {
		errs = append(errs, fmt.Errorf("holdfast: options: Load.MaxConcurrent is %d: the bound is the Cache's, %d", l.MaxConcurrent, c.MaxConcurrent))
	}
	return errs
}

func validateRedis(r rueidis.ClientOption) []error {
	var errs []error
	bad := func(field, why string) {
		errs = append(errs, fmt.Errorf("holdfast: options: Redis.%s %s", field, why))
	}
	for i, addr := range r.InitAddress {
		field := fmt.Sprintf("InitAddress[%d]", i)
		switch _, _, err := net.SplitHostPort(addr); {
		case addr == "":
			bad(field, "is empty")
		case r.DialCtxFn == nil && err != nil:
			// With a dial function the address may be anything, a socket's path
			// for one.
			if at := strings.LastIndexByte(addr, '@'); at >= 0 {
				addr = "..." + addr[at:] // a URL, with a password maybe
			} else if scheme, _, isURL := strings.Cut(addr, "://"); isURL {
				addr = scheme + "://..."
			}
			bad(field, fmt.Sprintf("is %q: it must be host:port", addr))
		}
	}
	if r.SelectDB < 0 {
		bad("SelectDB", fmt.Sprintf("is %d: it must not be negative", r.SelectDB))
	}
	if r.Dialer.Timeout < 0 {
		bad("Dialer.Timeout", "is negative")
	}
	if r.Dialer.KeepAlive < 0 {
		bad("Dialer.KeepAlive", "is negative: a connection that falls silent would never be given up")
	}
	if r.ConnWriteTimeout < 0 {
		bad("ConnWriteTimeout", "is negative")
	}
	if r.RingScaleEachConn != 0 && r.RingScaleEachConn < 10 {
		bad("RingScaleEachConn", fmt.Sprintf("is %d: it must be at least 10, so that a mute server cannot hold callers", r.RingScaleEachConn))
	}
	refused := []struct {
		set   bool
		field string
		why   string
	}{
		{r.DialFn != nil, "DialFn", "is set: use DialCtxFn, which can be cancelled"},
		{r.ReplicaOnly, "ReplicaOnly", "is set: holdfast reads from the master, because a replica may answer with what was replaced"},
		{r.SendToReplicas != nil, "SendToReplicas", "is set: holdfast reads from the master, because a replica may answer with what was replaced"},
		{r.ReadNodeSelector != nil, "ReadNodeSelector", "is set: holdfast reads from the master, because a replica may answer with what was replaced"},
		{len(r.Standalone.ReplicaAddress) > 0, "Standalone.ReplicaAddress", "is set: holdfast reads from the master, because a replica may answer with what was replaced"},
		{r.ClusterOption.PreferInitAddressRefresh, "ClusterOption.PreferInitAddressRefresh", "is set: the map of a cluster is asked of the nodes that serve"},
		{r.ClusterOption.PreferClusterShards, "ClusterOption.PreferClusterShards", "is set: holdfast reads CLUSTER SLOTS, which every version has right"},
		{r.Standalone.EnableRedirect, "Standalone.EnableRedirect", "is set: only the supervisor dials"},
		{r.ConnLifetime != 0, "ConnLifetime", "is set: it would drop the connection under calls in flight"},
		{r.DisableAutoPipelining, "DisableAutoPipelining", "is set: every caller would need a connection of its own"},
		{r.OnInvalidations != nil, "OnInvalidations", "is set: holdfast owns invalidations"},
		{r.ClientTrackingOptions != nil, "ClientTrackingOptions", "is set: holdfast owns tracking"},
		{r.NewCacheStoreFn != nil, "NewCacheStoreFn", "is set: holdfast is the client-side cache"},
	}
	for _, f := range refused {
		if f.set {
			bad(f.field, f.why)
		}
	}
	return errs
}
