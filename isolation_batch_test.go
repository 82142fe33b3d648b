package holdfast

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/link"
	"github.com/holdfast-cache/holdfast/internal/rediserr"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/rueidis"
)

// A batch whose next pipeline finds no slot within its budget has not been refused by
// Redis: as long as the others are answered, it waits for its turn.
func TestALargeBatchWaitsForItsTurnWhileOthersAreAnswered(t *testing.T) {
	server := redistest.Start(t)
	c, err := New(Options{Redis: rueidis.ClientOption{InitAddress: []string{server.Addr()}}, Timeout: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := c.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	s := c.routes.SeedLink.Gate.Load()
	items := make([]link.Item, 3*link.KeysAtOnce)
	for i := range items {
		items[i] = link.Item{Key: fmt.Sprint("key", i), Session: s}
	}
	bounded, done := c.remote.Bound(ctx, c.clock.Now())
	defer done()
	full, freed := make(chan struct{}), make(chan struct{})
	go func() { // others have all slots for four budgets, and are answered
		defer close(freed)
		<-full
		for range 40 {
			clock.Sleep(ctx, c.opts.Timeout/10)
			s.Completed.Add(1)
		}
		for range link.BulkheadSlots {
			s.Release()
		}
	}()
	answered := 0
	c.remote.Batch(bounded, items, 2, link.ReadCommands, func(i int, _ []rueidis.RedisResult, o link.Outcome) {
		if o.Class == rediserr.OK {
			answered++
		}
		if i == 0 {
			for range link.BulkheadSlots {
				if _, err := s.Acquire(ctx); err != nil {
					t.Error(err)
				}
			}
			close(full)
		}
	})
	<-freed
	if answered != len(items) {
		t.Errorf("%d of %d were answered", answered, len(items))
	}
}
