package holdfast_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/rueidis"
)

// Replies of all types that were cached before Redis went away are served from memory.

// keptReply is a read and the reply that was cached.
type keptReply struct {
	command
	want string
}

// kept reads all keptReads until each is a hit, and returns them with their replies.
func kept(t *testing.T, ctx context.Context, cl rueidis.Client) []keptReply {
	t.Helper()
	all := make([]keptReply, len(keptReads))
	for i, line := range keptReads {
		c := command{args: strings.Fields(line)}
		var res rueidis.RedisResult
		for range 20 { // a reply that was read beside an invalidation is not stored
			if res = cl.DoCache(ctx, forDoCache(cl.B(), c), time.Hour); res.IsCacheHit() {
				break
			}
		}
		if err := res.NonRedisError(); err != nil || !res.IsCacheHit() {
			t.Errorf("%s is no hit (%v)", line, err)
		}
		all[i] = keptReply{c, resultText(c, res)}
	}
	return all
}

// served asserts that each reply is as it was, alone and in a batch.
func served(t *testing.T, ctx context.Context, cl rueidis.Client, all []keptReply) {
	t.Helper()
	batch := make([]rueidis.CacheableTTL, len(all))
	for i, k := range all {
		if got := resultText(k.command, cl.DoCache(ctx, forDoCache(cl.B(), k.command), time.Hour)); got != k.want {
			t.Errorf("%q: %s; it was %s", k.args, got, k.want)
		}
		batch[i] = rueidis.CT(forDoCache(cl.B(), k.command), time.Hour)
	}
	for i, res := range cl.DoMultiCache(ctx, batch...) {
		if got := resultText(all[i].command, res); got != all[i].want {
			t.Errorf("%q in a batch: %s; it was %s", all[i].args, got, all[i].want)
		}
	}
}

// withContents starts a server with the contents and a Cache that keeps the replies.
func withContents(t *testing.T, ctx context.Context, outage holdfast.OutageOptions) (*redistest.Server, *holdfast.Cache, []keptReply) {
	t.Helper()
	s := redistest.Start(t)
	fill(s)
	o := cachingAt(s.Addr(), holdfast.TrackReads)
	o.Timeout, o.Outage = budget(), outage
	c := open(t, o)
	ready(t, c)
	return s, c, kept(t, ctx, c.Client())
}

// asRedis asserts that each read has the reply that Redis gives now.
func asRedis(t *testing.T, ctx context.Context, s *redistest.Server, c *holdfast.Cache, all []keptReply) {
	t.Helper()
	waitState(t, c, holdfast.Up)
	told(t, c)
	raw := rawAt(t, s.Addr())
	now := slices.Clone(all)
	for i, k := range all {
		now[i].want = resultText(k.command, raw.Do(ctx, built(raw.B(), k.args)))
	}
	served(t, ctx, c.Client(), now)
}

func TestCachedRepliesAreServedWhileRedisIsKilled(t *testing.T) {
	ctx := begin(t)
	s, c, all := withContents(t, ctx, holdfast.OutageOptions{})
	cl := c.Client()
	s.Kill()
	waitState(t, c, holdfast.Down)
	for range 3 {
		served(t, ctx, cl, all)
	}
	wantUnavailable(t, "a reply that was not cached", cl.DoCache(ctx, cl.B().Hgetall().Key("app:other").Cache(), time.Hour).Error())
	wantUnavailable(t, "a command that only Redis can answer", cl.Do(ctx, cl.B().Hset().Key("app:h2").FieldValue().FieldValue("f", "v").Build()).Error())

	// A delete and a set that were accepted end the replies of their keys.
	must(t, cl.Do(ctx, cl.B().Del().Key("app:h1").Build()).Error())
	must(t, c.Set(ctx, "app:l1", []byte("v"), 0))
	replaced := map[string]bool{"app:h1": true, "app:l1": true}
	for _, k := range all {
		if !replaced[k.args[1]] {
			continue
		}
		if got := resultText(k.command, cl.DoCache(ctx, forDoCache(cl.B(), k.command), time.Hour)); got == k.want && !slices.Contains(k.args, "absent") {
			t.Errorf("%q: %s, from before the write", k.args, got)
		}
	}
	s.Restart() // with nothing
	drain(t, c)
	asRedis(t, ctx, s, c, all)
}

func TestCachedRepliesAreServedWhileRedisIsStopped(t *testing.T) {
	ctx := begin(t)
	s, c, all := withContents(t, ctx, holdfast.OutageOptions{})
	s.Pause()
	served(t, ctx, c.Client(), all) // while the stop is being noticed, too
	waitState(t, c, holdfast.Down)
	served(t, ctx, c.Client(), all)
	s.Resume()
	s.MustDo("HSET", "app:h1", "f1", "after")
	s.MustDo("DEL", "app:z1")
	asRedis(t, ctx, s, c, all)
}

func TestCachedRepliesAreServedWithinTheOutageOptionsOnly(t *testing.T) {
	ctx := begin(t)
	const serveFor = 300 * time.Millisecond
	s, c, all := withContents(t, ctx, holdfast.OutageOptions{ServeFor: serveFor})
	s.Kill()
	waitState(t, c, holdfast.Down)
	passes(t, "the end of Outage.ServeFor", serveFor)
	for _, k := range all {
		res := c.Client().DoCache(ctx, forDoCache(c.Client().B(), k.command), time.Hour)
		if k.name() == "GET" {
			if !rueidis.IsRedisNil(res.Error()) { // a miss
				t.Errorf("%q: %v; want a miss", k.args, res.Error())
			}
			continue
		}
		wantUnavailable(t, strings.Join(k.args, " "), res.Error())
	}
}

// The server announces the expiry of a key. The replies may stand in past it, as a value may.
func TestCachedRepliesAreServedPastTheEndOfTheirKey(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	o := at(s.Addr())
	o.Outage.ServeStaleFor = time.Hour
	c := open(t, o)
	ready(t, c)
	cl := c.Client()
	s.MustDo("HSET", "h", "f", "v")
	s.MustDo("PEXPIRE", "h", "2000")
	hitOf(t, cl, "HGETALL h")
	before := c.Stats()
	redistest.WaitFor(t, patience, "the end of the key", func() bool {
		return s.MustDo("EXISTS", "h") == "0" && c.Stats().Minus(before).Invalidations > 0
	})
	s.Kill()
	waitState(t, c, holdfast.Down)
	if got := anyOf(cl.DoCache(ctx, cacheable(cl, "HGETALL h"), time.Hour)); got != "map[f:v] <nil>" {
		t.Errorf("past the end of the key HGETALL is %s", got)
	}
	if n := c.Stats().Minus(before).StaleHits; n != 1 {
		t.Errorf("%d reads past the end are counted, want 1", n)
	}
}

// The differential test compares hits of most commands, not replies of Redis alone.
func TestTheDifferentialTestComparesHits(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	p := newTwins(t, ctx, cachingAt(s.Addr(), holdfast.TrackReads), s)
	p.run(steps(t, 100, 1000))
	if len(p.hits) < 20 {
		t.Errorf("there are hits of %d commands only: %v", len(p.hits), p.hits)
	}
}
