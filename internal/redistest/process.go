package redistest

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"time"
)

// SpawnerFunction names the function in which this package's one permanent goroutine
// runs, for leak checkers that must ignore it.
const SpawnerFunction = "github.com/holdfast-cache/holdfast/internal/redistest.spawnLoop"

type spawnRequest struct {
	cmd *exec.Cmd
	err chan error
}

var spawnRequests = make(chan spawnRequest)

// The goroutine starts with the binary, not with the first server, so that a
// goroutine count taken by a test before it starts a server includes it.
func init() { go spawnLoop() }

// spawnLoop starts all processes from one thread that lives as long as the test
// binary: the kernel kills them when the thread that forked them ends.
func spawnLoop() {
	runtime.LockOSThread()
	for r := range spawnRequests {
		r.err <- r.cmd.Start()
	}
}

// process is a running child that is reaped as soon as it ends.
type process struct {
	cmd    *exec.Cmd
	exited chan struct{}
}

// startProcess runs the program with stdout and stderr appended to the log file.
func startProcess(logFile, program string, args ...string) (*process, error) {
	out, err := os.OpenFile(logFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = diesWithParent()
	r := spawnRequest{cmd: cmd, err: make(chan error, 1)}
	spawnRequests <- r
	if err := <-r.err; err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, exited: make(chan struct{})}
	go func() {
		// The exit status of a killed server carries no information.
		_ = cmd.Wait()
		close(p.exited)
	}()
	return p, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

func (p *process) running() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// kill ends the process in any state and waits until it is reaped, for at most 10 s.
func (p *process) kill() error {
	if !p.running() {
		return nil
	}
	// Either signal may reach a process that has just ended by itself.
	_ = resumeProcess(p.cmd.Process)
	_ = p.cmd.Process.Kill()
	over := time.NewTimer(readyWithin)
	defer over.Stop()
	select {
	case <-p.exited:
		return nil
	case <-over.C:
		return fmt.Errorf("process %d still there %v after SIGKILL", p.pid(), readyWithin)
	}
}
