package resp

// rueidis allocates a bulk string, and the elements of an aggregate, as soon as it has
// read their length (resp.go, readB and readA): a dozen bytes from a server cost half a
// gigabyte. So a header is held back while what it announces, and has not arrived, is
// more than has arrived. Then rueidis' memory for a frame is at most freeBytes, and twice
// what was received; an element counts for what it is there, which may be thirteen times
// what it is on the wire.

const (
	// freeBytes is what may be announced and not have arrived, so that no frame of an
	// ordinary size is held back, and copied: half of rueidis' own buffer.
	freeBytes = 256 << 10

	// elementBytes is the size of a rueidis.RedisMessage.
	elementBytes = 40
)

// paid says whether so much has arrived, in front of the i-th byte of this chunk, that
// nothing needs to be held back.
func (f *Framer) paid(i int) bool {
	owed := f.missing * elementBytes
	if f.state == stBody && !(f.streams && len(f.stack) == 0) {
		owed += f.remain
	}
	return owed <= freeBytes+f.offset+int64(i)-f.frame
}

// weigh decides whether a header, which ends in front of the i-th byte, is held back. It
// announces a bulk string of that length, or so many elements.
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

// A backlog keeps what was received and is not yet to be delivered, in chunks that grow
// with it.
type backlog struct {
	chunks [][]byte
	size   int // bytes in chunks
	ready  int // of these, how many may be delivered
}

const (
	minChunk = 16 << 10
	maxChunk = 1 << 20
)

// room returns where to receive what follows. keep is to be called with it.
func (l *backlog) room() []byte {
	if n := len(l.chunks); n > 0 {
		if last := l.chunks[n-1]; cap(last)-len(last) >= minChunk/4 {
			return last[len(last):cap(last)]
		}
	}
	l.chunks = append(l.chunks, make([]byte, 0, min(max(l.size, minChunk), maxChunk)))
	return l.chunks[len(l.chunks)-1][:cap(l.chunks[len(l.chunks)-1])]
}

// keep adds the first n bytes of the last room.
func (l *backlog) keep(n int) {
	last := &l.chunks[len(l.chunks)-1]
	*last = (*last)[:len(*last)+n]
	l.size += n
}

// add adds b, which becomes the backlog's.
func (l *backlog) add(b []byte) {
	l.chunks = append(l.chunks, b)
	l.size += len(b)
}

// read delivers what is ready.
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
		l.chunks[0] = nil // rueidis has it now
		l.chunks = l.chunks[1:]
	}
	if l.size == 0 {
		l.chunks = nil
	}
	return n
}
