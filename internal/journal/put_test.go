package journal

import (
	"bytes"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/holdfast-cache/holdfast/internal/clock"
)

func TestTheLastIntentOfAKeyWinsInWhateverOrderTheyCome(t *testing.T) {
	for _, tt := range []struct {
		writes []Write // by seq
		want   string
		size   int64
	}{
		{[]Write{set("k", "one", 1), set("k", "two!", 2), set("k", "three", 3)}, "three", 6},
		{[]Write{set("k", "one", 1), del("k", 2), set("k", "three", 3)}, "three", 6},
		{[]Write{set("k", "one", 1), set("k", "two", 2), del("k", 3)}, "gone", 1},
		{[]Write{del("k", 1), set("k", "two", 2), del("k", 3)}, "gone", 1},
		{[]Write{ambiguous(set("k", "one", 1), 7), del("k", 2), ambiguous(set("k", "", 3), 7)}, "", 1},
	} {
		for _, order := range [][]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}} {
			j := roomyJournal()
			for _, i := range order {
				put(t, j, tt.writes[i], admitted)
			}
			f, ok := j.Get(hashed("k"), "k", 0)
			if !ok || f.Live != !tt.writes[2].Del || string(f.Value) != string(tt.writes[2].Value) {
				t.Errorf("order %v: %+v, %v; want %q", order, f, ok, tt.want)
			}
			wantGauges(t, j, 1, 1, tt.size)
			if got := takeOnly(t, j, 0); got.Seq != 3 {
				t.Errorf("order %v: write %d is replayed", order, got.Seq)
			}
		}
	}
}

func TestAKeyInTheJournalIsReadFromThere(t *testing.T) {
	j := roomyJournal()
	wantHolds(t, j, "k", 0, "")
	w := set("k", "v", 1)
	w.Deadline = 100
	put(t, j, w, admitted)
	wantHolds(t, j, "k", 99, "v")
	wantHolds(t, j, "k", 100, "gone") // expired, and fenced all the same
	wantHolds(t, j, "other", 0, "")
	put(t, j, del("k", 2), admitted)
	wantHolds(t, j, "k", 0, "gone")
}

func TestASetThatDoesNotFitBecomesADelete(t *testing.T) {
	j := New(Config{MaxKeys: 10, MaxBytes: 10})
	put(t, j, set("a", "12345678", 1), admitted) // 9 bytes
	put(t, j, set("b", "1", 1), Downgraded)
	wantHolds(t, j, "b", 0, "gone")
	wantGauges(t, j, 2, 2, 10)
	// Where one value takes another's place, only the difference counts.
	put(t, j, set("a", "1234567", 2), admitted)
	wantHolds(t, j, "a", 0, "1234567")
	wantGauges(t, j, 2, 2, 9)
	put(t, j, set("b", "1", 2), admitted)
	wantHolds(t, j, "b", 0, "1")
	put(t, j, set("b", "12", 3), Downgraded)
	wantHolds(t, j, "b", 0, "gone") // and not the value that it should have replaced
	wantGauges(t, j, 2, 2, 9)
	// A key that does not fit has nothing to be downgraded to.
	put(t, j, del("a key of many bytes", 1), Rejected)
	put(t, j, set("a", "1234567890", 3), Downgraded)
	put(t, j, del("a", 4), admitted)
	for _, task := range takeAll(j, 0) {
		if !task.Del {
			t.Errorf("%s is replayed as a set", task.Key)
		}
		settle(j, task, FoundOurs, 1, 0)
	}
	wantGauges(t, j, 0, 0, 0)
}

func TestAFurtherKeyThanMaxKeysIsRefused(t *testing.T) {
	j := New(Config{MaxKeys: 2, MaxBytes: 1 << 20})
	put(t, j, set("a", "1", 1), admitted)
	put(t, j, del("b", 1), admitted)
	for _, w := range []Write{set("c", "1", 1), del("c", 2)} {
		put(t, j, w, Rejected)
		wantHolds(t, j, w.Key, 0, "")
		wantGauges(t, j, 2, 2, 3)
	}
	// The keys that are there may still be written.
	put(t, j, set("a", "22", 2), admitted)
	put(t, j, set("b", "1", 2), admitted)
	wantGauges(t, j, 2, 2, 5)
	for _, task := range takeAll(j, 0) {
		settle(j, task, FoundOurs, 1, 0)
	}
	wantGauges(t, j, 0, 0, 0)
	put(t, j, set("c", "1", 3), admitted)
	put(t, j, set("d", "1", 2), admitted)
	put(t, j, set("e", "1", 1), Rejected)
}

// Redis may still run it, over the next write.
func TestARefusedWriteThatMayRunLateFencesItsKey(t *testing.T) {
	for _, w := range []Write{set("late", "1", 1), set("late", "", 1), del("late", 1)} {
		j := New(Config{MaxKeys: 1, MaxBytes: 1 << 20})
		put(t, j, set("a", "1", 1), admitted)
		put(t, j, ambiguous(w, 3), Rejected)
		wantHolds(t, j, "late", 0, "gone")
		wantGauges(t, j, 2, 2, int64(len("a1late")))
		task := j.TakeOne(hashed("late"), "late")[0]
		if !task.Compensate || !w.Del && !remembers(task.PossibleLateWrites, string(w.Value)) || task.PossibleLateWrites.Del != w.Del {
			t.Errorf("what is taken back of %+v is %+v", w, task.Intent)
		}
		if settle(j, task, FoundOurs, 4, 0) {
			t.Error("nothing can run late any more")
		}
		put(t, j, set("late", "2", 2), admitted)
		wantHolds(t, j, "late", 0, "2")
	}
}

// A journal that has no room for a further key takes nothing from the others.
func TestWhatIsRefusedTakesNothingFromOthers(t *testing.T) {
	j := New(Config{MaxKeys: 2, MaxBytes: 100})
	j.Downgraded = func(key string) { t.Errorf("%s had to go", key) }
	put(t, j, set("a", string(make([]byte, 49)), 1), admitted)
	put(t, j, set("b", string(make([]byte, 49)), 1), admitted)
	put(t, j, del("c", 1), Rejected)
}

func TestOnlyALiveQueuedSetCanBeTouched(t *testing.T) {
	const now = 1000
	expires := func(w Write, at int64) Write { w.Deadline = at; return w }
	for _, tt := range []struct {
		name   string
		before func(t *testing.T, j *Journal)
		want   bool
	}{
		{"absent", func(*testing.T, *Journal) {}, false},
		{"a set", func(t *testing.T, j *Journal) { put(t, j, set("k", "v", 1), admitted) }, true},
		{"a set with an end", func(t *testing.T, j *Journal) { put(t, j, expires(set("k", "v", 1), now+1), admitted) }, true},
		{"an expired set", func(t *testing.T, j *Journal) { put(t, j, expires(set("k", "v", 1), now), admitted) }, false},
		{"a delete", func(t *testing.T, j *Journal) { put(t, j, del("k", 1), admitted) }, false},
		{"a set that waits for its check", func(t *testing.T, j *Journal) {
			put(t, j, ambiguous(set("k", "v", 1), 1), admitted)
			settle(j, takeOnly(t, j, now), FoundOurs, 2, now)
		}, false},
	} {
		j := roomyJournal()
		tt.before(t, j)
		if _, got := j.Touch(hashed("k"), "k", now, now+500); got != tt.want {
			t.Errorf("%s: touched %v, want %v", tt.name, got, tt.want)
		}
		if in := j.shard(hashed("k")).intents["k"]; in != nil && (in.Deadline == now+500) != tt.want {
			t.Errorf("%s: its end is %d", tt.name, in.Deadline)
		}
	}
}

func TestAJournalOfItsDefaultSizeCostsLittleBesideKeysAndValues(t *testing.T) {
	heap := func() int64 {
		var m runtime.MemStats
		for range 3 {
			runtime.GC()
		}
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	const n, size, most = 65536, 100, 265
	before := heap()
	j := New(Config{MaxKeys: n, MaxBytes: 1 << 30})
	var keys int64
	for i := range n {
		key := fmt.Sprintf("session:%08d", i)
		keys += int64(len(key))
		value := bytes.Repeat([]byte{'v'}, size)
		value[0], value[1] = byte(i), byte(i>>8)
		w := Write{Key: key, Value: value, Deadline: clock.Never, Seq: 1, Expected: Holding(value, clock.Never, "server")}
		if offer(j, w) != admitted {
			t.Fatal("refused")
		}
	}
	used := heap() - before
	if got := j.Bytes.Load(); got != keys+n*size {
		t.Errorf("it counts %d bytes of keys and values, and holds %d", got, keys+n*size)
	}
	over := (used - j.Bytes.Load()) / n
	t.Logf("%d B an entry over key and value", over)
	if over > most {
		t.Errorf("%d B an entry over key and value, want at most %d", over, most)
	}
	runtime.KeepAlive(j)
}

// Many sets that do not fit are tried at once: a set that is only tried neither shows in the
// gauge nor costs a set that fits its value.
func TestBytesThatAreOnlyTriedAreNeverCounted(t *testing.T) {
	const most = 1 << 20
	j := New(Config{MaxKeys: 1000, MaxBytes: most})
	large := strings.Repeat("x", most)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			key := fmt.Sprint("large", g)
			for i := range 100 {
				j.Put(hashed(key), set(key, large[:most-100*(i%2)], uint64(i+1)))
				if n := j.Bytes.Load(); n > most {
					t.Errorf("%d bytes, over %d", n, most)
					return
				}
			}
		})
	}
	wg.Wait()
}
