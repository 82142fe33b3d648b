package holdfast_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

// Callers and somebody else write and read while a real server is killed, stopped,
// emptied, made a replica and has its connections cut, against the model.
func TestNothingWrittenIsLostAndNothingOldReturnsOnARealServer(t *testing.T) {
	ctx := begin(t)
	s := redistest.Start(t)
	o := at(s.Addr())
	// A mute server is given up while it is still stopped: what it has taken runs late.
	o.Redis.Dialer.KeepAlive = 100 * time.Millisecond
	o.Redis.ConnWriteTimeout = 200 * time.Millisecond
	r := &realRun{t: t, s: s, m: newModel(holdfast.ConflictDelete), began: time.Now(), random: rand.New(rand.NewPCG(1, 2))}
	o.Hooks.OnDrop = func(d holdfast.Drop) {
		r.log("%s: dropped, %v", d.Key, d.Reason)
		r.m.dropped(d)
	}
	o.Hooks.OnStateChange = func(c holdfast.StateChange) { r.log("%v: %v", c.To, c.Err) }
	r.c = open(t, o)
	ready(t, r.c)
	var callers sync.WaitGroup
	ctx, stop := context.WithCancel(ctx)
	defer callers.Wait()
	defer stop()
	for i := range 4 {
		keys := []string{fmt.Sprint("k", i, "a"), fmt.Sprint("k", i, "b"), fmt.Sprint("k", i, "c")}
		r.keys = append(r.keys, keys...)
		callers.Go(func() { r.call(ctx, uint64(i), keys) })
	}
	callers.Go(func() { r.interfere(ctx) })
	for range 2 * roundsFactor(t) {
		for range 5 {
			r.fault()
		}
		r.settle()
		if r.failed() {
			return
		}
	}
}

// realRun is a model test on a real server.
type realRun struct {
	t      *testing.T
	s      *redistest.Server
	c      *holdfast.Cache
	m      *model
	keys   []string
	began  time.Time
	random *rand.Rand // of the faults

	// calls is held by calls for reading, and for writing where nobody may call. others
	// is the same for what others do: what became of that must be known.
	calls, others sync.RWMutex
	// away: others cannot write. Guarded by others.
	away bool

	mu    sync.Mutex
	trace []string
	wrong bool
}

func (r *realRun) log(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.trace = append(r.trace, fmt.Sprintf("%9.4f  ", time.Since(r.began).Seconds())+fmt.Sprintf(format, args...))
}

// fail reports what was wrong first, with what happened to its key and around it.
func (r *realRun) fail(err error) {
	if err == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.wrong {
		return
	}
	r.wrong = true
	var about []string
	for _, line := range r.trace {
		key, _, others := strings.Cut(line[11:], ":")
		if !others || !slices.Contains(r.keys, key) || strings.Contains(err.Error(), key+" ") {
			about = append(about, line)
		}
	}
	r.t.Errorf("%v\n%s", err, strings.Join(about[max(0, len(about)-150):], "\n"))
}

func (r *realRun) failed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.wrong
}

// pass lets time go by.
func pass(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// call is a caller's life: one of the program's, on keys of its own.
func (r *realRun) call(ctx context.Context, id uint64, keys []string) {
	g := modelGenerator{random: rand.New(rand.NewPCG(id, 3)), keys: keys, values: map[string][]string{}, whose: fmt.Sprint("ours", id, "-")}
	caller := &modelCaller{
		c: r.c, m: r.m, fail: r.fail, log: r.log, whole: true,
		told: func() {}, sent: func(string, string) bool { return true },
	}
	kinds := []modelKind{
		opSet, opSet, opSet, opSet, opDelete, opDelete, opGet, opGet, opGet, opGet, opGetMany, opSetMany, opAdd, opTouch,
	}
	for ctx.Err() == nil && !r.failed() {
		op := g.op(kinds[g.random.IntN(len(kinds))])
		r.calls.RLock()
		caller.do(op)
		r.calls.RUnlock()
		pass(ctx, time.Duration(g.random.IntN(4000))*time.Microsecond)
	}
}

// interfere is somebody else, who writes whenever there is a server to write to.
func (r *realRun) interfere(ctx context.Context) {
	g := modelGenerator{random: rand.New(rand.NewPCG(4, 5)), keys: r.keys, values: map[string][]string{}, whose: "theirs"}
	for ctx.Err() == nil && !r.failed() {
		op := g.op(opOther)
		key := op.keys[0]
		r.others.RLock()
		if !r.away {
			r.m.other(key, op.value, op.ttl, func() {
				r.log("%s: other %.10q", key, op.value)
				cmd := []string{"DEL", key}
				if op.value != "" {
					cmd = []string{"SET", key, op.value}
					if op.ttl > 0 {
						cmd = append(cmd, "PX", fmt.Sprint(op.ttl.Milliseconds()))
					}
				}
				if _, err := r.s.Do(cmd...); err != nil {
					r.fail(fmt.Errorf("%s written by others: %w", key, err))
				}
			})
		}
		r.others.RUnlock()
		pass(ctx, time.Duration(g.random.IntN(40))*time.Millisecond)
	}
}

// leave makes the server one to which others cannot write, or can again; do is what
// does it. Our own calls go on.
func (r *realRun) leave(away bool, what string, do func()) {
	r.others.Lock()
	defer r.others.Unlock()
	r.log("%s", what)
	r.away = away
	do()
}

// quiet ends all calls, ours and others', or lets them go on.
func (r *realRun) quiet(yes bool) {
	if yes {
		r.calls.Lock()
		r.others.Lock()
		return
	}
	r.others.Unlock()
	r.calls.Unlock()
}

// fault is one thing that goes wrong, and is right again at its end.
func (r *realRun) fault() {
	ctx := context.Background()
	short := time.Duration(20+r.random.IntN(150)) * time.Millisecond
	long := time.Duration(300+r.random.IntN(600)) * time.Millisecond
	switch r.random.IntN(7) {
	case 0, 1:
		for range 1 + r.random.IntN(3) {
			r.leave(false, "connections cut", func() { r.s.MustDo("CLIENT", "KILL", "TYPE", "normal") })
			pass(ctx, short)
		}
	case 2, 3:
		r.leave(true, "stopped", r.s.Pause)
		pass(ctx, []time.Duration{short, long}[r.random.IntN(2)])
		r.leave(false, "goes on", r.s.Resume)
	case 4:
		r.leave(true, "replica", func() { r.s.MustDo("REPLICAOF", "127.0.0.1", "1") })
		pass(ctx, long)
		r.leave(false, "master", func() { r.s.MustDo("REPLICAOF", "NO", "ONE") })
	case 5:
		r.leave(false, "saved", func() { r.s.MustDo("SAVE") })
		pass(ctx, short)
		r.restart(long, r.s.Restart)
	case 6:
		r.restart(short, func(...string) { r.s.RestartEmpty() })
	}
	pass(ctx, short)
}

// restart kills the server and starts it again, with what it has saved or nothing.
func (r *realRun) restart(after time.Duration, again func(...string)) {
	r.leave(true, "killed", r.s.Kill)
	pass(context.Background(), after)
	r.quiet(true)
	defer r.quiet(false)
	redistest.WaitFor(r.t, patience, "the loss to be noticed", func() bool {
		return r.c.Health().State == holdfast.Down && r.c.Replaying() == 0
	})
	queued := map[string]bool{}
	for _, key := range r.keys {
		_, queued[key] = r.c.Journaled(key)
	}
	r.log("started again")
	again()
	r.away = false
	for _, key := range r.keys {
		// What is queued may have been replayed by now; that is no dispute.
		value := r.held(key)
		r.log("%s: holds %.10q, queued %t", key, value, queued[key])
		r.m.lost(key, value, queued[key])
	}
}

func (r *realRun) held(key string) string {
	value := r.s.MustDo("GET", key)
	if value == "(nil)" {
		return ""
	}
	return value
}

// settle lets everything come to rest, while nobody calls, and judges it.
func (r *realRun) settle() {
	r.quiet(true)
	defer r.quiet(false)
	if r.failed() {
		return
	}
	ctx := context.Background()
	drain(r.t, r.c)
	r.log("drained")
	for _, key := range r.keys {
		if fenced, _ := r.c.Journaled(key); !fenced {
			r.fail(r.m.holds(key, r.held(key)))
		}
	}
	redistest.WaitFor(r.t, patience, "the second checks", func() bool {
		_, err := r.c.Get(ctx, r.keys[0]) // an unused client rests
		h := r.c.Health()
		return (err == nil || errors.Is(err, holdfast.ErrMiss)) && h.State == holdfast.Up && h.JournalKeys == 0
	})
	r.log("checked")
	for _, key := range r.keys {
		var held, got string
		redistest.WaitFor(r.t, patience, "the cache to agree with redis", func() bool {
			read := r.m.reading(key)
			value, err := r.c.Get(ctx, key)
			r.fail(r.m.answered(read, string(value), err == nil))
			held, got = r.held(key), string(value)
			return got == held
		})
		r.log("%s: at rest %.10q", key, held)
		r.fail(r.m.holds(key, held))
		r.m.rest(key, held, r.s.MustDo("PTTL", key) == "-1")
	}
	redistest.WaitFor(r.t, patience, "the journal and the overlay to be empty", func() bool { return r.c.Leftover() == nil })
}
