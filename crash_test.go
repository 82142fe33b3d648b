package holdfast_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

const crashWriters = 6

// kills is how often the process is killed: as often as told where Redis is required,
// and a few times otherwise.
func kills(t *testing.T, often int) int {
	if redistest.Full(t) {
		return often
	}
	return often / 20 * roundsFactor(t)
}

// A process is killed again and again: in an outage, while it drains, while Redis
// is up, and before it is done with what the last one left behind. It says what
// was acknowledged, and what it reads.
func TestAProcessThatIsKilledLosesNoDeleteAndNoSet(t *testing.T) {
	beside(t)
	for _, tt := range []struct {
		policy holdfast.FsyncPolicy
		kills  int
	}{{holdfast.FsyncAlways, 200}, {holdfast.FsyncNo, 40}} {
		t.Run(tt.policy.String(), func(t *testing.T) {
			begin(t)
			s, p := behind(t)
			r := newCrashRun(t, s, p, tt.policy)
			n := kills(t, tt.kills)
			midDrain := 0
			for kill := 1; kill <= n; kill++ {
				if r.live(kill) {
					midDrain++
				}
				if kill%5 == 0 || kill == n {
					r.verify(kill%20 == 0 || kill == n)
				}
			}
			t.Logf("%d kills, %d of them in the middle of a drain; %d writes acknowledged, %d keys inherited; of %d sets %d became deletes",
				n, midDrain, r.acknowledged, r.restored, r.sets, r.absent)
			if len(r.lost) > 0 {
				t.Errorf("%d sets were lost:\n%s", len(r.lost), strings.Join(r.lost, "\n"))
			}
		})
	}
}

type crashRun struct {
	lives
	t       *testing.T
	s       *redistest.Server
	p       *redistest.Proxy
	rnd     *rand.Rand
	options victimOptions

	sets, absent int
	lost         []string          // sets that nothing explains the absence of
	found        map[string]string // what Redis held when the last process died
}

func newCrashRun(t *testing.T, s *redistest.Server, p *redistest.Proxy, policy holdfast.FsyncPolicy) *crashRun {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := &crashRun{t: t, s: s, p: p, rnd: rand.New(rand.NewPCG(seed, 0))}
	r.options = victimOptions{Addr: p.Addr(), Dir: t.TempDir(), Fsync: policy, Writers: crashWriters}
	r.found = make(map[string]string)
	r.may, r.drops = make(map[string][]string), make(map[string][]string)
	r.last = make([]int, crashWriters)
	for g := range crashWriters {
		for i := range oldKeys {
			s.MustDo("SET", oldKey(g, i), "before")
			r.may[oldKey(g, i)] = []string{"before"}
		}
	}
	return r
}

// live is one life, from a start to a SIGKILL. It says whether that came in the
// middle of a drain.
func (r *crashRun) live(life int) (midDrain bool) {
	t := r.t
	t.Helper()
	o := r.options
	o.Life, o.May = life, r.may
	for g := range r.last {
		r.last[g] = -1
	}
	r.p.SetLatency(time.Duration(r.rnd.IntN(4)) * time.Millisecond)
	away := r.rnd.IntN(4) > 0
	if away {
		r.p.SetMode(redistest.Cut)
	} else {
		r.p.SetMode(redistest.Pass)
	}
	v := startVictim(t, o)
	found := v.restored()
	r.restored += found
	r.up = false
	read := make(chan struct{})
	go func() {
		defer close(read)
		for line := v.line(); line != ""; line = v.line() {
			r.hear(line)
		}
	}()
	r.await(r.rnd.IntN(300))
	for changes := r.rnd.IntN(3); changes >= 0; changes-- {
		if away = !away; away {
			r.p.SetMode(redistest.Cut)
			r.await(r.rnd.IntN(200))
			continue
		}
		r.p.SetMode(redistest.Pass)
		if r.rnd.IntN(8) > 0 {
			redistest.WaitFor(t, patience, "redis to be reached", r.isUp)
			// The replay begins within 50ms.
			<-time.After(time.Duration(r.rnd.IntN(90)) * time.Millisecond)
		}
	}
	_ = v.cmd.Process.Kill()
	<-read
	v.kill()
	// What it has sent is not to run beside the next one.
	redistest.WaitFor(t, patience, "its connections to be gone", func() bool { return len(r.s.Clients()) == 0 })
	return r.account(life)
}

func (r *crashRun) hear(line string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var g, n int
	switch {
	case strings.HasPrefix(line, "state "):
		r.up = line == "state up"
	case strings.HasPrefix(line, "drop "):
		key := strings.Fields(line)[1]
		r.drops[key] = append(r.drops[key], line)
	default:
		if _, err := fmt.Sscanf(line, "wrote %d %d", &g, &n); err != nil {
			r.wrong = append(r.wrong, line)
			return
		}
		r.last[g] = n
		r.acknowledged++
	}
}

func (r *crashRun) isUp() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.up || len(r.wrong) > 0
}

// await waits until so many more writes were acknowledged.
func (r *crashRun) await(n int) {
	count := func() int {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.acknowledged
	}
	till := count() + n
	redistest.WaitFor(r.t, patience, "writes", func() bool { return count() >= till })
}

// account notes what the life that has ended may have left.
func (r *crashRun) account(life int) (midDrain bool) {
	t := r.t
	t.Helper()
	if len(r.wrong) > 0 {
		t.Fatalf("life %d: %s", life, strings.Join(r.wrong, "\n"))
	}
	for g, last := range r.last {
		for n := range last + 2 {
			s := stepOf(life, g, n)
			if n <= last {
				r.may[s.key] = []string{s.value}
				continue
			}
			// This one was under way.
			if len(r.may[s.key]) == 0 {
				r.may[s.key] = []string{""}
			}
			r.may[s.key] = append(r.may[s.key], s.value)
		}
	}
	// Redis has some of what this life wrote, and not all.
	has, lacks := 0, 0
	there := r.holds()
	maps.Copy(r.found, there)
	for key, values := range r.may {
		if strings.HasPrefix(key, fmt.Sprintf("new:%d:", life)) && values[0] != "" {
			if there[key] == values[0] {
				has++
			} else {
				lacks++
			}
		}
	}
	return has > 0 && lacks > 0
}

// holds is what Redis holds of the keys; "" is nothing.
func (r *crashRun) holds() map[string]string {
	r.t.Helper()
	keys := slices.Collect(maps.Keys(r.may))
	values := strings.Split(r.s.MustDo(append([]string{"MGET"}, keys...)...), "\n")
	there := make(map[string]string, len(keys))
	for i, key := range keys {
		if there[key] = values[i]; values[i] == "(nil)" {
			there[key] = ""
		}
	}
	return there
}

// verify opens what was left behind, and asserts what Redis holds after a drain.
func (r *crashRun) verify(toTheEnd bool) {
	t := r.t
	t.Helper()
	r.p.SetLatency(0)
	r.p.SetMode(redistest.Pass)
	o := at(r.p.Addr())
	o.Journal.Dir, o.Journal.Fsync = r.options.Dir, r.options.Fsync
	o.Hooks.OnDrop = func(d holdfast.Drop) {
		r.hear(fmt.Sprintln("drop", d.Key, d.Reason, "in the check"))
	}
	c := open(t, o)
	r.restored += int(c.Stats().Restored)
	for key, values := range r.may {
		if v, err := c.Get(t.Context(), key); err == nil && !allowed(values, string(v)) {
			t.Errorf("%s is read as %q, and may be %q", key, v, values)
		}
	}
	ready(t, c)
	drain(t, c)
	if toTheEnd {
		settled(t, c)
	}
	there := r.holds()
	for key, values := range r.may {
		got := there[key]
		if values[0] != "" {
			r.sets++
		}
		switch {
		case allowed(values, got):
		case got == "" && strings.HasPrefix(key, "old:"):
			// What it held was written by a life that is over, so that a later one
			// could not know whose it is.
			r.absent++
		case got == "":
			r.mu.Lock()
			r.lost = append(r.lost, fmt.Sprintf("%s is absent, and may be %q; when its process died it was %q: %q", key, values, r.found[key], r.drops[key]))
			r.mu.Unlock()
		default:
			t.Errorf("%s is %q, and may be %q", key, got, values)
		}
		r.may[key] = []string{got}
		if strings.HasPrefix(key, "new:") {
			delete(r.may, key)
		}
	}
	if t.Failed() {
		t.FailNow()
	}
	closedEmpty(t, c)
}
