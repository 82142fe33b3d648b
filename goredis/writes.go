package goredis

import (
	"context"
	"errors"
	"math"
	"time"

	"github.com/redis/go-redis/v9"
)

// A SET of a string or of bytes takes a short path, as reads do.

// plainSet is a SET without an option, or with one lifetime; 0 is no expiry.
type plainSet struct {
	key   string
	value []byte
	ttl   time.Duration
}

// plainSet returns the SET that the command is. Without an expiry it is none if the cache
// has a DefaultTTL, which is not for the SET of a go-redis client.
func (h *hook) plainSet(cmd *redis.StatusCmd) (s plainSet, ok bool) {
	args := cmd.Args()
	if len(args) != 3 && len(args) != 5 || args[0] != "set" {
		return s, false
	}
	if len(args) == 5 {
		s.ttl, ok = lifetime(args[3], args[4])
	} else {
		ok = h.noTTL
	}
	if !ok {
		return s, false
	}
	switch v := args[2].(type) {
	case string:
		s.value = []byte(v)
	case []byte:
		s.value = v
	default:
		return s, false
	}
	s.key, ok = args[1].(string)
	return s, ok
}

// lifetime returns the lifetime of SET's options EX and PX, as go-redis' own methods make
// them.
func lifetime(option, n any) (time.Duration, bool) {
	unit := time.Second
	switch option {
	case "px":
		unit = time.Millisecond
	case "ex":
	default:
		return 0, false
	}
	count, ok := n.(int64)
	return time.Duration(count) * unit, ok && count > 0 && count <= math.MaxInt64/int64(unit)
}

// set answers a SET.
func (h *hook) set(ctx context.Context, cmd *redis.StatusCmd, s plainSet) error {
	err := h.cache.Set(ctx, s.key, s.value, s.ttl)
	switch {
	case err == nil:
		cmd.SetVal("OK")
	case ctx != nil && errors.Is(err, ctx.Err()): // the context's own, as from go-redis
		err = ctx.Err()
	default:
		err = replyError(err, "")
	}
	cmd.SetErr(err)
	return err
}
