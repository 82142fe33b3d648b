package journal

import (
	"slices"
	"sync"
)

func hangDisk(j *Journal, kinds ...string) (goOn func()) {
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
