package main

import (
	"errors"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"
)

// load is an amount of work.
type load struct {
	callers int
	ops     int // in all
	warm    int // before them, not measured
	every   int // the latency of one in so many operations is measured
}

// meter numbers the operations of a process, so that each can have keys of its own.
type meter struct{ next int }

// run measures op and, if it is not nil, finish, which waits for work that op has left
// behind. op gets the operation's number. Allocations and CPU are those of the whole process.
func (m *meter) run(l load, op func(n int) error, finish func()) (map[string]float64, error) {
	if l.warm > 0 {
		if _, _, err := m.spread(l.callers, l.warm, l.warm, op, func() {}); err != nil {
			return nil, err
		}
	}
	var before, after runtime.MemStats
	var cpu time.Duration
	var start time.Time
	took, ops, err := m.spread(l.callers, l.ops, l.every, op, func() {
		runtime.ReadMemStats(&before)
		cpu, start = cpuTime(), time.Now()
	})
	if finish != nil {
		finish()
	}
	wall := time.Since(start)
	cpu = cpuTime() - cpu
	runtime.ReadMemStats(&after)
	if err != nil {
		return nil, err
	}
	slices.Sort(took)
	at := func(percent int) float64 { return float64(took[(len(took)-1)*percent/100]) }
	return map[string]float64{
		"time":   float64(wall) / float64(ops),
		"cpu":    float64(cpu) / float64(ops),
		"p50":    at(50),
		"p99":    at(99),
		"allocs": float64(after.Mallocs-before.Mallocs) / float64(ops),
	}, nil
}

// spread has callers do about total operations. It calls start when the callers wait to
// begin. It returns the latencies of one in every operations, and how many there were.
func (m *meter) spread(callers, total, every int, op func(n int) error, start func()) (took []time.Duration, ops int, err error) {
	each := max(total/callers, 1)
	first := m.next
	ops = each * callers
	m.next += ops
	samples := (each-1)/every + 1
	took = make([]time.Duration, samples*callers)
	errs := make([]error, callers)
	begin := make(chan struct{})
	var wg sync.WaitGroup
	for c := range callers {
		wg.Go(func() {
			<-begin
			for i := range each {
				n := first + c*each + i
				if i%every != 0 {
					if err := op(n); err != nil {
						errs[c] = err
						return
					}
					continue
				}
				began := time.Now()
				if err := op(n); err != nil {
					errs[c] = err
					return
				}
				took[c*samples+i/every] = time.Since(began)
			}
		})
	}
	start()
	close(begin)
	wg.Wait()
	return took, ops, errors.Join(errs...)
}

// cpuTime returns the CPU time of this process, in user mode and in the kernel.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// heap returns the bytes in use after collections.
func heap() float64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}

// subject is a contender that is ready to be measured.
type subject struct {
	op    func(n int) error
	check func() error // afterwards: was that measured which was meant? May be nil.
	close func()
	per   int // an operation counts as so many; 0 is 1
}

// timed measures a subject under each load.
func timed(loads []load, open func(j *job) (*subject, error)) func(*job) ([]sample, error) {
	return func(j *job) ([]sample, error) {
		s, err := open(j)
		if err != nil {
			return nil, err
		}
		defer s.close()
		var m meter
		return s.measure(j, &m, "", loads)
	}
}

// measure measures the subject under each load, and checks it.
func (s *subject) measure(j *job, m *meter, line string, loads []load) ([]sample, error) {
	var all []sample
	runtime.GC() // of the garbage that the preparation has left
	for _, l := range loads {
		l.ops, l.warm = j.size(l.ops), j.size(l.warm)
		found, err := m.run(l, s.op, nil)
		if err != nil {
			return nil, err
		}
		for id := range found {
			found[id] /= float64(max(s.per, 1))
		}
		all = append(all, sample{point{line, l.callers}, found})
	}
	if s.check != nil {
		if err := s.check(); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// operations returns how many operations the loads of a job have, or more.
func operations(j *job, loads []load) int {
	n := 0
	for _, l := range loads {
		n += max(j.size(l.ops), l.callers) + max(j.size(l.warm), l.callers)
	}
	return n
}
