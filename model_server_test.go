package holdfast_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
)

// modelServer is a miniredis behind a network that does what a program says. It
// takes commands apart, so that it can hold them back, run them after their client
// has gone, keep their replies, and refuse writes. Commands run one at a time.
type modelServer struct {
	redis *miniredis.Miniredis
	began time.Time

	mu   sync.Mutex
	cond *sync.Cond // anything below has changed

	run       int  // tells servers apart
	away      bool // dials are refused
	held      bool // commands are taken and not run
	holdNext  bool // so it will be from the next replay on
	deaf      bool // commands are run and not answered
	readonly  bool
	forbidden map[string]bool // keys that no script may touch
	tracking  bool            // it tells of changes, as Redis does
	slow      time.Duration   // what a command takes to arrive
	endsLate  time.Duration   // a script is run only once its keys' values have ended, if they do within
	cutAfter  int             // so many commands from now the connections are cut, 0 for not
	closed    bool

	conns  []*modelConn
	newest int // the youngest connection on which something ran
	sent   map[string]bool
	trace  []string
}

// modelConn is a connection's server side. One goroutine takes commands, one runs
// them, one answers.
type modelConn struct {
	s       *modelServer
	id      int
	peer    net.Conn
	backend net.Conn
	replies *bufio.Reader

	// Guarded by the server.
	commands [][]string
	out      []string
	gone     bool            // the client's side is closed
	dropped  bool            // and what it sent is lost with it
	late     time.Duration   // or runs so long after a younger connection was answered
	tracked  map[string]bool // nil: it was not asked to tell
}

// lateMost is the latest that a command of a dead connection runs after one of a
// younger connection did. It is less than the time that the journal waits for.
const lateMost = 1500 * time.Millisecond

func newModelServer(t *testing.T, tracking bool) *modelServer {
	s := &modelServer{redis: miniredis.NewMiniRedis(), began: time.Now(), tracking: tracking, sent: map[string]bool{}, forbidden: map[string]bool{}}
	s.cond = sync.NewCond(&s.mu)
	s.redis.ClockTTL(true)
	t.Cleanup(func() {
		s.change(func() {
			s.closed = true
			s.cutLocked(func(*modelConn) { s.newest = 1 << 30 })
		})
		s.redis.Close()
	})
	return s
}

// change changes how the server behaves.
func (s *modelServer) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	s.cond.Broadcast()
}

func (s *modelServer) logLocked(format string, args ...any) {
	s.trace = append(s.trace, fmt.Sprintf("%9.3f  ", time.Since(s.began).Seconds())+fmt.Sprintf(format, args...))
}

func (s *modelServer) log(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.logLocked(format, args...)
}

func (s *modelServer) dial(context.Context, string, *net.Dialer, *tls.Config) (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.away || s.closed {
		return nil, errors.New("connection refused")
	}
	backend, err := s.redis.Dial()
	if err != nil {
		return nil, err
	}
	client, peer := net.Pipe()
	c := &modelConn{s: s, id: len(s.conns) + 1, peer: peer, backend: backend, replies: bufio.NewReader(backend)}
	s.conns = append(s.conns, c)
	s.logLocked("conn %d", c.id)
	go c.take()
	go c.work()
	go c.answer()
	return client, nil
}

// cut ends the connections that there are. What they have sent and was not run is
// lost, or runs late.
func (s *modelServer) cut(random *rand.Rand) {
	s.change(func() {
		s.cutLocked(func(c *modelConn) {
			c.dropped = random.IntN(4) == 0
			c.late = time.Duration(random.Int64N(int64(lateMost)))
			if random.IntN(2) == 0 {
				c.late = lateMost - c.late/8
			}
		})
	})
}

func (s *modelServer) cutLocked(each func(c *modelConn)) {
	for _, c := range s.conns {
		if !c.gone {
			c.gone = true
			c.peer.Close()
			each(c)
		}
	}
	s.cond.Broadcast()
}

// replace puts another server in the place of this one: what was on its way to the
// old one is lost. between runs when the clients have gone and before the new
// server is there; content is what that holds.
func (s *modelServer) replace(between func(), content func()) {
	s.change(func() {
		s.cutLocked(func(*modelConn) {})
		for _, c := range s.conns {
			c.dropped = true
		}
	})
	between()
	s.change(func() {
		s.run++
		content()
	})
}

// forgetScriptsLocked is SCRIPT FLUSH.
func (s *modelServer) forgetScriptsLocked() {
	backend, err := s.redis.Dial()
	if err != nil {
		return
	}
	defer backend.Close()
	if _, err := io.WriteString(backend, "*2\r\n$6\r\nSCRIPT\r\n$5\r\nFLUSH\r\n"); err == nil {
		_, err = readRaw(bufio.NewReader(backend))
		s.logLocked("  scripts forgotten: %v", err)
	}
}

// take reads what the client sends, at once, whatever becomes of it.
func (c *modelConn) take() {
	r := bufio.NewReader(c.peer)
	for {
		cmd, err := readCommand(r)
		c.s.mu.Lock()
		if err != nil {
			if !c.gone {
				c.gone = true
				c.late = time.Duration(c.id*397%1500) * time.Millisecond
			}
			c.s.cond.Broadcast()
			c.s.mu.Unlock()
			c.peer.Close()
			return
		}
		if len(cmd) > 2 && cmd[0] == "SET" {
			c.s.sent[cmd[1]+" "+cmd[2]] = true
		}
		if s := c.s; s.holdNext && cmd[0] == "EVALSHA" && !strings.HasPrefix(cmd[3], "holdfast:") {
			s.held, s.holdNext = true, false
		}
		c.commands = append(c.commands, cmd)
		c.s.cond.Broadcast()
		c.s.mu.Unlock()
	}
}

// work runs the commands.
func (c *modelConn) work() {
	s := c.s
	defer c.backend.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	slept := false
	for {
		switch {
		case c.dropped || s.closed, c.gone && len(c.commands) == 0:
			return
		case c.gone && s.newest > c.id && !slept:
			// A younger connection is at work: this one's last commands are late.
			slept = true
			s.passLocked(c.late)
		case c.gone && s.newest <= c.id, len(c.commands) == 0, s.held && !c.gone:
			s.cond.Wait()
		case s.slow > 0 && !c.gone && !slept:
			slept = true
			s.passLocked(s.slow)
		case s.endsLate > 0 && !c.gone && !slept && s.endLocked(c.commands[0]) > 0:
			slept = true
			s.passLocked(s.endLocked(c.commands[0]))
		default:
			cmd := c.commands[0]
			c.commands = c.commands[1:]
			c.runLocked(cmd)
			if !c.gone {
				slept = false
			}
		}
	}
}

// endLocked is when the last of the values will have ended, of those that end soon,
// to which a script is about to be applied.
func (s *modelServer) endLocked(cmd []string) (end time.Duration) {
	if cmd[0] != "EVALSHA" {
		return 0
	}
	for _, key := range keysOf(cmd) {
		if ttl := s.redis.TTL(key); ttl > 0 && ttl < s.endsLate {
			end = max(end, ttl+time.Millisecond)
		}
	}
	return end
}

// passLocked lets time pass, and others at the server meanwhile.
func (s *modelServer) passLocked(d time.Duration) {
	s.mu.Unlock()
	time.Sleep(d)
	s.mu.Lock()
}

func (c *modelConn) runLocked(cmd []string) {
	s := c.s
	if !c.gone {
		s.newest = max(s.newest, c.id)
	}
	reply := c.replyLocked(cmd)
	how := ""
	switch {
	case c.gone:
		how = " (late)"
	case s.deaf:
		how = " (its reply is held)"
	}
	if !strings.Contains(" HELLO CLIENT INFO PING ", " "+cmd[0]+" ") && !strings.HasPrefix(cmd[1], "holdfast:probe") {
		s.logLocked("    conn %d: %s -> %q%s", c.id, short(cmd), reply, how)
	}
	if s.cutAfter > 0 {
		if s.cutAfter--; s.cutAfter == 0 {
			s.cutLocked(func(*modelConn) {})
			return
		}
	}
	c.out = append(c.out, reply)
	c.trackLocked(cmd, reply)
	s.cond.Broadcast()
}

// short is a command without what makes a trace unreadable.
func short(cmd []string) string {
	if cmd[0] == "EVALSHA" {
		cmd = append([]string{cmd[0]}, cmd[3:]...)
	}
	words := make([]string, len(cmd))
	for i, w := range cmd {
		if len(w) > 24 {
			w = w[:8] + "~"
		}
		words[i] = w
	}
	return strings.Join(words, " ")
}

var modelWrites = map[string]bool{"SET": true, "DEL": true, "EVALSHA": true, "PEXPIRE": true, "PERSIST": true}

func (c *modelConn) replyLocked(cmd []string) string {
	switch {
	case cmd[0] == "INFO":
		text := fmt.Sprintf("# Server\r\nrun_id:server-%d\r\nredis_mode:standalone\r\n", c.s.run)
		return fmt.Sprintf("$%d\r\n%s\r\n", len(text), text)
	case len(cmd) == 1 && cmd[0] == "HELLO" && c.s.tracking: // who tells speaks RESP3
		return "%2\r\n$5\r\nproto\r\n:3\r\n$4\r\nmode\r\n$10\r\nstandalone\r\n"
	case cmd[0] == "CLIENT" && len(cmd) > 2 && cmd[1] == "TRACKING" && c.s.tracking:
		c.tracked = map[string]bool{}
		return "+OK\r\n"
	case cmd[0] == "EVALSHA" && slices.ContainsFunc(keysOf(cmd), func(key string) bool { return c.s.forbidden[key] }):
		return "-NOPERM No permissions to access a key\r\n"
	case c.s.readonly && modelWrites[cmd[0]]:
		return "-READONLY You can't write against a read only replica.\r\n"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "*%d\r\n", len(cmd))
	for _, arg := range cmd {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(arg), arg)
	}
	if _, err := io.WriteString(c.backend, b.String()); err != nil {
		return "-ERR " + err.Error() + "\r\n"
	}
	reply, err := readRaw(c.replies)
	if err != nil {
		return "-ERR " + err.Error() + "\r\n"
	}
	return reply
}

// keysOf are the keys of a command, as far as they matter here.
func keysOf(cmd []string) []string {
	switch cmd[0] {
	case "EVALSHA":
		n, _ := strconv.Atoi(cmd[2])
		return cmd[3 : 3+n]
	case "GET", "PTTL", "EXISTS", "SET", "DEL", "PEXPIRE", "PERSIST":
		return cmd[1:2]
	}
	return nil
}

// trackLocked remembers what was read, and tells of what was written. A script is
// taken to have done both: it is told of more than Redis would tell.
func (c *modelConn) trackLocked(cmd []string, reply string) {
	if strings.HasPrefix(reply, "-") {
		return
	}
	for _, key := range keysOf(cmd) {
		if c.tracked != nil && (cmd[0] == "EVALSHA" || !modelWrites[cmd[0]]) {
			c.tracked[key] = true
		}
		if modelWrites[cmd[0]] && !strings.HasPrefix(reply, ":0") && !strings.HasPrefix(reply, "_") {
			c.s.tellLocked(key)
		}
	}
}

// tellLocked tells those who have read the key that it has changed.
func (s *modelServer) tellLocked(key string) {
	for _, c := range s.conns {
		if c.tracked[key] && !c.gone {
			delete(c.tracked, key)
			c.out = append(c.out, fmt.Sprintf(">2\r\n$10\r\ninvalidate\r\n*1\r\n$%d\r\n%s\r\n", len(key), key))
		}
	}
	s.cond.Broadcast()
}

// answer sends replies.
func (c *modelConn) answer() {
	s := c.s
	for {
		s.mu.Lock()
		for !c.gone && !s.closed && (len(c.out) == 0 || s.deaf) {
			s.cond.Wait()
		}
		if c.gone || s.closed {
			s.mu.Unlock()
			return
		}
		text := strings.Join(c.out, "")
		c.out = nil
		s.mu.Unlock()
		if _, err := io.WriteString(c.peer, text); err != nil {
			return
		}
	}
}

func readCommand(r *bufio.Reader) ([]string, error) {
	n, err := readLength(r, '*')
	if err != nil {
		return nil, err
	}
	cmd := make([]string, n)
	for i := range cmd {
		size, err := readLength(r, '$')
		if err != nil {
			return nil, err
		}
		b := make([]byte, size+2)
		if _, err := io.ReadFull(r, b); err != nil {
			return nil, err
		}
		cmd[i] = string(b[:size])
	}
	cmd[0] = strings.ToUpper(cmd[0])
	return cmd, nil
}

func readLength(r *bufio.Reader, kind byte) (int, error) {
	line, err := r.ReadString('\n')
	if err != nil {
		return 0, err
	}
	if line[0] != kind {
		return 0, fmt.Errorf("%q where %c was to come", line, kind)
	}
	return strconv.Atoi(strings.TrimSpace(line[1:]))
}

// readRaw reads one reply as it is.
func readRaw(r *bufio.Reader) (string, error) {
	line, err := r.ReadString('\n')
	if err != nil {
		return "", err
	}
	n, _ := strconv.Atoi(strings.TrimSpace(line[1:]))
	switch line[0] {
	case '$', '=':
		if n < 0 {
			return line, nil
		}
		b := make([]byte, n+2)
		_, err := io.ReadFull(r, b)
		return line + string(b), err
	case '%':
		n *= 2
		fallthrough
	case '*', '~', '>':
		for range max(n, 0) {
			more, err := readRaw(r)
			if err != nil {
				return "", err
			}
			line += more
		}
	}
	return line, nil
}
