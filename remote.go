package holdfast

import (
	"context"
	"errors"
	"time"
	"unsafe"

	"github.com/redis/rueidis"
)

// remote is the second tier: commands on a session, within the budget and the
// bulkhead, their outcomes classified and reported to the link.
type remote struct {
	link   *link
	budget *budget
	clock  clock
	stats  *counters
}

// outcome is what became of one command.
type outcome struct {
	class class
	err   error

	// unknown: Redis may have run the command, may still run it, or never got
	// it. A reply of any kind, and a command that was never sent, are known.
	unknown bool
}

// hungAfter is the part of the budget, one in so many, that a caller with a
// deadline of its own must have waited in vain before that counts against Redis.
const hungAfter = 10

// bound is a call of the user's as far as Redis is concerned: however many
// commands it sends, they share one budget.
type bound struct {
	context.Context                 // ends with the budget or with the caller's own
	caller          context.Context // the caller's own
	began           int64
}

// bound begins a call's budget; cancel must be called at its end.
func (r *remote) bound(ctx context.Context, now int64) (b bound, cancel context.CancelFunc) {
	b = bound{caller: ctx, began: now}
	b.Context, cancel = r.budget.of(ctx, now)
	return b, cancel
}

// do sends the commands in one pipeline and waits for their replies until the
// call's budget or the caller's context ends. The replies are nil where none
// came.
func (r *remote) do(ctx bound, s *session, cmds ...rueidis.Completed) ([]rueidis.RedisResult, outcome) {
	if ctx.Err() != nil {
		return nil, unsent(ctx) // says nothing about Redis: it was not asked
	}
	ticket, err := s.acquire(ctx)
	if err != nil {
		if ctx.caller.Err() != nil {
			return nil, outcome{class: classCanceled, err: ctx.caller.Err()}
		}
		r.stats.bulkheadRefused.Add(1)
		// Nothing was sent, and those who were sent report for themselves.
		return nil, outcome{class: classDown, err: err}
	}
	completed := s.completed.Load()
	replies := s.client.DoMulti(ctx.Context, cmds...)
	err = replies[len(replies)-1].NonRedisError()
	if err == nil {
		s.release()
		s.answered(ticket)
		return replies, outcome{}
	}
	if gaveUp(err) {
		s.abandon(ticket)
	} else {
		s.release()
	}
	return replies, r.unanswered(ctx, s, completed, err)
}

// unsent is the outcome of what is left of a call once its time is up.
func unsent(ctx bound) outcome {
	if err := ctx.caller.Err(); err != nil {
		return outcome{class: classCanceled, err: err}
	}
	return outcome{class: classDown, err: errBudget}
}

// unanswered gives a command that got no reply its outcome, and reports it.
func (r *remote) unanswered(ctx bound, s *session, completed uint64, err error) outcome {
	o := outcome{class: classify(ctx.caller, err), err: err, unknown: !errors.Is(err, errNoPermit)}
	switch {
	case o.class == classCanceled:
		o.err = ctx.caller.Err()
		// A caller who leaves says nothing about Redis; one whose own deadline
		// ran out while nothing at all came back says that it hangs.
		mute := s.completed.Load() == completed
		waited := time.Duration(r.clock.now() - ctx.began)
		if mute && errors.Is(o.err, context.DeadlineExceeded) && waited >= r.budget.timeout/hungAfter {
			r.link.report(s, classDown, errBudget)
		}
	case gaveUp(err):
		r.stats.timeouts.Add(1)
		o.err = errBudget
		r.link.report(s, classDown, errBudget)
	default:
		r.link.report(s, o.class, err)
	}
	return o
}

// reply classifies one reply of those that came, and reports it.
func (r *remote) reply(s *session, res rueidis.RedisResult) outcome {
	err := res.Error()
	c := classify(context.Background(), err)
	r.link.report(s, c, err)
	if c == classOK {
		err = nil
	}
	return outcome{class: c, err: err}
}

// value is what Redis holds for a key; ttl is 0 for no expiry.
type value struct {
	found bool
	bytes []byte
	ttl   time.Duration
}

// get reads a value with its remaining time to live, so that a local copy does
// not outlive the original.
func (r *remote) get(ctx bound, s *session, key string) (value, outcome) {
	b := s.client.B()
	replies, o := r.do(ctx, s, b.Get().Key(key).Build(), b.Pttl().Key(key).Build())
	if o.class != classOK {
		return value{}, o
	}
	return r.value(s, replies[0], replies[1])
}

func (r *remote) value(s *session, get, pttl rueidis.RedisResult) (value, outcome) {
	o := r.reply(s, get)
	if o.class != classOK || rueidis.IsRedisNil(get.Error()) {
		return value{}, o
	}
	bytes, err := get.AsBytes()
	if err != nil {
		return value{}, outcome{class: classCommand, err: err}
	}
	v := value{found: true, bytes: bytes[:len(bytes):len(bytes)]}
	switch ms, err := pttl.AsInt64(); {
	case err != nil || ms == -2:
		// It expired between the two commands, or PTTL is not permitted: the
		// value is an answer, not something to keep.
		v.ttl = time.Nanosecond
	case ms >= 0:
		v.ttl = max(millis(ms), time.Nanosecond)
	}
	return v, o
}

// millis guards against a server that names more than a Duration can hold.
func millis(ms int64) time.Duration {
	if ms > int64(1<<63-1)/int64(time.Millisecond) {
		return 1<<63 - 1
	}
	return time.Duration(ms) * time.Millisecond
}

// keysAtOnce bounds a pipeline, so that a large batch does not stand in front
// of every other caller's command.
const keysAtOnce = 256

// getMany reads the keys in pipelines. each is called for
// every key in turn.
func (r *remote) getMany(ctx bound, s *session, keys []string, each func(i int, v value, o outcome)) {
	b := s.client.B()
	for from := 0; from < len(keys); from += keysAtOnce {
		part := keys[from:min(from+keysAtOnce, len(keys))]
		cmds := make([]rueidis.Completed, 0, 2*len(part))
		for _, key := range part {
			cmds = append(cmds, b.Get().Key(key).Build(), b.Pttl().Key(key).Build())
		}
		replies, o := r.do(ctx, s, cmds...)
		for i := range part {
			if o.class != classOK {
				each(from+i, value{}, o)
				continue
			}
			v, o := r.value(s, replies[2*i], replies[2*i+1])
			each(from+i, v, o)
		}
		if o.class != classOK {
			o.unknown = false
			for i := from + len(part); i < len(keys); i++ {
				each(i, value{}, o)
			}
			return
		}
	}
}

// pipeline runs one command for each of n items, in pipelines; build makes the i-th, each gets its reply.
func (r *remote) pipeline(ctx bound, s *session, n int, build func(i int) rueidis.Completed, each func(i int, res rueidis.RedisResult, o outcome)) {
	for from := 0; from < n; from += keysAtOnce {
		to := min(from+keysAtOnce, n)
		cmds := make([]rueidis.Completed, 0, to-from)
		for i := from; i < to; i++ {
			cmds = append(cmds, build(i))
		}
		replies, o := r.do(ctx, s, cmds...)
		for i := from; i < to; i++ {
			if o.class != classOK {
				// The connection may have broken behind some of the replies.
				if replies != nil && replies[i-from].NonRedisError() == nil {
					each(i, replies[i-from], r.reply(s, replies[i-from]))
					continue
				}
				each(i, rueidis.RedisResult{}, o)
				continue
			}
			each(i, replies[i-from], r.reply(s, replies[i-from]))
		}
		if o.class != classOK {
			// The rest is not sent: one part that found nobody speaks for all.
			o.unknown = false
			for i := to; i < n; i++ {
				each(i, rueidis.RedisResult{}, o)
			}
			return
		}
	}
}

// setCommand writes what redis-cli GET will show: the plain value.
func setCommand(b rueidis.Builder, key string, value []byte, ttl time.Duration) rueidis.Completed {
	set := b.Set().Key(key).Value(viewString(value))
	if ttl == 0 {
		return set.Build()
	}
	return set.PxMilliseconds(ttl.Milliseconds()).Build()
}

// viewString shares the bytes. They are never changed or used again: a command
// that timed out may still be written to the wire.
func viewString(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
