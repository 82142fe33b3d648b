package holdfast

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/redis/rueidis"
)

// The errors to compare with errors.Is. Each says what the caller should do.
var (
	// ErrMiss: no tier holds the key, or Redis is away and no local copy may
	// be served. Ask the source of truth.
	ErrMiss = errors.New("holdfast: miss: ask the source of truth")

	// ErrUnavailable: only Redis can decide this and Redis is away. Nothing was
	// done; try again later, or do without.
	ErrUnavailable = errors.New("holdfast: redis is unavailable and only redis can answer: try again later")

	// ErrClosed: the Cache was closed. Make a new one.
	ErrClosed = errors.New("holdfast: the cache is closed")

	// ErrJournalFull: the write was refused, because Redis is away and the
	// journal holds as many keys as Journal.MaxKeys allows. The key is gone from
	// the local tier, so that this process does not serve the replaced value
	// while Redis is away.
	ErrJournalFull = errors.New("holdfast: the journal is full: the write was refused")

	// ErrNotFound: a loader returns it, or an error that wraps it, to say that the
	// source of truth has no such thing. Its callers get it, and for
	// Load.NotFoundTTL so does who asks again: do not ask at once.
	ErrNotFound = errors.New("holdfast: not found: the source of truth has no such thing")

	// ErrInvalidTTL: a negative time to live. Nothing was done.
	ErrInvalidTTL = errors.New("holdfast: invalid ttl: it must be zero or positive")

	errShared      = errors.New("holdfast: the command would change a connection that all callers share: use Dedicate")
	errReceive     = errors.New("holdfast: messages do not come over a connection that all callers share: use Receive or Dedicate")
	errTransaction = errors.New("holdfast: MULTI and EXEC must come in one DoMulti, or use Dedicate")
	errNoCommand   = errors.New("holdfast: the command is empty: build it with B")

	errNilContext    = errors.New("holdfast: nil context: pass context.Background() where there is none")
	errKeyTooLarge   = errors.New("holdfast: the key is over 512 MiB, the most that redis takes")
	errValueTooLarge = errors.New("holdfast: the value is over 512 MiB, the most that redis takes")
	errBudget        = errors.New("holdfast: redis did not answer within Options.Timeout")
	errBulkhead      = errors.New("holdfast: too many calls wait for redis already")
)

// maxString is Redis' proto-max-bulk-len: a longer key or value makes the
// server close the connection, which every other call in flight would share.
const maxString = 512 << 20

// Error says which operation on which key failed and which tier said so. It
// wraps the cause: a sentinel of this package, a context's error, or Redis'
// own *rueidis.RedisError.
type Error struct {
	Op   string // the method, in lower case: "set"
	Key  string // the key, or "" where the call names none
	Tier Tier   // the tier that refused
	Err  error
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("holdfast: ")
	b.WriteString(e.Op)
	if e.Key != "" {
		key := e.Key
		if len(key) > 64 {
			key = key[:64] + "..."
		}
		b.WriteString(" ")
		b.WriteString(strings.ToValidUTF8(key, "?"))
	}
	b.WriteString(": ")
	b.WriteString(strings.TrimPrefix(describe(e.Err), "holdfast: "))
	return b.String()
}

func (e *Error) Unwrap() error { return e.Err }

// maxServerText is how much of what a server says an error of ours repeats, in bytes.
const maxServerText = 256

// printable is a server's text as an error, a log line or Health shows it: cut, and
// without control characters, for a terminal would obey them.
func printable(text string) string {
	shown := escape(text[:min(len(text), maxServerText)])
	if len(shown) > maxServerText {
		shown = strings.ToValidUTF8(shown[:maxServerText], "")
	}
	if len(text) > maxServerText {
		shown += "..."
	}
	return shown
}

// escape writes what cannot be printed as Go does.
func escape(text string) string {
	if !strings.ContainsFunc(text, unprintable) {
		return text
	}
	quoted := strconv.Quote(text)
	return strings.ReplaceAll(quoted[1:len(quoted)-1], `\"`, `"`)
}

func unprintable(r rune) bool { return !strconv.IsPrint(r) || r == utf8.RuneError }

// describe is the text of an error in which all that a server said is printable. The
// error itself is as it was: errors.As finds Redis' own, with the whole text.
func describe(err error) string {
	text := err.Error()
	eachServerError(err, func(said string) {
		if shown := printable(said); shown != said {
			text = strings.ReplaceAll(text, said, shown)
		}
	})
	return text
}

func eachServerError(err error, f func(text string)) {
	if re, ok := err.(*rueidis.RedisError); ok { // not errors.As: there may be several
		f(re.Error())
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

// maxTold bounds the text of an error in Health, a log line and a hook, where several
// may come together.
const maxTold = 8 * maxServerText

// presentable is an error for Health, log lines and hooks: on one line, of bounded
// length, and without control characters, whatever is in it.
func presentable(err error) error {
	if err == nil {
		return nil
	}
	text := escape(strings.ReplaceAll(describe(err), "\n", "; "))
	if len(text) > maxTold {
		text = strings.ToValidUTF8(text[:maxTold], "") + "..."
	}
	if text == err.Error() {
		return err
	}
	return &presented{text, err}
}

// presented is an error with a text that can be shown.
type presented struct {
	text string
	err  error
}

func (p *presented) Error() string { return p.text }
func (p *presented) Unwrap() error { return p.err }

// class is what an outcome means for the circuit and for the write that met it.
type class uint8

const (
	classOK           class = iota // Redis answered; a nil reply is an answer
	classCommand                   // Redis refused this command: the error is the answer
	classWriteRefused              // Redis refuses every write; reads go on
	classDown                      // Redis is away, mute, or refuses this caller
	classCanceled                  // the caller gave up; says nothing about Redis
	classRedirect                  // this node of the cluster does not have the key
)

// classify is the one place where an error of the remote tier gets its
// meaning. ctx is the caller's own, without the budget: rueidis reports a used
// up budget and an impatient caller as the same context error, and only the
// caller's context can tell them apart.
func classify(ctx context.Context, err error) class {
	if err == nil || rueidis.IsRedisNil(err) {
		return classOK
	}
	var re *rueidis.RedisError
	if errors.As(err, &re) {
		return classifyReply(re.Error())
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		if ctx.Err() != nil {
			return classCanceled
		}
	}
	return classDown
}

// replyClasses maps the code that starts an error reply. A code that is not
// here is about the command that got it.
var replyClasses = map[string]class{
	"READONLY":   classWriteRefused, // a replica
	"MISCONF":    classWriteRefused, // a failed snapshot stops writes
	"OOM":        classWriteRefused, // maxmemory with noeviction
	"NOREPLICAS": classWriteRefused, // min-replicas-to-write

	"MOVED": classRedirect,
	"ASK":   classRedirect,

	"LOADING":     classDown,
	"MASTERDOWN":  classDown,
	"CLUSTERDOWN": classDown,
	"TRYAGAIN":    classDown,
	"BUSY":        classDown, // a script runs and runs; not BUSYKEY, BUSYGROUP
	"NOAUTH":      classDown,
	"WRONGPASS":   classDown,
}

func classifyReply(text string) class {
	code, _, _ := strings.Cut(text, " ")
	if strings.HasPrefix(text, "CLUSTERDOWN Hash slot") {
		return classRedirect // nobody has that slot; the others are served
	}
	if c, ok := replyClasses[code]; ok {
		return c
	}
	text = strings.TrimPrefix(text, "ERR ") // rueidis drops it, mostly
	if strings.HasPrefix(text, "max number of clients") {
		return classDown
	}
	if strings.HasPrefix(text, "Error running script") {
		// Redis before 7 wraps what a script met: "Error running script (...):
		// @user_script: 1: -READONLY You can't write ...".
		for code, c := range replyClasses {
			if c == classWriteRefused && strings.Contains(text, " -"+code+" ") {
				return c
			}
		}
	}
	return classCommand
}
