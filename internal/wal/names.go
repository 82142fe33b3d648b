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

// maxID leaves room for the files to come. Numbers do not get there by counting.
const maxID = 1 << 62

// fileID is what the name of a file says.
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

// compare is the order in which files are read.
func (f fileID) compare(g fileID) int {
	if c := cmp.Compare(f.id, g.id); c != 0 || f.snapshot == g.snapshot {
		return c
	}
	if f.snapshot {
		return -1
	}
	return 1
}

// parseName says which segment or snapshot a name is, if any.
func parseName(name string) (fileID, bool) {
	rest, ok := strings.CutPrefix(name, namePrefix)
	if !ok || len(rest) < 16 {
		return fileID{}, false
	}
	id, err := strconv.ParseUint(rest[:16], 16, 64)
	f := fileID{id: id, snapshot: rest[16:] == snapSuffix}
	// Only the one way to write it: not in upper case.
	return f, err == nil && f.name() == name
}

// isUnfinished says whether a name is that of a snapshot that was not finished.
func isUnfinished(name string) bool {
	rest, ok := strings.CutSuffix(name, tmpSuffix)
	if !ok {
		return false
	}
	f, ok := parseName(rest)
	return ok && f.snapshot
}
