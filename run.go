package holdfast

import (
	"context"
	"sync"
)

// graph guards which load waits for which others, through calls that their loaders
// make. There is one for all Caches, for a loader of one may ask another. Only calls
// from within a loader take it.
var graph sync.Mutex

// run is one call of a loader, for one key or for the keys of a batch, and who has
// an interest in it.
type run struct {
	mu struct {
		sync.Mutex
		refs   int  // who waits
		wanted bool // it is to end even if nobody waits
		over   bool // nobody did
		cancel context.CancelFunc
		urgent bool          // a load that has a place waits for it
		urged  chan struct{} // closed then
	}
	flights []*flight    // those it leads: written by its first caller, before that one leaves
	waits   map[*run]int // guarded by graph

	// Written before its first flight can be seen.
	table  *flights
	parent *run // the one whose loader asked for it first
}

// newRun makes a run that its first caller waits for.
func newRun() *run {
	r := new(run)
	r.mu.refs = 1
	return r
}

func (t *flights) unlink(parent, other *run) {
	if parent == nil {
		return
	}
	graph.Lock()
	defer graph.Unlock()
	if parent.waits[other]--; parent.waits[other] == 0 {
		delete(parent.waits, other)
	}
}

// link notes that the parent's loader waits for the other run; false where that one,
// by way of whatever it waits for, waits for the parent.
func (t *flights) link(parent, other *run) bool {
	if parent == nil {
		return true
	}
	if parent.within(t) {
		other.urge()
	}
	graph.Lock()
	defer graph.Unlock()
	if other.reaches(parent, make(map[*run]bool)) {
		return false
	}
	if parent.waits == nil {
		parent.waits = make(map[*run]int)
	}
	parent.waits[other]++
	return true
}

// within says whether a load of this table has asked for the run, or is it.
func (r *run) within(t *flights) bool {
	for ; r != nil; r = r.parent {
		if r.table == t {
			return true
		}
	}
	return false
}

// urge has the run go on without a place among Load.MaxConcurrent: a load that has one
// waits for it, and might keep the last.
func (r *run) urge() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mu.urged != nil && !r.mu.urgent {
		close(r.mu.urged)
	}
	r.mu.urgent = true
}

// urged is closed when the run is urged.
func (r *run) urged() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mu.urged == nil {
		r.mu.urged = make(chan struct{})
		if r.mu.urgent {
			close(r.mu.urged)
		}
	}
	return r.mu.urged
}

// reaches is called with the graph locked.
func (r *run) reaches(target *run, seen map[*run]bool) bool {
	if r == target {
		return true
	}
	seen[r] = true
	for next := range r.waits {
		if !seen[next] && next.reaches(target, seen) {
			return true
		}
	}
	return false
}

// enter counts somebody in who waits; false where the run is over.
func (r *run) enter() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mu.over {
		return false
	}
	r.mu.refs++
	return true
}

// leave counts them out, and says whether that was the last one, of a run that
// nothing else wants. It is over then.
func (r *run) leave() bool {
	r.mu.Lock()
	r.mu.refs--
	last := r.mu.refs == 0 && !r.mu.wanted && !r.mu.over
	r.mu.over = r.mu.over || last
	r.mu.Unlock()
	return last
}

// want has the run go on if nobody waits for it any more.
func (r *run) want() {
	r.mu.Lock()
	r.mu.wanted = true
	r.mu.Unlock()
}

// awaited says whether anybody waits.
func (r *run) awaited() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.mu.refs > 0
}

// start notes what ends the run's context; false where it is over already.
func (r *run) start(cancel context.CancelFunc) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.cancel = cancel
	return !r.mu.over
}
