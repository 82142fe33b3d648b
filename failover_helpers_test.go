package holdfast_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/rueidis"
)

// What the stories of failovers share: who is connected where, and who wrote what.

// watched is Options for the master that the sentinels at addrs tell of.
func watched(addrs ...string) holdfast.Options {
	o := holdfast.Options{Redis: rueidis.ClientOption{InitAddress: addrs}, Timeout: budget()}
	o.Redis.Sentinel.MasterSet = redistest.MasterSet
	return o
}

// ours counts the connections to a server or sentinel that are neither a
// sentinel's nor of the replication. A server that does not answer has too many,
// for it is asked again: a sentinel may close the connection that asks.
func ours(s *redistest.Server) int {
	list, err := s.Do("CLIENT", "LIST")
	if err != nil {
		return 1000
	}
	n := 0
	for line := range strings.Lines(list) {
		_, flags, _ := strings.Cut(line, " flags=")
		flags, _, _ = strings.Cut(flags, " ")
		switch {
		case strings.Contains(line, " name=sentinel-"), strings.ContainsAny(flags, "SM"):
		case strings.Contains(line, " cmd=client|list "): // this question
		default:
			n++
		}
	}
	return n
}

func oursAt(servers []*redistest.Server) int {
	n := 0
	for _, s := range servers {
		n += ours(s)
	}
	return n
}

// passes waits for a time to be over, as part of a story.
func passes(t testing.TB, what string, d time.Duration) {
	t.Helper()
	over := time.Now().Add(d)
	redistest.WaitFor(t, d+patience, what, func() bool { return time.Now().After(over) })
}

// states records the changes of state.
type states struct {
	mu  sync.Mutex
	all []holdfast.StateChange
}

func (s *states) record(o *holdfast.Options) {
	o.Hooks.OnStateChange = func(c holdfast.StateChange) {
		s.mu.Lock()
		s.all = append(s.all, c)
		s.mu.Unlock()
	}
}

// between returns the states that were entered in that time.
func (s *states) between(from, until time.Time) []holdfast.State {
	s.mu.Lock()
	defer s.mu.Unlock()
	var in []holdfast.State
	for _, c := range s.all {
		if c.At.After(from) && c.At.Before(until) {
			in = append(in, c.To)
		}
	}
	return in
}

// promote makes a master of a replica, and a replica of the old master, by hand:
// nobody is told, and no connection is closed.
func promote(t *testing.T, next, old *redistest.Server) {
	t.Helper()
	next.MustDo("REPLICAOF", "NO", "ONE")
	old.MustDo("REPLICAOF", "127.0.0.1", fmt.Sprint(next.Port()))
}

// role is what a server says it is, "" where it says nothing: a sentinel that makes
// a replica of it closes every connection, also the one that asks.
func role(s *redistest.Server) string {
	out, _ := s.Do("ROLE")
	name, _, _ := strings.Cut(out, "\n")
	return name
}

// replicated is a master and a replica that is in sync.
func replicated(t *testing.T) (master, replica *redistest.Server) {
	t.Helper()
	quick := []string{"--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"}
	master = redistest.Start(t, quick...)
	replica = redistest.Start(t, append(quick, "--replicaof", fmt.Sprint("127.0.0.1 ", master.Port()))...)
	master.AwaitReplicas(1)
	return master, replica
}

// ledger writes keys that nobody else writes, each some times in a row and then
// never again, and remembers what was accepted last. Whatever happens happens to
// some key's last write.
type ledger struct {
	mu    sync.Mutex
	keys  map[string]*record
	stale []string // keys that were read back older than they were written
	calls latencies
}

type record struct {
	last        string // "" after a delete
	from, until time.Time
}

// moment is when a server went away. It may have taken with it what it had
// acknowledged and not yet sent to its replica: such a key proves nothing.
type moment struct{ from, until time.Time }

// at is the moment of what f does.
func momentOf(f func()) moment {
	m := moment{from: time.Now().Add(-5 * time.Millisecond)}
	f()
	m.until = time.Now()
	return m
}

const writesPerKey = 4

func (l *ledger) write(t *testing.T, ctx context.Context, c *holdfast.Cache, writers int) (stop func()) {
	l.keys = map[string]*record{}
	stop = load(t, writers, func(g, i int) {
		n := i / writesPerKey
		key := fmt.Sprintf("w%d:%d", g, n)
		value := fmt.Sprintf("%s#%d", key, i)
		if n%4 == 3 && i%writesPerKey == writesPerKey-1 {
			value = ""
		}
		began := time.Now()
		l.calls.time(func() {
			var err error
			if value == "" {
				err = c.Delete(ctx, key)
			} else {
				err = c.Set(ctx, key, []byte(value), time.Hour)
			}
			if err != nil {
				t.Errorf("%s: %v", key, err)
			}
		})
		l.mu.Lock()
		r := l.keys[key]
		if r == nil {
			r = &record{from: began}
			l.keys[key] = r
		}
		r.last, r.until = value, time.Now()
		l.mu.Unlock()
		l.calls.time(func() {
			v, err := c.Get(ctx, key)
			switch {
			case err != nil && !errors.Is(err, holdfast.ErrMiss):
				t.Errorf("get %s: %v", key, err)
			case err == nil && string(v) != value:
				l.mu.Lock()
				l.stale = append(l.stale, key)
				l.mu.Unlock()
			}
		})
		time.Sleep(time.Millisecond) // writers do something else, too
	})
	t.Cleanup(stop) // before the cache is closed
	return stop
}

// check compares what was accepted with what the server has. It is called when
// the writers have stopped and the journal is drained.
func (l *ledger) check(t *testing.T, s *redistest.Server, lost ...moment) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	excused := func(key string) bool {
		r := l.keys[key]
		return slices.ContainsFunc(lost, func(m moment) bool { return r.until.After(m.from) && r.from.Before(m.until) })
	}
	for _, key := range l.stale {
		if !excused(key) {
			t.Errorf("%s was read back older than it had been written", key)
		}
	}
	keys := make([]string, 0, len(l.keys))
	for key := range l.keys {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	wrong, proveNothing := 0, 0
	for batch := range slices.Chunk(keys, 500) {
		held := strings.Split(s.MustDo(append([]string{"MGET"}, batch...)...), "\n")
		for i, key := range batch {
			r, got := l.keys[key], held[i]
			if excused(key) {
				proveNothing++
				continue
			}
			if got == "(nil)" {
				got = ""
			}
			if got != r.last {
				if wrong++; wrong <= 5 {
					t.Errorf("%s is %q, last written %q", key, got, r.last)
				}
			}
		}
	}
	if wrong > 0 {
		t.Errorf("%d of %d keys are not as they were written", wrong, len(keys))
	}
	if proveNothing > len(keys)*9/10 {
		t.Errorf("%d of %d keys prove nothing", proveNothing, len(keys))
	}
	t.Logf("%d keys written, %d of them as the server went away; slowest call %v", len(keys), proveNothing, l.calls.quantile(1))
}
