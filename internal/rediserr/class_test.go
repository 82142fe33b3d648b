package rediserr

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/alicebob/miniredis/v2/server"
	"github.com/redis/rueidis"
)

// replier makes rueidis' own errors: a server answers with any error line that
// the test wants.
type replier struct {
	t      *testing.T
	client rueidis.Client
}

func newReplier(t *testing.T) *replier {
	t.Helper()
	m := miniredis.RunT(t)
	m.Server().SetPreHook(func(p *server.Peer, cmd string, args ...string) bool {
		switch cmd {
		case "FAIL":
			p.WriteError(args[0])
		case "NULL":
			p.WriteNull()
		default:
			return false
		}
		return true
	})
	client, err := rueidis.NewClient(rueidis.ClientOption{
		InitAddress: []string{m.Addr()}, ForceSingleClient: true, DisableCache: true, DisableRetry: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return &replier{t, client}
}

// err is the error with which rueidis returns a reply of this text. Of the text
// it drops a leading "ERR ".
func (r *replier) err(text string) error {
	r.t.Helper()
	err := r.client.Do(context.Background(), r.client.B().Arbitrary("FAIL").Args(text).Build()).Error()
	if re, ok := rueidis.IsRedisErr(err); !ok || re.Error() != strings.TrimPrefix(text, "ERR ") {
		r.t.Fatalf("the server said %q and rueidis %v", text, err)
	}
	return err
}

func (r *replier) null() error {
	r.t.Helper()
	err := r.client.Do(context.Background(), r.client.B().Arbitrary("NULL").Build()).Error()
	if !rueidis.IsRedisNil(err) {
		r.t.Fatalf("want a nil reply, have %v", err)
	}
	return err
}

func (c Class) String() string {
	return [...]string{"ok", "command", "write refused", "busy", "down", "unknown", "canceled", "redirect"}[c]
}

func TestEachReplyOfRedisHasItsClass(t *testing.T) {
	r := newReplier(t)
	for _, tt := range []struct {
		reply string
		want  Class
	}{
		// Every write is refused; reads go on.
		{"READONLY You can't write against a read only replica.", WriteRefused},
		{"MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.", WriteRefused},
		{"OOM command not allowed when used memory > 'maxmemory'.", WriteRefused},
		{"NOREPLICAS Not enough good replicas to write.", WriteRefused},
		// The same, met by a script: Redis 7 first, Redis 6 after it.
		{"READONLY You can't write against a read only replica. script: 5bd2b6f0ee9b8b5e1d1d8ab8d1c4d6ff7b4a2d64, on @user_script:1.", WriteRefused},
		{"OOM command not allowed when used memory > 'maxmemory'. script: 5bd2b6f0ee9b8b5e1d1d8ab8d1c4d6ff7b4a2d64, on @user_script:7.", WriteRefused},
		{"MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk. script: 5bd2, on @user_script:1.", WriteRefused},
		{"NOREPLICAS Not enough good replicas to write. script: 5bd2, on @user_script:1.", WriteRefused},
		{"ERR Error running script (call to f_5bd2b6f0ee9b8b5e1d1d8ab8d1c4d6ff7b4a2d64): @user_script:1: @user_script: 1: -READONLY You can't write against a read only replica. ", WriteRefused},
		{"ERR Error running script (call to f_5bd2): @user_script:7: @user_script: 7: -OOM command not allowed when used memory > 'maxmemory'. ", WriteRefused},
		{"ERR Error running script (call to f_5bd2): @user_script:7: @user_script: 7: -MISCONF Redis is configured to save RDB snapshots. ", WriteRefused},
		{"ERR Error running script (call to f_5bd2): @user_script:7: @user_script: 7: -NOREPLICAS Not enough good replicas to write. ", WriteRefused},

		// Redis is away for everybody, or for this caller.
		{"LOADING Redis is loading the dataset in memory", Down},
		{"MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", Down},
		{"CLUSTERDOWN The cluster is down", Down},
		{"CLUSTERDOWN The cluster is down and only accepts read commands", WriteRefused},
		{"CLUSTERDOWN Hash slot not served", Redirect},
		{"TRYAGAIN Multiple keys request during rehashing of slot", Down},
		{"DENIED Redis is running in protected mode because protected mode is enabled", Down},
		{"BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.", Busy},
		{"BUSY Redis is busy running a script. You can only call FUNCTION KILL or SHUTDOWN NOSAVE.", Busy},
		{"BUSY Redis is busy running a module command.", Busy},
		{"NOAUTH Authentication required.", Down},
		{"NOAUTH HELLO must be called with the client already authenticated", Down},
		{"WRONGPASS invalid username-password pair or user is disabled.", Down},
		{"ERR max number of clients reached", Down},
		{"ERR max number of clients + cluster connections reached", Down},

		// About this command.
		{"BUSYKEY Target key name already exists.", Command},
		{"BUSYGROUP Consumer Group name already exists", Command},
		{"WRONGTYPE Operation against a key holding the wrong kind of value", Command},
		{"NOSCRIPT No matching script. Please use EVAL.", Command},
		{"EXECABORT Transaction discarded because of previous errors.", Command},
		{"CROSSSLOT Keys in request don't hash to the same slot", Command},
		{"NOPERM this user has no permissions to access one of the keys used as arguments", Command},
		{"NOPERM User app has no permissions to run the 'set' command", Command},
		{"MOVED 3999 127.0.0.1:6381", Redirect},
		{"ASK 3999 127.0.0.1:6381", Redirect},
		{"ERR syntax error", Command},
		{"ERR invalid expire time in 'set' command", Command},
		{"ERR value is not an integer or out of range", Command},
		{"ERR Error running script (call to f_5bd2): @user_script:1: WRONGTYPE Operation against a key", Command},
		{"ERR index out of range", Command},
		{"ERR string exceeds maximum allowed size (proto-max-bulk-len)", Command},
		{"ERR string exceeds maximum allowed size (512MB)", Command},
		{"ERR Protocol error: invalid bulk length", Command},
		{"ERR unknown command 'PTTL', with args beginning with: 'no upstream host' ", Command},
		{"ERR unknown command `FOO`, with args beginning with: ", Command},
		{"ERR wrong number of arguments for 'get' command", Command},
		{"ERR Unknown subcommand or wrong number of arguments for 'FOO'. Try CLIENT HELP.", Command},
		{"ERR GT, LT, and/or NX options at the same time are not compatible", Command},
		{"ERR DUMP payload version or checksum are wrong", Command},
		{"ERR This instance has cluster support disabled", Command},
		{"ERR max request size exceeded. Limit: 1048576 bytes, Actual: 2000000 bytes", Command},

		// Nobody's known words: a proxy's whose backend is away, a service's whose
		// quota is used up, a later version's.
		{"no upstream host", Unknown},
		{"upstream failure", Unknown},
		{"upstream protocol error", Unknown},
		{"ERR Connection refused", Unknown},
		{"ERR Connection timed out", Unknown},
		{"ERR Invalid argument", Unknown},
		{"ERR Operation not permitted", Unknown},
		{"ERR Host is down", Unknown},
		{"ERR max requests limit exceeded. Limit: 500000, Usage: 500002", Unknown},
		{"ERR max daily request limit exceeded", Unknown},
		{"ERR no server connection avaliable", Unknown},
		{"ERR handle response, backend conn reset", Unknown},
		{"Out of memory", Unknown},
		{"ERR Out of memory", Unknown},
		{"ERR internal error", Unknown},
		{"ERR value of the upstream is away", Unknown},
		{"ERR", Unknown},
		{"WHATEVER a later version says", Unknown},
		{"READONLYISH is another word", Unknown},
		{"readonly in lower case is nobody's code", Unknown},
	} {
		err := r.err(tt.reply)
		if got := Classify(context.Background(), err); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.reply, got, tt.want)
		}
		if got := Classify(context.Background(), fmt.Errorf("on the way: %w", err)); got != tt.want {
			t.Errorf("%s, wrapped: %v, want %v", tt.reply, got, tt.want)
		}
		// An answer is an answer, however impatient the caller has become.
		gone, cancel := context.WithCancel(context.Background())
		cancel()
		if got := Classify(gone, err); got != tt.want {
			t.Errorf("%s, to a caller who left: %v, want %v", tt.reply, got, tt.want)
		}
	}
	if got := Classify(context.Background(), r.null()); got != OK {
		t.Errorf("a nil reply: %v", got)
	}
	if got := Classify(context.Background(), nil); got != OK {
		t.Errorf("no error: %v", got)
	}
}

// Redis quotes the arguments of a command that it does not know. What a caller
// put there is no news of the server.
func TestWhatAReplyQuotesOfItsCommandIsNoNewsOfRedis(t *testing.T) {
	r := newReplier(t)
	for _, reply := range []string{
		"ERR unknown command 'PTTL', with args beginning with: 'a -OOM key' ",
		"ERR unknown command 'PTTL', with args beginning with: ' -READONLY ' ",
		"ERR unknown command 'PTTL', with args beginning with: 'max number of clients' ",
	} {
		if got := Classify(context.Background(), r.err(reply)); got != Command {
			t.Errorf("%s: %v, want %v", reply, got, Command)
		}
	}
}

func TestATransportErrorMeansDownAndAnImpatientCallerDoesNot(t *testing.T) {
	live := context.Background()
	canceled, cancel := context.WithCancel(live)
	cancel()
	late, done := context.WithDeadline(live, time.Now().Add(-time.Second))
	defer done()
	patient, done := context.WithTimeout(live, time.Hour)
	defer done()
	for _, tt := range []struct {
		name string
		ctx  context.Context
		err  error
		want Class
	}{
		{"eof", live, io.EOF, Down},
		{"cut in half", live, io.ErrUnexpectedEOF, Down},
		{"refused", live, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}, Down},
		{"reset", live, &net.OpError{Op: "read", Err: syscall.ECONNRESET}, Down},
		{"closed", live, net.ErrClosed, Down},
		{"no such host", live, &net.DNSError{Err: "no such host", IsNotFound: true}, Down},
		{"tls", live, tls.RecordHeaderError{Msg: "first record does not look like a TLS handshake"}, Down},
		{"rueidis closing", live, rueidis.ErrClosing, Down},
		{"no permit to dial", live, fmt.Errorf("x: %w", errors.New("only the supervisor dials")), Down},
		{"no room", live, errors.New("too many calls wait"), Down},
		{"budget", live, errors.New("no answer in time"), Down},
		{"something else", live, errors.New("something else"), Down},
		{"the connection broke under a caller who left", canceled, io.EOF, Down},

		{"the budget ran out, no caller's deadline", live, context.DeadlineExceeded, Down},
		{"the budget ran out, the caller has time", patient, context.DeadlineExceeded, Down},
		{"our own context was cancelled", patient, context.Canceled, Down},
		{"the caller's deadline", late, context.DeadlineExceeded, Canceled},
		{"the caller cancelled", canceled, context.Canceled, Canceled},
		{"the caller cancelled as the budget ran out", canceled, context.DeadlineExceeded, Canceled},
		{"the caller cancelled, wrapped", canceled, fmt.Errorf("x: %w", context.Canceled), Canceled},
	} {
		if got := Classify(tt.ctx, tt.err); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}
