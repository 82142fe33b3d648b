package goredis

import (
	"context"
	"errors"
	"io"
	"math"
	"net"
	"strings"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"
)

// shape is the kind of a served command's reply.
type shape uint8

const (
	bulk shape = iota
	status
	integer
	array
	seconds
	milliseconds
)

// fits reports whether a reply of the shape can be stored in the command. A caller may
// have built a command with another type, or one that parses the reply itself.
func (s shape) fits(cmd redis.Cmder) bool {
	switch cmd.(type) {
	case *redis.Cmd:
		return true
	case *redis.StringCmd:
		return s == bulk || s == status
	case *redis.StatusCmd:
		return s == bulk || s == status
	case *redis.BoolCmd:
		return s == status || s == integer
	case *redis.IntCmd:
		return s == integer || s == seconds || s == milliseconds
	case *redis.DurationCmd:
		return s == seconds || s == milliseconds
	case *redis.SliceCmd:
		return s == array
	}
	return false
}

// answer stores the reply in the command and returns its error, which the caller must
// set.
func (s shape) answer(cmd redis.Cmder, res rueidis.RedisResult) error {
	if err := res.Error(); err != nil {
		if b, ok := cmd.(*redis.BoolCmd); ok && rueidis.IsRedisNil(err) {
			b.SetVal(false) // SET with NX answers nil if the key exists
			return nil
		}
		raw, _ := res.ToString()
		return replyError(err, raw)
	}
	var v any
	var err error
	switch s {
	case bulk, status:
		v, err = res.ToString()
	case array:
		v, err = elements(res)
	default:
		v, err = res.AsInt64()
	}
	if err == nil {
		s.give(cmd, v)
	}
	return err
}

// give stores the value in the command, converted to the command's type.
func (s shape) give(cmd redis.Cmder, v any) {
	switch v := v.(type) {
	case string:
		if b, ok := cmd.(*redis.BoolCmd); ok {
			b.SetVal(v == "OK")
			return
		}
	case int64:
		switch cmd := cmd.(type) {
		case *redis.BoolCmd:
			cmd.SetVal(v == 1)
			return
		case *redis.DurationCmd:
			cmd.SetVal(s.duration(v))
			return
		}
	}
	switch cmd := cmd.(type) {
	case *redis.Cmd:
		cmd.SetVal(v)
	case *redis.StringCmd:
		cmd.SetVal(v.(string))
	case *redis.StatusCmd:
		cmd.SetVal(v.(string))
	case *redis.IntCmd:
		cmd.SetVal(v.(int64))
	case *redis.SliceCmd:
		cmd.SetVal(v.([]any))
	}
}

// duration converts the seconds or milliseconds of a reply as go-redis does: -1 (no
// expiry) and -2 (no such key) become as many nanoseconds.
func (s shape) duration(n int64) time.Duration {
	switch {
	case n == -1 || n == -2:
		return time.Duration(n)
	case s == seconds:
		return times(n, time.Second)
	}
	return times(n, time.Millisecond)
}

// times returns n units, at most the longest Duration, about 292 years.
func times(n int64, unit time.Duration) time.Duration {
	if n > math.MaxInt64/int64(unit) {
		return math.MaxInt64
	}
	return time.Duration(n) * unit
}

// elements returns the strings of an array; a missing value is nil.
func elements(res rueidis.RedisResult) ([]any, error) {
	messages, err := res.ToArray()
	if err != nil {
		return nil, err
	}
	all := make([]any, len(messages))
	for i := range messages {
		if messages[i].IsNil() {
			continue
		}
		if all[i], err = messages[i].ToString(); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// replyError converts an error to go-redis' form. raw is the text as Redis sent it, if
// known: rueidis removes the prefix ERR.
func replyError(err error, raw string) error {
	if errors.Is(err, holdfast.ErrMiss) || rueidis.IsRedisNil(err) {
		return redis.Nil
	}
	var said *rueidis.RedisError
	if !errors.As(err, &said) {
		return err
	}
	if raw == "" {
		raw = said.Error()
		if code, _, _ := strings.Cut(raw, " "); !codes[code] {
			raw = "ERR " + raw
		}
	}
	return errorLike(redis.Nil, raw)
}

// errorLike returns an error of go-redis' own type, which is not exported.
func errorLike[E ~string](_ E, text string) E { return E(text) }

// codes are the first words of Redis' errors that do not begin with ERR.
var codes = set(`ASK BUSY BUSYGROUP BUSYKEY CLUSTERDOWN CROSSSLOT DENIED EXECABORT INPROG IOERR LOADING MASTERDOWN
	MISCONF MOVED NOAUTH NOGOODSLAVE NOGROUP NOKEY NOMASTERLINK NOPERM NOPROTO NOREPLICAS NOSCRIPT NOTBUSY OOM READONLY
	STALEREPLICA TRYAGAIN UNBLOCKED UNKILLABLE WRONGPASS WRONGTYPE`)

func set(words string) map[string]bool {
	all := map[string]bool{}
	for w := range strings.FieldsSeq(words) {
		all[w] = true
	}
	return all
}

// unavailable is holdfast.ErrUnavailable with its cause.
type unavailable struct{ cause error }

func (u unavailable) Error() string        { return holdfast.ErrUnavailable.Error() + ": " + u.cause.Error() }
func (u unavailable) Is(target error) bool { return target == holdfast.ErrUnavailable }
func (u unavailable) Unwrap() error        { return u.cause }

var errBudget = errors.New("redis did not answer within Options.Timeout of the cache")

// verdict returns the error of a command that went to Redis; ctx is the caller's own
// context. Error replies are returned unchanged. If no reply came, the error is ctx's own
// or ErrUnavailable.
func verdict(ctx context.Context, err error) error {
	if err == nil || errors.Is(err, holdfast.ErrUnavailable) {
		return err
	}
	var said redis.Error
	if errors.As(err, &said) {
		return err
	}
	if own := ctx.Err(); own != nil {
		return own
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return unavailable{errBudget}
	}
	var broken net.Error
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &broken) {
		return unavailable{err}
	}
	return err
}
