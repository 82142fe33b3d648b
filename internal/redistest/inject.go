package redistest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// Injector is a proxy in front of a server that parses commands and replies, and answers
// chosen commands itself. So it imitates a proxy whose backend is away, or a service
// whose quota is used up. The other commands go to the server, and replies keep the order
// of the commands. Its methods may be called from any goroutine.
type Injector struct {
	ln       net.Listener
	backend  string
	wg       sync.WaitGroup
	accepted atomic.Int64
	injected atomic.Int64
	answer   atomic.Pointer[func(cmd []string) string]

	mu     sync.Mutex
	closed bool
	conns  map[net.Conn]bool
}

// NewInjector returns an Injector on a free loopback port that passes all commands to
// backend and ends with the test. It does not block.
func NewInjector(tb testing.TB, backend string) *Injector {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatalf("redistest: %v", err)
	}
	j := &Injector{ln: ln, backend: backend, conns: make(map[net.Conn]bool)}
	j.wg.Go(j.acceptLoop)
	tb.Cleanup(j.close)
	return j
}

// Addr returns the host:port clients connect to. It does not block.
func (j *Injector) Addr() string { return j.ln.Addr().String() }

// Accepted returns the total number of accepted connections. It does not block.
func (j *Injector) Accepted() int { return int(j.accepted.Load()) }

// Injected returns how many commands the injector has answered itself. It does not block.
func (j *Injector) Injected() int { return int(j.injected.Load()) }

// Answer sets the function that is called for each command from now on, from several
// goroutines. It returns the reply, an error line without its dash, or an array in RESP,
// or "" to send the command to the server. A nil answer sends all commands to the server. Answer does not
// block.
func (j *Injector) Answer(answer func(cmd []string) string) {
	if answer == nil {
		j.answer.Store(nil)
		return
	}
	j.answer.Store(&answer)
}

// Say is Answer with one text for every command.
func (j *Injector) Say(text string) { j.Answer(func([]string) string { return text }) }

func (j *Injector) close() {
	j.ln.Close()
	j.mu.Lock()
	j.closed = true
	for c := range j.conns {
		c.Close()
	}
	j.mu.Unlock()
	j.wg.Wait()
}

// keep registers the connection to be closed with the injector. It returns false, and
// closes the connection, if the injector is closed already.
func (j *Injector) keep(c net.Conn) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		c.Close()
		return false
	}
	j.conns[c] = true
	return true
}

func (j *Injector) drop(c net.Conn) {
	c.Close()
	j.mu.Lock()
	delete(j.conns, c)
	j.mu.Unlock()
}

func (j *Injector) acceptLoop() {
	for {
		c, err := j.ln.Accept()
		if err != nil {
			return
		}
		j.accepted.Add(1)
		if j.keep(c) {
			j.wg.Go(func() { j.serve(c) })
		}
	}
}

// turns is how many commands may be in flight on a connection.
const turns = 1 << 16

func (j *Injector) serve(client net.Conn) {
	defer j.drop(client)
	server, err := net.Dial("tcp", j.backend)
	if err != nil || !j.keep(server) {
		return
	}
	defer j.drop(server)
	// The replies, in the order of the commands: a text, or "" for the server's.
	order := make(chan string, turns)
	var done sync.WaitGroup
	done.Go(func() {
		defer server.Close()
		defer client.Close()
		j.replies(client, server, order)
	})
	j.commands(client, server, order)
	close(order)
	server.Close()
	done.Wait()
}

func (j *Injector) commands(client, server net.Conn, order chan<- string) {
	in := bufio.NewReader(client)
	for {
		raw, cmd, err := readCommand(in)
		if err != nil {
			return
		}
		text := ""
		if f := j.answer.Load(); f != nil {
			text = (*f)(cmd)
		}
		if text != "" {
			j.injected.Add(1)
			order <- text
			continue
		}
		order <- ""
		if _, err := server.Write(raw); err != nil {
			return
		}
	}
}

// replies writes to the client. A push is not counted as a reply.
func (j *Injector) replies(client, server net.Conn, order <-chan string) {
	fromServer := make(chan []byte)
	gone := make(chan struct{})
	var reader sync.WaitGroup
	defer func() {
		close(gone) // first: the reader may be blocked handing over a reply
		server.Close()
		reader.Wait()
	}()
	reader.Go(func() {
		defer close(fromServer)
		in := bufio.NewReader(server)
		for {
			raw, err := readRaw(in, nil)
			if err != nil {
				return
			}
			select {
			case fromServer <- raw:
			case <-gone:
				return
			}
		}
	})
	var waiting [][]byte // replies that came before their entry of order was read
	var turn []string
	for {
		var next <-chan string
		if len(turn) == 0 {
			next = order
		}
		select {
		case text, ok := <-next:
			if !ok {
				return
			}
			turn = append(turn, text)
		case raw, ok := <-fromServer:
			if !ok {
				return
			}
			if raw[0] == '>' {
				if _, err := client.Write(raw); err != nil {
					return
				}
				continue
			}
			waiting = append(waiting, raw)
		}
		for len(turn) > 0 {
			reply := []byte("-" + turn[0] + "\r\n")
			if strings.HasPrefix(turn[0], "*") {
				reply = []byte(turn[0])
			}
			if turn[0] == "" {
				if len(waiting) == 0 {
					break
				}
				reply, waiting = waiting[0], waiting[1:]
			}
			turn = turn[1:]
			if _, err := client.Write(reply); err != nil {
				return
			}
		}
	}
}

// readCommand reads an array of strings.
func readCommand(in *bufio.Reader) (raw []byte, cmd []string, err error) {
	line, err := in.ReadString('\n')
	if err != nil {
		return nil, nil, err
	}
	n, err := strconv.Atoi(strings.TrimSpace(strings.TrimPrefix(line, "*")))
	if err != nil || !strings.HasPrefix(line, "*") {
		return nil, nil, fmt.Errorf("redistest: no command: %q", line)
	}
	raw = []byte(line)
	for range n {
		from := len(raw)
		if raw, err = readRaw(in, raw); err != nil {
			return nil, nil, err
		}
		_, body, _ := strings.Cut(string(raw[from:]), "\r\n")
		cmd = append(cmd, strings.TrimSuffix(body, "\r\n"))
	}
	return raw, cmd, nil
}

// readRaw reads one value of RESP2 or RESP3 and appends its bytes to raw.
func readRaw(in *bufio.Reader, raw []byte) ([]byte, error) {
	line, err := in.ReadString('\n')
	if err != nil {
		return raw, err
	}
	if len(line) < 3 {
		return raw, errors.New("redistest: an empty line")
	}
	raw = append(raw, line...)
	kind, text := line[0], strings.TrimSpace(line[1:])
	n, _ := strconv.Atoi(text)
	switch kind {
	case '$', '=', '!':
		if n < 0 {
			return raw, nil
		}
		from := len(raw)
		raw = append(raw, make([]byte, n+2)...)
		_, err := io.ReadFull(in, raw[from:])
		return raw, err
	case '%', '|':
		n *= 2
		if kind == '|' {
			n++ // attributes stand before a value
		}
		fallthrough
	case '*', '~', '>':
		for range n {
			if raw, err = readRaw(in, raw); err != nil {
				return raw, err
			}
		}
	}
	return raw, nil
}
