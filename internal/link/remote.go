package link

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

// Remote is the second tier. It sends commands on sessions, within the budget and the bulkhead. It
// classifies their outcomes and reports them to the session's link.
type Remote struct {
	routes  *Routes
	Hops    int // most redirections that a call follows
	Budget  *budget
	clock   clock.Clock
	stats   *Counters
	callers group.Group // goroutines of batches that go to several servers
}

func NewRemote(r *Routes) *Remote {
	c := r.cfg
	return &Remote{
		routes: r, Hops: c.Redis.ClusterOption.MaxMovedRedirections,
		Budget: newBudget(c.Timeout, c.Clock), clock: c.Clock, stats: c.Stats,
	}
}

// Outcome is the result of one command, apart from its replies.
type Outcome struct {
	Class rediserr.Class
	Err   error

	// Unknown: Redis may have run the command, may still run it, or never got it. It is false for a
	// command that got a reply of any kind, and for a command that was not sent.
	Unknown bool

	// lost: the connection was lost while the command was under way. tooLate: the connection was
	// lost before, so the command was not sent.
	lost    bool
	tooLate bool

	// Session is the session that answered, or failed to. asked: the command was sent with ASKING,
	// to a server that imports the slot and does not own it. Its reply is an answer, but is not
	// kept as fresh.
	Session *Session
	Asked   bool
}

// TryAgain reports the error TRYAGAIN: while a slot moves, its keys may be on two nodes.
func (o *Outcome) TryAgain() bool {
	var re *rueidis.RedisError
	return errors.As(o.Err, &re) && strings.HasPrefix(re.Error(), "TRYAGAIN")
}

// hungAfter is a divisor of the budget. A caller whose own deadline ended counts as a failure of
// Redis only if it waited for at least this fraction of the budget and the session answered nothing
// meanwhile.
const hungAfter = 10

// Bound is the context of one call of the user to Redis. All commands of the call share one budget,
// except in a batch; see remote.Batch.
type Bound struct {
	context.Context                 // ends with the budget or with caller
	Caller          context.Context // the caller's own context
	Began           int64
}

// Bound begins the budget of a call. The caller must call cancel at the end of the call.
func (r *Remote) Bound(ctx context.Context, now int64) (b Bound, cancel context.CancelFunc) {
	b = Bound{Caller: ctx, Began: now}
	b.Context, cancel = r.Budget.Of(ctx, now)
	return b, cancel
}

// do sends the commands in one pipeline and waits for their replies until the call's budget or the
// caller's context ends. With alone set it waits until no other command is under way. The replies
// may be nil if the outcome is not OK. If the session had ended before anything was sent and
// its link has another one by now, the commands are sent there, once.
func (r *Remote) do(ctx Bound, s *Session, alone bool, cmds ...rueidis.Completed) ([]rueidis.RedisResult, Outcome) {
	replies, o := r.doOn(ctx, s, alone, cmds)
	if o.tooLate {
		if next := r.successor(ctx, s); next != nil && r.mayFollow(cmds) {
			return r.doOn(ctx, next, alone, cmds)
		}
		s.Link.Report(s, o.Class, o.Err)
	}
	return replies, o
}

// mayFollow reports whether commands that were not sent may be sent to the session that serves now
// instead. Writes may not if the journal holds keys: a later write of the same key may be in the
// journal, and the older command must not run after it.
func (r *Remote) mayFollow(cmds []rueidis.Completed) bool {
	return !r.routes.demand.Journaling() || !slices.ContainsFunc(cmds, func(cmd rueidis.Completed) bool { return !cmd.IsReadOnly() })
}

// successor returns the session that serves in place of one that was replaced or lost after a call
// had chosen it, nil if there is none. If the link was unused, successor waits for the connection
// attempt; see moment.
func (r *Remote) successor(ctx Bound, s *Session) *Session {
	next := s.Link.Gate.Load()
	if next == nil {
		m := s.Link.window(false)
		if m == nil {
			return nil
		}
		select {
		case <-m.over:
		case <-ctx.Done():
			return nil
		}
		next = s.Link.Gate.Load()
	}
	if next == s || ctx.Err() != nil {
		return nil
	}
	return next
}

// doOn is do on the given session.
func (r *Remote) doOn(ctx Bound, s *Session, alone bool, cmds []rueidis.Completed) ([]rueidis.RedisResult, Outcome) {
	if ctx.Err() != nil {
		return nil, Unsent(ctx) // says nothing about Redis: it was not asked
	}
	var ticket uint64
	var err error
	if alone {
		ticket, err = s.EnterAlone(ctx)
	} else {
		ticket, err = s.Acquire(ctx)
	}
	if err != nil {
		if ctx.Caller.Err() != nil {
			return nil, Outcome{Class: rediserr.Canceled, Err: ctx.Caller.Err()}
		}
		r.stats.BulkheadRefused.Add(1)
		// Nothing was sent, and the calls that hold the slots report their own outcomes.
		return nil, Outcome{Class: rediserr.Down, Err: err}
	}
	completed, dead := s.Completed.Load(), s.Lost.Load()
	replies := s.Client.DoMulti(ctx.Context, cmds...)
	err = replies[len(replies)-1].NonRedisError()
	keep := int64(0)
	if err != nil && rediserr.GaveUp(err) {
		s.Abandon(ticket)
		keep = 1
	}
	if alone {
		s.LeaveAlone(keep)
	} else if keep == 0 {
		s.Release()
	}
	if err == nil {
		s.Answered(ticket)
		return replies, Outcome{Session: s}
	}
	if !rediserr.GaveUp(err) && (dead || errors.Is(err, ErrNoPermit)) {
		// The connection is closed before the session is marked as lost. A closed connection takes
		// no more commands.
		return replies, Outcome{Class: rediserr.Down, Err: err, Session: s, tooLate: true}
	}
	o := r.unanswered(ctx, s, completed, err)
	o.lost = o.Unknown && !rediserr.GaveUp(err) && !dead && !s.ended.Load()
	return replies, o
}

// Unsent returns the outcome of commands that were not sent because the time of the call was over.
func Unsent(ctx Bound) Outcome {
	if err := ctx.Caller.Err(); err != nil {
		return Outcome{Class: rediserr.Canceled, Err: err}
	}
	return Outcome{Class: rediserr.Down, Err: ErrBudget}
}

// unanswered returns and reports the outcome of commands that got no reply.
func (r *Remote) unanswered(ctx Bound, s *Session, completed uint64, err error) Outcome {
	o := Outcome{Class: rediserr.Classify(ctx.Caller, err), Err: err, Unknown: !errors.Is(err, ErrNoPermit), Session: s}
	switch {
	case o.Class == rediserr.Canceled:
		o.Err = ctx.Caller.Err()
		// A caller that leaves says nothing about Redis. But if the caller's own deadline ended and
		// nothing at all came back meanwhile, the server hangs.
		mute := s.Completed.Load() == completed
		waited := time.Duration(r.clock.Now() - ctx.Began)
		if mute && errors.Is(o.Err, context.DeadlineExceeded) && waited >= r.Budget.timeout/hungAfter {
			s.Link.Report(s, rediserr.Down, ErrBudget)
		}
	case rediserr.GaveUp(err):
		r.stats.Timeouts.Add(1)
		o.Err = ErrBudget
		s.Link.Report(s, rediserr.Down, ErrBudget)
	default:
		s.Link.Report(s, o.Class, err)
	}
	return o
}

// reply classifies and reports one of the replies that came.
func (r *Remote) reply(s *Session, res rueidis.RedisResult) Outcome {
	err := res.Error()
	c := rediserr.Classify(context.Background(), err)
	s.Link.Report(s, c, err)
	if c == rediserr.OK {
		err = nil
	}
	return Outcome{Class: c, Err: err, Session: s}
}

// RemoteValue is the value that Redis holds for a key. ttl is 0 for no expiry.
type RemoteValue struct {
	Found bool
	Bytes []byte
	Ttl   time.Duration
	Open  bool // the expiry is not known: PTTL is refused
}

// Get reads a value with its remaining life, so that a local copy does not outlive it.
func (r *Remote) Get(ctx Bound, s *Session, key string) (RemoteValue, Outcome) {
	b := s.Client.B()
	replies, o := r.ask(ctx, s, subject{name: readName, key: key}, b.Get().Key(key).Build(), b.Pttl().Key(key).Build())
	if o.Class != rediserr.OK {
		return RemoteValue{}, o
	}
	o = r.reply(o.Session, replies[0])
	if o.Class == rediserr.Redirect {
		replies, o = r.elsewhere(ctx, Item{Key: key, Session: s, outcome: o}, 2, ReadCommands)
	}
	return ReadValue(replies, o)
}

// elsewhere is redirect for one item.
func (r *Remote) elsewhere(ctx Bound, it Item, stride int, build commands) (replies []rueidis.RedisResult, o Outcome) {
	r.redirect(ctx, []Item{it}, stride, build, func(_ int, got []rueidis.RedisResult, last Outcome) {
		replies, o = got, last
	})
	return replies, o
}

// One is do for a call on one key, and follows redirections.
func (r *Remote) One(ctx Bound, s *Session, key string, stride int, build commands) ([]rueidis.RedisResult, Outcome) {
	it := Item{Key: key, Session: s}
	replies, o := r.ask(ctx, s, subject{it: &it, build: build}, build(s.Client.B(), &it, nil)...)
	if o.Class == rediserr.OK {
		o = r.reply(o.Session, replies[0])
	}
	if o.Class == rediserr.Redirect {
		it.outcome = o
		return r.elsewhere(ctx, it, stride, build)
	}
	return replies, o
}

// readName is the name of a read in the id of a suspect.
const readName = "GET\x00PTTL"

func ReadCommands(b rueidis.Builder, it *Item, cmds []rueidis.Completed) []rueidis.Completed {
	return append(cmds, b.Get().Key(it.Key).Build(), b.Pttl().Key(it.Key).Build())
}

// ReadValue decodes the replies of GET and PTTL.
func ReadValue(replies []rueidis.RedisResult, o Outcome) (RemoteValue, Outcome) {
	if o.Class != rediserr.OK {
		return RemoteValue{}, o
	}
	get, pttl := replies[0], replies[1]
	if rueidis.IsRedisNil(get.Error()) {
		return RemoteValue{}, o
	}
	bytes, err := get.AsBytes()
	if err != nil {
		return RemoteValue{}, Outcome{Class: rediserr.Command, Err: err, Session: o.Session}
	}
	v := RemoteValue{Found: true, Bytes: bytes[:len(bytes):len(bytes)]}
	ms, err := pttl.AsInt64()
	v.Open = err != nil && rediserr.Classify(context.Background(), err) == rediserr.Command
	o.Session.Lacks.Note(lackPTTL, v.Open)
	switch {
	case v.Open:
	case err != nil || ms == -2:
		// The key expired between the two commands, or PTTL failed: the value answers this call,
		// but is not kept.
		v.Ttl = time.Nanosecond
	case ms >= 0:
		v.Ttl = max(Millis(ms), time.Nanosecond)
	}
	return v, o
}

// Millis converts milliseconds to a Duration and limits values that do not fit.
func Millis(ms int64) time.Duration {
	if ms > int64(1<<63-1)/int64(time.Millisecond) {
		return 1<<63 - 1
	}
	return time.Duration(ms) * time.Millisecond
}

const (
	// KeysAtOnce and pipelineBytes bound a pipeline, so that a large batch does not hold up the
	// commands of all other callers, and each pipeline can be answered within the budget: 256 KiB
	// take 2 ms on a network of 1 Gbit/s.
	KeysAtOnce    = 256
	pipelineBytes = 256 << 10
	// firstReads bounds the reads of a pipeline while the size of the values is not known.
	firstReads = 32
)

// Item is one key's part of a call.
type Item struct {
	Key     string
	Session *Session // where to send it
	asking  bool
	outcome Outcome // of the last try

	Payload     any  // the caller's; batch does not read it
	Size        int  // bytes to send beside the key, approximately
	Reads       bool // the reply contains a value
	Stays       bool // a redirection is the answer, and is not followed
	Transaction bool // the replies are those of a transaction
}

// commands appends the commands of an item. A call has a stride: the fixed number of commands for
// every item. With a stride of 0 each item has any number of commands, at least one.
type commands func(b rueidis.Builder, it *Item, cmds []rueidis.Completed) []rueidis.Completed

// Batch sends the items in pipelines, to all servers at once. It calls each for every item, one at
// a time, with the replies to the item's commands, or with none if the outcome is not an answer.
// Redirections are followed.
//
// The budget applies to each pipeline, as long as the one before was answered in time. So the total
// time of a batch is not bounded by the budget, but a server that does not answer costs one budget.
func (r *Remote) Batch(ctx Bound, items []Item, stride int, build commands, each func(i int, replies []rueidis.RedisResult, o Outcome)) {
	var long bool
	if groups := bySession(items); groups == nil {
		long = r.part(ctx, items, nil, stride, build, each)
	} else {
		long = r.parts(ctx, items, groups, stride, build, each)
	}
	if long {
		var cancel context.CancelFunc
		ctx, cancel = r.Bound(ctx.Caller, r.clock.Now())
		defer cancel()
	}
	r.redirect(ctx, items, stride, build, each)
}

// parts is part for several groups at once. If they ran one after the other, a server that hangs
// would use up the time of all. The caller's goroutine calls each for the results of all groups, so
// that no group waits while each handles a result.
func (r *Remote) parts(ctx Bound, items []Item, groups [][]int, stride int, build commands, each func(i int, replies []rueidis.RedisResult, o Outcome)) (long bool) {
	type partResult struct {
		i       int
		replies []rueidis.RedisResult
		o       Outcome
	}
	results := make(chan partResult, len(items)) // large enough for all: a send never blocks
	var others, longs atomic.Int32
	others.Store(int32(len(groups) - 1))
	for _, indexes := range groups[1:] {
		r.callers.Spawn("batch", func() {
			if r.part(ctx, items, indexes, stride, build, func(i int, replies []rueidis.RedisResult, o Outcome) {
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
func bySession(items []Item) [][]int {
	same := func(it Item) bool { return it.Session == items[0].Session && it.asking == items[0].asking }
	if !slices.ContainsFunc(items, func(it Item) bool { return !same(it) }) {
		return nil
	}
	type place struct {
		session *Session
		asking  bool
	}
	at := map[place]int{}
	var groups [][]int
	for i := range items {
		p := place{items[i].Session, items[i].asking}
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
func (r *Remote) part(ctx Bound, items []Item, indexes []int, stride int, build commands, each func(i int, replies []rueidis.RedisResult, o Outcome)) (long bool) {
	n := len(indexes)
	index := func(i int) int { return indexes[i] }
	if indexes == nil {
		n, index = len(items), func(i int) int { return i }
	}
	if n == 0 {
		return false
	}
	first := &items[index(0)]
	s, asking := first.Session, first.asking
	cancel := NoCancel
	defer func() { cancel() }()
	var cmds []rueidis.Completed
	var offsets []int // end of each item's commands, used if stride is 0
	for from, to := 0, 0; from < n; from = to {
		if n > KeysAtOnce || from > 0 {
			// The local processing time of many keys is not charged to Redis.
			cancel()
			ctx, cancel = r.Bound(ctx.Caller, r.clock.Now())
		}
		cmds, offsets = cmds[:0], offsets[:0]
		var ids []uint64 // collected while there are suspects
		how, watched := SendInCompany, s.Link.Suspects.Any()
		to = pipelineEnd(s, items, index, from, n)
		for i := from; i < to; i++ {
			before := len(cmds)
			cmds = build(s.Client.B(), &items[index(i)], cmds)
			if watched {
				id := s.Link.Suspects.id(items[index(i)].Key, cmds[before:])
				if what := s.Link.Suspects.judge(id); what != SendInCompany && i > from {
					cmds, to = cmds[:before], i // it begins the next pipeline
					break
				} else if what != SendInCompany {
					how, to = what, from+1
				}
				ids = append(ids, id)
			}
			if stride == 0 {
				offsets = append(offsets, len(cmds))
			}
		}
		long = long || to < n
		if how == SendNot {
			at := Outcome{Class: rediserr.Down, Err: errIsolated, Session: s}
			items[index(from)].outcome = at
			each(index(from), nil, at)
			continue
		}
		if asking {
			cmds = WithAsking(s.Client.B(), cmds)
		}
		completed := s.Completed.Load()
		replies, o := r.do(ctx, s, how == sendAlone, cmds...)
		if from > 0 && errors.Is(o.Err, errBulkhead) && s.Completed.Load() != completed {
			to = from // no slot yet, but Redis answers other calls: try again
			continue
		}
		if o.Session != nil {
			s = o.Session // do may have used another session; the rest goes there too
		}
		if asking {
			replies = WithoutAsking(replies)
		}
		o.Asked = asking
		var size sizes
		for i := from; i < to; i++ {
			it, itemReplies, at := &items[index(i)], replies, o
			if itemReplies != nil {
				itemReplies = share(replies, i-from, stride, offsets)
			}
			switch {
			case itemReplies == nil:
			case o.Class == rediserr.OK, itemReplies[0].NonRedisError() == nil:
				// If the connection was lost, it may have been lost after some of the replies.
				if n > 1 {
					size.add(it, itemReplies[0])
				}
				at = r.reply(s, it.telling(itemReplies))
				at.Asked = asking
				if at.Class == rediserr.Redirect && it.Stays {
					at.Class = rediserr.Command // the answer of the node that was asked
				}
			default:
				itemReplies = nil
			}
			if it.outcome = at; at.Class != rediserr.Redirect {
				each(index(i), itemReplies, at)
			}
		}
		if n > 1 {
			s.sized(size, to-from, o)
		}
		if o.Class == rediserr.OK {
			s.Link.Suspects.Clear(ids...)
		} else {
			if o.Unknown {
				r.suspect(s, items, index, from, to, how == sendAlone, build, o)
			}
			// The rest is not sent: the failure of one pipeline stands for all.
			o.Unknown = false
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
func (r *Remote) suspect(s *Session, items []Item, index func(int) int, from, to int, alone bool, build commands, o Outcome) {
	var ids []uint64
	for i := from; i < to; i++ {
		if it := &items[index(i)]; it.outcome.Unknown {
			ids = append(ids, s.Link.Suspects.id(it.Key, build(s.Client.B(), it, nil)))
		}
	}
	s.unanswered(ids, alone, items[index(from)].Key, o)
}

// pipelineEnd returns the end of the pipeline that begins with the item from. A pipeline has at
// most KeysAtOnce items and pipelineBytes bytes, but at least one item.
func pipelineEnd(s *Session, items []Item, index func(int) int, from, n int) int {
	most := min(n, from+KeysAtOnce)
	bytes, reads := 0, 0
	known := int(s.valueSize.Load())
	for i := from; i < most; i++ {
		it := &items[index(i)]
		if it.Reads {
			// A batch of several pipelines begins with a small one, because its values may differ
			// in size from those of the batch before.
			if reads++; reads > firstReads && (known == 0 || from == 0 && n > KeysAtOnce) {
				return i
			}
			bytes += known
		}
		if bytes += len(it.Key) + it.Size; bytes > pipelineBytes && i > from {
			return i
		}
	}
	return most
}

// sizes adds up the values that a pipeline has read.
type sizes struct{ values, bytes int }

func (z *sizes) add(it *Item, reply rueidis.RedisResult) {
	if !it.Reads {
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
func (s *Session) sized(z sizes, items int, o Outcome) {
	old := s.valueSize.Load()
	switch {
	case z.values > 0 && o.Class == rediserr.OK:
		s.valueSize.Store(max(1, int64(z.bytes/z.values), old-old/8))
	case o.Unknown && errors.Is(o.Err, ErrBudget):
		s.valueSize.Store(max(old, int64(2*pipelineBytes/items)))
	}
}

// telling returns the reply that decides the outcome of the item. That is the first reply, except
// that in a transaction a redirection other than ASK decides, because then no command was run.
func (it *Item) telling(replies []rueidis.RedisResult) rueidis.RedisResult {
	if !it.Transaction {
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
func (r *Remote) redirect(ctx Bound, items []Item, stride int, build commands, each func(i int, replies []rueidis.RedisResult, o Outcome)) {
	for hop := 0; ; hop++ {
		var again []Item
		var at []int
		for i := range items {
			it := &items[i]
			if it.outcome.Class != rediserr.Redirect {
				continue
			}
			next, asking := r.routes.Follow(it.Session, it.outcome.Err)
			if next == nil || hop == r.Hops {
				it.outcome = Outcome{Class: rediserr.Down, Err: it.outcome.Err, Session: it.Session}
				each(i, nil, it.outcome)
				continue
			}
			it.Session, it.asking = next, asking
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
			r.part(ctx, again, indexes, stride, build, func(i int, replies []rueidis.RedisResult, o Outcome) {
				each(at[i], replies, o)
			})
		}
		for i := range again {
			items[at[i]].outcome = again[i].outcome
		}
	}
}

// WithAsking puts ASKING before each command, because it holds for one command only.
func WithAsking(b rueidis.Builder, cmds []rueidis.Completed) []rueidis.Completed {
	all := make([]rueidis.Completed, 0, 2*len(cmds))
	for _, cmd := range cmds {
		all = append(all, b.Asking().Build(), cmd)
	}
	return all
}

func WithoutAsking(replies []rueidis.RedisResult) []rueidis.RedisResult {
	for i := range len(replies) / 2 {
		replies[i] = replies[2*i+1]
	}
	return replies[:len(replies)/2]
}

// SetCommand builds the SET of the plain value, which redis-cli GET shows unchanged.
func SetCommand(b rueidis.Builder, key string, data []byte, ttl time.Duration) rueidis.Completed {
	set := b.Set().Key(key).Value(ViewString(data))
	if ttl == 0 {
		return Kept(set.Build(), len(data))
	}
	return Kept(set.PxMilliseconds(ttl.Milliseconds()).Build(), len(data))
}

// Kept pins a large command, so that rueidis does not reuse it. A server may refuse a large command
// before it has read it to the end. rueidis takes the reply for the end of the command, which it
// may still be writing.
func Kept(cmd rueidis.Completed, size int) rueidis.Completed {
	if size < KeptSize {
		return cmd
	}
	return cmd.Pin()
}

// KeptSize is the smallest possible proto-max-bulk-len.
const KeptSize = 1 << 20

// ViewString returns a string that shares the bytes. They are never changed or reused: a command
// that timed out may still be written to the connection.
func ViewString(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
