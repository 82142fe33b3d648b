package holdfast

import (
	"bytes"
	"context"
	"crypto/sha1"

	"github.com/redis/rueidis"
)

// The server may tell that a key changed while a set of it waits: the stream may stand
// while writes are refused. That alone decides nothing. It may be about a key of the same
// name in another database, an echo of a write of our own, or the end of what was there;
// and a flush is told without a database, too. So the set is compared with what Redis
// holds, as a replay would: if that is what it was, nothing has happened. If it is not,
// somebody else wrote, and the set becomes a delete, for which of the two values is the
// newer one nobody can tell. The replay would mostly find out by itself, but not where
// what was there ended after it was deleted, and until then the older value would be
// served.
//
// A set in place of a copy that the server had told of before is compared, too: if nothing
// is there, that is how it was, and the next flush of another database takes nothing away.

// compareMost is how many keys are compared at once.
const compareMost = 64

// overruled is told that a key changed while a set of it waits, and says whether the two
// are to be compared. It waits for nothing.
func (j *journal) overruled(h keyHash, key string, now int64) bool {
	if j.keys.Load() == 0 {
		return false
	}
	sh := j.shard(h)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	in := sh.intents[key]
	return in != nil && j.overruleLocked(in, now)
}

// overruleLocked: where the news may be of a write of our own that got no answer, or of
// the end of the value that was there, the replay decides.
func (j *journal) overruleLocked(in *intent, now int64) bool {
	ownEnd := in.base.held && over(in.base.gone, now)
	replayed := in.baseSeq == 0
	echo := replayed || in.base.echo // what is told may be that
	if in.del || in.sending || in.checkAt != 0 || in.late.since != 0 || ownEnd || echo {
		return false
	}
	if in.news++; in.news == 0 {
		in.news = 1
	}
	j.news.Store(true)
	return true
}

// overruledAll is overruled for all keys that are owned: a database was emptied.
func (j *journal) overruledAll(now int64, owns func(key string) bool) (some bool) {
	if j.keys.Load() == 0 {
		return false
	}
	for i := range j.shards {
		sh := &j.shards[i]
		sh.mu.Lock()
		for key, in := range sh.intents {
			some = owns(key) && j.overruleLocked(in, now) || some
		}
		sh.mu.Unlock()
	}
	return some
}

// waitingSet is a set that is to be compared, as it was when that was noticed.
type waitingSet struct {
	key  string
	hash keyHash
	seq  uint64
	news uint8
}

// uncompared returns some of the sets that are to be compared and are owned.
func (j *journal) uncompared(hash func(string) keyHash, owns func(key string) bool) (all []waitingSet) {
	if !j.news.Swap(false) {
		return nil
	}
	for i := range j.shards {
		sh := &j.shards[i]
		sh.mu.RLock()
		for key, in := range sh.intents {
			if in.news == 0 && !in.unsure() || in.del || in.sending {
				continue
			}
			if len(all) == compareMost {
				j.news.Store(true) // for the next round
				break
			}
			if !owns(key) {
				j.news.Store(true) // for another link
				continue
			}
			all = append(all, waitingSet{key, hash(key), in.seq, in.news})
		}
		sh.mu.RUnlock()
	}
	return all
}

// compared takes what the server holds for a set that waits, and says whether it became a
// delete.
func (j *journal) compared(s waitingSet, current []byte, present bool, server string) bool {
	sum := sha1.Sum(current)
	sh := j.shard(s.hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	in := sh.intents[s.key]
	if in == nil || in.seq != s.seq || in.news != s.news || in.del || in.sending {
		return false // there is more news, or a replay decides
	}
	b, unsure := &in.base, in.unsure()
	in.news, in.looked = 0, true
	switch {
	case present && (b.held && b.sum == sum || bytes.Equal(current, in.value)):
		return false
	case !present && (!b.held || b.server != server):
		return false
	case unsure && !present: // as it was when the server told, perhaps
		in.base = holdingNothing(server)
		j.saveLocked(sh, s.key, in)
		return false
	case unsure && s.news == 0:
		return false
	}
	j.bytes.Add(-int64(len(in.value)))
	in.value, in.del = nil, true
	j.releaseLocked(in)
	j.saveLocked(sh, s.key, in)
	return true
}

// compare compares the sets of which the session's server told with what it holds, and
// reads them so that it tells again. A server that does not answer has them compared by
// the replay.
func (r *replayer) compare(ctx context.Context, s *session) {
	for {
		sets := r.journal.uncompared(r.hash, r.owns)
		if len(sets) == 0 {
			return
		}
		bounded, cancel := context.WithTimeout(ctx, r.timeout)
		b := s.client.B()
		cmds := make([]rueidis.Completed, len(sets))
		for i := range sets {
			cmds[i] = b.Get().Key(sets[i].key).Build()
		}
		deletes := false
		for i, reply := range r.do(bounded, s, cmds, false) {
			current, err := reply.AsBytes()
			switch absent := rueidis.IsRedisNil(err); {
			case err != nil && !absent:
				continue
			case r.journal.compared(sets[i], current, !absent, s.server):
				r.journal.downgraded(sets[i].key)
				deletes = true
			}
		}
		cancel()
		if deletes {
			r.wake()
		}
		if len(sets) < compareMost {
			return
		}
	}
}
