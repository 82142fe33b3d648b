package main

import (
	"fmt"
	"time"
)

// judge returns what was wrong with holdfast, nothing where all was well.
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

// announce prints the verdict on holdfast and, beside it, what the same outage
// did to plain rueidis.
func (s *stage) announce(reasons []string, ours outcome, kept proof, theirs outcome) {
	s.print.say("holdfast: %s calls, %s failed, slowest %s ms (allowed: %v + %v for a loaded machine), %s dials;\n  %s",
		thousands(int64(ours.calls)), thousands(int64(ours.failed)), millis(ours.latency.longest),
		budget, s.cfg.allowance, thousands(ours.dials), kept)
	s.print.say("plain rueidis, same outage: %s of %s calls failed, slowest %s ms, %s dials.",
		thousands(int64(theirs.failed)), thousands(int64(theirs.calls)), millis(theirs.latency.longest), thousands(theirs.dials))
	if len(reasons) == 0 {
		s.print.style("\x1b[1;32m", "verdict: holdfast held\n")
		return
	}
	s.print.style("\x1b[1;31m", "verdict: holdfast did not hold\n")
	for _, reason := range reasons {
		s.print.say("  %s", reason)
	}
}

// String says how many keys are as they should be.
func (p proof) String() string {
	fine := p.held + p.deleted + p.expired
	all := fine + p.unsure + len(p.wrong)
	count := fmt.Sprintf("only %s of %s keys hold their last write", thousands(int64(fine)), thousands(int64(all)))
	if p.good() {
		count = fmt.Sprintf("every one of %s keys holds its last write", thousands(int64(all)))
	}
	return fmt.Sprintf("%s (%s values, %s deleted, %s expired).", count,
		thousands(int64(p.held)), thousands(int64(p.deleted)), thousands(int64(p.expired)))
}
