package link

import (
	"context"
	"crypto/sha1"
	"encoding/hex"
	"sync/atomic"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/group"
	"github.com/holdfast-cache/holdfast/internal/latency"
	"github.com/redis/rueidis"
)

// Config has the knowledge that the links of a Cache share. The fields up to AllowAddress are options:
// Topology is Options.Mode, the back-offs are those of Options.Breaker, and the others have the
// names of theirs.
type Config struct {
	Topology     Topology
	Timeout      time.Duration
	MinBackoff   time.Duration
	MaxBackoff   time.Duration
	Redis        rueidis.ClientOption
	AllowAddress func(addr string) bool

	// Silence is how long a tracking server may be silent until no copy is fresh.
	Silence time.Duration
	// ProbeKey is the key of the write probe.
	ProbeKey string
	// FirstSession is the number before that of the first session.
	FirstSession uint64

	Tracking TrackedKeys
	Script   ScriptCheck

	// NewBreaker makes the circuit breaker of a link, with an open circuit. opened is called
	// whenever the circuit opens, under the breaker's lock, and so before NewBreaker has returned; it
	// does not block.
	NewBreaker func(opened func()) Breaker

	Clock   clock.Clock
	Stats   *Counters
	Life    context.Context // ends with the Cache
	Workers *group.Group    // the goroutines of the links
	Closed  func() bool     // reports whether the Cache is closed
}

// Counters count the events on the links.
type Counters struct {
	Dials           atomic.Uint64 // attempts to connect to Redis or a sentinel
	Timeouts        atomic.Uint64 // calls that used up the budget
	BulkheadRefused atomic.Uint64 // calls refused because too many were in flight
	Isolated        atomic.Uint64 // commands isolated
	Invalidations   atomic.Uint64 // keys that a server reported as changed
	StreamLosses    atomic.Uint64 // losses of an invalidation stream

	Took    [Kinds]latency.Histogram // pipelines that were sent, from a place in the bulkhead to the replies
	Dialled latency.Histogram        // attempts to connect, with the handshake, that succeeded
}

// Kind is the kind of the first command of a pipeline.
type Kind uint8

const (
	KindRead   Kind = iota // GET, MGET, and reads of the cached replies
	KindWrite              // SET, DEL and the other writes that the tiers model
	KindScript             // scripts: of leases, of loads, and of callers
	KindPassed             // other commands of callers
	KindProbe
	KindReplay
	Kinds = iota
)

func (k Kind) String() string {
	return [...]string{"read", "write", "script", "passed", "probe", "replay"}[k]
}

// kindOf returns the kind of a command of a caller or of the tiers.
func kindOf(cmd rueidis.Completed) Kind {
	switch name := cmd.Commands()[0]; name {
	case "SET", "SETEX", "PSETEX", "DEL", "UNLINK", "GETDEL", "EXPIRE", "PEXPIRE", "EXPIREAT", "PEXPIREAT", "PERSIST":
		return KindWrite
	case "EVAL", "EVALSHA", "EVAL_RO", "EVALSHA_RO", "FCALL", "FCALL_RO":
		return KindScript
	}
	if cmd.IsReadOnly() {
		return KindRead
	}
	return KindPassed
}

// Watcher is told the news of the servers. Its methods do not block and are safe from
// any goroutine: most run on the goroutine that reads the connection.
type Watcher interface {
	// Invalidated handles an invalidation of key. serving: it came over the session that serves.
	Invalidated(key string, serving bool)
	// Changed passes on the keys of an invalidation as they came; nil: any key may have changed.
	Changed(keys []rueidis.RedisMessage)
	// Emptied handles a flush of some database: journaled sets among the owned keys must be
	// compared. Local copies are not its task. It reports whether the replayer must look at the
	// journal.
	Emptied(owns func(key string) bool) (replay bool)
	// StateChanged handles a change of state. From and To are equal for a first attempt that failed
	// for a new cause.
	StateChanged(Change)
	// Untracked: the server at addr does not report changes. Scriptless: it does not run the
	// replay's script. Isolated: it closes the connection at commands of the key.
	Untracked(addr, why string)
	Scriptless(addr string, why error)
	Isolated(key, addr string)
}

// Demand says how much Redis is needed. Its methods do not block and are safe from any goroutine.
type Demand interface {
	// Wanted reports that Redis is needed without a call: for the journal or a listener.
	Wanted() bool
	// Hits counts the answers of the local tier. They are uses of Redis, too: they are fresh only
	// because the links receive invalidations.
	Hits() uint64
	// Journaling reports whether the journal holds any key.
	Journaling() bool
	// Copies is a lower bound for the number of local copies of keys in the server's database.
	Copies() int64
}

// Replayer replays the journaled writes of a link's keys.
type Replayer interface {
	Run(ctx context.Context) // until ctx ends
	Wake()                   // looks for writes to replay; does not block
}

// Breaker decides whether the gate may be open.
type Breaker interface {
	Success()                           // a call was answered
	Failure(err error)                  // a call was not answered, or refused to be served
	Trip()                              // opens a closed circuit at once
	Probe() (done func(error), ok bool) // asks for the one attempt that may close the circuit
	WhileClosed(f func()) (closed bool) // runs f if the circuit is closed, and keeps it closed meanwhile
}

// State is the state of a link; see Link.
type State uint8

const (
	Connecting State = iota
	Up
	ReadOnly
	Down
	Closed
)

// Change is a change of state.
type Change struct {
	From, To State
	Shard    string // the node's address in a cluster
	At       time.Time
	Err      error // nil for Up and Closed
}

// Health is the last known state of a server, or of a cluster with its Shards.
type Health struct {
	State     State
	Writable  bool
	Tracking  bool
	Since     time.Time
	ProbedAt  time.Time
	LastError error
	Lacks     []string

	Addr   string
	Slots  int
	Shards []Health
}

// Topology says how the servers are found. Its values have the order of Options.Mode.
type Topology uint8

const (
	Auto Topology = iota // the server says whether it is a cluster's node
	Standalone
	Sentinel
	ClusterOnly
)

func (t Topology) String() string {
	return [...]string{"auto", "standalone", "sentinel", "cluster"}[t]
}

// TrackedKeys are the keys of which the server reports changes: those that were read, or those that
// begin with one of the prefixes, or none. Prefixes count only where Reads is false.
type TrackedKeys struct {
	Reads    bool
	Prefixes []string
}

// Script is a Lua script and the digest by which a server knows it.
type Script struct{ Text, Digest string }

func NewScript(text string) Script {
	sum := sha1.Sum([]byte(text))
	return Script{Text: text, Digest: hex.EncodeToString(sum[:])}
}

// ScriptCheck is the run of a script by which the greeting checks the permission.
type ScriptCheck struct {
	Script
	Args []string // with which it does nothing
	// Check returns the error of the reply to such a run.
	Check func(rueidis.RedisResult) error
}
