package holdfast_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

// What is found is what was undelivered, whatever came and went before: writers,
// outages, replays, and files that were written anew beside them.
func TestWhatIsFoundIsWhatWasUndelivered(t *testing.T) {
	redistest.Long(t)
	ctx := undisturbed(t) // its writers take all the time that there is
	s, p := behind(t)
	dir := t.TempDir()
	o := in(p.Addr(), dir)
	o.Breaker.MinBackoff, o.Breaker.MaxBackoff = time.Millisecond, 20*time.Millisecond
	c := open(t, o)

	const writers, each = 8, 30
	last := make([]map[string]string, writers)
	done := make(chan struct{})
	var wg sync.WaitGroup
	stop := sync.OnceFunc(func() {
		close(done)
		wg.Wait()
	})
	defer stop()
	for g := range writers {
		last[g] = make(map[string]string)
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(g), uint64(time.Now().UnixNano())))
			pad := strings.Repeat("x", 8<<10) // so that the files are soon full
			for i := 0; ; i++ {
				select {
				case <-done:
					return
				default:
				}
				key := fmt.Sprintf("w%d:%d", g, rnd.IntN(each))
				value := ""
				var err error
				if rnd.IntN(4) == 0 {
					err = c.Delete(ctx, key)
				} else {
					value = fmt.Sprint(i, pad[:rnd.IntN(len(pad))])
					err = c.Set(ctx, key, []byte(value), 0)
				}
				if err != nil {
					t.Errorf("write: %v", err)
				}
				last[g][key] = value
				if v, err := c.Get(ctx, key); err == nil && string(v) != value {
					t.Errorf("%s is read as %.20q after %.20q was written", key, v, value)
				}
			}
		})
	}
	// Files are written anew when more than 16 MiB of them are out of date.
	anew := make(map[string]bool)
	outages, toggle := 0, time.NewTicker(50*time.Millisecond)
	defer toggle.Stop()
	over := time.Now().Add(patience)
	for ; outages < 20 || len(anew) < 2; outages++ {
		p.SetMode(redistest.Cut)
		<-toggle.C
		for _, name := range files(t, dir, "*.snap") {
			anew[name] = true
		}
		if outages%2 == 0 {
			p.SetMode(redistest.Pass)
			<-toggle.C
		}
		if time.Now().After(over) {
			t.Errorf("after %d outages the files were written anew %d times", outages, len(anew))
			break
		}
	}
	p.SetMode(redistest.Cut)
	waitState(t, c, holdfast.Down)
	stop()
	undelivered, st := c.Health().JournalKeys, c.Stats()
	if st.Downgraded+st.Superseded > 0 {
		t.Errorf("%d sets were made deletes and %d superseded, where nobody else writes", st.Downgraded, st.Superseded)
	}
	closedEmpty(t, c)

	c = open(t, o)
	if found := c.Stats().Restored; found != uint64(undelivered) {
		t.Errorf("%d keys were found, and %d were undelivered", found, undelivered)
	}
	for g := range last {
		for key, want := range last[g] {
			if v, err := c.Get(ctx, key); err == nil && string(v) != want {
				t.Errorf("%s is read as %.20q, last written %.20q", key, v, want)
			}
		}
	}
	p.SetMode(redistest.Pass)
	ready(t, c)
	drain(t, c)
	settled(t, c)
	lost := 0
	for g := range last {
		for key, want := range last[g] {
			got := s.MustDo("GET", key)
			if got == "(nil)" {
				got = ""
			}
			if got != want && got != "" {
				t.Errorf("%s is %.20q, last written %.20q", key, got, want)
			} else if got != want {
				lost++
			}
		}
	}
	if lost > 0 {
		t.Errorf("%d sets are absent, and nobody else has written", lost)
	}
	t.Logf("%d outages, %d writes journaled, files written anew %d times, %d keys undelivered at the end", outages, st.Journaled, len(anew), undelivered)
}

// A key that is written again while its replay is under way leaves the journal, too.
func TestAKeyThatIsWrittenAllTheTimeLeavesTheJournalAndItsFile(t *testing.T) {
	ctx := begin(t)
	_, p := behind(t)
	c := open(t, in(p.Addr(), t.TempDir()))
	ready(t, c)
	p.SetMode(redistest.Cut)
	waitState(t, c, holdfast.Down)
	must(t, c.Set(ctx, "k", []byte("v"), 0))
	done := make(chan struct{})
	var wg sync.WaitGroup
	defer func() {
		close(done)
		wg.Wait()
	}()
	wg.Go(func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for i := 0; ; i++ {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			if err := c.Set(ctx, "k", []byte(fmt.Sprint(i)), 0); err != nil {
				t.Errorf("set: %v", err)
			}
		}
	})
	p.SetMode(redistest.Pass)
	waitState(t, c, holdfast.Up)
	redistest.WaitFor(t, patience, "the key to leave under a write each millisecond", func() bool {
		return c.Health().JournalKeys == 0
	})
}

// The server's messages about the replay's own writes are not changes by others.
func TestKeysThatAreWrittenWhileTheyDrainLoseNoSet(t *testing.T) {
	beside(t)
	redistest.Long(t)
	for name, dir := range map[string]string{"in memory": "", "in a file": t.TempDir()} {
		t.Run(name, func(t *testing.T) {
			ctx := begin(t)
			s, p := behind(t)
			o := in(p.Addr(), dir)
			o.Breaker.MinBackoff, o.Breaker.MaxBackoff = time.Millisecond, 20*time.Millisecond
			c := open(t, o)
			ready(t, c)
			const writers = 8
			var last [writers]string
			for round := range 30 {
				p.SetMode(redistest.Cut)
				waitState(t, c, holdfast.Down)
				stop := load(t, writers, func(g, i int) {
					last[g] = fmt.Sprint(round, "-", i)
					if err := c.Set(ctx, fmt.Sprint("k", g), []byte(last[g]), 0); err != nil {
						t.Errorf("set: %v", err)
					}
				})
				p.SetMode(redistest.Pass)
				waitState(t, c, holdfast.Up)
				<-time.After(time.Duration(rand.IntN(60)) * time.Millisecond)
				stop()
				drain(t, c)
				for g := range writers {
					if got := s.MustDo("GET", fmt.Sprint("k", g)); got != last[g] {
						t.Errorf("round %d: k%d is %s, last written %s", round, g, got, last[g])
					}
				}
				if t.Failed() {
					break
				}
			}
			if st := c.Stats(); st.Downgraded+st.Superseded > 0 {
				t.Errorf("%d sets were made deletes and %d superseded, where nobody else writes", st.Downgraded, st.Superseded)
			}
		})
	}
}

// What is written while the key's last write is replayed is replayed after it. The
// next outage must know that, or it takes the value for another client's.
func TestTwoOutagesInARowLoseNoSet(t *testing.T) {
	beside(t)
	for name, first := range map[string]func(c *holdfast.Cache, key string) error{
		"deleted first": func(c *holdfast.Cache, key string) error { return c.Delete(t.Context(), key) },
		"set first":     func(c *holdfast.Cache, key string) error { return c.Set(t.Context(), key, []byte("one"), 0) },
	} {
		t.Run(name, func(t *testing.T) {
			ctx := begin(t)
			s, p := behind(t)
			o := at(p.Addr())
			o.Timeout = time.Second
			c := open(t, o)
			ready(t, c)
			const keys = 400
			away := func() {
				p.SetLatency(0)
				p.SetMode(redistest.Cut)
				waitState(t, c, holdfast.Down)
			}
			away()
			for i := range keys {
				must(t, first(c, fmt.Sprint("k", i)))
			}
			p.SetLatency(10 * time.Millisecond) // so that a pipeline is under way for a while
			p.SetMode(redistest.Pass)
			waitState(t, c, holdfast.Up)
			for i := range keys {
				if c.Health().JournalKeys == 0 {
					t.Logf("the first replay was over at key %d", i)
					break
				}
				must(t, c.Set(ctx, fmt.Sprint("k", i), []byte("two"), 0))
				<-time.After(100 * time.Microsecond)
			}
			drain(t, c)
			away()
			for i := range keys {
				must(t, c.Set(ctx, fmt.Sprint("k", i), []byte("three"), 0))
			}
			p.SetMode(redistest.Pass)
			waitState(t, c, holdfast.Up)
			drain(t, c)
			lost := 0
			for i := range keys {
				if s.MustDo("GET", fmt.Sprint("k", i)) != "three" {
					lost++
				}
			}
			if n := c.Stats().Superseded; lost > 0 || n > 0 {
				t.Errorf("%d of %d sets are lost and %d superseded, where nobody else writes", lost, keys, n)
			}
		})
	}
}
