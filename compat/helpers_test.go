package compat

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/rueidis"
)

const (
	patience = time.Minute     // for what must come in the end
	budget   = 5 * time.Second // so that a slow machine is no outage
)

// open makes a Cache that has reached the server.
func open(t testing.TB, s *redistest.Server, timeout time.Duration) *holdfast.Cache {
	t.Helper()
	c, err := holdfast.New(holdfast.Options{
		Redis:   rueidis.ClientOption{InitAddress: []string{s.Addr()}},
		Timeout: timeout,
	})
	must(t, err)
	t.Cleanup(func() {
		var u *holdfast.UndeliveredError // a test may end in an outage
		if err := c.Close(); err != nil && !errors.As(err, &u) {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	must(t, c.WaitReady(ctx))
	return c
}

// plain is rueidis' own client of the server. Where it caches, it may miss its own
// writes for a moment.
func plain(t testing.TB, s *redistest.Server, caches bool) rueidis.Client {
	t.Helper()
	client, err := rueidis.NewClient(rueidis.ClientOption{
		InitAddress: []string{s.Addr()}, ForceSingleClient: true, DisableCache: !caches,
	})
	must(t, err)
	t.Cleanup(client.Close)
	return client
}

// down waits until the Cache has noticed that Redis is away.
func down(t testing.TB, c *holdfast.Cache) {
	t.Helper()
	redistest.WaitFor(t, patience, "the outage to be noticed", func() bool {
		_ = c.Set(context.Background(), "noticed", nil, 0) // on a server that is stopped, calls notice
		return c.Health().State == holdfast.Down
	})
}

// up waits until the Cache has a Redis that takes its writes, and has replayed what was
// written meanwhile.
func up(t testing.TB, c *holdfast.Cache) {
	t.Helper()
	redistest.WaitFor(t, patience, "the outage to end", func() bool { return c.Check(context.Background()) == nil })
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	must(t, c.Drain(ctx))
}

// an outage is a way for Redis to be away.
type outage struct {
	name       string
	begin, end func(*redistest.Server)
	loses      bool // what Redis held
}

var outages = []outage{
	{"killed", (*redistest.Server).Kill, (*redistest.Server).RestartEmpty, true},
	{"stopped", (*redistest.Server).Pause, (*redistest.Server).Resume, false},
}

// bounded ends the tests, with all stacks, if f does not return. The limit is for what
// must not hang, not for what is to be quick.
func bounded(what string, f func()) {
	defer time.AfterFunc(patience, func() { panic(what + " hangs") }).Stop()
	f()
}

func unavailable(t testing.TB, what string, err error) {
	t.Helper()
	if !errors.Is(err, holdfast.ErrUnavailable) {
		t.Errorf("%s: %v; want ErrUnavailable", what, err)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func equal[T comparable](t testing.TB, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %v; want %v", what, got, want)
	}
}
