package replay

import (
	"context"

	"github.com/holdfast-cache/holdfast/internal/journal"
	"github.com/holdfast-cache/holdfast/internal/link"
	"github.com/redis/rueidis"
)

// compare reads the sets that are to be compared from the session's server, and compares
// them. The reads make the server track the keys again. A set whose read gets no answer is
// compared by the replay. compare blocks for at most the replay's timeout for each
// CompareMost keys.
func (r *Replayer) compare(ctx context.Context, s *link.Session) {
	for {
		sets := r.journal.Uncompared(r.copies.Hash, r.owns)
		if len(sets) == 0 {
			return
		}
		bounded, cancel := context.WithTimeout(ctx, r.timeout)
		b := s.Client.B()
		cmds := make([]rueidis.Completed, len(sets))
		for i := range sets {
			cmds[i] = b.Get().Key(sets[i].Key).Build()
		}
		deletes := false
		for i, reply := range r.do(bounded, s, cmds, false) {
			current, err := reply.AsBytes()
			switch absent := rueidis.IsRedisNil(err); {
			case err != nil && !absent:
				continue
			case r.journal.Compared(sets[i], current, !absent, s.Server):
				r.journal.Downgraded(sets[i].Key)
				deletes = true
			}
		}
		cancel()
		if deletes {
			r.Wake()
		}
		if len(sets) < journal.CompareMost {
			return
		}
	}
}
