package redistest

import (
	"fmt"
	"os"
	"sync"
	"testing"
)

// fullVariable is the one switch of the tests. With "1" in it all of them run, the
// long ones too, none of them is shortened, and one that needs a redis-server fails
// where there is none. Without it a run takes about a minute.
const fullVariable = "HOLDFAST_REQUIRE_REDIS"

// left are the tests that did not run in full, and why.
var left struct {
	sync.Mutex
	long, short, noServer map[string]bool
}

func note(into *map[string]bool, tb testing.TB) {
	left.Lock()
	defer left.Unlock()
	if *into == nil {
		*into = make(map[string]bool)
	}
	(*into)[tb.Name()] = true
}

func fullRun() bool { return os.Getenv(fullVariable) == "1" }

// Full says whether the test is to do all that it can, for minutes if it takes them.
// If not, it is counted as shortened. Full does not block.
func Full(tb testing.TB) bool {
	if !fullRun() {
		note(&left.short, tb)
	}
	return fullRun()
}

// Long skips a test unless the long ones are wanted. It does not block.
func Long(tb testing.TB) {
	tb.Helper()
	if !fullRun() {
		note(&left.long, tb)
		tb.Skipf("redistest: a long test; it runs with %s=1", fullVariable)
	}
}

// Run is m.Run for TestMain. It blocks for as long. When the tests have run it says how
// many were left out; "go test" shows that line in a package's own directory, with -v
// and on a failure, and hides it where it is given packages and they pass.
func Run(m *testing.M) int {
	status := m.Run()
	left.Lock()
	defer left.Unlock()
	if n := len(left.long) + len(left.short); n > 0 {
		fmt.Printf("redistest: %d long tests skipped and %d shortened; all run in full with %s=1\n",
			len(left.long), len(left.short), fullVariable)
	}
	if n := len(left.noServer); n > 0 {
		fmt.Printf("redistest: %d tests skipped for want of %s\n", n, binary())
	}
	return status
}
