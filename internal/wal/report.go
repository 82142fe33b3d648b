package wal

import (
	"fmt"
	"strings"
)

// Report is what Open found.
type Report struct {
	Files   int   // segments and snapshots that were read
	Records int   // sound records in them, also those that later ones replaced
	Bytes   int64 // of what was sound
	Keys    int   // handed to load

	// The record that a crash left unfinished, if TornFile is not empty. Nothing that
	// was acknowledged is lost with it, where the policy covers that crash.
	TornFile  string
	TornAt    int64
	TornBytes int64

	// Damage is everything else that was not as it had been written.
	Damage []Damage

	// Doubt is why what was recovered may be out of date, in words: a key may have
	// come back with an older payload, or although it was dropped, and others may be
	// missing. It is empty if everything that was acknowledged is there; and where
	// nothing at all was found, which cannot be out of date. A Log that was opened in
	// doubt is so again at the next Open, until a Compact has succeeded.
	Doubt string
}

// Damage is a file that is not as it was written.
type Damage struct {
	File      string // its name in the directory
	SetAside  string // what it was renamed to; empty if it was not, or is missing
	Offset    int64  // of the first byte that is not trusted
	Recovered int    // records before it, which were used
	Lost      int    // records from there on: at least, or about, so many
	LostBytes int64  // bytes from there on
	Reason    string
}

// String returns one line on the damage.
func (d Damage) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s at byte %d: %d records recovered, about %d records and %d bytes lost",
		d.File, d.Reason, d.Offset, d.Recovered, d.Lost, d.LostBytes)
	if d.SetAside != "" {
		fmt.Fprintf(&b, ", kept as %s", d.SetAside)
	}
	return b.String()
}

// String returns one line on all that was found.
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
