// Package local is the first tier: a cache in this process, with ristretto below.
package local

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/ristretto/v2"
	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/keyhash"
)

// Tier is the first tier: ristretto decides which entries to keep, and an overlay in front
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
type Tier struct {
	store *ristretto.Cache[uint64, *Entry]
	keys  keyhash.Hasher

	// StandaloneScope is the epoch scope of every key where there is no cluster.
	StandaloneScope EpochScope

	stripes [stripeCount]stripe

	maxEntry   int64
	maxOverlay int64
	Overlay    atomic.Int64 // bytes in the overlay
	Entries    atomic.Int64 // Entries in ristretto
	Evicted    atomic.Uint64
	Dropped    atomic.Uint64 // entries for which the overlay had no room

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

// pending is a key in the overlay. Guarded by its stripe.
type pending struct {
	check       uint64
	entry       *Entry // nil: a tombstone, the key was deleted or must be read again
	size        int64  // counted in Tier.Overlay
	writers     int32  // own writes on their way to Redis
	dirty       uint32 // changes with each write, so that the flusher notices one
	overlap     bool   // two own writes were in flight at once: only Redis knows their order
	invalidated bool   // invalidated while an own write was in flight
	grown       bool   // ristretto may have the same entry at a lower cost
}

type stripe struct {
	mu      sync.Mutex
	overlay map[uint64]*pending
	n       atomic.Int32  // len(overlay); at 0 readers skip the lock
	version atomic.Uint64 // grows with every write and invalidation
	_       [32]byte      // a cache line each
}

// Token is taken before a read is sent and proves, when the answer is stored, that the stripe
// has seen no write and no invalidation since, and that the invalidation stream is unbroken.
type Token struct {
	version uint64
	Scope   *EpochScope
	Epoch   uint32
}

func New(maxBytes int64) (*Tier, error) {
	l := &Tier{
		keys:       keyhash.NewHasher(),
		maxEntry:   min(maxBytes/8, 1<<30),
		maxOverlay: maxBytes / 8,
		kick:       make(chan struct{}, 1),
	}
	l.StandaloneScope.Until.Store(clock.Never) // without Redis there is no invalidation stream to lose
	for i := range l.stripes {
		l.stripes[i].overlay = make(map[uint64]*pending)
	}
	var err error
	l.store, err = ristretto.NewCache(&ristretto.Config[uint64, *Entry]{
		// Ten counters for each entry that fits, at about 640 B an entry: at 4-5 bytes
		// each, allocated at once, the counters take a tenth of MaxBytes.
		NumCounters: max(1000, maxBytes/64),
		MaxCost:     maxBytes - l.maxOverlay,
		BufferItems: 64,
		// entry.Size includes the overhead already.
		IgnoreInternalCost: true,
		// ristretto's default would box the key, which is a hash already.
		KeyToHash: func(h uint64) (uint64, uint64) { return h, 0 },
		OnEvict:   l.gone,
		OnReject:  l.gone,
	})
	return l, err
}

// gone runs on ristretto's goroutine when an entry is evicted or rejected.
func (l *Tier) gone(i *ristretto.Item[*Entry]) {
	if i.Value != nil {
		l.Entries.Add(-1)
		l.Evicted.Add(1)
	}
}

func (l *Tier) Hash(key string) keyhash.Hash { return l.keys.Of(key) }

func (l *Tier) stripe(h keyhash.Hash) *stripe { return &l.stripes[h.Place%stripeCount] }

// Get returns the key's entry, fresh or not, or nil. It does not block.
func (l *Tier) Get(h keyhash.Hash) *Entry {
	// The overlay first: an entry is in ristretto before it leaves the overlay.
	if s := l.stripe(h); s.n.Load() != 0 {
		s.mu.Lock()
		p := s.overlay[h.Place]
		if p != nil && p.check == h.Check {
			e := p.entry
			s.mu.Unlock()
			return e
		}
		s.mu.Unlock()
	}
	if e, ok := l.store.Get(h.Place); ok && e.check == h.Check {
		return e
	}
	return nil
}

// Token must be taken before the read is sent, and before its connection is chosen: the epoch
// then shows whether that connection may have missed an invalidation.
func (l *Tier) Token(h keyhash.Hash, d *EpochScope) Token {
	return Token{l.stripe(h).version.Load(), d, d.Epoch.Load()}
}

// Fill stores Redis' answer. It discards the answer if a write of our own, an invalidation or
// a loss of the stream came since the token was taken, or if a later read has filled already.
func (l *Tier) Fill(h keyhash.Hash, key string, val []byte, t Token, k Freshness) bool {
	s := l.stripe(h)
	s.mu.Lock()
	defer s.mu.Unlock()
	p, old, ok := l.fillableLocked(s, h, t)
	if !ok {
		if old = l.olderLocked(s, h, k.Confirmed); old != nil && !old.equals(val) {
			old.invalidate()
		}
		return false
	}
	if old != nil && old.Confirmed.Load() > k.Confirmed {
		return false
	}
	// An unchanged value is confirmed in place: so reading a copy again when its time is up
	// costs neither memory nor ristretto's attention.
	if old != nil && old.Scope == k.Scope && old.StaleIfError()&NotInRedis == 0 && old.equals(val) {
		old.Confirm(k)
		return true
	}
	return l.storeLocked(s, h, p, old, NewEntry(key, val, k))
}

// olderLocked returns the key's copy if it is older than an answer that Redis gave at that time
// and that cannot be stored; nil if there is none, or while a write of ours is in flight. The
// caller of the read gets the answer, so no later call may get an older value, not even in an
// outage: a copy that differs must be invalidated. The caller holds the stripe.
func (l *Tier) olderLocked(s *stripe, h keyhash.Hash, read int64) *Entry {
	p, old := l.lookLocked(s, h)
	if old == nil || p != nil && p.writers > 0 || old.Confirmed.Load() > read {
		return nil
	}
	return old
}

// Forget is Fill for the answer that Redis has no such key. A copy past its own time and a
// mark of absence stay: the answer is nothing new for them, and the copy may stand in for a
// load that fails.
func (l *Tier) Forget(h keyhash.Hash, t Token, now int64) {
	s := l.stripe(h)
	s.mu.Lock()
	defer s.mu.Unlock()
	p, old, ok := l.fillableLocked(s, h, t)
	if !ok {
		if old = l.olderLocked(s, h, now); old != nil && !old.saysAbsent(now) {
			old.invalidate()
		}
		return
	}
	if old == nil || !old.saysAbsent(now) {
		l.storeLocked(s, h, p, old, nil)
	}
}

// fillableLocked is lookLocked, and reports whether an answer that was read under the token
// may still be stored. The caller holds the stripe.
func (l *Tier) fillableLocked(s *stripe, h keyhash.Hash, t Token) (p *pending, old *Entry, ok bool) {
	if s.version.Load() != t.version || t.Scope.Epoch.Load() != t.Epoch {
		return nil, nil, false
	}
	p, old = l.lookLocked(s, h)
	return p, old, p == nil || p.writers == 0
}

// Begin makes e the key's value, or deletes the key if e is nil, while the write goes to
// Redis. It returns the previous entry and the write's sequence number in the stripe. The
// caller must call end afterwards. An entry that does not fit leaves a tombstone: the
// previous value is never left in its place.
func (l *Tier) Begin(h keyhash.Hash, e *Entry) (old *Entry, seq uint64) {
	old, seq, _ = l.open(h, nil, func(*Entry) *Entry { return e })
	return old, seq
}

// BeginUnless is begin, unless superseded is set: then it does nothing.
func (l *Tier) BeginUnless(h keyhash.Hash, e *Entry, superseded *atomic.Bool) (old *Entry, seq uint64, begun bool) {
	return l.open(h, superseded, func(*Entry) *Entry { return e })
}

// Hold is begin for a write that keeps the previous entry until Redis has decided.
func (l *Tier) Hold(h keyhash.Hash) (old *Entry, seq uint64) {
	old, seq, _ = l.open(h, nil, func(old *Entry) *Entry { return old })
	return old, seq
}

func (l *Tier) open(h keyhash.Hash, superseded *atomic.Bool, next func(old *Entry) *Entry) (old *Entry, seq uint64, begun bool) {
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

// End closes a write that begin opened. The entry stays only if Redis acknowledged the write
// (keep) and no other write of ours overlapped it: only Redis knows which of two such writes
// ran last. An entry that stays is fresh until the given time, or keeps its freshness (KeepFreshness);
// an invalidation during the write makes it unread in either case.
func (l *Tier) End(h keyhash.Hash, keep bool, fresh FreshUntil) {
	l.closeWrite(h, fresh, func(p *pending) *Entry {
		if keep {
			return p.entry
		}
		return nil
	})
}

// EndRefused closes a write that begin opened and Redis refused: Redis' value has not
// changed, so the previous entry is put back as it was. If an invalidation came meanwhile, a
// tombstone takes its place.
func (l *Tier) EndRefused(h keyhash.Hash, was *Entry) {
	l.closeWrite(h, KeepFreshness, func(p *pending) *Entry {
		if p.invalidated {
			return nil
		}
		return was
	})
}

// EndAs closes a write that hold opened: e replaces the previous entry, as with end.
func (l *Tier) EndAs(h keyhash.Hash, e *Entry, fresh FreshUntil) {
	l.closeWrite(h, fresh, func(*pending) *Entry { return e })
}

func (l *Tier) closeWrite(h keyhash.Hash, fresh FreshUntil, next func(*pending) *Entry) {
	s := l.stripe(h)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version.Add(1)
	p := s.overlay[h.Place]
	if p == nil || p.check != h.Check {
		return // another key with the same hash took the place
	}
	p.writers--
	e := next(p)
	if p.overlap {
		e = nil
	}
	if e != nil && fresh != KeepFreshness {
		if p.invalidated {
			fresh = Unconfirmed
		}
		e.setFresh(fresh)
	}
	if p.writers == 0 {
		p.overlap, p.invalidated = false, false
	}
	l.storeLocked(s, h, p, p.entry, e)
}

// Writing reports whether a write of ours to the key is in flight.
func (l *Tier) Writing(h keyhash.Hash) bool {
	s := l.stripe(h)
	if s.n.Load() == 0 {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p, _ := l.lookLocked(s, h)
	return p != nil && p.writers > 0
}

// Put is begin and end in one, for a write that is not sent to Redis now.
func (l *Tier) Put(h keyhash.Hash, e *Entry) (old *Entry, seq uint64) {
	s := l.stripe(h)
	s.mu.Lock()
	defer s.mu.Unlock()
	return l.putLocked(s, h, e)
}

// PutUnless is put, unless superseded is set or the key's entry is by now another than seen.
// A writer that sets superseded and then writes the key wins: either PutUnless sees the flag,
// or the writer gets the later sequence number.
func (l *Tier) PutUnless(h keyhash.Hash, e *Entry, superseded *atomic.Bool, seen *Entry) (old *Entry, seq uint64, done bool) {
	s := l.stripe(h)
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, now := l.lookLocked(s, h); superseded.Load() || now != nil && now != seen {
		return nil, 0, false
	}
	old, seq = l.putLocked(s, h, e)
	return old, seq, true
}

func (l *Tier) putLocked(s *stripe, h keyhash.Hash, e *Entry) (old *Entry, seq uint64) {
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

// Add is put if the key has no live entry; it reports whether it stored e.
func (l *Tier) Add(h keyhash.Hash, e *Entry, now int64) bool {
	s := l.stripe(h)
	s.mu.Lock()
	defer s.mu.Unlock()
	p, old := l.lookLocked(s, h)
	if old != nil && now < old.Expires.Load() {
		return false
	}
	s.version.Add(1)
	l.storeLocked(s, h, p, old, e)
	return true
}

// Suspect makes the next reader ask Redis, and keeps the copy as a fallback. The function end
// gives the copy's new end from its present one.
func (l *Tier) Suspect(h keyhash.Hash, end func(old int64) int64) {
	s := l.stripe(h)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version.Add(1)
	if _, old := l.lookLocked(s, h); old != nil && !old.Invalid() {
		old.SetUnconfirmed()
		old.Expires.Store(end(old.Expires.Load()))
	}
}

// Retime is doubt with another end for the copy that the caller saw. A copy that came
// meanwhile is removed: only Redis knows which of the two ends it has.
func (l *Tier) Retime(h keyhash.Hash, was *Entry, end int64) {
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
	case !old.Invalid():
		old.SetUnconfirmed()
		old.Expires.Store(end)
	}
}

// OnReplayed is called when a replay has brought the last write to Redis. The copy that the
// write left is unread, and stays as a fallback until Redis is asked again. Any other copy is
// removed: it was read from Redis before the journal had the write.
func (l *Tier) OnReplayed(h keyhash.Hash) {
	s := l.stripe(h)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version.Add(1)
	if p, old := l.lookLocked(s, h); old != nil && old.FreshUntil() != Unconfirmed {
		l.storeLocked(s, h, p, old, nil)
	}
}

// SameEnd leaves a copy's end as it is.
func SameEnd(old int64) int64 { return old }

// Invalidate handles an invalidation: the key has changed, or Redis dropped it. A copy that
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
func (l *Tier) Invalidate(h keyhash.Hash, now int64) {
	s := l.stripe(h)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version.Add(1)
	p, old := l.lookLocked(s, h)
	writing := p != nil && p.writers > 0
	if writing {
		p.invalidated = true
	}
	switch {
	case old == nil:
	case writing, old.FreshUntil() == Unconfirmed:
		old.SetUnconfirmed()
	default:
		old.setFresh(Suspect)
		if now < old.Expires.Load() {
			old.Expires.Store(Invalidated)
		}
	}
}

// lookLocked returns the key's pending in the overlay and its entry; either may be nil. The
// caller holds the stripe.
func (l *Tier) lookLocked(s *stripe, h keyhash.Hash) (*pending, *Entry) {
	if p := s.overlay[h.Place]; p != nil && p.check == h.Check {
		return p, p.entry
	}
	if e, ok := l.store.Get(h.Place); ok && e.check == h.Check {
		return nil, e
	}
	return nil, nil
}

// pendLocked gives the key a place in the overlay. The caller holds the stripe.
func (l *Tier) pendLocked(s *stripe, h keyhash.Hash) *pending {
	if was := s.overlay[h.Place]; was != nil {
		l.Overlay.Add(-was.size) // another key with the same hash: the newer one takes the place
	} else {
		s.n.Add(1)
	}
	p := &pending{check: h.Check}
	s.overlay[h.Place] = p
	return p
}

// storeLocked makes e the overlay's entry of the key, visible to readers at once and carried
// on by the flusher later. p and old are the results of lookLocked. If there is no room, it
// leaves a tombstone and returns false. Tombstones always have room: there are never more of
// them than entries and writes in flight. The caller holds the stripe.
func (l *Tier) storeLocked(s *stripe, h keyhash.Hash, p *pending, old, e *Entry) bool {
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
		if e.check != h.Check {
			e.check = h.Check // e is new: readers may be reading an entry that is not
		}
		size = e.size()
	}
	l.Overlay.Add(size - p.size)
	p.entry, p.size = e, size
	p.dirty++
	l.wake()
	return fits
}

func (l *Tier) fits(p *pending, size int64) bool {
	if size > l.maxEntry {
		return false
	}
	if !l.room(p, size) {
		l.Dropped.Add(1)
		return false
	}
	return true
}

// room reports whether the overlay can hold size bytes for a key in place of p.
func (l *Tier) room(p *pending, size int64) bool {
	held := l.Overlay.Load()
	if p != nil {
		held -= p.size
	}
	return held+size <= l.maxOverlay
}

// wake signals the flusher that the overlay has keys. It does not block.
func (l *Tier) wake() {
	if !l.kicked.Load() && l.kicked.CompareAndSwap(false, true) {
		l.kick <- struct{}{} // has room: kicked was false
	}
}

// Flush is the flusher's loop. It ends when stop is closed.
func (l *Tier) Flush(stop <-chan struct{}) {
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
		if l.Overlay.Load() > l.maxOverlay/4 {
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
	h     keyhash.Hash
	p     *pending
	entry *Entry
	dirty uint32
	grown bool
}

// carry moves every key without a writer from the overlay to ristretto, in chunks that
// ristretto's queue can hold.
func (l *Tier) carry(chunk []carried) []carried {
	for i := range l.stripes {
		s := &l.stripes[i]
		if s.n.Load() == 0 {
			continue
		}
		s.mu.Lock()
		for place, p := range s.overlay {
			if p.writers == 0 {
				chunk = append(chunk, carried{keyhash.Hash{Place: place, Check: p.check}, p, p.entry, p.dirty, p.grown})
			}
		}
		s.mu.Unlock()
		if len(chunk) >= flushChunk {
			chunk = l.moveChunk(chunk)
		}
	}
	return l.moveChunk(chunk)
}

// moveChunk moves one chunk and returns the slice emptied.
func (l *Tier) moveChunk(chunk []carried) []carried {
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
		if s.overlay[b.h.Place] == b.p && b.p.dirty == b.dirty && b.p.writers == 0 {
			delete(s.overlay, b.h.Place)
			s.n.Add(-1)
			l.Overlay.Add(-b.p.size)
		}
		s.mu.Unlock()
	}
	clear(chunk)
	return chunk[:0]
}

// admit offers e to ristretto in place of the stored entry; a nil e removes that. The stored
// entry may be e itself, grown.
func (l *Tier) admit(h keyhash.Hash, e *Entry, grown bool) {
	old, stored := l.store.Get(h.Place)
	// An update in place may grow past MaxCost; an addition makes room first. Readers find
	// the key in the overlay meanwhile.
	if stored && (e == nil || grown || e.size() > old.size()) {
		l.store.Del(h.Place)
		l.Entries.Add(-1)
		stored = false
	}
	if e == nil {
		return
	}
	if !stored {
		l.Entries.Add(1)
	}
	l.store.Set(h.Place, e, e.size())
}

// Bytes and Len are for Stats. Bytes locks ristretto's policy.
func (l *Tier) Bytes() int64 {
	return l.store.MaxCost() - l.store.RemainingCost() + l.Overlay.Load()
}

func (l *Tier) Len() int64 {
	n := l.Entries.Load()
	for i := range l.stripes {
		n += int64(l.stripes[i].n.Load())
	}
	return n
}

// Close may be called only after the flusher has ended and no caller is inside: ristretto
// panics when its Close runs beside Get or Set.
func (l *Tier) Close() { l.store.Close() }

// OverlayBytes is the size of the overlay in bytes.
func (l *Tier) OverlayBytes() int64 { return l.Overlay.Load() }

// InOverlay counts the keys of the overlay and the writes in flight of these keys. It takes
// the lock of each stripe, so it is for tests.
func (l *Tier) InOverlay() (keys, writers int) {
	for i := range l.stripes {
		s := &l.stripes[i]
		s.mu.Lock()
		keys += len(s.overlay)
		for _, p := range s.overlay {
			writers += int(p.writers)
		}
		s.mu.Unlock()
	}
	return keys, writers
}
