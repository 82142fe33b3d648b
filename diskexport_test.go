package holdfast

import (
	"slices"
	"sync"

	"github.com/holdfast-cache/holdfast/internal/journal"
)

// HangDisk makes accesses of these kinds to the disk that has Journal.Dir stand still,
// all where none is named, until the function that it returns is called.
func HangDisk(c *Cache, kinds ...string) (goOn func()) { return hangDiskOf(c.journal, kinds...) }

func hangDiskOf(j *journal.Journal, kinds ...string) (goOn func()) {
	gate := make(chan struct{})
	before := func(op string) {
		if len(kinds) == 0 || slices.Contains(kinds, op) {
			<-gate
		}
	}
	j.BeforeDisk(before)
	return sync.OnceFunc(func() {
		j.BeforeDisk(nil)
		close(gate)
	})
}
