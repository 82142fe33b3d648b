package holdfast_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
)

// everyBackend runs a behaviour against no Redis at all, miniredis, and a real
// server.
func everyBackend(t *testing.T, test func(t *testing.T, ctx context.Context, c *holdfast.Cache)) {
	t.Helper()
	beside(t)
	t.Run("local only", func(t *testing.T) {
		ctx := begin(t)
		test(t, ctx, open(t, holdfast.Options{}))
	})
	backends(t, func(t *testing.T, ctx context.Context, b backend) {
		c := open(t, at(b.addr))
		ready(t, c)
		test(t, ctx, c)
	})
}

func TestWhatIsSetIsReadAndWhatIsDeletedIsGone(t *testing.T) {
	everyBackend(t, func(t *testing.T, ctx context.Context, c *holdfast.Cache) {
		wantGet(t, c, "k", "")
		must(t, c.Set(ctx, "k", []byte("v"), time.Minute))
		wantGet(t, c, "k", "v")
		must(t, c.Set(ctx, "k", []byte("w"), 0))
		wantGet(t, c, "k", "w")
		must(t, c.Delete(ctx, "k", "absent"))
		wantGet(t, c, "k", "")
		must(t, c.Delete(ctx))
	})
}

func TestAddStoresOnlyWhereNothingIs(t *testing.T) {
	everyBackend(t, func(t *testing.T, ctx context.Context, c *holdfast.Cache) {
		for i, want := range []bool{true, false} {
			if added, err := c.Add(ctx, "k", []byte(fmt.Sprint(i)), time.Minute); added != want || err != nil {
				t.Errorf("add %d: %v, %v", i, added, err)
			}
		}
		wantGet(t, c, "k", "0")
		if ttl, err := c.TTL(ctx, "k"); err != nil || ttl <= 50*time.Second || ttl > time.Minute {
			t.Errorf("ttl %v, %v", ttl, err)
		}
		must(t, c.Delete(ctx, "k"))
		if added, err := c.Add(ctx, "k", []byte("again"), 0); !added || err != nil {
			t.Errorf("add after a delete: %v, %v", added, err)
		}
	})
}

func TestTTLAndTouchSpeakOfTheKeysLife(t *testing.T) {
	everyBackend(t, func(t *testing.T, ctx context.Context, c *holdfast.Cache) {
		ttl := func(key string, least, most time.Duration) {
			t.Helper()
			if got, err := c.TTL(ctx, key); err != nil || got < least || got > most {
				t.Errorf("ttl of %s: %v, %v; want %v to %v", key, got, err, least, most)
			}
		}
		if _, err := c.TTL(ctx, "absent"); !errors.Is(err, holdfast.ErrMiss) {
			t.Errorf("ttl of nothing: %v", err)
		}
		if err := c.Touch(ctx, "absent", time.Minute); !errors.Is(err, holdfast.ErrMiss) {
			t.Errorf("touch of nothing: %v", err)
		}
		must(t, c.Set(ctx, "k", []byte("v"), time.Minute))
		ttl("k", 50*time.Second, time.Minute)
		must(t, c.Touch(ctx, "k", time.Hour))
		ttl("k", 59*time.Minute, time.Hour)
		must(t, c.Touch(ctx, "k", 0)) // DefaultTTL is 0: for ever
		ttl("k", 0, 0)
		must(t, c.Touch(ctx, "k", 0)) // a key without an end is not absent
		wantGet(t, c, "k", "v")
	})
}

func TestBatchesReadAndWriteAllTheirKeys(t *testing.T) {
	everyBackend(t, func(t *testing.T, ctx context.Context, c *holdfast.Cache) {
		items := map[string][]byte{}
		var keys []string
		for i := range 700 { // more than one pipeline
			key := fmt.Sprint("k", i)
			items[key] = []byte(key)
			keys = append(keys, key, "absent"+key)
		}
		must(t, c.SetMany(ctx, items, time.Minute))
		got, err := c.GetMany(ctx, keys...)
		if err != nil || len(got) != len(items) {
			t.Fatalf("%d of %d found, %v", len(got), len(items), err)
		}
		for key, v := range got {
			if string(v) != key {
				t.Errorf("%s is %q", key, v)
			}
		}
		if got, err := c.GetMany(ctx); err != nil || len(got) != 0 {
			t.Errorf("no keys: %v, %v", got, err)
		}
		must(t, c.SetMany(ctx, nil, 0))
	})
}

func TestAReturnedValueCannotGrowIntoAnothersAndASetKeepsItsOwn(t *testing.T) {
	everyBackend(t, func(t *testing.T, ctx context.Context, c *holdfast.Cache) {
		mine := []byte("value")
		must(t, c.Set(ctx, "k", mine, 0))
		mine[0] = 'X'
		wantGet(t, c, "k", "value")
		v, err := c.Get(ctx, "k")
		must(t, err)
		if cap(v) != len(v) {
			t.Errorf("cap %d of a value of %d bytes: an append would write into shared memory", cap(v), len(v))
		}
	})
}

func TestLookupTellsWhereAnAnswerComesFrom(t *testing.T) {
	backends(t, func(t *testing.T, ctx context.Context, b backend) {
		c := open(t, at(b.addr))
		ready(t, c)
		b.set("theirs", "v")
		for _, want := range []holdfast.Tier{holdfast.Remote, holdfast.Local} {
			e, err := c.Lookup(ctx, "theirs")
			if err != nil || string(e.Value) != "v" || e.Tier != want || e.Degraded || e.Stale || e.TTL != 0 {
				t.Errorf("lookup: %+v, %v; want tier %v", e, err, want)
			}
		}
		if e, err := c.Lookup(ctx, "absent"); !errors.Is(err, holdfast.ErrMiss) || e.Degraded {
			t.Errorf("a miss that redis confirms: %+v, %v", e, err)
		}
		st := c.Stats()
		if st.LocalHits != 1 || st.RemoteHits != 1 || st.Misses != 1 {
			t.Errorf("stats %+v", st)
		}
	})
}

// The error is Redis' own, the circuit stays closed, and nothing is journaled.
func TestAnErrorAboutACommandIsTheAnswer(t *testing.T) {
	ctx := begin(t)
	s, p := behind(t)
	c := open(t, at(p.Addr()))
	ready(t, c)
	s.MustDo("RPUSH", "list", "x")
	for range 10 {
		if _, err := c.Get(ctx, "list"); err == nil || !contains(err.Error(), "WRONGTYPE") {
			t.Fatalf("get of a list: %v", err)
		}
	}
	got, err := c.GetMany(ctx, "list", "absent")
	if len(got) != 0 || err == nil || !contains(err.Error(), "WRONGTYPE") {
		t.Errorf("getmany: %v, %v", got, err)
	}
	var typed *holdfast.Error
	if !errors.As(err, &typed) || typed.Key != "list" || typed.Op != "getmany" || typed.Tier != holdfast.Remote {
		t.Errorf("the error is %#v", err)
	}
	if st := c.Stats(); st.BreakerOpens != 0 || st.JournalKeys != 0 || c.Health().State != holdfast.Up {
		t.Errorf("stats %+v", st)
	}
}

func TestWritesThatRedisRefusesAreKeptAndReadsGoOn(t *testing.T) {
	beside(t)
	for _, tt := range []struct {
		name          string
		refuse, allow []string
	}{
		{"OOM", []string{"CONFIG", "SET", "maxmemory", "1"}, []string{"CONFIG", "SET", "maxmemory", "0"}},
		{"NOREPLICAS", []string{"CONFIG", "SET", "min-replicas-to-write", "1"}, []string{"CONFIG", "SET", "min-replicas-to-write", "0"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx := begin(t)
			s, p := behind(t)
			c := open(t, at(p.Addr()))
			ready(t, c)
			s.MustDo("SET", "theirs", "v")
			s.MustDo(tt.refuse...)
			must(t, c.Set(ctx, "k", []byte("kept"), 0))
			waitState(t, c, holdfast.ReadOnly)
			if h := c.Health(); h.Writable || h.LastError == nil || !contains(h.LastError.Error(), tt.name) {
				t.Errorf("health %+v", h)
			}
			wantGet(t, c, "k", "kept")
			if e, err := c.Lookup(ctx, "theirs"); err != nil || e.Tier != holdfast.Remote {
				t.Errorf("reads do not go on: %+v, %v", e, err)
			}
			if _, err := c.Add(ctx, "n", nil, 0); !errors.Is(err, holdfast.ErrUnavailable) {
				t.Errorf("add: %v", err)
			}
			s.MustDo(tt.allow...)
			waitState(t, c, holdfast.Up)
			drain(t, c)
			if got := s.MustDo("GET", "k"); got != "kept" {
				t.Errorf("k is %s", got)
			}
			if p.Accepted() != 1 {
				t.Errorf("%d connections: the one there was is good for reads", p.Accepted())
			}
		})
	}
}

func TestWhatIsTooLargeForTheLocalTierStillGoesToRedis(t *testing.T) {
	backends(t, func(t *testing.T, ctx context.Context, b backend) {
		o := at(b.addr)
		o.Local.MaxBytes = 64 << 10
		o.Timeout = time.Second
		c := open(t, o)
		ready(t, c)
		big := string(make([]byte, 32<<10))
		must(t, c.Set(ctx, "k", []byte("small"), 0))
		must(t, c.Set(ctx, "k", []byte(big), 0))
		for range 2 {
			e, err := c.Lookup(ctx, "k")
			if err != nil || string(e.Value) != big || e.Tier != holdfast.Remote {
				t.Errorf("%d bytes from %v, %v", len(e.Value), e.Tier, err)
			}
		}
	})
}
