package dial

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-cache/holdfast/internal/rediserr"
	"github.com/holdfast-cache/holdfast/internal/resp"
	"github.com/redis/rueidis"
)

// The dialer explains why a connection failed: it sees the commands of the handshake go out and the
// errors come in. rueidis sends the handshake in one pipeline, and if the server hangs up it
// returns the end of the connection without the error reply before it.

const (
	stepDial = "dial"
	stepTLS  = "TLS handshake"
)

// mostSent bounds the number of commands remembered until a connection is settled.
const mostSent = 32

// began notes the current step of the dial.
func (d *Dialer) began(name string, secure bool) {
	d.mu.Lock()
	d.mu.step, d.mu.secure = name, secure
	d.mu.Unlock()
}

// sends notes the commands in p by name only: their arguments may be passwords.
func (d *Dialer) sends(p []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for len(p) > 0 && len(d.mu.sent) < mostSent {
		var args []string
		if args, p = nextCommand(p); len(args) == 0 {
			return
		}
		name := strings.ToUpper(args[0])
		if name == "CLIENT" && len(args) > 1 {
			name += " " + strings.ToUpper(args[1])
		}
		d.mu.sent = append(d.mu.sent, name)
	}
}

// nextCommand returns the arguments of the first command in p and the bytes after it. args is nil
// if p does not begin with a complete command.
func nextCommand(p []byte) (args []string, rest []byte) {
	length := func(typ byte) int {
		end := bytes.Index(p, []byte("\r\n"))
		if end < 1 || p[0] != typ {
			return -1
		}
		n, err := strconv.Atoi(string(p[1:end]))
		if err != nil {
			return -1
		}
		p = p[end+2:]
		return n
	}
	for n := length('*'); n > 0; n-- {
		k := length('$')
		if k < 0 || len(p) < k+2 {
			return nil, nil
		}
		args, p = append(args, string(p[:k])), p[k+2:]
	}
	return args, p
}

// readLastError reads the server's error from before the failed write, such as too many clients or
// a missing certificate. It blocks for at most 50 ms.
func (d *Dialer) readLastError(w *wire) {
	raw := w.NetConn()
	if raw.SetReadDeadline(time.Now().Add(50*time.Millisecond)) != nil {
		return
	}
	p := make([]byte, 512)
	n, err := 0, error(nil)
	for n < len(p) && err == nil && !bytes.Contains(p[:n], []byte("\r\n")) {
		var more int
		more, err = raw.Read(p[n:])
		n += more
	}
	words := ""
	line, _, _ := bytes.Cut(p[:n], []byte("\r\n"))
	switch {
	case len(line) > 1 && line[0] == '-':
		words = string(line[1:])
	case n == 0 && err != nil && strings.Contains(err.Error(), "tls: "):
		words = err.Error() // a TLS alert
	}
	d.mu.Lock()
	d.mu.words = words
	d.mu.Unlock()
}

// Settled notes that the handshake, and the greeting after it, are over.
func (d *Dialer) Settled() {
	d.mu.Lock()
	conn := d.mu.conn
	d.mu.sent = nil
	d.mu.Unlock()
	if conn != nil {
		conn.handshaking.Store(nil)
		conn.Settled()
	}
}

// Streams notes that replies are read in pieces from now on.
func (d *Dialer) Streams() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.mu.conn != nil {
		d.mu.conn.Streams()
	}
}

// Explain adds to err the step in which the connection failed and the server's last error.
func (d *Dialer) Explain(err error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	conn := d.mu.conn
	if errors.Is(err, ErrNoPermit) && conn != nil && conn.Ended() {
		err = ErrConnClosed // it ended between two commands, and rueidis tried to redial
		if cause := conn.Err(); cause != nil {
			err = cause
		}
	}
	if err == nil || errors.Is(err, ErrNoPermit) {
		return err
	}
	if conn == nil {
		if d.mu.step == "" || strings.HasPrefix(err.Error(), d.mu.step) {
			return err // errors of package net begin with "dial"
		}
		return fmt.Errorf("%s: %w", d.mu.step, err)
	}
	replies, said := conn.Replies(), conn.Said()
	if re := (*rueidis.RedisError)(nil); errors.As(err, &re) {
		for _, s := range said {
			if strings.HasPrefix(strings.TrimPrefix(s.Text, "ERR "), re.Error()[:min(len(re.Error()), 64)]) {
				return fmt.Errorf("%s: %w", d.commandLocked(s.Reply), err)
			}
		}
		return fmt.Errorf("%s: %w", d.commandLocked(replies), err)
	}
	if violation := (*resp.ProtocolError)(nil); errors.As(err, &violation) || rediserr.GaveUp(err) {
		return fmt.Errorf("%s: %w", d.commandLocked(replies+1), err)
	}
	switch {
	case len(said) > 0:
		last := said[len(said)-1]
		return fmt.Errorf("%s: the server said \"%s\" and hung up: %w", d.commandLocked(last.Reply), rediserr.Printable(last.Text), err)
	case d.mu.words != "":
		return fmt.Errorf("%s: the server said \"%s\" and hung up: %w", d.commandLocked(replies+1), rediserr.Printable(d.mu.words), err)
	case replies > 0:
		return fmt.Errorf("%s: the server hung up: %w", d.commandLocked(replies+1), err)
	case d.mu.secure:
		return fmt.Errorf("%s: the server hung up without an answer: it may want a client certificate: %w", d.commandLocked(1), err)
	}
	return fmt.Errorf("%s: the server hung up without an answer: it may be a TLS port (rediss://): %w", d.commandLocked(1), err)
}

// commandLocked returns the name of the n-th command sent, counted from 1.
func (d *Dialer) commandLocked(n int64) string {
	if n < 1 || n > int64(len(d.mu.sent)) {
		return "handshake"
	}
	return d.mu.sent[n-1]
}
