package holdfast

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
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
	s := c.routes.seedLink.gate.Load()
	items := make([]item, 3*keysAtOnce)
	for i := range items {
		items[i] = item{key: fmt.Sprint("key", i), session: s}
	}
	bounded, done := c.remote.bound(ctx, c.clock.Now())
	defer done()
	full, freed := make(chan struct{}), make(chan struct{})
	go func() { // others have all slots for four budgets, and are answered
		defer close(freed)
		<-full
		for range 40 {
			clock.Sleep(ctx, c.opts.Timeout/10)
			s.completed.Add(1)
		}
		for range bulkheadSlots {
			s.release()
		}
	}()
	answered := 0
	c.remote.batch(bounded, items, 2, readCommands, func(i int, _ []rueidis.RedisResult, o outcome) {
		if o.class == rediserr.OK {
			answered++
		}
		if i == 0 {
			for range bulkheadSlots {
				if _, err := s.acquire(ctx); err != nil {
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
