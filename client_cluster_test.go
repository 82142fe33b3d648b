package holdfast_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/rueidis"
)

func TestADropInInACluster(t *testing.T) {
	ctx := begin(t)
	r := redistest.StartCluster(t, 3, 0)
	o := inCluster(r.Addrs()...)
	o.Timeout = 10 * time.Second
	c := open(t, o)
	ready(t, c)
	cl := c.Client()
	if cl.Mode() != rueidis.ClientModeCluster || len(cl.Nodes()) != 3 {
		t.Errorf("mode %v, nodes %v", cl.Mode(), cl.Nodes())
	}
	sendsEachCommandToItsNode(t, ctx, r, cl)
	t.Run("of which a slot moves", func(t *testing.T) { followsAMove(t, ctx, r, c) })
	t.Run("beside rueidis' own client", func(t *testing.T) {
		// Both in one cluster, each in a slot of its own. The other is a client of the one
		// node: rueidis' cluster client leaves goroutines behind for seconds.
		plain := plainClient(t, r.Owner("{p}").Addr())
		compare(t, ctx, seedOf(t), inSlot{plain, "{p}"}, inSlot{cl, "{q}"}, 1500, clusterCommand)
	})
	t.Run("of which a shard is away", func(t *testing.T) { losesAShard(t, r, c) })
}

func sendsEachCommandToItsNode(t *testing.T, ctx context.Context, r *redistest.Cluster, cl rueidis.Client) {
	const n = 60
	var sets, incrs []rueidis.Completed
	var keys, twice []string
	for i := range n {
		key := fmt.Sprintf("key:%d", i)
		keys, twice = append(keys, key), append(twice, key, key)
		sets = append(sets, cl.B().Set().Key(key).Value(strconv.Itoa(i)).Build())
		incrs = append(incrs, cl.B().Incr().Key(key).Build())
	}
	for i, res := range append(cl.DoMulti(ctx, sets...), cl.DoMulti(ctx, incrs...)...) {
		if err := res.Error(); err != nil {
			t.Fatalf("command %d: %v", i, err)
		}
	}
	all, err := cl.Do(ctx, cl.B().Mget().Key(keys...).Build()).AsStrSlice()
	if err != nil || len(all) != n {
		t.Fatalf("MGET over all slots: %v, %v", all, err)
	}
	for i, v := range all {
		if want := strconv.Itoa(i + 1); v != want {
			t.Errorf("%s is %q; want %q", keys[i], v, want)
		}
		if v := r.Owner(keys[i]).MustDo("GET", keys[i]); v != strconv.Itoa(i+1) {
			t.Errorf("%s is %q at its node", keys[i], v)
		}
	}
	helped, err := rueidis.MGet(cl, ctx, keys)
	if err != nil || len(helped) != n {
		t.Errorf("rueidis.MGet: %d values, %v", len(helped), err)
	}
	wantSay(t, cl, strconv.Itoa(2*n), append([]string{"EXISTS"}, twice...)...)
	for i := range 20 {
		k := fmt.Sprintf("{%d}", i)
		for _, line := range []string{
			"SET $a v", "EVAL return(redis.call('set',KEYS[1],'x')) 1 $a", "BITOP NOT $b $a", "XADD $s 1-1 f v", "XINFO STREAM $s",
			"XREAD COUNT 1 STREAMS $s 0", "ZADD $z 1 m", "ZUNIONSTORE $y 1 $z", "OBJECT ENCODING $a", "MEMORY USAGE $a",
			"SINTERCARD 1 $none", "LMPOP 1 $none LEFT", "XGROUP CREATE $s g 0", "COPY $a $c", "SPUBLISH $ch m",
		} {
			if _, err := ask(cl, strings.Fields(strings.ReplaceAll(line, "$", k))...); err != nil {
				t.Errorf("%s: %v", line, err)
			}
		}
		tx := cl.DoMulti(ctx, cl.B().Multi().Build(), cl.B().Incr().Key(k+"n").Build(), cl.B().Get().Key(k+"n").Build(), cl.B().Exec().Build())
		if v, err := tx[3].AsStrSlice(); err != nil || len(v) != 2 {
			t.Errorf("a transaction: %v, %v", v, err)
		}
	}
	if _, err := ask(cl, "RENAME", "key:1", "key:2"); err == nil || !strings.HasPrefix(err.Error(), "CROSSSLOT") {
		t.Errorf("two keys of two slots: %v; want Redis' own error", err)
	}
	wantSay(t, cl, strconv.Itoa(n), append([]string{"DEL"}, twice...)...)
	for addr, node := range cl.Nodes() {
		if got := say(t, node, "CLUSTER", "MYID"); got == "" {
			t.Errorf("node %s has no id", addr)
		}
	}
	moved := 0
	for _, node := range cl.Nodes() {
		if _, err := ask(node, "GET", "key:1"); err != nil && strings.HasPrefix(err.Error(), "MOVED") {
			moved++
		}
	}
	if moved != 2 {
		t.Errorf("%d nodes say that the key is elsewhere; want 2", moved)
	}
}

// inSlot has all keys in one slot: the slot's tag is put before each.
type inSlot struct {
	rueidis.Client
	tag string
}

var clusterForms = slices.DeleteFunc(slices.Clone(forms), func(form string) bool {
	f := " " + form + " "
	return strings.HasPrefix(form, "FLUSH") || strings.HasPrefix(form, "LMPOP") || strings.HasPrefix(form, "MEMORY") || strings.HasPrefix(form, "BOGUS") || !strings.Contains(f, " K ")
})

// clusterCommand marks the keys, so that each side can put its tag before them.
func clusterCommand(r *rand.Rand) []string {
	args := strings.Fields(pick(r, clusterForms))
	now := time.Now().Unix()
	for i, arg := range args[1:] {
		switch arg {
		case "K":
			arg = "{?}" + pick(r, []string{"a", "b", "c", "d"})
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
	return args
}

func (s inSlot) tagged(cmd rueidis.Completed) rueidis.Completed {
	args := slices.Clone(cmd.Commands())
	b, first := s.B().Arbitrary(args[0]), true
	for _, arg := range args[1:] {
		rest, is := strings.CutPrefix(arg, "{?}")
		switch {
		case is && first:
			b, first = b.Keys(s.tag+rest), false
		case is:
			b = b.Args(s.tag + rest)
		default:
			b = b.Args(arg)
		}
	}
	return b.Build()
}

func (s inSlot) Do(ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	return s.Client.Do(ctx, s.tagged(cmd))
}

func (s inSlot) DoCache(ctx context.Context, cmd rueidis.Cacheable, ttl time.Duration) rueidis.RedisResult {
	return s.Client.DoCache(ctx, rueidis.Cacheable(s.tagged(rueidis.Completed(cmd))), ttl)
}

func (s inSlot) DoMulti(ctx context.Context, multi ...rueidis.Completed) []rueidis.RedisResult {
	var all []rueidis.Completed
	for _, cmd := range multi {
		all = append(all, s.tagged(cmd))
	}
	return s.Client.DoMulti(ctx, all...)
}

// followsAMove writes while a slot is on its way.
func followsAMove(t *testing.T, ctx context.Context, r *redistest.Cluster, c *holdfast.Cache) {
	cl := c.Client()
	const key = "{moving}n"
	wantSay(t, cl, "1", "INCR", key)
	from := r.Owner(key)
	to := r.Nodes()[0]
	if to == from {
		to = r.Nodes()[1]
	}
	r.MoveSlot(redistest.Slot(key), to)
	wantSay(t, cl, "2", "INCR", key)
	wantSay(t, cl, "2", "GET", key)
	r.MoveSlot(redistest.Slot(key), from)
	tx := cl.DoMulti(ctx, cl.B().Multi().Build(), cl.B().Incr().Key(key).Build(), cl.B().Exec().Build())
	if v, err := tx[2].AsIntSlice(); err != nil || len(v) != 1 || v[0] != 3 {
		t.Errorf("a transaction whose slot has moved: %v, %v", v, err)
	}
	wantSay(t, cl, "3", "GET", key)
	large := strings.Repeat("x", 2<<20)
	r.MoveSlot(redistest.Slot(key), to)
	wantSay(t, cl, strconv.Itoa(len(large)+1), "APPEND", key, large)
	r.MoveSlot(redistest.Slot(key), from)
}

func losesAShard(t *testing.T, r *redistest.Cluster, c *holdfast.Cache) {
	cl := c.Client()
	gone, there := keysAt(2, 1, "gone")[0], keysAt(0, 1, "there")[0]
	wantSay(t, cl, "OK", "SET", gone, "1")
	wantSay(t, cl, "1", "GET", gone)
	r.Nodes()[2].Kill()
	waitShard(t, c, r.Nodes()[2].Addr(), holdfast.Down)
	wantSay(t, cl, "1", "GET", gone)
	wantSay(t, cl, "OK", "MSET", gone, "2", there, "3")
	wantSay(t, cl, "2 3", "MGET", gone, there)
	wantSay(t, cl, "4", "INCR", there)
	wantSay(t, cl, "PONG", "PING")
	if _, err := ask(cl, "INCR", gone); !errors.Is(err, holdfast.ErrUnavailable) {
		t.Errorf("INCR at a shard that is away: %v", err)
	}
}
