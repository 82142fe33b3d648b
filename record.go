package holdfast

import (
	"encoding/binary"
	"math"

	"github.com/holdfast-cache/holdfast/internal/clock"
)

// An intent in the file: a format byte, a byte of flags, and the fields below. Times are
// wall clock nanoseconds since 1970, because the process' own clock ends with the process.
// server and the list of late digests have their length before them, as a uvarint.
//
//	format, flags, deadline,
//	base: gone, digest if there was a value, server,
//	late: gone, number of digests, digests,
//	value
//
// Sequence numbers and sessions are not stored: for the next process, all writes and all
// knowledge of the key are from before its start.
const intentFormat = 1

const (
	flagDel = 1 << iota
	flagUndo
	flagKnown
	flagHeld
	flagLate
	flagLateDel
	flagLateMore
	flagCheck // it was replayed, and waits for its second check
)

// earlierProcess is the session of all writes that were sent by an earlier process.
const earlierProcess = 1

// encode returns the intent as a payload for the file. now and wall are the same moment, by
// the process' clock and by the wall clock.
func (in *intent) encode(now, wall int64) []byte {
	var flags byte
	for _, f := range []struct {
		set bool
		bit byte
	}{
		{in.del, flagDel},
		{in.compensate, flagUndo},
		{in.expected.known, flagKnown},
		{in.expected.held, flagHeld},
		{in.possibleLateWrites.since != 0, flagLate},
		{in.possibleLateWrites.del, flagLateDel},
		{in.possibleLateWrites.more, flagLateMore},
		{in.checkAt > 0, flagCheck},
	} {
		if f.set {
			flags |= f.bit
		}
	}
	const fixed = 2 + 3*8 + 2*binary.MaxVarintLen32 + len(digest{})
	b := make([]byte, 0, fixed+len(in.expected.server)+len(digest{})*len(in.possibleLateWrites.sums)+len(in.value))
	b = append(b, intentFormat, flags)
	b = appendTime(b, in.deadline, now, wall)
	b = appendTime(b, in.expected.gone, now, wall)
	if in.expected.held {
		b = append(b, in.expected.sum[:]...)
	}
	b = binary.AppendUvarint(b, uint64(len(in.expected.server)))
	b = append(b, in.expected.server...)
	b = appendTime(b, in.possibleLateWrites.gone, now, wall)
	b = binary.AppendUvarint(b, uint64(len(in.possibleLateWrites.sums)))
	for _, sum := range in.possibleLateWrites.sums {
		b = append(b, sum[:]...)
	}
	return append(b, in.value...)
}

// appendTime converts a time of the process' clock to the wall clock and appends it.
func appendTime(b []byte, t, now, wall int64) []byte {
	if t != clock.Never {
		t = saturated(wall, t-now)
	}
	return binary.LittleEndian.AppendUint64(b, uint64(t))
}

// saturated is a+b, or the last moment before never where that overflows.
func saturated(a, b int64) int64 {
	if b > 0 && a > math.MaxInt64-1-b {
		return math.MaxInt64 - 1
	}
	return a + b
}

// decodeIntent reads an intent that an earlier process encoded. A write that the earlier
// process sent may still run, so it counts as unanswered. decodeIntent returns false for a
// payload that it cannot read; the intent is a delete then, which is always safe.
func decodeIntent(payload []byte, now, wall int64) (*intent, bool) {
	d := decoder{rest: payload, now: now, wall: wall}
	if len(payload) < 2 || payload[0] != intentFormat {
		return unreadable(), false
	}
	flags := payload[1]
	d.rest = payload[2:]
	in := &intent{
		deadline:   d.time(),
		del:        flags&flagDel != 0,
		compensate: flags&flagUndo != 0,
	}
	in.expected = expected{known: flags&flagKnown != 0, held: flags&flagHeld != 0, gone: d.time()}
	if in.expected.held {
		in.expected.sum = d.digest()
	}
	in.expected.server = string(d.take(d.length()))
	in.possibleLateWrites = lateWrites{gone: d.time(), del: flags&flagLateDel != 0, more: flags&flagLateMore != 0}
	n := d.length()
	for i := 0; i < min(n, lateMost) && !d.bad; i++ {
		in.possibleLateWrites.sums = append(in.possibleLateWrites.sums, d.digest())
	}
	if d.bad || n > lateMost {
		return unreadable(), false
	}
	if flags&flagLate != 0 {
		in.possibleLateWrites.since = earlierProcess
	}
	if !in.del {
		in.value = d.rest[:len(d.rest):len(d.rest)]
	}
	if !in.compensate {
		in.possibleLateWrites.unanswered(earlierProcess, in.value, in.del, in.deadline)
	}
	if flags&flagCheck != 0 {
		in.checkAt = d.now + int64(lateAfter)
		in.possibleLateWrites.until = in.checkAt
	}
	return in, true
}

// newerIntent returns the format of a payload that a newer version has written, or 0.
func newerIntent(payload []byte) byte {
	if len(payload) > 0 && payload[0] > intentFormat {
		return payload[0]
	}
	return 0
}

// unreadable is the intent for a payload that cannot be read: a delete.
func unreadable() *intent {
	in := &intent{del: true, deadline: clock.Never}
	in.possibleLateWrites.unanswered(earlierProcess, nil, true, clock.Never)
	return in
}

// decoder reads the fields of a payload. After the first field that is missing, bad is true
// and all results are meaningless.
type decoder struct {
	rest      []byte
	now, wall int64
	bad       bool
}

func (d *decoder) take(n int) []byte {
	if d.bad || n > len(d.rest) {
		d.bad = true
		return nil
	}
	b := d.rest[:n]
	d.rest = d.rest[n:]
	return b
}

func (d *decoder) length() int {
	n, size := binary.Uvarint(d.rest)
	if d.bad || size <= 0 || n > uint64(len(d.rest)) {
		d.bad = true
		return 0
	}
	d.rest = d.rest[size:]
	return int(n)
}

func (d *decoder) digest() (sum digest) {
	copy(sum[:], d.take(len(sum)))
	return sum
}

// time reads a time and converts it to this process' clock.
func (d *decoder) time() int64 {
	b := d.take(8)
	if d.bad {
		return 0
	}
	t := int64(binary.LittleEndian.Uint64(b))
	switch {
	case t == clock.Never:
		return clock.Never
	case t < 0:
		d.bad = true
		return 0
	}
	return saturated(d.now, saturated(t, -d.wall))
}
