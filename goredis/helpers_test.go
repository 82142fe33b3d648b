package goredis_test

import (
	"context"
	"errors"
	"os"
	"reflect"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/goredis"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { os.Exit(redistest.Run(m)) }

// patience is how long a test waits for what must come in the end.
const patience = time.Minute

// begin is the first line of every test that starts servers: when all that the test
// started is closed, no goroutine may be left. go-redis' pool leaves a dial to end by
// itself.
func begin(t testing.TB) context.Context {
	t.Helper()
	old := goleak.IgnoreCurrent()
	t.Cleanup(func() {
		goleak.VerifyNone(t, old,
			goleak.IgnoreTopFunction(redistest.SpawnerFunction), goleak.IgnoreAnyFunction(redistest.SpawnerFunction),
			goleak.IgnoreAnyFunction("github.com/redis/go-redis/v9/internal/pool.(*ConnPool).dialConn"),
			goleak.IgnoreAnyFunction("github.com/redis/go-redis/v9/internal/pool.(*ConnPool).tryDial"),
		)
	})
	return context.Background()
}

// at is holdfast.Options for a server.
func at(addr string) holdfast.Options {
	return holdfast.Options{Redis: rueidis.ClientOption{InitAddress: []string{addr}}}
}

// calm is for tests of what is right and not of how long it takes: a call has the time
// that it takes on a loaded machine.
func calm(addr string) holdfast.Options {
	o := at(addr)
	o.Timeout = 10 * time.Second
	return o
}

func open(t testing.TB, o holdfast.Options) *holdfast.Cache {
	t.Helper()
	c, err := holdfast.New(o)
	must(t, err)
	t.Cleanup(func() {
		var u *holdfast.UndeliveredError // a test may end in an outage
		if err := c.Close(); err != nil && !errors.As(err, &u) {
			t.Errorf("close: %v", err)
		}
	})
	return c
}

func ready(t testing.TB, c *holdfast.Cache) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := c.WaitReady(ctx); err != nil {
		t.Fatalf("not ready: %v; last error: %v", err, c.Health().LastError)
	}
}

// plain is a go-redis client with nothing attached.
func plain(t testing.TB, o *redis.Options) *redis.Client {
	t.Helper()
	withoutMaintNotifications(o)
	rdb := redis.NewClient(o)
	t.Cleanup(func() { _ = rdb.Close() })
	return rdb
}

// withoutMaintNotifications disables them where go-redis has them. A handshake on a Conn
// writes to their options, and another one reads these: a race of go-redis' own, up to
// v9.23.0 at least.
func withoutMaintNotifications(o *redis.Options) {
	if f := reflect.ValueOf(o).Elem().FieldByName("MaintNotificationsConfig"); f.IsValid() {
		f.Set(reflect.New(f.Type().Elem()))
		f.Elem().FieldByName("Mode").SetString("disabled")
	}
}

// attached is a go-redis client with a cache before it that is ready.
func attached(t testing.TB, o holdfast.Options, opts ...goredis.Option) (*redis.Client, *holdfast.Cache) {
	t.Helper()
	c := open(t, o)
	rdb := plain(t, &redis.Options{Addr: o.Redis.InitAddress[0], DB: o.Redis.SelectDB})
	must(t, goredis.Attach(rdb, c, opts...))
	ready(t, c)
	return rdb, c
}

func waitState(t testing.TB, c *holdfast.Cache, want holdfast.State) {
	t.Helper()
	redistest.WaitFor(t, patience, "state "+want.String(), func() bool { return c.Health().State == want })
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
