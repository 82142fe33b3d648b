package programs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/goredis"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
	"github.com/redis/rueidis"
)

func TestMain(m *testing.M) {
	redis.SetLogger(silent{}) // it logs each dial that fails
	os.Exit(redistest.Run(m))
}

type silent struct{}

func (silent) Printf(context.Context, string, ...any) {}

const (
	patience = time.Minute      // for what must come in the end
	calm     = 10 * time.Second // an Options.Timeout with which a slow machine is no outage
)

// The size of the pool is given, because the default depends on the number of processors,
// and go-redis stops dialling a server that has refused so many connections. With idle
// ones it is not left to chance whether a call of a stopped server dials: it waits for a
// reply for 3 s, and for a connection for 5 s.
const poolSize, idle = 20, 10

// connect returns a client of one server. Two clients of the same connect may share a
// cache. The hooks come before that of the cache.
type connect func(hooks ...redis.Hook) *redis.Client

// plain connects with nothing attached.
func plain(t testing.TB, s *redistest.Server) connect {
	return func(hooks ...redis.Hook) *redis.Client {
		rdb := redis.NewClient(&redis.Options{
			Addr:     s.Addr(),
			PoolSize: poolSize, MinIdleConns: idle,
			// A handshake on a Conn writes to options that another one reads: a race of
			// go-redis' own.
			MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
		})
		t.Cleanup(func() { _ = rdb.Close() })
		for _, h := range hooks {
			rdb.AddHook(h)
		}
		return rdb
	}
}

// attached connects as plain does, and attaches a cache that has reached the server.
func attached(t testing.TB, s *redistest.Server, timeout time.Duration) (connect, *holdfast.Cache) {
	t.Helper()
	cache, err := holdfast.New(holdfast.Options{
		Redis:   rueidis.ClientOption{InitAddress: []string{s.Addr()}},
		Timeout: timeout,
	})
	must(t, err)
	t.Cleanup(func() { must(t, cache.Close()) })
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	must(t, cache.WaitReady(ctx))
	bare := plain(t, s)
	return func(hooks ...redis.Hook) *redis.Client {
		rdb := bare(hooks...)
		must(t, goredis.Attach(rdb, cache))
		return rdb
	}, cache
}

// A record has the observations of a program, a line for each.
type record struct {
	mu    sync.Mutex
	lines []string
}

func (r *record) note(what string, result any, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, fmt.Sprintf("%s: %v, error %v", what, result, err))
}

// contents lists the keys of a server with their types and sizes.
func contents(s *redistest.Server) []string {
	const script = `
		local size = {list='LLEN', set='SCARD', zset='ZCARD', hash='HLEN', stream='XLEN'}
		local all = {}
		for i, key in ipairs(redis.call('KEYS', '*')) do
			local kind = redis.call('TYPE', key).ok
			local ttl = redis.call('TTL', key) >= 0 and 'expires' or 'stays'
			all[i] = key .. ' ' .. kind .. ' of ' .. (size[kind] and redis.call(size[kind], key) or 1) .. ' ' .. ttl
		end
		return table.concat(all, '\n')`
	lines := strings.Split(unnamed(s.MustDo("EVAL", script, "0")), "\n")
	slices.Sort(lines)
	return lines
}

// random matches a UUID, and a token of scs.
var random = regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[\w-]{43}`)

// unnamed replaces identifiers that are drawn at random.
func unnamed(s string) string { return random.ReplaceAllString(s, "<id>") }

// about rounds a duration that has run for a moment to the one that was given.
func about(d time.Duration) time.Duration { return d.Round(20 * time.Second) }

func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	redistest.WaitFor(t, patience, what, cond)
}

func sameLines(t testing.TB, what string, got, want []string) {
	t.Helper()
	for i := range max(len(got), len(want)) {
		if g, w := lineOf(got, i), lineOf(want, i); g != w {
			t.Errorf("%s, line %d:\nattached %s\nplain    %s", what, i, g, w)
		}
	}
}

func lineOf(lines []string, i int) string {
	if i < len(lines) {
		return lines[i]
	}
	return "(none)"
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func unavailable(err error) bool { return errors.Is(err, holdfast.ErrUnavailable) }

// prepared waits until f has returned no error: what precedes an outage may be slow, too.
func prepared(t testing.TB, f func() error) {
	t.Helper()
	var err error
	defer func() {
		if err != nil {
			t.Log(err)
		}
	}()
	eventually(t, "what precedes an outage", func() bool { err = f(); return err == nil })
}
