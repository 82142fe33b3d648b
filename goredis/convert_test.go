package goredis

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"
)

// canned starts a server that answers each command with reply, and a client of each
// library.
func canned(t *testing.T) (reply *atomic.Value, ours rueidis.Client, theirs *redis.Client) {
	reply = new(atomic.Value)
	l := redistest.Respond(t, func(_ int, command []string) (string, bool) {
		switch strings.ToUpper(command[0]) {
		case "HELLO":
			return "%2\r\n$6\r\nserver\r\n$5\r\nredis\r\n$5\r\nproto\r\n:3\r\n", true
		case "CLIENT":
			return "+OK\r\n", true
		}
		return strings.ReplaceAll(reply.Load().(string), " ", "\r\n") + "\r\n", true
	})
	ours, err := rueidis.NewClient(rueidis.ClientOption{
		InitAddress: []string{l.Addr()}, DisableCache: true, ForceSingleClient: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ours.Close)
	theirs = redis.NewClient(&redis.Options{Addr: l.Addr(), MaxRetries: -1})
	t.Cleanup(func() { _ = theirs.Close() })
	return reply, ours, theirs
}

// Replies in all forms that a server may give them, also those of modules: what is stored is
// what go-redis reads.
func TestRepliesAreStoredAsGoRedisReadsThem(t *testing.T) {
	ctx := context.Background()
	reply, ours, theirs := canned(t)
	caught := redis.NewClient(&redis.Options{Addr: theirs.Options().Addr})
	defer caught.Close()
	caught.AddHook(catcher{func(cmd redis.Cmder) {
		args, err := encode(cmd.Args())
		s := specOf(cmd.Name())
		if err != nil || s.class != cached || !s.shapeOf(args).fits(cmd) {
			t.Errorf("%v is not cached: %v", args, err)
		}
		cmd.SetErr(s.shapeOf(args).answer(cmd, ours.Do(ctx, ours.B().Arbitrary(args...).Build())))
	}})
	type cmdable = redis.Cmdable
	for name, tt := range map[string]struct {
		run     func(r cmdable) redis.Cmder
		replies string // separated by |; their lines by a space
	}{
		"HGET":               {func(r cmdable) redis.Cmder { return r.HGet(ctx, "k", "f") }, "$1 v|$0 |_|$-1|-WRONGTYPE_x|-ERR_x|-x"},
		"TYPE":               {func(r cmdable) redis.Cmder { return r.Type(ctx, "k") }, "+string|$4 none"},
		"HLEN":               {func(r cmdable) redis.Cmder { return r.HLen(ctx, "k") }, ":0|:7|:-1|_"},
		"HEXISTS":            {func(r cmdable) redis.Cmder { return r.HExists(ctx, "k", "f") }, ":0|:1|:2|_"},
		"BFEXISTS":           {func(r cmdable) redis.Cmder { return r.BFExists(ctx, "k", "f") }, ":0|:1|#t|#f"},
		"CFEXISTS":           {func(r cmdable) redis.Cmder { return r.CFExists(ctx, "k", "f") }, ":1|#t"},
		"BFMEXISTS":          {func(r cmdable) redis.Cmder { return r.BFMExists(ctx, "k", "f") }, "*2 :0 :1|*2 #t #f|*0"},
		"CFMEXISTS":          {func(r cmdable) redis.Cmder { return r.CFMExists(ctx, "k", "f") }, "*2 :0 :1|*2 #t #f"},
		"BFCARD":             {func(r cmdable) redis.Cmder { return r.BFCard(ctx, "k") }, ":3"},
		"CFCOUNT":            {func(r cmdable) redis.Cmder { return r.CFCount(ctx, "k", "f") }, ":3"},
		"CMSQUERY":           {func(r cmdable) redis.Cmder { return r.CMSQuery(ctx, "k", "f") }, "*2 :3 :0"},
		"TOPKQUERY":          {func(r cmdable) redis.Cmder { return r.TopKQuery(ctx, "k", "f") }, "*2 :1 :0|*2 #t #f"},
		"TOPKLIST":           {func(r cmdable) redis.Cmder { return r.TopKList(ctx, "k") }, "*3 $1 a $1 b _|*1 $-1"},
		"TOPKCOUNT":          {func(r cmdable) redis.Cmder { return r.TopKCount(ctx, "k", "f") }, "*1 :3"},
		"JSONGET":            {func(r cmdable) redis.Cmder { return r.JSONGet(ctx, "k", "$") }, "$3 [1]|$4 null"},
		"HGETALL":            {func(r cmdable) redis.Cmder { return r.HGetAll(ctx, "k") }, "%1 $1 f $1 v|*2 $1 f $1 v|%0|*0|_"},
		"HMGET":              {func(r cmdable) redis.Cmder { return r.HMGet(ctx, "k", "f", "g") }, "*2 $1 v _|*2 $-1 $0 |*0"},
		"LRANGE":             {func(r cmdable) redis.Cmder { return r.LRange(ctx, "k", 0, 1) }, "*2 $1 a $1 b|*0|*1 _"},
		"LPOS":               {func(r cmdable) redis.Cmder { return r.LPos(ctx, "k", "e", redis.LPosArgs{Rank: -1, MaxLen: 5}) }, ":3|_|$-1"},
		"LPOS COUNT":         {func(r cmdable) redis.Cmder { return r.LPosCount(ctx, "k", "e", 0, redis.LPosArgs{MaxLen: 5}) }, "*2 :1 :3|*0"},
		"SMEMBERS":           {func(r cmdable) redis.Cmder { return r.SMembers(ctx, "k") }, "~2 $1 a $1 b|*1 $1 a|~0"},
		"SMEMBERS as a map":  {func(r cmdable) redis.Cmder { return r.SMembersMap(ctx, "k") }, "~2 $1 a $1 b|*1 $1 a|~0"},
		"SMISMEMBER":         {func(r cmdable) redis.Cmder { return r.SMIsMember(ctx, "k", "a", "b") }, "*2 :1 :0"},
		"ZSCORE":             {func(r cmdable) redis.Cmder { return r.ZScore(ctx, "k", "a") }, ",1.5|$3 1.5|,inf|$4 -inf|_|$-1|,1e300|$19 0.10000000000000001"},
		"GEODIST":            {func(r cmdable) redis.Cmder { return r.GeoDist(ctx, "k", "a", "b", "m") }, "$6 1.5000|_"},
		"ZMSCORE":            {func(r cmdable) redis.Cmder { return r.ZMScore(ctx, "k", "a", "b") }, "*2 ,1.5 _|*2 $3 1.5 $-1"},
		"ZRANK":              {func(r cmdable) redis.Cmder { return r.ZRank(ctx, "k", "a") }, ":3|_"},
		"ZRANK WITHSCORE":    {func(r cmdable) redis.Cmder { return r.ZRankWithScore(ctx, "k", "a") }, "*2 :3 ,1.5|*2 :3 $3 1.5|_|*-1"},
		"ZREVRANK WITHSCORE": {func(r cmdable) redis.Cmder { return r.ZRevRankWithScore(ctx, "k", "a") }, "*2 :3 ,1.5"},
		"ZRANGE WITHSCORES": {func(r cmdable) redis.Cmder { return r.ZRangeWithScores(ctx, "k", 0, 1) },
			"*2 *2 $1 a ,1 *2 $1 b ,-inf|*4 $1 a $1 1 $1 b $3 inf|*0"},
		"XRANGE":       {func(r cmdable) redis.Cmder { return r.XRange(ctx, "k", "-", "+") }, "*2 *2 $3 1-1 *4 $1 f $1 v $1 g $0  *2 $3 2-1 *2 $1 f $1 w|*0"},
		"GEOPOS":       {func(r cmdable) redis.Cmder { return r.GeoPos(ctx, "k", "a") }, "*2 *2 ,1.5 ,2.5 _|*2 *-1 *2 $3 1.5 $3 2.5"},
		"GEOHASH":      {func(r cmdable) redis.Cmder { return r.GeoHash(ctx, "k", "a") }, "*2 $2 sq _"},
		"GEORADIUS_RO": {func(r cmdable) redis.Cmder { return r.GeoRadius(ctx, "k", 1, 2, &redis.GeoRadiusQuery{Radius: 1}) }, "*2 $1 a $1 b|*0"},
		"GEORADIUS_RO WITHDIST": {func(r cmdable) redis.Cmder {
			return r.GeoRadius(ctx, "k", 1, 2, &redis.GeoRadiusQuery{Radius: 1, WithDist: true, WithGeoHash: true})
		}, "*1 *3 $1 a $3 1.5 :77|*0"},
		"GEOSEARCH WITHCOORD": {func(r cmdable) redis.Cmder {
			return r.GeoSearchLocation(ctx, "k", &redis.GeoSearchLocationQuery{WithCoord: true, WithDist: true})
		}, "*1 *3 $1 a $3 1.5 *2 ,1 ,2|*1 *3 $1 a $3 1.5 *2 $1 1 $1 2|*0"},
		"Do": {func(r cmdable) redis.Cmder { return r.(*redis.Client).Do(ctx, "HGETALL", "k") },
			"%2 $1 f $1 v $1 g _|*2 :1 _|,1.5|#t|$1 s|+s|~1 $1 a|*1 *2 $1 a ,1|_|:5|%0|*0"},
	} {
		for wire := range strings.SplitSeq(tt.replies, "|") {
			reply.Store(wire)
			want, got := tt.run(theirs), tt.run(caught)
			if a, b := shown(got), shown(want); a != b {
				t.Errorf("%s, %q: %s; go-redis has %s", name, wire, a, b)
			}
		}
	}
}

// Versions of go-redis differ in what they make of it: it is read by go-redis itself.
func TestAnAbsentDocumentIsLeftToGoRedis(t *testing.T) {
	ctx := context.Background()
	reply, ours, theirs := canned(t)
	for wire := range strings.SplitSeq("_|$-1|$0 |*1 $1 a", "|") {
		reply.Store(wire)
		cmd := theirs.JSONGet(ctx, "k", "$")
		res := ours.Do(ctx, ours.B().Arbitrary("JSON.GET", "k", "$").Build())
		if err := document.answer(cmd, res); !errors.Is(err, errMisfit) {
			t.Errorf("%q: %v", wire, err)
		}
	}
	h := &hook{cached: true}
	for pipelined, want := range map[bool]class{false: cached, true: through} {
		if c, err := h.read(theirs.JSONGet(ctx, "k", "$"), pipelined); err != nil || c.class != want {
			t.Errorf("in a pipeline: %v; class %v, %v", pipelined, c.class, err)
		}
	}
}

// catcher hands the commands to a function instead of Redis.
type catcher struct{ catch func(redis.Cmder) }

func (c catcher) DialHook(next redis.DialHook) redis.DialHook { return next }

func (c catcher) ProcessHook(redis.ProcessHook) redis.ProcessHook {
	return func(_ context.Context, cmd redis.Cmder) error {
		c.catch(cmd)
		return cmd.Err()
	}
}

func (c catcher) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// shown is the value of a command, with its types, or its error.
func shown(cmd redis.Cmder) string {
	if err := cmd.Err(); err != nil {
		return fmt.Sprintf("%T %v", err, err)
	}
	v := reflect.ValueOf(cmd).MethodByName("Val").Call(nil)[0].Interface()
	if at, ok := v.([]*redis.GeoPos); ok {
		all := make([]any, len(at))
		for i, p := range at {
			if p != nil {
				all[i] = *p
			}
		}
		v = all
	}
	return fmt.Sprintf("%T %#v", v, v)
}
