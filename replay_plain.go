package holdfast

import (
	"context"
	"time"

	"github.com/redis/rueidis"
)

// sendPlain sends those tasks as the commands that their callers asked for which count
// as if they had waited on the wire: what was accepted while the first attempt was under
// way, and is no older than Timeout, unless that attempt has failed. Nothing is compared: the last writer wins, as with
// any command. It notes their answers and returns the indexes of the others.
//
// It is so once: what gets no answer may run late, and what the key holds afterwards is
// for the script to find out.
func (r *replayer) sendPlain(ctx context.Context, s *session, tasks []task, asking bool, out []answer) (others []int) {
	var cmds []rueidis.Completed
	var plain []int
	now, b := r.clock.now(), s.client.B()
	from := max(r.link.plainFrom.Load(), r.routes.home.plainFrom.Load())
	others = make([]int, 0, len(tasks))
	for i := range tasks {
		t := &tasks[i]
		switch {
		case t.plainUntil <= from || !t.plain(now):
			others = append(others, i)
			continue
		case t.del:
			cmds = append(cmds, b.Del().Key(t.key).Build())
		default:
			ttl := left(now, t.deadline)
			if ttl > 0 {
				ttl = max(ttl, time.Millisecond)
			}
			cmds = append(cmds, setCommand(b, t.key, t.value, ttl))
		}
		plain = append(plain, i)
	}
	if len(cmds) == 0 {
		return others
	}
	for k, reply := range r.do(ctx, s, cmds, asking) {
		what := okReply
		if tasks[plain[k]].del {
			what = numberReply
		}
		out[plain[k]] = answer{verdict: verdictDone, err: what(reply)}
	}
	return others
}

// plain says whether the task may be sent as an ordinary command now.
func (t *task) plain(now int64) bool {
	return now < t.plainUntil && now < t.deadline && !t.undo && !t.check
}
