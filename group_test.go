package holdfast

import (
	"context"
	"crypto/tls"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast/internal/group"
	"github.com/redis/rueidis"
)

// One process died once beside Close: a WaitGroup takes it ill when somebody joins
// while it is waited for.
func TestAGroupThatIsWaitedForTakesNoFurtherMember(t *testing.T) {
	for range 2000 {
		var g group.Group
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
	var g group.Group
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

// A goroutine that the machine did not run is not blamed on hooks, of which there are none.
func TestAStarvedCloseBlamesNoneOfTheUsersCode(t *testing.T) {
	var f userCode
	var g group.Group
	var late stuck
	hold := make(chan struct{})
	g.Spawn("supervisor", func() { <-hold })
	late.group(&g, f.names)
	close(hold)
	g.Wait(time.Minute)
	const want = "holdfast: close: did not return in time: the goroutine supervisor, which had no time to run"
	if err := late.err(); err == nil || err.Error() != want {
		t.Errorf("%v", err)
	}
	if o := f.watch(rueidis.ClientOption{}, new(group.Group)); o.DialCtxFn != nil || o.AuthCredentialsFn != nil {
		t.Error("functions were set that the user did not set")
	}
	dials := 0
	o := f.watch(rueidis.ClientOption{DialCtxFn: func(context.Context, string, *net.Dialer, *tls.Config) (net.Conn, error) {
		dials = len(f.names())
		return nil, net.ErrClosed
	}}, new(group.Group))
	if _, err := o.DialCtxFn(context.Background(), "", nil, nil); err != net.ErrClosed || dials != 1 || len(f.names()) != 0 {
		t.Errorf("%v, %d names within the dial function, %d behind it", err, dials, len(f.names()))
	}
}
