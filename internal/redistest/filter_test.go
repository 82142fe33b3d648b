package redistest

import (
	"bufio"
	"strings"
	"testing"
)

// ask sends a command as an array and returns the first line of its reply.
func ask(t *testing.T, c *respConn, args ...string) string {
	t.Helper()
	if err := c.send(args); err != nil {
		t.Fatal(err)
	}
	frame, err := readFrame(c.r)
	if err != nil {
		t.Fatal(err)
	}
	return string(frame)
}

func TestAFilterAnswersAsTheServerThatItPlays(t *testing.T) {
	s := Start(t)
	for _, m := range Makes {
		f := NewFilter(t, s.Addr(), m)
		c := &respConn{Conn: dialTo(t, f.Addr())}
		c.r = bufio.NewReader(c.Conn)
		bare, three, info := ask(t, c, "HELLO"), ask(t, c, "HELLO", "3"), ask(t, c, "INFO", "server")
		if got, want := strings.HasPrefix(bare, "-"), m.redis() < 6.2; got != want {
			t.Errorf("%s: HELLO: %q", m.Name, bare)
		}
		if got, want := strings.HasPrefix(three, "%"), m.redis() >= 6; got != want {
			t.Errorf("%s: HELLO 3: %q", m.Name, three)
		}
		if strings.HasPrefix(three, "%") && !strings.Contains(three, m.Version) {
			t.Errorf("%s: HELLO 3: %q", m.Name, three)
		}
		if !strings.Contains(info, "_version:"+m.Version) || strings.Contains(info, "server_mode:") != m.Valkey {
			t.Errorf("%s: INFO: %q", m.Name, info)
		}
		if got, want := strings.HasPrefix(ask(t, c, "CLIENT", "TRACKING", "ON"), "-"), m.redis() < 6; got != want {
			t.Errorf("%s: CLIENT TRACKING: error is %v", m.Name, got)
		}
		if got := ask(t, c, "SET", "k", "v"); got != "+OK\r\n" {
			t.Errorf("%s: SET: %q", m.Name, got)
		}
	}
}

func TestAFilterTurnsCommandsAwayAndKeepsTheOrderOfReplies(t *testing.T) {
	s := Start(t)
	f := NewFilter(t, s.Addr(), Makes[3],
		Rule{Command: "PTTL", Manner: Denied}, Rule{Command: "GETEX", Manner: Unknown}, Rule{Command: "CLIENT TRACKING", Manner: Unknown},
		Rule{Command: "INFO", Manner: Says, Text: "ERR not today"}, Rule{Command: "ROLE", Manner: HangUp})
	c := &respConn{Conn: dialTo(t, f.Addr())}
	c.r = bufio.NewReader(c.Conn)
	commands := [][]string{
		{"SET", "k", "1"}, {"PTTL", "k"}, {"INCR", "k"}, {"getex", "k"}, {"CLIENT", "TRACKING", "ON"}, {"INFO"},
		{"MULTI"}, {"INCR", "k"}, {"PTTL", "k"}, {"EXEC"}, {"GET", "k"}, {"ROLE"}, {"GET", "k"},
	}
	if err := c.send(commands...); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"+OK", "-NOPERM", ":2", "-ERR unknown command 'getex'", "-ERR unknown subcommand 'TRACKING'", "-ERR not today",
		"+OK", "+QUEUED", "-NOPERM", "-EXECABORT", "$1",
	} {
		frame, err := readFrame(c.r)
		if err != nil || !strings.HasPrefix(string(frame), want) {
			t.Fatalf("reply %q, %v; want %q", frame, err, want)
		}
	}
	if frame, err := readFrame(c.r); err == nil {
		t.Fatalf("behind the end: %q", frame)
	}
	if n := f.Seen("PTTL k"); n != 2 {
		t.Errorf("PTTL was seen %d times", n)
	}
}
