package holdfast

import (
	"math"
	"sync/atomic"
	"time"
	"unsafe"
)

// domain is what one stream of invalidations vouches for: all keys of a server,
// or those of one slot of a cluster. Losing the stream moves the epoch, and every
// entry of an older epoch is in doubt: nothing is flushed when a connection breaks.
type domain struct {
	epoch atomic.Uint32
	floor atomic.Uint32 // entries of an epoch before this one are known to be wrong
	since atomic.Uint32 // and before this one, from another server than the present
	held  atomic.Uint32 // and before this one, to be wrong until it is known that they are not

	// until is when the stream vouches no longer, unless the server is heard again
	// before: see hearing. The reader of a copy looks at it, so a process that stood
	// still serves nothing as fresh that it could not hear about meanwhile.
	until atomic.Int64
}

// doubt puts every entry of the domain in doubt.
func (d *domain) doubt() { d.epoch.Add(1) }

// flush makes every entry of the domain wrong: the server said that it holds
// nothing any more.
func (d *domain) flush() { d.floor.Store(d.epoch.Add(1)) }

// suspectFlush makes every entry wrong until dismissFlush or confirmFlush: the server said that a
// database holds nothing any more, and not which.
func (d *domain) suspectFlush() { d.held.Store(d.epoch.Add(1)) }

// dismissFlush says that it was another database: what was suspect is in doubt, and no more.
func (d *domain) dismissFlush() { d.held.Store(d.floor.Load()) }

// confirmFlush says that it was this one.
func (d *domain) confirmFlush() {
	if held := d.held.Load(); int32(held-d.floor.Load()) > 0 {
		d.floor.Store(held)
	}
}

// otherServer puts every entry in doubt and notes that another server has them.
func (d *domain) otherServer() { d.since.Store(d.epoch.Add(1)) }

// entry is one value of one key. The value never changes; what is known of it
// does, when Redis confirms it. The fields are packed: a million entries are
// common, and 64 bytes are a size class of Go's and a cache line.
type entry struct {
	check  uint64 // keyHash.check; the key's length is in it
	data   *byte
	length uint32
	epoch  atomic.Uint32 // the domain's epoch at its fill
	domain *domain

	confirmed atomic.Int64 // when Redis was last known to hold it, or when it was written; see absent
	fresh     atomic.Int64 // served without asking Redis until then, within its epoch; 0 and unread: in doubt
	expires   atomic.Int64 // its own TTL; never for none, wrong for what is not to be served

	decoded atomic.Pointer[decoded] // what a Typed made of the value; nil: nothing
}

// wrong is the end of an entry of which Redis said that it holds it no more. It
// is so long ago that no outage option stretches to it.
const wrong = -1 << 62

// unread is the freshness of what this process wrote, or told the server to change,
// and has not read since. What the server tells of the key then may be the echo.
const unread = -1

// absence marks an entry that is no value: until then, a loader has said that there
// is none. Nobody takes it for a copy: its freshness is in no future, and its end is
// wrong.
func absence(until int64) int64 { return -until }

// absent says whether a loader's word that there is no such thing still holds. Where Redis
// had no part in it, as in an outage, it need not be heard either.
func (e *entry) absent(now int64) bool {
	f := e.fresh.Load()
	return f < asIs && now < -f && (e.vouched(now) || e.confirmed.Load() == 0 && e.unbroken())
}

// past says whether Redis, if it has no such key, tells nothing that the entry does
// not: it is past its own time, or a mark of absence.
func (e *entry) past(now int64) bool {
	return e.absent(now) || !e.refuted() && now >= e.expires.Load()
}

// grace is how long past its end a copy may stand in for a load that fails, where the
// loader said so; 0 where it said nothing.
type grace uint32

const graceUnit = 1 << 24 // nanoseconds: the longest is a year

// ungiven is a bit of its own: the value was loaded, and Redis was not given it. Such a
// copy tells nothing of what Redis holds.
const ungiven grace = 1 << 31

func graceOf(d time.Duration) grace {
	if d == 0 {
		return 0
	}
	return 1 + grace(min(max(d, 0)/graceUnit, math.MaxInt32-1))
}

// or is the time, or that of the options.
func (g grace) or(d time.Duration) time.Duration {
	g &^= ungiven
	if g == 0 {
		return d
	}
	return time.Duration(g-1) * graceUnit
}

// term is what is known of a value but for its bytes.
type term struct {
	confirmed, fresh, expires int64
	domain                    *domain
	epoch                     uint32
}

func newEntry(key string, value []byte, k term) *entry {
	e := &entry{
		check:  keyLength(len(key)), // the rest of it comes with its place
		data:   unsafe.SliceData(value),
		length: uint32(len(value)),
		domain: k.domain,
	}
	e.confirm(k)
	return e
}

// bytes is the value. Its capacity is its length, so that an append copies.
func (e *entry) bytes() []byte { return unsafe.Slice(e.data, e.length) }

// holds says whether the value is these very bytes, and not some that equal them.
func (e *entry) holds(value []byte) bool {
	return e.data == unsafe.SliceData(value) && int(e.length) == len(value)
}

// size is what the entry costs, with the key, the bookkeeping and what was decoded.
// What was decoded is there or not: the caller holds the stripe, or will look again.
func (e *entry) size() int64 {
	size := lengthIn(e.check) + int64(e.length) + entryOverhead
	if d := e.decoded.Load(); d != nil {
		size += int64(d.size)
	}
	return size
}

// grace is the loader's word on how long the copy may outlive itself. It is rare, so
// it has its place beside what is rare, too.
func (e *entry) grace() grace {
	if d := e.decoded.Load(); d != nil {
		return d.grace
	}
	return 0
}

// setGrace is for an entry that nobody has seen yet.
func (e *entry) setGrace(g grace) {
	if g != 0 {
		e.decoded.Store(&decoded{grace: g, size: int32(unsafe.Sizeof(decoded{}))})
	}
}

// vouched says whether the stream that the entry was filled from is unbroken, as far
// as it was heard.
func (e *entry) vouched(now int64) bool {
	return e.unbroken() && now < e.domain.until.Load()
}

// unbroken is vouched for who need not hear the stream.
func (e *entry) unbroken() bool { return e.epoch.Load() == e.domain.epoch.Load() }

// ofEarlierServer says whether the entry is from before the present server.
func (e *entry) ofEarlierServer() bool {
	return int32(e.epoch.Load()-e.domain.since.Load()) < 0
}

// refuted says that the server told of a change, so the value is no answer, not
// even in an outage, and nothing that Redis could be taken to hold.
func (e *entry) refuted() bool {
	at, d := e.epoch.Load(), e.domain
	return e.expires.Load() == wrong || int32(at-d.floor.Load()) < 0 || int32(at-d.held.Load()) < 0
}

// confirm gives a standing entry a new term. The epoch comes last but for fresh:
// a reader that finds the entry fresh finds it so by the new term altogether, or
// by the old one, which was as good when the confirmation was asked for.
func (e *entry) confirm(k term) {
	e.fresh.Store(0)
	e.confirmed.Store(k.confirmed)
	e.expires.Store(k.expires)
	e.epoch.Store(k.epoch)
	e.fresh.Store(k.fresh)
}
