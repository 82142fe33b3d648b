package holdfast_test

import (
	"errors"
	"testing"
	"time"

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

// A flush is told without its database. What was known to be there decides: if it is, it
// was another one.
func TestAFlushOverrulesASetWhoseBaseItTook(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	s.MustDo("SET", "k", "base")
	c := open(t, tracked(s.Addr(), holdfast.TrackReads))
	ready(t, c)
	held(t, c, "k", "base")
	s.MustDo("CONFIG", "SET", "maxmemory", "1")
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

// What was read here was deleted by somebody, and set again by us while no sets are taken.
// That nothing is there is how it was, whatever is told of another database then.
func TestAFlushElsewhereTakesNothingFromASetOfWhatWasGoneBefore(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	s.MustDo("MSET", "gone", "base", "there", "base")
	s.MustDo("EVAL", "redis.call('SELECT', 1) return redis.call('SET', 'x', 'x')", "0")
	c := open(t, tracked(s.Addr(), holdfast.TrackReads))
	ready(t, c)
	for _, key := range []string{"gone", "there"} {
		held(t, c, key, "base")
	}
	s.MustDo("DEL", "gone")
	s.MustDo("SET", "there", "base") // of both it is told
	told(t, c)
	s.MustDo("CONFIG", "SET", "maxmemory", "1")
	for _, key := range []string{"gone", "there"} {
		must(t, c.Set(ctx, key, []byte("ours"), 0))
	}
	waitState(t, c, holdfast.ReadOnly)
	elapsed(t, "a comparison", time.Now(), 200*time.Millisecond)
	s.MustDo("EVAL", "redis.call('SELECT', 1) return redis.call('FLUSHDB')", "0")
	elapsed(t, "comparisons", time.Now(), 200*time.Millisecond)
	wantGet(t, c, "gone", "ours")
	wantGet(t, c, "there", "ours")
	s.MustDo("DEL", "there") // and this is somebody's, of what is here
	redistest.WaitFor(t, patience, "the set to be overruled", func() bool {
		_, err := c.Get(ctx, "there")
		return errors.Is(err, holdfast.ErrMiss)
	})
	s.MustDo("CONFIG", "SET", "maxmemory", "0")
	waitState(t, c, holdfast.Up)
	drain(t, c)
	for key, want := range map[string]string{"gone": "ours", "there": "(nil)"} {
		if got := s.MustDo("GET", key); got != want {
			t.Errorf("%s is %s, want %s: %+v", key, got, want, c.Stats())
		}
	}
}

// Tracking knows no databases. A set that waited became a delete when somebody emptied
// another database, or wrote a key of the same name there.
func TestAnotherDatabasesWritesAndFlushesCostAComparisonAtMost(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	s.MustDo("MSET", "written", "base", "flushed", "base")
	c := open(t, tracked(s.Addr(), holdfast.TrackReads))
	ready(t, c)
	elsewhere := func(command string) {
		s.MustDo("EVAL", "redis.call('SELECT', 1) return redis.call("+command+")", "0")
	}
	elsewhere("'MSET', 'x', 'x', 'written', 'theirs'")
	held(t, c, "written", "base")
	held(t, c, "flushed", "base")
	s.MustDo("CONFIG", "SET", "maxmemory", "1")
	for _, key := range []string{"written", "flushed", "unknown"} {
		must(t, c.Set(ctx, key, []byte("ours"), 0))
	}
	waitState(t, c, holdfast.ReadOnly)
	told := c.Stats().Invalidations
	elsewhere("'DEL', 'written'")
	redistest.WaitFor(t, patience, "it to be told", func() bool { return c.Stats().Invalidations > told })
	elsewhere("'FLUSHDB'")
	elapsed(t, "comparisons", time.Now(), 200*time.Millisecond)
	for _, key := range []string{"written", "flushed", "unknown"} {
		wantGet(t, c, key, "ours")
	}
	s.MustDo("CONFIG", "SET", "maxmemory", "0")
	waitState(t, c, holdfast.Up)
	drain(t, c)
	for _, key := range []string{"written", "flushed", "unknown"} {
		if got := s.MustDo("GET", key); got != "ours" {
			t.Errorf("%s is %s", key, got)
		}
	}
	if st := c.Stats(); st.Downgraded != 0 || st.Superseded != 0 {
		t.Errorf("%+v", st)
	}
}
