package holdfast

import (
	"bytes"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/ristretto/v2"
)

// local is the first tier: ristretto for what to keep, and before it an overlay
// that makes read-your-writes exact.
//
// ristretto alone keeps the first of two quick Sets of a new key, shows a new
// key only after its queue was worked off, and blocks in Del. So callers never
// write to it. They write to the overlay, which readers ask first. One
// goroutine, the flusher, carries what is there into ristretto, and takes it out
// of the overlay once ristretto's own barrier says that it was admitted or
// rejected.
//
// Invariants:
//   - What the overlay says of a key is newer than what ristretto says.
//   - A key with own writes in flight stays in the overlay.
//   - ristretto.Set and Del are called by the flusher alone, so its queue never
//     overflows and its order is ours.
//   - What ristretto may hold plus what the overlay may hold is MaxBytes.
type local struct {
	store *ristretto.Cache[uint64, *entry]
	seeds [2]maphash.Seed

	// home is the domain of every key, where there is no cluster.
	home domain

	stripes [stripeCount]stripe

	maxEntry   int64
	maxOverlay int64
	overlay    atomic.Int64 // bytes that the overlay holds
	entries    atomic.Int64 // entries that ristretto holds
	evicted    atomic.Uint64
	dropped    atomic.Uint64 // entries that found the overlay full

	kicked atomic.Bool
	kick   chan struct{}
}

const (
	// stripeCount is a power of two, large enough that unrelated keys seldom
	// discard each other's fills: a write makes void the fills in flight of its
	// whole stripe.
	stripeCount = 1024

	// entryOverhead is what an entry costs beside its key and value: the entry
	// and ristretto's two map slots. BenchmarkHeapMillion measures it.
	entryOverhead = 250

	// flushChunk is well below half of ristretto's queue of 32,768: an entry
	// that grew takes two places in it.
	flushChunk = 4096

	// flushPause lets writes gather: a barrier costs two goroutine switches
	// whether one entry is behind it or a thousand.
	flushPause = time.Millisecond
)

// keyHash is a key as the local tier knows it: two hashes of independent random
// seeds. ristretto finds by the first; the second takes the place of comparing
// the key itself, which would cost a hit two more cache misses and each entry
// the key's memory. The upper 16 bits of the second give way to the key's length,
// which an entry needs to know what it costs. That two keys of a process agree in
// that and in 112 bits is less likely than that the memory that holds them fails.
type keyHash struct{ place, check uint64 }

const (
	lengthShift = 48
	longKey     = 1 << 15 // from here on a length is rounded up to a multiple of this
)

// keyLength is a key's length as it stands in keyHash.check.
func keyLength(length int) uint64 {
	n := uint64(length)
	if n >= longKey {
		n = longKey | (n+longKey-1)/longKey
	}
	return n << lengthShift
}

// lengthIn is the length that keyLength put there.
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
	dirty   uint32 // changes with each write, so the flusher sees a late one
	overlap bool   // two own writes were under way at once: their order is Redis' secret
	told    bool   // the server told of the key while an own write was under way
	grown   bool   // ristretto may have the same entry at a lower cost
}

type stripe struct {
	mu      sync.Mutex
	overlay map[uint64]*pending
	n       atomic.Int32  // len(overlay), to skip the lock where it is 0
	version atomic.Uint64 // grows with every write and invalidation
	_       [32]byte      // a cache line each
}

// token is what a fill must show: that nothing it could have missed happened to
// its stripe since before the read was sent.
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
	l.home.until.Store(never) // there is nobody to be heard
	for i := range l.stripes {
		l.stripes[i].overlay = make(map[uint64]*pending)
	}
	var err error
	l.store, err = ristretto.NewCache(&ristretto.Config[uint64, *entry]{
		// Ten counters for each entry that fits, at about 640 B an entry: 4-5
		// bytes each, allocated at once, are then a tenth of MaxBytes.
		NumCounters: max(1000, maxBytes/64),
		MaxCost:     maxBytes - l.maxOverlay,
		BufferItems: 64,
		// An entry's size includes all that it occupies.
		IgnoreInternalCost: true,
		// ristretto's own would box the key; it is a hash already.
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
	// The overlay first: what leaves it is in ristretto before it leaves.
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

// token is taken before a read is sent to Redis, and before it is decided on
// which connection: what that one may have missed is then seen in the epoch.
func (l *local) token(h keyHash, d *domain) token {
	return token{l.stripe(h).version.Load(), d, d.epoch.Load()}
}

// fill stores what Redis answered. It is discarded where a write of our own, an
// invalidation or a loss of the stream came between the token and now, and where
// a later read has filled already.
func (l *local) fill(h keyHash, key string, value []byte, t token, k term) bool {
	s := l.stripe(h)
	s.mu.Lock()
	defer s.mu.Unlock()
	p, old, ok := l.fillableLocked(s, h, t)
	if !ok || old != nil && old.confirmed.Load() > k.confirmed {
		return false
	}
	// What is confirmed as it was needs no new place: so a copy that is read
	// again when its time is up costs a fill neither memory nor ristretto's
	// attention.
	if old != nil && old.domain == k.domain && old.grace()&ungiven == 0 && len(value) <= comparedBytes && bytes.Equal(old.bytes(), value) {
		old.confirm(k)
		return true
	}
	return l.storeLocked(s, h, p, old, newEntry(key, value, k))
}

// comparedBytes bounds what is compared under a stripe's lock.
const comparedBytes = 64 << 10

// forget is fill where Redis has no such key. A copy past its own time stays: that
// Redis has it no more says nothing new, and it may stand in for a load that fails.
func (l *local) forget(h keyHash, t token, now int64) {
	s := l.stripe(h)
	s.mu.Lock()
	defer s.mu.Unlock()
	if p, old, ok := l.fillableLocked(s, h, t); ok && (old == nil || !old.past(now)) {
		l.storeLocked(s, h, p, old, nil)
	}
}

// fillableLocked is lookLocked, and says whether what was read under the token
// may still be stored. The caller holds the stripe.
func (l *local) fillableLocked(s *stripe, h keyHash, t token) (p *pending, old *entry, ok bool) {
	if s.version.Load() != t.version || t.domain.epoch.Load() != t.epoch {
		return nil, nil, false
	}
	p, old = l.lookLocked(s, h)
	return p, old, p == nil || p.writers == 0
}

// begin makes e the key's value, or deletes it where e is nil, while the write
// goes to Redis. It returns what was there, and the write's place in the order
// of the stripe's writes. end must follow. An entry that does not fit leaves a
// tombstone: never the value that it replaces.
func (l *local) begin(h keyHash, e *entry) (old *entry, seq uint64) {
	old, seq, _ = l.open(h, nil, func(*entry) *entry { return e })
	return old, seq
}

// beginUnless is begin, unless late is set: then nothing has begun.
func (l *local) beginUnless(h keyHash, e *entry, late *atomic.Bool) (old *entry, seq uint64, begun bool) {
	return l.open(h, late, func(*entry) *entry { return e })
}

// hold is begin for a write that leaves what is there until Redis has decided.
func (l *local) hold(h keyHash) (old *entry, seq uint64) {
	old, seq, _ = l.open(h, nil, func(old *entry) *entry { return old })
	return old, seq
}

func (l *local) open(h keyHash, late *atomic.Bool, what func(old *entry) *entry) (old *entry, seq uint64, begun bool) {
	s := l.stripe(h)
	s.mu.Lock()
	defer s.mu.Unlock()
	if late != nil && late.Load() {
		return nil, 0, false
	}
	seq = s.version.Add(1)
	p, old := l.lookLocked(s, h)
	if p == nil {
		p = l.pendLocked(s, h)
	}
	p.overlap = p.overlap || p.writers > 0
	p.writers++
	l.storeLocked(s, h, p, old, what(old))
	return old, seq, true
}

// end closes what begin opened. The entry stays only where the write is known to
// have reached its end (keep) and no other write of ours was under way beside it:
// which of two such Redis ran last, only Redis knows. What stays is fresh until
// the given time, or as long as it was (asIs), unless the server told of the key
// meanwhile.
func (l *local) end(h keyHash, keep bool, fresh int64) {
	l.closeWrite(h, fresh, func(p *pending) *entry {
		if keep {
			return p.entry
		}
		return nil
	})
}

// endRefused closes what begin opened, where Redis has refused the write: it holds what it
// held, so what was there takes its place again, as it was. Where the server told of the
// key meanwhile, nothing does.
func (l *local) endRefused(h keyHash, was *entry) {
	l.closeWrite(h, asIs, func(p *pending) *entry {
		if p.told {
			return nil
		}
		return was
	})
}

// endAs closes what hold opened, and e takes the place of what was there, as with
// end.
func (l *local) endAs(h keyHash, e *entry, fresh int64) {
	l.closeWrite(h, fresh, func(*pending) *entry { return e })
}

func (l *local) closeWrite(h keyHash, fresh int64, what func(*pending) *entry) {
	s := l.stripe(h)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version.Add(1)
	p := s.overlay[h.place]
	if p == nil || p.check != h.check {
		return // another key of the same place took it
	}
	p.writers--
	e := what(p)
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

// writing says whether a write of ours to the key is under way.
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

// put is a write that Redis is not told of: begin and end in one.
func (l *local) put(h keyHash, e *entry) (old *entry, seq uint64) {
	s := l.stripe(h)
	s.mu.Lock()
	defer s.mu.Unlock()
	return l.putLocked(s, h, e)
}

// putUnless is put, unless late is set, or the key has by now another entry than the one
// that was seen. Whoever sets late and then writes the key wins: either this one sees
// it, or the other has the later place.
func (l *local) putUnless(h keyHash, e *entry, late *atomic.Bool, seen *entry) (old *entry, seq uint64, done bool) {
	s := l.stripe(h)
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, now := l.lookLocked(s, h); late.Load() || now != nil && now != seen {
		return nil, 0, false
	}
	old, seq = l.putLocked(s, h, e)
	return old, seq, true
}

func (l *local) putLocked(s *stripe, h keyHash, e *entry) (old *entry, seq uint64) {
	seq = s.version.Add(1)
	p, old := l.lookLocked(s, h)
	if p != nil {
		// A write of ours that is still under way may end after this one at
		// Redis: let it, too, leave nothing behind.
		p.overlap = p.overlap || p.writers > 0
	}
	l.storeLocked(s, h, p, old, e)
	return old, seq
}

// add is put where the key has no live entry.
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

// doubt makes the key be read from Redis before it is served again, and keeps
// the copy as a fallback, with the end that it is given from its present one.
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

// retime is doubt with another end for the copy that was there before. One that came
// meanwhile goes: which of the two ends it has, only Redis knows.
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

// settled is told that a replay has brought the last write to Redis. The copy that
// the write left must be read before it is fresh, and is marked so. Another one goes:
// it was read from Redis before the journal had the write.
func (l *local) settled(h keyHash) {
	s := l.stripe(h)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version.Add(1)
	if p, old := l.lookLocked(s, h); old != nil && old.fresh.Load() != unread {
		l.storeLocked(s, h, p, old, nil)
	}
}

// sameEnd leaves the end of a copy as it is.
func sameEnd(old int64) int64 { return old }

// invalidate is told that the key has changed, or that Redis dropped it. What was
// read becomes wrong where it is: the goroutine that reads the connection calls
// this, so it makes nothing and waits for nothing.
//
// Two copies stay as they are, but for their freshness. One that was written here
// and not read since: this may be the echo of the write, and the value is still
// the last one that we know of. And one past its own time: the server tells of just
// that, and Outage.ServeStaleFor may have a use for it.
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

// lookLocked returns the key's place in the overlay, if it has one, and its
// entry, if it has one. The caller holds the stripe.
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
		l.overlay.Add(-was.size) // a key of the same place: the newer has it
	} else {
		s.n.Add(1)
	}
	p := &pending{check: h.check}
	s.overlay[h.place] = p
	return p
}

// storeLocked makes e what the overlay says of the key, for readers at once and
// for the flusher to carry on; p and old are what lookLocked returned. Where there
// is no room it leaves a tombstone and returns false. Tombstones have room
// always: there are no more than entries and writes under way. The caller holds
// the stripe.
func (l *local) storeLocked(s *stripe, h keyHash, p *pending, old, e *entry) bool {
	fits := e == nil || l.fits(p, e.size())
	if !fits {
		e = nil
	}
	if p == nil {
		if e == nil && old == nil {
			return fits // nothing to say of the key, and nothing to take back
		}
		p = l.pendLocked(s, h)
	}
	size := int64(entryOverhead)
	if e != nil {
		if e.check != h.check {
			e.check = h.check // new: readers may look at one that is not
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

// room says whether the overlay can hold so much of a key in place of p.
func (l *local) room(p *pending, size int64) bool {
	held := l.overlay.Load()
	if p != nil {
		held -= p.size
	}
	return held+size <= l.maxOverlay
}

// wake tells the flusher that the overlay has something. It does not block.
func (l *local) wake() {
	if !l.kicked.Load() && l.kicked.CompareAndSwap(false, true) {
		l.kick <- struct{}{} // has room: kicked was false
	}
}

// flush is the flusher's life. It ends when stop is closed.
func (l *local) flush(stop <-chan struct{}) {
	pause := time.NewTimer(flushPause)
	defer pause.Stop()
	var batch []carried
	for {
		select {
		case <-stop:
			return
		case <-l.kick:
			// Before the pass: what is written during it must kick again.
			l.kicked.Store(false)
		}
		batch = l.carry(batch)
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

// carried is a key on its way to ristretto, as it was when it was picked up.
type carried struct {
	h     keyHash
	p     *pending
	entry *entry
	dirty uint32
	grown bool
}

// carry takes every key without a writer from the overlay to ristretto, in
// chunks that its queue can hold.
func (l *local) carry(batch []carried) []carried {
	for i := range l.stripes {
		s := &l.stripes[i]
		if s.n.Load() == 0 {
			continue
		}
		s.mu.Lock()
		for place, p := range s.overlay {
			if p.writers == 0 {
				batch = append(batch, carried{keyHash{place, p.check}, p, p.entry, p.dirty, p.grown})
			}
		}
		s.mu.Unlock()
		if len(batch) >= flushChunk {
			batch = l.settle(batch)
		}
	}
	return l.settle(batch)
}

// settle carries one chunk and returns it empty.
func (l *local) settle(batch []carried) []carried {
	if len(batch) == 0 {
		return batch
	}
	for _, b := range batch {
		l.admit(b.h, b.entry, b.grown)
	}
	l.store.Wait()
	for _, b := range batch {
		s := l.stripe(b.h)
		s.mu.Lock()
		if s.overlay[b.h.place] == b.p && b.p.dirty == b.dirty && b.p.writers == 0 {
			delete(s.overlay, b.h.place)
			s.n.Add(-1)
			l.overlay.Add(-b.p.size)
		}
		s.mu.Unlock()
	}
	clear(batch)
	return batch[:0]
}

// admit offers e to ristretto in place of what it has; nil takes that away. What it
// has may be e itself, grown.
func (l *local) admit(h keyHash, e *entry, grown bool) {
	old, stored := l.store.Get(h.place)
	// An update in place may grow past MaxCost; an addition makes room first.
	// Readers find the key in the overlay meanwhile.
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

// bytes and len are what Stats shows; bytes locks ristretto's policy.
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

// close may be called once the flusher has ended and no caller is inside:
// ristretto panics when its Close runs beside Get or Set.
func (l *local) close() { l.store.Close() }
