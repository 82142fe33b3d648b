package holdfast

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/holdfast-cache/holdfast/internal/journal"
)

// Held is a write of the journal that Redis refuses for itself. It waits until Redis
// accepts it; see Cache.Held.
type HeldWrite struct {
	Key     string
	Delete  bool      // a delete; false: a set
	Bytes   int       // length of the value of a set; 0 for a delete
	Since   time.Time // when Redis refused it first
	Refusal string    // the error of Redis: printable and cut, without the key and numbers
}

// String describes the write in one line. A long key is cut.
func (w HeldWrite) String() string {
	what := fmt.Sprintf("set of %d bytes", w.Bytes)
	if w.Delete {
		what = "delete"
	}
	return fmt.Sprintf("%q: %s, held since %v: %s", shortKey(w.Key), what, w.Since.Format(time.RFC3339), w.Refusal)
}

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
