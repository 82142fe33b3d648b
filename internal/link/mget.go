package link

import (
	"context"

	"github.com/holdfast-cache/holdfast/internal/rediserr"
	"github.com/redis/rueidis"
)

// A pipeline of plain reads is sent as one MGET with a PTTL for each key behind it, if all its keys
// may be named in one command.
//
// MGET answers nil for a value that is no string, as for an absent key, and is refused as a whole
// for one key that the user may not read. So a key without a value that PTTL does not call absent,
// and the keys of an MGET that was refused, are read again, each by a GET.

// usesMGET reports whether the present pipeline is sent as an MGET.
func (p *pipelines) usesMGET() bool {
	if p.to-p.from < 2 || p.asking || p.session.refusesMGET.Load() {
		return false
	}
	inCluster, slot := p.remote.routes.Cluster.Load() != nil, SlotOf(p.item(p.from).Key)
	for i := p.from; i < p.to; i++ {
		it := p.item(i)
		if it.Read == nil || it.needsGET || inCluster && SlotOf(it.Key) != slot {
			return false
		}
	}
	return true
}

// fillMGET is fill for a pipeline that is sent as an MGET.
func (p *pipelines) fillMGET() {
	b := p.session.Client.B()
	mget := b.Arbitrary("MGET")
	for i := p.from; i < p.to; i++ {
		mget = mget.Args(p.item(i).Key)
	}
	p.cmds = append(p.cmds[:0], mget.ReadOnly())
	for i := p.from; i < p.to; i++ {
		p.cmds = append(p.cmds, pttlCommand(b, p.item(i).Key))
	}
}

// distributeMGET is distribute for a pipeline that was sent as an MGET.
func (p *pipelines) distributeMGET(replies []rueidis.RedisResult, o Outcome, each func(i int, replies []rueidis.RedisResult, o Outcome)) {
	var size sizes
	s, pttls := p.session, replies[1:]
	values, err := mgetValues(replies[0], len(pttls))
	class := s.noteMGET(err)
	if class == rediserr.OK {
		s.Link.Report(s, class, nil)
	}
	for i := p.from; i < p.to; i++ {
		it, at, n := p.item(i), o, i-p.from
		switch {
		case class == rediserr.OK && it.answeredBy(&values[n], &pttls[n], s):
			at = Outcome{Class: rediserr.OK, Session: s}
			size.values++
			size.bytes += len(it.Read.Bytes)
		case class == rediserr.Redirect:
			at = Outcome{Class: class, Err: err, Session: s}
		case o.Class == rediserr.OK:
			it.needsGET = true
			p.again = append(p.again, p.index(i))
			continue
		}
		p.conclude(i, nil, at, each)
	}
	s.sized(size, p.to-p.from, o)
}

// mgetValues returns the values in the reply to an MGET of n keys.
func mgetValues(mget rueidis.RedisResult, n int) ([]rueidis.RedisMessage, error) {
	if err := mget.Error(); err != nil && !rueidis.IsRedisNil(err) {
		return nil, err
	}
	values, err := mget.ToArray()
	if err != nil || len(values) != n {
		return nil, rediserr.ErrNonsense
	}
	return values, nil
}

// noteMGET notes that the session may refuse every MGET, if an error in the reply to one says so. It
// returns the class of the error.
func (s *Session) noteMGET(err error) rediserr.Class {
	class := rediserr.Classify(context.Background(), err)
	if class == rediserr.Command || class == rediserr.Unknown {
		s.refusesMGET.Store(true)
	}
	return class
}

// answeredBy sets the item's value from a value in the reply to MGET and the reply to PTTL. It
// returns false if they are no answer.
func (it *Item) answeredBy(value *rueidis.RedisMessage, pttl *rueidis.RedisResult, s *Session) bool {
	if value.IsString() {
		bytes, _ := value.AsBytes()
		*it.Read = found(bytes, *pttl, s)
		return true
	}
	if s.noteMGET(value.Error()) != rediserr.OK {
		return false
	}
	left, err := pttl.AsInt64()
	return value.IsNil() && err == nil && left == keyAbsent
}

// readAgain sends the GETs of the items that an MGET did not answer.
func (p *pipelines) readAgain(ctx Bound, build commands, each func(i int, replies []rueidis.RedisResult, o Outcome)) {
	if len(p.again) == 0 {
		return
	}
	ctx, cancel := p.remote.Bound(ctx.Caller, p.remote.clock.Now())
	defer cancel()
	p.remote.part(ctx, p.items, p.again, p.stride, build, each)
}
