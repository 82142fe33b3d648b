package local

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dgraph-io/ristretto/v2"
	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/keyhash"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

// tier is what the model test drives: holdfast's local tier, and plain ristretto
// to show that the test can fail.
type tier interface {
	set(key string, value []byte)
	get(key string) []byte
	del(key string)
}

type localTier struct{ l *Tier }

func (t localTier) set(key string, value []byte) {
	t.l.Put(t.l.Hash(key), NewEntry(key, value, Freshness{Expires: clock.Never, Scope: new(EpochScope)}))
}
func (t localTier) del(key string) { t.l.Put(t.l.Hash(key), nil) }
func (t localTier) get(key string) []byte {
	if e := t.l.Get(t.l.Hash(key)); e != nil {
		return e.Bytes()
	}
	return nil
}

type ristrettoTier struct {
	c *ristretto.Cache[string, []byte]
}

func (t ristrettoTier) set(key string, value []byte) { t.c.Set(key, value, int64(len(value))) }
func (t ristrettoTier) del(key string)               { t.c.Del(key) }
func (t ristrettoTier) get(key string) []byte {
	v, _ := t.c.Get(key)
	return v
}

func startLocal(t testing.TB, maxBytes int64) *Tier {
	t.Helper()
	l := New(maxBytes)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { l.Feed(stop) })
	t.Cleanup(func() {
		close(stop)
		wg.Wait()
		l.Close()
	})
	return l
}

// model runs random operations on few keys and counts what must not be: a read
// that returns a value older than the last write that had returned, and a
// read-back of nothing right after a set.
//
// Writes of one key follow one another; reads run beside everything.
func model(tr tier, goroutines, rounds, keys, size int, seed uint64) (older, lost int64) {
	type slot struct {
		mu      sync.Mutex
		version uint64
		floor   atomic.Uint64 // the last write that returned
	}
	slots := make([]slot, keys)
	var wg sync.WaitGroup
	var olds, losts atomic.Int64
	for g := range goroutines {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(seed, uint64(g)))
			for range rounds {
				k := rnd.IntN(keys)
				s, key := &slots[k], fmt.Sprint("key", k)
				read := func() (version uint64, ok bool) {
					floor := s.floor.Load()
					v := tr.get(key)
					if v == nil {
						return 0, false
					}
					version = binary.BigEndian.Uint64(v)
					if version < floor {
						olds.Add(1)
					}
					return version, true
				}
				switch rnd.IntN(5) {
				case 0, 1:
					s.mu.Lock()
					s.version++
					v := make([]byte, 8+rnd.IntN(size))
					binary.BigEndian.PutUint64(v, s.version)
					tr.set(key, v)
					s.floor.Store(s.version)
					if _, ok := read(); !ok {
						losts.Add(1)
					}
					s.mu.Unlock()
				case 2:
					s.mu.Lock()
					s.version++
					tr.del(key)
					s.floor.Store(s.version)
					if _, ok := read(); ok {
						olds.Add(1)
					}
					s.mu.Unlock()
				default:
					read()
				}
			}
		})
	}
	wg.Wait()
	return olds.Load(), losts.Load()
}

func TestTheLocalTierNeverReturnsAnOlderValue(t *testing.T) {
	rounds := 20_000
	if testing.Short() {
		rounds = 2_000
	}
	for _, tt := range []struct {
		name     string
		maxBytes int64
		keys     int
		size     int
		lossless bool
	}{
		{"room for all", 64 << 20, 16, 100, true},
		{"tiny, most is rejected", 64 << 10, 64, 4000, false},
		{"tiny, many small keys", 64 << 10, 500, 50, false},
		{"too large for the tier, some of it", 64 << 10, 8, 16 << 10, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := startLocal(t, tt.maxBytes)
			older, lost := model(localTier{l}, 8, rounds, tt.keys, tt.size, uint64(time.Now().UnixNano()))
			if older != 0 {
				t.Errorf("%d reads returned an older value", older)
			}
			if tt.lossless && lost != 0 {
				t.Errorf("%d values were not there right after they were set", lost)
			}
			waitJudged(t, l)
			if got := l.Bytes(); got > tt.maxBytes {
				t.Errorf("%d bytes, over MaxBytes %d", got, tt.maxBytes)
			}
		})
	}
}

// The same test on plain ristretto: if it does not fail there, it shows nothing.
func TestTheModelFindsWhatPlainRistrettoDoes(t *testing.T) {
	c, err := ristretto.NewCache(&ristretto.Config[string, []byte]{
		NumCounters: 1000, MaxCost: 64 << 20, BufferItems: 64,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	older, lost := model(ristrettoTier{c}, 8, 2000, 16, 100, 1)
	if older == 0 || lost == 0 {
		t.Errorf("plain ristretto passes with %d older and %d lost values: the model is blind", older, lost)
	}
}

func waitJudged(t testing.TB, l *Tier) {
	t.Helper()
	redistest.WaitFor(t, time.Minute, "the policy to have judged all keys", func() bool { return l.Queued() == 0 })
}

// A 1 MiB ristretto reached 95 MiB when its entries were updated to larger ones.
func TestUpdatesCannotGrowPastMaxBytes(t *testing.T) {
	l := startLocal(t, 1<<20)
	tr := localTier{l}
	for round := range 20 {
		for i := range 200 {
			tr.set(fmt.Sprint("k", i), make([]byte, 10+round*2000))
			// A large one may be over the bound until the policy has judged it, beside two that it is
			// judging: the feeder may have taken one and its successor before that made room.
			newest := Allocated(int64(10+round*2000)) + entryOverhead + 4
			if newest <= l.reserve {
				newest = 0
			}
			if got := l.Bytes(); got > l.maxBytes+3*newest {
				t.Fatalf("%d bytes with three of %d, over %d", got, newest, l.maxBytes)
			}
		}
		waitJudged(t, l)
		if got := l.Bytes(); got > 1<<20 {
			t.Fatalf("round %d: %d bytes, over 1 MiB", round, got)
		}
	}
	var held int64
	for i := range 200 {
		held += int64(len(tr.get(fmt.Sprint("k", i))))
	}
	if held > 1<<20 {
		t.Errorf("%d bytes of values are held, over 1 MiB", held)
	}
	if n := l.Len(); n < 10 || n > 30 {
		t.Errorf("%d entries of 38 KB in 1 MiB", n)
	}
}

func TestAFillThatAWriteOvertookIsDiscarded(t *testing.T) {
	l := startLocal(t, 1<<20)
	h := l.Hash("k")
	at := func(v string, confirmed int64) *Entry {
		return NewEntry("k", []byte(v), Freshness{Confirmed: confirmed, Expires: clock.Never})
	}
	fill := func(tok Token, v string, confirmed int64) bool {
		return l.Fill(h, "k", []byte(v), tok, Freshness{Confirmed: confirmed, Expires: clock.Never, Scope: &l.StandaloneScope})
	}
	want := func(v string) {
		t.Helper()
		e := l.Get(h)
		if got := e; (got == nil) != (v == "") || got != nil && string(got.Bytes()) != v {
			t.Fatalf("got %+v, want %q", got, v)
		}
	}
	tok := l.Token(h, &l.StandaloneScope)
	l.Put(h, at("own", 1))
	if fill(tok, "read before", 2) {
		t.Error("filled over an own write")
	}
	want("own")

	tok = l.Token(h, &l.StandaloneScope)
	l.StandaloneScope.Suspect()
	if fill(tok, "of a lost stream", 3) {
		t.Error("filled across a loss of the stream")
	}

	l.Begin(h, at("under way", 4))
	tok = l.Token(h, &l.StandaloneScope)
	if fill(tok, "read beside the write", 5) {
		t.Error("filled beside a write under way")
	}
	l.End(h, true, KeepFreshness)
	want("under way")

	tok = l.Token(h, &l.StandaloneScope)
	if !fill(tok, "later", 10) || fill(tok, "earlier", 9) {
		t.Error("an earlier read filled over a later one")
	}
	want("later")

	tok = l.Token(h, &l.StandaloneScope)
	l.Forget(h, tok, 11) // redis has no such key
	want("")
}

// A copy past its own time may stand in for a load that fails.
func TestWhatIsPastItsTimeOutlivesTheNewsThatRedisHasItNoMore(t *testing.T) {
	l := New(1 << 20)
	defer l.Close()
	for _, tt := range []struct {
		name    string
		expires int64
		stays   bool
	}{
		{"past its time", 100, true},
		{"before its time", 200, false},
		{"without an end", clock.Never, false},
		{"refuted", Invalidated, false},
	} {
		h := l.Hash(tt.name)
		l.Put(h, NewEntry(tt.name, []byte("v"), Freshness{Confirmed: 1, Expires: tt.expires, Scope: &l.StandaloneScope}))
		l.Forget(h, l.Token(h, &l.StandaloneScope), 150)
		if got := l.Get(h) != nil; got != tt.stays {
			t.Errorf("%s: kept %v, want %v", tt.name, got, tt.stays)
		}
	}
}

// Only Redis knows which of two concurrent writes it ran last.
func TestOverlappingOwnWritesLeaveNoLocalCopy(t *testing.T) {
	l := startLocal(t, 1<<20)
	h := l.Hash("k")
	e := func(v string) *Entry {
		return NewEntry("k", []byte(v), Freshness{Expires: clock.Never, Scope: new(EpochScope)})
	}
	l.Begin(h, e("first"))
	l.Begin(h, e("second"))
	l.End(h, true, KeepFreshness)
	if l.Get(h) != nil {
		t.Error("a copy while another write is under way")
	}
	l.End(h, true, KeepFreshness)
	if got := l.Get(h); got != nil {
		t.Errorf("a copy after two overlapping writes: %s", got.Bytes())
	}
	l.Begin(h, e("third"))
	l.End(h, true, KeepFreshness)
	if got := l.Get(h); got == nil || string(got.Bytes()) != "third" {
		t.Error("a write alone leaves no copy")
	}
	l.Begin(h, e("refused"))
	l.End(h, false, KeepFreshness)
	if l.Get(h) != nil {
		t.Error("a refused write leaves a copy")
	}
}

// A flood of new keys must leave nothing behind for those that found no room.
func TestAFloodIsBounded(t *testing.T) {
	l := New(1 << 20) // no feeder: nothing is judged
	defer l.Close()
	tr := localTier{l}
	for i := range 100_000 {
		tr.set(fmt.Sprint("k", i), []byte("v"))
		tr.del(fmt.Sprint("absent", i))
	}
	if got := l.Bytes(); got > l.maxBytes {
		t.Errorf("%d bytes, over %d", got, l.maxBytes)
	}
	if got, most := l.Queued(), l.maxBytes/entryOverhead+1; got > most {
		t.Errorf("%d keys wait for the policy, more than the %d for which there is room", got, most)
	}
}

func TestThePolicyJudgesEachKeyOfABurst(t *testing.T) {
	l := startLocal(t, 256<<20)
	tr := localTier{l}
	const n = 50_000
	for i := range n {
		tr.set(fmt.Sprint("k", i), []byte("v"))
	}
	waitJudged(t, l)
	missing := 0
	for i := range n {
		if tr.get(fmt.Sprint("k", i)) == nil {
			missing++
		}
	}
	// Plain ristretto drops most of such a burst.
	if missing > 0 || l.Len() != n {
		t.Errorf("%d of %d entries are missing, len is %d", missing, n, l.Len())
	}
	for i := range n {
		tr.del(fmt.Sprint("k", i))
	}
	waitJudged(t, l)
	if l.Len() != 0 || l.Bytes() != 0 {
		t.Errorf("after all was deleted: %d entries, %d bytes", l.Len(), l.Bytes())
	}
}

// An invalidation is worked off by the goroutine that reads the connection.
func TestAnInvalidationVoidsFillsAndWritesUnderWay(t *testing.T) {
	l := startLocal(t, 1<<20)
	h := l.Hash("k")
	k := Freshness{Confirmed: 1, Fresh: clock.Never, Expires: clock.Never, Scope: &l.StandaloneScope}
	tok := l.Token(h, &l.StandaloneScope)
	l.Invalidate(h, 1)
	if l.Fill(h, "k", []byte("old"), tok, k) {
		t.Error("filled with what was read before the invalidation")
	}
	// It may be the echo of the write: the copy stays, in doubt.
	l.Begin(h, NewEntry("k", []byte("ours"), k))
	l.Invalidate(h, 1)
	if e := l.Get(h); e == nil || e.Invalid() || e.FreshUntil() != Unconfirmed {
		t.Errorf("a write under way of whose key the server told: %+v", e)
	}
	l.End(h, true, clock.Never)
	if e := l.Get(h); e == nil || e.Invalid() || e.FreshUntil() != Unconfirmed {
		t.Errorf("a write of whose key the server told left %+v", e)
	}
	l.Invalidate(h, 1) // the echo, behind the answer
	if e := l.Get(h); e == nil || e.Invalid() {
		t.Errorf("an echo refuted the write: %+v", e)
	}
	l.Begin(h, NewEntry("k", []byte("ours"), k))
	l.End(h, true, 77)
	if e := l.Get(h); e == nil || e.FreshUntil() != 77 {
		t.Errorf("a write alone left %+v", e)
	}
	l.Invalidate(h, 1)
	if e := l.Get(h); !e.Invalid() {
		t.Errorf("a copy that counts as read outlived what the server told: %+v", e)
	}
	if n := testing.AllocsPerRun(100, func() { l.Invalidate(h, 1) }); n != 0 {
		t.Errorf("an invalidation makes %v allocations", n)
	}
	absent := l.Hash("absent")
	if n := testing.AllocsPerRun(100, func() { l.Invalidate(absent, 1) }); n != 0 {
		t.Errorf("an invalidation of an absent key makes %v allocations", n)
	}
}

// The stream broke, or another key of the stripe changed, while a read was under way. Its answer
// was not kept, and the copy from before it was served in the next outage: an older value after a
// newer one.
func TestAnAnswerThatIsNotKeptInvalidatesAnOlderCopy(t *testing.T) {
	for _, tt := range []struct {
		name           string
		val            string
		read, standing int64 // when the read and the copy were confirmed
		invalid        bool
	}{
		{"a newer value", "962", 20, 10, true},
		{"the same value", "960", 20, 10, false},
		{"a read from before the copy", "959", 10, 20, false},
	} {
		for _, broken := range []bool{true, false} {
			l := startLocal(t, 1<<20)
			h := l.Hash("k")
			now := func(at int64) Freshness {
				return Freshness{Confirmed: at, Fresh: 1000, Expires: 1000, Scope: &l.StandaloneScope, Epoch: l.StandaloneScope.Epoch.Load()}
			}
			l.Put(h, NewEntry("k", []byte("960"), now(tt.standing)))
			tok, k := l.Token(h, &l.StandaloneScope), now(tt.read)
			if broken {
				l.StandaloneScope.Suspect()
			} else {
				l.Invalidate(keyhash.Hash{Place: h.Place + stripeCount, Check: h.Check}, 15)
			}
			if l.Fill(h, "k", []byte(tt.val), tok, k) {
				t.Fatalf("%s: the answer was kept", tt.name)
			}
			if e := l.Get(h); e == nil || e.Invalid() != tt.invalid {
				t.Errorf("%s, the stream broken: %v: the copy is %+v", tt.name, broken, e)
			}
		}
	}
}

// The same for the answer that Redis has no such key: the copy from before it was served in the
// next outage, as if the key had not been deleted.
func TestAnAbsenceThatIsNotKeptInvalidatesAnOlderCopy(t *testing.T) {
	const end = 1000
	for _, tt := range []struct {
		name           string
		read, standing int64 // when the read and the copy were confirmed
		writing        bool
		invalid        bool
	}{
		{"a copy from before the read", 20, 10, false, true},
		{"a read from before the copy", 10, 20, false, false},
		{"a copy past its own time", end, 10, false, false}, // the key has expired: that is nothing new
		{"a write under way", 20, 10, true, false},
	} {
		for _, broken := range []bool{true, false} {
			l := startLocal(t, 1<<20)
			h := l.Hash("k")
			k := Freshness{Confirmed: tt.standing, Fresh: end, Expires: end, Scope: &l.StandaloneScope, Epoch: l.StandaloneScope.Epoch.Load()}
			l.Put(h, NewEntry("k", []byte("v"), k))
			tok := l.Token(h, &l.StandaloneScope)
			if broken {
				l.StandaloneScope.Suspect()
			} else {
				l.Invalidate(keyhash.Hash{Place: h.Place + stripeCount, Check: h.Check}, 15)
			}
			if tt.writing {
				l.Begin(h, NewEntry("k", []byte("ours"), k))
			}
			l.Forget(h, tok, tt.read)
			if e := l.Get(h); e == nil || e.Invalid() != tt.invalid {
				t.Errorf("%s, the stream broken: %v: the copy is %+v", tt.name, broken, e)
			}
		}
	}
}

func TestOnlyAMomentIsFreshAndOnlyAnAbsenceIsAbsent(t *testing.T) {
	for _, tt := range []struct {
		fresh          FreshUntil
		served, absent bool // at 50
	}{
		{100, true, false},
		{50, false, false},
		{clock.Never, true, false},
		{Suspect, false, false},
		{Unconfirmed, false, false},
		{KeepFreshness, false, false},
		{Absence(100), false, true},
		{Absence(50), false, false},
		{Absence(clock.Never), false, true},
	} {
		var e Entry
		e.setFresh(tt.fresh)
		if served, absent := e.FreshAt(50), tt.fresh.absentAt(50); served != tt.served || absent != tt.absent {
			t.Errorf("%d: served %v, absent %v", tt.fresh, served, absent)
		}
	}
}

func TestEachHitIsCountedOnce(t *testing.T) {
	l := startLocal(t, 1<<20)
	var wg sync.WaitGroup
	const goroutines, each = 16, 1000
	for range goroutines {
		wg.Go(func() {
			for i := range each {
				if h := l.Hash(fmt.Sprint(i)); i%4 == 0 {
					l.CountRead(h)
				} else {
					l.CountHit(h)
				}
			}
		})
	}
	wg.Wait()
	if got, want := l.Hits(), uint64(goroutines*each*3/4); got != want {
		t.Errorf("%d hits, want %d", got, want)
	}
}

// A local hit compares the clock with this end alone (law 5).
func TestACopyIsFreshOnlyWhileItsStreamIsUnbrokenAndTheServerIsHeard(t *testing.T) {
	var scope EpochScope
	scope.Until.Store(200)
	e := NewEntry("k", nil, Freshness{Fresh: 100, Expires: 300, Scope: &scope})
	if end := e.FreshEnd(); end != 100 {
		t.Errorf("the end is %d, not the copy's own", end)
	}
	scope.Until.Store(50)
	if end := e.FreshEnd(); end != 50 {
		t.Errorf("the end is %d, not that of the server's silence", end)
	}
	scope.Suspect()
	if end := e.FreshEnd(); end != 0 {
		t.Errorf("the end is %d, though the stream is broken", end)
	}
}
