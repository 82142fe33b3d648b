package holdfast

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
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
	// settled is told of each set before it leaves the journal: the local copy
	// must be confirmed before it is fresh again.
	settled func(h keyHash)
	// doubt is told where nothing had to be taken back.
	doubt func(h keyHash)
	// forget is told where Redis does not hold what the local copy says.
	forget func(h keyHash)

	timeout time.Duration
	maxHeld time.Duration // a set is held for, before it becomes a delete
	pauses  backoff       // after rounds that Redis did not answer
	share   time.Duration // what one pipeline may take of a caller's budget
	rule    ConflictRule
	pace    pace
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
			if !r.jitter(ctx) {
				return
			}
		case <-timer.C:
		}
		s := r.link.gate.Load()
		if s != nil && (s.writable.Load() || s.deletable.Load()) && !r.drain(ctx, s) {
			timer.Reset(max(replayPause, r.pauses.next()))
			continue
		}
		r.pauses.reset()
		if s != nil {
			r.compare(ctx, s)
		}
		if s == nil || !s.writable.Load() {
			continue // what wakes the replayer is that Redis is back
		}
		if next := min(r.journal.nextCheck(r.owns), r.journal.nextCanary(), r.nextAsk(s), r.link.suspects.nextTrial()); next != never {
			timer.Reset(max(replayPause, time.Duration(next-r.clock.now())))
		}
	}
}

// jitter waits for a random time, unless there is something urgent; false where ctx has
// ended.
func (r *replayer) jitter(ctx context.Context) bool {
	t := time.NewTimer(time.Duration(rand.Int64N(int64(replayJitter))))
	defer t.Stop()
	for r.clock.now() >= r.routes.urgent.Load() {
		select {
		case <-ctx.Done():
			return false
		case <-t.C:
			return true
		case <-r.kick: // for something urgent, perhaps
		}
	}
	return true
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

// replayLanes is how many pipelines are under way at once: while Redis runs the one,
// what became of the other is noted.
const replayLanes = 2

// draining is a replay of all there is, on one session.
type draining struct {
	*replayer
	session *session

	mu struct {
		sync.Mutex
		total  Replay
		failed bool
	}
}

// drain replays until nothing is left; false where Redis stopped answering.
func (r *replayer) drain(ctx context.Context, s *session) bool {
	r.askAgain(ctx, s)
	r.expireHeld()
	d := &draining{replayer: r, session: s}
	var lanes group // of this replay: a group that was waited for takes nobody
	for range replayLanes - 1 {
		lanes.spawn("replayer", func() { d.lane(ctx) })
	}
	d.lane(ctx)
	lanes.wait(never)
	d.mu.Lock() // for form's sake: the lanes have ended
	defer d.mu.Unlock()
	if d.mu.total != (Replay{}) {
		d.mu.total.Left = int(r.journal.queued.Load())
		r.notify.replay(d.mu.total)
	}
	return !d.mu.failed
}

// lane sends one pipeline after the other, as long as there is something to send and
// Redis answers.
func (d *draining) lane(ctx context.Context) {
	s := d.session
	want := func(key string, del bool) bool {
		return (del || s.writable.Load() && !s.scriptsAwaited()) && d.owns(key) && d.link.treat(key, del) != sendNot
	}
	quickest := time.Duration(never) // what is not the batch's doing
	for batch := replayFirst; ; {
		if !d.note(Replay{}, true) {
			return
		}
		batch = min(batch, d.pace.most)
		if !d.await(ctx, batch) {
			return
		}
		began := d.clock.now()
		tasks := d.journal.canaries(began, d.hash, want)
		if len(tasks) == 0 {
			tasks = d.journal.take(batch, replayBytes, began, d.hash, want)
		}
		d.pace.refund(batch - len(tasks))
		if len(tasks) == 0 {
			return
		}
		leave, ok := d.enter(ctx, tasks)
		if !ok {
			d.note(Replay{}, false)
			return
		}
		round, ok := d.replay(ctx, s, tasks)
		leave()
		took := time.Duration(d.clock.now() - began)
		quickest = min(quickest, took)
		batch = nextBatch(batch, took-quickest, d.share)
		if !d.note(round, ok) {
			return
		}
	}
}

// enter has the tasks be under way beside the callers' commands, or without any. Where
// that is not to be had, they are not sent.
func (d *draining) enter(ctx context.Context, tasks []task) (leave func(), ok bool) {
	s := d.session
	if !tasks[0].alone {
		leave, ok = s.leaveReplay, s.enterReplay(ctx)
	} else {
		ctx, cancel := context.WithTimeout(ctx, d.timeout)
		defer cancel()
		_, err := s.enterAlone(ctx)
		leave, ok = func() { s.leaveAlone(0) }, err == nil
	}
	if !ok {
		for i := range tasks {
			d.journal.settle(tasks[i], foundUnsent, s.id, s.server, d.clock.now())
		}
	}
	return leave, ok
}

// await waits until so many keys may be sent; false where the session has ended
// meanwhile, or ctx.
func (d *draining) await(ctx context.Context, keys int) bool {
	wait := d.pace.reserve(keys, d.clock.now())
	if wait <= 0 {
		return true
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		if d.link.gate.Load() == d.session {
			return true
		}
	case <-d.session.dialer.life.Done():
	case <-ctx.Done():
	}
	d.pace.refund(keys)
	return d.note(Replay{}, false)
}

// note adds up what the lanes did, and says whether to go on.
func (d *draining) note(round Replay, ok bool) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mu.total.add(round)
	d.mu.failed = d.mu.failed || !ok
	return !d.mu.failed
}

// nextBatch keeps a pipeline at about its share of time, beside what even the quickest
// one takes: that is the network's, and it would take as long with a single key.
func nextBatch(batch int, took, share time.Duration) int {
	switch {
	case took > share:
		return max(replayFirst, batch/2)
	case took < share/2:
		return min(replayMost, batch*2)
	}
	return batch
}

// replay sends the tasks in one pipeline and settles each. It blocks for at most
// the replay's own timeout and a second for each megabyte: nobody waits for it
// but the journal.
func (r *replayer) replay(ctx context.Context, s *session, tasks []task) (round Replay, ok bool) {
	// The file must know what is sent, or the next process would take our own value for
	// somebody else's; and what the round before has decided.
	_, _ = r.journal.swept(ctx)
	round, ok = r.pass(ctx, s, tasks, false)
	if again, _ := r.journal.swept(ctx); again || round.Superseded+round.Held+round.Rejected > 0 {
		r.wake() // what somebody else wrote is deleted by another round
	}
	return round, ok
}

// pass is one try of some tasks on one session.
type pass struct {
	*replayer
	parent  context.Context // of who has it done
	session *session
	asking  bool // the server only imports the slots of the keys
	dead    bool // the connection had ended before

	round   Replay
	failed  bool
	plain   []task              // for which the server will not run the script
	against []refusedTask       // that Redis refuses, for themselves or not
	asked   map[*session][]task // for which another server is to be asked
}

func (r *replayer) pass(parent context.Context, s *session, tasks []task, asking bool) (round Replay, ok bool) {
	limit := r.timeout
	for i := range tasks {
		limit += time.Duration(len(tasks[i].value)) * time.Microsecond
	}
	ctx, cancel := context.WithTimeout(parent, limit)
	defer cancel()
	p := &pass{replayer: r, parent: parent, session: s, asking: asking, dead: s.lost.Load()}
	now := r.clock.now()
	for i := range tasks {
		tasks[i].sentAt = now
	}
	if s.scriptless() {
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
		more, sent := r.pass(parent, next, tasks, true)
		p.round.add(more)
		p.failed = p.failed || !sent
	}
	return p.round, !p.failed
}

func (r *Replay) add(more Replay) {
	r.Replayed += more.Replayed
	r.Superseded += more.Superseded
	r.Held += more.Held
	r.Rejected += more.Rejected
}

// conclude does with a task what the answer to it says.
func (p *pass) conclude(t *task, a answer) {
	if _, refused := rueidis.IsRedisErr(a.err); (a.err == nil || refused) && p.link.suspects.any() {
		p.link.suspects.clear(p.link.suspects.write(t.key, t.del))
	}
	switch c := classify(context.Background(), a.err); {
	case c == classOK:
		p.decided(t, a.verdict)
	case noScripts(a.err) && !withinScript(a.err) && !t.del:
		p.session.noteScripts(a.err, false)
		p.await(t)
	case noScripts(a.err) && t.del:
		p.plain = append(p.plain, *t)
	case (c == classCommand || c == classUnknown) && t.del && !t.undo:
		p.plain = append(p.plain, *t) // it may be the script that is refused
	case c == classCommand || c == classUnknown:
		p.refused(t, c, a.err)
	case c == classRedirect:
		next, ask := p.routes.follow(p.session, a.err)
		if !ask || p.asking || next == nil {
			p.postpone(t, c, a.err)
			return
		}
		if p.asked == nil {
			p.asked = map[*session][]task{}
		}
		p.asked[next] = append(p.asked[next], *t)
	default:
		p.postpone(t, c, a.err)
	}
}

// decided settles a task that Redis has decided on.
func (p *pass) decided(t *task, v verdict) {
	switch v {
	case verdictDone, verdictUndone:
		if !t.check && !t.lost {
			p.round.Replayed++
			p.stats.replayed.Add(1)
		}
	case verdictGone:
		// Whether that is somebody's doing could not be told when it was sent: the time
		// of what was there may have run out on the way. Then it is sent once more, and
		// finding nothing is expected.
		now := p.clock.now()
		if t.mayFindNothing(p.session.server, now) {
			p.journal.settle(*t, foundAgain, p.session.id, p.session.server, now)
			p.wake()
			return
		}
		fallthrough
	default:
		if !t.lost && !(t.check && v != verdictTheirs) {
			p.round.Superseded++
			p.stats.superseded.Add(1)
			p.notify.drop(t.key, DropSuperseded)
		}
	}
	p.settle(t, v.found())
}

// found is what the verdict says to the journal.
func (v verdict) found() found {
	switch v {
	case verdictDone:
		return foundOurs
	case verdictUndone:
		return foundUndone
	case verdictGone:
		return foundNothing
	case verdictTheirs:
		return foundTheirs
	default:
		return foundRefused // somebody else's value is there, and stays
	}
}

// await leaves a set in the journal until it is certain whether the server runs scripts.
func (p *pass) await(t *task) {
	p.journal.settle(*t, foundUnsent, p.session.id, p.session.server, p.clock.now())
}

// refusedTask is a task, the error by which Redis refused it, and its class.
type refusedTask struct {
	task
	class class
	err   error
}

// refused notes a task that Redis refused. A set that is too large becomes a delete at
// once: it will never be taken.
func (p *pass) refused(t *task, c class, err error) {
	// Redis closes the connection behind such an answer: what was sent next would
	// be taken for the cause.
	p.failed = p.failed || strings.HasPrefix(err.Error(), "Protocol error")
	if !t.del && tooLarge(err) {
		p.rejected(t)
		p.settle(t, foundTheirs) // what is there may be older: another round deletes it
		return
	}
	p.against = append(p.against, refusedTask{*t, c, err})
}

// judge decides what was refused by a probe: if that succeeds, the tasks are refused for
// themselves, and held. Else it is the way's, or all writes are refused, and they wait.
func (p *pass) judge() {
	if len(p.against) == 0 {
		return
	}
	why := p.session.link.judge(p.parent, p.session)
	for i := range p.against {
		if r := &p.against[i]; why != nil || !p.hold(r) {
			p.postpone(&r.task, r.class, r.err)
		}
	}
	if why != nil {
		p.session.link.report(p.session, classUnknown, why)
	}
}

// hold says whether there is room among what is held.
func (p *pass) hold(r *refusedTask) bool {
	refusal := p.journal.refusal(refusalOf(r.err, r.key), r.class == classCommand)
	var ran uint64
	if errors.Is(r.err, errNonsense) {
		ran = p.session.id
	}
	again, news, ok := p.journal.hold(&r.task, refusal, ran, p.clock.now())
	if !ok {
		return false
	}
	if !again {
		p.round.Held++
		p.stats.held.Add(1)
	}
	if news {
		p.notify.held(HeldWrite{Key: r.key, Delete: r.del, Bytes: len(r.value), Since: time.Now(), Refusal: refusal.text})
	}
	return true
}

// rejected tells of a set that is given up and becomes a delete.
func (p *pass) rejected(t *task) {
	p.round.Rejected++
	p.stats.rejected.Add(1)
	p.notify.drop(t.key, DropRejected)
}

// expireHeld makes deletes of the sets that Redis has refused for long.
func (r *replayer) expireHeld() {
	for _, key := range r.journal.expireHeld(r.clock.now() - int64(r.maxHeld)) {
		r.forget(r.hash(key))
		r.stats.rejected.Add(1)
		r.notify.drop(key, DropRejected)
	}
}

// postpone leaves the task in the journal for a later round.
func (p *pass) postpone(t *task, c class, err error) {
	p.failed = true
	s := p.session
	if gaveUp(err) && p.parent.Err() != nil {
		c = classCanceled // who asked has left: that says nothing about Redis
	}
	what := foundNoReply
	if _, answered := rueidis.IsRedisErr(err); answered {
		what = foundUnsent // a reply says that it did not run
	} else if errors.Is(err, errNonsense) {
		// A reply, but not one that says that.
	} else if gaveUp(err) {
		err = errBudget
	} else if p.dead {
		what = foundUnsent // what it is told is what ended the connection before
	} else if !errors.Is(err, errNoPermit) && !errors.Is(err, rueidis.ErrClosing) {
		what = foundCut // and not before it was sent
	}
	if what == foundCut {
		p.link.blame(s, []uint64{p.link.suspects.write(t.key, t.del)}, t.alone, t.key)
	}
	p.journal.settle(*t, what, s.id, s.server, p.clock.now())
	if what == foundCut && t.alone && t.cuts > suspectCuts && !t.del {
		p.rejected(t)
		p.journal.giveUp(t)
	}
	s.link.report(s, c, err)
	if !p.owns(t.key) {
		p.routes.deliver(t.key) // it has moved, after its new owner was woken
	}
}

// deletePlainly replays without the script: nothing can be compared then, so a
// set becomes a delete, which is always safe. That is so under ConflictKeep, too:
// another client's value goes, but ours, if it is older, does not stay.
func (p *pass) deletePlainly(ctx context.Context) {
	b := p.session.client.B()
	cmds := make([]rueidis.Completed, len(p.plain))
	for i := range p.plain {
		cmds[i] = b.Del().Key(p.plain[i].key).Build()
	}
	for i, reply := range p.do(ctx, p.session, cmds, p.asking) {
		t, err := &p.plain[i], numberReply(reply)
		switch c := classify(context.Background(), err); c {
		case classOK:
			switch {
			case t.lost:
			case t.del:
				p.round.Replayed++
				p.stats.replayed.Add(1)
			default:
				p.stats.downgraded.Add(1)
				p.notify.drop(t.key, DropDowngraded)
			}
			p.settle(t, foundNothing)
		case classCommand, classUnknown:
			p.refused(t, c, err)
		default:
			p.postpone(t, c, err)
		}
	}
}

// settle takes the key out of the journal, unless there is more to do. The local
// copy is put in doubt first, so that nobody finds it fresh and unfenced.
func (p *pass) settle(t *task, what found) {
	switch {
	case !p.journal.latest(t):
		// The copy is of the write that took it over.
	case what == foundOurs && t.undo:
		p.doubt(t.hash)
	case what == foundOurs && !t.del:
		p.settled(t.hash)
	default:
		p.forget(t.hash)
	}
	p.journal.settle(*t, what, p.session.id, p.session.server, p.clock.now())
	if t.canary != nil {
		p.routes.wake() // what was held with it is queued again
	}
}
