package holdfast

import (
	"errors"
	"math"
	"math/rand/v2"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
)

var errTest = errors.New("redis did not answer")

func isClosed(b *breaker) bool { return b.WhileClosed(func() {}) }

func TestTheCircuitOpensAfterThatManyFailuresInARow(t *testing.T) {
	for _, n := range []int{1, 2, 5, 100} {
		opened := 0
		b := newBreaker(n, func() { opened++ })
		for i := range n - 1 {
			b.Failure(errTest)
			if !isClosed(b) {
				t.Fatalf("of %d: open after %d", n, i+1)
			}
		}
		b.Failure(errTest)
		if isClosed(b) || opened != 1 || b.opens.Load() != 1 {
			t.Errorf("after %d of %d: closed %v, told %d times, counted %d", n, n, isClosed(b), opened, b.opens.Load())
		}
	}
}

func TestAVeryLargeNumberOfFailuresIsNotASmallOne(t *testing.T) {
	if strconv.IntSize < 64 {
		t.Skip("an int cannot hold it here")
	}
	for _, n := range []int64{math.MaxInt32, math.MaxUint32, math.MaxUint32 + 1, math.MaxUint32 + 2, math.MaxInt64} {
		b := newBreaker(int(n), func() {})
		for range 10 {
			b.Failure(errTest)
		}
		if !isClosed(b) {
			t.Errorf("of %d: open after 10", n)
		}
	}
}

func TestASuccessInBetweenStartsTheRowAnew(t *testing.T) {
	const n = 3
	b := newBreaker(n, func() {})
	for range 10 {
		for range n - 1 {
			b.Failure(errTest)
		}
		b.Success()
		b.Success()
	}
	if !isClosed(b) {
		t.Fatal("open, and there never were three failures in a row")
	}
	for range n {
		b.Failure(errTest)
	}
	if isClosed(b) {
		t.Error("closed after three failures in a row")
	}
}

// A failure and a success that are reported at the same moment may count in
// either order. A success that is reported after both ends the row all the same:
// else sporadic failures among thousands of successes would add up.
func TestASuccessAfterAFailureEndsTheRowWhateverRanBesideIt(t *testing.T) {
	const n = 1 << 20
	b := newBreaker(n, func() {})
	const beside = 4
	for round := range 5000 {
		var wg sync.WaitGroup
		var failed atomic.Bool
		for range beside {
			wg.Go(func() {
				for !failed.Load() {
					b.Success()
				}
			})
		}
		b.Failure(errTest)
		failed.Store(true)
		wg.Wait()
		b.Success()
		b.mu.Lock()
		row := b.mu.cb.Counts().ConsecutiveFailures
		b.mu.Unlock()
		if row != 0 {
			t.Fatalf("round %d: a row of %d failures stands after a success", round, row)
		}
	}
}

func TestTripOpensAtOnceAndOnlyOnce(t *testing.T) {
	opened := 0
	b := newBreaker(1000, func() { opened++ })
	b.Trip()
	if isClosed(b) || opened != 1 || b.opens.Load() != 1 {
		t.Fatalf("closed %v, told %d times, counted %d", isClosed(b), opened, b.opens.Load())
	}
	b.Trip()
	if isClosed(b) || b.opens.Load() != 1 {
		t.Errorf("tripped twice: closed %v, counted %d", isClosed(b), b.opens.Load())
	}
	done, ok := b.Probe()
	if !ok {
		t.Fatal("no probe on an open circuit")
	}
	done(nil)
	for range 999 {
		b.Failure(errTest)
	}
	if !isClosed(b) {
		t.Error("a circuit that was tripped once opens too early ever after")
	}
}

func TestTheProbesResultDecides(t *testing.T) {
	told := 0
	b := newBreaker(3, func() { told++ })
	b.Trip()
	for i := range 3 {
		done, ok := b.Probe()
		if !ok {
			t.Fatalf("probe %d refused", i)
		}
		if _, ok := b.Probe(); ok {
			t.Fatal("two probes at once")
		}
		if isClosed(b) {
			t.Fatal("closed while the probe is out")
		}
		done(errTest)
		if isClosed(b) {
			t.Fatal("closed by a probe that failed")
		}
	}
	if b.opens.Load() != 1 {
		t.Errorf("%d openings, but it was open all the time", b.opens.Load())
	}
	if told != 4 {
		t.Errorf("told %d times that it is open: once, and after each probe that failed, is 4", told)
	}
	done, ok := b.Probe()
	if !ok {
		t.Fatal("the last probe refused")
	}
	done(nil)
	if !isClosed(b) {
		t.Error("open after a probe that succeeded")
	}
	for range 2 {
		b.Failure(errTest)
	}
	if !isClosed(b) {
		t.Error("failures from before the opening still count")
	}
	b.Failure(errTest)
	if isClosed(b) || b.opens.Load() != 2 {
		t.Errorf("closed %v after a second row, %d openings", isClosed(b), b.opens.Load())
	}
}

// Probes go on while the circuit is closed.
func TestAProbeOfAClosedCircuitCountsLikeACall(t *testing.T) {
	const n = 3
	b := newBreaker(n, func() {})
	probe := func(err error) {
		t.Helper()
		done, ok := b.Probe()
		if !ok {
			t.Fatal("no probe")
		}
		done(err)
	}
	for range 10 {
		for range n - 1 {
			probe(errTest)
		}
		b.Success() // of a call
		for range n - 1 {
			b.Failure(errTest)
		}
		if !isClosed(b) {
			t.Fatal("open, and there never were three failures in a row")
		}
		probe(nil)
	}
	b.Failure(errTest)
	probe(errTest)
	b.Failure(errTest)
	if isClosed(b) {
		t.Error("closed after three failures in a row, one of them a probe's")
	}
}

// A call that began before the circuit opened may report at any time. What it
// says is old: it must not pass for the probe's result, nor use up the probe.
func TestAStragglerNeitherClosesNorHalfOpensAnOpenCircuit(t *testing.T) {
	b := newBreaker(1, func() {})
	b.Trip()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if g%2 == 0 {
					b.Failure(errTest)
				} else {
					b.suspect.Store(true)
					b.Success()
				}
			}
		})
	}
	for i := range 1000 {
		done, ok := b.Probe()
		if !ok {
			t.Errorf("round %d: a straggler used up the probe", i)
			break
		}
		if i%16 == 0 {
			runtime.Gosched()
		}
		if isClosed(b) {
			t.Errorf("round %d: closed while the probe is out", i)
			break
		}
		done(errTest)
		if isClosed(b) {
			t.Errorf("round %d: a straggler closed the circuit", i)
			break
		}
	}
	close(stop)
	wg.Wait()
	if isClosed(b) || b.opens.Load() != 1 {
		t.Errorf("closed %v, %d openings", isClosed(b), b.opens.Load())
	}
}

// The circuit opens between a straggler's look at it and its report.
func TestAReportThatRacesTheOpeningDoesNotCloseIt(t *testing.T) {
	b := newBreaker(1000, func() {})
	for round := range 5000 {
		var wg sync.WaitGroup
		start := make(chan struct{})
		for range 3 {
			wg.Go(func() {
				<-start
				for range 4 {
					b.suspect.Store(true)
					b.Success()
				}
			})
		}
		wg.Go(func() {
			<-start
			b.Trip()
		})
		close(start)
		wg.Wait()
		if isClosed(b) {
			t.Fatalf("round %d: tripped, and closed without a probe", round)
		}
		done, ok := b.Probe()
		if !ok {
			t.Fatalf("round %d: a straggler used up the probe", round)
		}
		done(nil)
		if !isClosed(b) {
			t.Fatalf("round %d: open after a probe that succeeded", round)
		}
	}
}

func TestWhileClosedRunsOnAClosedCircuitAndKeepsItClosed(t *testing.T) {
	b := newBreaker(1, func() {})
	tripped := make(chan struct{})
	ran := b.WhileClosed(func() {
		go func() {
			b.Trip()
			close(tripped)
		}()
		for range 1000 {
			runtime.Gosched()
			if b.opens.Load() != 0 {
				t.Error("the circuit opened under whileClosed")
				break
			}
		}
	})
	<-tripped
	if !ran {
		t.Error("refused on a closed circuit")
	}
	refused := func(when string) {
		t.Helper()
		if b.WhileClosed(func() { t.Errorf("ran on a circuit that is %s", when) }) {
			t.Errorf("says that it ran on a circuit that is %s", when)
		}
	}
	refused("open")
	done, _ := b.Probe()
	refused("half-open")
	done(errTest)
	refused("open again")
}

func TestBackoffDoublesFromTheSecondTryToItsCap(t *testing.T) {
	for _, tt := range []struct {
		min, max time.Duration
		want     []time.Duration
	}{
		{100 * time.Millisecond, time.Second, []time.Duration{0, 100e6, 200e6, 400e6, 800e6, 1e9, 1e9, 1e9}},
		{time.Second, time.Second, []time.Duration{0, 1e9, 1e9}},
		{time.Millisecond, time.Hour, []time.Duration{0, 1e6, 2e6, 4e6, 8e6, 16e6, 32e6, 64e6, 128e6, 256e6, 512e6, 1024e6}},
		{300 * time.Millisecond, time.Second, []time.Duration{0, 300e6, 600e6, 1e9, 1e9}},
	} {
		for range 50 {
			b := clock.Backoff{Min: tt.min, Max: tt.max}
			for i, want := range tt.want {
				got := b.Next()
				if float64(got) < (1-clock.BackoffJitter)*float64(want)-1 || got > want {
					t.Fatalf("%v to %v: try %d waits %v, want %v less at most 15%%", tt.min, tt.max, i+1, got, want)
				}
			}
			b.Reset()
			if got := b.Next(); got != 0 {
				t.Fatalf("%v to %v: the first try after a reset waits %v", tt.min, tt.max, got)
			}
			if got := b.Next(); got > tt.min {
				t.Fatalf("%v to %v: the second try after a reset waits %v", tt.min, tt.max, got)
			}
		}
	}
}

func TestTheJitterUsesItsRange(t *testing.T) {
	b := clock.Backoff{Min: time.Second, Max: time.Second}
	b.Next()
	low, high := time.Hour, time.Duration(0)
	for range 10_000 {
		d := b.Next()
		low, high = min(low, d), max(high, d)
	}
	if low < 850*time.Millisecond || low > 855*time.Millisecond || high > time.Second || high < 995*time.Millisecond {
		t.Errorf("10,000 waits were between %v and %v, want 850ms and 1s", low, high)
	}
}

func TestBackoffNeverOverflows(t *testing.T) {
	type bounds struct{ min, max time.Duration }
	all := []bounds{
		{time.Millisecond, time.Millisecond}, {100 * time.Millisecond, time.Second},
		{time.Millisecond, 24 * time.Hour}, {time.Hour, 24 * time.Hour}, {1 << 62, math.MaxInt64}, {math.MaxInt64, math.MaxInt64},
		{1 << 32, 1 << 40},
		{1<<33 + 1, time.Hour}, // doubled 31 times, it is 2^31 in 64 bits
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		lo := time.Millisecond + time.Duration(rnd.Int64N(int64(time.Hour)))
		all = append(all, bounds{lo, lo + time.Duration(rnd.Int64N(int64(24*time.Hour)))})
	}
	for _, tt := range all {
		b := clock.Backoff{Min: tt.min, Max: tt.max}
		for try := 1; try <= 10_000; try++ {
			got := b.Next()
			if try == 1 {
				continue
			}
			want := math.Min(float64(tt.max), float64(tt.min)*math.Pow(2, float64(try-2)))
			// A float cannot hold the largest durations to the last nanosecond.
			if f := float64(got); got < 0 || got > tt.max || f > want*1.000001 || f < want*(1-clock.BackoffJitter)*0.999999-1 {
				t.Fatalf("%v to %v: try %d waits %v, want about %v", tt.min, tt.max, try, got, time.Duration(want))
			}
		}
	}
}
