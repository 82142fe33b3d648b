package holdfast

import (
	"context"
	"crypto/tls"
	"maps"
	"net"
	"slices"
	"sync"

	"github.com/holdfast-cache/holdfast/internal/group"
	"github.com/redis/rueidis"
)

// userCode counts the user code that is running on goroutines of this package, by name.
type userCode struct {
	mu struct {
		sync.Mutex
		running map[string]int
	}
}

func (u *userCode) enter(what string) (leave func()) {
	u.add(what, 1)
	return func() { u.add(what, -1) }
}

func (u *userCode) add(what string, n int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.mu.running == nil {
		u.mu.running = make(map[string]int)
	}
	if u.mu.running[what] += n; u.mu.running[what] == 0 {
		delete(u.mu.running, what)
	}
}

func (u *userCode) names() []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Sorted(maps.Keys(u.mu.running))
}

// watch wraps the functions of o that are user code, so that userCode knows when they run.
// DialCtxFn runs on a goroutine of its own, of the workers' group: if it ends its goroutine
// (runtime.Goexit), the supervisor's goroutine goes on.
func (u *userCode) watch(o rueidis.ClientOption, workers *group.Group) rueidis.ClientOption {
	if dial := o.DialCtxFn; dial != nil {
		o.DialCtxFn = func(ctx context.Context, addr string, nd *net.Dialer, cfg *tls.Config) (conn net.Conn, err error) {
			const what = "Redis.DialCtxFn"
			if died := workers.Call("dial", what, func() {
				defer u.enter("the dial function (" + what + ")")()
				conn, err = dial(ctx, addr, nd, cfg)
			}); died != nil {
				return nil, died
			}
			return conn, err
		}
	}
	if ask := o.AuthCredentialsFn; ask != nil {
		o.AuthCredentialsFn = func(ctx rueidis.AuthCredentialsContext) (rueidis.AuthCredentials, error) {
			defer u.enter("Redis.AuthCredentialsFn")()
			return ask(ctx)
		}
	}
	return o
}
