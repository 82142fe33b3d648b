package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/redis/rueidis"
)

// budget is how long a call may wait for Redis: holdfast's Options.Timeout, and the
// deadline of every call of plain rueidis.
const budget = 50 * time.Millisecond

const (
	keyCount = 2000
	// pause is the mean time between two calls of one caller. The demo is about latency,
	// which a machine busy with the load would distort.
	pause = 2 * time.Millisecond
)

// source says where the answer of a read came from.
type source uint8

const (
	fromLocal source = iota
	fromRedis
	fromJournal
	fromNowhere // a miss
	sources
)

// client is the interface that the load calls. A miss is not an error.
type client interface {
	get(key string) (source, error)
	set(key, value string, ttl time.Duration) error
	del(key string) error
}

// twoTiers is holdfast. Its calls need no deadline.
type twoTiers struct{ cache *holdfast.Cache }

func (t twoTiers) get(key string) (source, error) {
	entry, err := t.cache.Lookup(context.Background(), key)
	switch {
	case errors.Is(err, holdfast.ErrMiss):
		return fromNowhere, nil
	case err != nil:
		return fromNowhere, err
	case entry.Tier == holdfast.Journal:
		return fromJournal, nil
	case entry.Tier == holdfast.Remote:
		return fromRedis, nil
	}
	return fromLocal, nil
}

func (t twoTiers) set(key, value string, ttl time.Duration) error {
	return t.cache.Set(context.Background(), key, []byte(value), ttl)
}

func (t twoTiers) del(key string) error { return t.cache.Delete(context.Background(), key) }

// plain is rueidis without holdfast.
type plain struct{ client rueidis.Client }

func (p plain) do(cmd rueidis.Completed) error {
	ctx, cancel := context.WithTimeout(context.Background(), budget)
	defer cancel()
	return p.client.Do(ctx, cmd).Error()
}

func (p plain) get(key string) (source, error) {
	err := p.do(p.client.B().Get().Key(key).Build())
	switch {
	case rueidis.IsRedisNil(err):
		return fromNowhere, nil
	case err != nil:
		return fromNowhere, err
	}
	return fromRedis, nil
}

func (p plain) set(key, value string, ttl time.Duration) error {
	if ttl > 0 {
		return p.do(p.client.B().Set().Key(key).Value(value).PxMilliseconds(ttl.Milliseconds()).Build())
	}
	return p.do(p.client.B().Set().Key(key).Value(value).Build())
}

func (p plain) del(key string) error { return p.do(p.client.B().Del().Key(key).Build()) }

// caching is rueidis with its own client-side cache: it answers a read from memory until
// the server has sent an invalidation.
type caching struct{ plain }

// localTTL is the longest life of a local copy, the same as the default of
// Options.Local.MaxTTL.
const localTTL = 10 * time.Minute

func (c caching) get(key string) (source, error) {
	ctx, cancel := context.WithTimeout(context.Background(), budget)
	defer cancel()
	reply := c.client.DoCache(ctx, c.client.B().Get().Key(key).Cache(), localTTL)
	switch err := reply.Error(); {
	case rueidis.IsRedisNil(err):
		return fromNowhere, nil
	case err != nil:
		return fromNowhere, err
	case reply.IsCacheHit():
		return fromLocal, nil
	}
	return fromRedis, nil
}

// load is a group of callers that keep a client busy. Each key is written by one caller
// only, so that its last write is defined; every caller reads every key.
type load struct {
	client  client
	keys    []string
	ledger  []owed // by key; an entry belongs to the key's writer
	callers int
	scale   float64
	meter   *meter
	halt    atomic.Bool
	group   sync.WaitGroup
}

func newLoad(c client, cfg config, prefix string) *load {
	l := &load{client: c, callers: cfg.callers, scale: cfg.scale, meter: newMeter(budget + cfg.allowance)}
	l.keys = make([]string, keyCount)
	l.ledger = make([]owed, keyCount)
	for i := range l.keys {
		l.keys[i] = fmt.Sprintf("%s%04d", prefix, i)
	}
	return l
}

// fill gives every key a first value, and repeats calls that fail on a busy machine. It
// goes through the client: if holdfast has never seen a key's value on the server, it
// deletes the key after an outage instead of overwriting a value that may be another
// writer's.
func (l *load) fill(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	var group sync.WaitGroup
	for id := range l.callers {
		group.Go(func() {
			for i := id; i < len(l.keys) && ctx.Err() == nil; i += l.callers {
				for ctx.Err() == nil {
					if _, err := l.set(i, fmt.Sprintf("first value of %d", i), 0); err == nil {
						break
					}
				}
			}
		})
	}
	group.Wait()
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("filling the keys: %w", err)
	}
	return nil
}

func (l *load) start() {
	for id := range l.callers {
		l.group.Go(func() { l.call(id) })
	}
}

// stop waits for the calls in flight; each is bounded by the client's timeouts.
func (l *load) stop() {
	l.halt.Store(true)
	l.group.Wait()
}

// call is the loop of one caller: 80 of 100 calls read, 2 delete, 18 set, and some keys
// are used far more often than others.
func (l *load) call(id int) {
	random := rand.New(rand.NewPCG(uint64(id), keyCount))
	popular := rand.NewZipf(random, 1.1, 20, keyCount-1)
	for n := 0; !l.halt.Load(); n++ {
		l.rest(pause/2 + time.Duration(random.Int64N(int64(pause))))
		key := int(popular.Uint64())
		switch dice := random.IntN(100); {
		case dice < 80:
			start := time.Now()
			from, err := l.client.get(l.keys[key])
			l.meter.read(time.Since(start), from, err)
		case dice < 98:
			took, err := l.set(l.own(id, key), fmt.Sprintf("caller %d, call %d", id, n), l.ttl(random))
			l.meter.write(took, err)
		default:
			took, err := l.del(l.own(id, key))
			l.meter.write(took, err)
		}
	}
}

// rest sleeps and records how late the machine wakes the caller: no call can be expected
// to be more punctual.
func (l *load) rest(d time.Duration) {
	start := time.Now()
	time.Sleep(d)
	l.meter.woke(time.Since(start) - d)
}

// own returns a key near the given one that this caller writes.
func (l *load) own(id, key int) int {
	key += id - key%l.callers
	if key >= len(l.keys) {
		key -= l.callers
	}
	return key
}

// ttl returns a TTL of some seconds for one set in twenty, else 0.
func (l *load) ttl(random *rand.Rand) time.Duration {
	if random.IntN(20) != 0 {
		return 0
	}
	const least, spread = 2 * time.Second, 6 * time.Second
	ttl := least + time.Duration(random.Int64N(int64(spread)))
	return time.Duration(float64(ttl) * l.scale).Truncate(time.Millisecond)
}

func (l *load) set(i int, value string, ttl time.Duration) (time.Duration, error) {
	start := time.Now()
	err := l.client.set(l.keys[i], value, ttl)
	end := time.Now()
	l.note(i, owed{value: value, expires: ttl > 0, earliest: start.Add(ttl), latest: end.Add(ttl)}, err)
	return end.Sub(start), err
}

func (l *load) del(i int) (time.Duration, error) {
	start := time.Now()
	err := l.client.del(l.keys[i])
	took := time.Since(start)
	l.note(i, owed{deleted: true}, err)
	return took, err
}

func (l *load) note(i int, o owed, err error) {
	if err != nil {
		l.ledger[i].unsure = true
		return
	}
	l.ledger[i] = o
}
