package holdfast

import (
	"context"
	"runtime/pprof"
	"sync"
	"time"
)

// group is goroutines that end together. Nothing else in this package starts one,
// but for timers' and contexts' functions, which close a connection and return.
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
