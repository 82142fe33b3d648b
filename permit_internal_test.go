package holdfast

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast/internal/dial"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/rueidis"
)

// Law 3: a call that still holds a session whose connection was lost does not dial.
// rueidis would, though the server is there; the session's permit was for one dial.
func TestASessionIsNotDialledAgainByACall(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	server := redistest.Start(t)
	c, err := New(Options{Redis: rueidis.ClientOption{InitAddress: []string{server.Addr()}}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	s := c.routes.SeedLink.Gate.Load()
	s.Dialer.Connection().Close()
	for range 10 {
		err = s.Client.Do(ctx, s.Client.B().Ping().Build()).Error()
		if err == nil {
			t.Fatal("a lost session was dialled again")
		}
	}
	if !errors.Is(err, dial.ErrNoPermit) {
		t.Errorf("a lost session says %v", err)
	}
}
