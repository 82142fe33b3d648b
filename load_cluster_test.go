package holdfast_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

// Leases and what is stored under them, where each key has its own node: one load a
// fleet, also of a slot that is on its way.
func TestAFleetInAClusterLoadsAColdKeyOnce(t *testing.T) {
	ctx := begin(t)
	r := redistest.StartCluster(t, 3, 0)
	var cs []*holdfast.Cache
	for range 3 {
		o := inCluster(r.Addrs()...)
		o.Timeout = 5 * time.Second
		o.Load.Lease = time.Minute
		c := open(t, o)
		ready(t, c)
		cs = append(cs, c)
	}
	ask := func(c *holdfast.Cache, key string, load func() string) string {
		v, err := c.GetOrLoad(ctx, key, time.Hour, func(context.Context) ([]byte, error) { return []byte(load()), nil })
		if err != nil {
			t.Errorf("%s: %v", key, err)
		}
		return string(v)
	}
	// A node that does not answer in time costs a further load; without leases each key
	// would have three.
	further := 0
	once := func(key string) {
		t.Helper()
		var loads atomic.Int64
		var wg sync.WaitGroup
		for i := range 60 {
			wg.Go(func() {
				got := ask(cs[i%3], key, func() string {
					loads.Add(1)
					t := time.NewTimer(20 * time.Millisecond)
					<-t.C
					return "v"
				})
				if got != "v" {
					t.Errorf("%s: %q", key, got)
				}
			})
		}
		wg.Wait()
		further += int(loads.Load()) - 1
	}
	for master := range 3 {
		for _, key := range keysAt(master, 3, "user:") {
			once(key)
			if got := r.NodeFor(key).MustDo("GET", key); got != "v" {
				t.Errorf("%s: its node holds %q", key, got)
			}
		}
	}
	once("{tagged}:7")
	once("odd}brace")
	if further < 0 || further > 2 {
		t.Errorf("%d loads too many", further)
	}
	for _, node := range r.Nodes() {
		if got := node.MustDo("KEYS", "holdfast:lease:*"); got != "" && got != "[]" {
			t.Errorf("a lease was left at %s: %s", node.Addr(), got)
		}
	}

	// A delete, and a set, by another Cache during the load.
	for name, write := range map[string]func(key string) error{
		"delete": func(key string) error { return cs[1].Delete(ctx, key) },
		"set":    func(key string) error { return cs[1].Set(ctx, key, []byte("newer"), time.Hour) },
	} {
		for _, key := range keysAt(1, 2, name) {
			ask(cs[0], key, func() string { must(t, write(key)); return "old" })
			if got := r.NodeFor(key).MustDo("GET", key); got == "old" {
				t.Errorf("%s: what was loaded before came over it", name)
			}
		}
	}

	// A slot on its way: the lease and the key are at the new node, by ASK.
	from := r.NodeFor("{way}")
	to := r.Nodes()[(slices.Index(r.Nodes(), from)+1)%3]
	m := r.BeginMove(redistest.Slot("{way}"), to)
	for i := range 5 {
		key := fmt.Sprint("{way}cold", i)
		loads := 0
		for range 3 {
			if got := ask(cs[0], key, func() string { loads++; return "v" }); got != "v" {
				t.Errorf("%s: %q", key, got)
			}
		}
		got, err := to.Asking("GET", key)
		if must(t, err); got != "v" || loads != 1 {
			t.Errorf("%s on its way: %d loads, the new node holds %q", key, loads, got)
		}
	}
	for _, s := range cs[0].Health().Shards {
		if s.State != holdfast.Up {
			t.Errorf("shard %s is %v: %v", s.Addr, s.State, s.LastError)
		}
	}
	m.AllKeys()
	m.End()
	for _, c := range cs { // who learns of the move while it loads keeps that to itself
		wantGet(t, c, "{way}absent", "")
	}
	once("{way}after")
	if st := cs[0].Stats(); st.BreakerOpens != 0 {
		t.Errorf("the circuit opened %d times", st.BreakerOpens)
	}
}

// Where the server tells of some keys only: a fleet shares its loads, wakes by the news
// or by asking again, and what others write during a load wins.
func TestAFleetThatTracksPrefixesLoadsAColdKeyOnce(t *testing.T) {
	ctx := begin(t)
	srv := redistest.Start(t)
	for _, leases := range []bool{false, true} { // whether it is told of leases, too
		o := tracked(srv.Addr(), holdfast.TrackPrefixes)
		if leases {
			o.Tracking.Prefixes = append(o.Tracking.Prefixes, "holdfast:lease:")
		}
		o.Timeout = 5 * time.Second
		o.Load.Lease = 5 * time.Second
		o.Load.NotFoundTTL = time.Hour
		var cs []*holdfast.Cache
		for range 3 {
			c := open(t, o)
			ready(t, c)
			cs = append(cs, c)
		}
		for _, prefix := range []string{"app:", "other:"} {
			key := fmt.Sprint(prefix, leases)
			var loads atomic.Int64
			var wg sync.WaitGroup
			for i := range 60 {
				wg.Go(func() {
					v, err := cs[i%3].GetOrLoad(ctx, key, time.Hour, func(context.Context) ([]byte, error) {
						loads.Add(1)
						t := time.NewTimer(50 * time.Millisecond)
						<-t.C
						return []byte("v"), nil
					})
					if err != nil || string(v) != "v" {
						t.Errorf("%s: %q, %v", key, v, err)
					}
				})
			}
			wg.Wait()
			if n := loads.Load(); n != 1 {
				t.Errorf("%s was loaded %d times", key, n)
			}
			// What another writes during a load, where there was nothing.
			key += "2"
			_, err := cs[0].GetOrLoad(ctx, key, time.Hour, func(context.Context) ([]byte, error) {
				srv.MustDo("SET", key, "theirs")
				return []byte("old"), nil
			})
			must(t, err)
			if got := srv.MustDo("GET", key); got != "theirs" {
				t.Errorf("%s: redis holds %q", key, got)
			}
			waitLookupValue(t, cs[0], key, "theirs")
		}
		// That there is none is forgotten when somebody gives it one.
		key := fmt.Sprint("app:none", leases)
		s := newSource("v")
		s.fail(holdfast.ErrNotFound)
		for range 3 {
			if _, err := cs[0].GetOrLoad(ctx, key, 0, s.load); !errors.Is(err, holdfast.ErrNotFound) {
				t.Errorf("%v", err)
			}
		}
		s.wasAsked(t, 1)
		srv.MustDo("SET", key, "theirs")
		redistest.WaitFor(t, patience, "the foreign value", func() bool {
			got, err := cs[0].GetOrLoad(ctx, key, 0, s.load)
			return err == nil && string(got) == "theirs"
		})
	}
}

func waitLookupValue(t *testing.T, c *holdfast.Cache, key, want string) {
	t.Helper()
	redistest.WaitFor(t, patience, "the value of "+key, func() bool {
		got, err := c.Get(context.Background(), key)
		return err == nil && string(got) == want
	})
}
