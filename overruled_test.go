package holdfast_test

import (
	"errors"
	"testing"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

// The server takes no sets, but it takes deletes, and the stream stands: what is
// in the journal for a key is older than what the server tells of it.
func TestWhatTheServerTellsOfOverrulesASetThatWaits(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	s.MustDo("MSET", "deleted", "base", "own", "base", "kept", "base")
	drops := make(chan holdfast.Drop, 10)
	o := tracked(s.Addr(), holdfast.TrackReads)
	o.Hooks.OnDrop = func(d holdfast.Drop) { drops <- d }
	c := open(t, o)
	ready(t, c)
	for _, key := range []string{"deleted", "own", "kept"} {
		held(t, c, key, "base")
	}
	s.MustDo("CONFIG", "SET", "maxmemory-policy", "noeviction")
	s.MustDo("CONFIG", "SET", "maxmemory", "1")
	for _, key := range []string{"deleted", "own", "kept"} {
		must(t, c.Set(ctx, key, []byte("waits"), 0))
	}
	waitState(t, c, holdfast.ReadOnly)
	wantGet(t, c, "deleted", "waits")

	s.MustDo("DEL", "deleted")
	redistest.WaitFor(t, patience, "the set to be overruled", func() bool {
		_, err := c.Get(ctx, "deleted")
		return errors.Is(err, holdfast.ErrMiss)
	})
	must(t, c.Delete(ctx, "own")) // of our own, which the server takes now
	must(t, c.Set(ctx, "own", []byte("waits again"), 0))
	wantGet(t, c, "kept", "waits")

	s.MustDo("CONFIG", "SET", "maxmemory", "0")
	waitState(t, c, holdfast.Up)
	drain(t, c)
	for key, want := range map[string]string{"deleted": "(nil)", "own": "waits again", "kept": "waits"} {
		if got := s.MustDo("GET", key); got != want {
			t.Errorf("%s is %s, want %s", key, got, want)
		}
	}
	if n := c.Stats().Downgraded; n != 1 {
		t.Errorf("%d sets became deletes, want 1", n)
	}
	if d := <-drops; d.Key != "deleted" || d.Reason != holdfast.DropDowngraded {
		t.Errorf("told of %+v", d)
	}
}

func TestAFlushOverrulesEverySetThatWaits(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	c := open(t, tracked(s.Addr(), holdfast.TrackReads))
	ready(t, c)
	s.MustDo("CONFIG", "SET", "maxmemory", "1")
	// Nothing is known of it, so what it finds would be no conflict.
	must(t, c.Set(ctx, "k", []byte("from before the flush"), 0))
	waitState(t, c, holdfast.ReadOnly)
	s.MustDo("FLUSHALL")
	redistest.WaitFor(t, patience, "the set to be overruled", func() bool {
		_, err := c.Get(ctx, "k")
		return errors.Is(err, holdfast.ErrMiss)
	})
	must(t, c.Set(ctx, "later", []byte("v"), 0))
	s.MustDo("CONFIG", "SET", "maxmemory", "0")
	waitState(t, c, holdfast.Up)
	drain(t, c)
	for key, want := range map[string]string{"k": "(nil)", "later": "v"} {
		if got := s.MustDo("GET", key); got != want {
			t.Errorf("%s is %s, want %s", key, got, want)
		}
	}
}
