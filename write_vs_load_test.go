package holdfast

import (
	"context"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/flight"
	"github.com/holdfast-cache/holdfast/internal/keyhash"
	"github.com/holdfast-cache/holdfast/internal/local"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/rueidis"
)

// beside is a Cache whose Redis is away, or is s, for tests that take its calls apart.
func beside(t *testing.T, s *redistest.Server) *Cache {
	t.Helper()
	addr := "127.0.0.1:1"
	if s != nil {
		addr = s.Addr()
	}
	c, err := New(Options{Redis: rueidis.ClientOption{InitAddress: []string{addr}}, Timeout: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if s == nil {
		return c
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := c.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	return c
}

// beingStored is a flight whose value is on its way to the tiers.
func beingStored(t *testing.T, c *Cache, h keyhash.Hash) *flight.Flight[Entry] {
	t.Helper()
	f := boarded(t, c.flights, h)
	c.flights.Load(f, false)
	if !c.flights.Store(f) {
		t.Fatal("nothing may be stored")
	}
	return f
}

func writeFor(c *Cache, key, value string) *write {
	w := &write{key: key, value: []byte(value), hash: c.local.Hash(key), deadline: clock.Never}
	w.entry = c.entryOf(w, c.clock.Now(), c.scopeOf(key), local.Unconfirmed)
	return w
}

// A write to the journal waits for a loaded value that is being stored: for no longer
// than a call may take, for the storing may hang.
func TestAWriteWaitsForAStoringWithinItsBudget(t *testing.T) {
	c := beside(t, nil)
	w := writeFor(c, "k", "written")
	f := beingStored(t, c, w.hash)
	defer c.flights.End(f, Entry{}, nil, 0)
	done := make(chan bool, 1)
	began := time.Now()
	go func() { done <- c.putSuperseding(context.Background(), w, c.clock.Now()) }()
	select {
	case <-done:
		if d := time.Since(began); d < c.opts.Timeout/2 {
			t.Errorf("it waited for %v, of %v", d, c.opts.Timeout)
		}
	case <-time.After(30 * time.Second):
		t.Error("a write waits for a storing that does not end")
	}
}

// What was being stored may have taken the written value with it, for which of the two is
// the later one cannot be told: so the write takes its place once more.
func TestAWriteTakesItsPlaceAgainWhenItHasWaitedForAStoring(t *testing.T) {
	c := beside(t, nil)
	w := writeFor(c, "k", "written")
	f := beingStored(t, c, w.hash)
	loaded := writeFor(c, "k", "loaded")
	_, first, ok := c.local.BeginUnless(w.hash, loaded.entry, &f.SupersededDuringStore)
	if !ok {
		t.Fatal("nothing came before, and the loaded value has no place")
	}
	done := make(chan bool, 1)
	go func() { done <- c.putSuperseding(context.Background(), w, c.clock.Now()) }()
	redistest.WaitFor(t, time.Minute, "the write to have its first place", func() bool { return c.local.Get(w.hash) == w.entry && f.SupersededDuringStore.Load() })
	c.local.End(w.hash, true, local.Unconfirmed)
	c.flights.End(f, Entry{}, nil, 0)
	if !<-done {
		t.Error("the write did not win")
	}
	if c.local.Get(w.hash) != w.entry {
		t.Error("the written value went with the loaded one")
	}
	if w.seq <= first+1 {
		t.Errorf("the write has place %d, and the loaded value's end %d", w.seq, first+1)
	}
}

// The caller that finds that no other waits for a load any more ends its flight. Else the key
// would count as being loaded, and the next caller would get the error of a loader that ended
// its goroutine.
func TestALoadThatNobodyWaitsForEndsItsFlightBesideALease(t *testing.T) {
	s := redistest.Start(t)
	c := beside(t, s)
	request := func(key string) (*request, *loadItem) {
		r := newRequest("load", key, c.local.Hash(key), time.Hour, c.opts.Load, nil)
		it := &r.items[0]
		it.f, it.answered = boarded(t, c.flights, it.h), true
		c.flights.Load(it.f, false)
		return r, it
	}
	ended := func(what string, f *flight.Flight[Entry]) {
		t.Helper()
		if !hasEnded(f) || f.Err != flight.ErrAgain {
			t.Errorf("%s: ended is %v, with %v", what, hasEnded(f), f.Err)
		}
	}

	r, it := request("waits")
	s.MustDo("SET", c.leaseName(it.key), "somebody else's", "PX", "600000")
	ctx, leave := context.WithCancel(context.Background())
	verdicts := make(chan leased, 1)
	go func() { _, verdict := c.lease(ctx, r, it); verdicts <- verdict }()
	redistest.WaitFor(t, time.Minute, "the wait for the lease", func() bool { return c.stats.leaseWaits.Load() == 1 })
	leave()
	if v := <-verdicts; v != loadNot {
		t.Errorf("verdict %d of a load that nobody waits for", v)
	}
	ended("beside somebody else's lease", it.f)

	r, it = request("reads")
	if !c.findAgain(ctx, r, it) {
		t.Error("a context that has ended found nothing, and the load goes on")
	}
	ended("while it was read anew", it.f)
	if n := c.stats.loadErrors.Load(); n != 0 {
		t.Errorf("%d loads failed, and none did", n)
	}
}
