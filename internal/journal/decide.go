package journal

import (
	"crypto/sha1"
	"encoding/hex"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
)

// Operation returns the operation for a task that is sent now. A set that expired while it
// waited becomes a delete, or the value from before the outage would return. A set that
// expires on the way is written, and lives as long as the way took.
//
// The conflict rule concerns sets alone. If more late values of our own may be there than
// are remembered, ConflictKeep could keep one of them. So a value that cannot be told from
// them is deleted: see ConflictRule.
func (t *Task) Operation(now int64, rule ConflictRule) (op string, v []byte, ttl time.Duration) {
	gone := t.deletesAt(now)
	check := t.Check && !t.PossibleLateWrites.More
	switch {
	case t.Compensate, gone && check:
		return "redelete", nil, 0
	case gone:
		return "delete", nil, 0
	}
	if t.Deadline != clock.Never {
		ttl = max(clock.Left(now, t.Deadline), time.Millisecond)
	}
	switch {
	case check:
		op = "reset"
	case rule == ruleOverwrite:
		op = "overwrite"
	case rule == ruleKeep && !t.PossibleLateWrites.More:
		op = "keep"
	default:
		op = "set"
	}
	return op, t.Value, ttl
}

// MayFindNothing reports whether absence at server is no conflict if the task runs at now
// or before. A second check had its value in Redis before, so only our own late write
// explains absence.
func (t *Task) MayFindNothing(server string, now int64) bool {
	if t.Check {
		return t.PossibleLateWrites.mayLeaveNothing(now)
	}
	return t.mayBeAbsent(server, now)
}

// ExpectedStates lists the states of Redis that are no conflict, for the script.
func (t *Task) ExpectedStates(server string, now int64) string {
	absent := t.MayFindNothing(server, now)
	held := t.Expected.held && !t.Check && !t.Compensate
	if len(t.PossibleLateWrites.Sums) == 0 && !held {
		if absent {
			return "absent"
		}
		return ""
	}
	list := make([]byte, 0, (len(t.PossibleLateWrites.Sums)+1)*(2*sha1.Size+1)+len("absent"))
	for _, sum := range t.PossibleLateWrites.Sums {
		list = append(hex.AppendEncode(list, sum[:]), ' ')
	}
	if held {
		list = append(hex.AppendEncode(list, t.Expected.sum[:]), ' ')
	}
	if absent {
		list = append(list, "absent"...)
	}
	return string(list)
}

// Plain reports whether the task may be sent as an ordinary command now.
func (t *Task) Plain(now int64) bool {
	return now < t.PlainUntil && now < t.Deadline && !t.Compensate && !t.Check
}

// ConflictRule is the action on a conflict: the values of Options.Journal.OnConflict.
type ConflictRule uint8

const (
	ruleDelete ConflictRule = iota
	ruleKeep
	ruleOverwrite
)
