package holdfast_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-cache/holdfast"
)

// Random programs of loads, writes, other writers and outages on few keys, in virtual
// time. HOLDFAST_SEED runs one of them alone.
func TestNoLoadBringsBackWhatWasReplacedInRandomPrograms(t *testing.T) {
	begin(t)
	seeds := make([]uint64, 0, 1000)
	if text := os.Getenv("HOLDFAST_SEED"); text != "" {
		seed, err := strconv.ParseUint(text, 10, 64)
		must(t, err)
		for range 20 {
			seeds = append(seeds, seed)
		}
	} else {
		for seed := range uint64(150 * roundsFactor(t)) {
			seeds = append(seeds, seed)
		}
	}
	for _, seed := range seeds {
		synctest.Test(t, func(t *testing.T) { newLoadProgram(t, seed).run() })
	}
}

// loadProgram is a source of truth whose rows have versions, a Cache before it, and
// those who use them. What a loader brings is the version of its beginning: the oldest
// that it may be.
type loadProgram struct {
	t    *testing.T
	seed uint64
	c    *holdfast.Cache
	v    *virtual

	// Redis hangs now and then. Then nobody else writes: a delete of ours that runs late
	// may take away what they wrote, and what is missing is not what is overwritten.
	hangs bool

	keys [3]loadedKey

	began time.Time
	mu    sync.Mutex
	trace []string
}

type loadedKey struct {
	name  string
	write chan struct{} // held by who writes it

	mu      sync.Mutex
	version int           // the source's
	floor   int           // what who asks now may expect at least
	inRedis int           // the newest that Redis was seen to have
	busy    bool          // a write of ours is under way
	writes  int           // that have ended
	loads   map[*int]bool // under way, which no write has come over: there may be one
}

func newLoadProgram(t *testing.T, seed uint64) *loadProgram {
	p := &loadProgram{t: t, seed: seed, hangs: seed%2 == 0, v: newVirtual(t), began: time.Now()}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("HOLDFAST_SEED=%d\n%s", seed, strings.Join(p.trace, "\n"))
		}
	})
	r := rand.New(rand.NewPCG(seed, 5))
	o := p.v.options()
	o.Local.MaxBytes = 1 << 20
	o.Load = holdfast.LoadOptions{
		Lease:        []time.Duration{-1, 3 * time.Second, 20 * time.Millisecond}[r.IntN(3)],
		EarlyRefresh: []float64{0, 0.001, 0.5}[r.IntN(3)],
		StaleIfError: []time.Duration{0, time.Minute}[r.IntN(2)],
		NotFoundTTL:  -1,
	}
	if r.IntN(4) == 0 {
		o.Load.MaxConcurrent = 1 + r.IntN(2)
	}
	p.c = open(t, o)
	for i := range p.keys {
		k := &p.keys[i]
		k.name, k.write, k.loads = fmt.Sprint("k", i), make(chan struct{}, 1), map[*int]bool{}
	}
	return p
}

func (p *loadProgram) log(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.trace = append(p.trace, fmt.Sprintf("%8.3f  ", time.Since(p.began).Seconds())+fmt.Sprintf(format, args...))
}

func (p *loadProgram) run() {
	// What is written in the first moments is sent as an ordinary command, and may come
	// over what somebody else writes meanwhile.
	ready(p.t, p.c)
	var users, faults sync.WaitGroup
	stop := make(chan struct{})
	for user := range 5 {
		r := rand.New(rand.NewPCG(p.seed, 6+uint64(user)))
		users.Go(func() {
			for range 40 {
				p.step(r, &p.keys[r.IntN(len(p.keys))])
				if p.t.Failed() {
					return
				}
			}
		})
	}
	faults.Go(func() { p.disturb(rand.New(rand.NewPCG(p.seed, 99)), stop) })
	users.Wait()
	close(stop)
	faults.Wait()

	// Redis is back. What is there, and what is served, is nothing old.
	time.Sleep(10 * time.Second)
	drain(p.t, p.c)
	for i := range p.keys {
		p.look(&p.keys[i])
		p.get(&p.keys[i])
	}
	time.Sleep(2 * time.Minute) // longer than any load
	if n := holdfast.FlightsOf(p.c); n != 0 {
		p.t.Errorf("%d keys are left in the flight table", n)
	}
}

// disturb brings outages, until stop.
func (p *loadProgram) disturb(r *rand.Rand, stop <-chan struct{}) {
	defer p.v.set(false, false, false)
	for {
		select {
		case <-stop:
			return
		case <-time.After(time.Duration(r.IntN(400)) * time.Millisecond):
		}
		what := r.IntN(5)
		p.log("fault %d", what)
		switch what {
		case 0:
			p.v.set(true, false, true) // killed
		case 1:
			p.v.set(false, false, true) // a broken connection
		case 2:
			if !p.hangs {
				continue
			}
			p.v.freeze()
			time.Sleep(time.Duration(r.IntN(300)) * time.Millisecond)
			p.v.unfreeze()
		default:
			p.v.set(false, false, false)
		}
	}
}

func (p *loadProgram) step(r *rand.Rand, k *loadedKey) {
	switch n := r.IntN(20); {
	case n < 9:
		p.load(r, k)
	case n < 11:
		p.get(k)
	case n < 13:
		p.write(k, func(version int) error {
			return p.c.Set(context.Background(), k.name, fmt.Append(nil, version), time.Hour)
		})
	case n < 16:
		p.write(k, func(int) error { return p.c.Delete(context.Background(), k.name) })
	case n < 17:
		if !p.hangs {
			p.foreign(k)
		}
	default:
		time.Sleep(time.Duration(r.IntN(200)) * time.Millisecond)
	}
	p.look(k)
}

// write changes the row, and then what the Cache has of it.
func (p *loadProgram) write(k *loadedKey, write func(version int) error) {
	k.write <- struct{}{}
	defer func() { <-k.write }()
	k.mu.Lock()
	k.version++
	version := k.version
	k.busy = true
	k.mu.Unlock()
	p.log("%s: version %d is written", k.name, version)
	err := write(version)
	p.log("%s: it was: %v", k.name, err)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.busy = false
	k.writes++
	clear(k.loads)
	if err != nil {
		p.t.Errorf("write of %s: %v", k.name, err)
	}
	k.floor = version
}

// foreign is somebody else's write. That it is seen is another test's; here it must not
// be overwritten by what is older.
func (p *loadProgram) foreign(k *loadedKey) {
	k.write <- struct{}{}
	defer func() { <-k.write }()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.version++
	p.v.redis.Set(k.name, fmt.Sprint(k.version))
	k.inRedis = k.version
	p.log("%s: somebody wrote version %d", k.name, k.version)
}

// look at what Redis has.
func (p *loadProgram) look(k *loadedKey) {
	k.mu.Lock()
	defer k.mu.Unlock()
	text, err := p.v.redis.Get(k.name)
	if err != nil {
		return
	}
	version, err := strconv.Atoi(text)
	must(p.t, err)
	if version != k.inRedis {
		p.log("%s: redis has version %d", k.name, version)
	}
	if version < k.inRedis {
		p.t.Errorf("%s: redis went from version %d back to %d", k.name, k.inRedis, version)
	}
	k.inRedis = version
}

func (p *loadProgram) get(k *loadedKey) {
	p.check(k, func() ([]byte, error) { return p.c.Get(context.Background(), k.name) })
}

func (p *loadProgram) load(r *rand.Rand, k *loadedKey) {
	ctx := context.Background()
	var takes time.Duration
	if r.IntN(3) > 0 {
		takes = time.Duration(r.IntN(150)) * time.Millisecond
	}
	fails := r.IntN(10) == 0
	k.mu.Lock()
	writes := k.writes
	k.mu.Unlock()
	source := func() ([]byte, error) {
		k.mu.Lock()
		mine := new(int)
		*mine = k.version
		if len(k.loads) > 0 && !k.busy && k.writes == writes {
			p.t.Errorf("%s: %d loads at a time, and no write came over them", k.name, len(k.loads)+1)
		}
		if !k.busy && k.writes == writes { // else the write's end came over it, or does
			k.loads[mine] = true
		}
		k.mu.Unlock()
		p.log("%s: a load of version %d begins", k.name, *mine)
		time.Sleep(takes)
		p.log("%s: and ends", k.name)
		k.mu.Lock()
		delete(k.loads, mine)
		k.mu.Unlock()
		if fails {
			return nil, errLoadFailed
		}
		return fmt.Append(nil, *mine), nil
	}
	p.check(k, func() ([]byte, error) {
		if r.IntN(4) == 0 {
			m, err := p.c.GetOrLoadMany(ctx, []string{k.name}, time.Hour, func(context.Context, []string) (map[string][]byte, error) {
				v, err := source()
				if err != nil {
					return nil, err
				}
				return map[string][]byte{k.name: v}, nil
			})
			if err == nil && m[k.name] == nil {
				p.t.Errorf("a batch without %s", k.name)
			}
			return m[k.name], err
		}
		return p.c.GetOrLoad(ctx, k.name, time.Hour, func(context.Context) ([]byte, error) { return source() })
	})
}

var errLoadFailed = errors.New("the source is away")

// check asserts that a read brings nothing older than what was written before it began.
func (p *loadProgram) check(k *loadedKey, read func() ([]byte, error)) {
	k.mu.Lock()
	floor := k.floor
	k.mu.Unlock()
	got, err := read()
	p.log("%s: read %q, %v", k.name, got, err)
	switch {
	case errors.Is(err, holdfast.ErrMiss), errors.Is(err, errLoadFailed):
		return
	case err != nil:
		p.t.Errorf("%s: %v", k.name, err)
		return
	}
	if version, err := strconv.Atoi(string(got)); err != nil || version < floor {
		p.t.Errorf("%s: %q was served after version %d was written, %v", k.name, got, floor, err)
	}
}
