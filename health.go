package holdfast

import (
	"fmt"
	"time"
)

// State is what the link to Redis is good for.
type State uint8

const (
	// Connecting: Redis was never reached. Calls are answered as in Down.
	Connecting State = iota
	// Up: a write probe succeeded on the connection that serves traffic.
	Up
	// ReadOnly: Redis answers reads and refuses every write (READONLY, MISCONF,
	// OOM, NOREPLICAS, or no permission on the probe's key). Reads go on;
	// writes are kept in the journal.
	ReadOnly
	// Down: Redis is away, or a script keeps it so busy that it answers BUSY to
	// everything, which LastError says then. Calls are answered locally, at once.
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

// Health is what was last known of Redis; asking costs no I/O.
type Health struct {
	State State

	// Writable: the last probe or write on the present connection succeeded.
	Writable bool

	// Tracking: the server tells of changes made by other clients. Where it is
	// false, a local copy counts as fresh for Tracking.UntrackedTTL at most.
	Tracking bool

	// Lacks are the helper commands that Redis does not run, for it does not know them
	// or its user may not, and that are done without: "pttl" (a value that was read is
	// kept for Tracking.UntrackedTTL at most), "exists" (Touch of a key without an end
	// cannot tell that it is not there), "leases" (each process loads for itself),
	// "scripts" (a set that waits in the journal becomes a delete). nil where none is
	// known to be lacking. In a cluster it is what any shard lacks.
	Lacks []string

	// Since is when State was entered.
	Since time.Time

	// ProbedAt is when a write probe last succeeded. There is about one each
	// Breaker.MaxBackoff while the Cache is in use, and one a minute while it is not:
	// State is no older than that. To look at Health or Stats is no use.
	ProbedAt time.Time

	// LastError is why Redis is not Up, or the last such reason; nil if there
	// never was one. Where a connection failed it names the step, from the dial to the
	// greeting, and what the server said last. What a server says is cut after 256 bytes
	// and shown without control characters; errors.As finds Redis' own error as it was.
	LastError error

	// Shards are the masters of a cluster that have slots, in the order of their
	// addresses; nil where there is no cluster. The whole is as well as the worst
	// of them: State is Up, and Writable and Tracking are true, where they are
	// for every shard. A slot that has no master makes it Down. The others go on
	// meanwhile.
	Shards []ShardHealth

	// JournalError is why Journal.Dir does not have everything that is in the
	// journal, so that the death of the process would lose it: the disk does not take
	// it or stands still, or the directory was changed from outside. Writes are kept in
	// memory meanwhile. nil where it has, and without Journal.Dir.
	JournalError error

	// JournalKeys is how many keys wait to be replayed or to be checked once
	// more after a replay.
	JournalKeys int

	// HeldKeys are those of them whose write Redis refuses for itself, while a probe
	// succeeds; HeldSince is when the oldest of them was refused first. One of them for
	// each text of Redis' is tried again by the back-off; Cache.Held lists them.
	HeldKeys  int
	HeldSince time.Time
}

// ShardHealth is the Health of one master of a cluster.
type ShardHealth struct {
	Addr  string // as the cluster names it
	Slots int    // how many of the 16,384 hash slots it has

	State     State
	Writable  bool
	Tracking  bool
	Since     time.Time
	LastError error
}
