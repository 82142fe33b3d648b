package holdfast

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/holdfast-cache/holdfast/internal/clock"
	"github.com/holdfast-cache/holdfast/internal/group"
	"github.com/holdfast-cache/holdfast/internal/rediserr"
	"github.com/redis/rueidis"
)

// remote is the second tier. It sends commands on sessions, within the budget and the bulkhead. It
// classifies their outcomes and reports them to the session's link.
type remote struct {
	routes  *routes
	hops    int // most redirections that a call follows
	budget  *budget
	clock   clock.Clock
	stats   *linkCounters
	callers group.Group // goroutines of batches that go to several servers
}

func newRemote(r *routes) *remote {
	c := r.cfg
	return &remote{
		routes: r, hops: c.Redis.ClusterOption.MaxMovedRedirections,
		budget: newBudget(c.Timeout, c.Clock), clock: c.Clock, stats: c.Stats,
	}
}

// outcome is the result of one command, apart from its replies.
type outcome struct {
	class rediserr.Class
	err   error

	// unknown: Redis may have run the command, may still run it, or never got it. It is false for a
	// command that got a reply of any kind, and for a command that was not sent.
	unknown bool

	// lost: the connection was lost while the command was under way. tooLate: the connection was
	// lost before, so the command was not sent.
	lost    bool
	tooLate bool

	// session is the session that answered, or failed to. asked: the command was sent with ASKING,
	// to a server that imports the slot and does not own it. Its reply is an answer, but is not
	// kept as fresh.
	session *session
	asked   bool
}

// tryAgain reports the error TRYAGAIN: while a slot moves, its keys may be on two nodes.
func (o *outcome) tryAgain() bool {
	var re *rueidis.RedisError
	return errors.As(o.err, &re) && strings.HasPrefix(re.Error(), "TRYAGAIN")
}

// hungAfter is a divisor of the budget. A caller whose own deadline ended counts as a failure of
// Redis only if it waited for at least this fraction of the budget and the session answered nothing
// meanwhile.
const hungAfter = 10

// bound is the context of one call of the user to Redis. All commands of the call share one budget,
// except in a batch; see remote.batch.
type bound struct {
	context.Context                 // ends with the budget or with caller
	caller          context.Context // the caller's own context
	began           int64
}

// bound begins the budget of a call. The caller must call cancel at the end of the call.
func (r *remote) bound(ctx context.Context, now int64) (b bound, cancel context.CancelFunc) {
	b = bound{caller: ctx, began: now}
	b.Context, cancel = r.budget.of(ctx, now)
	return b, cancel
}

// do sends the commands in one pipeline and waits for their replies until the call's budget or the
// caller's context ends. With alone set it waits until no other command is under way. The replies
// may be nil if the outcome is not OK. If the session had ended before anything was sent and
// its link has another one by now, the commands are sent there, once.
func (r *remote) do(ctx bound, s *session, alone bool, cmds ...rueidis.Completed) ([]rueidis.RedisResult, outcome) {
	replies, o := r.doOn(ctx, s, alone, cmds)
	if o.tooLate {
		if next := r.successor(ctx, s); next != nil && r.mayFollow(cmds) {
			return r.doOn(ctx, next, alone, cmds)
		}
		s.link.report(s, o.class, o.err)
	}
	return replies, o
}

// mayFollow reports whether commands that were not sent may be sent to the session that serves now
// instead. Writes may not if the journal holds keys: a later write of the same key may be in the
// journal, and the older command must not run after it.
func (r *remote) mayFollow(cmds []rueidis.Completed) bool {
	return !r.routes.demand.Journaling() || !slices.ContainsFunc(cmds, func(cmd rueidis.Completed) bool { return !cmd.IsReadOnly() })
}

// successor returns the session that serves in place of one that was replaced or lost after a call
// had chosen it, nil if there is none. If the link was unused, successor waits for the connection
// attempt; see moment.
func (r *remote) successor(ctx bound, s *session) *session {
	next := s.link.gate.Load()
	if next == nil {
		m := s.link.window(false)
		if m == nil {
			return nil
		}
		select {
		case <-m.over:
		case <-ctx.Done():
			return nil
		}
		next = s.link.gate.Load()
	}
	if next == s || ctx.Err() != nil {
		return nil
	}
	return next
}

// doOn is do on the given session.
func (r *remote) doOn(ctx bound, s *session, alone bool, cmds []rueidis.Completed) ([]rueidis.RedisResult, outcome) {
	if ctx.Err() != nil {
		return nil, unsent(ctx) // says nothing about Redis: it was not asked
	}
	var ticket uint64
	var err error
	if alone {
		ticket, err = s.enterAlone(ctx)
	} else {
		ticket, err = s.acquire(ctx)
	}
	if err != nil {
		if ctx.caller.Err() != nil {
			return nil, outcome{class: rediserr.Canceled, err: ctx.caller.Err()}
		}
		r.stats.BulkheadRefused.Add(1)
		// Nothing was sent, and the calls that hold the slots report their own outcomes.
		return nil, outcome{class: rediserr.Down, err: err}
	}
	completed, dead := s.completed.Load(), s.lost.Load()
	replies := s.client.DoMulti(ctx.Context, cmds...)
	err = replies[len(replies)-1].NonRedisError()
	keep := int64(0)
	if err != nil && rediserr.GaveUp(err) {
		s.abandon(ticket)
		keep = 1
	}
	if alone {
		s.leaveAlone(keep)
	} else if keep == 0 {
		s.release()
	}
	if err == nil {
		s.answered(ticket)
		return replies, outcome{session: s}
	}
	if !rediserr.GaveUp(err) && (dead || errors.Is(err, errNoPermit)) {
		// The connection is closed before the session is marked as lost. A closed connection takes
		// no more commands.
		return replies, outcome{class: rediserr.Down, err: err, session: s, tooLate: true}
	}
	o := r.unanswered(ctx, s, completed, err)
	o.lost = o.unknown && !rediserr.GaveUp(err) && !dead && !s.ended.Load()
	return replies, o
}

// unsent returns the outcome of commands that were not sent because the time of the call was over.
func unsent(ctx bound) outcome {
	if err := ctx.caller.Err(); err != nil {
		return outcome{class: rediserr.Canceled, err: err}
	}
	return outcome{class: rediserr.Down, err: errBudget}
}

// unanswered returns and reports the outcome of commands that got no reply.
func (r *remote) unanswered(ctx bound, s *session, completed uint64, err error) outcome {
	o := outcome{class: rediserr.Classify(ctx.caller, err), err: err, unknown: !errors.Is(err, errNoPermit), session: s}
	switch {
	case o.class == rediserr.Canceled:
		o.err = ctx.caller.Err()
		// A caller that leaves says nothing about Redis. But if the caller's own deadline ended and
		// nothing at all came back meanwhile, the server hangs.
		mute := s.completed.Load() == completed
		waited := time.Duration(r.clock.Now() - ctx.began)
		if mute && errors.Is(o.err, context.DeadlineExceeded) && waited >= r.budget.timeout/hungAfter {
			s.link.report(s, rediserr.Down, errBudget)
		}
	case rediserr.GaveUp(err):
		r.stats.Timeouts.Add(1)
		o.err = errBudget
		s.link.report(s, rediserr.Down, errBudget)
	default:
		s.link.report(s, o.class, err)
	}
	return o
}

// reply classifies and reports one of the replies that came.
func (r *remote) reply(s *session, res rueidis.RedisResult) outcome {
	err := res.Error()
	c := rediserr.Classify(context.Background(), err)
	s.link.report(s, c, err)
	if c == rediserr.OK {
		err = nil
	}
	return outcome{class: c, err: err, session: s}
}

// remoteValue is the value that Redis holds for a key. ttl is 0 for no expiry.
type remoteValue struct {
	found bool
	bytes []byte
	ttl   time.Duration
	open  bool // the expiry is not known: PTTL is refused
}

// get reads a value with its remaining life, so that a local copy does not outlive it.
func (r *remote) get(ctx bound, s *session, key string) (remoteValue, outcome) {
	b := s.client.B()
	replies, o := r.ask(ctx, s, subject{name: readName, key: key}, b.Get().Key(key).Build(), b.Pttl().Key(key).Build())
	if o.class != rediserr.OK {
		return remoteValue{}, o
	}
	o = r.reply(o.session, replies[0])
	if o.class == rediserr.Redirect {
		replies, o = r.elsewhere(ctx, item{key: key, session: s, outcome: o}, 2, readCommands)
	}
	return readValue(replies, o)
}

// elsewhere is redirect for one item.
func (r *remote) elsewhere(ctx bound, it item, stride int, build commands) (replies []rueidis.RedisResult, o outcome) {
	r.redirect(ctx, []item{it}, stride, build, func(_ int, got []rueidis.RedisResult, last outcome) {
		replies, o = got, last
	})
	return replies, o
}

// one is do for a call on one key, and follows redirections.
func (r *remote) one(ctx bound, s *session, key string, stride int, build commands) ([]rueidis.RedisResult, outcome) {
	it := item{key: key, session: s}
	replies, o := r.ask(ctx, s, subject{it: &it, build: build}, build(s.client.B(), &it, nil)...)
	if o.class == rediserr.OK {
		o = r.reply(o.session, replies[0])
	}
	if o.class == rediserr.Redirect {
		it.outcome = o
		return r.elsewhere(ctx, it, stride, build)
	}
	return replies, o
}

// readName is the name of a read in the id of a suspect.
const readName = "GET\x00PTTL"

func readCommands(b rueidis.Builder, it *item, cmds []rueidis.Completed) []rueidis.Completed {
	return append(cmds, b.Get().Key(it.key).Build(), b.Pttl().Key(it.key).Build())
}

// readValue decodes the replies of GET and PTTL.
func readValue(replies []rueidis.RedisResult, o outcome) (remoteValue, outcome) {
	if o.class != rediserr.OK {
		return remoteValue{}, o
	}
	get, pttl := replies[0], replies[1]
	if rueidis.IsRedisNil(get.Error()) {
		return remoteValue{}, o
	}
	bytes, err := get.AsBytes()
	if err != nil {
		return remoteValue{}, outcome{class: rediserr.Command, err: err, session: o.session}
	}
	v := remoteValue{found: true, bytes: bytes[:len(bytes):len(bytes)]}
	ms, err := pttl.AsInt64()
	v.open = err != nil && rediserr.Classify(context.Background(), err) == rediserr.Command
	o.session.lacks.note(lackPTTL, v.open)
	switch {
	case v.open:
	case err != nil || ms == -2:
		// The key expired between the two commands, or PTTL failed: the value answers this call,
		// but is not kept.
		v.ttl = time.Nanosecond
	case ms >= 0:
		v.ttl = max(millis(ms), time.Nanosecond)
	}
	return v, o
}

// millis converts milliseconds to a Duration and limits values that do not fit.
func millis(ms int64) time.Duration {
	if ms > int64(1<<63-1)/int64(time.Millisecond) {
		return 1<<63 - 1
	}
	return time.Duration(ms) * time.Millisecond
}

const (
	// keysAtOnce and pipelineBytes bound a pipeline, so that a large batch does not hold up the
	// commands of all other callers, and each pipeline can be answered within the budget: 256 KiB
	// take 2 ms on a network of 1 Gbit/s.
	keysAtOnce    = 256
	pipelineBytes = 256 << 10
	// firstReads bounds the reads of a pipeline while the size of the values is not known.
	firstReads = 32
)

// item is one key's part of a call.
type item struct {
	key     string
	session *session // where to send it
	asking  bool
	outcome outcome // of the last try

	payload     any  // the caller's; batch does not read it
	size        int  // bytes to send beside the key, approximately
	reads       bool // the reply contains a value
	stays       bool // a redirection is the answer, and is not followed
	transaction bool // the replies are those of a transaction
}

// commands appends the commands of an item. A call has a stride: the fixed number of commands for
// every item. With a stride of 0 each item has any number of commands, at least one.
type commands func(b rueidis.Builder, it *item, cmds []rueidis.Completed) []rueidis.Completed

// batch sends the items in pipelines, to all servers at once. It calls each for every item, one at
// a time, with the replies to the item's commands, or with none if the outcome is not an answer.
// Redirections are followed.
//
// The budget applies to each pipeline, as long as the one before was answered in time. So the total
// time of a batch is not bounded by the budget, but a server that does not answer costs one budget.
func (r *remote) batch(ctx bound, items []item, stride int, build commands, each func(i int, replies []rueidis.RedisResult, o outcome)) {
	var long bool
	if groups := bySession(items); groups == nil {
		long = r.part(ctx, items, nil, stride, build, each)
	} else {
		long = r.parts(ctx, items, groups, stride, build, each)
	}
	if long {
		var cancel context.CancelFunc
		ctx, cancel = r.bound(ctx.caller, r.clock.Now())
		defer cancel()
	}
	r.redirect(ctx, items, stride, build, each)
}

// parts is part for several groups at once. If they ran one after the other, a server that hangs
// would use up the time of all. The caller's goroutine calls each for the results of all groups, so
// that no group waits while each handles a result.
func (r *remote) parts(ctx bound, items []item, groups [][]int, stride int, build commands, each func(i int, replies []rueidis.RedisResult, o outcome)) (long bool) {
	type partResult struct {
		i       int
		replies []rueidis.RedisResult
		o       outcome
	}
	results := make(chan partResult, len(items)) // large enough for all: a send never blocks
	var others, longs atomic.Int32
	others.Store(int32(len(groups) - 1))
	for _, indexes := range groups[1:] {
		r.callers.Spawn("batch", func() {
			if r.part(ctx, items, indexes, stride, build, func(i int, replies []rueidis.RedisResult, o outcome) {
				results <- partResult{i, replies, o}
			}) {
				longs.Add(1)
			}
			if others.Add(-1) == 0 {
				close(results)
			}
		})
	}
	long = r.part(ctx, items, groups[0], stride, build, each)
	for a := range results {
		each(a.i, a.replies, a.o)
	}
	return long || longs.Load() > 0
}

// bySession groups the indexes of the items by their destination. It returns nil if there is only
// one.
func bySession(items []item) [][]int {
	same := func(it item) bool { return it.session == items[0].session && it.asking == items[0].asking }
	if !slices.ContainsFunc(items, func(it item) bool { return !same(it) }) {
		return nil
	}
	type place struct {
		session *session
		asking  bool
	}
	at := map[place]int{}
	var groups [][]int
	for i := range items {
		p := place{items[i].session, items[i].asking}
		g, ok := at[p]
		if !ok {
			g = len(groups)
			at[p] = g
			groups = append(groups, nil)
		}
		groups[g] = append(groups[g], i)
	}
	return groups
}

// part sends the items with the given indexes, or all items if indexes is nil, to their one
// destination. It reports whether that took more than one pipeline. A redirected item is left for
// redirect.
func (r *remote) part(ctx bound, items []item, indexes []int, stride int, build commands, each func(i int, replies []rueidis.RedisResult, o outcome)) (long bool) {
	n := len(indexes)
	index := func(i int) int { return indexes[i] }
	if indexes == nil {
		n, index = len(items), func(i int) int { return i }
	}
	if n == 0 {
		return false
	}
	first := &items[index(0)]
	s, asking := first.session, first.asking
	cancel := noCancel
	defer func() { cancel() }()
	var cmds []rueidis.Completed
	var offsets []int // end of each item's commands, used if stride is 0
	for from, to := 0, 0; from < n; from = to {
		if n > keysAtOnce || from > 0 {
			// The local processing time of many keys is not charged to Redis.
			cancel()
			ctx, cancel = r.bound(ctx.caller, r.clock.Now())
		}
		cmds, offsets = cmds[:0], offsets[:0]
		var ids []uint64 // collected while there are suspects
		how, watched := sendInCompany, s.link.suspects.any()
		to = pipelineEnd(s, items, index, from, n)
		for i := from; i < to; i++ {
			before := len(cmds)
			cmds = build(s.client.B(), &items[index(i)], cmds)
			if watched {
				id := s.link.suspects.id(items[index(i)].key, cmds[before:])
				if what := s.link.suspects.judge(id); what != sendInCompany && i > from {
					cmds, to = cmds[:before], i // it begins the next pipeline
					break
				} else if what != sendInCompany {
					how, to = what, from+1
				}
				ids = append(ids, id)
			}
			if stride == 0 {
				offsets = append(offsets, len(cmds))
			}
		}
		long = long || to < n
		if how == sendNot {
			at := outcome{class: rediserr.Down, err: errIsolated, session: s}
			items[index(from)].outcome = at
			each(index(from), nil, at)
			continue
		}
		if asking {
			cmds = withAsking(s.client.B(), cmds)
		}
		completed := s.completed.Load()
		replies, o := r.do(ctx, s, how == sendAlone, cmds...)
		if from > 0 && errors.Is(o.err, errBulkhead) && s.completed.Load() != completed {
			to = from // no slot yet, but Redis answers other calls: try again
			continue
		}
		if o.session != nil {
			s = o.session // do may have used another session; the rest goes there too
		}
		if asking {
			replies = withoutAsking(replies)
		}
		o.asked = asking
		var size sizes
		for i := from; i < to; i++ {
			it, itemReplies, at := &items[index(i)], replies, o
			if itemReplies != nil {
				itemReplies = share(replies, i-from, stride, offsets)
			}
			switch {
			case itemReplies == nil:
			case o.class == rediserr.OK, itemReplies[0].NonRedisError() == nil:
				// If the connection was lost, it may have been lost after some of the replies.
				if n > 1 {
					size.add(it, itemReplies[0])
				}
				at = r.reply(s, it.telling(itemReplies))
				at.asked = asking
				if at.class == rediserr.Redirect && it.stays {
					at.class = rediserr.Command // the answer of the node that was asked
				}
			default:
				itemReplies = nil
			}
			if it.outcome = at; at.class != rediserr.Redirect {
				each(index(i), itemReplies, at)
			}
		}
		if n > 1 {
			s.sized(size, to-from, o)
		}
		if o.class == rediserr.OK {
			s.link.suspects.clear(ids...)
		} else {
			if o.unknown {
				r.suspect(s, items, index, from, to, how == sendAlone, build, o)
			}
			// The rest is not sent: the failure of one pipeline stands for all.
			o.unknown = false
			for i := to; i < n; i++ {
				items[index(i)].outcome = o
				each(index(i), nil, o)
			}
			return long
		}
	}
	return long
}

// suspect records those items of a pipeline that got no answer.
func (r *remote) suspect(s *session, items []item, index func(int) int, from, to int, alone bool, build commands, o outcome) {
	var ids []uint64
	for i := from; i < to; i++ {
		if it := &items[index(i)]; it.outcome.unknown {
			ids = append(ids, s.link.suspects.id(it.key, build(s.client.B(), it, nil)))
		}
	}
	s.unanswered(ids, alone, items[index(from)].key, o)
}

// pipelineEnd returns the end of the pipeline that begins with the item from. A pipeline has at
// most keysAtOnce items and pipelineBytes bytes, but at least one item.
func pipelineEnd(s *session, items []item, index func(int) int, from, n int) int {
	most := min(n, from+keysAtOnce)
	bytes, reads := 0, 0
	known := int(s.valueSize.Load())
	for i := from; i < most; i++ {
		it := &items[index(i)]
		if it.reads {
			// A batch of several pipelines begins with a small one, because its values may differ
			// in size from those of the batch before.
			if reads++; reads > firstReads && (known == 0 || from == 0 && n > keysAtOnce) {
				return i
			}
			bytes += known
		}
		if bytes += len(it.key) + it.size; bytes > pipelineBytes && i > from {
			return i
		}
	}
	return most
}

// sizes adds up the values that a pipeline has read.
type sizes struct{ values, bytes int }

func (z *sizes) add(it *item, reply rueidis.RedisResult) {
	if !it.reads {
		return
	}
	z.values++
	if m, err := reply.ToMessage(); err == nil && m.IsString() {
		text, _ := m.ToString()
		z.bytes += len(text)
	}
}

// sized updates the estimate of the size of values that batches read. items is the number of items
// in the pipeline. A large estimate shrinks slowly.
func (s *session) sized(z sizes, items int, o outcome) {
	old := s.valueSize.Load()
	switch {
	case z.values > 0 && o.class == rediserr.OK:
		s.valueSize.Store(max(1, int64(z.bytes/z.values), old-old/8))
	case o.unknown && errors.Is(o.err, errBudget):
		s.valueSize.Store(max(old, int64(2*pipelineBytes/items)))
	}
}

// telling returns the reply that decides the outcome of the item. That is the first reply, except
// that in a transaction a redirection other than ASK decides, because then no command was run.
func (it *item) telling(replies []rueidis.RedisResult) rueidis.RedisResult {
	if !it.transaction {
		return replies[0]
	}
	for _, reply := range replies {
		// ASK is not followed: after MULTI an ASKING is queued like any other command.
		if err := reply.Error(); rediserr.Classify(context.Background(), err) == rediserr.Redirect && !strings.HasPrefix(err.Error(), "ASK") {
			return reply
		}
	}
	return replies[0]
}

// share returns the replies of the nth item of a pipeline.
func share(replies []rueidis.RedisResult, n, stride int, offsets []int) []rueidis.RedisResult {
	if stride > 0 {
		return replies[n*stride : (n+1)*stride]
	}
	from := 0
	if n > 0 {
		from = offsets[n-1]
	}
	return replies[from:offsets[n]]
}

// redirect sends redirected items to their new destination, as often as the options allow. An item
// whose redirection leads nowhere counts as down, and so does any redirection outside a cluster.
func (r *remote) redirect(ctx bound, items []item, stride int, build commands, each func(i int, replies []rueidis.RedisResult, o outcome)) {
	for hop := 0; ; hop++ {
		var again []item
		var at []int
		for i := range items {
			it := &items[i]
			if it.outcome.class != rediserr.Redirect {
				continue
			}
			next, asking := r.routes.follow(it.session, it.outcome.err)
			if next == nil || hop == r.hops {
				it.outcome = outcome{class: rediserr.Down, err: it.outcome.err, session: it.session}
				each(i, nil, it.outcome)
				continue
			}
			it.session, it.asking = next, asking
			again, at = append(again, *it), append(at, i)
		}
		if len(again) == 0 {
			return
		}
		groups := bySession(again)
		if groups == nil {
			groups = [][]int{nil}
		}
		for _, indexes := range groups {
			r.part(ctx, again, indexes, stride, build, func(i int, replies []rueidis.RedisResult, o outcome) {
				each(at[i], replies, o)
			})
		}
		for i := range again {
			items[at[i]].outcome = again[i].outcome
		}
	}
}

// withAsking puts ASKING before each command, because it holds for one command only.
func withAsking(b rueidis.Builder, cmds []rueidis.Completed) []rueidis.Completed {
	all := make([]rueidis.Completed, 0, 2*len(cmds))
	for _, cmd := range cmds {
		all = append(all, b.Asking().Build(), cmd)
	}
	return all
}

func withoutAsking(replies []rueidis.RedisResult) []rueidis.RedisResult {
	for i := range len(replies) / 2 {
		replies[i] = replies[2*i+1]
	}
	return replies[:len(replies)/2]
}

// setCommand builds the SET of the plain value, which redis-cli GET shows unchanged.
func setCommand(b rueidis.Builder, key string, data []byte, ttl time.Duration) rueidis.Completed {
	set := b.Set().Key(key).Value(viewString(data))
	if ttl == 0 {
		return kept(set.Build(), len(data))
	}
	return kept(set.PxMilliseconds(ttl.Milliseconds()).Build(), len(data))
}

// kept pins a large command, so that rueidis does not reuse it. A server may refuse a large command
// before it has read it to the end. rueidis takes the reply for the end of the command, which it
// may still be writing.
func kept(cmd rueidis.Completed, size int) rueidis.Completed {
	if size < keptSize {
		return cmd
	}
	return cmd.Pin()
}

// keptSize is the smallest possible proto-max-bulk-len.
const keptSize = 1 << 20

// viewString returns a string that shares the bytes. They are never changed or reused: a command
// that timed out may still be written to the connection.
func viewString(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
