package wal

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// doc.go describes the layout of a header.
const (
	headerSize = 48
	version    = 1

	logMagic      = "hfwallog"
	snapshotMagic = "hfwalsnp"
)

// link says where a log segment ends. The zero link means unknown.
type link struct{ id, end uint64 }

// header is the decoded header of a file.
type header struct {
	file fileID
	run  uint64
	prev link
}

func (h header) append(b []byte) []byte {
	at := len(b)
	b = append(b, h.file.magic()...)
	b = binary.LittleEndian.AppendUint32(b, version)
	b = append(b, 0, 0, 0, 0)
	b = binary.LittleEndian.AppendUint64(b, h.file.id)
	b = binary.LittleEndian.AppendUint64(b, h.run)
	b = binary.LittleEndian.AppendUint64(b, h.prev.id)
	b = binary.LittleEndian.AppendUint64(b, h.prev.end)
	binary.LittleEndian.PutUint32(b[at+12:], headerSum(b[at:]))
	return b
}

func headerSum(b []byte) uint32 {
	return crc32.Update(crc32.Checksum(b[:12], castagnoli()), castagnoli(), b[16:headerSize])
}

// parseHeader reads the header at the beginning of a file. An empty reason means that it
// is sound. The version is compared before the checksum, because a file of an unknown
// version may have its checksum elsewhere.
func parseHeader(b []byte, file fileID) (h header, reason string) {
	switch {
	case len(b) < 12 || string(b[:8]) != file.magic():
		return h, "not a file of this journal"
	case binary.LittleEndian.Uint32(b[8:]) != version:
		return h, fmt.Sprintf("format version %d, known is %d", binary.LittleEndian.Uint32(b[8:]), version)
	case len(b) < headerSize:
		return h, "cut short in its header"
	case binary.LittleEndian.Uint32(b[12:]) != headerSum(b):
		return h, "bad checksum of its header"
	}
	h = header{
		file: fileID{id: binary.LittleEndian.Uint64(b[16:]), snapshot: file.snapshot},
		run:  binary.LittleEndian.Uint64(b[24:]),
		prev: link{binary.LittleEndian.Uint64(b[32:]), binary.LittleEndian.Uint64(b[40:])},
	}
	if h.file.id != file.id {
		return h, fmt.Sprintf("is %s under another name", h.file.name())
	}
	return h, ""
}

// newerHeader returns the version of a header that a newer program has written, or 0. In
// every version the checksum covers bytes 0-11 and 16-47, so that such a file can be told
// from a damaged one.
func newerHeader(b []byte, file fileID) uint32 {
	if len(b) < headerSize || string(b[:8]) != file.magic() || binary.LittleEndian.Uint32(b[12:]) != headerSum(b) {
		return 0
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v > version {
		return v
	}
	return 0
}

// tornHeader reports whether a file may be the remains of the creation of a segment
// during which the process or machine crashed: the beginning of a header, cut, or zero
// from some offset on. begins is its first bytes, up to headerSize. nonZero is the offset
// behind the last byte that is not zero.
func tornHeader(begins []byte, file fileID, nonZero, size int64) bool {
	if nonZero > headerSize || nonZero == size && size >= headerSize {
		return false
	}
	want := binary.LittleEndian.AppendUint32([]byte(file.magic()), version)
	n := min(int(nonZero), len(want))
	return bytes.Equal(begins[:n], want[:n])
}
