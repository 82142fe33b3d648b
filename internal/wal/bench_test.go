package wal

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
)

// BenchmarkPut stands beside what it cannot be quicker than: the same bytes, each
// with a write, and where the policy says so an fsync, of its own.
func BenchmarkPut(b *testing.B) {
	payload := make([]byte, 100)
	for _, policy := range []SyncPolicy{SyncNone, SyncInterval, SyncAlways} {
		for _, callers := range []int{1, 64} {
			b.Run(fmt.Sprintf("%v/callers=%d/wal", policy, callers), func(b *testing.B) {
				l, _, err := Open(b.TempDir(), Options{Sync: policy}, nil)
				if err != nil {
					b.Fatal(err)
				}
				defer l.Close()
				calls(b, callers, func(key string) error { return l.Put(key, 0, payload) })
			})
		}
	}
}

func BenchmarkBareWrite(b *testing.B) {
	payload := make([]byte, 100)
	for _, policy := range []SyncPolicy{SyncNone, SyncAlways} {
		for _, callers := range []int{1, 64} {
			b.Run(fmt.Sprintf("%v/callers=%d/bare", policy, callers), func(b *testing.B) {
				f, err := os.Create(filepath.Join(b.TempDir(), "bare"))
				if err != nil {
					b.Fatal(err)
				}
				defer f.Close()
				record := appendRecord(nil, putRecord, 0, "key-0000000", payload)
				var mu sync.Mutex
				calls(b, callers, func(string) error {
					mu.Lock()
					defer mu.Unlock()
					_, err := f.Write(record)
					if err == nil && policy == SyncAlways {
						err = f.Sync()
					}
					return err
				})
			})
		}
	}
}

// calls shares b.N calls among callers.
func calls(b *testing.B, callers int, call func(key string) error) {
	keys := make([]string, 1024)
	for i := range keys {
		keys[i] = fmt.Sprintf("key-%07d", i)
	}
	b.ReportAllocs()
	b.SetBytes(RecordSize(len(keys[0]), 100))
	var next atomic.Int64
	var all sync.WaitGroup
	b.ResetTimer()
	for range callers {
		all.Go(func() {
			for {
				n := next.Add(1)
				if n > int64(b.N) {
					return
				}
				if err := call(keys[n%1024]); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	b.StopTimer()
}

// BenchmarkOpen reads the journal of a long outage: 65,536 keys of 100 bytes.
func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	l, _, err := Open(dir, Options{}, nil)
	if err != nil {
		b.Fatal(err)
	}
	for i := range 1 << 16 {
		if err := l.Put(fmt.Sprintf("key-%07d", i), 0, make([]byte, 100)); err != nil {
			b.Fatal(err)
		}
	}
	l.Close()
	b.ReportAllocs()
	for b.Loop() {
		l, report, err := Open(dir, Options{}, func(string, []byte) {})
		if err != nil || report.Keys != 1<<16 {
			b.Fatal(err, report)
		}
		l.Close()
	}
}

// BenchmarkCompact writes as many.
func BenchmarkCompact(b *testing.B) {
	keys := make([]string, 1<<16)
	for i := range keys {
		keys[i] = fmt.Sprintf("key-%07d", i)
	}
	payload := make([]byte, 100)
	l, _, err := Open(b.TempDir(), Options{}, nil)
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	b.ReportAllocs()
	for b.Loop() {
		err := l.Compact(func(yield func(string, uint64, []byte) bool) {
			for _, key := range keys {
				if !yield(key, 1, payload) {
					return
				}
			}
		})
		if err != nil {
			b.Fatal(err)
		}
	}
}
