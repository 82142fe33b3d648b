package local

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/keyhash"
)

// trackedKey is a key of a server that tracks what was read, as Redis does: the first change after
// a read is announced.
type trackedKey struct {
	mu      sync.Mutex
	value   uint64 // grows with each change; even: the key is absent
	tracked bool

	hash    keyhash.Hash
	name    string
	written atomic.Uint64 // by this process, and acknowledged
	writer  sync.Mutex
}

func (k *trackedKey) text(v uint64) []byte { return fmt.Appendf(nil, "%d%*s", v, int(v%64), "") }

func versionIn(e *Entry) (v uint64) {
	fmt.Sscan(string(e.Bytes()), &v)
	return v
}

// command is the hash of one of the commands that read the key.
func (k *trackedKey) command(l *Tier, n int) keyhash.Hash {
	return l.CommandHash(k.hash, []string{fmt.Sprint("READ", n), k.name}, 1)
}

// readReply reads the key by a command whose reply is the server's value, absent or not.
func (k *trackedKey) readReply(t *testing.T, l *Tier, n int, least uint64, now int64, f Freshness) {
	command := k.command(l, n)
	if e, v := StoredReply[uint64](l, command); e != nil && now < e.FreshEnd() {
		l.CountHit(command)
		if *v < least {
			t.Errorf("%s: a reply of %d after %d was written", k.name, *v, least)
		}
		return
	}
	l.CountRead(command)
	token := l.Token(k.hash, f.Scope)
	k.mu.Lock()
	v := k.value
	k.tracked = true
	k.mu.Unlock()
	FillReply(l, k.hash, command, v, int64(v%64), token, f)
}

// checkReplies compares the lists of replies of a stripe with its index. It returns their number
// and size.
func checkReplies(t *testing.T, l *Tier, s *stripe) (n, size int64) {
	t.Helper()
	for place, set := range s.replies {
		var bytes int64
		before := n
		for r := set.oldest; r != nil; r = r.newer {
			k := s.find(r.place)
			if k == nil || k.entry.Load().reply() != r || r.set != set {
				t.Fatalf("the list has a reply that the index has not")
			}
			n, bytes = n+1, bytes+k.entry.Load().size()
			if r.newer == nil && set.newest != r || r.newer != nil && r.newer.older != r {
				t.Fatalf("the list is broken")
			}
		}
		if bytes != set.bytes || set.place != place || n == before {
			t.Errorf("%d replies of %d bytes are counted as %d", n-before, bytes, set.bytes)
		}
		if bytes > l.maxEntry {
			t.Errorf("the replies of a key take %d bytes, over %d", bytes, l.maxEntry)
		}
		size += bytes
	}
	if x := s.index.Load(); x != nil {
		stored := int64(0)
		for i := range x.slots {
			if x.slots[i].entry.Load().reply() != nil {
				stored++
			}
		}
		if stored != n {
			t.Errorf("%d replies are stored, and %d are in lists", stored, n)
		}
	}
	return n, size
}

// Reads, own writes, foreign writes, invalidations and evictions of a few keys that share stripes
// and slots. No read returns a value from before an own write that had returned (law 4), and when
// all invalidations have arrived, what is fresh is what the server has (law 5).
func TestNoValueIsLostOrStaleAmidReadsWritesAndEvictions(t *testing.T) {
	for _, maxBytes := range []int64{4000, 20_000, 1 << 30} {
		for round := range 5 {
			testTracked(t, maxBytes, uint64(round))
		}
	}
}

func testTracked(t *testing.T, maxBytes int64, seed uint64) {
	l := New(maxBytes)
	feeding := make(chan struct{})
	var feeder sync.WaitGroup
	feeder.Go(func() { l.Feed(feeding) })
	var scope EpochScope
	scope.Until.Store(clock.Never)
	ticks := clock.Start()

	keys := make([]*trackedKey, 60)
	for i := range keys {
		name := fmt.Sprint("key", i)
		n := uint64(i)
		keys[i] = &trackedKey{name: name, hash: keyhash.Hash{Place: n%3<<60 | n<<20 | n%4 + 1, Check: keyhash.KeyLength(len(name)) | n}}
	}
	invalidations := make(chan *trackedKey, 1<<16)
	change := func(k *trackedKey) (v uint64) {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.value++
		if k.tracked {
			k.tracked = false
			invalidations <- k
		}
		return k.value
	}
	var reader, callers sync.WaitGroup
	reader.Go(func() {
		for k := range invalidations {
			l.Invalidate(k.hash, ticks.Now())
		}
	})
	for g := range 4 {
		callers.Go(func() {
			rnd := rand.New(rand.NewPCG(seed, uint64(g)))
			for range 5000 {
				k := keys[rnd.IntN(len(keys))]
				now := ticks.Now()
				freshness := func() Freshness {
					return Freshness{Confirmed: now, Expires: clock.Never, Fresh: clock.Never - 1, Scope: &scope, Epoch: scope.Epoch.Load()}
				}
				switch rnd.IntN(8) {
				default: // a read
					least := k.written.Load()
					if rnd.IntN(2) == 0 {
						k.readReply(t, l, rnd.IntN(3), least, now, freshness())
						continue
					}
					if e := l.Get(k.hash); e != nil && now < e.FreshEnd() {
						l.CountHit(k.hash)
						if v := versionIn(e); v < least {
							t.Errorf("%s: a hit of %d after %d was written", k.name, v, least)
						}
						continue
					}
					l.CountRead(k.hash)
					token := l.Token(k.hash, &scope)
					k.mu.Lock()
					v := k.value
					k.tracked = true
					k.mu.Unlock()
					if v%2 == 0 {
						l.Forget(k.hash, token, now)
					} else {
						l.Fill(k.hash, k.name, k.text(v), token, freshness())
					}
				case 0, 1: // a write of ours; mostly one at a time
					alone := rnd.IntN(4) > 0
					if alone {
						k.writer.Lock()
					}
					// The value of a write is not known before it ran: the tier gets none meanwhile.
					old, _ := l.Begin(k.hash, nil)
					if rnd.IntN(4) == 0 {
						l.EndRefused(k.hash, old)
					} else {
						v := change(k)
						var e *Entry
						if v%2 == 1 {
							f := freshness()
							f.Fresh = Unconfirmed
							e = NewEntry(k.name, k.text(v), f)
						}
						l.EndAs(k.hash, e, Unconfirmed)
						for was := k.written.Load(); v > was && !k.written.CompareAndSwap(was, v); was = k.written.Load() {
						}
					}
					if alone {
						k.writer.Unlock()
					}
				case 2: // of another process
					change(k)
				case 3:
					switch rnd.IntN(6) {
					case 0:
						scope.Suspect()
					case 1:
						if e := l.Get(k.hash); e != nil {
							l.Attach(k.hash, e.Bytes(), &Decoded{Size: int32(rnd.IntN(200))})
						}
					case 2:
						l.Suspect(k.hash, SameEnd)
					}
				}
			}
		})
	}
	callers.Wait()
	close(invalidations)
	reader.Wait()
	for deadline := time.Now().Add(time.Minute); l.Queued() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d changes wait for ever", l.Queued())
		}
	}
	var size, n int64
	for _, k := range keys {
		for n := range 3 {
			if e, v := StoredReply[uint64](l, k.command(l, n)); e != nil && e.FreshEnd() > 0 && *v != k.value {
				t.Errorf("%s: the reply of %d is fresh, the server has %d", k.name, *v, k.value)
			}
		}
		e := l.Get(k.hash)
		if e == nil {
			continue
		}
		size, n = size+e.size(), n+1
		if v := versionIn(e); e.FreshEnd() > 0 && v != k.value {
			t.Errorf("%s: %d is fresh, the server has %d", k.name, v, k.value)
		}
	}
	for i := range l.stripes {
		replies, bytes := checkReplies(t, l, &l.stripes[i])
		n, size = n+replies, size+bytes
	}
	if n != l.Len() || size != l.Bytes() || size > maxBytes {
		t.Errorf("%d entries of %d bytes, counted as %d of %d, over %d", n, size, l.Len(), l.Bytes(), maxBytes)
	}
	if n := l.Writers(); n != 0 {
		t.Errorf("%d writers are left", n)
	}
	for i := range l.stripes {
		checkIndex(t, &l.stripes[i])
	}
	if l.policy.started.Load() {
		if used := l.policy.store.MaxCost() - l.policy.store.RemainingCost(); used != size {
			t.Errorf("the policy counts %d bytes, the tier has %d", used, size)
		}
	}
	close(feeding)
	feeder.Wait()
	l.Close()
}
