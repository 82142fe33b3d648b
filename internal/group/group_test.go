package group

import (
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// One process died once beside Close: a WaitGroup takes it ill when somebody joins
// while it is waited for.
func TestAGroupThatIsWaitedForTakesNoFurtherMember(t *testing.T) {
	for range 2000 {
		var g Group
		var ran, refused atomic.Int64
		var callers sync.WaitGroup
		begin := make(chan struct{})
		for range 4 {
			callers.Go(func() {
				<-begin
				for range 8 {
					// A member may bring others, as a supervisor does.
					if !g.Spawn("member", func() {
						ran.Add(1)
						g.Spawn("child", func() { ran.Add(1) })
					}) {
						refused.Add(1)
					}
				}
			})
		}
		close(begin)
		if !g.Wait(time.Minute) {
			t.Fatal("the members did not end")
		}
		atZero := ran.Load()
		if g.Spawn("late", func() { ran.Add(1) }) {
			t.Fatal("a group that was waited for took a member")
		}
		callers.Wait()
		if !g.Wait(0) || ran.Load() != atZero {
			t.Fatalf("%d members ran after the wait was over", ran.Load()-atZero)
		}
	}
}

func TestAGroupSaysWhoDoesNotEnd(t *testing.T) {
	var g Group
	hold := make(chan struct{})
	g.Spawn("replayer", func() { <-hold })
	g.Spawn("supervisor", func() { <-hold })
	g.Spawn("dial", func() {})
	if g.Wait(10 * time.Millisecond) {
		t.Fatal("wait returned, though two members have not ended")
	}
	for !slices.Equal(g.Members(), []string{"replayer", "supervisor"}) {
		time.Sleep(time.Millisecond)
	}
	close(hold)
	if !g.Wait(time.Minute) || len(g.Members()) != 0 {
		t.Fatalf("%v did not end", g.Members())
	}
}

func TestAProfileShowsTheNamesOfTheGoroutines(t *testing.T) {
	var g Group
	let := make(chan struct{})
	for _, name := range []string{"one", "two", "two"} {
		started := make(chan struct{})
		g.Spawn(name, func() { close(started); <-let })
		<-started
	}
	var profile strings.Builder
	if err := pprof.Lookup("goroutine").WriteTo(&profile, 1); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"one", "two"} {
		if !strings.Contains(profile.String(), `"holdfast":"`+name+`"`) {
			t.Errorf("no goroutine is labelled %q", name)
		}
	}
	if got := g.Members(); !slices.Equal(got, []string{"one", "two"}) {
		t.Errorf("members: %q", got)
	}
	close(let)
	if !g.Wait(time.Minute) || len(g.Members()) != 0 {
		t.Errorf("left: %q", g.Members())
	}
}
