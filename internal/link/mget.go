package link

import (
	"context"

	"github.com/holdfast-cache/holdfast/internal/rediserr"
	"github.com/redis/rueidis"
)

// A pipeline of plain reads is sent as one MGET with a PTTL for each key behind it, if all its keys
// may be named in one command. Its replies are then arranged as those of GET and PTTL of each key.
//
// MGET answers nil for a value that is no string, as for an absent key, and is refused as a whole
// for one key that the user may not read. So a key without a value that PTTL does not call absent,
// and the keys of an MGET that was refused, are read again, each by a GET.

// arranged returns the replies to an MGET and its PTTLs as replies to GET and PTTL of each key.
func arranged(replies []rueidis.RedisResult) []rueidis.RedisResult {
	mget, pttls := replies[0], replies[1:]
	values, err := mget.ToArray()
	if err == nil && len(values) != len(pttls) {
		mget = rueidis.NewErrorResult(rediserr.ErrNonsense)
	}
	all := make([]rueidis.RedisResult, 0, 2*len(pttls))
	for i, pttl := range pttls {
		value := mget
		if len(values) == len(pttls) {
			value = rueidis.NewResult(values[i], nil)
		}
		all = append(all, value, pttl)
	}
	return all
}

// mgetAnswer says whether the reply to an MGET answers for a key.
type mgetAnswer uint8

const (
	mgetAnswers mgetAnswer = iota
	mgetNeedsGET
	mgetRefused // as mgetNeedsGET, and the server may refuse every MGET
)

// judgeMGET judges the replies that arranged has given to a key.
func judgeMGET(value, pttl rueidis.RedisResult) mgetAnswer {
	err := value.Error()
	if rueidis.IsRedisNil(err) {
		if left, err := pttl.AsInt64(); err != nil || left != keyAbsent {
			return mgetNeedsGET
		}
		return mgetAnswers
	}
	switch rediserr.Classify(context.Background(), err) {
	case rediserr.OK, rediserr.Redirect:
		return mgetAnswers
	case rediserr.Command, rediserr.Unknown:
		return mgetRefused
	default:
		return mgetNeedsGET
	}
}
