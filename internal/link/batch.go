package link

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"

	"github.com/holdfast-cache/holdfast/internal/rediserr"
	"github.com/redis/rueidis"
)

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

	script           *Script // that the last try ran; nil: none
	byDigest, byText bool    // it named the script by its digest; the next try sends the text

	// Read is set for a plain read: the commands are ReadCommands, the stride is 2, and the value is
	// stored here instead of passing on the replies.
	Read     *RemoteValue
	needsGET bool // an MGET was no answer

	Payload     any  // the caller's; Batch does not read it
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
// Redirections are followed, and a script that the server does not know is sent to it.
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
	first := &items[0]
	for i := range items {
		if it := &items[i]; it.Session != first.Session || it.asking != first.asking {
			return groupsOf(items)
		}
	}
	return nil
}

func groupsOf(items []Item) (groups [][]int) {
	type place struct {
		session *Session
		asking  bool
	}
	at := map[place]int{}
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
// destination. It reports whether that took more than one pipeline. An item that is not done is left
// for redirect.
func (r *Remote) part(ctx Bound, items []Item, indexes []int, stride int, build commands, each func(i int, replies []rueidis.RedisResult, o Outcome)) (long bool) {
	p := pipelines{remote: r, items: items, indexes: indexes, n: len(indexes), stride: stride}
	if indexes == nil {
		p.n = len(items)
	}
	if p.n == 0 {
		return false
	}
	p.session, p.asking = p.item(0).Session, p.item(0).asking
	cancel := NoCancel
	defer func() { cancel() }()
	for ; p.from < p.n; p.from = p.to {
		if p.n > KeysAtOnce || p.from > 0 {
			// The local processing time of many keys is not charged to Redis.
			cancel()
			ctx, cancel = r.Bound(ctx.Caller, r.clock.Now())
		}
		p.fill(build)
		long = long || p.to < p.n
		if p.how == SendNot {
			p.conclude(p.from, nil, Outcome{Class: rediserr.Down, Err: errIsolated, Session: p.session}, each)
			continue
		}
		completed := p.session.Completed.Load()
		replies, o := p.send(ctx)
		if p.from > 0 && errors.Is(o.Err, errBulkhead) && p.session.Completed.Load() != completed {
			p.to = p.from // no slot yet, but Redis answers other calls: try again
			continue
		}
		p.distribute(replies, o, each)
		if o.Class != rediserr.OK {
			p.fail(o, build, each)
			return long
		}
		p.session.Link.Suspects.Clear(p.ids...)
	}
	p.readAgain(ctx, build, each)
	return long
}

// pipelines sends items to one destination, one pipeline after the other.
type pipelines struct {
	remote  *Remote
	items   []Item
	indexes []int // of the items to send; nil: all
	n       int   // number of these
	stride  int

	session *Session
	asking  bool

	// The present pipeline has the items from up to, but without, to.
	from, to int
	cmds     []rueidis.Completed
	offsets  []int    // end of each item's commands, if stride is 0 and there are several
	ids      []uint64 // collected while there are suspects
	how      treatment
	mget     bool  // the present pipeline is an MGET
	again    []int // indexes of the items that an MGET did not answer
}

func (p *pipelines) index(i int) int {
	if p.indexes == nil {
		return i
	}
	return p.indexes[i]
}

func (p *pipelines) item(i int) *Item { return &p.items[p.index(i)] }

// fill builds the commands of the pipeline that begins at from. A suspect gets a pipeline of its own.
func (p *pipelines) fill(build commands) {
	s := p.session
	table := &s.Link.Suspects
	watched := table.Any()
	p.cmds, p.offsets, p.ids, p.how = p.cmds[:0], p.offsets[:0], nil, SendInCompany
	p.to = p.end()
	if p.mget = !watched && p.usesMGET(); p.mget {
		p.fillMGET()
		return
	}
	for i := p.from; i < p.to; i++ {
		before := len(p.cmds)
		p.cmds = build(s.Client.B(), p.item(i), p.cmds)
		if watched {
			id := table.id(p.item(i).Key, p.cmds[before:])
			if how := table.judge(id); how != SendInCompany && i > p.from {
				p.cmds, p.to = p.cmds[:before], i // it begins the next pipeline
				break
			} else if how != SendInCompany {
				p.how, p.to = how, p.from+1
			}
			p.ids = append(p.ids, id)
		}
		if p.stride == 0 && p.n > 1 {
			if p.offsets == nil {
				p.offsets = make([]int, 0, min(p.n, KeysAtOnce))
			}
			p.offsets = append(p.offsets, len(p.cmds))
		}
	}
}

// send sends the pipeline and waits for its replies. The rest goes to the session that answered, which
// may be another one.
func (p *pipelines) send(ctx Bound) (replies []rueidis.RedisResult, o Outcome) {
	cmds := p.cmds
	if p.asking {
		cmds = WithAsking(p.session.Client.B(), cmds)
	}
	a, o := p.remote.do(ctx, p.session, p.how == sendAlone, request{many: cmds})
	replies = a.many
	if o.Session != nil {
		p.session = o.Session
	}
	if p.asking {
		replies = WithoutAsking(replies)
	}
	o.Asked = p.asking
	return replies, o
}

// distribute gives each item of the pipeline its replies.
func (p *pipelines) distribute(replies []rueidis.RedisResult, o Outcome, each func(i int, replies []rueidis.RedisResult, o Outcome)) {
	if p.mget && replies != nil {
		p.distributeMGET(replies, o, each)
		return
	}
	var size sizes
	for i := p.from; i < p.to; i++ {
		it, itemReplies, at := p.item(i), replies, o
		if itemReplies != nil && p.n > 1 {
			itemReplies = share(replies, i-p.from, p.stride, p.offsets)
		}
		switch {
		case itemReplies == nil:
		case o.Class == rediserr.OK, itemReplies[0].NonRedisError() == nil:
			// If the connection was lost, it may have been lost after some of the replies.
			if p.n > 1 {
				size.add(it, itemReplies[0])
			}
			at = p.remote.reply(p.session, it.deciding(itemReplies))
			at.Asked = p.asking
			if at.Class == rediserr.Redirect && it.Stays {
				at.Class = rediserr.Command // the answer of the node that was asked
			}
			if it.Read != nil {
				*it.Read, at = ReadValue(itemReplies, at)
			}
		default:
			itemReplies = nil
		}
		p.conclude(i, itemReplies, at, each)
	}
	if p.n > 1 {
		p.session.sized(size, p.to-p.from, o)
	}
}

// conclude sets the outcome of an item. An item that is not done is left for redirect.
func (p *pipelines) conclude(i int, replies []rueidis.RedisResult, o Outcome, each func(i int, replies []rueidis.RedisResult, o Outcome)) {
	if p.item(i).conclude(o) {
		each(p.index(i), replies, o)
	}
}

// fail ends the sending: the failure of one pipeline stands for all. Items that got no answer are
// recorded as possible causes.
func (p *pipelines) fail(o Outcome, build commands, each func(i int, replies []rueidis.RedisResult, o Outcome)) {
	if o.Unknown {
		var ids []uint64
		for i := p.from; i < p.to; i++ {
			if it := p.item(i); it.outcome.Unknown {
				ids = append(ids, p.session.Link.Suspects.id(it.Key, build(p.session.Client.B(), it, nil)))
			}
		}
		p.session.recordUnanswered(ids, p.how == sendAlone, p.item(p.from).Key, o)
	}
	o.Unknown = false
	for _, i := range p.again {
		p.items[i].outcome = o
		each(i, nil, o)
	}
	for i := p.to; i < p.n; i++ {
		p.item(i).outcome = o
		each(p.index(i), nil, o)
	}
}

// end returns the end of the pipeline that begins with the item from. A pipeline has at most
// KeysAtOnce items and pipelineBytes bytes, but at least one item.
func (p *pipelines) end() int {
	most := min(p.n, p.from+KeysAtOnce)
	bytes, reads := 0, 0
	known := int(p.session.valueSize.Load())
	for i := p.from; i < most; i++ {
		it := p.item(i)
		if it.Reads {
			// A batch of several pipelines begins with a small one, because its values may differ
			// in size from those of the batch before.
			if reads++; reads > firstReads && (known == 0 || p.from == 0 && p.n > KeysAtOnce) {
				return i
			}
			bytes += known
		}
		if bytes += len(it.Key) + it.Size; bytes > pipelineBytes && i > p.from {
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

// deciding returns the reply that decides the outcome of the item. That is the first reply, except
// that in a transaction a redirection other than ASK decides, because then no command was run.
func (it *Item) deciding(replies []rueidis.RedisResult) rueidis.RedisResult {
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

// redirect sends redirected items to their new destination, as often as the options allow, and a
// script that was not known to the same one with its text. An item whose redirection leads nowhere
// counts as down, and so does any redirection outside a cluster.
func (r *Remote) redirect(ctx Bound, items []Item, stride int, build commands, each func(i int, replies []rueidis.RedisResult, o Outcome)) {
	for hop := 0; ; hop++ {
		var again []Item
		var at []int
		for i := range items {
			it := &items[i]
			switch {
			case it.needsText(): // once: from now on the item sends the text
				it.useText()
				again, at = append(again, *it), append(at, i)
				continue
			case it.outcome.Class != rediserr.Redirect:
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
			items[at[i]].outcome, items[at[i]].byDigest = again[i].outcome, again[i].byDigest
		}
	}
}
