package journal

import "sync"

// The hooks of tests.

// BeforeDisk has f called before each access to the disk, with the kind of access; nil ends
// that.
func (j *Journal) BeforeDisk(f func(op string)) {
	if f == nil {
		j.File.before.Store(nil)
		return
	}
	j.File.before.Store(&f)
}

// HoldSweeps keeps sweeps from running, as a disk that hangs does, until release is called.
func (j *Journal) HoldSweeps() (release func()) {
	j.File.sweeping <- struct{}{}
	return sync.OnceFunc(func() { <-j.File.sweeping })
}

// Sizes counts the intents in memory, beside the gauges.
func (j *Journal) Sizes() (intents int) {
	for i := range j.Shards {
		sh := &j.Shards[i]
		sh.Mu.RLock()
		intents += len(sh.Intents)
		sh.Mu.RUnlock()
	}
	return intents
}
