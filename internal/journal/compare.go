package journal

import (
	"bytes"
	"crypto/sha1"

	"github.com/holdfast-cache/holdfast/internal/keyhash"
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

// CompareMost is the most keys that are compared at once.
const CompareMost = 64

// Invalidated handles an invalidation of the key. It reports whether a set of the key waits
// and must be compared with the value in Redis. It does not block.
func (j *Journal) Invalidated(h keyhash.Hash, key string, now int64) bool {
	if j.Keys.Load() == 0 {
		return false
	}
	sh := j.shard(h)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	in := sh.intents[key]
	return in != nil && j.invalidateLocked(in, now)
}

// invalidateLocked is Invalidated for one intent. The replay decides where the invalidation
// may come from an unanswered write of our own, from its echo, or from the expiry of the
// base.
func (j *Journal) invalidateLocked(in *Intent, now int64) bool {
	ownEnd := in.Expected.held && over(in.Expected.gone, now)
	replayed := in.expectedSeq == foundByReplay
	echo := replayed || in.Expected.Echo // the invalidation may be an echo of our own write
	if in.Del || in.sending || in.checkAt != toReplay || in.PossibleLateWrites.any() || ownEnd || echo {
		return false
	}
	if in.news++; in.news == 0 {
		in.news = 1
	}
	j.news.Store(true)
	return true
}

// InvalidatedAll is Invalidated for all owned keys, after a flush of a database.
func (j *Journal) InvalidatedAll(now int64, owns func(key string) bool) (some bool) {
	if j.Keys.Load() == 0 {
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
	Key  string
	hash keyhash.Hash
	seq  uint64
	news uint8
}

// Uncompared returns up to CompareMost of the owned sets that are to be compared.
func (j *Journal) Uncompared(hash func(string) keyhash.Hash, owns func(key string) bool) (all []waitingSet) {
	if !j.news.Swap(false) {
		return nil
	}
	for i := range j.shards {
		sh := &j.shards[i]
		sh.mu.RLock()
		for key, in := range sh.intents {
			if in.news == 0 && !in.unsure() || in.Del || in.sending {
				continue
			}
			if len(all) == CompareMost {
				j.news.Store(true) // for the next round
				break
			}
			if !owns(key) {
				j.news.Store(true) // for another link
				continue
			}
			all = append(all, waitingSet{key, hash(key), in.Seq, in.news})
		}
		sh.mu.RUnlock()
	}
	return all
}

// Compared gets the value in Redis for a waiting set, and reports whether the set became a
// delete.
func (j *Journal) Compared(s waitingSet, current []byte, present bool, server string) bool {
	sum := sha1.Sum(current)
	sh := j.shard(s.hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	in := sh.intents[s.Key]
	if in == nil || in.Seq != s.seq || in.news != s.news || in.Del || in.sending {
		return false // another invalidation arrived, or a replay decides
	}
	b, unsure := &in.Expected, in.unsure()
	in.news, in.looked = 0, true
	switch {
	case present && (b.held && b.sum == sum || bytes.Equal(current, in.Value)):
		return false
	case !present && (!b.held || b.server != server):
		return false
	case unsure && !present: // perhaps it was absent at the invalidation, too
		in.Expected = HoldingNothing(server)
		j.saveLocked(sh, s.Key, in)
		return false
	case unsure && s.news == 0:
		return false
	}
	j.Bytes.Add(-int64(len(in.Value)))
	in.Value, in.Del = nil, true
	j.releaseLocked(in)
	j.saveLocked(sh, s.Key, in)
	return true
}
