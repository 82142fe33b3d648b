package holdfast_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/rueidis"
)

// A test run emptied its database of the shared Redis, as every minute. Tracking knows no
// databases: the copies of all others were taken for wrong, and the next outage found none.
func TestAFlushOfAnotherDatabaseCostsNoFallback(t *testing.T) {
	for name, flush := range map[string]func(other rueidis.Client) rueidis.Completed{
		"FLUSHDB":       func(other rueidis.Client) rueidis.Completed { return other.B().Flushdb().Build() },
		"FLUSHDB ASYNC": func(other rueidis.Client) rueidis.Completed { return other.B().Flushdb().Async().Build() },
	} {
		for _, filled := range []bool{true, false} {
			t.Run(fmt.Sprint(name, ", of something: ", filled), func(t *testing.T) {
				bothDatabases(t, filled, func(other rueidis.Client) error {
					return other.Do(t.Context(), flush(other)).Error()
				})
			})
		}
	}
}

func bothDatabases(t *testing.T, filled bool, flush func(other rueidis.Client) error) {
	ctx := begin(t)
	s := redistest.Start(t)
	o := tracked(s.Addr(), holdfast.TrackReads)
	o.Redis.SelectDB = 3
	c := open(t, o)
	ready(t, c)
	other := rawClient(t, rueidis.ClientOption{InitAddress: []string{s.Addr()}, SelectDB: 5})
	if filled {
		must(t, other.Do(ctx, other.B().Set().Key("k").Value("elsewhere").Build()).Error())
	}
	raw := rawClient(t, rueidis.ClientOption{InitAddress: []string{s.Addr()}, SelectDB: 3})
	for i := range 10 {
		key := fmt.Sprint("k", i)
		must(t, raw.Do(ctx, raw.B().Set().Key(key).Value("v").Build()).Error())
		held(t, c, key, "v")
	}
	told(t, c)
	before := c.Stats().RemoteHits

	must(t, flush(other))
	told(t, c)
	// Not fresh: which database it was, nobody said.
	wantGet(t, c, "k0", "v")
	if n := c.Stats().RemoteHits - before; n != 1 {
		t.Errorf("%d reads of Redis after the flush, want 1", n)
	}
	told(t, c)
	s.Kill()
	waitState(t, c, holdfast.Down)
	for i := range 10 {
		key := fmt.Sprint("k", i)
		if e, err := c.Lookup(ctx, key); err != nil || string(e.Value) != "v" || !e.Degraded {
			t.Errorf("%s in the outage: %+v, %v", key, e, err)
		}
	}
}

// Its own database is another matter, also where somebody writes there again at once.
func TestAFlushOfThisDatabaseLeavesNoFallback(t *testing.T) {
	beside(t)
	for _, how := range []string{"FLUSHDB", "FLUSHALL", "own FLUSHDB", "own FLUSHALL"} {
		t.Run(how, func(t *testing.T) {
			ctx := begin(t)
			s := redistest.Start(t)
			c := open(t, tracked(s.Addr(), holdfast.TrackReads))
			ready(t, c)
			for i := range 10 {
				s.MustDo("SET", fmt.Sprint("k", i), "v")
				held(t, c, fmt.Sprint("k", i), "v")
			}
			told(t, c)
			if own, ok := strings.CutPrefix(how, "own "); ok {
				wantSay(t, c.Client(), "OK", own)
			} else {
				s.MustDo(how)
			}
			s.MustDo("MSET", "a", "new", "b", "new")
			told(t, c)
			s.Kill()
			waitState(t, c, holdfast.Down)
			for i := range 10 {
				if e, err := c.Lookup(ctx, fmt.Sprint("k", i)); !errors.Is(err, holdfast.ErrMiss) {
					t.Errorf("k%d is served in the outage: %+v, %v", i, e, err)
				}
			}
		})
	}
}

// The client's own SWAPDB of two other databases made all its copies wrong.
func TestOwnSWAPDBOfOtherDatabasesCostsNoFallback(t *testing.T) {
	beside(t)
	for _, tt := range []struct {
		swap []string
		kept bool
	}{
		{[]string{"SWAPDB", "5", "6"}, true},
		{[]string{"swapdb", "0", "6"}, true},
		{[]string{"SWAPDB", "3", "6"}, false},
		{[]string{"SWAPDB", "6", "3"}, false},
	} {
		t.Run(strings.Join(tt.swap, " "), func(t *testing.T) {
			ctx := begin(t)
			s := redistest.Start(t)
			o := tracked(s.Addr(), holdfast.TrackReads)
			o.Redis.SelectDB = 3
			c := open(t, o)
			ready(t, c)
			must(t, c.Set(ctx, "k", []byte("v"), 0))
			held(t, c, "k", "v")
			wantSay(t, c.Client(), "OK", tt.swap...)
			if tt.kept {
				held(t, c, "k", "v")
			} else {
				wantGet(t, c, "k", "")
			}
			s.Kill()
			waitState(t, c, holdfast.Down)
			if e, err := c.Lookup(ctx, "k"); (err == nil && string(e.Value) == "v") != tt.kept {
				t.Errorf("in the outage: %+v, %v", e, err)
			}
		})
	}
}

// The server stood still for longer than Timeout just when it was asked which database it
// was: the fallbacks were given up, though it could be asked again.
func TestAServerThatIsSlowBehindAFlushIsAskedAgain(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	o := tracked(s.Addr(), holdfast.TrackReads)
	o.Redis.SelectDB = 3
	o.Breaker.Failures = 1000 // it is not given up for that
	var armed atomic.Bool
	o.Redis.DialCtxFn = func(ctx context.Context, addr string, d *net.Dialer, _ *tls.Config) (net.Conn, error) {
		conn, err := d.DialContext(ctx, "tcp", addr)
		return &slowInfo{Conn: conn, armed: &armed}, err
	}
	c := open(t, o)
	ready(t, c)
	for i := range 10 {
		must(t, c.Set(ctx, fmt.Sprint("k", i), []byte("v"), 0))
		held(t, c, fmt.Sprint("k", i), "v")
	}
	told(t, c)
	other := rawClient(t, rueidis.ClientOption{InitAddress: []string{s.Addr()}, SelectDB: 5})
	armed.Store(true)
	must(t, other.Do(ctx, other.B().Flushdb().Build()).Error())
	redistest.WaitFor(t, patience, "it to be asked", func() bool { return !armed.Load() })
	// It is asked again with the attempts that follow.
	for range 3 {
		time.Sleep(200 * time.Millisecond)
		told(t, c)
	}
	told(t, c)
	s.Kill()
	waitState(t, c, holdfast.Down)
	for i := range 10 {
		if e, err := c.Lookup(ctx, fmt.Sprint("k", i)); err != nil || string(e.Value) != "v" {
			t.Errorf("k%d in the outage: %+v, %v", i, e, err)
		}
	}
}

// slowInfo has the answer to a question for the number of keys wait, once it is armed.
type slowInfo struct {
	net.Conn
	armed *atomic.Bool
	until atomic.Int64
}

func (c *slowInfo) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte("keyspace")) && c.armed.Load() {
		c.until.Store(time.Now().Add(200 * time.Millisecond).UnixNano())
		c.armed.Store(false)
	}
	return c.Conn.Write(p)
}

func (c *slowInfo) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	time.Sleep(time.Until(time.Unix(0, c.until.Load())))
	return n, err
}
