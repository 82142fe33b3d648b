package holdfast_test

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/rueidis"
)

// A Set costs the copy of the value, the local entry, its place in the local tier, and rueidis' copy
// of the reply; a SET of the drop-in client the copy of the key, too. All allocations of the process are counted, those of the local tier's goroutines too.
func TestASetAndAFirstReadAllocateLittle(t *testing.T) {
	if raceFactor > 1 {
		t.Skip("the race detector allocates")
	}
	s := redistest.Start(t)
	ctx := context.Background()
	const n = 2000
	set, read, done := make([]string, n+1), make([]string, n+1), make([]string, n+1)
	items := map[string][]byte{}
	for i := range set {
		set[i], read[i], done[i] = fmt.Sprint("set:", i), fmt.Sprint("read:", i), fmt.Sprint("done:", i)
		items[read[i]] = make([]byte, 100)
	}
	writer, c := open(t, at(s.Addr())), open(t, at(s.Addr()))
	ready(t, writer)
	ready(t, c)
	must(t, writer.SetMany(ctx, items, time.Hour))
	next := func(keys []string, f func(key string) error) func() {
		return func() {
			if err := f(keys[0]); err != nil {
				t.Error(err)
			}
			keys = keys[1:]
		}
	}
	value, cl := make([]byte, 100), c.Client()
	for name, of := range map[string]struct {
		most float64
		call func()
	}{
		"Set": {6, next(set, func(key string) error { return c.Set(ctx, key, value, 0) })},
		"SET of the drop-in": {7, next(done, func(key string) error {
			return cl.Do(ctx, cl.B().Set().Key(key).Value(rueidis.BinaryString(value)).Px(time.Hour).Build()).Error()
		})},
		"first read": {9, next(read, func(key string) error { _, err := c.Get(ctx, key); return err })},
	} {
		if got := testing.AllocsPerRun(n, of.call); got > of.most {
			t.Errorf("%s: %v allocations, over %v", name, got, of.most)
		} else {
			t.Logf("%s: %v allocations", name, got)
		}
	}
}

// A batch allocates the values, the local entries, the commands and the replies. Its own slices, of
// which those of SetMany take 400 B a key, are kept for the next batch.
func TestABatchAllocatesNoSlicesOfItsOwn(t *testing.T) {
	if raceFactor > 1 {
		t.Skip("with the race detector a pool drops some of its slices")
	}
	ctx := undisturbed(t)
	s := redistest.Start(t)
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // a collection empties the pools
	o := at(s.Addr())
	o.Local.MaxTTL = time.Millisecond
	c := open(t, o)
	ready(t, c)
	keys, items := many(1000)
	for name, of := range map[string]struct {
		most uint64 // bytes per key
		call func() error
	}{
		"SetMany": {300, func() error { return c.SetMany(ctx, items, time.Hour) }},
		"GetMany": {480, func() error { _, err := c.GetMany(ctx, keys...); return err }},
	} {
		<-time.After(2 * time.Millisecond)
		must(t, of.call())
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range 20 {
			<-time.After(2 * time.Millisecond) // the copies are not fresh any more
			must(t, of.call())
		}
		runtime.ReadMemStats(&after)
		if got := (after.TotalAlloc - before.TotalAlloc) / 20 / 1000; got > of.most {
			t.Errorf("%s: %d B a key, over %d", name, got, of.most)
		} else {
			t.Logf("%s: %d B a key", name, got)
		}
	}
}
