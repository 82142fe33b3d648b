package holdfast

import (
	"sync/atomic"
	"time"
	"unsafe"
)

// fence lets calls in, counts them out and, once closed, waits until the last
// has left: ristretto must not be closed beside a call. What a call does on its
// way out is count itself as a local hit or as anything else, so that the
// statistic and the fence are one increment.
type fence struct {
	closed atomic.Bool
	lanes  [fenceLanes]fenceLane
}

const fenceLanes = 32

type fenceLane struct {
	entered atomic.Uint64
	hits    atomic.Uint64 // calls that left with a local hit
	others  atomic.Uint64
	_       [40]byte // a cache line each
}

// enter returns the lane to leave by, and false where the fence is closed; the
// lane must be left in either case.
func (f *fence) enter() (*fenceLane, bool) {
	l := &f.lanes[lane()%fenceLanes]
	l.entered.Add(1)
	return l, !f.closed.Load()
}

// lane spreads callers over counters and locks by the address of their stack:
// goroutines on two cores then seldom share a cache line, whatever keys they ask
// for.
func lane() uintptr {
	var here byte
	return (uintptr(unsafe.Pointer(&here)) >> 11) * 0x9E3779B1 >> 7
}

func (l *fenceLane) hit()   { l.hits.Add(1) }
func (l *fenceLane) leave() { l.others.Add(1) }

// close keeps new calls out; it returns false where that was done before.
func (f *fence) close() bool { return f.closed.CompareAndSwap(false, true) }

// drained says whether nobody is inside. The exits are read first: if they
// equal the entries read later, nobody was inside at that moment, and after
// close nobody comes in to do anything.
func (f *fence) drained() bool {
	for i := range f.lanes {
		l := &f.lanes[i]
		out := l.hits.Load() + l.others.Load()
		if l.entered.Load() != out {
			return false
		}
	}
	return true
}

// wait returns when nobody is inside, or after limit; it says which. It polls: the
// calls inside are bounded by their budget, and a wake-up would cost every one of
// them.
func (f *fence) wait(limit time.Duration) bool {
	began := time.Now()
	for pause := 10 * time.Microsecond; !f.drained(); pause = min(2*pause, time.Millisecond) {
		if time.Since(began) > limit {
			return false
		}
		time.Sleep(pause)
	}
	return true
}

// visit is a stay inside the fence that can be interrupted for the caller's code: a
// codec may take as long as it likes, or end its goroutine, and Close waits for who is
// inside. It must be left.
type visit struct {
	fence *fence
	lane  *fenceLane // nil: not inside
	open  bool
}

func (f *fence) visit() *visit {
	v := &visit{fence: f}
	v.lane, v.open = f.enter()
	return v
}

// leave ends the visit, if it has not ended.
func (v *visit) leave() {
	if v.lane != nil {
		v.lane.leave()
		v.lane = nil
	}
}

// hit is leave with a local hit.
func (v *visit) hit() {
	v.lane.hit()
	v.lane = nil
}

// outside calls what is outside of the fence. If that was closed meanwhile, which open
// says afterwards, there is nothing more to be done inside.
func (v *visit) outside(what func() bool) bool {
	v.leave()
	defer func() { v.lane, v.open = v.fence.enter() }()
	return what()
}

func (f *fence) hits() uint64 {
	var n uint64
	for i := range f.lanes {
		n += f.lanes[i].hits.Load()
	}
	return n
}
