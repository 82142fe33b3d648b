package holdfast

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

// flights shares loads: at most one load per key at a time, for all callers that ask
// meanwhile. It is a leaf: it knows neither tiers nor loaders, and runs nothing.
//
//	phase     | step    | own write          | invalidation        | end
//	reading   | loading | superseded, freed  | noted: read anew    | freed
//	loading   | storing | superseded, freed  | superseded, freed   | freed
//	storing   | -       | waits for the end  | noted               | freed
//	overtaken | -       | -                  | -                   | -
//	resting   | -       | freed              | freed               | freed, by its timer
//
// Freed means that the key's place is free for the next flight. A caller that waits for a
// freed flight still gets its result.
type flights struct {
	n      atomic.Int64 // of flights and listeners; while it is 0, a look-up is one atomic load
	shards [flightShards]flightShard
}

const flightShards = 64

type flightShard struct {
	mu        sync.Mutex
	flights   map[keyHash]*flight
	listeners map[keyHash]chan<- struct{}
	_         [40]byte // a cache line each
}

// phase is the state of a flight. Guarded by the shard of its key.
type phase uint8

const (
	reading   phase = iota // the tiers are being asked for the key
	loading                // the loader runs, or waits for a load slot or a lease
	storing                // the result is being stored in the tiers
	overtaken              // superseded by a write of the key, or invalidated while loading
	ended
	resting // no flight: a failed load keeps the place for a pause
)

// flight is the load of one key; it is part of a run.
type flight struct {
	h    keyHash
	run  *run
	done chan struct{}

	// Guarded by the shard.
	phase phase
	told  bool // invalidated in this phase
	timer *time.Timer

	// late is set when a write of ours supersedes the flight while its result is being
	// stored. The write sets it before it gets its sequence number; the store checks it
	// where it gets its own.
	late atomic.Bool

	// Written before done is closed.
	entry Entry
	err   error
}

// errAgain is the error of a flight that was given up although its load did not fail. Its
// callers begin anew.
var errAgain = errors.New("holdfast: begin anew")

var errOwnKey = errors.New("holdfast: the loader waits for its own key: it would wait for ever")

func newFlights() *flights {
	t := new(flights)
	for i := range t.shards {
		t.shards[i].flights = make(map[keyHash]*flight)
		t.shards[i].listeners = make(map[keyHash]chan<- struct{})
	}
	return t
}

func (t *flights) shard(h keyHash) *flightShard { return &t.shards[h.check%flightShards] }

// role is the part of a caller in the load of a key.
type role uint8

const (
	leads  role = iota // leader: the flight is new, and the caller carries it out
	waits              // follower: another caller carries it out
	rests              // cooling down: a load failed a moment ago
	yields             // a write superseded the result that is being stored: retry after that
)

// join returns the key's flight and the caller's role, or a new flight that is part of the
// run r. A leader or follower must call leave. A leader of several flights of one run calls
// drop once for the run, and unlink for each flight. parent is the run whose loader asks, or
// nil. If that loader would wait for itself, the error is errOwnKey.
func (t *flights) join(h keyHash, r, parent *run) (*flight, role, error) {
	sh := t.shard(h)
	for {
		sh.mu.Lock()
		f := sh.flights[h]
		if f == nil {
			f = &flight{h: h, run: r, done: make(chan struct{})}
			r.table, r.parent = t, parent
			r.flights = append(r.flights, f) // before any other goroutine can see it
			sh.flights[h] = f
			t.n.Add(1)
			sh.mu.Unlock()
			t.link(parent, r)
			return f, leads, nil
		}
		rest, superseded := f.phase == resting, f.late.Load()
		sh.mu.Unlock()
		switch {
		case rest:
			return f, rests, nil
		case superseded:
			return f, yields, nil
		case !f.run.enter():
			t.remove(f) // its callers have left: it has no result
		case !t.link(parent, f.run):
			t.drop(f.run)
			return nil, 0, errOwnKey
		default:
			return f, waits, nil
		}
	}
}

// leave ends the part of a caller that joined.
func (t *flights) leave(f *flight, parent *run) {
	t.unlink(parent, f.run)
	t.drop(f.run)
}

// drop removes one waiting caller from the run. Without callers the run's flights are aborted
// and its context is cancelled, unless it is to go on (want).
func (t *flights) drop(r *run) {
	if r.leave() {
		for _, f := range r.flights {
			t.abort(f, errAgain)
		}
		r.mu.Lock()
		cancel := r.mu.cancel
		r.mu.Unlock()
		if cancel != nil {
			cancel()
		}
	}
}

// idle reports that the key has no flight and is not cooling down.
func (t *flights) idle(h keyHash) bool {
	if t.n.Load() == 0 {
		return true
	}
	sh := t.shard(h)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	return sh.flights[h] == nil
}

// arm must be called before each look into the tiers: an invalidation from now on may be for
// a change that the look missed.
func (t *flights) arm(f *flight) {
	sh := t.shard(f.h)
	sh.mu.Lock()
	f.told = false
	if f.phase == loading {
		f.phase = reading // the tiers are asked once more
	}
	sh.mu.Unlock()
}

// load moves the flight from reading to loading. It returns false if the key was invalidated
// since arm: the message may be the echo of an earlier write of ours, so the caller reads
// anew. On the last try (force) it counts as a change and supersedes the flight.
func (t *flights) load(f *flight, force bool) bool {
	sh := t.shard(f.h)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	switch {
	case f.phase != reading:
	case !f.told:
		f.phase = loading
	case force:
		t.overtakeLocked(sh, f)
	default:
		return false
	}
	return true
}

// store moves the flight from loading to storing. It returns false if the flight was
// superseded or has ended: its result must not be stored.
func (t *flights) store(f *flight) bool {
	sh := t.shard(f.h)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if f.phase != loading {
		return false
	}
	f.phase, f.told = storing, false
	return true
}

// toldOf reports whether the key was invalidated in the present phase.
func (t *flights) toldOf(f *flight) bool {
	sh := t.shard(f.h)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	return f.told
}

// abort ends a flight with an error. It does nothing and returns false if the flight has
// ended or its result is being stored: a write may be waiting for the end of that.
func (t *flights) abort(f *flight, err error) bool {
	return t.finish(f, Entry{}, err, 0, true)
}

// end hands the flight's result to all waiting callers. It frees the key's place, or keeps it
// for the duration rest. It returns false if the flight had ended before.
func (t *flights) end(f *flight, e Entry, err error, rest time.Duration) bool {
	return t.finish(f, e, err, rest, false)
}

func (t *flights) finish(f *flight, e Entry, err error, rest time.Duration, abort bool) bool {
	sh := t.shard(f.h)
	sh.mu.Lock()
	if f.phase == ended || abort && f.phase == storing {
		sh.mu.Unlock()
		return false
	}
	f.phase = ended
	f.entry, f.err = e, err
	if sh.flights[f.h] == f {
		t.removeLocked(sh, f)
		if rest > 0 {
			t.restLocked(sh, f.h, rest)
		}
	}
	sh.mu.Unlock()
	close(f.done)
	return true
}

func (t *flights) restLocked(sh *flightShard, h keyHash, pause time.Duration) {
	r := &flight{h: h, phase: resting}
	sh.flights[h] = r
	t.n.Add(1)
	r.timer = time.AfterFunc(pause, func() { t.remove(r) })
}

// remove frees the key's place, if the flight still has it.
func (t *flights) remove(f *flight) {
	sh := t.shard(f.h)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.flights[f.h] == f {
		t.removeLocked(sh, f)
	}
}

func (t *flights) removeLocked(sh *flightShard, f *flight) {
	delete(sh.flights, f.h)
	t.n.Add(-1)
	if f.timer != nil {
		f.timer.Stop()
	}
}

func (t *flights) overtakeLocked(sh *flightShard, f *flight) {
	f.phase = overtaken
	t.removeLocked(sh, f)
	sh.notify(f.h) // the flight need not wait for a lease any more
}

func (sh *flightShard) notify(h keyHash) {
	if l := sh.listeners[h]; l != nil {
		select {
		case l <- struct{}{}:
		default:
		}
	}
}

// keeps reports whether the flight's result is still to be stored, as far as is known now.
func (t *flights) keeps(f *flight) bool {
	sh := t.shard(f.h)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	return f.phase == reading || f.phase == loading
}

// overtake handles a write of our own: it supersedes a load in progress. If a result is being
// stored, it returns a channel, and the write must wait until that is closed, because the
// order of the two in Redis would be unknown. Without a flight it costs one atomic load.
func (t *flights) overtake(h keyHash) <-chan struct{} {
	if t.n.Load() == 0 {
		return nil
	}
	sh := t.shard(h)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	switch f := sh.flights[h]; {
	case f == nil:
	case f.phase == storing:
		f.late.Store(true)
		return f.done
	case f.phase == resting:
		t.removeLocked(sh, f)
	default:
		t.overtakeLocked(sh, f)
	}
	return nil
}

// tell handles an invalidation. It waits for nothing but the shard's lock.
func (t *flights) tell(h keyHash) {
	if t.n.Load() == 0 {
		return
	}
	sh := t.shard(h)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	sh.notify(h)
	switch f := sh.flights[h]; {
	case f == nil:
	case f.phase == loading:
		t.overtakeLocked(sh, f)
	case f.phase == resting:
		t.removeLocked(sh, f)
	default:
		f.told = true
	}
}

// listen sends a signal on the channel for each invalidation of the key, until unlisten. A
// key has one listener.
func (t *flights) listen(h keyHash, l chan<- struct{}) {
	sh := t.shard(h)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.listeners[h] == nil {
		t.n.Add(1)
	}
	sh.listeners[h] = l
}

func (t *flights) unlisten(h keyHash, l chan<- struct{}) {
	sh := t.shard(h)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.listeners[h] == l {
		delete(sh.listeners, h)
		t.n.Add(-1)
	}
}
