package holdfast

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/redis/rueidis"
)

// The errors of this package, for errors.Is.
var (
	// ErrMiss: no tier has the key, or Redis is away and no local copy may be served. Ask
	// the source of truth.
	ErrMiss = errors.New("holdfast: miss: ask the source of truth")

	// ErrUnavailable: only Redis can answer, and Redis is away or did not answer in time. In
	// the latter case a command may have run, unless its method says otherwise. Try again
	// later, or do without.
	ErrUnavailable = errors.New("holdfast: redis is unavailable and only redis can answer: try again later")

	// ErrClosed: the Cache was closed. Make a new one.
	ErrClosed = errors.New("holdfast: the cache is closed")

	// ErrJournalFull: Redis did not acknowledge the write, and the journal has no room for
	// its key, within Journal.MaxKeys or Journal.MaxBytes. The write was refused. The local
	// tier has dropped the key, so that this process does not serve the replaced value. A
	// write that had been sent may still run at Redis.
	ErrJournalFull = errors.New("holdfast: the journal is full: the write was refused")

	// ErrNotFound: the source of truth does not have the key. A loader returns this error,
	// or one that wraps it. The callers that wait for the load get it, and so do later calls
	// within Load.NotFoundTTL.
	ErrNotFound = errors.New("holdfast: not found: the source of truth has no such thing")

	// ErrInvalidTTL: the time to live is negative. Nothing was done.
	ErrInvalidTTL = errors.New("holdfast: invalid ttl: it must be zero or positive")

	errShared      = errors.New("holdfast: the command would change a connection that all callers share: use Dedicate")
	errOtherDB     = errors.New("holdfast: the client is one of the database of Redis.SelectDB: make another Cache for others, or use Dedicate")
	errQuit        = errors.New("holdfast: the connection is one that all callers share: Close ends the client, and release one of Dedicate")
	errLogin       = errors.New("holdfast: all callers share a connection and its user: set Username and Password, or AuthCredentialsFn, of Options.Redis, or use Dedicate")
	errMasters     = errors.New("holdfast: the connection is one that all callers share, and leads to a master: replicas are not read from, also not with Dedicate")
	errDeadly      = errors.New("holdfast: what answers it is no reply, also not with Dedicate: use a plain client")
	errReceive     = errors.New("holdfast: messages do not come over a connection that all callers share: use Receive or Dedicate")
	errTransaction = errors.New("holdfast: MULTI and EXEC must come in one DoMulti, or use Dedicate")
	errNoCommand   = errors.New("holdfast: the command is empty: build it with B")

	errNilContext    = errors.New("holdfast: nil context: pass context.Background() where there is none")
	errKeyTooLarge   = errors.New("holdfast: the key is over 512 MiB, the most that redis takes")
	errValueTooLarge = errors.New("holdfast: the value is over 512 MiB, the most that redis takes")
	errBudget        = errors.New("holdfast: redis did not answer within Options.Timeout")
	errBulkhead      = errors.New("holdfast: too many calls wait for redis already")
)

// maxString is Redis' proto-max-bulk-len. At a longer key or value the server closes the
// connection, which all calls in flight share.
const maxString = 512 << 20

// Error names the operation that failed, its key and the tier that refused. It wraps the
// cause: an error of this package, of a context or of a loader, or Redis' own
// *rueidis.RedisError.
type Error struct {
	Op   string // the method or command, in lower case: "set"
	Key  string // the key, or "" if the call has none or several
	Tier Tier   // the tier that refused
	Err  error
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("holdfast: ")
	b.WriteString(e.Op)
	if e.Key != "" {
		b.WriteString(" ")
		b.WriteString(shortKey(e.Key))
	}
	b.WriteString(": ")
	text := ""
	if e.Tier == Remote {
		text = shown(e.Err)
	} else {
		text = describe(e.Err)
	}
	b.WriteString(strings.TrimPrefix(text, "holdfast: "))
	return b.String()
}

func (e *Error) Unwrap() error { return e.Err }

// BatchError is the error of a call of many keys that failed for more than one of them. Its
// text has the number of errors and the first few of them; its length is bounded. errors.Is
// and errors.As look at all errors. Unwrap returns them: an *Error with its key for each key
// that failed, in no particular order.
type BatchError struct{ errs []error }

const (
	// batchErrorsTold is the number of errors in the text of a BatchError, batchErrorBytes
	// the length of each.
	batchErrorsTold = 5
	batchErrorBytes = 200
)

func (e *BatchError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "holdfast: %d errors: ", len(e.errs))
	for i, err := range e.errs[:min(len(e.errs), batchErrorsTold)] {
		if i > 0 {
			b.WriteString("; ")
		}
		text := strings.TrimPrefix(err.Error(), "holdfast: ")
		if len(text) > batchErrorBytes {
			text = strings.ToValidUTF8(text[:batchErrorBytes], "") + "..."
		}
		b.WriteString(text)
	}
	if more := len(e.errs) - batchErrorsTold; more > 0 {
		fmt.Fprintf(&b, "; and %d more", more)
	}
	return b.String()
}

// Unwrap returns the errors. Read the slice, do not write to it.
func (e *BatchError) Unwrap() []error { return e.errs }

// errorList collects the errors of a batch.
type errorList struct{ errs []error }

// add adds the error of a key at the remote tier.
func (l *errorList) add(op, key string, err error) {
	if err != nil {
		l.errs = append(l.errs, &Error{Op: op, Key: key, Tier: Remote, Err: err})
	}
}

// also adds an error that names its key, or the errors of another batch.
func (l *errorList) also(err error) {
	if several, ok := err.(*BatchError); ok {
		l.errs = append(l.errs, several.errs...)
	} else if err != nil {
		l.errs = append(l.errs, err)
	}
}

// join returns nil for no error, the error itself for one, and a *BatchError for several.
func (l *errorList) join() error {
	switch len(l.errs) {
	case 0:
		return nil
	case 1:
		return l.errs[0]
	}
	return &BatchError{l.errs}
}

// maxServerText bounds the text of a server in an error of this package, in bytes.
const maxServerText = 256

// printable returns a server's text as errors, log lines and Health show it: cut, and without
// control characters, because a terminal would obey them.
func printable(text string) string {
	cut := escape(text[:min(len(text), maxServerText)])
	if len(cut) > maxServerText {
		cut = strings.ToValidUTF8(cut[:maxServerText], "")
	}
	if len(text) > maxServerText {
		cut += "..."
	}
	return cut
}

// escape replaces unprintable characters with Go's escape sequences.
func escape(text string) string {
	if !strings.ContainsFunc(text, unprintable) {
		return text
	}
	quoted := strconv.Quote(text)
	return strings.ReplaceAll(quoted[1:len(quoted)-1], `\"`, `"`)
}

func unprintable(r rune) bool { return !strconv.IsPrint(r) || r == utf8.RuneError }

// describe returns the text of an error with every server's text in it made printable. The
// error itself is unchanged: errors.As finds Redis' own error with its whole text.
func describe(err error) string {
	text := err.Error()
	eachServerError(err, func(said string) {
		if clean := printable(said); clean != said {
			text = strings.ReplaceAll(text, said, clean)
		}
	})
	return text
}

func eachServerError(err error, f func(text string)) {
	switch e := err.(type) { // not errors.As, which finds only the first
	case *rueidis.RedisError:
		f(e.Error())
	case *strconv.NumError:
		f(strconv.Quote(e.Num)) // the server's text, in place of a number
	}
	switch e := err.(type) {
	case interface{ Unwrap() error }:
		if err := e.Unwrap(); err != nil {
			eachServerError(err, f)
		}
	case interface{ Unwrap() []error }:
		for _, err := range e.Unwrap() {
			eachServerError(err, f)
		}
	}
}

// maxTold bounds the text of an error in Health, log lines and hooks, where several errors
// may be joined. In bytes.
const maxTold = 8 * maxServerText

// presentable returns an error for Health, log lines and hooks: its text is on one line, of
// bounded length and without control characters.
func presentable(err error) error {
	if err == nil {
		return nil
	}
	text := shown(err)
	if text == err.Error() {
		return err
	}
	return &presented{text, err}
}

// shown returns the text of presentable's error.
func shown(err error) string {
	text := escape(strings.ReplaceAll(describe(err), "\n", "; "))
	if len(text) > maxTold {
		text = strings.ToValidUTF8(text[:maxTold], "") + "..."
	}
	return text
}

// presented is an error with a text that is safe to show.
type presented struct {
	text string
	err  error
}

func (p *presented) Error() string { return p.text }
func (p *presented) Unwrap() error { return p.err }

// shortKey returns a key for a log line or an error: at most 64 bytes of it, valid UTF-8.
func shortKey(key string) string {
	if len(key) > 64 {
		key = key[:64] + "..."
	}
	return strings.ToValidUTF8(key, "?")
}

// class is the meaning of an outcome for the circuit and for the write that met it.
type class uint8

const (
	classOK           class = iota // Redis answered; a nil reply is an answer
	classCommand                   // the error is about this command alone, and is its answer
	classWriteRefused              // Redis refuses every write; reads go on
	classBusy                      // a script runs too long; Redis refuses all but a few commands
	classDown                      // Redis is away, mute, or refuses this client
	classUnknown                   // the reply's text is not known: a probe decides what it is about
	classCanceled                  // the caller gave up; no news of Redis
	classRedirect                  // this node of the cluster does not have the key
)

// classify gives an error of a command its class. ctx is the caller's own, without the
// budget: rueidis returns the same context error for a used-up budget and for a caller that
// gave up, and only the caller's context tells the two apart. Texts that need more than a
// class are matched beside it: by refusesCommand and tooLarge here, and where a handshake, a
// probe or a script has replies of its own.
func classify(ctx context.Context, err error) class {
	if err == nil || rueidis.IsRedisNil(err) {
		return classOK
	}
	var re *rueidis.RedisError
	if errors.As(err, &re) {
		return classifyReply(re.Error())
	}
	if errors.Is(err, errNonsense) {
		return classUnknown
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		if ctx.Err() != nil {
			return classCanceled
		}
	}
	return classDown
}

// replyClasses maps the code at the beginning of an error reply to its class.
//
// Here and in commandTexts, classCommand is for texts that Redis or Valkey is known to send
// about one command. Any other text may come from a proxy whose backend is away, or from a
// service whose quota is used up, so a probe decides what it is about.
var replyClasses = map[string]class{
	"READONLY":   classWriteRefused, // a replica
	"MISCONF":    classWriteRefused, // a failed snapshot stops writes
	"OOM":        classWriteRefused, // maxmemory with noeviction
	"NOREPLICAS": classWriteRefused, // min-replicas-to-write

	"MOVED": classRedirect,
	"ASK":   classRedirect,

	"BUSY": classBusy, // a script or a module's function runs; not BUSYKEY, BUSYGROUP

	"LOADING":     classDown,
	"MASTERDOWN":  classDown,
	"CLUSTERDOWN": classDown,
	"TRYAGAIN":    classDown,
	"NOAUTH":      classDown,
	"WRONGPASS":   classDown,
	"DENIED":      classDown, // protected mode

	"WRONGTYPE":    classCommand,
	"NOPERM":       classCommand,
	"NOSCRIPT":     classCommand,
	"EXECABORT":    classCommand,
	"CROSSSLOT":    classCommand,
	"BUSYKEY":      classCommand,
	"BUSYGROUP":    classCommand,
	"NOGROUP":      classCommand,
	"NOTBUSY":      classCommand, // SCRIPT KILL of nothing
	"UNKILLABLE":   classCommand,
	"UNBLOCKED":    classCommand,
	"NOPROTO":      classCommand, // HELLO
	"INVALIDOBJ":   classCommand, // HyperLogLog
	"INPROG":       classCommand, // FAILOVER
	"NOGOODSLAVE":  classCommand,
	"NOQUORUM":     classCommand, // a sentinel
	"NOMASTERLINK": classCommand, // SYNC
	"IOERR":        classCommand, // MIGRATE
	"NOKEY":        classCommand,
}

// commandTexts are the beginnings of the error texts about one command that have no code of
// their own, behind "ERR ", of Redis 2.8 to 8 and Valkey. Case is ignored. None of them is so
// short that the text of a system error begins with it ("Invalid argument", "Connection
// refused"): proxies pass such texts on.
var commandTexts = []string{
	// The command and its shape.
	"unknown command", "unknown subcommand", "wrong number of", "syntax error",
	"unsupported option", "unsupported unit", "unrecognized option", "unrecognized argument",
	"invalid arguments specified", "invalid number of arguments", "invalid command specified",
	"command not allowed inside a transaction", "this redis command is not allowed from",
	"this valkey command is not allowed from", "this command is not allowed from",
	"multi calls can not be nested", "exec without multi", "discard without multi",
	"watch inside multi", "can't execute '",
	"debug command not allowed", "module command not allowed",

	// Numbers, ends of life, and options.
	"value is not an integer", "value is not a valid float", "value is not a float", "value is out of range",
	"value is negative", "value must be", "index out of range", "offset is out of range", "count is out of range",
	"count can't be", "count must be", "limit can't be", "limit should be", "rank can't be", "maxlen can't be",
	"minmatchlen", "timeout is not", "timeout is negative", "timeout is out of range", "invalid timeout",
	"invalid expire time", "invalid ttl value", "invalid idletime", "invalid freq", "nx and xx", "xx and nx",
	"gt, lt", "nx and gt", "increment or decrement would overflow", "increment would produce",
	"decrement would overflow", "increment is not", "hash value is not", "resulting score is not", "weight value is not",
	"min or max", "bit offset is not", "bit is not", "bit is out of range", "the bit argument must be", "bitop not must be", "bitfield_ro only",
	"invalid bitfield", "invalid overflow", "invalid cursor", "numkeys", "number of keys can't", "number of fields must be",
	"at least 1 input key", "no keys specified", "need numeric", "radius cannot be", "height or width", "invalid longitude",
	"could not decode", "exactly one of", "dump payload", "bad data format",
	"string exceeds maximum allowed size", "elements are too large", "insufficient memory, transient",

	// The key.
	"no such key", "source and destination objects are the same", "target key name is busy", "an lfu maxmemory",
	"an lru maxmemory", "the specified key", "key is too", "value is too", "if you want both",

	// The database, the cluster, and permissions.
	"db index is out of range", "invalid db index", "invalid first db", "invalid second db", "out of range database",
	"select is not allowed", "move is not allowed", "swapdb is not allowed", "copying to another database", "this instance has cluster support disabled",
	"invalid slot", "invalid or out of range slot", "unknown node", "no such client", "no such user", "invalid client",
	"client names cannot", "auth <password> called without", "client sent auth",

	// Scripts and functions. classifyReply looks for the error inside a script's apart.
	"error running script", "error compiling", "user_script", "@user_script:", "the user executing the script", "script killed", "write commands are not allowed",
	"write commands not allowed", "function not found", "library '", "library not found", "library names can only", "engine '",
	"function load", "function with", "function names", "no matching script", "can not execute a script", "the user executing the script", "@user_script", "acl failure in script", "unknown redis command called from", "script attempted", "wrong script",

	// Streams.
	"the id specified in", "the id argument", "invalid stream id", "the xgroup", "the stream has", "unbalanced xread", "unbalanced 'xread", "unbalanced list of streams",
	"the > id", "the $ id", "the + id", "invalid min-idle-time", "invalid retrycount", "invalid time option", "invalid idle option",

	// Subscriptions, tracking, the protocol.
	"only (p|s)", "client tracking", "client caching", "prefix option", "the client id you want redirect",
	"optin and optout", "you can't specify both", "you can't switch", "both optin and optout", "protocol version is not",
	"protocol error: ", "unknown attribute",

	// Of hosted services: the command is too large.
	"max request size exceeded", "max single record size exceeded",
}

// commandText reports whether a text begins with one of commandTexts. Behind the beginning
// there may be arguments of the command, which are the caller's and no news of Redis.
func commandText(text string) bool {
	for _, t := range commandTexts {
		if len(text) >= len(t) && strings.EqualFold(text[:len(t)], t) {
			return true
		}
	}
	return false
}

func classifyReply(text string) class {
	code, rest, _ := strings.Cut(text, " ")
	switch {
	case code == "CLUSTERDOWN" && strings.HasPrefix(rest, "Hash slot"):
		return classRedirect // no node has that slot; the others are served
	case code == "CLUSTERDOWN" && strings.Contains(rest, "only accepts read commands"):
		return classWriteRefused
	}
	if c, ok := replyClasses[code]; ok {
		return c
	}
	text = strings.TrimPrefix(text, "ERR ") // mostly rueidis has removed it
	if strings.HasPrefix(text, "max number of clients") {
		return classDown
	}
	if strings.HasPrefix(text, "Error running script") {
		// Redis before 7 wraps the error of a command in a script: "Error running script
		// (...): @user_script: 1: -READONLY You can't write ...".
		for code, c := range replyClasses {
			if c == classWriteRefused && strings.Contains(text, " -"+code+" ") {
				return c
			}
		}
	}
	if commandText(text) {
		return classCommand
	}
	return classUnknown
}

// isReply reports whether an error is a reply of the server, and not the lack of one.
func isReply(err error) bool {
	var re *rueidis.RedisError
	return errors.As(err, &re)
}

// refusesKey reports whether Redis refused a read because of its key: a value of another
// type, a missing permission. A load goes on then.
func refusesKey(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Tier == Remote && !errors.Is(err, errKeyTooLarge)
}

// refusesCommand reports whether Redis refuses a command to this user for all keys: it does
// not know the command, or the user has no permission for it.
func refusesCommand(err error) bool {
	if err == nil || classify(context.Background(), err) != classCommand {
		return false
	}
	text := err.Error()
	return strings.Contains(text, "NOPERM") && strings.Contains(text, " to run the ") ||
		strings.Contains(text, "The user executing the script can't run") || strings.HasPrefix(text, "unknown command")
}

// tooLarge reports whether Redis refused a command for the size of its key or value.
func tooLarge(err error) bool {
	if err == nil || classify(context.Background(), err) != classCommand {
		return false
	}
	text := strings.ToLower(err.Error())
	for _, t := range []string{
		"string exceeds maximum allowed size", "protocol error: invalid bulk length", "protocol error: too big",
		"max request size exceeded", "max single record size exceeded", "key is too", "value is too", "elements are too large",
	} {
		if strings.HasPrefix(text, t) {
			return true
		}
	}
	return false
}
