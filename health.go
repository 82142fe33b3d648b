package holdfast

import (
	"fmt"
	"time"
)

// State is the state of the link to Redis.
type State uint8

const (
	// Connecting: Redis was never reached. Calls are answered as in Down.
	Connecting State = iota
	// Up: a write probe succeeded on the connection that serves traffic.
	Up
	// ReadOnly: Redis answers reads and refuses every write (READONLY, MISCONF, OOM,
	// NOREPLICAS, or no permission on the probe's key). Reads go on; writes are kept in the
	// journal.
	ReadOnly
	// Down: Redis is away, or answers BUSY to everything because a script runs too long;
	// Health.LastError names the cause. Calls are answered locally, at once.
	Down
	// Closed: the Cache was closed.
	Closed
)

var stateNames = [...]string{"connecting", "up", "readonly", "down", "closed"}

func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return fmt.Sprintf("state(%d)", uint8(s))
}

// Health is the last known state of Redis.
type Health struct {
	State State

	// Writable: the last probe or write on the present connection succeeded.
	Writable bool

	// Tracking: the server reports changes made by other clients. Where it is false, a local
	// copy is fresh for Tracking.UntrackedTTL at most.
	Tracking bool

	// Lacks names the helper commands that the Cache does without, because Redis does not
	// know them or its user has no permission: "pttl" (a value that was read is kept for
	// Tracking.UntrackedTTL at most), "exists" (Touch with a ttl of 0 and no DefaultTTL
	// cannot tell an absent key), "leases" (each process loads for itself), "scripts" (a set
	// that waits in the journal becomes a delete). nil where none is known to be missing. In
	// a cluster it has those of all shards.
	Lacks []string

	// Since is when State was entered.
	Since time.Time

	// ProbedAt is when a write probe last succeeded. A probe is sent about once each
	// Breaker.MaxBackoff while the Cache is in use, and once a minute while it is not, so
	// State is no older than that. Reading Health or Stats does not count as use.
	ProbedAt time.Time

	// LastError is the cause why Redis is not Up, or the last such cause; nil if there never
	// was one. For a failed connection it names the step, from the dial to the greeting, and
	// has the server's last reply. A server's text is cut after 256 bytes and shown without
	// control characters; errors.As finds Redis' own error unchanged.
	LastError error

	// Shards are the masters of a cluster that have slots, in the order of their addresses;
	// nil where there is no cluster. Health as a whole is that of the worst shard: State is
	// Up, and Writable and Tracking are true, only if they are for every shard. A slot
	// without a master makes State Down. The other shards go on meanwhile.
	Shards []ShardHealth

	// JournalError is the cause why Journal.Dir lacks a part of the journal, which the death
	// of the process would lose: the disk fails or does not answer, or the directory was
	// changed from outside. Writes are kept in memory meanwhile. nil where the directory has
	// everything, and without Journal.Dir.
	JournalError error

	// JournalKeys is the number of keys that wait to be replayed, or to be checked again
	// after a replay.
	JournalKeys int

	// HeldKeys is the number of JournalKeys whose write Redis refuses while a probe
	// succeeds. HeldSince is when the oldest of them was first refused. One of them for each
	// text of a refusal is tried again, with a back-off. Cache.Held lists them.
	HeldKeys  int
	HeldSince time.Time
}

// ShardHealth is the Health of one master of a cluster.
type ShardHealth struct {
	Addr  string // as the cluster names it
	Slots int    // how many of the 16,384 hash slots it owns

	State     State
	Writable  bool
	Tracking  bool
	Since     time.Time
	LastError error
}
