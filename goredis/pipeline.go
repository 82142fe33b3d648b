package goredis

import (
	"context"
	"errors"
	"slices"

	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"
)

// ProcessPipelineHook implements redis.Hook.
func (h *hook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if keys, ok := plainGets(cmds); ok {
			if err, done := h.gets(ctx, cmds, keys); done {
				return err
			}
		}
		p := pipeline{hook: h, cmds: cmds, read: make([]command, len(cmds))}
		for i, cmd := range cmds {
			c, err := h.read(cmd, true) // go-redis sends a pipeline completely or not at all
			if errors.Is(err, errTransaction) {
				p.whole, c.class = true, session
			} else if err != nil {
				// go-redis would have failed all of them, with its connection.
				return p.fail(0, err)
			}
			p.whole = p.whole || c.class == session
			p.waiting = p.waiting || c.class == waiting
			p.read[i] = c
		}
		return p.run(ctx, next)
	}
}

// pipeline is a pipeline in progress. Results are kept beside the commands, because
// reading a command's error may wait for the pipeline to be done.
type pipeline struct {
	*hook
	cmds    []redis.Cmder
	read    []command
	whole   bool // its commands depend on their connection: a transaction, a handshake
	waiting bool
	first   error
}

// run serves the commands up to the first one that only Redis can execute, and sends the
// rest in one pipeline, so that the order is kept. While Redis is away, it also serves
// the commands of the rest that can be served.
func (p *pipeline) run(ctx context.Context, next redis.ProcessPipelineHook) error {
	from := slices.IndexFunc(p.read, func(c command) bool { return !c.byCache() })
	switch {
	case p.whole:
		from = 0
	case from < 0:
		from = len(p.cmds)
	}
	bounded, cancel := p.bound(ctx, p.waiting)
	defer cancel()
	p.serve(ctx, 0, from)
	if from == len(p.cmds) {
		return p.first
	}
	rest := p.read[from:]
	if !slices.ContainsFunc(rest, func(c command) bool { return !p.reachesBusy(c) }) {
		p.send(ctx, from, next)
		return p.first
	}
	if err := p.before(bounded, ctx, keysOf(rest, false), false); err != nil {
		if p.whole || bounded.Err() != nil {
			return p.fail(from, err)
		}
		return p.without(ctx, from, err)
	}
	if err := p.cache.Invalidate(keysOf(rest, true)...); err != nil {
		return p.fail(from, err)
	}
	p.send(ctx, from, next)
	_ = p.cache.Invalidate(keysOf(rest, true)...)
	return p.first
}

// sendAtOnce is how many commands go-redis sends in one pipeline.
const sendAtOnce = 256

// send makes go-redis send the commands from index from on. A large pipeline is sent in
// parts, each with the budget of a call, as long as the part before was answered in time.
// A pipeline whose commands depend on their connection, or may block, is not divided.
func (p *pipeline) send(ctx context.Context, from int, next redis.ProcessPipelineHook) {
	for to := from; from < len(p.cmds); from = to {
		if to = min(from+sendAtOnce, len(p.cmds)); p.whole || p.waiting {
			to = len(p.cmds)
		}
		bounded, cancel := p.bound(ctx, p.waiting)
		err := next(p.sent(bounded), p.cmds[from:to])
		cancel()
		told := verdict(ctx, err)
		if told != err {
			for _, cmd := range p.cmds[from:to] {
				cmd.SetErr(verdict(ctx, cmd.Err()))
			}
		}
		p.note(told)
		var said redis.Error
		if told != nil && !errors.As(told, &said) {
			_ = p.fail(to, told) // the rest is not sent, because Redis does not answer
			return
		}
	}
}

// keysOf returns the keys of the commands, or only those that they may write.
func keysOf(cmds []command, written bool) []string {
	var all []string
	for i := range cmds {
		if !written || cmds[i].write {
			all = append(all, cmds[i].keys()...)
		}
	}
	return all
}

// serve has the cache answer the commands from index from to index to. It uses the
// caller's context with its full budget: the cache takes the deadline of a context for
// the caller's own.
func (p *pipeline) serve(ctx context.Context, from, to int) {
	if from == to {
		return
	}
	for i, res := range p.ask(ctx, p.read[from:to]) {
		at := from + i
		err := p.read[at].shape.answer(p.cmds[at], res)
		p.cmds[at].SetErr(err)
		p.note(err)
	}
}

// ask has the cache execute the commands, in order.
func (h *hook) ask(ctx context.Context, cmds []command) []rueidis.RedisResult {
	if !slices.ContainsFunc(cmds, func(c command) bool { return c.class == cached }) {
		batch := make([]rueidis.Completed, len(cmds))
		for i, c := range cmds {
			batch[i] = h.build(c)
		}
		return h.client.DoMulti(ctx, batch...)
	}
	// Other commands are executed as by DoMulti.
	batch := make([]rueidis.CacheableTTL, len(cmds))
	for i, c := range cmds {
		batch[i] = rueidis.CT(rueidis.Cacheable(h.build(c)), anyAge)
	}
	return h.client.DoMultiCache(ctx, batch...)
}

// without executes the rest of a pipeline while Redis is away: commands that cannot be
// served get the error why.
func (p *pipeline) without(ctx context.Context, from int, why error) error {
	for from < len(p.cmds) {
		to := from
		for to < len(p.cmds) && p.read[to].byCache() {
			to++
		}
		p.serve(ctx, from, to)
		if to < len(p.cmds) {
			p.cmds[to].SetErr(why)
			p.note(why)
			to++
		}
		from = to
	}
	return p.first
}

// fail sets the error of all commands from index from on.
func (p *pipeline) fail(from int, err error) error {
	for _, cmd := range p.cmds[from:] {
		cmd.SetErr(err)
	}
	p.note(err)
	return p.first
}

// note keeps the first error, which is the pipeline's.
func (p *pipeline) note(err error) {
	if p.first == nil {
		p.first = err
	}
}
