package holdfast_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

// What the journal cannot keep it refuses or makes less of, and what Redis will not
// have holds nothing up.

// A journal of few bytes and fewer keys, and callers who do not stop writing.
func TestAFullJournalMakesDeletesOfSetsAndThenRefuses(t *testing.T) {
	undisturbed(t)
	eachOutage(t, func(t *testing.T, ctx context.Context, s *site) {
		const (
			maxKeys  = 1000
			maxBytes = 64 << 10
			callers  = 8
		)
		var drops [4]atomic.Uint64
		o := s.options()
		o.Journal.MaxKeys, o.Journal.MaxBytes = maxKeys, maxBytes
		o.Hooks.OnDrop = func(d holdfast.Drop) { drops[d.Reason].Add(1) }
		c := s.open(o)
		kept, deletes := named("kept", 200), named("deleted", 100)
		large, over := named("large", 600), named("over", 2_000)
		for _, group := range [][]string{kept, deletes, large} {
			must(t, c.SetMany(ctx, all(group, "before"), 0))
		}
		drain(t, c)
		s.leaves(c)
		waiting := c.Health().JournalKeys // of calls that found Redis gone

		must(t, c.SetMany(ctx, all(kept, "ours"), 0))
		must(t, c.Delete(ctx, deletes...))
		full := strings.Repeat("x", 16<<10)
		for _, key := range large { // the first few fit
			must(t, c.Set(ctx, key, []byte(full), 0))
		}
		st := c.Stats()
		fit := len(large) - int(st.Downgraded)
		if fit < 1 || fit > maxBytes>>14 || st.Refused != 0 {
			t.Errorf("%d of %d large sets fit into %d bytes; %d refused", fit, len(large), maxBytes, st.Refused)
		}
		for i, key := range large { // the local tier may have it; never what was there before
			switch v, err := c.Get(ctx, key); {
			case err == nil && string(v) != full, err != nil && (i < fit || !errors.Is(err, holdfast.ErrMiss)):
				t.Fatalf("%s is %.10q, %v", key, v, err)
			}
		}

		heap := heapInUse()
		var refused atomic.Int64
		var wg sync.WaitGroup
		for g := range callers {
			wg.Go(func() {
				for i := g; i < len(over); i += callers {
					err := c.Set(ctx, over[i], []byte(full), time.Hour)
					if i%4 == 0 {
						err = c.Delete(ctx, over[i])
					}
					switch {
					case errors.Is(err, holdfast.ErrJournalFull):
						refused.Add(1)
						if v, err := c.Get(ctx, over[i]); err == nil {
							t.Errorf("%s was refused, and is %.10q", over[i], v)
						}
					case err != nil:
						t.Errorf("%s: %v", over[i], err)
					}
					if i%10 > 0 {
						continue
					}
					if st := c.Stats(); st.JournalKeys > maxKeys+callers || st.JournalBytes > maxBytes {
						t.Errorf("the journal has %d keys and %d bytes", st.JournalKeys, st.JournalBytes)
					}
				}
			})
		}
		wg.Wait()
		room := maxKeys - len(kept) - len(deletes) - len(large) - waiting
		if n := len(over) - int(refused.Load()); n > room+len(over)/4 || n < room-20 {
			t.Errorf("%d of %d further keys were accepted where there was room for %d", n, len(over), room)
		}
		if grown := heapInUse() - heap; grown > 8<<20 {
			t.Errorf("refused writes left %d bytes behind", grown)
		}
		must(t, c.Set(ctx, kept[0], []byte("again"), 0)) // a key that is there has room

		s.returns(c)
		drain(t, c)
		settled(t, c)
		want := absent(append(append([]string(nil), deletes...), large[fit:]...)...)
		for _, key := range kept {
			want[key] = "ours"
		}
		want[kept[0]] = "again"
		for _, key := range large[:fit] {
			want[key] = full
		}
		mismatches(t, s.master, "in the end", want)
		for key, v := range heldAt(s.master, over) {
			if v != nothing {
				t.Errorf("%s found no room as a value, and is %.10q", key, v)
			}
		}
		closedEmpty(t, c) // and with it all hooks have run
		st = c.Stats()
		if drops[holdfast.DropRefused].Load()+drops[holdfast.DropDowngraded].Load()+st.HooksDropped < st.Refused+st.Downgraded {
			t.Errorf("%d refused and %d downgraded, and not all of them told", st.Refused, st.Downgraded)
		}
		if st.JournalBytes != 0 || st.JournalKeys != 0 {
			t.Errorf("the journal has %d keys and %d bytes", st.JournalKeys, st.JournalBytes)
		}
	})
}

func heapInUse() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// Three entries that Redis will not have, among a thousand that it will: one whose
// key somebody made a list of, one that is over a limit of the server's, at which it
// closes the connection, and one that the user may no longer write. That one is held
// until he may.
func TestPoisonEntriesAreTriedOnceAndHoldNothingUp(t *testing.T) {
	outagesAtOnce(t, func(t *testing.T, ctx context.Context, s *site) {
		servers := []*redistest.Server{s.master}
		if s.replica != nil {
			servers = append(servers, s.replica)
		}
		may := func(patterns ...string) {
			for _, r := range servers {
				if r.Running() {
					r.MustDo(append([]string{"ACL", "SETUSER", "app", "on", "nopass", "+@all", "resetkeys"}, patterns...)...)
				}
			}
		}
		may("~*")
		var dropped sync.Map
		o := s.options()
		o.Redis.Username, o.Redis.Password = "app", "any"
		o.Hooks.OnDrop = func(d holdfast.Drop) { dropped.Store(d.Key, d.Reason) }
		c := s.open(o)
		sets, deletes := named("k:set", 900), named("k:deleted", 100)
		must(t, c.SetMany(ctx, all(sets, "before"), 0))
		must(t, c.SetMany(ctx, all(deletes, "before"), 0))
		drain(t, c)
		s.leaves(c)
		must(t, c.SetMany(ctx, all(sets, "ours"), 0))
		must(t, c.Delete(ctx, deletes...))
		must(t, c.Set(ctx, "k:list", []byte("ours"), 0))
		must(t, c.Set(ctx, "k:large", make([]byte, 3<<19), 0))
		must(t, c.Set(ctx, "forbidden", []byte("ours"), 0))
		s.meets(func(r *redistest.Server) {
			r.MustDo("RPUSH", "k:list", "theirs")
			may("~k:*", "~holdfast:*")
			for _, r := range servers {
				if r.Running() {
					r.MustDo("CONFIG", "SET", "proto-max-bulk-len", "1048576")
				}
			}
		})
		s.returns(c)
		drain(t, c)
		want := absent(append(deletes, "k:large", "forbidden")...)
		for _, key := range sets {
			want[key] = "ours"
		}
		mismatches(t, s.master, "after the drain", want)
		if st := c.Stats(); st.Superseded != 1 || st.Rejected != 1 || st.HeldKeys != 1 {
			t.Errorf("%d superseded, %d rejected, %d held", st.Superseded, st.Rejected, st.HeldKeys)
		}
		must(t, c.Set(ctx, "k:later", []byte("v"), 0))
		drain(t, c)
		if got := s.master.MustDo("GET", "k:later"); got != "v" {
			t.Errorf("a later write is %s", got)
		}
		may("~*")
		redistest.WaitFor(t, patience, "what was forbidden", func() bool { return s.master.MustDo("GET", "forbidden") == "ours" })
		redistest.WaitFor(t, patience, "the journal to know", func() bool { return c.Health().HeldKeys == 0 })
		drain(t, c)
		closedEmpty(t, c) // and with it all hooks have run
		for key, why := range map[string]holdfast.DropReason{
			"k:list": holdfast.DropSuperseded, "k:large": holdfast.DropRejected,
		} {
			if got, _ := dropped.Load(key); got != why {
				t.Errorf("%s was dropped as %v, want %v", key, got, why)
			}
		}
	})
}

// Many writes at once are as bounded as one after the other: keys count as values do.
func TestTheBoundOfTheJournalHoldsWhoeverWritesAtOnce(t *testing.T) {
	ctx := begin(t)
	const most = 1 << 20
	o := at(redistest.FreeAddr(t))
	o.Journal.MaxBytes = most
	long := strings.Repeat("k", 500<<10)
	for name, write := range map[string]func(c *holdfast.Cache, i int) error{
		"deletes of long keys": func(c *holdfast.Cache, i int) error { return c.Delete(ctx, fmt.Sprint(i, long)) },
		"sets of long keys":    func(c *holdfast.Cache, i int) error { return c.Set(ctx, fmt.Sprint(i, long), []byte("v"), 0) },
		"sets of long values":  func(c *holdfast.Cache, i int) error { return c.Set(ctx, fmt.Sprint(i), []byte(long), 0) },
		"both":                 func(c *holdfast.Cache, i int) error { return c.Set(ctx, fmt.Sprint(i, long), []byte(long[:1000]), 0) },
	} {
		for range 5 {
			c := open(t, o)
			var begun, written sync.WaitGroup
			begun.Add(1)
			for i := range 128 {
				written.Go(func() {
					begun.Wait()
					if err := write(c, i); err != nil && !errors.Is(err, holdfast.ErrJournalFull) {
						t.Errorf("%s: %.100v", name, err)
					}
				})
			}
			begun.Done()
			written.Wait()
			if n := c.Stats().JournalBytes; n > most || n == 0 {
				t.Errorf("%s: %d bytes are kept of %d", name, n, most)
			}
			closed(t, c)
		}
	}
}
