package wal

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
)

// model is a caller of a Log, and what it may find after a crash.
type model struct {
	t      *testing.T
	rng    *rand.Rand
	policy SyncPolicy
	faulty bool // the disk fails now and then
	fs     *memFS
	log    *Log
	trail  []line // the steps so far, to be shown on a failure

	// An earlier process was told that an fsync had failed and ended; this one reads
	// the pages that the kernel still has, and cannot know of the error. From then on no machine dies here.
	forgot bool

	doubted bool   // memory and files may differ, or Open has said so; until a Compact
	faults  int    // since everything was well
	silent  bool   // the marker could not be removed for certain: nothing warns
	lost    bool   // the machine died with what nobody had forced to the disk
	healing bool   // it died in a Compact, which may have succeeded
	during  string // the key whose write was not over when the process died
	before  entry  // and its entry before

	memory map[string]entry    // the contents that the caller expects
	may    map[string][]string // the values that may be found for a key; no entry: none
	fresh  map[string]bool     // keys whose number is of this run, and not forgotten
	seq    uint64
}

type entry struct {
	seq     uint64
	payload string
	live    bool
}

const absent = "(absent)"

func (e entry) String() string {
	if e.live {
		return e.payload
	}
	return absent
}

type line struct {
	format string
	args   []any
}

func (m *model) note(format string, args ...any) {
	m.trail = append(m.trail, line{format, args})
}

func (m *model) fatalf(format string, args ...any) {
	m.t.Helper()
	for _, l := range m.trail {
		m.t.Logf(l.format, l.args...)
	}
	m.t.Fatalf(format, args...)
}

// arm makes the directory fail, or crash at some change to come.
func (m *model) arm() {
	crash := m.rng.IntN(50)
	m.fs.fault = func(o op, name string, size int) (int, error) {
		if crash--; crash < 0 {
			m.note("  crash in %s %s", o, name)
			return m.rng.IntN(size + 1), errCrash
		}
		if !m.faulty || m.rng.IntN(12) > 0 {
			return size, nil
		}
		m.faults++
		m.note("  failure of %s %s", o, name)
		if o == opWrite && size > 0 && m.rng.IntN(3) == 0 {
			return m.rng.IntN(size), nil
		}
		return m.rng.IntN(size + 1), errDisk
	}
}

// write is told of a record that was written or not.
func (m *model) write(key string, e entry, err error) {
	m.note("%s = %v (%d): %v", key, e, e.seq, err)
	if m.fs.dead {
		m.during, m.before = key, m.memory[key]
	}
	m.memory[key], m.fresh[key] = e, true
	switch {
	case err == nil:
		m.may[key] = nil
	case m.may[key] == nil:
		m.may[key] = []string{absent}
	}
	m.may[key] = append(m.may[key], e.String())
}

func (m *model) step() {
	key := fmt.Sprint("k", m.rng.IntN(5))
	m.seq++
	switch n := m.rng.IntN(20); {
	case n < 9:
		e := entry{m.seq, fmt.Sprintf("%d.%0*d", m.seq, m.rng.IntN(40), 0), true}
		m.write(key, e, m.log.Put(key, e.seq, []byte(e.payload)))
	case n < 13:
		m.write(key, entry{seq: m.seq}, m.log.Drop(key, m.seq))
	case n < 16: // comes too late: a later one is there
		if e := m.memory[key]; m.fresh[key] && e.seq > 1 && len(m.may[key]) == 1 {
			m.note("%s too late (%d)", key, e.seq-1)
			m.log.Put(key, e.seq-1, []byte("too late"))
		}
	case n < 18:
		m.compact()
	default:
		m.reopen()
	}
	if !m.fs.dead {
		m.silent = m.silent || m.log.files.marker == lingers
		m.doubted = m.doubted || m.log.Err() != nil
		if m.log.Err() == nil && !m.doubted {
			m.faults, m.silent = 0, false
		}
	}
	if m.log.Err() == nil {
		for key, may := range m.may {
			if len(may) != 1 || may[0] != m.memory[key].String() {
				m.fatalf("%s may be %q, and everything is said to be durable", key, may)
			}
		}
	}
}

func (m *model) compact() {
	err := m.log.Compact(func(yield func(string, uint64, []byte) bool) {
		for _, key := range slices.Sorted(maps.Keys(m.memory)) {
			if e := m.memory[key]; e.live && !yield(key, e.seq, []byte(e.payload)) {
				return
			}
		}
	})
	m.note("compact: %v", err)
	for key, e := range m.memory {
		if !e.live {
			m.fresh[key] = false // its number is forgotten
		}
		if err == nil {
			m.may[key] = []string{e.String()}
		}
	}
	if m.healing = m.fs.dead; err == nil && m.log.Err() == nil {
		m.doubted = false
	}
}

func (m *model) reopen() {
	err := m.log.Close()
	m.note("close: %v", err)
	if m.fs.dead {
		return
	}
	m.doubted = m.doubted || err != nil
	m.silent = m.silent || m.log.files.marker == lingers
	if err == nil && !m.forgot && m.rng.IntN(2) == 0 {
		m.note("unplugged after Close")
		m.fs = m.fs.unplugged(m.rng)
	}
	m.open()
}

// open compares what is found with what may be.
func (m *model) open() {
	m.fs.fault = nil
	m.forgot = m.forgot || m.fs.amnesia()
	l, got, report := mustOpen(m.t, m.fs, Options{Sync: m.policy, SegmentBytes: 150})
	m.note("open: %v", report)
	// Then anything older may be found. Nothing at all cannot be out of date.
	told := m.lost && (report.Doubt != "" || report.Files == 0)
	if !m.faulty && !told && len(report.Damage) > 0 {
		m.fatalf("damaged without a fault of the disk: %v", report)
	}
	m.log = l
	for key := range got {
		if _, ok := m.may[key]; !ok {
			m.fatalf("%s was never there", key)
		}
	}
	for key, may := range m.may {
		e := entry{}
		e.payload, e.live = got[key]
		if !told && !slices.Contains(may, e.String()) {
			m.fatalf("%s is %v, and may be %q", key, e, may)
		}
		if s := m.memory[key].String(); report.Doubt == "" && report.Files > 0 && !m.silent && s != e.String() && (key != m.during || m.before.String() != e.String()) {
			m.fatalf("%s is %v, the caller had %s, and there is no doubt", key, e, s)
		}
		m.memory[key], m.may[key] = e, []string{e.String()}
	}
	if m.doubted && !m.silent && !m.healing && report.Doubt == "" && report.Files > 0 {
		m.fatalf("what was in doubt is so no more, without a Compact")
	}
	if report.Doubt != "" && !m.doubted && !m.lost && m.faults == 0 {
		m.fatalf("in doubt without a reason: %v", report)
	}
	m.doubted = report.Doubt != ""
	m.faults, m.silent, m.lost, m.healing, m.during = 0, false, false, false, ""
	clear(m.fresh)
	m.arm()
}

func TestWhatWasAcknowledgedIsFoundAfterAnyCrash(t *testing.T) {
	t.Parallel()
	runs := 1000
	if testing.Short() || raceDetector { // which has nothing to find where one goroutine is
		runs = 200
	}
	for _, policy := range []SyncPolicy{SyncNone, SyncAlways} {
		for _, faulty := range []bool{false, true} {
			t.Run(fmt.Sprintf("%v/faulty=%v", policy, faulty), func(t *testing.T) {
				t.Parallel()
				for seed := range runs {
					m := &model{
						t: t, rng: newRand(uint64(seed)), policy: policy, faulty: faulty, fs: newMemFS(),
						memory: make(map[string]entry), may: make(map[string][]string), fresh: make(map[string]bool),
					}
					m.note("seed %d", seed)
					m.run()
				}
			})
		}
	}
}

func (m *model) run() {
	m.open()
	for range 4 {
		for range 25 {
			if m.step(); m.fs.dead {
				break
			}
		}
		// Only what was forced to the disk outlives the machine, and who has forced
		// nothing is told.
		if !m.forgot && m.rng.IntN(2) == 0 {
			m.note("unplugged")
			m.fs = m.fs.unplugged(m.rng)
			m.lost = m.policy != SyncAlways
		} else {
			m.note("killed")
			m.fs = m.fs.killed()
		}
		m.open()
	}
}

// The same with callers at once, each of which knows its own key.
func TestWhatConcurrentCallersWereToldIsFoundAfterACrash(t *testing.T) {
	t.Parallel()
	runs := 200
	if testing.Short() {
		runs = 50
	}
	for seed := range runs {
		policy := []SyncPolicy{SyncNone, SyncInterval, SyncAlways}[seed%3]
		rng := newRand(uint64(seed))
		fs := newMemFS()
		l, _, _ := mustOpen(t, fs, Options{Sync: policy, SegmentBytes: 500})
		crash := rng.IntN(400)
		var dead atomic.Bool
		fs.fault = func(_ op, _ string, size int) (int, error) {
			if crash--; crash >= 0 {
				return size, nil
			}
			dead.Store(true)
			return max(0, size-10), errCrash
		}

		const callers = 8
		var memory struct {
			sync.Mutex
			last [callers]entry
		}
		var acknowledged [callers]entry
		var all sync.WaitGroup
		for c := range callers {
			all.Go(func() {
				key := fmt.Sprint(c)
				for seq := uint64(1); seq < 200; seq++ {
					e := entry{seq, fmt.Sprint(seq), seq%5 != 0}
					memory.Lock()
					memory.last[c] = e
					memory.Unlock()
					err := error(nil)
					if e.live {
						err = l.Put(key, seq, []byte(e.payload))
					} else {
						err = l.Drop(key, seq)
					}
					if err != nil {
						return
					}
					acknowledged[c] = e
				}
			})
		}
		all.Go(func() {
			for !dead.Load() {
				err := l.Compact(func(yield func(string, uint64, []byte) bool) {
					for c := range callers {
						memory.Lock()
						e := memory.last[c]
						memory.Unlock()
						if e.live && !yield(fmt.Sprint(c), e.seq, []byte(e.payload)) {
							return
						}
					}
				})
				if err != nil {
					return
				}
			}
		})
		all.Wait()
		l.Close()

		next := fs.killed()
		if policy == SyncAlways {
			next = next.unplugged(rng)
		}
		got, report := contentsOf(t, next)
		for c := range callers {
			e := entry{}
			e.payload, e.live = got[fmt.Sprint(c)]
			if s := e.String(); s != acknowledged[c].String() && s != memory.last[c].String() {
				t.Fatalf("seed %d, %v: of %d there is %s; acknowledged was %v, and written last %v (%v)",
					seed, policy, c, s, acknowledged[c], memory.last[c], report)
			}
		}
	}
}
