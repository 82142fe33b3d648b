package resp_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/holdfast-cache/holdfast/internal/resp"
	"github.com/redis/rueidis"
)

// dedicate connects by a guard to the server, by a connection that may subscribe.
func dedicate(t *testing.T, addr string) (rueidis.DedicatedClient, *resp.Conn) {
	t.Helper()
	var mu sync.Mutex
	var guard *resp.Conn
	client, err := rueidis.NewClient(rueidis.ClientOption{
		InitAddress: []string{addr}, ForceSingleClient: true, DisableRetry: true, AlwaysPipelining: true, DisableCache: true,
		DialCtxFn: func(ctx context.Context, addr string, d *net.Dialer, _ *tls.Config) (net.Conn, error) {
			conn, err := d.DialContext(ctx, "tcp", addr)
			if err != nil {
				return nil, err
			}
			mu.Lock()
			defer mu.Unlock()
			guard = resp.GuardPubSub(conn, resp.Limits{}, nil)
			return guard, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	d, release := client.Dedicate()
	if err := d.Do(context.Background(), d.B().Ping().Build()).Error(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { release(); client.Close() })
	mu.Lock()
	defer mu.Unlock()
	return d, guard
}

// While a script runs Redis says BUSY to an unsubscription and to the PING behind it, of
// which rueidis takes the first for PING's answer, and panics at the second. A replica
// without its master says MASTERDOWN to the PING alone, at which it panics, too.
func TestAnUnsubscriptionThatRedisRefusesCostsNothing(t *testing.T) {
	s := redistest.Start(t, "--lua-time-limit", "20")
	d, guard := dedicate(t, s.Addr())
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	works := func() {
		t.Helper()
		for i := range 3 {
			want := fmt.Sprint(i)
			if got, err := d.Do(ctx, d.B().Echo().Message(want).Build()).ToString(); got != want || err != nil {
				t.Fatalf("%q, %v; the guard: %v", got, err, guard.Err())
			}
		}
	}
	do := func(cmd rueidis.Completed) error { return d.Do(ctx, cmd).Error() }
	subscribe := func() {
		t.Helper()
		if err := do(d.B().Subscribe().Channel("a", "b").Build()); err != nil {
			t.Fatal(err)
		}
	}

	subscribe()
	var script sync.WaitGroup
	script.Go(func() { _, _ = s.Do("EVAL", "while true do end", "0") })
	redistest.WaitFor(t, 10*time.Second, "a busy server", func() bool {
		_, err := s.Do("PING")
		return err != nil && strings.Contains(err.Error(), "BUSY")
	})
	for range 3 {
		err := do(d.B().Unsubscribe().Channel("a").Build())
		var re *rueidis.RedisError
		if !errors.As(err, &re) || !strings.HasPrefix(re.Error(), "BUSY Redis is busy") {
			t.Errorf("UNSUBSCRIBE of a busy server: %v", err)
		}
	}
	for _, r := range d.DoMulti(ctx, d.B().Punsubscribe().Build(), d.B().Unsubscribe().Build(), d.B().Sunsubscribe().Build()) {
		if err := r.Error(); err == nil || !strings.HasPrefix(err.Error(), "BUSY") {
			t.Errorf("in one pipeline: %v", err)
		}
	}
	s.MustDo("SCRIPT", "KILL")
	script.Wait()
	works()
	if err := do(d.B().Unsubscribe().Channel("a").Build()); err != nil {
		t.Error(err)
	}
	works()

	subscribe()
	s.MustDo("CONFIG", "SET", "replica-serve-stale-data", "no")
	s.MustDo("REPLICAOF", "127.0.0.1", "1")
	for _, cmd := range []rueidis.Completed{d.B().Unsubscribe().Channel("a").Build(), d.B().Unsubscribe().Build(), d.B().Punsubscribe().Build()} {
		if err := do(cmd); err != nil {
			t.Errorf("of a replica without its master: %v", err)
		}
	}
	s.MustDo("REPLICAOF", "NO", "ONE")
	works()

	subscribe()
	s.MustDo("ACL", "SETUSER", "default", "-unsubscribe", "-ping")
	if err := do(d.B().Unsubscribe().Channel("a").Build()); err == nil || !strings.Contains(err.Error(), "'unsubscribe'") {
		t.Errorf("without the right: %v", err)
	}
	s.MustDo("ACL", "SETUSER", "default", "+unsubscribe")
	if err := do(d.B().Unsubscribe().Channel("a").Build()); err != nil {
		t.Errorf("without the right to PING: %v", err)
	}
	works()
}

// DEBUG PROTOCOL sends what RESP3 has and Redis uses nowhere else.
func TestEveryTypeThatRedisKnowsPasses(t *testing.T) {
	s := redistest.Start(t, "--enable-debug-command", "yes")
	d, guard := dedicate(t, s.Addr())
	ctx := context.Background()
	for _, name := range []string{"string", "integer", "double", "null", "array", "set", "map", "attrib", "push", "verbatim", "true", "false", "bignum"} {
		r := d.Do(ctx, d.B().Arbitrary("DEBUG", "PROTOCOL").Args(name).Build())
		if err := r.Error(); err != nil && !rueidis.IsRedisNil(err) {
			t.Errorf("%s: %v; the guard: %v", name, err, guard.Err())
		}
	}
	// A script nests deeper, and says more, than anybody should.
	for _, script := range []string{
		"local t = {} for i = 1, 300 do t = {t} end return t",
		"return redis.error_reply(string.rep('x', 200000))",
		"local t = {} for i = 1, 1200000 do t[i] = 1 end return t",
	} {
		r := d.Do(ctx, d.B().Eval().Script(script).Numkeys(0).Build())
		if err := r.NonRedisError(); err != nil {
			t.Errorf("%s: %v", script, err)
		}
	}
}
