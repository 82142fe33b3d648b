package holdfast

import (
	"iter"
	"reflect"
	"sync/atomic"
	"time"

	"github.com/holdfast-cache/holdfast/internal/latency"
	"github.com/holdfast-cache/holdfast/internal/link"
)

// Stats is a snapshot of a Cache's counters since New, and of its gauges, which show the
// present. Counters only grow. All lists the fields with their units.
//
// A read is one key that is asked for: by Get, Lookup, GetMany, GetOrLoad, GetOrLoadMany or
// GetOrLoadWith of a Cache or a Typed, by GET or MGET of Client, or by another read command of Client
// whose reply the first tier may keep (see Cache.Client; with DoCache, or with Local.CacheDo). Each
// read ends in exactly one of the nine results from LocalHits to ReadErrors, so their sum is the
// number of reads. A call that is turned away at its beginning is no read: ErrClosed, a context that
// has ended, a nil loader, an invalid TTL, invalid LoadOptions. TTL, EXISTS and Refresh are no reads.
// GetMany and MGET count a key as often as it is named, GetOrLoadMany counts it once.
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
	Isolated        uint64 // Commands isolated because the connection broke under each alone.
	HooksDropped    uint64 // Hook calls and log lines dropped: 256 were waiting already.

	JournalKeys  int    // Keys in the journal now.
	JournalBytes int64  // Bytes of the keys and values in the journal now.
	Journaled    uint64 // Writes that were given to the journal, refused ones among them.
	Restored     uint64 // Keys that New found in Journal.Dir.
	Replayed     uint64 // Writes of the journal that Redis has.
	Superseded   uint64 // Writes given up because another client wrote the key.
	Downgraded   uint64 // Sets that became deletes, for a reason listed at DropDowngraded.
	Refused      uint64 // Writes refused with ErrJournalFull.
	Rejected     uint64 // Sets that Redis refused and that became deletes; see DropRejected.
	Held         uint64 // Writes held because Redis refused them; see Cache.Held.
	HeldKeys     int    // Keys of JournalKeys whose write is held now.
	Discarded    uint64 // Held writes given up by Cache.Discard.

	LocalBytes     int64  // Bytes in the local tier now, bookkeeping included.
	LocalEntries   int64  // Entries in the local tier now.
	LocalEvicted   uint64 // Entries that the local tier evicted or did not admit.
	LocalDropped   uint64 // Entries not kept because too many came at once.
	FillsDiscarded uint64 // Answers of Redis not kept: the key or its epoch changed.

	Invalidations uint64 // Keys that a server reported as changed.
	StreamLosses  uint64 // Losses of an invalidation stream: copies became suspect.
}

// counters are the counters that have no better place. A local hit touches none of them: the
// call gate (inflight.Gate) counts it on its way out. A counter is added with a field of
// Stats, a row of statTable, a field here or, if the links count it, of link.Counters, and the
// line that counts. A new result of a read also goes into Cache.counted and the nine results
// of Stats and README.md; if it is answered locally, into localAnswers too, or the link rests
// while it is used.
type counters struct {
	link.Counters

	// batchHits counts the LocalHits that the call gate does not: those of calls of many keys,
	// and of reads that found a fresh copy on a second look.
	batchHits atomic.Uint64
	// asides counts the TTL and EXISTS of Client that a fresh copy answered: no reads, but
	// a use of the link.
	asides atomic.Uint64

	doubtHits, staleHits, journalHits, remoteHits atomic.Uint64

	loaderHits, negativeHits, misses, readErrors atomic.Uint64

	undecodable, loads, loadsShared, loadErrors, earlyRefreshes, leaseWaits atomic.Uint64

	breakerOpens, hooksDropped atomic.Uint64

	journaled, restored, replayed, superseded, downgraded atomic.Uint64

	refused, rejected, held, discarded atomic.Uint64

	fillsDiscarded atomic.Uint64

	loadTook, leaseTook latency.Histogram
}

// statSource is the source of a snapshot: the counters, and the numbers that other parts keep.
type statSource struct {
	*counters

	tierHits     uint64 // local hits that the local tier counted
	localEvicted uint64
	localDropped uint64

	journalKeys  int64
	journalBytes int64
	heldKeys     int64
	localBytes   int64
	localEntries int64
}

// statRow describes the field of Stats of the same index.
type statRow struct {
	name, unit string
	gauge      bool
	help       string // the field's comment
	read       func(*statSource) uint64
}

// statTable has a row for each field of Stats, in the order of the fields.
var statTable = [...]statRow{
	{"LocalHits", "reads", false, "Reads answered by a fresh local copy.",
		func(r *statSource) uint64 { return r.tierHits + r.batchHits.Load() }},
	{"DoubtHits", "reads", false, "Reads answered by a local copy that Redis could not confirm.",
		func(r *statSource) uint64 { return r.doubtHits.Load() }},
	{"StaleHits", "reads", false, "Reads answered by a local copy past its TTL.",
		func(r *statSource) uint64 { return r.staleHits.Load() }},
	{"JournalHits", "reads", false, "Reads answered by a write that waits in the journal.",
		func(r *statSource) uint64 { return r.journalHits.Load() }},
	{"RemoteHits", "reads", false, "Reads answered by Redis.",
		func(r *statSource) uint64 { return r.remoteHits.Load() }},
	{"LoaderHits", "reads", false, "Reads answered by the value that a loader returned.",
		func(r *statSource) uint64 { return r.loaderHits.Load() }},
	{"NegativeHits", "reads", false, "Reads answered by a remembered ErrNotFound.",
		func(r *statSource) uint64 { return r.negativeHits.Load() }},
	{"Misses", "reads", false, "Reads that ended with ErrMiss, or with a loader's ErrNotFound.",
		func(r *statSource) uint64 { return r.misses.Load() }},
	{"ReadErrors", "reads", false, "Reads that ended with another error.",
		func(r *statSource) uint64 { return r.readErrors.Load() }},
	{"Undecodable", "values", false, "Values found that a Typed could not decode.",
		func(r *statSource) uint64 { return r.undecodable.Load() }},

	{"Loads", "loads", false, "Calls of a loader.",
		func(r *statSource) uint64 { return r.loads.Load() }},
	{"LoadsShared", "waits", false, "Reads that waited for a load that another call had begun.",
		func(r *statSource) uint64 { return r.loadsShared.Load() }},
	{"LoadErrors", "loads", false, "Loads that failed; ErrNotFound is no failure.",
		func(r *statSource) uint64 { return r.loadErrors.Load() }},
	{"EarlyRefreshes", "loads", false, "Loads begun before the end of the copy's TTL.",
		func(r *statSource) uint64 { return r.earlyRefreshes.Load() }},
	{"LeaseWaits", "loads", false, "Loads that waited for another process.",
		func(r *statSource) uint64 { return r.leaseWaits.Load() }},

	{"BreakerOpens", "opens", false, "Changes of the circuit from closed to open.",
		func(r *statSource) uint64 { return r.breakerOpens.Load() }},
	{"DialAttempts", "dials", false, "Attempts to connect to Redis or a sentinel.",
		func(r *statSource) uint64 { return r.Dials.Load() }},
	{"Timeouts", "calls", false, "Calls that used up Options.Timeout.",
		func(r *statSource) uint64 { return r.Timeouts.Load() }},
	{"BulkheadRefused", "calls", false, "Calls refused because too many were in flight.",
		func(r *statSource) uint64 { return r.BulkheadRefused.Load() }},
	{"Isolated", "commands", false, "Commands isolated because the connection broke under each alone.",
		func(r *statSource) uint64 { return r.Isolated.Load() }},
	{"HooksDropped", "events", false, "Hook calls and log lines dropped: 256 were waiting already.",
		func(r *statSource) uint64 { return r.hooksDropped.Load() }},

	{"JournalKeys", "keys", true, "Keys in the journal now.",
		func(r *statSource) uint64 { return gaugeValue(r.journalKeys) }},
	{"JournalBytes", "bytes", true, "Bytes of the keys and values in the journal now.",
		func(r *statSource) uint64 { return gaugeValue(r.journalBytes) }},
	{"Journaled", "writes", false, "Writes that were given to the journal, refused ones among them.",
		func(r *statSource) uint64 { return r.journaled.Load() }},
	{"Restored", "keys", false, "Keys that New found in Journal.Dir.",
		func(r *statSource) uint64 { return r.restored.Load() }},
	{"Replayed", "writes", false, "Writes of the journal that Redis has.",
		func(r *statSource) uint64 { return r.replayed.Load() }},
	{"Superseded", "writes", false, "Writes given up because another client wrote the key.",
		func(r *statSource) uint64 { return r.superseded.Load() }},
	{"Downgraded", "writes", false, "Sets that became deletes, for a reason listed at DropDowngraded.",
		func(r *statSource) uint64 { return r.downgraded.Load() }},
	{"Refused", "writes", false, "Writes refused with ErrJournalFull.",
		func(r *statSource) uint64 { return r.refused.Load() }},
	{"Rejected", "writes", false, "Sets that Redis refused and that became deletes; see DropRejected.",
		func(r *statSource) uint64 { return r.rejected.Load() }},
	{"Held", "writes", false, "Writes held because Redis refused them; see Cache.Held.",
		func(r *statSource) uint64 { return r.held.Load() }},
	{"HeldKeys", "keys", true, "Keys of JournalKeys whose write is held now.",
		func(r *statSource) uint64 { return gaugeValue(r.heldKeys) }},
	{"Discarded", "writes", false, "Held writes given up by Cache.Discard.",
		func(r *statSource) uint64 { return r.discarded.Load() }},

	{"LocalBytes", "bytes", true, "Bytes in the local tier now, bookkeeping included.",
		func(r *statSource) uint64 { return gaugeValue(r.localBytes) }},
	{"LocalEntries", "entries", true, "Entries in the local tier now.",
		func(r *statSource) uint64 { return gaugeValue(r.localEntries) }},
	{"LocalEvicted", "entries", false, "Entries that the local tier evicted or did not admit.",
		func(r *statSource) uint64 { return r.localEvicted }},
	{"LocalDropped", "entries", false, "Entries not kept because too many came at once.",
		func(r *statSource) uint64 { return r.localDropped }},
	{"FillsDiscarded", "fills", false, "Answers of Redis not kept: the key or its epoch changed.",
		func(r *statSource) uint64 { return r.fillsDiscarded.Load() }},

	{"Invalidations", "keys", false, "Keys that a server reported as changed.",
		func(r *statSource) uint64 { return r.Invalidations.Load() }},
	{"StreamLosses", "losses", false, "Losses of an invalidation stream: copies became suspect.",
		func(r *statSource) uint64 { return r.StreamLosses.Load() }},
}

// gaugeValue is a gauge that changes while it is read, and may be below zero for a moment.
func gaugeValue(n int64) uint64 { return uint64(max(n, 0)) }

// snapshot reads every row.
func (r *statSource) snapshot() Stats {
	var s Stats
	fields := reflect.ValueOf(&s).Elem()
	for i := range statTable {
		field, n := fields.Field(i), statTable[i].read(r)
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

// Minus returns the difference between two snapshots of one Cache: each counter, which is
// each uint64 field, less its value in earlier, and each gauge, which is any other field,
// as it is in s. A counter that is less than in earlier, because the snapshots are in the
// wrong order or of two Caches, gives 0.
func (s Stats) Minus(earlier Stats) Stats {
	now, before := reflect.ValueOf(&s).Elem(), reflect.ValueOf(earlier)
	for i := range now.NumField() {
		if field := now.Field(i); field.Kind() == reflect.Uint64 {
			n := field.Uint()
			field.SetUint(n - min(n, before.Field(i).Uint()))
		}
	}
	return s
}

// All yields every field of s, in the order of the fields.
func (s Stats) All() iter.Seq[Stat] {
	return func(yield func(Stat) bool) {
		fields := reflect.ValueOf(s)
		for i, about := range statTable {
			st := Stat{Name: about.name, Help: about.help, Unit: about.unit, Gauge: about.gauge}
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

// Latency has the numbers of durations since New by their length, in exponential buckets. It is a
// snapshot.
type Latency struct {
	// Counts has the number of durations of each bucket. The nth bucket ends with Bound(n), the
	// last one has all that are longer. These are the buckets of an
	// exponential histogram of OpenTelemetry with scale 2, from the index -80 on, and of a native
	// histogram of Prometheus with schema 2.
	Counts [latency.Buckets]uint64
	// Sum is the sum of all durations.
	Sum time.Duration
}

// Bound returns the longest duration of the nth bucket of any Latency: 2^((n-80)/4) seconds.
func (*Latency) Bound(n int) time.Duration { return latency.Bound(n) }

// Count returns the number of durations.
func (l *Latency) Count() uint64 { return (*latency.Snapshot)(l).Count() }

// Quantile returns the upper bound of the bucket that has the quantile q, from 0 to 1; 0 if there
// are no durations. It is at most 19% above the true quantile.
func (l *Latency) Quantile(q float64) time.Duration { return (*latency.Snapshot)(l).Quantile(q) }

// Minus returns the durations that came after an earlier snapshot of the same Cache.
func (l Latency) Minus(earlier Latency) Latency {
	return Latency(latency.Snapshot(l).Minus(latency.Snapshot(earlier)))
}

// Latencies has how long the work of a Cache took. A local hit is not measured.
type Latencies struct {
	// Of pipelines that were sent to Redis, until the last reply or until they were given up: with
	// reads, with writes of Set, Delete and the like, with scripts, and with other commands of
	// Client, by the first command of the pipeline. A pipeline may have up to 256 commands. Commands
	// on dedicated connections do not count.
	Read, Write, Script, Passed Latency

	Probe  Latency // Of the probes of the supervisor.
	Replay Latency // Of pipelines of the replay.
	Dial   Latency // Of connects that succeeded, with their handshakes.
	Load   Latency // Of calls of a loader.
	Lease  Latency // Of waits for a load of another process.
}

// latencies reads every histogram.
func (n *counters) latencies() (l Latencies) {
	for _, part := range []struct {
		to   *Latency
		from *latency.Histogram
	}{
		{&l.Read, &n.Took[link.KindRead]}, {&l.Write, &n.Took[link.KindWrite]}, {&l.Script, &n.Took[link.KindScript]},
		{&l.Passed, &n.Took[link.KindPassed]}, {&l.Probe, &n.Took[link.KindProbe]}, {&l.Replay, &n.Took[link.KindReplay]},
		{&l.Dial, &n.Dialled}, {&l.Load, &n.loadTook}, {&l.Lease, &n.leaseTook},
	} {
		part.from.AddTo((*latency.Snapshot)(part.to))
	}
	return l
}

// localAnswers is the number of answers of the local tier, apart from those that the call
// gate counts. It grows while the Cache is in use, even if Redis is asked nothing.
func (n *counters) localAnswers() uint64 {
	return n.batchHits.Load() + n.asides.Load() + n.doubtHits.Load() + n.staleHits.Load()
}
