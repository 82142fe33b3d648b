package holdfast

import (
	"encoding/binary"
	"reflect"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/local"
	"github.com/redis/rueidis"
)

// answers builds the replies of the tiers so that they look like replies of Redis. The only
// constructor of a RedisMessage in rueidis is CacheUnmarshalView, which decodes one from bytes. It
// copies each value and marks the message as a cache hit. So if the memory layout of a message is
// the one that is known here, its fields are set directly and the value is not copied. Otherwise
// the message is decoded from bytes. newAnswers finds out by a trial which of the two is used.
type answers struct {
	direct bool
	mark   *rueidis.RedisMessage // the attrs of a message that is a cache hit
	ok     rueidis.RedisMessage
	null   rueidis.RedisMessage
}

// message is the memory layout of rueidis.RedisMessage.
type message struct {
	attrs  *rueidis.RedisMessage
	bytes  *byte
	array  *rueidis.RedisMessage
	intlen int64
	typ    byte
	ttl    [ttlBytes]byte
}

// result is the memory layout of rueidis.RedisResult.
type result struct {
	err error
	val message
}

// The first byte of a reply on the wire is also the type of the message.
const (
	typeText   = '$'
	typeStatus = '+'
	typeNumber = ':'
	typeList   = '*'
)

func newAnswers() *answers {
	a := &answers{null: rueidis.RedisMessage(*rueidis.Nil)}
	a.ok = a.copied(typeStatus, []byte("OK"))
	if !layoutKnown() {
		return a
	}
	hit := fromBytes(appendText(nil, typeText, nil))
	a.mark = (*message)(unsafe.Pointer(&hit)).attrs
	a.direct = true
	a.direct = a.sound()
	return a
}

// layoutKnown reports whether RedisMessage has the fields of message at the same offsets, and
// RedisResult those of result.
func layoutKnown() bool {
	theirs, ours := reflect.TypeFor[rueidis.RedisMessage](), reflect.TypeFor[message]()
	return sameFields(theirs, ours, nil, nil) &&
		sameFields(reflect.TypeFor[rueidis.RedisResult](), reflect.TypeFor[result](), theirs, ours)
}

// sameFields reports whether two structs have the same fields. A field of type like matches one of
// type as.
func sameFields(theirs, ours, like, as reflect.Type) bool {
	if theirs.Size() != ours.Size() || theirs.NumField() != ours.NumField() {
		return false
	}
	for i := range ours.NumField() {
		f, g := theirs.Field(i), ours.Field(i)
		same := f.Type == g.Type || f.Type == like && g.Type == as
		if f.Name != g.Name || !same || f.Offset != g.Offset {
			return false
		}
	}
	return true
}

// sound reports whether messages that are built directly read back as expected.
func (a *answers) sound() bool {
	text, num := a.text([]byte("some")), a.number(-3)
	list := a.list([]rueidis.RedisMessage{text, a.null})
	hit := a.text(nil)
	a.asHit(&hit, 1<<41)
	all, err := list.ToArray()
	if err != nil || len(all) != 2 || !all[1].IsNil() || list.IsCacheHit() {
		return false
	}
	var res rueidis.RedisResult
	a.answer(&res, []byte("thing"))
	if thing, err := res.ToString(); err != nil || thing != "thing" || res.IsCacheHit() {
		return false
	}
	var cached rueidis.RedisResult
	a.answerHit(&cached, []byte("other"), 1<<42)
	if other, err := cached.ToString(); err != nil || other != "other" || !cached.IsCacheHit() || cached.CachePXAT() != 1<<42 {
		return false
	}
	s, err1 := all[0].ToString()
	n, err2 := num.ToInt64()
	empty, err3 := hit.ToString()
	return err1 == nil && err2 == nil && err3 == nil && s == "some" && n == -3 && empty == "" &&
		!text.IsCacheHit() && text.CachePXAT() == -1 && hit.IsCacheHit() && hit.CachePXAT() == 1<<41
}

// text returns a string reply. It shares the bytes, which must not change.
func (a *answers) text(data []byte) (m rueidis.RedisMessage) {
	if !a.direct {
		return a.copied(typeText, data)
	}
	p := (*message)(unsafe.Pointer(&m))
	p.typ, p.bytes, p.intlen = typeText, unsafe.SliceData(data), int64(len(data))
	return m
}

// answer stores a string reply in res, which must be the zero value.
func (a *answers) answer(res *rueidis.RedisResult, data []byte) {
	if !a.direct {
		*res = replied(a.text(data))
		return
	}
	p := (*result)(unsafe.Pointer(res))
	p.val.typ, p.val.bytes, p.val.intlen = typeText, unsafe.SliceData(data), int64(len(data))
}

// answerHit is answer for a hit in the client-side cache that expires at end; see asHit.
func (a *answers) answerHit(res *rueidis.RedisResult, data []byte, end int64) {
	if !a.direct {
		m := a.text(data)
		a.asHit(&m, end)
		*res = replied(m)
		return
	}
	a.answer(res, data)
	a.asHit((*rueidis.RedisMessage)(unsafe.Pointer(&(*result)(unsafe.Pointer(res)).val)), end)
}

// answerReply stores a copy of the reply in res, which must be the zero value.
func (a *answers) answerReply(res *rueidis.RedisResult, m *rueidis.RedisMessage) {
	if !a.direct {
		*res = replied(*m)
		return
	}
	(*result)(unsafe.Pointer(res)).val = *(*message)(unsafe.Pointer(m))
}

// markHit marks the reply in res as a hit; see asHit.
func (a *answers) markHit(res *rueidis.RedisResult, end int64) {
	if a.direct {
		a.asHit((*rueidis.RedisMessage)(unsafe.Pointer(&(*result)(unsafe.Pointer(res)).val)), end)
		return
	}
	m, _ := res.ToMessage()
	a.asHit(&m, end)
	*res = replied(m)
}

// heap returns about the number of bytes that the reply keeps on the heap, beside the message itself.
func (a *answers) heap(m *rueidis.RedisMessage) int64 {
	if !a.direct {
		// A string of a few bytes takes four times its encoded size in memory.
		return 4 * int64(m.CacheSize())
	}
	return (*message)(unsafe.Pointer(m)).heap()
}

func (m *message) heap() (size int64) {
	const each = int64(unsafe.Sizeof(message{}))
	if m.attrs != nil {
		size = each + (*message)(unsafe.Pointer(m.attrs)).heap()
	}
	switch {
	case m.array != nil:
		size += local.Allocated(each * m.intlen)
		for _, part := range unsafe.Slice((*message)(unsafe.Pointer(m.array)), m.intlen) {
			size += part.heap()
		}
	case m.bytes == nil:
	case m.intlen < 16: // Go puts small strings into one block
		size += (m.intlen + 7) &^ 7
	default:
		size += local.Allocated(m.intlen)
	}
	return size
}

func (a *answers) number(n int64) (m rueidis.RedisMessage) {
	if !a.direct {
		return inner(binary.BigEndian.AppendUint64([]byte{typeNumber}, uint64(n)))
	}
	p := (*message)(unsafe.Pointer(&m))
	p.typ, p.intlen = typeNumber, n
	return m
}

// list returns an array reply.
func (a *answers) list(all []rueidis.RedisMessage) (m rueidis.RedisMessage) {
	if !a.direct {
		buf := binary.BigEndian.AppendUint64([]byte{typeList}, uint64(len(all)))
		for i := range all {
			buf = append(buf, all[i].CacheMarshal(nil)[ttlBytes:]...)
		}
		return inner(buf)
	}
	p := (*message)(unsafe.Pointer(&m))
	p.typ, p.array, p.intlen = typeList, unsafe.SliceData(all), int64(len(all))
	return m
}

// asHit marks a reply as a hit in the client-side cache that expires at end, in milliseconds of
// Unix time; 0 for no expiry.
func (a *answers) asHit(m *rueidis.RedisMessage, end int64) {
	if a.direct {
		a.asCached(m, end)
		(*message)(unsafe.Pointer(m)).attrs = a.mark
		return
	}
	var ttl [8]byte
	binary.LittleEndian.PutUint64(ttl[:], uint64(end))
	*m = fromBytes(append(ttl[:ttlBytes:ttlBytes], m.CacheMarshal(nil)[ttlBytes:]...))
}

// asCached sets the expiry of a reply that was just stored in the client-side cache.
func (a *answers) asCached(m *rueidis.RedisMessage, end int64) {
	if !a.direct {
		return // it could not be told from a hit
	}
	var ttl [8]byte
	binary.LittleEndian.PutUint64(ttl[:], uint64(end))
	(*message)(unsafe.Pointer(m)).ttl = [ttlBytes]byte(ttl[:ttlBytes])
}

// ttlBytes is the length of the expiry in an encoded message.
const ttlBytes = 7

// fromBytes decodes a message in the encoding of CacheMarshal. It is marked as a cache hit.
func fromBytes(buf []byte) (m rueidis.RedisMessage) {
	_ = m.CacheUnmarshalView(buf) // the tests detect a changed layout
	return m
}

// inner decodes a message without the mark: elements of an array are not marked.
func inner(body []byte) rueidis.RedisMessage {
	buf := make([]byte, ttlBytes, ttlBytes+9+len(body))
	buf = binary.BigEndian.AppendUint64(append(buf, typeList), 1)
	m := fromBytes(append(buf, body...))
	all, err := m.ToArray()
	if err != nil || len(all) != 1 {
		return rueidis.RedisMessage{}
	}
	return all[0]
}

func (a *answers) copied(typ byte, data []byte) rueidis.RedisMessage {
	return inner(appendText(nil, typ, data)[ttlBytes:])
}

// appendText appends a string in the encoding of CacheMarshal.
func appendText(buf []byte, typ byte, data []byte) []byte {
	buf = append(buf, make([]byte, ttlBytes)...)
	buf = binary.BigEndian.AppendUint64(append(buf, typ), uint64(len(data)))
	return append(buf, data...)
}

// refusal returns a reply that consists of Redis' own error.
func refusal(err *rueidis.RedisError) rueidis.RedisResult {
	return rueidis.NewResult(rueidis.RedisMessage(*err), nil)
}

func replied(m rueidis.RedisMessage) rueidis.RedisResult { return rueidis.NewResult(m, nil) }

// unixMillis returns the Unix time in milliseconds at which the given time has passed, 0 for never.
func unixMillis(ttl time.Duration) int64 {
	if ttl == 0 {
		return 0
	}
	return time.Now().Add(ttl).UnixMilli()
}

// unixClock tells Unix time without a further reading of a clock. Once a second it reads how far
// Unix time and the monotonic clock are apart: an administrator may set the system clock, and on a
// suspended machine the monotonic clock stands still.
type unixClock struct {
	clock  clock.Clock
	apart  atomic.Int64 // Unix time less the time of clock, in nanoseconds
	readAt atomic.Int64 // by clock; 0 is never
}

// millis returns a time of the clock in milliseconds of Unix time. now is the present time, by the
// clock.
func (u *unixClock) millis(now, at int64) int64 {
	if now-u.readAt.Load() > int64(time.Second) {
		wall := time.Now()
		u.apart.Store(wall.UnixNano() - u.clock.At(wall))
		u.readAt.Store(now)
	}
	return clock.Saturated(u.apart.Load(), at) / int64(time.Millisecond)
}
