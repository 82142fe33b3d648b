package holdfast

import "sync/atomic"

// Stats counts since New, except for the gauges, which tell the present.
// Counters only grow. Reading them costs a few microseconds and no I/O.
type Stats struct {
	// Reads, by the tier that answered. A read of n keys counts n times.
	LocalHits   uint64
	RemoteHits  uint64
	JournalHits uint64
	StaleHits   uint64 // of LocalHits: served past their TTL
	DoubtHits   uint64 // of LocalHits: served although Redis could not confirm them
	Misses      uint64
	Undecodable uint64 // of the hits: what a Typed could not decode, a miss to its caller

	// Loads: calls of a loader, those who waited for one that another had begun,
	// and failures; ErrNotFound is none.
	Loads          uint64
	LoadsShared    uint64
	LoadErrors     uint64
	NegativeHits   uint64 // answered with a remembered ErrNotFound
	EarlyRefreshes uint64 // of Loads: begun before the value's end
	LeaseWaits     uint64 // loads that waited for another process

	// The link.
	BreakerOpens    uint64 // a closed circuit opened
	DialAttempts    uint64
	Timeouts        uint64 // calls that used up Options.Timeout
	BulkheadRefused uint64 // calls that found no room among those in flight
	Isolated        uint64 // commands that were lost alone: see DESIGN, Isolation
	HooksDropped    uint64

	// The journal.
	JournalKeys  int   // gauge
	JournalBytes int64 // gauge
	Journaled    uint64
	Restored     uint64 // keys that New found in Journal.Dir
	Replayed     uint64
	Superseded   uint64 // another client wrote during the outage
	Downgraded   uint64 // sets turned into deletes: see DropDowngraded
	Refused      uint64 // ErrJournalFull
	Rejected     uint64 // sets that Redis refused for themselves for long, or hung up on: they became deletes
	Held         uint64 // entries that Redis refused for themselves; see Cache.Held
	HeldKeys     int    // gauge: of JournalKeys, those that are held now
	Discarded    uint64 // by Cache.Discard

	// The local tier.
	LocalBytes     int64 // gauge, with about 250 bytes of bookkeeping an entry
	LocalEntries   int64 // gauge
	LocalEvicted   uint64
	LocalDropped   uint64 // entries not kept because too many came at once
	FillsDiscarded uint64 // reads of Redis that a write overtook

	// Coherence.
	Invalidations uint64 // keys of which a server told that they changed
	StreamLosses  uint64 // how often what a server vouched for was put in doubt
}

// counters are the ones that are off the hot path.
type counters struct {
	remoteHits, journalHits, staleHits, doubtHits, misses atomic.Uint64

	undecodable, batchHits, dials, timeouts, bulkheadRefused, hooksDropped atomic.Uint64

	journaled, restored, replayed, superseded, downgraded, refused, rejected, held, discarded atomic.Uint64

	loads, loadsShared, loadErrors, negativeHits, earlyRefreshes, leaseWaits atomic.Uint64

	fillsDiscarded, invalidations, streamLosses, isolated atomic.Uint64
}
