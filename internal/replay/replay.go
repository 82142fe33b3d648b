// Package replay sends the journaled writes to Redis when it is back, and compares before it writes.
package replay

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/dial"
	"github.com/holdfast-cache/holdfast/internal/group"
	"github.com/holdfast-cache/holdfast/internal/journal"
	"github.com/holdfast-cache/holdfast/internal/keyhash"
	"github.com/holdfast-cache/holdfast/internal/link"
	"github.com/holdfast-cache/holdfast/internal/rediserr"
	"github.com/redis/rueidis"
)

// Replayer sends the journaled writes of one link's keys to Redis, on a goroutine of its
// own.
type Replayer struct {
	journal *journal.Journal
	link    *link.Link
	routes  *link.Routes
	owns    func(key string) bool // reports whether a key is the link's
	clock   clock.Clock
	watcher Watcher
	copies  Copies

	timeout        time.Duration
	maxHeld        time.Duration // how long a set is held before it becomes a delete
	pauses         clock.Backoff // after rounds that Redis did not answer
	pipelineTarget time.Duration // the target time of one pipeline: a share of a caller's timeout
	rule           journal.ConflictRule
	pace           pace
	kick           chan struct{}
}

// Watcher hears of the results. Its methods do not block.
type Watcher interface {
	Replayed()             // Redis has a write
	Superseded(key string) // another client wrote the key
	Rejected(key string)   // Redis refuses the set for good; it becomes a delete
	// Held: Redis refuses this write and accepts others, and the write stays. first: no other
	// write was refused for this reason before.
	Held(w Held, again, first bool)
	Finished(total Total) // a round has ended
}

// Held is a write that Redis refuses while it accepts others.
type Held struct {
	Key     string
	Del     bool
	Bytes   int
	Refusal string
}

// Total is the result of a round, in keys.
type Total struct {
	Replayed, Superseded, Held, Rejected, Left int
}

// Copies are the copies of the local tier, as far as a replay changes them.
type Copies interface {
	Hash(key string) keyhash.Hash
	// OnReplayed is called for each set that Redis has, before it leaves the journal. A read must
	// confirm the local copy before it is fresh again.
	OnReplayed(h keyhash.Hash)
	// Doubt makes the local copy suspect: there was nothing to compensate.
	Doubt(h keyhash.Hash)
	// Forget removes the local copy: Redis does not have its value.
	Forget(h keyhash.Hash)
}

const (
	// One pipeline begins with firstBatch intents and grows to mostKeys where the server
	// is quick. The commands of callers wait behind it. On a slow server a long pipeline
	// would time them out, and open the circuit that has just closed.
	firstBatch = 8
	mostKeys   = 256
	batchBytes = 1 << 20
	// jitterMost is the longest random wait before a replay, so that the clients of a
	// fleet do not start at the same moment when Redis comes back.
	jitterMost = 50 * time.Millisecond
	// leastTimeout is the least timeout of a pipeline.
	leastTimeout = time.Second
	// leastPause is the shortest wait after a round that Redis did not answer.
	leastPause = 100 * time.Millisecond
)

// Config is what the replayers of a Cache share.
type Config struct {
	Journal    *journal.Journal
	Clock      clock.Clock
	Watcher    Watcher
	Copies     Copies
	Timeout    time.Duration // of a caller's command
	MaxBackoff time.Duration
	MaxRate    int // keys a second
	Rule       journal.ConflictRule
}

func New(c *Config, l *link.Link, owns func(key string) bool) *Replayer {
	return &Replayer{
		journal:        c.Journal,
		link:           l,
		routes:         l.Routes,
		owns:           owns,
		clock:          c.Clock,
		watcher:        c.Watcher,
		copies:         c.Copies,
		timeout:        max(c.Timeout, leastTimeout),
		maxHeld:        journal.HeldSets,
		pauses:         clock.Backoff{Min: leastPause, Max: c.MaxBackoff},
		pipelineTarget: c.Timeout / 8,
		rule:           c.Rule,
		pace:           newPace(c.MaxRate, mostKeys),
		kick:           make(chan struct{}, 1),
	}
}

// Wake has the replayer look for intents to replay. It does not block.
func (r *Replayer) Wake() {
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

// Run replays whenever there is something to replay and Redis takes it. It returns when ctx
// ends.
func (r *Replayer) Run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.kick:
			if !r.jitter(ctx) {
				return
			}
		case <-timer.C:
		}
		s := r.link.Gate.Load()
		if s != nil && (s.Writable.Load() || s.Deletable.Load()) && !r.drain(ctx, s) {
			timer.Reset(max(leastPause, r.pauses.Next()))
			continue
		}
		r.pauses.Reset()
		if s != nil {
			r.compare(ctx, s)
		}
		if s == nil || !s.Writable.Load() {
			continue // the replayer is woken when Redis takes writes again
		}
		if next := min(r.journal.NextCheck(r.owns), r.journal.NextCanary(), r.nextAsk(s), r.link.Suspects.NextTrial()); next != clock.Never {
			timer.Reset(max(leastPause, time.Duration(next-r.clock.Now())))
		}
	}
}

// jitter waits for a random time of up to jitterMost, or not at all while a replay is
// urgent. It returns false if ctx has ended.
func (r *Replayer) jitter(ctx context.Context) bool {
	t := time.NewTimer(time.Duration(rand.Int64N(int64(jitterMost))))
	defer t.Stop()
	for r.clock.Now() >= r.routes.Urgent.Load() {
		select {
		case <-ctx.Done():
			return false
		case <-t.C:
			return true
		case <-r.kick: // perhaps a replay is urgent now
		}
	}
	return true
}

// pipelines is the number of pipelines under way at once. While Redis runs one, the
// results of the other are processed.
const pipelines = 2

// draining is one replay of the journal on one session.
type draining struct {
	*Replayer
	session *link.Session

	mu struct {
		sync.Mutex
		total  Total
		failed bool
	}
}

// drain replays until nothing is left. It returns false if Redis stopped answering.
func (r *Replayer) drain(ctx context.Context, s *link.Session) bool {
	r.askAgain(ctx, s)
	r.expireHeld()
	d := &draining{Replayer: r, session: s}
	var lanes group.Group // a new group each time: after Wait, a group starts nothing
	for range pipelines - 1 {
		lanes.Spawn("replayer", func() { d.lane(ctx) })
	}
	d.lane(ctx)
	lanes.Wait(clock.Never)
	d.mu.Lock() // only for form: the lanes have ended
	defer d.mu.Unlock()
	if d.mu.total != (Total{}) {
		d.mu.total.Left = int(r.journal.Queued.Load())
		r.watcher.Finished(d.mu.total)
	}
	return !d.mu.failed
}

// lane sends one pipeline after the other, while there is something to send and Redis
// answers.
func (d *draining) lane(ctx context.Context) {
	s := d.session
	want := func(key string, del bool) bool {
		return (del || s.Writable.Load() && !s.ScriptsAwaited()) && d.owns(key) && d.link.Treat(key, del) != link.SendNot
	}
	quickest := time.Duration(clock.Never) // the time that does not depend on the batch
	for size := firstBatch; ; {
		if !d.note(Total{}, true) {
			return
		}
		size = min(size, d.pace.most)
		if !d.await(ctx, size) {
			return
		}
		began := d.clock.Now()
		tasks := d.journal.Canaries(began, d.copies.Hash, want)
		if len(tasks) == 0 {
			tasks = d.journal.Take(size, batchBytes, began, d.copies.Hash, want)
		}
		d.pace.refund(size - len(tasks))
		if len(tasks) == 0 {
			return
		}
		leave, ok := d.enter(ctx, tasks)
		if !ok {
			d.note(Total{}, false)
			return
		}
		round, ok := d.Replay(ctx, s, tasks)
		leave()
		took := time.Duration(d.clock.Now() - began)
		quickest = min(quickest, took)
		size = nextBatch(size, took-quickest, d.pipelineTarget)
		if !d.note(round, ok) {
			return
		}
	}
}

// enter has the tasks count as under way: beside the callers' commands, or alone. leave
// ends that. If ok is false, the tasks are back in the journal and must not be sent.
func (d *draining) enter(ctx context.Context, tasks []journal.Task) (leave func(), ok bool) {
	s := d.session
	if !tasks[0].Isolated {
		leave, ok = s.LeaveReplay, s.EnterReplay(ctx)
	} else {
		ctx, cancel := context.WithTimeout(ctx, d.timeout)
		defer cancel()
		_, err := s.EnterAlone(ctx)
		leave, ok = func() { s.LeaveAlone(0) }, err == nil
	}
	if !ok {
		for i := range tasks {
			d.journal.Resolve(tasks[i], journal.FoundUnsent, s.ID, s.Server, d.clock.Now())
		}
	}
	return leave, ok
}

// await waits until the pace allows the keys to be sent. It returns false if the session or
// ctx has ended meanwhile.
func (d *draining) await(ctx context.Context, keys int) bool {
	wait := d.pace.reserve(keys, d.clock.Now())
	if wait <= 0 {
		return true
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		if d.link.Gate.Load() == d.session {
			return true
		}
	case <-d.session.Dialer.Life.Done():
	case <-ctx.Done():
	}
	d.pace.refund(keys)
	return d.note(Total{}, false)
}

// note adds the results of a round, and reports whether to go on.
func (d *draining) note(round Total, ok bool) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mu.total.add(round)
	d.mu.failed = d.mu.failed || !ok
	return !d.mu.failed
}

// nextBatch chooses the next size so that a pipeline takes between half the limit and the
// limit. took is the time beyond that of the quickest pipeline: the quickest one's time is
// the network's, and a pipeline with a single key would take as long.
func nextBatch(size int, took, limit time.Duration) int {
	switch {
	case took > limit:
		return max(firstBatch, size/2)
	case took < limit/2:
		return min(mostKeys, size*2)
	}
	return size
}

// Replay sends the tasks in one pipeline and resolves each. It blocks for at most the replayer's
// timeout and one second for each megabyte of values. A second try after ASK, the probe of
// pass.judge and the disk take time of their own. No caller waits for Replay.
func (r *Replayer) Replay(ctx context.Context, s *link.Session, tasks []journal.Task) (round Total, ok bool) {
	// The file must have the tasks that are sent, or the next process would take our own
	// value for another writer's. It must also have the results of the round before.
	_, _ = r.journal.Swept(ctx)
	round, ok = r.Pass(ctx, s, tasks, false)
	if again, _ := r.journal.Swept(ctx); again || round.Superseded+round.Held+round.Rejected > 0 {
		r.Wake() // another writer's value is deleted by the next round
	}
	return round, ok
}

// pass is one try of some tasks on one session.
type pass struct {
	*Replayer
	parent  context.Context // the context of the whole replay
	session *link.Session
	asking  bool // the server is importing the slots of the keys, so each command needs ASKING
	dead    bool // the connection had ended before

	round        Total
	failed       bool
	plain        []journal.Task                   // tasks for which the server does not run the script
	refusedTasks []refusedTask                    // tasks that Redis refuses, for a reason not yet known
	asked        map[*link.Session][]journal.Task // tasks that were redirected by ASK
	late         bool                             // a task that ran out of time was reported
}

// Pass tries the tasks once on the session, and those that it redirects by ASK once on the
// server that it names. ok is false if tasks must wait.
func (r *Replayer) Pass(parent context.Context, s *link.Session, tasks []journal.Task, asking bool) (round Total, ok bool) {
	limit := r.timeout
	for i := range tasks {
		limit += time.Duration(len(tasks[i].Value)) * time.Microsecond
	}
	ctx, cancel := context.WithTimeout(parent, limit)
	defer cancel()
	p := &pass{Replayer: r, parent: parent, session: s, asking: asking, dead: s.Lost.Load()}
	now := r.clock.Now()
	for i := range tasks {
		tasks[i].SentAt = now
	}
	if s.Scriptless() {
		p.plain = tasks
	} else {
		for i, a := range r.send(ctx, s, tasks, asking) {
			p.conclude(&tasks[i], a)
		}
	}
	if len(p.plain) > 0 {
		p.deletePlainly(ctx)
	}
	p.judge()
	for next, tasks := range p.asked {
		more, answered := r.Pass(parent, next, tasks, true)
		p.round.add(more)
		p.failed = p.failed || !answered
	}
	return p.round, !p.failed
}

func (r *Total) add(more Total) {
	r.Replayed += more.Replayed
	r.Superseded += more.Superseded
	r.Held += more.Held
	r.Rejected += more.Rejected
}

// conclude processes the answer to a task.
func (p *pass) conclude(t *journal.Task, a answer) {
	if _, refused := rueidis.IsRedisErr(a.Err); (a.Err == nil || refused) && p.link.Suspects.Any() {
		p.link.Suspects.Clear(p.link.Suspects.Write(t.Key, t.Del))
	}
	switch c := rediserr.Classify(context.Background(), a.Err); {
	case c == rediserr.OK:
		p.decided(t, a.verdict)
	case link.NoScripts(a.Err) && !link.WithinScript(a.Err) && !t.Del:
		p.session.NoteScripts(a.Err, false)
		p.await(t)
	case link.NoScripts(a.Err) && t.Del:
		p.plain = append(p.plain, *t)
	case (c == rediserr.Command || c == rediserr.Unknown) && t.Del && !t.Compensate:
		p.plain = append(p.plain, *t) // perhaps only the script is refused
	case c == rediserr.Command || c == rediserr.Unknown:
		p.refused(t, c, a.Err)
	case c == rediserr.Redirect:
		next, ask := p.routes.Follow(p.session, a.Err)
		if !ask || p.asking || next == nil {
			p.postpone(t, c, a.Err)
			return
		}
		if p.asked == nil {
			p.asked = map[*link.Session][]journal.Task{}
		}
		p.asked[next] = append(p.asked[next], *t)
	default:
		p.postpone(t, c, a.Err)
	}
}

// decided resolves a task on which Redis has decided.
func (p *pass) decided(t *journal.Task, v verdict) {
	switch v {
	case verdictDone, verdictUndone:
		if !t.Check && !t.WasSet {
			p.round.Replayed++
			p.watcher.Replayed()
		}
	case verdictGone:
		// When the task was sent, it was not known whether absence is another writer's
		// doing: the previous value may have expired on the way. If so, the task is sent
		// once more, and by then absence is no conflict.
		now := p.clock.Now()
		if t.MayFindNothing(p.session.Server, now) {
			p.journal.Resolve(*t, journal.FoundAgain, p.session.ID, p.session.Server, now)
			p.Wake()
			return
		}
		fallthrough
	default:
		if !t.WasSet && !(t.Check && v != verdictTheirs) {
			p.round.Superseded++
			p.watcher.Superseded(t.Key)
		}
	}
	p.resolve(t, v.found())
}

// found returns the verdict as a result for the journal.
func (v verdict) found() journal.Found {
	switch v {
	case verdictDone:
		return journal.FoundOurs
	case verdictUndone:
		return journal.FoundUndone
	case verdictGone:
		return journal.FoundNothing
	case verdictTheirs:
		return journal.FoundTheirs
	default:
		return journal.FoundRefused // another writer's value is there, and stays
	}
}

// await keeps a set in the journal until it is certain whether the server runs scripts.
func (p *pass) await(t *journal.Task) {
	p.journal.Resolve(*t, journal.FoundUnsent, p.session.ID, p.session.Server, p.clock.Now())
}

// refusedTask is a task with the error by which Redis refused it, and its class.
type refusedTask struct {
	journal.Task
	class rediserr.Class
	err   error
}

// refused records a task that Redis refused. A set that is too large becomes a delete at
// once, because no try of it will succeed.
func (p *pass) refused(t *journal.Task, c rediserr.Class, err error) {
	// Redis closes the connection after a protocol error. A task sent after it would be
	// taken for the cause.
	p.failed = p.failed || strings.HasPrefix(err.Error(), "Protocol error")
	if !t.Del && rediserr.TooLarge(err) {
		p.rejected(t)
		p.resolve(t, journal.FoundTheirs) // the value in Redis may be older: the next round deletes it
		return
	}
	p.refusedTasks = append(p.refusedTasks, refusedTask{*t, c, err})
}

// judge probes the server once for all tasks that were refused. If the probe succeeds, the
// tasks themselves are refused, and they are held. Otherwise the server or the way to it
// refuses everything, or all writes, and the tasks wait.
func (p *pass) judge() {
	if len(p.refusedTasks) == 0 {
		return
	}
	why := p.session.Link.Judge(p.parent, p.session)
	for i := range p.refusedTasks {
		if r := &p.refusedTasks[i]; why != nil || !p.hold(r) {
			p.postpone(&r.Task, r.class, r.err)
		}
	}
	if why != nil {
		p.session.Link.Report(p.session, rediserr.Unknown, why)
	}
}

// hold holds a refused task. It returns false if too many are held already.
func (p *pass) hold(r *refusedTask) bool {
	reason := p.journal.Refusal(refusalText(r.err, r.Key), r.class == rediserr.Command)
	var ran uint64
	if errors.Is(r.err, rediserr.ErrNonsense) {
		ran = p.session.ID
	}
	again, news, ok := p.journal.Hold(&r.Task, reason, ran, p.clock.Now())
	if !ok {
		return false
	}
	if !again {
		p.round.Held++
	}
	p.watcher.Held(Held{Key: r.Key, Del: r.Del, Bytes: len(r.Value), Refusal: reason.Text}, again, news)
	return true
}

// rejected reports a set that is given up and becomes a delete.
func (p *pass) rejected(t *journal.Task) {
	p.round.Rejected++
	p.watcher.Rejected(t.Key)
}

// expireHeld turns sets that Redis has refused for longer than maxHeld into deletes.
func (r *Replayer) expireHeld() {
	for _, key := range r.journal.ExpireHeld(r.clock.Now() - int64(r.maxHeld)) {
		r.copies.Forget(r.copies.Hash(key))
		r.watcher.Rejected(key)
	}
}

// postpone leaves the task in the journal for a later round.
func (p *pass) postpone(t *journal.Task, c rediserr.Class, err error) {
	p.failed = true
	s := p.session
	if rediserr.GaveUp(err) && p.parent.Err() != nil {
		c = rediserr.Canceled // the replay was canceled, which says nothing about Redis
	}
	what := journal.FoundNoReply
	if _, answered := rueidis.IsRedisErr(err); answered {
		what = journal.FoundUnsent // an error reply: the command did not run
	} else if errors.Is(err, rediserr.ErrNonsense) {
		// A reply, but the command may have run.
	} else if rediserr.GaveUp(err) {
		err = link.ErrBudget
	} else if p.dead {
		what = journal.FoundUnsent // the connection had ended before; the error is the cause of that
	} else if !errors.Is(err, dial.ErrNoPermit) && !errors.Is(err, rueidis.ErrClosing) {
		what = journal.FoundCut // the connection was lost after the sending
	}
	if what == journal.FoundCut {
		p.link.Blame(s, []uint64{p.link.Suspects.Write(t.Key, t.Del)}, t.Isolated, t.Key)
	}
	p.journal.Resolve(*t, what, s.ID, s.Server, p.clock.Now())
	if what == journal.FoundCut && t.Isolated && t.Disconnects > journal.PoisonDisconnects && !t.Del {
		p.rejected(t)
		p.journal.GiveUp(t)
	}
	// A pipeline that ran out of time is one failure, however many tasks it has.
	if late := c == rediserr.Down && err == link.ErrBudget; !late || !p.late {
		p.late = p.late || late
		s.Link.Report(s, c, err)
	}
	if !p.owns(t.Key) {
		p.routes.Deliver(t.Key) // the key has moved; its new owner was woken before
	}
}

// deletePlainly replays without the script. Nothing can be compared then, so a set becomes
// a delete, which is always safe. That holds under ConflictKeep, too: another client's
// value may be deleted, but no older value of our own stays.
func (p *pass) deletePlainly(ctx context.Context) {
	b := p.session.Client.B()
	cmds := make([]rueidis.Completed, len(p.plain))
	for i := range p.plain {
		cmds[i] = b.Del().Key(p.plain[i].Key).Build()
	}
	for i, reply := range p.do(ctx, p.session, cmds, p.asking) {
		t, err := &p.plain[i], numberReply(reply)
		switch c := rediserr.Classify(context.Background(), err); c {
		case rediserr.OK:
			switch {
			case t.WasSet:
			case t.Del:
				p.round.Replayed++
				p.watcher.Replayed()
			default:
				p.journal.Downgraded(t.Key)
			}
			p.resolve(t, journal.FoundNothing)
		case rediserr.Command, rediserr.Unknown:
			p.refused(t, c, err)
		default:
			p.postpone(t, c, err)
		}
	}
}

// resolve resolves the task: the key leaves the journal unless there is more to do. The
// local copy becomes suspect before that, so that no reader finds it fresh while the key is
// not journaled any more.
func (p *pass) resolve(t *journal.Task, what journal.Found) {
	switch {
	case !p.journal.Latest(t):
		// The copy belongs to the later write.
	case what == journal.FoundOurs && t.Compensate:
		p.copies.Doubt(t.Hash)
	case what == journal.FoundOurs && !t.Del:
		p.copies.OnReplayed(t.Hash)
	default:
		p.copies.Forget(t.Hash)
	}
	p.journal.Resolve(*t, what, p.session.ID, p.session.Server, p.clock.Now())
	if t.Canary != nil {
		p.routes.Wake() // the entries held with it are queued again
	}
}
