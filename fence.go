package holdfast

import (
	"sync/atomic"
	"time"
	"unsafe"
)

// fence is the gate of the calls in flight: it counts them in and out and, once closed, waits
// until the last has left: ristretto must not be closed beside a call. A call that leaves is
// counted as a local hit or as any other call, so that the statistic and the gate are one
// increment.
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

// enter returns the lane by which the call must leave, and false if the gate is closed. The
// call must leave the lane in either case.
func (f *fence) enter() (*fenceLane, bool) {
	l := &f.lanes[lane()%fenceLanes]
	l.entered.Add(1)
	return l, !f.closed.Load()
}

// lane spreads callers over counters and locks by the address of their stack: goroutines on
// two cores then seldom share a cache line, even if they ask for the same key.
func lane() uintptr {
	var here byte
	return (uintptr(unsafe.Pointer(&here)) >> 11) * 0x9E3779B1 >> 7
}

func (l *fenceLane) hit()   { l.hits.Add(1) }
func (l *fenceLane) leave() { l.others.Add(1) }

// close keeps new calls out. It returns false if the gate was closed before.
func (f *fence) close() bool { return f.closed.CompareAndSwap(false, true) }

// drained reports whether no call is inside. In each lane the exits are read first: if they
// equal the entries read later, no call was inside at that moment. After close, a call that
// enters leaves again without doing anything.
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

// wait returns true when no call is inside, or false after limit. It polls: the calls inside
// are bounded by their budget, and a wake-up would cost each of them.
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

// visit is a call's stay inside the gate that can be interrupted for user code: a codec may
// run for any time, or end its goroutine, and Close waits for the calls inside. It must be
// ended by leave or hit.
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

// leave ends the visit. It does nothing if the visit has ended.
func (v *visit) leave() {
	if v.lane != nil {
		v.lane.leave()
		v.lane = nil
	}
}

// hit ends the visit and counts a local hit.
func (v *visit) hit() {
	v.lane.hit()
	v.lane = nil
}

// outside calls f outside of the gate and enters again. If the gate was closed meanwhile,
// open is false afterwards, and the caller must do nothing more inside.
func (v *visit) outside(f func() bool) bool {
	v.leave()
	defer func() { v.lane, v.open = v.fence.enter() }()
	return f()
}

func (f *fence) hits() uint64 {
	var n uint64
	for i := range f.lanes {
		n += f.lanes[i].hits.Load()
	}
	return n
}
