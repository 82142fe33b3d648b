package holdfast_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

// Nothing that was written while Redis was away is lost.

// Sidekiq's client kept the last 1,000 and sent them with the next push. Here there
// is no next one: nobody calls while Redis comes back.
func TestWhatIsWrittenInAnOutageArrivesWithinASecondWithNoTraffic(t *testing.T) {
	eachOutage(t, func(t *testing.T, ctx context.Context, s *site) {
		c := s.open(s.options())
		const setters = 8
		sets, deletes, theirs := named("set", 10_000), named("deleted", 1_000), named("theirs", 100)
		began := time.Now()
		must(t, c.SetMany(ctx, all(sets[:5_000], "before"), 0)) // the others are new
		must(t, c.SetMany(ctx, all(deletes, "before"), 0))
		must(t, c.SetMany(ctx, all(theirs, "before"), 0))
		drain(t, c)
		half := time.Since(began) // as fast as this machine writes half of it
		s.kind.away(s)            // and nobody waits until that is noticed
		var wg sync.WaitGroup
		for g := range setters {
			wg.Go(func() {
				for i := g; i < len(sets); i += setters {
					noError(t, c.Set(ctx, sets[i], []byte("ours"), time.Hour))
					if i%10 == 0 {
						noError(t, c.Delete(ctx, deletes[i/10]))
					}
				}
			})
		}
		wg.Wait()
		redistest.WaitFor(t, patience, "the client to notice", func() bool { return c.Health().State != holdfast.Up })
		must(t, c.SetMany(ctx, all(theirs, "ours"), 0))
		s.meets(func(r *redistest.Server) {
			for _, key := range theirs {
				r.MustDo("SET", key, "theirs")
			}
		})

		gone := time.Now()
		s.returns(c)
		up := time.Now()
		drain(t, c)
		took := time.Since(up)
		t.Logf("drained %v after it was up, which was %v after it could be reached", took, up.Sub(gone))
		if took > max(5*time.Second*raceFactor, 20*half)+slack() {
			t.Errorf("drained %v after redis was back", took)
		}
		want := map[string]string{}
		for _, key := range sets {
			want[key] = "ours"
		}
		for _, key := range deletes {
			want[key] = nothing
		}
		for _, key := range theirs {
			want[key] = nothing // a conflict
		}
		mismatches(t, s.master, "after the drain", want)
		if st := c.Stats(); st.Superseded != uint64(len(theirs)) || st.Refused+st.Downgraded+st.Rejected != 0 || st.Replayed < uint64(len(sets)+len(deletes)-100) {
			t.Errorf("stats %+v", st)
		}
	})
}

// diary is what one of several writers remembers of its keys, which nobody else
// writes. Some are written again and again, so that writes meet replays of the same
// key; the others once or twice, so that whatever happens happens to some key's last
// write.
type diary struct {
	name string
	rnd  *rand.Rand
	keys []string
	last map[string]page
}

type page struct {
	value string // nothing after a delete
	began time.Time
}

const rewritten = 10

// step writes something, and reads something that was written.
func (d *diary) step(t *testing.T, ctx context.Context, c *holdfast.Cache, i int) {
	var key string
	if i%2 == 0 {
		key = fmt.Sprintf("%s:hot%d", d.name, d.rnd.IntN(rewritten))
	} else {
		key = fmt.Sprintf("%s:%d", d.name, i/4)
	}
	if _, ok := d.last[key]; !ok {
		d.keys = append(d.keys, key)
	}
	p := page{value: fmt.Sprint(key, "#", i), began: time.Now()}
	if d.rnd.IntN(4) == 0 {
		p.value = nothing
		noError(t, c.Delete(ctx, key))
	} else {
		noError(t, c.Set(ctx, key, []byte(p.value), time.Hour))
	}
	d.last[key] = p
	for _, key := range []string{key, d.keys[d.rnd.IntN(len(d.keys))]} {
		v, err := c.Get(ctx, key)
		switch {
		case errors.Is(err, holdfast.ErrMiss):
		case err != nil:
			t.Errorf("get %s: %v", key, err)
		case string(v) != d.last[key].value:
			t.Errorf("%s was read as %q, last written %q", key, v, d.last[key].value)
		}
	}
}

// check compares what was accepted with what the server holds. What it had
// acknowledged before forgotten, and forgot, may be missing.
func (d *diary) check(t *testing.T, r *redistest.Server, forgotten time.Time) {
	t.Helper()
	want := map[string]string{}
	held := heldAt(r, d.keys)
	for key, p := range d.last {
		if held[key] != nothing || !p.began.Before(forgotten) {
			want[key] = p.value
		}
	}
	mismatches(t, r, "in the end", want)
}

// Planned maintenance and crashes, one after the other, under live load: no caller
// gets an error, nothing older is ever read, nothing is lost.
func TestOutagesInARowUnderLiveLoadLoseNothing(t *testing.T) {
	const rounds = 3
	outagesAtOnce(t, func(t *testing.T, ctx context.Context, s *site) {
		c := s.open(s.options())
		const writers = 8
		diaries := make([]*diary, writers)
		for g := range diaries {
			diaries[g] = &diary{name: fmt.Sprint("w", g), rnd: rand.New(rand.NewPCG(uint64(g), 7)), last: map[string]page{}}
		}
		var calls latencies
		stop := load(t, writers, func(g, i int) {
			calls.time(func() { diaries[g].step(t, ctx, c, i) })
			time.Sleep(500 * time.Microsecond) // writers do something else, too
		})
		t.Cleanup(stop) // before the cache is closed
		var forgotten time.Time
		for range rounds {
			passes(t, "some load", 50*time.Millisecond)
			s.leaves(c)
			if s.kind.empty {
				forgotten = time.Now()
			}
			passes(t, "an outage", 50*time.Millisecond)
			s.returns(c)
		}
		passes(t, "some load", 50*time.Millisecond)
		stop()
		drain(t, c)
		keys := 0
		for _, d := range diaries {
			d.check(t, s.master, forgotten)
			keys += len(d.keys)
		}
		settled(t, c)
		for _, d := range diaries {
			d.check(t, s.master, forgotten)
		}
		// Three calls of a budget each, of servers and clients on few cores.
		calls.within(t, 0.99, 3*50*time.Millisecond+2*slack())
		st := c.Stats()
		if st.Superseded != 0 || st.Refused+st.Downgraded+st.Rejected != 0 || st.Replayed == 0 {
			t.Errorf("nobody else writes, and there is room: %+v", st)
		}
		t.Logf("%d keys, %d of %d writes replayed, slowest step %v", keys, st.Replayed, len(calls.all), calls.quantile(1))
	})
}

func TestShutdownBehindAnOutageDeliversOrSaysHowManyItCouldNot(t *testing.T) {
	outagesAtOnce(t, func(t *testing.T, ctx context.Context, s *site) {
		patient, hasty := s.open(s.options()), s.open(s.options())
		sets, deletes := named("set", 300), named("deleted", 50)
		must(t, patient.SetMany(ctx, all(sets, "before"), 0))
		must(t, patient.SetMany(ctx, all(deletes, "before"), 0))
		s.leaves(patient)
		redistest.WaitFor(t, patience, "the other to notice", func() bool {
			_, _ = hasty.Get(ctx, "nobody's")
			return hasty.Health().State != holdfast.Up
		})
		must(t, patient.SetMany(ctx, all(sets, "ours"), 0))
		must(t, patient.Delete(ctx, deletes...))
		must(t, hasty.SetMany(ctx, all(named("hasty", 70), "lost"), 0))

		short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
		defer cancel()
		err := hasty.Shutdown(short)
		var u *holdfast.UndeliveredError
		if !errors.As(err, &u) || u.Keys != 70 || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("shutdown in the outage: %v", err)
		}

		delivered := make(chan error, 1)
		go func() { delivered <- patient.Shutdown(ctx) }()
		s.kind.back(s)
		select {
		case err := <-delivered:
			must(t, err)
		case <-time.After(patience):
			t.Fatal("shutdown does not return though redis is back")
		}
		want := map[string]string{}
		for _, key := range sets {
			want[key] = "ours"
		}
		for _, key := range deletes {
			want[key] = nothing
		}
		mismatches(t, s.master, "after the shutdown", want)
	})
}
