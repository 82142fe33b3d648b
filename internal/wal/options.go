package wal

import (
	"fmt"
	"time"
)

// Options configure how a Log writes. With the zero value, records survive the death of
// the process.
type Options struct {
	// Sync says when records are forced to the disk. Default: SyncNone.
	Sync SyncPolicy

	// Interval is the time between two fsyncs with SyncInterval; the other policies do
	// not use it. Default, also for values that are not positive: 1 second.
	Interval time.Duration

	// SegmentBytes is the size of a file at which another is begun. A file exceeds it by
	// at most the size of one batch of records. Default, also for values that are not
	// positive: 16 MiB.
	SegmentBytes int64

	// Logf, if not nil, gets a line for every change of state: not durable, durable
	// again, a file that cannot be created or removed. It is called without a lock held,
	// but while other callers wait to write, so it must not call the Log.
	Logf func(format string, args ...any)

	// Before, if not nil, is called before each access to the disk after Open has read
	// the files, with the kind of access: create, write, sync, rename, remove, truncate,
	// syncdir, stat. It is for tests: a Before that does not return simulates a stalled
	// disk.
	Before func(op string)
}

// SyncPolicy says when records are forced to the disk.
type SyncPolicy int

const (
	// SyncNone never waits for the disk: when a write returns, the record is in the
	// operating system's cache. It survives the death of the process, not of the machine.
	SyncNone SyncPolicy = iota

	// SyncInterval is SyncNone, and additionally forces records to the disk every
	// Options.Interval, on a goroutine of its own.
	SyncInterval

	// SyncAlways forces a record to the disk before its write returns. Concurrent writes
	// share one fsync.
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
