package holdfast_test

import (
	"context"
	"fmt"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/rueidis"
)

// Reads of hashes that may be cached race with writes on few keys. A hash has the number of its
// last write in field n, and that of its last HSET in field m.

// hashKeys are the keys of the races.
var hashKeys = []string{"app:0", "app:1", "app:2", "app:3"}

// hashWrite is the write with a number, of which there are four by turns: the last deletes.
func hashWrite(b rueidis.Builder, key string, number int64) rueidis.Completed {
	switch number % 4 {
	case 1:
		text := strconv.FormatInt(number, 10)
		return b.Hset().Key(key).FieldValue().FieldValue("n", text).FieldValue("m", text).Build()
	case 0:
		return b.Del().Key(key).Build()
	}
	return b.Hincrby().Key(key).Field("n").Increment(1).Build()
}

// deletes reports whether a write with a number in [from, until] deletes, or nothing was written
// before.
func deletes(from, until int64) bool { return from == 0 || until/4 > (from-1)/4 }

// hashReads read field n, and return 0 where there is none.
var hashReads = []struct {
	name string
	read func(ctx context.Context, cl rueidis.Client, key string) rueidis.RedisResult
	n    func(res rueidis.RedisResult) (string, error)
}{
	{"HGETALL", func(ctx context.Context, cl rueidis.Client, key string) rueidis.RedisResult {
		return cl.DoCache(ctx, cl.B().Hgetall().Key(key).Cache(), time.Hour)
	}, func(res rueidis.RedisResult) (string, error) {
		fields, err := res.AsStrMap()
		return fields["n"], err
	}},
	{"HGET", func(ctx context.Context, cl rueidis.Client, key string) rueidis.RedisResult {
		return cl.DoCache(ctx, cl.B().Hget().Key(key).Field("n").Cache(), time.Hour)
	}, func(res rueidis.RedisResult) (string, error) { return res.ToString() }},
	{"HMGET", func(ctx context.Context, cl rueidis.Client, key string) rueidis.RedisResult {
		return cl.DoMultiCache(ctx, rueidis.CT(cl.B().Hmget().Key(key).Field("m", "n").Cache(), time.Hour))[0]
	}, func(res rueidis.RedisResult) (string, error) {
		fields, err := res.ToArray()
		if err != nil {
			return "", err
		}
		return fields[1].ToString()
	}},
}

// readNumber reads the number of a hash by one of the reads.
func readNumber(ctx context.Context, cl rueidis.Client, way int, key string) (number int64, hit bool, err error) {
	read := hashReads[way%len(hashReads)]
	res := read.read(ctx, cl, key)
	text, err := read.n(res)
	if rueidis.IsRedisNil(err) || err == nil && text == "" {
		return 0, res.IsCacheHit(), nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("%s: %w", read.name, err)
	}
	number, err = strconv.ParseInt(text, 10, 64)
	return number, res.IsCacheHit(), err
}

// hashRace has the numbers that the readers of a race check, and the counts of their reads.
type hashRace struct {
	t       testing.TB
	started []atomic.Int64 // by key: number of the last write that has begun
	settled []atomic.Int64 // by key: number of the last write that no read may miss

	reads, hits atomic.Int64
}

func newHashRace(t testing.TB) *hashRace {
	return &hashRace{t: t, started: make([]atomic.Int64, len(hashKeys)), settled: make([]atomic.Int64, len(hashKeys))}
}

// check reads key k, and reports a reply that is older than the last settled write.
func (h *hashRace) check(ctx context.Context, cl rueidis.Client, way, k int) {
	floor := h.settled[k].Load()
	number, hit, err := readNumber(ctx, cl, way, hashKeys[k])
	until := h.started[k].Load()
	h.reads.Add(1)
	if hit {
		h.hits.Add(1)
	}
	if err != nil || number > until || number < floor && !(number == 0 && deletes(floor, until)) {
		h.t.Errorf("%s of %s: %d (hit: %v), %v; written were %d to %d",
			hashReads[way%len(hashReads)].name, hashKeys[k], number, hit, err, floor, until)
	}
}

// readAlways reads until stop is called.
func (h *hashRace) readAlways(ctx context.Context, cl rueidis.Client) (stop func()) {
	return load(h.t, 3, func(g, i int) {
		h.check(ctx, cl, g+i/len(hashKeys), i%len(hashKeys))
		if i%64 == 0 {
			time.Sleep(100 * time.Microsecond) // hits alone would keep all processors busy
		}
	})
}

func (h *hashRace) log(c *holdfast.Cache) {
	h.t.Logf("%d reads, %d of them hits; %d replies not stored", h.reads.Load(), h.hits.Load(), c.Stats().FillsDiscarded)
}

// raceRounds are 50,000 rounds in each of two modes, where all tests are to run in full.
func raceRounds(t *testing.T, short int) int { return steps(t, short, 50_000) }

// ownHashWrites are the ways of the Cache's own writes.
var ownHashWrites = []func(ctx context.Context, cl rueidis.Client, cmd rueidis.Completed) error{
	func(ctx context.Context, cl rueidis.Client, cmd rueidis.Completed) error {
		return cl.Do(ctx, cmd).Error()
	},
	func(ctx context.Context, cl rueidis.Client, cmd rueidis.Completed) error {
		return cl.DoMulti(ctx, cmd, cl.B().Ping().Build())[0].Error()
	},
	func(ctx context.Context, cl rueidis.Client, cmd rueidis.Completed) error {
		return cl.DoMulti(ctx, cl.B().Multi().Build(), cmd, cl.B().Exec().Build())[2].Error()
	},
	func(ctx context.Context, cl rueidis.Client, cmd rueidis.Completed) error {
		args := cmd.Commands()
		script := cl.B().Eval().Script("return redis.call(unpack(ARGV))").Numkeys(1).Key(args[1]).Arg(args...).Build()
		return cl.Do(ctx, script).Error()
	},
	func(ctx context.Context, cl rueidis.Client, cmd rueidis.Completed) error {
		return cl.Dedicated(func(d rueidis.DedicatedClient) error { return d.Do(ctx, cmd).Error() })
	},
}

// Each key has one writer. When a write has returned, no read through the same Cache that begins
// afterwards may have an older reply.
func TestNoCachedHashIsOlderThanAnOwnWriteThatHasReturned(t *testing.T) {
	bothModes(t, func(t *testing.T, ctx context.Context, mode holdfast.TrackingMode) {
		s := redistest.Start(t)
		c := open(t, cachingAt(s.Addr(), mode))
		ready(t, c)
		cl := c.Client()
		h := newHashRace(t)
		stop := h.readAlways(ctx, cl)
		var wg sync.WaitGroup
		rounds := raceRounds(t, 4000) / len(hashKeys)
		for k, key := range hashKeys {
			wg.Go(func() {
				for number := int64(1); number <= int64(rounds) && !t.Failed(); number++ {
					write := ownHashWrites[0]
					if number%8 < 5 {
						write = ownHashWrites[number%8]
					}
					h.started[k].Store(number)
					noError(t, write(ctx, cl, hashWrite(cl.B(), key, number)))
					h.settled[k].Store(number)
					for way := range hashReads { // the first may fill, and a later one be a hit
						h.check(ctx, cl, way, k)
					}
				}
			})
		}
		wg.Wait()
		stop()
		h.log(c)
	})
}

// The writes of others settle when the Cache has been told of them.
func TestNoCachedHashIsOlderThanAForeignWriteThatWasTold(t *testing.T) {
	bothModes(t, func(t *testing.T, ctx context.Context, mode holdfast.TrackingMode) {
		s := redistest.Start(t)
		c := open(t, cachingAt(s.Addr(), mode))
		ready(t, c)
		cl, raw := c.Client(), rawAt(t, s.Addr())
		h := newHashRace(t)
		stop := h.readAlways(ctx, cl)
		const perRound = 4 // writes of each key, of which the Cache is told at the end of the round
		for last := int64(perRound); last <= int64(raceRounds(t, 4000)/len(hashKeys)) && !t.Failed(); last += perRound {
			for number := last - perRound + 1; number <= last; number++ {
				var cmds rueidis.Commands
				for k, key := range hashKeys {
					h.started[k].Store(number)
					cmds = append(cmds, hashWrite(raw.B(), key, number))
				}
				for _, res := range raw.DoMulti(ctx, cmds...) {
					must(t, res.Error())
				}
			}
			told(t, c)
			for k := range hashKeys {
				h.settled[k].Store(last)
				for way := range hashReads {
					h.check(ctx, cl, way, k)
				}
			}
		}
		stop()
		h.log(c)
	})
}

// Two instances write the same hashes, and read them meanwhile. When both have been told of all
// writes, each read has the hash that Redis holds, and goes on to have it.
func TestTwoInstancesThatWriteOneHashReadTheSameInTheEnd(t *testing.T) {
	bothModes(t, func(t *testing.T, ctx context.Context, mode holdfast.TrackingMode) {
		s := redistest.Start(t)
		o := cachingAt(s.Addr(), mode)
		caches := [2]*holdfast.Cache{open(t, o), open(t, o)}
		for _, c := range caches {
			ready(t, c)
		}
		raw := rawAt(t, s.Addr())
		const writes = 5 // of each instance to each key, in each round
		rounds := raceRounds(t, 4000) / (len(caches) * len(hashKeys) * writes)
		for round := 0; round < rounds && !t.Failed(); round++ {
			var wg sync.WaitGroup
			for ci, c := range caches {
				cl := c.Client()
				for k, key := range hashKeys {
					wg.Go(func() {
						for i := range writes {
							write := ownHashWrites[(round+ci+i)%len(ownHashWrites)]
							noError(t, write(ctx, cl, hashWrite(cl.B(), key, int64(round*writes+i+ci+k))))
							runtime.Gosched()
						}
					})
					wg.Go(func() {
						for i := range writes {
							_, _, err := readNumber(ctx, cl, round+i, key)
							noError(t, err)
						}
					})
				}
			}
			wg.Wait()
			for ci, c := range caches {
				told(t, c)
				agreeOnHashes(t, ctx, c.Client(), raw, fmt.Sprintf("round %d, instance %d", round, ci))
			}
		}
	})
}

// agreeOnHashes asserts that each read of the hashes has the number that Redis holds, twice: the
// second may be a hit.
func agreeOnHashes(t *testing.T, ctx context.Context, cl, raw rueidis.Client, at string) {
	t.Helper()
	for _, key := range hashKeys {
		truth, err := raw.Do(ctx, raw.B().Hget().Key(key).Field("n").Build()).AsInt64()
		if err != nil && !rueidis.IsRedisNil(err) {
			t.Fatal(err)
		}
		for way := range 2 * len(hashReads) {
			if number, hit, err := readNumber(ctx, cl, way, key); err != nil || number != truth {
				t.Errorf("%s: %s of %s: %d (hit: %v), %v; redis holds %d", at, hashReads[way%len(hashReads)].name, key, number, hit, err, truth)
			}
		}
	}
}
