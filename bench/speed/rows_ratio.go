package main

import (
	"fmt"
	"math"
	"math/rand"
	"time"
)

// A trace is a list of keys, by number, in the order in which a program asks for them. One
// that the cache does not have is put there.
type trace struct {
	name string
	keys []uint32
	span int // all keys are below
}

const (
	traceLength = 400_000
	zipfKeys    = 100_000
	loopKeys    = 25_000
	scanEvery   = 20_000 // reads between two scans
	scanLength  = 10_000
	// pace is how many reads there are before a pause, in which the caches work off their
	// queues: the policy is judged here, not the size of a queue.
	pace  = 512
	pause = time.Millisecond
)

// traces returns the same traces in each process.
func traces(length int) []trace {
	ranks := rand.NewZipf(rand.New(rand.NewSource(7)), 1.01, 1, zipfKeys-1)
	popular := func() uint32 { return scatter(ranks.Uint64(), zipfKeys) }
	all := []trace{{name: "Zipf 1.01", span: zipfKeys}, {name: "scan + Zipf", span: zipfKeys}, {name: "loop", span: loopKeys}}
	for i := range length {
		all[0].keys = append(all[0].keys, popular())
		all[2].keys = append(all[2].keys, uint32(i%loopKeys))
	}
	for len(all[1].keys) < length {
		for range scanEvery {
			all[1].keys = append(all[1].keys, popular())
		}
		for range scanLength {
			all[1].keys = append(all[1].keys, uint32(all[1].span))
			all[1].span++
		}
	}
	all[1].keys = all[1].keys[:length]
	return all
}

// play returns the part of reads that were hits, without the first quarter, in which the
// cache is filled.
func (t trace) play(c cache, all keys) float64 {
	hits, warm, value := 0, len(t.keys)/4, newValue()
	for i, k := range t.keys {
		switch found := c.get(all.at(int(k))); {
		case !found:
			c.put(all.own(int(k)), append([]byte(nil), value...))
		case i >= warm:
			hits++
		}
		if i%pace == pace-1 {
			time.Sleep(pause)
		}
	}
	return float64(hits) / float64(len(t.keys)-warm)
}

// ratioRows compare the policies of eviction.
func ratioRows() []row {
	paced := fmt.Sprintf(" Each trace has %d reads, of which the last three quarters count, with a pause of %v after each %d. "+
		"Zipf has 100,000 keys; a scan of 10,000 keys that are read once follows each 20,000 reads of Zipf; the loop has 25,000 keys.",
		traceLength, pause, pace)
	byEntries := row{
		name: "ratio-entries", title: "Hit ratio with an equal number of entries", axis: "entries", baseline: "ristretto", plot: []string{"hits"}, turns: 3,
		about: "The size of each cache is set so that it keeps this number of entries of 100 B, to 2%, when four times as many are put there." + paced,
	}
	byHeap := row{
		name: "ratio-heap", title: "Hit ratio with an equal heap", axis: "KiB", baseline: "ristretto", plot: []string{"hits"}, turns: 3,
		about: "The size of each cache is set so that, full of entries of 100 B, its heap is this large after two collections, to 2%." + paced,
	}
	for _, l := range locals() {
		if l.name == "ristretto with TTL" || l.name == "sturdyc" {
			continue // the policy of ristretto; and none
		}
		byEntries.contenders = append(byEntries.contenders, contender{l.name, func(j *job) ([]sample, error) {
			return measureRatios(j, l, []int{2500, 5000, 10_000, 20_000}, byNumber)
		}})
		byHeap.contenders = append(byHeap.contenders, contender{l.name, func(j *job) ([]sample, error) {
			return measureRatios(j, l, []int{2048, 4096, 8192}, byBytes)
		}})
	}
	return []row{byEntries, byHeap}
}

// bound is the size that all caches have in common: a number of entries, or a heap.
type bound struct {
	unit int // of the sizes in the table
	// flood returns the number of keys that are more than enough for want.
	flood func(want int) int
	// measure returns the extent of a full cache. before is the heap without it.
	measure func(c cache, all keys, before float64) int
}

var (
	byNumber = bound{1, func(want int) int { return 4 * want }, func(c cache, all keys, _ float64) int {
		n := 0
		for i := range all.len() {
			if c.get(all.at(i)) {
				n++
			}
		}
		return n
	}}
	byBytes = bound{1024, func(want int) int { return want / (keyWidth + valueSize) }, func(c cache, _ keys, before float64) int {
		return int(heap() - before)
	}}
)

// measureRatios plays each trace to a cache of each size.
func measureRatios(j *job, l local, sizes []int, b bound) ([]sample, error) {
	if j.Quick {
		sizes = sizes[:1]
	}
	all := traces(j.size(traceLength))
	names := newKeys(all[1].span)
	var found []sample
	for _, size := range sizes {
		own, err := calibrate(l, size*b.unit, b)
		if err != nil {
			return nil, err
		}
		for _, t := range all {
			c, err := l.open(own)
			if err != nil {
				return nil, err
			}
			ratio := t.play(c, names)
			c.close()
			found = append(found, sample{point{t.name, size}, map[string]float64{"hits": ratio}})
		}
	}
	return found, nil
}

// calibrate returns the size, in the cache's own unit, with which the extent of the full
// cache is want, to two percent. If the extent leaps over want, as the heap does where counters
// are doubled, it returns the largest size that it found below, if that is near: within a fifth.
func calibrate(l local, want int, b bound) (int, error) {
	names := newKeys(b.flood(want))
	flood := trace{keys: make([]uint32, names.len())}
	for i := range flood.keys {
		flood.keys[i] = uint32(i)
	}
	size := names.len() / 4 * l.unit
	below, above, nearest := 0, math.MaxInt, -1.0
	for range 16 {
		before := heap()
		c, err := l.open(size)
		if err != nil {
			return 0, err
		}
		flood.play(c, names)
		c.settle()
		extent := b.measure(c, names, before)
		c.close()
		off := float64(extent)/float64(want) - 1
		if math.Abs(off) < 0.02 {
			return size, nil
		}
		if off < 0 {
			below, nearest = max(below, size), max(nearest, off)
		} else {
			above = min(above, size)
		}
		size = int(float64(size) / (1 + off))
		if size <= below || size >= above {
			size = below + (above-below)/2
		}
	}
	if nearest < -0.2 {
		return 0, fmt.Errorf("%s has no size, down to %d, with an extent of about %d", l.name, size, want)
	}
	return below, nil
}
