package holdfast

import (
	"context"
	"math"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func boarded(t *testing.T, fs *flights, h keyHash) *flight {
	t.Helper()
	f, role, err := fs.join(h, newRun(), nil)
	if err != nil || role != leads {
		t.Fatalf("role %d, %v", role, err)
	}
	return f
}

func hasEnded(f *flight) bool {
	select {
	case <-f.done:
		return true
	default:
		return false
	}
}

// Each step of the table above flights.
func TestAFlightGoesThroughItsPhases(t *testing.T) {
	h := keyHash{1, 2}
	for _, tt := range []struct {
		name  string
		steps func(fs *flights, f *flight)
		store bool // what it brings may be stored
		there bool // it has the key's place
	}{
		{"undisturbed", func(fs *flights, f *flight) { fs.load(f, false) }, true, true},
		{"written while it reads", func(fs *flights, f *flight) { fs.overtake(h); fs.load(f, false) }, false, false},
		{"written while it loads", func(fs *flights, f *flight) { fs.load(f, false); fs.overtake(h) }, false, false},
		{"told while it reads", func(fs *flights, f *flight) { fs.tell(h); fs.load(f, false) }, false, true},
		{"told while it reads, and read anew", func(fs *flights, f *flight) { fs.tell(h); fs.load(f, false); fs.arm(f); fs.load(f, false) }, true, true},
		{"told each time", func(fs *flights, f *flight) { fs.tell(h); fs.load(f, true) }, false, false},
		{"told while it loads", func(fs *flights, f *flight) { fs.load(f, false); fs.tell(h) }, false, false},
		{"told of another key", func(fs *flights, f *flight) { fs.load(f, false); fs.tell(keyHash{9, 2}) }, true, true},
		{"ended", func(fs *flights, f *flight) { fs.load(f, false); fs.abort(f, ErrClosed) }, false, false},
	} {
		fs := newFlights()
		f := boarded(t, fs, h)
		tt.steps(fs, f)
		if got := !fs.idle(h); got != tt.there {
			t.Errorf("%s: it has its place: %v", tt.name, got)
		}
		if got := fs.store(f); got != tt.store {
			t.Errorf("%s: may be stored: %v", tt.name, got)
		}
		fs.end(f, Entry{}, nil, 0)
		if !hasEnded(f) || fs.end(f, Entry{}, nil, 0) {
			t.Errorf("%s: it ends twice, or not at all", tt.name)
		}
		if n := fs.n.Load(); n != 0 || !fs.idle(h) {
			t.Errorf("%s: %d flights are left", tt.name, n)
		}
	}
}

// Which of two Redis would run last, nobody knows.
func TestAWriteWaitsForAValueThatIsBeingStored(t *testing.T) {
	fs, h := newFlights(), keyHash{1, 2}
	f := boarded(t, fs, h)
	fs.load(f, false)
	fs.store(f)
	stored := fs.overtake(h)
	if stored == nil {
		t.Fatal("the write would not wait")
	}
	if fs.abort(f, errAgain) || hasEnded(f) {
		t.Error("it was released before the storing was over")
	}
	fs.leave(f, nil)
	if hasEnded(f) {
		t.Error("it was released when nobody waited any more, before the storing was over")
	}
	fs.end(f, Entry{}, nil, 0)
	<-stored
}

func TestARestKeepsItsPlaceForAPauseOrUntilAWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs, h := newFlights(), keyHash{1, 2}
		rest := func() {
			t.Helper()
			f := boarded(t, fs, h)
			fs.end(f, Entry{}, ErrNotFound, time.Second)
			if _, role, _ := fs.join(h, newRun(), nil); role != rests {
				t.Errorf("role %d", role)
			}
		}
		rest()
		time.Sleep(time.Second + 1)
		if !fs.idle(h) {
			t.Error("it rests for ever")
		}
		rest()
		fs.overtake(h)
		rest()
		fs.tell(h)
		if !fs.idle(h) || fs.n.Load() != 0 {
			t.Errorf("%d are left", fs.n.Load())
		}
	})
}

func TestWhenTheLastOneLeavesTheRunIsOver(t *testing.T) {
	fs, h := newFlights(), keyHash{1, 2}
	f := boarded(t, fs, h)
	ctx, cancel := context.WithCancel(context.Background())
	f.run.start(cancel)
	if g, role, err := fs.join(h, newRun(), nil); g != f || role != waits || err != nil {
		t.Fatal(role, err)
	}
	fs.leave(f, nil)
	if ctx.Err() != nil || hasEnded(f) {
		t.Error("over, and somebody waits")
	}
	fs.leave(f, nil)
	if ctx.Err() == nil || !hasEnded(f) || f.err != errAgain {
		t.Error("not over")
	}
	if boarded(t, fs, h) == f {
		t.Error("a flight that is over was joined")
	}

	// What is wanted goes on.
	f = boarded(t, newFlights(), h)
	f.run.start(cancel)
	f.run.want()
	fs.leave(f, nil)
	if hasEnded(f) {
		t.Error("a run that was wanted has ended")
	}
}

func TestKeysNeverStayInTheFlightTable(t *testing.T) {
	fs := newFlights()
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 2000 {
				h := keyHash{uint64(i % 5), uint64(i % 5)}
				f, role, err := fs.join(h, newRun(), nil)
				if err != nil {
					t.Error(err)
					return
				}
				switch {
				case role == leads && g%2 == 0:
					if fs.load(f, true); fs.store(f) && i%3 == 0 {
						fs.tell(h)
					}
					fs.end(f, Entry{}, nil, 0)
				case i%7 == 0:
					if stored := fs.overtake(h); stored != nil {
						<-stored
					}
				case i%11 == 0:
					fs.tell(h)
				}
				fs.leave(f, nil)
				if g%2 == 0 {
					<-f.done // whoever leads it ends it, or leaves
				}
			}
		})
	}
	wg.Wait()
	if n := fs.n.Load(); n != 0 {
		t.Errorf("%d are left", n)
	}
	for i := range fs.shards {
		if n := len(fs.shards[i].flights) + len(fs.shards[i].listeners); n != 0 {
			t.Errorf("shard %d holds %d", i, n)
		}
	}
}

func TestWhereALoadedValueMayGo(t *testing.T) {
	for _, tt := range []struct {
		remote, fenced, flushed, unbroken, writable bool
		want                                        destination
	}{
		{want: toTiers}, // there is no redis
		{remote: true, unbroken: true, writable: true, want: toTiers},
		{remote: true, unbroken: true, want: toLocal},
		{remote: true, writable: true, want: toDoubt}, // the stream broke during the load
		{remote: true, want: toDoubt},
		{remote: true, flushed: true, writable: true, want: toNobody},
		{remote: true, fenced: true, want: toFence},
		{remote: true, fenced: true, flushed: true, want: toFence},
	} {
		if got := whereTo(tt.remote, tt.fenced, tt.flushed, tt.unbroken, tt.writable); got != tt.want {
			t.Errorf("%+v: %d", tt, got)
		}
	}
}

func TestWhenARefreshIsDue(t *testing.T) {
	const s = int64(time.Second)
	for _, tt := range []struct {
		name                    string
		now, confirmed, expires int64
		ttl                     time.Duration
		part                    float64
		want                    bool
	}{
		{"early in its life", 50 * s, 0, 100 * s, 100 * time.Second, 0.8, false},
		{"late in its life", 81 * s, 0, 100 * s, 100 * time.Second, 0.8, true},
		{"without an end", 81 * s, 0, never, 0, 0.8, false},
		{"an adaptive, shorter ttl", 5 * s, 0, 10 * s, time.Hour, 0.8, false},
		{"late in that", 9 * s, 0, 10 * s, time.Hour, 0.8, true},
		{"a longer ttl by somebody else", 81 * s, 0, 3600 * s, 100 * time.Second, 0.8, false},
		{"no ttl of the call's", 81 * s, 0, 100 * s, 0, 0.8, true},
	} {
		if got := refreshDue(tt.now, tt.confirmed, tt.expires, tt.ttl, tt.part); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}

func TestWhenACopyMaySubstitute(t *testing.T) {
	for _, tt := range []struct {
		now, expires int64
		grace        time.Duration
		want         bool
	}{
		{100, 90, 0, false},
		{100, 90, 10, false},
		{100, 90, 11, true},
		{100, 110, 1, true},
		{100, never, 1, true},
		{100, never, 0, false},
	} {
		if got := maySubstitute(tt.now, tt.expires, tt.grace); got != tt.want {
			t.Errorf("%+v: %v", tt, got)
		}
	}
	for _, tt := range []struct{ set, option, want time.Duration }{
		{0, time.Minute, time.Minute},
		{-1, time.Minute, 0},
		{time.Hour, 0, time.Hour},
		{math.MaxInt64, 0, time.Duration(math.MaxInt32-1) * graceUnit},
	} {
		if got := (graceOf(tt.set) | ungiven).or(tt.option); got > tt.want || tt.want-got > graceUnit {
			t.Errorf("%v beside %v: %v, want %v", tt.set, tt.option, got, tt.want)
		}
	}
}

func TestJitterOnlyShortens(t *testing.T) {
	for _, tt := range []struct {
		ttl      time.Duration
		part, by float64
		want     time.Duration
	}{
		{time.Minute, 0, 0.9, time.Minute},
		{time.Minute, 0.5, 0, time.Minute},
		{time.Minute, 0.5, 1, 30 * time.Second},
		{time.Minute, 1, 1, time.Millisecond},
		{0, 1, 1, 0},
	} {
		if got := jittered(tt.ttl, tt.part, tt.by); got != tt.want {
			t.Errorf("%+v: %v", tt, got)
		}
	}
}

func TestACallsOptionsAreTheCachesWhereTheyAreZero(t *testing.T) {
	c := LoadOptions{0.1, 0.2, 3, 4, 5, 6, 8, 7}
	for _, tt := range []struct{ call, want LoadOptions }{
		{LoadOptions{}, c},
		{LoadOptions{TTLJitter: -1, EarlyRefresh: -1, StaleIfError: -1, SoftTimeout: -1, NotFoundTTL: -1, Lease: -1}, LoadOptions{HardTimeout: 5, NotFoundTTL: -1, MaxConcurrent: 8, Lease: -1}},
		{LoadOptions{0.5, 0.6, 7, 8, 9, 10, 12, 11}, LoadOptions{0.5, 0.6, 7, 8, 9, 10, 12, 11}},
	} {
		if got := tt.call.over(c); got != tt.want {
			t.Errorf("%+v: %+v", tt.call, got)
		}
	}
}

// The server tells of the key while what was loaded is put in its place.
func TestACopyIsNotFreshOfWhichTheServerToldAsItWasPutInPlace(t *testing.T) {
	c, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, order := range []string{"before", "after", "not"} {
		it := loadItem{key: order, h: c.local.hash(order)}
		it.f = boarded(t, c.flights, it.h)
		c.flights.load(it.f, false)
		c.flights.store(it.f)
		now := c.clock.now()
		far := now + int64(time.Hour)
		if order == "before" {
			c.told(order, true)
		}
		c.keepUntold(&it, newEntry(order, []byte("v"), term{confirmed: now, fresh: far, expires: far, domain: &c.local.home}), now)
		if order == "after" {
			c.told(order, true)
		}
		c.flights.end(it.f, Entry{}, nil, 0)
		if _, fresh := c.look(it.h, order, now); fresh != (order == "not") {
			t.Errorf("told %s: fresh is %v", order, fresh)
		}
	}
}

// A write that began before the load did, and takes its place among the key's writes
// only now: what was loaded leaves what it finds there.
func TestWhatWasLoadedLeavesAnEntryThatItDidNotSee(t *testing.T) {
	c, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	h := c.local.hash("k")
	entryOf := func(v string) *entry {
		return newEntry("k", []byte(v), term{fresh: never, expires: never, domain: &c.local.home})
	}
	f := boarded(t, c.flights, h)
	set, loaded := entryOf("set"), entryOf("loaded")
	c.local.put(h, set)
	if _, _, ok := c.local.putUnless(h, loaded, &f.late, nil); ok || c.local.get(h) != set {
		t.Error("it came over what was set since")
	}
	if _, _, ok := c.local.putUnless(h, loaded, &f.late, set); !ok || c.local.get(h) != loaded {
		t.Error("it may come over what was seen")
	}
	c.local.put(h, nil)
	f.late.Store(true)
	if _, _, ok := c.local.putUnless(h, loaded, &f.late, nil); ok || c.local.get(h) != nil {
		t.Error("it came over a delete")
	}
	if _, _, ok := c.local.beginUnless(h, loaded, &f.late); ok || c.local.get(h) != nil {
		t.Error("it began over a delete")
	}
}
