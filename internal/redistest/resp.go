package redistest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
)

// commandTimeout bounds one command including connecting and authenticating.
const commandTimeout = 5 * time.Second

// ReplyError is an error reply of a server, as opposed to a failure to reach it.
type ReplyError string

// Error returns the server's error line without its leading dash. It does not block.
func (e ReplyError) Error() string { return string(e) }

// Do sends one command to addr over a connection of its own, without
// authenticating, and returns the reply as text: a bulk string's bytes, "(nil)"
// for a null, an integer in decimal, a status line as it is, and an array's
// elements joined by newlines. An error reply comes back as a ReplyError. It
// blocks for 5 seconds at most and may be called from any goroutine.
func Do(addr string, args ...string) (string, error) {
	r, err := call(addr, "", args...)
	return r.String(), err
}

// call is Do with a password. It returns the reply with its structure.
func call(addr, password string, args ...string) (respReply, error) {
	c, err := dialRESP(addr, password)
	if err != nil {
		return respReply{}, err
	}
	defer c.Close()
	return c.call(args...)
}

type respConn struct {
	net.Conn
	r *bufio.Reader
}

func dialRESP(addr, password string) (*respConn, error) {
	deadline := time.Now().Add(commandTimeout)
	nc, err := (&net.Dialer{Deadline: deadline}).Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	c := &respConn{Conn: nc, r: bufio.NewReader(nc)}
	if err := nc.SetDeadline(deadline); err != nil {
		nc.Close()
		return nil, err
	}
	if password != "" {
		if _, err := c.call("AUTH", password); err != nil {
			nc.Close()
			return nil, fmt.Errorf("AUTH: %w", err)
		}
	}
	return c, nil
}

func (c *respConn) call(args ...string) (respReply, error) {
	if len(args) == 0 {
		return respReply{}, errors.New("redistest: empty command")
	}
	if err := c.send(args); err != nil {
		return respReply{}, err
	}
	r, err := readReply(c.r)
	if err != nil {
		return respReply{}, err
	}
	if r.kind == '-' {
		return respReply{}, ReplyError(r.text)
	}
	return r, nil
}

// send writes commands and does not read their replies.
func (c *respConn) send(cmds ...[]string) error {
	var b strings.Builder
	for _, args := range cmds {
		fmt.Fprintf(&b, "*%d\r\n", len(args))
		for _, a := range args {
			fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(a), a)
		}
	}
	_, err := io.WriteString(c.Conn, b.String())
	return err
}

// respReply is one RESP2 value.
type respReply struct {
	kind  byte
	text  string
	null  bool
	elems []respReply
}

func (r respReply) String() string {
	if r.null {
		return "(nil)"
	}
	if r.kind != '*' {
		return r.text
	}
	parts := make([]string, len(r.elems))
	for i, e := range r.elems {
		parts[i] = e.String()
	}
	return strings.Join(parts, "\n")
}

// strings returns the elements of an array, each as text.
func (r respReply) strings() []string {
	out := make([]string, len(r.elems))
	for i, e := range r.elems {
		out[i] = e.String()
	}
	return out
}

func readReply(r *bufio.Reader) (respReply, error) {
	line, err := r.ReadString('\n')
	if err != nil {
		return respReply{}, err
	}
	line = strings.TrimRight(line, "\r\n")
	if line == "" {
		return respReply{}, errors.New("redistest: empty reply line")
	}
	kind, rest := line[0], line[1:]
	switch kind {
	case '+', '-', ':':
		return respReply{kind: kind, text: rest}, nil
	case '$', '*':
		n, err := strconv.Atoi(rest)
		if err != nil {
			return respReply{}, fmt.Errorf("redistest: bad length in reply line %q", line)
		}
		if n < 0 {
			return respReply{kind: kind, null: true}, nil
		}
		if kind == '$' {
			return readBulk(r, n)
		}
		return readArray(r, n)
	}
	return respReply{}, fmt.Errorf("redistest: not a RESP2 reply: %q", line)
}

func readBulk(r *bufio.Reader, n int) (respReply, error) {
	b := make([]byte, n+2)
	if _, err := io.ReadFull(r, b); err != nil {
		return respReply{}, err
	}
	return respReply{kind: '$', text: string(b[:n])}, nil
}

func readArray(r *bufio.Reader, n int) (respReply, error) {
	out := respReply{kind: '*', elems: make([]respReply, n)}
	for i := range out.elems {
		e, err := readReply(r)
		if err != nil {
			return respReply{}, err
		}
		out.elems[i] = e
	}
	return out, nil
}
