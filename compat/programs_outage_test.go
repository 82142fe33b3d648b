package compat

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/centrifugal/centrifuge"
	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/rueidis"
	"github.com/redis/rueidis/rueidiscompat"
	"github.com/redis/rueidis/rueidislock"
)

const (
	outageTimeout = 250 * time.Millisecond // Options.Timeout of the Cache
	outageLasts   = 5 * time.Second
	pause         = 100 * time.Millisecond // between two runs of an operation, at least
)

// operation is something that a program does again and again.
type operation struct {
	name  string
	run   func(context.Context) error
	waits bool // for as long as the caller's context permits, by itself
}

// outagePrograms are the operations of each library, on a client of the venue.
var outagePrograms = []struct {
	name  string
	start func(testing.TB, venue) []operation
}{
	{"rueidiscompat", adapterOperations},
	{"rueidislock", lockOperations},
	{"rueidisaside", asideOperations},
	{"centrifuge RedisBroker", brokerOperations},
	{"centrifuge RedisPresenceManager", func(t testing.TB, v venue) []operation {
		m, end, err := v.redisPresence()
		must(t, err)
		t.Cleanup(end)
		return presenceOperations(m)
	}},
	{"a PresenceManager on a client", func(t testing.TB, v venue) []operation {
		client, err := v.build(rueidis.ClientOption{})
		must(t, err)
		t.Cleanup(client.Close)
		return presenceOperations(NewPresence(client, time.Hour))
	}},
}

func adapterOperations(t testing.TB, v venue) []operation {
	client, err := v.build(rueidis.ClientOption{})
	must(t, err)
	t.Cleanup(client.Close)
	c := rueidiscompat.NewAdapter(client)
	ctx := context.Background()
	must(t, c.Set(ctx, "kept", "v", 0).Err())
	must(t, c.HSet(ctx, "hash", "f", "v").Err())
	var next atomic.Int64
	other := func() string { return fmt.Sprint("other:", next.Add(1)) }
	script := rueidiscompat.NewScript(`return redis.call("INCR", KEYS[1])`)
	return []operation{
		{name: "`Get` of a key that was read", run: func(ctx context.Context) error { return c.Get(ctx, "kept").Err() }},
		{name: "`Cache(ttl).Get` of it", run: func(ctx context.Context) error { return c.Cache(time.Hour).Get(ctx, "kept").Err() }},
		{name: "`Get` of another key", run: func(ctx context.Context) error { return c.Get(ctx, other()).Err() }},
		{name: "`Set`", run: func(ctx context.Context) error { return c.Set(ctx, "set", "v", time.Hour).Err() }},
		{name: "`Del`", run: func(ctx context.Context) error { return c.Del(ctx, "deleted").Err() }},
		{name: "`HGetAll`", run: func(ctx context.Context) error { return c.HGetAll(ctx, "hash").Err() }},
		{name: "`Cache(ttl).HGetAll`", run: func(ctx context.Context) error { return c.Cache(time.Hour).HGetAll(ctx, "hash").Err() }},
		{name: "`HSet`", run: func(ctx context.Context) error { return c.HSet(ctx, "fields", "f", "v").Err() }},
		{name: "`Incr`", run: func(ctx context.Context) error { return c.Incr(ctx, "counter").Err() }},
		{name: "`Pipelined` of `Set` and `Get`", run: func(ctx context.Context) error {
			_, err := c.Pipelined(ctx, func(p rueidiscompat.Pipeliner) error {
				p.Set(ctx, "piped", "v", 0)
				p.Get(ctx, "piped")
				return nil
			})
			return err
		}},
		{name: "`TxPipelined`", run: func(ctx context.Context) error {
			_, err := c.TxPipelined(ctx, func(p rueidiscompat.Pipeliner) error {
				p.Incr(ctx, "counter")
				return nil
			})
			return err
		}},
		{name: "`Script.Run`", run: func(ctx context.Context) error { return script.Run(ctx, c, []string{"scripted"}).Err() }},
		{name: "`RPush`, then `BLPop`", run: func(ctx context.Context) error {
			if err := c.RPush(ctx, "queue", "v").Err(); err != nil {
				return err
			}
			return c.BLPop(ctx, time.Second, "queue").Err()
		}},
		{name: "`XAdd`", run: func(ctx context.Context) error {
			return c.XAdd(ctx, rueidiscompat.XAddArgs{Stream: "stream", MaxLen: 100, Values: []any{"k", "v"}}).Err()
		}},
		{name: "`Publish`", run: func(ctx context.Context) error { return c.Publish(ctx, "news", "v").Err() }},
	}
}

func lockOperations(t testing.TB, v venue) []operation {
	locker, err := v.locker(rueidislock.LockerOption{TryNextAfter: 2 * outageTimeout})
	must(t, err)
	t.Cleanup(locker.Close)
	released := func(_ context.Context, release context.CancelFunc, err error) error {
		if err == nil {
			release()
		}
		return err
	}
	return []operation{
		{name: "`TryWithContext`", run: func(ctx context.Context) error { return released(locker.TryWithContext(ctx, "try")) }},
		{name: "`WithContext`", waits: true, run: func(ctx context.Context) error { return released(locker.WithContext(ctx, "wait")) }},
	}
}

func asideOperations(t testing.TB, v venue) []operation {
	c, err := v.aside(false)
	must(t, err)
	t.Cleanup(c.Close)
	get := func(ctx context.Context, key string) error {
		_, err := c.Get(ctx, time.Hour, key, func(context.Context, string) (string, error) { return "loaded", nil })
		return err
	}
	var next atomic.Int64
	return []operation{
		{name: "`Get` of a key that was read", run: func(ctx context.Context) error { return get(ctx, "aside:kept") }},
		{name: "`Get` that loads", run: func(ctx context.Context) error { return get(ctx, fmt.Sprint("aside:", next.Add(1))) }},
		{name: "`Del`", run: func(ctx context.Context) error { return c.Del(ctx, "aside:deleted") }},
	}
}

func brokerOperations(t testing.TB, v venue) []operation {
	broker, got, end, err := v.broker()
	must(t, err)
	t.Cleanup(end)
	publish := func(o centrifuge.PublishOptions) error {
		_, _, err := broker.Publish("published", []byte("v"), o)
		return err
	}
	return []operation{
		{name: "`Publish`", run: func(context.Context) error { return publish(centrifuge.PublishOptions{}) }},
		{name: "`Publish` with a history", run: func(context.Context) error { return publish(history) }},
		{name: "`History`", run: func(context.Context) error {
			_, _, err := broker.History("published", centrifuge.HistoryOptions{Filter: centrifuge.HistoryFilter{Limit: 1}})
			return err
		}},
		{name: "`Subscribe`, then `Unsubscribe`", run: func(context.Context) error {
			if err := broker.Subscribe("news"); err != nil {
				return err
			}
			return broker.Unsubscribe("news")
		}},
		{name: "a publication to itself", run: func(context.Context) error {
			got.Delete("own") // what came late, after a subscription that failed
			return deliver(broker, got, "own", "v")
		}},
	}
}

func presenceOperations(m centrifuge.PresenceManager) []operation {
	return []operation{
		{name: "`AddPresence`", run: func(context.Context) error {
			return m.AddPresence("room", "c", &centrifuge.ClientInfo{ClientID: "c", UserID: "u"})
		}},
		{name: "`Presence`", run: func(context.Context) error { _, err := m.Presence("room"); return err }},
	}
}

// kindOf is an error as the table names it.
func kindOf(err error) string {
	if err == nil {
		return "answered"
	}
	for _, k := range []struct {
		err  error
		name string
	}{
		{rueidis.Nil, "a miss"},
		{holdfast.ErrUnavailable, "`ErrUnavailable`"},
		{rueidislock.ErrNotLocked, "`ErrNotLocked`"},
		{rueidislock.ErrLockerClosed, "`ErrLockerClosed`"},
		{context.DeadlineExceeded, "`DeadlineExceeded`"},
		{syscall.ECONNREFUSED, "connection refused"},
		{syscall.ECONNRESET, "connection lost"},
		{io.EOF, "connection lost"},
	} {
		if errors.Is(err, k.err) {
			return k.name
		}
	}
	if strings.Contains(err.Error(), "pub/sub connection temporary unavailable") {
		return "an error of centrifuge"
	}
	return err.Error()
}

// attempt is one run of an operation.
type attempt struct {
	began, ended time.Time // ended is zero while it runs
	kind         string
}

// repeated is an operation that a goroutine runs again and again.
type repeated struct {
	operation
	program string
	pause   time.Duration // between two runs

	mu       sync.Mutex
	attempts []attempt
}

func (r *repeated) loop(ctx context.Context) {
	for ctx.Err() == nil {
		a := attempt{began: time.Now(), kind: "no answer"}
		r.mu.Lock()
		i := len(r.attempts)
		r.attempts = append(r.attempts, a)
		r.mu.Unlock()
		a.kind = kindOf(r.run(ctx))
		a.ended = time.Now()
		r.mu.Lock()
		r.attempts[i] = a
		r.mu.Unlock()
		select {
		case <-time.After(r.pause):
		case <-ctx.Done():
		}
	}
}

func (r *repeated) made() []attempt {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.attempts)
}

// works reports whether five runs in a row that began since then were successful.
func (r *repeated) works(since time.Time) bool {
	successes := 0
	for _, a := range r.made() {
		switch {
		case a.began.Before(since) || a.ended.IsZero():
		case a.kind == "answered" || a.kind == "a miss":
			successes++
		default:
			successes = 0
		}
	}
	return successes >= 5
}

// outcome is what a program saw of one operation in an outage.
type outcome struct {
	results string // of nearly all runs
	longest string // wait of a run
	goesOn  bool   // by itself, when Redis is back
}

func (o outcome) String() string {
	if !o.goesOn {
		return o.results + ", also afterwards"
	}
	return o.results + ", " + o.longest
}

// during sums up the runs that were not over before the outage. late is how late the machine was
// to wake a goroutine; it is taken off each wait.
func (r *repeated) during(began, ended time.Time, late time.Duration) outcome {
	var longest time.Duration
	kinds, n := make(map[string]int), 0
	for _, a := range r.made() {
		if !a.ended.IsZero() && a.ended.Before(began) || a.began.After(ended) {
			continue
		}
		if a.ended.IsZero() {
			a.ended = time.Now()
		}
		n++
		kinds[a.kind]++
		longest = max(longest, a.ended.Sub(a.began)-2*late)
	}
	o := outcome{results: fmt.Sprint(kinds), longest: waitClass(longest), goesOn: r.works(ended)}
	for kind, count := range kinds {
		if 2*count > n && n-count <= max(1, n/10) {
			o.results = kind
		}
	}
	return o
}

const untilItIsBack = "until it is back"

func waitClass(d time.Duration) string {
	switch {
	case d < time.Second:
		return "< 1 s"
	case d < outageLasts-time.Second:
		return "seconds"
	}
	return untilItIsBack
}

// lateness measures how late the machine wakes a goroutine, at most, until stop is called.
func lateness() (stop func() time.Duration) {
	done, worst := make(chan struct{}), make(chan time.Duration)
	go func() {
		const nap = 10 * time.Millisecond
		var late time.Duration
		for {
			began := time.Now()
			select {
			case <-time.After(nap):
				late = max(late, time.Since(began)-nap)
			case <-done:
				worst <- late
				return
			}
		}
	}()
	return func() time.Duration { close(done); return <-worst }
}

// through runs the operations of all programs through an outage. They have the time within to
// work again.
func (v venue) through(t *testing.T, o outage, within time.Duration) (seen []*repeated, outcomes []outcome) {
	for _, p := range outagePrograms {
		for _, op := range p.start(t, v) {
			// They do not keep in step. A copy is not kept if a write of a key in the same stripe of
			// the local tier comes in between, which else could be so each time.
			pause := pause + time.Duration(len(seen))*time.Millisecond
			seen = append(seen, &repeated{operation: op, program: p.name, pause: pause})
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	defer bounded("an operation whose server is back", all.Wait)
	defer cancel()
	for _, r := range seen {
		all.Go(func() { r.loop(ctx) })
	}
	allWork := func(since time.Time) bool {
		return !slices.ContainsFunc(seen, func(r *repeated) bool { return !r.works(since) })
	}
	redistest.WaitFor(t, patience, "each operation to work", func() bool { return allWork(time.Time{}) })

	stop := lateness()
	o.begin(v.redis)
	began := time.Now()
	<-time.After(outageLasts)
	ended := time.Now()
	o.end(v.redis)
	for time.Since(ended) < within && !allWork(ended) {
		<-time.After(pause)
	}
	late := stop()
	for _, r := range seen {
		outcomes = append(outcomes, r.during(began, ended, late))
	}
	return seen, outcomes
}

// Each operation of the programs runs through each outage, on a client of rueidis and on a
// Cache. docs/PROGRAMS.md has the table. On a Cache no operation waits for the server, unless
// that is its purpose, and each works again by itself.
func TestWhatProgramsSeeOfAnOutageIsWhatTheDocumentsSay(t *testing.T) {
	redistest.Long(t)
	plain, ours := make([][]outcome, len(outages)), make([][]outcome, len(outages))
	operations := make([][]*repeated, len(outages))
	t.Run("on", func(t *testing.T) { // returns when the parallel runs have ended
		for i, o := range outages {
			t.Run("a plain client, "+o.name, func(t *testing.T) {
				t.Parallel()
				_, plain[i] = plainVenue(t).through(t, o, patience/3)
			})
			t.Run("a Cache, "+o.name, func(t *testing.T) {
				t.Parallel()
				operations[i], ours[i] = cacheVenue(t, outageTimeout).through(t, o, patience)
				for j, r := range operations[i] {
					if ours[i][j].longest == untilItIsBack && !r.waits {
						t.Errorf("%s, %s: waits until Redis is back", r.program, r.name)
					}
					if !ours[i][j].goesOn {
						t.Errorf("%s, %s: does not work again", r.program, r.name)
					}
				}
			})
		}
	})
	if t.Failed() {
		return
	}
	var table strings.Builder
	fmt.Fprintln(&table, "| Program | Operation | Redis is | On rueidis' client | On holdfast |")
	fmt.Fprintln(&table, "|---|---|---|---|---|")
	for j, r := range operations[0] {
		for i, o := range outages {
			fmt.Fprintf(&table, "| %s | %s | %s | %s | %s |\n", r.program, r.name, o.name, plain[i][j], ours[i][j])
		}
	}
	compareTable(t, "../docs/PROGRAMS.md", "rueidis", table.String())
}

// compareTable compares the table of that name in a document with the one that was computed, or
// writes it there.
func compareTable(t *testing.T, file, name, table string) {
	t.Helper()
	text, err := os.ReadFile(file)
	must(t, err)
	begins, ends := "<!-- table: "+name+" -->\n", "<!-- end: "+name+" -->"
	head, rest, ok := strings.Cut(string(text), begins)
	got, tail, ok2 := strings.Cut(rest, ends)
	switch {
	case !ok || !ok2:
		t.Fatalf("%s has no table %q", file, name)
	case got == table:
	case os.Getenv("HOLDFAST_UPDATE") == "1":
		must(t, os.WriteFile(file, []byte(head+begins+table+ends+tail), 0o644))
	default:
		t.Errorf("%s differs; HOLDFAST_UPDATE=1 writes the table that was computed:\n%s", file, table)
	}
}
