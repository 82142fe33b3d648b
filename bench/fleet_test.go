package bench

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-cache/holdfast/bench/worker"
	"github.com/holdfast-cache/holdfast/internal/redistest"
)

// TestMain makes this binary the program of the fleets' processes, too.
func TestMain(m *testing.M) {
	if os.Getenv(worker.Env) != "" {
		worker.Main(open)
	}
	code := redistest.Run(m)
	printTables(os.Stdout)
	if library.dir != "" {
		os.RemoveAll(library.dir)
	}
	os.Exit(code)
}

// library is the program of the peer that needs another rueidis, built when it is
// first wanted.
var library struct {
	sync.Once
	dir, path string
	err       error
	says      []byte
}

func program(tb testing.TB, peer string) string {
	tb.Helper()
	if peer != libraryLeases {
		return os.Args[0]
	}
	library.Do(func() {
		if library.dir, library.err = os.MkdirTemp("", "holdfast-bench"); library.err != nil {
			return
		}
		library.path = filepath.Join(library.dir, "worker")
		cmd := exec.Command("go", "build", "-modfile=rueidisaside/go.alt.mod", "-o", library.path, "rueidisaside/main.go")
		library.says, library.err = cmd.CombinedOutput()
	})
	if library.err != nil {
		tb.Fatalf("building %s: %v\n%s", peer, library.err, library.says)
	}
	return library.path
}

// process is one of a fleet.
type process struct {
	cmd     *exec.Cmd
	orders  *json.Encoder
	reports *json.Decoder
	says    bytes.Buffer
}

type fleet []*process

// startFleet runs so many processes, of which each has its peer connected and warm.
// They are gone when tb ends.
func startFleet(tb testing.TB, n int, s worker.Setup) fleet {
	tb.Helper()
	setup, err := json.Marshal(s)
	if err != nil {
		tb.Fatal(err)
	}
	path := program(tb, s.Peer)
	all := make(fleet, n)
	for i := range all {
		p := &process{cmd: exec.Command(path)}
		p.cmd.Env = append(os.Environ(), worker.Env+"="+string(setup))
		p.cmd.Stderr = &p.says
		in, err := p.cmd.StdinPipe()
		if err != nil {
			tb.Fatal(err)
		}
		out, err := p.cmd.StdoutPipe()
		if err != nil {
			tb.Fatal(err)
		}
		if err := p.cmd.Start(); err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(p.kill)
		p.orders, p.reports = json.NewEncoder(in), json.NewDecoder(out)
		all[i] = p
	}
	for _, p := range all {
		p.report(tb)
	}
	for i, p := range all {
		p.order(tb, worker.Order{Key: "warm:" + strconv.Itoa(i), Callers: 8, Patience: time.Minute})
		if r := p.report(tb); r.Answered != 8 {
			tb.Fatalf("%s does not work: %s", s.Peer, r.Failure)
		}
	}
	return all
}

// kill ends the process as it is: some peers take seconds to close while Redis hangs.
func (p *process) kill() {
	p.cmd.Process.Kill()
	p.cmd.Wait()
}

func (p *process) order(tb testing.TB, o worker.Order) {
	tb.Helper()
	if err := p.orders.Encode(o); err != nil {
		p.died(tb, err)
	}
}

func (p *process) report(tb testing.TB) (r worker.Report) {
	tb.Helper()
	if err := p.reports.Decode(&r); err != nil {
		p.died(tb, err)
	}
	return r
}

func (p *process) died(tb testing.TB, err error) {
	tb.Helper()
	p.kill() // now says is whole
	tb.Fatalf("a process of the fleet: %v\n%s", err, p.says.String())
}

// stampede has all processes ask for a key at once, and calls midway, if there is one,
// in the middle of the load.
func (f fleet) stampede(tb testing.TB, o worker.Order, midway func()) []worker.Report {
	tb.Helper()
	// Time for the orders to reach everybody.
	o.At = time.Now().Add(20*time.Millisecond + time.Duration(len(f))*2*time.Millisecond)
	for _, p := range f {
		p.order(tb, o)
	}
	if midway != nil {
		<-time.After(time.Until(o.At.Add(o.Takes / 2)))
		midway()
	}
	reports := make([]worker.Report, len(f))
	for i, p := range f {
		reports[i] = p.report(tb)
	}
	return reports
}

// reconnected waits until each process has stored something in the server.
func (f fleet) reconnected(tb testing.TB, server *redistest.Server) {
	tb.Helper()
	for i, p := range f {
		try := 0
		redistest.WaitFor(tb, time.Minute, "a process of the fleet to be back", func() bool {
			try++
			key := fmt.Sprintf("back:%d:%d", i, try)
			p.order(tb, worker.Order{Key: key, Callers: 1, Patience: time.Second})
			p.report(tb)
			return server.MustDo("EXISTS", key) == "1"
		})
	}
}

// commands is how many commands the server has carried out since it was last asked to
// forget, those within scripts among them, and without these questions.
func commands(tb testing.TB, s *redistest.Server) int {
	tb.Helper()
	n := 0
	for line := range strings.Lines(s.MustDo("INFO", "commandstats")) {
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), "cmdstat_")
		name, stats, _ := strings.Cut(rest, ":calls=")
		if !ok || name == "info" || strings.HasPrefix(name, "config") {
			continue
		}
		count, _, _ := strings.Cut(stats, ",")
		calls, err := strconv.Atoi(count)
		if err != nil {
			tb.Fatalf("commandstats: %q: %v", line, err)
		}
		n += calls
	}
	return n
}
