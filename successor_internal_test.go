package holdfast

import (
	"context"
	"strings"
	"testing"
	"time"

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
	l := c.routes.seedLink
	replaced := func() *session {
		old := l.gate.Load()
		redistest.WaitFor(t, time.Minute, "another session", func() bool {
			now := l.gate.Load()
			return now != nil && now != old && old.lost.Load()
		})
		return old
	}
	s.MustDo("REPLICAOF", "127.0.0.1", strings.TrimPrefix(redistest.FreeAddr(t), "127.0.0.1:"))
	old := replaced()
	bounded, cancel := c.remote.bound(ctx, c.clock.Now())
	defer cancel()
	if v, out := c.remote.get(bounded, old, "k"); out.class != rediserr.OK || string(v.bytes) != "one" || out.session == old {
		t.Errorf("get: %+v, %+v", v, out)
	}
	old = replaced()
	n := 0
	c.remote.batch(bounded, []item{{key: "k", session: old}, {key: "k2", session: old}}, 2, readCommands, func(i int, replies []rueidis.RedisResult, out outcome) {
		if v, out := readValue(replies, out); out.class == rediserr.OK && string(v.bytes) == []string{"one", "two"}[i] {
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
	_, out := c.remote.one(bounded, old, "k", 1, func(b rueidis.Builder, it *item, cmds []rueidis.Completed) []rueidis.Completed {
		return append(cmds, setCommand(b, it.key, []byte("three"), 0))
	})
	if out.class != rediserr.WriteRefused || out.unknown {
		t.Errorf("set: %+v", out)
	}
}
