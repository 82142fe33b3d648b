package local

import (
	"math"
	"math/bits"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/ristretto/v2"
	"github.com/holdfast-cache/holdfast/internal/inflight"
	"github.com/holdfast-cache/holdfast/internal/keyhash"
)

// ristretto decides which keys stay. It gets keys and costs, and a sample of the callers' reads;
// the entries are in the index. One goroutine, the feeder, is the only one that calls it: so its
// queues never overflow, no key is added twice, and no caller waits for it. It is started when the
// tier is half full: before that there is nothing to decide, and the number of entries that its
// counters are for is not known.

// policy is the feeder's side of ristretto.
type policy struct {
	store   *ristretto.Cache[uint64, struct{}] // nil until it is started
	started atomic.Bool                        // changes are queued from now on
	running atomic.Bool                        // each entry is queued or judged
	closed  atomic.Bool

	// The places of the keys whose entry or size has changed, oldest first. A place is there more
	// than once if trim took a change back and another came.
	mu      sync.Mutex
	changed []uint64
	queued  atomic.Int64 // changes, with those that are being judged
	trimmed int          // index of the first that trim has not looked at

	reads    [readShards]readShard
	interval atomic.Uint64 // one read in so many is sampled; 0 until ristretto is started
	paced    time.Time     // when the interval was chosen
	draining time.Duration // spent on samples since

	kicked atomic.Bool
	kick   chan struct{}
	rush   chan struct{} // a sample is half full: ends the feeder's pause
}

const (
	// startAt is the part of MaxBytes at which ristretto is started.
	startAt = 2

	// feedChunk is well below half of ristretto's queue of 32,768: a key whose size has changed
	// takes two places in it.
	feedChunk = 4096

	// feedPause lets changes gather: the barrier behind them costs two goroutine switches, for one
	// key as for a thousand.
	feedPause = time.Millisecond

	readShards = 32
	sampleSize = 256 // a power of two

	// Each read is sampled as long as the feeder spends less than an eighth of its time on the
	// samples; of faster reads one in an interval is.
	sampleShare     = 8
	samplePace      = 10 * time.Millisecond
	longestInterval = 64
)

// readShard counts the reads of some callers, and has the last ones that were sampled.
type readShard struct {
	hits    atomic.Uint64
	others  atomic.Uint64
	sampled atomic.Uint64
	_       [40]byte // a cache line each
	sample  [sampleSize]atomic.Uint64
	drained uint64 // of sampled; the feeder's
	_       [56]byte
}

// CountHit records that a caller was answered with the key's entry.
func (l *Tier) CountHit(h keyhash.Hash) {
	r := &l.policy.reads[inflight.Spread()%readShards]
	if nth := r.hits.Add(1); l.policy.interval.Load() != 0 {
		l.policy.sample(r, nth, h)
	}
}

// CountRead records that a caller read the key in another way. An access that is not recorded
// makes the policy take the key for one that nobody reads.
func (l *Tier) CountRead(h keyhash.Hash) {
	r := &l.policy.reads[inflight.Spread()%readShards]
	if nth := r.others.Add(1); l.policy.interval.Load() != 0 {
		l.policy.sample(r, nth, h)
	}
}

// Hits is the number of calls of CountHit.
func (l *Tier) Hits() (n uint64) {
	for i := range l.policy.reads {
		n += l.policy.reads[i].hits.Load()
	}
	return n
}

// sample samples the shard's nth read if its turn has come. ristretto was started. The choice by a multiple of the golden
// ratio spreads evenly over the keys of callers that read in a cycle.
func (p *policy) sample(r *readShard, nth uint64, h keyhash.Hash) {
	const golden = 0x9E3779B97F4A7C15
	if nth*golden > math.MaxUint64/p.interval.Load() {
		return
	}
	i := r.sampled.Add(1)
	r.sample[i%sampleSize].Store(h.Place)
	if i%(sampleSize/2) == 0 {
		p.wake()
		select {
		case p.rush <- struct{}{}:
		default:
		}
	}
}

// start starts ristretto for as many entries as the tier will have when it is full, and queues the
// present ones.
func (l *Tier) start() {
	p := &l.policy
	// Ten counters an entry, as ristretto's documentation advises. It rounds up to a power of two, so
	// a little over one would cost the double.
	counters := max(1000, int64(10*float64(l.entries.Load())*float64(l.maxBytes)/float64(max(l.bytes.Load(), 1))))
	if power := int64(1) << (bits.Len64(uint64(counters)) - 1); power > counters/5*4 {
		counters = power
	}
	var err error
	p.store, err = ristretto.NewCache(&ristretto.Config[uint64, struct{}]{
		NumCounters: counters,
		MaxCost:     l.maxBytes - l.reserve,
		BufferItems: 64,
		// Entry.size includes the overhead already.
		IgnoreInternalCost: true,
		// ristretto's default would box the key, which is a hash already.
		KeyToHash: func(place uint64) (uint64, uint64) { return place, 0 },
		OnEvict:   l.gone,
		OnReject:  l.gone,
	})
	if err != nil {
		panic("holdfast: ristretto refuses its own bounds: " + err.Error())
	}
	p.started.Store(true)
	p.interval.Store(1)
	for i := range l.stripes {
		s := &l.stripes[i]
		s.mu.Lock()
		if x := s.index.Load(); x != nil {
			for j := range x.slots {
				if k := &x.slots[j]; k.entry.Load() != nil {
					p.tell(k)
				}
			}
		}
		s.mu.Unlock()
	}
	p.running.Store(true)
}

// tell queues a change of the key for the feeder. The caller holds the stripe.
func (p *policy) tell(k *slot) {
	if k.queued || !p.started.Load() {
		return
	}
	k.queued = true
	p.queued.Add(1)
	p.mu.Lock()
	p.changed = append(p.changed, k.place.Load())
	p.mu.Unlock()
	p.wake()
}

// wake signals the feeder. It does not block.
func (p *policy) wake() {
	if !p.kicked.Load() && p.kicked.CompareAndSwap(false, true) {
		p.kick <- struct{}{} // has room: kicked was false
	}
}

// take moves the oldest changes to chunk.
func (p *policy) take(chunk []uint64) []uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := min(len(p.changed), feedChunk)
	chunk = append(chunk, p.changed[:n]...)
	p.changed = p.changed[n:]
	if len(p.changed) == 0 {
		p.changed = nil
	}
	p.trimmed = max(0, p.trimmed-n)
	return chunk
}

// oldest returns the place of the oldest change that it has not returned before. It passes over the
// place that is to be kept, which stays behind the others.
func (p *policy) oldest(keep uint64) (place uint64, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	rest := p.changed[p.trimmed:]
	if len(rest) > 1 && rest[0] == keep {
		rest[0], rest[1] = rest[1], rest[0]
	}
	if len(rest) == 0 || rest[0] == keep {
		return 0, false
	}
	p.trimmed++
	return p.changed[p.trimmed-1], true
}

// trim removes the oldest entries that the policy has not judged, until there is a quarter of the
// reserve for the next one. The newest, which is given, stays if it is larger than the reserve: it
// would else never be judged.
func (l *Tier) trim(newest keyhash.Hash) {
	var keep uint64
	if e := l.Get(newest); e != nil && e.size() > l.reserve {
		keep = newest.Place
	}
	for l.bytes.Load() > l.maxBytes-l.reserve/4 {
		place, ok := l.policy.oldest(keep)
		if !ok {
			return
		}
		s := l.stripe(place)
		s.mu.Lock()
		if k := s.find(place); k != nil && k.queued {
			if k.entry.Load() != nil {
				l.replace(s, k, nil)
				l.Dropped.Add(1)
			}
			k.queued = false // the next change is queued behind those that trim has looked at
			s.release(k)
		}
		s.mu.Unlock()
	}
}

// Feed is the feeder's loop. It ends when stop is closed.
func (l *Tier) Feed(stop <-chan struct{}) {
	p := &l.policy
	pause := time.NewTimer(feedPause)
	defer pause.Stop()
	var chunk []uint64
	for {
		select {
		case <-stop:
			return
		case <-p.kick:
			// Before the pass: a change during the pass must signal again.
			p.kicked.Store(false)
		}
		if p.store == nil {
			l.start()
		}
		// The reads count after the judgement. A new key's own read would else weigh as much as
		// those of the keys that it is compared with: in a cycle of reads it would always win, and
		// evict the key that is read next.
		for chunk = p.take(chunk[:0]); len(chunk) > 0; chunk = p.take(chunk[:0]) {
			l.judge(chunk)
			p.drainReads()
			select {
			case <-stop:
				return
			default:
			}
		}
		p.drainReads()
		if l.bytes.Load() > l.maxBytes-l.reserve/2 {
			continue // new entries have little room until the policy has judged them
		}
		pause.Reset(feedPause)
		select {
		case <-stop:
			return
		case <-p.rush:
		case <-pause.C:
		}
	}
}

// drainReads tells ristretto of the sampled reads. ristretto drops what comes faster than its own
// goroutine can count, so that gets its turn after each shard.
func (p *policy) drainReads() {
	began := time.Now()
	for i := range p.reads {
		r := &p.reads[i]
		n := r.sampled.Load()
		if n == r.drained {
			continue
		}
		for j := max(r.drained, n-min(n, sampleSize)) + 1; j <= n; j++ {
			p.store.Get(r.sample[j%sampleSize].Load())
			if j%64 == 0 {
				runtime.Gosched()
			}
		}
		r.drained = n
	}
	now := time.Now()
	p.draining += now.Sub(began)
	if elapsed := now.Sub(p.paced); elapsed > samplePace {
		switch interval := p.interval.Load(); {
		case p.draining > elapsed/sampleShare && interval < longestInterval:
			p.interval.Store(2 * interval)
		case p.draining < elapsed/sampleShare/4 && interval > 1:
			p.interval.Store(interval / 2)
		}
		p.paced, p.draining = now, 0
	}
}

// judge gives ristretto the present sizes of the keys, and waits until it has decided on them.
//
// What ristretto has of them is deleted first: an update in place could grow past MaxCost, an
// addition makes room. All deletions are queued before the first addition. Otherwise that could
// evict the old cost of a key that is yet to be added, and the key's new entry would be removed.
func (l *Tier) judge(places []uint64) {
	p := &l.policy
	n := int64(len(places))
	present := places[:0]
	for _, place := range places {
		s := l.stripe(place)
		s.mu.Lock()
		k, known := s.find(place), false
		if k != nil && k.changed() {
			known = k.judged
			k.queued, k.judged = false, false // a change from now on is queued anew
			if k.entry.Load() != nil {
				present = append(present, place)
			}
			s.release(k)
		}
		s.mu.Unlock()
		if known {
			p.store.Del(place)
		}
	}
	for _, place := range present {
		s := l.stripe(place)
		s.mu.Lock()
		var cost int64
		if k := s.find(place); k != nil && !k.queued && !k.judged && k.entry.Load() != nil {
			k.judged, cost = true, k.entry.Load().size()
		}
		s.mu.Unlock()
		if cost > 0 && !p.store.Set(place, struct{}{}, cost) {
			l.unjudged(place)
		}
	}
	p.store.Wait()
	p.queued.Add(-n)
}

// Queued is the number of changes that the policy has yet to judge.
func (l *Tier) Queued() int64 { return l.policy.queued.Load() }

// gone runs on ristretto's goroutine when a key is evicted or rejected.
func (l *Tier) gone(i *ristretto.Item[struct{}]) {
	if !l.policy.closed.Load() {
		l.unjudged(i.Key)
	}
}

// unjudged removes the entry of a key that the policy does not keep. A change that the policy has
// yet to be told of decides anew.
func (l *Tier) unjudged(place uint64) {
	s := l.stripe(place)
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.find(place)
	if k == nil || !k.judged {
		return
	}
	k.judged = false
	if k.queued || k.entry.Load() == nil {
		s.release(k)
		return
	}
	l.replace(s, k, nil)
	l.Evicted.Add(1)
}
