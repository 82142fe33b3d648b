package wal

import (
	"fmt"
	"strings"
)

// Report says what Open found in the directory.
type Report struct {
	Files   int   // segments and snapshots that were read
	Records int   // sound records in them, including superseded ones
	Bytes   int64 // of the sound part of the files
	Keys    int   // passed to load

	// The record that a crash left unfinished, if TornFile is not empty. No acknowledged
	// record is lost with it, if the policy covers that crash.
	TornFile  string
	TornAt    int64
	TornBytes int64

	// Damage lists all other differences from the files as they were written.
	Damage []Damage

	// Doubt says in words why the recovered data may be out of date: a key may have an
	// older payload, or be there although it was dropped, and other keys may be missing.
	// Doubt is empty if every acknowledged record is there, and also if no files were
	// found. A Log that was opened with a Doubt has one again at the next Open, until a
	// Compact has succeeded.
	Doubt string
}

// Damage describes a file that differs from the file as it was written.
type Damage struct {
	File      string // its name in the directory
	SetAside  string // its new name; empty if it was not renamed, or is missing
	Offset    int64  // of the first byte that is not trusted
	Recovered int    // records before it, which were used
	Lost      int    // records from there on; a lower bound or an estimate
	LostBytes int64  // bytes from there on
	Reason    string
}

// String describes the damage in one line.
func (d Damage) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s at byte %d: %d records recovered, about %d records and %d bytes lost",
		d.File, d.Reason, d.Offset, d.Recovered, d.Lost, d.LostBytes)
	if d.SetAside != "" {
		fmt.Fprintf(&b, ", kept as %s", d.SetAside)
	}
	return b.String()
}

// String describes the report in one line.
func (r Report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d keys from %d records in %d files (%d bytes)", r.Keys, r.Records, r.Files, r.Bytes)
	if r.TornFile != "" {
		fmt.Fprintf(&b, "; %s: an unfinished record of %d bytes at byte %d was ignored", r.TornFile, r.TornBytes, r.TornAt)
	}
	for _, d := range r.Damage {
		b.WriteString("; " + d.String())
	}
	if r.Doubt != "" {
		b.WriteString("; in doubt: " + r.Doubt)
	}
	return b.String()
}
