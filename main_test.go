package holdfast_test

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast/internal/redistest"
	"go.uber.org/goleak"
)

// How the tests of this package run beside each other. Most of them wait for a server
// most of the time, so many run at once. Then nobody knows whose a goroutine is, and all
// tests are checked together for those that are left behind, when the last has ended.
// With -inturn the tests run one after another, and each is checked.
var inTurn = flag.Bool("inturn", false, "run one test after another, and check each for goroutines that it left behind")

func TestMain(m *testing.M) {
	if file := os.Getenv(victimEnv); file != "" {
		if err := victim(file); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	flag.Parse()
	chosen := *inTurn
	flag.Visit(func(f *flag.Flag) { chosen = chosen || f.Name == "test.parallel" })
	if !chosen {
		// The default, GOMAXPROCS, is for tests that compute.
		if err := flag.Set("test.parallel", fmt.Sprint(6*runtime.GOMAXPROCS(0))); err != nil {
			panic(err)
		}
	}
	if flag.Lookup("test.bench").Value.String() == "" { // its wake-ups would cost a benchmark of a local hit 8 ns of 90
		go measureLateness()
	}
	before := goleak.IgnoreCurrent()
	status := redistest.Run(m)
	if err := goleak.Find(before, ofRedistest); status == 0 && err != nil {
		fmt.Printf("some test left goroutines behind; -inturn says which: %v\n", err)
		status = 1
	}
	os.Exit(status)
}

var ofRedistest = goleak.IgnoreAnyFunction(redistest.SpawnerFunction)

// atOnce has the names of the tests that have begun, and whether they run beside others.
var atOnce sync.Map

// beside lets a test run beside others, unless it is to be undisturbed. It is for the
// first line of one whose subtests begin on their own, which stay in their order. It says
// whether others may run now.
func beside(t testing.TB) bool {
	t.Helper()
	test, ok := t.(*testing.T)
	name, _, isSubtest := strings.Cut(t.Name(), "/")
	if begun, is := atOnce.Load(name); is {
		return begun.(bool)
	}
	if !ok || *inTurn || isSubtest {
		return false
	}
	atOnce.Store(name, true)
	t.Cleanup(func() { atOnce.Delete(name) })
	test.Parallel()
	return true
}

// worstLateness has, for each of the last seconds, how much too late the machine woke a
// goroutine that slept: what stood still then, in the kernel or in this process, stood
// still for a test, too.
var worstLateness [64]struct{ second, late atomic.Int64 }

// asleepSince is when the goroutine that measures went to sleep.
var asleepSince atomic.Int64

func measureLateness() {
	const pause = 2 * time.Millisecond
	for {
		began := time.Now()
		asleepSince.Store(began.UnixNano())
		time.Sleep(pause)
		late := int64(time.Since(began) - pause)
		// A stall counts for each second that it was in, for it is over only now.
		for s := began.Unix(); s <= began.Add(pause+time.Duration(late)).Unix(); s++ {
			w := &worstLateness[s%int64(len(worstLateness))]
			if w.second.Swap(s) != s {
				w.late.Store(0)
			}
			w.late.Store(max(w.late.Load(), late))
		}
	}
}

// lateness is the worst of the last minute.
func lateness() time.Duration {
	worst, now := int64(0), time.Now().Unix()
	if asleep := asleepSince.Load(); asleep != 0 {
		worst = max(0, time.Now().UnixNano()-asleep-int64(3*time.Millisecond)) // it is late now
	}
	for i := range worstLateness {
		if s := worstLateness[i].second.Load(); s > now-60 && s <= now { // none is, in a bubble of time
			worst = max(worst, worstLateness[i].late.Load())
		}
	}
	return time.Duration(worst)
}

// budget is for Options.Timeout: the default, but for a machine that was seen to stall,
// on which a server that is well does not answer within that.
func budget() time.Duration {
	late := lateness()
	if late < 2*time.Millisecond {
		return 0
	}
	return 50*time.Millisecond + min(6*late, 900*time.Millisecond)
}

// slack is what the machine may add to a call and its budget: the scheduler's doing, the
// collector's and, under -race, the detector's. On a quiet machine it is less than a dial
// may take, so a call that waited for one is found out. On a machine that was seen to
// stall it is more: a call takes some six turns of a processor, its server's among them,
// and each may be as late as the worst that was seen. The budget grows likewise.
func slack() time.Duration { return leastSlack + 12*lateness() }

const leastSlack = (350 + 125*(raceFactor-1)) * time.Millisecond
