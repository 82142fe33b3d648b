package wal

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
)

// segment is a segment or snapshot as it was found.
type segment struct {
	fileID
	regular    bool
	header     header
	reason     string // the fault of the header, or of the whole file
	newer      uint32 // the version, if a newer program has written it
	unreadable bool   // its contents are unknown
	size       int64
	ends       int64 // its end according to its successor or the marker; -1 if neither says
	last       bool  // the last log: the only one in which a crash leaves an unfinished record
	unborn     bool  // a crash left it without a complete header, and so without records

	good    int64 // where the last sound record ends
	records int
	fault   *fault // the fault behind the last sound record
	torn    bool   // the fault is the trace of a crash
}

func (s *segment) damaged() bool { return s.fault != nil && !s.torn }

// state is the latest known state of a key.
type state struct {
	key      string
	run, seq uint64
	at       int // the position of its last record in the order of reading
	payload  []byte
	dropped  bool // kept, because an older record may follow
}

// replayer reads a directory.
type replayer struct {
	fs       fileSystem
	scanner  scanner
	segments []*segment // in order
	last     *segment   // the last log, or nil
	others   []string   // unfinished snapshots
	marker   foundMarker
	base     uint64 // the snapshot that replaces all files with a lower number; 0 for none
	keys     map[string]*state
	records  int
	report   Report
}

// replay reads all files. It returns an error if the directory cannot be read, and *Newer
// for a file of a newer version.
func replay(fs fileSystem) (*replayer, error) {
	r := &replayer{fs: fs, keys: make(map[string]*state)}
	if err := r.find(); err != nil {
		return nil, err
	}
	if v := r.marker.newer; v > 0 {
		return nil, &Newer{File: markerName, Version: v, Known: markerVersion}
	}
	for _, s := range r.segments {
		if r.readHeader(s); s.newer > 0 {
			return nil, &Newer{File: s.name(), Version: s.newer, Known: version}
		}
	}
	r.connect()
	r.readBase()
	for _, s := range r.segments {
		switch {
		case s.id > r.base:
			r.read(s, func(rec record) bool { r.apply(s, rec); return true })
		case s.id < r.base || !s.snapshot:
			// The file is not needed, but its damage must be known before it is removed.
			r.read(s, func(record) bool { return true })
		}
	}
	r.findMissing()
	r.sumUp()
	return r, nil
}

// find lists the files of the journal.
func (r *replayer) find() error {
	entries, err := r.fs.list()
	if err != nil {
		return fmt.Errorf("wal: %w", err)
	}
	for _, e := range entries {
		if isUnfinished(e.name) && e.regular {
			r.others = append(r.others, e.name)
		}
		if e.name == markerName {
			r.marker = readMarker(r.fs, e.regular)
		}
		if file, ok := parseName(e.name); ok {
			r.segments = append(r.segments, &segment{fileID: file, regular: e.regular, ends: -1})
		}
	}
	slices.SortFunc(r.segments, func(a, b *segment) int { return a.compare(b.fileID) })
	return nil
}

func (r *replayer) readHeader(s *segment) {
	if s.reason = s.readHeader(r.fs); s.reason == "" && s.id >= maxID {
		s.reason = "an absurd number"
	}
}

func (s *segment) readHeader(fs fileSystem) (reason string) {
	if !s.regular {
		return "not a regular file" // opening one may block without a bound
	}
	f, err := fs.open(s.name())
	if err != nil {
		return fmt.Sprintf("cannot be opened: %v", err)
	}
	defer f.Close()
	if s.size, err = f.size(); err != nil {
		s.unreadable = true
		return fmt.Sprintf("cannot be read: %v", err)
	}
	b := make([]byte, min(headerSize, s.size))
	if _, err := readAt(f, b, 0); err != nil {
		s.unreadable = true
		return fmt.Sprintf("cannot be read: %v", err)
	}
	s.header, reason = parseHeader(b, s.fileID)
	s.newer = newerHeader(b, s.fileID)
	return reason
}

// connect sets where each log ends, from the header of its successor or from the marker
// that Close wrote. A log that the marker lists was complete.
func (r *replayer) connect() {
	logs := make(map[uint64]*segment)
	for _, s := range slices.Backward(r.segments) {
		end, whole := r.sealed()[s.fileID]
		if s.snapshot {
			continue
		}
		if r.last == nil {
			s.unborn = !whole && s.reason != "" && s.tornHeader(r.fs)
			s.last = !s.unborn
		}
		if s.last {
			r.last = s
		}
		if whole {
			s.ends, s.last = end, false
		}
		logs[s.id] = s
	}
	for _, s := range r.segments {
		if s.reason != "" || s.snapshot || s.header.prev.end < headerSize {
			continue
		}
		if before := logs[s.header.prev.id]; before != nil && before.id < s.id {
			before.ends = int64(min(s.header.prev.end, 1<<62))
		}
	}
}

// readBase reads the newest complete snapshot. An incomplete one is read later like a
// log, with the remaining files that it replaced.
func (r *replayer) readBase() {
	for _, s := range slices.Backward(r.segments) {
		if !s.snapshot {
			continue
		}
		r.read(s, func(rec record) bool { r.apply(s, rec); return true })
		if s.fault == nil {
			r.base = s.id
			return
		}
		clear(r.keys)
	}
}

// read reads the records of a file and finds its fault, if any.
func (r *replayer) read(s *segment, each func(record) bool) {
	s.good, s.records, s.fault, s.torn = 0, 0, nil, false
	end := s.size
	if s.ends >= 0 {
		end = min(end, s.ends)
	}
	if s.reason != "" {
		s.fault = &fault{reason: s.reason}
		s.torn = s.unborn || s.id < r.base && s.tornHeader(r.fs)
		return
	}
	f, err := r.fs.open(s.name())
	if err != nil {
		s.fault = &fault{reason: fmt.Sprintf("cannot be opened: %v", err)}
		return
	}
	defer f.Close()
	var finish *record
	s.good, s.fault = r.scanner.scan(f, end, func(rec record) bool {
		if rec.typ == endRecord {
			finish = &record{seq: rec.seq}
			return false
		}
		s.records++
		return each(rec)
	})
	switch {
	case s.fault != nil:
		// A file that a snapshot has replaced may have lost the successor that records
		// its end: a crash of the machine undoes some removals and not others.
		s.torn = (s.last || s.id < r.base && s.ends < 0) && torn(f, s.fault, s.size)
	case s.snapshot && finish == nil:
		s.fault = &fault{at: s.good, reason: "a snapshot without its end"}
	case s.snapshot && finish.seq != uint64(s.records):
		s.fault = &fault{at: s.good, reason: fmt.Sprintf("a snapshot of %d records that has %d", finish.seq, s.records)}
	case s.snapshot && s.good != s.size:
		s.fault = &fault{at: s.good, reason: "something behind the end of a snapshot"}
	case finish != nil && !s.snapshot:
		s.fault = &fault{at: s.good - recordHead - bodyHead, reason: "an unknown kind of record"}
		s.good = s.fault.at
	case s.ends > s.size:
		s.fault = &fault{at: s.good, reason: fmt.Sprintf("cut short by %d bytes", s.ends-s.size)}
	}
}

func (s *segment) tornHeader(fs fileSystem) bool {
	if !s.regular || s.unreadable {
		return false
	}
	f, err := fs.open(s.name())
	if err != nil {
		return false
	}
	defer f.Close()
	begins := make([]byte, min(headerSize, s.size))
	if _, err := readAt(f, begins, 0); err != nil {
		return false
	}
	nonZero, err := lastNonZero(f, 0, s.size)
	return err == nil && tornHeader(begins, s.fileID, nonZero, s.size)
}

// apply applies a record, unless a later one of the key was applied.
func (r *replayer) apply(s *segment, rec record) {
	r.records++
	k := r.keys[string(rec.key)]
	if k == nil {
		k = &state{key: string(rec.key)}
		r.keys[k.key] = k
	} else if s.header.run == k.run && rec.seq < k.seq {
		return // a record of another run would be a later one: files are read in order
	}
	*k = state{key: k.key, run: s.header.run, seq: rec.seq, at: r.records, dropped: rec.typ == dropRecord}
	if !k.dropped {
		k.payload = bytes.Clone(rec.payload)
	}
}

// live returns the keys that were not dropped, in the order of their records.
func (r *replayer) live() []*state {
	var live []*state
	for _, k := range r.keys {
		if !k.dropped {
			live = append(live, k)
		}
	}
	slices.SortFunc(live, func(a, b *state) int { return a.at - b.at })
	return live
}

// sealed returns where each file ended when the log was closed. It is nil if the log was
// not closed, or was closed by a version that did not record it.
func (r *replayer) sealed() map[fileID]int64 {
	if r.marker.reason != "" || !r.marker.closed {
		return nil
	}
	return r.marker.ends
}

// findMissing reports missing files that the marker or a successor names and that no
// snapshot has replaced.
func (r *replayer) findMissing() {
	there := func(file fileID) bool {
		return slices.ContainsFunc(r.segments, func(s *segment) bool { return s.fileID == file })
	}
	for _, file := range slices.SortedFunc(maps.Keys(r.sealed()), fileID.compare) {
		if file.id >= r.base && !there(file) {
			r.report.Damage = append(r.report.Damage, Damage{
				File: file.name(), LostBytes: r.marker.ends[file], Reason: "is missing",
			})
		}
	}
	for _, s := range r.segments {
		prev := s.header.prev
		if s.reason != "" || s.id <= r.base || prev.id == 0 || prev.end <= headerSize {
			continue
		}
		if _, told := r.sealed()[fileID{id: prev.id}]; told {
			continue // the marker lists this file: handled above
		}
		// A damaged snapshot has still removed the files that it replaced.
		there := func(o *segment) bool {
			return o.snapshot && o.id > prev.id || !o.snapshot && o.id == prev.id
		}
		if slices.ContainsFunc(r.segments, there) {
			continue
		}
		r.report.Damage = append(r.report.Damage, Damage{
			File:      fileID{id: prev.id}.name(),
			LostBytes: int64(min(prev.end, 1<<62)),
			Reason:    "is missing",
		})
	}
}

func (r *replayer) sumUp() {
	for _, s := range r.segments {
		r.report.Files++
		r.report.Bytes += s.good
		r.report.Records += s.records
		switch {
		case s.damaged():
			r.report.Damage = append(r.report.Damage, r.damage(s))
		case s.torn && s.id >= r.base:
			r.report.TornFile = s.name()
			r.report.TornAt, r.report.TornBytes = s.good, s.size-s.good
		}
	}
}

func (r *replayer) damage(s *segment) Damage {
	d := Damage{
		File: s.name(), Offset: s.fault.at, Reason: s.fault.reason,
		Recovered: s.records, LostBytes: max(s.size, s.ends) - s.good,
	}
	if !s.regular {
		return d
	}
	f, err := r.fs.open(s.name())
	if err != nil {
		return d
	}
	defer f.Close()
	from := s.fault.at
	if s.reason != "" {
		from = 0
	}
	d.Lost, _ = soundBehind(f, from, s.size)
	if from > 0 && from < s.size {
		d.Lost++ // the record with the fault
	}
	return d
}
