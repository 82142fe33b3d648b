// Package flight lets callers share loads: one load of a key at a time.
package flight

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-cache/holdfast/internal/keyhash"
)

// Table shares loads: at most one load per key at a time, for all callers that ask
// meanwhile. It is a leaf: it knows neither tiers nor loaders, and runs nothing.
//
//	phase     | step    | own write          | invalidation        | end
//	reading   | loading | superseded, freed  | noted: read anew    | freed
//	loading   | storing | superseded, freed  | superseded, freed   | freed
//	storing   | -       | waits for the end  | noted               | freed
//	superseded| -       | -                  | -                   | -
//	resting   | -       | freed              | freed               | freed, by its timer
//
// Freed means that the key's place is free for the next flight. A caller that waits for a
// freed flight still gets its result.
type Table[V any] struct {
	N      atomic.Int64 // of flights and listeners; while it is 0, a look-up is one atomic load
	Shards [flightShards]shard[V]
}

const flightShards = 64

type shard[V any] struct {
	Mu        sync.Mutex
	Flights   map[keyhash.Hash]*Flight[V]
	Listeners map[keyhash.Hash]chan<- struct{}
	_         [40]byte // a cache line each
}

// phase is the state of a flight. Guarded by the shard of its key.
type phase uint8

const (
	reading    phase = iota // the tiers are being asked for the key
	loading                 // the loader runs, or waits for a load slot or a lease
	storing                 // the result is being stored in the tiers
	superseded              // superseded by a write of the key, or invalidated while loading
	ended
	Resting // no flight: a failed load keeps the place for a pause
)

// Flight is the load of one key; it is part of a run.
type Flight[V any] struct {
	h    keyhash.Hash
	Run  *Run[V]
	Done chan struct{}

	// Guarded by the shard.
	Phase       phase
	invalidated bool // invalidated in this phase
	timer       *time.Timer

	// SupersededDuringStore is set when a write of ours supersedes the flight while its result is being
	// stored. The write sets it before it gets its sequence number; the store checks it
	// where it gets its own.
	SupersededDuringStore atomic.Bool

	// Written before done is closed.
	Result V
	Err    error
}

// ErrAgain is the error of a flight that was given up although its load did not fail. Its
// callers begin anew.
var ErrAgain = errors.New("holdfast: begin anew")

var errOwnKey = errors.New("holdfast: the loader waits for its own key: it would wait for ever")

func New[V any]() *Table[V] {
	t := new(Table[V])
	for i := range t.Shards {
		t.Shards[i].Flights = make(map[keyhash.Hash]*Flight[V])
		t.Shards[i].Listeners = make(map[keyhash.Hash]chan<- struct{})
	}
	return t
}

func (t *Table[V]) Shard(h keyhash.Hash) *shard[V] { return &t.Shards[h.Check%flightShards] }

// role is the part of a caller in the load of a key.
type role uint8

const (
	Leader          role = iota // leader: the flight is new, and the caller carries it out
	Follower                    // follower: another caller carries it out
	CoolingDown                 // cooling down: a load failed a moment ago
	RetryAfterWrite             // a write superseded the result that is being stored: retry after that
)

// Join returns the key's flight and the caller's role, or a new flight that is part of the
// run r. A leader or follower must call leave. A leader of several flights of one run calls
// drop once for the run, and unlink for each flight. parent is the run whose loader asks, or
// nil. If that loader would wait for itself, the error is errOwnKey.
func (t *Table[V]) Join(h keyhash.Hash, r, parent *Run[V]) (*Flight[V], role, error) {
	sh := t.Shard(h)
	for {
		sh.Mu.Lock()
		f := sh.Flights[h]
		if f == nil {
			f = &Flight[V]{h: h, Run: r, Done: make(chan struct{})}
			r.table, r.parent = t, parent
			r.Flights = append(r.Flights, f) // before any other goroutine can see it
			sh.Flights[h] = f
			t.N.Add(1)
			sh.Mu.Unlock()
			t.link(parent, r)
			return f, Leader, nil
		}
		rest, late := f.Phase == Resting, f.SupersededDuringStore.Load()
		sh.Mu.Unlock()
		switch {
		case rest:
			return f, CoolingDown, nil
		case late:
			return f, RetryAfterWrite, nil
		case !f.Run.enter():
			t.Remove(f) // its callers have left: it has no result
		case !t.link(parent, f.Run):
			t.Drop(f.Run)
			return nil, 0, errOwnKey
		default:
			return f, Follower, nil
		}
	}
}

// Leave ends the part of a caller that joined.
func (t *Table[V]) Leave(f *Flight[V], parent *Run[V]) {
	t.Unlink(parent, f.Run)
	t.Drop(f.Run)
}

// Drop removes one waiting caller from the run. Without callers the run's flights are aborted
// and its context is cancelled, unless it is to go on (want).
func (t *Table[V]) Drop(r *Run[V]) {
	if r.leave() {
		for _, f := range r.Flights {
			t.Abort(f, ErrAgain)
		}
		r.mu.Lock()
		cancel := r.mu.cancel
		r.mu.Unlock()
		if cancel != nil {
			cancel()
		}
	}
}

// Idle reports that the key has no flight and is not cooling down.
func (t *Table[V]) Idle(h keyhash.Hash) bool {
	if t.N.Load() == 0 {
		return true
	}
	sh := t.Shard(h)
	sh.Mu.Lock()
	defer sh.Mu.Unlock()
	return sh.Flights[h] == nil
}

// Arm must be called before each look into the tiers: an invalidation from now on may be for
// a change that the look missed.
func (t *Table[V]) Arm(f *Flight[V]) {
	sh := t.Shard(f.h)
	sh.Mu.Lock()
	f.invalidated = false
	if f.Phase == loading {
		f.Phase = reading // the tiers are asked once more
	}
	sh.Mu.Unlock()
}

// Load moves the flight from reading to loading. It returns false if the key was invalidated
// since arm: the message may be the echo of an earlier write of ours, so the caller reads
// anew. On the last try (force) it counts as a change and supersedes the flight.
func (t *Table[V]) Load(f *Flight[V], force bool) bool {
	sh := t.Shard(f.h)
	sh.Mu.Lock()
	defer sh.Mu.Unlock()
	switch {
	case f.Phase != reading:
	case !f.invalidated:
		f.Phase = loading
	case force:
		t.supersedeLocked(sh, f)
	default:
		return false
	}
	return true
}

// Store moves the flight from loading to storing. It returns false if the flight was
// superseded or has ended: its result must not be stored.
func (t *Table[V]) Store(f *Flight[V]) bool {
	sh := t.Shard(f.h)
	sh.Mu.Lock()
	defer sh.Mu.Unlock()
	if f.Phase != loading {
		return false
	}
	f.Phase, f.invalidated = storing, false
	return true
}

// InvalidatedSince reports whether the key was invalidated in the present phase.
func (t *Table[V]) InvalidatedSince(f *Flight[V]) bool {
	sh := t.Shard(f.h)
	sh.Mu.Lock()
	defer sh.Mu.Unlock()
	return f.invalidated
}

// Abort ends a flight with an error. It does nothing and returns false if the flight has
// ended or its result is being stored: a write may be waiting for the end of that.
func (t *Table[V]) Abort(f *Flight[V], err error) bool {
	return t.finish(f, *new(V), err, 0, true)
}

// End hands the flight's result to all waiting callers. It frees the key's place, or keeps it
// for the duration rest. It returns false if the flight had ended before.
func (t *Table[V]) End(f *Flight[V], e V, err error, rest time.Duration) bool {
	return t.finish(f, e, err, rest, false)
}

func (t *Table[V]) finish(f *Flight[V], e V, err error, rest time.Duration, abort bool) bool {
	sh := t.Shard(f.h)
	sh.Mu.Lock()
	if f.Phase == ended || abort && f.Phase == storing {
		sh.Mu.Unlock()
		return false
	}
	f.Phase = ended
	f.Result, f.Err = e, err
	if sh.Flights[f.h] == f {
		t.removeLocked(sh, f)
		if rest > 0 {
			t.restLocked(sh, f.h, rest)
		}
	}
	sh.Mu.Unlock()
	close(f.Done)
	return true
}

func (t *Table[V]) restLocked(sh *shard[V], h keyhash.Hash, pause time.Duration) {
	r := &Flight[V]{h: h, Phase: Resting}
	sh.Flights[h] = r
	t.N.Add(1)
	r.timer = time.AfterFunc(pause, func() { t.Remove(r) })
}

// Remove frees the key's place, if the flight still has it.
func (t *Table[V]) Remove(f *Flight[V]) {
	sh := t.Shard(f.h)
	sh.Mu.Lock()
	defer sh.Mu.Unlock()
	if sh.Flights[f.h] == f {
		t.removeLocked(sh, f)
	}
}

func (t *Table[V]) removeLocked(sh *shard[V], f *Flight[V]) {
	delete(sh.Flights, f.h)
	t.N.Add(-1)
	if f.timer != nil {
		f.timer.Stop()
	}
}

func (t *Table[V]) supersedeLocked(sh *shard[V], f *Flight[V]) {
	f.Phase = superseded
	t.removeLocked(sh, f)
	sh.notify(f.h) // the flight need not wait for a lease any more
}

func (sh *shard[V]) notify(h keyhash.Hash) {
	if l := sh.Listeners[h]; l != nil {
		select {
		case l <- struct{}{}:
		default:
		}
	}
}

// Keeps reports whether the flight's result is still to be stored, as far as is known now.
func (t *Table[V]) Keeps(f *Flight[V]) bool {
	sh := t.Shard(f.h)
	sh.Mu.Lock()
	defer sh.Mu.Unlock()
	return f.Phase == reading || f.Phase == loading
}

// Supersede handles a write of our own: it supersedes a load in progress. If a result is being
// stored, it returns a channel, and the write must wait until that is closed, because the
// order of the two in Redis would be unknown. Without a flight it costs one atomic load.
func (t *Table[V]) Supersede(h keyhash.Hash) <-chan struct{} {
	if t.N.Load() == 0 {
		return nil
	}
	sh := t.Shard(h)
	sh.Mu.Lock()
	defer sh.Mu.Unlock()
	switch f := sh.Flights[h]; {
	case f == nil:
	case f.Phase == storing:
		f.SupersededDuringStore.Store(true)
		return f.Done
	case f.Phase == Resting:
		t.removeLocked(sh, f)
	default:
		t.supersedeLocked(sh, f)
	}
	return nil
}

// Invalidate handles an invalidation. It waits for nothing but the shard's lock.
func (t *Table[V]) Invalidate(h keyhash.Hash) {
	if t.N.Load() == 0 {
		return
	}
	sh := t.Shard(h)
	sh.Mu.Lock()
	defer sh.Mu.Unlock()
	sh.notify(h)
	switch f := sh.Flights[h]; {
	case f == nil:
	case f.Phase == loading:
		t.supersedeLocked(sh, f)
	case f.Phase == Resting:
		t.removeLocked(sh, f)
	default:
		f.invalidated = true
	}
}

// Listen sends a signal on the channel for each invalidation of the key, until unlisten. A
// key has one listener.
func (t *Table[V]) Listen(h keyhash.Hash, l chan<- struct{}) {
	sh := t.Shard(h)
	sh.Mu.Lock()
	defer sh.Mu.Unlock()
	if sh.Listeners[h] == nil {
		t.N.Add(1)
	}
	sh.Listeners[h] = l
}

func (t *Table[V]) Unlisten(h keyhash.Hash, l chan<- struct{}) {
	sh := t.Shard(h)
	sh.Mu.Lock()
	defer sh.Mu.Unlock()
	if sh.Listeners[h] == l {
		delete(sh.Listeners, h)
		t.N.Add(-1)
	}
}
