package goredis

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/holdfast-cache/holdfast"
	"github.com/redis/go-redis/v9"
)

// Pace returns a hook for programs that call again in a loop, without a pause after an
// error, such as the server of asynq or a consumer that blocks in BLPOP. Without a cache
// the dials and retries of go-redis slow them down; with one a command fails at once while
// Redis is away, and such a loop keeps a processor busy. With the hook a command, a
// pipeline or a dial that fails with holdfast.ErrUnavailable returns only after the given
// duration, or when its context ends. Calls that the cache answers are not delayed.
//
// Add it by AddHook before Attach, to a client that only these programs use.
func Pace(after time.Duration) redis.Hook { return pace(after) }

type pace time.Duration

// wait returns err, later if it is holdfast.ErrUnavailable.
func (p pace) wait(ctx context.Context, err error) error {
	if errors.Is(err, holdfast.ErrUnavailable) {
		timer := time.NewTimer(time.Duration(p))
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
	}
	return err
}

func (p pace) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error { return p.wait(ctx, next(ctx, cmd)) }
}

func (p pace) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error { return p.wait(ctx, next(ctx, cmds)) }
}

func (p pace) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := next(ctx, network, addr)
		return conn, p.wait(ctx, err)
	}
}
