package wal

import (
	"encoding/binary"
	"hash/crc32"
)

// doc.go describes the layout of a record.
const (
	recordHead = 8  // length and checksum
	bodyHead   = 13 // type, number, length of the key
	maxBody    = 1 << 30
)

type recordType byte

const (
	putRecord  recordType = 1
	dropRecord recordType = 2
	endRecord  recordType = 3
)

// record is a view into the buffer that it was parsed from.
type record struct {
	typ     recordType
	seq     uint64
	key     []byte
	payload []byte
}

// RecordSize returns how many bytes a record takes up in a file. Callers sum it up for
// the argument of NeedsCompaction.
func RecordSize(key, payload int) int64 {
	return recordHead + bodyHead + int64(key) + int64(payload)
}

func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) } // a shared table; made once

func appendRecord(b []byte, typ recordType, seq uint64, key string, payload []byte) []byte {
	at := len(b)
	b = binary.LittleEndian.AppendUint32(b, uint32(bodyHead+len(key)+len(payload)))
	b = append(b, 0, 0, 0, 0)
	b = append(b, byte(typ))
	b = binary.LittleEndian.AppendUint64(b, seq)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(key)))
	b = append(b, key...)
	b = append(b, payload...)
	binary.LittleEndian.PutUint32(b[at+4:], crc32.Checksum(b[at+recordHead:], castagnoli()))
	return b
}

// plausible reports whether a body of this length may begin with these bytes. head has at
// least bodyHead bytes.
func plausible(head []byte, length int64) bool {
	key := int64(binary.LittleEndian.Uint32(head[9:]))
	switch recordType(head[0]) {
	case putRecord:
		return key <= length-bodyHead
	case dropRecord:
		return key == length-bodyHead
	case endRecord:
		return length == bodyHead && key == 0
	}
	return false
}

// parseBody decodes a body whose checksum is right. It returns false for a body that
// version 1 cannot have written.
func parseBody(b []byte) (record, bool) {
	if len(b) < bodyHead || !plausible(b, int64(len(b))) {
		return record{}, false
	}
	end := bodyHead + int(binary.LittleEndian.Uint32(b[9:]))
	return record{
		typ:     recordType(b[0]),
		seq:     binary.LittleEndian.Uint64(b[1:]),
		key:     b[bodyHead:end],
		payload: b[end:],
	}, true
}
