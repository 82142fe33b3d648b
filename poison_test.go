package holdfast_test

import (
	"errors"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

// Redis hangs up on a command that is too large for the client's buffer, and says
// nothing. Whoever tried again in the same company would have the connection broken for
// ever, and everybody's calls with it.
func TestAnEntryAtWhichRedisHangsUpIsGivenUp(t *testing.T) {
	beside(t)
	redistest.Long(t)
	for name, size := range map[string]int{"client-query-buffer-limit": 3 << 20, "proto-max-bulk-len": 8 << 20} {
		t.Run(name, func(t *testing.T) {
			ctx := begin(t)
			s, p := behind(t)
			s.MustDo("CONFIG", "SET", name, "1048576")
			s.MustDo("SET", "large", "before")
			o := at(p.Addr())
			o.Timeout = time.Second
			c := open(t, o)
			ready(t, c)
			outage(t, c, p, func() {
				must(t, c.Set(ctx, "large", make([]byte, size), 0))
				for _, key := range []string{"a", "b", "c", "d", "e"} {
					must(t, c.Set(ctx, key, []byte("v"), 0))
				}
			})
			redistest.WaitFor(t, patience, "the journal to be empty", func() bool { return c.Health().JournalKeys == 0 })
			waitState(t, c, holdfast.Up)
			for _, key := range []string{"a", "b", "c", "d", "e"} {
				if got := s.MustDo("GET", key); got != "v" {
					t.Errorf("%s is %s", key, got)
				}
			}
			// Nothing older comes back in its place.
			if _, err := c.Get(ctx, "large"); !errors.Is(err, holdfast.ErrMiss) {
				t.Errorf("the one that was given up: %v", err)
			}
			if st := c.Stats(); st.Rejected != 1 || st.Replayed != 5 || st.Superseded != 0 {
				t.Errorf("stats %+v", st)
			}
		})
	}
}

func TestARefusedSetLeavesNoOlderValue(t *testing.T) {
	redistest.Long(t)
	ctx := begin(t)
	s := redistest.Start(t)
	o := at(s.Addr())
	o.Timeout = time.Second
	c := open(t, o)
	ready(t, c)
	must(t, c.Set(ctx, "large", []byte("before"), 0))
	s.MustDo("CONFIG", "SET", "maxmemory", "1")
	must(t, c.Set(ctx, "other", []byte("x"), 0))
	waitState(t, c, holdfast.ReadOnly)
	must(t, c.Set(ctx, "large", make([]byte, 3<<19), 0))
	s.MustDo("CONFIG", "SET", "proto-max-bulk-len", "1048576")
	s.MustDo("CONFIG", "SET", "maxmemory", "0")
	waitState(t, c, holdfast.Up)
	drain(t, c)
	redistest.WaitFor(t, patience, "the journal to be empty", func() bool { return c.Health().JournalKeys == 0 })
	if v, err := c.Get(ctx, "large"); !errors.Is(err, holdfast.ErrMiss) {
		t.Errorf("an older value is read: %.10q, %v", v, err)
	}
	if st := c.Stats(); st.Rejected != 1 {
		t.Errorf("stats %+v", st)
	}
}

func TestADeleteIsDoneAlsoWhereTheScriptMayNot(t *testing.T) {
	beside(t)
	redistest.Long(t) // until it is certain that no script runs
	for _, deny := range []string{"-strlen", "-get", "-getex", "-persist", "-evalsha"} {
		t.Run(deny, func(t *testing.T) {
			ctx := begin(t)
			s := redistest.Start(t)
			s.MustDo("ACL", "SETUSER", "app", "on", ">pw", "~*", "&*", "+@all", deny)
			s.MustDo("MSET", "deleted", "old", "set", "old")
			o := at(s.Addr())
			o.Redis.Username, o.Redis.Password = "app", "pw"
			c := open(t, o)
			must(t, c.Delete(ctx, "deleted"))
			must(t, c.Set(ctx, "set", []byte("new"), 0))
			ready(t, c)
			drain(t, c)
			if got := s.MustDo("GET", "deleted"); got != "(nil)" {
				t.Errorf("it was deleted, and is %s", got)
			}
			if got := s.MustDo("GET", "set"); got == "old" {
				t.Error("it was set, and is what it was before")
			}
		})
	}
}
