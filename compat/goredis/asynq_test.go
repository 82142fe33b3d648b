package programs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/holdfast-cache/holdfast/goredis"
	"github.com/redis/go-redis/v9"
)

// quiet is a logger for asynq that logs nothing.
type quiet struct{}

func (quiet) Debug(...any) {}
func (quiet) Info(...any)  {}
func (quiet) Warn(...any)  {}
func (quiet) Error(...any) {}
func (quiet) Fatal(...any) {}

// workers handle tasks, and remember them.
type workers struct {
	mu      sync.Mutex
	handled []string
	entered chan string // gets the id of a task that waits until it is cancelled
}

func newWorkers() *workers {
	return &workers{entered: make(chan string, 10)}
}

func (w *workers) ProcessTask(ctx context.Context, task *asynq.Task) error {
	id, _ := asynq.GetTaskID(ctx)
	retried, _ := asynq.GetRetryCount(ctx)
	w.note("%s %q, retried %d times", task.Type(), task.Payload(), retried)
	switch task.Type() {
	case "fails once":
		if retried == 0 {
			return errors.New("at first")
		}
	case "fails":
		return errors.New("always")
	case "fails for good":
		return fmt.Errorf("bad input: %w", asynq.SkipRetry)
	case "panics":
		panic("in the handler")
	case "is cancelled":
		w.entered <- id
		<-ctx.Done()
		w.note("%s: %v", task.Type(), ctx.Err())
		return fmt.Errorf("%w: %w", ctx.Err(), asynq.SkipRetry)
	}
	_, err := task.ResultWriter().Write([]byte("the result of " + task.Type()))
	return err
}

func (w *workers) note(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.handled = append(w.handled, fmt.Sprintf(format, args...))
}

// has reports whether a task was handled whose line begins like that.
func (w *workers) has(start string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.ContainsFunc(w.handled, func(line string) bool { return strings.HasPrefix(line, start) })
}

// all returns the tasks that were handled since the last call, sorted.
func (w *workers) all() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := w.handled
	w.handled = nil
	slices.Sort(all)
	return all
}

func startAsynq(t *testing.T, rdb redis.UniversalClient, w *workers) *asynq.Server {
	server := asynq.NewServerFromRedisClient(rdb, asynq.Config{
		Concurrency:              4,
		Queues:                   map[string]int{"default": 2, "low": 1},
		TaskCheckInterval:        20 * time.Millisecond,
		DelayedTaskCheckInterval: 50 * time.Millisecond,
		RetryDelayFunc:           func(int, error, *asynq.Task) time.Duration { return 100 * time.Millisecond },
		GroupGracePeriod:         time.Second,
		GroupMaxSize:             2,
		GroupAggregator: asynq.GroupAggregatorFunc(func(group string, tasks []*asynq.Task) *asynq.Task {
			return asynq.NewTask("group", fmt.Append(nil, len(tasks), " of ", group))
		}),
		Logger: quiet{},
	})
	must(t, server.Start(w))
	t.Cleanup(server.Shutdown)
	return server
}

// asynqRig is a program that puts tasks into queues and looks at them.
type asynqRig struct {
	t         *testing.T
	r         *record
	run       int
	client    *asynq.Client
	inspector *asynq.Inspector
}

func (a asynqRig) enqueue(kind, payload string, options ...asynq.Option) {
	a.t.Helper()
	info, err := a.client.Enqueue(asynq.NewTask(kind, []byte(payload)), options...)
	state := ""
	if info != nil {
		state = fmt.Sprint(info.State, " in ", info.Queue)
	}
	a.r.note("enqueue "+kind, state, err)
}

// id is one that the other run does not use.
func (a asynqRig) id(name string) string { return fmt.Sprint(name, "-", a.run) }

func (a asynqRig) queue(name string) asynq.QueueInfo {
	info, err := a.inspector.GetQueueInfo(name)
	if err != nil {
		a.t.Error(err)
		return asynq.QueueInfo{Active: -1}
	}
	return *info
}

func (a asynqRig) noteQueues() {
	names, err := a.inspector.Queues()
	slices.Sort(names)
	a.r.note("queues", names, err)
	for _, name := range names {
		q := a.queue(name)
		a.r.note("queue "+name, fmt.Sprintf("%d: pending %d active %d scheduled %d retry %d archived %d completed %d aggregating %d groups %d, processed %d failed %d, paused %v",
			q.Size, q.Pending, q.Active, q.Scheduled, q.Retry, q.Archived, q.Completed, q.Aggregating, q.Groups, q.Processed, q.Failed, q.Paused), nil)
	}
}

func (a asynqRig) rest(name string) bool {
	q := a.queue(name)
	return q.Pending+q.Active+q.Retry+q.Aggregating == 0
}

func asynqUsual(t *testing.T, rdb *redis.Client, r *record, run int) {
	a := asynqRig{t, r, run, asynq.NewClientFromRedisClient(rdb), asynq.NewInspectorFromRedisClient(rdb)}
	r.note("ping", nil, a.client.Ping())
	asynqFill(a)
	w := newWorkers()
	server := startAsynq(t, rdb, w)
	asynqWork(a, w)
	asynqCancel(a, w)
	asynqSchedule(a, rdb, w)
	server.Shutdown()
	r.note("ping of a server that was shut down", nil, server.Ping())
	asynqClean(a)
}

// asynqFill puts tasks into queues that nobody works on yet.
func asynqFill(a asynqRig) {
	_, err := a.inspector.GetQueueInfo("none")
	a.r.note("no such queue", errors.Is(err, asynq.ErrQueueNotFound), err)
	a.enqueue("simple", "1", asynq.TaskID(a.id("simple")), asynq.Retention(time.Hour))
	a.enqueue("simple", "1", asynq.TaskID(a.id("simple")))
	a.enqueue("unique", "1", asynq.Unique(time.Hour))
	a.enqueue("unique", "1", asynq.Unique(time.Hour))
	a.enqueue("unique", "2", asynq.Unique(time.Hour))
	a.enqueue("late", "1", asynq.ProcessIn(time.Hour), asynq.TaskID(a.id("late")))
	a.enqueue("soon", "1", asynq.ProcessIn(300*time.Millisecond))
	a.enqueue("simple", "2", asynq.Queue("low"), asynq.TaskID(a.id("deleted")))
	a.enqueue("simple", "3", asynq.Queue("low"), asynq.TaskID(a.id("archived")))
	a.enqueue("grouped", "1", asynq.Group("letters"))
	a.enqueue("grouped", "2", asynq.Group("letters"))
	a.noteQueues()
	pending, err := a.inspector.ListPendingTasks("low")
	a.r.note("pending", len(pending), err)
	a.r.note("delete", nil, a.inspector.DeleteTask("low", a.id("deleted")))
	a.r.note("delete again", nil, a.inspector.DeleteTask("low", a.id("deleted")))
	a.r.note("archive", nil, a.inspector.ArchiveTask("low", a.id("archived")))
	a.r.note("delete a queue that is not empty", nil, a.inspector.DeleteQueue("low", false))
	a.noteQueues()
}

// asynqWork has the tasks handled.
func asynqWork(a asynqRig, w *workers) {
	for _, kind := range []string{"fails once", "fails for good", "panics"} {
		a.enqueue(kind, "", asynq.MaxRetry(1))
	}
	a.enqueue("fails", "", asynq.MaxRetry(2))
	eventually(a.t, "the tasks to be handled", func() bool {
		return w.has("group") && a.rest("default") && a.queue("default").Scheduled == 1
	})
	a.r.note("handled", w.all(), nil)
	a.noteQueues()
	done, err := a.inspector.GetTaskInfo("default", a.id("simple"))
	if err == nil {
		a.r.note("completed", fmt.Sprintf("%v %s", done.State, done.Result), err)
	}
	archived, err := a.inspector.ListArchivedTasks("default")
	var errs []string
	for _, task := range archived {
		errs = append(errs, fmt.Sprint(task.Type, ": ", task.Retried))
	}
	slices.Sort(errs)
	a.r.note("archived", errs, err)
	a.enqueue("unique", "1", asynq.Unique(time.Hour)) // its lock went with the task
	a.r.note("run one of later", nil, a.inspector.RunTask("default", a.id("late")))
	n, err := a.inspector.RunAllArchivedTasks("low")
	a.r.note("run the archived ones", n, err)
	eventually(a.t, "these tasks to be handled", func() bool { return a.rest("default") && a.rest("low") })
	a.r.note("handled", w.all(), nil)

	a.r.note("pause", nil, a.inspector.PauseQueue("low"))
	a.enqueue("simple", "4", asynq.Queue("low"))
	a.enqueue("simple", "4")
	eventually(a.t, "the other queue to be handled", func() bool { return a.rest("default") })
	a.r.note("pending in a paused queue", a.queue("low").Pending, nil)
	a.r.note("unpause", nil, a.inspector.UnpauseQueue("low"))
	eventually(a.t, "the paused queue to be handled", func() bool { return a.rest("low") })
	a.r.note("handled", w.all(), nil)
}

// asynqCancel cancels a task that is being handled, by a message.
func asynqCancel(a asynqRig, w *workers) {
	a.enqueue("is cancelled", "", asynq.MaxRetry(0))
	id := <-w.entered
	a.r.note("active", a.queue("default").Active, nil)
	eventually(a.t, "the cancelled task to end", func() bool {
		if err := a.inspector.CancelProcessing(id); err != nil {
			a.t.Error(err)
		}
		return a.rest("default")
	})
	a.r.note("handled", w.all(), nil)
}

// asynqSchedule has tasks enqueued by the clock.
func asynqSchedule(a asynqRig, rdb *redis.Client, w *workers) {
	scheduler := asynq.NewSchedulerFromRedisClient(rdb, &asynq.SchedulerOpts{Logger: quiet{}})
	entry, err := scheduler.Register("@every 1s", asynq.NewTask("clock", nil), asynq.TaskID(a.id("clock")), asynq.Retention(time.Hour))
	a.r.note("register", entry != "", err)
	must(a.t, scheduler.Start())
	eventually(a.t, "the clock's task", func() bool {
		info, err := a.inspector.GetTaskInfo("default", a.id("clock"))
		return err == nil && info.State == asynq.TaskStateCompleted
	})
	entries, err := a.inspector.SchedulerEntries()
	a.r.note("entries", len(entries), err)
	scheduler.Shutdown()
	a.r.note("handled", w.all(), nil)
}

// asynqClean empties the queues.
func asynqClean(a asynqRig) {
	n, err := a.inspector.DeleteAllArchivedTasks("default")
	a.r.note("delete the archived ones", n, err)
	a.noteQueues()
	a.r.note("delete a queue", nil, a.inspector.DeleteQueue("low", true))
	servers, err := a.inspector.Servers()
	a.r.note("servers", len(servers), err)
	a.noteQueues()
}

// commands counts those of a client.
type commands struct{ n atomic.Int64 }

func (c *commands) DialHook(next redis.DialHook) redis.DialHook { return next }

func (c *commands) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (c *commands) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		c.n.Add(1)
		return next(ctx, cmd)
	}
}

// asynqInOutage has a server, which must handle each task that was accepted.
func asynqInOutage(t *testing.T, open connect) []operation {
	rdb := open()
	client, inspector := asynq.NewClientFromRedisClient(rdb), asynq.NewInspectorFromRedisClient(rdb)
	w := newWorkers()
	var sent commands
	startAsynq(t, open(&sent, goredis.Pace(100*time.Millisecond)), w)
	accepted := map[string]string{} // the start of the line of a handled task, by its id
	n := 0
	enqueue := func(kind string) error {
		n++
		task, err := client.Enqueue(asynq.NewTask(kind, fmt.Append(nil, n)))
		if err == nil {
			accepted[task.ID] = fmt.Sprintf(`%s "%d",`, kind, n)
		}
		return err
	}
	return []operation{
		{name: "Enqueue", alone: true, call: func(context.Context) error { return enqueue("simple") }, after: func(t *testing.T) {
			prepared(t, func() error { return enqueue("is cancelled") })
			id := <-w.entered
			eventually(t, "the task to be cancelled", func() bool {
				_ = inspector.CancelProcessing(id)
				return w.has("is cancelled: ")
			})
			// A task whose Dequeue got no reply waits a minute or more to be recovered.
			for id, line := range accepted {
				eventually(t, "task "+line, func() bool {
					_, err := inspector.GetTaskInfo("default", id)
					return err == nil || w.has(line)
				})
			}
			// Without Pace it sends a hundred thousand commands a second in an outage.
			if n := sent.n.Load(); n > 20_000 {
				t.Errorf("the server sent %d commands", n)
			}
		}},
		{name: "GetQueueInfo", alone: true, call: func(context.Context) error { _, err := inspector.GetQueueInfo("default"); return err }},
	}
}
