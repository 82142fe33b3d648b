// Package local is the first tier: a cache in this process, whose entries ristretto advises to
// keep or to evict.
package local

import (
	"sync"
	"sync/atomic"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/keyhash"
)

// Tier is the first tier: an index of entries in stripes, and ristretto, which decides which of
// them stay.
//
// ristretto alone keeps the first of two quick Sets of a new key, shows a new key only after its
// queue was worked off, and blocks in Del. So it holds no entries: a write or a fill goes into the
// index under the stripe's lock, and is seen from then on. The feeder tells ristretto of it later,
// and removes the entry if ristretto rejects it.
//
// Invariants:
//   - The index alone has the entries: what a write stored is read, or nothing.
//   - A key that ristretto has not judged is queued for the feeder.
//   - The entries take MaxBytes together. Only such as are larger than the reserve may be over, until
//     ristretto has judged them: the newest of each writer, and two that it is judging.
type Tier struct {
	keys keyhash.Hasher

	// StandaloneScope is the epoch scope of every key where there is no cluster.
	StandaloneScope EpochScope

	stripes [stripeCount]stripe
	policy  policy

	maxBytes int64
	maxEntry int64
	reserve  int64 // for entries that ristretto has not judged

	bytes   atomic.Int64 // of all entries
	entries atomic.Int64
	Evicted atomic.Uint64
	Dropped atomic.Uint64 // new entries for which there was no room
}

const (
	// stripeCount is a power of two, large enough that unrelated keys seldom discard each
	// other's fills: a write invalidates the fills in flight of its whole stripe.
	stripeCount = 1024

	// prefetchKeys is the number of keys to prefetch at once: they fit into the first cache of a core.
	prefetchKeys = 64

	// entryOverhead is the cost in bytes of an entry beside its key and value: the entry itself,
	// its slot in the index and ristretto's two map slots. BenchmarkHeapMillion measures it.
	entryOverhead = 280
)

type stripe struct {
	mu      sync.Mutex
	version atomic.Uint64 // grows with every write and invalidation
	index   atomic.Pointer[index]
	replies map[uint64]*replySet // by the place of the key; nil until there are some
	_       [32]byte             // a cache line each
}

// Token is taken before a read is sent and proves, when the answer is stored, that the stripe
// has seen no write and no invalidation since, and that the invalidation stream is unbroken.
type Token struct {
	version uint64
	Scope   *EpochScope
	Epoch   uint32
}

// New returns a tier. The caller runs Feed, and Close after it.
func New(maxBytes int64) *Tier {
	l := &Tier{
		keys:     keyhash.NewHasher(),
		maxBytes: maxBytes,
		maxEntry: min(maxBytes/8, 1<<30),
		reserve:  maxBytes / 64,
	}
	l.StandaloneScope.Until.Store(clock.Never) // without Redis there is no invalidation stream to lose
	l.policy.kick, l.policy.rush = make(chan struct{}, 1), make(chan struct{}, 1)
	return l
}

func (l *Tier) Hash(key string) keyhash.Hash { return l.keys.Of(key) }

func (l *Tier) stripe(place uint64) *stripe { return &l.stripes[place%stripeCount] }

// Get returns the key's entry, fresh or not, or nil. It does not block.
func (l *Tier) Get(h keyhash.Hash) *Entry {
	if k := l.stripe(h.Place).index.Load().find(h.Place); k != nil {
		return k.of(h)
	}
	return nil
}

// Prefetch is called for each of n keys, in the order in which they are looked up. At every
// prefetchKeys keys it loads what the next lookups will read: so their loads from memory overlap,
// while each lookup would wait for its own.
func (l *Tier) Prefetch(i, n int, hash func(i int) keyhash.Hash) {
	if i%prefetchKeys != 0 {
		return
	}
	for end := min(i+prefetchKeys, n); i < end; i++ {
		place := hash(i).Place
		if x := l.stripe(place).index.Load(); x != nil {
			x.slots[x.home(place)].place.Load()
		}
	}
}

// of returns the slot's entry if it is of that key, or nil. Another key with the same place may
// have taken the slot.
func (s *slot) of(h keyhash.Hash) *Entry {
	if e := s.entry.Load(); e != nil && e.check == h.Check {
		return e
	}
	return nil
}

// lock locks the key's stripe, and returns its slot and entry; either may be nil.
func (l *Tier) lock(h keyhash.Hash) (*stripe, *slot, *Entry) {
	s := l.stripe(h.Place)
	s.mu.Lock()
	if k := s.find(h.Place); k != nil {
		return s, k, k.of(h)
	}
	return s, nil, nil
}

// unlock unlocks the key's stripe, in which the key may have got a new entry.
func (l *Tier) unlock(s *stripe, h keyhash.Hash) {
	s.mu.Unlock()
	switch held := l.bytes.Load(); {
	case !l.policy.started.Load():
		if held > l.maxBytes/startAt {
			l.policy.wake()
		}
	case held > l.maxBytes-l.reserve/4:
		l.trim(h)
	}
}

// Token must be taken before the read is sent, and before its connection is chosen: the epoch
// then shows whether that connection may have missed an invalidation.
func (l *Tier) Token(h keyhash.Hash, d *EpochScope) Token {
	return Token{l.stripe(h.Place).version.Load(), d, d.Epoch.Load()}
}

// fillable reports whether an answer that was read under the token may still be stored in the
// key's slot. The caller holds the stripe.
func (s *stripe) fillable(k *slot, t Token) bool {
	return s.version.Load() == t.version && t.Scope.Epoch.Load() == t.Epoch && !k.writing()
}

// writing reports whether a write of ours to the slot's key is in flight. The caller holds the
// stripe.
func (s *slot) writing() bool { return s != nil && s.writers > 0 }

// Fill stores Redis' answer. It discards the answer if a write of our own, an invalidation or
// a loss of the stream came since the token was taken, or if a later read has filled already.
func (l *Tier) Fill(h keyhash.Hash, key string, val []byte, t Token, f Freshness) bool {
	s, k, old := l.lock(h)
	defer l.unlock(s, h)
	if !s.fillable(k, t) {
		if old.olderThan(k, f.Confirmed) && !old.equals(val) {
			old.invalidate()
		}
		return false
	}
	if old != nil && old.Confirmed.Load() > f.Confirmed {
		return false
	}
	s.enterReplies(h, t, f.Confirmed)
	// An unchanged value is confirmed in place: so reading a copy again when its time is up
	// costs neither memory nor ristretto's attention.
	if old != nil && old.Scope == f.Scope && old.StaleIfError()&NotInRedis == 0 && old.equals(val) {
		old.Confirm(f)
		return true
	}
	return l.put(s, k, h, NewEntry(key, val, f))
}

// olderThan reports whether the copy in that slot is older than an answer that Redis gave at the
// given time and that cannot be stored. The caller of the read gets the answer, so no later call
// may get an older value, not even in an outage: a copy that differs must be invalidated. It is
// false for no copy, and while a write of ours is in flight.
func (e *Entry) olderThan(k *slot, read int64) bool {
	return e != nil && !k.writing() && e.Confirmed.Load() <= read
}

// Forget is Fill for the answer that Redis has no such key. A copy past its own time and a
// mark of absence stay: the answer is nothing new for them, and the copy may stand in for a
// load that fails.
func (l *Tier) Forget(h keyhash.Hash, t Token, now int64) {
	s, k, old := l.lock(h)
	defer l.unlock(s, h)
	if s.fillable(k, t) {
		s.enterReplies(h, t, now)
	}
	switch {
	case old == nil || old.saysAbsent(now):
	case s.fillable(k, t):
		l.replace(s, k, nil)
	case old.olderThan(k, now):
		old.invalidate()
	}
}

// Begin makes e the key's value, or deletes the key if e is nil, while the write goes to
// Redis. It returns the previous entry and the write's sequence number in the stripe. The
// caller must call End afterwards. The previous value is never left in the place of an entry that
// does not fit.
func (l *Tier) Begin(h keyhash.Hash, e *Entry) (old *Entry, seq uint64) {
	s, k, old := l.lock(h)
	defer l.unlock(s, h)
	return old, l.begin(s, k, h, e)
}

// BeginUnless is Begin, unless superseded is set: then it does nothing.
func (l *Tier) BeginUnless(h keyhash.Hash, e *Entry, superseded *atomic.Bool) (old *Entry, seq uint64, begun bool) {
	s, k, old := l.lock(h)
	defer l.unlock(s, h)
	if superseded.Load() {
		return nil, 0, false
	}
	return old, l.begin(s, k, h, e), true
}

// Hold is Begin for a write that keeps the previous entry until Redis has decided.
func (l *Tier) Hold(h keyhash.Hash) (old *Entry, seq uint64) {
	s, k, old := l.lock(h)
	defer l.unlock(s, h)
	return old, l.begin(s, k, h, old)
}

func (l *Tier) begin(s *stripe, k *slot, h keyhash.Hash, e *Entry) (seq uint64) {
	if k == nil {
		k = s.take(h.Place)
	}
	k.overlap = k.writers > 0
	k.writers++
	l.put(s, k, h, e)
	return s.changed(h)
}

// End closes a write that Begin opened. The entry stays only if Redis acknowledged the write
// (keep) and no other write of ours overlapped it: only Redis knows which of two such writes
// ran last. An entry that stays is fresh until the given time, or keeps its freshness (KeepFreshness);
// an invalidation during the write makes it unread in either case.
func (l *Tier) End(h keyhash.Hash, keep bool, fresh FreshUntil) {
	s, k, e := l.lock(h)
	defer l.unlock(s, h)
	if !keep {
		e = nil
	}
	l.end(s, k, h, e, fresh)
}

// EndRefused closes a write that Begin opened and Redis refused: Redis' value has not
// changed, so the previous entry is put back as it was, unless an invalidation came meanwhile.
func (l *Tier) EndRefused(h keyhash.Hash, was *Entry) {
	s, k, _ := l.lock(h)
	defer l.unlock(s, h)
	if k != nil && k.invalidated {
		was = nil
	}
	l.end(s, k, h, was, KeepFreshness)
}

// EndAs closes a write that Hold opened: e replaces the previous entry, as with End.
func (l *Tier) EndAs(h keyhash.Hash, e *Entry, fresh FreshUntil) {
	s, k, _ := l.lock(h)
	defer l.unlock(s, h)
	l.end(s, k, h, e, fresh)
}

func (l *Tier) end(s *stripe, k *slot, h keyhash.Hash, e *Entry, fresh FreshUntil) {
	s.changed(h)
	if !k.writing() {
		return // there was no Begin
	}
	k.writers--
	if k.overlap {
		e = nil
	}
	if e != nil && fresh != KeepFreshness {
		if k.invalidated {
			fresh = Unconfirmed
		}
		e.setFresh(fresh)
	}
	if k.writers == 0 {
		k.overlap, k.invalidated = false, false
	}
	l.put(s, k, h, e)
}

// Writing reports whether a write of ours to the key is in flight.
func (l *Tier) Writing(h keyhash.Hash) bool {
	s, k, _ := l.lock(h)
	defer s.mu.Unlock()
	return k.writing()
}

// Put is Begin and End in one, for a write that is not sent to Redis now.
func (l *Tier) Put(h keyhash.Hash, e *Entry) (old *Entry, seq uint64) {
	s, k, old := l.lock(h)
	defer l.unlock(s, h)
	return old, l.overwrite(s, k, h, e)
}

// PutUnless is Put, unless superseded is set or the key's entry is by now another than seen.
// A writer that sets superseded and then writes the key wins: either PutUnless sees the flag,
// or the writer gets the later sequence number.
func (l *Tier) PutUnless(h keyhash.Hash, e *Entry, superseded *atomic.Bool, seen *Entry) (old *Entry, seq uint64, done bool) {
	s, k, old := l.lock(h)
	defer l.unlock(s, h)
	if superseded.Load() || old != nil && old != seen {
		return nil, 0, false
	}
	return old, l.overwrite(s, k, h, e), true
}

func (l *Tier) overwrite(s *stripe, k *slot, h keyhash.Hash, e *Entry) (seq uint64) {
	if k != nil {
		// A write of ours that is still in flight may run at Redis after this one: it must
		// leave no entry behind either.
		k.overlap = k.writers > 0
	}
	l.put(s, k, h, e)
	return s.changed(h)
}

// Add is Put if the key has no live entry; it reports whether it stored e.
func (l *Tier) Add(h keyhash.Hash, e *Entry, now int64) bool {
	s, k, old := l.lock(h)
	defer l.unlock(s, h)
	if old != nil && now < old.Expires.Load() {
		return false
	}
	s.changed(h)
	l.put(s, k, h, e)
	return true
}

// Suspect makes the next reader ask Redis, and keeps the copy as a fallback. The function end
// gives the copy's new end from its present one.
func (l *Tier) Suspect(h keyhash.Hash, end func(old int64) int64) {
	s, _, old := l.lock(h)
	defer s.mu.Unlock()
	s.changed(h)
	if old != nil && !old.Invalid() {
		old.SetUnconfirmed()
		old.Expires.Store(end(old.Expires.Load()))
	}
}

// Retime is Suspect with another end for the copy that the caller saw. A copy that came
// meanwhile is removed: only Redis knows which of the two ends it has.
func (l *Tier) Retime(h keyhash.Hash, was *Entry, end int64) {
	s, k, old := l.lock(h)
	defer s.mu.Unlock()
	s.changed(h)
	switch {
	case old == nil:
	case old != was:
		k.overlap = k.writers > 0
		l.replace(s, k, nil)
	case !old.Invalid():
		old.SetUnconfirmed()
		old.Expires.Store(end)
	}
}

// OnReplayed is called when a replay has brought the last write to Redis. The copy that the
// write left is unread, and stays as a fallback until Redis is asked again. Any other copy is
// removed: it was read from Redis before the journal had the write.
func (l *Tier) OnReplayed(h keyhash.Hash) {
	s, k, old := l.lock(h)
	defer s.mu.Unlock()
	s.changed(h)
	if old != nil && old.FreshUntil() != Unconfirmed {
		l.replace(s, k, nil)
	}
}

// SameEnd leaves a copy's end as it is.
func SameEnd(old int64) int64 { return old }

// Invalidate handles an invalidation: the key has changed, or Redis dropped it. A copy that
// was read becomes invalid in place (its end is wrong). The goroutine that reads the
// connection calls Invalidate, so it allocates nothing and waits for nothing but the stripe's
// lock.
//
// Some copies lose only their freshness:
//   - A copy that was written here and not read since, and any copy while a write of ours is
//     in flight: the message may be the echo of that write, and the value is still the last
//     one known.
//   - A copy past its own time: the server may be announcing just that expiry, and
//     Outage.ServeStaleFor may still use the copy.
func (l *Tier) Invalidate(h keyhash.Hash, now int64) {
	s, k, old := l.lock(h)
	defer s.mu.Unlock()
	s.invalidated(h, now)
	if k.writing() {
		k.invalidated = true
	}
	switch {
	case old == nil:
	case k.writing(), old.FreshUntil() == Unconfirmed:
		old.SetUnconfirmed()
	default:
		old.setFresh(Suspect)
		if now < old.Expires.Load() {
			old.Expires.Store(Invalidated)
		}
	}
}

// put makes e the key's entry, or removes it if e is nil. k is the key's slot, nil if it has none.
// An entry that does not fit removes the previous one, and put returns false. The caller holds the
// stripe.
func (l *Tier) put(s *stripe, k *slot, h keyhash.Hash, e *Entry) bool {
	fits := e == nil || e.size() <= l.maxEntry && l.room(k, e)
	if !fits {
		e = nil
	}
	if k == nil {
		if e == nil {
			return fits
		}
		k = s.take(h.Place)
	}
	if e != nil && e.check != h.Check {
		e.check = h.Check // e is new: readers may be reading an entry that is not
	}
	l.replace(s, k, e)
	return fits
}

// room reports whether there may be room for e in the slot k, nil for none. Until the policy runs,
// nothing makes room; and it must not fall behind by more changes than there may be entries.
func (l *Tier) room(k *slot, e *Entry) bool {
	change := e.size()
	if k != nil {
		if old := k.entry.Load(); old != nil {
			change -= old.size()
		}
	}
	switch {
	case change == 0:
		return true
	case l.policy.queued.Load() > l.maxBytes/entryOverhead:
	case l.bytes.Load()+change <= l.maxBytes, l.policy.running.Load() && e.size() > l.reserve:
		return true
	}
	l.Dropped.Add(1)
	return false
}

// replace makes e the slot's entry, nil for none. The caller holds the stripe.
func (l *Tier) replace(s *stripe, k *slot, e *Entry) {
	var added, change int64
	if old := k.entry.Load(); old != nil {
		added, change = -1, -old.size()
	}
	if e != nil {
		added, change = added+1, change+e.size()
	}
	s.replaceReply(k.entry.Load(), e)
	k.entry.Store(e)
	l.account(k, added, change)
	s.release(k)
}

// account counts a change of the slot's entry in entries and bytes, and tells the policy.
func (l *Tier) account(k *slot, added, change int64) {
	if added != 0 {
		l.entries.Add(added)
	}
	if change != 0 {
		l.bytes.Add(change)
	}
	if change != 0 && (k.judged || k.entry.Load() != nil) {
		l.policy.tell(k)
	}
}

// Bytes and Len are for Stats.
func (l *Tier) Bytes() int64 { return l.bytes.Load() }
func (l *Tier) Len() int64   { return l.entries.Load() }

// Close may be called only after Feed has ended.
func (l *Tier) Close() {
	l.policy.closed.Store(true)
	if l.policy.store != nil {
		l.policy.store.Close()
	}
}

// Writers counts the writes in flight. It takes the lock of each stripe, so it is for tests.
func (l *Tier) Writers() (n int) {
	for i := range l.stripes {
		s := &l.stripes[i]
		s.mu.Lock()
		if x := s.index.Load(); x != nil {
			for j := range x.slots {
				n += int(x.slots[j].writers)
			}
		}
		s.mu.Unlock()
	}
	return n
}
