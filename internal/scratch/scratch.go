// Package scratch keeps slices that one call has used for the next one.
package scratch

import "sync"

// Slices keeps slices of the length of a batch from one batch for a later one. They would otherwise
// be most of the memory that a batch allocates. The zero value is ready for use.
type Slices[T any] struct {
	kept sync.Pool // of *[]T
}

// A slice that is kept has a capacity within these bounds: a shorter one is cheap to make, and a
// longer one would hold too much memory.
const (
	leastCap = 16
	mostCap  = 1024
)

// Get returns an empty slice with room for n elements.
func (s *Slices[T]) Get(n int) []T {
	if n >= leastCap {
		if kept, _ := s.kept.Get().(*[]T); kept != nil && cap(*kept) >= n {
			return (*kept)[:0]
		}
	}
	return make([]T, 0, n)
}

// Put takes back a slice to whose elements nothing refers any more.
func (s *Slices[T]) Put(used []T) {
	if cap(used) < leastCap || cap(used) > mostCap {
		return
	}
	clear(used) // so that it keeps no value alive
	s.kept.Put(&used)
}
