package wal

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// fault is the first place in a file that differs from the file as it was written.
type fault struct {
	at     int64
	reason string
	cut    bool // a record begins here and the file ends before the record does
}

// scanner reads the records of a segment one after the other. Its buffers are bounded by
// the size of the file, whatever length a record claims.
type scanner struct {
	in   *bufio.Reader
	body []byte
}

const scanBuffer = 64 << 10

// scan passes the records between the header and end to each, until each returns false.
// It returns where the last sound record ends. A record is valid only until each returns.
func (s *scanner) scan(f io.ReaderAt, end int64, each func(record) bool) (good int64, flt *fault) {
	section := io.NewSectionReader(f, headerSize, end-headerSize)
	if want := int(min(scanBuffer, end)); s.in == nil || s.in.Size() < want {
		s.in = bufio.NewReaderSize(section, want)
	}
	s.in.Reset(section)
	for at := int64(headerSize); at < end; {
		rec, n, flt := s.next(at, end)
		if flt != nil {
			return at, flt
		}
		at += n
		if !each(rec) {
			return at, nil
		}
	}
	return max(end, headerSize), nil
}

// next reads the record at an offset and returns its size.
func (s *scanner) next(at, end int64) (record, int64, *fault) {
	bad := func(cut bool, format string, args ...any) (record, int64, *fault) {
		return record{}, 0, &fault{at, fmt.Sprintf(format, args...), cut}
	}
	if end-at < recordHead {
		return bad(true, "a record cut short")
	}
	var head [recordHead]byte
	if _, err := io.ReadFull(s.in, head[:]); err != nil {
		return bad(false, "cannot be read: %v", err)
	}
	length := int64(binary.LittleEndian.Uint32(head[:]))
	switch {
	case length < bodyHead || length > maxBody:
		return bad(false, "an absurd length, %d", length)
	case length > end-at-recordHead:
		return bad(true, "a record cut short")
	}
	if int64(cap(s.body)) < length {
		s.body = make([]byte, length)
	}
	body := s.body[:length]
	if _, err := io.ReadFull(s.in, body); err != nil {
		return bad(false, "cannot be read: %v", err)
	}
	if crc32.Checksum(body, castagnoli()) != binary.LittleEndian.Uint32(head[4:]) {
		return bad(false, "bad checksum of a record")
	}
	rec, ok := parseBody(body)
	if !ok {
		return bad(false, "an unknown kind of record")
	}
	return rec, recordHead + length, nil
}

// torn reports whether the fault is the trace of a crash during the last record: the
// record reaches over the end of the file, or is zero from some offset in it to the end
// of the file, and no sound record is behind it.
func torn(f io.ReaderAt, flt *fault, size int64) bool {
	if !flt.cut {
		nonZero, err := lastNonZero(f, flt.at, size)
		if err != nil || nonZero == size {
			return false
		}
		var head [recordHead]byte
		if _, err := readAt(f, head[:], flt.at); err != nil {
			return false
		}
		// Zeros make a length smaller, so a length that is too large was not written.
		length := int64(binary.LittleEndian.Uint32(head[:]))
		if length > maxBody || nonZero > flt.at+recordHead+length {
			return false
		}
	}
	n, sure := soundBehind(f, flt.at+1, size)
	return n == 0 && sure
}

// lastNonZero returns the offset behind the last byte of a file that is not zero, or from
// if all bytes behind from are zero.
func lastNonZero(f io.ReaderAt, from, size int64) (int64, error) {
	last := from
	buf := make([]byte, min(scanBuffer, size-from))
	for at := from; at < size; {
		n, err := readAt(f, buf[:min(int64(len(buf)), size-at)], at)
		if err != nil {
			return 0, err
		}
		for i := n - 1; i >= 0; i-- {
			if buf[i] != 0 {
				last = at + int64(i) + 1
				break
			}
		}
		at += int64(n)
	}
	return last, nil
}

// sumBudget bounds how many bytes soundBehind computes checksums of. Crafted bytes can
// look at every offset like the beginning of a long record.
const sumBudget = 64 << 20

// soundBehind counts the sound records from an offset on, wherever they begin. They must
// not be used, because a payload may contain the bytes of a record. But the count tells
// an unfinished record from a wrong length with good records behind it, and estimates the
// loss. sure is false if the budget ran out or the file could not be read.
func soundBehind(f io.ReaderAt, from, size int64) (count int, sure bool) {
	const least = recordHead + bodyHead
	budget := int64(sumBudget)
	sum := make([]byte, min(scanBuffer, max(size-from, 0)))
	buf := make([]byte, min(scanBuffer+least, max(size-from, 0)))
	for at := from; size-at >= least; {
		n, err := readAt(f, buf[:min(int64(len(buf)), size-at)], at)
		if err != nil {
			return count, false
		}
		i := 0
		for ; n-i >= least; i++ {
			head := buf[i : i+least]
			length := int64(binary.LittleEndian.Uint32(head))
			if length < bodyHead || length > min(maxBody, size-at-int64(i)-recordHead) || !plausible(head[recordHead:], length) {
				continue
			}
			if budget -= length; budget < 0 {
				return count, false
			}
			body := io.NewSectionReader(f, at+int64(i)+recordHead, length)
			switch got, err := sumOf(body, sum); {
			case err != nil:
				return count, false
			case got == binary.LittleEndian.Uint32(head[4:]):
				count++
				i += recordHead + int(length) - 1
			}
		}
		at += int64(i)
	}
	return count, true
}

func sumOf(r io.Reader, buf []byte) (sum uint32, err error) {
	for {
		n, err := r.Read(buf)
		sum = crc32.Update(sum, castagnoli(), buf[:n])
		if errors.Is(err, io.EOF) {
			return sum, nil
		}
		if err != nil {
			return 0, err
		}
	}
}

// readAt fills b. A file that has become shorter is an error.
func readAt(f io.ReaderAt, b []byte, at int64) (int, error) {
	n, err := f.ReadAt(b, at)
	if n == len(b) {
		return n, nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}
