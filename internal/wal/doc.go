// Package wal keeps a map of keys to payloads in an append-only file, so that it
// survives the process: the crash file of an outage journal. It knows nothing of
// Redis, and a payload is bytes to it.
//
// The map itself is the caller's, and lives in memory. A [Log] is told of every
// change, hands the map back at the next [Open], and is given all of it by
// [Log.Compact], so that it can forget how it came to be.
//
// # Promises
//
//   - What was acknowledged is there at the next Open: after the death of the
//     process with any [SyncPolicy], after the death of the machine with
//     [SyncAlways].
//   - What was not acknowledged, because the write returned an error or did not
//     return, may be there or not. It is never there in part.
//   - Of the records of one key the one with the highest number wins, wherever it
//     stands. Numbers count within one run, from an Open to its Close or crash:
//     what an earlier run wrote is older than anything that this one writes.
//   - No damage makes Open fail or guess. A record that a write left unfinished at the
//     very end is told of and ignored. Any other damage is told of, the records
//     before it and those of other files are used, and the file is renamed, never
//     overwritten and never deleted. A file that a newer version has written, whose
//     header is sound, is no damage: Open returns [Newer] and changes nothing.
//   - After an error of the disk nothing is written until Compact has begun: a
//     record behind a half one could not be found.
//   - A disk that stands still holds nobody who waits with [Pending.Start] and gives up
//     with [Log.Late], and nothing gathers behind it without bound.
//   - A directory that is removed, replaced or changed while a Log is open is noticed by
//     [Log.Check]; the next Compact takes it again and writes everything anew. What
//     belongs to another Log by then is not touched.
//   - Where what is found may be out of date, Open says so: [Report.Doubt]. It is so
//     after a failed write, after damage, and after the death of a machine that had
//     not been told to force everything to the disk.
//
// # Files
//
// A directory holds
//
//	LOCK                                   kept locked while a Log is open, like the directory itself
//	TRUSTED                                the marker: the others are not out of date
//	TRUSTED.tmp                            a marker that was not finished; written over
//	journal-0000000000000001.log           records, in the order they were written
//	journal-0000000000000004.snap          the whole map; replaces every lower number
//	journal-0000000000000004.snap.tmp      a snapshot that was not finished; removed
//	journal-0000000000000003.log.damaged-1 set aside; ours no more
//
// The number, in hexadecimal, grows from file to file. A log segment is created by
// the first record that goes into it. A snapshot gets its number when its making
// begins: the records of that moment have a lower one and later records a higher
// one, while the map is read a little later still. So a snapshot may hold newer
// states than the records that follow it, and the numbers of the records decide.
//
// # Doubt
//
// The marker is there exactly while the files can be trusted. Its absence is the
// warning, and not its presence, because a disk that is full gives a file up where
// it takes no new one. It is written by the Open of a directory that is new or
// trusted, before anything else; removed as soon as a write fails, before its caller
// is told, and by an Open that is in doubt; and put back by a Compact after which
// [Log.Err] is nil, for then the caller has said how things are. The Compact with
// which Open repairs damage does not count: it knows no better than the files.
//
// A directory that has files and no marker, or one that makes no sense, is in doubt.
// So is one whose marker says that it was not closed, was written with another
// policy than [SyncAlways], and in another start of the machine. On systems other
// than Linux a start of the machine has no name, and its death is not noticed.
//
// The marker of a Log that was closed lists the files and where they end. One that is
// shorter or not there was cut or removed since, and is damaged or missing: the
// successor of a segment tells that, too, but the last segment has none. A marker that
// is not of a closed Log has no list, and what is cut from the last segment between two
// records is not noticed then.
//
// Three things can go unnoticed. A disk that became read-only does not give the
// marker up: the Log says so to Options.Logf and tries again at the next Compact and
// at Close; if the process dies before one of them succeeds, the next Open takes the
// files for the latest. So it does if the directory could not be forced to the disk
// after the removal, and the machine dies. And where nothing at all is left, the
// directory is taken for a new one: what is not there cannot be out of date.
//
// # Format, version 1
//
// Integers are little-endian. A file begins with 48 bytes:
//
//	 0  8  "hfwallog" or "hfwalsnp", log or snapshot
//	 8  4  version
//	12  4  CRC-32C of bytes 0-11 and 16-47
//	16  8  the file's number, as in its name
//	24  8  run: a number that is higher than that of every earlier run
//	32  8  number of the log segment before this one, 0 if not known
//	40  8  where that segment ends
//
// Records follow without a gap:
//
//	 0  4  length of all that follows the checksum, 13 bytes to 1 GiB
//	 4  4  CRC-32C of all that follows
//	 8  1  1 put, 2 drop, 3 end
//	 9  8  number; of an end, how many records there are before it
//	17  4  length of the key
//	21     key, payload
//
// An end is the last record of a snapshot, and of nothing else. A snapshot without
// one is damaged.
//
// Where a segment ends is told by the one that follows it. So what a failed write
// left behind does no harm if it cannot be cut off, and a segment that became
// shorter is noticed even where it was cut between two records. Only the last
// segment has nobody to tell, and only there an unfinished record is taken for the
// trace of a crash: it reaches over the end of the file, or is zero from somewhere
// on, and no sound record is behind it.
//
// In every version to come a header and a marker begin with magic, version and checksum,
// and the checksum covers what it covers here: so a newer file can be told from a damaged
// one.
//
// The marker has version 2:
//
//	 0  8  "hfwaltru"
//	 8  4  version
//	12  4  CRC-32C of bytes 0-11 and of all from 16 on
//	16  1  policy: 0 none, 1 interval, 2 always
//	17  1  0 open, 1 closed
//	18  1  length of the name of the start of the machine, at most 64; 0 if not known
//	19     the name
//	       if closed, of each file: number (8), 0 log or 1 snapshot (1), where it ends (8)
//
// In version 1 the name stands at 18, without its length, up to the end, and there is no
// list.
package wal
