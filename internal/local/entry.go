package local

import (
	"bytes"
	"math"
	"math/bits"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/holdfast-cache/holdfast/internal/keyhash"
)

// EpochScope is the scope of one invalidation stream: all keys of a server, or in a cluster those
// of one slot. Losing the stream advances the epoch, and every entry of an older epoch is
// suspect. Nothing is flushed because a connection broke.
type EpochScope struct {
	Epoch atomic.Uint32
	Floor atomic.Uint32 // entries of an epoch before this one are invalid
	since atomic.Uint32 // older ones are from another server
	held  atomic.Uint32 // older ones count as invalid until the suspected flush is resolved

	// Until is the end of the stream's validity, moved on each time that the server is heard
	// (see hearing). The reader of a copy checks it, so a process that was stopped serves no
	// copy as fresh whose invalidation it may not have received yet.
	Until atomic.Int64
}

// Suspect makes every entry of the epoch scope suspect.
func (d *EpochScope) Suspect() { d.Epoch.Add(1) }

// Flush makes every entry of the epoch scope invalid: this process has emptied the database.
func (d *EpochScope) Flush() { d.Floor.Store(d.Epoch.Add(1)) }

// SuspectFlush makes every entry invalid until DismissFlush or ConfirmFlush: the server has
// emptied a database and did not say which.
func (d *EpochScope) SuspectFlush() { d.held.Store(d.Epoch.Add(1)) }

// DismissFlush records that another database was emptied: the entries become suspect only.
func (d *EpochScope) DismissFlush() { d.held.Store(d.Floor.Load()) }

// ConfirmFlush records that this database was emptied.
func (d *EpochScope) ConfirmFlush() {
	if held := d.held.Load(); int32(held-d.Floor.Load()) > 0 {
		d.Floor.Store(held)
	}
}

// OtherServer makes every entry suspect and records that it is from an earlier server.
func (d *EpochScope) OtherServer() { d.since.Store(d.Epoch.Add(1)) }

// Entry is one value of one key. The value never changes. The fields about it change when
// Redis confirms the value. They are packed: a million entries are common, and 64 bytes are a
// Go size class and a cache line.
type Entry struct {
	check  uint64 // Hash.Check; includes the key's length
	data   *byte
	length uint32
	Epoch  atomic.Uint32 // the epoch of Scope when the entry was filled
	Scope  *EpochScope

	Confirmed atomic.Int64 // time of the last confirmation by Redis, or of the write; see Absent
	fresh     atomic.Int64 // a FreshUntil
	Expires   atomic.Int64 // end of its own TTL; clock.Never: no TTL; Invalidated: not to be served

	decoded atomic.Pointer[Decoded] // cached by a Typed; nil: none
}

// Invalidated is the end of an invalid entry: Redis no longer holds this value. It is so far in the
// past that no outage option reaches it.
const Invalidated = -1 << 62

// FreshUntil is the moment until which an entry is served without asking Redis, or one of the
// marks below, which no moment reaches.
type FreshUntil int64

const (
	// Suspect is the freshness of a copy for which Redis must be asked.
	Suspect FreshUntil = 0

	// Unconfirmed is the freshness of a value that this process wrote, or whose end it asked
	// Redis to change, and that it has not read since. A later invalidation may be the echo of
	// that command.
	Unconfirmed FreshUntil = -1

	// KeepFreshness is not a freshness: End leaves that of the entry as it is.
	KeepFreshness FreshUntil = -2
)

// Absence returns the freshness of an entry without a value: a loader said that the key has
// no value, and that holds until end. Such an entry is never taken for a copy: its freshness
// is not in the future, and its end is Invalidated.
func Absence(end FreshUntil) FreshUntil { return -end }

// isAbsence reports whether Absence made the freshness.
func (f FreshUntil) isAbsence() bool { return f < KeepFreshness }

// absentAt reports whether an absence still holds.
func (f FreshUntil) absentAt(now int64) bool { return f.isAbsence() && now < -int64(f) }

// FreshUntil returns the entry's freshness.
func (e *Entry) FreshUntil() FreshUntil { return FreshUntil(e.fresh.Load()) }

// FreshAt reports whether the entry may be served without asking Redis, as far as the time
// goes; see EpochValid for the rest.
func (e *Entry) FreshAt(now int64) bool { return now < e.fresh.Load() }

// FreshEnd is the time until which the entry may be served without asking Redis: freshness,
// invalidation stream and the time that the server was heard taken together. The epoch is read
// before the freshness: a confirmation clears the old freshness, then stores the epoch, then the
// new freshness.
func (e *Entry) FreshEnd() int64 {
	if !e.unbroken() {
		return 0
	}
	return min(e.Scope.Until.Load(), e.fresh.Load())
}

// SetUnconfirmed makes the entry Unconfirmed.
func (e *Entry) SetUnconfirmed() { e.setFresh(Unconfirmed) }

func (e *Entry) setFresh(f FreshUntil) { e.fresh.Store(int64(f)) }

// MarksAbsence reports whether the entry has no value: a loader said that the key has none.
func (e *Entry) MarksAbsence() bool { return e.FreshUntil().isAbsence() }

// Absent reports whether the entry is a loader's "not found" that still holds. If it was
// recorded without an answer from Redis, as in an outage, the server need not have been
// heard.
func (e *Entry) Absent(now int64) bool {
	return e.FreshUntil().absentAt(now) && (e.EpochValid(now) || e.Confirmed.Load() == 0 && e.unbroken())
}

// saysAbsent reports whether the answer "no such key" from Redis adds nothing to the entry: it is
// past its own time, or it marks an absence.
func (e *Entry) saysAbsent(now int64) bool {
	return e.Absent(now) || !e.Invalid() && now >= e.Expires.Load()
}

// StaleIfError is how long past its end a copy may stand in for a load that fails, as the loader
// said; 0 if the loader did not say.
type StaleIfError uint32

const StaleIfErrorUnit = 1 << 24 // nanoseconds, about 17 ms; the longest is a year

// NotInRedis is a flag bit: the value was loaded and is not known to be in Redis. Such a copy
// says nothing about the value in Redis.
const NotInRedis StaleIfError = 1 << 31

func StaleIfErrorOf(d time.Duration) StaleIfError {
	if d == 0 {
		return 0
	}
	return 1 + StaleIfError(min(max(d, 0)/StaleIfErrorUnit, math.MaxInt32-1))
}

// Or returns the loader's time, or d if the loader did not say.
func (g StaleIfError) Or(d time.Duration) time.Duration {
	g &^= NotInRedis
	if g == 0 {
		return d
	}
	return time.Duration(g-1) * StaleIfErrorUnit
}

// Freshness is the part of an entry that can change: its times, epoch scope and epoch.
type Freshness struct {
	Confirmed, Expires int64
	Fresh              FreshUntil
	Scope              *EpochScope
	Epoch              uint32
}

func NewEntry(key string, val []byte, k Freshness) *Entry {
	e := &Entry{
		check:  keyhash.KeyLength(len(key)), // Tier.storeLocked adds the hash
		data:   unsafe.SliceData(val),
		length: uint32(len(val)),
		Scope:  k.Scope,
	}
	e.Confirm(k)
	return e
}

// Bytes is the value. Its capacity is its length, so that an append copies.
func (e *Entry) Bytes() []byte { return unsafe.Slice(e.data, e.length) }

// Holds reports whether val is the very slice of the entry, not one with equal bytes.
func (e *Entry) Holds(val []byte) bool {
	return e.data == unsafe.SliceData(val) && int(e.length) == len(val)
}

// size is the entry's cost in bytes, with the key, the bookkeeping and a decoded value. A
// decoded value may be attached at any time unless the caller holds the stripe; a caller
// without it must ask again under the lock.
func (e *Entry) size() int64 {
	size := keyhash.LengthIn(e.check) + Allocated(int64(e.length)) + entryOverhead
	if d := e.decoded.Load(); d != nil {
		size += int64(d.Size)
	}
	return size
}

// Allocated is about the size that Go's allocator gives to that many bytes: its size classes are
// multiples of 16 bytes, and further apart for large ones. So a value that changes its length a
// little seldom changes its cost.
func Allocated(n int64) int64 {
	step := int64(max(16, 1<<bits.Len64(uint64(n))>>4))
	return (n + step - 1) / step * step
}

// StaleIfError returns the loader's grace for the copy. It is rare, so it is stored with the decoded
// value, which is rare too.
func (e *Entry) StaleIfError() StaleIfError {
	if d := e.decoded.Load(); d != nil {
		return d.grace
	}
	return 0
}

// SetStaleIfError must be called before other goroutines can see the entry.
func (e *Entry) SetStaleIfError(g StaleIfError) {
	if g != 0 {
		e.decoded.Store(&Decoded{grace: g, Size: int32(unsafe.Sizeof(Decoded{}))})
	}
}

// EpochValid reports whether the stream that the entry was filled from is unbroken, and the
// server was heard recently enough.
func (e *Entry) EpochValid(now int64) bool {
	return e.unbroken() && now < e.Scope.Until.Load()
}

// unbroken is EpochValid without the condition that the server was heard.
func (e *Entry) unbroken() bool { return e.Epoch.Load() == e.Scope.Epoch.Load() }

// OfEarlierServer reports whether the entry was filled before the present server took over.
func (e *Entry) OfEarlierServer() bool {
	return int32(e.Epoch.Load()-e.Scope.since.Load()) < 0
}

// Invalid reports whether the entry is invalid: the server announced a change. Its value is
// no answer, not even in an outage, and must not be taken for Redis' value.
func (e *Entry) Invalid() bool {
	at, d := e.Epoch.Load(), e.Scope
	return e.Expires.Load() == Invalidated || int32(at-d.Floor.Load()) < 0 || int32(at-d.held.Load()) < 0
}

// comparedBytes bounds a comparison, which is made under a stripe's lock.
const comparedBytes = 64 << 10

// equals reports whether the entry has this value. It is false for a value that is too long to
// be compared.
func (e *Entry) equals(val []byte) bool {
	return len(val) <= comparedBytes && bytes.Equal(e.Bytes(), val)
}

// invalidate records that Redis no longer holds this value.
func (e *Entry) invalidate() {
	e.setFresh(Suspect)
	e.Expires.Store(Invalidated)
}

// Confirm gives an existing entry a new term in place. Readers take no lock: fresh is 0
// during the update and is stored last. So a reader that finds the entry fresh found it so by
// the whole new term, or by the old freshness, which still held when the confirmation was
// requested.
func (e *Entry) Confirm(k Freshness) {
	e.setFresh(Suspect)
	e.Confirmed.Store(k.Confirmed)
	e.Expires.Store(k.Expires)
	e.Epoch.Store(k.Epoch)
	e.setFresh(k.Fresh)
}
