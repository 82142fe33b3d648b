package holdfast

import (
	"context"
	"crypto/sha1"
	"encoding/hex"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/redis/rueidis"
)

// replayer carries to Redis what the journal has for one link, on a goroutine of
// its own.
type replayer struct {
	journal *journal
	link    *link
	routes  *routes
	owns    func(key string) bool // the link's keys
	clock   clock
	stats   *counters
	notify  *notifier
	hash    func(string) keyHash
	// doubt is told of each key before it leaves the journal: the local copy
	// must be confirmed before it is fresh again.
	doubt func(h keyHash)
	// forget is told where Redis does not hold what the local copy says.
	forget func(h keyHash)

	timeout time.Duration
	share   time.Duration // what one pipeline may take of a caller's budget
	kick    chan struct{}
}

const (
	// One pipeline begins with replayFirst intents and grows to replayMost where
	// the server is quick: the commands of callers wait for it, and a slow
	// server would time them out and open the circuit that has just closed.
	replayFirst = 8
	replayMost  = 256
	replayBytes = 1 << 20
	// replayJitter spreads the starts of a fleet that sees Redis come back at
	// one moment.
	replayJitter = 50 * time.Millisecond
	// replayTimeout is the least that a pipeline is given.
	replayTimeout = time.Second
	// replayPause is the wait after a round that Redis did not answer.
	replayPause = 100 * time.Millisecond
)

// replayScript decides by the plain value, inside Redis, where nobody else can
// write between the look and the deed.
//
//	ARGV[1]  set, delete: replay an intent
//	         reset, redelete: the second check, which only undoes our own late write
//	ARGV[2]  the value
//	ARGV[3]  its remaining life in ms, 0 for no expiry
//	ARGV[4]  1 where absence is no conflict; in a check, where a delete of our
//	         own may have run late
//	ARGV[5+] digests of what Redis may hold by our own doing
//
// It answers "done", or "superseded" where somebody else wrote meanwhile.
const replayScript = `
local key, op, value, ttl = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local kind = redis.call('TYPE', key)
if type(kind) == 'table' then kind = kind['ok'] end
if kind ~= 'none' and kind ~= 'string' then return 'superseded' end
local function write()
  if ttl == '0' then redis.call('SET', key, value) else redis.call('SET', key, value, 'PX', ttl) end
  return 'done'
end
if op == 'delete' then
  redis.call('DEL', key)
  return 'done'
end
local now = redis.call('GET', key)
local ours = false
if now then
  local sum = redis.sha1hex(now)
  for i = 5, #ARGV do
    if ARGV[i] == sum then ours = true end
  end
end
if op == 'redelete' then
  if ours then redis.call('DEL', key) end
  return 'done'
end
if now == value then
  if op == 'set' then
    if ttl == '0' then redis.call('PERSIST', key) else redis.call('PEXPIRE', key, ttl) end
  end
  return 'done'
end
if ours or (not now and ARGV[4] == '1') then return write() end
if op == 'reset' then return 'done' end
if not now then return 'superseded' end
redis.call('DEL', key)
return 'superseded'
`

var replayDigest = func() string {
	sum := sha1.Sum([]byte(replayScript))
	return hex.EncodeToString(sum[:])
}()

func (r *replayer) wake() {
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

// run is the replayer's life. It ends with ctx.
func (r *replayer) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.kick:
			if !sleep(ctx, time.Duration(rand.Int64N(int64(replayJitter)))) {
				return
			}
		case <-timer.C:
		}
		s := r.link.gate.Load()
		if s != nil && (s.writable.Load() || s.deletable.Load()) && !r.drain(ctx, s) {
			timer.Reset(replayPause)
			continue
		}
		if next := r.journal.nextCheck(r.owns); next != never {
			timer.Reset(max(replayPause, time.Duration(next-r.clock.now())))
		}
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// drain replays until nothing is left; false where Redis stopped answering.
func (r *replayer) drain(ctx context.Context, s *session) bool {
	var total Replay
	ok := true
	for batch := replayFirst; ok; {
		began := r.clock.now()
		tasks := r.journal.take(batch, replayBytes, began, r.hash, func(key string, del bool) bool {
			return (del || s.writable.Load()) && r.owns(key)
		})
		if len(tasks) == 0 {
			break
		}
		var round Replay
		round, ok = r.replay(ctx, s, tasks)
		batch = nextBatch(batch, time.Duration(r.clock.now()-began), r.share)
		total.add(round)
	}
	if total != (Replay{}) {
		total.Left = int(r.journal.queued.Load())
		r.notify.replay(total)
	}
	return ok
}

// nextBatch keeps a pipeline at about its share.
func nextBatch(batch int, took, share time.Duration) int {
	switch {
	case took > share:
		return max(1, batch/2)
	case took < share/2:
		return min(replayMost, batch*2)
	}
	return batch
}

// replay sends the tasks in one pipeline and settles each. It blocks for at most
// the replay's own timeout and a second for each megabyte: nobody waits for it
// but the journal.
func (r *replayer) replay(ctx context.Context, s *session, tasks []task) (round Replay, ok bool) {
	round, ok = r.replayTo(ctx, s, tasks, false)
	if r.journal.sweep() {
		r.wake()
	}
	return round, ok
}

// replayTo is replay; asking where the server only imports the slots of the keys.
func (r *replayer) replayTo(ctx context.Context, s *session, tasks []task, asking bool) (round Replay, ok bool) {
	limit := r.timeout
	for _, t := range tasks {
		limit += time.Duration(len(t.value)) * time.Microsecond
	}
	parent := ctx
	ctx, cancel := context.WithTimeout(parent, limit)
	defer cancel()
	replies := r.send(ctx, s, tasks, asking)
	ok = true
	var plain []task
	var asked map[*session][]task
	for i, t := range tasks {
		answer, err := replies[i].ToString()
		switch c := classify(context.Background(), err); {
		case c == classOK:
			if answer == "superseded" {
				round.Superseded++
				r.stats.superseded.Add(1)
				r.notify.drop(t.key, DropSuperseded)
				r.settle(t, foundNothing, s)
				continue
			}
			if !t.check {
				round.Replayed++
				r.stats.replayed.Add(1)
			}
			r.settle(t, foundOurs, s)
		case c == classCommand && noScripts(err):
			plain = append(plain, t)
		case c == classCommand:
			// It is this entry that Redis does not take: trying again would hold
			// up the others for nothing.
			round.Refused++
			r.stats.rejected.Add(1)
			r.notify.drop(t.key, DropRejected)
			r.settle(t, foundRefused, s)
		case c == classRedirect:
			next, ask := r.routes.follow(s, err)
			if ask && !asking && next != nil {
				if asked == nil {
					asked = map[*session][]task{}
				}
				asked[next] = append(asked[next], t)
				continue
			}
			ok = false
			r.postpone(t, s, c, err)
		default:
			ok = false
			if gaveUp(err) && parent.Err() != nil {
				c = classCanceled // who asked has left: that says nothing about Redis
			}
			r.postpone(t, s, c, err)
		}
	}
	if len(plain) > 0 && !r.deletePlainly(ctx, s, plain, &round) {
		ok = false
	}
	for next, tasks := range asked {
		more, sent := r.replayTo(parent, next, tasks, true)
		round.add(more)
		ok = ok && sent
	}
	return round, ok
}

func (r *Replay) add(more Replay) {
	r.Replayed += more.Replayed
	r.Superseded += more.Superseded
	r.Refused += more.Refused
}

// postpone leaves the task in the journal for a later round.
func (r *replayer) postpone(t task, s *session, c class, err error) {
	what := foundNoReply
	if _, answered := rueidis.IsRedisErr(err); answered {
		what = foundUnsent // a reply says that it did not run
	} else if gaveUp(err) {
		err = errBudget
	}
	r.journal.settle(t, what, s.id, s.server, r.clock.now())
	s.link.report(s, c, err)
	if !r.owns(t.key) {
		r.routes.deliver(t.key) // it has moved, after its new owner was woken
	}
}

// noScripts says that the server will not run the script, now or at all: it was
// flushed between load and use, the user may not, or a proxy knows no scripts.
func noScripts(err error) bool {
	text := err.Error()
	return strings.HasPrefix(text, "NOSCRIPT") || strings.HasPrefix(text, "NOPERM") ||
		strings.Contains(text, "unknown command")
}

// deletePlainly replays without the script: nothing can be compared then, so a
// set becomes a delete, which is always safe.
func (r *replayer) deletePlainly(ctx context.Context, s *session, tasks []task, round *Replay) (ok bool) {
	cmds := make([]rueidis.Completed, len(tasks))
	for i, t := range tasks {
		cmds[i] = s.client.B().Del().Key(t.key).Build()
	}
	ok = true
	for i, reply := range s.client.DoMulti(ctx, cmds...) {
		t, err := tasks[i], reply.Error()
		switch c := classify(context.Background(), err); c {
		case classOK:
			if t.del {
				round.Replayed++
				r.stats.replayed.Add(1)
			} else {
				r.stats.downgraded.Add(1)
				r.notify.drop(t.key, DropDowngraded)
			}
			r.settle(t, foundNothing, s)
		case classCommand:
			round.Refused++
			r.stats.rejected.Add(1)
			r.notify.drop(t.key, DropRejected)
			r.settle(t, foundRefused, s)
		default:
			ok = false
			r.postpone(t, s, c, err)
		}
	}
	return ok
}

// settle takes the key out of the journal, unless there is more to do. The local
// copy is put in doubt first, so that nobody finds it fresh and unfenced.
func (r *replayer) settle(t task, what found, s *session) {
	if what == foundOurs && !t.del {
		r.doubt(t.hash)
	} else {
		r.forget(t.hash)
	}
	r.journal.settle(t, what, s.id, s.server, r.clock.now())
}

// send returns a reply for each task. A server that lost its scripts is given
// this one again. The tasks that it did not run for want of it, and no others,
// are sent once more: some may have been redirected.
func (r *replayer) send(ctx context.Context, s *session, tasks []task, asking bool) []rueidis.RedisResult {
	replies := r.sendOnce(ctx, s, tasks, asking)
	var again []task
	var at []int
	for i := range replies {
		if err := replies[i].Error(); err != nil && strings.HasPrefix(err.Error(), "NOSCRIPT") {
			again, at = append(again, tasks[i]), append(at, i)
		}
	}
	if len(again) == 0 {
		return replies
	}
	load := s.client.Do(ctx, s.client.B().ScriptLoad().Script(replayScript).Build())
	if err := load.Error(); err != nil {
		if classify(context.Background(), err) != classCommand {
			for _, i := range at {
				replies[i] = load // they wait for another round
			}
		}
		return replies // no scripts here: NOSCRIPT is the last word
	}
	for i, reply := range r.sendOnce(ctx, s, again, asking) {
		replies[at[i]] = reply
	}
	return replies
}

func (r *replayer) sendOnce(ctx context.Context, s *session, tasks []task, asking bool) []rueidis.RedisResult {
	ticket := s.tickets.Add(1)
	cmds := r.commands(s, tasks)
	if asking {
		cmds = withAsking(s.client.B(), cmds)
	}
	replies := s.client.DoMulti(ctx, cmds...)
	if asking {
		replies = withoutAsking(replies)
	}
	if replies[len(replies)-1].NonRedisError() == nil {
		s.answered(ticket)
	}
	return replies
}

func (r *replayer) commands(s *session, tasks []task) []rueidis.Completed {
	cmds := make([]rueidis.Completed, len(tasks))
	now := r.clock.now()
	b := s.client.B()
	for i, t := range tasks {
		op, value, ttl := t.operation(now)
		absent := "0"
		if t.check && t.late.del || !t.check && t.mayBeAbsent(s.server, now) {
			absent = "1"
		}
		args := make([]string, 0, 5+len(t.late.sums))
		args = append(args, op, viewString(value), strconv.FormatInt(ttl.Milliseconds(), 10), absent)
		for _, sum := range t.late.sums {
			args = append(args, hex.EncodeToString(sum[:]))
		}
		if t.base.held && !t.check {
			args = append(args, hex.EncodeToString(t.base.sum[:]))
		}
		cmds[i] = b.Evalsha().Sha1(replayDigest).Numkeys(1).Key(t.key).Arg(args...).Build()
	}
	return cmds
}

// operation says what to do with a task now: a set whose time ran out while it
// waited deletes, or the value from before the outage would return.
func (t task) operation(now int64) (op string, value []byte, ttl time.Duration) {
	gone := t.del || now >= t.deadline
	check := t.check && !t.late.more
	switch {
	case t.undo, gone && check:
		return "redelete", nil, 0
	case gone:
		return "delete", nil, 0
	}
	if t.deadline != never {
		ttl = max(left(now, t.deadline), time.Millisecond)
	}
	if check {
		return "reset", t.value, ttl
	}
	return "set", t.value, ttl
}
