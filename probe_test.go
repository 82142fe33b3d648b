package holdfast_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

// The probe's key was to be seen in KEYS, SCAN and DBSIZE all the time, in a database
// that others count and list.
func TestTheProbeLeavesNothingBehind(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	o := tracked(s.Addr(), holdfast.TrackReads)
	o.Breaker.MinBackoff, o.Breaker.MaxBackoff = time.Millisecond, 5*time.Millisecond
	c := open(t, o)
	ready(t, c)
	probed := c.Health().ProbedAt
	for i := 0; i < 50 || !c.Health().ProbedAt.After(probed.Add(20*time.Millisecond)); i++ {
		must(t, c.Check(ctx))
		if n, keys, info := s.MustDo("DBSIZE"), s.MustDo("KEYS", "*"), s.MustDo("INFO", "keyspace"); n != "0" || keys != "" || strings.Contains(info, "db0") {
			t.Fatalf("dbsize %s, keys %q, %s", n, keys, info)
		}
	}
	for _, stat := range []string{"expired_keys", "evicted_keys"} {
		if info := s.MustDo("INFO", "stats"); !strings.Contains(info, stat+":0") {
			t.Errorf("%s: %s", stat, info)
		}
	}
}

// A write of a key that is not there does nothing, and is refused all the same for
// whatever Redis refuses writes for: nobody but the probe writes here.
func TestTheProbeAloneFindsThatWritesAreRefused(t *testing.T) {
	beside(t)
	for _, tt := range []struct {
		code   string
		args   []string
		refuse func(s *redistest.Server)
		heal   func(s *redistest.Server)
	}{
		{"MISCONF", []string{"--enable-protected-configs", "yes", "--save", "3600 1"}, func(s *redistest.Server) {
			s.MustDo("CONFIG", "SET", "dir", "/proc")
			s.MustDo("BGSAVE")
			redistest.WaitFor(t, patience, "the snapshot to fail", func() bool {
				return strings.Contains(s.MustDo("INFO", "persistence"), "rdb_last_bgsave_status:err")
			})
		}, func(s *redistest.Server) { s.MustDo("CONFIG", "SET", "stop-writes-on-bgsave-error", "no") }},
		{"OOM", nil, func(s *redistest.Server) {
			s.MustDo("SET", "ballast", strings.Repeat("x", 2<<20))
			s.MustDo("CONFIG", "SET", "maxmemory", "1mb")
		}, func(s *redistest.Server) { s.MustDo("CONFIG", "SET", "maxmemory", "0") }},
		{"NOREPLICAS", nil, func(s *redistest.Server) { s.MustDo("CONFIG", "SET", "min-replicas-to-write", "1") },
			func(s *redistest.Server) { s.MustDo("CONFIG", "SET", "min-replicas-to-write", "0") }},
		{"READONLY", nil, func(s *redistest.Server) { s.MustDo("REPLICAOF", "127.0.0.1", "1") },
			func(s *redistest.Server) { s.MustDo("REPLICAOF", "NO", "ONE") }},
		{"NOPERM", nil, func(s *redistest.Server) { s.MustDo("ACL", "SETUSER", "app", "-set") },
			func(s *redistest.Server) { s.MustDo("ACL", "SETUSER", "app", "+set") }},
		{"NOPERM", nil, func(s *redistest.Server) { s.MustDo("ACL", "SETUSER", "app", "resetkeys", "%R~*") },
			func(s *redistest.Server) { s.MustDo("ACL", "SETUSER", "app", "~*") }},
		{"NOPERM", nil, func(s *redistest.Server) { s.MustDo("ACL", "SETUSER", "app", "resetkeys", "~app:*") },
			func(s *redistest.Server) { s.MustDo("ACL", "SETUSER", "app", "~*") }},
	} {
		t.Run(tt.code, func(t *testing.T) {
			begin(t)
			s := redistest.Start(t, tt.args...)
			s.MustDo("ACL", "SETUSER", "app", "on", ">x", "~*", "&*", "+@all")
			o := tracked(s.Addr(), holdfast.TrackReads)
			o.Redis.Username, o.Redis.Password = "app", "x"
			o.Breaker.MaxBackoff = 200 * time.Millisecond
			c := open(t, o)
			ready(t, c)
			tt.refuse(s)
			waitState(t, c, holdfast.ReadOnly)
			if h := c.Health(); h.LastError == nil || !contains(h.LastError.Error(), tt.code) || c.Stats().BreakerOpens != 0 {
				t.Errorf("health %+v", h)
			}
			tt.heal(s)
			waitState(t, c, holdfast.Up)
		})
	}
}

// Whatever the words, a write that is refused beside a read that is answered says that
// reads go on; and a read that is refused beside a write that was done, that they do not.
func TestTheProbeIsAWriteAndARead(t *testing.T) {
	beside(t)
	isProbe := func(cmd []string) bool { return len(cmd) > 1 && strings.HasPrefix(cmd[1], "holdfast:probe:") }
	writes := map[string]bool{"SET": true, "DEL": true, "EVALSHA": true, "EVAL": true}
	for _, text := range []string{
		"Out of memory", "ERR quota of writes exceeded", "CLUSTERDOWN The cluster is down",
		"CLUSTERDOWN The cluster is down and only accepts read commands", "NOAUTH not for writing", "MAINTENANCE writes are paused",
	} {
		t.Run("writes/"+text, func(t *testing.T) {
			ctx := begin(t)
			s := redistest.Start(t)
			p := redistest.NewInjector(t, s.Addr())
			o := tracked(p.Addr(), holdfast.TrackReads)
			o.Breaker.MaxBackoff = 200 * time.Millisecond
			c := open(t, o)
			ready(t, c)
			s.MustDo("SET", "k", "one")
			p.Answer(func(cmd []string) string {
				if writes[cmd[0]] {
					return text
				}
				return ""
			})
			must(t, c.Set(ctx, "w", []byte("kept"), 0))
			waitState(t, c, holdfast.ReadOnly)
			if h := c.Health(); h.LastError == nil || !contains(h.LastError.Error(), strings.TrimPrefix(text, "ERR ")) || c.Stats().BreakerOpens != 0 {
				t.Errorf("health %+v, stats %+v", h, c.Stats())
			}
			for i := range 100 {
				must(t, c.Set(ctx, "w", []byte(fmt.Sprint(i)), 0))
			}
			must(t, c.Delete(ctx, "gone"))
			held(t, c, "k", "one") // and the server goes on telling
			s.MustDo("SET", "k", "two")
			soon(t, c, "k", "two")
			wantGet(t, c, "w", "99")
			p.Answer(nil)
			waitState(t, c, holdfast.Up)
			drain(t, c)
			if got := s.MustDo("GET", "w"); got != "99" {
				t.Errorf("w is %s at redis", got)
			}
		})
	}
	t.Run("reads", func(t *testing.T) {
		ctx := begin(t)
		s := redistest.Start(t)
		p := redistest.NewInjector(t, s.Addr())
		o := tracked(p.Addr(), holdfast.TrackReads)
		o.Breaker.MaxBackoff = 200 * time.Millisecond
		c := open(t, o)
		ready(t, c)
		s.MustDo("SET", "k", "one")
		held(t, c, "k", "one")
		var probes atomic.Int64
		p.Answer(func(cmd []string) string {
			if isProbe(cmd) {
				probes.Add(1)
			}
			if cmd[0] == "GET" {
				return "no replica is there to be read from"
			}
			return ""
		})
		waitState(t, c, holdfast.Down)
		wantGet(t, c, "k", "one")
		if _, err := c.Add(ctx, "a", nil, 0); !errors.Is(err, holdfast.ErrUnavailable) {
			t.Errorf("add: %v", err)
		}
		p.Answer(nil)
		waitState(t, c, holdfast.Up)
	})
}

// A cluster that lost a shard is down, and may be told to answer reads nevertheless.
func TestAClusterThatIsDownAndAnswersReadsIsRead(t *testing.T) {
	ctx := begin(t)
	r := redistest.StartCluster(t, 3, 0)
	r.Configure("cluster-require-full-coverage", "yes")
	r.Configure("cluster-allow-reads-when-down", "yes")
	o := tracked(r.Addrs()[0], holdfast.TrackReads)
	o.Breaker.MaxBackoff = 200 * time.Millisecond
	c := open(t, o)
	ready(t, c)
	lost := r.NodeFor("lost")
	key := ""
	for i := 0; key == ""; i++ {
		if k := fmt.Sprint("k", i); r.NodeFor(k) != lost {
			key = k
		}
	}
	node := r.NodeFor(key)
	node.MustDo("SET", key, "one")
	node.MustDo("CONFIG", "RESETSTAT")
	lost.Pause()
	redistest.WaitFor(t, patience, "the cluster to be down", func() bool {
		_, _ = c.Get(ctx, key) // a link that nobody uses is left alone
		return strings.Contains(node.MustDo("CLUSTER", "INFO"), "cluster_state:fail")
	})
	shard := func() (s holdfast.ShardHealth) {
		for _, s = range c.Health().Shards {
			if s.Addr == node.Addr() {
				return s
			}
		}
		return s
	}
	redistest.WaitFor(t, patience, "the shard to take no writes", func() bool {
		_, _ = c.Get(ctx, key)
		return shard().State == holdfast.ReadOnly
	})
	if s := shard(); s.LastError == nil || !contains(s.LastError.Error(), "CLUSTERDOWN") {
		t.Errorf("shard %+v", s)
	}
	must(t, c.Set(ctx, "x{"+key+"}", []byte("kept"), 0))
	for range 20 {
		must(t, c.Invalidate(key))
		if e, err := c.Lookup(ctx, key); err != nil || e.Tier != holdfast.Remote || string(e.Value) != "one" {
			t.Fatalf("%+v, %v", e, err)
		}
	}
	if v, err := c.GetOrLoad(ctx, "absent{"+key+"}", 0, func(context.Context) ([]byte, error) { return []byte("v"), nil }); err != nil || string(v) != "v" {
		t.Errorf("getorload: %q, %v", v, err)
	}
	lost.Resume()
	redistest.WaitFor(t, patience, "all to be well", func() bool { return c.Check(ctx) == nil && c.Health().State == holdfast.Up })
	drain(t, c)
	if got := node.MustDo("GET", "x{"+key+"}"); got != "kept" {
		t.Errorf("x is %s at redis", got)
	}
}
