// Package wal keeps a map of keys to payloads in an append-only file, so that the map
// survives the process. It is the crash file of an outage journal. It knows nothing of
// Redis, and a payload is opaque bytes to it.
//
// The map itself belongs to the caller and lives in memory. The caller passes every
// change to the [Log]. The next [Open] hands the map back. [Log.Compact] gets the whole
// map, so that the history of changes can be removed.
//
// # Promises
//
//   - An acknowledged record is there at the next Open: after the death of the process
//     with any [SyncPolicy], after the death of the machine with [SyncAlways].
//   - A record that was not acknowledged, because the write returned an error or did not
//     return, may be there or not. It is never there in part.
//   - Of the records of one key the one with the highest number wins, wherever it stands.
//     Numbers count within one run, from an Open to its Close or crash. Records of an
//     earlier run are older than all records of this one.
//   - No damage makes Open fail or guess. A record that a write left unfinished at the
//     very end is reported and ignored. Any other damage is reported, too; the records
//     before it and those of other files are used, and the file is renamed, never
//     overwritten and never deleted. A file of a newer format version with a sound header
//     is no damage: Open returns [Newer] and changes nothing.
//   - After an error of the disk nothing is written until Compact has begun: a record
//     behind a half-written one could not be found.
//   - A stalled disk does not block a caller that waits with [Pending.Start] and gives up
//     with [Log.Late], and the memory that collects behind it is bounded.
//   - [Log.Check] notices a directory that was removed, replaced or changed while a Log
//     is open. The next Compact takes the directory again and writes everything anew.
//     Files that belong to another Log by then are not touched.
//   - Open reports recovered data that may be out of date: [Report.Doubt]. That is the
//     case after a failed write, after damage, and after the death of a machine unless
//     every write was forced to the disk.
//
// # Files
//
// A directory holds
//
//	LOCK                                   kept locked while a Log is open, like the directory itself
//	TRUSTED                                the marker: the other files are not out of date
//	TRUSTED.tmp                            an unfinished marker; overwritten
//	journal-0000000000000001.log           a log segment: records in the order in which they were written
//	journal-0000000000000004.snap          a snapshot: the whole map; replaces every lower number
//	journal-0000000000000004.snap.tmp      an unfinished snapshot; removed
//	journal-0000000000000003.log.damaged-1 set aside; not read any more
//
// The number, in hexadecimal, grows from file to file. A log segment is created by the
// first record that goes into it. A snapshot gets its number when its making begins.
// Records from before that moment are in files with a lower number, later records in
// files with a higher one. The map is read a little later still, so a snapshot may hold
// newer states than the records that follow it, and the numbers of the records decide.
//
// # Doubt
//
// The marker exists exactly while the files can be trusted. Its absence is the warning,
// not its presence, because a full disk lets a file be removed when no new one can be
// created. Open writes the marker before anything else if the directory is new or
// trusted. The marker is removed as soon as a write fails, before the caller gets the
// error, and by an Open that finds the data suspect. It is written again by a Compact
// after which [Log.Err] is nil, for then the caller has supplied the current state. The
// Compact with which Open repairs damage does not count, because its data come from the
// files.
//
// A directory that has files but no marker, or an invalid one, is suspect. So is a
// directory whose marker says that it was not closed, was written with another policy
// than [SyncAlways], and belongs to another boot of the machine. On systems other than
// Linux a boot has no identifier, and the death of the machine is not noticed.
//
// The marker of a closed Log lists the files and where they end. A listed file that is
// shorter was cut since and is damaged; one that does not exist was removed and is
// missing. The successor of a segment says that, too, but the last segment has none. A
// marker that is not of a closed Log has no list. Then a cut of the last segment between
// two records is not noticed.
//
// Three things can go unnoticed:
//
//   - The marker cannot be removed from a disk that became read-only. The Log reports
//     that to Options.Logf and tries again at the next Compact and at Close. If the
//     process dies before one of them succeeds, the next Open takes the files for the
//     latest.
//   - The same happens if the directory could not be forced to the disk after the
//     removal, and the machine dies.
//   - A directory from which all files were removed is taken for a new one.
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
// An end is the last record of a snapshot, and of nothing else. A snapshot without one is
// damaged.
//
// The header of a segment records where the previous segment ends. So the remains of a
// failed write do no harm if they cannot be cut off, and a segment that became shorter is
// noticed even if it was cut between two records. The last segment has no successor, and
// only there an unfinished record is taken for the trace of a crash: it reaches over the
// end of the file, or is zero from some offset on, and no sound record is behind it.
//
// In all later versions a header and a marker begin with magic, version and checksum, and
// the checksum covers the same bytes as here. So a newer file can be told from a damaged
// one.
//
// The marker has version 2:
//
//	 0  8  "hfwaltru"
//	 8  4  version
//	12  4  CRC-32C of bytes 0-11 and of all from 16 on
//	16  1  policy: 0 none, 1 interval, 2 always
//	17  1  0 open, 1 closed
//	18  1  length of the boot identifier, at most 64; 0 if not known
//	19     the boot identifier
//	       if closed, of each file: number (8), 0 log or 1 snapshot (1), where it ends (8)
//
// In version 1 the identifier begins at 18, without its length, and ends with the file,
// and there is no list.
package wal
