package holdfast

import (
	"bytes"
	"context"
	"crypto/sha1"

	"github.com/holdfast-cache/holdfast/internal/keyhash"
	"github.com/redis/rueidis"
)

// An invalidation of a key may arrive while a set of the key waits, for example while Redis
// refuses writes and the stream stands. The invalidation alone decides nothing. It may be
// about a key of the same name in another database, an echo of our own write, or the expiry
// of the previous value; and the message of a flush names no database. So the set is
// compared with the value in Redis, as a replay would. If that is the base, the set waits
// on. If not, another writer was there. Then the set becomes a delete, because nobody can
// tell which of the two values is the newer one.
//
// Mostly the replay alone would find that, too. It could not where the previous value was
// deleted and would have expired before the replay. And until the replay, the older value
// would be served.
//
// A set over a copy that was invalidated before the set is compared, too. If the key is
// absent, absence becomes the base, so the next flush of another database does no harm.

// compareMost is the most keys that are compared at once.
const compareMost = 64

// invalidated handles an invalidation of the key. It reports whether a set of the key waits
// and must be compared with the value in Redis. It does not block.
func (j *journal) invalidated(h keyhash.Hash, key string, now int64) bool {
	if j.keys.Load() == 0 {
		return false
	}
	sh := j.shard(h)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	in := sh.intents[key]
	return in != nil && j.invalidateLocked(in, now)
}

// invalidateLocked is invalidated for one intent. The replay decides where the invalidation may
// come from an unanswered write of our own, from its echo, or from the expiry of the base.
func (j *journal) invalidateLocked(in *intent, now int64) bool {
	ownEnd := in.expected.held && over(in.expected.gone, now)
	replayed := in.expectedSeq == 0
	echo := replayed || in.expected.echo // the invalidation may be an echo of our own write
	if in.del || in.sending || in.checkAt != 0 || in.possibleLateWrites.since != 0 || ownEnd || echo {
		return false
	}
	if in.news++; in.news == 0 {
		in.news = 1
	}
	j.news.Store(true)
	return true
}

// invalidatedAll is invalidated for all owned keys, after a flush of a database.
func (j *journal) invalidatedAll(now int64, owns func(key string) bool) (some bool) {
	if j.keys.Load() == 0 {
		return false
	}
	for i := range j.shards {
		sh := &j.shards[i]
		sh.mu.Lock()
		for key, in := range sh.intents {
			some = owns(key) && j.invalidateLocked(in, now) || some
		}
		sh.mu.Unlock()
	}
	return some
}

// waitingSet is a set that is to be compared: a copy made when it was chosen.
type waitingSet struct {
	key  string
	hash keyhash.Hash
	seq  uint64
	news uint8
}

// uncompared returns up to compareMost of the owned sets that are to be compared.
func (j *journal) uncompared(hash func(string) keyhash.Hash, owns func(key string) bool) (all []waitingSet) {
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

// compared gets the value in Redis for a waiting set, and reports whether the set became a
// delete.
func (j *journal) compared(s waitingSet, current []byte, present bool, server string) bool {
	sum := sha1.Sum(current)
	sh := j.shard(s.hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	in := sh.intents[s.key]
	if in == nil || in.seq != s.seq || in.news != s.news || in.del || in.sending {
		return false // another invalidation arrived, or a replay decides
	}
	b, unsure := &in.expected, in.unsure()
	in.news, in.looked = 0, true
	switch {
	case present && (b.held && b.sum == sum || bytes.Equal(current, in.value)):
		return false
	case !present && (!b.held || b.server != server):
		return false
	case unsure && !present: // perhaps it was absent at the invalidation, too
		in.expected = holdingNothing(server)
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

// compare reads the sets that are to be compared from the session's server, and compares
// them. The reads make the server track the keys again. A set whose read gets no answer is
// compared by the replay. compare blocks for at most the replay's timeout for each
// compareMost keys.
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
