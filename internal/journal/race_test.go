package journal

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
)

// Writers, readers and a replayer at once, with a Redis that is a map: when all
// is replayed, it holds the last write of each key and the journal nothing.
func TestTheJournalSettlesWhateverHappensAtOnce(t *testing.T) {
	const writers, rounds, keys = 4, 3000, 20
	j := New(Config{MaxKeys: 1000, MaxBytes: 1 << 20})
	type slot struct {
		mu   sync.Mutex
		seq  uint64
		last string // "" for a delete
	}
	slots := make([]slot, keys)
	var redis sync.Map
	run := func(task Task) {
		if task.Del {
			redis.Delete(task.Key)
		} else {
			redis.Store(task.Key, string(task.Value))
		}
	}
	name := func(i int) string { return fmt.Sprint("key", i) }

	var now, done atomic.Int64
	now.Store(1)
	var background, wg sync.WaitGroup
	replay := func(rnd *rand.Rand, faults bool) {
		at := now.Add(int64(time.Second) / 4)
		tasks := j.Take(7, 1<<10, at, hashed, all)
		if one := rnd.IntN(keys); len(tasks) == 0 {
			tasks = j.TakeOne(hashed(name(one)), name(one))
		}
		for _, task := range tasks {
			what := FoundOurs
			if faults && rnd.IntN(4) == 0 {
				what = FoundNoReply + Found(rnd.IntN(2))
			}
			if what == FoundOurs || what == FoundNoReply && rnd.IntN(2) == 0 {
				run(task)
			}
			settle(j, task, what, 1+rnd.Uint64N(3), at)
		}
	}
	for g := range 2 {
		background.Go(func() {
			rnd := rand.New(rand.NewPCG(7, uint64(g)))
			for done.Load() == 0 {
				replay(rnd, true)
				if ch := j.Drained(); ch != nil && rnd.IntN(10) == 0 {
					select {
					case <-ch:
					default:
					}
				}
				j.NextCheck(anyKey)
			}
		})
	}
	for g := range writers {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(8, uint64(g)))
			for i := range rounds {
				n := rnd.IntN(keys)
				key, s := name(n), &slots[n]
				s.mu.Lock()
				s.seq++
				w := Write{Key: key, Value: fmt.Appendf(nil, "%d:%d", g, i), Deadline: clock.Never, Seq: s.seq}
				if rnd.IntN(3) == 0 {
					w.Value, w.Del = nil, true
				}
				s.last = string(w.Value)
				if rnd.IntN(3) == 0 {
					w.SentOn = 1 + rnd.Uint64N(3)
				}
				if verdict := offer(j, w); verdict != admitted {
					t.Errorf("verdict %d", verdict)
				}
				s.mu.Unlock()
				switch rnd.IntN(4) {
				case 0:
					j.Touch(hashed(key), key, now.Load(), clock.Never-rnd.Int64N(1000))
				case 1:
					j.Get(hashed(key), key, now.Load())
				}
			}
		})
	}
	wg.Wait()
	done.Store(1)
	background.Wait()
	rnd := rand.New(rand.NewPCG(9, 9))
	waits := j.Drained()
	for i := 0; j.Keys.Load() > 0; i++ {
		replay(rnd, false)
		if i > 100_000 {
			t.Fatalf("%d keys, %d queued, and nothing settles", j.Keys.Load(), j.Queued.Load())
		}
	}
	if waits != nil {
		<-waits
	}
	wantGauges(t, j, 0, 0, 0)
	for i := range slots {
		got, _ := redis.Load(name(i))
		if got == nil {
			got = ""
		}
		if got != slots[i].last {
			t.Errorf("%s is %q, last written %q", name(i), got, slots[i].last)
		}
	}
	for i := range j.shards {
		if n := len(j.shards[i].intents); n != 0 {
			t.Errorf("%d intents in shard %d", n, i)
		}
	}
}
