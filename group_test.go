package holdfast

import (
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// One process died once beside Close: a WaitGroup takes it ill when somebody joins
// while it is waited for.
func TestAGroupThatIsWaitedForTakesNoFurtherMember(t *testing.T) {
	for range 2000 {
		var g group
		var ran, refused atomic.Int64
		var callers sync.WaitGroup
		begin := make(chan struct{})
		for range 4 {
			callers.Go(func() {
				<-begin
				for range 8 {
					// A member may bring others, as a supervisor does.
					if !g.spawn("member", func() {
						ran.Add(1)
						g.spawn("child", func() { ran.Add(1) })
					}) {
						refused.Add(1)
					}
				}
			})
		}
		close(begin)
		if !g.wait(time.Minute) {
			t.Fatal("the members did not end")
		}
		atZero := ran.Load()
		if g.spawn("late", func() { ran.Add(1) }) {
			t.Fatal("a group that was waited for took a member")
		}
		callers.Wait()
		if !g.wait(0) || ran.Load() != atZero {
			t.Fatalf("%d members ran after the wait was over", ran.Load()-atZero)
		}
	}
}

func TestAGroupSaysWhoDoesNotEnd(t *testing.T) {
	var g group
	hold := make(chan struct{})
	g.spawn("replayer", func() { <-hold })
	g.spawn("supervisor", func() { <-hold })
	g.spawn("dial", func() {})
	if g.wait(10 * time.Millisecond) {
		t.Fatal("wait returned, though two members have not ended")
	}
	for !slices.Equal(g.members(), []string{"replayer", "supervisor"}) {
		time.Sleep(time.Millisecond)
	}
	close(hold)
	if !g.wait(time.Minute) || len(g.members()) != 0 {
		t.Fatalf("%v did not end", g.members())
	}
}
