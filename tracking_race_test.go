package holdfast_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/rueidis"
)

// agrees asserts that a read through the Cache gives what Redis holds, once what
// the server had to tell has arrived: the value, and its time to live.
func agrees(t testing.TB, c *holdfast.Cache, raw rueidis.Client, what string, keys ...string) {
	t.Helper()
	ctx := context.Background()
	cmds := make(rueidis.Commands, 0, 2*len(keys))
	for _, key := range keys {
		cmds = append(cmds, raw.B().Get().Key(key).Build(), raw.B().Pttl().Key(key).Build())
	}
	began := time.Now() // a busy machine lets seconds pass between the two looks
	replies := raw.DoMulti(ctx, cmds...)
	if _, err := c.GetMany(ctx, keys...); err != nil { // in one round trip
		t.Fatalf("%s: %v", what, err)
	}
	for i, key := range keys {
		truth, err := replies[2*i].ToString()
		if rueidis.IsRedisNil(err) {
			truth = ""
		} else if err != nil {
			t.Fatal(err)
		}
		if got, err := c.Get(ctx, key); string(got) != truth || err != nil && !errors.Is(err, holdfast.ErrMiss) {
			soonAfter(t, c, what, key, truth, got, err)
		}
		pttl, _ := replies[2*i+1].AsInt64()
		ttl, err := c.TTL(ctx, key)
		switch {
		case pttl == -2 && errors.Is(err, holdfast.ErrMiss), pttl == -1 && err == nil && ttl == 0:
		case pttl >= 0 && err == nil && (time.Duration(pttl)*time.Millisecond-ttl).Abs() < 2*time.Second+time.Since(began):
		default:
			t.Fatalf("%s: the ttl of %s is %v, %v; redis says %d ms", what, key, ttl, err, pttl)
		}
	}
}

// soonAfter gives what the server told a moment to be worked off: a copy that is
// stale then is stale for as long as it lives.
func soonAfter(t testing.TB, c *holdfast.Cache, what, key, truth string, got []byte, err error) {
	t.Helper()
	start := time.Now()
	for time.Since(start) < time.Second {
		if v, err := c.Get(context.Background(), key); string(v) == truth && (err == nil || errors.Is(err, holdfast.ErrMiss)) {
			return
		}
		time.Sleep(time.Millisecond) // between two looks
	}
	e, _ := c.Lookup(context.Background(), key)
	t.Fatalf("%s: %s is %.20q, %v; redis holds %.20q; tier %v; %+v", what, key, got, err, truth, e.Tier, c.Health())
}

// Reads race with the writes of others, and then of our own, on few keys. What a
// read brings back was replaced meanwhile more often than not; none of it may
// stay.
func TestNoFillOutlivesTheWriteThatOvertookIt(t *testing.T) {
	bothModes(t, func(t *testing.T, ctx context.Context, mode holdfast.TrackingMode) {
		s := redistest.Start(t)
		o := tracked(s.Addr(), mode)
		o.Timeout = time.Second // the race is tested, not the machine
		c := open(t, o)
		ready(t, c)
		raw := rawAt(t, s.Addr())
		const keys, burst = 4, 8
		rounds := 12_500 // in each mode
		if n := roundsFactor(t); n > 1 {
			rounds = 25_000 * n
		}
		if testing.Short() {
			rounds = 5_000
		}
		names := make([]string, keys)
		for k := range names {
			names[k] = fmt.Sprint("app:", k)
		}
		var settled [keys]atomic.Int64
		var ownWrites atomic.Bool
		read := func(k int) {
			floor := settled[k].Load()
			v, err := c.Get(ctx, names[k])
			var version int64
			if err == nil {
				fmt.Sscanf(string(v), "f%d", &version)
			}
			if !ownWrites.Load() && version < floor {
				t.Errorf("%s: read %q, %v after version %d was settled", names[k], v, err, floor)
			}
		}
		for version := 1; version <= rounds; version += burst {
			own := version > rounds/2
			ownWrites.Store(own)
			var wg sync.WaitGroup
			for g := range 2 {
				wg.Go(func() {
					for i := range 2 * keys {
						read((g + i) % keys)
					}
				})
			}
			if own {
				wg.Go(func() {
					for i := range 3 {
						key := names[(version/burst+i)%keys]
						switch (version/burst + i) % 5 {
						case 0:
							noError(t, c.Delete(ctx, key))
						case 1:
							if err := c.Touch(ctx, key, time.Minute); err != nil && !errors.Is(err, holdfast.ErrMiss) {
								t.Errorf("touch: %v", err)
							}
						case 2:
							noError(t, c.SetMany(ctx, map[string][]byte{names[0]: []byte("own0"), names[1]: []byte("own1")}, 0))
						default:
							noError(t, c.Set(ctx, key, fmt.Appendf(nil, "own%d", version), 0))
						}
					}
				})
			}
			cmds := make(rueidis.Commands, burst)
			for i := range cmds {
				cmds[i] = raw.B().Set().Key(names[(version+i)%keys]).Value(fmt.Sprint("f", version+i)).Build()
			}
			for _, reply := range raw.DoMulti(ctx, cmds...) {
				must(t, reply.Error())
			}
			wg.Wait()
			told(t, c)
			agrees(t, c, raw, fmt.Sprint("round ", version), names...)
			if !own {
				for i := range burst {
					settled[(version+i)%keys].Store(int64(version + i))
				}
			} else {
				for k := range settled {
					settled[k].Store(0)
				}
			}
		}
		if st := c.Stats(); st.Invalidations == 0 || st.FillsDiscarded == 0 {
			t.Errorf("nothing was raced for: %+v", st)
		}
	})
}

func TestTwoInstancesThatWriteOneKeyEndEqualToRedis(t *testing.T) {
	beside(t)
	for _, tt := range []struct {
		name   string
		mode   holdfast.TrackingMode
		size   int
		rounds int
	}{
		{"16 B", holdfast.TrackReads, 16, 150},
		{"16 B, prefixes", holdfast.TrackPrefixes, 16, 150},
		{"40 KB", holdfast.TrackReads, 40 << 10, 30},
		{"40 KB, prefixes", holdfast.TrackPrefixes, 40 << 10, 20},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx := begin(t)
			s := redistest.Start(t)
			o := tracked(s.Addr(), tt.mode)
			o.Timeout = 2 * time.Second
			caches := [2]*holdfast.Cache{open(t, o), open(t, o)}
			for _, c := range caches {
				ready(t, c)
			}
			raw := rawAt(t, s.Addr())
			const keys, writes = 8, 5 // of each instance, in each round
			names := make([]string, keys)
			for k := range names {
				names[k] = fmt.Sprint("app:", k)
			}
			rounds := tt.rounds * roundsFactor(t)
			if testing.Short() {
				rounds /= 10
			}
			padding := strings.Repeat("x", tt.size)
			for round := range rounds {
				var wg sync.WaitGroup
				for ci, c := range caches {
					for k, key := range names {
						wg.Go(func() {
							for i := range writes {
								if (round+k+i+ci)%4 == 0 {
									noError(t, c.Delete(ctx, key))
									continue
								}
								noError(t, c.Set(ctx, key, fmt.Appendf(nil, "%d.%d.%d %s", ci, round, i, padding), 0))
							}
						})
					}
				}
				wg.Wait()
				for ci, c := range caches {
					told(t, c)
					agrees(t, c, raw, fmt.Sprintf("round %d, instance %d", round, ci), names...)
				}
			}
		})
	}
}

// between is a connection that lets something happen behind each command that is
// sent on it. The server has read the command by then, and not the next one.
type between struct {
	net.Conn
	armed *atomic.Bool
	f     func()
}

func (b between) Write(p []byte) (int, error) {
	if !b.armed.Load() {
		return b.Conn.Write(p)
	}
	for rest := p; len(rest) > 0; {
		n := commandLen(rest)
		if _, err := b.Conn.Write(rest[:n]); err != nil {
			return 0, err
		}
		b.f()
		rest = rest[n:]
	}
	return len(p), nil
}

// commandLen is the length of the first command, or of all where it is not whole.
func commandLen(p []byte) int {
	var args, at int
	line := func(kind byte) (n int, ok bool) {
		end := strings.Index(string(p[at:]), "\r\n")
		if end < 1 || p[at] != kind {
			return 0, false
		}
		_, err := fmt.Sscan(string(p[at+1:at+end]), &n)
		at += end + 2
		return n, err == nil
	}
	args, ok := line('*')
	for range args {
		n, whole := line('$')
		if !ok || !whole || at+n+2 > len(p) {
			return len(p)
		}
		at += n + 2
	}
	return at
}

// ownCalls are the calls that a Cache makes of its own, each on one key.
var ownCalls = []struct {
	name string
	call func(ctx context.Context, c *holdfast.Cache, key string) error
}{
	{"Get", func(ctx context.Context, c *holdfast.Cache, key string) error { _, err := c.Get(ctx, key); return err }},
	{"GetMany", func(ctx context.Context, c *holdfast.Cache, key string) error {
		_, err := c.GetMany(ctx, key, "app:beside", key)
		return err
	}},
	{"TTL", func(ctx context.Context, c *holdfast.Cache, key string) error { _, err := c.TTL(ctx, key); return err }},
	{"Set", func(ctx context.Context, c *holdfast.Cache, key string) error {
		return c.Set(ctx, key, []byte("ours"), 0)
	}},
	{"Set with a TTL", func(ctx context.Context, c *holdfast.Cache, key string) error {
		return c.Set(ctx, key, []byte("ours"), time.Hour)
	}},
	{"SetMany", func(ctx context.Context, c *holdfast.Cache, key string) error {
		return c.SetMany(ctx, map[string][]byte{key: []byte("ours"), "app:beside": []byte("b")}, 0)
	}},
	{"Delete", func(ctx context.Context, c *holdfast.Cache, key string) error { return c.Delete(ctx, key) }},
	{"Touch", func(ctx context.Context, c *holdfast.Cache, key string) error { return c.Touch(ctx, key, time.Hour) }},
	{"Touch for ever", func(ctx context.Context, c *holdfast.Cache, key string) error { return c.Touch(ctx, key, 0) }},
	{"Add", func(ctx context.Context, c *holdfast.Cache, key string) error {
		_, err := c.Add(ctx, key, []byte("ours"), 0)
		return err
	}},
}

// foreignWrites are what another client may do to a key.
var foreignWrites = [][]string{
	{"SET", "theirs"}, {"SET", "theirs", "PX", "5000000"}, {"DEL"}, {"PEXPIRE", "6000000"}, {"PERSIST"},
}

// starts are what there is of a key before.
var starts = []string{"absent", "cold", "held"}

func start(t testing.TB, c *holdfast.Cache, s rueidis.Client, how, key string) {
	t.Helper()
	ctx := context.Background()
	if how == "absent" {
		return
	}
	must(t, s.Do(ctx, s.B().Set().Key(key).Value("before").ExSeconds(1000).Build()).Error())
	if how == "held" {
		held(t, c, key, "before")
	}
}

func unexpected(err error) bool { return err != nil && !errors.Is(err, holdfast.ErrMiss) }

// A call of ours is one command or several, and somebody else's write may come
// between any two of them: between a SET and what registers its key for
// tracking, say. No order of them may leave a copy that Redis does not hold.
func TestAForeignWriteBetweenAnyTwoOfOurCommandsIsSeen(t *testing.T) {
	bothModes(t, func(t *testing.T, ctx context.Context, mode holdfast.TrackingMode) {
		s := redistest.Start(t)
		raw := rawAt(t, s.Addr())
		var armed atomic.Bool
		var foreign atomic.Pointer[func(n int)]
		var n atomic.Int64
		o := tracked(s.Addr(), mode)
		o.Timeout = 5 * time.Second
		o.Breaker.MaxBackoff = time.Minute // no probe in between
		o.Redis.DialCtxFn = func(ctx context.Context, addr string, d *net.Dialer, _ *tls.Config) (net.Conn, error) {
			conn, err := d.DialContext(ctx, "tcp", addr)
			return between{conn, &armed, func() { (*foreign.Load())(int(n.Add(1))) }}, err
		}
		c := open(t, o)
		ready(t, c)
		for _, own := range ownCalls {
			for _, write := range foreignWrites {
				for _, how := range starts {
					for after := 1; ; after++ { // which command it comes behind
						what := fmt.Sprintf("%s, %s behind command %d, %s before", own.name, strings.Join(write, " "), after, how)
						key := "app:" + what
						start(t, c, raw, how, key)
						f := func(n int) {
							if n == after {
								if err := raw.Do(ctx, raw.B().Arbitrary(write[0]).Keys(key).Args(write[1:]...).Build()).Error(); err != nil {
									t.Errorf("%s: %v", what, err)
								}
							}
						}
						foreign.Store(&f)
						n.Store(0)
						armed.Store(true)
						err := own.call(ctx, c, key)
						armed.Store(false)
						if unexpected(err) {
							t.Fatalf("%s: %v", what, err)
						}
						sent := int(n.Load())
						told(t, c)
						agrees(t, c, raw, what, key)
						if after >= sent {
							break
						}
					}
				}
			}
		}
	})
}

// A server works off what has arrived from all its clients before it tells them
// anything: then who was first is known to nobody but to it.
func TestAForeignWriteInTheServersSameTurnIsSeen(t *testing.T) {
	bothModes(t, func(t *testing.T, ctx context.Context, mode holdfast.TrackingMode) {
		s := redistest.Start(t)
		var written atomic.Int64
		counted := func(ctx context.Context, addr string, d *net.Dialer, _ *tls.Config) (net.Conn, error) {
			conn, err := d.DialContext(ctx, "tcp", addr)
			return counting{conn, &written}, err
		}
		raw := rawClient(t, rueidis.ClientOption{InitAddress: []string{s.Addr()}, DialCtxFn: counted})
		o := tracked(s.Addr(), mode)
		o.Timeout = 5 * time.Second
		o.Breaker.MaxBackoff = time.Minute
		o.Redis.DialCtxFn = counted
		c := open(t, o)
		ready(t, c)
		type step struct {
			name string
			do   func(key string) error
		}
		ours := make([]step, len(ownCalls))
		for i, own := range ownCalls {
			ours[i] = step{own.name, func(key string) error { return own.call(ctx, c, key) }}
		}
		theirs := make([]step, len(foreignWrites))
		for i, write := range foreignWrites {
			theirs[i] = step{strings.Join(write, " "), func(key string) error {
				return raw.Do(ctx, raw.B().Arbitrary(write[0]).Keys(key).Args(write[1:]...).Build()).Error()
			}}
		}
		// Several keys share one stop of the server.
		var wg sync.WaitGroup
		type round struct {
			key   string
			first bool // theirs comes first
			a, b  step
		}
		run := func(rounds []round, how string) {
			for _, r := range rounds {
				start(t, c, raw, how, r.key)
			}
			s.Pause()
			send := func(st step, key string) {
				before := written.Load()
				var done atomic.Bool
				wg.Go(func() {
					if err := st.do(key); unexpected(err) {
						t.Errorf("%s: %v", key, err)
					}
					done.Store(true)
				})
				for written.Load() == before && !done.Load() {
					runtime.Gosched() // the order is the test
				}
			}
			for _, r := range rounds {
				if r.first {
					send(r.b, r.key)
				}
			}
			for _, r := range rounds {
				send(r.a, r.key)
			}
			for _, r := range rounds {
				if !r.first {
					send(r.b, r.key)
				}
			}
			s.Resume()
			wg.Wait()
			told(t, c)
			for _, r := range rounds {
				agrees(t, c, raw, r.key, r.key)
			}
		}
		for _, how := range starts {
			for _, first := range []bool{true, false} {
				var rounds []round
				for _, own := range ours {
					for _, write := range theirs {
						order := own.name + ", then " + write.name
						if first {
							order = write.name + ", then " + own.name
						}
						rounds = append(rounds, round{fmt.Sprintf("app:%s, %s before", order, how), first, own, write})
					}
				}
				run(rounds, how)
			}
		}
	})
}

type counting struct {
	net.Conn
	n *atomic.Int64
}

func (c counting) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.n.Add(1)
	return n, err
}
