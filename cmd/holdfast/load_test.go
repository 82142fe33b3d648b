package main

import (
	"errors"
	"slices"
	"testing"
	"time"
)

func TestEveryKeyHasOneWriterWhoReachesIt(t *testing.T) {
	for _, callers := range []int{1, 2, 3, 7, 16, 255, 256} {
		l := newLoad(nil, config{callers: callers}, "")
		writers := make([]int, keyCount)
		for i := range writers {
			writers[i] = -1
		}
		for id := range callers {
			for key := range keyCount {
				own := l.own(id, key)
				if writers[own] != -1 && writers[own] != id {
					t.Fatalf("of %d callers, %d and %d write key %d", callers, writers[own], id, own)
				}
				writers[own] = id
			}
		}
		if orphan := slices.Index(writers, -1); orphan >= 0 {
			t.Errorf("with %d callers nobody writes key %d", callers, orphan)
		}
	}
}

func TestAFailedWriteLeavesTheKeyUnsureUntilTheNext(t *testing.T) {
	l := newLoad(nil, config{callers: 1}, "")
	l.note(0, owed{value: "first"}, nil)
	l.note(0, owed{value: "second"}, errors.New("no"))
	if o := l.ledger[0]; !o.unsure || o.value != "first" {
		t.Errorf("after a failure: %+v", o)
	}
	l.note(0, owed{deleted: true}, nil)
	if o := l.ledger[0]; o.unsure || !o.deleted {
		t.Errorf("after the next write: %+v", o)
	}
}

func TestAMeterCountsFailuresOverrunsAndSources(t *testing.T) {
	m := newMeter(10 * time.Millisecond)
	m.read(time.Millisecond, fromJournal, nil)
	m.read(time.Millisecond, fromNowhere, errors.New("no"))
	m.write(11*time.Millisecond, nil)
	m.woke(2 * time.Millisecond)
	m.woke(time.Millisecond)
	got := m.take()
	if got.calls != 3 || got.failed != 1 || got.overran != 1 || got.reads != [sources]int{fromJournal: 1} {
		t.Errorf("%d calls, %d failed, %d overran, reads %v", got.calls, got.failed, got.overran, got.reads)
	}
	if m.take().calls != 0 {
		t.Error("what was taken is still there")
	}
	sum := new(tally)
	sum.merge(got)
	sum.merge(got)
	if sum.calls != 6 || sum.failure == nil || sum.latency.longest != 11*time.Millisecond || sum.reads[fromJournal] != 2 ||
		sum.oversleep != 2*time.Millisecond {
		t.Errorf("the sum of two is %d calls, failure %v, longest %v, %v late", sum.calls, sum.failure, sum.latency.longest, sum.oversleep)
	}
}
