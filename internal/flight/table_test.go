package flight

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-cache/holdfast/internal/keyhash"
)

// Each step of the table above flights.
func TestAFlightGoesThroughItsPhases(t *testing.T) {
	h := keyhash.Hash{Place: 1, Check: 2}
	for _, tt := range []struct {
		name  string
		steps func(fs *Table[int], f *Flight[int])
		store bool // its result may be stored
		there bool // it has the key's place
	}{
		{"undisturbed", func(fs *Table[int], f *Flight[int]) { fs.Load(f, false) }, true, true},
		{"written while it reads", func(fs *Table[int], f *Flight[int]) { fs.Supersede(h); fs.Load(f, false) }, false, false},
		{"written while it loads", func(fs *Table[int], f *Flight[int]) { fs.Load(f, false); fs.Supersede(h) }, false, false},
		{"told while it reads", func(fs *Table[int], f *Flight[int]) { fs.Invalidate(h); fs.Load(f, false) }, false, true},
		{"told while it reads, and read anew", func(fs *Table[int], f *Flight[int]) {
			fs.Invalidate(h)
			fs.Load(f, false)
			fs.Arm(f)
			fs.Load(f, false)
		}, true, true},
		{"told each time", func(fs *Table[int], f *Flight[int]) { fs.Invalidate(h); fs.Load(f, true) }, false, false},
		{"told while it loads", func(fs *Table[int], f *Flight[int]) { fs.Load(f, false); fs.Invalidate(h) }, false, false},
		{"told of another key", func(fs *Table[int], f *Flight[int]) {
			fs.Load(f, false)
			fs.Invalidate(keyhash.Hash{Place: 9, Check: 2})
		}, true, true},
		{"ended", func(fs *Table[int], f *Flight[int]) { fs.Load(f, false); fs.Abort(f, context.Canceled) }, false, false},
	} {
		fs := New[int]()
		f := joined(t, fs, h)
		tt.steps(fs, f)
		if got := !fs.Idle(h); got != tt.there {
			t.Errorf("%s: it has its place: %v", tt.name, got)
		}
		if got := fs.Store(f); got != tt.store {
			t.Errorf("%s: may be stored: %v", tt.name, got)
		}
		fs.End(f, 0, nil, 0)
		if !isOver(f) || fs.End(f, 0, nil, 0) {
			t.Errorf("%s: it ends twice, or not at all", tt.name)
		}
		if n := fs.N.Load(); n != 0 || !fs.Idle(h) {
			t.Errorf("%s: %d flights are left", tt.name, n)
		}
	}
}

// Nobody knows which of two writes Redis would run last.
func TestAWriteWaitsForAValueThatIsBeingStored(t *testing.T) {
	fs, h := New[int](), keyhash.Hash{Place: 1, Check: 2}
	f := joined(t, fs, h)
	fs.Load(f, false)
	fs.Store(f)
	stored := fs.Supersede(h)
	if stored == nil {
		t.Fatal("the write would not wait")
	}
	if fs.Abort(f, ErrAgain) || isOver(f) {
		t.Error("it was released before the storing was over")
	}
	fs.Leave(f, nil)
	if isOver(f) {
		t.Error("it was released when nobody waited any more, before the storing was over")
	}
	fs.End(f, 0, nil, 0)
	<-stored
}

func TestARestKeepsItsPlaceForAPauseOrUntilAWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs, h := New[int](), keyhash.Hash{Place: 1, Check: 2}
		rest := func() {
			t.Helper()
			f := joined(t, fs, h)
			fs.End(f, 0, context.Canceled, time.Second)
			if _, role, _ := fs.Join(h, NewRun[int](), nil); role != CoolingDown {
				t.Errorf("role %d", role)
			}
		}
		rest()
		time.Sleep(time.Second + 1)
		if !fs.Idle(h) {
			t.Error("it rests for ever")
		}
		rest()
		fs.Supersede(h)
		rest()
		fs.Invalidate(h)
		if !fs.Idle(h) || fs.N.Load() != 0 {
			t.Errorf("%d are left", fs.N.Load())
		}
	})
}

func TestWhenTheLastOneLeavesTheRunIsOver(t *testing.T) {
	fs, h := New[int](), keyhash.Hash{Place: 1, Check: 2}
	f := joined(t, fs, h)
	ctx, cancel := context.WithCancel(context.Background())
	f.Run.Start(cancel)
	if g, role, err := fs.Join(h, NewRun[int](), nil); g != f || role != Follower || err != nil {
		t.Fatal(role, err)
	}
	fs.Leave(f, nil)
	if ctx.Err() != nil || isOver(f) {
		t.Error("over, and somebody waits")
	}
	fs.Leave(f, nil)
	if ctx.Err() == nil || !isOver(f) || f.Err != ErrAgain {
		t.Error("not over")
	}
	if joined(t, fs, h) == f {
		t.Error("a flight that is over was joined")
	}

	// A run that a caller called Want for goes on after the last caller has left.
	f = joined(t, New[int](), h)
	f.Run.Start(cancel)
	f.Run.Want()
	fs.Leave(f, nil)
	if isOver(f) {
		t.Error("a run that was wanted has ended")
	}
}

func TestKeysNeverStayInTheFlightTable(t *testing.T) {
	fs := New[int]()
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 2000 {
				h := keyhash.Hash{Place: uint64(i % 5), Check: uint64(i % 5)}
				f, role, err := fs.Join(h, NewRun[int](), nil)
				if err != nil {
					t.Error(err)
					return
				}
				switch {
				case role == Leader && g%2 == 0:
					if fs.Load(f, true); fs.Store(f) && i%3 == 0 {
						fs.Invalidate(h)
					}
					fs.End(f, 0, nil, 0)
				case i%7 == 0:
					if stored := fs.Supersede(h); stored != nil {
						<-stored
					}
				case i%11 == 0:
					fs.Invalidate(h)
				}
				fs.Leave(f, nil)
				if g%2 == 0 {
					<-f.Done // whoever leads it ends it, or leaves
				}
			}
		})
	}
	wg.Wait()
	if n := fs.N.Load(); n != 0 {
		t.Errorf("%d are left", n)
	}
	for i := range fs.Shards {
		if n := len(fs.Shards[i].Flights) + len(fs.Shards[i].Listeners); n != 0 {
			t.Errorf("shard %d holds %d", i, n)
		}
	}
}

func joined(t *testing.T, fs *Table[int], h keyhash.Hash) *Flight[int] {
	t.Helper()
	f, role, err := fs.Join(h, NewRun[int](), nil)
	if err != nil || role != Leader {
		t.Fatalf("role %d, %v", role, err)
	}
	return f
}

func isOver(f *Flight[int]) bool {
	select {
	case <-f.Done:
		return true
	default:
		return false
	}
}
