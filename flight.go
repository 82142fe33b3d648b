package holdfast

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

// flights shares loads: one a key at a time, for all who ask meanwhile. It is a
// leaf: it knows neither tiers nor loaders, and runs nothing.
//
//	phase     | step           | own write        | told             | end
//	reading   | loading        | overtaken, left  | noted: read anew | left
//	loading   | storing        | overtaken, left  | overtaken, left  | left
//	storing   | -              | waits for its end | noted           | left
//	overtaken | -              | -                | -                | -
//	resting   | -              | left             | left             | left, by its timer
//
// Left means that the key's place is free for the next flight. Whoever waits for a
// flight that has left gets what it brings all the same.
type flights struct {
	n      atomic.Int64 // of flights and listeners: who finds none pays one atomic load
	shards [flightShards]flightShard
}

const flightShards = 64

type flightShard struct {
	mu        sync.Mutex
	flights   map[keyHash]*flight
	listeners map[keyHash]chan<- struct{}
	_         [40]byte // a cache line each
}

// phase is where a flight stands. Guarded by the shard of its key.
type phase uint8

const (
	reading   phase = iota // whether the tiers have the key
	loading                // the loader runs, or waits for its turn
	storing                // what it brought is on its way into the tiers
	overtaken              // a write of the key came after its beginning
	ended
	resting // no flight: a failed load keeps the place for a pause
)

// flight is one key's part of a run.
type flight struct {
	h    keyHash
	run  *run
	done chan struct{}

	// Guarded by the shard.
	phase phase
	told  bool // the server told of the key in this phase
	timer *time.Timer

	// late: a write of ours came while it was being stored. Set before the write takes
	// its place among the key's writes, and asked where what was loaded takes its own.
	late atomic.Bool

	// Written before done is closed.
	entry Entry
	err   error
}

// errAgain is what a flight brings that was given up for no fault of the load's: who
// waits for it begins anew.
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

// role is what becomes of who asks for a key.
type role uint8

const (
	leads  role = iota // the flight is new, and the asker's to carry out
	waits              // somebody else carries it out
	rests              // a load failed a moment ago
	yields             // a write came over what is being stored: to be tried again when that is done
)

// join returns the key's flight, or a new one that is part of own. Who leads or waits
// must leave; who leads several flights of a run, drop it once and unlink each. parent is the run whose loader asks, nil for none; where that
// would wait for itself the error is errOwnKey.
func (t *flights) join(h keyHash, own, parent *run) (*flight, role, error) {
	sh := t.shard(h)
	for {
		sh.mu.Lock()
		f := sh.flights[h]
		if f == nil {
			f = &flight{h: h, run: own, done: make(chan struct{})}
			own.table, own.parent = t, parent
			own.flights = append(own.flights, f) // before anybody can see it
			sh.flights[h] = f
			t.n.Add(1)
			sh.mu.Unlock()
			t.link(parent, own)
			return f, leads, nil
		}
		rest, late := f.phase == resting, f.late.Load()
		sh.mu.Unlock()
		switch {
		case rest:
			return f, rests, nil
		case late:
			return f, yields, nil
		case !f.run.enter():
			t.remove(f) // nobody waited for it: it brings nothing
		case !t.link(parent, f.run):
			t.drop(f.run)
			return nil, 0, errOwnKey
		default:
			return f, waits, nil
		}
	}
}

// leave ends what join began.
func (t *flights) leave(f *flight, parent *run) {
	t.unlink(parent, f.run)
	t.drop(f.run)
}

// drop counts out somebody who waited for the run. When nobody is left, what it was
// to bring is given up.
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

// idle says that the key has neither flight nor rest.
func (t *flights) idle(h keyHash) bool {
	if t.n.Load() == 0 {
		return true
	}
	sh := t.shard(h)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	return sh.flights[h] == nil
}

// arm comes before each look into the tiers: what the server tells from now on may be
// of a change that the look missed.
func (t *flights) arm(f *flight) {
	sh := t.shard(f.h)
	sh.mu.Lock()
	f.told = false
	if f.phase == loading {
		f.phase = reading // it is looked for once more
	}
	sh.mu.Unlock()
}

// load goes from reading to loading. It says no where the server told of the key
// since arm: that may be the echo of an earlier write of ours, so it is read anew;
// the last time (force) it counts as a change.
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

// store goes from loading to storing; false where the flight was overtaken or has
// ended, and what it brought must not be kept.
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

// toldOf says whether the server told of the key in the present phase.
func (t *flights) toldOf(f *flight) bool {
	sh := t.shard(f.h)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	return f.told
}

// abort is end for who does not carry the flight out, and comes too late where what it
// brought is being stored: a write may be waiting for that to be over.
func (t *flights) abort(f *flight, err error) bool {
	return t.finish(f, Entry{}, err, 0, true)
}

// end gives everybody who waits what the flight brings, and frees its place, or
// keeps it for the length of rest. It says no where the flight had ended before.
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

// remove frees the flight's place, if it still has it.
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
	sh.notify(f.h) // it need not wait for a lease any more
}

func (sh *flightShard) notify(h keyHash) {
	if l := sh.listeners[h]; l != nil {
		select {
		case l <- struct{}{}:
		default:
		}
	}
}

// keeps says whether what the flight brings is to be kept, as far as is known.
func (t *flights) keeps(f *flight) bool {
	sh := t.shard(f.h)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	return f.phase == reading || f.phase == loading
}

// overtake is told of a write of our own. A load that is under way is not to be
// kept. Where one is being stored, the write must wait until what it returns is
// closed: which of the two Redis would run last, nobody knows. It costs one atomic
// load where there is no flight.
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

// tell is told what the server told. It waits for nothing.
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

// listen has the channel told of what the server tells of the key, until unlisten.
// There is one listener a key.
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
