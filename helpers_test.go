package holdfast_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/rueidis"
	"go.uber.org/goleak"
)

// begin is the first line of every test that opens a Cache. The test runs beside others,
// and when all that it started is closed, no goroutine may be left.
func begin(t testing.TB) context.Context {
	t.Helper()
	if beside(t) {
		return context.Background() // whose a goroutine is, nobody knows: see TestMain
	}
	return undisturbed(t)
}

// undisturbed is begin for a test that counts what the whole process has, its goroutines or
// its memory, and for one that keeps all processors busy: it runs while no other does.
func undisturbed(t testing.TB) context.Context {
	t.Helper()
	if _, begun := atOnce.LoadOrStore(t.Name(), false); !begun {
		t.Cleanup(func() { atOnce.Delete(t.Name()) })
	}
	old := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, old, ofRedistest) })
	return context.Background()
}

// open makes a Cache that is closed with the test.
func open(t testing.TB, o holdfast.Options) *holdfast.Cache {
	t.Helper()
	c, err := holdfast.New(o)
	if err != nil {
		t.Fatal(err)
	}
	ends := c
	t.Cleanup(func() {
		closed(t, ends)
		ends = nil // the testing package keeps what this refers to until the last test has ended
	})
	return c
}

// at is Options for a server at addr.
func at(addr string) holdfast.Options {
	return holdfast.Options{Redis: rueidis.ClientOption{InitAddress: []string{addr}}, Timeout: budget()}
}

func ready(t testing.TB, c *holdfast.Cache) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := c.WaitReady(ctx); err != nil {
		t.Fatalf("not ready: %v; last error: %v", err, c.Health().LastError)
	}
}

func drain(t testing.TB, c *holdfast.Cache) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := c.Drain(ctx); err != nil {
		t.Fatalf("journal not drained: %v; health %+v", err, c.Health())
	}
}

func waitState(t testing.TB, c *holdfast.Cache, want holdfast.State) {
	t.Helper()
	redistest.WaitFor(t, patience, "state "+want.String(), func() bool { return c.Health().State == want })
}

// backend is one server under a behaviour test: miniredis always, a real
// redis-server where there is one.
type backend struct {
	addr string
	get  func(key string) (string, bool)
	set  func(key, value string)
	del  func(key string)

	lapse func(time.Duration) // where its clock stands still: moves it
}

// backends runs the test against each kind of server.
func backends(t *testing.T, test func(t *testing.T, ctx context.Context, b backend)) {
	t.Helper()
	beside(t)
	t.Run("miniredis", func(t *testing.T) {
		ctx := begin(t)
		m := miniredis.RunT(t)
		test(t, ctx, backend{
			addr: m.Addr(),
			get: func(key string) (string, bool) {
				v, err := m.Get(key)
				return v, err == nil
			},
			set: func(key, value string) { m.Set(key, value) },
			del: func(key string) { m.Del(key) },

			lapse: m.FastForward,
		})
	})
	t.Run("redis-server", func(t *testing.T) {
		ctx := begin(t)
		s := redistest.Start(t)
		test(t, ctx, serverBackend(s))
	})
}

func serverBackend(s *redistest.Server) backend {
	return backend{
		addr: s.Addr(),
		get: func(key string) (string, bool) {
			v := s.MustDo("GET", key)
			return v, v != "(nil)"
		},
		set: func(key, value string) { s.MustDo("SET", key, value) },
		del: func(key string) { s.MustDo("DEL", key) },
	}
}

// wantGet asserts what a Get returns; "" means a miss.
func wantGet(t testing.TB, c *holdfast.Cache, key, want string) {
	t.Helper()
	got, err := c.Get(context.Background(), key)
	if want == "" {
		if !errors.Is(err, holdfast.ErrMiss) {
			t.Fatalf("get %s: %q, %v; want a miss", key, got, err)
		}
		return
	}
	if err != nil || string(got) != want {
		t.Fatalf("get %s: %q, %v; want %q", key, got, err, want)
	}
}

// closed closes a Cache whose journal may still have writes.
func closed(t testing.TB, c *holdfast.Cache) {
	t.Helper()
	var u *holdfast.UndeliveredError
	if err := c.Close(); err != nil && !asUndelivered(err, &u) && !starved(err) {
		t.Fatalf("close: %v", err)
	}
}

// closedEmpty closes a Cache whose writes were all delivered, or are on the disk.
func closedEmpty(t testing.TB, c *holdfast.Cache) {
	t.Helper()
	var u *holdfast.UndeliveredError
	if err := c.Close(); err != nil && (asUndelivered(err, &u) || !starved(err)) {
		t.Fatalf("close: %v", err)
	}
}

// starved reports whether Close gave up on a goroutine that a stalled machine had not run for a
// second. A goroutine that does not end at all is found by the check for those left behind.
func starved(err error) bool {
	return lateness() > 50*time.Millisecond && contains(err.Error(), "which had no time to run")
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// latencies gathers what calls took.
type latencies struct {
	mu  sync.Mutex
	all []time.Duration
}

func (l *latencies) time(f func()) {
	start := time.Now()
	f()
	d := time.Since(start)
	l.mu.Lock()
	l.all = append(l.all, d)
	l.mu.Unlock()
}

func (l *latencies) reset() {
	l.mu.Lock()
	l.all = nil
	l.mu.Unlock()
}

// quantile returns the q-th part's upper bound; 1 is the maximum.
func (l *latencies) quantile(q float64) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.all) == 0 {
		return 0
	}
	s := slices.Clone(l.all)
	slices.Sort(s)
	return s[min(len(s)-1, int(q*float64(len(s))))]
}

// within asserts that the q-th part took no longer than the bound, the promise, with
// what the machine was seen to add.
func (l *latencies) within(t testing.TB, q float64, bound time.Duration) {
	t.Helper()
	if late := lateness(); l.quantile(q) > bound+late {
		t.Errorf("quantile %v of the calls took %v, over %v, where the machine was late by %v", q, l.quantile(q), bound, late)
	}
}

// patience is how long a test waits for what must come in the end: it says
// nothing about how long that should take, and a slow machine under the race
// detector may take long.
const patience = time.Minute

// logLines is a log handler that keeps the lines.
type logLines struct {
	mu    sync.Mutex
	lines []string
}

func (l *logLines) Enabled(context.Context, slog.Level) bool { return true }
func (l *logLines) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l *logLines) WithGroup(string) slog.Handler            { return l }
func (l *logLines) Handle(_ context.Context, r slog.Record) error {
	line := r.Message
	r.Attrs(func(a slog.Attr) bool {
		line += fmt.Sprintf(" %s=%v", a.Key, a.Value)
		return true
	})
	l.mu.Lock()
	l.lines = append(l.lines, line)
	l.mu.Unlock()
	return nil
}

func (l *logLines) get() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.lines)
}

// load calls f from n goroutines until stop is called, which waits for them. They stop at
// the end of the test at the latest, also of one that fails before it comes to stop: who
// logged after its test has ended would end them all.
func load(t testing.TB, n int, f func(goroutine, i int)) (stop func()) {
	var wg sync.WaitGroup
	done := make(chan struct{})
	for g := range n {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-done:
					return
				default:
				}
				f(g, i)
				if i%8 == 0 {
					runtime.Gosched()
				}
			}
		})
	}
	stop = sync.OnceFunc(func() {
		close(done)
		wg.Wait()
	})
	t.Cleanup(stop)
	return stop
}

func slogTo(l *logLines) *slog.Logger { return slog.New(l) }

func contains(text string, parts ...string) bool {
	for _, p := range parts {
		if strings.Contains(strings.ToLower(text), strings.ToLower(p)) {
			return true
		}
	}
	return false
}

func asUndelivered(err error, u **holdfast.UndeliveredError) bool { return errors.As(err, u) }

// roundsFactor is HOLDFAST_ROUNDS, by which the longest of the race tests are
// multiplied; 1 if it is not set.
func roundsFactor(t testing.TB) int {
	text := os.Getenv("HOLDFAST_ROUNDS")
	if text == "" {
		return 1
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("HOLDFAST_ROUNDS is %q: it must be a positive number", text)
	}
	return n
}
