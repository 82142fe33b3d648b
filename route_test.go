package holdfast

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast/internal/link"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/rueidis"
)

// A server that hides what it is, or a proxy, answered MOVED: no reply was made of
// it, so Set returned nil, nothing was journaled, and the write was under way for
// ever.
func TestARedirectionOutsideAClusterLosesNoWrite(t *testing.T) {
	f := redistest.Respond(t, func(_ int, cmd []string) (string, bool) {
		switch {
		case cmd[0] == "HELLO":
			return "%2\r\n+proto\r\n:3\r\n+mode\r\n+standalone\r\n", true
		case cmd[0] == "INFO":
			return "$0\r\n\r\n", true
		case len(cmd) > 1 && strings.HasPrefix(cmd[1], "x"):
			return "-MOVED 1 127.0.0.1:1\r\n", true
		case cmd[0] == "GET":
			return "_\r\n", true
		}
		return "+OK\r\n", true
	})
	c, err := New(Options{Redis: rueidis.ClientOption{InitAddress: []string{f.Addr()}}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := c.WaitReady(ctx); err != nil {
		t.Fatal(err, c.Health().LastError)
	}
	const n = 100
	for i := range n {
		if err := c.Set(ctx, fmt.Sprint("x", i), []byte("v"), 0); err != nil {
			t.Fatal(err)
		}
	}
	if got := c.Stats().Journaled; got != n {
		t.Errorf("%d of %d writes journaled", got, n)
	}
	if v, err := c.Get(ctx, "x1"); err != nil || string(v) != "v" {
		t.Errorf("read back: %q, %v", v, err)
	}
	if got, err := c.GetMany(ctx, "x1", "x2", "xabsent"); err != nil || len(got) != 2 {
		t.Errorf("%d of 2 read back, %v", len(got), err)
	}
	redistest.WaitFor(t, time.Minute, "nothing to be under way", func() bool {
		return c.local.Writers() == 0
	})
}

// A slot that moves takes no new key, so the probe was redirected, and the next
// probe used the same key, for as long as the slot was on its way.
func TestAProbeWhoseKeyIsOnItsWayIsMadeWithAnother(t *testing.T) {
	var first sync.Map
	var addr atomic.Pointer[string]
	f := redistest.Respond(t, func(_ int, cmd []string) (string, bool) {
		for addr.Load() == nil {
			time.Sleep(time.Millisecond)
		}
		host, port, _ := strings.Cut(*addr.Load(), ":")
		switch {
		case cmd[0] == "HELLO":
			return "%2\r\n+proto\r\n:3\r\n+mode\r\n+cluster\r\n", true
		case cmd[0] == "INFO":
			return "$0\r\n\r\n", true
		case cmd[0] == "CLUSTER":
			return fmt.Sprintf("*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$%d\r\n%s\r\n:%s\r\n", len(host), host, port), true
		case cmd[0] == "SET":
			one, _ := first.LoadOrStore("key", cmd[1])
			if one == cmd[1] {
				return fmt.Sprintf("-ASK %d 127.0.0.1:1\r\n", link.SlotOf(cmd[1])), true
			}
		}
		return "+OK\r\n", true
	})
	a := f.Addr()
	addr.Store(&a)
	c, err := New(Options{Mode: ModeCluster, Redis: rueidis.ClientOption{InitAddress: []string{a}}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := c.WaitReady(ctx); err != nil {
		t.Errorf("%v; health %+v", err, c.Health())
	}
}

func TestAMapThatNoClusterCanHaveIsRefused(t *testing.T) {
	rows := func(n int, row func(i int) string) string {
		var b strings.Builder
		fmt.Fprintf(&b, "*%d\r\n", n)
		for i := range n {
			b.WriteString(row(i))
		}
		return b.String()
	}
	for name, slots := range map[string]string{
		"one slot, many masters": rows(3000, func(i int) string {
			return fmt.Sprintf("*3\r\n:5\r\n:5\r\n*2\r\n+127.0.0.1\r\n:%d\r\n", 1+i)
		}),
		"more masters than there may be": rows(2000, func(i int) string {
			return fmt.Sprintf("*3\r\n:%d\r\n:%d\r\n*2\r\n+127.0.0.1\r\n:%d\r\n", i, i, 1+i)
		}),
	} {
		t.Run(name, func(t *testing.T) {
			var d redistest.DialCounter
			f := redistest.Respond(t, func(_ int, cmd []string) (string, bool) {
				switch cmd[0] {
				case "HELLO":
					return "%2\r\n+proto\r\n:3\r\n+mode\r\n+cluster\r\n", true
				case "INFO":
					return "$0\r\n\r\n", true
				case "CLUSTER":
					return slots, true
				}
				return "+OK\r\n", true
			})
			c, err := New(Options{Mode: ModeCluster, Redis: rueidis.ClientOption{InitAddress: []string{f.Addr()}, DialCtxFn: d.Dial}})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			redistest.WaitFor(t, time.Minute, "the map to be refused", func() bool {
				err := c.Health().LastError
				return err != nil && strings.Contains(err.Error(), "makes no sense")
			})
			if n := d.Attempts(); n > 5 {
				t.Errorf("%d dials", n)
			}
		})
	}
}
