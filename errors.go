package holdfast

import (
	"errors"
	"fmt"
	"strings"

	"github.com/holdfast-cache/holdfast/internal/group"
	"github.com/holdfast-cache/holdfast/internal/link"
	"github.com/holdfast-cache/holdfast/internal/rediserr"
)

// The errors of this package, for errors.Is.
var (
	// ErrMiss: no tier has the key, or Redis is away and no local copy may be served. Ask
	// the source of truth.
	ErrMiss = errors.New("holdfast: miss: ask the source of truth")

	// ErrUnavailable: only Redis can answer, and Redis is away or did not answer in time. In
	// the latter case a command may have run, unless its method says otherwise. Try again
	// later, or do without.
	ErrUnavailable = link.ErrUnavailable

	// ErrClosed: the Cache was closed. Make a new one.
	ErrClosed = group.ErrClosed

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
		text = rediserr.Text(e.Err)
	} else {
		text = rediserr.Describe(e.Err)
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

// shortKey returns a key for a log line or an error: at most 64 bytes of it, valid UTF-8.
func shortKey(key string) string {
	if len(key) > 64 {
		key = key[:64] + "..."
	}
	return strings.ToValidUTF8(key, "?")
}

// refusesKey reports whether Redis refused a read because of its key: a value of another
// type, a missing permission. A load goes on then.
func refusesKey(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Tier == Remote && !errors.Is(err, errKeyTooLarge)
}
