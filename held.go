package holdfast

import (
	"context"
	"errors"
	"iter"
	"time"

	"github.com/holdfast-cache/holdfast/internal/journal"
)

// Held iterates over the writes of the journal that Redis refuses for themselves while a
// probe succeeds. The replay tries them again by a back-off from BreakerOptions.MinBackoff
// to MaxBackoff. A set that Redis refuses with a known error becomes a delete after a
// minute. The loop may call the Cache; a write that is held or released during the
// loop may be listed or not. Held does not block. After Close it lists the writes that were
// held at that time.
func (c *Cache) Held() iter.Seq[HeldWrite] {
	return func(yield func(HeldWrite) bool) {
		if c.journal.Held.N.Load() == 0 {
			return
		}
		now, wall := c.clock.Now(), time.Now()
		c.journal.HeldWrites(func(w journal.HeldIntent) bool {
			return yield(HeldWrite{
				Key: w.Key, Delete: w.Del, Bytes: w.Bytes, Refusal: w.Refusal,
				Since: wall.Add(time.Duration(w.Since - now)),
			})
		})
	}
}

// Discard removes the held writes of the given keys from the journal, and returns their
// number. Redis keeps its values of these keys: after a refused delete, that is the value
// to be deleted. Writes that are not held stay. With JournalOptions.Dir, Discard waits for
// the disk, at most until ctx ends.
//
// Errors: ErrClosed, or the error of ctx. Writes that were discarded before stay discarded.
func (c *Cache) Discard(ctx context.Context, keys ...string) (discarded int, err error) {
	guard, open := c.inflight.Enter()
	defer guard.Leave()
	if err := enterable(ctx, open); err != nil {
		return 0, err
	}
	for _, key := range keys {
		h := c.local.Hash(key)
		if !c.journal.Discard(h, key) {
			continue
		}
		discarded++
		c.stats.discarded.Add(1)
		c.notify.drop(key, DropDiscarded)
		c.invalidate([]string{key}) // Redis has another value
	}
	if discarded > 0 {
		c.journal.Announce()
		err = c.swept(ctx)
	}
	return discarded, err
}

var errHeld = errors.New("holdfast: redis refuses them for themselves: see Cache.Held")
