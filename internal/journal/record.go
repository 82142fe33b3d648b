package journal

import (
	"encoding/binary"

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

// EarlierProcess is the session of all writes that were sent by an earlier process.
const EarlierProcess = 1

// encode returns the intent as a payload for the file. now and wall are the same moment, by
// the process' clock and by the wall clock.
func (in *Intent) encode(now, wall int64) []byte {
	var flags byte
	for _, f := range []struct {
		set bool
		bit byte
	}{
		{in.Del, flagDel},
		{in.Compensate, flagUndo},
		{in.Expected.known, flagKnown},
		{in.Expected.held, flagHeld},
		{in.PossibleLateWrites.any(), flagLate},
		{in.PossibleLateWrites.Del, flagLateDel},
		{in.PossibleLateWrites.More, flagLateMore},
		{in.checkAt.waits(), flagCheck},
	} {
		if f.set {
			flags |= f.bit
		}
	}
	const fixed = 2 + 3*8 + 2*binary.MaxVarintLen32 + len(Digest{})
	b := make([]byte, 0, fixed+len(in.Expected.server)+len(Digest{})*len(in.PossibleLateWrites.Sums)+len(in.Value))
	b = append(b, intentFormat, flags)
	b = appendTime(b, in.Deadline, now, wall)
	b = appendTime(b, in.Expected.gone, now, wall)
	if in.Expected.held {
		b = append(b, in.Expected.sum[:]...)
	}
	b = binary.AppendUvarint(b, uint64(len(in.Expected.server)))
	b = append(b, in.Expected.server...)
	b = appendTime(b, in.PossibleLateWrites.Gone, now, wall)
	b = binary.AppendUvarint(b, uint64(len(in.PossibleLateWrites.Sums)))
	for _, sum := range in.PossibleLateWrites.Sums {
		b = append(b, sum[:]...)
	}
	return append(b, in.Value...)
}

// appendTime converts a time of the process' clock to the wall clock and appends it.
func appendTime(b []byte, t, now, wall int64) []byte {
	if t != clock.Never {
		t = clock.Saturated(wall, t-now)
	}
	return binary.LittleEndian.AppendUint64(b, uint64(t))
}

// decodeIntent reads an intent that an earlier process encoded. A write that the earlier
// process sent may still run, so it counts as unanswered. decodeIntent returns false for a
// payload that it cannot read; the intent is a delete then, which is always safe.
func decodeIntent(payload []byte, now, wall int64) (*Intent, bool) {
	d := decoder{rest: payload, now: now, wall: wall}
	if len(payload) < 2 || payload[0] != intentFormat {
		return unreadable(), false
	}
	flags := payload[1]
	d.rest = payload[2:]
	in := &Intent{
		Deadline:   d.time(),
		Del:        flags&flagDel != 0,
		Compensate: flags&flagUndo != 0,
	}
	in.Expected = Expected{known: flags&flagKnown != 0, held: flags&flagHeld != 0, gone: d.time()}
	if in.Expected.held {
		in.Expected.sum = d.digest()
	}
	in.Expected.server = string(d.take(d.length()))
	in.PossibleLateWrites = LateWrites{Gone: d.time(), Del: flags&flagLateDel != 0, More: flags&flagLateMore != 0}
	n := d.length()
	for i := 0; i < min(n, lateMost) && !d.bad; i++ {
		in.PossibleLateWrites.Sums = append(in.PossibleLateWrites.Sums, d.digest())
	}
	if d.bad || n > lateMost {
		return unreadable(), false
	}
	if flags&flagLate != 0 {
		in.PossibleLateWrites.Since = EarlierProcess
	}
	if !in.Del {
		in.Value = d.rest[:len(d.rest):len(d.rest)]
	}
	if !in.Compensate {
		in.PossibleLateWrites.unanswered(EarlierProcess, in.Value, in.Del, in.Deadline)
	}
	if flags&flagCheck != 0 {
		in.PossibleLateWrites.until = d.now + int64(lateAfter)
		in.checkAt = checkTime(in.PossibleLateWrites.until)
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
func unreadable() *Intent {
	in := &Intent{Del: true, Deadline: clock.Never}
	in.PossibleLateWrites.unanswered(EarlierProcess, nil, true, clock.Never)
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

func (d *decoder) digest() (sum Digest) {
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
	return clock.Saturated(d.now, clock.Saturated(t, -d.wall))
}
