package holdfast

import (
	"context"
	"time"

	"github.com/redis/rueidis"
)

// A probe is a small write and a small read in one pipeline. The write alone would not
// tell a server that takes no writes from one that answers nobody.
//
//	           | read: answered | refused           | none
//	write: done| well           | down, by the read | down
//	refused    | read-only      | down              | down
//
// Both answered by BUSY is a server that is busy, and a redirection says that the map of
// the cluster is out of date. That this user may not read the probe's key is an answer.
//
// PING is no probe: a read-only replica and a server that cannot save answer PONG.

// probeCommands appends the probe's commands. The write is one of a key that is there:
// there is none, so it leaves nothing behind, and Redis refuses it for READONLY, MISCONF,
// OOM, NOREPLICAS, CLUSTERDOWN and for want of a permission all the same, because it looks
// for those before it looks for the key. A node of a cluster that has no slot can only be
// pinged.
func probeCommands(b rueidis.Builder, key string, cmds []rueidis.Completed) []rueidis.Completed {
	if key == "" {
		return append(cmds, b.Ping().Build())
	}
	return append(cmds,
		b.Set().Key(key).Value("1").Xx().Px(10*time.Second).Build(),
		b.Get().Key(key).Build())
}

// probe sends a probe and says what its answers mean; see probed. It needs no slot, so
// that a full bulkhead cannot hide that the server is back, and its answer frees the slots
// of those who gave up.
func (s *session) probe(ctx context.Context, key string) (class, error) {
	ticket := s.tickets.Add(1)
	replies := s.client.DoMulti(ctx, probeCommands(s.client.B(), key, nil)...)
	if replies[len(replies)-1].NonRedisError() == nil {
		s.answered(ticket)
	}
	return probed(ctx, replies)
}

// probed is the table above: classOK, classWriteRefused, classBusy or classRedirect, or
// what is not there: classDown, classUnknown, classCanceled.
func probed(ctx context.Context, replies []rueidis.RedisResult) (class, error) {
	writeErr := replies[0].Error()
	w := classify(ctx, writeErr)
	if len(replies) == 1 {
		if w == classCommand {
			w = classWriteRefused // not even PING; whether it takes anything else is not known
		}
		return w, writeErr
	}
	readErr := replies[1].Error()
	r := classify(ctx, readErr)
	readable := r == classOK || r == classCommand
	switch {
	case w == classRedirect, w == classBusy, w == classCanceled, replies[0].NonRedisError() != nil:
		return w, writeErr
	case w == classOK && readable:
		return classOK, nil
	case w != classOK && readable:
		return classWriteRefused, writeErr
	default:
		return r, readErr
	}
}

// judge has the session probed now, for a caller who got a text that nobody understands,
// and returns nil where the probe succeeds: then the text is about that caller's command
// alone. Else it returns why not, to be classified like any other error of the session's;
// then the text is the way's, and the supervisor has been asked to look for itself. It may
// be called from any goroutine, also for a session that serves no more, and waits for at
// most Options.Timeout. It does not report to the breaker.
//
// Each call sends a probe: who has many such texts asks once for all of them.
func (l *link) judge(ctx context.Context, s *session) error {
	bounded, cancel := context.WithTimeout(ctx, l.opts.Timeout)
	defer cancel()
	c, err := s.probe(bounded, l.probeKey(""))
	switch {
	case c == classOK:
		return nil
	case gaveUp(err) && ctx.Err() != nil:
		return ctx.Err()
	case gaveUp(err):
		err = errBudget
	}
	l.askProbe()
	return err
}

// askProbe has the supervisor probe the session that serves, at once, or as soon as
// Breaker.MinBackoff has passed since it did so last: many who ask get one probe. It does
// not block and may be called from any goroutine. While nothing serves it does nothing,
// for the supervisor has a schedule then.
func (l *link) askProbe() {
	if l.gate.Load() != nil && !l.asked.Swap(true) {
		l.look()
	}
}
