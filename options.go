package holdfast

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/redis/rueidis"
)

// Options configures a Cache. The zero value is a cache of the local tier only. With
// Redis.InitAddress set, every other zero value is a good default.
//
// Packages fmt and slog print Options without Redis.Password and Redis.Sentinel.Password, and
// show only whether they are set. Functions, AuthCredentialsFn among them, and TLS
// configurations are printed as addresses. The passwords are printed where fmt cannot call
// methods, in an unexported field of a struct, and where Redis is printed by itself, because
// its type is rueidis'.
type Options struct {
	// Redis has the addresses of Redis, user, password, database, TLS and dialer. Empty
	// InitAddress: local tier only.
	//
	// The Cache makes and ends the connections itself, so some fields of
	// rueidis.ClientOption work differently here:
	//   - New refuses replica routing, client-side caching hooks, ConnLifetime and
	//     DisableAutoPipelining.
	//   - The Cache sets DisableRetry, DisableCache, AlwaysPipelining, ForceSingleClient,
	//     PipelineMultiplex and BlockingPipeline.
	//   - Dialer.Timeout (default here 1s) bounds a dial and, again, its handshake.
	//   - A silent connection is closed after at most 2 x Dialer.KeepAlive +
	//     ConnWriteTimeout (defaults here 1s and 2s). 2 x Timeout takes the place of
	//     ConnWriteTimeout where it is longer, so that no call is cut short within its
	//     budget.
	//   - AuthCredentialsFn is called before each dial, with the address that is dialled,
	//     and has 10s for its answer.
	//   - SelectDB in a cluster: the server decides. Valkey supports it from version 9 on.
	//   - TLSConfig.ServerName: where it is the first address' host, as ParseURL sets it, the
	//     certificate of another address may also be for that address' own host.
	//   - BlockingPoolSize (default 1,024) bounds the connections to one server that callers
	//     of Client use alone. When all are in use, a further caller waits for at most
	//     Dialer.Timeout and gets ErrUnavailable. BlockingPoolCleanup (default here 10s) is
	//     how long an idle one is kept.
	Redis rueidis.ClientOption

	// Mode is the kind of deployment that InitAddress names. Default ModeAuto.
	Mode Mode

	// AllowAddress reports whether the Cache may dial the address, host:port, and send the
	// password there. It is called for each address that a server names and
	// Redis.InitAddress does not: the nodes of a cluster, the targets of MOVED and ASK, the
	// master that a sentinel names. A refused address counts as a server that is down, and
	// Health says so. AllowAddress may be called by several goroutines at once and must not
	// block; a panic in it refuses. Default nil: every address. To dial another address than
	// the one that was named, for example behind a NAT, use Redis.DialCtxFn.
	AllowAddress func(addr string) bool

	// Timeout is the budget of a call: the longest time that it waits for Redis in any state
	// of the network. Default 50ms; at least 1ms. A batch is sent in pipelines of at most 256
	// keys and about 256 KiB. Each pipeline has this budget, as long as the previous one was
	// answered in time. A call may get up to 1/16 less, because calls that begin together
	// share a timer.
	Timeout time.Duration

	// CloseTimeout is how long Close may take to deliver the journal, while Redis takes its
	// writes or the first attempt to connect is in progress. Default 1s; negative: Close
	// delivers nothing. Writes that were not delivered are lost, unless Journal.Dir has them,
	// and the error of Close counts them.
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
	// not reached yet, and none for a call. Default: nothing is logged.
	Logger *slog.Logger

	// Hooks are called for changes of state, replays, drops and held writes.
	Hooks Hooks
}

// withoutSecrets returns a copy without passwords and without AuthCredentialsFn.
func (o Options) withoutSecrets() Options {
	o.Redis.AuthCredentialsFn = nil
	return o.withoutPasswords()
}

func (o Options) withoutPasswords() Options {
	o.Redis.Password, o.Redis.Sentinel.Password = "", ""
	return o
}

// plainOptions are Options without their methods for printing.
type plainOptions Options

// Format implements fmt.Formatter. It prints the fields without the passwords, as %v, %+v or
// %#v does, for every verb: for another verb fmt would follow pointers. fmt does not call it
// for an unexported field of a struct, and prints everything there.
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

// LogValue implements slog.LogValuer: the fields as one string, without the passwords.
func (o Options) LogValue() slog.Value { return slog.StringValue(fmt.Sprintf("%+v", o)) }

// Mode is the kind of Redis deployment.
type Mode uint8 // in the order of link.Topology; states_test.go compares the two

const (
	// ModeAuto derives the mode from the options: Redis.Sentinel.MasterSet means Sentinel,
	// and several addresses without it mean a cluster. A single address is asked for its mode
	// when it is first reached.
	ModeAuto Mode = iota
	// ModeStandalone is one server at one address. The server behind a name or a proxy may
	// change: the address is resolved at each dial.
	ModeStandalone
	// ModeSentinel is a master watched by sentinels; Redis.InitAddress are the sentinels.
	// They are asked for the master before each dial and once each Breaker.MaxBackoff while
	// the Cache is in use; once a minute while it is not.
	ModeSentinel
	// ModeCluster is a Redis Cluster; Redis.InitAddress are some of its nodes. Commands go to
	// masters only.
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

// TrackingOptions says how the Cache learns of the writes of other clients.
type TrackingOptions struct {
	// Mode selects the keys whose changes the server reports. Default TrackReads.
	Mode TrackingMode

	// Prefixes select the keys whose changes the server reports in TrackPrefixes. No prefix
	// may begin with another. An empty one means every key.
	Prefixes []string

	// UntrackedTTL is how long a local copy is fresh where the server does not report
	// changes. Default 5s. The write of another client is seen after this time at the
	// latest. After it the copy stays as a fallback for an outage.
	UntrackedTTL time.Duration
}

// TrackingMode is a use of Redis' server-assisted client-side caching. Where the server does
// not support it (before Redis 6, RESP2, no permission for CLIENT) the Cache works as in
// TrackOff, sets Health.Tracking to false and logs one line.
type TrackingMode uint8

const (
	// TrackReads: the server reports changes of every key that was read through this Cache.
	// It remembers those keys, for each client. A key that was written here is read once
	// before its copy is fresh.
	TrackReads TrackingMode = iota
	// TrackPrefixes: the server reports changes of every key that begins with one of
	// Tracking.Prefixes, read or not. It remembers no keys and reports more of them. Other
	// keys are as in TrackOff.
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

// OutageOptions says which copies may be served while Redis is away.
type OutageOptions struct {
	// ServeFor is how long a copy may be served after Redis last confirmed it. Default 0:
	// for as long as its own TTL lasts.
	ServeFor time.Duration

	// ServeStaleFor is how long past its TTL a copy may be served. Default 0: not at all.
	ServeStaleFor time.Duration
}

// LoadOptions says how GetOrLoad, GetOrLoadMany, GetOrLoadWith and Refresh treat what they
// load. In Options they hold for every load of the Cache. WithLoad and GetOrLoadWith take
// options of their own: a zero field means the Cache's value, a negative one switches the
// option off.
type LoadOptions struct {
	// TTLJitter is the largest part of a TTL, between 0 and 1, by which it is shortened at
	// random, so that values loaded at the same time do not expire at the same time. Default
	// 0.
	TTLJitter float64

	// EarlyRefresh is the part of a TTL, between 0 and 1, after which a call that reads the
	// value also causes a load in the background; 0.8 is a good choice. The TTL is the call's,
	// or the copy's if that is shorter. Default 0: a value is loaded when it has expired. Not
	// for GetOrLoadMany.
	EarlyRefresh float64

	// StaleIfError is how long past its TTL a local copy may answer when the load fails. For
	// a second, or StaleIfError if that is shorter, further calls get the copy without a new
	// load. Default 0: the error is the answer.
	StaleIfError time.Duration

	// SoftTimeout is how long a caller waits for the load if a copy may answer within
	// StaleIfError. Then the caller gets the copy, and the load goes on. Default 0: until the
	// load has ended. It needs StaleIfError. Not for GetOrLoadMany.
	SoftTimeout time.Duration

	// HardTimeout is how long a load may take. Then its context ends and its callers get an
	// error, even if the loader ignores its context. Default 1m. It cannot be switched off.
	HardTimeout time.Duration

	// NotFoundTTL is how long this process remembers a loader's ErrNotFound, unless the
	// server reports a write of the key. Like a copy it ends after Local.MaxTTL, and after
	// Tracking.UntrackedTTL where the server does not report changes. Default 1s; negative:
	// not at all.
	NotFoundTTL time.Duration

	// MaxConcurrent bounds the loads that run at the same time in this Cache, so that
	// a cold start does not overload the source. Default 0: no bound. It belongs to the
	// Cache: a LoadOptions of WithLoad or GetOrLoadWith has 0 or the Cache's number. A
	// load over the bound waits for a slot, for at most HardTimeout; its callers wait
	// as long as their contexts allow. A load that a loader of this Cache waits for
	// needs no slot, because the two would wait for each other. A loader that ignores
	// its context keeps its slot until it returns. Without a bound nothing limits the
	// loads that callers start and give up.
	MaxConcurrent int

	// Lease is how long one process may keep the others that share the Redis from loading the
	// key that it loads. Another process waits for the loaded value, for at most this time.
	// Default 3s; negative: each process loads for itself. It should be longer than a load
	// takes: after its end, the load does not learn of a Delete by another process. Processes
	// that share keys should agree on the use of leases: where Options.Load.Lease is
	// negative, Delete does not remove a lease. See the package's documentation. Not for
	// GetOrLoadMany.
	Lease time.Duration
}

// over returns a call's options, with the Cache's in place of the zero ones.
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

// pick is def for an option that a negative value switches off.
func pick[T float64 | time.Duration](field *T, preset T) {
	def(field, preset)
	*field = max(*field, 0)
}

// withDefaults replaces zero fields with their defaults.
func (o Options) withDefaults() Options {
	def(&o.Timeout, 50*time.Millisecond)
	def(&o.CloseTimeout, time.Second)
	o.Local = o.Local.withDefaults()
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

// def sets a field that is zero.
func def[T comparable](field *T, preset T) {
	var zero T
	if *field == zero {
		*field = preset
	}
}

// validate returns all contradictions, joined, by the names of the fields. The options must
// have their defaults already.
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
	o.Local.validate(bad)
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

// validateMode returns the options that contradict the mode, given or derived.
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
	s := r.Sentinel.Dialer // with the defaults of Dialer
	if s.Timeout < 0 && r.Dialer.Timeout >= 0 || s.KeepAlive < 0 && r.Dialer.KeepAlive >= 0 {
		bad("Redis.Sentinel.Dialer is negative in Timeout or KeepAlive")
	}
	if o.Tracking.Mode != TrackOff && r.AlwaysRESP2 {
		bad("Redis.AlwaysRESP2 is set: the server tells of changes over RESP3 only; set Tracking.Mode to TrackOff, or do not set it")
	}
	return errs
}

// mode returns the mode as far as the options determine it, and ModeAuto if the server must
// be asked.
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
			// With a dial function the address may have any form, for example a socket's
			// path.
			if at := strings.LastIndexByte(addr, '@'); at >= 0 {
				addr = "..." + addr[at:] // a URL may have a password before the @
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

// silence returns how long a tracking server may be silent until no copy counts as fresh: until the
// circuit would have opened, but at most the time after which the connection is given up.
func (o *Options) silence() time.Duration {
	gap := int64(o.Redis.Dialer.KeepAlive)
	most := clock.Saturated(clock.Saturated(gap, gap), int64(o.Redis.ConnWriteTimeout))
	each := clock.Saturated(int64(o.Timeout), int64(o.Breaker.MinBackoff))
	if n := int64(o.Breaker.Failures); each < most/n {
		return time.Duration(min(most, clock.Saturated(int64(o.Breaker.MaxBackoff), each*n)))
	}
	return time.Duration(most)
}

// backoff returns the wait between two attempts.
func (o *Options) backoff() clock.Backoff {
	return clock.Backoff{Min: o.Breaker.MinBackoff, Max: o.Breaker.MaxBackoff}
}
