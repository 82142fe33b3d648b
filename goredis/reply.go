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

// shape is what a served command's reply is.
type shape uint8

const (
	bulk shape = iota
	status
	integer
	array
	seconds
	milliseconds
)

// fits says whether a reply of the shape can be given to the command. Somebody may have
// built one that expects something else, or that takes the reply apart by itself.
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

// answer gives the command its reply, and returns its error, which is not yet the
// command's.
func (s shape) answer(cmd redis.Cmder, res rueidis.RedisResult) error {
	if err := res.Error(); err != nil {
		if b, ok := cmd.(*redis.BoolCmd); ok && rueidis.IsRedisNil(err) {
			b.SetVal(false) // SET with NX says nil for no
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

// give puts the value into the command, as what the command makes of it.
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

// duration is what go-redis makes of the seconds or milliseconds of a reply: -1, no
// expiry, and -2, no such key, stay what they are, in nanoseconds.
func (s shape) duration(n int64) time.Duration {
	switch {
	case n == -1 || n == -2:
		return time.Duration(n)
	case s == seconds:
		return times(n, time.Second)
	}
	return times(n, time.Millisecond)
}

// times is n units, or the longest Duration, about 292 years, where they are more.
func times(n int64, unit time.Duration) time.Duration {
	if n > math.MaxInt64/int64(unit) {
		return math.MaxInt64
	}
	return time.Duration(n) * unit
}

// elements are an array's strings; nil is no value.
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

// replyError is what go-redis would have said. raw is the text as Redis sent it, if
// there is one: rueidis takes the ERR off.
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

// errorLike makes an error of go-redis' own type, which has no name outside of it.
func errorLike[E ~string](_ E, text string) E { return E(text) }

// codes begin the errors of Redis that do not begin with ERR.
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

// verdict is the error of a command that went to Redis, for a caller whose own context is
// ctx: what Redis said stays as it is, and where no answer came, that is ErrUnavailable.
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
