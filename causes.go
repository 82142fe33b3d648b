package holdfast

import (
	"strings"
	"time"
)

// causes are the reasons why Redis was not reached, as they were told: a client that
// never gets through is in one state for ever, and no change of it would tell.
type causes struct {
	last string
	told map[string]int64 // when
}

const (
	// causeAgain is the least time between two tellings of one cause, where there were
	// others in between.
	causeAgain = time.Minute
	// causesMost is how many are told in that time: the words may be the server's.
	causesMost = 16
)

// news says whether a failure at this time is to be told: it is the first, or its cause
// is another than that of the one before. Causes that differ in numbers alone, as ports
// do, are one.
func (c *causes) news(text string, now int64) bool {
	if len(text) > 256 {
		text = text[:256]
	}
	cause := strings.Join(strings.FieldsFunc(text, func(r rune) bool { return '0' <= r && r <= '9' }), "#")
	if cause == c.last {
		return false
	}
	c.last = cause
	if c.told == nil {
		c.told = make(map[string]int64)
	}
	for old, at := range c.told {
		if now-at >= int64(causeAgain) {
			delete(c.told, old)
		}
	}
	if _, lately := c.told[cause]; lately || len(c.told) == causesMost {
		return false
	}
	c.told[cause] = now
	return true
}
