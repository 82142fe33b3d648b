// Package inflight is a gate: it counts the calls that are in flight, and closes.
package inflight

import (
	"sync/atomic"
	"time"
	"unsafe"
)

// Gate is the gate of the calls in flight: it counts them in and out and, once closed, waits
// until the last has left. A local hit does not enter: there is nothing that must wait for it.
type Gate struct {
	Closed atomic.Bool
	shards [shardCount]Shard
}

const shardCount = 32

type Shard struct {
	entered atomic.Uint64
	left    atomic.Uint64
	_       [48]byte // a cache line each
}

// Enter returns the Shard by which the call must leave, and false if the gate is closed. The
// call must leave the Shard in either case.
func (f *Gate) Enter() (*Shard, bool) {
	l := &f.shards[Spread()%shardCount]
	l.entered.Add(1)
	return l, !f.Closed.Load()
}

// Spread spreads callers over counters and locks by the address of their stack: goroutines on
// two cores then seldom share a cache line, even if they ask for the same key.
func Spread() uintptr {
	var here byte
	return (uintptr(unsafe.Pointer(&here)) >> 11) * 0x9E3779B1 >> 7
}

// Leave ends a call's stay.
func (l *Shard) Leave() { l.left.Add(1) }

// Close keeps new calls out. It returns false if the gate was closed before.
func (f *Gate) Close() bool { return f.Closed.CompareAndSwap(false, true) }

// Drained reports whether no call is inside. In each Shard the exits are read first: if they
// equal the entries read later, no call was inside at that moment. After Close, a call that
// enters leaves again without doing anything.
func (f *Gate) Drained() bool {
	for i := range f.shards {
		l := &f.shards[i]
		out := l.left.Load()
		if l.entered.Load() != out {
			return false
		}
	}
	return true
}

// Wait returns true when no call is inside, or false after limit. It polls: the calls inside
// are bounded by their budget, and a wake-up would cost each of them.
func (f *Gate) Wait(limit time.Duration) bool {
	began := time.Now()
	for pause := 10 * time.Microsecond; !f.Drained(); pause = min(2*pause, time.Millisecond) {
		if time.Since(began) > limit {
			return false
		}
		time.Sleep(pause)
	}
	return true
}

// Guard is a call's stay inside the gate that can be interrupted for user code: a codec may
// run for any time, or end its goroutine, and Close waits for the calls inside. It must be
// ended by Leave.
type Guard struct {
	Gate  *Gate
	Shard *Shard // nil: not inside
	Open  bool
}

func (f *Gate) Guard() *Guard {
	v := &Guard{Gate: f}
	v.Shard, v.Open = f.Enter()
	return v
}

// Leave ends the stay. It does nothing if the stay has ended.
func (v *Guard) Leave() {
	if v.Shard != nil {
		v.Shard.Leave()
		v.Shard = nil
	}
}

// Pause calls f outside of the gate and enters again. If the gate was closed meanwhile, Open
// is false afterwards, and the caller must do nothing more inside.
func (v *Guard) Pause(f func() bool) bool {
	v.Leave()
	defer func() { v.Shard, v.Open = v.Gate.Enter() }()
	return f()
}
