package holdfast_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-cache/holdfast"
)

// Random programs of writes, reads, other writers and faults, in virtual time,
// against a model. HOLDFAST_SEED runs one of them alone.
func TestNothingWrittenIsLostAndNothingOldReturnsInRandomPrograms(t *testing.T) {
	begin(t)
	if text := os.Getenv("HOLDFAST_SEED"); text != "" {
		seed, err := strconv.ParseUint(text, 10, 64)
		must(t, err)
		for range 20 {
			tryProgram(t, seed)
		}
		return
	}
	for seed := range uint64(200 * roundsFactor(t)) {
		tryProgram(t, seed)
		if t.Failed() {
			return
		}
	}
}

// tryProgram runs one program and reports the shortest that fails like it.
func tryProgram(t *testing.T, seed uint64) {
	t.Helper()
	p := newProgram(seed)
	if err := runProgram(t, p); err != nil {
		short, again := shrink(p, func(q program) error { return runProgram(t, q) })
		if again == nil {
			again = err // no shorter one failed
		}
		t.Errorf("HOLDFAST_SEED=%d: %v\n%v", seed, again, short)
	}
}

func runProgram(t *testing.T, p program) (err error) {
	synctest.Test(t, func(t *testing.T) { err = newModelRun(t, p).run() })
	return err
}

// modelRun is a program that runs.
type modelRun struct {
	program
	modelCaller
	t      *testing.T
	s      *modelServer
	opts   holdfast.Options
	beside sync.WaitGroup

	keys  []string
	saved map[string]savedValue

	mu  sync.Mutex
	err error // the first thing that was wrong
}

type savedValue struct {
	value string
	ends  time.Time
}

func newModelRun(t *testing.T, p program) *modelRun {
	r := &modelRun{program: p, t: t, s: newModelServer(t, p.tracking), saved: map[string]savedValue{}}
	r.modelCaller = modelCaller{
		m: newModel(p.rule), log: r.s.log, fail: r.fail, told: synctest.Wait, sent: r.s.sentSet, whole: !p.keysOnly,
	}
	for i := range 6 {
		r.keys = append(r.keys, fmt.Sprint("k", i))
	}
	o := at("model:6379")
	o.Redis.DialCtxFn = r.s.dial
	o.Local.MaxBytes = 1 << 20
	o.Journal.OnConflict, o.Journal.KeysOnly = p.rule, p.keysOnly
	o.Journal.MaxKeys, o.Journal.MaxBytes = p.maxKeys, p.maxBytes
	o.Hooks.OnDrop = func(d holdfast.Drop) {
		r.s.log("  drop %s: %v", d.Key, d.Reason)
		r.m.dropped(d)
	}
	o.Hooks.OnStateChange = func(c holdfast.StateChange) { r.s.log("  %v: %v", c.To, c.Err) }
	if p.endsLate {
		// A replay is given as long; and longer than what clocks may differ by.
		o.Timeout, r.s.endsLate = 2*time.Second, 1900*time.Millisecond
	}
	if p.file {
		o.Journal.Dir = t.TempDir()
	}
	r.opts, r.c = o, open(t, o)
	return r
}

func (r *modelRun) fail(err error) {
	if err == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil {
		r.s.log("FAILED: %v", err)
		r.err = err
	}
}

func (r *modelRun) failed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err != nil
}

func (r *modelRun) run() error {
	for i, op := range r.ops {
		r.s.log("%d %v", i, op)
		r.do(op)
		if r.failed() {
			break
		}
	}
	if !r.failed() {
		r.settle()
	}
	r.s.change(func() { r.s.held, r.s.deaf = false, false })
	r.beside.Wait()
	if r.failed() {
		r.s.mu.Lock()
		defer r.s.mu.Unlock()
		return fmt.Errorf("%w\n%s", r.err, strings.Join(r.s.trace, "\n"))
	}
	return nil
}

func (r *modelRun) do(op modelOp) {
	switch op.kind {
	case opGetBeside:
		r.beside.Go(func() { r.get(op.keys[0]) })
	case opOther:
		r.other(op)
	case opOtherLater:
		r.beside.Go(func() {
			time.Sleep(op.wait)
			r.other(op)
		})
	case opWait:
		time.Sleep(op.wait)
	case opSettle:
		r.settle()
	default:
		if !r.modelCaller.do(op) {
			r.fault(op)
		}
	}
}

func (r *modelRun) fault(op modelOp) {
	random := rand.New(rand.NewPCG(op.seed, 1))
	switch op.kind {
	case opCut:
		r.s.cut(random)
	case opCutSoon:
		r.s.change(func() { r.s.cutAfter = int(op.wait) })
	case opRefuse:
		r.s.change(func() { r.s.away = true })
		if random.IntN(2) == 0 {
			r.s.cut(random)
		}
	case opHold:
		r.s.change(func() { r.s.held = true })
	case opHoldReplay:
		r.heal()
		r.s.change(func() { r.s.holdNext = true })
	case opDeafen:
		r.s.change(func() { r.s.deaf = true })
	case opSlow:
		r.s.change(func() { r.s.slow = time.Duration(random.IntN(30)) * time.Millisecond })
	case opReadOnly:
		r.s.change(func() { r.s.readonly = true })
	case opForbid:
		r.s.change(func() { r.s.forbidden[op.keys[0]] = true })
	case opHeal:
		r.heal()
	case opForgetScripts:
		r.s.change(r.s.forgetScriptsLocked)
	case opReopen:
		r.reopen()
	case opSave:
		r.save()
	case opReplaceEmpty, opReplaceOld, opReplaceSame:
		r.replace(op.kind)
	}
}

// reopen ends the Cache and makes another one, which finds the journal's file.
func (r *modelRun) reopen() {
	if !r.file {
		return
	}
	r.beside.Wait()
	r.fail(r.c.Close())
	r.m.forgot()
	r.c = open(r.t, r.opts)
}

func (r *modelRun) heal() {
	r.s.change(func() {
		r.s.away, r.s.held, r.s.holdNext, r.s.deaf, r.s.readonly = false, false, false, false, false
		r.s.slow, r.s.cutAfter = 0, 0
		clear(r.s.forbidden)
	})
}

// sent says whether a SET of it has reached the network.
func (s *modelServer) sentSet(key, value string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sent[key+" "+value]
}

// other writes past the Cache.
func (r *modelRun) other(op modelOp) {
	key := op.keys[0]
	r.m.other(key, op.value, op.ttl, func() {
		r.s.change(func() {
			r.s.logLocked("  other: %s = %.8q", key, op.value)
			if op.value == "" {
				if !r.s.redis.Del(key) {
					return
				}
			} else if err := r.s.redis.Set(key, op.value); err == nil && op.ttl > 0 {
				r.s.redis.SetTTL(key, op.ttl)
			}
			r.s.tellLocked(key)
		})
	})
}

// held is what Redis has, "" for nothing.
func (r *modelRun) held(key string) string {
	value, err := r.s.redis.Get(key)
	if err != nil {
		return ""
	}
	return value
}

func (r *modelRun) save() {
	r.s.change(func() {
		for _, key := range r.keys {
			v := savedValue{value: r.held(key)}
			if ttl := r.s.redis.TTL(key); ttl > 0 {
				v.ends = time.Now().Add(ttl)
			}
			r.saved[key] = v
		}
	})
}

// replace puts another server in the place of this one, with what it has, with what
// was saved, or with nothing.
func (r *modelRun) replace(kind modelKind) {
	r.s.replace(synctest.Wait, func() {
		r.s.forgetScriptsLocked()
		if kind == opReplaceSame {
			for _, key := range r.keys {
				r.m.moved(key)
			}
			return
		}
		r.s.redis.FlushAll()
		for _, key := range r.keys {
			v := r.saved[key]
			ttl := time.Until(v.ends)
			if kind == opReplaceEmpty || v.value == "" || !v.ends.IsZero() && ttl <= 0 {
				v.value = ""
			} else if err := r.s.redis.Set(key, v.value); err == nil && !v.ends.IsZero() {
				r.s.redis.SetTTL(key, ttl)
			}
			_, queued := r.c.Journaled(key)
			r.m.lost(key, v.value, queued)
		}
	})
}

// settle lets everything come to rest and judges what is there then.
func (r *modelRun) settle() {
	r.beside.Wait()
	r.heal()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := r.c.Drain(ctx); err != nil {
		r.fail(fmt.Errorf("drain: %w; health %+v", err, r.c.Health()))
		return
	}
	r.s.log("  drained")
	for _, key := range r.keys {
		if fenced, _ := r.c.Journaled(key); !fenced {
			r.fail(r.m.holds(key, r.held(key)))
		}
	}
	for wait := 0; r.c.Health().JournalKeys > 0 || r.c.Health().State != holdfast.Up; wait++ {
		if wait == 600 {
			r.fail(fmt.Errorf("a minute after the drain: health %+v", r.c.Health()))
			return
		}
		if wait%10 == 0 {
			r.get(r.keys[0]) // an unused client rests
		}
		time.Sleep(100 * time.Millisecond)
	}
	r.s.log("  checked")
	for _, key := range r.keys {
		r.fail(r.m.holds(key, r.held(key)))
	}
	if r.failed() {
		return
	}
	// Longer than anything late, and than an untracked copy, may live.
	time.Sleep(6 * time.Second)
	r.get(r.keys[0])
	time.Sleep(time.Second)
	for _, key := range slices.Concat(r.keys, r.keys) {
		r.get(key)
	}
	for _, key := range r.keys {
		held := r.held(key)
		r.fail(r.m.holds(key, held))
		if got, _ := r.c.Get(context.Background(), key); string(got) != held && !r.nearItsEnd(key) {
			r.fail(fmt.Errorf("at rest %s is %q, redis holds %q", key, got, held))
		}
		r.m.rest(key, held, r.s.redis.TTL(key) == 0)
	}
	time.Sleep(100 * time.Millisecond)
	r.fail(r.c.Leftover())
}

// nearItsEnd says that the key's time runs out in the next moment: Redis and a
// local copy need not agree to the millisecond.
func (r *modelRun) nearItsEnd(key string) bool {
	ttl := r.s.redis.TTL(key)
	return ttl > 0 && ttl < 100*time.Millisecond
}
