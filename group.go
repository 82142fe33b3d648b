package holdfast

import (
	"context"
	"fmt"
	"maps"
	"runtime/pprof"
	"slices"
	"sync"
	"time"
)

// group is goroutines that end together. Nothing else in this package starts one,
// but for timers' and contexts' functions, which close a connection and return.
//
// A group that is waited for takes no further member: spawn and the beginning of
// wait exclude each other. So wait counts down to zero once, and whoever comes
// later is told so.
type group struct {
	mu struct {
		sync.Mutex
		waited  bool
		count   int
		running map[string]int // members, by name
		ended   chan struct{}  // made by the first wait; closed when no member is left
	}
}

// spawn runs f under a name that a goroutine profile shows. It returns false, and
// f is not run, once the group is waited for.
func (g *group) spawn(name string, f func()) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.mu.waited {
		return false
	}
	if g.mu.running == nil {
		g.mu.running = make(map[string]int)
	}
	g.mu.count++
	g.mu.running[name]++
	go func() {
		defer g.leave(name)
		pprof.Do(context.Background(), pprof.Labels("holdfast", name), func(context.Context) { f() })
	}()
	return true
}

func (g *group) leave(name string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.mu.count--
	if g.mu.running[name]--; g.mu.running[name] == 0 {
		delete(g.mu.running, name)
	}
	if g.mu.count == 0 && g.mu.ended != nil {
		close(g.mu.ended)
	}
}

// call runs f, the user's code that what names, on a goroutine of its own and waits for
// it. The error is for one that did not return: it panicked, or ended its goroutine, which
// must not be one of ours. It is ErrClosed once the group is waited for.
func (g *group) call(name, what string, f func()) (err error) {
	done := make(chan struct{})
	err = fmt.Errorf("holdfast: %s ended without returning", what)
	if !g.spawn(name, func() {
		defer close(done)
		defer func() {
			if r := recover(); r != nil {
				err = fmt.Errorf("holdfast: %s panicked: %.200v", what, r)
			}
		}()
		f()
		err = nil
	}) {
		return ErrClosed
	}
	<-done
	return err
}

// wait returns when all have ended, or after limit; it says which. From its
// beginning on the group takes no further member.
func (g *group) wait(limit time.Duration) bool {
	g.mu.Lock()
	g.mu.waited = true
	if g.mu.count == 0 {
		g.mu.Unlock()
		return true
	}
	if g.mu.ended == nil {
		g.mu.ended = make(chan struct{})
	}
	ended := g.mu.ended
	g.mu.Unlock()
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-ended:
		return true
	case <-t.C:
		return false
	}
}

// members are the names of those that run.
func (g *group) members() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Sorted(maps.Keys(g.mu.running))
}
