package holdfast

import (
	"context"
	"crypto/tls"
	"log/slog"
	"math"
	"net"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/rueidis"
)

// refused makes a Cache that must not come to be, and returns the lines of the
// error.
func refused(t *testing.T, o Options) []string {
	t.Helper()
	c, err := New(o)
	if err == nil {
		c.Close()
		t.Fatalf("New took %+v", o)
	}
	if c != nil {
		t.Error("New returned a Cache beside its error")
	}
	return strings.Split(err.Error(), "\n")
}

func TestNewReportsEveryContradictionAtOnce(t *testing.T) {
	lines := refused(t, Options{
		Redis: rueidis.ClientOption{
			InitAddress:           []string{"", "nowhere", "a:1"},
			SelectDB:              -1,
			ConnWriteTimeout:      -1,
			RingScaleEachConn:     9,
			Dialer:                net.Dialer{Timeout: -1},
			Sentinel:              rueidis.SentinelOption{MasterSet: "m"},
			Standalone:            rueidis.StandaloneOption{ReplicaAddress: []string{"r:1"}, EnableRedirect: true},
			DialFn:                func(string, *net.Dialer, *tls.Config) (net.Conn, error) { return nil, nil },
			ReplicaOnly:           true,
			SendToReplicas:        func(rueidis.Completed) bool { return false },
			ConnLifetime:          time.Hour,
			DisableAutoPipelining: true,
			OnInvalidations:       func([]rueidis.RedisMessage) {},
			ClientTrackingOptions: []string{},
			NewCacheStoreFn:       func(rueidis.CacheStoreOption) rueidis.CacheStore { return nil },
		},
		Mode:       200,
		Timeout:    time.Microsecond,
		DefaultTTL: -1,
		Local:      LocalOptions{MaxBytes: 1, MaxTTL: -1},
		Breaker:    BreakerOptions{Failures: -1, MinBackoff: 10 * time.Second, MaxBackoff: time.Second},
		Tracking:   TrackingOptions{UntrackedTTL: -1},
		Journal:    JournalOptions{MaxKeys: -1, MaxBytes: -1},
		Outage:     OutageOptions{ServeFor: -1, ServeStaleFor: -1},
	})
	fields := []string{
		"Mode", "Timeout", "DefaultTTL", "Local.MaxBytes", "Local.MaxTTL", "Breaker.Failures",
		"Breaker.MaxBackoff", "Tracking.UntrackedTTL", "Journal.MaxKeys", "Journal.MaxBytes",
		"Outage.ServeFor", "Outage.ServeStaleFor",
		"Redis.InitAddress[0]", "Redis.InitAddress[1]", "Redis.SelectDB",
		"Redis.ConnWriteTimeout", "Redis.RingScaleEachConn", "Redis.Dialer.Timeout",
		"Redis.Standalone.ReplicaAddress", "Redis.Standalone.EnableRedirect", "Redis.DialFn", "Redis.ReplicaOnly",
		"Redis.SendToReplicas", "Redis.ConnLifetime", "Redis.DisableAutoPipelining", "Redis.OnInvalidations",
		"Redis.ClientTrackingOptions", "Redis.NewCacheStoreFn",
	}
	for _, field := range fields {
		n := 0
		for _, line := range lines {
			if strings.HasPrefix(line, "holdfast: options: "+field+" ") {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%s is named by %d lines of %q", field, n, lines)
		}
	}
	if len(lines) != len(fields) {
		t.Errorf("%d lines for %d bad fields: %q", len(lines), len(fields), lines)
	}
}

func TestNewRefusesWhatCannotBeMeant(t *testing.T) {
	for _, tt := range []struct {
		field string
		set   func(*Options)
		says  string
	}{
		{"Mode", func(o *Options) { o.Mode = ModeCluster + 1 }, "no such mode"},
		{"Timeout", func(o *Options) { o.Timeout = time.Millisecond - 1 }, "at least 1ms"},
		{"Timeout", func(o *Options) { o.Timeout = -time.Second }, "-1s"},
		{"DefaultTTL", func(o *Options) { o.DefaultTTL = -1 }, "at least 0s"},
		{"Local.MaxBytes", func(o *Options) { o.Local.MaxBytes = 64<<10 - 1 }, "at least 65536"},
		{"Local.MaxTTL", func(o *Options) { o.Local.MaxTTL = time.Millisecond - 1 }, "at least 1ms"},
		{"Breaker.Failures", func(o *Options) { o.Breaker.Failures = -1 }, "at least 1"},
		{"Breaker.MinBackoff", func(o *Options) { o.Breaker.MinBackoff = time.Millisecond - 1 }, "at least 1ms"},
		{"Breaker.MaxBackoff", func(o *Options) { o.Breaker.MaxBackoff = time.Millisecond }, "Breaker.MinBackoff"},
		{"Tracking.UntrackedTTL", func(o *Options) { o.Tracking.UntrackedTTL = time.Millisecond - 1 }, "at least 1ms"},
		{"Journal.MaxKeys", func(o *Options) { o.Journal.MaxKeys = -1 }, "at least 1"},
		{"Journal.MaxBytes", func(o *Options) { o.Journal.MaxBytes = -1 }, "at least 1"},
		{"Journal.MaxRate", func(o *Options) { o.Journal.MaxRate = -1 }, "at least 1"},
		{"Journal.OnConflict", func(o *Options) { o.Journal.OnConflict = ConflictOverwrite + 1 }, "no such rule"},
		{"Journal.OnConflict", func(o *Options) { o.Journal.OnConflict, o.Journal.KeysOnly = ConflictKeep, true }, "Journal.KeysOnly"},
		{"Journal.Fsync", func(o *Options) { o.Journal.Fsync, o.Journal.Dir = FsyncAlways+1, "x" }, "no such policy"},
		{"Journal.Fsync", func(o *Options) { o.Journal.Fsync = FsyncAlways }, "Journal.Dir"},
		{"Outage.ServeFor", func(o *Options) { o.Outage.ServeFor = -1 }, "at least 0s"},
		{"Outage.ServeStaleFor", func(o *Options) { o.Outage.ServeStaleFor = -1 }, "at least 0s"},
		{"Load.TTLJitter", func(o *Options) { o.Load.TTLJitter = 1.1 }, "between 0 and 1"},
		{"Load.TTLJitter", func(o *Options) { o.Load.TTLJitter = math.NaN() }, "between 0 and 1"},
		{"Load.EarlyRefresh", func(o *Options) { o.Load.EarlyRefresh = 1 }, "below 1"},
		{"Load.EarlyRefresh", func(o *Options) { o.Load.EarlyRefresh = -0.1 }, "at least 0"},
		{"Load.StaleIfError", func(o *Options) { o.Load.StaleIfError = -1 }, "negative"},
		{"Load.SoftTimeout", func(o *Options) { o.Load.SoftTimeout = -1 }, "negative"},
		{"Load.SoftTimeout", func(o *Options) { o.Load.SoftTimeout = time.Second }, "Load.StaleIfError"},
		{"Load.HardTimeout", func(o *Options) { o.Load.HardTimeout = -1 }, "at least 1ms"},
		{"Load.Lease", func(o *Options) { o.Load.Lease = time.Millisecond }, "at least 10ms"},
		{"Load.MaxConcurrent", func(o *Options) { o.Load.MaxConcurrent = -1 }, "negative"},

		{"Redis.InitAddress[0]", func(o *Options) { o.Redis.InitAddress = []string{""} }, "empty"},
		{"Redis.InitAddress[0]", func(o *Options) { o.Redis.InitAddress = []string{"localhost"} }, "host:port"},
		{"Redis.InitAddress[0]", func(o *Options) { o.Redis.InitAddress = []string{"::1:6379"} }, "host:port"},
		{"Redis.InitAddress[0]", func(o *Options) { o.Redis.InitAddress = []string{"redis://localhost:6379"} }, "host:port"},
		{"Redis.InitAddress", func(o *Options) {
			o.Mode, o.Redis.InitAddress = ModeStandalone, []string{"a:1", "b:1"}
		}, "2 servers"},
		{"Redis.InitAddress", func(o *Options) { o.Mode, o.Redis.InitAddress = ModeCluster, nil }, "needs an address"},
		{"Redis.Sentinel.MasterSet", func(o *Options) {
			o.Mode, o.Redis.InitAddress = ModeSentinel, []string{"a:1"}
		}, "needs its name"},
		{"Redis.Sentinel.MasterSet", func(o *Options) {
			o.Mode, o.Redis.InitAddress, o.Redis.Sentinel.MasterSet = ModeCluster, []string{"a:1"}, "m"
		}, "contradicts Mode cluster"},
		{"Redis.Sentinel.MasterSet", func(o *Options) {
			o.Mode, o.Redis.InitAddress, o.Redis.Sentinel.MasterSet = ModeStandalone, []string{"a:1"}, "m"
		}, "contradicts Mode standalone"},
		{"Redis.Sentinel.TopologyRefreshInterval", func(o *Options) { o.Redis.Sentinel.TopologyRefreshInterval = -1 }, "negative"},
		{"Redis.Sentinel.Dialer", func(o *Options) { o.Redis.Sentinel.Dialer.Timeout = -1 }, "negative"},
		{"Redis.ClusterOption.ShardsRefreshInterval", func(o *Options) { o.Redis.ClusterOption.ShardsRefreshInterval = -1 }, "negative"},
		{"Redis.ClusterOption.MaxMovedRedirections", func(o *Options) { o.Redis.ClusterOption.MaxMovedRedirections = -1 }, "negative"},
		{"Redis.ClusterOption.PreferClusterShards", func(o *Options) { o.Redis.ClusterOption.PreferClusterShards = true }, "CLUSTER SLOTS"},
		{"Redis.ClusterOption.PreferInitAddressRefresh", func(o *Options) { o.Redis.ClusterOption.PreferInitAddressRefresh = true }, "nodes that serve"},
		{"Redis.AlwaysRESP2", func(o *Options) { o.Redis.AlwaysRESP2 = true }, "TrackOff"},
		{"Tracking.Mode", func(o *Options) { o.Tracking.Mode = TrackOff + 1 }, "no such mode"},
		{"Tracking.Prefixes", func(o *Options) { o.Tracking.Mode = TrackPrefixes }, "one at least"},
		{"Tracking.Prefixes", func(o *Options) { o.Tracking.Prefixes = []string{"a"} }, "only TrackPrefixes"},
		{"Tracking.Prefixes[1]", func(o *Options) {
			o.Tracking = TrackingOptions{Mode: TrackPrefixes, Prefixes: []string{"user:", "user:1"}}
		}, "overlaps"},
		{"Redis.SelectDB", func(o *Options) { o.Redis.SelectDB = -1 }, "negative"},
		{"Redis.Dialer.Timeout", func(o *Options) { o.Redis.Dialer.Timeout = -1 }, "negative"},
		{"Redis.ConnWriteTimeout", func(o *Options) { o.Redis.ConnWriteTimeout = -1 }, "negative"},
		{"Redis.RingScaleEachConn", func(o *Options) { o.Redis.RingScaleEachConn = 9 }, "at least 10"},
		{"Redis.RingScaleEachConn", func(o *Options) { o.Redis.RingScaleEachConn = -1 }, "at least 10"},
		{"Redis.DialFn", func(o *Options) {
			o.Redis.DialFn = func(string, *net.Dialer, *tls.Config) (net.Conn, error) { return nil, nil }
		}, "DialCtxFn"},
		{"Redis.ReplicaOnly", func(o *Options) { o.Redis.ReplicaOnly = true }, "master"},
		{"Redis.SendToReplicas", func(o *Options) { o.Redis.SendToReplicas = func(rueidis.Completed) bool { return true } }, "master"},
		{"Redis.Standalone.ReplicaAddress", func(o *Options) { o.Redis.Standalone.ReplicaAddress = []string{"r:1"} }, "master"},
		{"Redis.Standalone.EnableRedirect", func(o *Options) { o.Redis.Standalone.EnableRedirect = true }, "supervisor"},
		{"Redis.ConnLifetime", func(o *Options) { o.Redis.ConnLifetime = time.Hour }, "in flight"},
		{"Redis.DisableAutoPipelining", func(o *Options) { o.Redis.DisableAutoPipelining = true }, "connection of its own"},
		{"Redis.OnInvalidations", func(o *Options) { o.Redis.OnInvalidations = func([]rueidis.RedisMessage) {} }, "invalidations"},
		{"Redis.ClientTrackingOptions", func(o *Options) { o.Redis.ClientTrackingOptions = []string{"NOLOOP"} }, "tracking"},
		{"Redis.NewCacheStoreFn", func(o *Options) {
			o.Redis.NewCacheStoreFn = func(rueidis.CacheStoreOption) rueidis.CacheStore { return nil }
		}, "client-side cache"},
	} {
		o := Options{Redis: rueidis.ClientOption{InitAddress: []string{"localhost:6379"}}}
		tt.set(&o)
		lines := refused(t, o)
		if len(lines) != 1 || !strings.HasPrefix(lines[0], "holdfast: options: "+tt.field+" ") || !strings.Contains(lines[0], tt.says) {
			t.Errorf("%s: %q does not say %q", tt.field, lines, tt.says)
		}
	}
}

func TestTheEdgesOfWhatIsAllowedAreAllowed(t *testing.T) {
	dial := func(context.Context, string, *net.Dialer, *tls.Config) (net.Conn, error) { return nil, net.ErrClosed }
	for name, o := range map[string]Options{
		"zero": {},
		"smallest": {
			Timeout: time.Millisecond, Local: LocalOptions{MaxBytes: 64 << 10, MaxTTL: time.Millisecond},
			Breaker:  BreakerOptions{Failures: 1, MinBackoff: time.Millisecond, MaxBackoff: time.Millisecond},
			Tracking: TrackingOptions{UntrackedTTL: time.Millisecond}, Journal: JournalOptions{MaxKeys: 1, MaxBytes: 1},
		},
		"largest": {
			Timeout: math.MaxInt64, DefaultTTL: math.MaxInt64, Local: LocalOptions{MaxTTL: math.MaxInt64},
			Breaker:  BreakerOptions{Failures: math.MaxInt32, MaxBackoff: math.MaxInt64},
			Tracking: TrackingOptions{UntrackedTTL: math.MaxInt64}, Journal: JournalOptions{MaxKeys: math.MaxInt, MaxBytes: math.MaxInt64},
			Outage: OutageOptions{ServeFor: math.MaxInt64, ServeStaleFor: math.MaxInt64},
		},
		// With a dial function an address is whatever that takes.
		"a name": {Redis: rueidis.ClientOption{InitAddress: []string{"anything"}, DialCtxFn: dial}},
		"ipv6":   {Redis: rueidis.ClientOption{InitAddress: []string{"[::1]:6379"}, DialCtxFn: dial}},
		"ring":   {Redis: rueidis.ClientOption{InitAddress: []string{"a:1"}, RingScaleEachConn: 10, DialCtxFn: dial}},
	} {
		c, err := New(o)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if err := c.Close(); err != nil {
			t.Errorf("%s: close: %v", name, err)
		}
	}
}

func TestWhatIsLeftZeroGetsItsDefault(t *testing.T) {
	o := Options{}.withDefaults()
	for _, tt := range []struct {
		field     string
		got, want any
	}{
		{"Mode", o.Mode, ModeAuto},
		{"Timeout", o.Timeout, 50 * time.Millisecond},
		{"DefaultTTL", o.DefaultTTL, time.Duration(0)},
		{"CloseTimeout", o.CloseTimeout, time.Second},
		{"Local.MaxBytes", o.Local.MaxBytes, int64(64 << 20)},
		{"Local.MaxTTL", o.Local.MaxTTL, 10 * time.Minute},
		{"Breaker.Failures", o.Breaker.Failures, 5},
		{"Breaker.MinBackoff", o.Breaker.MinBackoff, 100 * time.Millisecond},
		{"Breaker.MaxBackoff", o.Breaker.MaxBackoff, time.Second},
		{"Breaker.ProbePrefix", o.Breaker.ProbePrefix, "holdfast:probe:"},
		{"Tracking.UntrackedTTL", o.Tracking.UntrackedTTL, 5 * time.Second},
		{"Journal.MaxKeys", o.Journal.MaxKeys, 65536},
		{"Journal.MaxBytes", o.Journal.MaxBytes, int64(64 << 20)},
		{"Outage.ServeFor", o.Outage.ServeFor, time.Duration(0)},
		{"Journal.MaxRate", o.Journal.MaxRate, 100_000},
		{"Journal.OnConflict", o.Journal.OnConflict, ConflictDelete},
		{"Journal.Fsync", o.Journal.Fsync, FsyncNo},
		{"Journal.Dir", o.Journal.Dir, ""},
		{"Outage.ServeStaleFor", o.Outage.ServeStaleFor, time.Duration(0)},
		{"Load", o.Load, LoadOptions{HardTimeout: time.Minute, NotFoundTTL: time.Second, Lease: 3 * time.Second}},
		{"Load.MaxConcurrent", o.Load.MaxConcurrent, 0},
		{"Redis.Dialer.Timeout", o.Redis.Dialer.Timeout, time.Second},
		{"Redis.Dialer.KeepAlive", o.Redis.Dialer.KeepAlive, time.Second},
		{"Redis.ConnWriteTimeout", o.Redis.ConnWriteTimeout, 2 * time.Second},
		{"Redis.Sentinel.Dialer.Timeout", o.Redis.Sentinel.Dialer.Timeout, time.Second},
		{"Redis.Sentinel.Dialer.KeepAlive", o.Redis.Sentinel.Dialer.KeepAlive, time.Second},
		{"Redis.ClusterOption.ShardsRefreshInterval", o.Redis.ClusterOption.ShardsRefreshInterval, 10 * time.Second},
		{"Redis.ClusterOption.MaxMovedRedirections", o.Redis.ClusterOption.MaxMovedRedirections, 3},
		{"Tracking.Mode", o.Tracking.Mode, TrackReads},
		{"Logger, enabled", o.Logger.Enabled(context.Background(), slog.LevelError), false},
	} {
		if tt.got != tt.want {
			t.Errorf("%s is %v, want %v", tt.field, tt.got, tt.want)
		}
	}
	// A MinBackoff over the default MaxBackoff is no contradiction of the user's.
	slow := Options{Breaker: BreakerOptions{MinBackoff: time.Minute}}.withDefaults()
	if slow.Breaker.MaxBackoff != time.Minute {
		t.Errorf("MaxBackoff is %v beside a MinBackoff of a minute", slow.Breaker.MaxBackoff)
	}
	set := Options{
		Timeout: 1 * time.Second, CloseTimeout: -1, DefaultTTL: 2 * time.Second,
		Local:    LocalOptions{MaxBytes: 1 << 20, MaxTTL: 3 * time.Second},
		Breaker:  BreakerOptions{Failures: 4, MinBackoff: 5 * time.Second, MaxBackoff: 6 * time.Second, ProbePrefix: "p:"},
		Tracking: TrackingOptions{UntrackedTTL: 7 * time.Second}, Journal: JournalOptions{MaxKeys: 8, MaxBytes: 9, MaxRate: 19},
		Outage: OutageOptions{ServeFor: 10 * time.Second, ServeStaleFor: 11 * time.Second},
		Load:   LoadOptions{HardTimeout: 19 * time.Second, NotFoundTTL: -1, MaxConcurrent: 20, Lease: -1},
		Redis: rueidis.ClientOption{
			Dialer: net.Dialer{Timeout: 12 * time.Second, KeepAlive: 13 * time.Second}, ConnWriteTimeout: 14 * time.Second,
			Sentinel:      rueidis.SentinelOption{Dialer: net.Dialer{Timeout: 15 * time.Second, KeepAlive: 16 * time.Second}},
			ClusterOption: rueidis.ClusterOption{ShardsRefreshInterval: 17 * time.Second, MaxMovedRedirections: 18},
		},
		Logger: slog.Default(),
	}
	if got := set.withDefaults(); !reflect.DeepEqual(got, set) {
		t.Errorf("what was set has changed: %+v, was %+v", got, set)
	}
}

// ownFields calls f for every exported field of holdfast's own structs within v,
// down to those that are no such struct.
func ownFields(v reflect.Value, path string, f func(path string, field reflect.Value)) {
	for i := range v.NumField() {
		sf := v.Type().Field(i)
		if !sf.IsExported() {
			continue
		}
		name := strings.TrimPrefix(path+"."+sf.Name, ".")
		if sf.Type.Kind() == reflect.Struct && sf.Type.PkgPath() == reflect.TypeFor[Options]().PkgPath() {
			ownFields(v.Field(i), name, f)
			continue
		}
		f(name, v.Field(i))
	}
}

func TestNoOptionIsForgotten(t *testing.T) {
	// The fields for which zero is as good as anything.
	free := map[string]string{
		"Breaker.ProbePrefix": "any prefix will do",
		"Tracking.Prefixes":   "TestNewRefusesWhatCannotBeMeant has the lists that are refused",
		"CloseTimeout":        "negative is off",
		"Local.CacheDo":       "on or off",
		"Journal.KeysOnly":    "on or off",
		"Journal.Dir":         "any directory, or none: TestADirectoryInUseIsAnErrorThatSaysSo has those that are refused",
		"AllowAddress":        "any function, or none",
		"Load.NotFoundTTL":    "negative is off",
		"Load.Lease":          "negative is off; TestNewRefusesWhatCannotBeMeant has those that are refused",
		"Logger":              "any logger will do",
		"Hooks.OnStateChange": "any function, or none",
		"Hooks.OnReplay":      "any function, or none",
		"Hooks.OnDrop":        "any function, or none",
		"Hooks.OnHold":        "any function, or none",
		"Redis":               "rueidis' own fields: TestNewRefusesWhatCannotBeMeant has those that are refused",
	}
	var zero, defaults Options
	defaults = zero.withDefaults()
	changed := map[string]bool{}
	before := map[string]any{}
	ownFields(reflect.ValueOf(zero), "", func(path string, field reflect.Value) { before[path] = field.Interface() })
	ownFields(reflect.ValueOf(defaults), "", func(path string, field reflect.Value) {
		changed[path] = !reflect.DeepEqual(before[path], field.Interface())
	})
	if len(before) < 15 {
		t.Fatalf("only %d fields were found: %v", len(before), before)
	}
	for path := range free {
		if _, ok := before[path]; !ok {
			t.Errorf("%s is no field any more", path)
		}
	}
	for path := range before {
		if free[path] != "" {
			continue
		}
		// The worst that a field of its kind can hold must be refused, by name.
		var o Options
		tried := false
		ownFields(reflect.ValueOf(&o).Elem(), "", func(p string, field reflect.Value) {
			if p != path {
				return
			}
			switch {
			case field.CanInt():
				field.SetInt(-1)
				tried = true
			case field.CanUint():
				field.SetUint(math.MaxUint8)
				tried = true
			case field.CanFloat():
				field.SetFloat(-1)
				tried = true
			}
		})
		switch {
		case tried:
			c, err := New(o)
			if err == nil {
				c.Close()
				t.Errorf("%s: New takes its worst value", path)
			} else if !strings.Contains(err.Error(), "options: "+path+" ") {
				t.Errorf("%s: the error does not name it: %v", path, err)
			}
		case !changed[path]:
			t.Errorf("%s has no default, is never refused, and is in no list of those for which that is right", path)
		}
	}
}

func TestOpenTakesTheURLsOfRedis(t *testing.T) {
	for _, tt := range []struct {
		url            string
		addr           string
		user, password string
		db             int
		tls            string // the server's name
	}{
		{url: "redis://", addr: "localhost:6379"},
		{url: "redis://localhost", addr: "localhost:6379"},
		{url: "redis://127.0.0.1:1234", addr: "127.0.0.1:1234"},
		{url: "redis://[::1]:1234/2", addr: "[::1]:1234", db: 2},
		{url: "redis://:s3cret@127.0.0.1:1234/3", addr: "127.0.0.1:1234", password: "s3cret", db: 3},
		{url: "redis://app:s3c%2Fr%40t@127.0.0.1:1234?db=4", addr: "127.0.0.1:1234", user: "app", password: "s3c/r@t", db: 4},
		{url: "rediss://app:s3cret@redis.invalid:1234/1", addr: "redis.invalid:1234", user: "app", password: "s3cret", db: 1, tls: "redis.invalid"},
		{url: "unix:///run/redis.sock", addr: "/run/redis.sock"},
		{url: "unix://app:s3cret@/run/redis.sock?db=5", addr: "/run/redis.sock", user: "app", password: "s3cret", db: 5},
	} {
		c, err := Open(tt.url)
		if err != nil {
			t.Errorf("%s: %v", tt.url, err)
			continue
		}
		r := c.dialled.Redis
		if err := c.Close(); err != nil {
			t.Errorf("%s: close: %v", tt.url, err)
		}
		if len(r.InitAddress) != 1 || r.InitAddress[0] != tt.addr || r.Username != tt.user || r.Password != tt.password || r.SelectDB != tt.db {
			t.Errorf("%s: address %q, user %q, password %q, db %d", tt.url, r.InitAddress, r.Username, r.Password, r.SelectDB)
		}
		if (r.TLSConfig != nil) != (tt.tls != "") || r.TLSConfig != nil && r.TLSConfig.ServerName != tt.tls {
			t.Errorf("%s: tls %+v", tt.url, r.TLSConfig)
		}
	}
}

func TestOpenReachesTheDatabaseOfTheURLAsItsUser(t *testing.T) {
	m := miniredis.RunT(t)
	m.RequireUserAuth("app", "s3cret")
	c, err := Open("redis://app:s3cret@" + m.Addr() + "/3")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	setAndSee(t, c, func() string { v, _ := m.DB(3).Get("k"); return v })
}

func TestOpenReachesAServerOnAUnixSocket(t *testing.T) {
	dir := t.TempDir()
	sock := filepath.Join(dir, "redis.sock")
	if len(sock) > 100 {
		t.Skip("the directory's name is too long for a socket")
	}
	s := redistest.Start(t, "--unixsocket", sock)
	c, err := Open("unix://" + sock + "?db=2")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	setAndSee(t, c, func() string {
		if strings.Contains(s.MustDo("INFO", "keyspace"), "db2:keys=") {
			return "v"
		}
		return ""
	})
}

func setAndSee(t *testing.T, c *Cache, there func() string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := c.WaitReady(ctx); err != nil {
		t.Fatalf("%v; last error: %v", err, c.Health().LastError)
	}
	if err := c.Set(ctx, "k", []byte("v"), 0); err != nil {
		t.Fatal(err)
	}
	if err := c.Drain(ctx); err != nil {
		t.Fatal(err)
	}
	if got := there(); got != "v" {
		t.Errorf("redis holds %q", got)
	}
}

func TestOpenRefusesABadURLWithoutShowingThePassword(t *testing.T) {
	const secret = "hunter2"
	for _, url := range []string{
		"",
		"localhost:6379",
		"http://app:hunter2@localhost:6379",
		"app:hunter2@localhost:6379",
		"://app:hunter2@localhost:6379",
		"redis://app:hunter2@localhost:6379/notanumber",
		"redis://app:hunter2@localhost:6379/1/2",
		"redis://app:hunter2@localhost:6379/-1",
		"redis://app:hunter2@localhost:6379?db=x",
		"redis://app:hunter2@localhost:6379?dial_timeout=x",
		"redis://app:hunter2@localhost:6379?write_timeout=x",
		"redis://app:hunter2@localhost:6379?dial_timeout=-1s",
		"rediss://app:hunter2@localhost:6379?skip_verify=x",
		"unix://app:hunter2@",

		// What url.Parse does not take, among it passwords that should have been
		// escaped.
		"redis://app:hunter2@local host:6379",
		"redis://app:hunter2@localhost:port",
		"redis://app:hunter2%zz@localhost:6379",
		"redis://app:hunter2 @localhost:6379",
		"redis://app:hunter2@[::1",
		"redis://app:hunter2\x7f@localhost:6379",
		"redis://app:hunter2/@localhost:6379",
		"redis://app:hunter2?@localhost:6379",
		"redis://app:hunter2#@localhost:6379",
		"redis://:hunter2/x@localhost:6379/0",

		// One slash too few or too many.
		"redis:/app:hunter2@localhost:6379",
		"redis:///app:hunter2@localhost:6379",
		"redis:///app:hunter2@localhost:6379/0",
		"redis://app:1/hunter2@localhost:6379",
	} {
		c, err := Open(url)
		if err == nil {
			c.Close()
			t.Errorf("%q was taken: %+v", url, c.opts.Redis.InitAddress)
			continue
		}
		if c != nil {
			t.Errorf("%q: a Cache beside the error", url)
		}
		if strings.Contains(err.Error(), secret) {
			t.Errorf("%q: the error shows the password: %v", url, err)
		}
		if !strings.HasPrefix(err.Error(), "holdfast: ") {
			t.Errorf("%q: %v", url, err)
		}
	}
}
