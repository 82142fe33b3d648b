package holdfast_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/rueidis"
)

// Two caches, a client that knows neither, and a redis-server that loses nothing meet
// one fault after the other, at random. The checker sees what any user sees: the
// public API, and what the server holds.
//
// Kinds of keys, and what has to hold for each:
//
//   - own: one goroutine of one cache writes the key, nobody else. What that cache
//     reads is the last accepted write or a miss. In the end the server holds the last
//     accepted write, and no drop but one that a fault explains was told.
//   - foreign: the other client alone writes the key, with rising numbers. What a cache
//     reads never goes back, and is the server's in the end.
//   - shared: everybody writes the key. In the end both caches read what the server
//     holds, which somebody has written.
//   - loaded: GetOrLoad returns a value, whatever happens.
//   - counted: INCR through Client(). The server counts each one that was
//     acknowledged, and no more than were tried.
//
// HOLDFAST_CHAOS is how long it lasts, HOLDFAST_SEED which faults come, and
// HOLDFAST_FAULTS, a regular expression, from which they are taken.
func TestFaultsInARowLoseNothingAndServeNothingOld(t *testing.T) {
	redistest.Long(t)
	ctx := begin(t)
	length, seed := chaosLength(t), chaosSeed(t)
	t.Logf("HOLDFAST_CHAOS=%v HOLDFAST_SEED=%d", length, seed)

	// A key in the AOF is safe from SIGKILL once write(2) has returned.
	s := redistest.Start(t, durable...)
	s.MustDo("ACL", "SETUSER", "app", "on", ">secret", "allkeys", "allchannels", "allcommands")
	words := redistest.NewInjector(t, s.Addr())
	p := redistest.NewProxy(t, words.Addr())
	x := &chaos{t: t, ctx: ctx, server: s, proxy: p, words: words}
	x.story.Store(new(string))
	for i := range x.caches {
		x.caches[i] = x.open(p.Addr())
	}
	for _, c := range x.caches {
		ready(t, c.Cache)
	}

	stop := x.load(seed)
	defer stop()
	x.faults(rand.New(rand.NewPCG(seed, 1)), length)
	stop()
	x.settle()
	x.judge()
}

func chaosLength(t *testing.T) time.Duration {
	text := os.Getenv("HOLDFAST_CHAOS")
	if text == "" {
		return 3 * time.Minute
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		t.Fatalf("HOLDFAST_CHAOS is %q: it must be a positive duration", text)
	}
	return d
}

func chaosSeed(t *testing.T) uint64 {
	text := os.Getenv("HOLDFAST_SEED")
	if text == "" {
		return rand.Uint64()
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("HOLDFAST_SEED is %q: it must be a number", text)
	}
	return n
}

const (
	chaosOwners  = 4  // goroutines with keys of their own, a cache
	chaosOwned   = 40 // keys each
	chaosForeign = 20
	chaosShared  = 20
	chaosLoaded  = 20
)

// chaos is one run.
type chaos struct {
	t      *testing.T
	ctx    context.Context
	server *redistest.Server
	proxy  *redistest.Proxy
	words  *redistest.Injector // behind the proxy: answers in words of its own
	caches [2]*chaosCache

	noScripts atomic.Bool            // permission for scripts was taken away at some time
	story     atomic.Pointer[string] // the last faults

	counted, tried atomic.Int64
	owned          sync.Map // key -> what the server must hold in the end, nothing for no value
	foreign        [chaosForeign]atomic.Int64
	calls, slow    atomic.Int64
	violations     atomic.Int64
}

// chaosCache is a cache, and what its hooks told.
type chaosCache struct {
	*holdfast.Cache
	drops sync.Map // key -> chaosDrop
}

// chaosDrop is what a hook told, and in which fault.
type chaosDrop struct {
	reason holdfast.DropReason
	fault  string
}

func (x *chaos) open(addr string) *chaosCache {
	o := at(addr)
	o.Redis.Username, o.Redis.Password = "app", "secret"
	c := &chaosCache{}
	o.Hooks.OnDrop = func(d holdfast.Drop) { c.drops.Store(d.Key, chaosDrop{d.Reason, *x.story.Load()}) }
	c.Cache = open(x.t, o)
	return c
}

// violated fails the test. It prints the first few violations only.
func (x *chaos) violated(format string, args ...any) {
	if n := x.violations.Add(1); n <= 20 {
		x.t.Errorf(format, args...)
	} else {
		x.t.Fail()
	}
}

// call measures a call that may not outlive its budget.
func (x *chaos) call(f func()) {
	start := time.Now()
	f()
	x.calls.Add(1)
	if time.Since(start) > 50*time.Millisecond+slack() {
		x.slow.Add(1)
	}
}

// load starts everybody who calls, and returns what stops them.
func (x *chaos) load(seed uint64) (stop func()) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	each := func(pause time.Duration, name uint64, step func(rnd *rand.Rand, i int)) {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(seed, name))
			tick := time.NewTicker(pause)
			defer tick.Stop()
			for i := 0; ; i++ {
				select {
				case <-done:
					return
				case <-tick.C:
					step(rnd, i)
				}
			}
		})
	}
	for n, c := range x.caches {
		for owner := range chaosOwners {
			o := &chaosOwner{x: x, cache: c, name: fmt.Sprintf("own:%d:%d", n, owner), last: map[string]string{}}
			each(2*time.Millisecond, uint64(100*n+owner), o.step)
		}
		reader := &chaosReader{x: x, cache: c, seen: map[string]int64{}}
		each(2*time.Millisecond, uint64(100*n+50), reader.step)
		each(5*time.Millisecond, uint64(100*n+51), func(rnd *rand.Rand, i int) { x.share(c, n, rnd, i) })
		each(5*time.Millisecond, uint64(100*n+52), func(rnd *rand.Rand, i int) { x.loadOne(c, rnd) })
		each(10*time.Millisecond, uint64(100*n+53), func(*rand.Rand, int) { x.count(c) })
	}
	each(5*time.Millisecond, 1000, x.writeForeign)
	return sync.OnceFunc(func() {
		close(done)
		wg.Wait()
	})
}

// chaosOwner is the only writer of its keys.
type chaosOwner struct {
	x     *chaos
	cache *chaosCache
	name  string
	last  map[string]string // nothing after a delete; no entry where that is not known
}

func (o *chaosOwner) step(rnd *rand.Rand, i int) {
	x, key := o.x, fmt.Sprintf("%s:%d", o.name, rnd.IntN(chaosOwned))
	switch dice := rnd.IntN(10); {
	case dice < 5:
		o.read(key)
	case dice < 6:
		x.call(func() { o.wrote(key, nothing, o.cache.Delete(x.ctx, key)) })
	case dice < 7:
		many := map[string][]byte{}
		for range 5 {
			k := fmt.Sprintf("%s:%d", o.name, rnd.IntN(chaosOwned))
			many[k] = fmt.Appendf(nil, "%s#%d", k, i)
		}
		x.call(func() {
			err := o.cache.SetMany(x.ctx, many, 0)
			for k, v := range many {
				o.wrote(k, string(v), err) // of a batch that was refused in part nothing is known
			}
		})
	default:
		value := fmt.Sprintf("%s#%d", key, i)
		x.call(func() { o.wrote(key, value, o.cache.Set(x.ctx, key, []byte(value), 0)) })
		o.read(key)
	}
}

func (o *chaosOwner) wrote(key, value string, err error) {
	switch {
	case err == nil:
		o.last[key] = value
		o.x.owned.Store(key, value)
	case chaosRefused(err):
		delete(o.last, key)
		o.x.owned.Delete(key)
	default:
		o.x.violated("writing %s: %v", key, err)
	}
}

// chaosRefused says whether a call may fail so: Redis refuses this key or command.
func chaosRefused(err error) bool {
	return strings.Contains(err.Error(), "NOPERM")
}

func (o *chaosOwner) read(key string) {
	want, known := o.last[key]
	o.x.call(func() {
		v, err := o.cache.Get(o.x.ctx, key)
		switch {
		case errors.Is(err, holdfast.ErrMiss), err != nil && chaosRefused(err):
		case err != nil:
			o.x.violated("reading %s: %v", key, err)
		case known && string(v) != want:
			o.x.violated("%s was read as %q, last written %q", key, v, want)
		}
	})
}

// chaosReader reads what the foreign client writes.
type chaosReader struct {
	x     *chaos
	cache *chaosCache
	seen  map[string]int64
}

func (r *chaosReader) step(rnd *rand.Rand, _ int) {
	key := fmt.Sprintf("foreign:%d", rnd.IntN(chaosForeign))
	r.x.call(func() {
		v, err := r.cache.Get(r.x.ctx, key)
		switch {
		case errors.Is(err, holdfast.ErrMiss), err != nil && chaosRefused(err):
		case err != nil:
			r.x.violated("reading %s: %v", key, err)
		default:
			n, err := strconv.ParseInt(string(v), 10, 64)
			if err != nil || n < r.seen[key] {
				r.x.violated("%s was read as %q, after %d", key, v, r.seen[key])
			}
			r.seen[key] = n
		}
	})
}

// writeForeign is the client that knows no cache. It goes past the proxy.
func (x *chaos) writeForeign(rnd *rand.Rand, i int) {
	n := rnd.IntN(chaosForeign)
	next := x.foreign[n].Load() + 1
	x.server.Do("SET", fmt.Sprintf("foreign:%d", n), strconv.FormatInt(next, 10))
	x.foreign[n].Store(next) // where it failed it may have happened
	if i%3 == 0 {
		x.server.Do("SET", fmt.Sprintf("shared:%d", rnd.IntN(chaosShared)), fmt.Sprintf("foreign#%d", i))
	}
}

func (x *chaos) share(c *chaosCache, n int, rnd *rand.Rand, i int) {
	key := fmt.Sprintf("shared:%d", rnd.IntN(chaosShared))
	x.call(func() {
		var err error
		if rnd.IntN(3) == 0 {
			err = c.Set(x.ctx, key, fmt.Appendf(nil, "cache %d#%d", n, i), 0)
		} else if _, err = c.Get(x.ctx, key); errors.Is(err, holdfast.ErrMiss) {
			err = nil
		}
		if err != nil && !chaosRefused(err) {
			x.violated("%s: %v", key, err)
		}
	})
}

func (x *chaos) loadOne(c *chaosCache, rnd *rand.Rand) {
	key := fmt.Sprintf("loaded:%d", rnd.IntN(chaosLoaded))
	if rnd.IntN(20) == 0 {
		if err := c.Delete(x.ctx, key); err != nil && !chaosRefused(err) {
			x.violated("deleting %s: %v", key, err)
		}
	}
	v, err := c.GetOrLoad(x.ctx, key, time.Minute, func(context.Context) ([]byte, error) { return []byte(key), nil })
	if err != nil || string(v) != key {
		x.violated("loading %s: %q, %v", key, v, err)
	}
}

func (x *chaos) count(c *chaosCache) {
	client := c.Client()
	x.tried.Add(1)
	if client.Do(x.ctx, client.B().Incr().Key("counted").Build()).Error() == nil {
		x.counted.Add(1)
	}
}

// fault is one thing that goes wrong, and how it is put right.
type fault struct {
	name       string
	begin, end func(x *chaos)
}

func (x *chaos) acl(rules ...string) {
	x.server.MustDo(append([]string{"ACL", "SETUSER", "app"}, rules...)...)
}

func mode(name string, m redistest.Mode) fault {
	return fault{name, func(x *chaos) { x.proxy.SetMode(m) }, func(x *chaos) { x.proxy.SetMode(redistest.Pass) }}
}

func rights(taken, given string) fault {
	return fault{"acl " + taken,
		func(x *chaos) { x.acl(strings.Fields(taken)...) },
		func(x *chaos) { x.acl(strings.Fields(given)...) }}
}

// wordsOf is a way that answers commands in its own words: all of them, those that have one
// of the names, or one in so many.
func wordsOf(text string, oneIn int, names ...string) fault {
	what := fmt.Sprintf("says %q to %v, one in %d", text, names, oneIn)
	return fault{what, func(x *chaos) {
		var n atomic.Int64
		x.words.Answer(func(cmd []string) string {
			if len(names) > 0 && !slices.Contains(names, strings.ToUpper(cmd[0])) || n.Add(1)%int64(oneIn) != 0 {
				return ""
			}
			return text
		})
	}, func(x *chaos) { x.words.Answer(nil) }}
}

func setting(name, bad, good string) fault {
	return fault{name + " " + bad,
		func(x *chaos) { x.server.MustDo("CONFIG", "SET", name, bad) },
		func(x *chaos) { x.server.MustDo("CONFIG", "SET", name, good) }}
}

var chaosFaults = []fault{
	{"killed", func(x *chaos) { x.server.Kill() }, func(x *chaos) {
		x.server.Restart()
		x.acl("on", ">secret", "allkeys", "allchannels", "allcommands")
	}},
	{"stopped", func(x *chaos) { x.server.Pause() }, func(x *chaos) { x.server.Resume() }},
	mode("cut", redistest.Cut),
	mode("hung", redistest.Hang),
	mode("refused", redistest.Refuse),
	{"slow", func(x *chaos) { x.proxy.SetLatency(60 * time.Millisecond) }, func(x *chaos) { x.proxy.SetLatency(0) }},
	{"connections killed", func(x *chaos) {
		for range 5 {
			x.server.MustDo("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
		}
	}, func(*chaos) {}},
	{"replica", func(x *chaos) { x.server.MustDo("REPLICAOF", "127.0.0.1", "1") }, func(x *chaos) { x.server.MustDo("REPLICAOF", "NO", "ONE") }},
	setting("min-replicas-to-write", "1", "0"),
	rights("-set -del -evalsha", "+@all"),
	rights("-get -pttl", "+@all"),
	rights("-pttl -exists", "+@all"),
	rights("resetkeys ~holdfast:* ~shared:*", "allkeys"),
	rights("off", "on"),
	rights("-client", "+@all"),
	{"acl -@scripting", func(x *chaos) {
		x.noScripts.Store(true)
		x.acl("-@scripting")
	}, func(x *chaos) { x.acl("+@all") }},
	{"another database flushed", func(x *chaos) {
		x.server.MustDo("SWAPDB", "7", "8")
		x.server.Do("EVAL", "redis.call('SELECT', 9) redis.call('SET', 'x', 'y') redis.call('FLUSHDB')", "0")
	}, func(*chaos) {}},
	wordsOf("no upstream host", 1),
	wordsOf("ERR Connection refused", 1),
	wordsOf("ERR max requests limit exceeded", 3),
	wordsOf("ERR backend is in maintenance", 1, "SET", "DEL", "EVALSHA"),
	wordsOf("ERR backend is in maintenance", 1, "GET", "PTTL"),
	wordsOf("NOPERM not now", 1, "EVALSHA", "DEL"),
	wordsOf("OOM command not allowed when used memory > 'maxmemory'.", 2, "SET", "EVALSHA"),
	wordsOf("LOADING Redis is loading the dataset in memory", 1),
	wordsOf("BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.", 1),
	{"scripts forgotten", func(x *chaos) { x.server.MustDo("SCRIPT", "FLUSH") }, func(*chaos) {}},
	{"tracking table of one key", func(x *chaos) { x.server.MustDo("CONFIG", "SET", "tracking-table-max-keys", "1") },
		func(x *chaos) { x.server.MustDo("CONFIG", "SET", "tracking-table-max-keys", "1000000") }},
}

// faults has one fault after the other, in three of four cases alone.
func (x *chaos) faults(rnd *rand.Rand, length time.Duration) {
	pause := func(most time.Duration) {
		timer := time.NewTimer(time.Duration(rnd.Int64N(int64(most))))
		<-timer.C
	}
	wanted := regexp.MustCompile(os.Getenv("HOLDFAST_FAULTS"))
	faults := slices.DeleteFunc(slices.Clone(chaosFaults), func(f fault) bool { return !wanted.MatchString(f.name) })
	n, until := map[string]int{}, time.Now().Add(length)
	for time.Now().Before(until) && x.violations.Load() == 0 {
		f := faults[rnd.IntN(len(faults))]
		n[f.name]++
		during, after := "during "+f.name, "after "+f.name
		x.story.Store(&during)
		f.begin(x)
		pause(2 * time.Second)
		f.end(x)
		x.story.Store(&after)
		// Nobody puts anything right but the caches.
		for i, c := range x.caches {
			redistest.WaitFor(x.t, patience, fmt.Sprintf("cache %d to be up after %q", i, f.name), func() bool {
				h := c.Health()
				return h.State == holdfast.Up && h.Writable
			})
		}
		pause(500 * time.Millisecond)
	}
	total := 0
	for _, k := range n {
		total += k
	}
	x.t.Logf("%d faults: %v", total, n)
}

// settle waits until nothing is under way any more.
func (x *chaos) settle() {
	for _, c := range x.caches {
		drain(x.t, c.Cache)
		redistest.WaitFor(x.t, patience, "the last second checks", func() bool { return c.Health().JournalKeys == 0 })
	}
}

// judge compares what the server and the caches hold with what they must hold.
func (x *chaos) judge() {
	x.owned.Range(func(k, v any) bool {
		key, want := k.(string), v.(string)
		got := x.server.MustDo("GET", key)
		if got == "(nil)" {
			got = nothing
		}
		if got != want && !(got == nothing && x.explained(key)) {
			x.violated("the server holds %q for %s, last written %q", got, key, want)
		}
		return true
	})
	for n := range chaosForeign {
		x.agree(fmt.Sprintf("foreign:%d", n))
	}
	for n := range chaosShared {
		x.agree(fmt.Sprintf("shared:%d", n))
	}
	if got, _ := strconv.ParseInt(x.server.MustDo("GET", "counted"), 10, 64); got < x.counted.Load() || got > x.tried.Load() {
		x.violated("counted %d, acknowledged %d, tried %d", got, x.counted.Load(), x.tried.Load())
	}
	calls, slow := x.calls.Load(), x.slow.Load()
	x.t.Logf("%d calls, %d over their budget by %v, counter %d of %d", calls, slow, slack(), x.counted.Load(), x.tried.Load())
	if slow > calls/100 {
		x.violated("%d of %d calls took longer than the budget and %v", slow, calls, slack())
	}
	for i, c := range x.caches {
		x.t.Logf("cache %d: %+v", i, c.Stats())
		c.drops.Range(func(key, v any) bool {
			d := v.(chaosDrop)
			if strings.HasPrefix(key.(string), "own:") && !(d.reason == holdfast.DropDowngraded && x.noScripts.Load()) {
				x.violated("cache %d dropped %v: %v %s, and nobody else wrote it", i, key, d.reason, d.fault)
			}
			return true
		})
	}
}

// explained says that a set may have become a delete: there were no scripts.
func (x *chaos) explained(key string) bool {
	for _, c := range x.caches {
		if v, ok := c.drops.Load(key); ok && v.(chaosDrop).reason == holdfast.DropDowngraded && x.noScripts.Load() {
			return true
		}
	}
	return false
}

// agree checks that the caches read what the server holds.
func (x *chaos) agree(key string) {
	want := x.server.MustDo("GET", key)
	for i, c := range x.caches {
		redistest.WaitFor(x.t, patience, fmt.Sprintf("cache %d to agree on %s, %q", i, key, want), func() bool {
			v, err := c.Get(x.ctx, key)
			if errors.Is(err, holdfast.ErrMiss) {
				return want == "(nil)"
			}
			return err == nil && string(v) == want
		})
	}
}

var _ = rueidis.Nil
