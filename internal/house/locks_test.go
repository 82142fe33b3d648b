package house

import (
	"fmt"
	"testing"
)

func TestTheOrderOfLocksIsFollowedThroughCalls(t *testing.T) {
	p := load(t, map[string]string{"a.go": `package p

import (
	"os"
	"sync"
	"time"
)

type A struct{ mu sync.Mutex }
type B struct{ mu struct{ sync.RWMutex; n int } }
type C struct{ sync.Mutex }

var global sync.Mutex

func (a *A) direct(b *B) { a.mu.Lock(); defer a.mu.Unlock(); b.mu.RLock(); b.mu.RUnlock() }

// One after the other is no order.
func (a *A) after(c *C) { a.mu.Lock(); a.mu.Unlock(); c.Lock(); c.Unlock() }

func (b *B) through() { b.mu.Lock(); b.deeper(); b.mu.Unlock() }
func (b *B) deeper()  { func() { global.Lock(); defer global.Unlock() }() }

// A branch that returns has unlocked.
func (a *A) branch(c *C, yes bool) {
	a.mu.Lock()
	if yes {
		a.mu.Unlock()
		return
	}
	a.mu.Unlock()
	c.Lock()
	c.Unlock()
}

type hooks struct{ f func() }

func field(c *C) {
	h := hooks{f: func() { c.Lock(); os.Remove("x"); c.Unlock() }}
	run(h)
}
func run(h hooks) { global.Lock(); h.f(); global.Unlock() }

func each(a *A, f func()) { a.mu.Lock(); defer a.mu.Unlock(); f() }
func given(a *A)          { each(a, func() { var wg sync.WaitGroup; wg.Wait() }) }

type doer interface{ do() }
type impl struct{ d sync.Mutex }

func (i *impl) do() { i.d.Lock(); i.d.Unlock() }
func dynamic(c *C, d doer, unknown map[int]func()) { c.Lock(); d.do(); unknown[1](); c.Unlock() }

// What runs later runs without the lock.
func later(c *C) {
	c.Lock()
	defer c.Unlock()
	go func() { global.Lock(); global.Unlock() }()
	time.AfterFunc(1, func() { global.Lock(); global.Unlock() })
	var wg sync.WaitGroup
	wg.Go(func() { global.Lock(); global.Unlock() })
}

// The callee unlocks its caller's lock.
func (c *C) lockedDo() { c.Unlock(); global.Lock(); global.Unlock(); c.Lock() }
func handed(c *C)      { c.Lock(); c.lockedDo(); c.Unlock() }
func loops(c *C, ch chan int) {
	for {
		c.Lock()
		if len(ch) == 0 {
			break
		}
		c.Unlock()
	}
	select {
	case ch <- 1:
	default:
	}
	<-ch
	c.Unlock()
}
`})
	var got []string
	for _, h := range Locks([]*Package{p}) {
		got = append(got, fmt.Sprintf("%d %s %s", h.Kind, h.Lock, h.Does))
	}
	same(t, "held", got, []string{
		"0 A.mu B.mu",
		"0 B.mu global",
		"0 C impl.d",
		"0 global C",
		"1 C os.Remove",
		"1 global os.Remove",
		"2 A.mu wait",
		"2 C wait",
		"3 C call unknown[1]",
	})
}
