package holdfast_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/rueidis"
)

// The same commands go to one server through rueidis' own client and to another through
// Client. Each reply must be the other's, and in the end so must the contents.

// forms are the commands: K is a key, V a value, N a small number, T a time to live, A a
// moment of Unix time, X what should be a number and is none, or a strange one.
var forms = strings.Split(strings.TrimSpace(`
GET K
GET K
GET K
MGET K K K
EXISTS K
EXISTS K K K
TTL K
PTTL K
EXPIRETIME K
PEXPIRETIME K
SET K V
SET K V
SET K V EX T
SET K V px T000
SET K V EXAT A
SET K V PXAT A000
SET K V KEEPTTL
SET K V EXAT 1
SET K V PXAT 1
SET K V NX
SET K V XX EX T
SET K V GET
SET K V EX X
SET K V PX X
SET K V EXAT X
SET K V PXAT X
SET K V EX T PX T
SET K V BOGUS
SET K V EX
SETEX K T V
PSETEX K T000 V
SETEX K X V
PSETEX K X V
SETEX K X KEEPTTL
set K V
set K V px T000
psetex K T000 V
MSET K V K V
MSET K V K V K V
MSET K V K
DEL K
DEL K K
UNLINK K K K
GETDEL K
EXPIRE K T
PEXPIRE K T000
EXPIREAT K A
PEXPIREAT K A000
EXPIRE K 0
EXPIRE K -1
PEXPIREAT K 1
EXPIRE K X
PEXPIRE K X
EXPIREAT K X
PEXPIREAT K X
EXPIRE K T NX
EXPIRE K T GT
PERSIST K
GET
GET K K
MGET
EXISTS
TTL
SET K
SETEX K T
MSET
DEL
UNLINK
GETDEL
EXPIRE K
PERSIST
PERSIST K K
INCR K
INCRBY K N
DECR K
INCRBYFLOAT K 0.5
APPEND K V
SETRANGE K N V
GETRANGE K 0 N
STRLEN K
GETSET K V
GETEX K
GETEX K EX T
GETEX K PERSIST
SETNX K V
MSETNX K V K V
SETBIT K N 1
GETBIT K N
BITCOUNT K
BITOP OR K K K
TYPE K
OBJECT ENCODING K
OBJECT
RENAME K K
RENAMENX K K
COPY K K
COPY K K REPLACE
TOUCH K K
HSET K V V
HSET K f N
HINCRBY K f N
HGET K f
HGETALL K
HDEL K f
LPUSH K V V
RPUSH K V
LPOP K
LRANGE K 0 -1
LLEN K
LMPOP 2 K K LEFT
LMOVE K K LEFT RIGHT
SADD K N
SCARD K
SINTERCARD 2 K K
SUNIONSTORE K K K
ZADD K N V
ZRANGE K 0 -1 WITHSCORES
ZUNIONSTORE K 2 K K
SORT K ALPHA
SORT K ALPHA STORE K
PFADD K V
PFCOUNT K K
PFMERGE K K
XADD K * f
XLEN K
XINFO STREAM
GEOADD K 1 2 V
DUMP
PING
ECHO V
BOGUS K V
INCR
INCR K K
CONFIG
DEBUG
CLIENT
FLUSHDB
SCRIPT LOAD return(1)
MEMORY USAGE
`), "\n")

var scripts = []string{
	"return redis.call('SET',KEYS[1],ARGV[1])",
	"return redis.call('APPEND',KEYS[1],ARGV[1])",
	"return redis.call('DEL',KEYS[1])",
	"return redis.call('GET',KEYS[1])",
	"return {1,'two',false}",
	"return redis.error_reply('MINE no')",
	"not lua",
}

var (
	someKeys   = []string{"a", "b", "c", "d", "e", "", "\x00\xff\r\n", "{t}1", "{t}2", "SET", "1", "EX"}
	someValues = []string{"1", "v", "", "17", "\x00\r\n\xfe", "12345678901234567890", "3.5", "the quick brown fox jumps over the lazy dog, more than once"}
	someOdd    = []string{"0", "-1", "x", "", "1.5", "+5", "010", " 7", "9223372036854775807", "-9223372036854775808", "9223372036854775808", "99999999999999999"}
)

func pick[T any](r *rand.Rand, from []T) T { return from[r.IntN(len(from))] }

// randomCommand makes a command of one of the forms. A flush is rare.
func randomCommand(r *rand.Rand) []string {
	if r.IntN(20) == 0 {
		return []string{"EVAL", pick(r, scripts), pick(r, []string{"1", "1", "1", "2", "0", "x"}), pick(r, someKeys), pick(r, someValues)}
	}
	form := pick(r, forms)
	if form == "FLUSHDB" && r.IntN(4) > 0 {
		form = "GET K"
	}
	now := time.Now().Unix()
	args := strings.Fields(form)
	for i, arg := range args[1:] {
		switch arg {
		case "K":
			arg = pick(r, someKeys)
		case "V":
			arg = pick(r, someValues)
		case "N":
			arg = strconv.Itoa(r.IntN(40))
		case "X":
			arg = pick(r, someOdd)
		case "T", "T000":
			arg = strconv.Itoa(100+r.IntN(900)) + arg[1:]
		case "A", "A000":
			arg = strconv.FormatInt(now+int64(100+r.IntN(900)), 10) + arg[1:]
		case "*":
			arg = fmt.Sprintf("%d-%d", 1+r.IntN(3), 1+r.IntN(3))
		}
		args[i+1] = arg
	}
	if r.IntN(10) == 0 {
		args[0] = strings.ToLower(args[0])
	}
	return args
}

func seedOf(t *testing.T) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	if text := os.Getenv("HOLDFAST_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("HOLDFAST_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// shown is a reply in full, so that two can be compared.
func shown(res rueidis.RedisResult) string {
	if err := res.NonRedisError(); err != nil {
		return "not of redis: " + err.Error()
	}
	m, _ := res.ToMessage()
	return shownMessage(m)
}

func shownMessage(m rueidis.RedisMessage) string {
	if err := m.Error(); err != nil {
		return "error " + err.Error()
	}
	switch {
	case m.IsInt64():
		n, _ := m.AsInt64()
		return fmt.Sprintf("int %d", n)
	case m.IsArray(), m.IsMap():
		var parts []string
		all, err := m.ToArray()
		if err != nil {
			return m.String()
		}
		for _, e := range all {
			parts = append(parts, shownMessage(e))
		}
		return "[" + strings.Join(parts, ", ") + "]"
	}
	return cachedUntil.ReplaceAllString(m.String(), "")
}

// cachedUntil is what the reply of DoCache has over that of Do.
var cachedUntil = regexp.MustCompile(`,"TTL":"[^"]*"`)

// near says whether two replies to a question about time are as good as equal.
func near(command, a, b string) bool {
	var x, y, most int64
	switch strings.ToUpper(command) {
	case "TTL", "EXPIRETIME":
		most = 2
	case "PTTL", "PEXPIRETIME":
		most = 2000
	default:
		return false
	}
	if n, _ := fmt.Sscanf(a, "int %d", &x); n != 1 {
		return false
	}
	if n, _ := fmt.Sscanf(b, "int %d", &y); n != 1 {
		return false
	}
	return x > 0 && y > 0 && max(x-y, y-x) <= most
}

func wantSame(t *testing.T, args []string, got, want rueidis.RedisResult) {
	t.Helper()
	if g, w := shown(got), shown(want); g != w && !near(args[0], g, w) {
		t.Fatalf("%q: %s; rueidis' own client has %s", args, g, w)
	}
}

func built(b rueidis.Builder, args []string) rueidis.Completed {
	return b.Arbitrary(args[0]).Args(args[1:]...).Build()
}

func TestACommandHasTheReplyThatRueidisOwnClientGets(t *testing.T) {
	ctx := begin(t)
	theirs, ours := redistest.Start(t), redistest.Start(t)
	plain := plainClient(t, theirs.Addr())
	o := at(ours.Addr())
	o.Timeout = 10 * time.Second
	c := open(t, o)
	ready(t, c)
	compare(t, ctx, seedOf(t), plain, c.Client(), 6000*roundsFactor(t), randomCommand)
	sameContents(t, ctx, plain, plainClient(t, ours.Addr()))
}

func plainClient(t testing.TB, addr string) rueidis.Client {
	t.Helper()
	plain, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{addr}, ForceSingleClient: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(plain.Close)
	return plain
}

// compare sends n commands to both, alone, in batches, in transactions, and as reads that
// may be cached.
func compare(t *testing.T, ctx context.Context, r *rand.Rand, plain, ours rueidis.Client, n int, next func(*rand.Rand) []string) {
	t.Helper()
	for n > 0 {
		var batch [][]string
		for range 1 + r.IntN(12) {
			batch = append(batch, next(r))
		}
		n -= len(batch)
		switch r.IntN(6) {
		case 0, 1, 2:
			for _, args := range batch {
				if strings.EqualFold(args[0], "GET") || strings.EqualFold(args[0], "MGET") {
					if r.IntN(2) == 0 {
						cmd := rueidis.Cacheable(built(ours.B(), args))
						wantSame(t, args, ours.DoCache(ctx, cmd, time.Minute), plain.Do(ctx, built(plain.B(), args)))
						continue
					}
				}
				wantSame(t, args, ours.Do(ctx, built(ours.B(), args)), plain.Do(ctx, built(plain.B(), args)))
			}
			continue
		case 3:
			batch = append(append([][]string{{"MULTI"}}, batch...), []string{pick(r, []string{"EXEC", "EXEC", "EXEC", "DISCARD"})})
		}
		var a, b []rueidis.Completed
		for _, args := range batch {
			a, b = append(a, built(ours.B(), args)), append(b, built(plain.B(), args))
		}
		got, want := ours.DoMulti(ctx, a...), plain.DoMulti(ctx, b...)
		for i, args := range batch {
			if args[0] == "EXEC" && asksForTime(batch) {
				continue // times are compared one by one
			}
			if g, w := shown(got[i]), shown(want[i]); g != w && !near(args[0], g, w) {
				t.Fatalf("%q in %q: %s; rueidis' own client has %s", args, batch, g, w)
			}
		}
	}
}

func asksForTime(batch [][]string) bool {
	return slices.ContainsFunc(batch, func(args []string) bool { return near(args[0], "int 1", "int 1") })
}

// sameContents compares what two servers hold.
func sameContents(t *testing.T, ctx context.Context, a, b rueidis.Client) {
	t.Helper()
	for _, key := range someKeys {
		for _, args := range [][]string{{"TYPE", key}, {"DUMP", key}, {"PTTL", key}} {
			wantSame(t, args, b.Do(ctx, built(b.B(), args)), a.Do(ctx, built(a.B(), args)))
		}
	}
}
