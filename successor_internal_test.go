package holdfast

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast/internal/link"
	"github.com/holdfast-cache/holdfast/internal/rediserr"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/rueidis"
)

// A read-only server is looked for anew again and again, and each time another session
// takes the place of the one that serves. A call that had asked for the old one and had
// sent nothing yet was answered as if Redis were away.
func TestACallWhoseSessionWasReplacedBeforeItSentAnythingIsAnsweredByTheNext(t *testing.T) {
	s := redistest.Start(t)
	s.MustDo("SET", "k", "one")
	s.MustDo("SET", "k2", "two")
	o := Options{Redis: rueidis.ClientOption{InitAddress: []string{s.Addr()}}, Timeout: 5 * time.Second}
	o.Breaker.MinBackoff, o.Breaker.MaxBackoff = 10*time.Millisecond, 20*time.Millisecond
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx := context.Background()
	if err := c.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	l := c.routes.SeedLink
	replaced := func() *link.Session {
		old := l.Gate.Load()
		redistest.WaitFor(t, time.Minute, "another session", func() bool {
			now := l.Gate.Load()
			return now != nil && now != old && old.Lost.Load()
		})
		return old
	}
	s.MustDo("REPLICAOF", "127.0.0.1", strings.TrimPrefix(redistest.FreeAddr(t), "127.0.0.1:"))
	old := replaced()
	bounded, cancel := c.remote.Bound(ctx, c.clock.Now())
	defer cancel()
	if v, out := c.remote.Get(bounded, old, "k"); out.Class != rediserr.OK || string(v.Bytes) != "one" || out.Session == old {
		t.Errorf("get: %+v, %+v", v, out)
	}
	old = replaced()
	n := 0
	c.remote.Batch(bounded, []link.Item{{Key: "k", Session: old}, {Key: "k2", Session: old}}, 2, link.ReadCommands, func(i int, replies []rueidis.RedisResult, out link.Outcome) {
		if v, out := link.ReadValue(replies, out); out.Class == rediserr.OK && string(v.Bytes) == []string{"one", "two"}[i] {
			n++
		} else {
			t.Errorf("item %d: %+v, %+v", i, v, out)
		}
	})
	if n != 2 {
		t.Errorf("%d answers", n)
	}
	// A write finds out what the server says of writes.
	old = replaced()
	_, out := c.remote.One(bounded, old, "k", 1, func(b rueidis.Builder, it *link.Item, cmds []rueidis.Completed) []rueidis.Completed {
		return append(cmds, link.SetCommand(b, it.Key, []byte("three"), 0))
	})
	if out.Class != rediserr.WriteRefused || out.Unknown {
		t.Errorf("set: %+v", out)
	}
}
