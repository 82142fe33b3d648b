package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/redis/rueidis"
)

// errMissed ends a measurement of hits.
var errMissed = errors.New("a miss among the hits")

const sampled = " The latency is that of one call in 64, the reading of the clock included."

// order is an order of reads, and the part of the table that is measured with it.
type order struct {
	line string
	of   func(keys int) sequence
}

func hitRows() []row {
	const n = 1000
	zipfOnly, uniformly := []order{{"", zipf}}, []order{{"", uniform}}
	var loads, many []load // with many keys an operation takes longer
	for _, callers := range []int{1, 2, 8, 64, 2000} {
		loads = append(loads, load{callers: callers, ops: 5_000_000, warm: 100_000, every: 64})
		many = append(many, load{callers: callers, ops: 2_000_000, warm: 100_000, every: 64})
	}
	near := row{
		name: "hit", title: "A hit in the process, 1,000 keys of 100 B", axis: "goroutines", baseline: "otter", plot: []string{"time"}, redis: true,
		about: "The keys are read at random, one as often as another. holdfast is connected to a Redis that reports changes, and its copies are " +
			"confirmed: the run fails if a read was answered by another copy or by Redis. rueidis, go-redis/cache and gocache are connected to it, too; " +
			"\"holdfast, local tier only\" and the others have no Redis." + sampled,
	}
	for _, t := range twoTiers() {
		near.contenders = append(near.contenders, contender{t.name, func(j *job) ([]sample, error) {
			c, err := t.open(j.Addr, n)
			if err != nil {
				return nil, err
			}
			return measureHits(j, c, n, loads, uniformly)
		}})
	}
	for _, l := range locals() {
		name := l.name
		if name == "holdfast" {
			name = "holdfast, local tier only"
		}
		near.contenders = append(near.contenders, localHits(name, l, n, loads, uniformly))
	}

	far := row{
		name: "hit-million", title: "A hit among a million keys of 100 B, Zipf 1.01", axis: "goroutines", baseline: "theine", plot: []string{"cpu"},
		about: "Caches without Redis." + sampled,
	}
	huge := row{
		name: "hit-huge", title: "A hit among ten million keys of 100 B", axis: "goroutines", baseline: "ristretto", plot: []string{"cpu"},
		about: "Caches without Redis." + sampled, huge: true, turns: 5,
	}
	for _, l := range locals() {
		far.contenders = append(far.contenders, localHits(l.name, l, 1_000_000, many, zipfOnly))
		huge.contenders = append(huge.contenders, localHits(l.name, l, 10_000_000, many,
			[]order{{"Zipf 1.01", zipf}, {"uniform", uniform}}))
	}
	return []row{near, far, huge}
}

// localHits measures hits among n keys of a cache without Redis.
func localHits(name string, l local, n int, loads []load, orders []order) contender {
	return contender{name, func(j *job) ([]sample, error) {
		n := n
		if n > 1000 {
			n = j.size(n)
		}
		c, err := l.roomFor(n)
		if err != nil {
			return nil, err
		}
		return measureHits(j, c, n, loads, orders)
	}}
}

func measureHits(j *job, c cache, n int, loads []load, orders []order) ([]sample, error) {
	defer c.close()
	all := newKeys(n)
	if err := fill(c, all); err != nil {
		return nil, err
	}
	var check func() error
	if t, ok := c.(trackedCache); ok {
		var err error
		if check, err = confirm(t.c, all); err != nil {
			return nil, err
		}
	}
	var found []sample
	var m meter
	for _, o := range orders {
		seq := o.of(n)
		s := &subject{op: func(n int) error {
			if !c.get(all.at(seq.at(n))) {
				return errMissed
			}
			return nil
		}, check: check}
		more, err := s.measure(j, &m, o.line, loads)
		if err != nil {
			return nil, err
		}
		found = append(found, more...)
	}
	return found, nil
}

// fill puts all keys into a cache, and reads them: a copy of holdfast's is confirmed by its
// first read.
func fill(c cache, all keys) error {
	value := newValue()
	for i := range all.len() {
		putNew(c, all, i, value)
	}
	missing := 0
	for range 5 { // a queue may have dropped some
		c.settle()
		missing = 0
		for i := range all.len() {
			if !c.get(all.at(i)) {
				missing++
				c.put(all.own(i), append([]byte(nil), value...))
			}
		}
		if missing == 0 {
			break
		}
	}
	if missing > 0 {
		return fmt.Errorf("%d of %d entries are not kept", missing, all.len())
	}
	c.settle()
	for i := range all.len() {
		if !c.get(all.at(i)) {
			return errMissed
		}
	}
	c.settle()
	return nil
}

// confirm reads the keys until all are hits of confirmed copies. The function that it returns
// reports later reads which are not.
func confirm(c *holdfast.Cache, all keys) (check func() error, err error) {
	for range 100 {
		check = allLocal(c)
		for i := range all.len() {
			if _, err := c.Get(context.Background(), all.at(i)); err != nil {
				return nil, err
			}
		}
		if err = check(); err == nil {
			return check, nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return nil, err
}

func clientHitRow() row {
	const n = 1000
	loads := []load{
		{callers: 1, ops: 1_000_000, warm: 50_000, every: 64},
		{callers: 8, ops: 1_000_000, warm: 50_000, every: 64},
	}
	ctx := context.Background()
	r := row{
		name: "client-hit", title: "A hit through `Client()`, 1,000 keys of 100 B", axis: "callers",
		baseline: "rueidis DoCache, built", plot: []string{"cpu"}, redis: true,
		about: "\"built\" includes the building of the command, as programs do; \"pinned\" sends a command that was built once." + sampled,
	}
	add := func(name string, open func(addr string) (*clientHits, error), op clientOp) {
		r.contenders = append(r.contenders, contender{name, timed(loads, func(j *job) (*subject, error) {
			c, err := open(j.Addr)
			if err != nil {
				return nil, err
			}
			return c.subject(newKeys(n), op)
		})})
	}
	add("holdfast Cache.Get", ourHits, nil)
	do := func(cl rueidis.Client, key string, _ pinned) rueidis.RedisResult {
		return cl.Do(ctx, cl.B().Get().Key(key).Build())
	}
	doPinned := func(cl rueidis.Client, _ string, pin pinned) rueidis.RedisResult {
		return cl.Do(ctx, pin.do)
	}
	doCache := func(cl rueidis.Client, key string, _ pinned) rueidis.RedisResult {
		return cl.DoCache(ctx, cl.B().Get().Key(key).Cache(), keptFor)
	}
	doCachePinned := func(cl rueidis.Client, _ string, pin pinned) rueidis.RedisResult {
		return cl.DoCache(ctx, pin.doCache, keptFor)
	}
	add("holdfast Client().Do, built", ourHits, do)
	add("holdfast Client().Do, pinned", ourHits, doPinned)
	add("holdfast Client().DoCache, built", ourHits, doCache)
	add("holdfast Client().DoCache, pinned", ourHits, doCachePinned)
	add("rueidis DoCache, built", theirHits, doCache)
	add("rueidis DoCache, pinned", theirHits, doCachePinned)
	return r
}

// pinned are the commands of a key that was built once.
type pinned struct {
	do      rueidis.Completed
	doCache rueidis.Cacheable
}

// clientOp sends the command of a key: it builds it, or sends the pinned one.
type clientOp func(cl rueidis.Client, key string, pin pinned) rueidis.RedisResult

// clientHits is a client that answers reads in the process.
type clientHits struct {
	client rueidis.Client
	cache  *holdfast.Cache // nil: rueidis' own client
}

func ourHits(addr string) (*clientHits, error) {
	c, err := connect(addr)
	if err != nil {
		return nil, err
	}
	return &clientHits{c.Client(), c}, nil
}

func theirHits(addr string) (*clientHits, error) {
	cl, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{addr}})
	return &clientHits{client: cl}, err
}

func (c *clientHits) close() {
	if c.cache != nil {
		c.cache.Close()
		return
	}
	c.client.Close()
}

// subject reads by op, or by Cache.Get if that is nil.
func (c *clientHits) subject(all keys, op clientOp) (s *subject, err error) {
	s = &subject{close: c.close}
	defer func() {
		if err != nil {
			c.close()
		}
	}()
	if err = fill(doCache{c.client}, all); err != nil {
		return nil, err
	}
	seq := uniform(all.len())
	pins := make([]pinned, all.len())
	for i := range pins {
		b := c.client.B
		pins[i] = pinned{b().Get().Key(all.at(i)).Build().Pin(), b().Get().Key(all.at(i)).Cache().Pin()}
	}
	s.op = func(n int) error {
		i := seq.at(n)
		return op(c.client, all.at(i), pins[i]).Error()
	}
	if c.cache == nil {
		s.check = func() error {
			if !op(c.client, all.at(0), pins[0]).IsCacheHit() {
				return errMissed
			}
			return nil
		}
		return s, nil
	}
	if op == nil {
		s.op = func(n int) error {
			_, err := c.cache.Get(context.Background(), all.at(seq.at(n)))
			return err
		}
	}
	s.check, err = confirm(c.cache, all)
	return s, err
}
