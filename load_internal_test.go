package holdfast

import (
	"math"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/flight"
	"github.com/holdfast-cache/holdfast/internal/keyhash"
	"github.com/holdfast-cache/holdfast/internal/local"
)

func boarded(t *testing.T, fs *flight.Table[Entry], h keyhash.Hash) *flight.Flight[Entry] {
	t.Helper()
	f, role, err := fs.Join(h, flight.NewRun[Entry](), nil)
	if err != nil || role != flight.Leader {
		t.Fatalf("role %d, %v", role, err)
	}
	return f
}

func hasEnded(f *flight.Flight[Entry]) bool {
	select {
	case <-f.Done:
		return true
	default:
		return false
	}
}

func TestWhereALoadedValueMayGo(t *testing.T) {
	for _, tt := range []struct {
		remote, fenced, flushed, unbroken, writable bool
		want                                        destination
	}{
		{want: storeEverywhere}, // there is no redis
		{remote: true, unbroken: true, writable: true, want: storeEverywhere},
		{remote: true, unbroken: true, want: localOnly},
		{remote: true, writable: true, want: localUnconfirmed}, // the stream broke during the load
		{remote: true, want: localUnconfirmed},
		{remote: true, flushed: true, writable: true, want: discardResult},
		{remote: true, fenced: true, want: localUntilReplay},
		{remote: true, fenced: true, flushed: true, want: localUntilReplay},
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
		{"without an end", 81 * s, 0, clock.Never, 0, 0.8, false},
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
		{100, clock.Never, 1, true},
		{100, clock.Never, 0, false},
	} {
		if got := maySubstitute(tt.now, tt.expires, tt.grace); got != tt.want {
			t.Errorf("%+v: %v", tt, got)
		}
	}
	for _, tt := range []struct{ set, option, want time.Duration }{
		{0, time.Minute, time.Minute},
		{-1, time.Minute, 0},
		{time.Hour, 0, time.Hour},
		{math.MaxInt64, 0, time.Duration(math.MaxInt32-1) * local.StaleIfErrorUnit},
	} {
		if got := (local.StaleIfErrorOf(tt.set) | local.NotInRedis).Or(tt.option); got > tt.want || tt.want-got > local.StaleIfErrorUnit {
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
		it := loadItem{key: order, h: c.local.Hash(order)}
		it.f = boarded(t, c.flights, it.h)
		c.flights.Load(it.f, false)
		c.flights.Store(it.f)
		now := c.clock.Now()
		far := now + int64(time.Hour)
		if order == "before" {
			(&linkEvents{c}).Invalidated(order, true)
		}
		c.storeIfNotInvalidated(&it, local.NewEntry(order, []byte("v"), local.Freshness{Confirmed: now, Fresh: local.FreshUntil(far), Expires: far, Scope: &c.local.StandaloneScope}), now)
		if order == "after" {
			(&linkEvents{c}).Invalidated(order, true)
		}
		c.flights.End(it.f, Entry{}, nil, 0)
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
	h := c.local.Hash("k")
	entryOf := func(v string) *local.Entry {
		return local.NewEntry("k", []byte(v), local.Freshness{Fresh: clock.Never, Expires: clock.Never, Scope: &c.local.StandaloneScope})
	}
	f := boarded(t, c.flights, h)
	set, loaded := entryOf("set"), entryOf("loaded")
	c.local.Put(h, set)
	if _, _, ok := c.local.PutUnless(h, loaded, &f.SupersededDuringStore, nil); ok || c.local.Get(h) != set {
		t.Error("it came over what was set since")
	}
	if _, _, ok := c.local.PutUnless(h, loaded, &f.SupersededDuringStore, set); !ok || c.local.Get(h) != loaded {
		t.Error("it may come over what was seen")
	}
	c.local.Put(h, nil)
	f.SupersededDuringStore.Store(true)
	if _, _, ok := c.local.PutUnless(h, loaded, &f.SupersededDuringStore, nil); ok || c.local.Get(h) != nil {
		t.Error("it came over a delete")
	}
	if _, _, ok := c.local.BeginUnless(h, loaded, &f.SupersededDuringStore); ok || c.local.Get(h) != nil {
		t.Error("it began over a delete")
	}
}
