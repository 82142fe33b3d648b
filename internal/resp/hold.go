package resp

// rueidis allocates a bulk string, and the elements of an aggregate, as soon as it has
// read their length (resp.go, readB and readA). So a dozen bytes from a server could cost
// half a gigabyte. Therefore a header is held back while the announced bytes that are
// missing outnumber those received by more than freeBytes. Then rueidis needs at most
// freeBytes plus twice the received bytes for a frame. An element counts with its size in
// memory, which may be thirteen times its size on the wire.

const (
	// freeBytes is how much may be announced and missing before a header is held back.
	// Frames of ordinary size are therefore not held back and copied. It is half of
	// rueidis' own buffer.
	freeBytes = 256 << 10

	// elementBytes is the size of a rueidis.RedisMessage.
	elementBytes = 40
)

// paid reports whether enough bytes have arrived, in front of the i-th byte of this
// chunk, that nothing needs to be held back.
func (f *Framer) paid(i int) bool {
	owed := f.missing * elementBytes
	if f.state == stBody && !(f.streams && len(f.stack) == 0) {
		owed += f.remain
	}
	return owed <= freeBytes+f.offset+int64(i)-f.frame
}

// weigh decides whether a header, which ends in front of the i-th byte, is held back. The
// header announces a bulk string of that many bytes, or that many elements.
func (f *Framer) weigh(i int, bytes, elements int64) {
	arrived := f.offset + int64(i) - f.frame
	owed := f.missing * elementBytes
	if owed <= freeBytes+arrived {
		f.hold = none
	}
	if f.streams && len(f.stack) == 0 {
		bytes = 0
	}
	if f.hold == none && owed+bytes+elements*elementBytes > freeBytes+arrived {
		f.hold = i - 1 // rueidis acts on a header when it sees its LF
	}
}

// A backlog stores received bytes until they may be delivered, in chunks that grow with
// its size.
type backlog struct {
	chunks [][]byte
	size   int // bytes in chunks
	ready  int // the number of them that may be delivered
}

const (
	minChunk = 16 << 10
	maxChunk = 1 << 20
)

// room returns a buffer for the next Read. The caller then calls keep.
func (l *backlog) room() []byte {
	if n := len(l.chunks); n > 0 {
		if last := l.chunks[n-1]; cap(last)-len(last) >= minChunk/4 {
			return last[len(last):cap(last)]
		}
	}
	l.chunks = append(l.chunks, make([]byte, 0, min(max(l.size, minChunk), maxChunk)))
	return l.chunks[len(l.chunks)-1][:cap(l.chunks[len(l.chunks)-1])]
}

// keep adds the first n bytes of the buffer that room returned.
func (l *backlog) keep(n int) {
	last := &l.chunks[len(l.chunks)-1]
	*last = (*last)[:len(*last)+n]
	l.size += n
}

// add appends b and takes ownership of it.
func (l *backlog) add(b []byte) {
	l.chunks = append(l.chunks, b)
	l.size += len(b)
}

// read copies ready bytes to p and removes them from the backlog.
func (l *backlog) read(p []byte) (n int) {
	for n < len(p) && l.ready > 0 {
		first := l.chunks[0]
		k := copy(p[n:], first[:min(len(first), l.ready)])
		n += k
		l.ready -= k
		l.size -= k
		if k < len(first) {
			l.chunks[0] = first[k:]
			continue
		}
		l.chunks[0] = nil // allow the collector to free it
		l.chunks = l.chunks[1:]
	}
	if l.size == 0 {
		l.chunks = nil
	}
	return n
}
