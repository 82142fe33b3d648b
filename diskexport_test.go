package holdfast

import (
	"slices"
	"sync"
)

// HangDisk makes accesses of these kinds to the disk that has Journal.Dir stand still,
// all where none is named, until the function that it returns is called.
func HangDisk(c *Cache, kinds ...string) (goOn func()) { return hangDisk(c.journal, kinds...) }

func hangDisk(j *journal, kinds ...string) (goOn func()) {
	gate := make(chan struct{})
	before := func(op string) {
		if len(kinds) == 0 || slices.Contains(kinds, op) {
			<-gate
		}
	}
	j.file.before.Store(&before)
	return sync.OnceFunc(func() {
		j.file.before.Store(nil)
		close(gate)
	})
}
