package wal

import (
	"fmt"
	"time"
)

// Options say how a Log writes. The zero value survives the death of the process.
type Options struct {
	// Sync is when what was written is forced to the disk. Default: SyncNone.
	Sync SyncPolicy

	// Interval is how often SyncInterval forces it; the other policies do not use
	// it. Default, and for what is not positive: a second.
	Interval time.Duration

	// SegmentBytes is the size of a file after which another is begun. A file is
	// larger than that by at most what was written at once. Default, and for what
	// is not positive: 16 MiB.
	SegmentBytes int64

	// Logf, if it is not nil, gets a line for every change of state: not durable,
	// durable again, a file that cannot be created or removed. It is called without
	// a lock held, but while others wait to write: it must not call the Log.
	Logf func(format string, args ...any)

	// Before, if it is not nil, is called before each access to the disk after Open has
	// read the files, with its kind: create, write, sync, rename, remove, truncate,
	// syncdir, stat. It is for tests: one that does not return is a disk that stands
	// still.
	Before func(op string)
}

// SyncPolicy is when records are forced to the disk.
type SyncPolicy int

const (
	// SyncNone never waits for the disk: a record is with the operating system when
	// its write returns. It survives the death of the process, not of the machine.
	SyncNone SyncPolicy = iota

	// SyncInterval is SyncNone, and forces what was written to the disk every
	// Options.Interval, on a goroutine of its own.
	SyncInterval

	// SyncAlways has a record on the disk when its write returns. Callers that
	// write at the same time share one fsync.
	SyncAlways
)

// String returns the policy's name in lower case.
func (p SyncPolicy) String() string {
	switch p {
	case SyncNone:
		return "none"
	case SyncInterval:
		return "interval"
	case SyncAlways:
		return "always"
	}
	return fmt.Sprintf("SyncPolicy(%d)", int(p))
}

const (
	defaultInterval     = time.Second
	defaultSegmentBytes = 16 << 20
)

func (o Options) withDefaults() (Options, error) {
	if o.Sync < SyncNone || o.Sync > SyncAlways {
		return o, fmt.Errorf("wal: there is no %v", o.Sync)
	}
	if o.Interval <= 0 {
		o.Interval = defaultInterval
	}
	if o.SegmentBytes <= 0 {
		o.SegmentBytes = defaultSegmentBytes
	}
	if o.Logf == nil {
		o.Logf = func(string, ...any) {}
	}
	return o, nil
}
