package redistest

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// A Make is a make and version of a server that a Filter imitates.
type Make struct {
	Name    string
	Version string // as in INFO and HELLO; Redis' numbers decide which commands there are
	Valkey  bool   // replies with Valkey's texts; Version is then Valkey's
}

// Makes are the servers whose handshakes are known.
var Makes = []Make{
	{Name: "Redis 5.0", Version: "5.0.14"},
	{Name: "Redis 6.0", Version: "6.0.16"},
	{Name: "Redis 6.2", Version: "6.2.14"},
	{Name: "Redis 7.0", Version: "7.0.15"},
	{Name: "Redis 8.x", Version: "8.2.1"},
	{Name: "Valkey 8", Version: "8.1.1", Valkey: true},
	{Name: "Valkey 9", Version: "9.0.0", Valkey: true},
}

// since is the version of Redis that introduced a command or a subcommand.
var since = map[string]float64{
	"HELLO": 6, "CLIENT TRACKING": 6, "CLIENT CACHING": 6, "ACL": 6, "RESET": 6.2, "COPY": 6.2,
	"GETEX": 6.2, "GETDEL": 6.2, "CLIENT INFO": 6.2, "CLIENT NO-EVICT": 7, "CLIENT NO-TOUCH": 7.2,
	"CLIENT SETINFO": 7.2, "CLUSTER SHARDS": 7, "FUNCTION": 7, "FCALL": 7, "EVAL_RO": 7, "EVALSHA_RO": 7,
	"EXPIRETIME": 7, "PEXPIRETIME": 7, "SSUBSCRIBE": 7, "SPUBLISH": 7, "COMMAND DOCS": 7, "COMMAND LIST": 7,
}

var sinceWord = map[string]map[string]float64{
	"SET":     {"KEEPTTL": 6, "GET": 6.2, "EXAT": 6.2, "PXAT": 6.2},
	"EXPIRE":  {"NX": 7, "XX": 7, "GT": 7, "LT": 7},
	"PEXPIRE": {"NX": 7, "XX": 7, "GT": 7, "LT": 7},
}

// Manner is how a Filter refuses a command.
type Manner int

const (
	// Unknown answers as a server that does not have the command, or has it under another
	// name (rename-command).
	Unknown Manner = iota
	// Denied answers as a server whose ACL does not permit the command.
	Denied
	// HangUp closes the connection after the replies to earlier commands.
	HangUp
	// Says answers with Rule.Text.
	Says
)

// A Rule refuses a command, such as "PTTL", one with a subcommand, such as "CLIENT
// TRACKING", or all commands: "".
type Rule struct {
	Command string
	Manner  Manner
	Text    string // without the leading dash
}

// Filter is a proxy in front of a real server that imitates another one: it changes the
// replies to the handshake accordingly, and refuses commands. The real server executes
// all other commands, so the data are real. The filter does not see commands within
// scripts, nor commands after a subscription.
type Filter struct {
	*Listener
	backend string
	plays   Make

	mu    sync.Mutex
	rules []Rule
	seen  map[string]int
}

// NewFilter returns a filter on a free loopback port. It ends with the test and does
// not block.
func NewFilter(tb testing.TB, backend string, plays Make, rules ...Rule) *Filter {
	tb.Helper()
	f := &Filter{backend: backend, plays: plays, rules: rules, seen: make(map[string]int)}
	f.Listener = listen(tb, f.serve)
	return f
}

// SetRules replaces the rules. It does not block.
func (f *Filter) SetRules(rules ...Rule) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rules = rules
}

// Seen returns how often a command was sent, by its name alone or by all its words:
// "HELLO", "HELLO 3". It does not block.
func (f *Filter) Seen(command string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.seen[strings.ToUpper(command)]
}

// filtered is one connection through a Filter. The backend sends one reply for each
// command, also for a refused one: another command is sent in its place, and its reply is
// replaced. So the order of replies is the backend's.
type filtered struct {
	f       *Filter
	client  *net.TCPConn
	backend net.Conn

	mu      sync.Mutex
	pending []func(frame []byte) []byte // rewrite the next replies; nil: unchanged
	hangUp  bool                        // close after the pending replies
	raw     bool                        // subscribed: replies cannot be counted
}

func (f *Filter) serve(client *net.TCPConn, _ int) {
	backend, err := net.DialTimeout("tcp", f.backend, dialBackend)
	if err != nil {
		resetConn(client)
		return
	}
	c := &filtered{f: f, client: client, backend: backend}
	var down sync.WaitGroup
	down.Go(c.down)
	c.up()
	// The client is gone, so nothing reads replies to its last commands.
	backend.Close()
	down.Wait()
}

// up forwards commands to the backend.
func (c *filtered) up() {
	r := bufio.NewReader(c.client)
	for {
		request, err := readReply(r)
		if err != nil || len(request.elems) == 0 {
			return
		}
		args := request.strings()
		c.f.note(args)
		send, becomes, hangUp := c.f.judge(args)
		c.mu.Lock()
		switch {
		case c.raw:
			send = args
		case hangUp:
			c.hangUp = true
			over := len(c.pending) == 0
			c.mu.Unlock()
			if over {
				c.client.Close()
			}
			drain(c.client) // until the client, or down, closes
			return
		default:
			c.raw = strings.HasSuffix(strings.ToUpper(args[0]), "SUBSCRIBE")
			if !c.raw {
				c.pending = append(c.pending, becomes)
			}
		}
		c.mu.Unlock()
		if (&respConn{Conn: c.backend}).send(send) != nil {
			return
		}
	}
}

// down forwards replies to the client.
func (c *filtered) down() {
	defer c.client.Close()
	r := bufio.NewReader(c.backend)
	for {
		frame, err := readFrame(r)
		if err != nil {
			return
		}
		over := false
		if frame[0] != '>' {
			c.mu.Lock()
			if len(c.pending) > 0 {
				if becomes := c.pending[0]; becomes != nil {
					frame = becomes(frame)
				}
				c.pending = c.pending[1:]
				over = c.hangUp && len(c.pending) == 0
			}
			c.mu.Unlock()
		}
		if _, err := c.client.Write(frame); err != nil || over {
			return
		}
	}
}

func (f *Filter) note(args []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen[strings.ToUpper(args[0])]++
	if len(args) > 1 {
		f.seen[strings.ToUpper(strings.Join(args, " "))]++
	}
}

// nobodys is a command that no server has.
const nobodys = "HOLDFAST.NOBODYS"

// judge returns the command to send instead of args, and a function that rewrites its
// reply.
func (f *Filter) judge(args []string) (send []string, becomes func([]byte) []byte, hangUp bool) {
	name := strings.ToUpper(args[0])
	full := name
	if len(args) > 1 {
		full += " " + strings.ToUpper(args[1])
	}
	refuse := func(text string) ([]string, func([]byte) []byte, bool) {
		return []string{nobodys}, func([]byte) []byte { return []byte("-" + text + "\r\n") }, false
	}
	answer := func(reply string) ([]string, func([]byte) []byte, bool) {
		return []string{"PING"}, func(frame []byte) []byte {
			if frame[0] == '-' {
				return frame
			}
			return []byte(reply)
		}, false
	}
	f.mu.Lock()
	rules := f.rules
	f.mu.Unlock()
	for _, r := range rules {
		if r.Command != name && r.Command != full && r.Command != "" {
			continue
		}
		switch r.Manner {
		case Unknown:
			return refuse(f.unknown(args, r.Command == full && full != name))
		case Denied:
			return refuse("NOPERM this user has no permissions to run the '" + strings.ToLower(strings.ReplaceAll(r.Command, " ", "|")) + "' command")
		case Says:
			return refuse(r.Text)
		case HangUp:
			return nil, nil, true
		}
	}
	version := f.plays.redis()
	switch {
	case since[name] > version:
		return refuse(f.unknown(args, false))
	case since[full] > version:
		return refuse(f.unknown(args, true))
	}
	for _, a := range args[min(2, len(args)):] {
		if sinceWord[name][strings.ToUpper(a)] > version {
			return refuse("ERR syntax error")
		}
	}
	switch {
	case name == "HELLO" && len(args) == 1 && version < 6.2:
		return refuse("ERR wrong number of arguments for 'hello' command")
	case name == "HELLO":
		return args, f.plays.hello, false
	case name == "INFO":
		return args, f.plays.info, false
	case full == "CLIENT SETINFO", full == "CLIENT NO-TOUCH":
		return answer("+OK\r\n") // the real server may be older
	case name == "SELECT" && f.plays.Valkey && version > 8.4:
		// In a cluster, too. If the real server refuses, its data is in database 0.
		return args, func(frame []byte) []byte {
			if bytes.Contains(frame, []byte("cluster mode")) {
				return []byte("+OK\r\n")
			}
			return frame
		}, false
	}
	return args, nil, false
}

// redis returns the version of Redis that has the same commands.
func (m Make) redis() float64 {
	major, rest, _ := strings.Cut(m.Version, ".")
	minor, _, _ := strings.Cut(rest, ".")
	v, err := strconv.ParseFloat(major+"."+minor, 64)
	if err != nil {
		panic("redistest: a version is not a number: " + m.Version)
	}
	return v
}

// unknown returns the text with which this make refuses a command.
func (f *Filter) unknown(args []string, sub bool) string {
	switch old := f.plays.redis() < 7; {
	case sub && old:
		return fmt.Sprintf("ERR Unknown subcommand or wrong number of arguments for '%s'. Try %s HELP.", args[1], strings.ToUpper(args[0]))
	case sub:
		return fmt.Sprintf("ERR unknown subcommand '%s'. Try %s HELP.", args[1], strings.ToUpper(args[0]))
	case old:
		return fmt.Sprintf("ERR unknown command `%s`, with args beginning with: %s", args[0], quoted(args[1:], "`", ", "))
	default:
		return fmt.Sprintf("ERR unknown command '%s', with args beginning with: %s", args[0], quoted(args[1:], "'", " "))
	}
}

func quoted(args []string, quote, behind string) string {
	var b strings.Builder
	for _, a := range args[:min(len(args), 4)] {
		b.WriteString(quote + a + quote + behind)
	}
	return strings.NewReplacer("\r", " ", "\n", " ").Replace(b.String())
}

var (
	helloVersion = regexp.MustCompile(`\$7\r\nversion\r\n\$\d+\r\n[^\r]*\r\n`)
	helloServer  = regexp.MustCompile(`\$6\r\nserver\r\n\$\d+\r\n[^\r]*\r\n`)
	helloHead    = regexp.MustCompile(`^[%*]\d+\r\n`)
	infoVersion  = regexp.MustCompile(`redis_version:[^\r]*\r\n`)
)

func bulkString(s string) string { return fmt.Sprintf("$%d\r\n%s\r\n", len(s), s) }

// hello rewrites the reply of HELLO to that of this make.
func (m Make) hello(frame []byte) []byte {
	if frame[0] == '-' {
		return frame
	}
	text := helloVersion.ReplaceAllLiteralString(string(frame), bulkString("version")+bulkString(m.Version))
	if !m.Valkey {
		return []byte(text)
	}
	text = helloServer.ReplaceAllLiteralString(text, bulkString("server")+bulkString("valkey"))
	head := helloHead.FindString(text)
	n, err := strconv.Atoi(strings.TrimSpace(head[1:]))
	if err != nil {
		panic(err)
	}
	n++
	if head[0] == '*' {
		n++
	}
	return []byte(fmt.Sprintf("%c%d\r\n", head[0], n) + text[len(head):] + bulkString("availability_zone") + bulkString(""))
}

// info rewrites the reply of INFO to that of this make.
func (m Make) info(frame []byte) []byte {
	if frame[0] != '$' && frame[0] != '=' {
		return frame
	}
	_, body, _ := bytes.Cut(frame, []byte("\r\n"))
	text := string(body[:len(body)-2])
	version := "redis_version:" + m.Version + "\r\n"
	if m.Valkey {
		version = "redis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:" + m.Version + "\r\n"
		text = strings.Replace(text, "redis_mode:", "server_mode:", 1)
	}
	text = infoVersion.ReplaceAllLiteralString(text, version)
	return []byte(fmt.Sprintf("%c%d\r\n%s\r\n", frame[0], len(text), text))
}

// readFrame reads one value of RESP2 or RESP3 and returns its bytes unchanged.
func readFrame(r *bufio.Reader) ([]byte, error) {
	line, err := r.ReadBytes('\n')
	if err != nil {
		return nil, err
	}
	if len(line) < 3 {
		return nil, fmt.Errorf("redistest: not a reply: %q", line)
	}
	parts, bytesToo := 0, false
	switch line[0] {
	case '$', '=', '!':
		bytesToo = true
	case '*', '~', '>':
		parts = 1
	case '%':
		parts = 2
	case '|':
		parts = 2 // and the value that it describes, below
	}
	n := 0
	if bytesToo || parts > 0 {
		if n, err = strconv.Atoi(string(bytes.TrimSpace(line[1:]))); err != nil {
			return nil, fmt.Errorf("redistest: not a reply: %q", line)
		}
	}
	if bytesToo && n >= 0 {
		body := make([]byte, n+2)
		if _, err := io.ReadFull(r, body); err != nil {
			return nil, err
		}
		return append(line, body...), nil
	}
	rest := n * parts
	if line[0] == '|' {
		rest++
	}
	for range rest {
		part, err := readFrame(r)
		if err != nil {
			return nil, err
		}
		line = append(line, part...)
	}
	return line, nil
}
