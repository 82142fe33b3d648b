// Package group starts goroutines and waits for their end.
package group

import (
	"context"
	"errors"
	"fmt"
	"runtime/pprof"
	"slices"
	"sync"
	"time"
)

// ErrClosed is the error of Call once Wait has been called.
var ErrClosed = errors.New("holdfast: the cache is closed")

// Group is a set of goroutines that end together. The package starts no other goroutines,
// except for the functions of timers and contexts, which are short: they close a connection,
// cancel a context or end a wait.
//
// Once Wait has been called, the group takes no further member, and Spawn returns false: the
// two exclude each other by the lock. So the count reaches zero once.
type Group struct {
	mu struct {
		sync.Mutex
		waited  bool
		count   int
		members map[string]*members
		ended   chan struct{} // made by the first wait; closed when no member is left
	}
}

// Spawn runs f on a goroutine, under a name that a goroutine profile shows. It returns false,
// and does not run f, once Wait has been called. All goroutines start here, so that none is
// left behind (law 10).
func (g *Group) Spawn(name string, f func()) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.mu.waited {
		return false
	}
	m := g.membersLocked(name)
	g.mu.count++
	m.running++
	go func() {
		defer g.leave(m)
		pprof.SetGoroutineLabels(m.labels)
		f()
	}()
	return true
}

// members are the members of one name.
type members struct {
	running int
	labels  context.Context // of their goroutines
}

func (g *Group) membersLocked(name string) *members {
	m := g.mu.members[name]
	if m == nil {
		if g.mu.members == nil {
			g.mu.members = make(map[string]*members)
		}
		m = &members{labels: pprof.WithLabels(context.Background(), pprof.Labels("holdfast", name))}
		g.mu.members[name] = m
	}
	return m
}

func (g *Group) leave(m *members) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.mu.count--
	m.running--
	if g.mu.count == 0 && g.mu.ended != nil {
		close(g.mu.ended)
	}
}

// Call runs f, user code with the given description, on a goroutine of its own and waits for
// it. The error says that f panicked or ended its goroutine, which must not be one of ours.
// It is ErrClosed, and f is not run, once Wait has been called.
func (g *Group) Call(name, desc string, f func()) (err error) {
	done := make(chan struct{})
	err = fmt.Errorf("holdfast: %s ended without returning", desc)
	if !g.Spawn(name, func() {
		defer close(done)
		defer func() {
			if r := recover(); r != nil {
				err = fmt.Errorf("holdfast: %s panicked: %.200v", desc, r)
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

// Wait returns true when all members have ended, or false after limit. From its beginning on,
// the group takes no further member.
func (g *Group) Wait(limit time.Duration) bool {
	g.mu.Lock()
	g.mu.waited = true
	if g.mu.count == 0 {
		g.mu.Unlock()
		return true
	}
	if g.mu.ended == nil {
		g.mu.ended = make(chan struct{})
	}
	done := g.mu.ended
	g.mu.Unlock()
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-done:
		return true
	case <-t.C:
		return false
	}
}

// Members returns the names of the members that run, sorted.
func (g *Group) Members() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	var names []string
	for name, m := range g.mu.members {
		if m.running > 0 {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}
