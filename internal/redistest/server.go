package redistest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	// readyWithin is generous: a loaded machine may run many servers at once.
	readyWithin   = time.Minute
	startAttempts = 10
)

// errPortTaken means that the server exited because its port was in use.
var errPortTaken = errors.New("port in use")

// Server is one real redis-server (or redis-sentinel) process.
type Server struct {
	tb   testing.TB
	dir  string
	port int
	base []string
	args []string

	// op serialises starting, stopping and killing; mu guards the fields below and is
	// never held for long, so that Do works meanwhile.
	op       sync.Mutex
	mu       sync.Mutex
	proc     *process
	password string
	paused   bool
}

// Available reports whether there is a redis-server program: in PATH, or the one that
// HOLDFAST_REDIS_SERVER names. It does not block.
func Available() bool {
	_, err := exec.LookPath(binary())
	return err == nil
}

// need skips the test if there is no redis-server, unless the environment requires one.
func need(tb testing.TB) {
	tb.Helper()
	if Available() {
		return
	}
	if fullRun() {
		tb.Fatalf("redistest: %s is not in PATH and %s=1", binary(), fullVariable)
	}
	if os.Getenv(serverVariable) != "" {
		tb.Fatalf("redistest: %s is %q, which is no program", serverVariable, binary())
	}
	note(&left.noServer, tb)
	tb.Skip("redistest: redis-server is not in PATH")
}

// Start runs a redis-server without persistence on a free loopback port, in a
// directory of its own and with the debug command enabled; args follow on its
// command line and win over that ("--requirepass", "x"). It returns when the
// server answers, usually after some ten milliseconds; after a minute it
// fails the test with the server's log. Without a redis-server in PATH it skips
// the test, or fails it where all tests are wanted (see Full). The
// server is killed when the test ends.
func Start(tb testing.TB, args ...string) *Server {
	tb.Helper()
	return start(tb, func(dir string, port int) ([]string, error) {
		debug, err := since7("--enable-debug-command", "yes")
		return append([]string{
			"--port", strconv.Itoa(port), "--bind", "127.0.0.1", "--dir", dir,
			"--save", "", "--appendonly", "no",
		}, debug...), err
	}, args)
}

// start runs a server. base returns its first arguments for a directory and a port.
func start(tb testing.TB, base func(dir string, port int) ([]string, error), args []string) *Server {
	tb.Helper()
	need(tb)
	// TempDir comes before Cleanup: the directory must outlive the process.
	s := &Server{tb: tb, dir: tb.TempDir(), args: args}
	tb.Cleanup(func() {
		if err := s.kill(); err != nil {
			tb.Errorf("redistest: %v", err)
		}
	})
	s.op.Lock()
	defer s.op.Unlock()
	for range startAttempts {
		port, err := freePort()
		if err != nil {
			tb.Fatal(err)
		}
		s.port = port
		if s.base, err = base(s.dir, port); err != nil {
			tb.Fatalf("redistest: preparing the server on port %d: %v", port, err)
		}
		err = s.launch(nil)
		if err == nil {
			return s
		}
		if !errors.Is(err, errPortTaken) {
			tb.Fatalf("redistest: starting %s on port %d: %v\n%s", binary(), port, err, s.log())
		}
	}
	tb.Fatalf("redistest: %d ports in a row were in use\n%s", startAttempts, s.log())
	return nil
}

// launch starts the process on s.port and waits until it answers.
func (s *Server) launch(extra []string) error {
	var mark int64
	if fi, err := os.Stat(s.logFile()); err == nil {
		mark = fi.Size()
	}
	argv := append(append(append([]string(nil), s.base...), s.args...), extra...)
	p, err := startProcess(s.logFile(), binary(), argv...)
	if err != nil {
		return err
	}
	password := passwordIn(argv)
	s.mu.Lock()
	s.proc, s.password, s.paused = p, password, false
	s.mu.Unlock()
	var last error
	ready := poll(readyWithin, func() bool {
		if !p.running() {
			return true
		}
		last = answers(s.Addr(), password, p.pid())
		return last == nil
	})
	switch {
	case !p.running():
		return s.whyExited(mark)
	case !ready:
		return fmt.Errorf("not ready after %v: %w", readyWithin, last)
	}
	return nil
}

// answers returns nil if the server with this process id is ready.
func answers(addr, password string, pid int) error {
	_, err := call(addr, "", "PING")
	if err != nil && !strings.HasPrefix(err.Error(), "NOAUTH") {
		return err
	}
	info, err := call(addr, password, "INFO", "server")
	if err != nil {
		var refused ReplyError
		if errors.As(err, &refused) {
			return nil
		}
		return err
	}
	// Another test binary may have taken the port in the meantime. Then its server
	// answers, and this one is about to exit.
	if !strings.Contains(info.text, fmt.Sprintf("process_id:%d\r\n", pid)) {
		return fmt.Errorf("another process answers on %s", addr)
	}
	return nil
}

// whyExited returns the cause of an exit, from the log behind mark.
func (s *Server) whyExited(mark int64) error {
	b, err := os.ReadFile(s.logFile())
	if err != nil {
		return err
	}
	if int64(len(b)) > mark {
		b = b[mark:]
	}
	if strings.Contains(string(b), "Address already in use") {
		return errPortTaken
	}
	return errors.New("the process exited")
}

// passwordIn returns the last --requirepass of a command line, or "".
func passwordIn(argv []string) string {
	password := ""
	for i, a := range argv {
		if a == "--requirepass" && i+1 < len(argv) {
			password = argv[i+1]
		}
	}
	return password
}

func (s *Server) logFile() string { return filepath.Join(s.dir, "redis.log") }

// log returns the end of the process's output.
func (s *Server) log() string {
	const most = 4096
	b, err := os.ReadFile(s.logFile())
	if err != nil {
		return err.Error()
	}
	if len(b) > most {
		b = b[len(b)-most:]
	}
	return "the server wrote:\n" + string(b)
}

// Addr returns the host:port the server listens on. It stays the same over
// restarts and does not block.
func (s *Server) Addr() string { return loopback(s.port) }

// Port returns the port the server listens on. It does not block.
func (s *Server) Port() int { return s.port }

// Pid returns the process id of the current or, if it is not running, the last
// process. It does not block.
func (s *Server) Pid() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.proc.pid()
}

// Running reports whether the process exists; a paused one does. It does not block and
// may be called from any goroutine.
func (s *Server) Running() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.proc != nil && s.proc.running()
}

// responsive reports whether the server can answer: it runs and is not paused.
func (s *Server) responsive() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.proc != nil && s.proc.running() && !s.paused
}

// Kill ends the process with SIGKILL, paused or not, and returns when it is
// reaped, which takes milliseconds; after a minute it fails the test. Killing
// a server that does not run does nothing.
func (s *Server) Kill() {
	s.tb.Helper()
	if err := s.kill(); err != nil {
		s.tb.Fatalf("redistest: %v", err)
	}
}

func (s *Server) kill() error {
	s.op.Lock()
	defer s.op.Unlock()
	return s.killLocked()
}

func (s *Server) killLocked() error {
	s.mu.Lock()
	p := s.proc
	s.mu.Unlock()
	if p == nil {
		return nil
	}
	return p.kill()
}

// Pause stops the process with SIGSTOP and returns when it stands still; after
// a minute it fails the test. The kernel still accepts connections for a
// paused server, and nobody answers on them.
func (s *Server) Pause() {
	s.tb.Helper()
	s.op.Lock()
	defer s.op.Unlock()
	s.mu.Lock()
	p := s.proc
	s.paused = true
	s.mu.Unlock()
	if err := pauseProcess(p.cmd.Process); err != nil {
		s.tb.Fatalf("redistest: pausing process %d: %v\n%s", p.pid(), err, s.log())
	}
	if !poll(readyWithin, func() bool { return isStopped(p.pid()) }) {
		s.tb.Fatalf("redistest: process %d still runs %v after SIGSTOP", p.pid(), readyWithin)
	}
}

// Resume continues a paused process with SIGCONT. It does not wait for it.
func (s *Server) Resume() {
	s.tb.Helper()
	s.op.Lock()
	defer s.op.Unlock()
	s.mu.Lock()
	p := s.proc
	s.paused = false
	s.mu.Unlock()
	if err := resumeProcess(p.cmd.Process); err != nil {
		s.tb.Fatalf("redistest: resuming process %d: %v\n%s", p.pid(), err, s.log())
	}
}

// Restart runs the server again on the same port and in the same directory,
// killing it first if it runs. args are appended to those given to Start, for
// this run only. It returns when the server answers, and fails the test when it
// does not within a minute.
func (s *Server) Restart(args ...string) {
	s.tb.Helper()
	s.restart(args, false)
}

// RestartEmpty is Restart after deleting all data that the server has saved. It blocks
// for the same time.
func (s *Server) RestartEmpty() {
	s.tb.Helper()
	s.restart(nil, true)
}

func (s *Server) restart(extra []string, empty bool) {
	s.tb.Helper()
	s.op.Lock()
	defer s.op.Unlock()
	if err := s.killLocked(); err != nil {
		s.tb.Fatalf("redistest: %v", err)
	}
	if empty {
		if err := s.deleteData(); err != nil {
			s.tb.Fatalf("redistest: deleting the data: %v", err)
		}
	}
	var err error
	// Another process may hold the port for a moment, and the server must get the same
	// port.
	poll(readyWithin, func() bool {
		err = s.launch(extra)
		return !errors.Is(err, errPortTaken)
	})
	if err != nil {
		s.tb.Fatalf("redistest: restarting %s on port %d: %v\n%s", binary(), s.port, err, s.log())
	}
}

// deleteData removes dumps and append-only files of any name.
func (s *Server) deleteData() error {
	for _, pattern := range []string{"*.rdb", "*.aof", "appendonlydir"} {
		found, err := filepath.Glob(filepath.Join(s.dir, pattern))
		if err != nil {
			return err
		}
		for _, f := range found {
			if err := os.RemoveAll(f); err != nil {
				return err
			}
		}
	}
	return nil
}

// Do sends one command over a connection of its own, authenticated if the server was
// started with --requirepass, and returns the reply in the form that the function Do
// describes. It blocks for at most 5 seconds and may be called from any goroutine.
func (s *Server) Do(args ...string) (string, error) {
	r, err := s.call(args...)
	return r.String(), err
}

func (s *Server) call(args ...string) (respReply, error) {
	return call(s.Addr(), s.currentPassword(), args...)
}

func (s *Server) currentPassword() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.password
}

// Asking is Do behind an ASKING on the same connection: a node of a cluster that imports
// a slot serves the slot only to such commands.
func (s *Server) Asking(args ...string) (string, error) {
	c, err := dialRESP(s.Addr(), s.currentPassword())
	if err != nil {
		return "", err
	}
	defer c.Close()
	if _, err := c.call("ASKING"); err != nil {
		return "", err
	}
	r, err := c.call(args...)
	return r.String(), err
}

// pipeline sends all commands over one connection and reads all replies. It returns the
// first error reply as its error.
func (s *Server) pipeline(cmds [][]string) error {
	c, err := dialRESP(s.Addr(), s.currentPassword())
	if err != nil {
		return err
	}
	defer c.Close()
	// Replies are read concurrently, because the buffers of the two sides cannot hold
	// them all.
	sent := make(chan error, 1)
	go func() { sent <- c.send(cmds...) }()
	var refused error
	for range cmds {
		r, err := readReply(c.r)
		if err != nil {
			c.Close()
			<-sent
			return err
		}
		if r.kind == '-' && refused == nil {
			refused = ReplyError(r.text)
		}
	}
	if err := <-sent; err != nil {
		return err
	}
	return refused
}

// oneLine is a command for a message: as much of it as a line has room for.
func oneLine(args []string) string {
	const room = 100
	var line strings.Builder
	for i, arg := range args {
		if line.Len() > room {
			fmt.Fprintf(&line, " and %d more", len(args)-i)
			break
		}
		if i > 0 {
			line.WriteByte(' ')
		}
		if len(arg) > room {
			fmt.Fprintf(&line, "%q and %d bytes more", arg[:room], len(arg)-room)
			continue
		}
		line.WriteString(arg)
	}
	return line.String()
}

// MustDo is Do that fails the test on an error. It blocks for 5 seconds at most.
func (s *Server) MustDo(args ...string) string {
	s.tb.Helper()
	out, err := s.Do(args...)
	if err != nil {
		s.tb.Fatalf("redistest: %s on %s: %v\n%s", oneLine(args), s.Addr(), err, s.log())
	}
	return out
}

// Clients returns the lines of CLIENT LIST without its own connection. Replicas and
// sentinels that are connected to the server are included. It blocks for at most 5
// seconds.
func (s *Server) Clients() []string {
	s.tb.Helper()
	lines, err := s.clients()
	if err != nil {
		s.tb.Fatalf("redistest: CLIENT LIST on %s: %v\n%s", s.Addr(), err, s.log())
	}
	return lines
}

func (s *Server) clients() ([]string, error) {
	c, err := dialRESP(s.Addr(), s.currentPassword())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	id, err := c.call("CLIENT", "ID")
	if err != nil {
		return nil, err
	}
	list, err := c.call("CLIENT", "LIST")
	if err != nil {
		return nil, err
	}
	var lines []string
	for line := range strings.Lines(list.text) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "id="+id.text+" ") {
			lines = append(lines, line)
		}
	}
	return lines, nil
}

// Inside calls f with a function that runs commands on a connection in the given database
// and fails the test on an error. Inside returns an error if there is no such connection,
// and blocks for at most 5 seconds besides f.
func (s *Server) Inside(db int, f func(do func(args ...string) string)) error {
	c, err := dialRESP(s.Addr(), s.currentPassword())
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.call("SELECT", strconv.Itoa(db)); err != nil {
		return err
	}
	f(func(args ...string) string {
		s.tb.Helper()
		r, err := c.call(args...)
		if err != nil {
			s.tb.Fatalf("redistest: %s in database %d of %s: %v", oneLine(args), db, s.Addr(), err)
		}
		return r.String()
	})
	return nil
}
