package local

import (
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/keyhash"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

func TestAnEntryIsACacheLine(t *testing.T) {
	if n := unsafe.Sizeof(Entry{}); n != 64 {
		t.Errorf("an entry has %d bytes", n)
	}
}

func TestAHashTellsTheKeysLength(t *testing.T) {
	l := startLocal(t, 1<<20)
	for _, tt := range []struct{ length, told int }{
		{0, 0}, {1, 1}, {keyhash.LongKey - 1, keyhash.LongKey - 1}, {keyhash.LongKey, keyhash.LongKey},
		{keyhash.LongKey + 1, 2 * keyhash.LongKey}, {2 * keyhash.LongKey, 2 * keyhash.LongKey}, {10<<20 - 1, 10 << 20},
	} {
		key := strings.Repeat("k", tt.length)
		if got := keyhash.LengthIn(l.Hash(key).Check); got != int64(tt.told) {
			t.Errorf("%d bytes are told as %d, not %d", tt.length, got, tt.told)
		}
		if got := keyhash.LengthIn(NewEntry(key, nil, Freshness{}).check); got != int64(tt.told) {
			t.Errorf("%d bytes are told by an entry as %d, not %d", tt.length, got, tt.told)
		}
	}
	// The longest that Redis takes; what is over it is refused, and only must not panic.
	if got := keyhash.LengthIn(keyhash.KeyLength(512 << 20)); got != 512<<20 {
		t.Errorf("%d bytes are told as %d", 512<<20, got)
	}
	if a, b := l.Hash("a").Check, l.Hash("b").Check; a>>keyhash.LengthShift != 1 || a == b || a<<16 == 0 {
		t.Errorf("%x, %x", a, b)
	}
}

// attached gives the entry of k a decoded value of this size, and says whether it has
// it then.
func attached(l *Tier, k string, value []byte, owner *int, size int32) bool {
	d := &(&DecodedAs[int]{Decoded: Decoded{Owner: unsafe.Pointer(owner), Size: size}}).Decoded
	l.Attach(l.Hash(k), value, d)
	e := l.Get(l.Hash(k))
	return e != nil && e.decoded.Load() == d
}

func TestADecodedValueIsKeptOnlyWithItsOwnBytes(t *testing.T) {
	l := startLocal(t, 1<<20)
	h, one, two := l.Hash("k"), []byte("one"), []byte("one")
	mine, others := new(int), new(int)
	put := func(value []byte) {
		l.Put(h, NewEntry("k", value, Freshness{Expires: clock.Never, Scope: &l.StandaloneScope}))
	}

	if attached(l, "k", one, mine, 1) {
		t.Error("kept with no entry")
	}
	put(one)
	if attached(l, "k", two, mine, 1) {
		t.Error("kept with bytes that merely equal its own")
	}
	if attached(l, "k", one[:2], mine, 1) {
		t.Error("kept with a part of its bytes")
	}
	if !attached(l, "k", one, mine, 1) {
		t.Error("not kept")
	}
	if k := KeptBy[int](l.Get(h), unsafe.Pointer(others)); k != nil {
		t.Error("another owner has it")
	}
	if k := KeptBy[int](l.Get(h), unsafe.Pointer(mine)); k == nil {
		t.Error("its owner has it not")
	}
	if !attached(l, "k", one, others, 1) {
		t.Error("another owner cannot take its place")
	}
	put(two)
	if l.Get(h).decoded.Load() != nil || attached(l, "k", one, mine, 1) {
		t.Error("it outlived its bytes")
	}
	// After the policy's judgement, too.
	waitJudged(t, l)
	if !attached(l, "k", two, mine, 1) {
		t.Error("not kept once the entry was judged")
	}
}

func TestADecodedValueCountsWithItsEntry(t *testing.T) {
	const size = 1000
	l := startLocal(t, 1<<20)
	value := []byte("value")
	settled := func(want int64) {
		t.Helper()
		redistest.WaitFor(t, time.Minute, "the bytes to be counted", func() bool {
			return l.Queued() == 0 && l.Bytes() == want && l.Len() == 1
		})
	}
	bare := int64(len("k")) + 16 + entryOverhead
	l.Put(l.Hash("k"), NewEntry("k", value, Freshness{Expires: clock.Never, Scope: &l.StandaloneScope}))
	settled(bare)
	a, b := new(int), new(int)
	if !attached(l, "k", value, a, size) {
		t.Fatal("not kept")
	}
	settled(bare + size)
	// Owners who take turns do not make the policy judge it each time.
	for range 10 {
		if !attached(l, "k", value, b, size) || !attached(l, "k", value, a, size-1) {
			t.Fatal("not kept")
		}
	}
	if l.Queued() != 0 {
		t.Error("the policy was asked again")
	}
	settled(bare + size)
	if attached(l, "k", value, a, int32(l.maxEntry)) {
		t.Error("kept although the entry is too large with it")
	}
	if l.Get(l.Hash("k")) == nil {
		t.Error("the entry went for want of room for what was decoded")
	}
	l.Put(l.Hash("k"), NewEntry("k", value, Freshness{Expires: clock.Never, Scope: &l.StandaloneScope}))
	settled(bare)
}

// ristretto does not bound what is updated in place.
func TestDecodedValuesOfEntriesThatAreThereStayWithinTheBound(t *testing.T) {
	const room, entries, size = 1 << 20, 500, 10 << 10
	l := startLocal(t, room)
	key := func(i int) string { return "key" + strconv.Itoa(i) }
	values := make([][]byte, entries)
	for i := range values {
		values[i] = []byte("value")
		l.Put(l.Hash(key(i)), NewEntry(key(i), values[i], Freshness{Expires: clock.Never, Scope: &l.StandaloneScope}))
	}
	waitJudged(t, l)
	if n := l.Len(); n != entries {
		t.Fatalf("only %d entries are there", n)
	}
	kept := 0
	for i := range values {
		if attached(l, key(i), values[i], new(int), size) {
			kept++
		}
		if n := l.Bytes(); n > room {
			t.Fatalf("%d bytes, over %d", n, room)
		}
		if i%5 == 4 {
			waitJudged(t, l)
		}
	}
	if n := l.Bytes(); n > room || n < room/4 || kept < room/size/4 {
		t.Errorf("%d bytes, %d were kept", n, kept)
	}
}

func TestALoadersWordOutlivesADecoding(t *testing.T) {
	l := startLocal(t, 1<<20)
	value := []byte("value")
	e := NewEntry("k", value, Freshness{Expires: clock.Never, Scope: &l.StandaloneScope})
	e.SetStaleIfError(StaleIfErrorOf(time.Hour))
	l.Put(l.Hash("k"), e)
	for range 2 {
		if !attached(l, "k", value, new(int), 100) {
			t.Fatal("not kept")
		}
		if got := l.Get(l.Hash("k")).StaleIfError().Or(0); got < 59*time.Minute {
			t.Errorf("%v", got)
		}
	}
}

func TestNoEntryGivesWayToWhatWasDecoded(t *testing.T) {
	// No feeder: nothing makes room.
	l := New(64 << 10)
	defer l.Close()
	value := []byte("value")
	l.Put(l.Hash("k"), NewEntry("k", value, Freshness{Expires: clock.Never, Scope: &l.StandaloneScope}))
	for i := range 15 {
		key := strconv.Itoa(i)
		l.Put(l.Hash(key), NewEntry(key, make([]byte, 3800), Freshness{Expires: clock.Never, Scope: &l.StandaloneScope}))
	}
	room := int32(l.maxBytes - l.Bytes())
	if attached(l, "k", value, new(int), room+1) {
		t.Error("kept where there is no room")
	}
	if e := l.Get(l.Hash("k")); e == nil || l.Dropped.Load() != 0 {
		t.Error("the entry went")
	}
	if !attached(l, "k", value, new(int), room) {
		t.Error("not kept where there is room")
	}
}

func TestAFootprintIsOpenWhereATypeLeadsFurther(t *testing.T) {
	type flat struct {
		A int64
		B [3]bool
	}
	type deep struct{ A string }
	for _, tt := range []struct {
		of   reflect.Type
		size int64
		open bool
	}{
		{reflect.TypeFor[int](), 8, false},
		{reflect.TypeFor[flat](), 16, false},
		{reflect.TypeFor[*flat](), 24, false},
		{reflect.TypeFor[[2]flat](), 32, false},
		{reflect.TypeFor[[0]string](), 0, false},
		{reflect.TypeFor[deep](), 16, true},
		{reflect.TypeFor[*deep](), 24, true},
		{reflect.TypeFor[[]int](), 24, true},
		{reflect.TypeFor[map[int]int](), 8, true},
		{reflect.TypeFor[any](), 16, true},
		{reflect.TypeFor[**flat](), 16, true},
	} {
		if size, open := Footprint(tt.of); size != tt.size || open != tt.open {
			t.Errorf("%v: %d bytes, open %v", tt.of, size, open)
		}
	}
}
