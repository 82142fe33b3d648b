package holdfast

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/redis/rueidis"
)

func TestWhatWasLostTwiceIsTriedAloneAndWhatWasLostAloneIsIsolated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSuspects(clock.Start(), time.Second)
		want := func(step string, id uint64, want treatment) {
			t.Helper()
			if got := s.judge(id); got != want {
				t.Errorf("%s: %d, want %d", step, got, want)
			}
		}
		want("unknown", 1, sendInCompany)
		if s.blame([]uint64{1, 2}, 1, false) {
			t.Error("one loss makes no suspect")
		}
		want("lost once", 1, sendInCompany)
		s.blame([]uint64{1}, 1, false)
		want("lost once, with two callers", 1, sendInCompany)
		s.clear(2)
		if !s.blame([]uint64{1, 2}, 2, false) {
			t.Error("two losses make a suspect")
		}
		want("lost twice", 1, sendAlone)
		want("lost twice, answered in between", 2, sendInCompany)
		for i, d := range []time.Duration{1, 2, 4, 8, 16, 30, 30} {
			if !s.blame([]uint64{1}, uint64(3+i), true) {
				t.Error("a loss alone says who it was")
			}
			want("lost alone", 1, sendNot)
			if next := s.nextTrial(); next != clock.After(s.clock.Now(), d*time.Second) {
				t.Errorf("isolation %d ends in %v, want %v", i, time.Duration(next-s.clock.Now()), d*time.Second)
			}
			time.Sleep(d*time.Second - 1)
			want("just before its time is up", 1, sendNot)
			time.Sleep(time.Nanosecond)
			want("its time is up", 1, sendAlone)
		}
		s.clear(1)
		want("answered", 1, sendInCompany)
		s.clear(2)
		if s.any() {
			t.Error("nothing is suspect any more, and still costs")
		}
	})
}

func TestWhatIsSuspectIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSuspects(clock.Start(), time.Second)
		s.blame([]uint64{1}, 1, false)
		time.Sleep(suspectMemory)
		s.blame([]uint64{1}, 2, false)
		if s.judge(1) != sendInCompany {
			t.Error("a loss of long ago counts")
		}
		time.Sleep(suspectMemory)
		s.judge(2)
		if s.any() {
			t.Error("it is remembered for ever")
		}
	})
}

func TestTheTableOfSuspectsIsBounded(t *testing.T) {
	s := newSuspects(clock.Start(), time.Second)
	for i := range uint64(10) {
		ids := make([]uint64, 1000)
		for j := range ids {
			ids[j] = 1000*i + uint64(j)
		}
		s.blame(ids, 1, false)
	}
	if n := len(s.known.Load().of); n != suspectsMost {
		t.Errorf("%d are noted, not %d", n, suspectsMost)
	}
}

// A server that hangs up whatever it is sent would have everything isolated.
func TestWhereMoreIsIsolatedThanCanBeItIsNotTheirFault(t *testing.T) {
	s := newSuspects(clock.Start(), time.Minute)
	for i := range uint64(isolatedMost) {
		if !s.blame([]uint64{i}, i+1, true) {
			t.Fatalf("number %d is not isolated", i)
		}
	}
	if s.blame([]uint64{1000}, 1000, true) || s.any() {
		t.Error("one more, and they are still taken for the cause")
	}
}

func TestASuspectIsKnownByItsCommandsAndItsKey(t *testing.T) {
	s, b := newSuspects(clock.Start(), time.Second), newBuilder()
	built := func(args ...string) rueidis.Completed { return b.Arbitrary(args...).Build() }
	get := func(key string) uint64 { return s.id(key, []rueidis.Completed{built("GET", key), built("PTTL", key)}) }
	if get("a") != s.named("a", readName) || get("a") == get("b") {
		t.Error("a read")
	}
	if s.id("a", []rueidis.Completed{built("DEL", "a"), built("DEL", "lease")}) != s.write("a", true) ||
		s.id("a", []rueidis.Completed{built("SET", "a", "1")}) != s.write("a", false) || s.write("a", true) == s.write("a", false) {
		t.Error("a write")
	}
	if s.id("", []rueidis.Completed{built("KEYS", "*")}) == s.id("", []rueidis.Completed{built("KEYS", "a*")}) {
		t.Error("a command without keys")
	}
}

func TestWhoIsAloneHasNobodyBeside(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	s := &session{}
	s.freed = make(chan struct{}, bulkheadSlots)
	var inside, alone atomic.Int64
	var wg sync.WaitGroup
	check := func(n int64, of *atomic.Int64, most int64) {
		if of.Add(n) > most || n > 0 && alone.Load() > 1 {
			t.Error("somebody is beside")
		}
	}
	for range 20 {
		wg.Go(func() {
			for range 500 {
				if _, err := s.acquire(ctx); err != nil {
					t.Error(err)
					return
				}
				inside.Add(1)
				if alone.Load() != 0 {
					t.Error("somebody is alone")
				}
				inside.Add(-1)
				s.release()
			}
		})
	}
	wg.Go(func() {
		for range 200 {
			if !s.enterReplay(ctx) {
				t.Error("no replay")
				return
			}
			inside.Add(1)
			if alone.Load() != 0 {
				t.Error("somebody is alone")
			}
			inside.Add(-1)
			s.leaveReplay()
		}
	})
	for range 4 {
		wg.Go(func() {
			for range 25 {
				if _, err := s.enterAlone(ctx); err != nil {
					t.Error(err)
					return
				}
				check(1, &alone, 1)
				if n := inside.Load(); n != 0 {
					t.Errorf("%d are beside", n)
				}
				check(-1, &alone, 1)
				s.leaveAlone(0)
			}
		})
	}
	wg.Wait()
	if s.used.Load() != 0 || s.replays.Load() != 0 || s.solo.Load() {
		t.Errorf("left behind: %d slots, %d replays", s.used.Load(), s.replays.Load())
	}
}

func TestWhoCannotBeAloneInTimeLetsTheOthersIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &session{}
		s.freed = make(chan struct{}, bulkheadSlots)
		if _, err := s.acquire(t.Context()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		waits := make(chan error)
		go func() {
			time.Sleep(time.Second / 2)
			_, err := s.acquire(t.Context())
			waits <- err
		}()
		if _, err := s.enterAlone(ctx); err == nil {
			t.Error("alone beside another")
		}
		if err := <-waits; err != nil || s.used.Load() != 2 {
			t.Errorf("the other: %v; %d slots", err, s.used.Load())
		}
	})
}

// A call that gave up is under way until what was sent behind it is answered: a
// connection that is lost later is lost under it.
func TestACallThatGaveUpIsBlamedForALossThatComesLater(t *testing.T) {
	s := &session{pipe: &pipe{}, link: newLinkRig(t).open()}
	s.freed = make(chan struct{}, bulkheadSlots)
	late := outcome{unknown: true}
	for i := range uint64(2) {
		s.id = i + 1
		s.abandoned.Add(1)
		s.used.Add(1)
		s.unanswered([]uint64{1}, false, "", late)
		s.answered(10 * (i + 1)) // of another, that was sent later
		s.unanswered([]uint64{2}, false, "", late)
		s.link.blameAbandoned(s)
	}
	if got := [2]treatment{s.link.suspects.judge(1), s.link.suspects.judge(2)}; got != [2]treatment{sendInCompany, sendAlone} {
		t.Errorf("%v", got)
	}
	s.id = 3
	s.unanswered([]uint64{2}, true, "k", late)
	s.link.blameAbandoned(s)
	if s.link.suspects.judge(2) != sendNot {
		t.Error("it was alone, and nothing else was answered")
	}
	for i := range uint64(2 * abandonedMost) {
		s.unanswered([]uint64{i}, false, "", late)
	}
	if n := len(s.left.mu.ids); n > abandonedMost {
		t.Error(fmt.Sprint(n, " are remembered"))
	}
}
