package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"strings"
)

// The layout of the marker is told in doc.go.
const (
	markerMagic = "hfwaltru"
	markerHead  = 18
	maxBoot     = 64
)

// marker is what the file says that is there while the others can be trusted.
type marker struct {
	policy SyncPolicy
	closed bool
	boot   string // which start of the machine it was written in; empty if not known
}

func (m marker) append(b []byte) []byte {
	at := len(b)
	b = append(b, markerMagic...)
	b = binary.LittleEndian.AppendUint32(b, version)
	b = append(b, 0, 0, 0, 0)
	closed := byte(0)
	if m.closed {
		closed = 1
	}
	b = append(b, byte(m.policy), closed)
	b = append(b, m.boot...)
	binary.LittleEndian.PutUint32(b[at+12:], markerSum(b[at:]))
	return b
}

func markerSum(b []byte) uint32 {
	return crc32.Update(crc32.Checksum(b[:12], castagnoli()), castagnoli(), b[16:])
}

// parseMarker reads a marker. An empty reason means that it is sound.
func parseMarker(b []byte) (m marker, reason string) {
	switch {
	case len(b) < 12 || string(b[:8]) != markerMagic:
		return m, "not a marker of this journal"
	case binary.LittleEndian.Uint32(b[8:]) != version:
		return m, fmt.Sprintf("format version %d, known is %d", binary.LittleEndian.Uint32(b[8:]), version)
	case len(b) < markerHead || len(b) > markerHead+maxBoot:
		return m, "of a wrong length"
	case binary.LittleEndian.Uint32(b[12:]) != markerSum(b):
		return m, "bad checksum"
	}
	m = marker{SyncPolicy(b[16]), b[17] == 1, string(b[markerHead:])}
	if m.policy > SyncAlways || b[17] > 1 {
		return m, "of an unknown kind"
	}
	return m, ""
}

// outlived says whether the machine has died with records that nothing had forced
// to the disk. Where a start of the machine has no name, that is not known.
func (m marker) outlived(boot string) bool {
	return m.policy != SyncAlways && !m.closed && m.boot != "" && boot != "" && m.boot != boot
}

// foundMarker is the marker as it was found.
type foundMarker struct {
	marker
	there  bool
	reason string // what is wrong with it
}

func readMarker(fsys fileSystem, regular bool) foundMarker {
	bad := func(format string, args ...any) foundMarker {
		return foundMarker{there: true, reason: fmt.Sprintf(format, args...)}
	}
	if !regular {
		return bad("not a regular file") // opening one may block for ever
	}
	f, err := fsys.open(markerName)
	if errors.Is(err, fs.ErrNotExist) {
		return foundMarker{}
	}
	if err != nil {
		return bad("cannot be opened: %v", err)
	}
	defer f.Close()
	size, err := f.size()
	if err != nil {
		return bad("cannot be read: %v", err)
	}
	b := make([]byte, min(size, markerHead+maxBoot+1))
	if _, err := readAt(f, b, 0); err != nil {
		return bad("cannot be read: %v", err)
	}
	m, reason := parseMarker(b)
	return foundMarker{m, true, reason}
}

// doubt says in words why what was found may be out of date, or nothing.
func (r *replayer) doubt(boot string) string {
	var why []string
	if n := len(r.report.Damage); n > 0 {
		why = append(why, fmt.Sprintf("damaged or missing files: %d", n))
	}
	switch m := r.marker; {
	case !m.there && len(r.segments) == 0 && len(r.others) == 0:
		// A new directory: there is nothing that could be out of date.
	case !m.there:
		why = append(why, "there is no "+markerName+": since something was not written, or was lost, no Compact has succeeded")
	case m.reason != "":
		why = append(why, markerName+": "+m.reason)
	case m.outlived(boot):
		why = append(why, fmt.Sprintf("the machine went down while the log was open, and sync policy %v had not forced everything to the disk", m.policy))
	}
	return strings.Join(why, "; ")
}
