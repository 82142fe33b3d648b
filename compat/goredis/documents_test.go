package programs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/bsm/redislock"
	"github.com/go-redsync/redsync/v4"
	redsyncpool "github.com/go-redsync/redsync/v4/redis/goredis/v9"
	"github.com/hibiken/asynq"
	"github.com/holdfast-cache/holdfast"
	"github.com/holdfast-cache/holdfast/goredis"
	"github.com/holdfast-cache/holdfast/internal/redistest"
	"github.com/redis/go-redis/v9"
)

// queues has the parts of asynq that a program needs. closeAll closes the clients, which asynq
// leaves open.
type queues struct {
	client    *asynq.Client
	inspector *asynq.Inspector
	server    *asynq.Server
	closeAll  func() error
}

func goredisAsynq(cache *holdfast.Cache, addr string) (*queues, error) {
	rdb := redis.NewClient(&redis.Options{Addr: addr})
	if err := goredis.Attach(rdb, cache); err != nil {
		return nil, err
	}
	client := asynq.NewClientFromRedisClient(rdb)
	inspector := asynq.NewInspectorFromRedisClient(rdb)

	loops := redis.NewClient(&redis.Options{Addr: addr})
	loops.AddHook(goredis.Pace(100 * time.Millisecond)) // before Attach
	if err := goredis.Attach(loops, cache); err != nil {
		return nil, err
	}
	server := asynq.NewServerFromRedisClient(loops, asynq.Config{Concurrency: 10})
	return &queues{client, inspector, server, func() error { return errors.Join(rdb.Close(), loops.Close()) }}, nil
}

func TestTheProgramOfTheDocumentWorks(t *testing.T) {
	s := redistest.Start(t)
	_, cache := attached(t, s, calm)
	q, err := goredisAsynq(cache, s.Addr())
	must(t, err)
	defer func() { must(t, q.closeAll()) }()
	w := newWorkers()
	must(t, q.server.Start(w))
	defer q.server.Shutdown()
	_, err = q.client.Enqueue(asynq.NewTask("simple", []byte("1")))
	must(t, err)
	eventually(t, "the task", func() bool { return w.has("simple") })
	eventually(t, "the queue to be empty", func() bool {
		info, err := q.inspector.GetQueueInfo("default")
		return err == nil && info.Size == 0
	})
}

var fence = regexp.MustCompile("(?s)```go (goredis\\w+)\n(.*?)```")

// The code of docs/PROGRAMS.md is that of the function that its fence names.
func TestTheCodeOfTheDocumentIsThatOfTheTests(t *testing.T) {
	document, err := os.ReadFile("../../docs/PROGRAMS.md")
	must(t, err)
	source, err := os.ReadFile("documents_test.go")
	must(t, err)
	fences := fence.FindAllStringSubmatch(string(document), -1)
	if len(fences) != 1 {
		t.Errorf("%d pieces of code", len(fences))
	}
	for _, f := range fences {
		_, body, _ := strings.Cut(string(source), fmt.Sprintf("\nfunc %s(", f[1]))
		body, _, _ = strings.Cut(body, "\n}\n")
		code := strings.ReplaceAll("\t"+strings.TrimRight(strings.ReplaceAll(f[2], "\n", "\n\t"), "\t\n"), "\n\t\n", "\n\n")
		if !strings.Contains(body, code) {
			t.Errorf("%s differs from the code in docs/PROGRAMS.md:\n%s", f[1], code)
		}
	}
}

// The mutex of redsync is tried again after any error, and the lock of redislock is not.
func TestALockThatRetriesOutlivesAnOutage(t *testing.T) {
	s := redistest.Start(t)
	open, cache := attached(t, s, calm)
	rdb, ctx := open(), within(t)
	s.Kill()
	eventually(t, "the outage to be noticed", func() bool { return cache.Health().State == holdfast.Down })
	often := redislock.LimitRetry(redislock.LinearBackoff(10*time.Millisecond), 1000)
	if _, err := redislock.Obtain(ctx, rdb, "lock", lockTTL, &redislock.Options{RetryStrategy: often}); !unavailable(err) {
		t.Errorf("redislock: %v", err)
	}
	locks := redsync.New(redsyncpool.NewPool(rdb))
	once := locks.NewMutex("mutex", redsync.WithTries(1))
	if err := once.LockContext(ctx); !unavailable(err) {
		t.Errorf("redsync, one try: %v", err)
	}
	locked := make(chan error, 1)
	go func() {
		m := locks.NewMutex("mutex", redsync.WithExpiry(lockTTL), redsync.WithTries(1<<20), redsync.WithRetryDelay(10*time.Millisecond))
		locked <- m.LockContext(ctx)
	}()
	s.Restart()
	must(t, <-locked)
}

// The server of asynq calls again at once when it cannot ask for a task.
func TestWithoutPaceALoopThatFailsAtOnceSpins(t *testing.T) {
	s := redistest.Start(t)
	open, cache := attached(t, s, calm)
	var paced, unpaced commands
	clients := map[*commands]*redis.Client{
		&paced:   open(&paced, goredis.Pace(20*time.Millisecond)),
		&unpaced: open(&unpaced),
	}
	s.Kill()
	eventually(t, "the outage to be noticed", func() bool { return cache.Health().State == holdfast.Down })
	ctx, cancel := context.WithCancel(within(t))
	defer cancel()
	for _, rdb := range clients {
		go func() {
			for ctx.Err() == nil {
				_ = rdb.BLPop(context.Background(), time.Second, "list").Err()
			}
		}()
	}
	eventually(t, "the paced loop", func() bool { return paced.n.Load() >= 20 })
	if many := unpaced.n.Load(); many < 20*paced.n.Load() {
		t.Errorf("%d commands without Pace, and %d with it", many, paced.n.Load())
	}
}
