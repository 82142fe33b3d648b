package holdfast

import (
	"fmt"

	"github.com/holdfast-cache/holdfast/internal/journal"
	"github.com/holdfast-cache/holdfast/internal/wal"
)

// The journal as the Cache sees it: its options and their check. The journal itself is
// internal/journal.

// JournalOptions bounds the journal of the writes made while Redis is away, and says how it
// is replayed and stored.
type JournalOptions struct {
	// MaxKeys bounds the keys. Default 65536. When it is reached, a write of a further key is
	// refused with ErrJournalFull. At most half of the keys may be held, see Cache.Held; with
	// more the replay pauses.
	MaxKeys int

	// MaxBytes bounds keys and values. Default 64 MiB. A set whose value does not fit becomes
	// a delete, and is counted in Stats.Downgraded: after the outage the key is absent rather
	// than old. If not even the key fits, the write is refused with ErrJournalFull.
	MaxBytes int64

	// OnConflict is the rule for a set whose key another client wrote meanwhile. Default
	// ConflictDelete.
	OnConflict ConflictRule

	// KeysOnly: the journal keeps no values. A key that was set while Redis was away is
	// deleted there when Redis is back, and loaded again from the source of truth. Until then
	// the local tier serves the value, as long as it has it. Default false.
	KeysOnly bool

	// MaxRate bounds the keys per second that are replayed to one server, so that a full
	// journal does not overload a server that has just come back. Default 100000.
	MaxRate int

	// Dir is a directory for a copy of the journal that survives the process. New creates it
	// if it is missing. The writes that New finds there are replayed, and their keys are not
	// read from Redis before. One Cache at a time may use a directory. Default "": the journal
	// is in memory only. Dir is not used without a Redis configured.
	//
	// With Dir, New reads the files, and a write that goes to the journal waits for the
	// operating system to take it, for at most Timeout; see Fsync. If the disk fails or takes
	// longer, the write is accepted in memory and does not survive a crash.
	// Health.JournalError has the cause until the files are complete again, which is tried
	// once a second. A directory that was removed or changed is noticed within about a second
	// and written again. A directory that a newer version has written is an error of New.
	Dir string

	// Fsync says whether an accepted write also survives the death of the machine. Default
	// FsyncNo: the death of the process only.
	Fsync FsyncPolicy
}

// ConflictRule is the action of a replay on a conflict: Redis holds a value that is neither
// the one that it was last known to hold nor one that this Cache wrote, or another client
// deleted the key.
type ConflictRule uint8

const (
	// ConflictDelete deletes the key: both values are gone, and a miss is always safe. Only
	// the source of truth knows which value is the newer one.
	ConflictDelete ConflictRule = iota
	// ConflictKeep leaves the value in Redis. If there was no local copy at the time of the
	// write, that value may be the one from before the write, even one that this Cache wrote:
	// then reading your own writes ends with the replay.
	ConflictKeep
	// ConflictOverwrite writes the journaled value. It is for keys that no other client
	// writes: another client's newer value would be lost.
	ConflictOverwrite
)

func (r ConflictRule) String() string {
	switch r {
	case ConflictDelete:
		return "delete"
	case ConflictKeep:
		return "keep"
	case ConflictOverwrite:
		return "overwrite"
	}
	return fmt.Sprintf("conflictrule(%d)", uint8(r))
}

// FsyncPolicy says when the files of Journal.Dir are forced to the disk.
type FsyncPolicy uint8

const (
	// FsyncNo does not call fsync: an accepted write survives the death of the process, but
	// not that of the machine.
	FsyncNo FsyncPolicy = iota
	// FsyncEverySecond: the death of the machine loses at most the accepted writes of about a
	// second.
	FsyncEverySecond
	// FsyncAlways: a write is on the disk before it is accepted. Writes that are made at the
	// same time share one fsync.
	FsyncAlways
)

func (p FsyncPolicy) String() string {
	switch p {
	case FsyncNo:
		return "no"
	case FsyncEverySecond:
		return "everysec"
	case FsyncAlways:
		return "always"
	}
	return fmt.Sprintf("fsyncpolicy(%d)", uint8(p))
}

func (j JournalOptions) validate() []error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("holdfast: options: "+format, args...))
	}
	if j.MaxKeys < 1 {
		bad("Journal.MaxKeys is %d: it must be at least 1", j.MaxKeys)
	}
	if j.MaxBytes < 1 {
		bad("Journal.MaxBytes is %d: it must be at least 1", j.MaxBytes)
	}
	if j.MaxRate < 1 {
		bad("Journal.MaxRate is %d: it must be at least 1", j.MaxRate)
	}
	if j.OnConflict > ConflictOverwrite {
		bad("Journal.OnConflict is %d: no such rule", j.OnConflict)
	}
	if j.KeysOnly && j.OnConflict != ConflictDelete {
		bad("Journal.OnConflict is %v: with Journal.KeysOnly every key is deleted", j.OnConflict)
	}
	if j.Fsync > FsyncAlways {
		bad("Journal.Fsync is %d: no such policy", j.Fsync)
	}
	if j.Fsync != FsyncNo && j.Dir == "" {
		bad("Journal.Fsync is %v: without Journal.Dir there is no file", j.Fsync)
	}
	return errs
}

// config returns the options for the journal itself.
func (j JournalOptions) config() journal.Config {
	return journal.Config{
		MaxKeys: j.MaxKeys, MaxBytes: j.MaxBytes, KeysOnly: j.KeysOnly, Dir: j.Dir,
		Fsync: [...]wal.SyncPolicy{
			FsyncNo: wal.SyncNone, FsyncEverySecond: wal.SyncInterval, FsyncAlways: wal.SyncAlways,
		}[j.Fsync],
	}
}
