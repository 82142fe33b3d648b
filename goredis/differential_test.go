package goredis_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"reflect"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/go-redis/v9"
)

// text marshals itself, and number does not.
type text string

func (t text) MarshalBinary() ([]byte, error) { return []byte("<" + t + ">"), nil }

type number int

type failing struct{}

var errMarshal = errors.New("no")

func (failing) MarshalBinary() ([]byte, error) { return nil, errMarshal }

// arguments are one of each type that go-redis knows, and some that it does not.
func arguments() []any {
	s, i, f, b, at, d := "pointed", 42, 1.5, true, time.Date(2026, 3, 1, 2, 3, 4, 5, time.UTC), 90*time.Second
	var none *string
	var zero *int
	var never *time.Time
	return []any{
		"text", []byte("bytes\x00\xff"), []byte(nil), nil, "", "with\r\nlines", 7, int8(-8), int16(16), int32(-32), int64(1 << 60),
		uint(1), uint8(8), uint16(16), uint32(32), uint64(1 << 63), float32(0.1), 1e300, -2.5, true, false, at, d,
		&s, &i, &f, &b, &at, &d, none, zero, never, text("marshalled"), net.IPv4(127, 0, 0, 1), number(1), struct{}{}, failing{},
		redis.KeepTTL, time.Minute,
	}
}

// maker makes the same command anew for each client: a command is used once.
type maker func() redis.Cmder

// script makes random commands, the same ones for the same seed.
type script struct {
	*rand.Rand
	ctx  context.Context
	args []any

	piped bool
	n     int
}

func newScript(t *testing.T) *script {
	seed := uint64(time.Now().UnixNano())
	if v := os.Getenv("HOLDFAST_SEED"); v != "" {
		n, err := strconv.ParseUint(v, 10, 64)
		must(t, err)
		seed = n
	}
	t.Logf("HOLDFAST_SEED=%d", seed)
	return &script{Rand: rand.New(rand.NewPCG(seed, 1)), ctx: context.Background(), args: arguments()}
}

func (s *script) key() string { return fmt.Sprintf("k%d", s.IntN(12)) }

func (s *script) arg() any { return s.args[s.IntN(len(s.args))] }

func pick[T any](s *script, of ...T) T { return of[s.IntN(len(of))] }

// command makes one of the kinds of commands that go-redis' methods make, or one by hand.
func (s *script) command() maker {
	ctx, k, k2 := s.ctx, s.key(), s.key()
	switch s.IntN(30) {
	case 0, 1, 2, 3:
		return func() redis.Cmder { return redis.NewStringCmd(ctx, "get", k) }
	case 4, 5, 6:
		args := append([]any{"set", k, s.arg()}, pick(s, nil, nil, []any{"ex", 100}, []any{"px", "100000"}, []any{"keepttl"},
			[]any{"EXAT", time.Now().Unix() + 100}, []any{"pxat", time.Now().UnixMilli() + 100000}, []any{"ex", 0}, []any{"bogus"}, []any{"nx"},
			[]any{"xx", "ex", 100}, []any{"get"})...)
		if pick(s, true, false) || args[len(args)-1] == "get" {
			return func() redis.Cmder { return redis.NewStatusCmd(ctx, args...) }
		}
		return func() redis.Cmder { return redis.NewBoolCmd(ctx, args...) }
	case 7:
		return func() redis.Cmder { return redis.NewSliceCmd(ctx, "mget", k, k2, k, "list") }
	case 8:
		v := s.arg()
		return func() redis.Cmder { return redis.NewStatusCmd(ctx, "mset", k, v, k2, "second") }
	case 9:
		name := pick(s, "del", "unlink", "exists")
		return func() redis.Cmder { return redis.NewIntCmd(ctx, name, k, k2, k) }
	case 10, 11:
		name, unit := "ttl", time.Second
		if pick(s, true, false) {
			name = "expiretime"
		}
		return func() redis.Cmder { return redis.NewDurationCmd(ctx, unit, name, k) }
	case 12, 13:
		args := []any{pick(s, "expire", "pexpire"), k, pick[any](s, 100000, 100001, -1, "x")}
		if s.IntN(8) == 0 {
			args[0], args[2] = "expire", int64(1)<<62 // an overflow; as milliseconds it would be none
		}
		if s.IntN(4) == 0 {
			// Not what was there before: whether that is less depends on the clock.
			s.n++
			args[2] = 1000000 * s.n
			args = append(args, pick[any](s, "NX", "XX", "GT", "LT", "bogus"))
		}
		return func() redis.Cmder { return redis.NewBoolCmd(ctx, args...) }
	case 14:
		return func() redis.Cmder { return redis.NewBoolCmd(ctx, "persist", k) }
	case 15:
		name := pick(s, "setex", "psetex")
		ttl, v := pick[any](s, 100, 100000, 0, "x"), s.arg()
		return func() redis.Cmder { return redis.NewStatusCmd(ctx, name, k, ttl, v) }
	case 16:
		return func() redis.Cmder { return redis.NewStringCmd(ctx, "getdel", k) }
	case 17:
		name := pick(s, "incr", "decr", "strlen", "INCR")
		return func() redis.Cmder { return redis.NewIntCmd(ctx, name, k) }
	case 18:
		return func() redis.Cmder { return redis.NewIntCmd(ctx, "append", k, "+") }
	case 19:
		return func() redis.Cmder { return redis.NewStringCmd(ctx, "getrange", k, 1, -1) }
	case 20:
		return func() redis.Cmder { return redis.NewIntCmd(ctx, "rpush", "list", k) }
	case 21:
		return func() redis.Cmder { return redis.NewStringCmd(ctx, "get", "list") }
	case 22:
		return func() redis.Cmder { return redis.NewStatusCmd(ctx, "rename", k, k2) }
	case 23:
		return func() redis.Cmder {
			return redis.NewCmd(ctx, "eval", "redis.call('set', KEYS[1], ARGV[1]) return {1, false, redis.call('get', KEYS[2])}", 2, k, k2, "by script")
		}
	case 24:
		name := pick(s, "get", "set", "mget", "del", "ttl", "expire", "setex", "mset", "exists", "getdel", "nonesuch", "strlen", "pttl")
		n := s.IntN(4)
		args := []any{name}
		for range n {
			args = append(args, k)
		}
		return func() redis.Cmder { return redis.NewCmd(ctx, args...) }
	case 25:
		args := pick(s, []any{"GET", k}, []any{"Mget", k, k2}, []any{"SET", k, "by hand"}, []any{"TTL", k}, []any{"DEL", k}, []any{"EXPIRE", k, 1000},
			[]any{"SET", k, "v", "GET"}, []any{"SET", k, "v", "NX"})
		return func() redis.Cmder { return redis.NewCmd(ctx, args...) }
	case 26:
		if s.piped {
			return s.command() // what is no number would spoil all of go-redis' pipeline
		}
		return func() redis.Cmder { return redis.NewIntCmd(ctx, "get", k) }
	case 27:
		hash := pick(s, k, "hash")
		return func() redis.Cmder { return redis.NewMapStringStringCmd(ctx, "hgetall", hash) }
	case 28:
		return func() redis.Cmder { return redis.NewIntCmd(ctx, "hset", "hash", k, k2) }
	default:
		return func() redis.Cmder { return redis.NewBoolCmd(ctx, "setnx", k, "nx") }
	}
}

// result is what a caller can see of a command.
type result struct {
	val any
	err string
	is  string // whose error
}

func resultOf(cmd redis.Cmder) result {
	var r result
	if v := reflect.ValueOf(cmd).MethodByName("Val").Call(nil)[0]; cmd.Err() == nil {
		r.val = v.Interface()
	}
	if err := cmd.Err(); err != nil {
		r.err = err.Error()
		var said redis.Error
		switch {
		case errors.Is(err, redis.Nil):
			r.is = "nil"
		case errors.As(err, &said):
			r.is = fmt.Sprintf("%T", said)
		case errors.Is(err, errMarshal):
			r.is = "marshal"
		}
	}
	return r
}

// same allows for what a clock does between two servers.
func same(a, b result) bool {
	if x, ok := a.val.(time.Duration); ok {
		y, _ := b.val.(time.Duration)
		d := x - y
		return a.err == b.err && -2*time.Second <= d && d <= 2*time.Second && (x < 0) == (y < 0)
	}
	if x, ok := a.val.(int64); ok {
		if y, ok := b.val.(int64); ok && x > 50 && y > 50 {
			return x-y <= 2000 && y-x <= 2000
		}
	}
	return reflect.DeepEqual(a, b)
}

func TestCommandsBehaveAsWithoutTheCache(t *testing.T) {
	ctx := begin(t)
	with, _ := attached(t, calm(redistest.Start(t).Addr()))
	without := plain(t, &redis.Options{Addr: redistest.Start(t).Addr()})
	s := newScript(t)
	var lately []redis.Cmder
	for i := range 4000 {
		m := s.command()
		a, b := m(), m()
		lately = append(lately, b)
		errA, errB := with.Process(ctx, a), without.Process(ctx, b)
		if ra, rb := resultOf(a), resultOf(b); !same(ra, rb) || (errA == nil) != (errB == nil) {
			t.Fatalf("command %d, %v: %#v, %v; without the cache %#v, %v; after %v",
				i, b.Args(), ra, errA, rb, errB, lately[max(0, i-40):])
		}
	}
	sameContents(t, with, without)
}

func TestPipelinesBehaveAsWithoutTheCache(t *testing.T) {
	ctx := begin(t)
	with, _ := attached(t, calm(redistest.Start(t).Addr()))
	without := plain(t, &redis.Options{Addr: redistest.Start(t).Addr()})
	s := newScript(t)
	s.piped = true
	for i := range 500 {
		makers := make([]maker, 1+s.IntN(12))
		for j := range makers {
			makers[j] = s.command()
		}
		transaction := s.IntN(4) == 0
		run := func(rdb *redis.Client) ([]redis.Cmder, error) {
			p := rdb.Pipeline()
			if transaction {
				p = rdb.TxPipeline()
			}
			for _, m := range makers {
				must(t, p.Process(ctx, m()))
			}
			return p.Exec(ctx)
		}
		a, errA := run(with)
		b, errB := run(without)
		if fmt.Sprint(errA) != fmt.Sprint(errB) {
			t.Fatalf("pipeline %d (transaction: %v): %v; without the cache %v; %v", i, transaction, errA, errB, b)
		}
		for j := range a {
			if ra, rb := resultOf(a[j]), resultOf(b[j]); !same(ra, rb) {
				t.Fatalf("pipeline %d (transaction: %v), command %d, %v: %#v; without the cache %#v; of %v",
					i, transaction, j, b[j].Args(), ra, rb, b)
			}
		}
	}
	sameContents(t, with, without)
}

// sameContents compares what the servers have, not what the cache says of it.
func sameContents(t *testing.T, with, without *redis.Client) {
	t.Helper()
	ctx := context.Background()
	a := plain(t, &redis.Options{Addr: with.Options().Addr})
	keys, err := without.Keys(ctx, "*").Result()
	must(t, err)
	if n, err := a.DBSize(ctx).Result(); err != nil || int(n) != len(keys) {
		// The cache's own probe may be there.
		probes := a.Keys(ctx, "holdfast:*").Val()
		if err != nil || int(n)-len(probes) != len(keys) {
			t.Fatalf("%d keys, %v, of which %d are the cache's; without the cache %d", n, err, len(probes), len(keys))
		}
	}
	for _, key := range keys {
		if x, y := contentOf(ctx, a, key), contentOf(ctx, without, key); x != y {
			t.Errorf("%s differs: %q; without the cache %q", key, x, y)
		}
		if x, y := a.PTTL(ctx, key).Val(), without.PTTL(ctx, key).Val(); (x - y).Abs() > 3*time.Second {
			t.Errorf("%s ends in %v; without the cache in %v", key, x, y)
		}
	}
}

// contentOf returns what DUMP has of a key. The order of a set's members differs between two
// servers.
func contentOf(ctx context.Context, rdb *redis.Client, key string) string {
	if rdb.Type(ctx, key).Val() == "set" {
		return fmt.Sprint(slices.Sorted(slices.Values(rdb.SMembers(ctx, key).Val())))
	}
	return rdb.Dump(ctx, key).Val()
}
