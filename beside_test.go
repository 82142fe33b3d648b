package holdfast_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/rueidis"
)

// Another client of the same program writes, as the hook for go-redis does: Deliver before,
// Invalidate after. Readers fill the local tier all the while.
func TestWhatAnotherClientWroteIsReadAfterInvalidate(t *testing.T) {
	redistest.Long(t)
	ctx := begin(t)
	s := redistest.Start(t)
	for _, mode := range []holdfast.TrackingMode{holdfast.TrackReads, holdfast.TrackOff} {
		s.MustDo("FLUSHALL")
		o := at(s.Addr())
		o.Timeout, o.Tracking.Mode = 10*time.Second, mode
		c := open(t, o)
		ready(t, c)
		other := plainClient(t, s.Addr())
		var settled atomic.Int64
		stop := load(t, 3, func(int, int) {
			least := settled.Load()
			got, err := c.Get(ctx, "n")
			if err != nil && !errors.Is(err, holdfast.ErrMiss) {
				t.Errorf("get: %v", err)
			}
			if n, _ := strconv.ParseInt(string(got), 10, 64); n < least {
				t.Errorf("read %d after %d was settled", n, least)
			}
		})
		for i := range int64(1000) {
			must(t, c.Deliver(ctx, "n"))
			if n, err := other.Do(ctx, other.B().Incr().Key("n").Build()).AsInt64(); err != nil || n != i+1 {
				t.Fatalf("INCR: %d, %v; want %d", n, err, i+1)
			}
			must(t, c.Invalidate("n"))
			settled.Store(i + 1)
			wantGet(t, c, "n", strconv.FormatInt(i+1, 10))
		}
		stop()
	}
}

func TestSettleBringsRedisWhatTheJournalHolds(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	o := at(s.Addr())
	o.Timeout = 10 * time.Second
	o.Journal.MaxRate = 20 // so that the replay takes long
	c := open(t, o)
	ready(t, c)
	s.Kill()
	waitState(t, c, holdfast.Down)
	const n = 300
	for i := range n {
		must(t, c.Set(ctx, "k"+strconv.Itoa(i), []byte("10"), 0))
	}
	s.Restart()
	waitState(t, c, holdfast.Up)
	other := plainClient(t, s.Addr())
	for i := n - 1; i > n-10; i-- {
		key := "k" + strconv.Itoa(i)
		must(t, c.Deliver(ctx, key))
		if v, err := other.Do(ctx, other.B().Incr().Key(key).Build()).AsInt64(); err != nil || v != 11 {
			t.Fatalf("INCR %s: %d, %v; want 11", key, v, err)
		}
		must(t, c.Invalidate(key))
		wantGet(t, c, key, "11")
	}
	if c.Health().JournalKeys == 0 {
		t.Error("all was replayed before Deliver came: the test shows nothing")
	}
}

func TestInvalidateLeavesWhatTheJournalHolds(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	c := open(t, at(s.Addr()))
	ready(t, c)
	must(t, c.Set(ctx, "old", []byte("1"), 0))
	wantGet(t, c, "old", "1")
	s.Kill()
	waitState(t, c, holdfast.Down)
	must(t, c.Set(ctx, "new", []byte("2"), 0))
	must(t, c.Invalidate("old", "new", "none"))
	wantGet(t, c, "old", "")
	wantGet(t, c, "new", "2")
	s.Restart()
	waitState(t, c, holdfast.Up)
	drain(t, c)
	if got := s.MustDo("GET", "new"); got != "2" {
		t.Errorf("new is %q at Redis", got)
	}
}

func TestDeliverSaysAtOnceThatRedisIsAway(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	o := at(s.Addr())
	o.Timeout = patience // what waited would be noticed
	c := open(t, o)
	ready(t, c)
	must(t, c.Available(ctx))
	must(t, c.Deliver(ctx, "k"))
	s.Kill()
	waitState(t, c, holdfast.Down)
	must(t, c.Set(ctx, "journaled", []byte("1"), 0))
	began := time.Now()
	for _, keys := range [][]string{{"k"}, {"journaled"}, {"k", "journaled"}} {
		if err := c.Deliver(ctx, keys...); !errors.Is(err, holdfast.ErrUnavailable) {
			t.Errorf("deliver %v: %v; want ErrUnavailable", keys, err)
		}
	}
	if err := c.Available(ctx); !errors.Is(err, holdfast.ErrUnavailable) {
		t.Errorf("available: %v; want ErrUnavailable", err)
	}
	must(t, c.Deliver(ctx)) // of no keys: it is no question about Redis
	if d := time.Since(began); d > patience/10 {
		t.Errorf("it took %v", d)
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if err := c.Deliver(gone, "k"); !errors.Is(err, context.Canceled) {
		t.Errorf("deliver with an ended context: %v", err)
	}
	if err := c.Available(gone); !errors.Is(err, context.Canceled) {
		t.Errorf("available with an ended context: %v", err)
	}
	closed(t, c)
	if err := c.Deliver(ctx, "k"); !errors.Is(err, holdfast.ErrClosed) {
		t.Errorf("deliver after Close: %v", err)
	}
	if err := c.Deliver(ctx); !errors.Is(err, holdfast.ErrClosed) {
		t.Errorf("deliver of no keys after Close: %v", err)
	}
	if err := c.Available(ctx); !errors.Is(err, holdfast.ErrClosed) {
		t.Errorf("available after Close: %v", err)
	}
	if err := c.Invalidate("k"); !errors.Is(err, holdfast.ErrClosed) {
		t.Errorf("invalidate after Close: %v", err)
	}
	local := open(t, holdfast.Options{Redis: rueidis.ClientOption{}})
	if err := local.Deliver(ctx, "k"); !errors.Is(err, holdfast.ErrUnavailable) {
		t.Errorf("deliver without any Redis: %v", err)
	}
	if err := local.Available(ctx); !errors.Is(err, holdfast.ErrUnavailable) {
		t.Errorf("available without any Redis: %v", err)
	}
}

// The result of a read or a load that began before Invalidate is not kept.
func TestALoadThatBeganBeforeInvalidateIsNotKept(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	o := at(s.Addr())
	o.Timeout = 10 * time.Second
	c := open(t, o)
	ready(t, c)
	loading, release := make(chan struct{}), make(chan struct{})
	got := make(chan string)
	go func() {
		v, err := c.GetOrLoad(ctx, "k", time.Minute, func(context.Context) ([]byte, error) {
			close(loading)
			<-release
			return []byte("before"), nil
		})
		if err != nil {
			t.Error(err)
		}
		got <- string(v)
	}()
	<-loading
	must(t, c.Deliver(ctx, "k"))
	s.MustDo("SET", "k", "after")
	must(t, c.Invalidate("k"))
	close(release)
	<-got
	wantGet(t, c, "k", "after")
	if v := s.MustDo("GET", "k"); v != "after" {
		t.Errorf("k is %q at Redis", v)
	}
}

// A call that needs the journal's write of its key at Redis waits within its budget, also while the
// replay in the background is sending that write.
func TestACallWaitsForTheReplayThatHasItsKey(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	for i := range 60 {
		key := fmt.Sprint("k", i)
		o := at(s.Addr())
		if o.Timeout = 10 * time.Second; i%2 == 0 {
			o.Journal.Dir = t.TempDir()
		}
		c := open(t, o)
		must(t, c.Set(ctx, key, []byte("1"), 0))
		switch i % 4 {
		case 0:
			must(t, c.Deliver(ctx, key))
		case 1:
			if added, err := c.Add(ctx, key, nil, 0); err != nil || added {
				t.Fatalf("Add of a key that was set right after New: %v, %v", added, err)
			}
		case 2:
			wantSay(t, c.Client(), "2", "INCR", key)
			continue
		case 3: // a read whose reply is cached must see the write, too
			if n, err := c.Client().DoCache(ctx, cacheable(c.Client(), "STRLEN "+key), time.Hour).AsInt64(); err != nil || n != 1 {
				t.Fatalf("STRLEN of a key that was set right after New: %d, %v", n, err)
			}
			continue
		}
		if got := s.MustDo("GET", key); got != "1" {
			t.Fatalf("Redis holds %q", got)
		}
	}
}
