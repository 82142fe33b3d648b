package main

import (
	"fmt"
	"time"
)

// judge returns the faults of holdfast's run, none if all was well.
func judge(o outcome, kept proof, allowance time.Duration) (reasons []string) {
	bad := func(format string, args ...any) { reasons = append(reasons, fmt.Sprintf(format, args...)) }
	if o.calls == 0 {
		bad("nothing was called")
	}
	if o.failed > 0 {
		bad("calls that failed: %s, one with: %v", thousands(int64(o.failed)), o.failure)
	}
	if o.overran > 0 {
		bad("calls that took longer than %v + %v: %s, the slowest %s ms; the machine woke a sleeping caller up to %s ms late",
			budget, allowance, thousands(int64(o.overran)), millis(o.latency.longest), millis(o.oversleep))
	}
	if n := len(kept.wrong); n > 0 {
		const shown = 5
		bad("keys that do not hold their last write: %s", thousands(int64(n)))
		for _, line := range kept.wrong[:min(n, shown)] {
			bad("  %s", line)
		}
		if n > shown {
			bad("  and %s more", thousands(int64(n-shown)))
		}
	}
	if kept.unsure > 0 {
		bad("keys that cannot be judged, for their last write failed: %s", thousands(int64(kept.unsure)))
	}
	return reasons
}

// announce prints the verdict on holdfast and the results of the other clients in the
// same outage.
func (s *stage) announce(reasons []string, ours outcome, kept proof, peers []peer) {
	s.print.say("holdfast: %s of %s calls failed, slowest %s ms, %s dials\n"+
		"  (allowed: 0 failed, %v + %v for a loaded machine);\n  %s",
		thousands(int64(ours.failed)), thousands(int64(ours.calls)), millis(ours.latency.longest), thousands(ours.dials),
		budget, s.cfg.allowance, kept)
	for _, p := range peers {
		s.print.say("%s, same outage: %s of %s calls failed,\n  slowest %s ms, %s dials.", p.name,
			thousands(int64(p.failed)), thousands(int64(p.calls)), millis(p.latency.longest), thousands(p.dials))
	}
	if len(reasons) == 0 {
		s.print.style("\x1b[1;32m", "verdict: holdfast held\n")
		return
	}
	s.print.style("\x1b[1;31m", "verdict: holdfast did not hold\n")
	for _, reason := range reasons {
		s.print.say("  %s", reason)
	}
}

// String says how many keys have the expected state.
func (p proof) String() string {
	right := p.held + p.deleted + p.expired
	all := right + p.unsure + len(p.wrong)
	count := fmt.Sprintf("only %s of %s keys hold their last write", thousands(int64(right)), thousands(int64(all)))
	if p.good() {
		count = fmt.Sprintf("every one of %s keys holds its last write", thousands(int64(all)))
	}
	return fmt.Sprintf("%s\n  (%s values, %s deleted, %s expired).", count,
		thousands(int64(p.held)), thousands(int64(p.deleted)), thousands(int64(p.expired)))
}
