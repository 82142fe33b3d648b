package wal

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
)

const (
	lockName    = "LOCK"
	markerName  = "TRUSTED"
	namePrefix  = "journal-"
	logSuffix   = ".log"
	snapSuffix  = ".snap"
	tmpSuffix   = ".tmp"
	asideSuffix = ".damaged-"
)

// maxID is far above every number that counting reaches, and leaves room for later files.
const maxID = 1 << 62

// fileID identifies a segment or a snapshot; it is encoded in the file's name.
type fileID struct {
	id       uint64
	snapshot bool
}

func (f fileID) name() string {
	suffix := logSuffix
	if f.snapshot {
		suffix = snapSuffix
	}
	return fmt.Sprintf("%s%016x%s", namePrefix, f.id, suffix)
}

func (f fileID) magic() string {
	if f.snapshot {
		return snapshotMagic
	}
	return logMagic
}

// compare orders files as they are read.
func (f fileID) compare(g fileID) int {
	if c := cmp.Compare(f.id, g.id); c != 0 || f.snapshot == g.snapshot {
		return c
	}
	if f.snapshot {
		return -1
	}
	return 1
}

// parseName parses the name of a segment or snapshot. It returns false for other names.
func parseName(name string) (fileID, bool) {
	rest, ok := strings.CutPrefix(name, namePrefix)
	if !ok || len(rest) < 16 {
		return fileID{}, false
	}
	id, err := strconv.ParseUint(rest[:16], 16, 64)
	f := fileID{id: id, snapshot: rest[16:] == snapSuffix}
	// Only the canonical spelling counts: not upper case.
	return f, err == nil && f.name() == name
}

// isUnfinished reports whether a name is that of an unfinished snapshot.
func isUnfinished(name string) bool {
	rest, ok := strings.CutSuffix(name, tmpSuffix)
	if !ok {
		return false
	}
	f, ok := parseName(rest)
	return ok && f.snapshot
}
