package holdfast_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

// leisurely is Options whose first moments last, whatever the machine has to do beside.
func leisurely(addr string) holdfast.Options {
	o := at(addr)
	o.Timeout, o.Redis.Dialer.Timeout = 5*time.Second, 30*time.Second
	return o
}

// The README's program, run once more with another value: its Set came milliseconds after
// New, waited in the journal, and was replayed as one that somebody had overruled, so the
// key was deleted. Every deployment, cron job and lambda does this.
func TestASetRightAfterNewReplacesWhatRedisHolds(t *testing.T) {
	kinds := map[string]func(o *holdfast.Options, dir string){
		"memory":    func(*holdfast.Options, string) {},
		"directory": func(o *holdfast.Options, dir string) { o.Journal.Dir = dir },
		"keep":      func(o *holdfast.Options, _ string) { o.Journal.OnConflict = holdfast.ConflictKeep },
		"prefixes": func(o *holdfast.Options, _ string) {
			o.Tracking = holdfast.TrackingOptions{Mode: holdfast.TrackOff}
		},
	}
	for name, kind := range kinds {
		t.Run(name, func(t *testing.T) {
			backends(t, func(t *testing.T, ctx context.Context, b backend) {
				dir := t.TempDir()
				b.set("gone", "old")
				for round := range 10 {
					o := leisurely(b.addr)
					kind(&o, dir)
					c, err := holdfast.New(o)
					must(t, err)
					_, err = c.Get(ctx, "user:7")
					if err != nil && !errors.Is(err, holdfast.ErrMiss) {
						t.Fatal(err)
					}
					must(t, c.Set(ctx, "user:7", []byte("of another moment"), time.Hour))
					must(t, c.Set(ctx, "user:7", fmt.Appendf(nil, "Ada %d", round), time.Hour))
					must(t, c.Delete(ctx, "gone"))
					closedEmpty(t, c)
					if v, _ := b.get("user:7"); v != fmt.Sprintf("Ada %d", round) {
						t.Fatalf("round %d: redis holds %q", round, v)
					}
					if v, found := b.get("gone"); found {
						t.Fatalf("round %d: redis holds %q of what was deleted", round, v)
					}
				}
			})
		})
	}
}

// Writes that come one after the other while the connection comes up: some wait in the
// journal, some go to Redis directly. The last one wins.
func TestWritesInTheFirstMomentsKeepTheirOrder(t *testing.T) {
	backends(t, func(t *testing.T, ctx context.Context, b backend) {
		for round := range 10 {
			c := open(t, leisurely(b.addr))
			b.set("k", "foreign")
			last := ""
			for i := 0; c.Health().State != holdfast.Up || i < 20; i++ {
				last = fmt.Sprintf("%d of %d", i, round)
				must(t, c.Set(ctx, "k", []byte(last), 0))
			}
			for i := range 20 {
				last = fmt.Sprintf("late %d of %d", i, round)
				must(t, c.Set(ctx, "k", []byte(last), 0))
			}
			drain(t, c)
			if v, _ := b.get("k"); v != last {
				t.Fatalf("round %d: redis holds %q, want %q", round, v, last)
			}
			if s := c.Stats(); s.Superseded != 0 {
				t.Fatalf("round %d: %d superseded", round, s.Superseded)
			}
			closedEmpty(t, c)
		}
	})
}

// A write that has waited for longer than Timeout is a write of an outage: Redis may hold a newer
// value.
func TestASetOlderThanTimeoutIsComparedAsAnyOther(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	p := redistest.NewProxy(t, s.Addr())
	s.MustDo("SET", "k", "theirs")
	p.SetMode(redistest.Hang)
	o := at(p.Addr())
	o.Timeout = max(200*time.Millisecond, budget())
	o.Redis.Dialer.Timeout = patience
	c := open(t, o)
	must(t, c.Set(ctx, "k", []byte("ours"), 0))
	began := time.Now()
	redistest.WaitFor(t, patience, "the Set to grow old", func() bool { return time.Since(began) > 2*o.Timeout })
	p.SetMode(redistest.Pass)
	ready(t, c)
	drain(t, c)
	if v := s.MustDo("GET", "k"); v == "ours" {
		t.Fatal("a set that waited for longer than Timeout replaced another client's value")
	}
}

// The random wait before a replay, which keeps a fleet from starting as one, is longer
// than a short Timeout: what waits as if it were on the wire is sent before.
func TestAWriteOfTheFirstMomentsDoesNotWaitForTheReplaysTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		v := newVirtual(t)
		for round := range 20 {
			v.redis.Set("k", "theirs")
			o := v.options()
			o.Timeout = 105 * time.Millisecond // in a bubble the first attempt is made within 100ms
			c := open(t, o)
			must(t, c.Set(ctx, "k", fmt.Appendf(nil, "ours %d", round), 0))
			closedEmpty(t, c)
			if got, _ := v.redis.Get("k"); got != fmt.Sprintf("ours %d", round) {
				t.Fatalf("round %d: redis holds %q", round, got)
			}
		}
	})
}

// The first attempt fails, so Redis was away: what was set meanwhile is compared with what
// is there, however soon the next attempt comes.
func TestASetBeforeAFirstAttemptThatFailsIsComparedAsAnyOther(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	p := redistest.NewProxy(t, s.Addr())
	s.MustDo("SET", "k", "theirs")
	p.SetMode(redistest.Refuse)
	c := open(t, leisurely(p.Addr()))
	must(t, c.Set(ctx, "k", []byte("ours"), 0))
	redistest.WaitFor(t, patience, "the first attempt to fail", func() bool { return c.Health().LastError != nil })
	p.SetMode(redistest.Pass)
	ready(t, c)
	drain(t, c)
	if v := s.MustDo("GET", "k"); v == "ours" {
		t.Fatal("a set of an outage replaced another client's value")
	}
}

// A token that is to be read once: GETDEL answered nil while Redis had it, and the delete
// ran all the same.
func TestGETDELRightAfterNewIsAnsweredByRedis(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	for i := range 10 {
		s.MustDo("SET", "token", "once")
		c := open(t, leisurely(s.Addr()))
		client := c.Client()
		if v, err := client.Do(ctx, client.B().Getdel().Key("token").Build()).ToString(); err != nil || v != "once" {
			t.Fatalf("round %d: %q, %v", i, v, err)
		}
		closed(t, c)
		if got := s.MustDo("EXISTS", "token"); got != "0" {
			t.Fatal("the token is still there")
		}
	}
}
