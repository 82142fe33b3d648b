package holdfast_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

// Somebody else writes the key while it is loaded, and this Cache cannot hear of it, or
// not in time. What they wrote is newer.
func TestWhatWasLoadedNeverOverwritesWhatOthersWroteMeanwhile(t *testing.T) {
	backends(t, func(t *testing.T, ctx context.Context, b backend) {
		for _, lease := range []time.Duration{-1, time.Minute} {
			for _, mode := range []holdfast.TrackingMode{holdfast.TrackReads, holdfast.TrackOff} {
				t.Run(fmt.Sprint(mode, " lease ", lease), func(t *testing.T) {
					o := at(b.addr)
					o.Timeout = 5 * time.Second
					o.Tracking.Mode = mode
					o.Load.Lease = lease
					c := open(t, o)
					ready(t, c)
					overwrites(t, ctx, c, b, fmt.Sprint(mode, lease))
				})
			}
		}
	})
}

func overwrites(t *testing.T, ctx context.Context, c *holdfast.Cache, b backend, prefix string) {
	users := holdfast.NewTyped(c, holdfast.JSON[user]())
	early := holdfast.LoadOptions{EarlyRefresh: 1e-9}
	for name, load := range map[string]func(key string, source func()) error{
		"single": func(key string, source func()) error {
			return second(c.GetOrLoad(ctx, key, time.Hour, func(context.Context) ([]byte, error) { source(); return []byte("ours"), nil }))
		},
		"batch": func(key string, source func()) error {
			return second(c.GetOrLoadMany(ctx, []string{key}, 0, func(context.Context, []string) (map[string][]byte, error) {
				source()
				return map[string][]byte{key: []byte("ours")}, nil
			}))
		},
		"refresh": func(key string, source func()) error {
			b.set(key, "before")
			done := make(chan struct{})
			var began atomic.Bool
			for {
				e, err := c.GetOrLoadWith(ctx, key, time.Hour, early, func(context.Context, *holdfast.Entry) (holdfast.Loaded, error) {
					// A second refresh would find the value that the others write, which they then
					// write again: nothing in Redis tells that from no write.
					if !began.CompareAndSwap(false, true) {
						return holdfast.Loaded{}, errors.New("loaded already")
					}
					defer close(done)
					source()
					return holdfast.Loaded{Value: []byte("ours")}, nil
				})
				if err != nil {
					return err
				}
				if e.TTL == 0 { // there is no end to be near
					must(t, c.Touch(ctx, key, time.Hour))
				}
				select {
				case <-done:
					return nil
				case <-time.After(time.Millisecond):
				}
			}
		},
		"in place of what cannot be decoded": func(key string, source func()) error {
			b.set(key, "no json")
			return second(users.GetOrLoad(ctx, key, time.Hour, func(context.Context) (user, error) { source(); return user{1, "ours"}, nil }))
		},
		"a batch of those": func(key string, source func()) error {
			b.set(key, "no json")
			return second(users.GetOrLoadMany(ctx, []string{key}, time.Hour, func(context.Context, []string) (map[string]user, error) {
				source()
				return map[string]user{key: {1, "ours"}}, nil
			}))
		},
	} {
		for round := range 20 {
			key := fmt.Sprint(prefix, name, round)
			if err := load(key, func() { b.set(key, "theirs") }); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			// What is sent by the same Cache afterwards runs afterwards.
			must(t, c.Set(ctx, "barrier", nil, 0))
			redistest.WaitFor(t, patience, "the load's end", func() bool { return c.Stats().Loads > 0 })
			if got, _ := b.get(key); got != "theirs" {
				t.Fatalf("%s: redis holds %q", name, got)
			}
			if name == "refresh" { // nobody waits for its end
				waitLookupValue(t, c, key, "theirs")
			} else if got, err := c.Get(ctx, key); err != nil || string(got) != "theirs" {
				t.Fatalf("%s: get: %q, %v", name, got, err)
			}
		}
		// Undisturbed, it is stored.
		key := fmt.Sprint(prefix, name)
		must(t, load(key, func() {}))
		redistest.WaitFor(t, patience, "it to be stored", func() bool {
			got, _ := b.get(key)
			return got == "ours" || got == `{"ID":1,"Name":"ours"}`
		})
	}
}

// A Set that returned while a load was under way has won, whenever the load began and
// however late it ends.
func TestASetThatHasReturnedIsNotUndoneByALoadBesideIt(t *testing.T) {
	beside(t)
	test := func(t *testing.T, ctx context.Context, c *holdfast.Cache) {
		for round := range 400 * roundsFactor(t) {
			key := fmt.Sprint("k", round)
			var wg sync.WaitGroup
			for range 3 {
				wg.Go(func() {
					v, err := c.GetOrLoad(ctx, key, time.Hour, func(context.Context) ([]byte, error) { return []byte("old"), nil })
					if err != nil || string(v) != "old" && string(v) != "new" {
						t.Errorf("%q, %v", v, err)
					}
				})
			}
			must(t, c.Set(ctx, key, []byte("new"), time.Hour))
			wantGet(t, c, key, "new")
			wg.Wait()
			wantGet(t, c, key, "new")
		}
	}
	backends(t, func(t *testing.T, ctx context.Context, b backend) {
		for _, o := range []holdfast.LoadOptions{{}, {Lease: -1}} {
			opts := at(b.addr)
			opts.Load = o
			opts.Timeout = 5 * time.Second
			c := open(t, opts)
			ready(t, c)
			test(t, ctx, c)
			closedEmpty(t, c)
		}
	})
	t.Run("local", func(t *testing.T) {
		ctx := begin(t)
		test(t, ctx, open(t, holdfast.Options{}))
	})
	t.Run("outage", func(t *testing.T) {
		ctx := begin(t)
		test(t, ctx, open(t, at(unused())))
	})
}

// A user who may read and not write: what is loaded stays here, and counts as fresh as
// long as the server, which has no such key, tells of none. Whoever gives it one is
// seen, also while the copy is being put in its place.
func TestWhereNothingMayBeWrittenOthersWritesAreSeenAllTheSame(t *testing.T) {
	ctx := begin(t)
	srv := redistest.Start(t)
	srv.MustDo("ACL", "SETUSER", "reader", "reset", "on", ">secret", "~*", "+@read", "+@connection")
	o := at(srv.Addr())
	o.Redis.Username, o.Redis.Password = "reader", "secret"
	o.Load.NotFoundTTL = time.Hour
	c := open(t, o)
	waitState(t, c, holdfast.ReadOnly)
	writer := open(t, at(srv.Addr()))
	ready(t, writer)
	for round := range 150 * roundsFactor(t) {
		key := fmt.Sprint("k", round)
		absent := round%2 == 0
		var wg sync.WaitGroup
		wg.Go(func() {
			v, err := c.GetOrLoad(ctx, key, time.Hour, func(context.Context) ([]byte, error) {
				if absent {
					return nil, holdfast.ErrNotFound
				}
				return []byte("loaded"), nil
			})
			if err != nil && !errors.Is(err, holdfast.ErrNotFound) {
				t.Errorf("%q, %v", v, err)
			}
		})
		must(t, writer.Set(ctx, key, []byte("theirs"), time.Hour))
		wg.Wait()
		redistest.WaitFor(t, patience, "the foreign value", func() bool {
			v, err := c.GetOrLoad(ctx, key, time.Hour, func(context.Context) ([]byte, error) { return nil, errors.New("not to be asked") })
			return err == nil && string(v) == "theirs"
		})
	}
}
