package main

import (
	"runtime"
	"slices"
)

// fillRows are about the first tier as a store: the cost of a put, the cost of a collection with the
// entries, and their memory.
func fillRows() []row {
	million := row{
		name: "fill-million", title: "A first tier filled with a million new keys of 100 B",
		axis: "callers", baseline: "ristretto", plot: []string{"heap", "collection", "cpu"},
		about: "Caches without Redis, with room for all. A put includes a copy of key and value, for each cache keeps one. After each 2,048 puts, and " +
			"at the end, a cache works off its queue, so that none drops entries; that is a part of the time. The latency is that of one put in 64. A collection is `runtime.GC()` with all entries there, the " +
			"median of three. The heap is that of all entries, keys and values, after two collections, less what there was before the cache was " +
			"opened, and divided by the entries that were kept.",
	}
	huge := million
	huge.name, huge.title = "fill-huge", "A first tier filled with ten million new keys of 100 B"
	huge.huge, huge.turns = true, 5
	for _, l := range locals() {
		million.contenders = append(million.contenders, contender{l.name, measureFill(l, 1_000_000)})
		huge.contenders = append(huge.contenders, contender{l.name, measureFill(l, 10_000_000)})
	}
	return []row{million, huge}
}

func measureFill(l local, n int) func(*job) ([]sample, error) {
	return func(j *job) ([]sample, error) {
		n := j.size(n)
		all, value := newKeys(n), newValue()
		before := heap()
		c, err := l.roomFor(n)
		if err != nil {
			return nil, err
		}
		defer c.close()
		var m meter
		put, err := m.run(load{callers: 1, ops: n, every: 64}, func(i int) error {
			putNew(c, all, i, value)
			return nil
		}, c.settle)
		if err != nil {
			return nil, err
		}
		var collections []float64
		for range 3 {
			start := cpuTime()
			runtime.GC()
			collections = append(collections, float64(cpuTime()-start))
		}
		slices.Sort(collections)
		used := heap() - before
		kept := 0
		for i := range n {
			if c.get(all.at(i)) {
				kept++
			}
		}
		put["kept"] = float64(kept)
		return []sample{
			{point{"a put", 1}, put},
			{point{"a full collection", 1}, map[string]float64{"collection": collections[1]}},
			{point{"heap an entry", 1}, map[string]float64{"heap": used / float64(max(kept, 1))}},
		}, nil
	}
}

// putNew puts the i-th key, the keys in their order, and lets the cache work off its queue now
// and then: some drop an entry for which the queue has no room.
func putNew(c cache, all keys, i int, value []byte) {
	c.put(all.own(i), append([]byte(nil), value...))
	if i%2048 == 2047 {
		c.settle()
	}
}
