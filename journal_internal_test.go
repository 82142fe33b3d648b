package holdfast

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestDrainWaitsForADiskNoLongerThanItsContext(t *testing.T) {
	o := Options{Journal: JournalOptions{Dir: t.TempDir()}}
	o.Redis.InitAddress = []string{"127.0.0.1:1"}
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	release := c.journal.HoldSweeps() // as one does whose disk hangs
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := c.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("drain: %v", err)
	}
	release()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

func TestADirectoryInUseIsAnErrorThatSaysSo(t *testing.T) {
	dir := t.TempDir()
	o := Options{Journal: JournalOptions{Dir: dir}}
	o.Redis.InitAddress = []string{"127.0.0.1:1"}
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := New(o); err == nil || !strings.Contains(err.Error(), "Journal.Dir") || !strings.Contains(err.Error(), dir) {
		t.Errorf("the second one on the directory: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	c, err = New(o)
	if err != nil {
		t.Fatalf("after the first was closed: %v", err)
	}
	c.Close()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	o.Journal.Dir = file
	if _, err := New(o); err == nil || !strings.Contains(err.Error(), "Journal.Dir") {
		t.Errorf("a directory that is a file: %v", err)
	}
}
