package holdfast_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/rueidis"
)

// tracked is Options for a server that tells of changes. Nothing but its word
// ends a copy's life within a test: what else could, takes an hour.
func tracked(addr string, mode holdfast.TrackingMode) holdfast.Options {
	o := at(addr)
	o.Tracking = holdfast.TrackingOptions{Mode: mode, UntrackedTTL: time.Hour}
	if mode == holdfast.TrackPrefixes {
		o.Tracking.Prefixes = []string{"app:", "more:"}
	}
	o.Local.MaxTTL = time.Hour
	return o
}

// bothModes runs the test with each way to track.
func bothModes(t *testing.T, test func(t *testing.T, ctx context.Context, mode holdfast.TrackingMode)) {
	t.Helper()
	beside(t)
	t.Run("reads", func(t *testing.T) { test(t, begin(t), holdfast.TrackReads) })
	t.Run("prefixes", func(t *testing.T) { test(t, begin(t), holdfast.TrackPrefixes) })
}

// rawClient is another writer: a client of its own, with no cache.
func rawClient(t testing.TB, o rueidis.ClientOption) rueidis.Client {
	t.Helper()
	o.DisableCache, o.ForceSingleClient, o.AlwaysPipelining, o.PipelineMultiplex = true, true, true, -1
	raw, err := rueidis.NewClient(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(raw.Close)
	return raw
}

func rawAt(t testing.TB, addr string) rueidis.Client {
	t.Helper()
	return rawClient(t, rueidis.ClientOption{InitAddress: []string{addr}})
}

// localAs says whether the local tier serves want for the key as it is.
func localAs(c *holdfast.Cache, key, want string) bool {
	e, err := c.Lookup(context.Background(), key)
	return err == nil && string(e.Value) == want && e.Tier == holdfast.Local && !e.Degraded
}

// held reads the key until the local tier answers for it.
func held(t testing.TB, c *holdfast.Cache, key, want string) {
	t.Helper()
	redistest.WaitFor(t, patience, key+" to be held locally", func() bool { return localAs(c, key, want) })
}

// told returns when what the server had to tell has arrived: pushes and replies
// come in one order, and the reply to a probe of now is the last of them.
func told(t testing.TB, c *holdfast.Cache) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	redistest.WaitFor(t, patience, "a probe", func() bool { return c.Check(ctx) == nil })
}

// soon asserts that a read returns want shortly, as soon as Redis answers; "" is a miss.
func soon(t testing.TB, c *holdfast.Cache, key, want string) {
	t.Helper()
	var v []byte
	var err error
	start := time.Now()
	lastDown := start
	for {
		v, err = c.Get(context.Background(), key)
		if want == "" && errors.Is(err, holdfast.ErrMiss) || want != "" && err == nil && string(v) == want {
			return
		}
		if c.Health().State != holdfast.Up {
			lastDown = time.Now() // a busy machine may open the circuit
		}
		if time.Since(lastDown) > 2*time.Second+slack() || time.Since(start) > patience {
			t.Fatalf("%s: %q, %v after %v; want %q; %+v", key, v, err, time.Since(start), want, c.Health())
		}
		time.Sleep(time.Millisecond) // between two looks
	}
}

// noError is must for other goroutines than the test's own.
func noError(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}

func TestAnyOtherWriterIsSeen(t *testing.T) {
	bothModes(t, func(t *testing.T, ctx context.Context, mode holdfast.TrackingMode) {
		s := redistest.Start(t)
		c := open(t, tracked(s.Addr(), mode))
		another := open(t, at(s.Addr()))
		ready(t, c)
		ready(t, another)
		if !c.Health().Tracking {
			t.Fatalf("the server does not tell of changes: %+v", c.Health())
		}
		s.MustDo("SET", "source", "two")
		for _, tt := range []struct {
			name  string
			write func(key string)
			want  string
		}{
			{"SET", func(key string) { s.MustDo("SET", key, "two") }, "two"},
			{"MSET", func(key string) { s.MustDo("MSET", "else", "x", key, "two") }, "two"},
			{"APPEND", func(key string) { s.MustDo("APPEND", key, "+") }, "one+"},
			{"SETRANGE", func(key string) { s.MustDo("SETRANGE", key, "0", "O") }, "One"},
			{"GETSET", func(key string) { s.MustDo("GETSET", key, "two") }, "two"},
			{"DEL", func(key string) { s.MustDo("DEL", key) }, ""},
			{"UNLINK", func(key string) { s.MustDo("UNLINK", key) }, ""},
			{"GETDEL", func(key string) { s.MustDo("GETDEL", key) }, ""},
			{"EXPIRE in the past", func(key string) { s.MustDo("EXPIRE", key, "-1") }, ""},
			{"a TTL that runs out", func(key string) { s.MustDo("PEXPIRE", key, "50") }, ""},
			{"a script", func(key string) { s.MustDo("EVAL", "redis.call('SET', KEYS[1], 'two')", "1", key) }, "two"},
			{"a script that names no key", func(key string) { s.MustDo("EVAL", "redis.call('SET', ARGV[1], 'two')", "0", key) }, "two"},
			{"RENAME onto it", func(key string) { s.MustDo("COPY", "source", "tmp"); s.MustDo("RENAME", "tmp", key) }, "two"},
			{"RENAME away", func(key string) { s.MustDo("RENAME", key, "away") }, ""},
			{"COPY", func(key string) { s.MustDo("COPY", "source", key, "REPLACE") }, "two"},
			{"another Cache's Set", func(key string) { must(t, another.Set(ctx, key, []byte("two"), 0)) }, "two"},
			{"another Cache's SetMany", func(key string) {
				must(t, another.SetMany(ctx, map[string][]byte{key: []byte("two"), "else": nil}, time.Minute))
			}, "two"},
			{"another Cache's Delete", func(key string) { must(t, another.Delete(ctx, key)) }, ""},
			{"FLUSHDB", func(string) { s.MustDo("FLUSHDB") }, ""},
			{"FLUSHALL ASYNC", func(string) { s.MustDo("FLUSHALL", "ASYNC") }, ""},
		} {
			for _, how := range []string{"read", "written"} {
				key := "app:" + tt.name + ":" + how
				if how == "read" {
					s.MustDo("SET", key, "one")
				} else {
					must(t, c.Set(ctx, key, []byte("one"), 0)) // and holds it from then on
				}
				held(t, c, key, "one")
				tt.write(key)
				soon(t, c, key, tt.want)
				if tt.want == "" { // an absence is watched, too
					s.MustDo("SET", key, "again")
					soon(t, c, key, "again")
				}
			}
		}
		if st := c.Stats(); st.Invalidations == 0 || st.StreamLosses != 0 {
			t.Errorf("stats %+v", st)
		}

		// Not only values: a copy answers for its time to live as well.
		s.MustDo("SET", "app:ttl", "v")
		held(t, c, "app:ttl", "v")
		s.MustDo("EXPIRE", "app:ttl", "100")
		redistest.WaitFor(t, patience, "the new end to be seen", func() bool {
			ttl, err := c.TTL(ctx, "app:ttl")
			return err == nil && ttl > 90*time.Second
		})
		held(t, c, "app:ttl", "v")
		s.MustDo("PERSIST", "app:ttl")
		redistest.WaitFor(t, patience, "the end to be gone", func() bool {
			ttl, err := c.TTL(ctx, "app:ttl")
			return err == nil && ttl == 0
		})

		// And somebody else's type of value is no longer ours to answer.
		s.MustDo("SET", "app:list", "v")
		held(t, c, "app:list", "v")
		s.MustDo("DEL", "app:list")
		s.MustDo("RPUSH", "app:list", "x")
		redistest.WaitFor(t, patience, "the list to be seen", func() bool {
			_, err := c.Get(ctx, "app:list")
			return err != nil && contains(err.Error(), "WRONGTYPE")
		})
	})
}

func TestTheServerTellsOfAnExpiry(t *testing.T) {
	bothModes(t, func(t *testing.T, ctx context.Context, mode holdfast.TrackingMode) {
		s := redistest.Start(t)
		c := open(t, tracked(s.Addr(), mode))
		ready(t, c)
		s.MustDo("SET", "app:k", "v", "PX", fmt.Sprint((200*time.Millisecond + min(20*lateness(), 20*time.Second)).Milliseconds()))
		held(t, c, "app:k", "v")
		told(t, c)
		before := c.Stats().Invalidations
		redistest.WaitFor(t, patience, "word of the expiry", func() bool { return c.Stats().Invalidations > before })
		wantGet(t, c, "app:k", "")
	})
}

func TestACopyThatTheServerTookBackIsNoFallback(t *testing.T) {
	bothModes(t, func(t *testing.T, ctx context.Context, mode holdfast.TrackingMode) {
		s, p := behind(t)
		o := tracked(p.Addr(), mode)
		o.Outage.ServeStaleFor = time.Hour
		c := open(t, o)
		ready(t, c)
		for _, how := range []string{"changed", "deleted", "flushed"} {
			s.MustDo("SET", "app:k", "old")
			held(t, c, "app:k", "old")
			must(t, c.Set(ctx, "app:own", []byte("old"), time.Hour))
			held(t, c, "app:own", "old")
			switch how {
			case "changed":
				s.MustDo("MSET", "app:k", "new", "app:own", "new")
			case "deleted":
				s.MustDo("DEL", "app:k", "app:own")
			case "flushed":
				s.MustDo("FLUSHALL")
			}
			told(t, c)
			p.SetMode(redistest.Cut)
			waitState(t, c, holdfast.Down)
			for _, key := range []string{"app:k", "app:own"} {
				if e, err := c.Lookup(ctx, key); !errors.Is(err, holdfast.ErrMiss) || !e.Degraded {
					t.Errorf("%s was %s before the outage: %q, %v", key, how, e.Value, err)
				}
			}
			p.SetMode(redistest.Pass)
			waitState(t, c, holdfast.Up)
		}
	})
}

func TestATrackedCopyOutlivesUntrackedTTLAndAnotherDoesNot(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	o := tracked(s.Addr(), holdfast.TrackPrefixes)
	o.Tracking.UntrackedTTL = 100 * time.Millisecond
	c := open(t, o)
	reads := tracked(s.Addr(), holdfast.TrackReads)
	reads.Tracking.UntrackedTTL = 100 * time.Millisecond
	r := open(t, reads)
	ready(t, c)
	ready(t, r)
	for _, key := range []string{"app:k", "more:k", "beside"} {
		s.MustDo("SET", key, "one")
		held(t, c, key, "one")
	}
	must(t, c.Set(ctx, "app:own", []byte("one"), 0))
	held(t, r, "beside", "one")
	start := time.Now()
	redistest.WaitFor(t, patience, "more than UntrackedTTL", func() bool { return time.Since(start) > 250*time.Millisecond })
	for _, key := range []string{"app:k", "more:k", "app:own"} {
		if !localAs(c, key, "one") {
			t.Errorf("%s is under a prefix and was read again", key)
		}
	}
	if !localAs(r, "beside", "one") {
		t.Error("what was read is tracked and was read again")
	}
	must(t, c.Set(ctx, "app:own", []byte("again"), 0))
	if !localAs(c, "app:own", "again") {
		t.Error("a copy of our own write was read again")
	}
	// The server tells only of what was read: a write is read once before its copy
	// is fresh.
	must(t, r.Set(ctx, "beside", []byte("one"), 0))
	if e, err := r.Lookup(ctx, "beside"); err != nil || e.Tier != holdfast.Remote {
		t.Errorf("behind our own write: %+v, %v", e, err)
	}
	held(t, r, "beside", "one")
	if e, err := c.Lookup(ctx, "beside"); err != nil || e.Tier != holdfast.Remote {
		t.Errorf("beside is under no prefix: %+v, %v", e, err)
	}
	told(t, c)
	before := c.Stats().Invalidations
	s.MustDo("SET", "beside", "two")
	soon(t, c, "beside", "two") // within UntrackedTTL
	told(t, c)
	if n := c.Stats().Invalidations - before; n != 0 {
		t.Errorf("the server told of %d changes of a key that is under no prefix", n)
	}
	s.MustDo("SET", "more:k", "two")
	soon(t, c, "more:k", "two")
}

// A server that has no room in its tracking table forgets keys at random, and one
// that has no room for its data evicts them. It does so in the middle of whatever
// command it runs, which may be one of ours: with NOLOOP, Redis takes that for a
// change of our own, of which we need not be told, and forgets that we hold it.
func TestWhatTheServerForgetsDuringOurCommandsLeavesNothingStale(t *testing.T) {
	for name, args := range map[string][]string{
		"tracking":  {"--tracking-table-max-keys", "50"},
		"evictions": {"--maxmemory", "3mb", "--maxmemory-policy", "allkeys-random"},
	} {
		t.Run(name, func(t *testing.T) {
			bothModes(t, func(t *testing.T, ctx context.Context, mode holdfast.TrackingMode) {
				s := redistest.Start(t, args...)
				c := open(t, tracked(s.Addr(), mode))
				ready(t, c)
				raw := rawAt(t, s.Addr())
				keys := make([]string, 200)
				for i := range keys {
					keys[i] = fmt.Sprint("app:", i)
					must(t, raw.Do(ctx, raw.B().Set().Key(keys[i]).Value("one").Build()).Error())
				}
				if got, err := c.GetMany(ctx, keys...); err != nil || len(got) != len(keys) {
					t.Fatalf("%d of %d, %v", len(got), len(keys), err)
				}
				items := map[string][]byte{}
				for i := range 5000 {
					items[fmt.Sprint("app:fill", i)] = make([]byte, 1000)
				}
				for len(items) > 0 { // in parts, each well within its budget
					part := map[string][]byte{}
					for key, v := range items {
						if part[key] = v; len(part) == 100 {
							break
						}
					}
					for key := range part {
						delete(items, key)
					}
					must(t, c.SetMany(ctx, part, 0))
				}
				drain(t, c)
				for _, key := range keys {
					must(t, raw.Do(ctx, raw.B().Set().Key(key).Value("two").Build()).Error())
				}
				told(t, c)
				stale := 0
				for _, key := range keys {
					if v, err := c.Get(ctx, key); err == nil && string(v) == "one" {
						stale++
					}
				}
				if stale > 0 {
					t.Errorf("%d of %d copies are stale", stale, len(keys))
				}
			})
		})
	}
}

func TestOneConnectionAnInstanceWithTracking(t *testing.T) {
	ctx := undisturbed(t) // its callers take all the time that there is
	s := redistest.Start(t)
	const instances = 3
	var all [instances]*holdfast.Cache
	for i := range all {
		mode := holdfast.TrackReads
		if i == 1 {
			mode = holdfast.TrackPrefixes
		}
		o := tracked(s.Addr(), mode)
		o.Timeout = 5 * time.Second // nothing is given up
		all[i] = open(t, o)
		ready(t, all[i])
	}
	most := 0
	stop := load(t, 150, func(g, i int) {
		c, key := all[g%instances], fmt.Sprint("app:", g, i%50)
		switch i % 4 {
		case 0:
			c.Set(ctx, key, []byte("v"), time.Minute)
		case 1:
			c.GetMany(ctx, key, fmt.Sprint("app:", g+1, i%50))
		default:
			c.Get(ctx, key)
		}
	})
	start := time.Now()
	redistest.WaitFor(t, patience, "a second of load", func() bool {
		most = max(most, len(s.Clients()))
		return time.Since(start) > time.Second
	})
	stop()
	if most != instances {
		t.Errorf("%d connections at the server, want %d", most, instances)
	}
}
