package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/goredis"
	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"
)

const (
	batchSize = 1000
	remotely  = " The latency is that of each call; the CPU is that of the caller's process, not of redis-server."
	wires     = " \"rueidis\" has one pipelined connection, as holdfast has; \"defaults\" are rueidis' default options."
)

// remoteRows are calls that go to Redis.
func remoteRows() []row {
	each := []load{
		{callers: 1, ops: 10_000, warm: 1000, every: 1},
		{callers: 64, ops: 64_000, warm: 6400, every: 1},
	}
	batches := []load{{callers: 1, ops: 100, warm: 10, every: 1}}
	read := row{
		name: "first-read", title: "The first read of a key that Redis has", axis: "callers", baseline: "rueidis GET", plot: []string{"time"},
		about: "Values of 100 B with a TTL; each key is read once." + wires + remotely,
		redis: true, preset: func(j *job) int { return operations(j, each) },
	}
	write := row{
		name: "set", title: "Set of a new key", axis: "callers", baseline: "rueidis SET", plot: []string{"time"},
		about: "Values of 100 B; each key is written once." + wires + remotely, redis: true,
	}
	getMany := row{
		name: "get-many", title: "GetMany of 1,000 keys that Redis has, per key", axis: "callers", baseline: "rueidis MGET", plot: []string{"time"},
		about: "Values of 100 B with a TTL; each key is read once. Time, CPU, latency and allocations of a batch are divided by 1,000." + wires + remotely,
		redis: true, preset: func(j *job) int { return operations(j, batches) * batchSize },
	}
	setMany := row{
		name: "set-many", title: "SetMany of 1,000 new keys, per key", axis: "callers", baseline: "rueidis SET pipeline", plot: []string{"time"},
		about: "Values of 100 B. Time, CPU, latency and allocations of a batch are divided by 1,000; the making of the map or of the " +
			"commands is a part of them." + wires + remotely,
		redis: true,
	}
	hooked := row{
		name: "goredis-set", title: "SET of a new key by a go-redis client with holdfast's hook", axis: "callers", baseline: "go-redis SET", plot: []string{"time"},
		about: "Values of 100 B; each key is written once." + remotely, redis: true,
	}
	value := newValue()
	add := func(r *row, loads []load, per int, name string, open func(addr string) (*remote, error), op remoteOp) {
		r.contenders = append(r.contenders, contender{name, timed(loads, func(j *job) (*subject, error) {
			c, err := open(j.Addr)
			if err != nil {
				return nil, err
			}
			all := newKeys(operations(j, loads) * per)
			return &subject{
				op:    func(n int) error { return op(c, all, n*per) },
				check: c.check, close: c.close, per: per,
			}, nil
		})})
	}

	add(&read, each, 1, "holdfast", ours, func(c *remote, all keys, i int) error {
		return full(c.cache.Get(bg, all.at(i)))
	})
	get := func(c *remote, all keys, i int) error {
		return full(c.rueidis.Do(bg, c.rueidis.B().Get().Key(all.at(i)).Build()).AsBytes())
	}
	add(&read, each, 1, "rueidis GET", oneWire, get)
	add(&read, each, 1, "rueidis GET, defaults", defaults, get)
	add(&read, each, 1, "rueidis GET+PTTL", oneWire, func(c *remote, all keys, i int) error {
		b := c.rueidis.B
		replies := c.rueidis.DoMulti(bg, b().Get().Key(all.at(i)).Build(), b().Pttl().Key(all.at(i)).Build())
		if _, err := replies[1].AsInt64(); err != nil {
			return err
		}
		return full(replies[0].AsBytes())
	})
	add(&read, each, 1, "rueidis DoCache", defaults, func(c *remote, all keys, i int) error {
		return full(c.rueidis.DoCache(bg, c.rueidis.B().Get().Key(all.at(i)).Cache(), keptFor).AsBytes())
	})
	add(&read, each, 1, "go-redis GET", plainGoRedis, func(c *remote, all keys, i int) error {
		return full(c.goredis.Get(bg, all.at(i)).Bytes())
	})

	add(&write, each, 1, "holdfast", ours, func(c *remote, all keys, i int) error {
		return c.cache.Set(bg, all.at(i), value, keptFor)
	})
	set := func(c *remote, all keys, i int) error {
		return c.rueidis.Do(bg, setOf(c.rueidis, all.at(i), value)).Error()
	}
	add(&write, each, 1, "rueidis SET", oneWire, set)
	add(&write, each, 1, "rueidis SET, defaults", defaults, set)
	goRedisSet := func(c *remote, all keys, i int) error {
		return c.goredis.Set(bg, all.at(i), value, keptFor).Err()
	}
	add(&write, each, 1, "go-redis SET", plainGoRedis, goRedisSet)

	for _, t := range twoTiers()[2:] { // go-redis/cache and gocache
		open := func(addr string) (*remote, error) {
			c, err := t.open(addr, 100_000)
			return &remote{cacheOf: c, close: func() { c.close() }}, err
		}
		add(&read, each, 1, t.name, open, func(c *remote, all keys, i int) error {
			if !c.cacheOf.get(all.at(i)) {
				return errMissed
			}
			return nil
		})
		add(&write, each, 1, t.name, open, func(c *remote, all keys, i int) error {
			c.cacheOf.put(all.at(i), value)
			return nil
		})
	}

	add(&getMany, batches, batchSize, "holdfast GetMany", ours, func(c *remote, all keys, i int) error {
		found, err := c.cache.GetMany(bg, all.batch(i, batchSize)...)
		return whole(len(found), err)
	})
	add(&getMany, batches, batchSize, "rueidis MGET", oneWire, func(c *remote, all keys, i int) error {
		values, err := c.rueidis.Do(bg, c.rueidis.B().Mget().Key(all.batch(i, batchSize)...).Build()).ToArray()
		return whole(len(values), err)
	})
	add(&getMany, batches, batchSize, "rueidis GET pipeline", oneWire, func(c *remote, all keys, i int) error {
		cmds := make([]rueidis.Completed, batchSize)
		for j := range cmds {
			cmds[j] = c.rueidis.B().Get().Key(all.at(i + j)).Build()
		}
		return allAnswered(c.rueidis.DoMulti(bg, cmds...))
	})
	add(&getMany, batches, batchSize, "go-redis MGET", plainGoRedis, func(c *remote, all keys, i int) error {
		values, err := c.goredis.MGet(bg, all.batch(i, batchSize)...).Result()
		return whole(len(values), err)
	})

	add(&setMany, batches, batchSize, "holdfast SetMany", ours, func(c *remote, all keys, i int) error {
		items := make(map[string][]byte, batchSize)
		for j := range batchSize {
			items[all.at(i+j)] = value
		}
		return c.cache.SetMany(bg, items, keptFor)
	})
	add(&setMany, batches, batchSize, "rueidis SET pipeline", oneWire, func(c *remote, all keys, i int) error {
		cmds := make([]rueidis.Completed, batchSize)
		for j := range cmds {
			cmds[j] = setOf(c.rueidis, all.at(i+j), value)
		}
		return allAnswered(c.rueidis.DoMulti(bg, cmds...))
	})
	add(&setMany, batches, batchSize, "go-redis SET pipeline", plainGoRedis, func(c *remote, all keys, i int) error {
		replies, err := c.goredis.Pipelined(bg, func(p redis.Pipeliner) error {
			for j := range batchSize {
				p.Set(bg, all.at(i+j), value, keptFor)
			}
			return nil
		})
		return whole(len(replies), err)
	})

	add(&hooked, each, 1, "go-redis SET with holdfast", attached, goRedisSet)
	add(&hooked, each, 1, "go-redis SET", plainGoRedis, goRedisSet)
	return []row{read, write, getMany, setMany, hooked}
}

var bg = context.Background()

// remoteOp uses the key i, or the keys from i on.
type remoteOp func(c *remote, all keys, i int) error

// remote is a client of Redis: one of the fields is set.
type remote struct {
	cache   *holdfast.Cache
	rueidis rueidis.Client
	goredis *redis.Client
	cacheOf cache
	check   func() error
	close   func()
}

func ours(addr string) (*remote, error) {
	c, err := connect(addr)
	if err != nil {
		return nil, err
	}
	return &remote{cache: c, check: allRemote(c), close: func() { c.Close() }}, nil
}

// allRemote returns a function that reports calls which did not go to Redis or were not
// answered in time.
func allRemote(c *holdfast.Cache) func() error {
	before := c.Stats()
	return func() error {
		d := c.Stats().Minus(before)
		if n := d.Timeouts + d.Journaled + d.LocalHits + d.DoubtHits + d.Misses + d.BulkheadRefused; n > 0 {
			return fmt.Errorf("%d of the calls were not answered by Redis: %+v", n, d)
		}
		return nil
	}
}

func oneWire(addr string) (*remote, error) {
	return openRueidis(rueidis.ClientOption{
		InitAddress: []string{addr}, ForceSingleClient: true, PipelineMultiplex: -1, AlwaysPipelining: true, DisableCache: true,
	})
}

func defaults(addr string) (*remote, error) {
	return openRueidis(rueidis.ClientOption{InitAddress: []string{addr}})
}

func openRueidis(o rueidis.ClientOption) (*remote, error) {
	cl, err := rueidis.NewClient(o)
	if err != nil {
		return nil, err
	}
	return &remote{rueidis: cl, close: cl.Close}, nil
}

func plainGoRedis(addr string) (*remote, error) {
	cl := redis.NewClient(&redis.Options{Addr: addr})
	return &remote{goredis: cl, close: func() { cl.Close() }}, nil
}

// attached is a go-redis client with holdfast's hook.
func attached(addr string) (*remote, error) {
	c, err := ours(addr)
	if err != nil {
		return nil, err
	}
	c.goredis = redis.NewClient(&redis.Options{Addr: addr})
	c.close = func() {
		c.goredis.Close()
		c.cache.Close()
	}
	return c, goredis.Attach(c.goredis, c.cache)
}

func setOf(cl rueidis.Client, key string, value []byte) rueidis.Completed {
	return cl.B().Set().Key(key).Value(rueidis.BinaryString(value)).Px(keptFor).Build()
}

// full returns an error unless b is a value of ours.
func full(b []byte, err error) error {
	if err == nil && len(b) != valueSize {
		return fmt.Errorf("a value of %d bytes", len(b))
	}
	return err
}

func whole(n int, err error) error {
	if err == nil && n != batchSize {
		return fmt.Errorf("%d of %d were answered", n, batchSize)
	}
	return err
}

func allAnswered(replies []rueidis.RedisResult) error {
	for _, r := range replies {
		if err := r.Error(); err != nil {
			return err
		}
	}
	return whole(len(replies), nil)
}

// outageRow is about calls while Redis is away.
func outageRow() row {
	loads := []load{
		{callers: 1, ops: 20_000, warm: 1000, every: 1},
		{callers: 64, ops: 20_000, warm: 1000, every: 1},
	}
	value := newValue()
	loader := func(context.Context) ([]byte, error) { return value, nil }
	measure := func(op func(c *holdfast.Cache, key string) error) func(*job) ([]sample, error) {
		return timed(loads, func(j *job) (*subject, error) {
			c, err := cutOff()
			if err != nil {
				return nil, err
			}
			all := newKeys(operations(j, loads))
			return &subject{op: func(n int) error { return op(c, all.at(n)) }, close: func() { c.Close() }}, nil
		})
	}
	return row{
		name: "outage", title: "A load of a new key in an outage", axis: "callers", baseline: "holdfast Set", plot: []string{"cpu"},
		about: "The circuit is open. The loader returns at once; value of 100 B. All keys fit into the journal. The latency is that of each call.",
		contenders: []contender{
			{"holdfast GetOrLoad", measure(func(c *holdfast.Cache, key string) error {
				return full(c.GetOrLoad(bg, key, keptFor, loader))
			})},
			{"holdfast Set", measure(func(c *holdfast.Cache, key string) error { return c.Set(bg, key, value, keptFor) })},
		},
	}
}

// cutOff returns a Cache whose circuit is open: it was connected to a server that has ended.
func cutOff() (*holdfast.Cache, error) {
	s, err := startServer(bg)
	if err != nil {
		return nil, err
	}
	c, err := connect(s.addr)
	s.stop()
	if err != nil {
		return nil, err
	}
	for range 6000 {
		if c.Health().State == holdfast.Down {
			return c, nil
		}
		c.Get(bg, "speed:absent")
		time.Sleep(10 * time.Millisecond)
	}
	c.Close()
	return nil, errors.New("the circuit does not open")
}
