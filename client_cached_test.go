package holdfast_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/rueidis"
)

// DoCache of reads other than GET. (The differential test of all types and the races are in files
// of their own.)

// cacheable builds a command for DoCache.
func cacheable(cl rueidis.Client, line string) rueidis.Cacheable {
	return rueidis.Cacheable(built(cl.B(), strings.Fields(line)))
}

// anyOf is a reply as text, with its maps in order.
func anyOf(res rueidis.RedisResult) string {
	m, err := res.ToMessage()
	if err != nil {
		return err.Error()
	}
	v, err := m.ToAny()
	return fmt.Sprintf("%v %v", v, err)
}

// hitOf reads until the reply is a hit: the invalidation that an earlier write causes may make the
// first fill void.
func hitOf(t *testing.T, cl rueidis.Client, line string) (hit rueidis.RedisResult) {
	t.Helper()
	redistest.WaitFor(t, patience, "a hit of "+line, func() bool {
		hit = cl.DoCache(context.Background(), cacheable(cl, line), time.Hour)
		return hit.IsCacheHit()
	})
	return hit
}

// typesOfKeys are keys of all types, the commands that make them, reads of them, and a write that
// changes the reply to each of the reads.
var typesOfKeys = []struct {
	key   string
	make  []string
	reads string
	write string
}{
	{"hash", []string{"HSET hash f 1 g 22"}, "HGETALL hash; HGET hash f; HMGET hash f g none; HLEN hash; HKEYS hash; HVALS hash; HSTRLEN hash f",
		"HSET hash f 333 new 4"},
	{"list", []string{"RPUSH list a b c"}, "LRANGE list 0 -1; LINDEX list 0; LLEN list; LPOS list b", "LPUSH list z"},
	{"set", []string{"SADD set a b"}, "SMEMBERS set; SCARD set; SISMEMBER set n; SMISMEMBER set a n", "SADD set n"},
	{"zset", []string{"ZADD zset 1 a 2 b"}, "ZRANGE zset 0 -1 WITHSCORES; ZCARD zset; ZSCORE zset a; ZMSCORE zset a x; ZCOUNT zset 5 9; ZRANK zset b; " +
		"ZREVRANGE zset 0 -1; ZRANGEBYSCORE zset 0 9; ZREVRANGEBYSCORE zset 9 0; ZRANGEBYLEX zset - +", "ZADD zset 7 a 0 x -1 y"},
	{"text", []string{"SET text abcdef"}, "GETRANGE text 0 1; STRLEN text; BITCOUNT text; GETBIT text 7; BITPOS text 1; SUBSTR text 0 1", "SET text \x80zzzzzzzzz"},
	{"geo", []string{"GEOADD geo 13 38 a 15 37 b"}, "GEODIST geo a b; GEOPOS geo a; GEOHASH geo a; GEOSEARCH geo FROMLONLAT 15 37 BYRADIUS 500 km ASC", "GEOADD geo 14 38 a"},
	{"stream", []string{"XADD stream 1-1 f v"}, "XRANGE stream - +; XLEN stream; XREVRANGE stream + -", "XADD stream 2-1 f v"},
	{"none", nil, "TYPE none; HGETALL none; HGET none f; LRANGE none 0 -1; SCARD none; ZSCORE none a; HEXISTS none f", "HSET none f 1"},
}

func TestAReplyIsServedFromMemoryUntilItsKeyChanges(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	c := open(t, at(s.Addr()))
	ready(t, c)
	cl := c.Client()
	for _, foreign := range []bool{false, true} {
		wantSay(t, cl, "OK", "FLUSHALL") // by this client: what others do is seen a moment later
		for _, k := range typesOfKeys {
			for _, line := range k.make {
				s.MustDo(strings.Fields(line)...)
			}
			old := map[string]string{}
			for line := range strings.SplitSeq(k.reads, "; ") {
				hit := hitOf(t, cl, line)
				old[line] = anyOf(hit)
				if want := anyOf(cl.Do(ctx, built(cl.B(), strings.Fields(line)))); old[line] != want {
					t.Errorf("a hit of %s is %s; Redis says %s", line, old[line], want)
				}
				if hit.CachePTTL() < 1000 {
					t.Errorf("%s: a hit for %d ms", line, hit.CachePTTL())
				}
			}
			if write := strings.Fields(k.write); foreign {
				s.MustDo(write...)
			} else if err := cl.Do(ctx, built(cl.B(), write)).Error(); err != nil {
				t.Fatalf("%s: %v", k.write, err)
			}
			for line := range strings.SplitSeq(k.reads, "; ") {
				want := anyOf(cl.Do(ctx, built(cl.B(), strings.Fields(line))))
				read := func() string { return anyOf(cl.DoCache(ctx, cacheable(cl, line), time.Hour)) }
				if foreign {
					redistest.WaitFor(t, patience, "the change of "+line, func() bool { return read() == want })
				}
				if got := read(); got != want {
					t.Errorf("after %s of this client %s is %s; want %s", k.write, line, got, want)
				}
				same := strings.HasPrefix(line, "ZRANGEBYLEX") || strings.HasPrefix(line, "GEOSEARCH") || strings.HasPrefix(line, "ZREVRANGE") ||
					strings.HasPrefix(line, "HMGET")
				if want == old[line] && !same {
					t.Errorf("%s leaves the reply to %s as it was: the test shows nothing", k.write, line)
				}
			}
		}
	}
}

// Each way to write a key ends the replies of the key.
func TestEveryOwnWriteEndsTheRepliesOfItsKeys(t *testing.T) {
	for _, mode := range []holdfast.TrackingMode{holdfast.TrackReads, holdfast.TrackPrefixes, holdfast.TrackOff} {
		t.Run(fmt.Sprint(mode), func(t *testing.T) { testOwnWritesEndReplies(t, mode) })
	}
}

func testOwnWritesEndReplies(t *testing.T, mode holdfast.TrackingMode) {
	ctx := begin(t)
	s := redistest.Start(t)
	o := at(s.Addr())
	if o.Tracking.Mode = mode; mode == holdfast.TrackPrefixes {
		o.Tracking.Prefixes = []string{"h", "i"}
	}
	c := open(t, o)
	ready(t, c)
	cl := c.Client()
	script := rueidis.NewLuaScript("return redis.call('HSET', KEYS[1], 'f', 'new')")
	for name, write := range map[string]func() error{
		"Delete":  func() error { return c.Delete(ctx, "h") },
		"Set":     func() error { return c.Set(ctx, "h", []byte("v"), 0) },
		"SetMany": func() error { return c.SetMany(ctx, map[string][]byte{"h": nil, "i": nil}, 0) },
		"DEL":     func() error { return cl.Do(ctx, cl.B().Del().Key("h").Build()).Error() },
		"EXPIRE":  func() error { return cl.Do(ctx, cl.B().Pexpireat().Key("h").MillisecondsTimestamp(1).Build()).Error() },
		"Touch": func() error {
			must(t, c.Touch(ctx, "h", 50*time.Millisecond)) // longer than its own EXISTS takes to arrive
			time.Sleep(60 * time.Millisecond)
			return nil
		},
		"script": func() error { return script.Exec(ctx, cl, []string{"h"}, nil).Error() },
		"RENAME": func() error { return cl.Do(ctx, cl.B().Rename().Key("h").Newkey("i").Build()).Error() },
		"COPY": func() error {
			s.MustDo("HSET", "i", "f", "2")
			return cl.Do(ctx, built(cl.B(), strings.Fields("COPY i h REPLACE"))).Error()
		},
		"MULTI": func() error {
			res := cl.DoMulti(ctx, cl.B().Multi().Build(), built(cl.B(), strings.Fields("HSET h f 3")), cl.B().Exec().Build())
			return res[2].Error()
		},
		"DoMulti": func() error {
			res := cl.DoMulti(ctx, built(cl.B(), strings.Fields("HSET h f 3")), cl.B().Ping().Build())
			return res[0].Error()
		},
		"Dedicated": func() error {
			return cl.Dedicated(func(d rueidis.DedicatedClient) error {
				return d.Do(ctx, built(cl.B(), strings.Fields("HSET h f 3"))).Error()
			})
		},
		"FLUSHALL": func() error { return cl.Do(ctx, cl.B().Flushall().Build()).Error() },
	} {
		for range 20 {
			s.MustDo("DEL", "h", "i")
			s.MustDo("HSET", "h", "f", "old")
			// Whether it is a hit or not: the read that fills may be under way when the write begins.
			must(t, c.Invalidate("h", "i")) // without tracking the changes by others are not seen
			redistest.WaitFor(t, patience, "the value", func() bool {
				return anyOf(cl.DoCache(ctx, cacheable(cl, "HGET h f"), time.Hour)) == "old <nil>"
			})
			if err := write(); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if got := anyOf(cl.DoCache(ctx, cacheable(cl, "HGET h f"), time.Hour)); strings.HasPrefix(got, "old") {
				t.Fatalf("after %s the field is %q", name, got)
			}
		}
	}
}

func TestOnlyDoCacheServesRepliesUnlessDoMayToo(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	f := redistest.NewFilter(t, s.Addr(), redistest.Makes[3])
	for _, may := range []bool{false, true} {
		o := at(f.Addr())
		o.Local.CacheDo = may
		c := open(t, o)
		ready(t, c)
		cl := c.Client()
		s.MustDo("RPUSH", "queue", "a")
		line := "LRANGE queue 0 9"
		hitOf(t, cl, line)
		before := f.Seen("LRANGE")
		for range 10 {
			if res := cl.Do(ctx, built(cl.B(), strings.Fields(line))); res.IsCacheHit() || res.Error() != nil {
				t.Errorf("Do tells of a cache: %v, %v", res.IsCacheHit(), res.Error())
			}
		}
		for _, res := range cl.DoMulti(ctx, built(cl.B(), strings.Fields(line)), cl.B().Arbitrary("lrange", "queue", "0", "9").Build()) {
			if res.Error() != nil {
				t.Error(res.Error())
			}
		}
		want := 12
		if may {
			want = 1 // the one in lower case
		}
		if n := f.Seen("LRANGE") - before; n != want {
			t.Errorf("with CacheDo %v Redis got %d commands, want %d", may, n, want)
		}
		if res := cl.DoCache(ctx, cacheable(cl, line), 0); res.IsCacheHit() {
			t.Error("a reply of any age is served for a ttl of 0")
		}
	}
}

func TestWhatIsNoAnswerIsNotKept(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	c := open(t, at(s.Addr()))
	ready(t, c)
	cl := c.Client()
	s.MustDo("SET", "text", "v")
	for range 3 {
		res := cl.DoCache(ctx, cacheable(cl, "HGETALL text"), time.Hour)
		if err, ok := rueidis.IsRedisErr(res.Error()); !ok || !strings.HasPrefix(err.Error(), "WRONGTYPE") || res.IsCacheHit() {
			t.Errorf("HGETALL of a string: %v, hit %v", res.Error(), res.IsCacheHit())
		}
	}
	for _, line := range []string{"HGETALL", "HGET h", "LRANGE list 0", "ZRANGE z a b", "GETRANGE k x y", "NOSUCH k"} {
		for range 2 {
			if err, ok := rueidis.IsRedisErr(cl.DoCache(ctx, cacheable(cl, line), time.Hour).Error()); !ok {
				t.Errorf("%s: %v; want Redis' own error", line, err)
			}
		}
	}
	s.MustDo("SADD", "set", "a", "b", "c")
	for want := 2; want >= 0; want-- {
		if res := cl.DoCache(ctx, cacheable(cl, "SPOP set"), time.Hour); res.Error() != nil || res.IsCacheHit() {
			t.Errorf("SPOP by DoCache: %v, hit %v", res.Error(), res.IsCacheHit())
		}
		if got := anyOf(cl.DoCache(ctx, cacheable(cl, "SCARD set"), time.Hour)); got != fmt.Sprint(want, " <nil>") {
			t.Errorf("%s members are left, want %d", got, want)
		}
	}
	s.MustDo("RPUSH", "list", "a")
	for _, line := range []string{"TTL list", "OBJECT ENCODING list", "RANDOMKEY", "HSCAN h 0", "SORT list ALPHA", "EVAL_RO return(1) 1 list", "SRANDMEMBER set", "DUMP list"} {
		for range 2 {
			if res := cl.DoCache(ctx, cacheable(cl, line), time.Hour); res.IsCacheHit() && line != "TTL list" {
				t.Errorf("%s is served from memory", line)
			}
		}
	}
}

func TestEqualReadsUnderWayAreOneCommand(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	f := redistest.NewFilter(t, s.Addr(), redistest.Makes[3])
	p := redistest.NewProxy(t, f.Addr())
	o := at(p.Addr())
	o.Timeout = 10 * time.Second
	c := open(t, o)
	ready(t, c)
	cl := c.Client()
	s.MustDo("HSET", "h", "f", "v")
	p.SetLatency(200 * time.Millisecond)
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			if got := anyOf(cl.DoCache(ctx, cacheable(cl, "HGETALL h"), time.Hour)); got != "map[f:v] <nil>" {
				t.Errorf("HGETALL: %s", got)
			}
		})
	}
	wg.Wait()
	if n := f.Seen("HGETALL"); n > 3 {
		t.Errorf("64 equal reads sent %d commands", n)
	}

	// A leader that leaves takes nobody with it, and a follower that leaves waits no longer.
	s.MustDo("HSET", "h", "f", "w")
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	wg.Go(func() {
		if err := cl.DoCache(short, cacheable(cl, "HLEN h"), time.Hour).Error(); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a caller whose time was over got %v", err)
		}
	})
	for range 10 {
		wg.Go(func() {
			if got := anyOf(cl.DoCache(ctx, cacheable(cl, "HLEN h"), time.Hour)); got != "1 <nil>" {
				t.Errorf("HLEN: %s", got)
			}
		})
	}
	wg.Wait()
}

func TestAReadWithATTLOf0SharesNoReply(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	f := redistest.NewFilter(t, s.Addr(), redistest.Makes[3])
	p := redistest.NewProxy(t, f.Addr())
	o := at(p.Addr())
	o.Timeout = 10 * time.Second
	c := open(t, o)
	ready(t, c)
	cl := c.Client()
	p.SetLatency(100 * time.Millisecond)
	before := f.Seen("HGETALL")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := cl.DoCache(ctx, cacheable(cl, "HGETALL h"), 0).Error(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := f.Seen("HGETALL") - before; n != 8 {
		t.Errorf("8 reads with a ttl of 0 sent %d commands", n)
	}
}

// panickyContext panics when a call begins to wait.
type panickyContext struct{ context.Context }

func (panickyContext) Done() <-chan struct{} { panic("the caller's own fault") }

func TestNobodyWaitsForALeaderThatPanicked(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	c := open(t, at(s.Addr()))
	ready(t, c)
	cl := c.Client()
	s.MustDo("HSET", "h", "f", "v")
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the context was not asked")
			}
		}()
		cl.DoCache(panickyContext{ctx}, cacheable(cl, "HGETALL h"), time.Hour)
	}()
	if got := anyOf(cl.DoCache(ctx, cacheable(cl, "HGETALL h"), time.Hour)); got != "map[f:v] <nil>" {
		t.Errorf("after a panic of an equal read the reply is %s", got)
	}
}

// A read that begins after a write has returned shares no reply of a read from before the write.
func TestAReadSharesNoReplyFromBeforeAWrite(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	o := at(s.Addr())
	o.Timeout = 10 * time.Second
	c := open(t, o)
	ready(t, c)
	cl := c.Client()
	stop := load(t, 3, func(int, int) { cl.DoCache(ctx, cacheable(cl, "HGET h n"), time.Hour) })
	defer stop()
	for i := range 2000 * roundsFactor(t) {
		want := strconv.Itoa(i + 1)
		wantSay(t, cl, want, "HINCRBY", "h", "n", "1")
		if got, _ := textOf(cl.DoCache(ctx, cacheable(cl, "HGET h n"), time.Hour)); got != want {
			t.Fatalf("after HINCRBY the field is %s, want %s", got, want)
		}
	}
}

func TestRepliesAreServedWhileRedisIsAway(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	c := open(t, at(s.Addr()))
	ready(t, c)
	cl := c.Client()
	s.MustDo("HSET", "h", "f", "v")
	s.MustDo("RPUSH", "list", "a", "b")
	s.MustDo("HSET", "gone", "f", "v")
	s.MustDo("HSET", "ends", "f", "v")
	s.MustDo("PEXPIRE", "ends", "300000")
	for _, line := range []string{"HGETALL h", "HGET h f", "LRANGE list 0 -1", "HGETALL gone", "HGETALL none", "HGETALL ends"} {
		hitOf(t, cl, line)
	}
	before := c.Stats()
	s.Kill()
	waitState(t, c, holdfast.Down)
	for line, want := range map[string]string{
		"HGETALL h": "map[f:v] <nil>", "HGET h f": "v <nil>", "LRANGE list 0 -1": "[a b] <nil>", "HGETALL none": "map[] <nil>", "HGETALL ends": "map[f:v] <nil>",
	} {
		if got := anyOf(cl.DoCache(ctx, cacheable(cl, line), time.Hour)); got != want {
			t.Errorf("while Redis is away %s is %s; want %s", line, got, want)
		}
	}
	if n := c.Stats().Minus(before).DoubtHits; n != 5 {
		t.Errorf("%d reads of copies in doubt are counted, want 5", n)
	}
	must(t, c.Delete(ctx, "gone"))
	for _, line := range []string{"HGETALL gone", "HGETALL unknown", "HGET h other", "HSET h f 2"} {
		if err := cl.DoCache(ctx, cacheable(cl, line), time.Hour).Error(); !errors.Is(err, holdfast.ErrUnavailable) {
			t.Errorf("while Redis is away %s is %v; want ErrUnavailable", line, err)
		}
	}
	if got := anyOf(cl.DoCache(ctx, cacheable(cl, "HGET h f"), time.Hour)); got != "v <nil>" {
		t.Errorf("after a write that was refused the field is %s", got)
	}
	s.Restart() // empty
	waitState(t, c, holdfast.Up)
	drain(t, c)
	if got := anyOf(cl.DoCache(ctx, cacheable(cl, "HGETALL h"), time.Hour)); got != "map[] <nil>" {
		t.Errorf("when Redis is back, empty, HGETALL is %s", got)
	}
}

func TestARepliesOfAHungServerComesFromMemoryWithinTheBudget(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	c := open(t, at(s.Addr()))
	ready(t, c)
	cl := c.Client()
	s.MustDo("HSET", "h", "f", "v")
	hitOf(t, cl, "HGETALL h")
	s.Pause()
	defer s.Resume()
	redistest.WaitFor(t, patience, "an answer by a copy that Redis cannot confirm", func() bool {
		if got := anyOf(cl.DoCache(ctx, cacheable(cl, "HGETALL h"), time.Nanosecond)); got != "map[f:v] <nil>" {
			t.Fatalf("HGETALL of a server that hangs is %s", got)
		}
		return c.Stats().DoubtHits > 0
	})
}

// A reply does not outlive its key, nor a field of its hash that expires by itself.
func TestAReplyEndsWithItsKeyAndItsFields(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	j := redistest.NewInjector(t, s.Addr())
	life := "*1\r\n:-1\r\n"
	j.Answer(func(cmd []string) string {
		if cmd[0] == "HPTTL" {
			return life
		}
		return ""
	})
	s.MustDo("HSET", "h", "f", "v")
	s.MustDo("PEXPIRE", "h", "100000")
	end := func(line string) int64 {
		c := open(t, at(j.Addr()))
		ready(t, c)
		cl := c.Client()
		cl.DoCache(ctx, cacheable(cl, line), time.Hour)
		return cl.DoCache(ctx, cacheable(cl, line), time.Hour).CachePTTL()
	}
	for _, line := range []string{"HGETALL h", "HKEYS h", "HGET h f", "HMGET h f", "HEXISTS h f", "HSTRLEN h f"} {
		if ms := end(line); ms < 50_000 || ms > 100_000 {
			t.Errorf("%s of a key that has 100 s is kept for %d ms", line, ms)
		}
	}
	life = "*1\r\n:20000\r\n"
	for _, line := range []string{"HGETALL h", "HKEYS h", "HGET h f", "HMGET h f", "HEXISTS h f", "HSTRLEN h f"} {
		if ms := end(line); ms < 5000 || ms > 20_000 {
			t.Errorf("%s of a field that has 20 s is kept for %d ms", line, ms)
		}
	}
	for _, refusal := range []string{"NOPERM this user has no permissions to run the 'hpttl' command", "ERR something else"} {
		life = refusal
		for _, line := range []string{"HGETALL h", "HGET h f", "HVALS h", "HLEN h"} {
			c := open(t, at(j.Addr()))
			ready(t, c)
			cl := c.Client()
			for range 3 {
				if res := cl.DoCache(ctx, cacheable(cl, line), time.Hour); res.Error() != nil || res.IsCacheHit() {
					t.Errorf("%s where the ends of fields are not told (%s): %v, hit %v", line, refusal, res.Error(), res.IsCacheHit())
				}
			}
		}
	}
	life = "ERR unknown command 'HPTTL', with args beginning with: 'h' "
	c := open(t, at(j.Addr()))
	ready(t, c)
	cl := c.Client()
	for _, line := range []string{"HGETALL h", "HVALS h", "HLEN h", "HGET h f"} {
		hitOf(t, cl, line)
	}
	if n := j.Injected(); n == 0 {
		t.Error("no field was asked for")
	}
}

// Between a reply and HPTTL a field may expire, or the whole key. Such a reply is not kept.
func TestAReplyThatShowsAFieldThatIsGoneIsNotKept(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	j := redistest.NewInjector(t, s.Addr())
	s.MustDo("HSET", "h", "f", "v", "empty", "")
	for _, hpttl := range []string{"*2\r\n:-2\r\n:-2\r\n", "*-1\r\n"} {
		j.Answer(func(cmd []string) string {
			if cmd[0] == "HPTTL" {
				return hpttl
			}
			return ""
		})
		c := open(t, at(j.Addr()))
		ready(t, c)
		cl := c.Client()
		for _, line := range []string{"HGETALL h", "HKEYS h", "HGET h f", "HGET h empty", "HMGET h none f", "HEXISTS h f", "HSTRLEN h f"} {
			for range 3 {
				if res := cl.DoCache(ctx, cacheable(cl, line), time.Hour); res.Error() != nil || res.IsCacheHit() {
					t.Errorf("%s is kept though HPTTL says %q: %v", line, hpttl, res.Error())
				}
			}
		}
		for _, line := range []string{"HGET absent f", "HMGET absent f g", "HEXISTS absent f", "HGETALL absent"} {
			hitOf(t, cl, line)
		}
	}
}

// A reply that has just come from Redis tells for how long it may be kept, as rueidis' own does.
func TestAReplyOfRedisTellsTheLifeOfItsKey(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	p := redistest.NewProxy(t, s.Addr())
	o := at(p.Addr())
	o.Timeout = 10 * time.Second
	c := open(t, o)
	ready(t, c)
	cl := c.Client()
	s.MustDo("HSET", "h", "f", "v")
	s.MustDo("PEXPIRE", "h", "100000")
	p.SetLatency(100 * time.Millisecond)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if ms := cl.DoCache(ctx, cacheable(cl, "HGETALL h"), time.Hour).CachePTTL(); ms < 50_000 || ms > 100_000 {
				t.Errorf("a reply of a key that has 100 s is for %d ms", ms)
			}
		})
	}
	wg.Wait()
	p.SetLatency(0)
	for line, most := range map[string]int64{"HGETALL none": 3_600_000, "HLEN h": 100_000} {
		if ms := cl.DoCache(ctx, cacheable(cl, line), time.Hour).CachePTTL(); ms < most/2 || ms > most {
			t.Errorf("%s is for %d ms, want %d", line, ms, most)
		}
	}
}

// The bytes of a reply are those that it keeps on the heap.
func TestRepliesCountAsWhatTheyKeep(t *testing.T) {
	undisturbed(t)
	s := redistest.Start(t)
	o := at(s.Addr())
	o.Local.MaxBytes, o.Timeout = 512<<20, 10*time.Second
	c := open(t, o)
	ready(t, c)
	cl := c.Client()
	for i, size := range []int{1, 100, 10_000} {
		key := fmt.Sprint("h", i)
		args := []string{"HSET", key}
		for j := range 10_000_000 / (size + 100) {
			args = append(args, fmt.Sprint("field", j), strings.Repeat("v", size))
		}
		s.MustDo(args...)
		heap, counted := heapInUse(), c.Stats().LocalBytes
		for line := range strings.SplitSeq("HGETALL,HVALS,HKEYS", ",") {
			hitOf(t, cl, line+" "+key)
		}
		grown, told := heapInUse()-heap, c.Stats().LocalBytes-counted
		if ratio := float64(told) / float64(grown); ratio < 0.8 || ratio > 1.2 {
			t.Errorf("replies with values of %d B take %d bytes of the heap and are counted as %d", size, grown, told)
		}
	}
}

// The set of a key's replies takes memory, too. It counts with a single reply.
func TestSmallRepliesOfManyKeysCountAsWhatTheyKeep(t *testing.T) {
	ctx := undisturbed(t)
	s := redistest.Start(t)
	o := at(s.Addr())
	o.Local.MaxBytes, o.Timeout = 32<<20, 10*time.Second
	c := open(t, o)
	ready(t, c)
	cl := c.Client()
	heap := heapInUse()
	batch := make([]rueidis.CacheableTTL, 1000)
	for i := range 200 {
		for j := range batch {
			batch[j] = rueidis.CT(cl.B().Hlen().Key(fmt.Sprint("key", i, ":", j)).Cache(), time.Hour)
		}
		for _, res := range cl.DoMultiCache(ctx, batch...) {
			must(t, res.Error())
		}
	}
	grown, told := heapInUse()-heap, c.Stats().LocalBytes
	if ratio := float64(grown) / float64(told); ratio > 1.18 {
		t.Errorf("small replies take %d bytes of the heap and are counted as %d, ratio %.2f", grown, told, ratio)
	}
}

func TestAReplyOfMoreThanAnEighthOfMaxBytesIsNotKept(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	o := at(s.Addr())
	o.Local.MaxBytes = 1 << 20
	c := open(t, o)
	ready(t, c)
	cl := c.Client()
	s.MustDo("HSET", "small", "f", strings.Repeat("v", 100_000))
	hitOf(t, cl, "HGETALL small")
	s.MustDo("HSET", "big", "f", strings.Repeat("v", 140_000))
	for range 3 {
		if res := cl.DoCache(ctx, cacheable(cl, "HGETALL big"), time.Hour); res.Error() != nil || res.IsCacheHit() {
			t.Errorf("HGETALL of a reply that is too large: %v, hit %v", res.Error(), res.IsCacheHit())
		}
	}
}

func TestAHitOfAReplyAllocatesNothing(t *testing.T) {
	if raceFactor > 1 {
		t.Skip("pools drop what they are given at random")
	}
	ctx := undisturbed(t)
	s := redistest.Start(t)
	c := open(t, at(s.Addr()))
	ready(t, c)
	cl := c.Client()
	s.MustDo("HSET", "h", "f", "v", "g", "w")
	s.MustDo("ZADD", "z", "1", "a", "2", "b")
	for _, line := range []string{"HGETALL h", "HGET h f", "ZRANGE z 0 -1", "HMGET h f g"} {
		hitOf(t, cl, line)
		cmd := rueidis.Cacheable(rueidis.Completed(cacheable(cl, line)).Pin())
		if n := testing.AllocsPerRun(1000, func() { cl.DoCache(ctx, cmd, time.Hour) }); n != 0 {
			t.Errorf("a hit of %s allocates %v times", line, n)
		}
	}
}
