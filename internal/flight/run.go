package flight

import (
	"context"
	"sync"
)

// graph guards Run.waits: which loads wait for which others because their loaders ask for them. It
// is one lock for all Caches, because a loader of one may ask another. Only calls from within a
// loader take it.
var graph sync.Mutex

// Run is one call of a loader, for one key or for the keys of a batch, and the count of the
// callers that wait for it.
type Run[V any] struct {
	mu struct {
		sync.Mutex
		refs   int  // waiting callers
		wanted bool // it is to go on even if no caller waits
		over   bool // abandoned by its last caller
		cancel context.CancelFunc
		urgent bool          // a load that has a load slot waits for it
		urged  chan struct{} // closed when urgent is set
	}
	Flights []*Flight[V]    // the flights it leads; written by its leader before that leaves
	waits   map[*Run[V]]int // guarded by graph

	// Written before its first flight can be seen.
	table  *Table[V]
	parent *Run[V] // the run whose loader asked for it first; nil: none
}

// NewRun returns a run with one waiting caller.
func NewRun[V any]() *Run[V] {
	r := new(Run[V])
	r.mu.refs = 1
	return r
}

func (t *Table[V]) Unlink(parent, other *Run[V]) {
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
func (t *Table[V]) link(parent, other *Run[V]) bool {
	if parent == nil {
		return true
	}
	if parent.within(t) {
		other.bypassLimit()
	}
	graph.Lock()
	defer graph.Unlock()
	if other.reaches(parent, make(map[*Run[V]]bool)) {
		return false
	}
	if parent.waits == nil {
		parent.waits = make(map[*Run[V]]int)
	}
	parent.waits[other]++
	return true
}

// within reports whether the run, or one of its ancestors, is a load of this table.
func (r *Run[V]) within(t *Table[V]) bool {
	for ; r != nil; r = r.parent {
		if r.table == t {
			return true
		}
	}
	return false
}

// bypassLimit lets the run start without one of the Load.MaxConcurrent load slots: a load that has
// one waits for it, and that might be the last slot.
func (r *Run[V]) bypassLimit() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mu.urged != nil && !r.mu.urgent {
		close(r.mu.urged)
	}
	r.mu.urgent = true
}

// LimitBypassed returns a channel that is closed when bypassLimit has been called.
func (r *Run[V]) LimitBypassed() <-chan struct{} {
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
func (r *Run[V]) reaches(target *Run[V], seen map[*Run[V]]bool) bool {
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
func (r *Run[V]) enter() bool {
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
func (r *Run[V]) leave() bool {
	r.mu.Lock()
	r.mu.refs--
	last := r.mu.refs == 0 && !r.mu.wanted && !r.mu.over
	r.mu.over = r.mu.over || last
	r.mu.Unlock()
	return last
}

// Want lets the run go on even if no caller waits for it any more.
func (r *Run[V]) Want() {
	r.mu.Lock()
	r.mu.wanted = true
	r.mu.Unlock()
}

// Awaited reports whether a caller waits.
func (r *Run[V]) Awaited() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.mu.refs > 0
}

// Start stores the function that cancels the run's context. It returns false if the run has
// been abandoned already.
func (r *Run[V]) Start(cancel context.CancelFunc) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.cancel = cancel
	return !r.mu.over
}
