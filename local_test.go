package holdfast

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dgraph-io/ristretto/v2"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

// tier is what the model test drives: holdfast's local tier, and plain ristretto
// to show that the test can fail.
type tier interface {
	set(key string, value []byte)
	get(key string) []byte
	del(key string)
}

type localTier struct{ l *local }

func (t localTier) set(key string, value []byte) {
	t.l.put(t.l.hash(key), newEntry(key, value, term{expires: never, domain: new(domain)}))
}
func (t localTier) del(key string) { t.l.put(t.l.hash(key), nil) }
func (t localTier) get(key string) []byte {
	if e := t.l.get(t.l.hash(key)); e != nil {
		return e.bytes()
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

func startLocal(t testing.TB, maxBytes int64) *local {
	t.Helper()
	l, err := newLocal(maxBytes)
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { l.flush(stop) })
	t.Cleanup(func() {
		close(stop)
		wg.Wait()
		l.close()
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
			waitFlushed(t, l)
			if got := l.bytes(); got > tt.maxBytes {
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

func waitFlushed(t testing.TB, l *local) {
	t.Helper()
	redistest.WaitFor(t, time.Minute, "the overlay to be empty", func() bool { return l.overlay.Load() == 0 })
}

// A 1 MiB ristretto reached 95 MiB when its entries were updated to larger ones.
func TestUpdatesCannotGrowPastMaxBytes(t *testing.T) {
	l := startLocal(t, 1<<20)
	tr := localTier{l}
	for round := range 20 {
		for i := range 200 {
			tr.set(fmt.Sprint("k", i), make([]byte, 10+round*2000))
			// A tombstone each is allowed beside the bound.
			if got := l.overlay.Load(); got > l.maxOverlay+200*entryOverhead {
				t.Fatalf("overlay %d over %d", got, l.maxOverlay)
			}
		}
		waitFlushed(t, l)
		if got := l.bytes(); got > 1<<20 {
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
	// How many there are depends on how quick the flusher was: the overlay takes
	// three at a time.
	if n := l.len(); n < 3 || n > 60 {
		t.Errorf("%d entries of 38 KB in 1 MiB", n)
	}
}

func TestAFillThatAWriteOvertookIsDiscarded(t *testing.T) {
	l := startLocal(t, 1<<20)
	h := l.hash("k")
	at := func(v string, confirmed int64) *entry {
		return newEntry("k", []byte(v), term{confirmed: confirmed, expires: never})
	}
	fill := func(tok token, v string, confirmed int64) bool {
		return l.fill(h, "k", []byte(v), tok, term{confirmed: confirmed, expires: never, domain: &l.home})
	}
	want := func(v string) {
		t.Helper()
		e := l.get(h)
		if got := e; (got == nil) != (v == "") || got != nil && string(got.bytes()) != v {
			t.Fatalf("got %+v, want %q", got, v)
		}
	}
	tok := l.token(h, &l.home)
	l.put(h, at("own", 1))
	if fill(tok, "read before", 2) {
		t.Error("filled over an own write")
	}
	want("own")

	tok = l.token(h, &l.home)
	l.home.doubt()
	if fill(tok, "of a lost stream", 3) {
		t.Error("filled across a loss of the stream")
	}

	l.begin(h, at("under way", 4))
	tok = l.token(h, &l.home)
	if fill(tok, "read beside the write", 5) {
		t.Error("filled beside a write under way")
	}
	l.end(h, true, asIs)
	want("under way")

	tok = l.token(h, &l.home)
	if !fill(tok, "later", 10) || fill(tok, "earlier", 9) {
		t.Error("an earlier read filled over a later one")
	}
	want("later")

	tok = l.token(h, &l.home)
	l.forget(h, tok, 11) // redis has no such key
	want("")
}

// A copy past its own time may stand in for a load that fails.
func TestWhatIsPastItsTimeOutlivesTheNewsThatRedisHasItNoMore(t *testing.T) {
	l, err := newLocal(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	for _, tt := range []struct {
		name    string
		expires int64
		stays   bool
	}{
		{"past its time", 100, true},
		{"before its time", 200, false},
		{"without an end", never, false},
		{"refuted", wrong, false},
	} {
		h := l.hash(tt.name)
		l.put(h, newEntry(tt.name, []byte("v"), term{confirmed: 1, expires: tt.expires, domain: &l.home}))
		l.forget(h, l.token(h, &l.home), 150)
		if got := l.get(h) != nil; got != tt.stays {
			t.Errorf("%s: kept %v, want %v", tt.name, got, tt.stays)
		}
	}
}

// Which of two writes under way at once Redis ran last, only Redis knows.
func TestOverlappingOwnWritesLeaveNoLocalCopy(t *testing.T) {
	l := startLocal(t, 1<<20)
	h := l.hash("k")
	e := func(v string) *entry {
		return newEntry("k", []byte(v), term{expires: never, domain: new(domain)})
	}
	l.begin(h, e("first"))
	l.begin(h, e("second"))
	l.end(h, true, asIs)
	if l.get(h) != nil {
		t.Error("a copy while another write is under way")
	}
	l.end(h, true, asIs)
	if got := l.get(h); got != nil {
		t.Errorf("a copy after two overlapping writes: %s", got.bytes())
	}
	l.begin(h, e("third"))
	l.end(h, true, asIs)
	if got := l.get(h); got == nil || string(got.bytes()) != "third" {
		t.Error("a write alone leaves no copy")
	}
	l.begin(h, e("refused"))
	l.end(h, false, asIs)
	if l.get(h) != nil {
		t.Error("a refused write leaves a copy")
	}
}

// A flood of new keys into a full overlay must leave nothing behind for those
// that found no room.
func TestAFloodIsBoundedByTheOverlay(t *testing.T) {
	l, err := newLocal(1 << 20) // no flusher: nothing makes room
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	tr := localTier{l}
	for i := range 100_000 {
		tr.set(fmt.Sprint("k", i), []byte("v"))
		tr.del(fmt.Sprint("absent", i))
	}
	if got := l.overlay.Load(); got > l.maxOverlay {
		t.Errorf("overlay %d over %d", got, l.maxOverlay)
	}
	if got := l.len(); got > 1000 {
		t.Errorf("%d keys in an overlay of 128 KiB", got)
	}
}

func TestTheFlusherCarriesEverythingOver(t *testing.T) {
	l := startLocal(t, 256<<20)
	tr := localTier{l}
	const n = 50_000
	for i := range n {
		tr.set(fmt.Sprint("k", i), []byte("v"))
	}
	waitFlushed(t, l)
	missing := 0
	for i := range n {
		if tr.get(fmt.Sprint("k", i)) == nil {
			missing++
		}
	}
	// Plain ristretto drops most of such a burst.
	if missing > 0 || l.len() != n {
		t.Errorf("%d of %d entries are missing, len is %d", missing, n, l.len())
	}
	for i := range n {
		tr.del(fmt.Sprint("k", i))
	}
	waitFlushed(t, l)
	if l.len() != 0 || l.bytes() != 0 {
		t.Errorf("after all was deleted: %d entries, %d bytes", l.len(), l.bytes())
	}
}

func TestWhatTheServerRefutedIsNeverServedAgain(t *testing.T) {
	l := startLocal(t, 1<<20)
	h := l.hash("k")
	set := func(expires int64) *entry {
		e := newEntry("k", []byte("v"), term{fresh: expires, expires: expires, domain: &l.home, epoch: l.home.epoch.Load()})
		l.put(h, e)
		return e
	}
	outage := OutageOptions{ServeStaleFor: 1 << 62}
	served := func(e *entry, now int64) bool { return servable(e, now, true, outage) }

	e := set(100)
	if !served(e, 50) || !served(e, 150) || e.refuted() {
		t.Fatal("a copy that nobody refuted is not served")
	}
	l.invalidate(h, 50)
	if served(e, 50) || served(e, 150) || !e.refuted() || e.fresh.Load() != 0 {
		t.Errorf("a refuted copy is served: %+v", e)
	}
	l.doubt(h, func(int64) int64 { return 1000 }) // a Touch
	if !e.refuted() {
		t.Error("a new end brought a refuted copy back")
	}
	tok := l.token(h, &l.home)
	if !l.fill(h, "k", []byte("v"), tok, term{confirmed: 60, fresh: 100, expires: 100, domain: &l.home, epoch: l.home.epoch.Load()}) {
		t.Error("what redis holds now was not kept")
	}
	if e := l.get(h); e == nil || e.refuted() || e.fresh.Load() != 100 {
		t.Errorf("after a read: %+v", e)
	}

	// What the server tells of an expired key is that it expired.
	e = set(100)
	l.invalidate(h, 100)
	if !served(e, 150) || e.fresh.Load() != 0 {
		t.Errorf("an expiry refuted a copy that may be served past its end: %+v", e)
	}

	e = set(100)
	l.home.doubt()
	if e.refuted() || !served(e, 50) || e.vouched(50) {
		t.Error("a lost stream made more of a copy than doubtful, or less")
	}
	l.home.flush()
	if !e.refuted() || served(e, 50) {
		t.Error("a copy outlives FLUSHALL")
	}
	if e := set(100); e.refuted() || !e.vouched(50) {
		t.Error("FLUSHALL refutes what is written after it")
	}
}

// An invalidation is worked off by the goroutine that reads the connection.
func TestAnInvalidationVoidsFillsAndWritesUnderWay(t *testing.T) {
	l := startLocal(t, 1<<20)
	h := l.hash("k")
	k := term{confirmed: 1, fresh: never, expires: never, domain: &l.home}
	tok := l.token(h, &l.home)
	l.invalidate(h, 1)
	if l.fill(h, "k", []byte("old"), tok, k) {
		t.Error("filled with what was read before the invalidation")
	}
	// It may be the echo of the write: the copy stays, in doubt.
	l.begin(h, newEntry("k", []byte("ours"), k))
	l.invalidate(h, 1)
	if e := l.get(h); e == nil || e.refuted() || e.fresh.Load() != unread {
		t.Errorf("a write under way of whose key the server told: %+v", e)
	}
	l.end(h, true, never)
	if e := l.get(h); e == nil || e.refuted() || e.fresh.Load() != unread {
		t.Errorf("a write of whose key the server told left %+v", e)
	}
	l.invalidate(h, 1) // the echo, behind the answer
	if e := l.get(h); e == nil || e.refuted() {
		t.Errorf("an echo refuted the write: %+v", e)
	}
	l.begin(h, newEntry("k", []byte("ours"), k))
	l.end(h, true, 77)
	if e := l.get(h); e == nil || e.fresh.Load() != 77 {
		t.Errorf("a write alone left %+v", e)
	}
	l.invalidate(h, 1)
	if e := l.get(h); !e.refuted() {
		t.Errorf("a copy that counts as read outlived what the server told: %+v", e)
	}
	if n := testing.AllocsPerRun(100, func() { l.invalidate(h, 1) }); n != 0 {
		t.Errorf("an invalidation makes %v allocations", n)
	}
	absent := l.hash("absent")
	if n := testing.AllocsPerRun(100, func() { l.invalidate(absent, 1) }); n != 0 {
		t.Errorf("an invalidation of an absent key makes %v allocations", n)
	}
}
