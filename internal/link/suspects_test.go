package link

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/dial"
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
		want("unknown", 1, SendInCompany)
		if s.blame([]uint64{1, 2}, 1, false) {
			t.Error("one loss makes no suspect")
		}
		want("lost once", 1, SendInCompany)
		s.blame([]uint64{1}, 1, false)
		want("lost once, with two callers", 1, SendInCompany)
		s.Clear(2)
		if !s.blame([]uint64{1, 2}, 2, false) {
			t.Error("two losses make a suspect")
		}
		want("lost twice", 1, sendAlone)
		want("lost twice, answered in between", 2, SendInCompany)
		for i, d := range []time.Duration{1, 2, 4, 8, 16, 30, 30} {
			if !s.blame([]uint64{1}, uint64(3+i), true) {
				t.Error("a loss alone says who it was")
			}
			want("lost alone", 1, SendNot)
			if next := s.NextTrial(); next != clock.After(s.clock.Now(), d*time.Second) {
				t.Errorf("isolation %d ends in %v, want %v", i, time.Duration(next-s.clock.Now()), d*time.Second)
			}
			time.Sleep(d*time.Second - 1)
			want("just before its time is up", 1, SendNot)
			time.Sleep(time.Nanosecond)
			want("its time is up", 1, sendAlone)
		}
		s.Clear(1)
		want("answered", 1, SendInCompany)
		s.Clear(2)
		if s.Any() {
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
		if s.judge(1) != SendInCompany {
			t.Error("a loss of long ago counts")
		}
		time.Sleep(suspectMemory)
		s.judge(2)
		if s.Any() {
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
	if s.blame([]uint64{1000}, 1000, true) || s.Any() {
		t.Error("one more, and they are still taken for the cause")
	}
}

func TestASuspectIsKnownByItsCommandsAndItsKey(t *testing.T) {
	s, b := newSuspects(clock.Start(), time.Second), testBuilder()
	built := func(args ...string) rueidis.Completed { return b.Arbitrary(args...).Build() }
	get := func(key string) uint64 { return s.id(key, []rueidis.Completed{built("GET", key), built("PTTL", key)}) }
	if get("a") != s.named("a", readName) || get("a") == get("b") {
		t.Error("a read")
	}
	if s.id("a", []rueidis.Completed{built("DEL", "a"), built("DEL", "lease")}) != s.Write("a", true) ||
		s.id("a", []rueidis.Completed{built("SET", "a", "1")}) != s.Write("a", false) || s.Write("a", true) == s.Write("a", false) {
		t.Error("a write")
	}
	if s.id("", []rueidis.Completed{built("KEYS", "*")}) == s.id("", []rueidis.Completed{built("KEYS", "a*")}) {
		t.Error("a command without keys")
	}
}

func TestWhoIsAloneHasNobodyBeside(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	s := &Session{}
	s.freed = make(chan struct{}, BulkheadSlots)
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
				if _, err := s.Acquire(ctx); err != nil {
					t.Error(err)
					return
				}
				inside.Add(1)
				if alone.Load() != 0 {
					t.Error("somebody is alone")
				}
				inside.Add(-1)
				s.Release()
			}
		})
	}
	wg.Go(func() {
		for range 200 {
			if !s.EnterReplay(ctx) {
				t.Error("no replay")
				return
			}
			inside.Add(1)
			if alone.Load() != 0 {
				t.Error("somebody is alone")
			}
			inside.Add(-1)
			s.LeaveReplay()
		}
	})
	for range 4 {
		wg.Go(func() {
			for range 25 {
				if _, err := s.EnterAlone(ctx); err != nil {
					t.Error(err)
					return
				}
				check(1, &alone, 1)
				if n := inside.Load(); n != 0 {
					t.Errorf("%d are beside", n)
				}
				check(-1, &alone, 1)
				s.LeaveAlone(0)
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
		s := &Session{}
		s.freed = make(chan struct{}, BulkheadSlots)
		if _, err := s.Acquire(t.Context()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		waits := make(chan error)
		go func() {
			time.Sleep(time.Second / 2)
			_, err := s.Acquire(t.Context())
			waits <- err
		}()
		if _, err := s.EnterAlone(ctx); err == nil {
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
	s := &Session{Pipe: &dial.Pipe{}, Link: newLinkRig(t).open()}
	s.freed = make(chan struct{}, BulkheadSlots)
	late := Outcome{Unknown: true}
	for i := range uint64(2) {
		s.ID = i + 1
		s.abandoned.Add(1)
		s.used.Add(1)
		s.recordUnanswered([]uint64{1}, false, "", late)
		s.Answered(10 * (i + 1)) // of another, that was sent later
		s.recordUnanswered([]uint64{2}, false, "", late)
		s.Link.blameAbandoned(s)
	}
	if got := [2]treatment{s.Link.Suspects.judge(1), s.Link.Suspects.judge(2)}; got != [2]treatment{SendInCompany, sendAlone} {
		t.Errorf("%v", got)
	}
	s.ID = 3
	s.recordUnanswered([]uint64{2}, true, "k", late)
	s.Link.blameAbandoned(s)
	if s.Link.Suspects.judge(2) != SendNot {
		t.Error("it was alone, and nothing else was answered")
	}
	for i := range uint64(2 * abandonedMost) {
		s.recordUnanswered([]uint64{i}, false, "", late)
	}
	if n := len(s.left.mu.ids); n > abandonedMost {
		t.Error(fmt.Sprint(n, " are remembered"))
	}
}
