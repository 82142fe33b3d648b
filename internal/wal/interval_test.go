package wal

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestAnIntervalForcesToTheDiskWhatWasWrittenBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := newMemFS()
		l, _, _ := mustOpen(t, fs, Options{Sync: SyncInterval, Interval: time.Minute})
		unsynced := func() (n int) {
			fs.mu.Lock()
			defer fs.mu.Unlock()
			for _, f := range fs.names {
				n += len(f.data) - f.synced
			}
			return n
		}
		mustPut(t, l, "k", 1, "v")
		if unsynced() == 0 {
			t.Fatal("Put waited for the disk")
		}
		for range 2 {
			<-time.After(time.Minute)
			synctest.Wait()
			if n := unsynced(); n > 0 {
				t.Errorf("after an interval %d bytes are not on the disk", n)
			}
			mustPut(t, l, "k", 1, "w")
		}
		mustClose(t, l) // and the goroutine ends, or the bubble says so
	})
}

func TestAnIntervalThatFailsIsToldAndHealedByCompact(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := newMemFS()
		l, _, _ := mustOpen(t, fs, Options{Sync: SyncInterval, Interval: time.Minute})
		mustPut(t, l, "k", 1, "v")
		fs.mu.Lock()
		fs.fault = failing(opSync, 1, 1, 0, errDisk)
		fs.mu.Unlock()
		<-time.After(time.Minute)
		synctest.Wait()
		if err := l.Err(); !errors.Is(err, errDisk) {
			t.Errorf("Err: %v", err)
		}
		if err := l.Put("k", 2, []byte("w")); !errors.Is(err, errDisk) {
			t.Errorf("Put into a segment that may have lost something: %v", err)
		}
		if err := l.Compact(all(map[string]string{"k": "w"}, 2)); err != nil {
			t.Fatal(err)
		}
		if err := l.Err(); err != nil {
			t.Errorf("Err after Compact: %v", err)
		}
		mustPut(t, l, "l", 1, "v")
		mustClose(t, l)
		for seed := range uint64(20) {
			got, _ := contentsOf(t, fs.unplugged(newRand(seed)))
			wantContents(t, got, map[string]string{"k": "w", "l": "v"})
		}
	})
}
