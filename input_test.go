package holdfast_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/rueidis"
)

// everyKind runs the test with a local tier only, with each kind of server, and
// with a Redis that is away; set changes the options.
func everyKind(t *testing.T, set func(*holdfast.Options), test func(t *testing.T, ctx context.Context, c *holdfast.Cache)) {
	t.Helper()
	beside(t)
	run := func(t *testing.T, ctx context.Context, o holdfast.Options, up bool) {
		o.Timeout = 5 * time.Second // large values, loaded machines
		if set != nil {
			set(&o)
		}
		c := open(t, o)
		if up {
			ready(t, c)
		}
		test(t, ctx, c)
	}
	t.Run("local only", func(t *testing.T) { run(t, begin(t), holdfast.Options{}, false) })
	t.Run("away", func(t *testing.T) { run(t, begin(t), at(redistest.FreeAddr(t)), false) })
	backends(t, func(t *testing.T, ctx context.Context, b backend) { run(t, ctx, at(b.addr), true) })
}

var oddKeys = map[string]string{
	"empty":                    "",
	"a space":                  " ",
	"a line":                   "a\r\nb",
	"binary":                   "\x00\xff\xfe*3\r\n$",
	"with braces":              "{a}{b}",
	"1 MiB":                    strings.Repeat("k", 1<<20),
	"1 MiB, last byte differs": strings.Repeat("k", 1<<20-1) + "l",
}

func TestAnyBytesAreAKey(t *testing.T) {
	everyKind(t, nil, func(t *testing.T, ctx context.Context, c *holdfast.Cache) {
		away := c.Health().State == holdfast.Connecting
		for name, key := range oddKeys {
			must(t, c.Set(ctx, key, []byte(name), time.Hour))
		}
		for name, key := range oddKeys {
			if got, err := c.Get(ctx, key); err != nil || string(got) != name {
				t.Errorf("%s: get: %q, %v", name, got, err)
			}
			if got, err := c.GetMany(ctx, key, "absent", key); err != nil || len(got) != 1 || string(got[key]) != name {
				t.Errorf("%s: getmany: %d values, %v", name, len(got), err)
			}
			if ttl, err := c.TTL(ctx, key); err != nil || ttl > time.Hour || ttl < time.Hour-time.Minute {
				t.Errorf("%s: ttl: %v, %v", name, ttl, err)
			}
			if err := c.Touch(ctx, key, 2*time.Hour); err != nil {
				t.Errorf("%s: touch: %v", name, err)
			}
			if ttl, err := c.TTL(ctx, key); err != nil || ttl < time.Hour {
				t.Errorf("%s: ttl after touch: %v, %v", name, ttl, err)
			}
			added, err := c.Add(ctx, key, []byte("x"), 0)
			if added || away != errors.Is(err, holdfast.ErrUnavailable) || !away && err != nil {
				t.Errorf("%s: add over a value: %v, %v", name, added, err)
			}
			must(t, c.Delete(ctx, key, key))
			wantGet(t, c, key, "")
			must(t, c.SetMany(ctx, map[string][]byte{key: []byte("many")}, 0))
			wantGet(t, c, key, "many")
		}
	})
}

func TestAnyBytesAreAKeyOfTheJournalToo(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	p := redistest.NewProxy(t, s.Addr())
	o := at(p.Addr())
	o.Timeout = 5 * time.Second
	c := open(t, o)
	ready(t, c)
	p.SetMode(redistest.Cut)
	waitState(t, c, holdfast.Down)
	s.MustDo("SET", "deleted\x00\xff", "old")
	for name, key := range oddKeys {
		must(t, c.Set(ctx, key, []byte(name+"\x00\xff"), 0))
		wantGet(t, c, key, name+"\x00\xff")
	}
	must(t, c.Delete(ctx, "deleted\x00\xff"))
	p.SetMode(redistest.Pass)
	waitState(t, c, holdfast.Up)
	drain(t, c)
	for name, key := range oddKeys {
		if got := s.MustDo("GET", key); got != name+"\x00\xff" {
			t.Errorf("%s: redis holds %q", name, got)
		}
	}
	if got := s.MustDo("EXISTS", "deleted\x00\xff"); got != "0" {
		t.Error("the delete did not arrive")
	}
}

func TestAnyBytesAreAValue(t *testing.T) {
	random := make([]byte, 1<<20)
	rand.Read(random)
	values := map[string][]byte{
		"nil": nil, "empty": {}, "not utf-8": []byte("\xff\xfe\x80"), "a reply": []byte("$-1\r\n-ERR x\r\n"),
		"zeros": make([]byte, 100), "1 MiB": random,
	}
	everyKind(t, nil, func(t *testing.T, ctx context.Context, c *holdfast.Cache) {
		for name, value := range values {
			must(t, c.Set(ctx, name, value, 0))
		}
		for name, value := range values {
			for range 2 {
				got, err := c.Get(ctx, name)
				if err != nil || !bytes.Equal(got, value) {
					t.Errorf("%s: %d bytes, %v", name, len(got), err)
				}
				if cap(got) != len(got) {
					t.Errorf("%s: an append would write into what others read: %d of %d", name, len(got), cap(got))
				}
			}
			if many, err := c.GetMany(ctx, name); err != nil || len(many) != 1 || !bytes.Equal(many[name], value) {
				t.Errorf("%s: getmany: %d values, %v", name, len(many), err)
			}
		}
		added, err := c.Add(ctx, "added nil", nil, 0)
		if c.Health().State == holdfast.Connecting {
			return
		}
		if got, e := c.Get(ctx, "added nil"); !added || err != nil || e != nil || len(got) != 0 {
			t.Errorf("add nil: %v, %v; get: %q, %v", added, err, got, e)
		}
	})
}

func TestWhatRedisHoldsIsThePlainValue(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	c := open(t, at(s.Addr()))
	ready(t, c)
	random := make([]byte, 10_000)
	rand.Read(random)
	for name, value := range map[string][]byte{"nil": nil, "empty": {}, "binary": random, "text": []byte("text")} {
		must(t, c.Set(ctx, name, value, 0))
		drain(t, c)
		if got := s.MustDo("GET", name); got != string(value) {
			t.Errorf("%s: redis holds %d bytes, want %d", name, len(got), len(value))
		}
	}
	// The empty value of another client, read and not served from a copy.
	s.MustDo("SET", "theirs", "")
	if got, err := c.Get(ctx, "theirs"); err != nil || len(got) != 0 {
		t.Errorf("an empty value: %q, %v", got, err)
	}
	if got, err := c.GetMany(ctx, "theirs"); err != nil || len(got) != 1 {
		t.Errorf("an empty value among many: %q, %v", got, err)
	}
}

func TestSetCopiesWhatItIsGiven(t *testing.T) {
	everyKind(t, nil, func(t *testing.T, ctx context.Context, c *holdfast.Cache) {
		value := []byte("value")
		must(t, c.Set(ctx, "set", value, 0))
		must(t, c.SetMany(ctx, map[string][]byte{"many": value}, 0))
		copy(value, "XXXXX")
		wantGet(t, c, "set", "value")
		wantGet(t, c, "many", "value")
	})
}

func TestAValueOf100MiBIsCarried(t *testing.T) {
	undisturbed(t)
	const size = 100 << 20
	value := bytes.Repeat([]byte("0123456789abcdef"), size/16)
	same := func(t *testing.T, c *holdfast.Cache, tier holdfast.Tier) {
		t.Helper()
		e, err := c.Lookup(context.Background(), "large")
		if err != nil || !bytes.Equal(e.Value, value) || e.Tier != tier {
			t.Errorf("%d bytes from %v, %v; want %d from %v", len(e.Value), e.Tier, err, size, tier)
		}
	}
	t.Run("redis-server", func(t *testing.T) {
		ctx := begin(t)
		o := at(redistest.Start(t).Addr())
		o.Timeout = 20 * time.Second
		c := open(t, o)
		ready(t, c)
		must(t, c.Set(ctx, "large", []byte("small"), 0))
		must(t, c.Set(ctx, "large", value, 0))
		// Larger than an eighth of the local tier: not kept there.
		same(t, c, holdfast.Remote)
		if st := c.Stats(); c.Health().State != holdfast.Up || st.Timeouts != 0 || st.Journaled != 0 || st.LocalBytes > 1<<20 {
			t.Errorf("%v, %+v", c.Health().State, st)
		}
	})
	t.Run("local only, room", func(t *testing.T) {
		ctx := begin(t)
		c := open(t, holdfast.Options{Local: holdfast.LocalOptions{MaxBytes: 9 * size}})
		must(t, c.Set(ctx, "large", value, 0))
		same(t, c, holdfast.Local)
	})
	t.Run("local only, no room", func(t *testing.T) {
		ctx := begin(t)
		c := open(t, holdfast.Options{})
		must(t, c.Set(ctx, "large", []byte("small"), 0))
		must(t, c.Set(ctx, "large", value, 0))
		wantGet(t, c, "large", "") // and never what it replaced
		if st := c.Stats(); st.LocalBytes > 1<<20 {
			t.Errorf("%+v", st)
		}
	})
}

func TestAValueLargerThanTheLocalTierGoesToRedisAndBack(t *testing.T) {
	backends(t, func(t *testing.T, ctx context.Context, b backend) {
		o := at(b.addr)
		o.Timeout = 5 * time.Second
		o.Local.MaxBytes = 64 << 10
		c := open(t, o)
		ready(t, c)
		large := strings.Repeat("l", 65<<10)
		must(t, c.Set(ctx, "k", []byte("small"), 0))
		wantGet(t, c, "k", "small")
		must(t, c.Set(ctx, "k", []byte(large), 0))
		for range 3 {
			wantGet(t, c, "k", large)
		}
		if got, _ := b.get("k"); got != large {
			t.Errorf("redis holds %d bytes", len(got))
		}
		if got, err := c.GetMany(ctx, "k"); err != nil || string(got["k"]) != large {
			t.Errorf("getmany: %d bytes, %v", len(got["k"]), err)
		}
		if e, err := c.Lookup(ctx, "k"); err != nil || e.Tier != holdfast.Remote {
			t.Errorf("from %v, %v", e.Tier, err)
		}
		must(t, c.Set(ctx, "k", []byte("small again"), 0))
		wantGet(t, c, "k", "small again")
		if got := c.Stats().LocalBytes; got > 64<<10 {
			t.Errorf("%d bytes are local", got)
		}
	})
}

func TestANegativeTTLIsRefusedAndNothingIsDone(t *testing.T) {
	everyKind(t, nil, func(t *testing.T, ctx context.Context, c *holdfast.Cache) {
		must(t, c.Set(ctx, "k", []byte("v"), time.Hour))
		for _, ttl := range []time.Duration{-1, -time.Second, math.MinInt64} {
			_, add := c.Add(ctx, "new", []byte("w"), ttl)
			for op, err := range map[string]error{
				"set":     c.Set(ctx, "k", []byte("w"), ttl),
				"setmany": c.SetMany(ctx, map[string][]byte{"k": []byte("w"), "new": []byte("w")}, ttl),
				"touch":   c.Touch(ctx, "k", ttl),
				"add":     add,
			} {
				var e *holdfast.Error
				if !errors.Is(err, holdfast.ErrInvalidTTL) || !errors.As(err, &e) || e.Op != op {
					t.Errorf("%s with ttl %v: %v", op, ttl, err)
				}
			}
		}
		wantGet(t, c, "k", "v")
		wantGet(t, c, "new", "")
		if ttl, err := c.TTL(ctx, "k"); err != nil || ttl < 59*time.Minute {
			t.Errorf("ttl: %v, %v", ttl, err)
		}
	})
}

// redis' resolution is a millisecond: a shorter life is rounded up, for 0 would
// mean none.
func TestAFractionOfAMillisecondIsAMillisecond(t *testing.T) {
	ctx := begin(t)
	m := miniredis.RunT(t) // its clock stands still
	o := at(m.Addr())
	o.Timeout = 5 * time.Second
	c := open(t, o)
	ready(t, c)
	for _, tt := range []struct{ ttl, want time.Duration }{
		{1, time.Millisecond}, {999 * time.Microsecond, time.Millisecond}, {time.Millisecond, time.Millisecond},
		{1001 * time.Microsecond, 2 * time.Millisecond}, {time.Hour + 1, time.Hour + time.Millisecond}, {0, 0},
	} {
		key := fmt.Sprint(tt.ttl)
		must(t, c.Set(ctx, "set"+key, []byte("v"), tt.ttl))
		must(t, c.SetMany(ctx, map[string][]byte{"many" + key: []byte("v")}, tt.ttl))
		if added, err := c.Add(ctx, "add"+key, []byte("v"), tt.ttl); !added || err != nil {
			t.Errorf("add: %v, %v", added, err)
		}
		m.Set("touch"+key, "v")
		m.SetTTL("touch"+key, 24*time.Hour)
		must(t, c.Touch(ctx, "touch"+key, tt.ttl))
		for _, op := range []string{"set", "many", "add", "touch"} {
			if got := m.TTL(op + key); got != tt.want || !m.Exists(op+key) {
				t.Errorf("%s for %v: redis keeps it for %v, want %v", op, tt.ttl, got, tt.want)
			}
		}
	}
	// A local copy goes with it.
	local := open(t, holdfast.Options{})
	must(t, local.Set(ctx, "k", []byte("v"), 1))
	redistest.WaitFor(t, patience, "the end of a millisecond", func() bool {
		_, err := local.Get(ctx, "k")
		return errors.Is(err, holdfast.ErrMiss)
	})
}

func TestTheLongestTTLIsKept(t *testing.T) {
	beside(t)
	const longest = time.Duration(math.MaxInt64)
	s := redistest.Start(t)
	pttl := func(t *testing.T, key string) time.Duration {
		t.Helper()
		ms, err := strconv.ParseInt(s.MustDo("PTTL", key), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return time.Duration(ms) * time.Millisecond
	}
	long := func(t *testing.T, what string, got time.Duration, err error) {
		t.Helper()
		if err != nil || got < longest-3*time.Hour || got < 0 {
			t.Errorf("%s: %v, %v; want about %v", what, got, err, longest)
		}
	}
	t.Run("up", func(t *testing.T) {
		ctx := begin(t)
		o := at(s.Addr())
		o.Timeout = 5 * time.Second
		c := open(t, o)
		ready(t, c)
		must(t, c.Set(ctx, "set", []byte("v"), longest))
		if added, err := c.Add(ctx, "add", []byte("v"), longest); !added || err != nil {
			t.Errorf("add: %v, %v", added, err)
		}
		s.MustDo("SET", "touch", "v")
		must(t, c.Touch(ctx, "touch", longest))
		for _, key := range []string{"set", "add", "touch"} {
			long(t, key+" in redis", pttl(t, key), nil)
			ttl, err := c.TTL(ctx, key)
			long(t, key, ttl, err)
			wantGet(t, c, key, "v")
		}
		// Another client's expiry may be longer than a Duration.
		s.MustDo("SET", "longer", "v")
		s.MustDo("PEXPIREAT", "longer", "9223372036854775807")
		if ttl, err := c.TTL(ctx, "longer"); err != nil || ttl <= 0 {
			t.Errorf("ttl of 292 million years: %v, %v", ttl, err)
		}
		wantGet(t, c, "longer", "v")
	})
	t.Run("by default, and local only", func(t *testing.T) {
		ctx := begin(t)
		c := open(t, holdfast.Options{DefaultTTL: longest})
		must(t, c.Set(ctx, "k", []byte("v"), 0))
		wantGet(t, c, "k", "v")
		if ttl, err := c.TTL(ctx, "k"); err != nil || ttl != 0 && ttl < longest-3*time.Hour {
			t.Errorf("ttl: %v, %v", ttl, err)
		}
	})
	t.Run("journaled", func(t *testing.T) {
		ctx := begin(t)
		p := redistest.NewProxy(t, s.Addr())
		p.SetMode(redistest.Refuse)
		c := open(t, at(p.Addr()))
		must(t, c.Set(ctx, "journaled", []byte("v"), longest))
		must(t, c.Set(ctx, "shorter", []byte("v"), longest-2*time.Hour))
		p.SetMode(redistest.Pass)
		ready(t, c)
		drain(t, c)
		if got := s.MustDo("PTTL", "journaled"); got != "-1" {
			long(t, "journaled", pttl(t, "journaled"), nil)
		}
		long(t, "shorter", pttl(t, "shorter"), nil)
	})
}

// calls are all the methods that take a context.
func calls(c *holdfast.Cache) map[string]func(ctx context.Context) error {
	return map[string]func(ctx context.Context) error{
		"get":        func(ctx context.Context) error { _, err := c.Get(ctx, "k"); return err },
		"get, miss":  func(ctx context.Context) error { _, err := c.Get(ctx, "absent"); return err },
		"lookup":     func(ctx context.Context) error { _, err := c.Lookup(ctx, "k"); return err },
		"set":        func(ctx context.Context) error { return c.Set(ctx, "k", []byte("w"), 0) },
		"setmany":    func(ctx context.Context) error { return c.SetMany(ctx, map[string][]byte{"k": nil}, 0) },
		"setmany, 0": func(ctx context.Context) error { return c.SetMany(ctx, nil, 0) },
		"delete":     func(ctx context.Context) error { return c.Delete(ctx, "k") },
		"delete, 0":  func(ctx context.Context) error { return c.Delete(ctx) },
		"getmany":    func(ctx context.Context) error { _, err := c.GetMany(ctx, "k", "absent"); return err },
		"getmany, 0": func(ctx context.Context) error { _, err := c.GetMany(ctx); return err },
		"add":        func(ctx context.Context) error { _, err := c.Add(ctx, "absent", nil, 0); return err },
		"ttl":        func(ctx context.Context) error { _, err := c.TTL(ctx, "k"); return err },
		"touch":      func(ctx context.Context) error { return c.Touch(ctx, "k", 0) },
		"check":      c.Check,
		"waitready":  c.WaitReady,
		"drain":      c.Drain,
	}
}

func TestANilContextIsAnErrorAndNothingIsDone(t *testing.T) {
	beside(t)
	everyKind(t, nil, func(t *testing.T, ctx context.Context, c *holdfast.Cache) {
		must(t, c.Set(ctx, "k", []byte("v"), 0))
		for name, call := range calls(c) {
			if err := call(nil); err == nil || !strings.Contains(err.Error(), "nil context") {
				t.Errorf("%s: %v", name, err)
			}
		}
		wantGet(t, c, "k", "v")
		wantGet(t, c, "absent", "")
	})
	t.Run("shutdown", func(t *testing.T) {
		begin(t)
		c := open(t, at(redistest.FreeAddr(t)))
		must(t, c.Set(context.Background(), "k", []byte("v"), 0))
		var left *holdfast.UndeliveredError
		//lint:ignore SA1012 it is what the test is about
		if err := c.Shutdown(nil); !errors.As(err, &left) || left.Keys != 1 || !strings.Contains(err.Error(), "nil context") {
			t.Errorf("shutdown: %v", err)
		}
		if _, err := c.Get(context.Background(), "k"); err != holdfast.ErrClosed {
			t.Errorf("get after it: %v", err)
		}
	})
}

func TestAContextThatHasEndedIsItsOwnErrorAndNothingIsDone(t *testing.T) {
	everyKind(t, nil, func(t *testing.T, ctx context.Context, c *holdfast.Cache) {
		must(t, c.Set(ctx, "k", []byte("v"), 0))
		gone, cancel := context.WithCancel(ctx)
		cancel()
		for name, call := range calls(c) {
			err := call(gone)
			if name == "waitready" && c.Health().State == holdfast.Up && err == nil {
				continue // it has nothing to wait for
			}
			if !errors.Is(err, context.Canceled) {
				t.Errorf("%s: %v", name, err)
			}
		}
		wantGet(t, c, "k", "v")
		wantGet(t, c, "absent", "")
	})
}

func TestAClosedCacheSaysSo(t *testing.T) {
	everyKind(t, nil, func(t *testing.T, ctx context.Context, c *holdfast.Cache) {
		must(t, c.Set(ctx, "k", []byte("v"), 0))
		closed(t, c)
		gone, cancel := context.WithCancel(ctx)
		cancel()
		for name, call := range calls(c) {
			if err := call(ctx); err != holdfast.ErrClosed {
				t.Errorf("%s: %v", name, err)
			}
			if err := call(nil); err == nil {
				t.Errorf("%s with a nil context: no error", name)
			}
			if err := call(gone); err == nil {
				t.Errorf("%s with a context that has ended: no error", name)
			}
		}
		if err := c.Shutdown(ctx); !errors.Is(err, holdfast.ErrClosed) {
			t.Errorf("shutdown: %v", err)
		}
		closedEmpty(t, c)
		if h := c.Health(); h.State != holdfast.Closed || h.Writable {
			t.Errorf("health %+v", h)
		}
		c.Stats()
	})
}

func TestNothingToDoIsDoneAtOnce(t *testing.T) {
	everyKind(t, nil, func(t *testing.T, ctx context.Context, c *holdfast.Cache) {
		must(t, c.Delete(ctx))
		must(t, c.SetMany(ctx, nil, 0))
		must(t, c.SetMany(ctx, map[string][]byte{}, time.Hour))
		if got, err := c.GetMany(ctx); err != nil || got == nil || len(got) != 0 {
			t.Errorf("getmany of nothing: %v, %v", got, err)
		}
		must(t, c.Delete(ctx, "absent"))
		if st := c.Stats(); st.Misses != 0 {
			t.Errorf("%d misses of no read", st.Misses)
		}
	})
}

func TestAKeyThatHoldsNoStringIsRedisOwnError(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	o := at(s.Addr())
	o.Timeout = 5 * time.Second
	c := open(t, o)
	ready(t, c)
	s.MustDo("RPUSH", "list", "e")
	s.MustDo("SET", "string", "v")
	for range 20 { // more than would open the circuit
		var e *holdfast.Error
		var re *rueidis.RedisError
		_, err := c.Get(ctx, "list")
		if !errors.As(err, &e) || e.Op != "get" || e.Key != "list" || e.Tier != holdfast.Remote || !errors.As(err, &re) || !strings.HasPrefix(re.Error(), "WRONGTYPE") {
			t.Fatalf("get: %v", err)
		}
		got, err := c.GetMany(ctx, "list", "string", "absent")
		if len(got) != 1 || string(got["string"]) != "v" || !errors.As(err, &e) || e.Key != "list" {
			t.Fatalf("getmany: %q, %v", got, err)
		}
	}
	if added, err := c.Add(ctx, "list", []byte("v"), 0); added || err != nil {
		t.Errorf("add: %v, %v", added, err)
	}
	if s.MustDo("LLEN", "list") != "1" {
		t.Error("the list has changed")
	}
	if st := c.Stats(); st.BreakerOpens != 0 || st.Journaled != 0 || c.Health().State != holdfast.Up {
		t.Errorf("%v, %+v", c.Health(), st)
	}
}

func TestNewNamesEveryContradictionInTheWordsOfTheFields(t *testing.T) {
	begin(t)
	c, err := holdfast.New(holdfast.Options{
		Redis: rueidis.ClientOption{
			InitAddress: []string{"nowhere"}, SelectDB: -1, ReplicaOnly: true, ConnLifetime: time.Hour,
			DisableAutoPipelining: true, ClientTrackingOptions: []string{"BCAST"}, RingScaleEachConn: 1,
		},
		Mode:       99,
		Timeout:    -time.Second,
		DefaultTTL: -time.Second,
		Local:      holdfast.LocalOptions{MaxBytes: -1, MaxTTL: -1},
		Breaker:    holdfast.BreakerOptions{Failures: -1, MinBackoff: -2, MaxBackoff: -3},
		Tracking:   holdfast.TrackingOptions{UntrackedTTL: -1},
		Journal:    holdfast.JournalOptions{MaxKeys: -1, MaxBytes: -1},
		Outage:     holdfast.OutageOptions{ServeFor: -1, ServeStaleFor: -1},
	})
	if err == nil || c != nil {
		t.Fatalf("%v, %v", c, err)
	}
	for _, field := range []string{
		"Redis.InitAddress[0]", "Redis.SelectDB", "Redis.ReplicaOnly", "Redis.ConnLifetime",
		"Redis.DisableAutoPipelining", "Redis.ClientTrackingOptions", "Redis.RingScaleEachConn",
		"Mode", "Timeout", "DefaultTTL", "Local.MaxBytes", "Local.MaxTTL", "Breaker.Failures", "Breaker.MinBackoff",
		"Breaker.MaxBackoff", "Tracking.UntrackedTTL", "Journal.MaxKeys", "Journal.MaxBytes", "Outage.ServeFor",
		"Outage.ServeStaleFor",
	} {
		if !strings.Contains(err.Error(), "holdfast: options: "+field+" ") {
			t.Errorf("%s is not named in:\n%v", field, err)
		}
	}
}
