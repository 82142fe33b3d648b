package replay

import (
	"context"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/journal"
	"github.com/holdfast-cache/holdfast/internal/link"
	"github.com/redis/rueidis"
)

// sendPlain sends some tasks as the ordinary commands of their callers: writes that were
// accepted during the first attempt to reach Redis, no longer ago than Timeout, unless that
// attempt has failed. They are sent unconditionally, as if the caller had waited for the
// connection. Nothing is compared: the last writer wins, as with any command. sendPlain
// puts their answers into out, and returns the indexes of the other tasks.
//
// A task is sent without a comparison only once. If it gets no answer, it may run late, and
// only the script can decide on the key afterwards.
func (r *Replayer) sendPlain(ctx context.Context, s *link.Session, tasks []journal.Task, asking bool, out []answer) (others []int) {
	var cmds []rueidis.Completed
	var plain []int
	now, b := r.clock.Now(), s.Client.B()
	from := max(r.link.PlainFrom.Load(), r.routes.SeedLink.PlainFrom.Load())
	others = make([]int, 0, len(tasks))
	for i := range tasks {
		t := &tasks[i]
		switch {
		case t.PlainUntil <= from || !t.Plain(now):
			others = append(others, i)
			continue
		case t.Del:
			cmds = append(cmds, b.Del().Key(t.Key).Build())
		default:
			ttl := clock.Left(now, t.Deadline)
			if ttl > 0 {
				ttl = max(ttl, time.Millisecond)
			}
			cmds = append(cmds, link.SetCommand(b, t.Key, t.Value, ttl))
		}
		plain = append(plain, i)
	}
	if len(cmds) == 0 {
		return others
	}
	for k, reply := range r.do(ctx, s, cmds, asking) {
		what := okReply
		if tasks[plain[k]].Del {
			what = numberReply
		}
		out[plain[k]] = answer{verdict: verdictDone, Err: what(reply)}
	}
	return others
}
