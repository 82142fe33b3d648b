package views_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/holdfast-cache/holdfast/views"
	"github.com/redis/rueidis"
	"go.uber.org/goleak"
)

const patience = time.Minute // for what must come in the end

// begin is the first line of every test that opens a Cache: when all that the test
// started is closed, no goroutine may be left.
func begin(t testing.TB) context.Context {
	t.Helper()
	old := goleak.IgnoreCurrent()
	t.Cleanup(func() {
		goleak.VerifyNone(t, old, goleak.IgnoreTopFunction(redistest.SpawnerFunction), goleak.IgnoreAnyFunction(redistest.SpawnerFunction))
	})
	return context.Background()
}

// open makes a Cache on a server, or on the local tier alone where addr is "".
func open(t testing.TB, addr string, o holdfast.Options) *holdfast.Cache {
	t.Helper()
	if addr != "" {
		o.Redis = rueidis.ClientOption{InitAddress: []string{addr}}
	}
	if o.Timeout == 0 {
		o.Timeout = 2 * time.Second // so that a slow machine is no outage
	}
	c, err := holdfast.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		var u *holdfast.UndeliveredError // a test may end in an outage
		if err := c.Close(); err != nil && !errors.As(err, &u) {
			t.Errorf("close: %v", err)
		}
	})
	return c
}

// onServer makes a server and a Cache that has reached it.
func onServer(t testing.TB, o holdfast.Options) (*holdfast.Cache, *miniredis.Miniredis) {
	t.Helper()
	m := miniredis.RunT(t)
	c := open(t, m.Addr(), o)
	ready(t, c)
	return c, m
}

func ready(t testing.TB, c *holdfast.Cache) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	must(t, c.WaitReady(ctx))
}

// away stops the server and waits until the Cache has noticed.
func away(t testing.TB, c *holdfast.Cache, m *miniredis.Miniredis) {
	t.Helper()
	m.Close()
	redistest.WaitFor(t, patience, "the outage to be noticed", func() bool { return c.Health().State == holdfast.Down })
}

// back starts it again and waits until it has what was written meanwhile.
func back(t testing.TB, c *holdfast.Cache, m *miniredis.Miniredis) {
	t.Helper()
	must(t, m.Restart())
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	redistest.WaitFor(t, patience, "the outage to end", func() bool { return c.Check(ctx) == nil })
	must(t, c.Drain(ctx))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// store is what the views of bytes by key have in common.
type store struct {
	name   string
	get    func(key string) (value []byte, found bool, err error)
	set    func(key string, value []byte) error
	remove func(key string) error // nil where the interface has none
}

var errNoSuchCert = errors.New("autocert's miss")

// stores returns every view of that kind on a Cache, each in the terms of its own
// interface's misses.
func stores(c *holdfast.Cache, prefix string) []store {
	ctx := context.Background()
	var heard error
	hear := func(err error) { heard = err }
	// quiet is for the interfaces without errors.
	quiet := func(f func()) error {
		heard = nil
		f()
		return heard
	}
	byBool := func(f func(key string) ([]byte, bool)) func(key string) ([]byte, bool, error) {
		return func(key string) (value []byte, found bool, err error) {
			err = quiet(func() { value, found = f(key) })
			return value, found, err
		}
	}
	fiber, scs := views.NewFiber(c, prefix), views.NewSCS(c, prefix)
	cert := views.NewAutocert(c, prefix, errNoSuchCert)
	web, local := views.NewHTTPCache(c, prefix, time.Hour), views.NewLocalCache(c, prefix, time.Hour)
	sturdy, gql := views.NewSturdyc(c, prefix, time.Hour), views.NewGQLGen(c, prefix, time.Hour)
	web.OnError, local.OnError, sturdy.OnError, gql.OnError = hear, hear, hear, hear
	fiberGet := func(value []byte, err error) ([]byte, bool, error) { return value, value != nil, err }

	return []store{
		{
			"fiber v2",
			func(key string) ([]byte, bool, error) { return fiberGet(fiber.Get(key)) },
			func(key string, value []byte) error { return fiber.Set(key, value, time.Hour) },
			fiber.Delete,
		},
		{
			"fiber v3",
			func(key string) ([]byte, bool, error) { return fiberGet(fiber.GetWithContext(ctx, key)) },
			func(key string, value []byte) error { return fiber.SetWithContext(ctx, key, value, time.Hour) },
			func(key string) error { return fiber.DeleteWithContext(ctx, key) },
		},
		{
			"scs",
			scs.Find,
			func(key string, value []byte) error { return scs.Commit(key, value, time.Now().Add(time.Hour)) },
			scs.Delete,
		},
		{
			"scs with contexts",
			func(key string) ([]byte, bool, error) { return scs.FindCtx(ctx, key) },
			func(key string, value []byte) error {
				return scs.CommitCtx(ctx, key, value, time.Now().Add(time.Hour))
			},
			func(key string) error { return scs.DeleteCtx(ctx, key) },
		},
		{
			"httpcache",
			byBool(web.Get),
			func(key string, value []byte) error { return quiet(func() { web.Set(key, value) }) },
			func(key string) error { return quiet(func() { web.Delete(key) }) },
		},
		{
			"autocert",
			func(key string) ([]byte, bool, error) {
				value, err := cert.Get(ctx, key)
				if err == errNoSuchCert { // as autocert compares
					return value, false, nil
				}
				return value, err == nil, err
			},
			func(key string, value []byte) error { return cert.Put(ctx, key, value) },
			func(key string) error { return cert.Delete(ctx, key) },
		},
		{
			"sturdyc",
			byBool(func(key string) ([]byte, bool) { return sturdy.Get(ctx, key) }),
			func(key string, value []byte) error { return quiet(func() { sturdy.Set(ctx, key, value) }) },
			func(key string) error { return quiet(func() { sturdy.Delete(ctx, key) }) },
		},
		{
			"sturdyc in batches",
			byBool(func(key string) ([]byte, bool) {
				value, found := sturdy.GetBatch(ctx, []string{"none", key})[key]
				return value, found
			}),
			func(key string, value []byte) error {
				return quiet(func() { sturdy.SetBatch(ctx, map[string][]byte{key: value}) })
			},
			func(key string) error { return quiet(func() { sturdy.DeleteBatch(ctx, []string{key, "none"}) }) },
		},
		{
			"local cache",
			byBool(local.Get),
			func(key string, value []byte) error { return quiet(func() { local.Set(key, value) }) },
			func(key string) error { return quiet(func() { local.Del(key) }) },
		},
		{
			"gqlgen",
			byBool(func(key string) ([]byte, bool) {
				value, found := gql.Get(ctx, key)
				if !found && value == "" {
					return nil, false
				}
				return []byte(value), found
			}),
			func(key string, value []byte) error { return quiet(func() { gql.Add(ctx, key, string(value)) }) },
			nil,
		},
	}
}

func (s store) wants(t testing.TB, key, want string) {
	t.Helper()
	got, found, err := s.get(key)
	if err != nil || !found || string(got) != want {
		t.Fatalf("%s: get %s: %q, found %v, %v; want %q", s.name, key, got, found, err, want)
	}
}

func (s store) misses(t testing.TB, key string) {
	t.Helper()
	got, found, err := s.get(key)
	if err != nil || found || got != nil {
		t.Fatalf("%s: get %s: %q, found %v, %v; want a miss", s.name, key, got, found, err)
	}
}
