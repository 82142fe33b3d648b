package holdfast

import (
	"hash/maphash"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/ristretto/v2"
)

// local is the first tier: ristretto for what to keep, and around it what makes
// read-your-writes exact.
//
// ristretto alone keeps the first of two quick Sets of a new key, shows a new
// key only after its queue was worked off, and blocks in Del. So callers never
// write to it. They write to a cell: found in the overlay or in ristretto, or
// made and put in the overlay. One goroutine, the flusher, carries the overlay's
// cells into ristretto and takes them out of the overlay once ristretto's own
// barrier says that they were admitted or rejected. A reader looks in ristretto
// first, then in the overlay; both hold the same cell while both hold the key.
//
// Invariants:
//   - A key has at most one live cell; writers of a key meet under its stripe.
//   - A cell with writers in flight stays in the overlay.
//   - ristretto.Set and Del are called by the flusher alone, so its queue never
//     overflows and its order is ours.
//   - What ristretto may hold plus what the overlay may hold is MaxBytes.
type local struct {
	store *ristretto.Cache[uint64, *cell]
	seed  maphash.Seed

	// epoch names the present stream of knowledge about Redis. An entry of an
	// older epoch is in doubt: nothing is flushed when a connection breaks.
	epoch atomic.Uint64

	// moves grows before cells leave the overlay for ristretto. A reader that
	// found a key in neither looks again if it moved meanwhile.
	moves atomic.Uint64

	stripes [stripeCount]stripe

	maxEntry   int64
	maxOverlay int64
	overlay    atomic.Int64 // bytes of the overlay's cells
	cells      atomic.Int64 // cells that ristretto holds
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

	// entryOverhead is what an entry costs beside its key and value: cell,
	// entry, ristretto's two map slots. BenchmarkHeapMillion measures it.
	entryOverhead = 300

	// flushChunk is well below half of ristretto's queue of 32,768: an entry
	// that grew takes two places in it.
	flushChunk = 4096

	// flushPause lets writes gather: a barrier costs two goroutine switches
	// whether one cell is behind it or a thousand.
	flushPause = time.Millisecond
)

// entry is one value of one key. It never changes; a cell's pointer to it does.
type entry struct {
	value     []byte
	confirmed int64  // when Redis was last known to hold it, or when it was written
	fresh     int64  // served without asking Redis until then, within its epoch
	expires   int64  // its own TTL; never for none
	epoch     uint64 // the epoch of its fill
}

// cell is what ristretto holds for a key: the key, because ristretto keeps only
// hashes, and a pointer that writers replace in place. A cell without an entry
// is a tombstone: the key was deleted, or must be read from Redis.
type cell struct {
	key   string
	entry atomic.Pointer[entry]
	hash  uint64

	// Guarded by the stripe.
	held    int32  // bytes counted in local.overlay for this cell
	writers int32  // own writes on their way to Redis
	dirty   uint16 // changes with each write, so the flusher sees a late one
	overlap bool   // two own writes were under way at once: their order is Redis' secret

	// Of the flusher alone.
	cost int32 // as ristretto was last told
}

type stripe struct {
	mu      sync.Mutex
	cells   map[uint64]*cell // the overlay
	n       atomic.Int32     // len(cells), to skip the lock where it is 0
	version atomic.Uint64    // grows with every write and invalidation
	_       [32]byte         // a cache line each
}

// token is what a fill must show: that nothing it could have missed happened to
// its stripe since before the read was sent.
type token struct{ version, epoch uint64 }

func newLocal(maxBytes int64) (*local, error) {
	l := &local{
		seed:       maphash.MakeSeed(),
		maxEntry:   min(maxBytes/8, maxString),
		maxOverlay: maxBytes / 8,
		kick:       make(chan struct{}, 1),
	}
	for i := range l.stripes {
		l.stripes[i].cells = make(map[uint64]*cell)
	}
	var err error
	l.store, err = ristretto.NewCache(&ristretto.Config[uint64, *cell]{
		// Ten counters for each entry that fits, at about 640 B an entry: 4-5
		// bytes each, allocated at once, are then a tenth of MaxBytes.
		NumCounters: max(1000, maxBytes/64),
		MaxCost:     maxBytes - l.maxOverlay,
		BufferItems: 64,
		// The cost that a cell is given includes all that it occupies.
		IgnoreInternalCost: true,
		// ristretto's own would box the key; it is a hash already.
		KeyToHash: func(h uint64) (uint64, uint64) { return h, 0 },
		OnEvict:   func(i *ristretto.Item[*cell]) { l.gone(i) },
		OnReject:  func(i *ristretto.Item[*cell]) { l.gone(i) },
	})
	return l, err
}

// gone runs on ristretto's goroutine when a cell is evicted or rejected.
func (l *local) gone(i *ristretto.Item[*cell]) {
	if i.Value != nil {
		l.cells.Add(-1)
		l.evicted.Add(1)
	}
}

func (l *local) hash(key string) uint64 { return maphash.String(l.seed, key) }

func (l *local) stripe(h uint64) *stripe { return &l.stripes[h%stripeCount] }

// get returns the key's entry, fresh or not, or nil. It does not block.
func (l *local) get(h uint64, key string) *entry {
	for {
		moves := l.moves.Load()
		if c, ok := l.store.Get(h); ok && c.key == key {
			return c.entry.Load()
		}
		s := l.stripe(h)
		if s.n.Load() != 0 {
			s.mu.Lock()
			c := s.cells[h]
			s.mu.Unlock()
			if c != nil && c.key == key {
				return c.entry.Load()
			}
		}
		if l.moves.Load() == moves {
			return nil
		}
	}
}

// token is taken before a read is sent to Redis.
func (l *local) token(h uint64) token {
	return token{l.stripe(h).version.Load(), l.epoch.Load()}
}

// fill stores what Redis answered; nil where it has no such key. It is
// discarded where a write of our own, an invalidation or a loss of the stream
// came between the token and now, and where a later read has filled already.
func (l *local) fill(h uint64, key string, t token, e *entry) bool {
	s := l.stripe(h)
	s.mu.Lock()
	defer l.wake()
	defer s.mu.Unlock()
	if s.version.Load() != t.version || l.epoch.Load() != t.epoch {
		return false
	}
	c := l.findLocked(s, h, key)
	if c == nil {
		if e == nil {
			return false
		}
		c = &cell{key: strings.Clone(key), hash: h}
	}
	old := c.entry.Load()
	if c.writers > 0 || (e != nil && old != nil && old.confirmed > e.confirmed) {
		return false
	}
	if e != nil && !l.fitsLocked(c, e) {
		e = nil
	}
	if e == nil && old == nil {
		return false
	}
	c.entry.Store(e)
	l.pendLocked(s, c)
	return true
}

// begin makes e the key's value, or deletes it where e is nil, while the write
// goes to Redis; it returns what was there, and the write's place in the order of the stripe's
// writes. end must follow. An entry that does
// not fit leaves a tombstone: never the value that it replaces.
func (l *local) begin(h uint64, key string, e *entry) (c *cell, old *entry, seq uint64) {
	s := l.stripe(h)
	s.mu.Lock()
	defer s.mu.Unlock()
	seq = s.version.Add(1)
	c = l.findLocked(s, h, key)
	if c == nil {
		c = &cell{key: strings.Clone(key), hash: h}
	}
	old = c.entry.Load()
	if e != nil && !l.fitsLocked(c, e) {
		e = nil
	}
	c.entry.Store(e)
	c.overlap = c.overlap || c.writers > 0
	c.writers++
	l.pendLocked(s, c)
	return c, old, seq
}

// end closes what begin opened. The entry stays only where the write is known to
// have reached its end (keep) and no other write of ours was under way beside
// it: which of two such Redis ran last, only Redis knows.
func (l *local) end(c *cell, keep bool) {
	s := l.stripe(c.hash)
	s.mu.Lock()
	s.version.Add(1)
	c.writers--
	if !keep || c.overlap {
		c.entry.Store(nil)
	}
	if c.writers == 0 {
		c.overlap = false
	}
	l.pendLocked(s, c)
	s.mu.Unlock()
	l.wake()
}

// put is a write that Redis is not told of: begin and end in one.
func (l *local) put(h uint64, key string, e *entry) (old *entry, seq uint64) {
	s := l.stripe(h)
	s.mu.Lock()
	seq = s.version.Add(1)
	c := l.findLocked(s, h, key)
	if c == nil && e != nil {
		c = &cell{key: strings.Clone(key), hash: h}
	}
	if c != nil {
		old = c.entry.Load()
		if e != nil && !l.fitsLocked(c, e) {
			e = nil
		}
		// A write of ours that is still under way may end after this one at
		// Redis: let it, too, leave nothing behind.
		c.overlap = c.overlap || c.writers > 0
		c.entry.Store(e)
		l.pendLocked(s, c)
	}
	s.mu.Unlock()
	l.wake()
	return old, seq
}

// add is put where the key has no live entry.
func (l *local) add(h uint64, key string, e *entry, now int64) bool {
	s := l.stripe(h)
	s.mu.Lock()
	defer l.wake()
	defer s.mu.Unlock()
	c := l.findLocked(s, h, key)
	if c == nil {
		c = &cell{key: strings.Clone(key), hash: h}
	} else if old := c.entry.Load(); old != nil && now < old.expires {
		return false
	}
	s.version.Add(1)
	if !l.fitsLocked(c, e) {
		e = nil
	}
	c.entry.Store(e)
	l.pendLocked(s, c)
	return true
}

// doubt makes the key be read from Redis before it is served again, and keeps
// the copy as a fallback. expires is its new end, 0 for the one it has.
func (l *local) doubt(h uint64, key string, expires int64) {
	s := l.stripe(h)
	s.mu.Lock()
	s.version.Add(1)
	if c := l.findLocked(s, h, key); c != nil {
		if old := c.entry.Load(); old != nil {
			e := *old
			e.fresh = 0
			if expires != 0 {
				e.expires = expires
			}
			c.entry.Store(&e)
			l.pendLocked(s, c)
		}
	}
	s.mu.Unlock()
	l.wake()
}

// findLocked returns the key's live cell. The caller holds the stripe.
func (l *local) findLocked(s *stripe, h uint64, key string) *cell {
	if c := s.cells[h]; c != nil && c.key == key {
		return c
	}
	if c, ok := l.store.Get(h); ok && c.key == key {
		return c
	}
	return nil
}

func entrySize(key string, e *entry) int64 {
	size := int64(len(key)) + entryOverhead
	if e != nil {
		size += int64(len(e.value))
	}
	return size
}

// fitsLocked says whether the cell may hold e. The caller holds the stripe.
func (l *local) fitsLocked(c *cell, e *entry) bool {
	size := entrySize(c.key, e)
	if size > l.maxEntry {
		return false
	}
	if l.overlay.Load()+size-int64(c.held) > l.maxOverlay {
		l.dropped.Add(1)
		return false
	}
	return true
}

// pendLocked puts the cell in the overlay, for readers at once and for the
// flusher to carry on. The caller holds the stripe.
func (l *local) pendLocked(s *stripe, c *cell) {
	c.dirty++
	if was := s.cells[c.hash]; was != c {
		if was != nil {
			// Two keys with one 64-bit hash: the newer has the place.
			l.overlay.Add(-int64(was.held))
			was.held = 0
		} else {
			s.n.Add(1)
		}
		s.cells[c.hash] = c
	}
	size := int32(entrySize(c.key, c.entry.Load()))
	l.overlay.Add(int64(size - c.held))
	c.held = size
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

// carried is a cell on its way, as it was when it was picked up.
type carried struct {
	c     *cell
	e     *entry
	dirty uint16
}

// carry takes every cell without a writer from the overlay to ristretto, in
// chunks that its queue can hold.
func (l *local) carry(batch []carried) []carried {
	batch = batch[:0]
	for i := range l.stripes {
		s := &l.stripes[i]
		if s.n.Load() == 0 {
			continue
		}
		s.mu.Lock()
		for _, c := range s.cells {
			if c.writers == 0 {
				batch = append(batch, carried{c, c.entry.Load(), c.dirty})
			}
		}
		s.mu.Unlock()
		if len(batch) >= flushChunk {
			l.settle(batch)
			clear(batch)
			batch = batch[:0]
		}
	}
	l.settle(batch)
	clear(batch)
	return batch[:0]
}

func (l *local) settle(batch []carried) {
	if len(batch) == 0 {
		return
	}
	for _, b := range batch {
		stored, ok := l.store.Get(b.c.hash)
		if b.e == nil {
			if ok && stored == b.c {
				l.store.Del(b.c.hash)
				l.cells.Add(-1)
			}
			continue
		}
		cost := int32(entrySize(b.c.key, b.e))
		if ok && stored == b.c && cost > b.c.cost {
			// An update in place may grow past MaxCost; an addition makes room
			// first. Readers find the cell in the overlay meanwhile.
			l.store.Del(b.c.hash)
			l.cells.Add(-1)
			ok = false
		}
		if !ok {
			l.cells.Add(1)
		}
		b.c.cost = cost
		l.store.Set(b.c.hash, b.c, int64(cost))
	}
	l.store.Wait()
	l.moves.Add(1)
	for _, b := range batch {
		s := l.stripe(b.c.hash)
		s.mu.Lock()
		if b.c.dirty == b.dirty && b.c.writers == 0 && s.cells[b.c.hash] == b.c {
			delete(s.cells, b.c.hash)
			s.n.Add(-1)
			l.overlay.Add(-int64(b.c.held))
			b.c.held = 0
		}
		s.mu.Unlock()
	}
}

// bytes and len are what Stats shows; bytes locks ristretto's policy.
func (l *local) bytes() int64 {
	return l.store.MaxCost() - l.store.RemainingCost() + l.overlay.Load()
}

func (l *local) len() int64 {
	n := l.cells.Load()
	for i := range l.stripes {
		n += int64(l.stripes[i].n.Load())
	}
	return n
}

// close may be called once the flusher has ended and no caller is inside:
// ristretto panics when its Close runs beside Get or Set.
func (l *local) close() { l.store.Close() }
