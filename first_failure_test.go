package holdfast_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

// A client that never gets through, for its password is wrong, said nothing at all:
// from Connecting to Connecting is no change.
func TestAWrongPasswordFromTheStartIsOneLineAndOneHookThatNameIt(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t, "--requirepass", "right")
	var h gossip
	var mu sync.Mutex
	var changes []holdfast.StateChange
	o := at(s.Addr())
	o.Redis.Password = "wrong"
	o.Breaker.MinBackoff, o.Breaker.MaxBackoff = 5*time.Millisecond, 5*time.Millisecond
	h.hear(&o)
	o.Hooks.OnStateChange = func(change holdfast.StateChange) {
		mu.Lock()
		defer mu.Unlock()
		changes = append(changes, change)
	}
	c := open(t, o)
	redistest.WaitFor(t, patience, "twenty attempts", func() bool {
		_, err := c.Get(ctx, "k")
		return errors.Is(err, holdfast.ErrMiss) && c.Stats().DialAttempts > 20
	})
	if lines := h.of("WRONGPASS"); len(lines) != 1 || !strings.Contains(lines[0], "level=WARN") {
		t.Errorf("%d lines name it: %q", len(lines), lines)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(changes) != 1 || changes[0].To != holdfast.Connecting || changes[0].Err == nil || !strings.Contains(changes[0].Err.Error(), "WRONGPASS") {
		t.Errorf("hooks: %+v", changes)
	}
}

// Each new cause is told, one that was told before once a minute at most, and where each
// is another one, as a server may word it, few.
func TestWhyRedisWasNotReachedIsToldOncePerCause(t *testing.T) {
	hour := func(t *testing.T, cause func(dial int) error) (told []string) {
		synctest.Test(t, func(t *testing.T) {
			var mu sync.Mutex
			dials := 0
			o := newVirtual(t).options()
			o.Redis.DialCtxFn = failing(func() error {
				mu.Lock()
				defer mu.Unlock()
				dials++
				return cause(dials)
			})
			o.Hooks.OnStateChange = func(change holdfast.StateChange) {
				mu.Lock()
				defer mu.Unlock()
				if change.From == holdfast.Connecting && change.To == holdfast.Connecting {
					told = append(told, change.Err.Error())
				}
			}
			c := open(t, o)
			for range 3600 {
				c.Get(context.Background(), "k")
				time.Sleep(time.Second)
			}
			synctest.Wait()
		})
		return told
	}
	if told := hour(t, func(n int) error { return fmt.Errorf("refused, from port %d", n) }); len(told) != 1 {
		t.Errorf("one cause in an hour was told %d times: %q", len(told), told)
	}
	if told := hour(t, func(n int) error {
		if n < 1000 {
			return errors.New("no route")
		}
		return errors.New("bad certificate")
	}); len(told) != 2 {
		t.Errorf("two causes were told as %q", told)
	}
	if told := hour(t, func(n int) error { return []error{errors.New("this"), errors.New("that")}[n%2] }); len(told) < 100 || len(told) > 122 {
		t.Errorf("two causes in turns were told %d times in an hour", len(told))
	}
	if told := hour(t, func(n int) error { return errors.New("says " + strings.Repeat("x", n)) }); len(told) > 16*61 {
		t.Errorf("%d causes were told in an hour", len(told))
	}
}

func failing(cause func() error) func(context.Context, string, *net.Dialer, *tls.Config) (net.Conn, error) {
	return func(context.Context, string, *net.Dialer, *tls.Config) (net.Conn, error) { return nil, cause() }
}
