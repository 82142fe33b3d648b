package holdfast

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
	"unicode/utf8"

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

func (c class) String() string {
	return [...]string{"ok", "command", "write refused", "busy", "down", "unknown", "canceled", "redirect"}[c]
}

func TestEachReplyOfRedisHasItsClass(t *testing.T) {
	r := newReplier(t)
	for _, tt := range []struct {
		reply string
		want  class
	}{
		// Every write is refused; reads go on.
		{"READONLY You can't write against a read only replica.", classWriteRefused},
		{"MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.", classWriteRefused},
		{"OOM command not allowed when used memory > 'maxmemory'.", classWriteRefused},
		{"NOREPLICAS Not enough good replicas to write.", classWriteRefused},
		// The same, met by a script: Redis 7 first, Redis 6 after it.
		{"READONLY You can't write against a read only replica. script: 5bd2b6f0ee9b8b5e1d1d8ab8d1c4d6ff7b4a2d64, on @user_script:1.", classWriteRefused},
		{"OOM command not allowed when used memory > 'maxmemory'. script: 5bd2b6f0ee9b8b5e1d1d8ab8d1c4d6ff7b4a2d64, on @user_script:7.", classWriteRefused},
		{"MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk. script: 5bd2, on @user_script:1.", classWriteRefused},
		{"NOREPLICAS Not enough good replicas to write. script: 5bd2, on @user_script:1.", classWriteRefused},
		{"ERR Error running script (call to f_5bd2b6f0ee9b8b5e1d1d8ab8d1c4d6ff7b4a2d64): @user_script:1: @user_script: 1: -READONLY You can't write against a read only replica. ", classWriteRefused},
		{"ERR Error running script (call to f_5bd2): @user_script:7: @user_script: 7: -OOM command not allowed when used memory > 'maxmemory'. ", classWriteRefused},
		{"ERR Error running script (call to f_5bd2): @user_script:7: @user_script: 7: -MISCONF Redis is configured to save RDB snapshots. ", classWriteRefused},
		{"ERR Error running script (call to f_5bd2): @user_script:7: @user_script: 7: -NOREPLICAS Not enough good replicas to write. ", classWriteRefused},

		// Redis is away for everybody, or for this caller.
		{"LOADING Redis is loading the dataset in memory", classDown},
		{"MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", classDown},
		{"CLUSTERDOWN The cluster is down", classDown},
		{"CLUSTERDOWN The cluster is down and only accepts read commands", classWriteRefused},
		{"CLUSTERDOWN Hash slot not served", classRedirect},
		{"TRYAGAIN Multiple keys request during rehashing of slot", classDown},
		{"DENIED Redis is running in protected mode because protected mode is enabled", classDown},
		{"BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.", classBusy},
		{"BUSY Redis is busy running a script. You can only call FUNCTION KILL or SHUTDOWN NOSAVE.", classBusy},
		{"BUSY Redis is busy running a module command.", classBusy},
		{"NOAUTH Authentication required.", classDown},
		{"NOAUTH HELLO must be called with the client already authenticated", classDown},
		{"WRONGPASS invalid username-password pair or user is disabled.", classDown},
		{"ERR max number of clients reached", classDown},
		{"ERR max number of clients + cluster connections reached", classDown},

		// About this command.
		{"BUSYKEY Target key name already exists.", classCommand},
		{"BUSYGROUP Consumer Group name already exists", classCommand},
		{"WRONGTYPE Operation against a key holding the wrong kind of value", classCommand},
		{"NOSCRIPT No matching script. Please use EVAL.", classCommand},
		{"EXECABORT Transaction discarded because of previous errors.", classCommand},
		{"CROSSSLOT Keys in request don't hash to the same slot", classCommand},
		{"NOPERM this user has no permissions to access one of the keys used as arguments", classCommand},
		{"NOPERM User app has no permissions to run the 'set' command", classCommand},
		{"MOVED 3999 127.0.0.1:6381", classRedirect},
		{"ASK 3999 127.0.0.1:6381", classRedirect},
		{"ERR syntax error", classCommand},
		{"ERR invalid expire time in 'set' command", classCommand},
		{"ERR value is not an integer or out of range", classCommand},
		{"ERR Error running script (call to f_5bd2): @user_script:1: WRONGTYPE Operation against a key", classCommand},
		{"ERR index out of range", classCommand},
		{"ERR string exceeds maximum allowed size (proto-max-bulk-len)", classCommand},
		{"ERR string exceeds maximum allowed size (512MB)", classCommand},
		{"ERR Protocol error: invalid bulk length", classCommand},
		{"ERR unknown command 'PTTL', with args beginning with: 'no upstream host' ", classCommand},
		{"ERR unknown command `FOO`, with args beginning with: ", classCommand},
		{"ERR wrong number of arguments for 'get' command", classCommand},
		{"ERR Unknown subcommand or wrong number of arguments for 'FOO'. Try CLIENT HELP.", classCommand},
		{"ERR GT, LT, and/or NX options at the same time are not compatible", classCommand},
		{"ERR DUMP payload version or checksum are wrong", classCommand},
		{"ERR This instance has cluster support disabled", classCommand},
		{"ERR max request size exceeded. Limit: 1048576 bytes, Actual: 2000000 bytes", classCommand},

		// Nobody's known words: a proxy's whose backend is away, a service's whose
		// quota is used up, a later version's.
		{"no upstream host", classUnknown},
		{"upstream failure", classUnknown},
		{"upstream protocol error", classUnknown},
		{"ERR Connection refused", classUnknown},
		{"ERR Connection timed out", classUnknown},
		{"ERR Invalid argument", classUnknown},
		{"ERR Operation not permitted", classUnknown},
		{"ERR Host is down", classUnknown},
		{"ERR max requests limit exceeded. Limit: 500000, Usage: 500002", classUnknown},
		{"ERR max daily request limit exceeded", classUnknown},
		{"ERR no server connection avaliable", classUnknown},
		{"ERR handle response, backend conn reset", classUnknown},
		{"Out of memory", classUnknown},
		{"ERR Out of memory", classUnknown},
		{"ERR internal error", classUnknown},
		{"ERR value of the upstream is away", classUnknown},
		{"ERR", classUnknown},
		{"WHATEVER a later version says", classUnknown},
		{"READONLYISH is another word", classUnknown},
		{"readonly in lower case is nobody's code", classUnknown},
	} {
		err := r.err(tt.reply)
		if got := classify(context.Background(), err); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.reply, got, tt.want)
		}
		if got := classify(context.Background(), fmt.Errorf("on the way: %w", err)); got != tt.want {
			t.Errorf("%s, wrapped: %v, want %v", tt.reply, got, tt.want)
		}
		// An answer is an answer, however impatient the caller has become.
		gone, cancel := context.WithCancel(context.Background())
		cancel()
		if got := classify(gone, err); got != tt.want {
			t.Errorf("%s, to a caller who left: %v, want %v", tt.reply, got, tt.want)
		}
	}
	if got := classify(context.Background(), r.null()); got != classOK {
		t.Errorf("a nil reply: %v", got)
	}
	if got := classify(context.Background(), nil); got != classOK {
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
		if got := classify(context.Background(), r.err(reply)); got != classCommand {
			t.Errorf("%s: %v, want %v", reply, got, classCommand)
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
		want class
	}{
		{"eof", live, io.EOF, classDown},
		{"cut in half", live, io.ErrUnexpectedEOF, classDown},
		{"refused", live, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}, classDown},
		{"reset", live, &net.OpError{Op: "read", Err: syscall.ECONNRESET}, classDown},
		{"closed", live, net.ErrClosed, classDown},
		{"no such host", live, &net.DNSError{Err: "no such host", IsNotFound: true}, classDown},
		{"tls", live, tls.RecordHeaderError{Msg: "first record does not look like a TLS handshake"}, classDown},
		{"rueidis closing", live, rueidis.ErrClosing, classDown},
		{"no permit to dial", live, fmt.Errorf("x: %w", errNoPermit), classDown},
		{"no room", live, errBulkhead, classDown},
		{"budget", live, errBudget, classDown},
		{"something else", live, errors.New("something else"), classDown},
		{"the connection broke under a caller who left", canceled, io.EOF, classDown},

		{"the budget ran out, no caller's deadline", live, context.DeadlineExceeded, classDown},
		{"the budget ran out, the caller has time", patient, context.DeadlineExceeded, classDown},
		{"our own context was cancelled", patient, context.Canceled, classDown},
		{"the caller's deadline", late, context.DeadlineExceeded, classCanceled},
		{"the caller cancelled", canceled, context.Canceled, classCanceled},
		{"the caller cancelled as the budget ran out", canceled, context.DeadlineExceeded, classCanceled},
		{"the caller cancelled, wrapped", canceled, fmt.Errorf("x: %w", context.Canceled), classCanceled},
	} {
		if got := classify(tt.ctx, tt.err); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestAnErrorTellsOperationAndKeyAndWrapsItsCause(t *testing.T) {
	readonly := newReplier(t).err("READONLY You can't write against a read only replica.")
	for _, tt := range []struct {
		err  *Error
		want string
		is   error
	}{
		{&Error{Op: "get", Key: "k", Tier: Remote, Err: ErrMiss}, "holdfast: get k: miss: ask the source of truth", ErrMiss},
		{&Error{Op: "delete", Err: context.Canceled}, "holdfast: delete: context canceled", context.Canceled},
		{&Error{Op: "set", Key: "k", Err: ErrInvalidTTL}, "holdfast: set k: invalid ttl: it must be zero or positive", ErrInvalidTTL},
		{&Error{Op: "set", Key: "k", Tier: Remote, Err: readonly}, "holdfast: set k: READONLY You can't write against a read only replica.", readonly},
		{
			&Error{Op: "add", Key: "k", Tier: Remote, Err: unavailable{errBudget}},
			"holdfast: add k: " + strings.TrimPrefix(ErrUnavailable.Error(), "holdfast: ") + ": " + errBudget.Error(),
			ErrUnavailable,
		},
	} {
		if got := tt.err.Error(); got != tt.want {
			t.Errorf("text %q, want %q", got, tt.want)
		}
		if errors.Unwrap(error(tt.err)) != tt.err.Err {
			t.Errorf("%v unwraps to %v", tt.err, errors.Unwrap(error(tt.err)))
		}
		far := fmt.Errorf("caller: %w", errors.Join(io.EOF, tt.err))
		if !errors.Is(far, tt.is) {
			t.Errorf("%v is not %v", far, tt.is)
		}
		if errors.Is(tt.err, ErrClosed) {
			t.Errorf("%v is ErrClosed", tt.err)
		}
		if e := (*Error)(nil); !errors.As(far, &e) || e != tt.err {
			t.Errorf("%v holds no *Error", far)
		}
	}
	var re *rueidis.RedisError
	if err := error(&Error{Op: "set", Err: readonly}); !errors.As(err, &re) {
		t.Errorf("%v hides redis' own error", err)
	}
}

func TestALongOrBinaryKeyIsShownShortAndAsValidText(t *testing.T) {
	for _, tt := range []struct {
		name, key string
		shows     string // some of the key that must be there
	}{
		{"short", "user:1", "user:1"},
		{"64 bytes", strings.Repeat("a", 64), strings.Repeat("a", 64)},
		{"binary", "a\xff\xfe\x00b", "a"},
		{"all bad bytes", strings.Repeat("\xff", 200), ""},
		{"1 MiB", strings.Repeat("a", 1<<20), strings.Repeat("a", 64) + "..."},
		{"1 MiB, binary", strings.Repeat("\x80z", 1<<19), "z"},
		{"a letter cut in half", strings.Repeat("a", 63) + "é" + strings.Repeat("b", 100), strings.Repeat("a", 63)},
		{"letters of four bytes", "a" + strings.Repeat("😀", 1<<18), "😀😀"},
	} {
		text := (&Error{Op: "get", Key: tt.key, Err: ErrMiss}).Error()
		if !utf8.ValidString(text) {
			t.Errorf("%s: %q is not valid UTF-8", tt.name, text)
		}
		if len(text) > 200 {
			t.Errorf("%s: the text has %d bytes", tt.name, len(text))
		}
		if !strings.Contains(text, tt.shows) || !strings.HasPrefix(text, "holdfast: get ") || !strings.HasSuffix(text, ": miss: ask the source of truth") {
			t.Errorf("%s: %q", tt.name, text)
		}
		if len(tt.key) > 64 && !strings.Contains(text, "...") {
			t.Errorf("%s: %q does not say that the key goes on", tt.name, text)
		}
	}
}

func TestUnavailableNamesItsCauseAndIsErrUnavailable(t *testing.T) {
	cause := fmt.Errorf("dial: %w", syscall.ECONNREFUSED)
	err := error(unavailable{cause})
	if !errors.Is(err, ErrUnavailable) || !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("%v is not ErrUnavailable with its cause", err)
	}
	if errors.Is(err, ErrMiss) || errors.Is(err, ErrClosed) {
		t.Errorf("%v is everything", err)
	}
	if text := err.Error(); !strings.HasPrefix(text, ErrUnavailable.Error()) || !strings.HasSuffix(text, cause.Error()) {
		t.Errorf("text %q", text)
	}
	if !errors.Is(&Error{Op: "add", Key: "k", Err: err}, ErrUnavailable) {
		t.Error("lost within an *Error")
	}
}
