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

// refusals is how often the server has answered with that error.
func refusals(s *redistest.Server, code string) (n int) {
	for line := range strings.Lines(s.MustDo("INFO", "errorstats")) {
		if rest, ok := strings.CutPrefix(line, "errorstat_"+code+":count="); ok {
			fmt.Sscan(rest, &n)
		}
	}
	return n
}

func journaled(t testing.TB, c *holdfast.Cache, key, want string) {
	t.Helper()
	if e, err := c.Lookup(context.Background(), key); err != nil || string(e.Value) != want || e.Tier != holdfast.Journal && e.Tier != holdfast.Local {
		t.Errorf("%s was written while redis took no writes: %+v, %v", key, e, err)
	}
}

// The address stays, and the server behind it is told to follow another one.
// Centrifugo's node kept writing to such a server, and its health said ok.
func TestAServerThatBecomesAReplicaIsReadFromAndNotWrittenTo(t *testing.T) {
	ctx := begin(t)
	s, master := redistest.Start(t, "--repl-diskless-sync-delay", "0"), redistest.Start(t, "--repl-diskless-sync-delay", "0")
	c := open(t, tracked(s.Addr(), holdfast.TrackReads))
	ready(t, c)
	for _, srv := range []*redistest.Server{s, master} {
		srv.MustDo("MSET", "k", "one", "other", "one")
	}
	held(t, c, "k", "one")
	s.MustDo("REPLICAOF", "127.0.0.1", fmt.Sprint(master.Port()))
	master.AwaitReplicas(1)
	redistest.WaitFor(t, patience, "the replica to be in sync", func() bool {
		return strings.Contains(s.MustDo("INFO", "replication"), "master_link_status:up")
	})

	// 1,000 writes: it is asked until it has said no, and then no more.
	probes, start := c.Stats().DialAttempts, time.Now()
	before := refusals(s, "READONLY")
	for i := range 1000 {
		must(t, c.Set(ctx, fmt.Sprint("w", i%100), []byte(fmt.Sprint(i)), 0))
	}
	must(t, c.Delete(ctx, "other"))
	waitState(t, c, holdfast.ReadOnly)
	if h := c.Health(); h.Writable || h.LastError == nil || !contains(h.LastError.Error(), "READONLY") {
		t.Errorf("health %+v", h)
	}
	journaled(t, c, "w7", "907")
	if _, err := c.Get(ctx, "other"); !errors.Is(err, holdfast.ErrMiss) {
		t.Errorf("other was deleted: %v", err)
	}

	// Reads go on, and what they bring is not sure: nobody tells of a change
	// that has not yet come down from the master.
	for range 3 {
		if e, err := c.Lookup(ctx, "k"); err != nil || e.Tier != holdfast.Remote || string(e.Value) != "one" {
			t.Errorf("a read of a replica: %+v, %v", e, err)
		}
	}
	master.MustDo("SET", "k", "two")
	soon(t, c, "k", "two")
	elapsed(t, "probes of a replica", start, 1500*time.Millisecond)
	// Each probe is a question as well: what is asked beside them is counted.
	asked := refusals(s, "READONLY") - before
	dialed := int(c.Stats().DialAttempts - probes)
	if beside := asked - dialed; beside > 3 {
		t.Errorf("%d READONLY replies, %d of them to probes", asked, dialed)
	}
	if dialed > 8 { // 5 in the first second and 1.2 in each other one
		t.Errorf("%d connections in %v", dialed, time.Since(start))
	}
	if h := c.Health(); h.State != holdfast.ReadOnly {
		t.Errorf("health %+v", h)
	}

	s.MustDo("REPLICAOF", "NO", "ONE")
	waitState(t, c, holdfast.Up)
	drain(t, c)
	for i := range 100 {
		if got, want := s.MustDo("GET", fmt.Sprint("w", i)), fmt.Sprint(900+i); got != want {
			t.Errorf("w%d is %s at redis, want %s", i, got, want)
		}
	}
	if got := s.MustDo("EXISTS", "other"); got != "0" {
		t.Error("the delete did not reach redis")
	}
	held(t, c, "k", "two")
	if !c.Health().Tracking {
		t.Error("no tracking afterwards")
	}
	s.MustDo("SET", "k", "three")
	soon(t, c, "k", "three")
}

// What was held before the server became a replica is no more sure than what it
// answers since: from the moment that it is known, it is asked for.
func TestCopiesOfAServerThatBecameAReplicaAreInDoubt(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	c := open(t, tracked(s.Addr(), holdfast.TrackReads))
	ready(t, c)
	s.MustDo("SET", "k", "one")
	must(t, c.Set(ctx, "own", []byte("one"), 0))
	held(t, c, "k", "one")
	// Of nobody: there is no sync that would flush it and tell.
	s.MustDo("REPLICAOF", "127.0.0.1", strings.TrimPrefix(redistest.FreeAddr(t), "127.0.0.1:"))
	waitState(t, c, holdfast.ReadOnly) // by a probe, with no call
	for _, key := range []string{"k", "own"} {
		if e, err := c.Lookup(ctx, key); err != nil || e.Tier != holdfast.Remote {
			t.Errorf("%s: %+v, %v", key, e, err)
		}
	}
	s.MustDo("REPLICAOF", "NO", "ONE")
	waitState(t, c, holdfast.Up)
	held(t, c, "k", "one")
}

func TestReadsGoOnAndWritesAreKeptWhereRedisTakesNone(t *testing.T) {
	beside(t)
	for _, tt := range []struct {
		code    string
		args    []string
		refuse  func(s *redistest.Server)
		deletes bool // are taken
		heal    func(s *redistest.Server)
	}{
		{"MISCONF", []string{"--enable-protected-configs", "yes", "--save", "3600 1"}, func(s *redistest.Server) {
			s.MustDo("CONFIG", "SET", "dir", "/proc") // where nobody can write
			s.MustDo("BGSAVE")
			redistest.WaitFor(t, patience, "the snapshot to fail", func() bool {
				return strings.Contains(s.MustDo("INFO", "persistence"), "rdb_last_bgsave_status:err")
			})
		}, false, func(s *redistest.Server) { s.MustDo("CONFIG", "SET", "stop-writes-on-bgsave-error", "no") }},
		{"OOM", nil, func(s *redistest.Server) {
			s.MustDo("SET", "ballast", strings.Repeat("x", 2<<20))
			s.MustDo("CONFIG", "SET", "maxmemory", "1mb")
		}, true, func(s *redistest.Server) { s.MustDo("CONFIG", "SET", "maxmemory", "0") }},
		{"NOREPLICAS", nil, func(s *redistest.Server) { s.MustDo("CONFIG", "SET", "min-replicas-to-write", "1") },
			false, func(s *redistest.Server) { s.MustDo("CONFIG", "SET", "min-replicas-to-write", "0") }},
	} {
		t.Run(tt.code, func(t *testing.T) {
			ctx := begin(t)
			s := redistest.Start(t, tt.args...)
			c := open(t, tracked(s.Addr(), holdfast.TrackReads))
			ready(t, c)
			for i := range 10 {
				s.MustDo("SET", fmt.Sprint("k", i), "before")
			}
			for _, key := range []string{"k0", "k1", "k2", "k3"} { // what is known can be replaced later
				held(t, c, key, "before")
			}
			tt.refuse(s)
			// By a call or by a probe, whoever is first.
			must(t, c.Set(ctx, "k1", []byte("kept"), 0))
			waitState(t, c, holdfast.ReadOnly)
			if h := c.Health(); h.Writable || h.LastError == nil || !contains(h.LastError.Error(), tt.code) {
				t.Errorf("health %+v", h)
			}
			for i := range 200 {
				must(t, c.Set(ctx, "k2", []byte(fmt.Sprint(i)), 0))
			}
			must(t, c.SetMany(ctx, map[string][]byte{"k3": []byte("kept"), "new": []byte("kept")}, time.Hour))
			for key, want := range map[string]string{"k1": "kept", "k2": "199", "k3": "kept", "new": "kept"} {
				journaled(t, c, key, want)
			}
			if _, err := c.Add(ctx, "added", []byte("v"), 0); !errors.Is(err, holdfast.ErrUnavailable) {
				t.Errorf("add: %v", err)
			}
			// Reads go on as ever, and the server goes on telling.
			if !c.Health().Tracking {
				t.Error("health: no tracking")
			}
			wantGet(t, c, "k0", "before")
			held(t, c, "k0", "before")
			held(t, c, "k4", "before")
			wantGet(t, c, "absent", "")

			must(t, c.Delete(ctx, "k5", "k6"))
			must(t, c.Delete(ctx, "k3")) // of which a set is kept
			for _, key := range []string{"k3", "k5", "k6"} {
				wantGet(t, c, key, "")
			}
			if tt.deletes {
				if got := s.MustDo("EXISTS", "k5", "k6"); got != "0" {
					t.Errorf("%s of the deletes are not done", got)
				}
				redistest.WaitFor(t, patience, "the delete of a key that is kept", func() bool { return s.MustDo("EXISTS", "k3") == "0" })
				s.MustDo("DEL", "k4")
				soon(t, c, "k4", "")
				if h := c.Health(); h.State != holdfast.ReadOnly || h.Writable {
					t.Errorf("a delete that was taken is not a write that is: %+v", h)
				}
			}
			if n := refusals(s, tt.code); n > 20 {
				t.Errorf("%d replies %s: it is asked again and again", n, tt.code)
			}
			if st := c.Stats(); st.BreakerOpens != 0 || st.StreamLosses != 0 {
				t.Errorf("stats %+v", st)
			}

			tt.heal(s)
			waitState(t, c, holdfast.Up)
			drain(t, c)
			for key, want := range map[string]string{
				"k0": "before", "k1": "kept", "k2": "199", "k3": "(nil)", "k5": "(nil)", "k6": "(nil)", "new": "kept", "added": "(nil)",
			} {
				if got := s.MustDo("GET", key); got != want {
					t.Errorf("%s is %s at redis, want %s", key, got, want)
				}
				if want == "(nil)" {
					want = ""
				}
				wantGet(t, c, key, want)
			}
			if n := c.Stats().DialAttempts; n != 1 {
				t.Errorf("%d connections: none was lost", n)
			}
		})
	}
}

// A server that has no room takes deletes, from many callers, all the while.
func TestDeletesReachAServerThatHasNoRoom(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	c := open(t, tracked(s.Addr(), holdfast.TrackReads))
	ready(t, c)
	const keys = 400
	for i := range keys {
		s.MustDo("SET", fmt.Sprint("k", i), strings.Repeat("x", 100))
	}
	s.MustDo("SET", "ballast", strings.Repeat("x", 2<<20))
	s.MustDo("CONFIG", "SET", "maxmemory", "1mb")
	var deleted atomic.Int64
	stop := load(t, 8, func(g, i int) {
		if n := i*8 + g; n < keys {
			noError(t, c.Set(ctx, fmt.Sprint("w", g), []byte("v"), 0))
			noError(t, c.Delete(ctx, fmt.Sprint("k", n)))
			deleted.Add(1)
		}
		time.Sleep(100 * time.Microsecond)
	})
	redistest.WaitFor(t, patience, "the deletes", func() bool { return deleted.Load() == keys })
	stop()
	left := 0
	for i := range keys {
		if s.MustDo("EXISTS", fmt.Sprint("k", i)) != "0" {
			left++
		}
	}
	// One that was under way when the gate closed to writers may be replayed.
	if left > 0 {
		t.Errorf("%d of %d keys are still there: %+v", left, keys, c.Stats())
	}
	s.MustDo("CONFIG", "SET", "maxmemory", "0")
	waitState(t, c, holdfast.Up)
	drain(t, c)
}

// A set that Redis refuses changes nothing. The copy of what is there was lost over it,
// so a set in the next outage found our own older value, did not know it, and became a
// delete.
func TestWhatARefusedWriteWouldHaveReplacedIsStillKnown(t *testing.T) {
	beside(t)
	for name, write := range map[string]func(ctx context.Context, c *holdfast.Cache) error{
		"set":    func(ctx context.Context, c *holdfast.Cache) error { return c.Set(ctx, "k", []byte("refused"), 0) },
		"delete": func(ctx context.Context, c *holdfast.Cache) error { return c.Delete(ctx, "k") },
		"setmany": func(ctx context.Context, c *holdfast.Cache) error {
			return c.SetMany(ctx, map[string][]byte{"k": []byte("refused")}, 0)
		},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := begin(t)
			s := redistest.Start(t)
			p := redistest.NewProxy(t, s.Addr())
			s.MustDo("ACL", "SETUSER", "app", "on", ">secret", "allkeys", "allcommands")
			o := at(p.Addr())
			o.Redis.Username, o.Redis.Password = "app", "secret"
			c := open(t, o)
			ready(t, c)
			must(t, c.Set(ctx, "k", []byte("old"), 0))
			wantGet(t, c, "k", "old")
			s.MustDo("ACL", "SETUSER", "app", "resetkeys", "%R~*", "%RW~holdfast:*")
			if err := write(ctx, c); err == nil || !strings.Contains(err.Error(), "NOPERM") {
				t.Fatalf("a write without the right to it: %v", err)
			}
			s.MustDo("ACL", "SETUSER", "app", "allkeys")

			p.SetMode(redistest.Cut)
			waitState(t, c, holdfast.Down)
			wantGet(t, c, "k", "old")
			must(t, c.Set(ctx, "k", []byte("new"), 0))
			p.SetMode(redistest.Pass)
			waitState(t, c, holdfast.Up)
			drain(t, c)
			if got := s.MustDo("GET", "k"); got != "new" {
				t.Errorf("redis holds %q, want what was set in the outage; stats %+v", got, c.Stats())
			}
		})
	}
}

// A key of the same name changes in another database: the server tells of it, for it knows
// no databases there. A set in the next outage found our own value in Redis, did not know
// it any more, and became a delete.
func TestAKeyThatTheServerToldOfBeforeTheOutageIsStillKnown(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	p := redistest.NewProxy(t, s.Addr())
	c := open(t, at(p.Addr()))
	ready(t, c)
	must(t, c.Set(ctx, "k", []byte("old"), 0))
	wantGet(t, c, "k", "old") // from here on the server tells of it
	before := c.Stats().Invalidations
	s.MustDo("EVAL", "redis.call('SELECT', 9) redis.call('SET', 'k', 'another')", "0")
	redistest.WaitFor(t, patience, "the server to tell", func() bool { return c.Stats().Invalidations > before })

	p.SetMode(redistest.Cut)
	waitState(t, c, holdfast.Down)
	must(t, c.Set(ctx, "k", []byte("new"), 0))
	p.SetMode(redistest.Pass)
	waitState(t, c, holdfast.Up)
	drain(t, c)
	if got := s.MustDo("GET", "k"); got != "new" {
		t.Errorf("redis holds %q, want what was set in the outage; stats %+v", got, c.Stats())
	}
}
