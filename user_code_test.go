package holdfast

import (
	"context"
	"crypto/tls"
	"net"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast/internal/group"
	"github.com/redis/rueidis"
)

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
