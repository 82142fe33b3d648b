package holdfast_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

// One of three masters is gone, or worse, hangs, and nobody takes over. Whoever
// does not need its keys must not notice.
func TestAMasterThatIsAwayCostsItsOwnKeysOnly(t *testing.T) {
	undisturbed(t)
	r := redistest.StartCluster(t, 3, 0)
	for i, way := range []struct {
		name     string
		down, up func(*redistest.Server)
	}{
		{"killed", (*redistest.Server).Kill, func(s *redistest.Server) { s.Restart() }},
		{"hung", (*redistest.Server).Pause, (*redistest.Server).Resume},
	} {
		t.Run(way.name, func(t *testing.T) {
			costsItsOwnKeysOnly(t, r, i, way.down, way.up)
		})
	}
}

func costsItsOwnKeysOnly(t *testing.T, r *redistest.Cluster, away int, down, up func(*redistest.Server)) {
	ctx := context.Background()
	victim := r.Nodes()[away]
	var d dials
	o := inCluster(r.Addrs()...)
	o.Timeout = max(250*time.Millisecond, budget()) // the masters that are there answer within it, also on a busy machine
	o.Redis.DialCtxFn = d.dial
	c := open(t, o)
	ready(t, c)
	base := runtime.NumGoroutine()

	var kept [3][]string // with a local copy
	all := map[string][]byte{}
	for i := range kept {
		kept[i] = keysAt(i, 50, fmt.Sprint("kept", away, ":"))
		for _, key := range kept[i] {
			all[key] = []byte("v")
		}
	}
	must(t, c.SetMany(ctx, all, time.Hour))
	drain(t, c)
	for i := range kept {
		for _, key := range kept[i] {
			waitLookup(t, c, key, holdfast.Local, "v")
		}
	}

	// A miss is not remembered, so a Get of an absent key goes to its node.
	var others, its latencies
	stop := load(t, 6, func(g, i int) {
		at, calls := (away+1+i%2)%3, &others
		if g >= 4 {
			at, calls = away, &its
		}
		key := keysAt(at, 1, fmt.Sprint("absent", g, i, ":"))[0]
		calls.time(func() {
			var err error
			if i%8 == 0 {
				// Nobody else's key: of two writes at once neither leaves a copy.
				err = c.Set(ctx, kept[at][1+g*8+i/8%8], []byte("v"), time.Hour)
			} else if _, err = c.Get(ctx, key); errors.Is(err, holdfast.ErrMiss) {
				err = nil
			}
			if err != nil {
				t.Errorf("a call on shard %d: %v", at, err)
			}
		})
		time.Sleep(time.Millisecond)
	})
	defer stop()
	start := time.Now()
	redistest.WaitFor(t, patience, "some load", func() bool { return time.Since(start) > 400*time.Millisecond })
	before := others.quantile(0.99)
	others.reset()
	its.reset()

	gone := time.Now()
	down(victim)
	// The first batch still believes in all three; none of it may hold up the rest.
	wantOthers := func() {
		t.Helper()
		var keys []string
		for i := range kept {
			keys = append(keys, kept[i]...)
		}
		var got map[string][]byte
		var err error
		var call latencies
		call.time(func() { got, err = c.GetMany(ctx, append(keys, keysAt(away, 20, "absent too")...)...) })
		call.within(t, 1, o.Timeout+slack())
		must(t, err)
		for i := range kept {
			for _, key := range kept[i] {
				if string(got[key]) != "v" {
					t.Fatalf("a batch found %q for %s of shard %d, while shard %d is away", got[key], key, i, away)
				}
			}
		}
	}
	wantOthers()
	batch := map[string][]byte{}
	for i := range 3 {
		batch[keysAt(i, 1, fmt.Sprint("batch", away, ":"))[0]] = []byte("written")
	}
	must(t, c.SetMany(ctx, batch, time.Hour))
	waitShard(t, c, victim.Addr(), holdfast.Down)
	opened := time.Since(gone)
	// The gate is shut a moment before the books say so.
	redistest.WaitFor(t, patience, "the shard's health to say since when and why", func() bool {
		s, _ := shard(c, victim.Addr())
		return s.LastError != nil && s.Since.After(gone)
	})
	others.within(t, 0.9, 3*before+20*time.Millisecond)

	for key, v := range batch {
		at := home(key)
		wantGet(t, c, key, string(v))
		if at != away { // at once, or by a replay where the machine stalled
			redistest.WaitFor(t, patience, fmt.Sprintf("%s at shard %d, while shard %d is away", key, at, away), func() bool {
				return r.Nodes()[at].MustDo("GET", key) == string(v)
			})
		}
	}
	if h := c.Health(); h.State != holdfast.Down || h.Writable || h.LastError == nil || len(h.Shards) != 3 {
		t.Errorf("health %+v", h)
	}
	for _, s := range c.Health().Shards {
		if s.Addr == victim.Addr() {
			if s.State != holdfast.Down || s.Writable || s.Tracking || s.LastError == nil || s.Since.Before(gone) {
				t.Errorf("the shard that is away: %+v", s)
			}
			continue
		}
		redistest.WaitFor(t, patience, "a shard that is there to be up", func() bool {
			s, _ := shard(c, s.Addr)
			return s.State == holdfast.Up && s.Writable && s.Tracking
		})
	}
	for i := range kept {
		for _, key := range kept[i] {
			e, err := c.Lookup(ctx, key)
			if i != away && e.Degraded {
				// A stalled machine may have a probe fail. Then the copy is suspect until it is read again.
				redistest.WaitFor(t, patience, "an answer that is not degraded", func() bool {
					e, err = c.Lookup(ctx, key)
					return err != nil || !e.Degraded
				})
			}
			if err != nil || string(e.Value) != "v" || e.Degraded != (i == away) {
				t.Errorf("lookup %s of shard %d: %+v, %v", key, i, e, err)
			}
		}
	}
	must(t, c.Delete(ctx, kept[0][0], kept[1][0], kept[2][0]))
	if _, err := c.Add(ctx, keysAt(away, 1, "add")[0], nil, 0); !errors.Is(err, holdfast.ErrUnavailable) {
		t.Errorf("add to the shard that is away: %v", err)
	}
	others.reset()
	its.reset()
	redistest.WaitFor(t, patience, "two seconds of outage", func() bool { return time.Since(gone) > 2200*time.Millisecond })
	after := others.quantile(0.99)
	others.within(t, 0.9, 3*before+20*time.Millisecond)
	its.within(t, 0.9, 3*before+20*time.Millisecond)
	t.Logf("noticed after %v; others' p99 %v before, %v during; its own %v", opened, before, after, its.quantile(0.99))
	must(t, redistest.RateOKUntil(d.to(victim.Addr()).Times(), gone, time.Now()))
	for i, node := range r.Nodes() {
		if i != away {
			redistest.WaitFor(t, patience, "one connection to a node that is there", func() bool { return d.to(node.Addr()).Open() == 1 })
		}
	}
	if n := runtime.NumGoroutine(); n > base+40 {
		t.Errorf("%d goroutines in the outage, %d before", n, base)
	}

	up(victim)
	waitState(t, c, holdfast.Up)
	stop()
	drain(t, c)
	for i, node := range r.Nodes() {
		for _, key := range kept[i] {
			want := node.MustDo("GET", key)
			if want == "(nil)" {
				want = ""
			}
			wantGet(t, c, key, want)
		}
		if got := node.MustDo("EXISTS", kept[i][0]); got != "0" {
			t.Errorf("%s was deleted in the outage and is there", kept[i][0])
		}
	}
	for key, v := range batch {
		if got := r.Nodes()[home(key)].MustDo("GET", key); got != string(v) {
			t.Errorf("%s after the outage is %q", key, got)
		}
	}
	settled(t, c)
	redistest.GoroutinesBackTo(t, base, 5)
	for _, node := range r.Nodes() {
		redistest.WaitFor(t, patience, "one connection to each node", func() bool { return d.to(node.Addr()).Open() == 1 })
	}
}

// The whole cluster is away: before one cache begins, and under another.
func TestAWholeClusterIsAwayAndComes(t *testing.T) {
	ctx := undisturbed(t)
	r := redistest.StartCluster(t, 3, 0)
	r.Configure("cluster-require-full-coverage", "yes")
	old := open(t, inCluster(r.Addrs()...))
	ready(t, old)
	var keys [3][]string
	for i := range keys {
		keys[i] = keysAt(i, 40, "whole:")
		for _, key := range keys[i] {
			must(t, old.Set(ctx, key, []byte("before"), time.Hour))
		}
	}
	base := runtime.NumGoroutine()
	for _, node := range r.Nodes() {
		node.Kill()
	}
	waitState(t, old, holdfast.Down)

	var d dials
	o := inCluster(r.Addrs()...)
	o.Timeout = 0
	o.Redis.DialCtxFn = d.dial
	start := time.Now()
	c := open(t, o)
	if took := time.Since(start); took > 3*slack() {
		t.Errorf("New took %v", took)
	}
	var calls latencies
	for i := range 3 {
		for _, key := range keysAt(i, 100, "late:") {
			calls.time(func() { must(t, c.Set(ctx, key, []byte("late"), time.Hour)) })
			calls.time(func() { wantGet(t, c, key, "late") })
			calls.time(func() { wantGet(t, c, key+"absent", "") })
		}
		// Both caches want something of these, and old knows what was there.
		must(t, old.Set(ctx, keys[i][0], []byte("ours"), time.Hour))
		must(t, old.Delete(ctx, keys[i][1]))
		wantGet(t, old, keys[i][2], "before")
	}
	calls.within(t, 0.9, 20*time.Millisecond)
	if h := c.Health(); h.State != holdfast.Connecting || h.JournalKeys != 300 {
		t.Errorf("health %+v", h)
	}
	redistest.WaitFor(t, patience, "two seconds without a cluster", func() bool { return time.Since(start) > 2200*time.Millisecond })
	dialed := time.Now()
	for _, addr := range r.Addrs() {
		times := d.to(addr).Times()
		must(t, redistest.RateOKUntil(times, start, dialed))
		if len(times) == 0 {
			t.Errorf("nobody looked for %s", addr)
		}
	}
	if n := runtime.NumGoroutine(); n > base+40 {
		t.Errorf("%d goroutines without a cluster, %d with", n, base)
	}

	// Two of three are no cluster, for one that wants to be whole.
	r.Nodes()[0].Restart("--cluster-require-full-coverage", "yes")
	r.Nodes()[1].Restart("--cluster-require-full-coverage", "yes")
	redistest.WaitFor(t, patience, "CLUSTERDOWN to be seen", func() bool {
		must(t, c.Set(ctx, keysAt(0, 1, "late:")[0], []byte("late"), time.Hour))
		err := c.Health().LastError
		for _, s := range c.Health().Shards {
			if s.LastError != nil && contains(s.LastError.Error(), "CLUSTERDOWN") {
				err = s.LastError
			}
		}
		return err != nil && contains(err.Error(), "CLUSTERDOWN")
	})
	calls.reset()
	for i := range 3 {
		for _, key := range keysAt(i, 30, "late:") {
			calls.time(func() { wantGet(t, c, key, "late") })
			calls.time(func() { must(t, c.Set(ctx, key, []byte("late"), time.Hour)) })
		}
		calls.time(func() { wantGet(t, old, keys[i][0], "ours") })
		calls.time(func() { wantGet(t, old, keys[i][1], "") })
		calls.time(func() { wantGet(t, old, keys[i][2], "before") })
	}
	calls.within(t, 0.9, 20*time.Millisecond)
	calls.within(t, 1, 50*time.Millisecond+slack())

	r.Nodes()[2].Restart("--cluster-require-full-coverage", "yes")
	for name, cache := range map[string]*holdfast.Cache{"the new cache": c, "the old cache": old} {
		waitState(t, cache, holdfast.Up)
		drain(t, cache)
		if n := len(cache.Health().Shards); n != 3 {
			t.Errorf("%s: %d shards", name, n)
		}
	}
	for i, node := range r.Nodes() {
		for _, key := range keysAt(i, 100, "late:") {
			if got := node.MustDo("GET", key); got != "late" {
				t.Fatalf("%s at its node is %q", key, got)
			}
		}
		for key, want := range map[string]string{keys[i][0]: "ours", keys[i][1]: "(nil)", keys[i][2]: "(nil)"} {
			if got := node.MustDo("GET", key); got != want {
				t.Errorf("%s at its node is %q, want %q", key, got, want)
			}
		}
		// The copies from before are in doubt, and Redis has lost the originals.
		wantGet(t, old, keys[i][2], "")
		wantGet(t, c, keys[i][0], "ours")
	}
	for _, s := range []holdfast.Stats{c.Stats(), old.Stats()} {
		if s.Superseded != 0 || s.Rejected != 0 || s.Refused != 0 {
			t.Errorf("stats %+v", s)
		}
	}
}

// What a master that is gone had is given to another by hand; the journal has
// writes that were meant for the first.
func TestAJournaledWriteFollowsItsSlotToAnotherMaster(t *testing.T) {
	ctx := begin(t)
	r := redistest.StartCluster(t, 3, 0)
	o := inCluster(r.Addrs()...)
	o.Timeout = 200 * time.Millisecond
	c := open(t, o)
	ready(t, c)
	dead, heir := r.Nodes()[0], r.Nodes()[1]
	keys := keysAt(0, 30, "heir:")
	for _, key := range keys {
		must(t, c.Set(ctx, key, []byte("before"), time.Hour))
	}
	staying := keysAt(0, 31, "stay:")[30]
	must(t, c.Set(ctx, staying, []byte("before"), time.Hour))
	dead.Kill()
	waitShard(t, c, dead.Addr(), holdfast.Down)
	must(t, c.Set(ctx, staying, []byte("stays"), time.Hour))
	for i, key := range keys {
		if i%3 == 0 {
			must(t, c.Delete(ctx, key))
		} else {
			must(t, c.Set(ctx, key, []byte("ours"), time.Hour))
		}
	}
	// The heir's epoch is the higher one, so the third believes it.
	for _, key := range keys {
		heir.MustDo("CLUSTER", "SETSLOT", fmt.Sprint(redistest.Slot(key)), "NODE", r.ID(heir))
	}
	moved := map[int]bool{}
	for _, key := range keys {
		moved[redistest.Slot(key)] = true
	}
	if moved[redistest.Slot(staying)] {
		t.Fatalf("%s moved as well", staying)
	}
	redistest.WaitFor(t, patience, "the writes to reach the heir", func() bool {
		for i, key := range keys {
			want := "ours"
			if i%3 == 0 {
				want = "(nil)"
			}
			if got, err := heir.Do("GET", key); err != nil || got != want {
				return false
			}
		}
		return c.Health().JournalKeys == 1
	})
	for i, key := range keys {
		if i%3 == 0 {
			wantGet(t, c, key, "")
			continue
		}
		waitLookup(t, c, key, holdfast.Remote, "ours")
		must(t, c.Set(ctx, key, []byte("later"), time.Hour))
		if got := heir.MustDo("GET", key); got != "later" {
			t.Errorf("%s at the heir is %q", key, got)
		}
	}
	wantGet(t, c, staying, "stays")
	if got, _ := shard(c, heir.Addr()); got.State != holdfast.Up {
		t.Errorf("the heir: %+v", got)
	}
	dead.Restart()
	waitState(t, c, holdfast.Up)
	drain(t, c)
	if got := dead.MustDo("GET", staying); got != "stays" {
		t.Errorf("%s is %q", staying, got)
	}
	for i, key := range keys {
		if i%3 != 0 {
			wantGet(t, c, key, "later")
		}
	}
}
