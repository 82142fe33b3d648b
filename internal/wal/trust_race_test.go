package wal

import (
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Callers write, and go on in memory where the disk fails, while it is compacted,
// forced and closed beside them. Whoever is killed in between leaves the latest, or
// a doubt.
func TestWhatFailingDisksAndCompactsLeaveIsTheLatestOrInDoubt(t *testing.T) {
	t.Parallel()
	runs := 100
	if testing.Short() {
		runs = 40
	}
	var doubted, sure, failed int
	for seed := range runs {
		r := &failingRun{t: t, seed: seed, fs: newMemFS()}
		r.run()
		got, report := contentsOf(t, r.fs.killed())
		if r.failures.Load() > 0 {
			failed++
		}
		if report.Doubt != "" {
			doubted++
			continue
		}
		sure++
		for c := range r.memory.now {
			e := entry{}
			e.payload, e.live = got[fmt.Sprint(c)]
			may := []string{r.memory.now[c].String()}
			if r.memory.underWay[c] {
				may = append(may, r.memory.before[c].String())
			}
			if !slices.Contains(may, e.String()) && report.Files > 0 {
				t.Fatalf("seed %d: of %d there is %v, may be %v, and no doubt (%v)", seed, c, e, may, report)
			}
		}
	}
	t.Logf("%d runs with failures; %d in doubt, %d not", failed, doubted, sure)
	if doubted == 0 || sure == 0 {
		t.Errorf("of %d runs %d are in doubt and %d are not", runs, doubted, sure)
	}
}

const failingCallers = 6

type failingRun struct {
	t        *testing.T
	seed     int
	fs       *memFS
	log      *Log
	dead     atomic.Bool
	failures atomic.Int64

	memory struct {
		sync.Mutex
		now, before [failingCallers]entry
		underWay    [failingCallers]bool // the last write has not returned
	}
}

func (r *failingRun) run() {
	rng := newRand(uint64(r.seed))
	policy := policies[r.seed%3]
	l, _, _ := mustOpen(r.t, r.fs, Options{Sync: policy, Interval: 50 * time.Microsecond, SegmentBytes: 400})
	r.log = l
	crash := 1 + rng.IntN(400)
	closeAt := -1
	if r.seed%4 == 0 {
		closeAt = rng.IntN(crash) // it counts down, so it comes there
	}
	closing := make(chan struct{})
	r.fs.setFault(func(o op, name string, size int) (int, error) {
		crash--
		if crash == closeAt {
			close(closing)
		}
		switch {
		case crash < 0:
			r.dead.Store(true)
			return max(0, size-10), errCrash
		case name == markerName && (o == opRemove || o == opCut), rng.IntN(15) > 0:
			return size, nil // another test has what cannot be removed
		}
		r.failures.Add(1)
		return rng.IntN(size + 1), errDisk
	})
	var all sync.WaitGroup
	for c := range failingCallers {
		all.Go(func() { r.call(c) })
	}
	all.Go(r.compact)
	if closeAt >= 0 {
		all.Go(func() {
			<-closing
			l.Close()
			r.dead.Store(true) // and whatever is written from now on is not kept
		})
	}
	all.Wait()
	l.Close()
}

func (r *failingRun) call(c int) {
	for seq := uint64(1); ; seq++ {
		e := entry{seq, fmt.Sprint(seq), seq%5 != 0}
		r.memory.Lock()
		r.memory.before[c], r.memory.now[c], r.memory.underWay[c] = r.memory.now[c], e, true
		r.memory.Unlock()
		var err error
		if e.live {
			err = r.log.Put(fmt.Sprint(c), seq, []byte(e.payload))
		} else {
			err = r.log.Drop(fmt.Sprint(c), seq)
		}
		if r.dead.Load() || r.log.isClosed() {
			return
		}
		if err != nil {
			r.wantNoMarker(err)
			runtime.Gosched() // or it takes the processor from the Compact that ends this
		}
		r.memory.Lock()
		r.memory.underWay[c] = false
		r.memory.Unlock()
	}
}

// wantNoMarker looks while nothing is written, which only a Compact ends, and only a
// further failure begins again.
func (r *failingRun) wantNoMarker(err error) {
	state := func() (bool, uint64) {
		r.log.mu.Lock()
		defer r.log.mu.Unlock()
		return r.log.mu.stopped, r.log.mu.failures
	}
	stopped, failures := state()
	stands := r.fs.exists(markerName)
	still, since := state()
	if stopped && still && failures == since && stands && !r.dead.Load() { // which removes nothing
		r.t.Errorf("seed %d: %v is returned, and the marker stands", r.seed, err)
	}
}

func (r *failingRun) compact() {
	for !r.dead.Load() && !r.log.isClosed() {
		r.log.Compact(func(yield func(string, uint64, []byte) bool) {
			for c := range failingCallers {
				r.memory.Lock()
				e := r.memory.now[c]
				r.memory.Unlock()
				if e.live && !yield(fmt.Sprint(c), e.seq, []byte(e.payload)) {
					return
				}
			}
		})
	}
}
