package holdfast

import (
	"bytes"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/ristretto/v2"
)

// local is the first tier: ristretto decides which entries to keep, and an overlay in front
// of it makes read-your-writes exact.
//
// ristretto alone keeps the first of two quick Sets of a new key, shows a new key only after
// its queue was worked off, and blocks in Del. So callers write only to the overlay, and
// readers ask the overlay first. One goroutine, the flusher, copies the overlay's keys into
// ristretto. It removes a key from the overlay once ristretto's own barrier shows that the
// entry was admitted or rejected.
//
// Invariants:
//   - The overlay's entry of a key is newer than ristretto's.
//   - A key with own writes in flight stays in the overlay.
//   - Only the flusher calls ristretto.Set and Del, so ristretto's queue never overflows and
//     runs in our order.
//   - The bounds of ristretto and of the overlay add up to MaxBytes.
type local struct {
	store *ristretto.Cache[uint64, *entry]
	seeds [2]maphash.Seed

	// home is the domain of every key where there is no cluster.
	home domain

	stripes [stripeCount]stripe

	maxEntry   int64
	maxOverlay int64
	overlay    atomic.Int64 // bytes in the overlay
	entries    atomic.Int64 // entries in ristretto
	evicted    atomic.Uint64
	dropped    atomic.Uint64 // entries for which the overlay had no room

	kicked atomic.Bool
	kick   chan struct{}
}

const (
	// stripeCount is a power of two, large enough that unrelated keys seldom discard each
	// other's fills: a write invalidates the fills in flight of its whole stripe.
	stripeCount = 1024

	// entryOverhead is the cost in bytes of an entry beside its key and value: the entry
	// itself and ristretto's two map slots. BenchmarkHeapMillion measures it.
	entryOverhead = 250

	// flushChunk is well below half of ristretto's queue of 32,768: an entry that grew takes
	// two places in it.
	flushChunk = 4096

	// flushPause lets writes gather: the barrier costs two goroutine switches, for one entry
	// as for a thousand.
	flushPause = time.Millisecond
)

// keyHash identifies a key in the local tier: two hashes with independent random seeds.
// ristretto finds an entry by the first. The second replaces the comparison of the key
// itself, which would cost a hit two more cache misses, and each entry the memory of its key.
// The upper 16 bits of the second hold the key's length, which is part of an entry's cost.
// Two keys of a process that agree in the length and in 112 bits are less likely than a
// failure of the memory that holds them.
type keyHash struct{ place, check uint64 }

const (
	lengthShift = 48
	longKey     = 1 << 15 // from here on a length is rounded up to a multiple of this
)

// keyLength encodes a key's length for keyHash.check.
func keyLength(length int) uint64 {
	n := uint64(length)
	if n >= longKey {
		n = longKey | (n+longKey-1)/longKey
	}
	return n << lengthShift
}

// lengthIn decodes the length that keyLength encoded.
func lengthIn(check uint64) int64 {
	n := int64(check >> lengthShift)
	if n >= longKey {
		n = (n - longKey) * longKey
	}
	return n
}

// pending is a key in the overlay. Guarded by its stripe.
type pending struct {
	check   uint64
	entry   *entry // nil: a tombstone, the key was deleted or must be read again
	size    int64  // counted in local.overlay
	writers int32  // own writes on their way to Redis
	dirty   uint32 // changes with each write, so that the flusher notices one
	overlap bool   // two own writes were in flight at once: only Redis knows their order
	told    bool   // invalidated while an own write was in flight
	grown   bool   // ristretto may have the same entry at a lower cost
}

type stripe struct {
	mu      sync.Mutex
	overlay map[uint64]*pending
	n       atomic.Int32  // len(overlay); at 0 readers skip the lock
	version atomic.Uint64 // grows with every write and invalidation
	_       [32]byte      // a cache line each
}

// token is taken before a read is sent and proves, when the answer is stored, that the stripe
// has seen no write and no invalidation since, and that the invalidation stream is unbroken.
type token struct {
	version uint64
	domain  *domain
	epoch   uint32
}

func newLocal(maxBytes int64) (*local, error) {
	l := &local{
		seeds:      [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()},
		maxEntry:   min(maxBytes/8, 1<<30),
		maxOverlay: maxBytes / 8,
		kick:       make(chan struct{}, 1),
	}
	l.home.until.Store(never) // without Redis there is no invalidation stream to lose
	for i := range l.stripes {
		l.stripes[i].overlay = make(map[uint64]*pending)
	}
	var err error
	l.store, err = ristretto.NewCache(&ristretto.Config[uint64, *entry]{
		// Ten counters for each entry that fits, at about 640 B an entry: at 4-5 bytes
		// each, allocated at once, the counters take a tenth of MaxBytes.
		NumCounters: max(1000, maxBytes/64),
		MaxCost:     maxBytes - l.maxOverlay,
		BufferItems: 64,
		// entry.size includes the overhead already.
		IgnoreInternalCost: true,
		// ristretto's default would box the key, which is a hash already.
		KeyToHash: func(h uint64) (uint64, uint64) { return h, 0 },
		OnEvict:   l.gone,
		OnReject:  l.gone,
	})
	return l, err
}

// gone runs on ristretto's goroutine when an entry is evicted or rejected.
func (l *local) gone(i *ristretto.Item[*entry]) {
	if i.Value != nil {
		l.entries.Add(-1)
		l.evicted.Add(1)
	}
}

func (l *local) hash(key string) keyHash {
	check := maphash.String(l.seeds[1], key)&(1<<lengthShift-1) | keyLength(len(key))
	return keyHash{maphash.String(l.seeds[0], key), check}
}

func (l *local) stripe(h keyHash) *stripe { return &l.stripes[h.place%stripeCount] }

// get returns the key's entry, fresh or not, or nil. It does not block.
func (l *local) get(h keyHash) *entry {
	// The overlay first: an entry is in ristretto before it leaves the overlay.
	if s := l.stripe(h); s.n.Load() != 0 {
		s.mu.Lock()
		p := s.overlay[h.place]
		if p != nil && p.check == h.check {
			e := p.entry
			s.mu.Unlock()
			return e
		}
		s.mu.Unlock()
	}
	if e, ok := l.store.Get(h.place); ok && e.check == h.check {
		return e
	}
	return nil
}

// token must be taken before the read is sent, and before its connection is chosen: the epoch
// then shows whether that connection may have missed an invalidation.
func (l *local) token(h keyHash, d *domain) token {
	return token{l.stripe(h).version.Load(), d, d.epoch.Load()}
}

// fill stores Redis' answer. It discards the answer if a write of our own, an invalidation or
// a loss of the stream came since the token was taken, or if a later read has filled already.
func (l *local) fill(h keyHash, key string, val []byte, t token, k term) bool {
	s := l.stripe(h)
	s.mu.Lock()
	defer s.mu.Unlock()
	p, old, ok := l.fillableLocked(s, h, t)
	if !ok || old != nil && old.confirmed.Load() > k.confirmed {
		return false
	}
	// An unchanged value is confirmed in place: so reading a copy again when its time is up
	// costs neither memory nor ristretto's attention.
	if old != nil && old.domain == k.domain && old.grace()&ungiven == 0 && len(val) <= comparedBytes && bytes.Equal(old.bytes(), val) {
		old.confirm(k)
		return true
	}
	return l.storeLocked(s, h, p, old, newEntry(key, val, k))
}

// comparedBytes bounds the comparison under a stripe's lock.
const comparedBytes = 64 << 10

// forget is fill for the answer that Redis has no such key. A copy past its own time and a
// mark of absence stay: the answer is nothing new for them, and the copy may stand in for a
// load that fails.
func (l *local) forget(h keyHash, t token, now int64) {
	s := l.stripe(h)
	s.mu.Lock()
	defer s.mu.Unlock()
	if p, old, ok := l.fillableLocked(s, h, t); ok && (old == nil || !old.past(now)) {
		l.storeLocked(s, h, p, old, nil)
	}
}

// fillableLocked is lookLocked, and reports whether an answer that was read under the token
// may still be stored. The caller holds the stripe.
func (l *local) fillableLocked(s *stripe, h keyHash, t token) (p *pending, old *entry, ok bool) {
	if s.version.Load() != t.version || t.domain.epoch.Load() != t.epoch {
		return nil, nil, false
	}
	p, old = l.lookLocked(s, h)
	return p, old, p == nil || p.writers == 0
}

// begin makes e the key's value, or deletes the key if e is nil, while the write goes to
// Redis. It returns the previous entry and the write's sequence number in the stripe. The
// caller must call end afterwards. An entry that does not fit leaves a tombstone: the
// previous value is never left in its place.
func (l *local) begin(h keyHash, e *entry) (old *entry, seq uint64) {
	old, seq, _ = l.open(h, nil, func(*entry) *entry { return e })
	return old, seq
}

// beginUnless is begin, unless superseded is set: then it does nothing.
func (l *local) beginUnless(h keyHash, e *entry, superseded *atomic.Bool) (old *entry, seq uint64, begun bool) {
	return l.open(h, superseded, func(*entry) *entry { return e })
}

// hold is begin for a write that keeps the previous entry until Redis has decided.
func (l *local) hold(h keyHash) (old *entry, seq uint64) {
	old, seq, _ = l.open(h, nil, func(old *entry) *entry { return old })
	return old, seq
}

func (l *local) open(h keyHash, superseded *atomic.Bool, next func(old *entry) *entry) (old *entry, seq uint64, begun bool) {
	s := l.stripe(h)
	s.mu.Lock()
	defer s.mu.Unlock()
	if superseded != nil && superseded.Load() {
		return nil, 0, false
	}
	seq = s.version.Add(1)
	p, old := l.lookLocked(s, h)
	if p == nil {
		p = l.pendLocked(s, h)
	}
	p.overlap = p.overlap || p.writers > 0
	p.writers++
	l.storeLocked(s, h, p, old, next(old))
	return old, seq, true
}

// end closes a write that begin opened. The entry stays only if Redis acknowledged the write
// (keep) and no other write of ours overlapped it: only Redis knows which of two such writes
// ran last. An entry that stays is fresh until the given time, or keeps its freshness (asIs);
// an invalidation during the write makes it unread in either case.
func (l *local) end(h keyHash, keep bool, fresh int64) {
	l.closeWrite(h, fresh, func(p *pending) *entry {
		if keep {
			return p.entry
		}
		return nil
	})
}

// endRefused closes a write that begin opened and Redis refused: Redis' value has not
// changed, so the previous entry is put back as it was. If an invalidation came meanwhile, a
// tombstone takes its place.
func (l *local) endRefused(h keyHash, was *entry) {
	l.closeWrite(h, asIs, func(p *pending) *entry {
		if p.told {
			return nil
		}
		return was
	})
}

// endAs closes a write that hold opened: e replaces the previous entry, as with end.
func (l *local) endAs(h keyHash, e *entry, fresh int64) {
	l.closeWrite(h, fresh, func(*pending) *entry { return e })
}

func (l *local) closeWrite(h keyHash, fresh int64, next func(*pending) *entry) {
	s := l.stripe(h)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version.Add(1)
	p := s.overlay[h.place]
	if p == nil || p.check != h.check {
		return // another key with the same hash took the place
	}
	p.writers--
	e := next(p)
	if p.overlap {
		e = nil
	}
	if e != nil && fresh != asIs {
		if p.told {
			fresh = unread
		}
		e.fresh.Store(fresh)
	}
	if p.writers == 0 {
		p.overlap, p.told = false, false
	}
	l.storeLocked(s, h, p, p.entry, e)
}

const asIs = -2

// writing reports whether a write of ours to the key is in flight.
func (l *local) writing(h keyHash) bool {
	s := l.stripe(h)
	if s.n.Load() == 0 {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p, _ := l.lookLocked(s, h)
	return p != nil && p.writers > 0
}

// put is begin and end in one, for a write that is not sent to Redis now.
func (l *local) put(h keyHash, e *entry) (old *entry, seq uint64) {
	s := l.stripe(h)
	s.mu.Lock()
	defer s.mu.Unlock()
	return l.putLocked(s, h, e)
}

// putUnless is put, unless superseded is set or the key's entry is by now another than seen.
// A writer that sets superseded and then writes the key wins: either putUnless sees the flag,
// or the writer gets the later sequence number.
func (l *local) putUnless(h keyHash, e *entry, superseded *atomic.Bool, seen *entry) (old *entry, seq uint64, done bool) {
	s := l.stripe(h)
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, now := l.lookLocked(s, h); superseded.Load() || now != nil && now != seen {
		return nil, 0, false
	}
	old, seq = l.putLocked(s, h, e)
	return old, seq, true
}

func (l *local) putLocked(s *stripe, h keyHash, e *entry) (old *entry, seq uint64) {
	seq = s.version.Add(1)
	p, old := l.lookLocked(s, h)
	if p != nil {
		// A write of ours that is still in flight may run at Redis after this one: it must
		// leave no entry behind either.
		p.overlap = p.overlap || p.writers > 0
	}
	l.storeLocked(s, h, p, old, e)
	return old, seq
}

// add is put if the key has no live entry; it reports whether it stored e.
func (l *local) add(h keyHash, e *entry, now int64) bool {
	s := l.stripe(h)
	s.mu.Lock()
	defer s.mu.Unlock()
	p, old := l.lookLocked(s, h)
	if old != nil && now < old.expires.Load() {
		return false
	}
	s.version.Add(1)
	l.storeLocked(s, h, p, old, e)
	return true
}

// doubt makes the next reader ask Redis, and keeps the copy as a fallback. The function end
// gives the copy's new end from its present one.
func (l *local) doubt(h keyHash, end func(old int64) int64) {
	s := l.stripe(h)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version.Add(1)
	if _, old := l.lookLocked(s, h); old != nil && !old.refuted() {
		old.fresh.Store(unread)
		old.expires.Store(end(old.expires.Load()))
	}
}

// retime is doubt with another end for the copy that the caller saw. A copy that came
// meanwhile is removed: only Redis knows which of the two ends it has.
func (l *local) retime(h keyHash, was *entry, end int64) {
	s := l.stripe(h)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version.Add(1)
	p, old := l.lookLocked(s, h)
	switch {
	case old == nil:
	case old != was:
		if p != nil {
			p.overlap = p.overlap || p.writers > 0
		}
		l.storeLocked(s, h, p, old, nil)
	case !old.refuted():
		old.fresh.Store(unread)
		old.expires.Store(end)
	}
}

// settled is called when a replay has brought the last write to Redis. The copy that the
// write left is unread, and stays as a fallback until Redis is asked again. Any other copy is
// removed: it was read from Redis before the journal had the write.
func (l *local) settled(h keyHash) {
	s := l.stripe(h)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version.Add(1)
	if p, old := l.lookLocked(s, h); old != nil && old.fresh.Load() != unread {
		l.storeLocked(s, h, p, old, nil)
	}
}

// sameEnd leaves a copy's end as it is.
func sameEnd(old int64) int64 { return old }

// invalidate handles an invalidation: the key has changed, or Redis dropped it. A copy that
// was read becomes invalid in place (its end is wrong). The goroutine that reads the
// connection calls invalidate, so it allocates nothing and waits for nothing but the stripe's
// lock.
//
// Some copies lose only their freshness:
//   - A copy that was written here and not read since, and any copy while a write of ours is
//     in flight: the message may be the echo of that write, and the value is still the last
//     one known.
//   - A copy past its own time: the server may be announcing just that expiry, and
//     Outage.ServeStaleFor may still use the copy.
func (l *local) invalidate(h keyHash, now int64) {
	s := l.stripe(h)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version.Add(1)
	p, old := l.lookLocked(s, h)
	writing := p != nil && p.writers > 0
	if writing {
		p.told = true
	}
	switch {
	case old == nil:
	case writing, old.fresh.Load() == unread:
		old.fresh.Store(unread)
	default:
		old.fresh.Store(0)
		if now < old.expires.Load() {
			old.expires.Store(wrong)
		}
	}
}

// lookLocked returns the key's pending in the overlay and its entry; either may be nil. The
// caller holds the stripe.
func (l *local) lookLocked(s *stripe, h keyHash) (*pending, *entry) {
	if p := s.overlay[h.place]; p != nil && p.check == h.check {
		return p, p.entry
	}
	if e, ok := l.store.Get(h.place); ok && e.check == h.check {
		return nil, e
	}
	return nil, nil
}

// pendLocked gives the key a place in the overlay. The caller holds the stripe.
func (l *local) pendLocked(s *stripe, h keyHash) *pending {
	if was := s.overlay[h.place]; was != nil {
		l.overlay.Add(-was.size) // another key with the same hash: the newer one takes the place
	} else {
		s.n.Add(1)
	}
	p := &pending{check: h.check}
	s.overlay[h.place] = p
	return p
}

// storeLocked makes e the overlay's entry of the key, visible to readers at once and carried
// on by the flusher later. p and old are the results of lookLocked. If there is no room, it
// leaves a tombstone and returns false. Tombstones always have room: there are never more of
// them than entries and writes in flight. The caller holds the stripe.
func (l *local) storeLocked(s *stripe, h keyHash, p *pending, old, e *entry) bool {
	fits := e == nil || l.fits(p, e.size())
	if !fits {
		e = nil
	}
	if p == nil {
		if e == nil && old == nil {
			return fits // no entry to store and none to remove
		}
		p = l.pendLocked(s, h)
	}
	size := int64(entryOverhead)
	if e != nil {
		if e.check != h.check {
			e.check = h.check // e is new: readers may be reading an entry that is not
		}
		size = e.size()
	}
	l.overlay.Add(size - p.size)
	p.entry, p.size = e, size
	p.dirty++
	l.wake()
	return fits
}

func (l *local) fits(p *pending, size int64) bool {
	if size > l.maxEntry {
		return false
	}
	if !l.room(p, size) {
		l.dropped.Add(1)
		return false
	}
	return true
}

// room reports whether the overlay can hold size bytes for a key in place of p.
func (l *local) room(p *pending, size int64) bool {
	held := l.overlay.Load()
	if p != nil {
		held -= p.size
	}
	return held+size <= l.maxOverlay
}

// wake signals the flusher that the overlay has keys. It does not block.
func (l *local) wake() {
	if !l.kicked.Load() && l.kicked.CompareAndSwap(false, true) {
		l.kick <- struct{}{} // has room: kicked was false
	}
}

// flush is the flusher's loop. It ends when stop is closed.
func (l *local) flush(stop <-chan struct{}) {
	pause := time.NewTimer(flushPause)
	defer pause.Stop()
	var chunk []carried
	for {
		select {
		case <-stop:
			return
		case <-l.kick:
			// Before the pass: a write during the pass must signal again.
			l.kicked.Store(false)
		}
		chunk = l.carry(chunk)
		if l.overlay.Load() > l.maxOverlay/4 {
			continue
		}
		pause.Reset(flushPause)
		select {
		case <-stop:
			return
		case <-pause.C:
		}
	}
}

// carried is a key on its way to ristretto, as the flusher found it.
type carried struct {
	h     keyHash
	p     *pending
	entry *entry
	dirty uint32
	grown bool
}

// carry moves every key without a writer from the overlay to ristretto, in chunks that
// ristretto's queue can hold.
func (l *local) carry(chunk []carried) []carried {
	for i := range l.stripes {
		s := &l.stripes[i]
		if s.n.Load() == 0 {
			continue
		}
		s.mu.Lock()
		for place, p := range s.overlay {
			if p.writers == 0 {
				chunk = append(chunk, carried{keyHash{place, p.check}, p, p.entry, p.dirty, p.grown})
			}
		}
		s.mu.Unlock()
		if len(chunk) >= flushChunk {
			chunk = l.settle(chunk)
		}
	}
	return l.settle(chunk)
}

// settle moves one chunk and returns the slice emptied.
func (l *local) settle(chunk []carried) []carried {
	if len(chunk) == 0 {
		return chunk
	}
	for _, b := range chunk {
		l.admit(b.h, b.entry, b.grown)
	}
	l.store.Wait()
	for _, b := range chunk {
		s := l.stripe(b.h)
		s.mu.Lock()
		if s.overlay[b.h.place] == b.p && b.p.dirty == b.dirty && b.p.writers == 0 {
			delete(s.overlay, b.h.place)
			s.n.Add(-1)
			l.overlay.Add(-b.p.size)
		}
		s.mu.Unlock()
	}
	clear(chunk)
	return chunk[:0]
}

// admit offers e to ristretto in place of the stored entry; a nil e removes that. The stored
// entry may be e itself, grown.
func (l *local) admit(h keyHash, e *entry, grown bool) {
	old, stored := l.store.Get(h.place)
	// An update in place may grow past MaxCost; an addition makes room first. Readers find
	// the key in the overlay meanwhile.
	if stored && (e == nil || grown || e.size() > old.size()) {
		l.store.Del(h.place)
		l.entries.Add(-1)
		stored = false
	}
	if e == nil {
		return
	}
	if !stored {
		l.entries.Add(1)
	}
	l.store.Set(h.place, e, e.size())
}

// bytes and len are for Stats. bytes locks ristretto's policy.
func (l *local) bytes() int64 {
	return l.store.MaxCost() - l.store.RemainingCost() + l.overlay.Load()
}

func (l *local) len() int64 {
	n := l.entries.Load()
	for i := range l.stripes {
		n += int64(l.stripes[i].n.Load())
	}
	return n
}

// close may be called only after the flusher has ended and no caller is inside: ristretto
// panics when its Close runs beside Get or Set.
func (l *local) close() { l.store.Close() }
