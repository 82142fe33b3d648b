package holdfast

import (
	"context"
	"errors"
	"fmt"
	"strings"

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
	b.WriteString(strings.TrimPrefix(e.Err.Error(), "holdfast: "))
	return b.String()
}

func (e *Error) Unwrap() error { return e.Err }

// BatchError is the error of a call of many keys that failed for more than one of
// them. Its text names the number of errors and the first few of them, and is short
// whatever the keys are. errors.Is and errors.As look at all of them; Unwrap returns
// them: an *Error with its key for each key that failed, in no particular order.
type BatchError struct{ errs []error }

const (
	// batchErrorsTold is how many errors the text of a BatchError has, and
	// batchErrorBytes how much of each.
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

// errorList gathers the errors of a batch.
type errorList struct{ errs []error }

// add adds the error of a key at the remote tier.
func (l *errorList) add(op, key string, err error) {
	if err != nil {
		l.errs = append(l.errs, &Error{Op: op, Key: key, Tier: Remote, Err: err})
	}
}

// also adds an error that names its key, or those of another batch.
func (l *errorList) also(err error) {
	if batch, ok := err.(*BatchError); ok {
		l.errs = append(l.errs, batch.errs...)
	} else if err != nil {
		l.errs = append(l.errs, err)
	}
}

// join is nil for no error, the error itself for one, and else a *BatchError.
func (l *errorList) join() error {
	switch len(l.errs) {
	case 0:
		return nil
	case 1:
		return l.errs[0]
	}
	return &BatchError{l.errs}
}

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
