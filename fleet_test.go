package holdfast_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast/internal/redistest"
)

// fleetEnv holds the address of the Redis for a process of the fleet.
const fleetEnv = "HOLDFAST_TEST_FLEET"

// TestProcessOfAFleet is no test but the program of the processes that the tests
// below start. It obeys the lines of its standard input: "load KEY CALLERS MILLIS"
// asks for the key and answers "KEY LOADS WRONG"; "hang KEY" says "hanging" from
// inside a loader that never returns.
func TestProcessOfAFleet(t *testing.T) {
	addr := os.Getenv(fleetEnv)
	if addr == "" {
		t.Skip("not a process of a fleet")
	}
	o := at(addr)
	o.Timeout = 10 * time.Second
	o.Load.Lease = 2 * time.Second
	c := open(t, o)
	ready(t, c)
	fmt.Println("ready")
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		var key string
		var callers, millis int
		if n, _ := fmt.Sscanf(in.Text(), "load %s %d %d", &key, &callers, &millis); n == 3 {
			s := newSource("v")
			s.takes = time.Duration(millis) * time.Millisecond
			var mu sync.Mutex
			var wg sync.WaitGroup
			wrong := 0
			for range callers {
				wg.Go(func() {
					v, err := c.GetOrLoad(context.Background(), key, time.Hour, s.load)
					if err != nil || string(v) != "v" {
						mu.Lock()
						wrong++
						mu.Unlock()
					}
				})
			}
			wg.Wait()
			fmt.Println(key, s.asked.Load(), wrong)
		} else if n, _ := fmt.Sscanf(in.Text(), "hang %s", &key); n == 1 {
			go c.GetOrLoad(context.Background(), key, time.Hour, func(context.Context) ([]byte, error) {
				fmt.Println("hanging")
				select {}
			})
		}
	}
	os.Exit(0)
}

// process is one of a fleet.
type process struct {
	cmd *exec.Cmd
	in  *bufio.Writer
	out *bufio.Scanner
}

func startProcess(t *testing.T, addr string) *process {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run", "^TestProcessOfAFleet$")
	cmd.Env = append(os.Environ(), fleetEnv+"="+addr)
	stdin, err := cmd.StdinPipe()
	must(t, err)
	stdout, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	p := &process{cmd, bufio.NewWriter(stdin), bufio.NewScanner(stdout)}
	t.Cleanup(func() {
		stdin.Close()
		p.kill()
	})
	p.expect(t, "ready")
	return p
}

func (p *process) kill() {
	p.cmd.Process.Kill()
	p.cmd.Wait()
}

func (p *process) say(t *testing.T, line string) {
	t.Helper()
	fmt.Fprintln(p.in, line)
	must(t, p.in.Flush())
}

// expect returns the rest of the next line that begins with this.
func (p *process) expect(t *testing.T, begins string) string {
	t.Helper()
	for p.out.Scan() {
		if rest, ok := strings.CutPrefix(p.out.Text(), begins); ok {
			return strings.TrimSpace(rest)
		}
	}
	t.Fatalf("a process ended before it said %q", begins)
	return ""
}

func TestThreeProcessesOfAThousandCallersLoadAColdKeyOnce(t *testing.T) {
	begin(t)
	srv := redistest.Start(t)
	var ps []*process
	for range 3 {
		ps = append(ps, startProcess(t, srv.Addr()))
	}
	total := 0
	const rounds = 5
	for round := range rounds {
		key := fmt.Sprint("cold", round)
		for _, p := range ps {
			p.say(t, "load "+key+" 1000 100")
		}
		for _, p := range ps {
			var loads, wrong int
			fmt.Sscan(p.expect(t, key), &loads, &wrong)
			if wrong != 0 {
				t.Errorf("%d callers got something else", wrong)
			}
			total += loads
		}
	}
	// A process that is slow for longer than the lease may add one.
	if total < rounds || total > rounds+2 {
		t.Errorf("%d loads of %d keys", total, rounds)
	}
	t.Logf("%d loads of %d keys by 3 processes", total, rounds)
}

func TestAHolderThatIsKilledHoldsTheFleetUpUntilItsLeaseEnds(t *testing.T) {
	begin(t)
	srv := redistest.Start(t)
	holder, other := startProcess(t, srv.Addr()), startProcess(t, srv.Addr())
	holder.say(t, "hang k")
	holder.expect(t, "hanging")
	holder.kill()
	start := time.Now()
	other.say(t, "load k 100 1")
	var loads, wrong int
	fmt.Sscan(other.expect(t, "k"), &loads, &wrong)
	if loads != 1 || wrong != 0 {
		t.Errorf("%d loads, %d wrong", loads, wrong)
	}
	// The lease is two seconds.
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("the others waited %v", took)
	}
}
