package holdfast

import (
	"context"
	"sync"
)

// graph guards run.waits: which loads wait for which others because their loaders ask for
// them. It is one lock for all Caches, because a loader of one may ask another. Only calls
// from within a loader take it.
var graph sync.Mutex

// run is one call of a loader, for one key or for the keys of a batch, and the count of the
// callers that wait for it.
type run struct {
	mu struct {
		sync.Mutex
		refs   int  // waiting callers
		wanted bool // it is to go on even if no caller waits
		over   bool // abandoned by its last caller
		cancel context.CancelFunc
		urgent bool          // a load that has a load slot waits for it
		urged  chan struct{} // closed when urgent is set
	}
	flights []*flight    // the flights it leads; written by its leader before that leaves
	waits   map[*run]int // guarded by graph

	// Written before its first flight can be seen.
	table  *flights
	parent *run // the run whose loader asked for it first; nil: none
}

// newRun returns a run with one waiting caller.
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

// link records that the parent's loader waits for the other run. It returns false, and
// records nothing, if the other run waits for the parent, directly or through further runs.
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

// within reports whether the run, or one of its ancestors, is a load of this table.
func (r *run) within(t *flights) bool {
	for ; r != nil; r = r.parent {
		if r.table == t {
			return true
		}
	}
	return false
}

// urge lets the run start without one of the Load.MaxConcurrent load slots: a load that has
// one waits for it, and that might be the last slot.
func (r *run) urge() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mu.urged != nil && !r.mu.urgent {
		close(r.mu.urged)
	}
	r.mu.urgent = true
}

// urged returns a channel that is closed when urge has been called.
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

// reaches reports whether r waits for target, directly or through further runs. The caller
// holds graph.
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

// enter adds a waiting caller. It returns false if the run has been abandoned.
func (r *run) enter() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mu.over {
		return false
	}
	r.mu.refs++
	return true
}

// leave removes a waiting caller. It returns true if that was the last one and the run was
// not wanted otherwise: then the run is abandoned.
func (r *run) leave() bool {
	r.mu.Lock()
	r.mu.refs--
	last := r.mu.refs == 0 && !r.mu.wanted && !r.mu.over
	r.mu.over = r.mu.over || last
	r.mu.Unlock()
	return last
}

// want lets the run go on even if no caller waits for it any more.
func (r *run) want() {
	r.mu.Lock()
	r.mu.wanted = true
	r.mu.Unlock()
}

// awaited reports whether a caller waits.
func (r *run) awaited() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.mu.refs > 0
}

// start stores the function that cancels the run's context. It returns false if the run has
// been abandoned already.
func (r *run) start(cancel context.CancelFunc) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.cancel = cancel
	return !r.mu.over
}
