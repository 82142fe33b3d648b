package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"maps"
	"slices"
	"strings"
)

// doc.go describes the layout of the marker.
const (
	markerMagic   = "hfwaltru"
	markerVersion = 2
	markerHead    = 18
	maxBoot       = 64
	markerEnd     = 17      // of a file: number, kind, where it ends
	maxMarker     = 1 << 20 // far above the number of files of any directory
)

// marker is the content of the file that exists while the other files can be trusted.
type marker struct {
	policy SyncPolicy
	closed bool
	boot   string           // the boot of the machine in which it was written; empty if not known
	ends   map[fileID]int64 // if closed: the files and where they end; nil in version 1
}

func (m marker) append(b []byte) []byte {
	at := len(b)
	b = append(b, markerMagic...)
	b = binary.LittleEndian.AppendUint32(b, markerVersion)
	b = append(b, 0, 0, 0, 0)
	b = append(b, byte(m.policy), flag(m.closed), byte(len(m.boot)))
	b = append(b, m.boot...)
	for _, f := range slices.SortedFunc(maps.Keys(m.ends), fileID.compare) {
		b = binary.LittleEndian.AppendUint64(b, f.id)
		b = append(b, flag(f.snapshot))
		b = binary.LittleEndian.AppendUint64(b, uint64(m.ends[f]))
	}
	binary.LittleEndian.PutUint32(b[at+12:], markerSum(b[at:]))
	return b
}

func flag(b bool) byte {
	if b {
		return 1
	}
	return 0
}

func markerSum(b []byte) uint32 {
	return crc32.Update(crc32.Checksum(b[:12], castagnoli()), castagnoli(), b[16:])
}

// parseMarker decodes a marker. An empty reason means that it is sound.
func parseMarker(b []byte) (m marker, reason string) {
	if len(b) < 12 || string(b[:8]) != markerMagic {
		return m, "not a marker of this journal"
	}
	v := binary.LittleEndian.Uint32(b[8:])
	switch {
	case v == 0 || v > markerVersion:
		return m, fmt.Sprintf("format version %d, known is %d", v, markerVersion)
	case len(b) < markerHead || len(b) > maxMarker:
		return m, "of a wrong length"
	case binary.LittleEndian.Uint32(b[12:]) != markerSum(b):
		return m, "bad checksum"
	}
	m = marker{policy: SyncPolicy(b[16]), closed: b[17] == 1}
	rest := b[markerHead:]
	switch {
	case m.policy > SyncAlways || b[17] > 1:
		return m, "of an unknown kind"
	case v == 1 && len(rest) <= maxBoot:
		m.boot = string(rest)
		return m, ""
	case v == 1 || len(rest) == 0 || len(rest) < 1+int(rest[0]):
		return m, "of a wrong length"
	}
	m.boot, rest = string(rest[1:1+rest[0]]), rest[1+rest[0]:]
	if len(rest)%markerEnd != 0 || !m.closed && len(rest) > 0 {
		return m, "of a wrong length"
	}
	m.ends = make(map[fileID]int64)
	for ; len(rest) > 0; rest = rest[markerEnd:] {
		f := fileID{id: binary.LittleEndian.Uint64(rest), snapshot: rest[8] == 1}
		m.ends[f] = int64(min(binary.LittleEndian.Uint64(rest[9:]), 1<<62))
	}
	return m, ""
}

// outlived reports whether the machine went down while there may have been records that
// were not forced to the disk. Where boots have no identifier, that is not known.
func (m marker) outlived(boot string) bool {
	return m.policy != SyncAlways && !m.closed && m.boot != "" && boot != "" && m.boot != boot
}

// foundMarker is the marker as it was found.
type foundMarker struct {
	marker
	there  bool
	reason string // its fault; empty if none
	newer  uint32 // the version, if a newer program has written it
}

func readMarker(fsys fileSystem, regular bool) foundMarker {
	bad := func(format string, args ...any) foundMarker {
		return foundMarker{there: true, reason: fmt.Sprintf(format, args...)}
	}
	if !regular {
		return bad("not a regular file") // opening one may block without a bound
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
	b := make([]byte, min(size, maxMarker+1))
	if _, err := readAt(f, b, 0); err != nil {
		return bad("cannot be read: %v", err)
	}
	m, reason := parseMarker(b)
	found := foundMarker{marker: m, there: true, reason: reason}
	if len(b) >= markerHead && string(b[:8]) == markerMagic && binary.LittleEndian.Uint32(b[12:]) == markerSum(b) {
		if v := binary.LittleEndian.Uint32(b[8:]); v > markerVersion {
			found.newer = v
		}
	}
	return found
}

// doubt says in words why the recovered data may be out of date. It is empty if they are
// not.
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
