package holdfast

import (
	"context"
	"runtime/pprof"
	"sync"
	"time"
)

// group is every goroutine of one Cache. Nothing else in this package starts
// one.
type group struct{ wg sync.WaitGroup }

// spawn runs f under a name that a goroutine profile shows.
func (g *group) spawn(name string, f func()) {
	g.wg.Go(func() {
		pprof.Do(context.Background(), pprof.Labels("holdfast", name), func(context.Context) { f() })
	})
}

// wait returns when all have ended, or after limit; it says which.
func (g *group) wait(limit time.Duration) bool {
	done := make(chan struct{})
	go func() {
		g.wg.Wait()
		close(done)
	}()
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-done:
		return true
	case <-t.C:
		return false
	}
}
