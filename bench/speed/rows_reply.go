package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"
)

// Rows of replies of other types than strings that a client keeps in the process.

// replyReader reads a hash or a sorted set and converts the reply as a program does.
type replyReader struct {
	hash   func(ctx context.Context, key string) (map[string]string, error)
	scores func(ctx context.Context, key string) ([]string, error)
	isHit  func(key string) bool // of the read that the key is for; nil: the client does not tell
	close  func()
}

// replyClients are the clients that keep such replies, by name.
func replyClients() []struct {
	name string
	open func(addr string) (*replyReader, error)
} {
	return []struct {
		name string
		open func(addr string) (*replyReader, error)
	}{
		{"holdfast Client().DoCache", func(addr string) (*replyReader, error) {
			c, err := connect(addr)
			if err != nil {
				return nil, err
			}
			r := readerOf(c.Client())
			r.close = func() { c.Close() }
			return r, nil
		}},
		{"rueidis DoCache", func(addr string) (*replyReader, error) {
			cl, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{addr}})
			if err != nil {
				return nil, err
			}
			return readerOf(cl), nil
		}},
		{"go-redis, its client-side cache", func(addr string) (*replyReader, error) {
			cl := redis.NewClient(&redis.Options{Addr: addr, Protocol: 3, ClientSideCacheConfig: &redis.ClientSideCacheConfig{}})
			return &replyReader{
				hash:   func(ctx context.Context, key string) (map[string]string, error) { return cl.HGetAll(ctx, key).Result() },
				scores: func(ctx context.Context, key string) ([]string, error) { return cl.ZRange(ctx, key, 0, -1).Result() },
				close:  func() { cl.Close() },
			}, nil
		}},
	}
}

func readerOf(cl rueidis.Client) *replyReader {
	hash := func(ctx context.Context, key string) rueidis.RedisResult {
		return cl.DoCache(ctx, cl.B().Hgetall().Key(key).Cache(), keptFor)
	}
	scores := func(ctx context.Context, key string) rueidis.RedisResult {
		return cl.DoCache(ctx, cl.B().Zrange().Key(key).Min("0").Max("-1").Cache(), keptFor)
	}
	return &replyReader{
		hash:   func(ctx context.Context, key string) (map[string]string, error) { return hash(ctx, key).AsStrMap() },
		scores: func(ctx context.Context, key string) ([]string, error) { return scores(ctx, key).AsStrSlice() },
		isHit: func(key string) bool {
			if strings.HasPrefix(key, hashes) {
				return hash(bg, key).IsCacheHit()
			}
			return scores(bg, key).IsCacheHit()
		},
		close: cl.Close,
	}
}

const hashes = "speed:hash"

func hashOf(n int) string   { return hashes + strconv.Itoa(n) }
func scoresOf(n int) string { return "speed:scores" + strconv.Itoa(n) }

// storeElements gives Redis a hash and a sorted set of n elements.
func storeElements(addr string, n int) error {
	cl, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{addr}, DisableCache: true})
	if err != nil {
		return err
	}
	defer cl.Close()
	hash := cl.B().Hset().Key(hashOf(n)).FieldValue()
	scores := cl.B().Zadd().Key(scoresOf(n)).ScoreMember()
	for i := range n {
		hash = hash.FieldValue(fmt.Sprint("field", i), fmt.Sprint("a value of some length ", i))
		scores = scores.ScoreMember(float64(i), fmt.Sprint("member", i))
	}
	for _, r := range cl.DoMulti(bg, hash.Build(), scores.Build()) {
		if err := r.Error(); err != nil {
			return err
		}
	}
	return nil
}

func replyRows() []row {
	loads := []load{
		{callers: 1, ops: 300_000, warm: 20_000, every: 16},
		{callers: 8, ops: 300_000, warm: 20_000, every: 16},
	}
	hits := row{
		name: "reply-hit", title: "A hit of HGETALL and of ZRANGE, the reply converted", axis: "callers", baseline: "rueidis DoCache",
		plot: []string{"cpu"}, redis: true,
		about: "The command is built, and the reply is converted to a map of strings, or a slice, as programs do. The latency is that of one " +
			"call in 16, the reading of the clock included.",
	}
	outage := row{
		name: "reply-outage", title: "A cached HGETALL of 20 fields after redis-server was killed", axis: "callers", baseline: "rueidis DoCache",
		plot: []string{"p99"}, redis: true,
		about: "The reply was a hit before. The reads begin 100 ms after the server was killed, and each has a deadline of 100 ms.",
	}
	for _, c := range replyClients() {
		hits.contenders = append(hits.contenders, contender{c.name, func(j *job) ([]sample, error) {
			r, err := c.open(j.Addr)
			if err != nil {
				return nil, err
			}
			defer r.close()
			return r.hits(j, loads)
		}})
		outage.contenders = append(outage.contenders, contender{c.name, func(j *job) ([]sample, error) {
			return readsOfAnOutage(j, c.open)
		}})
	}
	return []row{hits, outage}
}

func (r *replyReader) hits(j *job, loads []load) ([]sample, error) {
	var found []sample
	var m meter
	for _, n := range []int{2, 20, 200} {
		if err := storeElements(j.Addr, n); err != nil {
			return nil, err
		}
		less := make([]load, len(loads))
		for i, l := range loads {
			l.ops, l.warm = max(l.ops/(1+n/10), l.callers), max(l.warm/(1+n/10), l.callers)
			less[i] = l
		}
		for _, s := range []struct {
			line, key string
			op        func(int) error
		}{
			{fmt.Sprintf("HGETALL of %d fields", n), hashOf(n), func(int) error {
				all, err := r.hash(bg, hashOf(n))
				return wholeReply(len(all), n, err)
			}},
			{fmt.Sprintf("ZRANGE of %d members", n), scoresOf(n), func(int) error {
				all, err := r.scores(bg, scoresOf(n))
				return wholeReply(len(all), n, err)
			}},
		} {
			check := func() error {
				if r.isHit != nil && !r.isHit(s.key) {
					return errMissed
				}
				return nil
			}
			more, err := (&subject{op: s.op, check: check}).measure(j, &m, s.line, less)
			if err != nil {
				return nil, err
			}
			found = append(found, more...)
		}
	}
	return found, nil
}

func wholeReply(n, want int, err error) error {
	if err == nil && n != want {
		return fmt.Errorf("%d of %d elements", n, want)
	}
	return err
}

// readsOfAnOutage measures reads that were hits, after their server was killed. A read that fails
// counts with the time that it took.
func readsOfAnOutage(j *job, open func(addr string) (*replyReader, error)) ([]sample, error) {
	const fields, patience = 20, 100 * time.Millisecond
	s, err := startServer(bg)
	if err != nil {
		return nil, err
	}
	defer s.stop()
	if err := storeElements(s.addr, fields); err != nil {
		return nil, err
	}
	r, err := open(s.addr)
	if err != nil {
		return nil, err
	}
	defer r.close()
	for range 100 {
		if all, err := r.hash(bg, hashOf(fields)); wholeReply(len(all), fields, err) != nil {
			return nil, errors.New("no reply before the outage")
		}
	}
	s.stop()
	time.Sleep(patience)
	answered := make(chan bool, 1<<20)
	op := func(int) error {
		ctx, cancel := context.WithTimeout(bg, patience)
		defer cancel()
		all, err := r.hash(ctx, hashOf(fields))
		answered <- wholeReply(len(all), fields, err) == nil
		return nil
	}
	found, err := (&subject{op: op}).measure(j, &meter{}, "", []load{{callers: 1, ops: 100, every: 1}, {callers: 64, ops: 6400, every: 1}})
	close(answered)
	var good, all float64
	for ok := range answered {
		if all++; ok {
			good++
		}
	}
	for i := range found {
		found[i].Figures["answered"] = good / all
	}
	return found, err
}
