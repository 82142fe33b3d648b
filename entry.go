package holdfast

import (
	"math"
	"sync/atomic"
	"time"
	"unsafe"
)

// domain is the scope of one invalidation stream: all keys of a server, or in a cluster those
// of one slot. Losing the stream advances the epoch, and every entry of an older epoch is
// suspect. Nothing is flushed because a connection broke.
type domain struct {
	epoch atomic.Uint32
	floor atomic.Uint32 // entries of an epoch before this one are invalid
	since atomic.Uint32 // older ones are from another server
	held  atomic.Uint32 // older ones count as invalid until the suspected flush is resolved

	// until is the end of the stream's validity, moved on each time that the server is heard
	// (see hearing). The reader of a copy checks it, so a process that was stopped serves no
	// copy as fresh whose invalidation it may not have received yet.
	until atomic.Int64
}

// doubt makes every entry of the domain suspect.
func (d *domain) doubt() { d.epoch.Add(1) }

// flush makes every entry of the domain invalid: the server has emptied the database.
func (d *domain) flush() { d.floor.Store(d.epoch.Add(1)) }

// suspectFlush makes every entry invalid until dismissFlush or confirmFlush: the server has
// emptied a database and did not say which.
func (d *domain) suspectFlush() { d.held.Store(d.epoch.Add(1)) }

// dismissFlush records that another database was emptied: the entries become suspect only.
func (d *domain) dismissFlush() { d.held.Store(d.floor.Load()) }

// confirmFlush records that this database was emptied.
func (d *domain) confirmFlush() {
	if held := d.held.Load(); int32(held-d.floor.Load()) > 0 {
		d.floor.Store(held)
	}
}

// otherServer makes every entry suspect and records that it is from an earlier server.
func (d *domain) otherServer() { d.since.Store(d.epoch.Add(1)) }

// entry is one value of one key. The value never changes. The fields about it change when
// Redis confirms the value. They are packed: a million entries are common, and 64 bytes are a
// Go size class and a cache line.
type entry struct {
	check  uint64 // keyHash.check; includes the key's length
	data   *byte
	length uint32
	epoch  atomic.Uint32 // the domain's epoch when the entry was filled
	domain *domain

	confirmed atomic.Int64 // time of the last confirmation by Redis, or of the write; see absent
	fresh     atomic.Int64 // served without asking Redis until then; 0, unread: suspect
	expires   atomic.Int64 // end of its own TTL; never: no TTL; wrong: not to be served

	decoded atomic.Pointer[decoded] // cached by a Typed; nil: none
}

// wrong is the end of an invalid entry: Redis no longer holds this value. It is so far in the
// past that no outage option reaches it.
const wrong = -1 << 62

// unread is the freshness of a value that this process wrote, or whose end it asked Redis to
// change, and that it has not read since. A later invalidation may be the echo of that
// command.
const unread = -1

// absence returns the freshness of an entry without a value: a loader said that the key has
// no value, and that holds until end. Such an entry is never taken for a copy: its freshness
// is not in the future, and its end is wrong.
func absence(end int64) int64 { return -end }

// absent reports whether the entry is a loader's "not found" that still holds. If it was
// recorded without an answer from Redis, as in an outage, the server need not have been
// heard.
func (e *entry) absent(now int64) bool {
	f := e.fresh.Load()
	return f < asIs && now < -f && (e.vouched(now) || e.confirmed.Load() == 0 && e.unbroken())
}

// past reports whether the answer "no such key" from Redis adds nothing to the entry: it is
// past its own time, or it marks an absence.
func (e *entry) past(now int64) bool {
	return e.absent(now) || !e.refuted() && now >= e.expires.Load()
}

// grace is how long past its end a copy may stand in for a load that fails, as the loader
// said; 0 if the loader did not say.
type grace uint32

const graceUnit = 1 << 24 // nanoseconds, about 17 ms; the longest is a year

// ungiven is a flag bit: the value was loaded and is not known to be in Redis. Such a copy
// says nothing about the value in Redis.
const ungiven grace = 1 << 31

func graceOf(d time.Duration) grace {
	if d == 0 {
		return 0
	}
	return 1 + grace(min(max(d, 0)/graceUnit, math.MaxInt32-1))
}

// or returns the loader's time, or d if the loader did not say.
func (g grace) or(d time.Duration) time.Duration {
	g &^= ungiven
	if g == 0 {
		return d
	}
	return time.Duration(g-1) * graceUnit
}

// term is the part of an entry that can change: its times, domain and epoch.
type term struct {
	confirmed, fresh, expires int64
	domain                    *domain
	epoch                     uint32
}

func newEntry(key string, val []byte, k term) *entry {
	e := &entry{
		check:  keyLength(len(key)), // local.storeLocked adds the hash
		data:   unsafe.SliceData(val),
		length: uint32(len(val)),
		domain: k.domain,
	}
	e.confirm(k)
	return e
}

// bytes is the value. Its capacity is its length, so that an append copies.
func (e *entry) bytes() []byte { return unsafe.Slice(e.data, e.length) }

// holds reports whether val is the very slice of the entry, not one with equal bytes.
func (e *entry) holds(val []byte) bool {
	return e.data == unsafe.SliceData(val) && int(e.length) == len(val)
}

// size is the entry's cost in bytes, with the key, the bookkeeping and a decoded value. A
// decoded value may be attached at any time unless the caller holds the stripe; a caller
// without it must ask again under the lock.
func (e *entry) size() int64 {
	size := lengthIn(e.check) + int64(e.length) + entryOverhead
	if d := e.decoded.Load(); d != nil {
		size += int64(d.size)
	}
	return size
}

// grace returns the loader's grace for the copy. It is rare, so it is stored with the decoded
// value, which is rare too.
func (e *entry) grace() grace {
	if d := e.decoded.Load(); d != nil {
		return d.grace
	}
	return 0
}

// setGrace must be called before other goroutines can see the entry.
func (e *entry) setGrace(g grace) {
	if g != 0 {
		e.decoded.Store(&decoded{grace: g, size: int32(unsafe.Sizeof(decoded{}))})
	}
}

// vouched reports whether the stream that the entry was filled from is unbroken, and the
// server was heard recently enough.
func (e *entry) vouched(now int64) bool {
	return e.unbroken() && now < e.domain.until.Load()
}

// unbroken is vouched without the condition that the server was heard.
func (e *entry) unbroken() bool { return e.epoch.Load() == e.domain.epoch.Load() }

// ofEarlierServer reports whether the entry was filled before the present server took over.
func (e *entry) ofEarlierServer() bool {
	return int32(e.epoch.Load()-e.domain.since.Load()) < 0
}

// refuted reports whether the entry is invalid: the server announced a change. Its value is
// no answer, not even in an outage, and must not be taken for Redis' value.
func (e *entry) refuted() bool {
	at, d := e.epoch.Load(), e.domain
	return e.expires.Load() == wrong || int32(at-d.floor.Load()) < 0 || int32(at-d.held.Load()) < 0
}

// confirm gives an existing entry a new term in place. Readers take no lock: fresh is 0
// during the update and is stored last. So a reader that finds the entry fresh found it so by
// the whole new term, or by the old freshness, which still held when the confirmation was
// requested.
func (e *entry) confirm(k term) {
	e.fresh.Store(0)
	e.confirmed.Store(k.confirmed)
	e.expires.Store(k.expires)
	e.epoch.Store(k.epoch)
	e.fresh.Store(k.fresh)
}
