package link

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/local"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

// A use that was noted while there was nothing to do was the last that was heard of
// the link: whoever came later found it noted already and let the supervisor sleep.
func TestAUseWhileThereIsNothingToDoHidesNoLaterOne(t *testing.T) {
	var needless atomic.Bool
	var asked atomic.Int64
	r := newLinkRig(t)
	r.find.server = func() (string, error) { asked.Add(1); return "", errAllKnown }
	r.keys.none = needless.Load
	for range 20 {
		needless.Store(true)
		l := r.open()
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() { l.supervise(ctx) })
		var users sync.WaitGroup
		for range 2 {
			users.Go(func() {
				for range 20_000 {
					l.Use()
				}
			})
		}
		users.Wait()
		redistest.WaitFor(t, time.Minute, "the supervisor to sleep", func() bool {
			return l.parked.Load() && len(l.signal) == 0
		})
		needless.Store(false)
		asked.Store(0)
		redistest.WaitFor(t, time.Minute, "a used link to look for its server", func() bool {
			l.Use()
			return asked.Load() > 0
		})
		cancel()
		wg.Wait()
	}
}

// The new owner of a slot does not announce changes of keys that were read from the old owner.
func TestASlotThatChangesHandsPutsItsCopiesInDoubt(t *testing.T) {
	node := func() *Link {
		l := newLinkRig(t).open()
		l.heardUntil.Store(100)
		return l
	}
	var c cluster
	first, second := node(), node()
	c.giveLocked(5, first)
	d := &c.slots[5].Scope
	e := local.NewEntry("k", []byte("v"), local.Freshness{Fresh: clock.Never, Expires: clock.Never, Scope: d, Epoch: d.Epoch.Load()})
	c.giveLocked(5, first)
	c.giveLocked(6, second)
	if !e.EpochValid(50) || e.OfEarlierServer() {
		t.Error("a copy is in doubt although its slot has stayed where it is")
	}
	c.giveLocked(5, second)
	if e.EpochValid(50) || !e.OfEarlierServer() || e.Invalid() {
		t.Errorf("after the slot has moved: %+v", e)
	}
	if first.slots.Load() != 0 || second.slots.Load() != 2 {
		t.Errorf("%d and %d slots", first.slots.Load(), second.slots.Load())
	}
}
