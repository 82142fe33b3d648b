package main

import (
	"context"
	"fmt"
	"time"

	"github.com/redis/rueidis"
)

// owed is what the server owes for a key: the last write that was acknowledged.
// The zero value says that the key was never written.
type owed struct {
	value   string
	deleted bool
	// The set had a TTL, which began no earlier and no later than these.
	expires          bool
	earliest, latest time.Time
	// unsure: a later write failed, which may or may not have reached the server.
	unsure bool
}

// proof is what a look at every key found.
type proof struct {
	held, deleted, expired int
	unsure                 int
	wrong                  []string // a line for each key that is not as it should be
}

func (p proof) good() bool { return p.unsure == 0 && len(p.wrong) == 0 }

const (
	// earlyExpiry is how long before its end a key may be gone: the embedded
	// server counts in ticks.
	earlyExpiry = 10 * tick
	// lateExpiry is how far beyond its end a key may be seen: a set may have
	// waited for the server for all of its budget, on a loaded machine.
	lateExpiry = time.Second
)

// prove compares each key with its line of the ledger.
func prove(ctx context.Context, server rueidis.Client, keys []string, ledger []owed) (proof, error) {
	const batch = 250
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	var p proof
	for at := 0; at < len(keys); at += batch {
		end := min(at+batch, len(keys))
		var asks rueidis.Commands
		for _, key := range keys[at:end] {
			asks = append(asks, server.B().Get().Key(key).Build(), server.B().Pttl().Key(key).Build())
		}
		asked := time.Now()
		answers := server.DoMulti(ctx, asks...)
		answered := time.Now()
		for i := at; i < end; i++ {
			get, pttl := answers[2*(i-at)], answers[2*(i-at)+1]
			value, err := get.ToString()
			found := !rueidis.IsRedisNil(err)
			if err != nil && found {
				return p, fmt.Errorf("reading the keys back: %w", err)
			}
			left, err := pttl.AsInt64()
			if err != nil {
				return p, fmt.Errorf("reading the keys back: %w", err)
			}
			if left == noKey {
				found = false // it expired between the two
			}
			p.enter(keys[i], ledger[i], sight{value, found, left, asked, answered})
		}
	}
	return p, nil
}

// What PTTL answers for no expiry and for no key.
const (
	noExpiry = -1
	noKey    = -2
)

// sight is what the server was seen to hold for a key.
type sight struct {
	value           string
	found           bool
	left            int64 // PTTL
	asked, answered time.Time
}

func (p *proof) enter(key string, o owed, s sight) {
	complaint := ""
	switch {
	case o.unsure:
		p.unsure++
	case !s.found && o.deleted:
		p.deleted++
	case !s.found && o.expires && !s.answered.Before(o.earliest.Add(-earlyExpiry)):
		p.expired++
	case !s.found && o.value == "" && !o.deleted:
		complaint = "was never written: the ledger is broken"
	case !s.found:
		complaint = fmt.Sprintf("is missing; it should hold %q", o.value)
	case o.deleted:
		complaint = fmt.Sprintf("was deleted and holds %q", s.value)
	case s.value != o.value:
		complaint = fmt.Sprintf("holds %q; it should hold %q", s.value, o.value)
	case o.expires && s.left == noExpiry:
		complaint = "has lost its expiry"
	case !o.expires && s.left != noExpiry:
		complaint = fmt.Sprintf("would expire in %d ms, and should not at all", s.left)
	case o.expires && s.asked.After(o.latest.Add(lateExpiry)):
		complaint = fmt.Sprintf("is there %v after its expiry", s.asked.Sub(o.latest).Round(time.Millisecond))
	default:
		p.held++
	}
	if complaint != "" {
		p.wrong = append(p.wrong, key+" "+complaint)
	}
}
