package holdfast

import (
	"errors"
	"iter"
	"reflect"
	"sync/atomic"
)

// Stats is a snapshot of a Cache's counters since New, and of its gauges, which show the
// present. Counters only grow. All lists the fields with their units.
//
// A read is one key that is asked for: by Get, Lookup, GetMany, GetOrLoad, GetOrLoadMany or
// Load of a Cache or a Typed, or by GET or MGET of Client. Each read ends in exactly one of
// the nine results from LocalHits to ReadErrors, so their sum is the number of reads. A call
// that is turned away at its beginning is no read: ErrClosed, a context that has ended, a
// nil loader, an invalid TTL, invalid LoadOptions. TTL and EXISTS are no reads. GetMany and
// MGET count a key as often as it is named, GetOrLoadMany counts it once.
type Stats struct {
	LocalHits    uint64 // Reads answered by a fresh local copy.
	DoubtHits    uint64 // Reads answered by a local copy that Redis could not confirm.
	StaleHits    uint64 // Reads answered by a local copy past its TTL.
	JournalHits  uint64 // Reads answered by a write that waits in the journal.
	RemoteHits   uint64 // Reads answered by Redis.
	LoaderHits   uint64 // Reads answered by the value that a loader returned.
	NegativeHits uint64 // Reads answered by a remembered ErrNotFound.
	Misses       uint64 // Reads that ended with ErrMiss, or with a loader's ErrNotFound.
	ReadErrors   uint64 // Reads that ended with another error.
	Undecodable  uint64 // Values found that a Typed could not decode.

	Loads          uint64 // Calls of a loader.
	LoadsShared    uint64 // Reads that waited for a load that another call had begun.
	LoadErrors     uint64 // Loads that failed; ErrNotFound is no failure.
	EarlyRefreshes uint64 // Loads begun before the end of the copy's TTL.
	LeaseWaits     uint64 // Loads that waited for another process.

	BreakerOpens    uint64 // Changes of the circuit from closed to open.
	DialAttempts    uint64 // Attempts to connect to Redis or a sentinel.
	Timeouts        uint64 // Calls that used up Options.Timeout.
	BulkheadRefused uint64 // Calls refused because too many were in flight.
	Isolated        uint64 // Commands isolated: the connection broke while they were alone on it.
	HooksDropped    uint64 // Hook calls and log lines dropped: 256 were waiting already.

	JournalKeys  int    // Keys in the journal now.
	JournalBytes int64  // Bytes of the keys and values in the journal now.
	Journaled    uint64 // Writes that were given to the journal, refused ones among them.
	Restored     uint64 // Keys that New found in Journal.Dir.
	Replayed     uint64 // Writes of the journal that Redis has.
	Superseded   uint64 // Writes of the journal given up: another client wrote the key meanwhile.
	Downgraded   uint64 // Sets that became deletes, for a reason listed at DropDowngraded.
	Refused      uint64 // Writes refused with ErrJournalFull.
	Rejected     uint64 // Sets that became deletes because Redis did not take them; see DropRejected.
	Held         uint64 // Writes of the journal held because Redis refused them; see Cache.Held.
	HeldKeys     int    // Keys of JournalKeys whose write is held now.
	Discarded    uint64 // Held writes given up by Cache.Discard.

	LocalBytes     int64  // Bytes in the local tier now, with about 250 of bookkeeping an entry.
	LocalEntries   int64  // Entries in the local tier now.
	LocalEvicted   uint64 // Entries that the local tier evicted or did not admit.
	LocalDropped   uint64 // Entries not kept because too many came at once.
	FillsDiscarded uint64 // Answers of Redis not kept because the key or its epoch had changed.

	Invalidations uint64 // Keys that a server reported as changed.
	StreamLosses  uint64 // Losses of an invalidation stream, each of which made copies suspect.
}

// counters are the counters that have no better place. A local hit touches none of them:
// the call guard counts it on its way out. A counter is added with three lines of this file
// (a field of Stats, one here and a row of statTable) and the line that counts.
type counters struct {
	// batchHits counts the LocalHits that the call guard does not: those of calls of many
	// keys, and of reads that found a fresh copy on a second look.
	batchHits atomic.Uint64
	// asides counts the TTL and EXISTS of Client that a fresh copy answered: no reads, but
	// a use of the link.
	asides atomic.Uint64

	doubtHits, staleHits, journalHits, remoteHits, loaderHits, negativeHits, misses, readErrors atomic.Uint64

	undecodable, loads, loadsShared, loadErrors, earlyRefreshes, leaseWaits atomic.Uint64

	dials, timeouts, bulkheadRefused, isolated, hooksDropped atomic.Uint64

	journaled, restored, replayed, superseded, downgraded, refused, rejected, held, discarded atomic.Uint64

	fillsDiscarded, invalidations, streamLosses atomic.Uint64
}

// statRow describes the field of Stats of the same index.
type statRow struct {
	name, unit string
	gauge      bool
	help       string // the field's comment
	read       func(*Cache) uint64
}

// statTable has a row for each field of Stats, in the order of the fields.
var statTable = [...]statRow{
	{"LocalHits", "reads", false, "Reads answered by a fresh local copy.",
		func(c *Cache) uint64 { return c.fence.hits() + c.stats.batchHits.Load() }},
	{"DoubtHits", "reads", false, "Reads answered by a local copy that Redis could not confirm.",
		func(c *Cache) uint64 { return c.stats.doubtHits.Load() }},
	{"StaleHits", "reads", false, "Reads answered by a local copy past its TTL.",
		func(c *Cache) uint64 { return c.stats.staleHits.Load() }},
	{"JournalHits", "reads", false, "Reads answered by a write that waits in the journal.",
		func(c *Cache) uint64 { return c.stats.journalHits.Load() }},
	{"RemoteHits", "reads", false, "Reads answered by Redis.",
		func(c *Cache) uint64 { return c.stats.remoteHits.Load() }},
	{"LoaderHits", "reads", false, "Reads answered by the value that a loader returned.",
		func(c *Cache) uint64 { return c.stats.loaderHits.Load() }},
	{"NegativeHits", "reads", false, "Reads answered by a remembered ErrNotFound.",
		func(c *Cache) uint64 { return c.stats.negativeHits.Load() }},
	{"Misses", "reads", false, "Reads that ended with ErrMiss, or with a loader's ErrNotFound.",
		func(c *Cache) uint64 { return c.stats.misses.Load() }},
	{"ReadErrors", "reads", false, "Reads that ended with another error.",
		func(c *Cache) uint64 { return c.stats.readErrors.Load() }},
	{"Undecodable", "values", false, "Values found that a Typed could not decode.",
		func(c *Cache) uint64 { return c.stats.undecodable.Load() }},

	{"Loads", "loads", false, "Calls of a loader.",
		func(c *Cache) uint64 { return c.stats.loads.Load() }},
	{"LoadsShared", "waits", false, "Reads that waited for a load that another call had begun.",
		func(c *Cache) uint64 { return c.stats.loadsShared.Load() }},
	{"LoadErrors", "loads", false, "Loads that failed; ErrNotFound is no failure.",
		func(c *Cache) uint64 { return c.stats.loadErrors.Load() }},
	{"EarlyRefreshes", "loads", false, "Loads begun before the end of the copy's TTL.",
		func(c *Cache) uint64 { return c.stats.earlyRefreshes.Load() }},
	{"LeaseWaits", "loads", false, "Loads that waited for another process.",
		func(c *Cache) uint64 { return c.stats.leaseWaits.Load() }},

	{"BreakerOpens", "opens", false, "Changes of the circuit from closed to open.",
		func(c *Cache) uint64 { return c.breakerOpens() }},
	{"DialAttempts", "dials", false, "Attempts to connect to Redis or a sentinel.",
		func(c *Cache) uint64 { return c.stats.dials.Load() }},
	{"Timeouts", "calls", false, "Calls that used up Options.Timeout.",
		func(c *Cache) uint64 { return c.stats.timeouts.Load() }},
	{"BulkheadRefused", "calls", false, "Calls refused because too many were in flight.",
		func(c *Cache) uint64 { return c.stats.bulkheadRefused.Load() }},
	{"Isolated", "commands", false, "Commands isolated: the connection broke while they were alone on it.",
		func(c *Cache) uint64 { return c.stats.isolated.Load() }},
	{"HooksDropped", "events", false, "Hook calls and log lines dropped: 256 were waiting already.",
		func(c *Cache) uint64 { return c.stats.hooksDropped.Load() }},

	{"JournalKeys", "keys", true, "Keys in the journal now.",
		func(c *Cache) uint64 { return present(c.journal.keys.Load()) }},
	{"JournalBytes", "bytes", true, "Bytes of the keys and values in the journal now.",
		func(c *Cache) uint64 { return present(c.journal.bytes.Load()) }},
	{"Journaled", "writes", false, "Writes that were given to the journal, refused ones among them.",
		func(c *Cache) uint64 { return c.stats.journaled.Load() }},
	{"Restored", "keys", false, "Keys that New found in Journal.Dir.",
		func(c *Cache) uint64 { return c.stats.restored.Load() }},
	{"Replayed", "writes", false, "Writes of the journal that Redis has.",
		func(c *Cache) uint64 { return c.stats.replayed.Load() }},
	{"Superseded", "writes", false, "Writes of the journal given up: another client wrote the key meanwhile.",
		func(c *Cache) uint64 { return c.stats.superseded.Load() }},
	{"Downgraded", "writes", false, "Sets that became deletes, for a reason listed at DropDowngraded.",
		func(c *Cache) uint64 { return c.stats.downgraded.Load() }},
	{"Refused", "writes", false, "Writes refused with ErrJournalFull.",
		func(c *Cache) uint64 { return c.stats.refused.Load() }},
	{"Rejected", "writes", false, "Sets that became deletes because Redis did not take them; see DropRejected.",
		func(c *Cache) uint64 { return c.stats.rejected.Load() }},
	{"Held", "writes", false, "Writes of the journal held because Redis refused them; see Cache.Held.",
		func(c *Cache) uint64 { return c.stats.held.Load() }},
	{"HeldKeys", "keys", true, "Keys of JournalKeys whose write is held now.",
		func(c *Cache) uint64 { return present(c.journal.held.n.Load()) }},
	{"Discarded", "writes", false, "Held writes given up by Cache.Discard.",
		func(c *Cache) uint64 { return c.stats.discarded.Load() }},

	{"LocalBytes", "bytes", true, "Bytes in the local tier now, with about 250 of bookkeeping an entry.",
		func(c *Cache) uint64 { return c.whileOpen((*local).bytes) }},
	{"LocalEntries", "entries", true, "Entries in the local tier now.",
		func(c *Cache) uint64 { return c.whileOpen((*local).len) }},
	{"LocalEvicted", "entries", false, "Entries that the local tier evicted or did not admit.",
		func(c *Cache) uint64 { return c.local.evicted.Load() }},
	{"LocalDropped", "entries", false, "Entries not kept because too many came at once.",
		func(c *Cache) uint64 { return c.local.dropped.Load() }},
	{"FillsDiscarded", "fills", false, "Answers of Redis not kept because the key or its epoch had changed.",
		func(c *Cache) uint64 { return c.stats.fillsDiscarded.Load() }},

	{"Invalidations", "keys", false, "Keys that a server reported as changed.",
		func(c *Cache) uint64 { return c.stats.invalidations.Load() }},
	{"StreamLosses", "losses", false, "Losses of an invalidation stream, each of which made copies suspect.",
		func(c *Cache) uint64 { return c.stats.streamLosses.Load() }},
}

// present is a gauge that changes while it is read, and may be below zero for a moment.
func present(n int64) uint64 { return uint64(max(n, 0)) }

// breakerOpens is 0 without a Redis configured.
func (c *Cache) breakerOpens() uint64 {
	if c.routes == nil {
		return 0
	}
	return c.routes.opens()
}

// whileOpen reads a gauge of the local tier, 0 once the Cache is closed: ristretto must not
// be asked beside its Close.
func (c *Cache) whileOpen(gauge func(*local) int64) uint64 {
	l, open := c.fence.enter()
	defer l.leave()
	if !open {
		return 0
	}
	return present(gauge(c.local))
}

// Stats returns the counters and gauges. It does no I/O, does not block, and takes a few
// microseconds.
func (c *Cache) Stats() Stats {
	var s Stats
	fields := reflect.ValueOf(&s).Elem()
	for i := range statTable {
		field, n := fields.Field(i), statTable[i].read(c)
		if field.CanUint() {
			field.SetUint(n)
		} else {
			field.SetInt(int64(n))
		}
	}
	return s
}

// Stat is one field of Stats with its description, for exporters.
type Stat struct {
	Name  string // of the field: "LocalHits"
	Help  string // one sentence in English
	Unit  string // "reads", "bytes", ...; of the nine results of a read, and only of them, "reads"
	Gauge bool   // it shows the present; else it is a counter
	Value uint64
}

// All yields every field of s, in the order of the fields.
func (s Stats) All() iter.Seq[Stat] {
	return func(yield func(Stat) bool) {
		fields := reflect.ValueOf(s)
		for i, row := range statTable {
			st := Stat{Name: row.name, Help: row.help, Unit: row.unit, Gauge: row.gauge}
			if field := fields.Field(i); field.CanUint() {
				st.Value = field.Uint()
			} else {
				st.Value = uint64(field.Int())
			}
			if !yield(st) {
				return
			}
		}
	}
}

// counted counts the result of a read that the call guard did not count as a local hit. It
// is called once a read, where its caller's answer is known: a load asks the tiers, too, and
// several callers may wait for what it finds.
func (c *Cache) counted(e Entry, err error) {
	n := &c.stats
	switch {
	case err == ErrMiss:
		n.misses.Add(1)
	case err != nil && !errors.Is(err, ErrNotFound):
		n.readErrors.Add(1)
	case err != nil && e.Tier == Loader:
		n.misses.Add(1)
	case err != nil:
		n.negativeHits.Add(1)
	case e.Tier == Remote:
		n.remoteHits.Add(1)
	case e.Tier == Journal:
		n.journalHits.Add(1)
	case e.Tier == Loader:
		n.loaderHits.Add(1)
	case e.Stale:
		n.staleHits.Add(1)
	case e.Degraded:
		n.doubtHits.Add(1)
	default:
		n.batchHits.Add(1)
	}
}

// localAnswers counts what the local tier answered: it grows while the Cache is in use,
// even if Redis is asked nothing.
func (c *Cache) localAnswers() uint64 {
	n := &c.stats
	return c.fence.hits() + n.batchHits.Load() + n.asides.Load() + n.doubtHits.Load() + n.staleHits.Load()
}
