package main

import (
	"context"
	"fmt"
	"time"

	"github.com/redis/rueidis"
)

// owed is the state that the server should have for a key: the last acknowledged write.
// The zero value means that the key was never written.
type owed struct {
	value   string
	deleted bool
	// The set had a TTL, which ends between earliest and latest.
	expires          bool
	earliest, latest time.Time
	// unsure: a later write failed, and may or may not have reached the server.
	unsure bool
}

// proof is the result of reading every key.
type proof struct {
	held, deleted, expired int
	unsure                 int
	wrong                  []string // a line for each key with a wrong state
}

func (p proof) good() bool { return p.unsure == 0 && len(p.wrong) == 0 }

const (
	// earlyExpiry is how much too early a key may expire: the embedded server counts in
	// ticks.
	earlyExpiry = 10 * tick
	// lateExpiry is how much too late a key may expire: a set may have waited for the
	// server for its whole budget, on a loaded machine.
	lateExpiry = time.Second
)

// prove compares each key on the server with its entry in the ledger.
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
				found = false // it expired between the two commands
			}
			p.enter(keys[i], ledger[i], sight{value, found, left, asked, answered})
		}
	}
	return p, nil
}

// Replies of PTTL for a key without expiry and for a missing key.
const (
	noExpiry = -1
	noKey    = -2
)

// sight is the state of a key that was read from the server.
type sight struct {
	value           string
	found           bool
	left            int64 // reply of PTTL
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
