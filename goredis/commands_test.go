package goredis

import (
	"context"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/go-redis/v9"
)

func TestTheTableOfCommandsIsTheServers(t *testing.T) {
	s := redistest.Start(t)
	rdb := redis.NewClient(&redis.Options{Addr: s.Addr()})
	t.Cleanup(func() { _ = rdb.Close() })
	infos, err := rdb.Command(context.Background()).Result()
	if err != nil || len(infos) < 200 {
		t.Fatalf("%d commands, %v", len(infos), err)
	}
	for name, info := range infos {
		mine, known := specs[name]
		if !known {
			t.Logf("%s is not in the table: its arguments count as keys", name)
			continue
		}
		has := func(flag string) bool { return slices.Contains(info.Flags, flag) }
		if has("write") && !mine.write {
			t.Errorf("%s writes", name)
		}
		if has("blocking") && mine.class != waiting {
			t.Errorf("%s blocks: %v", name, has("blocking"))
		}
		if has("movablekeys") || mine.moved != nil || name == "ssubscribe" || mine.class == session || mine.class == refused {
			continue
		}
		want := keySpec{int(info.FirstKeyPos), int(info.LastKeyPos), int(info.StepCount)}
		if want.first == 0 {
			want = keySpec{}
		}
		if mine.keys != want {
			t.Errorf("%s: keys %v, and the server says %v", name, mine.keys, want)
		}
	}
}

func TestKeysAreFoundWhereTheServerFindsThem(t *testing.T) {
	s := redistest.Start(t)
	rdb := redis.NewClient(&redis.Options{Addr: s.Addr()})
	t.Cleanup(func() { _ = rdb.Close() })
	for line := range strings.Lines(`get k
		mget a b c
		mset a 1 b 2
		msetnx a 1 b 2
		del a b
		eval script 2 a b c
		evalsha sha 1 a b
		eval_ro script 1 a b
		fcall f 3 a b c d
		zinterstore to 2 a b weights 1 2
		zunionstore to 1 a
		zdiffstore to 2 a b
		zunion 2 a b
		zinter 2 a b
		zintercard 2 a b limit 1
		sintercard 1 a
		lmpop 2 a b left
		zmpop 1 a min
		blmpop 1 2 a b left
		bzmpop 1 1 a min
		blpop a b 0
		blmove a b left right 0
		brpoplpush a b 0
		xread count 1 block 0 streams a b 0 0
		xreadgroup group g c streams a b > >
		xinfo stream a
		xgroup create a g $
		bitop and to a b
		lcs a b
		copy a b
		rename a b
		smove a b m
		watch a b`) {
		args := strings.Fields(line)
		all := []any{"command", "getkeys"}
		for _, arg := range args {
			all = append(all, arg)
		}
		want, err := rdb.Do(context.Background(), all...).StringSlice()
		if err != nil {
			t.Errorf("%v: %v", args, err)
			continue
		}
		spec := specOf(args[0])
		got := slices.Clone(spec.find(args))
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%v: keys %v, and the server says %v", args, got, want)
		}
	}
}

func TestFindingKeysTakesAnyArguments(t *testing.T) {
	words := []string{"", "0", "1", "2", "-1", "99999999999999999999", "streams", "STREAMS", "k"}
	for name := range specs {
		spec := specOf(name)
		for n := range 5 {
			for seed := range 20 {
				args := []string{name}
				for i := range n {
					args = append(args, words[(seed*7+i*3)%len(words)])
				}
				for _, key := range spec.find(args) {
					if !slices.Contains(args[1:], key) {
						t.Fatalf("%v: %q is none of them", args, key)
					}
				}
			}
		}
	}
}

// An end in 300 years was one in the past, for a Duration that overflows is negative.
func TestATTLThatNoDurationHoldsIsTheLongest(t *testing.T) {
	for _, tt := range []struct {
		s    shape
		n    int64
		want time.Duration
	}{
		{seconds, -1, -1}, {seconds, -2, -2}, {milliseconds, -1, -1},
		{seconds, 7, 7 * time.Second}, {milliseconds, 7, 7 * time.Millisecond},
		{seconds, math.MaxInt64 / 1_000_000_000, math.MaxInt64 / 1_000_000_000 * time.Second},
		{seconds, 300 * 365 * 24 * 3600, math.MaxInt64}, {seconds, math.MaxInt64, math.MaxInt64},
		{milliseconds, math.MaxInt64, math.MaxInt64},
	} {
		if got := tt.s.duration(tt.n); got != tt.want {
			t.Errorf("%d of unit %v: %v, want %v", tt.n, tt.s, got, tt.want)
		}
	}
}
