package holdfast

import (
	"fmt"
	"time"
)

// Tier is the origin of an Entry.
type Tier uint8

const (
	// Local is the in-process tier.
	Local Tier = iota
	// Remote is Redis.
	Remote
	// Journal holds the writes that Redis has not acknowledged.
	Journal
	// Loader is a function of the caller that loads from the source of truth.
	Loader
)

func (t Tier) String() string {
	switch t {
	case Local:
		return "local"
	case Remote:
		return "remote"
	case Journal:
		return "journal"
	case Loader:
		return "loader"
	}
	return fmt.Sprintf("tier(%d)", uint8(t))
}

// Entry is a value with its origin.
type Entry struct {
	// Value may be shared with other callers: read it, do not write to it.
	Value []byte
	// Tier is the tier that answered.
	Tier Tier
	// Stale: the value is past its TTL. It is served only while Redis is away, within
	// Outage.ServeStaleFor, or in place of a load, within Load.StaleIfError.
	Stale bool
	// Degraded: the answer, a value or a miss, was given without Redis.
	Degraded bool
	// TTL is the remaining time to live; 0 if the value has no expiry, and if it is
	// stale.
	TTL time.Duration
}
