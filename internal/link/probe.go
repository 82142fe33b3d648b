package link

import (
	"context"
	"time"

	"github.com/holdfast-cache/holdfast/internal/rediserr"
	"github.com/redis/rueidis"
)

// A probe is a small write and a small read in one pipeline. The write alone would not
// distinguish a server that takes no writes from one that answers nothing.
//
//	               | read: answered | read: refused     | read: no reply
//	write: done    | healthy        | down, by the read | down
//	write: refused | read-only      | down              | down
//
// A BUSY to either means that the server is busy. A redirection means that the map of the
// cluster is out of date. A read that is refused for a missing permission on the key counts
// as answered.
//
// PING is no probe: a read-only replica and a server that cannot save answer PONG.

// ProbeCommands appends the commands of a probe. The write has XX and its key never exists,
// so it leaves nothing behind. Redis still refuses it for READONLY, MISCONF, OOM,
// NOREPLICAS, CLUSTERDOWN and a missing permission, because it checks these before it looks
// for the key. A cluster node without slots gets only a PING.
func ProbeCommands(b rueidis.Builder, key string, cmds []rueidis.Completed) []rueidis.Completed {
	if key == "" {
		return append(cmds, b.Ping().Build())
	}
	return append(cmds,
		b.Set().Key(key).Value("1").Xx().Px(10*time.Second).Build(),
		b.Get().Key(key).Build())
}

// probe sends a probe and returns its result, as Probed does. It needs no slot of the
// bulkhead, so a full bulkhead cannot hide that the server is back. Its answer frees the
// slots of abandoned calls. probe blocks at most until ctx ends.
func (s *Session) probe(ctx context.Context, key string) (rediserr.Class, error) {
	ticket := s.Tickets.Add(1)
	sent := s.Link.clock.Now()
	replies := s.Client.DoMulti(ctx, ProbeCommands(s.Client.B(), key, nil)...)
	s.Took(KindProbe, sent)
	if replies[len(replies)-1].NonRedisError() == nil {
		s.Answered(ticket)
	}
	return Probed(ctx, replies)
}

// Probed evaluates the replies by the table above, on which Health relies (law 9). The
// class is OK, WriteRefused, Busy or Redirect, or for a server that is not usable Down,
// Unknown or Canceled.
func Probed(ctx context.Context, replies []rueidis.RedisResult) (rediserr.Class, error) {
	writeErr := replies[0].Error()
	w := rediserr.Classify(ctx, writeErr)
	if len(replies) == 1 {
		if w == rediserr.Command {
			w = rediserr.WriteRefused // PING is refused; nothing is known of other commands
		}
		return w, writeErr
	}
	readErr := replies[1].Error()
	r := rediserr.Classify(ctx, readErr)
	readable := r == rediserr.OK || r == rediserr.Command
	switch {
	case w == rediserr.Redirect, w == rediserr.Busy, w == rediserr.Canceled, replies[0].NonRedisError() != nil:
		return w, writeErr
	case w == rediserr.OK && readable:
		return rediserr.OK, nil
	case w != rediserr.OK && readable:
		return rediserr.WriteRefused, writeErr
	default:
		return r, readErr
	}
}
