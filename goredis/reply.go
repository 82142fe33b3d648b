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

// shape is the kind of the reply to a command that the cache answers.
type shape uint8

const (
	bulk shape = iota
	status
	integer
	array
	seconds
	milliseconds
	texts    // strings
	integers // integers
	messages // of a stream

	// Of these RESP2 and RESP3 have different replies.
	mixed // strings and integers
	ranked
	fields // of a hash, with values
	decimal
	decimals
	scores // members of a sorted set, with scores
	positions
	locations
	flag
	flags
	document // JSON; what an absent or empty one is depends on the version of go-redis
)

// versioned reports whether RESP2 and RESP3 have different replies of the shape.
func (s shape) versioned() bool { return s >= mixed }

// fits reports whether a reply of the shape can be stored in the command. A caller may
// have built a command with another type, or one that parses the reply itself.
func (s shape) fits(cmd redis.Cmder) bool {
	switch cmd.(type) {
	case *redis.Cmd:
		return true
	case *redis.StringCmd, *redis.StatusCmd:
		return s == bulk || s == status
	case *redis.BoolCmd:
		return s == status || s == integer || s == flag
	case *redis.IntCmd:
		return s == integer || s == seconds || s == milliseconds
	case *redis.DurationCmd:
		return s == seconds || s == milliseconds
	case *redis.SliceCmd:
		return s == array || s == texts || s == integers || s == messages
	case *redis.StringSliceCmd, *redis.StringStructMapCmd:
		return s == texts
	case *redis.IntSliceCmd:
		return s == integers
	case *redis.BoolSliceCmd:
		return s == integers || s == flags
	case *redis.FloatCmd:
		return s == decimal
	case *redis.FloatSliceCmd:
		return s == decimals
	case *redis.MapStringStringCmd:
		return s == fields
	case *redis.ZSliceCmd:
		return s == scores
	case *redis.RankWithScoreCmd:
		return s == ranked
	case *redis.XMessageSliceCmd:
		return s == messages
	case *redis.GeoPosCmd:
		return s == positions
	case *redis.GeoLocationCmd:
		return s == locations || s == texts
	case *redis.GeoSearchLocationCmd:
		return s == locations
	case *redis.JSONCmd:
		return s == document
	}
	return false
}

// answer stores the reply in the command and returns its error, which the caller must
// set.
func (s shape) answer(cmd redis.Cmder, res rueidis.RedisResult) error {
	m, err := res.ToMessage()
	if err == nil {
		return s.store(cmd, m)
	}
	if rueidis.IsRedisNil(err) {
		switch cmd := cmd.(type) {
		case *redis.BoolCmd:
			cmd.SetVal(false) // SET with NX answers nil if the key exists
			return nil
		case *redis.JSONCmd:
			return errMisfit
		}
	}
	raw, _ := res.ToString()
	return replyError(err, raw)
}

// store stores the reply in the command, converted to the command's type.
func (s shape) store(cmd redis.Cmder, m message) error {
	switch cmd := cmd.(type) {
	case *redis.Cmd:
		return set(cmd.SetVal, anything, m)
	case *redis.StringCmd:
		return set(cmd.SetVal, ownText, m)
	case *redis.StatusCmd:
		return set(cmd.SetVal, ownText, m)
	case *redis.BoolCmd:
		return set(cmd.SetVal, truth, m)
	case *redis.IntCmd:
		return set(cmd.SetVal, number, m)
	case *redis.DurationCmd:
		return set(func(n int64) { cmd.SetVal(s.duration(n)) }, number, m)
	case *redis.SliceCmd:
		return set(cmd.SetVal, listOf(anything), m)
	case *redis.StringSliceCmd:
		return set(cmd.SetVal, listOf(text), m)
	case *redis.StringStructMapCmd:
		return set(cmd.SetVal, members, m)
	case *redis.IntSliceCmd:
		return set(cmd.SetVal, listOf(number), m)
	case *redis.BoolSliceCmd:
		return set(cmd.SetVal, listOf(truth), m)
	case *redis.FloatCmd:
		return set(cmd.SetVal, float, m)
	case *redis.FloatSliceCmd:
		return set(cmd.SetVal, listOf(float), m)
	case *redis.MapStringStringCmd:
		return set(cmd.SetVal, textMap, m)
	case *redis.ZSliceCmd:
		return set(cmd.SetVal, scored, m)
	case *redis.RankWithScoreCmd:
		return set(cmd.SetVal, rankWithScore, m)
	case *redis.XMessageSliceCmd:
		return set(cmd.SetVal, listOf(streamMessage), m)
	case *redis.GeoPosCmd:
		return set(cmd.SetVal, listOf(position), m)
	case *redis.GeoLocationCmd:
		return set(cmd.SetVal, listOf(place), m)
	case *redis.GeoSearchLocationCmd:
		return set(cmd.SetVal, listOf(location), m)
	case *redis.JSONCmd:
		return set(cmd.SetVal, jsonText, m)
	}
	return errMisfit
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
var codes = wordSet(`ASK BUSY BUSYGROUP BUSYKEY CLUSTERDOWN CROSSSLOT DENIED EXECABORT INPROG IOERR LOADING MASTERDOWN
	MISCONF MOVED NOAUTH NOGOODSLAVE NOGROUP NOKEY NOMASTERLINK NOPERM NOPROTO NOREPLICAS NOSCRIPT NOTBUSY OOM READONLY
	STALEREPLICA TRYAGAIN UNBLOCKED UNKILLABLE WRONGPASS WRONGTYPE`)

func wordSet(words string) map[string]bool {
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
